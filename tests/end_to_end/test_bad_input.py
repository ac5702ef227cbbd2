"""What the command line accepts, and what it answers to mistakes: one line that says what to do, no traceback."""

import ast
import dataclasses
import functools
import gzip
import importlib.util
import inspect
import os
import re
import runpy
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from rlhf_jax.simulators.world import WorldConfig
from rlhf_jax.simulators.world_dialogues import write_world

Start = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def script(repository: Path) -> Path:
    return repository / "experiments" / "ppo_redial.py"


@pytest.fixture(scope="module")
def experiment(script: Path) -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("ppo_redial", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get("ppo_redial")
    sys.modules["ppo_redial"] = module
    spec.loader.exec_module(module)
    yield module
    # Another test may have imported the script as such, and still hold its classes.
    del sys.modules["ppo_redial"]
    if before is not None:
        sys.modules["ppo_redial"] = before


@pytest.fixture
def start(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: Start) -> Start:
    """Runs the script in this process and an empty folder: (exit code, everything printed)."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(run_here, script.name)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder in the official format."""
    return write_world(tmp_path_factory.mktemp("release") / "data", WorldConfig(n_items=30, n_train=8, n_test=3), 0)


def leaves(kind: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(flag, text under the field) of every field that can be set, inherited ones too, depth first."""
    following = {}
    for base in (base for base in reversed(kind.__mro__) if dataclasses.is_dataclass(base)):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for statement, after in zip(body.body, [*body.body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = (
                    after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
                )
                following[statement.target.id] = str(text)
    kinds = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(kinds[field.name]):
            yield from leaves(kinds[field.name], f"{prefix}{field.name}.")
        else:
            yield f"--{prefix}{field.name}".replace("_", "-"), following[field.name]


def test_no_argument_is_the_demo(experiment: ModuleType) -> None:
    demo = experiment.PRESETS["demo"][1]
    assert experiment.command_line([]) == experiment.command_line(["demo"]) == demo
    assert experiment.command_line(["--seed", "3"]) == dataclasses.replace(demo, seed=3)


@pytest.mark.parametrize("preset", ["demo", "debug", "redial", "paper"])
def test_every_preset_takes_the_main_options(experiment: ModuleType, preset: str, tmp_path: Path) -> None:
    arguments = [preset, "--data.source", "redial", "--data.dir", str(tmp_path), "--run-dir", "a", "--seed", "7"]
    config = experiment.command_line(arguments)
    assert (config.data.dir, config.run_dir, config.seed) == (tmp_path, Path("a"), 7)


def test_help_explains_every_field(experiment: ModuleType, start: Start) -> None:
    code, output = start("debug", "--help")
    assert code == 0
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", output).split())
    fields = list(leaves(experiment.Config))
    assert len(fields) > 60
    for flag, text in fields:
        assert flag in shown, flag
        assert len(text) > 3, f"{flag} has no text"
        assert " ".join(text.split()[:3]) in shown, f"{flag}: its text is not shown"


def test_help_names_the_presets(start: Start) -> None:
    code, output = start("--help")
    assert code == 0
    for preset in ("demo", "debug", "redial", "paper"):
        assert preset in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["debug", "--ppo.clip-epsilon", "0.1"], "clip-eps"),
        (["debug", "--seed", "many"], "--seed"),
        (["debu"], "debu"),
        (["debug", "--sft.loss-on", "nobody"], "nobody"),
        (["debug", "--data.dir", "somewhere"], "--data.dir somewhere is not read when --data.source is world"),
        (["debug", "--data.source", "redial"], "--data.dir must name the folder"),
        (["debug", "--sft.epochs", "0"], "--sft.epochs must be in [1, 10000]: got 0"),
        (["debug", "--reward.function", "words"], "--reward.function words: expected package.module:name"),
        (["debug", "--reward.labels.signals", "charm"], "there is no signal 'charm'"),
        (["debug", "--ppo.group-size", "3"], "--align.batch-size 16 cannot be divided into groups of 3 responses"),
        (
            ["debug", "--algorithm", "grpo", "--grpo.group-size", "1"],
            "--grpo.group-size or --live.replies.group-size must be in [2, 1024]: got 1",
        ),
        (["debug", "--algorithm", "grpo", "--profile", "ppo"], "--profile ppo traces nothing: --algorithm is grpo"),
        (["debug", "--algorithm", "grpo", "--ppo.epochs", "9"], "--ppo.epochs 9 is not read: --algorithm is grpo"),
        (["debug", "--grpo.group-size", "6"], "--grpo.group-size 6 is not read: --algorithm is ppo"),
        (["debug", "--prior.updates", "7"], "--prior.updates 7 is not read: --prior.learner is none"),
        (
            ["redial", "--data.dir", ".", "--data.world.n-items", "99"],
            "--data.world.n-items 99 is not read: --data.source is",
        ),
        (["debug", "--data.rl-share", "1"], "--data.rl-share must be in [0, 1): got 1"),
        (["debug", "--ppo.component-weights", "1", "0"], "2 numbers for 3 components: give one each, in the order eng"),
        (
            ["debug", "--reward.function", "own:wit", "--ppo.component-weights", "1", "0", "0"],
            "3 numbers for 4 components: give one each, in the order engagement, relevance, sentiment, wit",
        ),
    ],
)
def test_wrong_flags(start: Start, arguments: list[str], message: str) -> None:
    code, output = start(*arguments)
    assert code == 2
    assert message in " ".join(re.sub("[│╭╮╰╯─]", " ", output).split())
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["redial"], "--data.dir data/redial: "),
        (["redial", "--data.dir", "nowhere"], "--data.dir nowhere: nowhere"),
    ],
)
def test_data_that_are_not_there(start: Start, arguments: list[str], message: str, tmp_path: Path) -> None:
    code, output = start(*arguments, "--run-dir", str(tmp_path / "run"))
    assert code == 1
    assert message in " ".join(output.split())
    assert "Traceback" not in output


def test_a_reward_from_outside_is_tried_before_anything_is_trained(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_wit.py").write_text("def wit(turns, items):\n    return [1.0 / 0 for _ in turns]\n")
    code, output = start("debug", "--run-dir", str(tmp_path / "run"), "--reward.function", "own_wit:wit")
    assert code == 1
    assert "error: --reward.function own_wit:wit: it raised ZeroDivisionError" in output
    assert "Traceback" not in output and not (tmp_path / "run" / "checkpoints").exists()


def with_bad_line(release: Path, folder: Path, old: str, new: str) -> Path:
    """A copy of the release with a mistake in line 3 of the training file; returns that file."""
    folder.mkdir()
    for file in release.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    (file,) = folder.glob("train_data.jsonl*")
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as stream:
        lines = stream.read().splitlines()
    assert old in lines[2]
    lines[2] = lines[2].replace(old, new, 1)
    with opened(file, "wt", encoding="utf-8") as stream:
        stream.write("\n".join(lines) + "\n")
    return file


def test_a_mistake_in_the_first_start_does_not_claim_the_run_directory(
    start: Start, release: Path, tmp_path: Path
) -> None:
    file = with_bad_line(release, tmp_path / "bad", '"messages": [', '"messages": 7, "was": [')
    run = tmp_path / "run"
    for options in (["--data.dir", "nowhere"], ["--data.dir", str(file.parent)]):
        code, _ = start("redial", *options, "--run-dir", str(run))
        assert code == 1
    assert f'"dir": "{file.parent}"' in (run / "config.json").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"messages": [', '"messages": 7, "was": [', "field 'messages' is '7'"),
        ('"senderWorkerId": ', '"senderWorkerId": "me", "was": ', "senderWorkerId"),
        ("{", "[", "line 3"),
    ],
)
def test_a_malformed_line_is_named(
    start: Start, release: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    file = with_bad_line(release, tmp_path / "bad", old, new)
    code, output = start("redial", "--data.dir", str(file.parent), "--run-dir", str(tmp_path / "run"))
    assert code == 1
    assert f"{file}" in output and "line 3" in output and message in output
    assert "Traceback" not in output


def test_a_run_directory_that_cannot_be_made(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, output = start("debug", "--run-dir", str(tmp_path / "file" / "run"))
    assert code == 1
    assert "cannot be a folder: a file of that name is in the way" in output
    assert "Traceback" not in output


def test_a_run_directory_without_permission(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.geteuid() == 0:
        # Root may write everywhere, so the system's refusal is played.
        def refuse(path: object, *rest: object, **options: object) -> int:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "open", refuse)
    code, output = start("debug", "--run-dir", str(folder / "run"))
    assert code == 1
    # Where root's refusal is played, the first file in the folder is what cannot be opened.
    said = rf"no permission to write {re.escape(str(folder / 'run'))}(/lock)?: choose another run directory or change"
    assert re.search(said, output)
    assert "Traceback" not in output


def test_chat_needs_a_run_directory(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["chat.py", str(tmp_path)])
    with pytest.raises(SystemExit) as error:
        runpy.run_path(str(repository / "experiments" / "chat.py"), run_name="__main__")
    assert error.value.code == 1
    assert f"{tmp_path} is no run directory: it has no config.json" in capsys.readouterr().err

"""The run directory: what it holds, and what it refuses."""

import dataclasses
import enum
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from rlhf_jax.runtime import files, machine, run


class Kind(enum.Enum):
    WORLD = "world"


@dataclasses.dataclass(frozen=True)
class Data:
    kind: Kind = Kind.WORLD
    folder: Path = Path("a/b")


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    run_dir: str = "one"
    weights: tuple[float, ...] = (0.5, 0.5)
    data: Data = Data()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_options_of_another_version_cannot_be_repeated_and_it_is_said(tmp_path: Path) -> None:
    with run.open_run(tmp_path / "run", {"seed": 0}, trackers=()) as directory:
        (directory.path / "metrics.jsonl").write_text("")
    with pytest.raises(
        files.RunError, match=r"new was 'absent', now 1\. Another version of the code began it.*continue it with"
    ):
        run.open_run(tmp_path / "run", {"seed": 0, "new": 1}, trackers=())
    with pytest.raises(files.RunError, match=r"Repeat the old options"):
        run.open_run(tmp_path / "run", {"seed": 1}, trackers=())


def test_a_new_run_is_described(tmp_path: Path) -> None:
    with run.open_run(tmp_path / "deep" / "run", Config(seed=3)) as directory:
        assert not directory.resumed
        directory.record(data={"n": np.int64(7), "score": np.float32(0.5)}, mesh=None)
    stored = json.loads((tmp_path / "deep" / "run" / "config.json").read_text())
    assert stored["config"] == {"seed": 3, "weights": [0.5, 0.5], "data": {"kind": "world", "folder": "a/b"}}
    assert stored["data"] == {"n": 7, "score": 0.5}
    assert stored["environment"]["versions"]["jax"] == jax.__version__
    assert stored["environment"]["devices"] == {"kind": "cpu", "count": 1, "processes": 1}


def test_the_same_configuration_continues_where_only_volatile_fields_differ(tmp_path: Path) -> None:
    run.open_run(tmp_path, Config()).close()
    (tmp_path / "vocabulary").mkdir()
    before = contents(tmp_path)
    with run.open_run(tmp_path, Config(run_dir="two")) as directory:
        assert directory.resumed
    assert contents(tmp_path) == before


def test_a_run_that_made_nothing_may_be_started_otherwise(tmp_path: Path) -> None:
    run.open_run(tmp_path, Config()).close()
    with run.open_run(tmp_path, Config(seed=1)) as directory:
        assert not directory.resumed
    assert json.loads((tmp_path / "config.json").read_text())["config"]["seed"] == 1


def test_another_configuration_is_refused_by_field_and_nothing_changes(tmp_path: Path) -> None:
    run.open_run(tmp_path, Config()).close()
    (tmp_path / "vocabulary").mkdir()
    before = contents(tmp_path)
    with pytest.raises(
        files.RunError, match=r"another configuration: seed was 0, now 1; data\.folder was 'a/b', now 'c'"
    ):
        run.open_run(tmp_path, Config(seed=1, data=Data(folder=Path("c"))))
    assert contents(tmp_path) == before


def test_the_processor_is_known_by_family_and_model(tmp_path: Path) -> None:
    """Two machines with one name compile other programs where the model differs."""
    assert machine.environment()["cpu"]
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: Some CPU\n\nflags: x\n"
    )
    assert machine._cpu(tmp_path / "cpuinfo") == "Some CPU, cpu family 25, model 17"
    assert isinstance(machine._cpu(tmp_path / "nowhere"), str)


def test_another_environment_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.open_run(tmp_path, Config()).close()
    (tmp_path / "vocabulary").mkdir()
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["environment"]["versions"]["jax"] = "0.0.1"
    files.write_json(tmp_path / "config.json", stored)
    run.open_run(tmp_path, Config()).close()
    assert "bitwise equality is not promised: versions.jax was '0.0.1'" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "config.json").read_text())["continued"]) == 1


def test_changed_data_is_refused(tmp_path: Path) -> None:
    with run.open_run(tmp_path, Config()) as directory:
        directory.record(data={"train.jsonl": "abc"})
        directory.record(data={"train.jsonl": "abc"})
        with pytest.raises(files.RunError, match=r"data\.train\.jsonl was 'abc', now 'xyz'"):
            directory.record(data={"train.jsonl": "xyz"})


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(files.RunError, match=r"not empty and holds no config\.json"):
        run.open_run(tmp_path, Config())
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(files.RunError, match="is a file"):
        run.open_run(tmp_path / "file", Config())
    with pytest.raises(files.RunError, match="a file of that name is in the way"):
        run.open_run(tmp_path / "file" / "run", Config())


def test_two_processes_do_not_share_a_run(tmp_path: Path) -> None:
    with run.open_run(tmp_path, Config()), pytest.raises(files.RunError, match="another process is working in"):
        run.open_run(tmp_path, Config())
    run.open_run(tmp_path, Config()).close()


def test_unreadable_description_is_an_error(tmp_path: Path) -> None:
    run.open_run(tmp_path, Config()).close()
    (tmp_path / "vocabulary").mkdir()
    (tmp_path / "config.json").write_text('{"config": ')
    with pytest.raises(files.RunError, match=r"config\.json is not readable JSON"):
        run.open_run(tmp_path, Config())


def failing(number: int) -> Callable[..., None]:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_missing_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", failing(errno.EACCES))
    with pytest.raises(files.RunError, match="no permission to write .*choose another run directory"):
        run.open_run(tmp_path / "run", Config())


def test_arrays_come_back_from_the_disk(tmp_path: Path) -> None:
    arrays = {"ranks/full": np.arange(3), "names": np.array(["a", "b"])}
    for name, compressed in (("plain.npz", False), ("small.npz", True)):
        files.write_npz(tmp_path / name, {"old": np.zeros(1)})
        files.write_npz(tmp_path / name, arrays, compressed=compressed)
        with np.load(tmp_path / name) as stored:
            assert list(stored) == list(arrays)
            for key, array in arrays.items():
                np.testing.assert_array_equal(stored[key], array)
    assert set(contents(tmp_path)) == {"plain.npz", "small.npz"}


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_json(tmp_path / "results.json", {"hits": 1})
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(files.RunError, match=r"disk full while writing .*results\.json .*MiB free.*same command again"):
        files.write_json(tmp_path / "results.json", {"hits": 2})
    with pytest.raises(files.RunError, match=r"disk full while writing .*cases\.npz"):
        files.write_npz(tmp_path / "cases.npz", {"hits": np.zeros(1)})
    assert contents(tmp_path) == {"results.json": b'{\n  "hits": 1,\n  "crc32": "b9ebd60c"\n}\n'}


def test_numbers_that_are_not_finite_become_null() -> None:
    assert files.as_json({"a": float("nan"), "b": [np.inf, np.float32(1)], "c": {3, 1}}) == {
        "a": None,
        "b": [None, 1.0],
        "c": [1, 3],
    }


def test_what_json_cannot_hold_is_named() -> None:
    with pytest.raises(ValueError, match=r"config\.inner\.what = <object .* of type object"):
        files.as_json({"inner": {"what": object()}})


def test_compilation_cache_goes_where_it_is_told(tmp_path: Path) -> None:
    try:
        assert run.enable_compilation_cache(tmp_path / "cache") == tmp_path / "cache"
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache")
        (tmp_path / "file").write_text("")
        assert run.enable_compilation_cache(tmp_path / "file" / "cache") is None
    finally:
        jax.config.update("jax_compilation_cache_dir", None)


def test_a_folder_belongs_to_the_script_that_made_it(tmp_path: Path) -> None:
    study, finished, older, foreign = (tmp_path / name for name in ("study", "run", "older", "thesis"))
    run.claim(study, "sweep_window.py")
    (study / "report.md").write_text("found")
    run.claim(study, "sweep_window.py")
    run.open_run(finished, Config()).close()
    files.write_json(finished / "config.json", {"config": {}, "command": ["python", "experiments/ppo_redial.py"]})
    (finished / "results.json").write_text("[]")
    older.mkdir()
    (older / "report.md").write_text("```\npython experiments/gather_seeds.py OUT a=RUN\n```\n")
    run.claim(older, "gather_seeds.py")
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    before = [contents(folder) for folder in (study, finished, foreign)]
    for folder, made in (
        (study, r"study belongs to sweep_window\.py and holds report\.md"),
        (finished, r"run belongs to ppo_redial\.py and holds config\.json, results\.json"),
        (foreign, r"thesis holds thesis\.tex and was not made by validate_reward\.py"),
    ):
        with pytest.raises(files.RunError, match=f"{made}.*nothing was overwritten"):
            run.claim(folder, "validate_reward.py")
    with pytest.raises(files.RunError, match=r"study is not empty and holds no config\.json, but report\.md"):
        run.open_run(study, Config())
    assert [contents(folder) for folder in (study, finished, foreign)] == before


@pytest.mark.parametrize("name", ["", "."])
def test_a_run_directory_needs_a_name(name: str) -> None:
    with pytest.raises(files.RunError, match="has no name of its own"):
        run.open_run(Path(name), Config())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must hold an object, it holds '\\[\\]'"),
        ('{"config": 3}', "'config' is 3, an object is needed"),
        ("[" * 100_000, "is not readable JSON"),
        ('{"config": {}, "crc32": "00000000"}', "was changed after it was written: .*remove its field crc32"),
    ],
)
def test_a_description_that_is_none_is_named(tmp_path: Path, text: str, message: str) -> None:
    run.open_run(tmp_path / "run", Config()).close()
    (tmp_path / "run" / "results.json").touch()
    (tmp_path / "run" / "config.json").write_text(text)
    with pytest.raises(files.RunError, match=f"config.json'?:? {message}"):
        run.open_run(tmp_path / "run", Config())


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("value", [{"loss": 0.1, "steps": [1, 2]}, [0.1, {"hits": 2}]])
def test_no_changed_bit_of_a_json_file_is_read(tmp_path: Path, value: Any) -> None:
    file = tmp_path / "results.json"
    files.write_json(file, {"before": 1} if isinstance(value, dict) else [])
    files.write_json(file, value)
    whole = file.read_bytes()
    assert files.read_json(file) == value
    for at in range(len(whole)):
        flip(file, at)
        try:
            found = files.read_json(file)
            # What is laid out in another way, or whose checksum has lost its name, still says the same.
            assert found == value or (isinstance(value, dict) and {name: found.get(name) for name in value} == value)
        except files.DamagedFileError as error:
            assert str(file) in str(error)
        file.write_bytes(whole)


def test_no_changed_bit_of_an_npz_file_is_read(tmp_path: Path) -> None:
    file, arrays = tmp_path / "cases.npz", {"ranks": np.arange(3), "names": np.array(["a"])}
    files.write_npz(file, arrays)
    whole, refused = file.read_bytes(), 0
    for at in range(0, len(whole), 3):
        flip(file, at)
        try:
            found = files.read_npz(file)
        except files.DamagedFileError as error:
            refused += str(file) in str(error)
        else:
            assert list(found) == list(arrays) and all((found[name] == arrays[name]).all() for name in arrays)
        file.write_bytes(whole)
    assert refused > len(whole) / 3 / 2
    file.rename(tmp_path / "other.npz")
    with pytest.raises(files.DamagedFileError, match=r"other\.npz was written as 'cases\.npz'"):
        files.read_npz(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENAMETOOLONG, "too long", "x" * 300), "a name of 300 characters is too long"),
        (OSError(errno.ENOSPC, "full", "figure.png"), "disk full while writing figure.png"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "runs/a"), "runs/a cannot be a file"),
        (OSError(errno.EIO, "Input/output error", "runs/a"), "runs/a: Input/output error"),
        (ValueError("two\nlines"), "two lines"),
    ],
)
def test_errors_of_the_system_are_one_line(error: Exception, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"), files.errors_in_one_line():
        raise error
    said = capsys.readouterr().err
    assert said.startswith("[rlhf_jax] error: ") and message in said and said.count("\n") == 1

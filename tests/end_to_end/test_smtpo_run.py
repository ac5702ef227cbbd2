"""SMTPO's preset `debug`: from nothing to a report, repeated without work, refused where it cannot be."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_jax.assessment.seeker_talk import open_seeker
from rlhf_jax.data.items import spelled_titles
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.reporting.run_report import read_results
from rlhf_jax.runtime.metrics import read_metrics
from rlhf_jax.simulators.world import WorldConfig
from rlhf_jax.simulators.world_dialogues import write_world

SCRIPT = "smtpo_redial.py"


@pytest.mark.slow
def test_debug_talks_and_reports(run_here: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, output = run_here(SCRIPT, "debug", "--run-dir", str(run))
    assert code == 0, output
    results = {(one.protocol, one.name): one for one in read_results(run)}
    for protocol in ("scoring-seeker", "blind-seeker", "silent-seeker", "training-seeker", "closed-loop"):
        for system in ("sft", "single_turn", "smtpo", "smtpo-sft", "smtpo-single_turn"):
            assert results[protocol, f"{system}/success@2"].seeds == (0,)
    # Before the first answer it makes no difference who will answer.
    for metric in ("success@1", "ndcg", "format", "recalled"):
        protocols = ("scoring-seeker", "blind-seeker", "silent-seeker", "first-turn")
        assert len({results[protocol, f"smtpo/{metric}"].value for protocol in protocols}) == 1
    # What is listed without listening does not hang on who answers.
    for protocol in ("scoring-seeker", "silent-seeker"):
        assert results[protocol, "first_list/success@2"].seeds == (0,)
    assert len({results[p, "first_list/success@2"].value for p in ("scoring-seeker", "silent-seeker")}) == 1
    heard, silent = (results[p, "smtpo/success@2"].value for p in ("scoring-seeker", "silent-seeker"))
    assert results["scoring-seeker", "smtpo-smtpo_silent/success@2"].value == pytest.approx(heard - silent)
    # Users answer whether they are read or not; a first reply reads their opening alone.
    firsts = {results["closed-loop", f"{name}/success@1"].value for name in ("smtpo", "smtpo_silent")}
    assert len(firsts) == 1 and ("closed-loop", "smtpo-smtpo_silent/mean_utility") in results
    assert {"training_seeker_0", "scoring_seeker_0", "popularity", "closed_forms"} <= {
        one.system for one in results.values()
    }
    # Logged messages of its own test split are ranked as well.
    for system in ("retriever", "sft", "smtpo", "smtpo-sft"):
        assert results["fresh", f"{system}/ndcg@10"].split == "world/test"
    for system in ("sft", "smtpo"):
        assert (
            results["scoring-seeker", f"{system}/leaks"].value
            == 0
            <= results["scoring-seeker", f"{system}/leaks_drawn"].value
        )
        assert 0 <= results["scoring-seeker", f"{system}/echoed"].value <= 1
    lines = read_metrics(run / "seed-0" / "metrics.jsonl")
    talked = [line for line in lines if line["stage"] == "multi_turn-smtpo" and "talk/success" in line]
    assert len(talked) == 2 and all(line["talk/leaks_left"] == 0 and line["talk/repeated"] == 0 for line in talked)
    report = (run / "report.md").read_text(encoding="utf-8")
    assert "## Conversations" in report and "](plots/success." in report
    before = (run / "results.json").read_bytes()
    code, output = run_here(SCRIPT, "debug", "--run-dir", str(run))
    assert (
        code == 0
        and "conversations:" not in output
        and "ranking" not in output
        and (run / "results.json").read_bytes() == before
    )
    other_dialogues_are_ranked(run_here, run)
    a_person_recommends(run_here, run)
    another_vocabulary_is_refused(run_here, run)


def another_vocabulary_is_refused(run_here: Callable[..., tuple[int, str]], run: Path) -> None:
    """What was learnt of other tokens is neither continued nor talked with."""
    Vocabulary.train(["other words"], tuple(range(3)), 300).save(run.parent / "vocabulary")
    shutil.rmtree(run / "seed-0" / "vocabulary")
    (run.parent / "vocabulary").rename(run / "seed-0" / "vocabulary")
    for script, arguments in ((SCRIPT, ("debug", "--run-dir", str(run))), ("chat.py", (str(run), "--as", "simulator"))):
        code, output = run_here(script, *arguments)
        assert code == 1 and f"{run / 'seed-0'} was started with other facts (vocabulary" in output, output
        assert "Traceback" not in output


def test_a_corpus_without_labels_is_refused_at_the_start(
    run_here: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    silent = tmp_path / "silent"
    write_world(silent, WorldConfig(n_items=40, n_train=20, n_test=6, n_users=10), 0)
    for split in ("train", "test"):
        file = silent / f"{split}_data.jsonl"
        lines = [json.loads(line) | {"initiatorQuestions": {}} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("--data.source", "redial", "--data.dir", str(silent), "--run-dir", str(tmp_path / "run"))
    code, output = run_here(SCRIPT, "debug", *options)
    said = (
        f"--data.dir {silent}: no seeker of the 18 training dialogues is known to like what the recommender named first"
    )
    assert code == 1 and said in output, output
    assert not (tmp_path / "run" / "seed-0" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--conversations.turns", "1"), "`smtpo` would be `single_turn`"),
        (("--simulator.response-tokens", "400"), "exceeds --model.n-positions 128"),
        (("--learner.component-weights", "0", "0", "0"), "--learner.component-weights 0.0 0.0 0.0 pay for nothing"),
        (("--learner.component-names", "a", "b", "c"), "must be format recommendation preference: got a b c"),
        (("--data.rl-share", "0.3"), "--data.rl-share 0.3 is not read"),
        (("--conversations.prior-rate", "9", "--prior.learner", "none"), "--conversations.prior-rate 9 is not read"),
        (
            ("--retriever.in-prior", "--prior.learner", "none"),
            "--retriever.in-prior is not read: --prior.learner is none",
        ),
        (("--conversations.warmup-steps", "9"), "--conversations.warmup-steps 9 leaves no step after it"),
        (
            ("--data.world.n-items", "20", "--data.max-items", "8", "--conversations.turns", "3"),
            "nothing to choose from",
        ),
        (
            ("--prior.learner", "grpo", "--processes.count", "2", "--processes.coordinator", "here:1"),
            "--prior.learner grpo learns in one process",
        ),
    ],
)
def test_what_cannot_be_learnt_is_named(
    run_here: Callable[..., tuple[int, str]], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, output = run_here(SCRIPT, "debug", *arguments, "--run-dir", str(tmp_path / "run"))
    assert code != 0 and message in " ".join(output.replace("│", " ").split()) and "Traceback" not in output


def other_dialogues_are_ranked(run_here: Callable[..., tuple[int, str]], run: Path) -> None:
    shutil.copytree(run / "seed-0" / "data", run.parent / "theirs")
    moved = ("--transfer.dir", str(run.parent / "theirs"), "--transfer.dialogues", "6")
    tasks = ("--single-tasks", "language", "target")
    trained = {path.name for path in (run / "seed-0" / "checkpoints").iterdir()}
    code, output = run_here(SCRIPT, "debug", "--run-dir", str(run), *moved, *tasks)
    # No policy is trained anew for it.
    new = {path.name for path in (run / "seed-0" / "checkpoints").iterdir()} - trained
    assert new == {"simulator-language", "simulator-target"}
    assert code == 0 and "ranking theirs: retriever, sft" in output and "conversations:" not in output, output
    results = {(one.split, one.name): one for one in read_results(run)}
    for system in ("retriever", "sft", "smtpo", "smtpo-retriever"):
        assert results["theirs/test", f"{system}/hr@10"].seeds == (0,)
    assert 0 <= results["theirs/test", "scoring_seeker_0/auc"].value <= 1
    for metric in ("auc", "hr@10", "attribute_f1", "perplexity"):
        # Every task is learnt by a seeker of its own, whose numbers are not those of all three.
        values = {results["world/test", f"{name}_seeker_0/{metric}"].value for name in ("language_only", "target_only")}
        assert values - {results["world/test", f"training_seeker_0/{metric}"].value}
    language, target = (
        results["world/test", f"{name}_only_seeker_0/perplexity"].value for name in ("language", "target")
    )
    assert language < target
    assert "0 are unknown and read as words" in (run / "report.md").read_text(encoding="utf-8")


def a_person_recommends(run_here: Callable[..., tuple[int, str]], run: Path) -> None:
    stored = open_seeker(run)
    titles = spelled_titles(stored.seeker.setup.corpus.items)
    opening = stored.openings[1]
    gold, other = titles[opening.gold[0]], next(t for item, t in titles.items() if item not in opening.gold)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    lines = f"what do you like?\ntry {other}\n/reveal\n/top\nand {gold}\nmore?\n/reset\n/next\n/quit\nnever read\n"
    code, output = run_here("chat.py", str(run), "--as", "simulator", "--opening", "1", stdin=lines)
    assert code == 0, output
    n = len(stored.openings)
    assert output.count(f"Seeker 1 of {n}:") == 2 and f"Seeker {2 % n} of {n}:" in output
    shown, _, after = output.partition("you> what do you like?")
    # Up to the first reveal, nothing says what is liked.
    hidden, _, revealed = after.partition("you> /reveal")
    assert gold not in shown and gold not in hidden and hidden.count("seeker> ") == 2
    assert f"recognised: {other}" in hidden and f"likes: {gold}" in revealed
    assert re.search(r"^     expects: .+ \d+%", revealed, re.MULTILINE)
    assert "No command '/top'; there are /reveal" in revealed
    assert f"found: {gold}" in revealed and "This seeker has found what it likes" in revealed
    assert "never read" not in output
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    code, output = run_here("chat.py", str(run / "seed-0"), "--as", "simulator", "--opening", "99")
    assert code == 1 and f"--opening 99: the test split of {run / 'seed-0'} has {n}, from 0" in output
    shutil.rmtree(run / "seed-0" / "checkpoints" / "simulator")
    code, output = run_here("chat.py", str(run), "--as", "simulator")
    assert code == 1 and "has no checkpoint of stage 'simulator'" in output and "Traceback" not in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("redial",), "--data.dir data/redial"),
        (("debug", "--conversations.turns", "0"), "--conversations.turns must be in [1, 5]: got 0"),
        (("debug", "--conversations.group-size", "1"), "--conversations.group-size must be in [2, 1024]: got 1"),
        (("debug", "--retriever.candidates", "1"), "--retriever.candidates 1 cannot fill a list of --data.max-items 2"),
        (("debug", "--learner.minibatches", "3"), "cannot be cut into --learner.minibatches 3"),
        (("debug", "--conversations.draws", "3"), "cannot be drawn in --conversations.draws 3 equal parts"),
        (
            ("debug", "--conversations.openings", "40000"),
            "--conversations.turns 2 openings of the single-turn control: ",
        ),
        (("debug", "--transfer.dir", "nowhere"), "--transfer.dir nowhere: nowhere/movies_with_mentions.csv: the table"),
        (("debug", "--seeds", "1", "1"), "--seeds must name different seeds"),
        (("debug", "--data.response-tokens", "20"), "--data.response-tokens 20: --reasoning.attributes 4"),
    ],
)
def test_what_cannot_be_run_is_named(
    run_here: Callable[..., tuple[int, str]], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, output = run_here(SCRIPT, *arguments, "--run-dir", str(tmp_path / "run"))
    # Long messages are broken inside a box.
    assert code != 0 and message in " ".join(output.replace("│", " ").split()) and "Traceback" not in output

"""DPO4Rec's preset `debug`: from nothing to a report, repeated without work, refused where it cannot be."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_jax.reporting.run_report import read_results
from rlhf_jax.runtime.files import read_npz, read_object
from rlhf_jax.runtime.metrics import read_metrics

SCRIPT = "dpo4rec_movielens.py"


@pytest.mark.slow
def test_debug_writes_a_report_of_every_system(run_here: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, output = run_here(SCRIPT, "debug", "--run-dir", str(run))
    assert code == 0, output
    results = {one.name: one for one in read_results(run)}
    systems = {one.system for one in results.values() if not one.is_difference}
    assert systems >= {"random", "popularity", "mean_rating", "item_knn", "oracle", "none", "history", "teacher"}
    assert systems >= {
        "sft",
        "rft",
        "dpo_1",
        "dpo_2",
        "shuffled",
        "dpo_2_shuffled",
        "best_of_2",
        "scorer_dpo_1",
        "teacher_titles",
    }
    oracle = results["oracle/ndcg@5"].value
    assert all(one.value <= oracle for one in results.values() if one.metric == "ndcg@5" and not one.is_difference)
    stored = read_object(run / "seed-0" / "texts-popularity-matched.json")
    assert oracle == pytest.approx(1 - stored["facts"]["without_positives"])
    assert results["dpo_1-sft/ndcg@5"].interval is not None
    assert 0 < stored["facts"]["round_1"]["kept"] <= stored["facts"]["round_1"]["users"]
    report = (run / "report.md").read_text()
    assert set(stored["facts"]["without_lists"]) == {"scorer", "pairs", "validation", "test"}
    assert "Users left out, because nothing of their history is left for a list: seed 0: " in report
    assert re.search(r"pairs-popularity-matched-1: \d+ users in \d+ s, \d+ a minute", output)
    for plot in ("systems", "samples", "dpo"):
        assert f"plots/{plot}.png" in report and (run / "plots" / f"{plot}.png").exists()
    assert "`dpo_2`: likes" in report or "`dpo_2`:" in report
    lines = [json.loads(line) for line in (run / "seed-0" / "metrics.jsonl").read_text().splitlines()]
    assert {"writer", "reranker-none-popularity-matched", "dpo-popularity-matched-2"} <= {one["stage"] for one in lines}
    before = (run / "results.json").read_bytes()
    code, output = run_here(SCRIPT, "debug", "--run-dir", str(run))
    assert code == 0 and "starts" not in output and (run / "results.json").read_bytes() == before


@pytest.mark.slow
def test_networks_that_scored_no_text_are_added_to_a_finished_run(
    run_here: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, output = run_here(SCRIPT, "debug", "--run-dir", str(run))
    assert code == 0, output
    before = {one.name: one for one in read_results(run)}
    code, output = run_here(SCRIPT, "debug", "--run-dir", str(run), "--networks", "dlcm", "prm")
    assert code == 0, output
    after = {one.name: one for one in read_results(run)}
    assert {name: after[name] for name in before} == before
    texts = ("none", "history", "sft", "dpo_1", "dpo_2")
    rows = {f"{network}_{text}" for network in ("dlcm", "prm") for text in texts}
    assert {one.system for one in after.values() if not one.is_difference} - {
        one.system for one in before.values()
    } == rows
    for name in ("dlcm_dpo_1-dlcm_sft", "dlcm_dpo_2-dlcm_none", "prm_dpo_1-prm_history"):
        left, right = name.split("-")
        difference = after[f"{left}/ndcg@5"].value - after[f"{right}/ndcg@5"].value
        assert after[f"{name}/ndcg@5"].value == pytest.approx(difference, abs=1e-6)
    # Each is a network of its own: none repeats another's numbers.
    assert (
        len({after[f"{network}_sft/ndcg@5"].value for network in ("dlcm", "prm")} | {before["sft/ndcg@5"].value}) == 3
    )


@pytest.fixture(scope="module")
def on_devices(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A short run on two forced CPU devices."""

    def started(*options: str) -> Path:
        run = tmp_path_factory.mktemp("mesh") / "run"
        arguments = ("--rounds", "1", "--titles", "0", "--run-dir", str(run), *options)
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(repository),
            "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2",
        }
        command = [sys.executable, str(repository / "experiments" / SCRIPT), "debug", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return run

    return started


@pytest.fixture(scope="module")
def alone(on_devices: Callable[..., Path]) -> Path:
    return on_devices()


def logged(run: Path, stage: str, name: str) -> list[float]:
    lines = read_metrics(run / "seed-0" / "metrics.jsonl")
    return [float(one[name]) for one in lines if one["stage"] == stage and name in one]


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["data", "fsdp", "tensor"])
def test_two_devices_give_what_one_gives(on_devices: Callable[..., Path], alone: Path, axis: str) -> None:
    spread = on_devices(f"--mesh.{axis}", "2")
    for stage, name in (
        ("writer", "loss"),
        ("writer", "validation/loss"),
        ("dpo-popularity-matched-1", "loss"),
        ("dpo-popularity-matched-1", "logprobs/chosen"),
        ("dpo-rft-popularity-matched", "loss"),
    ):
        expected = logged(alone, stage, name)
        assert len(expected) > 1
        assert logged(spread, stage, name) == pytest.approx(expected, abs=2e-3), name
    # Rounding may turn a token that was drawn at the edge; not more.
    for file in ("sft", "dpo-popularity-matched-1"):
        one, other = (read_npz(run / "seed-0" / "texts" / f"{file}.npz")["tokens"] for run in (alone, spread))
        assert (one == other).mean() > 0.999
    values = {one.name: one.value for one in read_results(alone)}
    assert {one.name: one.value for one in read_results(spread)} == pytest.approx(values, abs=5e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--data.dir must name the folder"),
        (("--data.dir", "/nowhere"), "/nowhere has neither u.data (MovieLens 100k) nor ratings.dat (MovieLens 1M)"),
        (("debug", "--pairs.samples", "1"), "--pairs.samples must be in [2, 1024]: got 1"),
        (("debug", "--pairs.per-user", "3"), "--pairs.per-user 3 needs twice as many texts"),
        (("debug", "--seeds", "1", "1"), "--seeds 1 1: one or several, each once"),
        (("debug", "--dpo.loss", "rft"), "--dpo.loss rft is a row of its own"),
        (("debug", "--networks", "setrank"), "--networks setrank is the network of --rerank.network already"),
        (("debug", "--data.titles", "2"), "--data.titles 2 already lets every text name titles"),
        (("debug", "--model.dropout", "0.3"), "--model.dropout 0.3 is not read: the writer is trained from scratch"),
        (
            ("debug", "--rerank.network", "prm", "--rerank.form", "original"),
            "--rerank.form original needs --rerank.network dlcm or setrank",
        ),
        (("debug", "--data.max-users", "10"), "--data.source world, --data.max-users 10: 10 users: lists need"),
        (("debug", "--mesh.data", "2"), "needs 2 devices, there are 1"),
        (
            ("debug", "--mesh.data", "3"),
            "cannot divide histories of a step (--writer.batch-size) 16 by data × fsdp = 3",
        ),
        (
            ("debug", "--mesh.fsdp", "2", "--dpo.batch-size", "15"),
            "(--dpo.batch-size // --dpo.microbatches) 15 by data",
        ),
        (("debug", "--mesh.tensor", "4"), "cannot divide heads 2 by tensor = 4"),
        (("debug", "--data.dir", "x"), "--data.dir x is not read when --data.source is world"),
    ],
)
def test_what_cannot_be_run_is_named(
    run_here: Callable[..., tuple[int, str]], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, output = run_here(SCRIPT, *arguments, "--run-dir", str(tmp_path / "run"))
    assert code != 0 and message in " ".join(output.replace("│", " ").split()) and "Traceback" not in output


def test_a_broken_rating_file_is_named_by_line(run_here: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    folder = tmp_path / "ml"
    folder.mkdir()
    (folder / "movies.dat").write_text("1::Fargo (1996)::Crime|Drama\n")
    (folder / "ratings.dat").write_text("1::1::5::10\n1::1::5\n")
    code, output = run_here(SCRIPT, "--data.dir", str(folder), "--run-dir", str(tmp_path / "run"))
    said = " ".join(output.replace("│", " ").split())
    assert code == 1 and "ratings.dat, line 2: 3 fields, expected user, item, rating and time" in said

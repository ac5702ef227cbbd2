"""DPO4Rec's preset `debug`: from nothing to a report, repeated without work, refused where it cannot be."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_jax.reporting.run_report import read_results
from rlhf_jax.runtime.files import read_object

SCRIPT = "dpo4rec_movielens.py"


@pytest.mark.slow
def test_debug_writes_a_report_of_every_system(run_here: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, output = run_here(SCRIPT, "debug", "--run-dir", str(run))
    assert code == 0, output
    results = {one.name: one for one in read_results(run)}
    systems = {one.system for one in results.values() if not one.is_difference}
    assert systems >= {"random", "popularity", "mean_rating", "item_knn", "oracle", "none", "history", "teacher"}
    assert systems >= {"sft", "rft", "dpo_1", "dpo_2", "shuffled", "best_of_2", "scorer_dpo_1", "teacher_titles"}
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--data.dir must name the folder"),
        (("--data.dir", "/nowhere"), "/nowhere has neither u.data (MovieLens 100k) nor ratings.dat (MovieLens 1M)"),
        (("debug", "--pairs.samples", "1"), "--pairs.samples must be in [2, 1024]: got 1"),
        (("debug", "--pairs.per-user", "3"), "--pairs.per-user 3 needs twice as many texts"),
        (("debug", "--seeds", "1", "1"), "--seeds 1 1: one or several, each once"),
        (("debug", "--dpo.loss", "rft"), "--dpo.loss rft is a row of its own"),
        (("debug", "--networks", "prm"), "--networks prm is the network of --rerank.network already"),
        (("debug", "--data.titles", "2"), "--data.titles already lets every text name titles"),
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

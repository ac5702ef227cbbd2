"""The preset `debug` of the closed forms: from nothing to a table, repeated without work, refused with other numbers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_jax.reporting.run_report import read_results

SCRIPT = "rank_closed_forms.py"


def test_debug_ranks_every_form(run_here: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, output = run_here(SCRIPT, "debug", "--run-dir", str(run))
    assert code == 0, output
    results = {(r.system, r.metric, r.protocol): r for r in read_results(run)}
    alone = ("co_mention", "ease", "knowledge", "context_knn", "bm25", "context_knn_titles", "popularity_fresh")
    mixtures = ("mixture", "mixture_fitted", "mixture_titles", "mixture_tuned")
    for system in ("popularity", "copy", *alone, *mixtures):
        found = results[system, "hr@10", "fresh"]
        assert found.interval is not None and found.n > 100
    # What users ask for stands in their words: BM25 and the mixtures read them.
    for system in ("bm25", *mixtures):
        assert results[system, "hr@10", "fresh"].value > results["popularity", "hr@10", "fresh"].value
    assert ("mixture-copy", "mrr", "full") in results
    weights = json.loads((run / "weights.json").read_text())
    assert len(weights["mixture_fitted"]["weights"]) == 6 and len(weights["mixture_titles"]["weights"]) == 7
    assert "| mixture_fitted |" in (run / "report.md").read_text()
    before = (run / "results.json").read_bytes()
    code, output = run_here(SCRIPT, "debug", "--run-dir", str(run))
    assert code == 0 and "ranking" not in output.split("# Closed forms")[0]
    assert (run / "results.json").read_bytes() == before
    code, output = run_here(SCRIPT, "debug", "--run-dir", str(run), "--seed", "1")
    assert code == 1 and "seed" in output and "Traceback" not in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--max-dialogues", "0"), "--max-dialogues must be in [1, 10000000]: got 0"), ((), "movies_with_mentions.csv")],
)
def test_what_cannot_be_ranked_is_named(
    run_here: Callable[..., tuple[int, str]], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    folders = ("--data-dir", str(tmp_path), "--run-dir", str(tmp_path / "run"))
    code, output = run_here(SCRIPT, "redial", *folders, *arguments)
    assert code != 0 and message in output and "Traceback" not in output

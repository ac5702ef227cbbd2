"""The retriever's preset `debug`: from nothing to a table, repeated without work, refused where it cannot be."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_jax.reporting.run_report import read_results
from rlhf_jax.runtime.files import read_object

SCRIPT = "rank_retriever.py"


@pytest.mark.slow
def test_debug_recalls_with_every_system(run_here: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, output = run_here(SCRIPT, "debug", "--run-dir", str(run))
    assert code == 0, output
    results = {(r.system, r.metric, r.protocol): r for r in read_results(run)}
    for system in ("popularity", "co_mention", "mixture", "mixture_fitted"):
        assert results[system, "hr@10", "fresh"].seeds == ()
    for system in ("semantic", "semantic_titles", "collaborative", "towers", "towers_mixture", "towers-semantic"):
        found = results[system, "hr@10", "fresh-filtered"]
        assert found.seeds == (0,) and found.interval is not None
    # What puts named items last has nothing to gain from a protocol that does.
    for system in ("towers", "mixture_fitted", "towers_mixture"):
        assert results[system, "hr@10", "fresh"].value == results[system, "hr@10", "fresh-filtered"].value
    weights = read_object(run / "weights.json")
    assert (
        set(weights) == {"mixture_fitted", "towers_mixture-seed0"}
        and "towers" in weights["towers_mixture-seed0"]["weights"]
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("validation/recall@10" in line for line in lines)
    before = (run / "results.json").read_bytes()
    code, output = run_here(SCRIPT, "debug", "--run-dir", str(run))
    assert code == 0 and "ranking" not in output.split("# Retriever")[0]
    assert (run / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("redial",), "movies_with_mentions.csv"),
        (("debug", "--seeds", "1", "1"), "--seeds must name different seeds"),
        (("debug", "--data.dir", "somewhere"), "the world has none"),
        (("debug", "--retriever.width", "7"), "--retriever.width 7 is not a multiple of --retriever.n-head 2"),
        (("debug", "--retriever.titles"), "--retriever.titles changes nothing here"),
        (("debug", "--retriever.epochs", "0"), "--retriever.epochs must be in [1, 10000]: got 0"),
    ],
)
def test_what_cannot_be_run_is_named(
    run_here: Callable[..., tuple[int, str]], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, output = run_here(SCRIPT, *arguments, "--run-dir", str(tmp_path / "run"))
    # Long messages are broken inside a box.
    assert code != 0 and message in " ".join(output.replace("│", " ").split()) and "Traceback" not in output

"""The growth of the closed forms, at sizes of a moment."""

from pathlib import Path

import numpy as np
import pytest

import bench_recommenders
from rlhf_jax.runtime.files import read_object


def test_simulated_training_is_consistent() -> None:
    config = bench_recommenders.Config(items=60, dialogues=100, contexts=8)
    training, items = bench_recommenders.simulated(config, 1)
    rows = training.rows
    assert len(items) == 60 and training.mentions.shape == (100, 60)
    assert len(rows) == training.fresh.shape[0] == len(rows.texts) == len(rows.starts) - 1
    assert rows.starts[-1] == len(rows.items)
    present = training.mentions.toarray() > 0
    # A row's context and its gold are items of its own dialogue.
    assert present[rows.own[rows.rows], rows.items].all()
    gold_rows, gold = training.fresh.nonzero()
    assert present[rows.own[gold_rows], gold].all() and set(np.unique(gold_rows)) == set(range(len(rows)))


@pytest.mark.slow
def test_debug_measures_every_form(tmp_path: Path) -> None:
    config = bench_recommenders.command_line(["debug", "--run-dir", str(tmp_path / "run")])
    report = bench_recommenders.main(config)
    growth = read_object(tmp_path / "run" / "growth.json")
    assert set(growth) == {"1", "4"} and growth["4"]["items"] == 4 * growth["1"]["items"]
    for found in growth.values():
        assert set(found["forms"]) == {
            *("popularity", "copy", "co_mention", "ease", "knowledge", "context_knn", "bm25", "mixture")
        }
        assert all(value >= 0 for form in found["forms"].values() for value in form.values())
    assert "| ease |" in report.read_text()
    with pytest.raises(ValueError, match=r"must be in \[1, "):
        bench_recommenders.Config(items=0)

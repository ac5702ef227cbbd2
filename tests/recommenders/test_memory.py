"""No form holds a table of items × items, or of items × attributes: counted in bytes that are allocated, at 20,000 items."""

import logging
import tracemalloc
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

import bench_recommenders
from rlhf_jax.interfaces import Item
from rlhf_jax.recommenders import bm25, co_mention, context_knn, ease, knowledge, mixture, popularity, stated
from rlhf_jax.recommenders.contexts import Contexts, Training

ITEMS = 20_000
DENSE = ITEMS * ITEMS
"""Bytes of a table of items × items, were an entry no more than a byte."""
WORKING = 100 * 2**20


@pytest.fixture(scope="module")
def given() -> tuple[Training, Mapping[int, Item]]:
    """Two thousand dialogues over many items; every person has some five of them."""
    return bench_recommenders.simulated(bench_recommenders.Config(items=ITEMS, dialogues=2_000), 1)


def fits(training: Training, items: Mapping[int, Item]) -> Mapping[str, Callable[[], Callable[[Contexts], Any]]]:
    ids = training.catalogue.item_ids
    return {
        "popularity": lambda: partial(popularity.scores, popularity.fit(training)),
        "co_mention": lambda: partial(co_mention.scores, co_mention.fit(training)),
        "ease": lambda: partial(ease.scores, ease.fit(training)),
        "knowledge": lambda: partial(knowledge.scores, knowledge.fit(items, ids)),
        "context_knn": lambda: partial(context_knn.scores, context_knn.fit(training)),
        "bm25": lambda: partial(bm25.scores, bm25.fit(items, ids)),
        "stated_person": lambda: partial(stated.scores, stated.fit(items, ids, "person")),
    }


@pytest.mark.slow
def test_no_form_holds_a_dense_table(given: tuple[Training, Mapping[int, Item]]) -> None:
    training, items = given
    assert WORKING < DENSE / 3
    some = training.rows.part(0, 8)
    asked = Contexts(
        some.n_items, some.items, some.starts, some.words, some.texts, some.own, ("person 7 or person 8",) * len(some)
    )
    for name, fit in fits(training, items).items():
        tracemalloc.start()
        found = fit()(asked)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found.shape == (len(asked), ITEMS) and found.any(), name
        assert peak < WORKING, f"{name}: {peak / 2**20:.0f} MB"


def test_the_mixture_scores_a_block_of_contexts_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def part(contexts: Contexts) -> np.ndarray:
        sizes.append(len(contexts))
        return np.ones((len(contexts), contexts.n_items), np.float32)

    monkeypatch.setattr("rlhf_jax.recommenders.contexts.BLOCK_ENTRIES", 6 * 50 * 4)
    contexts = Contexts(50, np.zeros(0, np.int32), np.zeros(18, np.int64), ("",) * 17, ("",) * 17, np.full(17, -1))
    mixture.scores(mixture.mix({"a": part, "b": part}, {"a": 1.0, "b": 1.0}), contexts)
    assert max(sizes) == 4 and sum(sizes) == 2 * 17


def pairs(n_items: int) -> Training:
    """Each item in dialogues of its own with the next one."""
    rows = np.repeat(np.arange(n_items - 1), 2)
    columns = (np.arange(n_items - 1)[:, None] + np.arange(2)).ravel()
    found = csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=(n_items - 1, n_items))
    nothing = Contexts(n_items, np.zeros(0, np.int32), np.zeros(1, np.int64), (), (), np.zeros(0, np.int32))
    return Training(bench_recommenders.Catalogue(tuple(range(n_items))), {}, found, nothing, found)


def test_ease_says_what_it_leaves_out_and_what_it_costs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ease.fit(pairs(30), min_dialogues=2, max_items=28)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        ease.fit(pairs(30), min_dialogues=2, max_items=10)
    assert "EASE over 10 items: 0.0 GB while it is fitted" in caplog.text
    assert "of 28 of 30 items with at least 2; the others score 0" in caplog.text


def test_ease_over_more_than_memory_is_refused_before_anything_is_allocated() -> None:
    training = pairs(100_000)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"EASE over 99,998 items: 240\.0 GB while it is fitted, 40\.0 GB kept"):
        ease.fit(training, min_dialogues=2, max_items=100_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 2**20
    with pytest.raises(ValueError, match=r"at most 0\.0 GB are allowed \(most_bytes\): lower max_items, or raise"):
        ease.fit(pairs(30), min_dialogues=2, most_bytes=24 * 28**2 - 1)
    assert len(ease.fit(pairs(30), min_dialogues=2, most_bytes=24 * 28**2).kept) == 28

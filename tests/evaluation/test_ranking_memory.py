"""Ranking over a wide catalogue: one chunk of scores in memory, and nothing of its size left behind."""

import itertools
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data.windows import RankingRow
from rlhf_jax.evaluation import ranking, user_centric
from rlhf_jax.evaluation.ranking import RankingOutcome, rank_rows
from rlhf_jax.evaluation.user_centric import TopOne, top_items
from rlhf_jax.interfaces import Dialogue, ItemLabel

N_ITEMS, CHUNK, CHUNKS = 50_000, 8, 24


def row(number: int, gold: tuple[int, ...], mentioned: tuple[int, ...] = ()) -> RankingRow:
    labels = {item: ItemLabel(suggested=1, seen=0, liked=1) for item in gold}
    dialogue = Dialogue(f"d{number}", messages=(), seeker_labels=labels, recommender_labels={})
    return RankingRow(dialogue, 1, gold, tuple(item for item in gold if item not in mentioned), mentioned)


@pytest.mark.parametrize("tied", [False, True])
def test_all_rows_take_the_memory_of_a_chunk(tied: bool) -> None:
    rows = [row(number, (number, 7)) for number in range(CHUNK * CHUNKS)]

    def chunks() -> Iterator[np.ndarray]:
        for number in range(CHUNKS):
            generator = np.random.default_rng(number)
            yield np.zeros((CHUNK, N_ITEMS), np.float32) if tied else generator.random((CHUNK, N_ITEMS), np.float32)

    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    outcome = rank_rows(rows, chunks(), range(N_ITEMS))
    left, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    chunk = 4 * CHUNK * N_ITEMS
    # The old chunk lives until the next is made; the columns are a dictionary of 100 bytes an item.
    assert peak - before < 3 * chunk + 120 * N_ITEMS < 0.5 * CHUNKS * chunk
    assert left - before < chunk / 4
    assert (outcome.tables["full"].ranks == N_ITEMS).all() == tied


@given(st.integers(0, 2**32 - 1))
def test_ranks_of_batches_joined_are_those_of_all_rows(seed: int) -> None:
    generator = np.random.default_rng(seed)
    n_items, sizes = 130, (3, 1, 2)
    rows = [
        row(number, tuple(generator.choice(n_items, 2, replace=False).tolist()), (int(generator.integers(n_items)),))
        for number in range(sum(sizes))
    ]
    scores = generator.integers(0, 5, (len(rows), n_items)).astype(np.float64)
    starts = np.cumsum([0, *sizes])
    parts = [
        rank_rows(rows[first:last], [scores[first:last]], range(n_items)) for first, last in itertools.pairwise(starts)
    ]
    whole, found = rank_rows(rows, [scores], range(n_items)), ranking.joined(parts)
    assert found.top == whole.top and set(found.tables) == set(ranking.PROTOCOLS)
    for protocol, table in whole.tables.items():
        np.testing.assert_array_equal(found.tables[protocol].ranks, table.ranks)
        np.testing.assert_array_equal(found.tables[protocol].rows, table.rows)
        assert found.tables[protocol].dialogues == table.dialogues


def test_outcomes_that_do_not_belong_together_are_refused() -> None:
    one = RankingOutcome({}, TopOne((), (), ()))
    with pytest.raises(ValueError, match="0 outcomes to join"):
        ranking.joined([])
    with pytest.raises(ValueError, match=r"2 outcomes to join, of protocols \[\[\], \['full'\]\]"):
        ranking.joined([one, rank_rows([row(0, (1,))], [np.ones((1, 3))], (1, 2, 3), protocols=("full",))])


@given(st.integers(0, 2**32 - 1))
def test_rewards_of_a_few_of_the_tied_items_are_those_of_all(seed: int) -> None:
    generator = np.random.default_rng(seed)
    ids = tuple(range(12))
    rows = [
        row(n, tuple(generator.choice(12, 3, replace=False).tolist()), tuple(generator.choice(12, 2).tolist()))
        for n in range(6)
    ]
    scores = generator.integers(0, 3, (6, 12)).astype(np.float64)
    kept = rank_rows(rows, [scores], ids).top
    both = [top_items(own, ids, np.unique(one.mentioned)) for own, one in zip(scores, rows, strict=True)]
    every = TopOne(tuple(rows), tuple(a for a, _ in both), tuple(b for _, b in both))
    assert max(map(len, kept.whole)) <= 4
    for protocol in user_centric.PROTOCOLS:
        np.testing.assert_array_equal(user_centric.rewards(kept, protocol), user_centric.rewards(every, protocol))

"""Ranks against a hand-made table and a slow reference; known figures of the ReDial test split."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data.redial import read_redial
from rlhf_jax.data.windows import RankingRow, ranking_rows
from rlhf_jax.evaluation import baselines, ranking
from rlhf_jax.evaluation.ranking import metric_values, rank_rows
from rlhf_jax.interfaces import Corpus, Dialogue


def row(dialogue_id: str, gold: tuple[int, ...], mentioned: tuple[int, ...] = (), message_index: int = 1) -> RankingRow:
    dialogue = Dialogue(dialogue_id=dialogue_id, messages=(), seeker_labels={}, recommender_labels={})
    fresh = tuple(item for item in gold if item not in mentioned)
    return RankingRow(dialogue, message_index, gold, fresh, mentioned)


IDS = (10, 20, 30, 40, 50)


def test_ranks_by_hand():
    rows = [row("a", (20, 30), (10, 30)), row("b", (50,))]
    scores = np.array([[9.0, 5.0, 7.0, 5.0, 1.0], [1.0, 2.0, 3.0, 4.0, -np.inf]])
    tables = rank_rows(rows, [scores], IDS, protocols=("full", "fresh", "fresh-filtered")).tables
    # 20 ties with 40 and comes behind it; 30 is second; 50 is last although −inf.
    assert tables["full"].ranks.tolist() == [4, 2, 5]
    assert tables["full"].dialogues == ("a", "a", "b")
    assert tables["full"].rows.tolist() == [0, 0, 1]
    assert tables["fresh"].ranks.tolist() == [4, 5]
    # Without 10 and 30, which were mentioned, 20 shares the first place and gets the second.
    assert tables["fresh-filtered"].ranks.tolist() == [2, 5]


def test_metrics_by_hand():
    ranks = np.array([1, 2, 3, 11])
    assert metric_values("hr@1", ranks).tolist() == [1, 0, 0, 0]
    assert metric_values("hr@10", ranks).tolist() == [1, 1, 1, 0]
    assert metric_values("ndcg@10", ranks) == pytest.approx([1, 0.63093, 0.5, 0], abs=1e-5)
    assert metric_values("mrr", ranks) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 11])
    for name in ("hr", "ndcg@0", "mrr@5", "recall@1"):
        with pytest.raises(ValueError, match=name):
            metric_values(name, ranks)


@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.booleans())
def test_ranks_agree_with_sorting(seed: int, n_items: int, tied: bool):
    generator = np.random.default_rng(seed)
    ids = tuple(sorted(generator.choice(1000, n_items, replace=False).tolist()))
    scores = generator.integers(0, 4, n_items).astype(float) if tied else generator.normal(size=n_items)
    gold = tuple(generator.choice(ids, min(3, n_items), replace=False).tolist())
    mentioned = tuple(generator.choice(ids, n_items // 2).tolist())
    tables = rank_rows([row("x", gold, mentioned)], [scores[None]], ids, protocols=ranking.PROTOCOLS[:3]).tables

    def slow(item: int, candidates: list[int]) -> int:
        # Equal scores: the gold item goes behind.
        order = sorted(candidates, key=lambda other: (-scores[ids.index(other)], other == item))
        return order.index(item) + 1

    assert tables["full"].ranks.tolist() == [slow(item, list(ids)) for item in gold]
    fresh = [item for item in gold if item not in mentioned]
    assert tables["fresh"].ranks.tolist() == [slow(item, list(ids)) for item in fresh]
    candidates = [item for item in ids if item not in mentioned]
    assert tables["fresh-filtered"].ranks.tolist() == [slow(item, candidates) for item in fresh]


def test_chunks_do_not_matter():
    generator = np.random.default_rng(0)
    ids = tuple(range(150))
    rows = [row(f"d{i}", (i, i + 1), (i + 2,), message_index=i) for i in range(20)]
    scores = generator.normal(size=(20, 150))
    whole = rank_rows(rows, [scores], ids).tables
    parts = rank_rows(rows, (scores[i : i + 7] for i in range(0, 20, 7)), ids).tables
    assert tuple(whole) == ranking.PROTOCOLS
    for protocol in whole:
        np.testing.assert_array_equal(whole[protocol].ranks, parts[protocol].ranks)


def test_sampled_negatives_are_different_seeded_and_never_gold():
    columns = {item: item for item in range(120)}
    case = row("d", (3, 50, 119))
    drawn = ranking._negatives(case, columns, seed=0)
    assert len(set(drawn.tolist())) == 99
    assert not set(drawn.tolist()) & {3, 50, 119}
    assert drawn.min() >= 0 and drawn.max() < 120
    np.testing.assert_array_equal(drawn, ranking._negatives(case, columns, seed=0))
    assert set(drawn.tolist()) != set(ranking._negatives(case, columns, seed=1).tolist())
    # 102 items and three gold ones leave exactly the 99 others.
    few = {item: item for item in range(102)}
    others = sorted(set(range(102)) - {3, 50, 101})
    assert sorted(ranking._negatives(row("d", (3, 50, 101)), few, seed=0).tolist()) == others


def test_sampled_rank_of_a_constant_scorer_is_last():
    ids = tuple(range(200))
    outcome = rank_rows([row("d", (5,))], [np.zeros((1, 200))], ids)
    assert outcome.tables["sampled-99"].ranks.tolist() == [100]
    assert outcome.tables["full"].ranks.tolist() == [200]


@pytest.mark.parametrize(
    ("rows", "scores", "ids", "protocols", "message"),
    [
        ([row("d7", (99,))], np.zeros((1, 5)), IDS, None, "dialogue d7, message 1: gold item 99 is not among the 5"),
        ([row("d7", (10,))], np.full((1, 5), np.nan), IDS, None, "dialogue d7, message 1: 5 scores are NaN"),
        ([row("d7", (10,))], np.zeros((2, 5)), IDS, None, r"scores \(2, 5\) after 0 of 1 rows"),
        ([row("d7", (10,))], np.zeros((1, 4)), IDS, None, r"scores \(1, 4\) after 0 of 1 rows; catalogue 5 items"),
        ([row("d7", (10,))] * 2, np.zeros((1, 5)), IDS, None, "scores for 1 rows, but there are 2"),
        ([row("d7", (10,))], np.zeros((1, 5)), (10, 10, 30, 40, 50), None, "1 repeated ids"),
        ([row("d7", (10,))], np.zeros((1, 5)), IDS, ("ful",), "unknown ranking protocol 'ful'"),
        ([row("d7", (10,))], np.zeros((1, 5)), IDS, ("sampled-99",), "sampled-99 needs 99 negatives: 5 items"),
    ],
)
def test_bad_input_is_named(rows, scores, ids, protocols, message):
    with pytest.raises(ValueError, match=message):
        rank_rows(rows, [scores], ids, protocols=protocols)


def test_small_catalogues_leave_sampled_99_out():
    tables = rank_rows([row("d", (10,))], [np.zeros((1, 5))], IDS).tables
    assert tuple(tables) == ("full", "fresh", "fresh-filtered")


def test_results_carry_protocol_n_interval_and_seeds():
    generator = np.random.default_rng(0)
    rows = [row(f"d{i:02d}", (IDS[i % 5],)) for i in range(40)]
    better = [generator.normal(size=(40, 5)) for _ in range(3)]
    for scores in better:
        scores[np.arange(40), np.arange(40) % 5] += 3
    worse = [generator.normal(size=(40, 5)) for _ in range(3)]
    a = {seed: rank_rows(rows, [scores], IDS).tables for seed, scores in enumerate(better)}
    b = {seed: rank_rows(rows, [scores], IDS).tables for seed, scores in enumerate(worse)}
    results = ranking.ranking_results("ppo", a, split="toy/test", metrics=("hr@1", "mrr"))
    assert [(r.name, r.protocol) for r in results[:3]] == [
        ("ppo/hr@1", "full"),
        ("ppo/mrr", "full"),
        ("ppo/hr@1", "fresh"),
    ]
    first = results[0]
    assert (first.n, first.seeds, first.split) == (40, (0, 1, 2), "toy/test")
    assert first.interval[0] <= first.value <= first.interval[1] and first.std is not None
    gain = ranking.difference_results("ppo-sft", a, b, split="toy/test", metrics=("hr@1",))[0]
    assert gain.shows_difference and gain.value > 0.3
    alone = ranking.difference_results("ppo-sft", {0: a[0]}, {0: b[0]}, split="toy/test", metrics=("hr@1",))[0]
    assert alone.interval_excludes_zero and not alone.shows_difference  # One seed claims nothing.
    baseline = ranking.difference_results("ppo-popularity", a, b[0], split="toy/test", metrics=("hr@1",))[0]
    assert baseline.seeds == (0, 1, 2)
    with pytest.raises(ValueError, match="needs the same"):
        ranking.difference_results("x-y", a, {5: b[0], 6: b[1], 7: b[2]}, split="toy/test")


@pytest.fixture(scope="module")
def redial(data_dir: Path) -> Corpus:
    return read_redial(data_dir / "redial")


@pytest.mark.slow
def test_baselines_on_the_redial_test_split(redial: Corpus):
    """Measured here; other people's figures for the same protocol differ by up to .011 (see `baselines`)."""
    rows = list(ranking_rows(redial.test))
    ids = tuple(redial.items)
    counts = baselines.mention_counts((*redial.train, *redial.validation))
    measured = {}
    for name, scores in (("popularity", baselines.popularity_scores), ("copy", baselines.copy_scores)):
        tables = rank_rows(rows, scores(rows, ids, counts), ids, protocols=("full", "fresh")).tables
        for protocol, table in tables.items():
            hits = [metric_values(f"hr@{k}", table.ranks).mean() for k in (1, 10, 50)]
            measured[name, protocol] = np.round(hits, 4).tolist()
        assert len(tables["full"].ranks) == 4975 and len(tables["fresh"].ranks) == 4472
    assert measured == {
        ("popularity", "full"): [0.0129, 0.0581, 0.1574],
        ("popularity", "fresh"): [0.013, 0.0579, 0.1554],
        ("copy", "full"): [0.0464, 0.1467, 0.2386],
        ("copy", "fresh"): [0.0051, 0.0508, 0.153],
    }
    published = {
        ("popularity", "full"): [0.010, 0.048, 0.159],
        ("copy", "full"): [0.054, 0.142, 0.243],
        ("copy", "fresh"): [0.003, 0.043, 0.156],
    }
    for key, figures in published.items():
        assert measured[key] == pytest.approx(figures, abs=0.011)

"""Metrics of lists: scikit-learn's NDCG, loops for MAP, lists without positives, ties, and intervals over users."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, ndcg_score

from rlhf_jax.evaluation import bootstrap
from rlhf_jax.evaluation.bootstrap import DialogueSums
from rlhf_jax.evaluation.reranking import (
    CUTOFFS,
    METRICS,
    by_user,
    definition,
    list_differences,
    list_results,
    list_values,
)

DRAWS = np.random.default_rng(0)
SCORES = DRAWS.normal(size=(60, 10))
LABELS = (DRAWS.random((60, 10)) < 0.3).astype(float)
LABELS[7] = 0
LABELS[8] = 1


def in_order(scores: np.ndarray, labels: np.ndarray) -> list[float]:
    """Labels from the highest score on; of equal scores the one that came first."""
    return [labels[place] for place in sorted(range(len(scores)), key=lambda place: (-scores[place], place))]


def slow_map(labels: list[float], positives: float, k: int, over_all: bool) -> float:
    total = hits = 0.0
    for place, label in enumerate(labels[:k], start=1):
        if label:
            hits += 1
            total += hits / place
    over = min(k, positives) if over_all else hits
    return total / over if over else 0.0


@pytest.mark.parametrize("k", [1, 3, 5, 7, 10, 20])
def test_ndcg_is_that_of_scikit_learn(k: int) -> None:
    found = list_values(f"ndcg@{k}", SCORES, LABELS)
    # With labels of 0 and 1 its gain is ours, 2^y − 1 = y; a list without positives is 0 there too.
    expected = [ndcg_score(labels[None], scores[None], k=k) for scores, labels in zip(SCORES, LABELS, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found[7] == 0 and found[8] == pytest.approx(1)


def test_gain_of_graded_labels() -> None:
    labels = np.array([[3.0, 0.0, 2.0, 1.0]])
    scores = np.array([[1.0, 4.0, 3.0, 2.0]])
    gains = [0, 3, 1, 7]
    best = [7, 3, 1, 0]
    expected = sum(g / math.log2(j + 2) for j, g in enumerate(gains)) / sum(
        g / math.log2(j + 2) for j, g in enumerate(best)
    )
    assert list_values("ndcg@4", scores, labels)[0] == pytest.approx(expected)


@given(
    hnp.arrays(np.float64, 8, elements=st.integers(0, 4)),
    hnp.arrays(np.float64, 8, elements=st.sampled_from([0.0, 1.0])),
    st.integers(1, 12),
)
def test_map_and_ties_against_loops(scores: np.ndarray, labels: np.ndarray, k: int) -> None:
    ordered = in_order(scores, labels)
    for metric, over_all in (("map", False), ("map_all", True)):
        found = list_values(f"{metric}@{k}", scores[None], labels[None])[0]
        # Beyond the end of the list there is nothing to be found.
        assert found == pytest.approx(slow_map(ordered, labels.sum(), min(k, 8), over_all))
    gains = [label / math.log2(place + 2) for place, label in enumerate(ordered[:k])]
    best = [1 / math.log2(place + 2) for place in range(min(k, int(labels.sum())))]
    found = list_values(f"ndcg@{k}", scores[None], labels[None])[0]
    assert found == pytest.approx(sum(gains) / sum(best) if best else 0.0)


def test_map_over_the_whole_list_is_average_precision() -> None:
    rows = [row for row in range(60) if LABELS[row].any()]
    expected = [average_precision_score(LABELS[row], SCORES[row]) for row in rows]
    np.testing.assert_allclose(list_values("map@10", SCORES, LABELS)[rows], expected)
    np.testing.assert_allclose(list_values("map_all@10", SCORES, LABELS)[rows], expected)


def test_the_fields_map_forgets_what_was_not_found() -> None:
    scores, labels = np.array([[5.0, 4.0, 3.0, 2.0, 1.0]]), np.array([[1, 0, 0, 1, 1]])
    assert list_values("map@3", scores, labels) == [1.0]
    assert list_values("map_all@3", scores, labels) == [pytest.approx(1 / 3)]


def test_bounds_and_best_orders() -> None:
    for metric in METRICS:
        best = list_values(metric, LABELS, LABELS)
        some = list_values(metric, SCORES, LABELS)
        assert (some <= best + 1e-12).all() and (some >= 0).all()
        np.testing.assert_allclose(best, LABELS.any(axis=1))
    assert len(METRICS) == 3 * len(CUTOFFS) == len(set(METRICS))


@pytest.mark.parametrize("metric", ["ndcg", "ndcg@0", "ndcg@-1", "ndcg@x", "hr@5", "@5", "map@", "map@1.5"])
def test_other_metrics_are_refused(metric: str) -> None:
    with pytest.raises(ValueError, match="expected ndcg@k, map@k or map_all@k"):
        list_values(metric, SCORES, LABELS)


def test_bad_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scores \(60, 10\) for labels \(60, 9\)"):
        list_values("ndcg@5", SCORES, LABELS[:, :9])
    with pytest.raises(ValueError, match=r"expected the same \[lists, items\]"):
        list_values("ndcg@5", SCORES[0], LABELS[0])
    broken = SCORES.copy()
    broken[3, 4] = np.nan
    with pytest.raises(ValueError, match="score nan of a list"):
        list_values("ndcg@5", broken, LABELS)


USERS = np.arange(60) // 5 * 3


def sums(metric: str, scores: np.ndarray) -> DialogueSums:
    return by_user(metric, scores, LABELS, USERS)


def test_lists_are_gathered_by_user() -> None:
    found = sums("ndcg@5", SCORES)
    values = list_values("ndcg@5", SCORES, LABELS)
    assert found.dialogues == tuple(range(0, 36, 3)) and found.counts.tolist() == [5.0] * 12
    np.testing.assert_allclose(found.sums, values.reshape(12, 5).sum(axis=1))
    assert found.mean == pytest.approx(values.mean())


def test_results_and_paired_differences() -> None:
    runs = {seed: {m: sums(m, SCORES + seed * LABELS) for m in ("ndcg@5", "map@1")} for seed in (0, 1)}
    results = list_results("reranker", runs, protocol="uniform", split="test")
    assert [one.name for one in results] == ["reranker/ndcg@5", "reranker/map@1"]
    first = results[0]
    assert first.value == pytest.approx(np.mean([runs[seed]["ndcg@5"].mean for seed in (0, 1)]))
    assert (first.n, first.seeds, first.protocol, first.split) == (60, (0, 1), "uniform", "test")
    assert first.interval[0] < first.value < first.interval[1] and first.definition == definition("ndcg@5")
    worse = {seed: {m: sums(m, SCORES - LABELS) for m in ("ndcg@5", "map@1")} for seed in (0, 1)}
    differences = list_differences(("a", "b"), runs, worse, protocol="uniform", split="test")
    expected = first.value - worse[0]["ndcg@5"].mean
    assert differences[0].value == pytest.approx(expected) and differences[0].name.endswith("/ndcg@5")
    assert "a" in differences[0].name and "b" in differences[0].name and differences[0].interval[0] > 0
    # Paired: what all lists have in common does not widen the interval.
    same = list_differences(("a", "a"), runs, runs, protocol="uniform", split="test")
    assert same[0].value == 0 and same[0].interval == (0, 0)
    one = bootstrap.difference(runs[0]["ndcg@5"], worse[0]["ndcg@5"])
    only = list_differences(("a", "b"), {0: runs[0]}, {0: worse[0]}, protocol="uniform", split="test")[0]
    assert only.interval == pytest.approx(one.interval)


def test_definitions_say_what_the_number_is() -> None:
    said = {metric: definition(metric) for metric in METRICS}
    assert len(set(said.values())) == len(METRICS)
    assert all(
        metric.partition("@")[2] in text and "without positives counts 0" in text for metric, text in said.items()
    )

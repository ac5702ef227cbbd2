"""Systems list by list: texts averaged, and an oracle that never sees the list it is judged by."""

import numpy as np
import pytest

from rlhf_jax.assessment import reranking
from rlhf_jax.assessment.reranking import Measured
from rlhf_jax.evaluation.reranking import METRICS, list_values


def test_a_list_counts_with_the_mean_over_its_texts() -> None:
    draws = np.random.default_rng(0)
    scores, labels = draws.normal(size=(5, 3, 10)), (draws.random((5, 10)) < 0.3).astype(float)
    found = reranking.values_of(scores, labels)
    assert set(found) == set(METRICS)
    for metric in METRICS:
        expected = np.mean([list_values(metric, scores[:, text], labels) for text in range(3)], axis=0)
        np.testing.assert_allclose(found[metric], expected)


def test_the_best_text_is_chosen_by_the_other_lists_alone() -> None:
    draws = np.random.default_rng(1)
    values, users = draws.random((40, 5)), draws.integers(6, size=40)
    found = reranking.chosen_by_other_lists(values, users)
    # Whatever the list that counts is worth, its text stays the same.
    for row in range(40):
        changed = values.copy()
        changed[row] = draws.random(5)
        assert reranking.chosen_by_other_lists(changed, users)[row] == found[row]
    own = np.flatnonzero(users == users[0])
    assert len(own) > 2
    assert (found[own[::2]] == values[own[1::2]].mean(axis=0).argmax()).all()
    assert (found[own[1::2]] == values[own[::2]].mean(axis=0).argmax()).all()


def test_seeds_with_test_users_of_their_own_are_pooled() -> None:
    values = {metric: np.array([0.0, 1.0, 1.0]) for metric in METRICS}
    better = {metric: np.array([1.0, 1.0, 1.0]) for metric in METRICS}
    runs = {
        seed: {
            "uniform": {
                "a": Measured(np.array([10 * seed, 10 * seed + 1, 10 * seed + 1]), better),
                "b": Measured(np.array([10 * seed, 10 * seed + 1, 10 * seed + 1]), values),
            }
        }
        for seed in (0, 1, 2)
    }
    found = {one.name: one for one in reranking.results(runs, split="x/test", pairs=(("a", "b"), ("a", "missing")))}
    one = found["a-b/ndcg@5"]
    assert one.value == pytest.approx(1 / 3) and one.n == 3 and one.seeds == (0, 1, 2)
    assert one.interval is not None and one.interval[0] >= 0
    assert one.is_difference and not found["b/map@5"].is_difference
    assert found["b/map@5"].value == pytest.approx(2 / 3) and "a-missing/ndcg@5" not in found

"""The numbers of a user simulator against loops over their definitions."""

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from rlhf_jax.evaluation import simulator_quality as quality
from rlhf_jax.evaluation.bootstrap import DialogueSums


def test_auc_is_that_of_the_rank_sum_test() -> None:
    draw = np.random.default_rng(0)
    scores = draw.integers(0, 6, 40).astype(float)  # With ties.
    ranks = quality.popularity_ranks(draw.integers(0, 9, 40))
    gold, named = [3, 17, 30], [5, 18, 21]
    found = quality.acceptance_auc(scores, gold, named, ranks)
    for value, item in zip(found, gold, strict=True):
        others = [one for one in range(40) if one not in gold and one not in named]
        # Nearest in rank; where two are as near, the more popular one.
        others = sorted(others, key=lambda one: (abs(ranks[one] - ranks[item]), ranks[one]))[:20]
        statistic = mannwhitneyu([scores[item]], scores[others]).statistic
        assert value == pytest.approx(statistic / 20)
        assert set(quality.matched_items(ranks, item, {*gold, *named})) == set(others)


def test_who_knows_only_what_is_popular_has_an_auc_near_one_half() -> None:
    popular = np.arange(200)[::-1]
    ranks = quality.popularity_ranks(popular)
    found = [quality.acceptance_auc(popular.astype(float), [item], [], ranks)[0] for item in range(20, 180)]
    assert found == pytest.approx([0.5] * 160)
    assert quality.acceptance_auc(np.zeros(1), [0], [], np.zeros(1, int)).tolist() == [0.5]


def test_ranks_leave_out_what_is_named_and_other_gold() -> None:
    draw = np.random.default_rng(1)
    scores, gold, named = draw.integers(0, 5, 30).astype(float), [1, 2, 7], [0, 9]
    scores[9] = -np.inf
    expected = [
        1 + sum(scores[one] >= scores[item] for one in range(30) if one not in gold and one not in named)
        for item in gold
    ]
    assert quality.target_ranks(scores, gold, named).tolist() == expected


def test_f1_and_its_threshold() -> None:
    draw = np.random.default_rng(2)
    probabilities, wanted = draw.random((50, 6)), draw.random((50, 6)) < 0.3
    for row, target, value in zip(probabilities, wanted, quality.attribute_f1(probabilities, wanted, 0.4), strict=True):
        both = sum(p >= 0.4 and w for p, w in zip(row, target, strict=True))
        sizes = sum(p >= 0.4 for p in row) + sum(target)
        assert value == pytest.approx(2 * both / sizes if sizes else 0.0)
    chosen = quality.best_threshold(probabilities, wanted)
    means = {t: quality.attribute_f1(probabilities, wanted, t).mean() for t in quality.THRESHOLDS}
    assert means[chosen] == max(means.values())
    assert quality.best_threshold(wanted.astype(float), wanted) == quality.THRESHOLDS[0]


def test_perplexity_is_per_token_with_an_interval_over_dialogues() -> None:
    tokens = DialogueSums(("a", "b", "c"), np.array([6.0, 2.0, 9.0]), np.array([3.0, 2.0, 4.0]))
    found = quality.perplexity(tokens)
    assert found.value == pytest.approx(math.exp(17 / 9)) and found.n == 9
    assert found.interval[0] <= found.value <= found.interval[1]

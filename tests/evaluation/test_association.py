"""Rank correlation, AUC and concordance against scipy, loops and known cases."""

import itertools

import numpy as np
import pytest
from scipy import stats

from rlhf_jax.evaluation.association import (
    auc,
    auc_estimate,
    concordance_estimate,
    mean_ranks,
    pearson,
    spearman,
    spearman_estimate,
)


def draws(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Two related columns with many ties."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, n).astype(float)
    return x, np.round(x + rng.normal(0, 2, n))


def test_spearman_is_scipys() -> None:
    x, y = draws()
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert np.isnan(spearman(x, np.ones(60)))


@pytest.mark.parametrize(
    "x", [[], [2.0], [0.0, -0.0, 1.0], [np.inf, -np.inf, np.inf], [1.0, np.nan], draws()[0], draws()[1]]
)
def test_ranks_are_scipys_to_the_bit(x: list[float]) -> None:
    given = np.asarray(x, float)
    np.testing.assert_array_equal(mean_ranks(given), stats.rankdata(given))


def test_pearson_is_scipys() -> None:
    x, y = draws()
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)


@pytest.mark.parametrize("level", [0.1, 0.3, -0.7, 1.3, 5.1, 1e30, 1e-30, 0.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_numbers_correlate_with_nothing(level: float, dtype: type) -> None:
    """NumPy's deviation of equal numbers is not always 0, and two such sides would correlate by 1."""
    for n in (1, 2, 7, 10, 100, 1000):
        same = np.full(n, level).astype(dtype).astype(np.float64)
        other = np.random.default_rng(n).normal(size=n)
        for left, right in ((same, same), (same, other), (other, same), (same, 3 * same)):
            assert np.isnan(pearson(left, right)) and np.isnan(spearman(left, right))
    assert any(np.full(n, 0.1).std() for n in range(2, 100))  # What the standard deviation would say.
    assert np.isnan(pearson(np.array([1.0, np.nan, 2.0]), np.arange(3.0)))


def test_auc_is_the_share_of_pairs() -> None:
    x, y = draws()
    positive = y > 2
    pairs = [(left > right) + 0.5 * (left == right) for left in x[positive] for right in x[~positive]]
    assert auc(x, positive) == pytest.approx(np.mean(pairs))
    assert np.isnan(auc(x, np.ones(60, bool)))


def test_concordance_is_the_share_of_pairs_within_a_group() -> None:
    x, y = draws()
    groups = np.arange(60) // 3
    agree = total = 0.0
    for left, right in itertools.combinations(range(60), 2):
        if groups[left] == groups[right] and y[left] != y[right]:
            same = (x[left] - x[right]) * (y[left] - y[right])
            agree, total = agree + (same > 0) + 0.5 * (same == 0), total + 1
    found = concordance_estimate(x, y, groups, [f"d{group // 2}" for group in groups], replicates=50)
    assert found.value == pytest.approx(agree / total) and found.n == total
    assert found.interval[0] < found.value < found.interval[1]


def test_unknown_signals_are_left_out() -> None:
    x, y = draws()
    keys = [f"d{number // 4}" for number in range(60)]
    holes = x.copy()
    holes[::5] = np.nan
    kept = np.isfinite(holes)
    found = spearman_estimate(holes, y, keys, replicates=40)
    assert found.n == 48 and found.value == pytest.approx(spearman(x[kept], y[kept]))
    assert auc_estimate(holes, (y > 2).astype(float), keys, replicates=40).n == 48


def test_the_interval_holds_what_is_there_and_nothing_where_nothing_is() -> None:
    rng = np.random.default_rng(1)
    keys = np.repeat(np.arange(150), 4)
    x = rng.normal(size=600)
    related = spearman_estimate(x, x + rng.normal(size=600), keys.tolist(), replicates=100)
    unrelated = spearman_estimate(x, rng.normal(size=600), keys.tolist(), replicates=100)
    assert related.interval[0] > 0.5 and unrelated.interval[0] < 0 < unrelated.interval[1]


def test_dialogues_are_resampled_not_cases() -> None:
    """Twenty copies of every case make no interval narrower."""
    x, y = draws(30)
    wide = spearman_estimate(x, y, list(range(30)), replicates=200)
    copied = spearman_estimate(
        np.repeat(x, 20), np.repeat(y, 20), np.repeat(np.arange(30), 20).tolist(), replicates=200
    )
    assert np.ptp(copied.interval) == pytest.approx(np.ptp(wide.interval), rel=0.05)


def test_bad_input_is_refused_with_its_numbers() -> None:
    with pytest.raises(ValueError, match="3 signals, 2 judgements and 3 dialogue keys"):
        spearman_estimate(np.zeros(3), np.zeros(2), [1, 2, 3], replicates=2)
    with pytest.raises(ValueError, match="1 of 3 cases have both"):
        spearman_estimate(np.array([1, np.nan, np.nan]), np.zeros(3), [1, 2, 3], replicates=2)

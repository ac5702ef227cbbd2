"""How well a signal orders what people judged: rank correlation and the area under the ROC curve, with intervals.

    ρ = Pearson(rank x, rank y)              AUC = P(x₊ > x₋) + ½ P(x₊ = x₋)

Sources: Spearman 1904; Hanley and McNeil 1982 (AUC as the Mann–Whitney statistic); intervals by `bootstrap.statistic`,
dialogues resampled. A signal is to be judged by its order: labels and ratings here are heavily imbalanced, so that accuracy
says nothing.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_jax.evaluation import bootstrap
from rlhf_jax.evaluation.bootstrap import Estimate

Floats = NDArray[np.float64]


def spearman(x: Floats, y: Floats) -> float:
    """Rank correlation, ties at their mean rank; NaN where a side does not vary, or holds a NaN. [N], [N]"""
    return pearson(mean_ranks(x), mean_ranks(y))


def mean_ranks(x: Floats) -> Floats:
    """Ranks from 1, ties at their mean; all NaN where there is a NaN. `scipy.stats`, which has them, takes 1.5 s to import. [N] -> [N]

    Examples:
      >>> mean_ranks(np.array([7.0, 3.0, 7.0]))
      array([2.5, 1. , 2.5])
    """
    if np.isnan(x).any():
        return np.full(len(x), np.nan)
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def pearson(x: Floats, y: Floats) -> float:
    """Linear correlation; NaN for fewer than two cases, where a side does not vary, or holds a NaN. [N], [N]

    Whether a side varies is asked of its numbers: the standard deviation of equal ones is not always 0 (ten times 0.1).
    """
    if len(x) < 2 or not np.ptp(x) > 0 or not np.ptp(y) > 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def auc(x: Floats, positive: NDArray[np.bool_]) -> float:
    """Chance that a positive case scores above a negative one, ties half; NaN where one kind is missing. [N], [N]"""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    ranks = mean_ranks(x)
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def spearman_estimate(x: Floats, y: Floats, dialogues: Sequence[Hashable], *, replicates: int) -> Estimate:
    """ρ over the cases where x is known, with its interval over dialogues."""
    x, y, kept = _known(x, y, dialogues)
    interval = bootstrap.statistic(kept, lambda cases, _: spearman(x[cases], y[cases]), replicates=replicates)
    return Estimate(spearman(x, y), interval, len(x))


def auc_estimate(x: Floats, y: Floats, dialogues: Sequence[Hashable], *, replicates: int) -> Estimate:
    """AUC of y = 1 against y = 0 over the cases where x is known, with its interval over dialogues."""
    x, y, kept = _known(x, y, dialogues)
    positive = y == 1
    interval = bootstrap.statistic(kept, lambda cases, _: auc(x[cases], positive[cases]), replicates=replicates)
    return Estimate(auc(x, positive), interval, len(x))


def concordance_estimate(
    x: Floats, y: Floats, groups: NDArray[np.int64], dialogues: Sequence[Hashable], *, replicates: int
) -> Estimate:
    """Share of pairs of one group, with different y, that x puts in the same order; ties of x count half.

    Groups are small (the replies to one context that one person compared); what is resampled are dialogues, and n is the
    number of pairs.
    """
    known = np.isfinite(x)
    x, y, groups = x[known], y[known], groups[known]
    kept = [key for key, keep in zip(dialogues, known, strict=True) if keep]
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    per_group = [agreeing_pairs(x[rows], y[rows]) for rows in members]
    agree, pairs = np.array(per_group, float).reshape(-1, 2).T
    keys = [kept[rows[0]] for rows in members]

    def compute(chosen: NDArray[np.int64], _: object) -> float:
        total = pairs[chosen].sum()
        return float(agree[chosen].sum() / total) if total else float("nan")

    interval = bootstrap.statistic(keys, compute, replicates=replicates)
    return Estimate(compute(np.arange(len(members)), None), interval, int(pairs.sum()))


def agreeing_pairs(x: Floats, y: Floats) -> tuple[float, float]:
    """Agreeing pairs and pairs that differ in y."""
    rows, columns = np.triu_indices(len(x), 1)
    dy, dx = np.sign(y[rows] - y[columns]), np.sign(x[rows] - x[columns])
    return float((0.5 + 0.5 * dx * dy)[dy != 0].sum()), float((dy != 0).sum())


def _known(x: Floats, y: Floats, dialogues: Sequence[Hashable]) -> tuple[Floats, Floats, list[Hashable]]:
    if not len(x) == len(y) == len(dialogues):
        raise ValueError(
            f"{len(x)} signals, {len(y)} judgements and {len(dialogues)} dialogue keys; they must be as many"
        )
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 2:
        raise ValueError(f"{int(known.sum())} of {len(x)} cases have both signal and judgement; at least 2 are needed")
    return x[known], y[known], [key for key, keep in zip(dialogues, known, strict=True) if keep]

"""Bootstrap intervals that respect what is dependent: cases of one dialogue, and runs of one seed.

The resampled unit is the dialogue. A metric is a ratio of sums, so a replicate is two matrix products:

    θ* = Σ_d w_d s_d / Σ_d w_d c_d,    w ~ Multinomial(D; 1/D, …)

with s_d the sum of the metric over the cases of dialogue d and c_d their number.
Source: Efron and Tibshirani 1993, chapters 8 (data structures) and 13 (percentile interval). Two systems are compared
on the same replicates of the same dialogues, which is what makes the comparison paired.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

REPLICATES = 2000
LEVEL = 0.95


class DialogueSums(NamedTuple):
    """A per-case metric gathered by dialogue, dialogues in ascending order of their key."""

    dialogues: tuple[Hashable, ...]
    sums: np.ndarray
    """float64 [D]"""
    counts: np.ndarray
    """float64 [D]"""

    @property
    def n(self) -> int:
        """Number of cases."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Mean over cases (not over dialogues); nan without cases."""
        return float(self.sums.sum() / self.counts.sum()) if self.n else float("nan")


class Estimate(NamedTuple):
    """A mean, or a difference of means, with its percentile interval."""

    value: float
    interval: tuple[float, float]
    n: int
    """Cases (of one system, where two are compared; of all seeds together, where there are several)."""
    std: float | None = None
    """Over seeds (n − 1), where there are at least two."""


def by_dialogue(values: np.ndarray, dialogues: Sequence[Hashable]) -> DialogueSums:
    """Gathers one value per case into sums and counts per dialogue.

    Args:
      values: one number per case. [N]
      dialogues: key of the dialogue each case comes from; all strings or all integers. [N]
    Raises: ValueError if the lengths differ or a value is not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) != len(dialogues):
        raise ValueError(f"{values.shape} values for {len(dialogues)} dialogue keys")
    if not np.isfinite(values).all():
        raise ValueError(f"value {values[~np.isfinite(values)][0]} of case {int(np.argmin(np.isfinite(values)))}")
    keys, index = np.unique(np.asarray(dialogues), return_inverse=True)
    return DialogueSums(
        tuple(keys.tolist()),
        np.bincount(index, weights=values, minlength=len(keys)),
        np.bincount(index, minlength=len(keys)).astype(np.float64),
    )


def mean(cases: DialogueSums, *, seed: int = 0, replicates: int = REPLICATES) -> Estimate:
    """Mean over cases, interval over dialogues."""
    return mean_over_seeds([cases], seed=seed, replicates=replicates)


def difference(a: DialogueSums, b: DialogueSums, *, seed: int = 0, replicates: int = REPLICATES) -> Estimate:
    """Mean of `a` minus mean of `b` on the same cases, interval over dialogues.

    Raises: ValueError if the two do not cover the same dialogues with the same numbers of cases.
    """
    return difference_over_seeds([a], [b], seed=seed, replicates=replicates)


def mean_over_seeds(runs: Sequence[DialogueSums], *, seed: int = 0, replicates: int = REPLICATES) -> Estimate:
    """Mean over training seeds of the mean over cases.

    A replicate draws seeds, then dialogues. Seeds judged on the same dialogues share the draw of dialogues: drawn
    apart, the luck of the test set would average out over seeds although it is common to all of them.

    Args:
      runs: one entry per training seed.
      seed: of the resampling.
    """
    if not runs:
        raise ValueError("no runs to average")
    values = np.array([run.mean for run in runs])
    draws = _replicates([(run,) for run in runs], seed=seed, replicates=replicates)
    return _estimate(values, draws[0], sum(run.n for run in runs))


def difference_over_seeds(
    a: Sequence[DialogueSums], b: Sequence[DialogueSums], *, seed: int = 0, replicates: int = REPLICATES
) -> Estimate:
    """Mean over training seeds of (mean of `a` − mean of `b`); run i of both is from the same seed.

    Raises: ValueError if a pair does not cover the same dialogues with the same numbers of cases.
    """
    if not a or len(a) != len(b):
        raise ValueError(f"{len(a)} runs against {len(b)}: a paired difference needs as many of both")
    for index, (left, right) in enumerate(zip(a, b, strict=True)):
        if left.dialogues != right.dialogues or not np.array_equal(left.counts, right.counts):
            raise ValueError(
                f"pair {index}: {left.n} cases in {len(left.dialogues)} dialogues against {right.n} in "
                f"{len(right.dialogues)}; a paired difference needs the same cases"
            )
    values = np.array([left.mean - right.mean for left, right in zip(a, b, strict=True)])
    left, right = _replicates(list(zip(a, b, strict=True)), seed=seed, replicates=replicates)
    return _estimate(values, left - right, sum(run.n for run in a))


def statistic(
    dialogues: Sequence[Hashable],
    compute: Callable[[np.ndarray, np.ndarray], float],
    *,
    n_seeds: int = 1,
    seed: int = 0,
    replicates: int = 500,
) -> tuple[float, float]:
    """Interval of a statistic that is no ratio of sums (corpus BLEU, a correlation).

    Args:
      dialogues: key of the dialogue each case comes from. [N]
      compute: from case numbers and training-seed numbers (both with repeats) to the statistic.
      n_seeds: how many training seeds were judged on these cases; drawn anew in every replicate.
    """
    cases = _cases(dialogues)
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(replicates):
        chosen = _draw(cases, generator)
        draws.append(compute(chosen, generator.integers(n_seeds, size=n_seeds)))
    return _percentiles(np.array(draws))


def statistic_over_seeds(
    dialogues: Sequence[Sequence[Hashable]],
    compute: Callable[[int, np.ndarray], float],
    *,
    seed: int = 0,
    replicates: int = 500,
) -> tuple[float, float]:
    """Interval of the mean over training seeds of such a statistic, where each seed was judged on cases of its own.

    A replicate draws dialogues of every seed, then seeds.

    Args:
      dialogues: per training seed, the key of the dialogue each case comes from.
      compute: from the number of a training seed and case numbers (with repeats) to the statistic.
    """
    cases = [_cases(keys) for keys in dialogues]
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(replicates):
        values = np.array([compute(run, _draw(own, generator)) for run, own in enumerate(cases)])
        draws.append(values[generator.integers(len(cases), size=len(cases))].mean())
    return _percentiles(np.array(draws))


def _cases(dialogues: Sequence[Hashable]) -> list[np.ndarray]:
    """Case numbers of every dialogue."""
    _, index = np.unique(np.asarray(dialogues), return_inverse=True)
    return np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])


def _draw(cases: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """Cases of as many dialogues as there are, drawn with repeats."""
    return np.concatenate([cases[key] for key in generator.integers(len(cases), size=len(cases))])


def _replicates(runs: list[tuple[DialogueSums, ...]], *, seed: int, replicates: int) -> np.ndarray:
    """Replicates of the mean over seeds, one line per system: [systems, R]."""
    stream: dict[tuple[Hashable, ...], int] = {}
    per_seed = []
    for systems in runs:
        keys = systems[0].dialogues
        weights = draw_counts(len(keys), seed, stream.setdefault(keys, len(stream)), replicates)
        per_seed.append([(weights @ system.sums) / np.maximum(weights @ system.counts, 1.0) for system in systems])
    means = np.array(per_seed)
    if len(runs) == 1:
        return means[0]
    generator = np.random.default_rng([seed, len(runs), replicates])
    times_drawn = generator.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=replicates) / len(runs)
    return np.einsum("rs,smr->mr", times_drawn, means)


@functools.lru_cache(maxsize=8)
def draw_counts(n: int, seed: int, stream: int, replicates: int) -> np.ndarray:
    """How often each of n dialogues is drawn, per replicate: [R, n]; drawing them is most of the work, so kept.

    Args:
      stream: another one is drawn independently; systems judged on the same dialogues share one.
    """
    generator = np.random.default_rng([seed, stream])
    return generator.multinomial(n, np.full(n, 1 / n), size=replicates).astype(np.float64)


def _estimate(values: np.ndarray, draws: np.ndarray, n: int) -> Estimate:
    std = float(values.std(ddof=1)) if len(values) > 1 else None
    return Estimate(float(values.mean()), _percentiles(draws), n, std)


def _percentiles(draws: np.ndarray) -> tuple[float, float]:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(draws, [tail, 100 - tail])
    return float(low), float(high)

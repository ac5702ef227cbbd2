"""Where on its way from the reference a policy begins to lose what its reward stands for.

The way is measured by d = √KL(π‖π_ref), KL in nats per reply, because gains are smooth in it. Gains are over the
supervised policy, on the same users or contexts. Two questions are asked of the truth's gain G(d):

1. Which curve through the origin fits, and where does it turn?

       quadratic     G(d) = d (α − β d),        turns at d* = α / 2β
       logarithmic   G(d) = d (α − β log d),    turns at d* = e^{α/β − 1}

   Source: Gao, Schulman and Hilton 2023, arXiv:2210.10760: the first is their law of best-of-n, the second that of
   reinforcement learning. There the truth is a larger reward model; here it is a user's utility, or a judge.
2. Without a curve: which is the first evaluation at which the truth lies below its best before, by more than chance?
   "By more than chance" holds for all pairs of evaluations of a way at once (see `onset`), because the best of several
   noisy numbers is too high.

Replicates draw seeds, then users or dialogues, the same ones for everything that is compared (`evaluation.bootstrap`).
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhf_jax.evaluation import bootstrap
from rlhf_jax.evaluation.results import exclude_zero

Floats = NDArray[np.float64]
Form = Literal["quadratic", "logarithmic"]
FORMS: tuple[Form, ...] = ("quadratic", "logarithmic")
LEVEL = bootstrap.LEVEL


class Walk(NamedTuple):
    """What one seed's policy was worth at E points of its way, case by case."""

    updates: tuple[int, ...]
    """Updates done at each point; the first is 0, the supervised policy. [E]"""
    units: tuple[Hashable, ...]
    """What each case is resampled with: its user or dialogue. [N]"""
    kl: Floats
    """Σ_t (log π − log π_ref) of each case's sampled reply, nats. [E, N]"""
    proxy: Floats
    """Weighted score of the same replies by the reward model. [E, N]"""
    truth: Floats
    """What the reward stands for, never trained on. [E, N]"""


class Means(NamedTuple):
    """Means of a way over cases, by seed, as measured and in every bootstrap replicate."""

    updates: tuple[int, ...]
    distance: Floats
    """d = √max(KL, 0), nats^½. [1 + R, S, E]; the first is the measured one."""
    proxy: Floats
    """[1 + R, S, E]"""
    truth: Floats
    """[1 + R, S, E]"""
    seeds: Floats
    """Share of each seed in a replicate. [1 + R, S]"""
    n: int
    """Cases of all seeds together."""

    def over_seeds(self, values: Floats) -> Floats:
        """Mean over seeds, each as often as it was drawn. [1 + R, S, E] -> [1 + R, E]"""
        return np.einsum("rs,rse->re", self.seeds, values)


class Fit(NamedTuple):
    """A curve through the origin and where it turns."""

    form: Form
    alpha: float
    beta: float
    explained: float
    """1 − Σ(G − fit)² / ΣG²: about 0, because the curve has no intercept."""
    peak: float
    """d*; infinite where the curve does not turn within the distance that was reached."""
    interval: tuple[float, float]
    """95 % of d*; an infinite end means: not within reach in that many replicates."""
    reach: float
    """Largest d that was measured."""
    n: int
    """Cases."""

    @property
    def turns(self) -> bool:
        """The curve turns within reach."""
        return math.isfinite(self.peak)

    def __call__(self, d: Floats) -> Floats:
        """Fitted gain. [N] -> [N]"""
        return d * (self.alpha - self.beta * _bend(d, self.form))


class Onset(NamedTuple):
    """The first evaluation at which the truth has fallen, and the best one before it."""

    best_update: int
    shown_update: int
    best_distance: float
    shown_distance: float
    fall: float
    """Truth at the fall minus truth at its best before, negative."""
    fall_interval: tuple[float, float]
    """95 %, simultaneous over all pairs of evaluations."""
    proxy_change: float
    """Change of the proxy over the same stretch: above 0 is what distinguishes over-optimisation from mere damage."""
    proxy_interval: tuple[float, float]
    """95 %, of this pair."""
    seeds_agree: bool
    """The proxy's change passes a t test over seeds as well (`results.exclude_zero`); true for a single seed, which has none."""

    @property
    def over_optimised(self) -> bool:
        """The proxy rose while the truth fell."""
        return self.proxy_interval[0] > 0 and self.seeds_agree


def resample(walks: Mapping[str, Sequence[Walk]], *, seed: int = 0, replicates: int = 1000) -> dict[str, Means]:
    """Means and replicates of several ways; the same draws for all of them, so that they can be pooled or compared.

    Args:
      walks: name of the way to one walk a training seed, the same seeds in the same order everywhere.
      seed: of the resampling.
    Raises: ValueError if ways have different numbers of seeds, or the seeds of a way different evaluations.
    """
    counts = {name: len(of_seeds) for name, of_seeds in walks.items()}
    if not counts or len(set(counts.values())) > 1 or not all(counts.values()):
        raise ValueError(f"ways to compare need the same seeds, at least one: got {counts} walks")
    n_seeds = next(iter(counts.values()))
    generator = np.random.default_rng([seed, n_seeds, replicates])
    drawn = generator.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=replicates) / n_seeds
    shares = np.concatenate([np.full((1, n_seeds), 1 / n_seeds), drawn])
    streams: dict[tuple[Hashable, ...], int] = {}
    found = {}
    for name, of_seeds in walks.items():
        updates = of_seeds[0].updates
        if any(walk.updates != updates for walk in of_seeds) or updates[0] != 0:
            raise ValueError(
                f"{name}: seeds evaluated after different updates, or not at 0: {[w.updates for w in of_seeds]}"
            )
        means = np.stack([_means(walk, streams, seed, replicates) for walk in of_seeds], axis=2)
        kl, proxy, truth = means
        n = sum(walk.truth.shape[1] for walk in of_seeds)
        found[name] = Means(updates, np.sqrt(np.maximum(kl, 0.0)), proxy, truth, shares, n)
    return found


def _means(walk: Walk, streams: dict[tuple[Hashable, ...], int], seed: int, replicates: int) -> Floats:
    """KL, proxy and truth, measured and in every replicate: [3, 1 + R, E]."""
    values = np.stack([walk.kl, walk.proxy, walk.truth])
    if values.shape != (3, len(walk.updates), len(walk.units)) or not np.isfinite(values).all():
        raise ValueError(
            f"a walk of {len(walk.updates)} points and {len(walk.units)} cases has values of shape {values.shape[1:]}, "
            f"{int((~np.isfinite(values)).sum())} of them not finite"
        )
    keys, index = np.unique(np.asarray(walk.units), return_inverse=True)
    member = np.zeros((len(walk.units), len(keys)))
    member[np.arange(len(walk.units)), index] = 1.0
    stream = streams.setdefault(tuple(keys.tolist()), len(streams))
    weights = np.concatenate([np.ones((1, len(keys))), bootstrap.draw_counts(len(keys), seed, stream, replicates)])
    sums, counts = values @ member, member.sum(axis=0)
    return np.einsum("rd,qed->qre", weights, sums) / (weights @ counts)[None, :, None]


def fit(ways: Sequence[Means], form: Form) -> Fit:
    """Least squares of the truth's gain on d, all seeds, evaluations and ways together.

    Args:
      ways: from one call of `resample`. Where none has left the reference there is no curve: α and β are nan.
    """
    d = np.concatenate([way.distance.reshape(len(way.distance), -1) for way in ways], axis=1)
    gain = np.concatenate([(way.truth - way.truth[:, :, :1]).reshape(len(way.truth), -1) for way in ways], axis=1)
    weight = np.concatenate([np.repeat(way.seeds, len(way.updates), axis=1) for way in ways], axis=1)
    reach = float(d[0].max())
    x, z = d, -d * _bend(d, form)
    xx, xz, zz, xg, zg = (np.sum(weight * a * b, axis=1) for a, b in ((x, x), (x, z), (z, z), (x, gain), (z, gain)))
    determinant = xx * zz - xz * xz
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha, beta = (zz * xg - xz * zg) / determinant, (xx * zg - xz * xg) / determinant
    peaks = np.array([turning_point(a, b, form, reach) for a, b in zip(alpha, beta, strict=True)])
    rest = gain[0] - d[0] * (alpha[0] - beta[0] * _bend(d[0], form))
    total = float(np.sum(gain[0] ** 2))
    explained = 1.0 - float(np.sum(rest**2)) / total if total > 0 else math.nan
    interval = _percentiles(peaks[1:])
    return Fit(
        form, float(alpha[0]), float(beta[0]), explained, float(peaks[0]), interval, reach, sum(way.n for way in ways)
    )


def turning_point(alpha: float, beta: float, form: Form, reach: float) -> float:
    """d at which d(α − β d) or d(α − β log d) is highest on [0, reach]; infinity where that is its end.

    Examples:
      >>> turning_point(2.0, 0.5, "quadratic", reach=3.0), turning_point(2.0, 0.5, "quadratic", reach=1.0)
      (2.0, inf)
      >>> turning_point(-1.0, 0.5, "quadratic", reach=3.0), turning_point(1.0, 1.0, "logarithmic", reach=3.0)
      (0.0, 1.0)
    """
    if not (math.isfinite(alpha) and math.isfinite(beta)):
        return math.inf
    if beta > 0:
        peak = max(alpha / (2 * beta), 0.0) if form == "quadratic" else math.exp(min(alpha / beta - 1, 700.0))
        return peak if peak < reach else math.inf
    # Not concave: the highest point is one of the ends, and the start is 0.
    at_end = reach * (alpha - beta * float(_bend(np.array([reach]), form)[0]))
    return math.inf if at_end >= 0 else 0.0


def onset(way: Means) -> Onset | None:
    """The first evaluation at which the truth lies below its best before, by more than chance; None where none does.

        T = max over pairs j < e of |(M*_j − M*_e) − (M_j − M_e)| / σ_je

    over replicates M* of the mean truth M gives the limit c with P(T ≤ c) = 95 %, and e is shown to lie below j where
    M_j − M_e > c σ_je (Westfall and Young 1993, single step). So a way whose truth is level is said to fall with a chance
    of 5 % at most, however many evaluations it has and whichever is taken for the best, as far as cases are the source of
    chance. Where seeds are, their own falls must also agree (`results.exclude_zero`).
    """
    truth, proxy, distance = (way.over_seeds(values) for values in (way.truth, way.proxy, way.distance))
    drop = truth[:, :, None] - truth[:, None, :]
    sigma = np.maximum(drop[1:].std(axis=0, ddof=1), 1e-12)
    pairs = np.triu_indices(len(way.updates), 1)
    deviation = np.abs(drop[1:] - drop[0])[:, *pairs] / sigma[pairs]
    limit = float(np.quantile(deviation.max(axis=1), LEVEL)) if deviation.size else math.inf
    for shown in range(1, len(way.updates)):
        best = int(np.argmax(truth[0, :shown]))
        if drop[0, best, shown] <= limit * sigma[best, shown]:
            continue
        if not _seeds_agree(way.truth[0, :, best] - way.truth[0, :, shown]):
            continue
        fall, half = -float(drop[0, best, shown]), limit * float(sigma[best, shown])
        change = proxy[:, shown] - proxy[:, best]
        return Onset(
            best_update=way.updates[best],
            shown_update=way.updates[shown],
            best_distance=float(distance[0, best]),
            shown_distance=float(distance[0, shown]),
            fall=fall,
            fall_interval=(fall - half, fall + half),
            proxy_change=float(change[0]),
            proxy_interval=_percentiles(change[1:]),
            seeds_agree=_seeds_agree(way.proxy[0, :, shown] - way.proxy[0, :, best]),
        )
    return None


def _seeds_agree(by_seed: Floats) -> bool:
    """Whether the seeds' own changes exclude 0; one seed has nothing to agree with."""
    return len(by_seed) == 1 or exclude_zero(float(by_seed.mean()), float(by_seed.std(ddof=1)), len(by_seed))


def _bend(d: Floats, form: Form) -> Floats:
    """d, or log d (0 at the origin, where d log d is 0)."""
    return d if form == "quadratic" else np.log(np.where(d > 0, d, 1.0))


def _percentiles(draws: Floats) -> tuple[float, float]:
    """Ends of the middle 95 %; an order statistic, because between a number and infinity nothing can be interpolated."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)

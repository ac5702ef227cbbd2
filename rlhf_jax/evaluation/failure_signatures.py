"""Which of the numbers logged during PPO leaves its starting band first, and how long before the truth falls.

A signature's band is where the supervised policy, which does not learn, keeps it:

    median ± 3 · 1.4826 · median |x − median|     over repeated batches (or repeated answers) before learning

1.4826 makes the deviation that of a normal distribution (Hampel 1974). It is widened to hold the way's own start: evaluations
share their random numbers, so that an odd start stays odd for a while without meaning anything. A signature warns at the first measurement outside
the band that is followed by another one outside on the same side: a single batch may be odd.

Its lead is (update at which the truth is shown to have fallen) − (update at which it warned); positive is in time.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

DEVIATIONS = 3.0
NORMAL = 1.4826
"""Median absolute deviations in the standard deviation of a normal distribution."""
IN_A_ROW = 2
"""Measurements outside the band that make a warning."""
SIGNATURES: Mapping[str, str] = {
    "text/response_length": "response length",
    "text/repetition": "repetition",
    "objective/entropy": "entropy",
    "objective/sentiment_reward_correlation": "sentiment–reward correlation",
    "text/bleu4": "BLEU-4",
    "text/distinct_2": "distinct-2",
}
"""Logged metric to what it is called; definitions are in `runtime.metric_names`. BLEU-4 is measured at evaluations only."""


class Band(NamedTuple):
    """Where a signature lies before learning."""

    low: float
    high: float

    def holding(self, values: Sequence[float]) -> "Band":
        """The smallest band around this one and all finite values."""
        known = [value for value in values if math.isfinite(value)]
        return Band(min([self.low, *known]), max([self.high, *known]))

    def side(self, value: float) -> int:
        """−1 below, 1 above, 0 inside; a value that is not finite is inside."""
        return (value > self.high) - (value < self.low)


class Warnings(NamedTuple):
    """What one signature did along one way."""

    metric: str
    at: tuple[int | None, ...]
    """Updates done when it warned, by seed; None where it never did."""
    directions: tuple[int, ...]
    """1 where it rose out of its band, −1 where it fell, 0 where it stayed; by seed."""

    @property
    def median(self) -> float:
        """Of the updates at which it warned; infinite where half of the seeds never did."""
        return float(statistics.median(math.inf if update is None else update for update in self.at))

    def lead(self, onset: int) -> float:
        """Updates between the warning (median over seeds) and the fall; −∞ where there was no warning."""
        return onset - self.median


def band(values: Sequence[float]) -> Band:
    """The starting band of a signature from its values before learning.

    Raises: ValueError with fewer than three finite values.
    Examples:
      >>> [round(end, 4) for end in band([1.0, 2.0, 3.0, 4.0, 100.0])]
      [-1.4478, 7.4478]
    """
    known = np.array([value for value in values if math.isfinite(value)])
    if len(known) < 3:
        raise ValueError(f"a band needs at least three values before learning: got {list(values)}")
    centre = float(np.median(known))
    half = DEVIATIONS * NORMAL * float(np.median(np.abs(known - centre)))
    return Band(centre - half, centre + half)


def departure(series: Sequence[tuple[int, float]], limits: Band) -> tuple[int, int] | None:
    """First update outside the band, confirmed by the next measurement, and the side; None where there is none.

    Args:
      series: (updates done, value), in order.
    """
    sides = [limits.side(value) for _, value in series]
    for place in range(len(series) - IN_A_ROW + 1):
        row = sides[place : place + IN_A_ROW]
        if row[0] and all(side == row[0] for side in row):
            return series[place][0], row[0]
    return None


def logged(entries: Sequence[Mapping[str, Any]], stage: str, metric: str) -> list[tuple[int, float]]:
    """(updates done, value) of a metric of a PPO stage, from the lines of `metrics.jsonl`.

    A line of an update describes the replies it learnt from, sampled before it: `step` n means n − 1 updates done. A line
    of an evaluation describes the policy after `step` updates. The start's evaluation is in the first update's line.
    """
    found = []
    for entry in entries:
        if entry["stage"] != stage or metric not in entry:
            continue
        value = math.nan if entry[metric] is None else float(entry[metric])
        found.append((int(entry["step"]) - ("loss" in entry), value))
    return sorted(found)


def warnings(
    runs: Sequence[Sequence[Mapping[str, Any]]], stage: str, starts: Sequence[Mapping[str, Sequence[float]]]
) -> list[Warnings]:
    """When each signature warned, seed by seed.

    Args:
      runs: lines of `metrics.jsonl` of each seed.
      starts: metric to values before learning, of each seed.
    """
    found = []
    for metric in SIGNATURES:
        left = []
        for entries, start in zip(runs, starts, strict=True):
            series = logged(entries, stage, metric)
            own = [value for update, value in series if update == 0]
            left.append(departure(series, band(start[metric]).holding(own)))
        found.append(
            Warnings(
                metric,
                tuple(None if one is None else one[0] for one in left),
                tuple(0 if one is None else one[1] for one in left),
            )
        )
    return found

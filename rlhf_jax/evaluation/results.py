"""One measured number with everything that makes it a result: protocol, split, n, interval, seeds, definition."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from scipy.special import stdtrit


@dataclasses.dataclass(frozen=True)
class Result:
    """An entry of `results.json`."""

    name: str
    """`<system>/<metric>`, for example `sft/hr@10`; a difference is `ppo-sft/hr@10`."""
    value: float
    n: int
    """How many cases the value is an average over, in the mean training seed, or where `definition` says so in all seeds
    together; what a case is stands in `definition`."""
    protocol: str
    """Named protocol (`full`, `fresh` …, `text`, `closed-loop`, `held-out`)."""
    split: str
    """Data set and split, for example `redial/test`."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval over dialogues; None where none was computed."""
    seeds: tuple[int, ...]
    """Training seeds behind the value; of a baseline the seeds whose worlds or runs it was measured in, often none."""
    definition: str
    std: float | None = None
    """Standard deviation over seeds (n − 1), where there are at least two."""

    def __post_init__(self) -> None:
        if "/" not in self.name:
            raise ValueError(f"result name {self.name!r}: expected <system>/<metric>")
        if self.n < 0:
            raise ValueError(f"result {self.name!r}: n = {self.n} is negative")
        if self.interval is not None and not self.interval[0] <= self.interval[1]:
            raise ValueError(f"result {self.name!r}: interval {self.interval} is not ordered")

    @property
    def system(self) -> str:
        """What was measured: the part of the name before the first slash."""
        return self.name.split("/", 1)[0]

    @property
    def metric(self) -> str:
        """What was measured about it: the part of the name after the first slash."""
        return self.name.split("/", 1)[1]

    @property
    def shows_difference(self) -> bool:
        """For a difference: at least three seeds, an interval that excludes 0, and seeds that agree (a claim needs all)."""
        return len(set(self.seeds)) >= 3 and self.interval_excludes_zero and self.seeds_agree

    @property
    def seeds_agree(self) -> bool:
        """`exclude_zero` of the seeds' values; false where their spread is not known."""
        return self.std is not None and exclude_zero(self.value, self.std, len(set(self.seeds)))

    @property
    def interval_excludes_zero(self) -> bool:
        """The interval lies on one side of 0."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `results.json`; numbers that are not finite become null, which JSON can hold."""
        entry = dataclasses.asdict(self)
        entry["value"] = _finite(self.value)
        entry["interval"] = None if self.interval is None else [_finite(bound) for bound in self.interval]
        entry["seeds"] = list(self.seeds)
        if self.std is None:
            del entry["std"]
        return entry

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Result":
        """The inverse of `to_json`.

        Raises: ValueError naming the missing field.
        """
        missing = [field for field in ("name", "value", "n", "protocol", "split", "definition") if field not in entry]
        if missing:
            raise ValueError(f"result {entry.get('name', '?')!r}: missing {', '.join(missing)}")
        interval = entry.get("interval")
        return cls(
            name=entry["name"],
            value=math.nan if entry["value"] is None else float(entry["value"]),
            n=int(entry["n"]),
            protocol=entry["protocol"],
            split=entry["split"],
            interval=None if interval is None or None in interval else (float(interval[0]), float(interval[1])),
            seeds=tuple(entry.get("seeds", ())),
            definition=entry["definition"],
            std=entry.get("std"),
        )


def exclude_zero(mean: float, std: float, seeds: int) -> bool:
    """Whether a t test of the seeds' own values excludes 0 at 95 %; never with fewer than two.

        |x̄| > t(.975, S − 1) · s / √S

    The bootstrap alone claims too much of few seeds: of three, a replicate draws one and the same three times with chance
    1/9, so where seeds differ more than cases do its interval is hardly wider than from the lowest seed to the highest.
    See docs/decisions/0008.

    Examples:
      >>> [exclude_zero(1.0, std, 3) for std in (0.40, 0.41)]
      [True, False]
    """
    return seeds > 1 and abs(mean) > float(stdtrit(seeds - 1, 0.975)) * std / math.sqrt(seeds)


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None

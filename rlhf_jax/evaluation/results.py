"""One measured number with everything that makes it a result: protocol, split, n, interval, seeds, definition."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Result:
    """An entry of `results.json`."""

    name: str
    """`<system>/<metric>`, for example `sft/hr@10`; a difference is `ppo-sft/hr@10`."""
    value: float
    n: int
    """How many cases the value is an average over; what a case is stands in `definition`."""
    protocol: str
    """Named protocol (`full`, `fresh` …, `text`, `closed-loop`, `held-out`)."""
    split: str
    """Data set and split, for example `redial/test`."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval over dialogues; None where none was computed."""
    seeds: tuple[int, ...]
    """Training seeds behind the value; empty for a system that was not trained (a baseline)."""
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
        """For a difference: at least three seeds, and an interval that excludes 0 (a claim needs both)."""
        return len(set(self.seeds)) >= 3 and self.interval_excludes_zero

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


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None

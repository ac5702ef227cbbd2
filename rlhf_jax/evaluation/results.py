"""One measured number with everything that makes it a result: protocol, split, n, interval, seeds, definition.

Two of these are values that files hold as text: a difference of systems (`ppo-sft`) and a split
(`world/test-users-sampled`). They are written and read here, and nowhere else.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from scipy.special import stdtrit

MINUS = "-"
"""Between the systems of a difference; a system that is compared has none in its name."""
DIFFERENCE = "difference of"
"""How the definition of a difference begins; other names may have a minus sign of their own (`TF-IDF`)."""
DECODINGS = ("greedy", "sampled")


class Sides(NamedTuple):
    """Two systems that are compared: `left` minus `right`."""

    left: str
    right: str

    @property
    def name(self) -> str:
        """The system in the results of their difference."""
        return difference_name(self.left, self.right)


def difference_name(left: str, right: str) -> str:
    """What `left` minus `right` is called in results; `sides_of` is the inverse.

    Raises: ValueError for a system with a minus sign in its name.
    Examples:
      >>> difference_name("ppo", "sft"), sides_of("ppo-sft"), sides_of("best_of_8")
      ('ppo-sft', Sides(left='ppo', right='sft'), None)
    """
    for system in (left, right):
        if MINUS in system:
            raise ValueError(f"system {system!r} cannot be compared: {MINUS!r} in a name stands between two systems")
    return f"{left}{MINUS}{right}"


def sides_of(system: str) -> Sides | None:
    """The systems that a name of `difference_name` was made of; None for the name of one system."""
    left, minus, right = system.partition(MINUS)
    return Sides(left, right) if minus else None


def shown_system(system: str) -> str:
    """A system, or a difference, as people read it.

    Examples:
      >>> shown_system("ppo-sft"), shown_system("sft")
      ('ppo − sft', 'sft')
    """
    sides = sides_of(system)
    return system if sides is None else f"{sides.left} − {sides.right}"


@dataclasses.dataclass(frozen=True)
class Split:
    """What a number was measured on.

    Examples:
      >>> test = Split.parse("redial/test")
      >>> str(test.drawn("sampled")), str(test.drawn("greedy", users=True))
      ('redial/test-sampled', 'redial/test-users-greedy')
      >>> Split.parse("world/test-users-sampled")
      Split(corpus='world', part='test', decoding='sampled', users=True)
    """

    corpus: str
    """Data set."""
    part: str = ""
    """`train`, `validation`, `test`, or what else of it."""
    decoding: str | None = None
    """How the replies that were judged are drawn, `sampled` or `greedy`; None: the cases of the part themselves."""
    users: bool = False
    """Users who met the policy, in the place of the part's dialogues."""

    def __post_init__(self) -> None:
        if self.decoding not in (None, *DECODINGS) or (self.users and self.decoding is None):
            raise ValueError(
                f"split {self.corpus}/{self.part}: decoding {self.decoding!r}, expected one of {', '.join(DECODINGS)}"
            )

    def __str__(self) -> str:
        """As results name it."""
        part = f"/{self.part}" if self.part else ""
        drawn = "" if self.decoding is None else f"{'-users' if self.users else ''}-{self.decoding}"
        return f"{self.corpus}{part}{drawn}"

    @classmethod
    def parse(cls, text: str) -> "Split":
        """The inverse of `str`."""
        found = re.fullmatch(rf"([^/]*?)(?:/(.*?))?(?:(-users)?-({'|'.join(DECODINGS)}))?", text, re.DOTALL)
        assert found is not None  # Every part may be empty but the corpus, which takes what the others leave.
        corpus, part, users, decoding = found.groups()
        return cls(corpus, part or "", decoding, users is not None)

    def drawn(self, decoding: str | None, *, users: bool = False) -> "Split":
        """The same corpus and part, by replies of this decoding; `None` by the part's own cases."""
        return Split(self.corpus, self.part, decoding, users)


@dataclasses.dataclass(frozen=True)
class Result:
    """An entry of `results.json`."""

    name: str
    """`<system>/<metric>`, for example `sft/hr@10`; a difference is `ppo-sft/hr@10` (`difference_name`)."""
    value: float
    n: int
    """How many cases the value is an average over, in the mean training seed, or where `definition` says so in all seeds
    together; what a case is stands in `definition`."""
    protocol: str
    """Named protocol (`full`, `fresh` …, `text`, `closed-loop`, `held-out`)."""
    split: str
    """Data set and split, for example `redial/test`; a `Split` as text."""
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
    def sides(self) -> Sides | None:
        """Which two systems a difference is of; None for one system alone."""
        return sides_of(self.system) if self.definition.startswith(DIFFERENCE) else None

    @property
    def is_difference(self) -> bool:
        """Whether it compares two systems."""
        return self.sides is not None

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

        Raises: ValueError naming the field that is missing, or holds another kind of value.
        """
        missing = [field for field in ("name", "value", "n", "protocol", "split", "definition") if field not in entry]
        if missing:
            raise ValueError(f"result {entry.get('name', '?')!r}: missing {', '.join(missing)}")
        interval, seeds = entry.get("interval"), entry.get("seeds", [])
        kinds = {
            "a text": {field: isinstance(entry[field], str) for field in ("name", "protocol", "split", "definition")},
            "a finite number or null": {field: _is_number(entry.get(field)) for field in ("value", "std")},
            "a whole number": {"n": type(entry["n"]) is int and 0 <= entry["n"] < 2**63},
            "two numbers or null": {
                "interval": interval is None
                or (isinstance(interval, list | tuple) and len(interval) == 2 and all(map(_is_number, interval)))
            },
            "whole numbers": {
                "seeds": isinstance(seeds, list | tuple)
                and all(type(seed) is int and abs(seed) < 2**63 for seed in seeds)
            },
        }
        for expected, fields in kinds.items():
            for field, fits in fields.items():
                if not fits:
                    raise ValueError(
                        f"result {str(entry['name'])[:60]!r}: {field} is {str(entry.get(field))[:60]!r}, expected {expected}"
                    )
        return cls(
            name=entry["name"],
            value=math.nan if entry["value"] is None else float(entry["value"]),
            n=entry["n"],
            protocol=entry["protocol"],
            split=entry["split"],
            interval=None if interval is None or None in interval else (float(interval[0]), float(interval[1])),
            seeds=tuple(seeds),
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


def _is_number(value: Any) -> bool:
    """Whether `to_json` could have written it in a number's place."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63)


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None

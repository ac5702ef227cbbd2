"""Measuring several implementations side by side, and the arithmetic of what was measured.

All take turns inside one run, in an order that rotates, so that a machine that slows down slows all of them; ratios are
taken within a round. Other processes' CPU time during a measurement is sampled: threads that wait for each other
(OpenMP barriers) suffer far more from a busy neighbour than others do, so a disturbed round is measured again.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from benchmark.workload import FORMS, Form

Seconds = Mapping[str, float]
"""Phase to seconds."""


class Implementation(Protocol):
    """One way to do a PPO iteration; it keeps its own parameters and moments."""

    name: str
    form: Form
    first_call: dict[str, float]
    """Seconds of the first call of each part, compilation included."""

    def warm_up(self) -> None:
        """First calls, compilation included."""
        ...

    def iterate(self) -> dict[str, float]:
        """One iteration: seconds of rollout, scoring, update and whole, the device idle at both ends of each."""
        ...


@dataclasses.dataclass(frozen=True)
class Round:
    """Every implementation once."""

    seconds: Mapping[str, Seconds]
    """By implementation and phase."""
    foreign: Mapping[str, float]
    """CPU time of other processes during each one's turn, as a share of all cores."""

    def quiet(self, limit: float) -> bool:
        """Whether nobody was disturbed by more than `limit`."""
        return max(self.foreign.values()) <= limit


def busy_seconds() -> float | None:
    """CPU seconds spent by anyone since boot, time stolen by other virtual machines included; None if not known."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def foreign_share(
    turn: Callable[[], Seconds],
    *,
    busy: Callable[[], float | None] = busy_seconds,
    own: Callable[[], float] = time.process_time,
    clock: Callable[[], float] = time.perf_counter,
    cores: int | None = None,
) -> tuple[Seconds, float]:
    """What `turn` returns, and the share of all cores that other processes had meanwhile; 0 where it is not known."""
    before = busy(), own(), clock()
    seconds = turn()
    after = busy(), own(), clock()
    if before[0] is None or after[0] is None:
        return seconds, 0.0
    foreign = (after[0] - before[0]) - (after[1] - before[1])
    return seconds, max(foreign, 0.0) / ((after[2] - before[2]) * (cores or os.cpu_count() or 1))


def interleave(
    implementations: Sequence[Implementation],
    *,
    repeats: int,
    foreign_limit: float,
    most_rounds: int,
    report: Callable[[Round], None] = lambda _: None,
) -> list[Round]:
    """Rounds until `repeats` quiet ones are in, `most_rounds` at most; the order rotates from round to round."""
    rounds: list[Round] = []
    while len(rounds) < most_rounds and sum(one.quiet(foreign_limit) for one in rounds) < repeats:
        shift = len(rounds) % len(implementations)
        seconds: dict[str, Seconds] = {}
        foreign: dict[str, float] = {}
        for implementation in (*implementations[shift:], *implementations[:shift]):
            seconds[implementation.name], foreign[implementation.name] = foreign_share(implementation.iterate)
        rounds.append(Round(seconds, foreign))
        report(rounds[-1])
    return rounds


def kept_rounds(rounds: Sequence[Round], *, repeats: int, foreign_limit: float) -> tuple[list[Round], bool]:
    """The quiet rounds where there are `repeats` of them; otherwise the `repeats` least disturbed, and False."""
    quiet = [one for one in rounds if one.quiet(foreign_limit)]
    if len(quiet) >= repeats:
        return quiet, True
    return sorted(rounds, key=lambda one: max(one.foreign.values()))[:repeats], False


def seconds_of(rounds: Sequence[Round], name: str, phase: str) -> list[float]:
    """One implementation's seconds of one phase, round by round."""
    return [one.seconds[name][phase] for one in rounds]


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times faster we are than another: its seconds over ours, pair by pair."""

    pairs: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the pairs' ratios."""
        return statistics.median(self.pairs)

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest."""
        return min(self.pairs), max(self.pairs)


def ratio(rounds: Sequence[Round], *, ours: str, theirs: str, phase: str) -> Ratio:
    """Their seconds over ours within each round."""
    pairs = zip(seconds_of(rounds, theirs, phase), seconds_of(rounds, ours, phase), strict=True)
    return Ratio(tuple(their / our for their, our in pairs))


class Name(NamedTuple):
    """What an implementation's name tells: `torch_shared_bf16` is `torch`, `shared`, bfloat16; `trl` has one form."""

    program: str
    form: str | None
    bf16: bool


def parse_name(name: str) -> Name:
    """Takes a name apart."""
    parts = name.split("_")
    form = next((part for part in parts if part in FORMS), None)
    return Name(parts[0], form, "bf16" in parts)


def ratios(rounds: Sequence[Round], *, phases: Sequence[str]) -> dict[str, Ratio]:
    """`<phase>_vs_<other>_<form>`: how many times faster we are in that form than the other in the same form.

    TRL has separate networks only, so both our forms stand against it. `rollout_vs_<other>` is our shared form's, for
    all forms sample from one network. Types of numbers are compared like with like; where the other has bfloat16 and
    we have not (on a CPU), its name says so.
    """
    names = list(rounds[0].seconds)
    ours = {(name.form, name.bf16): text for text in names if (name := parse_name(text)).program == "ours"}
    found: dict[str, Ratio] = {}
    for theirs in names:
        other = parse_name(theirs)
        if other.program == "ours":
            continue
        for form in FORMS if other.form is None else (other.form,):
            like = ours.get((form, other.bf16))
            our = like or ours.get((form, not other.bf16))
            if our is None:
                continue
            label = other.program if like or not other.bf16 else f"{other.program}_bf16"
            for phase in phases:
                found[f"{phase}_vs_{label}_{form}"] = ratio(rounds, ours=our, theirs=theirs, phase=phase)
            if form == "shared":
                found[f"rollout_vs_{label}"] = found[f"rollout_vs_{label}_{form}"]
    return found

"""What a long run holds on to: memory of the process, arrays on the device, programs compiled, seconds, update by update.

Nothing of training is changed. A stage hands its compiled step to the layout once (`Layout.together`); this layout looks at
the process before every call of it, and hands it on.
"""

import dataclasses
import itertools
import math
import os
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rlhf_jax.parallel.partition import OneDevice
from scale import cost

COMPILED = "/jax/core/compile/backend_compile_duration"
"""What JAX tells of every program that is compiled, or read from the cache of compiled programs."""


class Look(NamedTuple):
    """The process at the moment an update begins."""

    stage: str
    update: int
    """Updates done."""
    seconds: float
    """Counted as in `scale.cost`, without the yardstick."""
    resident_mb: float
    """Memory the process holds."""
    live_bytes: int
    """Of all arrays on the device that something still refers to."""
    live_arrays: int
    programs: int
    """Compiled so far."""
    yardstick_seconds: float
    """Of a fixed piece of work, done at this moment and not counted above: how slow the core is just now."""


class Watch(OneDevice):
    """One device whose steps are looked at; use `watching`."""

    def __init__(self) -> None:
        self.looks: list[Look] = []
        self.compiled: list[str] = []
        """Names of all programs, in the order they were compiled in."""
        self._not_counted = 0.0

    def together(self, program: Any, name: str) -> Any:
        """The same program; of a stage's step (a name without a part behind `/`) each call is looked at first."""
        if "/" in name:
            return program
        done = 0

        def watched(*arguments: Any) -> Any:
            nonlocal done
            self.look(name, done)
            done += 1
            return program(*arguments)

        return watched

    def look(self, stage: str, update: int) -> None:
        """Notes what there is now."""
        now = cost.seconds()
        seconds, measured = now - self._not_counted, yardstick()
        self._not_counted += cost.seconds() - now
        arrays = [array for array in jax.live_arrays() if not array.is_deleted()]
        self.looks.append(
            Look(
                stage,
                update,
                seconds,
                resident_mb(),
                sum(array.nbytes for array in arrays),
                len(arrays),
                len(self.compiled),
                measured,
            )
        )

    def compiled_at(self, stage: str) -> list[tuple[int, str]]:
        """Updates of a stage, from 1, in or after which a program was compiled, and its name."""
        own = [look for look in self.looks if look.stage == stage]
        return [
            (after.update, name)
            for before, after in itertools.pairwise(own)
            for name in self.compiled[before.programs : after.programs]
        ]


@contextmanager
def watching() -> Iterator[Watch]:
    """A layout that looks, and counts the programs that are compiled meanwhile."""
    watch = Watch()

    def count(event: str, seconds: float, **said: Any) -> None:
        del seconds
        if event == COMPILED:
            watch.compiled.append(str(said.get("fun_name", "")))

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        yield watch
    finally:
        jax.monitoring.unregister_event_duration_listener(count)


def yardstick() -> float:
    """CPU seconds of this thread for a fixed piece of work, some milliseconds: what shares the core slows this as it slows an
    update, though not in the same proportion."""
    begin, numbers = time.thread_time(), _NUMBERS
    for _ in range(4):
        numbers = np.tanh(numbers) + _NUMBERS
    sum(range(10_000))
    return time.thread_time() - begin


def resident_mb() -> float:
    """Memory this process holds now; the most it has held where the system does not say."""
    file = Path("/proc/self/statm")
    if not file.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


_NUMBERS = np.linspace(-2, 2, 2**16, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Span:
    """A tenth of a stage's updates."""

    updates: int
    resident_mb: float
    """The most."""
    live_bytes: int
    """The most."""
    seconds: float
    """An update, evaluations and checkpoints of this tenth shared out over its updates, and all that came in between."""
    quick_seconds: float
    """An update alone: the lower quartile of the means of two that follow each other, because imitation waits for its numbers
    at every second one."""
    programs: int
    """Compiled in this tenth."""
    yardstick_seconds: float
    """Median."""


def spans(looks: Sequence[Look], parts: int = 10) -> list[Span]:
    """The updates of one stage in equal parts; what follows an update (evaluation, checkpoint) is that update's.

    The last update is left out, because nothing was looked at after it, and so the first part lacks an update.

    Args:
      looks: of one stage, in order, one before each update.
    Raises: ValueError where a part would have no update.
    Examples:
      >>> looks = [Look("sft", k, 2.0 * k, 100.0 + k, 8, 1, min(k, 1), 0.1) for k in range(6)]
      >>> [(span.updates, span.seconds, span.resident_mb, span.programs) for span in spans(looks, 2)]
      [(2, 2.0, 102.0, 1), (3, 2.0, 105.0, 0)]
    """
    n_updates = len(looks)
    if n_updates < 2 * parts:
        raise ValueError(f"{n_updates} updates cannot be cut into {parts} parts")
    ends = [0, *(round(part * n_updates / parts) - 1 for part in range(1, parts + 1))]
    found = []
    for begin, end in itertools.pairwise(ends):
        own = looks[begin : end + 1]
        found.append(
            Span(
                updates=end - begin,
                resident_mb=max(look.resident_mb for look in own),
                live_bytes=max(look.live_bytes for look in own),
                seconds=(own[-1].seconds - own[0].seconds) / (end - begin),
                quick_seconds=lower_quartile(
                    [(after.seconds - before.seconds) / 2 for before, after in zip(own, own[2:], strict=False)]
                ),
                programs=own[-1].programs - own[0].programs,
                yardstick_seconds=statistics.median(look.yardstick_seconds for look in own),
            )
        )
    return found


def lower_quartile(numbers: Sequence[float]) -> float:
    """A quarter of the numbers is smaller; NaN of none."""
    return float(np.quantile(numbers, 0.25)) if len(numbers) else math.nan


def verdict(found: Sequence[Span]) -> dict[str, float]:
    """The last tenth against the second; the first compiles.

    Returns: `throughput` (updates a second), `quick` (the same of an update alone, see `Span.quick_seconds`), `yardstick`
      (how often a second holds the fixed piece of work), `resident` and `live` (memory), 1 is the same; `compiled`, programs
      in all tenths after the second.
    """
    second, last = found[1], found[-1]
    return {
        "throughput": second.seconds / last.seconds,
        "quick": second.quick_seconds / last.quick_seconds,
        "yardstick": second.yardstick_seconds / last.yardstick_seconds,
        "resident": last.resident_mb / second.resident_mb,
        "live": last.live_bytes / second.live_bytes,
        "compiled": float(sum(span.programs for span in found[2:])),
    }

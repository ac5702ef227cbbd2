"""A script in this process, with a clock: CPU seconds of its parts, of compiling, and until the first line of progress.

    python -m scale.first_result REPORT SCRIPT ARGUMENTS...

Seconds are the processor's, of all threads, because other processes disturb the wall's clock. Parts are told apart by what the
script says: a part ends where one of its lines first begins with a given text. Writes REPORT (JSON) when the script ends.
"""

import contextlib
import dataclasses
import json
import re
import runpy
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STARTS = re.compile(r"^(?:\[rlhf_jax\] )?(?P<stage>[\w-]+)(?P<what>: starts|: \d+/| *:?\s+\d+%)")
"""A stage's first line, or a line of its progress."""
EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "compiling",
}
"""What JAX does before a program can run; with a cached program the last is reading it."""
HITS = "/jax/compilation_cache/cache_hits"


@dataclasses.dataclass
class Clock:
    """What was spent so far, by stage."""

    stage: str = "imports"
    begun: float = 0.0
    spent: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    """CPU seconds of each stage."""
    making: dict[str, Counter[str]] = dataclasses.field(default_factory=lambda: defaultdict(Counter))
    """CPU seconds of tracing, lowering, compiling in each stage; `programs` and `cached`, numbers."""
    slowest: list[tuple[float, str, str]] = dataclasses.field(default_factory=list)
    """CPU seconds of compiling, stage and name of every program."""
    first_progress: float | None = None
    """CPU seconds until the first line of progress of a stage."""
    open: list[tuple[str, float]] = dataclasses.field(default_factory=list)
    """What JAX has begun and not ended."""

    def turn(self, stage: str) -> None:
        """A stage begins."""
        now = time.process_time()
        self.spent[self.stage] += now - self.begun
        self.stage, self.begun = stage, now

    def heard(self, line: str) -> None:
        """A line of the script."""
        found = STARTS.match(line)
        if found is None:
            return
        if "starts" in found["what"]:
            self.turn(found["stage"])
        elif self.first_progress is None:
            self.first_progress = time.process_time()

    def begin(self, event: str, value: float, **_: Any) -> None:
        """JAX begins something."""
        del value
        if event in EVENTS:
            self.open.append((event, time.process_time()))

    def end(self, event: str, seconds: float, **said: Any) -> None:
        """JAX has ended something; what is inside of something else is counted once, as what it is itself."""
        if event not in EVENTS:
            return
        begun = time.process_time() - seconds
        while self.open:
            name, begun = self.open.pop()
            if name == event:
                break
        spent, made = time.process_time() - begun, self.making[self.stage]
        # Tracing a function traces those it calls: only the outermost is added.
        if not any(name == event for name, _ in self.open):
            made[EVENTS[event]] += spent  # type: ignore[assignment]
        if EVENTS[event] == "compiling":
            made["programs"] += 1
            self.slowest.append((spent, self.stage, str(said.get("fun_name", ""))))

    def hit(self, event: str, **_: Any) -> None:
        """A program was found in the cache."""
        if event == HITS:
            self.making[self.stage]["cached"] += 1

    def report(self) -> dict[str, Any]:
        """All of it."""
        self.turn("")
        return {
            "cpu_seconds": time.process_time(),
            "first_progress": self.first_progress,
            "stages": {stage: {"cpu_seconds": spent, **self.making[stage]} for stage, spent in self.spent.items()},
            "slowest": sorted(self.slowest, reverse=True)[:40],
        }


class _Listening:
    """A stream whose lines a clock hears as well."""

    def __init__(self, stream: Any, clock: Clock) -> None:
        self._stream, self._clock = stream, clock

    def write(self, text: str) -> int:
        for line in re.split(r"[\r\n]", text):
            self._clock.heard(line)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def timed() -> Iterator[Clock]:
    """A clock that hears what this process says on its error stream, and what JAX does."""
    clock, stream = Clock(), sys.stderr
    # Imported here: how long it takes is part of what is measured.
    import jax

    jax.monitoring.register_scalar_listener(clock.begin)
    jax.monitoring.register_event_duration_secs_listener(clock.end)
    jax.monitoring.register_event_listener(clock.hit)
    sys.stderr = _Listening(stream, clock)  # type: ignore[assignment]
    try:
        yield clock
    finally:
        sys.stderr = stream
        jax.monitoring.unregister_scalar_listener(clock.begin)
        jax.monitoring.unregister_event_duration_listener(clock.end)
        jax.monitoring.unregister_event_listener(clock.hit)


def _main(report: Path, script: str, arguments: list[str]) -> None:
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).absolute().parent))
    with timed() as clock:
        # The end of imports: the command line is read then.
        import command_line

        real = command_line.start

        def start(*given: Any) -> Any:
            clock.turn("data")
            return real(*given)

        command_line.start = start
        try:
            runpy.run_path(script, run_name="__main__")
        finally:
            report.write_text(json.dumps(clock.report(), indent=1), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])

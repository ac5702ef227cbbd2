"""`--profile`: a trace of three updates of a stage, for Perfetto, XProf and `tools/draw_trace.py`.

The third to fifth update of this process are traced: the first compiles, the second may compile again where the first
result lies otherwise on the devices than the start did. docs/profiling.md says how to read what is written.
"""

import contextlib
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from rlhf_jax.runtime import files, run

FIRST, LAST = 3, 5
"""Which updates are traced, counted from 1 at the start of the process."""


class StepTrace:
    """Traces a stage's updates `FIRST` to `LAST` into `profile/STAGE`; does nothing in stages that are not to be traced.

    Each process writes its own, into its own folder. Updates are marked with their number in the run, as in
    `metrics.jsonl`: a run continued at step 40 has its trace of 43 to 45.
    """

    def __init__(self, directory: run.RunDirectory, stage: str, step: int, n_steps: int) -> None:
        self._folder = directory.path / "profile" / stage
        self._stage = stage
        self._first, self._last = step + FIRST, min(step + LAST, n_steps)
        self._annotation: jax.profiler.StepTraceAnnotation | None = None
        self._begun = 0
        self._running = False
        self._wanted = stage in directory.profile and self._first <= n_steps
        if stage in directory.profile and self._last < step + LAST:
            traced = f"only {self._first} to {self._last} are traced" if self._wanted else "none is traced"
            files.notice(
                f"{stage}: --profile traces steps {self._first} to {step + LAST}, the stage ends with {n_steps}: {traced}"
            )

    def turns(self, step: int) -> bool:
        """Whether a trace starts before update `step` (from 1 in the run), or ends there; either takes seconds."""
        return self._wanted and step in (self._first, self._last + 1)

    def turn(self, step: int, state: Any) -> None:
        """Starts or ends the trace before update `step`, once `state`, which it starts from, is computed."""
        if step == self._first:
            jax.block_until_ready(state)
            self._start()
        else:
            self.close(state)

    def mark(self, step: int) -> None:
        """In a trace: update `step` begins, and the one before it ends."""
        self._leave()
        if self._running:
            self._begun = step
            self._annotation = jax.profiler.StepTraceAnnotation(self._stage, step_num=step)
            self._annotation.__enter__()

    def close(self, state: Any) -> None:
        """Ends the trace, where one runs, once `state` is computed."""
        if not self._running:
            return
        jax.block_until_ready(state)
        before = _traces(self._folder)
        self._stop()
        if _traces(self._folder) <= before:
            raise files.RunError(
                f"the profiler wrote no trace into {self._folder}: is the disk full, or not to be written?"
            )
        files.notice(f"{self._stage}: trace of steps {self._first} to {self._begun} in {self._folder}")

    def _start(self) -> None:
        options = jax.profiler.ProfileOptions()
        # Every Python call would be an event: many thousands a step, and host code some times slower than it is.
        options.python_tracer_level = 0
        # The profiler's own name is the second, in which a quick stage could be continued and write over its first trace.
        options.session_id = f"{time.strftime('%Y-%m-%d-%H-%M-%S')}-from-step-{self._first}"
        with files.storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        try:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True, profiler_options=options)
        except RuntimeError as error:
            raise files.RunError(f"{self._stage}: --profile cannot start a trace: {error}") from error
        self._running = True

    def _stop(self) -> None:
        self._leave()
        self._running = False
        with files.storage_errors(self._folder):
            jax.profiler.stop_trace()

    def _leave(self) -> None:
        if self._annotation is not None:
            self._annotation.__exit__(None, None, None)
            self._annotation = None

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running:  # After an error, which is more to the point than any the profiler has.
            with contextlib.suppress(Exception):
                self._stop()


def _traces(folder: Path) -> set[Path]:
    return set(folder.glob("plugins/profile/*/*.xplane.pb"))

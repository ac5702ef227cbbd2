"""Progress of a stage on the terminal: a bar with the remaining time, or a line at once and then now and then where there is none."""

import math
import sys
import time
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm

_LINE_SECONDS = 20.0
_SHOWN = ("loss", "validation/loss", "objective/score_raw", "objective/kl_k1", "validation/pearson")


class Progress:
    """Shows how far a stage is; in a log file (no terminal) as plain lines, the first with the first numbers, then 20 seconds apart."""

    def __init__(self, name: str, step: int, n_steps: int) -> None:
        self._name, self._n_steps = name, n_steps
        self._printed = -math.inf
        self._warm: tuple[int, float] | None = None
        self._bar = tqdm(total=n_steps, initial=step, desc=name, unit="step", leave=True, file=sys.stderr, disable=None)

    def advance(self, step: int) -> None:
        """Says that `step` steps are done."""
        self._bar.update(step - self._bar.n if not self._bar.disable else 0)
        self._warm = self._warm or (step, time.monotonic())

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the newest metrics of `step`."""
        self.advance(step)
        text = ", ".join(f"{name} {values[name]:.4g}" for name in _SHOWN if name in values)
        if not self._bar.disable:
            self._bar.set_postfix_str(text)
        elif time.monotonic() - self._printed > _LINE_SECONDS or step == self._n_steps:
            first, self._printed = self._printed == -math.inf, time.monotonic()
            # A program for another length may have been compiled just now: the first line would guess hours.
            parts = [f"{self._name}: {step}/{self._n_steps}", "" if first else self._left(step), text]
            print(", ".join(filter(None, parts)), file=sys.stderr, flush=True)

    def _left(self, step: int) -> str:
        """Remaining time; the first step, which compiles, says nothing about the others."""
        if self._warm is None or not self._warm[0] < step < self._n_steps:
            return ""
        per_step = (self._printed - self._warm[1]) / (step - self._warm[0])
        return f"{per_step * (self._n_steps - step):.0f} s left"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

"""Progress of a stage on the terminal: a bar with the remaining time, or a line now and then where there is none."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm

_LINE_SECONDS = 20.0
_SHOWN = ("loss", "validation_loss", "score", "kl", "pearson")


class Progress:
    """Shows how far a stage is; in a log file (no terminal) as plain lines, 20 seconds apart."""

    def __init__(self, name: str, step: int, n_steps: int) -> None:
        self._name, self._first, self._n_steps = name, step, n_steps
        self._started = self._printed = time.monotonic()
        self._bar = tqdm(
            total=n_steps, initial=step, desc=name, unit="update", leave=True, file=sys.stderr, disable=None
        )

    def advance(self, step: int) -> None:
        """Says that `step` updates are done."""
        self._bar.update(step - self._bar.n if not self._bar.disable else 0)

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the newest metrics."""
        text = ", ".join(f"{name} {values[name]:.4g}" for name in _SHOWN if name in values)
        if not self._bar.disable:
            self._bar.set_postfix_str(text)
        elif time.monotonic() - self._printed > _LINE_SECONDS or step == self._n_steps:
            self._printed = time.monotonic()
            left = (self._printed - self._started) / max(step - self._first, 1) * (self._n_steps - step)
            print(f"{self._name}: {step}/{self._n_steps}, {left:.0f} s left, {text}", file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

"""SIGTERM and SIGINT: a run that is asked to stop ends with exit code 75, and nothing is lost."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

INTERRUPTED = 75
"""Exit code of a run that was asked to stop, saved, and wants to be started again (EX_TEMPFAIL)."""


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Inside the block SIGTERM and SIGINT only set the event; a second one exits at once, with code 75."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise SystemExit(INTERRUPTED)
        stop.set()

    with _handlers(ask):
        yield stop


@contextlib.contextmanager
def exits_on_signals() -> Iterator[None]:
    """For a whole experiment: between stages, where all that is done is saved, SIGTERM and SIGINT exit with code 75."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(INTERRUPTED)

    with _handlers(leave):
        yield


@contextlib.contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    # Python delivers signals to the main thread only and refuses handlers elsewhere.
    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if main else ()
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)

"""How a run ends before its time: SIGTERM and SIGINT end it with exit code 75 and nothing lost; no process waits for a dead one."""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

from rlhf_jax.parallel import processes
from rlhf_jax.runtime.files import in_one_line, notice

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
        notice(
            f"stopped by {signal.Signals(number).name} between stages, where all that is done is saved; the same command continues"
        )
        raise SystemExit(INTERRUPTED)

    with _handlers(leave):
        yield


@contextlib.contextmanager
def ends_without_the_others() -> Iterator[None]:
    """For one process of several: an error ends it at once, with code 1 and in words.

    At the interpreter's own end the runtime would first wait for the others, who wait for this one, and then abort with a stack
    of its own. The others lose their partner in the next collective, and end in the same way. A stop by signal was agreed
    upon by all and ends as usual.
    """
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        if not processes.several():
            raise
        if processes.lost(error):
            notice(
                "error: another process of this run has gone, its own output may say why. Start all of them again with the "
                f"same commands: the run continues from its last checkpoint ({in_one_line(error)[:120]})"
            )
        elif isinstance(error, ValueError | OSError | KeyboardInterrupt | processes.LeadError):
            notice(f"error: {in_one_line(error)}")
        else:
            traceback.print_exc()
        if processes.leads() and not processes.lost(error):
            # It holds what the others are connected to: they may say their own words first.
            time.sleep(2)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


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

"""Ctrl-C and SIGTERM while a script still imports, and a Python without the packages: one line instead of a traceback.

Imported first, before what takes long. It also tells the C library to keep what is freed, before any thread of a compiled
program has asked for memory (`rlhf_jax/runtime/allocator.py`).

Importing takes seconds, and a script can hear signals in its own way only afterwards. Nothing has begun by then, so the exit
code is that of a run that wants to be started again (75).
"""

import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


def _leave(number: int, frame: FrameType | None) -> None:
    del frame
    # No exception: some library would catch it in the middle of its import, or print it.
    os.write(2, f"[rlhf_jax] stopped by {signal.Signals(number).name} before anything began\n".encode())
    os._exit(75)


def end() -> None:
    """Everything is imported: signals mean what they mean in Python."""
    for number, usual in zip(_NUMBERS, (signal.default_int_handler, signal.SIG_DFL), strict=True):
        if signal.getsignal(number) is _leave:
            signal.signal(number, usual)


# A test that imports a script's functions keeps its own signals.
_started = Path(getattr(sys.modules["__main__"], "__file__", None) or "").absolute().parent
if _started == Path(__file__).absolute().parent:
    if importlib.util.find_spec("tyro") is None:
        sys.exit(
            f"[rlhf_jax] error: {sys.executable} has not the packages this needs. `make` has put them into .venv: "
            "`source .venv/bin/activate` once, or .venv/bin/python in the place of python"
        )
    for _number in _NUMBERS:
        # What a parent has set to be ignored (nohup) stays ignored.
        if signal.getsignal(_number) is not signal.SIG_IGN:
            signal.signal(_number, _leave)
    from rlhf_jax.runtime.allocator import keep_memory

    keep_memory()

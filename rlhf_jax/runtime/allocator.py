"""Freed memory stays with the process, because a compiled program asks for all of its temporaries again at every call.

The C library gives a freed block of more than 32 MiB back to the kernel, which hands it out page by page, each zeroed at its
first touch, at the next call. In docs/growth.md that was up to half of the processor's time. The price is memory: kept blocks
do not always fit together, and the peak of a process may double. Importing this costs nothing but the standard library.
"""

import ctypes
import os

_MOST = 2**31 - 1
_SETTINGS = {-1: _MOST, -3: _MOST, -8: 1}
"""`M_TRIM_THRESHOLD`, `M_MMAP_THRESHOLD` and `M_ARENA_MAX` of glibc's malloc.h. One arena: those of worker threads hold no block
above 64 MiB, and would map every larger one."""


def keep_memory() -> bool:
    """Tells glibc to keep blocks below 2 GiB that are freed; no number changes.

    To be called before a compiled program has run: threads that have an arena keep it.

    Returns: whether it was told. Not where `GLIBC_TUNABLES` is set, which the user or `make` has chosen, nor where the C
      library has no `mallopt` (musl, macOS).
    """
    if "GLIBC_TUNABLES" in os.environ:
        return False
    try:
        tell = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows.
        return False
    taken = [tell(name, value) for name, value in _SETTINGS.items()]  # All are told, also after one that is refused.
    return all(one == 1 for one in taken)

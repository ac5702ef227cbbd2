"""Memory: whether everything fits before it is built, and what PyTorch's implementations take at their peak."""

import ctypes
import gc
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmark.workload import Workload


def available_bytes() -> int | None:
    """Memory that can be had without swapping: the accelerator's where there is one; None if not known."""
    if jax.default_backend() != "cpu":
        stats = jax.devices()[0].memory_stats() or {}
        return stats.get("bytes_limit")
    info = Path("/proc/meminfo")
    if not info.exists():
        return None
    lines = dict(line.split(":") for line in info.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def needed_bytes(workload: Workload, names: Sequence[str]) -> float:
    """Parameters and moments of all implementations at once, and gradient and activations of the largest."""
    network = 4.0 * workload.trunk_parameters
    families = {name.split("_")[0] for name in names}
    # Each family keeps policy, critic, two moments of both, reference and reward model; the starting weights come first.
    resident = network * (8 * len(families) + 3)
    # Float32: about 34 numbers a position and layer, and the logits with their gradient and softmax.
    rows = workload.batch / (workload.minibatches * workload.microbatches)
    networks = 1 if all("shared" in name for name in names) else 2
    layers = networks * 34 * workload.n_embd * workload.n_layer
    activations = 4.0 * rows * workload.length * (layers + 4 * workload.vocab_size)
    return resident + networks * network + activations


def check(workload: Workload, names: Sequence[str]) -> None:
    """Raises ValueError, with the numbers, where what was asked for cannot fit."""
    available, needed = available_bytes(), needed_bytes(workload, names)
    if available is not None and needed > available:
        raise ValueError(
            f"{workload.name} with {', '.join(names)} needs about {needed / 2**30:.1f} GiB, {available / 2**30:.1f} GiB "
            "are free: name fewer --implementations, or a smaller size"
        )


def resident(line: str) -> int | None:
    """`VmRSS` (resident now) or `VmHWM` (largest since the last reset), bytes; None where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    found = next((one for one in status.read_text().splitlines() if one.startswith(line)), None)
    return int(found.split()[1]) * 1024 if found else None


def reset_resident_peak() -> bool:
    """Gives freed memory back to the system and starts a new peak; False where the system cannot."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (AttributeError, OSError):
        return False
    return True


def peak_bytes(make: Callable[[], Any]) -> int | None:
    """Bytes an implementation needs at its peak, networks included; run it in a process of its own.

    What the accelerator's allocator counted, or on a CPU the rise of the process's resident memory over the first
    calls; None where the system does not tell.
    """
    known = reset_resident_peak()
    before = resident("VmRSS")
    make().warm_up()
    if jax.default_backend() != "cpu":
        return sys.modules["torch"].cuda.max_memory_allocated()
    after = resident("VmHWM")
    return after - before if known and before is not None and after is not None else None


def peak_bytes_of_child(command: Sequence[str]) -> int | None:
    """Runs a process that prints `peak_bytes N` last; None where it does not."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    words = done.stdout.split()
    return int(words[-1]) if done.returncode == 0 and words[-2:-1] == ["peak_bytes"] and words[-1].isdigit() else None

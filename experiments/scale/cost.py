"""What work costs in seconds and memory, where JAX runs it: on the processor, or on an accelerator that it waits for."""

import resource
from collections.abc import Callable
from time import perf_counter, process_time
from typing import Any

import jax


def seconds() -> float:
    """A running count of seconds; the difference of two is what lay between them cost.

    On a processor those of all threads of this process: a busy neighbour changes them less than the wall's clock. On an
    accelerator the wall's clock: there the processor only waits.
    """
    return process_time() if jax.default_backend() == "cpu" else perf_counter()


def least(call: Callable[[], Any], repeats: int) -> float:
    """Least `seconds` of a call, after one that compiles; every call is waited for."""
    jax.block_until_ready(call())
    laps: list[float] = []
    for _ in range(repeats):
        begin = seconds()
        jax.block_until_ready(call())
        laps.append(seconds() - begin)
    return min(laps)


def process_peak_mb() -> float:
    """Most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def peak_mb() -> float:
    """Most memory held since the process began: its own, or on an accelerator the most that arrays and programs took of it.

    Raises: ValueError where an accelerator does not tell.
    """
    if jax.default_backend() == "cpu":
        return process_peak_mb()
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "peak_bytes_in_use" not in stats:
        raise ValueError(f"{device.device_kind} does not tell how much of its memory was in use")
    return stats["peak_bytes_in_use"] / 2**20

"""What the device can do at best: matmuls at the workload's shapes, and reading memory. Measured before anything else."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from benchmark.workload import Workload


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """Best of several, over the frameworks at hand."""

    matmul: float
    """Floating-point operations per second."""
    bandwidth: float
    """Bytes read (on an accelerator: read and written by a copy) per second."""
    dtype: str
    by_framework: dict[str, float]
    """Framework and measurement to rate."""


def best_seconds(call: Callable[[], object], *, repeats: int, least_seconds: float = 0.05) -> float:
    """Smallest mean time of a call over `repeats` batches of calls that each last at least `least_seconds`."""
    call()
    started = time.perf_counter()
    call()
    once = time.perf_counter() - started
    number = max(1, int(least_seconds / max(once, 1e-9)))
    best = once
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(number):
            call()
        best = min(best, (time.perf_counter() - started) / number)
    return best


def matmul_shapes(workload: Workload) -> tuple[tuple[int, int, int], ...]:
    """(rows, inner, columns) of the widest layer, the head, and a large square that any chip should like."""
    rows = min(workload.batch * workload.length, 16_384)
    width = workload.n_embd
    return (rows, width, 4 * width), (min(rows, 2048), width, workload.vocab_size), (2048, 2048, 2048)


def jax_ceilings(shapes: Sequence[tuple[int, int, int]], dtype: str, *, repeats: int) -> dict[str, float]:
    """Rates of XLA's matmul at each shape, and of a pass over 256 MiB (2 GiB on an accelerator)."""
    found = {}
    dot = jax.jit(lambda a, b: a @ b)
    for rows, inner, columns in shapes:
        a = jax.random.normal(jax.random.key(0), (rows, inner), dtype)
        b = jax.random.normal(jax.random.key(1), (inner, columns), dtype)
        seconds = best_seconds(lambda a=a, b=b: dot(a, b).block_until_ready(), repeats=repeats)
        found[f"jax matmul {rows}x{inner}x{columns}"] = 2.0 * rows * inner * columns / seconds
    on_cpu = jax.default_backend() == "cpu"
    numbers = jnp.ones((64 if on_cpu else 512) * 2**20, jnp.float32)
    if on_cpu:
        read: Callable[[Array], Array] = jax.jit(lambda x: jnp.sum(x.reshape(64, -1), axis=1))
        seconds = best_seconds(lambda: read(numbers).block_until_ready(), repeats=repeats)
        found["jax read"] = numbers.nbytes / seconds
    else:
        copy: Callable[[Array], Array] = jax.jit(lambda x: x + 1)
        seconds = best_seconds(lambda: copy(numbers).block_until_ready(), repeats=repeats)
        found["jax copy"] = 2 * numbers.nbytes / seconds
    return found


def measure(
    workload: Workload,
    dtype: str,
    *,
    repeats: int = 5,
    others: Sequence[Callable[[Sequence[tuple[int, int, int]], str], dict[str, float]]] = (),
) -> Ceilings:
    """Ceilings of this device for this workload, the best over all frameworks.

    Args:
      others: further frameworks' measurements at (shapes, dtype).
    """
    shapes = matmul_shapes(workload)
    found = jax_ceilings(shapes, dtype, repeats=repeats)
    for other in others:
        found |= other(shapes, dtype)
    matmul = max(rate for name, rate in found.items() if " matmul " in name)
    bandwidth = max(rate for name, rate in found.items() if " matmul " not in name)
    return Ceilings(matmul, bandwidth, dtype, found)

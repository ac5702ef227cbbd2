"""Room for jobs: the cores or devices of this machine, dealt out so that nothing is oversubscribed."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from rlhf_jax.runtime.files import RunError


class Slot(NamedTuple):
    """Room for one job at a time."""

    cpus: frozenset[int] | None
    """Cores its processes may use; None where the system cannot say."""
    environment: Mapping[str, str]
    """Added to the environment of its jobs."""


def find_slots(workers: int | None) -> list[Slot]:
    """One slot a core on a CPU, one a device on NVIDIA GPUs, one in all on other accelerators.

    XLA sizes its thread pool by the cores the process may use, so cores that are shared out are not oversubscribed.

    Args:
      workers: how many slots at most; on a CPU the cores are dealt out to so many. None takes all there are.
    Raises: RunError for fewer than one.
    """
    if workers is not None and workers < 1:
        raise RunError(f"--workers {workers}: at least one is needed")
    backend, n_devices = _backend()
    if backend == "gpu":
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = named.split(",") if named else [str(index) for index in range(n_devices)]
        return [Slot(None, {"CUDA_VISIBLE_DEVICES": device}) for device in devices[:workers]]
    if backend != "cpu":
        return [Slot(None, {})]
    if not hasattr(os, "sched_getaffinity"):
        return [Slot(None, {})] * (workers or os.cpu_count() or 1)
    cores = sorted(os.sched_getaffinity(0))
    n_slots = workers or len(cores)
    return [Slot(frozenset(cores[index::n_slots] or [cores[index % len(cores)]]), {}) for index in range(n_slots)]


def _backend() -> tuple[str, int]:
    """JAX's backend and its devices, asked in another process: this one must hold no device."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return "cpu", 1
    question = "import jax; print(jax.default_backend(), jax.local_device_count())"
    asked = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        raise RunError(f"JAX finds no device to work on: {asked.stderr.strip().splitlines()[-1]}")
    backend, count = asked.stdout.split()
    return backend, int(count)


@contextlib.contextmanager
def on_cores(cpus: frozenset[int] | None) -> Iterator[None]:
    """A process started inside the block inherits the cores."""
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)

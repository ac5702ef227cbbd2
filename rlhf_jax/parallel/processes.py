"""Several processes as one run: joining, agreeing, and doing what only one of them may do.

All processes run the same program on the same numbers. Process 0 leads: it alone renames and deletes shared files.
With one process every function here returns at once and touches no device.
"""

import dataclasses
import os
import sys
import threading
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from rlhf_jax.ranges import Range, check_numbers, option

_HEARTBEAT_SECONDS = 40
"""Silence of a process after which the others are told that it is gone; the runtime's own 100 s are long to stare at."""
_LOST = ("gloo", "by peer", "heartbeat", "coordination service", "barrier", "socket closed")


class LeadError(RuntimeError):
    """Process 0 could not do what all wait for; its own message says why."""


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """Who takes part; the default is one process, alone."""

    coordinator: str | None = None
    """HOST:PORT of process 0, the same on all."""
    count: Annotated[int, Range("[1, 65_536]")] = 1
    """Processes in all."""
    index: Annotated[int, Range("[0, 65_535]")] = 0
    """Which of them this is, from 0."""
    detect: bool = False
    """Read all of this from the surroundings: SLURM, a TPU pod, GKE, Open MPI."""
    wait_seconds: Annotated[int, Range("[1, 86_400]")] = 120
    """How long to wait at the start until all processes are there."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"{option(self, 'index')} {self.index}: there are {option(self, 'count')} {self.count} processes, the first has "
                "the index 0"
            )
        if self.count > 1 and self.coordinator is None and not self.detect:
            raise ValueError(
                f"{option(self, 'count')} {self.count} needs {option(self, 'coordinator')} HOST:PORT, or "
                f"{option(self, 'detect')}"
            )


def join(config: ProcessConfig) -> None:
    """Connects this process with the others, and waits for them; call before anything asks for devices.

    Says what it waits for; ends the process with code 1 where they have not come in time, because the runtime would end it
    with a stack of its own.
    """
    if config.count == 1 and not config.detect:
        return
    # Its own SIGTERM handler would take the signal from ours, which saves and exits with code 75.
    jax.config.update("jax_enable_preemption_service", False)
    others = "those the surroundings name" if config.detect else f"{config.count} at {config.coordinator}"
    who = "a process" if config.detect else f"process {config.index}"
    _tell(f"{who} waits until all are there ({others}), {config.wait_seconds} s at most")

    def give_up() -> None:
        _tell(
            f"error: {who} waited {config.wait_seconds} s and not all processes came ({others}): start all of them with the same "
            "--processes.coordinator and --processes.count and another --processes.index each, or raise --processes.wait-seconds"
        )
        os._exit(1)

    watch = threading.Timer(config.wait_seconds, give_up)
    watch.daemon = True
    watch.start()
    # The runtime's own limit comes later than ours.
    limits = {
        "initialization_timeout": 2 * config.wait_seconds + 60,
        "heartbeat_timeout_seconds": _HEARTBEAT_SECONDS,
    }
    try:
        if config.detect:
            jax.distributed.initialize(**limits)
        else:
            jax.distributed.initialize(config.coordinator, config.count, config.index, **limits)
    finally:
        watch.cancel()


def _tell(text: str) -> None:
    print(f"[rlhf_jax] {text}", file=sys.stderr, flush=True)


def lost(error: BaseException) -> bool:
    """Whether the error says that another process has gone in the middle of a collective or a barrier."""
    return any(sign in str(error).lower() for sign in _LOST)


def several() -> bool:
    """Whether there is more than one process."""
    return jax.process_count() > 1


def leads() -> bool:
    """Whether this is process 0."""
    return jax.process_index() == 0


def any_of(flag: bool) -> bool:
    """Whether `flag` holds on any process; all must call it, in the same order."""
    if not several():
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def from_lead(numbers: dict[str, float]) -> dict[str, float]:
    """The lead's numbers, so that decisions made of them are the same everywhere."""
    if not several():
        return numbers
    names = sorted(numbers)
    # As bits: without 64-bit types a double would be rounded on the way.
    bits = np.array([numbers[name] for name in names], np.float64).view(np.uint32)
    agreed = np.asarray(multihost_utils.broadcast_one_to_all(bits), np.uint32).view(np.float64)
    return {name: float(value) for name, value in zip(names, agreed, strict=True)} if names else {}


def wait(name: str, *, seconds: int = 3600) -> None:
    """Until every process has come here; over the coordinator, no device takes part."""
    if several():
        multihost.get_barrier_sync_fn()(key=name, timeout_ms=1000 * seconds)


def together(program: Any, name: str) -> Any:
    """A jitted function that all processes compile before any of them runs it.

    A collective waits for its partners half a minute at most on CPUs (gloo), and compiling can take longer than that.
    """
    if not several():
        return program
    compiled: dict[Any, Any] = {}

    def call(*arguments: Any) -> Any:
        shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), arguments)
        key = (jax.tree.structure(arguments), tuple(jax.tree.leaves(shapes)))
        if key not in compiled:
            compiled[key] = program.lower(*arguments).compile()
            wait(f"rlhf_jax/{name}/{len(compiled)}")
        return compiled[key](*arguments)

    return call


def lead_does(work: Callable[[], None]) -> None:
    """`work()` on the lead alone; all return when it is done.

    Raises: what `work` raised, on the lead; LeadError on the others.
    """
    problem: Exception | None = None
    if leads():
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised again once the others know
            problem = error
    failed = any_of(problem is not None)
    if problem is not None:
        raise problem
    if failed:
        raise LeadError("process 0 failed; its message says why")


def fetch(tree: Any) -> Any:
    """The whole of every array on this process's first device, free of any mesh; typed keys included."""
    return jax.tree.map(_fetch, tree)


def _fetch(leaf: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_fetch(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
    if not leaf.is_fully_addressable and not leaf.is_fully_replicated:
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return jnp.asarray(np.asarray(leaf))

"""Starts one experiment as several processes of this machine: a rehearsal of a cluster's start.

    python tools/launch_local.py 2 experiments/ppo_redial.py debug --run-dir runs/two --mesh.data 2

Every process gets the command with `--processes.*` added. On a CPU each has one device (more with
`XLA_FLAGS=--xla_force_host_platform_device_count=N`); on GPUs process i sees GPU i alone. A signal is passed on to all;
when one process fails the others are ended, and the exit code is the first that is not 0.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from types import FrameType

GRACE_SECONDS = 20.0
"""Time the others have to notice that one has failed, before they are killed (`jax.distributed` catches SIGTERM)."""


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(count: int, command: list[str]) -> list[subprocess.Popen[bytes]]:
    """All processes, the coordinator first."""
    where = ["--processes.coordinator", f"localhost:{free_port()}", "--processes.count", str(count)]
    started = []
    for index in range(count):
        own = {"CUDA_VISIBLE_DEVICES": str(index)} if shutil.which("nvidia-smi") else {}
        arguments = [sys.executable, *command, *where, "--processes.index", str(index)]
        started.append(subprocess.Popen(arguments, env=os.environ | own))
    return started


def wait(started: list[subprocess.Popen[bytes]]) -> int:
    """Waits for all; the first exit code that is not 0, or 0."""
    first, deadline = 0, None
    # All are asked each time: the first may still run when another has failed.
    while None in (codes := [process.poll() for process in started]):
        failed = [code for code in codes if code not in (None, 0)]
        if failed and deadline is None:
            first, deadline = failed[0], time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            for process in started:
                process.kill()
        time.sleep(0.1)
    return first or next((process.returncode for process in started if process.returncode), 0)


def main(arguments: list[str]) -> int:
    """Starts, passes signals on, waits."""
    if len(arguments) < 2 or not arguments[0].isdecimal() or int(arguments[0]) < 1:
        print(__doc__, file=sys.stderr)
        return 2
    started = start(int(arguments[0]), arguments[1:])

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        for process in started:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    return wait(started)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

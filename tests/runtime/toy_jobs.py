"""Runs two jobs that say when they begin and end, as a process that a test can kill: `toy_jobs.py FOLDER SECONDS`."""

import sys
from pathlib import Path

from rlhf_jax.runtime.job_slots import Slot
from rlhf_jax.runtime.jobs import Job, run_jobs

WORK = """
import signal, sys, time
book, name, seconds = open(sys.argv[1], "a", buffering=1), sys.argv[2], float(sys.argv[3])
def save(number, frame):
    book.write(name + " saved\\n")
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
book.write(name + " begins\\n")
time.sleep(seconds)
book.write(name + " ends\\n")
"""


def jobs(folder: Path, seconds: float) -> list[Job]:
    """A job and one that needs it."""
    command = (sys.executable, "-c", WORK, str(folder / "book"))
    return [
        Job("first", (*command, "first", str(seconds))),
        Job("second", (*command, "second", "0"), needs=("first",)),
    ]


def main(folder: Path, seconds: float) -> int:
    """75 where it was interrupted."""
    outcome = run_jobs(jobs(folder, seconds), [Slot(None, {})] * 2, folder)
    return 75 if outcome.interrupted else len(outcome.failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))

"""What a start costs: the command `ppo_redial.py redial --data.store` from the files to its first supervised step.

The command is the one that people type, with a network so small that the data are what is measured. It is asked to stop as soon as
its first step is saved; what was kept in the store says by its times how long each part took.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_SCRIPT = Path(__file__).resolve().parents[1] / "ppo_redial.py"
NETWORK = ("--model.n-layer", "1", "--model.n-embd", "32", "--model.n-head", "2")
"""One block of width 32: its compilation takes some seconds, the same at every size."""
STOP = ("--sft.saves-per-epoch", "1000000", "--trackers")
"""Saved after every step, so that the first one is seen from outside; no TensorBoard."""


def first_step(folder: Path, store: Path, run_dir: Path, options: Sequence[str] = NETWORK) -> dict[str, float]:
    """Seconds by the clock from the command to its first supervised step, and what the process took.

    Args:
      folder: of the data, in ReDial's format.
      store: `--data.store`; one that holds the data already makes this a second start.
      run_dir: of the run; must not exist.
      options: of the command.
    Returns: `start_seconds`; `cpu_seconds` of all threads and `peak_mb`, the most memory that was held, mapped files included. Where
      the store was made: `read_seconds` (the interpreter's start in it), `vocabulary_seconds`, `texts_seconds` and
      `step_seconds`, which add up.
    Raises: ValueError with the end of its words where the command failed.
    """
    if run_dir.exists():
        raise ValueError(f"{run_dir}: a start needs a run directory of its own")
    known = set(store.rglob("*"))
    command = [
        sys.executable,
        str(_SCRIPT),
        "redial",
        "--data.dir",
        folder,
        "--data.store",
        store,
        "--run-dir",
        run_dir,
    ]
    log = run_dir.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    began, clock = time.time(), time.monotonic()
    with log.open("wb") as words:
        process = subprocess.Popen([*map(str, command), *options, *STOP], stdout=words, stderr=words)
        try:
            while not list(run_dir.glob("checkpoints/sft/[0-9]*")):
                if process.poll() is not None:
                    raise ValueError(f"{folder} was not started:\n{log.read_text(errors='replace').strip()[-1500:]}")
                time.sleep(0.05)
            seconds = time.monotonic() - clock
            process.send_signal(signal.SIGTERM)
            _, _, usage = os.wait4(process.pid, 0)
            process.returncode = 75
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
    found = {
        "start_seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 2**10,
    }
    parts = _parts(store, known)
    if parts:
        ends = [began, *parts.values(), began + seconds]
        names = [*parts, "step"]
        found |= {f"{name}_seconds": ends[n + 1] - ends[n] for n, name in enumerate(names)}
    return found


def _parts(store: Path, known: set[Path]) -> dict[str, float]:
    """When each part of the store was sealed, by what it is, in order; empty where it was there before."""
    names = {"dialogues": "read", "vocabulary": "vocabulary", "texts": "texts"}
    seals = [path for path in store.glob("*/*/sealed.json") if path not in known]
    found = {names[path.parent.name.split("-")[0]]: path.stat().st_mtime for path in seals}
    return dict(sorted(found.items(), key=lambda one: one[1]))

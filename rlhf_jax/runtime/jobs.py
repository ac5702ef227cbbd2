"""Many commands over the cores or devices at hand: each when what it needs is there, each once, and a kill loses nothing.

A job is a command in a process of its own. What is done stands in `jobs/NAME.json` of the folder, what it said in
`logs/NAME.log`. A job that was killed is started again and continues by itself, if its command can.

A process that outlives this one (after a SIGKILL) still holds `jobs/NAME.lock`, which it inherited: the next start waits
for it instead of working against it.
"""

import dataclasses
import fcntl
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rlhf_jax.runtime.files import DamagedFileError, notice, read_object, write_json
from rlhf_jax.runtime.interrupts import stop_signals
from rlhf_jax.runtime.job_slots import Slot, on_cores

POLL_SECONDS = 0.2
SAVE_SECONDS = 180.0
"""How long a job that was asked to stop may take to finish its update and save."""
_LINE_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Job:
    """One command and what must be done before it."""

    name: str
    """Names its files; letters, digits, `-`, `_` and `.`."""
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    """Names of jobs."""
    kind: str = ""
    """Jobs of one kind take about the same time."""
    expected_seconds: float = 600.0
    """A guess, for the remaining time, until a job of the kind is done."""
    makes: Path | None = None
    """A file or folder without which the job is not done, whatever was noted."""


class Outcome(NamedTuple):
    """What became of the jobs."""

    seconds: dict[str, float]
    """Done, now or before, by name."""
    failed: dict[str, str]
    """Name to exit code and log, or to the job it waited for in vain."""
    interrupted: bool
    """Asked to stop before the end; the same call continues."""


class _Running(NamedTuple):
    job: Job
    process: "subprocess.Popen[bytes] | None"
    """None: started by an earlier call, which was killed."""
    lock: int
    begun: float


def run_jobs(
    jobs: Sequence[Job], slots: Sequence[Slot], folder: Path, *, environment: Mapping[str, str] | None = None
) -> Outcome:
    """Runs the jobs, in their order as far as their needs and the slots allow; those done before are not run again, unless
    what they made is gone or something they need was done after them.

    A job that fails takes with it those that need it, and no other. SIGTERM and SIGINT are passed on; the jobs save, and
    the outcome says that they were interrupted. A second signal does not wait.

    Args:
      jobs: names must differ.
      folder: keeps `jobs/` and `logs/`.
      environment: added to the environment of every job.
    Raises: ValueError for a name that occurs twice or a need that no job (or only a later one) meets.
    """
    _check(jobs)
    board = _Board(jobs, slots, folder, environment or {})
    with stop_signals() as stop:
        try:
            while board.open_jobs() and not stop.is_set():
                board.collect()
                board.start()
                board.show()
                time.sleep(POLL_SECONDS)
            interrupted = bool(board.open_jobs())
            board.stop()
        finally:
            board.kill()
    return Outcome(board.seconds, board.failed, interrupted)


def _check(jobs: Sequence[Job]) -> None:
    known: set[str] = set()
    for job in jobs:
        if job.name in known or not job.name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise ValueError(f"job {job.name!r}: the name occurs twice, or is no name for a file")
        if missing := set(job.needs) - known:
            raise ValueError(f"job {job.name!r} needs {sorted(missing)}, which no job before it is called")
        known.add(job.name)


class _Board:
    """Which jobs are waiting, running, done and failed."""

    def __init__(
        self, jobs: Sequence[Job], slots: Sequence[Slot], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self._jobs, self._slots, self._folder, self._environment = jobs, slots, folder, environment
        for name in ("jobs", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._running: dict[int, _Running] = {}
        self.seconds: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        ended: dict[str, float] = {}
        for job in jobs:
            marker = self._marker(job)
            if not marker.exists() or (job.makes is not None and not job.makes.exists()):
                continue
            try:
                stored, at = read_object(marker, "command", "seconds"), marker.stat().st_mtime
            except DamagedFileError as error:
                notice(f"{error}; {job.name} is done again")
                continue
            if stored["command"] == list(job.command) and all(ended.get(name, math.inf) <= at for name in job.needs):
                self.seconds[job.name], ended[job.name] = stored["seconds"], at
        self._printed, self._terminal = 0.0, sys.stderr.isatty()
        self._say(
            f"{len(jobs)} jobs, {len(self.seconds)} done before, {len(slots)} at a time; logs in {folder / 'logs'}"
        )

    def _marker(self, job: Job) -> Path:
        return self._folder / "jobs" / f"{job.name}.json"

    def _log(self, job: Job) -> Path:
        return self._folder / "logs" / f"{job.name}.log"

    def open_jobs(self) -> list[Job]:
        """Jobs that are neither done nor failed."""
        return [job for job in self._jobs if job.name not in self.seconds and job.name not in self.failed]

    def start(self) -> None:
        """Fills free slots with the first jobs whose needs are met."""
        busy = {running.job.name for running in self._running.values()}
        for slot in range(len(self._slots)):
            if slot in self._running:
                continue
            ready = (
                job for job in self.open_jobs() if job.name not in busy and all(n in self.seconds for n in job.needs)
            )
            if (job := next(ready, None)) is None:
                return
            self._running[slot] = self._started(job, self._slots[slot])
            busy.add(job.name)

    def _started(self, job: Job, slot: Slot) -> _Running:
        lock = os.open(self._folder / "jobs" / f"{job.name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        if not _taken(lock):
            self._say(f"{job.name}: still at work since an earlier start, waiting for it")
            return _Running(job, None, lock, time.monotonic())
        self._say(f"{job.name}: starts")
        with open(self._log(job), "ab") as log, on_cores(slot.cpus):
            process = subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment, **slot.environment},
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C in the terminal is for this process, which passes it on.
            )
        return _Running(job, process, lock, time.monotonic())

    def collect(self, *, stopping: bool = False) -> None:
        """Takes note of what has ended; a job that was asked to stop and did is neither done nor failed."""
        for slot, running in list(self._running.items()):
            job, seconds = running.job, time.monotonic() - running.begun
            if running.process is None:
                if stopping or _taken(running.lock):  # Ended, nobody knows how: started again it does what is left.
                    self._free(slot)
                continue
            code = running.process.poll()
            if code is None:
                continue
            self._free(slot)
            if code == 0:
                self.seconds[job.name] = seconds
                write_json(self._marker(job), {"command": list(job.command), "seconds": round(seconds, 1)})
                self._say(f"{job.name}: done in {spelled(seconds)}")
            elif not stopping:
                self._fail(job, f"exit code {code}, see {self._log(job)}")

    def _free(self, slot: int) -> None:
        os.close(self._running.pop(slot).lock)

    def _fail(self, job: Job, reason: str) -> None:
        self.failed[job.name] = reason
        self._say(f"{job.name}: FAILED, {reason}")
        for other in self.open_jobs():
            if job.name in other.needs:
                self._fail(other, f"needs {job.name}, which failed")

    def stop(self) -> None:
        """Asks what runs to save and end, and waits for it."""
        asked = [(running.job, running.process) for running in self._running.values() if running.process is not None]
        for job, process in asked:
            self._say(f"{job.name}: asked to save and stop")
            process.terminate()
        deadline = time.monotonic() + SAVE_SECONDS
        while any(process.poll() is None for _, process in asked) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self.collect(stopping=True)

    def kill(self) -> None:
        """Ends at once what still runs."""
        for slot, running in list(self._running.items()):
            if running.process is not None:
                running.process.kill()
                running.process.wait()
            self._free(slot)

    def show(self) -> None:
        """One line: how far, what runs, how long."""
        now = time.monotonic()
        if now - self._printed < (1.0 if self._terminal else _LINE_SECONDS):
            return
        self._printed = now
        line = self._line()
        if self._terminal:
            print(f"\r\x1b[K{line[: os.get_terminal_size(sys.stderr.fileno()).columns - 1]}", end="", file=sys.stderr)
        else:
            print(line, file=sys.stderr)
        sys.stderr.flush()

    def _line(self) -> str:
        running = ", ".join(one.job.name for one in self._running.values())
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return (
            f"{len(self.seconds)}/{len(self._jobs)} done{failed}, about {spelled(self._seconds_left())} left: {running}"
        )

    def _say(self, text: str) -> None:
        print(f"{chr(13) + chr(27) + '[K' if self._terminal else ''}{text}", file=sys.stderr, flush=True)

    def _seconds_left(self) -> float:
        now = time.monotonic()
        spent = {running.job.name: now - running.begun for running in self._running.values()}
        left = [job for job in self._jobs if job.name not in self.failed]
        return seconds_left(left, self.seconds, spent, len(self._slots))


def seconds_left(jobs: Sequence[Job], done: Mapping[str, float], spent: Mapping[str, float], n_slots: int) -> float:
    """Remaining time: the work left over the slots, and no less than the longest job of it.

    A job takes as long as those of its kind took; where none is done, as long as was guessed, times what guesses have been
    wrong by so far.

    Args:
      jobs: all that are done or to be done.
      done: seconds by name.
      spent: seconds so far of those at work, by name.
    Examples:
      >>> seconds_left([Job("a", (), kind="x"), Job("b", (), kind="x"), Job("c", (), kind="y")], {"a": 60.0}, {"b": 20.0}, 2)
      60.0
    """
    alike: dict[str, list[float]] = {}
    guessed = 0.0
    for job in jobs:
        if job.name in done:
            alike.setdefault(job.kind or job.name, []).append(done[job.name])
            guessed += job.expected_seconds
    pace = sum(map(sum, alike.values())) / guessed if guessed else 1.0
    left = [0.0]
    for job in jobs:
        if job.name not in done:
            known = alike.get(job.kind or job.name)
            whole = sum(known) / len(known) if known else job.expected_seconds * pace
            left.append(max(whole - spent.get(job.name, 0.0), 0.0))
    return max(sum(left) / n_slots, *left)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def spelled(seconds: float) -> str:
    """A length of time for people.

    Examples:
      >>> spelled(42.0), spelled(240.0), spelled(8000.0)
      ('42 s', '4 min', '2 h 13 min')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

"""Jobs over slots: needs, failures, what is done, and kills of the runner."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_jobs

from rlhf_jax.runtime import jobs as module
from rlhf_jax.runtime.files import RunError, read_json
from rlhf_jax.runtime.job_slots import Slot, find_slots
from rlhf_jax.runtime.jobs import Job, run_jobs, seconds_left

ONE = [Slot(None, {})]


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)


def python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", code, *arguments)


def writing(book: Path, line: str, code: int = 0) -> tuple[str, ...]:
    return python(f"import sys; open({str(book)!r}, 'a').write({line!r} + '\\n'); print('said'); sys.exit({code})")


def test_order_needs_and_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = tmp_path / "book"
    wanted = [
        Job("a", writing(book, "a")),
        Job("b", writing(book, "b"), needs=("a",)),
        Job("c", writing(book, "c"), needs=("a", "b")),
    ]
    outcome = run_jobs(wanted, ONE * 3, tmp_path)
    assert book.read_text().split() == ["a", "b", "c"]
    assert set(outcome.seconds) == {"a", "b", "c"} and not outcome.failed and not outcome.interrupted
    assert (tmp_path / "logs" / "b.log").read_text() == "said\n"
    assert read_json(tmp_path / "jobs" / "c.json")["command"] == list(wanted[2].command)
    # Nothing is done twice; a job whose command has changed is another job.
    changed = Job("c", writing(book, "other"), needs=("a", "b"))
    again = run_jobs([*wanted[:2], changed], ONE, tmp_path)
    assert book.read_text().split() == ["a", "b", "c", "other"] and set(again.seconds) == {"a", "b", "c"}
    assert "3 jobs, 2 done before, 1 at a time" in capsys.readouterr().err


def test_what_was_lost_is_made_again_and_with_it_what_rests_on_it(tmp_path: Path) -> None:
    book, made = tmp_path / "book", tmp_path / "made"
    making = python(f"open({str(made)!r}, 'a'); open({str(book)!r}, 'a').write('a\\n')")
    wanted = [Job("a", making, makes=made), Job("b", writing(book, "b"), needs=("a",)), Job("c", writing(book, "c"))]
    run_jobs(wanted, ONE, tmp_path)
    run_jobs(wanted, ONE, tmp_path)
    assert book.read_text().split() == ["a", "b", "c"]
    made.unlink()
    run_jobs(wanted, ONE, tmp_path)
    assert book.read_text().split() == ["a", "b", "c", "a", "b"]


def test_a_failed_job_takes_only_its_own_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = tmp_path / "book"
    wanted = [
        Job("bad", writing(book, "bad", code=3)),
        Job("below", writing(book, "below"), needs=("bad",)),
        Job("lowest", writing(book, "lowest"), needs=("below",)),
        Job("good", writing(book, "good")),
    ]
    outcome = run_jobs(wanted, ONE, tmp_path)
    assert book.read_text().split() == ["bad", "good"] and set(outcome.seconds) == {"good"}
    assert outcome.failed["bad"] == f"exit code 3, see {tmp_path / 'logs' / 'bad.log'}"
    assert outcome.failed["below"] == "needs bad, which failed" and set(outcome.failed) == {"bad", "below", "lowest"}
    assert "bad: FAILED, exit code 3" in capsys.readouterr().err
    # The next start tries again what failed, and only that.
    mended = [Job("bad", writing(book, "mended")), *wanted[1:]]
    assert not run_jobs(mended, ONE, tmp_path).failed
    assert book.read_text().split() == ["bad", "good", "mended", "below", "lowest"]


def test_slots_have_their_cores_and_environment(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    say = "import os; print(sorted(os.sched_getaffinity(0)), os.environ['PLACE'], os.environ['ALL'])"
    slots = [Slot(frozenset({core}), {"PLACE": str(core)}) for core in cores[:2]]
    # The jobs meet, so that they run side by side.
    meet = "import time, pathlib; p = pathlib.Path({!r}); p.joinpath('at-{}').touch()\n"
    wait = f"while len(list(p.glob('at-*'))) < {len(slots)}: time.sleep(0.01)\n"
    wanted = [Job(str(n), python(meet.format(str(tmp_path), n) + wait + say)) for n in range(len(slots))]
    assert not run_jobs(wanted, slots, tmp_path, environment={"ALL": "x"}).failed
    said = {(tmp_path / "logs" / f"{n}.log").read_text() for n in range(len(slots))}
    assert said == {f"[{core}] {core} x\n" for core in cores[:2]}
    assert sorted(os.sched_getaffinity(0)) == cores


def test_cores_are_dealt_out_without_overlap() -> None:
    cores = os.sched_getaffinity(0)
    every = find_slots(None)
    assert len(every) == len(cores) and all(slot.cpus is not None and len(slot.cpus) == 1 for slot in every)
    assert frozenset().union(*(slot.cpus or () for slot in every)) == cores
    (alone,) = find_slots(1)
    assert alone.cpus == cores
    assert len(find_slots(2 * len(cores))) == 2 * len(cores)
    with pytest.raises(RunError, match="--workers 0"):
        find_slots(0)


def test_remaining_time() -> None:
    wanted = [Job(name, (), kind=name[0], expected_seconds=100.0) for name in ("a1", "a2", "a3", "b1")]
    assert seconds_left(wanted, {}, {}, 1) == 400.0
    # What is alike takes as long; what is guessed is off by as much as the guesses so far: 50 of 100.
    assert seconds_left(wanted, {"a1": 50.0}, {}, 1) == 150.0
    assert seconds_left(wanted, {"a1": 50.0}, {"a2": 30.0}, 2) == 60.0
    assert seconds_left(wanted, {"a1": 50.0, "a2": 50.0, "a3": 80.0}, {"b1": 1000.0}, 2) == 0.0
    assert seconds_left(wanted[:1], {}, {}, 8) == 100.0


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([Job("a", ()), Job("a", ())], "job 'a': the name occurs twice"),
        ([Job("a/b", ())], "job 'a/b'"),
        ([Job("a", (), needs=("b",)), Job("b", ())], r"job 'a' needs \['b'\]"),
    ],
)
def test_jobs_that_make_no_sense(tmp_path: Path, wanted: list[Job], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_jobs(wanted, ONE, tmp_path)


def start(folder: Path, repository: Path, seconds: float) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, str(toy_jobs.__file__), str(folder), str(seconds)],
        env=os.environ | {"PYTHONPATH": str(repository)},
    )


def wait_for(book: Path, line: str) -> None:
    deadline = time.monotonic() + 120
    while not (book.exists() and line in book.read_text()):
        assert time.monotonic() < deadline, f"{book} never said {line!r}"
        time.sleep(0.02)


def test_asked_to_stop_it_lets_jobs_save_and_goes_on(tmp_path: Path, repository: Path) -> None:
    process = start(tmp_path, repository, 60.0)
    wait_for(tmp_path / "book", "first begins")
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 75
    assert (tmp_path / "book").read_text().splitlines() == ["first begins", "first saved"]
    assert not list((tmp_path / "jobs").glob("*.json"))
    assert not run_jobs(toy_jobs.jobs(tmp_path, 0.0), ONE, tmp_path).failed
    assert (tmp_path / "book").read_text().splitlines()[2:] == [
        "first begins",
        "first ends",
        "second begins",
        "second ends",
    ]


@pytest.mark.slow
def test_a_killed_runner_leaves_no_two_at_the_same_job(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(tmp_path, repository, 2.0)
    wait_for(tmp_path / "book", "first begins")
    process.kill()
    process.wait()
    # The job lives on; the next start waits for its end before it begins the same one.
    assert not run_jobs(toy_jobs.jobs(tmp_path, 0.0), ONE, tmp_path).failed
    lines = (tmp_path / "book").read_text().splitlines()
    assert lines == ["first begins", "first ends", "first begins", "first ends", "second begins", "second ends"]
    assert "first: still at work since an earlier start" in capsys.readouterr().err

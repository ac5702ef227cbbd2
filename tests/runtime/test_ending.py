"""How processes end before their time: in words, and without waiting for one another."""

import os
import signal
import time
from collections.abc import Iterator

import jax
import pytest

import quiet_start
from rlhf_jax.parallel import processes
from rlhf_jax.parallel.processes import LeadError, ProcessConfig
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.interrupts import ends_without_the_others


class Left(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def codes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    found: list[int] = []

    def leave(code: int) -> None:
        found.append(code)
        raise Left

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(processes, "leads", lambda: False)
    yield found


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"),
            "another process of this run has gone",
        ),
        (
            TimeoutError("Timed out while waiting for async_write_complete barrier."),
            "another process of this run has gone",
        ),
        (LeadError("process 0 failed; its message says why"), "error: process 0 failed"),
        (RunError("disk full"), "error: disk full"),
        (AssertionError("a fault of ours"), "Traceback"),
    ],
)
def test_a_process_of_several_leaves_at_once_and_says_why(
    codes: list[int], error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Left), ends_without_the_others():
        raise error
    assert codes == [1]
    text = capsys.readouterr().err
    assert said in text and ("Traceback" in text) == (said == "Traceback")


def test_a_stop_that_all_agreed_on_ends_as_usual(codes: list[int]) -> None:
    with pytest.raises(SystemExit, match="75"), ends_without_the_others():
        raise SystemExit(75)
    assert codes == []


def test_who_waits_alone_says_for_whom_and_gives_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)

    def nobody_comes(*_: object, initialization_timeout: int, **__: object) -> None:
        assert initialization_timeout > 1  # The runtime's limit, which ends in a stack, must not come first.
        before = capsys.readouterr().err
        assert "process 1 waits until all are there (2 at host:1), 1 s at most" in before
        deadline = time.monotonic() + 20
        while not codes and time.monotonic() < deadline:
            time.sleep(0.02)

    monkeypatch.setattr(jax.distributed, "initialize", nobody_comes)
    processes.join(ProcessConfig("host:1", count=2, index=1, wait_seconds=1))
    assert codes == [1]
    assert "process 1 waited 1 s and not all processes came" in capsys.readouterr().err


def test_a_signal_while_importing_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    # Imported by a test it has left the signals alone.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    assert quiet_start._leave not in before.values()
    try:
        signal.signal(signal.SIGINT, quiet_start._leave)
        signal.raise_signal(signal.SIGINT)
        assert codes == [75]
        assert capfd.readouterr().err == "[rlhf_jax] stopped by SIGINT before anything began\n"
        quiet_start.end()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Starting several processes: when one fails, whichever it is, the others are ended and its exit code is told."""

import subprocess
import sys
import time

import pytest

import launch_local


def process(code: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-S", "-E", "-c", code])


@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_ends_the_others(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_local, "GRACE_SECONDS", 0.2)
    started = [process("import time; time.sleep(60)"), process("raise SystemExit(3)")]
    begun = time.monotonic()
    assert launch_local.wait(started if failing else started[::-1]) == 3
    assert time.monotonic() - begun < 30
    assert started[0].returncode == -9

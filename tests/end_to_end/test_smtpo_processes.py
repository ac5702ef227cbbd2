"""SMTPO by two processes of one device each, from nothing to a report: the numbers of one process on both devices.

With a teacher, and a prior that is told the retriever's order.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhf_jax.reporting.run_report import read_results
from rlhf_jax.runtime.metrics import read_metrics

LIMIT_SECONDS = 900
STAGES = ("sft", "retriever", "reasoning", "sft-simulator", "simulator", "multi_turn-single_turn", "multi_turn-smtpo")
CLOCKS = ("seconds_per_update", "seconds/outside_share")


OPTIONS = ("--mesh.data", "2", "--retriever.in-prior", "--sft.teacher-weight", "1", "--sft.teacher-items", "5")


def ran(repository: Path, folder: Path, programs: Path, devices: int, commands: Sequence[Sequence[str]]) -> None:
    """Starts `smtpo_redial.py debug` once a command, all at the same time; every one must end well."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(programs),
    }
    script = str(repository / "experiments" / "smtpo_redial.py")
    logs = [folder / f"{devices}-{number}.log" for number in range(len(commands))]
    started = []
    for log, command in zip(logs, commands, strict=True):
        with log.open("w") as file:
            arguments = [sys.executable, script, "debug", *OPTIONS, *command]
            started.append(subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT, env=environment))
    try:
        for process in started:
            process.wait(timeout=LIMIT_SECONDS)
    finally:
        # One that hangs in a collective does not hear SIGTERM.
        for process in started:
            process.kill()
    said = "\n\n".join(log.read_text()[-3000:] for log in logs)
    assert [process.returncode for process in started] == [0] * len(started), said


def logged(folder: Path) -> list[dict[str, Any]]:
    """What a process logged, but for its clock."""
    lines = [dict(line) for line in read_metrics(folder / "metrics.jsonl")]
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT_SECONDS)
def test_two_processes_are_one(repository: Path, tmp_path: Path, program_cache: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    together, alone = tmp_path / "together", tmp_path / "alone"
    both = ("--run-dir", str(together), "--processes.coordinator", f"localhost:{port}", "--processes.count", "2")
    ran(repository, tmp_path, program_cache, 1, [(*both, "--processes.index", str(index)) for index in range(2)])
    ran(repository, tmp_path, program_cache, 2, [("--run-dir", str(alone))])
    # Both processes log the same, to the bit; and what one process on two devices logs, to rounding.
    first, second = logged(together / "seed-0"), logged(together / "seed-0" / "processes" / "1")
    assert first == second
    expected = logged(alone / "seed-0")
    assert [line["stage"] for line in first] == [line["stage"] for line in expected]
    assert set(STAGES) <= {line["stage"] for line in first}
    for ours, theirs in zip(first, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == (pytest.approx(value, abs=1e-3) if isinstance(value, float) else value), (name, theirs)
    # One report, whose values are those of one process.
    ours, theirs = (
        {(one.protocol, one.split, one.name): one.value for one in read_results(run)} for run in (together, alone)
    )
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert (together / "report.md").exists()

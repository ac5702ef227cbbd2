"""A run that is killed at random moments and started again ends, bit for bit, where an undisturbed one ends."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import toy_stage

from rlhf_jax.runtime.metrics import read_metrics

SCRIPT = Path(toy_stage.__file__)


def logged(folder: Path) -> list[dict]:
    lines = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "seconds_per_update"} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    toy_stage.main(str(folder))
    return folder


@pytest.fixture
def same_end(undisturbed: Path) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        assert (folder / "results.json").read_bytes() == (undisturbed / "results.json").read_bytes()
        assert logged(folder) == logged(undisturbed)
        said = (folder / "samples.jsonl").read_bytes()
        assert said == (undisturbed / "samples.jsonl").read_bytes() and said.count(b"\n") == 2 * 3 * 2

    return check


def kill_somewhere(folder: Path, after_seconds: float) -> None:
    """Starts the script and kills it `after_seconds` after it began to work in the folder."""
    path = os.pathsep.join([str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), "0.05"], stderr=subprocess.PIPE, env=environment
    ) as process:
        process.stderr.readline()  # The first line is written when the first stage starts or continues.
        time.sleep(after_seconds)
        process.kill()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_random_kills_change_no_bit(tmp_path: Path, same_end: Callable[[Path], None]) -> None:
    folder, draw = tmp_path / "run", random.Random(5)
    for _ in range(3):
        kill_somewhere(folder, draw.uniform(0.0, 0.5))
    assert not (folder / "results.json").exists()
    toy_stage.main(str(folder))
    same_end(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_exits_with_75(
    tmp_path: Path, number: signal.Signals, same_end: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as exit_info:
        toy_stage.main(str(folder), 0.0, int(number), 6)
    assert exit_info.value.code == 75
    assert "stopped and saved at step 7 of 12" in capfd.readouterr().err
    assert (folder / "checkpoints" / "sft-first" / "7").is_dir()
    toy_stage.main(str(folder))
    assert "sft-first: continues at step 7 of 12" in capfd.readouterr().err
    same_end(folder)


def test_signal_in_the_last_update_finishes_the_stage_first(tmp_path: Path, same_end: Callable[[Path], None]) -> None:
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as exit_info:
        toy_stage.main(str(folder), 0.0, int(signal.SIGTERM), toy_stage.N_STEPS - 1)
    assert exit_info.value.code == 75
    assert (folder / "checkpoints" / "sft-first" / "done.json").exists()
    assert not (folder / "checkpoints" / "sft-second").exists()
    toy_stage.main(str(folder))
    same_end(folder)


def test_a_finished_run_returns_the_same_state_again(tmp_path: Path, same_end: Callable[[Path], None]) -> None:
    folder = tmp_path / "run"
    toy_stage.main(str(folder))
    (folder / "results.json").unlink()
    toy_stage.main(str(folder))
    same_end(folder)

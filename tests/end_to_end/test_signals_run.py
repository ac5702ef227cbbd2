"""The preset `debug` of the signal study on the real judgements."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_jax.reporting.run_report import read_results


@pytest.mark.slow
def test_debug_measures_every_signal(run_here: Callable[..., tuple[int, str]], data_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, output = run_here("validate_signals.py", "debug", "--data.dir", str(data_dir), "--run-dir", str(run))
    assert code == 0, output
    results = {(result.split, result.system): result for result in read_results(run)}
    assert {split for split, _ in results} == {"redial/uss", "redial/test+validation", "crs-response-ratings"}
    level = results["redial/uss", "VADER level"]
    # Even sixty dialogues show that the user's next words tell how satisfied she is, and the wait does not.
    assert level.interval is not None and level.interval[0] > 0.2 and level.n > 300
    wait = results["redial/test+validation", "latency"]
    assert wait.interval is not None and wait.interval[0] < 0.5 < wait.interval[1]
    report = (run / "report.md").read_text()
    assert "| VADER level | sentiment | **" in report and "(plots/signals.png)" in report
    assert (run / "plots" / "signals.png").read_bytes().startswith(b"\x89PNG")


def test_data_that_are_not_there(run_here: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, output = run_here("validate_signals.py", "--data.dir", str(tmp_path), "--run-dir", str(tmp_path / "run"))
    assert code == 1 and "movies_with_mentions.csv" in output and "Traceback" not in output

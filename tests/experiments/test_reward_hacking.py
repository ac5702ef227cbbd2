"""The preset `debug` of the reward-hacking study: one seed alone, then the study, then a start that finds all done."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

import reward_hacking
from rlhf_jax.evaluation.failure_signatures import SIGNATURES
from rlhf_jax.reporting.run_report import read_results
from rlhf_jax.runtime import metric_names
from rlhf_jax.runtime.files import RunError, read_json
from rlhf_jax.runtime.metrics import read_metrics

SCRIPT = Path(reward_hacking.__file__).resolve()
STAGE = "ppo-kl0_05-length"
USERS = 8


@pytest.fixture(scope="module")
def runs(study_runs: Path, study_cache: Path) -> Path:
    """Where foundation and study lie."""
    return study_runs


@pytest.fixture(scope="module")
def config(runs: Path) -> reward_hacking.Config:
    return reward_hacking.command_line(["debug", "--runs", str(runs), "--run-dir", str(runs / "hacking")])


@pytest.fixture(scope="module")
def finished(config: reward_hacking.Config) -> Path:
    # The seed as `evidence.py` starts it, in a process of its own; what follows reads what it stored.
    folders = ("--runs", str(config.runs), "--run-dir", str(config.run_dir))
    command = [sys.executable, str(SCRIPT), "debug", *folders, "--only-seed", "0"]
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (config.run_dir / "report.md").exists()
    assert reward_hacking.main(config) == config.run_dir / "report.md"
    return config.run_dir


@pytest.mark.slow
def test_the_way_is_measured_from_its_start_to_its_end(finished: Path) -> None:
    lines = [entry for entry in read_metrics(finished / "seed-0" / "metrics.jsonl") if entry["stage"] == STAGE]
    for name in {name for line in lines for name in line if name not in ("stage", "step")}:
        metric_names.check(STAGE, name)
    for metric in ("world/mean_utility", "world/kl_k1", "text/bleu4", "validation/score_raw"):
        assert [line["step"] for line in lines if metric in line] == [1, 1, 2, 3], metric
    assert sum("objective/sentiment_reward_correlation" in line for line in lines) == 3
    # The way begins at its own reference, and leaves it: the start's evaluation stands in the first update's line.
    kl = {(line["step"], "loss" in line): line["world/kl_k3"] for line in lines if "world/kl_k3" in line}
    assert abs(kl[1, True]) < 1e-6 < kl[3, False]
    before = read_json(finished / "seed-0" / "before_learning.json")[STAGE]
    assert set(before) == set(SIGNATURES) and all(len(values) == 3 for values in before.values())


@pytest.mark.slow
def test_results_report_and_figures(finished: Path) -> None:
    found = {result.name: result for result in read_results(finished)}
    assert found["kl0.05+length-sft/mean_utility"].n == USERS and found["kl0.05+length/sqrt_kl"].value >= 0
    assert {f"kl0.05+length/{name}" for name in ("onset_update", "peak_quadratic")} < set(found)
    text = (finished / "report.md").read_text(encoding="utf-8")
    assert sum(line.startswith("- Verdict, KL 0.05 + length: ") for line in text.splitlines()) == 1
    assert "fewer than three: nothing is claimed" in text and "(1 seed: no claim)" in text
    for name in ("along_the_path", "signatures", "ppo"):
        assert f"(plots/{name}.png)" in text
        assert (finished / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    diagnostics = (finished / "seed-0" / "diagnostics.md").read_text(encoding="utf-8")
    assert f"## PPO: {STAGE}" in diagnostics and f"(plots/{STAGE}.png)" in diagnostics


@pytest.mark.slow
def test_a_second_start_measures_nothing(
    finished: Path, config: reward_hacking.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {path: path.stat().st_mtime_ns for path in (finished / "seed-0").rglob("*.npz")}
    assert len(files) == 11  # Four points, answers and users; three repeated answers of the start.
    reward_hacking.main(config)
    assert "seed 0: done before" in capsys.readouterr().err
    assert files == {path: path.stat().st_mtime_ns for path in (finished / "seed-0").rglob("*.npz")}


@pytest.mark.slow
def test_what_is_refused(finished: Path, config: reward_hacking.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="length_free was 12, now 3"):
        reward_hacking.main(dataclasses.replace(config, length_free=3))
    with pytest.raises(RunError, match="no measurements of ppo-kl0_05-length"):
        reward_hacking.hacking_study.gather({7: finished}, config.ways, same_cases=False, replicates=2)
    with pytest.raises(ValueError, match=r"--kl-coefs \(0.1, 0.1\)"):
        dataclasses.replace(config, kl_coefs=(0.1, 0.1))
    assert read_json(finished / "seed-0" / "config.json")["align"]["updates"] == config.updates
    setting = reward_hacking.study_setting(config.setting, config.size, config.data_dir)
    other = dataclasses.replace(setting, ppo=dataclasses.replace(setting.ppo, clip_eps=0.1))
    monkeypatch.setattr(reward_hacking, "study_setting", lambda *_: other)
    with pytest.raises(RunError, match="clip_eps was 0.2, now 0.1"):  # What a size stands for has changed since.
        reward_hacking.main(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"only_seed": 7}, "--only-seed 7 is not one of --seeds"),
        ({"kl_coefs": (-0.1,)}, r"Config.kl_coefs must be in \[0, 1000\]: got -0.1"),
        ({"kl_coefs": ()}, r"--kl-coefs \(\): at least one is needed"),
        ({"length_coef": 0.0}, r"length_coef must be in \(0, 1000\]: got 0.0"),
        ({"batches_before": 2}, r"batches_before must be in \[3, 1000\]: got 2"),
        ({"evaluations": 0}, r"evaluations must be in \[1, "),
        ({"updates": 0}, r"updates must be in \[1, "),
    ],
)
def test_wrong_options_are_refused_before_any_training(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(reward_hacking.Config(), **change)  # pyright: ignore[reportArgumentType]

"""The preset `debug` of the ablation and of the window sweep: from nothing to a report, continued, skipped, refused."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ablate_reward
import sweep_window
from rlhf_jax.assessment.best_of_n import kl_bound
from rlhf_jax.assessment.sampled import load
from rlhf_jax.evaluation.results import Result
from rlhf_jax.reporting.run_report import read_results
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.metrics import read_metrics


@pytest.fixture(scope="module")
def runs(study_runs: Path, study_cache: Path) -> Path:
    """Where the foundation lies that both scripts start from."""
    return study_runs


@pytest.fixture(scope="module")
def ablation(runs: Path) -> ablate_reward.Config:
    config = ablate_reward.command_line(["debug", "--runs", str(runs), "--run-dir", str(runs / "ablation")])
    assert ablate_reward.main(config) == runs / "ablation" / "report.md"
    return config


@pytest.fixture(scope="module")
def sweep(runs: Path, ablation: ablate_reward.Config) -> sweep_window.Config:
    config = sweep_window.command_line(["debug", "--runs", str(runs), "--run-dir", str(runs / "windows")])
    assert sweep_window.main(config) == runs / "windows" / "report.md"
    return config


def by_name(results: list[Result]) -> dict[tuple[str, str, str], Result]:
    return {(r.name, r.protocol, r.split.removeprefix("world/test")): r for r in results}


@pytest.mark.slow
def test_the_ablation_measures_every_system_and_pair(ablation: ablate_reward.Config) -> None:
    results = read_results(ablation.run_dir)
    assert {r.system for r in results} == {
        *("popularity", "copy", "mixture"),
        *("sft", "best_of_2", "full", "engagement", "suggests"),
        *("best_of_2-sft", "full-sft", "engagement-sft", "suggests-sft"),
        *("full-best_of_2", "engagement-best_of_2", "suggests-best_of_2", "full-engagement", "full-suggests"),
    }
    assert all(math.isfinite(result.value) and result.seeds == (0,) for result in results)
    found = by_name(results)
    # Of chosen replies there is a bound, which the report states, and no measurement.
    assert not any(metric.endswith(("best_of_2/kl", "best_of_2/entropy", "-best_of_2/kl")) for metric, *_ in found)
    report = (ablation.run_dir / "report.md").read_text()
    assert f"log n − (n − 1)/n = {kl_bound(2):.2f} nats" in report
    assert "## Reward models" in report and "| shift |" in report
    assert "`suggests` is paid a reward for suggesting anything, in the place of a reward model." in report
    assert found["sft/kl", "sampled", "-sampled"].value == pytest.approx(0, abs=1e-4)
    for name in ("sft", "full", "engagement", "suggests"):
        for metric, protocol, place in (
            ("hr@5", "fresh", ""),
            ("bleu4", "text", ""),
            ("mean_utility", "closed-loop", "-users-greedy"),
        ):
            assert (f"{name}/{metric}", protocol, place) in found
    # It chooses among replies after the ranking: nothing to compare there.
    assert ("best_of_2-sft/hr@5", "full", "") not in found
    assert ("best_of_2-sft/hr@5", "listed", "-sampled") in found
    assert ("best_of_2-sft/mean_utility", "closed-loop", "-users-sampled") in found
    difference = found["full-sft/proxy_score", "sampled", "-sampled"].value
    alone = [found[f"{name}/proxy_score", "sampled", "-sampled"].value for name in ("full", "sft")]
    assert difference == pytest.approx(alone[0] - alone[1], abs=1e-9)


@pytest.mark.slow
def test_best_of_n_earns_more_than_its_first_draw(ablation: ablate_reward.Config) -> None:
    """Its first draw is SFT's reply with the same random numbers; most prices are 0 here, so the proxy must not fall."""
    folder = ablation.run_dir / "seed-0" / "assessments"
    assert load(folder / "best_of_2-sampled.npz").proxy.mean() > load(folder / "sft-sampled.npz").proxy.mean()


@pytest.mark.slow
def test_every_variant_is_paid_by_its_own_signals(ablation: ablate_reward.Config) -> None:
    entries = read_metrics(ablation.run_dir / "seed-0" / "metrics.jsonl")
    assert {entry["stage"] for entry in entries} == {"ppo-full", "ppo-engagement", "ppo-suggests"}
    for entry in entries:
        if entry["stage"] == "ppo-suggests":
            assert entry["objective/score_raw"] == pytest.approx(entry["text/item_share"], abs=1e-6)
            continue
        parts = [entry[f"objective/{name}_raw"] for name in ("engagement", "relevance", "sentiment")]
        paid = np.mean(parts) if entry["stage"] == "ppo-full" else parts[0]
        assert entry["objective/score_raw"] == pytest.approx(paid, abs=1e-4)


@pytest.mark.slow
def test_the_ablations_report_ends_with_verdicts(ablation: ablate_reward.Config) -> None:
    report = (ablation.run_dir / "report.md").read_text()
    verdicts = report[report.index("## Verdicts") :].strip().splitlines()[2:]
    claims = [line.split(":")[0] for line in verdicts]
    assert claims == [
        "- Verdict, full reward above SFT",
        "- Verdict, full reward above engagement alone",
        "- Verdict, full reward above a reward for suggesting anything",
        "- Verdict, full reward above best_of_2",
        "- Verdict, BLEU-4 does not fall under the full reward",
    ]
    assert "higher" not in "".join(verdicts) and "lower" not in "".join(verdicts)  # One seed carries no claim.
    for name in ("ablation", "ppo"):
        assert all((ablation.run_dir / "plots" / f"{name}.{kind}").stat().st_size > 5000 for kind in ("png", "svg"))


@pytest.mark.slow
def test_the_ablation_ranks_without_a_model_too(ablation: ablate_reward.Config) -> None:
    """Popularity and copy, beside the models where those rank and nowhere else."""
    report = (ablation.run_dir / "report.md").read_text()
    recommending, rest = report.split("## Satisfaction and text")
    assert [recommending.count(f"| {name} |") for name in ("popularity", "copy", "mixture")] == [1, 1, 1]
    assert "| popularity |" not in rest
    found = by_name(read_results(ablation.run_dir))
    # `fresh` asks for items not named before; copying can list these only behind all that were named.
    assert found["copy/hr@1", "fresh", ""].value <= found["copy/hr@1", "full", ""].value
    stored = ablation.run_dir / "seed-0" / "assessments" / "copy.npz"
    kept = stored.read_bytes()
    stored.unlink()
    try:
        with pytest.raises(RunError, match=r"seed-0/assessments/copy\.npz is not there"):
            ablate_reward.main(ablation)
    finally:
        stored.write_bytes(kept)


@pytest.mark.slow
def test_what_is_done_is_skipped_and_what_is_missing_made_again(
    ablation: ablate_reward.Config, capfd: pytest.CaptureFixture[str]
) -> None:
    results, folder = ablation.run_dir / "results.json", ablation.run_dir / "seed-0"
    before, stored = results.read_text(), (folder / "assessments" / "engagement-sampled.npz").read_bytes()
    results.unlink()
    assert ablate_reward.main(dataclasses.replace(ablation, only_seed=0)) is None
    assert "seed 0 is done" in capfd.readouterr().err
    assert not results.exists()  # One seed alone writes no summary.
    # As a kill leaves it: the last variant was trained, but its answers not yet stored.
    (folder / "done.json").unlink()
    (folder / "assessments" / "engagement-sampled.npz").unlink()
    lines = (folder / "metrics.jsonl").read_text()
    ablate_reward.main(ablation)
    assert (folder / "metrics.jsonl").read_text() == lines
    assert (folder / "assessments" / "engagement-sampled.npz").read_bytes() == stored
    assert results.read_text() == before


@pytest.mark.slow
def test_the_sweep_measures_both_policies_at_every_window(sweep: sweep_window.Config) -> None:
    results = read_results(sweep.run_dir)
    names = [f"{policy}_k{k}" for k in (4, 6) for policy in ("sft", "ppo")]
    pairs = ["ppo_k4-sft_k4", "ppo_k6-sft_k6", "sft_k6-sft_k4", "ppo_k6-ppo_k4"]
    assert {r.system for r in results} == {*names, *pairs}
    found = by_name(results)
    difference = found["sft_k6-sft_k4/hr@5", "full", ""].value
    alone = [found[f"sft_k{k}/hr@5", "full", ""].value for k in (6, 4)]
    assert difference == pytest.approx(alone[0] - alone[1], abs=1e-9)
    contexts = json.loads((sweep.run_dir / "seed-0" / "contexts.json").read_text())
    assert contexts["4"]["filled"] > contexts["6"]["filled"]
    # The tiny network has 128 positions, 24 of them for the reply: the longer window does not fit, and it is said.
    assert contexts["4"]["context_tokens"] == contexts["6"]["context_tokens"] == 104
    assert 0 < contexts["4"]["cut"] < contexts["6"]["cut"]
    report = (sweep.run_dir / "report.md").read_text()
    assert "contexts cut" in report and report.count("Verdict, ") == 4
    assert (sweep.run_dir / "plots" / "windows.svg").stat().st_size > 5000


@pytest.mark.slow
def test_imitation_is_the_same_at_every_window(sweep: sweep_window.Config) -> None:
    entries = read_metrics(sweep.run_dir / "seed-0" / "metrics.jsonl")
    assert {entry["stage"] for entry in entries} == {"reward_model-k4", "ppo-k4", "reward_model-k6", "ppo-k6"}


@pytest.mark.slow
def test_the_foundation_was_laid_once(runs: Path, ablation: ablate_reward.Config, sweep: sweep_window.Config) -> None:
    assert [folder.name for folder in (runs / "foundations").iterdir()] == ["world-debug"]


@pytest.mark.slow
def test_other_options_are_refused_in_the_same_folder(ablation: ablate_reward.Config) -> None:
    with pytest.raises(RunError, match="best_of was 2, now 3"):
        ablate_reward.main(dataclasses.replace(ablation, best_of=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": ()}, "--seeds must name at least one seed"),
        ({"seeds": (1, 1)}, "each once: got"),
        ({"only_seed": 7}, "--only-seed 7 is not one of --seeds"),
        ({"variants": ("full", "full")}, "--variants must name at least one variant, each once"),
        ({"best_of": 1}, r"best_of must be in \[2, 1024\]: got 1"),
    ],
)
def test_wrong_options_of_the_ablation(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ablate_reward.Config(), **change)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows": (0, 2)}, r"windows must be in \[1, 10000\]: got 0"),
        ({"max_cut": 1.5}, r"Config.max_cut must be in \[0, 1\): got 1.5"),
        ({"seeds": ()}, "--seeds"),
    ],
)
def test_wrong_options_of_the_sweep(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(sweep_window.Config(), **change)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        # The judge's files are looked for first.
        ("ablate_reward", "error: the satisfaction judge needs {}/uss/ReDial.txt: "),
        ("sweep_window", "error: --data.dir {}/redial: "),
    ],
)
def test_a_mistake_is_one_line(
    run_here: Callable[..., tuple[int, str]], tmp_path: Path, script: str, message: str
) -> None:
    folders = ("--data-dir", str(tmp_path / "nowhere"), "--run-dir", str(tmp_path / "run"), "--runs", str(tmp_path))
    code, output = run_here(f"{script}.py", "redial-quick", *folders)
    assert code == 1 and "Traceback" not in output
    assert message.format(tmp_path / "nowhere") in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["world-quick", "--setting", "hackable"],
            "--variants level needs a reward model for the sentiment level; .* shift",
        ),
        (["world-quick", "--sampled-turns", "0"], r"--sampled-turns must be in \[1, 10000000\]: got 0"),
        (["redial", "--best-of", "1"], r"--best-of must be in \[2, 1024\]: got 1"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_trained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, ValueError)) as stopped:
        ablate_reward.command_line(arguments)
    said = " ".join((str(stopped.value) + capsys.readouterr().err).replace("│", " ").split())
    assert re.search(message, said), said


def test_a_missing_judge_is_noticed_before_the_foundation(tmp_path: Path) -> None:
    (tmp_path / "redial").mkdir()
    folders = ["--data-dir", str(tmp_path), "--runs", str(tmp_path / "runs"), "--run-dir", str(tmp_path / "study")]
    with pytest.raises(RunError, match="uss"):
        ablate_reward.main(ablate_reward.command_line(["redial-quick", *folders]))
    assert not (tmp_path / "runs" / "foundations").exists()

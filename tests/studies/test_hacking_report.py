"""The study's words, numbers and figures from ways whose answer is known; nothing is trained."""

import math
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.evaluation.failure_signatures import SIGNATURES, Warnings
from rlhf_jax.evaluation.over_optimisation import FORMS, Walk, fit, onset, resample
from studies.hacking import report as hacking_report
from studies.hacking import results as hacking_study
from studies.hacking.results import Findings, Study, Way

UPDATES = (0, 4, 8, 12, 16)
DISTANCES = np.array([0.0, 0.6, 1.2, 1.8, 2.4])
HACKED, LEVEL, DAMAGED = Way(0.0, False), Way(0.2, False), Way(0.2, True)
TRUTH = {HACKED: DISTANCES * (1.0 - 0.5 * DISTANCES), LEVEL: 0.3 * DISTANCES, DAMAGED: -0.5 * DISTANCES}
PROXY = {HACKED: DISTANCES, LEVEL: 0.5 * DISTANCES, DAMAGED: -DISTANCES}


def walk(way: Way, seed: int) -> Walk:
    noise = 0.05 * np.random.default_rng(seed).normal(size=(3, 5, 60))
    level = np.linspace(-1, 1, 60)
    kl = np.broadcast_to(DISTANCES[:, None] ** 2, (5, 60))
    units = tuple(f"seed {seed}, user {user}" for user in range(60))
    return Walk(
        UPDATES, units, kl, *(of[way][:, None] + level + one for of, one in zip((PROXY, TRUTH), noise, strict=False))
    )


@pytest.fixture(scope="module")
def study() -> Study:
    ways = (HACKED, LEVEL, DAMAGED)
    means = resample({way.stage: [walk(way, seed) for seed in range(3)] for way in ways}, replicates=200)
    # Length warns early on the hacked way, and everywhere else too; entropy in one seed alone.
    warned = {"text/response_length": ((2, 3, 3), (1, 1, 1)), "objective/entropy": ((5, None, None), (-1, 0, 0))}
    signals = [Warnings(metric, *warned.get(metric, ((None,) * 3, (0,) * 3))) for metric in SIGNATURES]
    found = {
        way: Findings(means[way.stage], fits([means[way.stage]]), onset(means[way.stage]), signals) for way in ways
    }
    pooled = {False: fits([means[way.stage] for way in ways[:2]]), True: fits([means[DAMAGED.stage]])}
    return Study((0, 1, 2), found, pooled, {"proxy": 0.5, "truth": 0.6})


def fits(means: list) -> dict:
    return {form: fit(means, form) for form in FORMS}


def test_names_tell_ways_apart() -> None:
    ways = [Way(kl, priced) for kl in (0.0, 0.02, 1e-5) for priced in (False, True)]
    assert [way.stage for way in ways[:4]] == ["ppo-kl0", "ppo-kl0-length", "ppo-kl0_02", "ppo-kl0_02-length"]
    assert all(way.stage.replace("-", "_").isidentifier() and "-" not in way.system for way in ways)
    assert len({way.stage for way in ways}) == len({way.system for way in ways}) == 6


def test_verdicts_follow_from_the_numbers(study: Study) -> None:
    hacked, level, damaged = (hacking_report.sentence(way, one, study) for way, one in study.ways.items())
    assert hacked.startswith("Verdict, KL 0: over-optimised; the truth fell by ")
    assert "first to warn: response length, " in hacked and "updates before the shown fall" in hacked
    assert "no fall of the truth" in level and "last − first +0.7" in level
    assert "damage, not over-optimisation" in damaged
    one_seed = study._replace(seeds=(0,))
    assert hacking_report.sentence(HACKED, study.ways[HACKED], one_seed).endswith("(1 seed: no claim).")


def test_results(study: Study) -> None:
    found = {result.name: result for result in hacking_study.results(study, split="toy/users", truth="mean_utility")}
    gain = found["kl0-sft/mean_utility"]
    assert gain.value == pytest.approx(TRUTH[HACKED][-1], abs=0.03) and gain.shows_difference and gain.n == 180
    assert found["kl0/sqrt_kl"].value == pytest.approx(2.4)
    peak = found["kl0/peak_quadratic"]
    assert peak.interval is not None and peak.interval[0] <= 1.0 <= peak.interval[1]
    assert math.isnan(found["kl0.2/peak_quadratic"].value) and found["kl0.2/peak_quadratic"].interval is None
    shown = found["kl0/onset_update"].value
    assert shown in (8, 12) and found["kl0/best_update"].value < shown
    assert found["kl0/warned_text_response_length"].value == 3
    assert found["kl0/lead_text_response_length"].value == shown - 3
    assert math.isnan(found["kl0/lead_objective_entropy"].value)
    assert math.isnan(found["kl0.2/onset_update"].value) and "kl0.2/fall" not in found
    assert {"pooled/peak_logarithmic", "pooled+length/peak_quadratic"} < set(found)


def test_report_and_figures(study: Study, tmp_path: Path) -> None:
    text = hacking_report.report_text(study, title="Toy", truth="true utility", cases="users", notes=["A note."])
    assert text.startswith("# Toy\n\nA note.\n\nTraining seeds 0, 1, 2;")
    assert sum(line.startswith("- Verdict") for line in text.splitlines()) == 3
    row = next(line for line in text.splitlines() if line.startswith("| response length"))
    assert "↑ 3 (3/3), lead +" in row
    assert "| entropy | never (1/3) | never (1/3) | never (1/3) |" in text
    assert "response length: warned in time on 1 of 2 ways whose truth fell; warned on 1 of 1 ways" in text or (
        "response length: warned in time on 2 of 2 ways whose truth fell; warned on 1 of 1 ways" in text
    )
    fitted = [line for line in text.splitlines() if line.startswith("| KL 0.2 | ")][1]
    assert fitted.count("not reached [") == 2
    way = next(iter(study.ways))
    lines = [[{"stage": way.stage, "step": s, "objective/entropy": 1.0 / s} for s in (1, 2)] for _ in study.seeds]
    hacking_report.figures(study, tmp_path, lines)
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{name}.{kind}" for name in ("along_the_path", "signatures", "ppo") for kind in ("svg", "png")
    }

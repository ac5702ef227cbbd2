"""The gate's correlations against their definition, and what the gate says."""

import math
import re
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from rlhf_jax.feedback.components import COMPONENTS
from rlhf_jax.stages import reward
from rlhf_jax.stages.reward import GateError, RewardConfig, correlations, labels_folder, results, unmeasured

N = 40


def pearson(x: list[float], y: list[float]) -> float:
    """Sums of products, as on paper."""
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    covariance = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / math.sqrt(math.fsum((a - mean_x) ** 2 for a in x) * math.fsum((b - mean_y) ** 2 for b in y))


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(1)
    labels = draw.normal(size=(N, 3))
    predicted = labels + draw.normal(size=(N, 3)) * [0.5, 1.0, 2.0]
    return predicted, labels, draw.random((N, 3)) > 0.2


@pytest.mark.parametrize("weights", [(1 / 3, 1 / 3, 1 / 3), (0.5, 0.0, 2.0), (0.0, 1.0, 0.0)])
def test_correlations_use_only_what_is_labelled(
    drawn: tuple[np.ndarray, np.ndarray, np.ndarray], weights: tuple[float, ...]
) -> None:
    predicted, labels, mask = drawn
    found = correlations(predicted, labels, mask, weights)
    for c, name in enumerate(COMPONENTS):
        rows = [i for i in range(N) if mask[i, c]]
        expected = pearson([predicted[i, c] for i in rows], [labels[i, c] for i in rows])
        assert found[name] == pytest.approx(expected, abs=1e-6)
    rows = [i for i in range(N) if all(mask[i, c] for c in range(3) if weights[c])]
    sums = [
        [sum(weights[c] * side[i, c] for c in range(3) if weights[c]) for i in rows] for side in (predicted, labels)
    ]
    assert found["reward"] == pytest.approx(pearson(*sums), abs=1e-6)


def test_what_is_not_labelled_may_be_anything(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    predicted, labels, mask = drawn
    weights = (1 / 3, 1 / 3, 1 / 3)
    spoilt = np.where(mask, labels, np.nan)
    assert correlations(predicted, spoilt, mask, weights) == correlations(predicted, labels, mask, weights)


def test_a_constant_prediction_correlates_with_nothing(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _, labels, mask = drawn
    found = correlations(np.ones((N, 3)), labels, mask, (1 / 3, 1 / 3, 1 / 3))
    assert set(found.values()) == {0.0}
    assert correlations(labels[:1], labels[:1], mask[:1], (1.0, 0.0, 0.0))["engagement"] == 0.0


@pytest.mark.parametrize(
    ("spoil", "name", "why"),
    [
        ("no labels", "relevance", f"0 of {N} held-out turns have a label"),
        ("equal labels", "relevance", f"all {N} held-out labels are equal"),
        ("equal scores", "relevance", f"all {N} scores are equal"),
        ("no labels", "reward", f"0 of {N} held-out turns have a label"),
    ],
)
@pytest.mark.parametrize("gate", ["stop", "warn"])
def test_what_cannot_be_measured_is_not_below_the_gate(
    drawn: tuple[np.ndarray, np.ndarray, np.ndarray],
    spoil: str,
    name: str,
    why: str,
    gate: Literal["stop", "warn"],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    labels, mask = drawn[1].astype(np.float32), np.ones((N, 3), bool)
    predicted, weights = labels.copy(), (0.5, 0.5, 0.0)
    if spoil == "no labels":
        mask[:, 1] = False
    else:
        (labels if spoil == "equal labels" else predicted)[:, 1] = 0.1
    reasons = unmeasured(predicted, labels, mask, weights)
    assert reasons[name] == why and "engagement" not in reasons and "sentiment" not in reasons
    found = correlations(predicted, labels, mask, weights)
    said = f"could not be measured .*{name}: {why}"
    judged = (tmp_path / "reward_model.json", found, {"unmeasured": reasons}, RewardConfig(gate=gate), weights)
    if gate == "stop":
        with pytest.raises(GateError, match=said) as stopped:
            reward.check_gate(*judged)
        assert "below" not in str(stopped.value)
    else:
        assert "relevance" in reward.check_gate(*judged)["failed"]
        text = capsys.readouterr().err
        assert re.search(said, text) and "below" not in text


def test_the_gates_numbers_become_results() -> None:
    names = ("reward", *COMPONENTS)
    report = {"n": 7, "pearson": dict.fromkeys(names, 0.5), "interval": dict.fromkeys(names, (0.4, 0.6))}
    found = results(report, split="world/validation", seed=3)
    assert [r.name for r in found] == ["reward_model/pearson", *(f"reward_model/pearson_{name}" for name in COMPONENTS)]
    assert all(r.n == 7 and r.seeds == (3,) and r.interval == (0.4, 0.6) for r in found)


@pytest.mark.parametrize(
    ("stage", "folder"),
    [("reward_model", "labels"), ("reward_model-shift", "labels-shift"), ("reward_model-level-2", "labels-level-2")],
)
def test_labels_lie_beside_the_stage_that_reads_them(stage: str, folder: str) -> None:
    assert labels_folder(stage) == folder


@pytest.mark.parametrize("stage", ["ppo-shift", "reward_models"])
def test_another_stage_has_no_labels(stage: str) -> None:
    with pytest.raises(ValueError, match=f"stage '{stage}' trains no reward model"):
        labels_folder(stage)

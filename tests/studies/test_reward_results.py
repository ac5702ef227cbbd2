"""The reward-model study's numbers on planted cases: correlation, slope, parts, verdicts, and the intervals' seeds."""

from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.evaluation.results import Result
from rlhf_jax.reporting import gates
from rlhf_jax.runtime.files import RunError
from studies.reward_validation import report as reward_report
from studies.reward_validation import results as reward_results
from studies.reward_validation.cases import MetUsers, ScoredTurns, SeedCases, gather
from studies.reward_validation.results import Pairs

N = 240


def cases(
    seed: int, noise: float, *, parts: tuple[str, ...] = ("seen items", "unseen items"), slope: float = 0.5
) -> ScoredTurns:
    """Labels that are `slope` times the prediction plus noise; every third sentiment is not defined."""
    draw = np.random.default_rng(seed)
    predicted = draw.normal(size=(N, 3))
    labels = slope * predicted + noise * draw.normal(size=(N, 3))
    mask = np.ones((N, 3), bool)
    mask[::3, 2] = False
    labels[::3, 2] = 0.0
    return ScoredTurns(
        dialogues=np.array([f"d{n // 4}" for n in range(N)]),
        predicted=predicted,
        labels=labels,
        mask=mask,
        truth=labels.sum(1) + draw.normal(size=N),
        part=np.array([parts[n % len(parts)] for n in range(N)]),
        training_turns=100,
    )


@pytest.fixture(scope="module")
def gathered() -> SeedCases:
    runs = {seed: cases(seed, 0.2) for seed in range(3)}
    users = {seed: MetUsers(np.arange(20.0), np.arange(20.0) ** 2) for seed in range(3)}
    weak = {seed: cases(seed, 3.0) for seed in range(3)}
    truth = {seed: cases(seed, 0.2, parts=("suggests", "no item")) for seed in range(3)}
    uss = {seed: cases(seed, 0.2, parts=("validation", "trained")) for seed in range(3)}
    return SeedCases("shift", runs, [weak], uss, truth, users)


@pytest.fixture(scope="module")
def found(gathered: SeedCases) -> dict[tuple[str, str], Result]:
    results = reward_results.results(gathered, source="redial", replicates=60)
    return {(one.protocol, one.name): one for one in results}


def test_planted_relations_are_measured(found: dict[tuple[str, str], Result], gathered: SeedCases) -> None:
    one = found["held-out", "shift/pearson_engagement"]
    # cor = ½ / √(¼ + 0.04)
    assert one.value == pytest.approx(0.5 / 0.29**0.5, abs=0.02) and one.n == 3 * N and one.seeds == (0, 1, 2)
    assert one.interval is not None and one.interval[0] < one.value < one.interval[1]
    assert found["held-out", "shift/pearson_sentiment"].n == 3 * N * 2 // 3 == found["held-out", "shift/pearson"].n
    assert found["calibration", "shift/slope_relevance"].value == pytest.approx(0.5, abs=0.03)
    assert found["learning-curve-0", "shift/pearson"].value < one.value - 0.5
    assert found["seen-items", "shift/pearson_engagement"].n == 3 * N / 2
    assert ("no-item", "shift/pearson") not in found and ("uss-untouched", "shift/spearman") not in found
    # The labels are nearer to the truth than what predicts them.
    assert found["truth", "shift labels/pearson"].value > found["truth", "shift/pearson"].value > 0.2
    assert found["uss-validation", "shift labels/spearman"].value > 0.3
    assert found["truth-users", "shift/pearson"].value == pytest.approx(
        np.corrcoef(np.arange(20), np.arange(20) ** 2)[0, 1]
    )


def test_each_number_is_that_of_its_rows(found: dict[tuple[str, str], Result], gathered: SeedCases) -> None:
    values = []
    for run in gathered.held_out.values():
        rows = [n for n in range(N) if run.mask[n].all() and run.part[n] == "unseen items"]
        values.append(np.corrcoef(run.predicted[rows].sum(1), run.labels[rows].sum(1))[0, 1])
    one = found["unseen-items", "shift/pearson"]
    assert one.value == pytest.approx(np.mean(values)) and one.std == pytest.approx(np.std(values, ddof=1))


def test_seeds_that_share_dialogues_share_their_luck() -> None:
    # The same cases in every seed: more seeds of the same dialogues say no more; of other dialogues they do.
    draw = np.random.default_rng(0)
    x = draw.normal(size=60)
    y = x + draw.normal(size=60) * 2
    own = Pairs([f"d{n}" for n in range(60)], x, y)
    widths = {}
    for shared in (True, False):
        pairs = dict.fromkeys(range(9), own)
        low, high = reward_results.estimate(
            pairs, reward_results.correlation, same_dialogues=shared, replicates=200
        ).interval
        widths[shared] = high - low
    assert widths[False] < 0.6 * widths[True]


def test_verdicts() -> None:
    def result(low: float, high: float, seeds: tuple[int, ...], std: float | None = 0.01) -> Result:
        return Result("shift/pearson", (low + high) / 2, 9, "held-out", "world/validation", (low, high), seeds, "", std)

    assert gates.verdict(result(0.61, 0.7, (0, 1, 2))) == "above the gate"
    assert gates.verdict(result(0.3, 0.59, (0, 1, 2))) == "below the gate"
    assert gates.verdict(result(0.5, 0.7, (0, 1, 2))) == "not told apart from the gate"
    assert gates.verdict(result(0.3, 0.5, (4,))) == "below the gate (1 seed: no claim)"
    assert gates.verdict(result(0.5, 0.7, (4,))) == "not told apart from the gate"
    # .655 − .6 against t(.975, 2) = 4.30 deviations over √3: .022 is the most that agrees.
    assert gates.verdict(result(0.61, 0.7, (0, 1, 2), std=0.022)) == "above the gate"
    unlike = gates.verdict(result(0.61, 0.7, (0, 1, 2), std=0.023))
    assert unlike == "above the gate (the seeds differ too much: no claim)"


def test_report_and_figures(found: dict[tuple[str, str], Result], gathered: SeedCases, tmp_path: Path) -> None:
    text = reward_report.report_text(list(found.values()), {}, setting="redial", size="debug", turns=[100.0])
    assert "above the gate" in text and "## Human satisfaction (USS)" in text and "satisfaction judge" not in text
    assert "| 100 turns | all |" in text and "| shift labels | weighted sum |" in text
    for path in (
        reward_report.calibration_figure([gathered], tmp_path, same_dialogues=True),
        reward_report.curve_figure(list(found.values()), gathered, tmp_path),
    ):
        assert path.read_bytes().startswith(b"\x89PNG") and path.with_suffix(".svg").stat().st_size > 1000


def test_cases_come_back_from_the_disk(tmp_path: Path) -> None:
    folder = tmp_path / "seed-4" / "cases"
    folder.mkdir(parents=True)
    written = cases(1, 0.3)
    written.save(folder / "held-out-level.npz")
    assert [path.name for path in folder.iterdir()] == ["held-out-level.npz"]
    read = gather(tmp_path, "level", seeds=(4,), n_fractions=0)
    assert read.held_out[4].training_turns == 100 and not read.uss and not read.users
    for name in ("dialogues", "predicted", "labels", "mask", "truth", "part"):
        np.testing.assert_array_equal(getattr(read.held_out[4], name), getattr(written, name))
    with pytest.raises(RunError, match="measure seed 5 first"):
        gather(tmp_path, "level", seeds=(4, 5), n_fractions=0)
    with pytest.raises(RunError, match=r"curve-level-0\.npz is missing"):
        gather(tmp_path, "level", seeds=(4,), n_fractions=1)

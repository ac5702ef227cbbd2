"""The preset `debug` of the reward-model study, in the world and on real dialogues; what is done is not done again."""

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

import validate_reward
from rlhf_jax.assessment import satisfaction
from rlhf_jax.reporting.run_report import read_results
from rlhf_jax.runtime.files import RunError, read_json
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.labelled_turns import drawn_rows, labelled_turns
from studies.evidence_page import verdict_lines
from studies.foundation import lay
from studies.reward_validation import measure as reward_study
from studies.reward_validation.cases import MetUsers, ScoredTurns
from studies.settings import foundation_folder, study_setting


def options(folder: Path, *more: str) -> validate_reward.Config:
    return validate_reward.command_line(
        ["debug", "--run-dir", str(folder / "study"), "--runs", str(folder / "runs"), *more]
    )


@pytest.fixture(scope="module", autouse=True)
def unchecked_types(study_cache: Path) -> Iterator[None]:
    """Types are checked where the parts are tested."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, study_runs: Path, unchecked_types: None) -> Path:
    folder = tmp_path_factory.mktemp("world")
    (folder / "runs").symlink_to(study_runs)
    validate_reward.main(options(folder))
    return folder


@pytest.mark.slow
def test_debug_ends_with_results_report_and_figures(world: Path) -> None:
    found = {(one.protocol, one.name): one for one in read_results(world / "study")}
    gate = read_json(foundation_folder(world / "runs", "world", "debug", 0) / "reward_model-shift.json")
    # What the study computes from its own rows is what the gate said about them.
    for name, value in gate["pearson"].items():
        metric = "pearson" if name == "reward" else f"pearson_{name}"
        assert found["held-out", f"shift/{metric}"].value == pytest.approx(value, abs=1e-5)
    assert {"calibration", "learning-curve-0", "truth", "truth-users"} <= {protocol for protocol, _ in found}
    # The labels read how the user reacts to a turn's utility.
    assert found["truth-suggesting", "shift labels/pearson_engagement"].value > 0.5
    text = (world / "study" / "report.md").read_text()
    verdicts = verdict_lines(text)  # What `evidence.py` puts on top of its page.
    assert verdicts and all("held-out Pearson" in line and "(1 seed: no claim)" in line for line in verdicts)
    assert "## True utility" in text and "## Human satisfaction" not in text
    for name in ("calibration", "learning_curve"):
        assert (world / "study" / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (world / "study" / "plots" / f"{name}.svg").exists()


@pytest.mark.slow
def test_cases_are_those_of_the_foundation(world: Path) -> None:
    setting = study_setting("world", "debug", Path("data"))
    foundation = lay(foundation_folder(world / "runs", "world", "debug", 0), setting.foundation, seed=0)
    training, held_out = reward_study.read_labels(foundation, "shift")
    for split, limit in ((training, 30), (training, None), (held_out, 10)):
        # The turns `reward.train` draws are the turns the study takes for R_φ's.
        taken = labelled_turns(foundation.setup, split.dialogues, split.table, limit)
        windows = Windows(foundation.setup.vocab, split.dialogues, foundation.setup.data)
        rows = drawn_rows(split.table, windows, limit, foundation.setup.seed)
        assert split.table.dialogue_ids[rows].tolist() == taken.dialogues
        np.testing.assert_array_equal(split.table.z[rows].astype(np.float32), taken.labels)
    folder = world / "study" / "seed-0" / "cases"
    whole, half = (ScoredTurns.load(folder / f"{name}.npz") for name in ("held-out-shift", "curve-shift-0"))
    assert whole.training_turns == len(training.rows) and half.training_turns == round(len(training.rows) / 2)
    assert whole.dialogues.tolist() == half.dialogues.tolist() and np.abs(whole.predicted - half.predicted).max() > 0
    # Where it stands in the batch, and what is scored beside it, is nothing to a turn.
    places = held_out.places(held_out.rows)
    alone = reward_study.score_turns(foundation, foundation.proxy("shift").model, held_out.dialogues, places[3:5])
    np.testing.assert_allclose(alone, whole.predicted[3:5], atol=1e-4)
    truth, users = ScoredTurns.load(folder / "truth-shift.npz"), MetUsers.load(folder / "users-shift.npz")
    assert ((truth.truth >= 0) & (truth.truth <= 1)).all() and set(truth.part) == {"suggests", "no item"}
    assert len(users.score) == setting.assess.users and np.isfinite(users.score).all()


@pytest.mark.slow
def test_a_second_start_measures_nothing(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (world / "study" / "results.json").read_bytes()
    monkeypatch.setattr(validate_reward, "lay_for", lambda *_, **__: pytest.fail("laid again"))
    validate_reward.main(options(world))
    assert (world / "study" / "results.json").read_bytes() == before
    with pytest.raises(RunError, match="another configuration"):
        validate_reward.main(options(world, "--fractions", "0.25"))


@pytest.mark.slow
def test_one_seed_alone_writes_no_summary(world: Path, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (world / "study" / "seed-0").rename(tmp_path / "study" / "seed-0")
    try:
        done = validate_reward.main(options(tmp_path, "--only-seed", "0"))
        assert done == tmp_path / "study" / "seed-0" and sorted(p.name for p in done.parent.iterdir()) == [
            "made_by.json",
            "seed-0",
        ]
    finally:
        (tmp_path / "study" / "seed-0").rename(world / "study" / "seed-0")


@pytest.mark.slow
def test_debug_on_real_dialogues(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The judge of a thousand dialogues takes its time; what is asked here is whether its worth is told.
    judged = {
        "fitting": {"dialogues": 8, "turns": 80},
        "held_out": {"dialogues": 2, "turns": 20},
        "penalties": {"judge": {"chosen": 10.0}},
        "spearman": {name: {"value": 0.2, "interval": [0.1, 0.3], "n": 20} for name in satisfaction.READERS},
        "length": {
            name: {"value": 0.0, "interval": [-0.1, 0.1], "n": 20}
            for name in ("score and words of the reply", "satisfaction and words of the reply")
        },
        "score": {"min": 2.5, "mean": 3.0, "max": 3.5, "std": 0.2},
        "satisfaction": {"min": 1.0, "mean": 3.0, "max": 5.0, "std": 0.5},
    }
    monkeypatch.setattr(satisfaction, "uss_judge", lambda *_: (None, judged))
    report = validate_reward.main(options(tmp_path, "--setting", "redial", "--data-dir", str(data_dir)))
    found = {(one.protocol, one.name): one for one in read_results(tmp_path / "study")}
    # Of the first sixty dialogues USS scored twelve, each of a part that has its own protocol.
    cases = ScoredTurns.load(tmp_path / "study" / "seed-0" / "cases" / "uss-shift.npz")
    assert len(set(cases.dialogues.tolist())) == 12 and ((cases.truth >= 1) & (cases.truth <= 5)).all()
    parts = {f"uss-{part}" for part in cases.part.tolist()}
    assert parts and parts == {protocol for protocol, _ in found if protocol.startswith("uss-")} - {"uss-judge"}
    assert found["uss-judge", "judge/spearman"].value == 0.2
    text = report.read_text()
    assert (
        "## Human satisfaction (USS)" in text
        and "two annotators agree at .29" in text
        and "## True utility" not in text
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--fractions", "0.5", "0.25"], "ascend"),
        (["--seeds"], "at least one"),
        (["--only-seed", "7"], "--only-seed 7 is not one of --seeds"),
    ],
)
def test_refusals(tmp_path: Path, changes: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        options(tmp_path, *changes)
    assert message in capsys.readouterr().err

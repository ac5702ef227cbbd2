"""SMTPO's ablation without training: what every variant changes, and a report made of stored conversations."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ablate_smtpo
from ablate_smtpo import Imitating
from rlhf_jax.assessment import episodes
from rlhf_jax.evaluation.episodes import Measured
from rlhf_jax.reporting.run_report import read_results
from rlhf_jax.runtime.files import RunError, write_npz
from rlhf_jax.stages.smtpo import iterated, multi_turn
from studies import smtpo_ablation
from studies.smtpo_ablation import SMTPO, VARIANTS, Change, Setting, Variant
from studies.smtpo_settings import SETTINGS

SEEDS = (0, 1, 2)
N = 20
SETTING = Setting("toy", "Everybody got nothing.", n_turns=2, users=True)


@pytest.mark.parametrize("name", [SMTPO, *VARIANTS])
def test_a_variant_changes_one_thing(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def train(run: Any, recommender: Any, seeker: Any, params: Any, talk: Any, learner: Any, *, stage: str) -> str:
        asked.append((run, recommender, seeker, params, talk, learner, stage))
        return "learnt"

    def train_iterated(*given: Any) -> str:
        *usual, numbers = given
        assert numbers == config.iterated
        return train(*usual, stage=f"multi_turn-{name}")

    monkeypatch.setattr(multi_turn, "train", train)
    monkeypatch.setattr(iterated, "train", train_iterated)
    config = ablate_smtpo.PRESETS["debug"][1]
    stages = SETTINGS["debug"]
    seekers: dict[Any, Any] = {"training": "training", "language": "language", "scoring": "scoring"}
    begun = Imitating("run", "recommender", "imitation")  # type: ignore[arg-type]
    change = VARIANTS.get(name, Change("all parts"))
    learnt = ablate_smtpo.learn(begun, change, seekers, config, name)
    if name == "sft":
        assert learnt == "imitation" and asked == []
        return
    ((run, recommender, seeker, params, talk, learner, stage),) = asked
    assert (learnt, run, recommender, params, stage) == (
        "learnt", "run", "recommender", "imitation", f"multi_turn-{name}"
    )  # fmt: skip
    assert seeker == {"single_task": "language", "scored_by_trainer": "scoring"}.get(name, "training")
    assert change.iterated == (name == "iterated")
    assert talk == (stages.conversations.first_turns() if name == "single_turn" else stages.conversations)
    unpaid = {"no_format": (0.0, 1.0, 1.0), "no_recommendation": (1.0, 0.0, 1.0), "no_preference": (1.0, 1.0, 0.0)}
    weights = unpaid.get(name, (1.0, 1.0, 1.0))
    assert learner == dataclasses.replace(stages.learner, component_weights=weights)
    assert change.view == {"semantic_view": "semantic", "collaborative_view": "collaborative"}.get(name, "both")


def store(run_dir: Path, system: str, seed: int, found: list[bool], utility: float) -> None:
    """Conversations of two turns: what is found is found in the second one."""
    hits = np.array(found)
    shape = (N, 2)
    measured = Measured(
        conversations=tuple(f"d{n}" for n in range(N)),
        rewards=np.zeros((*shape, 3), np.float32),
        running=np.ones(shape, bool),
        gold_rank=np.stack([np.zeros(N, np.int32), hits.astype(np.int32)], axis=1),
        recalled=np.ones(shape, bool),
        attributes=np.zeros(shape, np.int32),
        repeated=np.zeros(shape, bool),
    )
    folder = run_dir / f"seed-{seed}" / episodes.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {key: np.asarray(value) for key, value in measured._asdict().items() if value is not None}
    write_npz(folder / f"{system}-{smtpo_ablation.PROTOCOL}.npz", arrays)
    users = {"mean_utility": np.linspace(0, 1, N) * 0.1 + utility, "success@2": hits.astype(float)}
    write_npz(folder / f"{system}-world.npz", users)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """SMTPO finds nearly everything, imitation nothing, for all seeds; without a format as much as with it."""
    for seed in SEEDS:
        nearly = [n != seed for n in range(N)]
        store(tmp_path, SMTPO, seed, nearly, 0.5)
        store(tmp_path, "sft", seed, [False] * N, 0.4)
        store(tmp_path, "no_format", seed, nearly, 0.5)
    return tmp_path


VARIED: tuple[Variant, ...] = ("sft", "no_format")


def test_the_report_says_what_every_part_is_worth(run_dir: Path) -> None:
    path = smtpo_ablation.write_report(run_dir, SEEDS, VARIED, SETTING, ["python", "ablate_smtpo.py"])
    found = {(one.protocol, one.split, one.name): one for one in read_results(run_dir)}
    lost = found[smtpo_ablation.PROTOCOL, "toy/test", "sft-smtpo/success@2"]
    assert lost.value == pytest.approx(-0.95) and lost.seeds == SEEDS and lost.shows_difference
    assert found[smtpo_ablation.PROTOCOL, "toy/test", "no_format-smtpo/success@2"].interval == (0, 0)
    assert found["closed-loop", "toy/test-users-greedy", "sft-smtpo/mean_utility"].value == pytest.approx(-0.1)
    report = path.read_text(encoding="utf-8")
    verdicts = {line.split(" ")[2]: line for line in report.splitlines() if line.startswith("- Verdict, ")}
    assert set(verdicts) == set(VARIED)
    assert "success within 2 lower, -0.950" in verdicts["sft"] and "true utility lower, -0.100" in verdicts["sft"]
    assert "success within 2 no difference shown" in verdicts["no_format"]
    assert (run_dir / "plots" / "ablation.svg").stat().st_size > 5000


def test_without_users_nothing_is_said_of_them(run_dir: Path) -> None:
    for file in run_dir.glob("seed-*/conversations/*-world.npz"):
        file.unlink()
    path = smtpo_ablation.write_report(run_dir, SEEDS, VARIED, SETTING._replace(users=False), ["python"])
    assert "utility" not in path.read_text(encoding="utf-8")
    assert {one.protocol for one in read_results(run_dir)} == {smtpo_ablation.PROTOCOL}
    with pytest.raises(RunError, match=r"seed-0/conversations/smtpo-world\.npz is not there"):
        smtpo_ablation.write_report(run_dir, SEEDS, VARIED, SETTING, ["python"])
    (run_dir / "seed-1" / "conversations" / "sft-scoring-seeker.npz").unlink()
    with pytest.raises(RunError, match=r"seed-1/conversations/sft-scoring-seeker\.npz is not there"):
        smtpo_ablation.write_report(run_dir, SEEDS, VARIED, SETTING._replace(users=False), ["python"])


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="--variants must name at least one variant, each once"):
        ablate_smtpo.Config(variants=("sft", "sft"))
    with pytest.raises(ValueError, match="--only-seed 7 is not one of --seeds"):
        ablate_smtpo.Config(only_seed=7)
    with pytest.raises(ValueError, match="component 'nothing': expected one of format, preference"):
        smtpo_ablation.without((1.0, 1.0), ("format", "preference"), "nothing")


def test_real_data_are_read_from_the_data_folder(tmp_path: Path) -> None:
    chosen = ablate_smtpo.command_line(["redial", "--data-dir", str(tmp_path)])
    assert chosen.stages.data.dir == tmp_path / "redial"
    assert dataclasses.replace(chosen.stages.data, dir=SETTINGS["redial"].data.dir) == SETTINGS["redial"].data
    assert ablate_smtpo.command_line([]).stages == SETTINGS["world"]

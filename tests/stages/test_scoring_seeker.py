"""The seeker that scores: its half of the dialogues, its seed, and what it begins with."""

from pathlib import Path
from typing import Any

import pytest
import reasoned

from rlhf_jax.assessment import scoring_seeker
from rlhf_jax.interfaces import Dialogue, Params
from rlhf_jax.runtime.run import open_run
from rlhf_jax.stages.smtpo import simulator
from rlhf_jax.stages.smtpo.simulator import SimulatorConfig
from rlhf_jax.stages.supervised import SupervisedConfig

DIALOGUES = tuple(Dialogue(f"d{number}", (), {}, {}) for number in range(60))


def test_halves_hang_on_the_id_alone_and_share_nothing() -> None:
    one, other = scoring_seeker.halves(DIALOGUES)
    assert len(one) + len(other) == 60
    names = [{dialogue.dialogue_id for dialogue in half} for half in (one, other)]
    assert not names[0] & names[1] and min(map(len, names)) > 15
    # The same sides without the first ten, and in another order.
    again = scoring_seeker.halves(DIALOGUES[:9:-1])
    assert all({dialogue.dialogue_id for dialogue in half} <= own for half, own in zip(again, names, strict=True))
    assert scoring_seeker.training_half(DIALOGUES) == one


def test_nothing_of_it_has_seen_the_other_half(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, Any, int, str, Any]] = []

    def begin(run: Any, setup: Any, dialogues: Any, config: Any, imitation: Any, *, seed: int, stage: str) -> str:
        asked.append(("begin", dialogues, seed, stage, imitation))
        return "imitated"

    def train(
        run: Any, setup: Any, dialogues: Any, config: Any, *, attributes: Any, seed: int, begun: Any, stage: str
    ) -> Params:
        asked.append(("train", dialogues, seed, stage, begun))
        return {"trunk": "learnt"}

    monkeypatch.setattr(simulator, "begin", begin)
    monkeypatch.setattr(simulator, "train", train)
    recommender = reasoned.make()
    setup = recommender.setup
    config, imitation = SimulatorConfig(start="imitation", response_tokens=8), SupervisedConfig()
    with open_run(tmp_path / "run", config, trackers=()) as run:
        found = scoring_seeker.scoring_seeker(run, recommender, config, imitation)
    assert found.params == {"trunk": "learnt"} and found.config is config
    own = scoring_seeker.halves(setup.corpus.train)[1]
    assert 0 < len(own) < len(setup.corpus.train)
    assert asked == [
        ("begin", own, 1_000_000, "simulator-scoring", imitation),
        ("train", own, 1_000_000, "simulator-scoring", "imitated"),
    ]

"""Nothing that trains can reach the judge or the seeker that scores, and PPO that is watched by one ends with the same bits as PPO that is not."""

import dataclasses
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fingerprint import fingerprint
from rlhf_jax.data.windows import response_message
from rlhf_jax.evaluation.satisfaction_judge import JudgedTurn, SatisfactionJudge, fit_judge
from rlhf_jax.feedback.components import COMPONENTS
from rlhf_jax.interfaces import Message, Params, PromptBatch
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.models import gpt2
from rlhf_jax.runtime.metrics import read_metrics, read_stage_samples
from rlhf_jax.runtime.run import open_run
from rlhf_jax.simulators.world import WorldConfig
from rlhf_jax.stages import alignment
from rlhf_jax.stages.agent import reward_params
from rlhf_jax.stages.alignment import AlignmentConfig
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.reward import Proxy
from rlhf_jax.stages.setup import DataConfig, ModelConfig, Setup, set_up

DATA = DataConfig(
    world=WorldConfig(n_items=20, n_train=20, n_test=4, n_users=10), n_words=300, context_tokens=32, response_tokens=8
)
MODEL = ModelConfig(n_layer=1, n_embd=16, n_head=2, n_positions=64)
REACH = """
import importlib, pkgutil, sys
import rlhf_jax.learners, rlhf_jax.feedback, rlhf_jax.simulators, rlhf_jax.stages
rooms = rlhf_jax.learners, rlhf_jax.feedback, rlhf_jax.simulators, rlhf_jax.stages
names = [found.name for room in rooms for found in pkgutil.walk_packages(room.__path__, room.__name__ + ".")]
assert "rlhf_jax.stages.smtpo.multi_turn" in names
for name in names:
    importlib.import_module(name)
outside = [name for name in sys.modules if "judg" in name and name.startswith("rlhf_jax")]
outside += [name for name in sys.modules if name.startswith(("rlhf_jax.assessment.episodes", "rlhf_jax.assessment.scoring"))]
print(len(names), outside)
"""


def test_what_trains_does_not_import_the_judge_or_the_seeker_that_scores(repository: Path) -> None:
    found = subprocess.run([sys.executable, "-c", REACH], capture_output=True, text=True, cwd=repository, check=True)
    count, _, reached = found.stdout.strip().partition(" ")
    assert int(count) > 20 and reached == "[]"


@pytest.fixture(scope="module")
def judge() -> SatisfactionJudge:
    turns = [
        JudgedTurn(str(n), (Message("seeker", ("i want a movie",), 0),), Message("recommender", words, 1), (), score)
        for n in range(4)
        for words, score in ((("try this one",), 4.0), (("no",), 2.0))
    ]
    return fit_judge(turns, {}, penalty=1.0)


def watch(judge: SatisfactionJudge, setup: Setup, seen: list[float]) -> alignment.Probe:
    """A probe that lets the policy answer validation contexts and has the judge score the answers."""
    windows = Windows(setup.vocab, setup.corpus.validation, DATA)
    turns = windows.turns()[:8]
    tokens, mask = windows.prompts(turns)
    prompts = PromptBatch(tokens=jnp.asarray(tokens), mask=jnp.asarray(mask))
    sample = jax.jit(setup.agent.sample)

    def probe(params: Params, updates: int) -> Mapping[str, float]:
        rollout = sample(params, prompts, jax.random.key(updates))
        responses = np.asarray(rollout.response_tokens)
        replies = [response_message(setup.vocab, row) for row in responses.tolist()]
        histories = [windows.dialogues[number].messages[:index] for number, index in turns]
        scores = judge(histories, replies, {})
        assert ((scores >= 1) & (scores <= 5)).all()
        seen.append(float(scores.mean()))
        return {"judge/score": seen[-1]}

    return probe


@pytest.mark.slow
def test_ppo_watched_by_the_judge_ends_with_the_same_bits(tmp_path: Path, judge: SatisfactionJudge) -> None:
    ends, seen = {}, []
    for name in ("alone", "watched"):
        samples = 3 if name == "watched" else 0
        with open_run(tmp_path / name, {"seed": 0}, trackers=(), samples=samples) as run:
            setup = set_up(run, dataclasses.replace(DATA, max_items=3), MODEL, seed=0)
            trunk = gpt2.init(setup.network, jax.random.key(1))
            start = fingerprint(trunk)
            policy = alignment.align(
                run,
                setup,
                trunk,
                Proxy(reward_params(trunk, MODEL.n_embd, jax.random.key(2)), (1 / 3,) * 3),
                AlignmentConfig(updates=2, batch_size=8, evaluations=2, save_every=2, learning_rate=1e-2),
                PPOConfig(epochs=1),
                truth=watch(judge, setup, seen) if name == "watched" else None,
            )
            ends[name] = fingerprint(policy)
            assert fingerprint(policy["trunk"]) != start
    assert ends["alone"] == ends["watched"]
    # Before the first update, after each of two.
    logged = [
        line["judge/score"] for line in read_metrics(tmp_path / "watched" / "metrics.jsonl") if "judge/score" in line
    ]
    assert len(seen) == 3 and set(logged) <= set(seen) and logged
    # Nor do the replies that are kept to be read disturb anything: the same contexts after each of two updates.
    assert not (tmp_path / "alone" / "samples.jsonl").exists()
    said = read_stage_samples(tmp_path / "watched" / "samples.jsonl")
    assert [(line["stage"], line["step"]) for line in said] == [("ppo", 1)] * 3 + [("ppo", 2)] * 3
    prompts = [line["prompt"] for line in said]
    assert prompts[:3] == prompts[3:] and len(set(prompts)) == 3
    assert [line["reply"] for line in said[:3]] != [line["reply"] for line in said[3:]]
    for line in said:
        *components, total = line["scores"].values()
        assert list(line["scores"]) == [*COMPONENTS, "score"] and total == pytest.approx(np.mean(components))

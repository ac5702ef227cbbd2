"""Distance of sampled replies, and measurements that are stored, shared and read back."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.assessment import users
from rlhf_jax.assessment.sampled import Against
from rlhf_jax.assessment.users import Responder
from rlhf_jax.interfaces import Message, PromptBatch
from rlhf_jax.runtime.files import RunError
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.reward import Proxy
from studies.hacking.path_probe import PathConfig, PathProbe, on_validation, read_walk
from tiny_policy import DATA, Tiny


def words(histories: Sequence[Sequence[Message]], replies: Sequence[Message], titles: Mapping[int, str]) -> np.ndarray:
    """A judge that counts parts."""
    assert len(histories) == len(replies) and titles
    return np.array([float(len(reply.parts)) for reply in replies])


@pytest.fixture
def probe(tiny: Tiny, tmp_path: Path) -> PathProbe:
    return PathProbe(
        folder=tmp_path / "measurements",
        setup=tiny.setup,
        against=Against(tiny.reference, Proxy(tiny.reward_model, (0.5, 0.25, 0.25)), words),
        config=PathConfig(contexts=4, batch_size=4, repeats=3),
    )


@pytest.mark.slow
def test_distance_is_the_log_ratio_of_the_reply(tiny: Tiny) -> None:
    windows = Windows(tiny.setup.vocab, tiny.setup.corpus.test, DATA)
    tokens, mask = windows.prompts(windows.turns())
    rollout = tiny.agent.sample(
        tiny.policy, PromptBatch(tokens=jnp.asarray(tokens), mask=jnp.asarray(mask)), jax.random.key(0)
    )
    found = users.distance(tiny.agent, tiny.reference, rollout)
    said, ref = (tiny.agent.policy(params, rollout).logprobs for params in (tiny.policy, tiny.reference))
    d = np.asarray(said - ref, np.float64)
    kept = np.asarray(rollout.response_mask)
    np.testing.assert_allclose(found["kl_k1"], np.sum(d * kept, axis=1), atol=1e-4)
    np.testing.assert_allclose(found["kl_k3"], np.sum((np.exp(-d) - 1 + d) * kept, axis=1), rtol=1e-3)
    assert (np.asarray(found["kl_k3"]) > 0).all()
    np.testing.assert_array_equal(found["reply_tokens"], kept.sum(axis=1))
    same = users.distance(tiny.agent, tiny.policy, rollout)
    np.testing.assert_allclose(same["kl_k1"], 0.0, atol=1e-4)
    with pytest.raises(ValueError, match="these are greedy"):
        Responder(tiny.setup, tiny.policy, greedy=True, reference=tiny.reference)


def test_measured_once_and_read_back(probe: PathProbe, tiny: Tiny) -> None:
    measure = probe.probe("ppo-kl0")
    start, later = measure(tiny.reference, 0), measure(tiny.policy, 4)
    assert start["validation/kl_k1"] == pytest.approx(0.0, abs=1e-4) and later["validation/kl_k1"] > 0.1
    assert set(start) == {
        "validation/score_raw",
        "validation/kl_k1",
        "validation/response_length",
        "text/bleu4",
        "text/bleu4_one_hot",
        "judge/score",
    }
    # Stored: other parameters are not looked at, and every way begins where the first did.
    assert measure(tiny.reference, 4) == later
    assert probe.probe("ppo-kl1")(tiny.policy, 0) == start
    measure(tiny.policy, 12)
    walk = read_walk(probe.folder, "ppo-kl0", seed=3, same_cases=False)
    assert walk.updates == (0, 4, 12)
    answers = probe.answers("ppo-kl0", tiny.policy, 4)
    np.testing.assert_array_equal(walk.kl[1], answers.kl)
    np.testing.assert_array_equal(walk.truth[1], answers.judge)
    assert walk.proxy[1].mean() == pytest.approx(later["validation/score_raw"])
    assert walk.units == tuple(f"seed 3, {turn.dialogue}" for turn in answers.turns)
    assert read_walk(probe.folder, "ppo-kl0", seed=3, same_cases=True).units[0] == answers.turns[0].dialogue
    with pytest.raises(RunError, match="no measurements of ppo-kl1"):
        read_walk(probe.folder, "ppo-kl1", seed=0, same_cases=True)


def test_bleu_before_learning_is_drawn_again_each_time(probe: PathProbe) -> None:
    scores = probe.bleu_before_learning()
    assert len(scores) == 3 and probe.bleu_before_learning() == scores
    replies = [probe.answers("x", probe.against.reference, 0, repeat=repeat).replies for repeat in range(4)]
    assert any(said != replies[0] for said in replies[1:])


def test_contexts_that_the_judge_has_read_are_left_out(tiny: Tiny) -> None:
    corpus = tiny.setup.corpus
    validation = tuple(
        dataclasses.replace(dialogue, dialogue_id=f"v{dialogue.dialogue_id}") for dialogue in corpus.test
    )
    setup = tiny.setup._replace(corpus=dataclasses.replace(corpus, validation=validation))
    left = on_validation(setup, without={"v0": None}).corpus.test
    assert [dialogue.dialogue_id for dialogue in left] == ["v1"]
    with pytest.raises(RunError, match="no validation dialogue is left"):
        on_validation(setup, without={"v0": None, "v1": None})

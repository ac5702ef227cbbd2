"""Reinforcement learning as a stage: human responses, held-out contexts, groups, what moves and what is kept."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.interfaces import Dialogue, Message
from rlhf_jax.learners.grpo_config import GRPOConfig
from rlhf_jax.learners.minibatch import judge
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.run import open_run
from rlhf_jax.stages import alignment
from rlhf_jax.stages.alignment import AlignmentConfig
from rlhf_jax.stages.contexts import Padded, PromptBatches, Windows
from rlhf_jax.stages.item_prior import PriorConfig, with_scorer
from rlhf_jax.stages.reward import Proxy
from rlhf_jax.stages.setup import DataConfig, Setup
from tiny_policy import Tiny

SAID: tuple[tuple[str | int, ...], ...] = ((11, " or ", 12), ("hello ", 13, " again ", 13), ("try this one",), (14,))


@pytest.fixture
def setup(tiny: Tiny) -> Setup:
    """Dialogues whose recommender says everything a message can be: a list, a repeated item, words, an item alone."""
    train = tuple(
        Dialogue(
            str(number),
            (
                Message("seeker", (f"hello {number}",), 0),
                *(Message("recommender", parts, place + 1) for place, parts in enumerate(SAID)),
            ),
            {},
            {},
        )
        for number in range(40)
    )
    return tiny.setup._replace(corpus=dataclasses.replace(tiny.setup.corpus, train=train))


def test_parts_are_disjoint_whole_and_those_of_the_dialogue(setup: Setup) -> None:
    everything = setup.corpus.train
    assert setup.training_parts() == (everything, everything)
    shared = setup._replace(data=dataclasses.replace(setup.data, rl_share=0.25))
    imitated, contexts = shared.training_parts()
    assert {d.dialogue_id for d in imitated}.isdisjoint(d.dialogue_id for d in contexts)
    assert len(imitated) + len(contexts) == len(everything)
    assert 4 <= len(contexts) <= 16
    # Half of the data: every dialogue stays on its side.
    half = dataclasses.replace(shared.corpus, train=everything[::2])
    ids = {d.dialogue_id for d in shared._replace(corpus=half, seed=9).training_parts()[1]}
    assert ids == {d.dialogue_id for d in contexts} & {d.dialogue_id for d in everything[::2]}
    one = dataclasses.replace(shared.corpus, train=imitated[:1])
    with pytest.raises(RunError, match=r"--data.rl-share 0.25 of 1 training dialogues leaves 1 to imitation and 0"):
        shared._replace(corpus=one).training_parts()


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_of_everything_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"DataConfig.rl_share must be in \[0, 1\): got {share}"):
        DataConfig(rl_share=share)


def test_the_policy_can_say_what_people_said(setup: Setup, tiny: Tiny) -> None:
    def dealt(prompts: Padded) -> PromptBatches:
        return PromptBatches(prompts, batch_size=len(SAID), seed=3)

    human = Windows(setup.vocab, setup.corpus.train[:1], setup.data).demonstrations(dealt)
    batch = human.batch(0, slice(0, len(SAID)))
    said = jax.jit(lambda params, rollout: judge(tiny.agent.policy, params, rollout))(tiny.policy, batch)
    assert np.isfinite(np.asarray(said.logprobs)).all()
    assert (np.asarray(said.logprobs)[np.asarray(batch.response_mask)] <= 0).all()
    # Every response stands beside its own context, in the order they were dealt.
    windows = Windows(setup.vocab, setup.corpus.train[:1], setup.data)
    pairs = {
        (tuple(prompt), tuple(response))
        for prompt, response in zip(
            windows.prompts(windows.turns())[0], windows.responses(windows.turns())[0], strict=True
        )
    }
    dealt_pairs = zip(np.asarray(batch.prompt_tokens), np.asarray(batch.response_tokens), strict=True)
    assert {(tuple(prompt), tuple(response)) for prompt, response in dealt_pairs} == pairs


def align(folder: Path, setup: Setup, tiny: Tiny, learner_config: Any, **options: Any) -> Any:
    """The policy that comes out, which is the one that was measured last."""
    measured: list[Any] = []

    def truth(params: Any, update: int) -> dict[str, float]:
        measured.append((update, jax.tree.map(np.asarray, params)))
        return {}

    with open_run(folder, {"seed": 0}, trackers=()) as run:
        policy = alignment.align(
            run,
            setup,
            tiny.policy["trunk"],
            Proxy(tiny.reward_model, (1 / 3,) * 3),
            AlignmentConfig(updates=2, batch_size=8, learning_rate=1e-2, evaluations=1, **options),
            learner_config,
            truth=truth,
        )
    assert [update for update, _ in measured] == [0, 2]
    # What is measured last is what is handed on.
    jax.tree.map(np.testing.assert_array_equal, measured[-1][1], jax.tree.map(np.asarray, policy))
    return policy


@pytest.mark.slow
def test_ppo_with_everything_moves_the_heads_alone(tmp_path: Path, setup: Setup, tiny: Tiny) -> None:
    setup = setup._replace(data=dataclasses.replace(setup.data, rl_share=0.25))
    config = PPOConfig(epochs=1, group_size=4, ptx_coef=0.5, average_decay=0.5)
    policy = align(tmp_path / "run", setup, tiny, config, trainable="heads")
    before, after = tiny.policy["trunk"], policy["trunk"]
    for name in ("h_0", "wpe"):
        # An average of equal numbers is rounded.
        close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
        jax.tree.map(close, before[name], after[name])
    assert jnp.abs(before["wte"] - after["wte"]).max() > 1e-3
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    for name in ("policy/ptx_loss", "objective/flat_group_share", "learning_rate"):
        assert name in lines


def test_grpo_is_selected_by_its_configuration(tmp_path: Path, setup: Setup, tiny: Tiny) -> None:
    policy = align(tmp_path / "run", setup, tiny, GRPOConfig(group_size=4))
    assert set(policy) == {"trunk"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"grpo"}
    assert any("objective/flat_group_share" in line for line in lines)
    moved = tiny.policy["trunk"]["wte"] - policy["trunk"]["wte"]
    assert jnp.abs(moved).max() > 1e-3
    # With prompts read once for their groups it is the same descent.
    again = align(tmp_path / "again", setup, tiny, GRPOConfig(group_size=4, whole_groups=True))
    assert jnp.linalg.norm(again["trunk"]["wte"] - policy["trunk"]["wte"]) < 0.02 * jnp.linalg.norm(moved)


def test_responses_that_do_not_fill_their_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="--align.batch-size 10 cannot be divided into groups of 4 responses"):
        alignment.prompts_of(10, 4)


@pytest.mark.parametrize("learner", [PPOConfig(kl_coef=0.1), GRPOConfig(group_size=4)])
def test_a_prior_goes_along_and_may_be_all_that_moves(
    setup: Setup, tiny: Tiny, tmp_path: Path, learner: PPOConfig | GRPOConfig
) -> None:
    config = AlignmentConfig(updates=2, batch_size=8, learning_rate=0.05, trainable="prior")
    own = {"policy": jnp.float32(0.8), "scores": jnp.array([0.5, 1.0], jnp.float32)}
    ready = with_scorer(setup, PriorConfig(learner="grpo", parts=("popularity",)))._replace(prior={"prior": own})
    proxy = Proxy(tiny.reward_model, (0.5, 0.25, 0.25))
    with open_run(tmp_path / "run", {}, trackers=()) as run:
        policy = alignment.align(run, ready, tiny.reference["trunk"], proxy, config, learner)
    jax.tree.map(np.testing.assert_array_equal, policy["trunk"], tiny.reference["trunk"])
    assert not np.array_equal(policy["prior"]["scores"], own["scores"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["policy/first_ratio_max_deviation"] < 1e-4 and abs(lines[0]["objective/kl_k1"]) < 1e-4
    assert lines[-1]["policy/sampler_mismatch"] < 1e-4


@pytest.mark.parametrize(
    "learner", [pytest.param(PPOConfig(kl_coef=0.1), marks=pytest.mark.slow), GRPOConfig(group_size=4)]
)
def test_a_control_pays_in_the_place_of_the_reward_model(
    setup: Setup, tiny: Tiny, tmp_path: Path, learner: PPOConfig | GRPOConfig
) -> None:
    """What is paid is the share of replies that hold an item."""
    config = AlignmentConfig(updates=2, batch_size=8, learning_rate=1e-3)
    with open_run(tmp_path / "run", {}, trackers=()) as run:
        policy = alignment.align(run, setup, tiny.reference["trunk"], "suggests", config, learner)
    assert not np.array_equal(policy["trunk"]["wte"], tiny.reference["trunk"]["wte"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["objective/score_raw"] == pytest.approx(line["text/item_share"], abs=1e-6)
    assert 0 < lines[0]["text/item_share"] < 1, "all replies alike would not tell the control from a constant"

"""Best-of-n against a loop that draws, pays and picks by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.assessment.best_of_n import BestOf, RewardMoments, drawing, kl_bound, reward_moments
from rlhf_jax.assessment.users import Responder
from rlhf_jax.data.batching import batch_indices
from rlhf_jax.equations.running import RunningMoments
from rlhf_jax.interfaces import PromptBatch, Rollout
from rlhf_jax.keys import stream_key
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.learners.shaping import score_responses
from rlhf_jax.stages.contexts import Windows
from tiny_policy import DATA, Tiny

CONFIG = PPOConfig(
    component_weights=(0.5, 0.2, 0.3),
    missing_eos_mode="subtract",
    missing_eos_penalty=0.5,
    length_coef=0.3,
    length_free=4,
)


def moments(count: float, mean, squares) -> RunningMoments:
    return RunningMoments(*(jnp.asarray(x, jnp.float32) for x in (count, mean, squares)))


MOMENTS = RewardMoments(moments(11.0, [0.3, -0.2, 0.1], [2.0, 9.0, 0.5]), moments(11.0, 0.1, 3.0))


def prompts_of(tiny: Tiny, repeats: int = 4) -> PromptBatch:
    windows = Windows(tiny.setup.vocab, tiny.setup.corpus.test, DATA)
    tokens, mask = windows.prompts(windows.turns() * repeats)
    return PromptBatch(tokens=jnp.asarray(tokens), mask=jnp.asarray(mask))


def pay_by_hand(components: np.ndarray, finished: bool, length: int) -> float:
    """What PPO pays for one response, in plain numbers."""
    deviations = np.sqrt(np.array([2.0, 9.0, 0.5]) / 10)
    weighed = (components - np.array([0.3, -0.2, 0.1])) / deviations
    score = (weighed @ np.array([0.5, 0.2, 0.3]) - 0.1) / np.sqrt(3.0 / 10)
    score = float(np.clip(score, -5.0, 5.0)) - (0.0 if finished else 0.5)
    return score - 0.3 * max(length - 4, 0)


def test_the_best_of_a_loop_over_draws(tiny: Tiny) -> None:
    prompts, key = prompts_of(tiny), jax.random.key(5)
    choose = drawing(tiny.agent, BestOf(4, CONFIG, MOMENTS))
    chosen = jax.jit(choose)(tiny.policy, tiny.reward_model, MOMENTS, prompts, key)
    draws = [tiny.sample(tiny.policy, prompts, key)]
    draws += [tiny.sample(tiny.policy, prompts, stream_key(key, "best_of_n", index)) for index in (1, 2, 3)]
    components = [np.asarray(tiny.score(tiny.reward_model, draw), np.float64) for draw in draws]
    winners = []
    for row in range(prompts.tokens.shape[0]):
        paid = [
            pay_by_hand(scores[row], bool(draw.finished[row]), int(draw.response_mask[row].sum()))
            for draw, scores in zip(draws, components, strict=True)
        ]
        winners.append(int(np.argmax(paid)))
        best = draws[winners[-1]]
        np.testing.assert_array_equal(chosen.response_tokens[row], best.response_tokens[row])
        np.testing.assert_array_equal(chosen.response_mask[row], best.response_mask[row])
        assert bool(chosen.finished[row]) == bool(best.finished[row])
    assert len(set(winners)) >= 3  # The loop was put to the test: winners differ between rows.


def test_one_draw_is_plain_sampling(tiny: Tiny) -> None:
    prompts, key = prompts_of(tiny), jax.random.key(6)
    plain = tiny.sample(tiny.policy, prompts, key)
    for best_of in (None, BestOf(1, CONFIG, MOMENTS)):
        drawn = jax.jit(drawing(tiny.agent, best_of))(tiny.policy, tiny.reward_model, MOMENTS, prompts, key)
        np.testing.assert_array_equal(drawn.response_tokens, plain.response_tokens)
        np.testing.assert_allclose(drawn.logprobs, plain.logprobs, atol=1e-5)


def test_moments_are_those_of_the_policys_own_responses(tiny: Tiny) -> None:
    plain = dataclasses.replace(CONFIG, normalise_components=False)
    found = reward_moments(tiny.setup._replace(seed=1), tiny.policy, tiny.reward_model, plain, batch_size=12, batches=2)
    draws = []
    windows = Windows(tiny.setup.vocab, tiny.setup.corpus.train, DATA)
    turns = windows.turns()
    for index in (0, 1):
        rows = batch_indices(len(turns), seed=1, step=index, batch_size=12)
        tokens, mask = windows.prompts([turns[row] for row in rows])
        prompts = PromptBatch(tokens=jnp.asarray(tokens), mask=jnp.asarray(mask))
        rollout = tiny.sample(tiny.policy, prompts, stream_key(jax.random.key(1), "best_of_n/moments", index))
        draws.append(np.asarray(tiny.score(tiny.reward_model, rollout), np.float64))
    components = np.concatenate(draws)
    assert float(found.components.count) == 24.0
    np.testing.assert_allclose(found.components.mean, components.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.components.m2, ((components - components.mean(0)) ** 2).sum(0), rtol=1e-3)
    scores = components @ np.array([0.5, 0.2, 0.3])
    np.testing.assert_allclose(found.score.m2, ((scores - scores.mean()) ** 2).sum(), rtol=1e-3)


def test_kl_bound_holds_for_a_policy_of_three_responses() -> None:
    """KL of the best of n ≤ log n − (n − 1)/n, by counting all n-tuples of a distribution with known ranks."""
    probability, n = np.array([0.2, 0.5, 0.3]), 3
    best = np.zeros(3)
    for draw in np.ndindex(3, 3, 3):
        best[max(draw)] += probability[list(draw)].prod()
    assert 0 < (best * np.log(best / probability)).sum() <= kl_bound(n)


def test_bad_options_are_named(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        BestOf(0, CONFIG, MOMENTS)
    with pytest.raises(ValueError, match="chooses among sampled replies, by a reward model"):
        Responder(tiny.setup, tiny.policy, greedy=False, best_of=BestOf(2, CONFIG, MOMENTS))


@pytest.mark.parametrize("normalise", [True, False])
def test_pay_is_line_4_of_ppo_with_moments_that_stay(normalise: bool) -> None:
    components = np.array([[1.0, 2.0, 3.0], [0.5, -1.0, 9.0], [-2.0, 0.0, 0.1]], np.float32)
    lengths, finished = [2, 6, 4], [True, True, False]
    mask = jnp.arange(6)[None, :] < jnp.array(lengths)[:, None]
    rollout = Rollout(
        prompt_tokens=jnp.zeros((3, 1), jnp.int32),
        prompt_mask=jnp.ones((3, 1), bool),
        response_tokens=jnp.zeros((3, 6), jnp.int32),
        response_mask=mask,
        logprobs=jnp.zeros((3, 6)),
        finished=jnp.array(finished),
    )
    config = dataclasses.replace(
        CONFIG, missing_eos_mode="replace", normalise_components=normalise, normalise_score=normalise
    )
    combined, found = score_responses(
        jnp.asarray(components), rollout, *MOMENTS, config.component_weights, config, frozen=True
    )
    assert (combined.component_moments, combined.score_moments) == (MOMENTS.components, MOMENTS.score)
    for row, (one, length) in enumerate(zip(components.astype(float), lengths, strict=True)):
        score = pay_by_hand(one, True, 0) if normalise else float(np.clip(one @ np.array([0.5, 0.2, 0.3]), -5, 5))
        score = score if finished[row] else -0.5
        assert float(found[row]) == pytest.approx(score - 0.3 * max(length - 4, 0), abs=1e-4)

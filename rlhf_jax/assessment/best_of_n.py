"""Best-of-n: what the reward buys without learning; n samples of the imitating policy, of which the reward keeps one.

    y* = argmax_i s(x, y_i),   y_1 … y_n ~ π_ref(· | x)

s is what PPO would pay: normalised components, weighed, normalised and clipped, less the prices on length and a missing
`<eos>`. PPO's moments run along with the policy; here they are measured once, on the policy that is sampled from.
Source: Stiennon et al. 2020, arXiv:2009.01325.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from rlhf_jax.data.batching import batch_indices
from rlhf_jax.equations.running import RunningMoments, initial_moments, normalise
from rlhf_jax.interfaces import Params, PromptBatch, Rollout
from rlhf_jax.keys import stream_key
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.learners.shaping import combine_components, penalise
from rlhf_jax.stages.agent import Agent
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.setup import Setup

STREAM = "best_of_n"


class RewardMoments(NamedTuple):
    """Mean and deviation of the components and of their sum, as PPO's normalisation knows them."""

    components: RunningMoments
    score: RunningMoments


def best_of_n(agent: Agent, n: int, config: PPOConfig) -> Agent:
    """The agent that draws n responses a prompt and says the best; the first of equals.

    Its `sample` and `greedy` take the tree of `best_of_n_params`. Both do the same, for the choice is the decoding; the
    rollout's log-probabilities are those of the policy that was sampled from, not of the choice.

    Args:
      n: samples a prompt; draw 0 is what `agent.sample` draws with the same key, so n = 1 is plain sampling.
      config: weights, normalisation and prices of the reward.
    Raises: ValueError if n < 1.
    """
    if n < 1:
        raise ValueError(f"best-of-n: n must be at least 1, got {n}")

    def draw(params: Params, prompts: PromptBatch, key: Array) -> tuple[Rollout, Array]:
        rollout = agent.sample(params, prompts, key)
        return rollout, paid(agent.score(params["reward_model"], rollout), rollout, params["moments"], config)

    def choose(params: Params, prompts: PromptBatch, key: Key[Array, ""]) -> Rollout:
        def challenge(best: tuple[Rollout, Array], index: Array) -> tuple[tuple[Rollout, Array], None]:
            own = jnp.where(index == 0, key, stream_key(key, STREAM, index))
            new = draw(params, prompts, own)
            wins = (new[1] > best[1]) | (index == 0)
            return jax.tree.map(lambda a, b: jnp.where(wins.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, best), None

        # One draw in the program, whatever n: the first replaces a carry of zeros.
        shapes = jax.eval_shape(draw, params, prompts, key)
        nothing = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        (rollout, _), _ = jax.lax.scan(challenge, nothing, jnp.arange(n))
        return rollout

    def decode(params: Params, prompts: PromptBatch, key: Array, row_ids: Int[Array, " B"] | None = None) -> Rollout:
        if row_ids is not None:
            raise ValueError("best-of-n numbers its rows from 0; it cannot take row_ids")
        return choose(params, prompts, key)

    return dataclasses.replace(agent, sample=choose, greedy=decode)


def best_of_n_params(policy: Params, reward_model: Params, moments: RewardMoments) -> Params:
    """The tree of `best_of_n`: the policy's, with what the choice reads."""
    return {**policy, "reward_model": reward_model, "moments": moments}


def paid(
    components: Float[Array, "B C"], rollout: Rollout, moments: RewardMoments, config: PPOConfig
) -> Float[Array, " B"]:
    """What PPO pays for responses (line 4 of its box), with moments that stay as they are. [B]"""
    weights = jnp.asarray(config.component_weights, jnp.float32)[None, :]
    weighed = normalise(moments.components, components) if config.normalise_components else components
    scores = jnp.sum(weighed * weights, axis=1)
    if config.normalise_score:
        scores = normalise(moments.score, scores)
    if config.score_clip is not None:
        scores = jnp.clip(scores, -config.score_clip, config.score_clip)
    return penalise(
        scores,
        rollout.finished,
        jnp.sum(rollout.response_mask, axis=1),
        missing_eos_penalty=config.missing_eos_penalty,
        missing_eos_mode=config.missing_eos_mode,
        length_coef=config.length_coef,
        length_free=config.length_free,
    )


def reward_moments(
    setup: Setup, policy: Params, reward_model: Params, config: PPOConfig, *, batch_size: int, batches: int = 4
) -> RewardMoments:
    """PPO's moments after `batches` rollout batches of a policy that does not learn, on contexts of the training split."""
    agent, seed = setup.agent, setup.seed

    @jax.jit
    def add(
        moments: RewardMoments, policy: Params, reward_model: Params, prompts: PromptBatch, key: Array
    ) -> RewardMoments:
        combined = combine_components(
            agent.score(reward_model, agent.sample(policy, prompts, key)),
            moments.components,
            moments.score,
            weights=config.component_weights,
            normalise_components=config.normalise_components,
            normalise_score=config.normalise_score,
            score_clip=config.score_clip,
        )
        return RewardMoments(combined.component_moments, combined.score_moments)

    moments = RewardMoments(initial_moments((len(config.component_weights),)), initial_moments())
    for index, prompts in enumerate(_training_prompts(setup, batch_size=batch_size, n=batches)):
        key = stream_key(jax.random.key(seed), f"{STREAM}/moments", index)
        moments = add(moments, policy, reward_model, prompts, key)
    return moments


def kl_bound(n: int) -> float:
    """Upper bound of the KL of best-of-n to the policy it samples from, nats per response.

        KL ≤ log n − (n − 1)/n

    Source: Stiennon et al. 2020 (as an equality); Beirami et al. 2024, arXiv:2401.01879, theorem 3.1 (as a bound).

    Examples:
      >>> kl_bound(1), round(kl_bound(8), 3)
      (0.0, 1.204)
    """
    return math.log(n) - (n - 1) / n


def _training_prompts(setup: Setup, *, batch_size: int, n: int) -> Iterator[PromptBatch]:
    windows = Windows(setup.vocab, setup.corpus.train, setup.data)
    turns = windows.turns()
    for step in range(n):
        rows: Any = batch_indices(len(turns), seed=setup.seed, step=step, batch_size=batch_size)
        tokens, mask = windows.prompts([turns[row] for row in rows])
        yield PromptBatch(tokens=jnp.asarray(tokens), mask=jnp.asarray(mask))

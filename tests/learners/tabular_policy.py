"""A policy small enough to know everything about: tables of logits and values by (position, previous token)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.interfaces import Params, PolicyOutput, PromptBatch, Rollout, Sample
from rlhf_jax.learners import ppo
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.learners.ppo_config import PPOConfig

PLAIN = {
    "component_weights": (1.0,),
    "component_names": ("reward",),
    "normalise_components": False,
    "normalise_score": False,
    "score_clip": None,
}
"""One component, paid as it is."""


def table(n_tokens: int, length: int) -> Params:
    """Uniform policy, values 0."""
    return {"logits": jnp.zeros((length, n_tokens, n_tokens)), "values": jnp.zeros((length, n_tokens))}


def prompts(n: int) -> PromptBatch:
    """n prompts that end with token 0."""
    return PromptBatch(tokens=jnp.zeros((n, 2), jnp.int32), mask=jnp.ones((n, 2), bool))


def sample(params: Params, prompts: PromptBatch, key: Any, *, eos: int | None = None) -> Rollout:
    """Token by token; without an `eos` every response fills the table's length and counts as finished."""
    n, length = prompts.tokens.shape[0], params["logits"].shape[0]
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(n))
    previous, alive = prompts.tokens[:, -1], jnp.ones(n, bool)
    tokens, masks, logprobs = [], [], []
    for t in range(length):
        logits = jax.nn.log_softmax(params["logits"][t][previous])
        step_keys = jax.vmap(lambda k, t=t: jax.random.fold_in(k, t))(keys)
        token = jax.vmap(jax.random.categorical)(step_keys, logits)
        tokens.append(jnp.where(alive, token, 0))
        masks.append(alive)
        logprobs.append(jnp.where(alive, jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0], 0.0))
        if eos is not None:
            alive = alive & (token != eos)
        previous = token
    return Rollout(
        prompt_tokens=prompts.tokens,
        prompt_mask=prompts.mask,
        response_tokens=jnp.stack(tokens, axis=1),
        response_mask=jnp.stack(masks, axis=1),
        logprobs=jnp.stack(logprobs, axis=1),
        finished=jnp.ones(n, bool) if eos is None else ~alive,
    )


def policy(params: Params, rollout: Rollout) -> PolicyOutput:
    """The learner's view of the same tables; NaN on padding, which nobody may look at."""
    tokens = rollout.response_tokens
    previous = jnp.concatenate([rollout.prompt_tokens[:, -1:], tokens[:, :-1]], axis=1)
    position = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    logits = jax.nn.log_softmax(params["logits"][position, previous])
    padding = jnp.where(rollout.response_mask, 0.0, jnp.nan)
    return PolicyOutput(
        logprobs=jnp.take_along_axis(logits, tokens[..., None], axis=2)[..., 0] + padding,
        entropy=-jnp.sum(jnp.exp(logits) * logits, axis=2) + padding,
        values=params["values"][position, previous] + padding,
    )


def table_score(reward_params: Params, rollout: Rollout) -> jax.Array:
    """Looks the reward up by the response's three tokens; one program serves every reward of these shapes."""
    tokens = rollout.response_tokens
    return reward_params[tokens[:, 0], tokens[:, 1], tokens[:, 2]][:, None]


@functools.cache
def program(
    config: PPOConfig, learning_rate: float, sample: Sample = sample
) -> tuple[optax.GradientTransformation, ppo.OneProgram]:
    """The compiled update on table rewards, compiled once for all tests of one configuration."""
    optimizer = make_optimizer(learning_rate=learning_rate, total_steps=10**6, schedule="constant")
    iteration = ppo.make_ppo_iteration(
        sample=sample, policy=policy, score=table_score, optimizer=optimizer, config=config
    )
    return optimizer, iteration


def train(
    params: Params,
    reward: jax.Array,
    *,
    config: PPOConfig,
    updates: int,
    kl_coef: float = 0.0,
    learning_rate: float = 0.03,
    ref_params: Params | None = None,
    sample: Sample = sample,
) -> tuple[ppo.PPOState, dict[str, float]]:
    """PPO from `params` on a reward table [V, V, V] over three tokens; the last state and metrics."""
    optimizer, iteration = program(config, learning_rate, sample)
    ref_params = params if ref_params is None else ref_params
    state, metrics = ppo.init(params, optimizer, config, jax.random.key(0)), {}
    state = state.replace(kl_coef=jnp.array(kl_coef))
    for _ in range(updates):
        state, metrics, _ = iteration(state, prompts(64), ref_params, reward)
    return state, {name: float(value) for name, value in metrics.items()}


sample_until_eos = functools.partial(sample, eos=1)

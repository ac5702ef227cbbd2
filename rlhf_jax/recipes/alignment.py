"""Stage 3: PPO against the reward model, on contexts of the training split."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.batching import batch_indices
from rlhf_jax.evaluation.text import repetition
from rlhf_jax.interfaces import Params, PromptBatch, Rollout
from rlhf_jax.learners import ppo
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.recipes.agent import Agent, copied, policy_params
from rlhf_jax.recipes.corpus import DataConfig, Prepared, Windows
from rlhf_jax.runtime.keys import stream_key
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.runtime.stage import run_stage

STAGE = "ppo"


@dataclasses.dataclass(frozen=True)
class AlignmentConfig:
    """Stage 3: how long and how fast PPO goes; what an update does is `ppo`."""

    updates: int = 60
    """Rollout batches."""
    batch_size: int = 64
    """Prompts (and responses) of one update, over all devices."""
    temperature: float = 1.0
    """Divides the logits of policy and reference, in sampling and in learning."""
    learning_rate: float = 1e-4
    """Start of the linear schedule to 0."""
    warmup_steps: int = 0
    """Optimiser steps until the start of the schedule."""
    max_grad_norm: float = 1.0
    """Limit of the gradient's global norm."""
    adam_eps: float = 1e-5
    """ε of Adam."""
    evaluations: int = 6
    """Evaluations during PPO (true utility in the simulated world), evenly spaced."""
    save_every: int = 5
    """Updates between checkpoints."""


def align(
    run: RunDirectory,
    prepared: Prepared,
    agent: Agent,
    trunk: Params,
    reward_model: Params,
    config: AlignmentConfig,
    ppo_config: PPOConfig,
    data: DataConfig,
    *,
    seed: int,
    truth: Callable[[Params], Mapping[str, float]] | None = None,
) -> Params:
    """Runs the stage and returns the aligned policy's tree.

    Args:
      trunk: supervised GPT-2: the policy's start and, frozen, the reference.
      reward_model: R_φ's tree.
      truth: a measurement the policy is not trained on, taken before the first update, `config.evaluations` times on the
        way and at the end.
    """
    windows = Windows(prepared.vocab, prepared.corpus.train, data)
    tokens, mask = windows.prompts(windows.turns())
    policy = policy_params(trunk, agent.network.n_embd)
    steps = config.updates * ppo_config.epochs * ppo_config.minibatches
    optimizer = make_optimizer(
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        total_steps=steps,
        schedule="linear",
        max_grad_norm=config.max_grad_norm,
        adam_eps=config.adam_eps,
    )
    iteration = ppo.make_ppo_iteration(
        sample=agent.sample, policy=agent.policy, score=agent.score, optimizer=optimizer, config=ppo_config
    )
    reference = copied({"trunk": trunk})
    key = stream_key(jax.random.key(seed), "ppo", 0)

    def update(state: ppo.PPOState, index: int) -> tuple[ppo.PPOState, dict[str, Any]]:
        rows = batch_indices(len(tokens), seed=seed, step=index, batch_size=config.batch_size)
        prompts = PromptBatch(tokens=jnp.asarray(tokens[rows]), mask=jnp.asarray(mask[rows]))
        # Where the path begins: the supervised policy, KL 0. Measured before the state is donated.
        start = truth(state.params) if truth is not None and index == 0 else {}
        state, metrics, rollout = iteration(state, prompts, reference, reward_model)
        metrics |= surface(rollout, prepared.vocab.rec)
        named = {name if name == "skipped" else f"{STAGE}/{name}": value for name, value in metrics.items()}
        return state, {**named, **start}

    def evaluate(state: ppo.PPOState, index: int) -> Mapping[str, float]:
        del index
        return truth(state.params) if truth is not None else {}

    final = run_stage(
        run,
        STAGE,
        ppo.init(policy, optimizer, ppo_config, key),
        update,
        config.updates,
        save_every=config.save_every,
        log_every=1,
        on_eval=evaluate if truth is not None else None,
        eval_every=max(1, config.updates // config.evaluations) if truth is not None else None,
    )
    return final.params


def surface(rollout: Rollout, rec: int) -> dict[str, float]:
    """What the responses look like from outside: signs of degenerate text that no reward shows."""
    tokens, mask = np.asarray(rollout.response_tokens), np.asarray(rollout.response_mask)
    responses = [row[keep] for row, keep in zip(tokens, mask, strict=True)]
    pairs = [pair for row in responses for pair in zip(row[:-1].tolist(), row[1:].tolist(), strict=True)]
    return {
        "text/repetition": float(np.mean([repetition(" ".join(map(str, row))) for row in responses])),
        "text/distinct_2": len(set(pairs)) / max(len(pairs), 1),
        "text/item_share": float(np.mean([rec in row for row in responses])),
    }

"""Stage 3: PPO against the reward model, on contexts of the training split."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.evaluation.text import repetition
from rlhf_jax.feedback.components import COMPONENTS
from rlhf_jax.interfaces import Params, PromptBatch, Rollout
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import ppo
from rlhf_jax.learners.optimizer import Adam, make_optimizer
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.ranges import Batch, Norm, Range, Rate, Steps, Tokens, check_numbers, option
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.runtime.stage import StagePlan, run_stage
from rlhf_jax.stages.agent import copied, on_mesh, policy_params
from rlhf_jax.stages.contexts import PromptBatches, Windows
from rlhf_jax.stages.reward import Proxy
from rlhf_jax.stages.setup import Setup

STAGE = "ppo"
Probe = Callable[[Params, int], Mapping[str, float]]
"""Measures a policy after a number of updates: (parameters, updates done) to metrics by their bare names (`world/mean_utility`)."""


@dataclasses.dataclass(frozen=True)
class AlignmentConfig:
    """Stage 3: how long and how fast PPO goes; what an update does is `ppo`."""

    updates: Steps = 60
    """Rollout batches."""
    batch_size: Batch = 64
    """Prompts (and responses) of one update, over all devices."""
    temperature: Annotated[float, Range("[0.01, 100]")] = 1.0
    """Divides the logits of policy and reference, in sampling and in learning."""
    learning_rate: Rate = 1e-4
    """Start of the linear schedule to 0."""
    warmup_steps: Annotated[int, Range("[0, 1_000_000]")] = 0
    """Optimiser steps until the start of the schedule."""
    max_grad_norm: Norm = 1.0
    """Limit of the gradient's global norm."""
    adam_eps: Annotated[float, Range("(0, 1]")] = 1e-5
    """ε of Adam."""
    evaluations: Steps = 6
    """Evaluations during PPO (true utility in the simulated world), evenly spaced; fewer where they do not divide the updates."""
    save_every: Steps = 5
    """Updates between checkpoints."""
    prompt_buckets: tuple[Tokens, ...] = ()
    """Widths below `--data.context-tokens` that a batch is cut to where its prompts fit: the same numbers for less work, and
    one more program to compile for each. Batches as drawn nearly always hold a long prompt: see `prompt_group`."""
    prompt_group: Annotated[int, Range("[1, 1_000]")] = 1
    """Updates that share out their prompts by length, so that batches fit narrow buckets; 8 is a good number, 1 leaves
    batches as drawn. It changes which prompts meet in a batch (docs/decisions/0007)."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if sorted({0, *self.prompt_buckets}) != [0, *self.prompt_buckets]:
            raise ValueError(f"{option(self, 'prompt_buckets')} must ascend: got {self.prompt_buckets}")
        if self.prompt_group > 1 and not self.prompt_buckets:
            raise ValueError(
                f"{option(self, 'prompt_group')} {self.prompt_group} saves nothing without "
                f"{option(self, 'prompt_buckets')}: name some widths"
            )


def align(
    run: RunDirectory,
    setup: Setup,
    trunk: Params,
    proxy: Proxy,
    config: AlignmentConfig,
    ppo_config: PPOConfig,
    *,
    truth: Probe | None = None,
    stage: str = STAGE,
) -> Params:
    """Runs the stage and returns the aligned policy's tree.

    Args:
      trunk: supervised GPT-2: the policy's start and, frozen, the reference.
      proxy: R_φ and what its components weigh, whatever weights `ppo_config` names; also their names, where it leaves them
        at the default.
      truth: a measurement the policy is not trained on, taken before the first update and then at most
        `config.evaluations` times, the last time at the end.
      stage: names the checkpoints and the lines of `metrics.jsonl`; a run with several PPO stages names each.
    """
    agent, seed, layout = setup.agent, setup.seed, setup.layout
    ppo_config = dataclasses.replace(ppo_config, component_weights=proxy.weights)
    if ppo_config.component_names == COMPONENTS:
        ppo_config = dataclasses.replace(ppo_config, component_names=proxy.names)
    windows = Windows(setup.vocab, setup.corpus.train, setup.data)
    dealt = PromptBatches(
        *windows.prompts(windows.turns()),
        batch_size=config.batch_size,
        seed=seed,
        buckets=config.prompt_buckets,
        group=config.prompt_group,
    )
    policy = policy_params(trunk, agent.network.n_embd)
    steps = config.updates * ppo_config.epochs * ppo_config.minibatches
    optimizer = make_optimizer(
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        total_steps=steps,
        schedule="linear",
        max_grad_norm=config.max_grad_norm,
        adam=Adam(eps=config.adam_eps),
    )
    spread = on_mesh(agent, layout)
    start_state = layout.place(ppo.init(policy, optimizer, ppo_config, stream_key(jax.random.key(seed), "ppo", 0)))
    iteration = ppo.make_ppo_iteration(
        sample=spread.sample,
        policy=spread.policy,
        score=spread.score,
        optimizer=optimizer,
        config=ppo_config,
        out_shardings=layout.outputs(start_state),
    )
    iterate = layout.together(iteration, STAGE)
    reference, scorer = layout.place(copied({"trunk": trunk})), layout.place(proxy.model)

    def update(state: ppo.PPOState, index: int) -> tuple[ppo.PPOState, dict[str, Any]]:
        tokens, mask = dealt.batch(index)

        def own_prompts(own: slice) -> PromptBatch:
            return PromptBatch(tokens=jnp.asarray(tokens[own]), mask=jnp.asarray(mask[own]))

        # Where the path begins: the supervised policy, KL 0. Measured before the state is donated.
        start = truth(layout.fetch(state.params), 0) if truth is not None and index == 0 else {}
        prompts = layout.batch(config.batch_size, own_prompts)
        state, metrics, rollout = iterate(state, prompts, reference, scorer)
        metrics |= surface(layout.fetch(rollout), setup.vocab.rec)
        return state, {**metrics, **start}

    def evaluate(state: ppo.PPOState, index: int) -> Mapping[str, float]:
        return truth(layout.fetch(state.params), index) if truth is not None else {}

    final = run_stage(
        run,
        start_state,
        update,
        StagePlan(
            stage,
            config.updates,
            save_every=config.save_every,
            log_every=1,
            on_eval=evaluate if truth is not None else None,
            eval_every=math.ceil(config.updates / config.evaluations) if truth is not None else None,
        ),
    )
    return layout.fetch(final.params)


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

"""Stage 3: PPO or GRPO against the reward model, on contexts of the training split."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.evaluation.text import repetition
from rlhf_jax.feedback.components import COMPONENTS
from rlhf_jax.feedback.controls import ControlName, control
from rlhf_jax.interfaces import Params, PromptBatch, Rollout
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import grpo, ppo
from rlhf_jax.learners.grpo_config import GRPOConfig
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.learners.trainable import Trainable, held, policy_optimizer
from rlhf_jax.ranges import Batch, Norm, Range, Rate, Steps, Tokens, check_numbers, option
from rlhf_jax.runtime.metrics import Sample
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.runtime.stage import StagePlan, run_stage
from rlhf_jax.stages.agent import copied, on_mesh, policy_params
from rlhf_jax.stages.contexts import PromptBatches, Windows
from rlhf_jax.stages.reward import Proxy
from rlhf_jax.stages.samples import reply_drawer
from rlhf_jax.stages.setup import Setup

STAGE = "ppo"
STAGES = ("ppo", "grpo")
"""What the stage is called with either learner."""
RLState = ppo.PPOState | grpo.GRPOState
Probe = Callable[[Params, int], Mapping[str, float]]
"""Measures a policy after a number of updates: (parameters, updates done) to metrics by their bare names (`world/mean_utility`)."""


@dataclasses.dataclass(frozen=True)
class AlignmentConfig:
    """Stage 3: how long and how fast PPO or GRPO goes; what an update does is `ppo` or `grpo`."""

    updates: Steps = 60
    """Rollout batches."""
    batch_size: Batch = 64
    """Responses of one update, over all devices; as many prompts, or a group's share of them where there are groups."""
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
    trainable: Trainable = "all"
    """What moves: every parameter; `heads`: the table of words and items (tied: it is the input too), the last layer norm, the
    value head and the prior over items, while all blocks stay as imitation left them; `prior`: that prior and the value head;
    `manners`: the prior's three numbers of when to suggest and when to stop, where it has them."""
    evaluations: Steps = 6
    """Evaluations during the stage (true utility in the simulated world, replies of `--samples`), evenly spaced; fewer where they do
    not divide the updates."""
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
    proxy: Proxy | ControlName,
    config: AlignmentConfig,
    learner_config: PPOConfig | GRPOConfig,
    *,
    truth: Probe | None = None,
    stage: str | None = None,
) -> Params:
    """Runs the stage and returns the aligned policy's tree.

    Args:
      trunk: supervised GPT-2: the policy's start and, frozen, the reference.
      proxy: R_φ and what its components weigh, whatever weights `learner_config` names; also their names, where it leaves
        them at the default. Or a control that pays in its place (`feedback/controls.py`).
      learner_config: its type says which learner runs.
      truth: a measurement the policy is not trained on, taken before the first update and then at most
        `config.evaluations` times, the last time at the end.
      stage: names the checkpoints and the lines of `metrics.jsonl`, `ppo` or `grpo` by default; a run with several PPO
        stages names each.
    """
    agent, seed, layout = setup.agent, setup.seed, setup.layout
    weights, names = ((1.0,), (proxy,)) if isinstance(proxy, str) else (proxy.weights, proxy.names)
    learner_config = dataclasses.replace(learner_config, component_weights=weights)
    if isinstance(proxy, str) or learner_config.component_names == COMPONENTS:
        learner_config = dataclasses.replace(learner_config, component_names=names)
    grouped = learner_config.group_size
    n_prompts = prompts_of(config.batch_size, grouped)
    imitated, contexts = setup.training_parts()
    windows = Windows.of(setup, contexts)
    turns = windows.turns()
    dealt = PromptBatches(
        windows.prompts_of(turns),
        batch_size=n_prompts,
        seed=seed,
        buckets=config.prompt_buckets,
        group=config.prompt_group,
    )
    human = None
    if learner_config.ptx_coef > 0:
        # A stream of its own: not the human answers to the very prompts of the update.
        human = Windows.of(setup, imitated).demonstrations(
            functools.partial(PromptBatches, batch_size=config.batch_size, seed=seed ^ zlib.crc32(b"demonstrations"))
        )
    steps = config.updates * learner_config.epochs * learner_config.minibatches
    optimizer, next_rate = policy_optimizer(config, steps)
    spread = on_mesh(agent, layout)
    reference_params = {"trunk": trunk, **setup.prior}
    kind = "grpo" if isinstance(learner_config, GRPOConfig) else STAGE
    together = learner_config.rows_together if isinstance(learner_config, GRPOConfig) else 1
    stage = stage or kind
    key = stream_key(jax.random.key(seed), kind, 0)
    score, reward_model = spread.score, {}
    if isinstance(proxy, str):
        score = layout.by_row(control(proxy, first_item=setup.vocab.first_item, n_items=setup.vocab.n_items))
    else:
        reward_model = proxy.model
    callables: Any = {
        "sample": spread.sample if grouped == 1 else spread.sample_groups(grouped),
        "policy": held(spread.judge_groups(together), config.trainable),
        "score": score,
        "optimizer": optimizer,
    }
    if isinstance(learner_config, GRPOConfig):
        # Nothing reads a value, so there is no head for it.
        start_state = layout.place(grpo.init(reference_params, optimizer, learner_config, key))
        outputs = layout.outputs(start_state)
        iteration = grpo.make_grpo_iteration(**callables, config=learner_config, out_shardings=outputs)
    else:
        policy = policy_params(trunk, agent.network.n_embd) | dict(setup.prior)
        start_state = layout.place(ppo.init(policy, optimizer, learner_config, key))
        outputs = layout.outputs(start_state)
        iteration = ppo.make_ppo_iteration(**callables, config=learner_config, out_shardings=outputs)
    iterate = layout.together(iteration, STAGE)
    reference, scorer = layout.place(copied(reference_params)), layout.place(reward_model)

    def update(state: RLState, index: int) -> tuple[RLState, dict[str, Any]]:
        tokens, mask = dealt.batch(index)

        def own_prompts(own: slice) -> PromptBatch:
            rows = dealt.rows(index)[own]
            return PromptBatch(
                tokens=jnp.asarray(tokens[own]),
                mask=jnp.asarray(mask[own]),
                item_scores=windows.item_scores([turns[row] for row in rows]),
            )

        # Where the path begins: the supervised policy, KL 0. Measured before the state is donated.
        start = truth(layout.fetch(kept(state)), 0) if truth is not None and index == 0 else {}
        prompts = layout.batch(n_prompts, own_prompts)
        # Read before the state is donated.
        start = {**start, "learning_rate": next_rate(state.opt_state)}
        fixed = (reference, scorer)
        if human is not None:
            fixed += (layout.batch(config.batch_size, functools.partial(human.batch, index)),)
        state, metrics, rollout = iterate(state, prompts, *fixed)
        metrics |= surface(layout.fetch(rollout), setup.vocab.rec)
        return state, {**metrics, **start}

    def evaluate(state: RLState, index: int) -> Mapping[str, float]:
        return truth(layout.fetch(kept(state)), index) if truth is not None else {}

    drawer = reply_drawer(setup, run.samples, None if isinstance(proxy, str) else proxy)

    def draw_samples(state: RLState) -> list[Sample]:
        return [] if drawer is None else drawer(layout.fetch(kept(state)))

    evaluates = truth is not None or drawer is not None
    final = run_stage(
        run,
        start_state,
        update,
        StagePlan(
            stage,
            config.updates,
            save_every=config.save_every,
            log_every=1,
            steps_per_update=learner_config.epochs * learner_config.minibatches,
            advice=f"a lower --align.learning-rate, or another coefficient among --{kind}.*,",
            on_eval=evaluate if truth is not None else None,
            eval_every=math.ceil(config.updates / config.evaluations) if evaluates else None,
            draw_samples=None if drawer is None else draw_samples,
        ),
    )
    return layout.fetch(kept(final))


def kept(state: RLState) -> Params:
    """The policy that is measured and handed on: the moving average where there is one."""
    return state.params if state.average is None else state.average


def prompts_of(batch_size: int, group_size: int) -> int:
    """Prompts of one update.

    Raises: ValueError if the responses cannot be divided into groups.
    """
    if batch_size % group_size:
        raise ValueError(f"--align.batch-size {batch_size} cannot be divided into groups of {group_size} responses")
    return batch_size // group_size


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

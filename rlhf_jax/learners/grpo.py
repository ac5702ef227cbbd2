"""GRPO on language: groups of responses to one prompt, compared place by place; no value function.

The numbers 1–7 are the lines of the box in `docs/algorithms/grpo.md`. Source: Shao et al. 2024 (arXiv:2402.03300).
Differences: a place has its own baseline (theirs: one for a whole response), tokens of all responses count alike in the
loss (theirs: responses do), a flat group's advantages are exactly 0.

An update has the form of PPO's, so that a stage runs either: `init` and `make_grpo_iteration`.
"""

import functools
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from rlhf_jax.equations.gae import generalized_advantage_estimation
from rlhf_jax.equations.group import advantages_by_place
from rlhf_jax.equations.kl import kl_k1, kl_k3
from rlhf_jax.equations.masked import zero_padding
from rlhf_jax.equations.ppo import clipped_surrogate
from rlhf_jax.equations.rewards import token_rewards
from rlhf_jax.equations.running import RunningMoments, initial_moments
from rlhf_jax.interfaces import Params, PolicyApply, PolicyOutput, PromptBatch, Rollout, Sample, Score
from rlhf_jax.keys import stream_key
from rlhf_jax.learners.grpo_config import GRPOConfig
from rlhf_jax.learners.microbatch import LossSums
from rlhf_jax.learners.minibatch import Descent, descend, judge, ratio_maxima, surrogate_metrics
from rlhf_jax.learners.optimizer import moving_average
from rlhf_jax.learners.ppo_metrics import Metrics, ShapedRewards, objective_metrics, summarise_steps
from rlhf_jax.learners.sft import sum_and_count
from rlhf_jax.learners.shaping import CombinedScores, penalise, score_responses


@chex.dataclass(frozen=True)
class GRPOState:
    """What GRPO carries from update to update; with the position in the prompts, all a restart needs."""

    update: Int[Array, ""]
    """Updates done."""
    params: Params
    opt_state: optax.OptState
    component_weights: Float[Array, " C"]
    component_moments: RunningMoments
    score_moments: RunningMoments
    skipped: Int[Array, ""]
    """Optimiser steps refused because a loss or gradient was not finite."""
    key: Key[Array, ""]
    """Root of all draws; never advanced: update n folds n into it."""
    average: Params = None
    """Exponential moving average of `params` over updates; None where it is off."""


@chex.dataclass(frozen=True)
class GroupExperience:
    """A rollout batch and everything about it that stays fixed while the policy is improved on it."""

    rollout: Rollout
    old_logprobs: Float[Array, "B T"]
    ref_logprobs: Float[Array, "B T"]
    advantages: Float[Array, "B T"]
    """0 on padding and in flat groups."""


@runtime_checkable
class Descending(Protocol):
    """The part of a configuration that says how line 6 is taken; `GRPOConfig` says what each number means."""

    @property
    def clip_eps(self) -> float: ...
    @property
    def kl_coef(self) -> float: ...
    @property
    def descent(self) -> Descent: ...


class Speaker(NamedTuple):
    """The callables of an update; they hold no parameters."""

    sample: Sample
    """Gives `group_size` responses to each prompt, row by row."""
    policy: PolicyApply
    score: Score


def init(params: Params, optimizer: optax.GradientTransformation, config: GRPOConfig, key: Key[Array, ""]) -> GRPOState:
    """Before the first update. Copies `params`: the state is donated, and the reference often is the same arrays."""
    config.check_components()
    params = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
    return GRPOState(
        update=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        component_weights=jnp.array(config.component_weights, jnp.float32),
        component_moments=initial_moments((len(config.component_weights),)),
        score_moments=initial_moments(),
        skipped=jnp.zeros((), jnp.int32),
        key=jax.random.clone(key),
        average=None if config.average_decay is None else jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params),
    )


def grpo_iteration(
    state: GRPOState,
    prompts: PromptBatch,
    ref_params: Params,
    reward_params: Params,
    demonstrations: Rollout | None = None,
    *,
    speaker: Speaker,
    optimizer: optax.GradientTransformation,
    config: GRPOConfig,
) -> tuple[GRPOState, Metrics, Rollout]:
    """One update: lines 1–7 of the box.

    Args:
      prompts: one row per group.
      ref_params: of the reference policy.
      reward_params: what the score reads; an argument, because a captured array would be baked into the program.
      demonstrations: as many human responses as are sampled, for the supervised loss; None where its weight is 0.
    Returns: the next state, metrics by name (no stage prefix), and the responses it learnt from.
    """
    # 1. Sample a group of responses per prompt from the current policy.
    with jax.named_scope("rollout"):
        rollout = speaker.sample(state.params, prompts, stream_key(state.key, "grpo/sample", state.update))
    # 2. Score each response: the components of R_φ.
    with jax.named_scope("scoring"):
        components = speaker.score(reward_params, rollout)
    # 3–7. Learn from them.
    state, metrics = learn_phase(
        state,
        rollout,
        components,
        ref_params,
        demonstrations,
        policy=speaker.policy,
        optimizer=optimizer,
        config=config,
    )
    return state, metrics, rollout


def learn_phase(
    state: GRPOState,
    rollout: Rollout,
    components: Float[Array, "B C"] | Float[Array, "B T C"],
    ref_params: Params,
    demonstrations: Rollout | None = None,
    *,
    policy: PolicyApply,
    optimizer: optax.GradientTransformation,
    config: GRPOConfig,
) -> tuple[GRPOState, Metrics]:
    """Lines 3–7 of the box, from responses (groups row by row) and their raw reward components.

    Args:
      components: of whole responses, or of every token, paid where they are earned.
    Raises: ValueError at trace time if the responses cannot be divided into groups, or on another number of components.
    """
    n_rows = rollout.response_tokens.shape[0]
    if n_rows % config.group_size:
        raise ValueError(f"{n_rows} responses cannot be divided into groups of {config.group_size}")
    if components.shape[-1] != len(config.component_weights):
        raise ValueError(f"{components.shape[-1]} reward components for {len(config.component_weights)} weights")
    # 3. Judge every token: log π_old, log π_ref.
    with jax.named_scope("scoring"):
        old = judge_old(state.params, rollout, policy, config.old_logprobs)
        ref_logprobs = judge(policy, ref_params, rollout).logprobs
    # 4. What every token is paid: the score at the last one, or each place its own.
    scores, paid, rewards = pay(state, rollout, components, config)
    # 5. Reward-to-go, against the mean of those in the group that still run at this place.
    experience = compare(rollout, rewards, old.logprobs, ref_logprobs, config)
    # 6. Epochs × minibatches of clipped steps.
    with jax.named_scope("update"):
        params, opt_state, learning = improve(
            (state.params, state.opt_state),
            experience,
            demonstrations,
            stream_key(state.key, "grpo/minibatches", state.update),
            policy=policy,
            optimizer=optimizer,
            config=config,
        )
    metrics = group_metrics(components, (scores, paid, rewards), experience, old, config)
    metrics["norms/parameter"] = optax.tree.norm(params)
    state = GRPOState(
        update=state.update + 1,
        params=params,
        opt_state=opt_state,
        component_weights=state.component_weights,
        component_moments=scores.component_moments,
        score_moments=scores.score_moments,
        skipped=state.skipped + learning["skipped"],
        key=state.key,
        # 7. The moving average, where there is one.
        average=moving_average(state.average, params, state.update, config.average_decay),
    )
    return state, metrics | learning


def judge_old(
    params: Params, rollout: Rollout, policy: PolicyApply, source: Literal["recompute", "sampler"]
) -> PolicyOutput:
    """What the policy that sampled says of every token: by a pass, or as the sampler stored it (entropy: −log π)."""
    if source == "recompute":
        return judge(policy, params, rollout)
    logprobs = zero_padding(rollout.logprobs, rollout.response_mask)
    return PolicyOutput(logprobs=logprobs, entropy=-logprobs, values=jnp.zeros_like(logprobs))


def pay(
    state: GRPOState, rollout: Rollout, components: Float[Array, "..."], config: GRPOConfig
) -> tuple[CombinedScores, Float[Array, " B"], Float[Array, "B T"]]:
    """Line 4: combined scores, what each response is paid in all, and what each of its tokens. [B], [B, T]

    Raises: ValueError at trace time where tokens have components of their own and scores are to be normalised, clipped or
      replaced: that is defined for whole responses.
    """
    mask = rollout.response_mask
    moments = state.component_moments, state.score_moments
    if components.ndim == 2:
        scores, paid = score_responses(components, rollout, *moments, state.component_weights, config)
        return scores, paid, spread_at_end(paid, mask)
    if config.normalise_components or config.normalise_score or config.score_clip is not None:
        raise ValueError("components by token: switch off normalise_components, normalise_score and score_clip")
    if config.missing_eos_mode != "subtract":
        raise ValueError(f"components by token: missing_eos_mode must be 'subtract', got {config.missing_eos_mode!r}")
    components = jnp.where(mask[..., None], components.astype(jnp.float32), 0.0)
    by_token = jnp.sum(components * state.component_weights[None, None], axis=-1)
    total = jnp.sum(by_token, axis=1)
    lengths = jnp.sum(mask, axis=1)
    price = penalise(
        jnp.zeros_like(total),
        rollout.finished,
        lengths,
        missing_eos_penalty=config.missing_eos_penalty,
        missing_eos_mode=config.missing_eos_mode,
        length_coef=config.length_coef,
        length_free=config.length_free,
    )
    whole = jnp.sum(components, axis=1)
    scores = CombinedScores(total, total, whole, *moments)
    return scores, total + price, by_token + spread_at_end(price, mask)


def spread_at_end(paid: Float[Array, " B"], mask: Any) -> Float[Array, "B T"]:
    """`paid` on the last token of each response, 0 elsewhere. [B, T]"""
    nothing = jnp.zeros(mask.shape, jnp.float32)
    return jax.vmap(functools.partial(token_rewards, kl_coef=0.0))(paid, nothing, mask)


def compare(
    rollout: Rollout,
    rewards: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    ref_logprobs: Float[Array, "B T"],
    config: GRPOConfig,
) -> GroupExperience:
    """Line 5. Without values and with λ = 1, GAE is the discounted reward-to-go."""
    batch, length = rewards.shape
    to_go = jax.vmap(functools.partial(generalized_advantage_estimation, gamma=config.gamma, gae_lambda=1.0))(
        rewards, jnp.zeros((batch, length + 1), jnp.float32)
    )
    grouped = (batch // config.group_size, config.group_size, length)
    by_place = functools.partial(advantages_by_place, scaled=config.scale_by_deviation)
    advantages = jax.vmap(by_place)(to_go.reshape(grouped), rollout.response_mask.reshape(grouped))
    return GroupExperience(
        rollout=rollout,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        advantages=advantages.reshape(batch, length),
    )


def grpo_loss(params: Params, batch: GroupExperience, *, policy: PolicyApply, config: Descending) -> LossSums:
    """Clipped surrogate + kl_coef · k3 to the reference, summed over valid tokens."""
    mask = batch.rollout.response_mask
    new = judge(policy, params, batch.rollout)
    per_token = clipped_surrogate(new.logprobs, batch.old_logprobs, batch.advantages, clip_eps=config.clip_eps)
    metrics = {"policy/loss": per_token} | surrogate_metrics(
        new.logprobs, batch.old_logprobs, batch.advantages, clip_eps=config.clip_eps
    )
    if config.kl_coef != 0:
        penalty = kl_k3(new.logprobs, batch.ref_logprobs)
        per_token = per_token + config.kl_coef * penalty
        metrics["policy/kl_penalty"] = penalty
    loss, count = sum_and_count(per_token, mask)
    return LossSums(
        loss=loss,
        count=count,
        parts={name: sum_and_count(x, mask) for name, x in metrics.items()},
        maxima=ratio_maxima(new.logprobs, batch.old_logprobs, mask),
    )


def improve(
    start: tuple[Params, optax.OptState],
    experience: GroupExperience,
    demonstrations: Rollout | None,
    key: Key[Array, ""],
    *,
    policy: PolicyApply,
    optimizer: optax.GradientTransformation,
    config: Descending,
) -> tuple[Params, optax.OptState, Metrics]:
    """Line 6: all optimiser steps of one update from `start`, and their metrics; `key` orders the rows."""

    def loss_fn(params: Params, batch: GroupExperience, key: Key[Array, ""]) -> LossSums:
        del key  # Dropout is off while learning: the first minibatch's ratio must be 1.
        return grpo_loss(params, batch, policy=policy, config=config)

    params, opt_state, logged = descend(
        start,
        (experience, demonstrations),
        key,
        loss_fn=loss_fn,
        policy=policy,
        optimizer=optimizer,
        descent=config.descent,
    )
    return params, opt_state, summarise_steps(logged)


def group_metrics(
    components: Float[Array, "..."],
    shaped: tuple[CombinedScores, Float[Array, " B"], Float[Array, "B T"]],
    experience: GroupExperience,
    old: PolicyOutput,
    config: GRPOConfig,
) -> Metrics:
    """PPO's metrics of the objective, without a KL that is paid, and the share of groups that teach nothing."""
    scores, paid, rewards = shaped
    k1 = kl_k1(experience.old_logprobs, experience.ref_logprobs)
    k3 = kl_k3(experience.old_logprobs, experience.ref_logprobs)
    raw = components if components.ndim == 2 else scores.components
    metrics = objective_metrics(
        ShapedRewards(raw, scores, paid, k1, k3, rewards),
        old,
        experience.rollout,
        names=config.component_names,
        kl_coef=jnp.array(config.kl_coef, jnp.float32),
    )
    # The KL is in the loss, not in the reward.
    del metrics["objective/non_score_reward"]
    groups = experience.advantages.reshape(-1, config.group_size * experience.advantages.shape[1])
    metrics["objective/flat_group_share"] = jnp.mean(jnp.all(groups == 0, axis=1).astype(jnp.float32))
    return metrics


@runtime_checkable
class OneProgram(Protocol):
    """A compiled `grpo_iteration`; the state passed in is donated and must not be used again."""

    def __call__(
        self,
        state: GRPOState,
        prompts: PromptBatch,
        ref_params: Params,
        reward_params: Params,
        demonstrations: Rollout | None = None,
    ) -> tuple[GRPOState, Metrics, Rollout]: ...


def make_grpo_iteration(
    *,
    sample: Sample,
    policy: PolicyApply,
    score: Score,
    optimizer: optax.GradientTransformation,
    config: GRPOConfig,
    out_shardings: Any = None,
) -> OneProgram:
    """`grpo_iteration` as one program; see `ppo.make_ppo_iteration`."""
    speaker = Speaker(sample, policy, score)
    bound = functools.partial(grpo_iteration, speaker=speaker, optimizer=optimizer, config=config)
    return jax.jit(bound, donate_argnums=0, out_shardings=out_shardings)

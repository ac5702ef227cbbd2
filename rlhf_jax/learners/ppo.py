"""PPO on language: sample, score, and improve the policy by a clipped surrogate under a KL price.

The numbers 1–8 are the lines of the box in `docs/algorithms/ppo.md`. Source: Ziegler et al. 2019 (arXiv:1909.08593),
Stiennon et al. 2020 (arXiv:2009.01325), Schulman et al. 2017 (arXiv:1707.06347).

`ppo_iteration` is one update as one pure function; `make_ppo_iteration` compiles it into one program. Where the reward
is Python on the host, `make_ppo_phases` gives the same update as two programs with room for that reward in between.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from rlhf_jax.equations.gae import multi_turn_generalized_advantage_estimation
from rlhf_jax.equations.group import advantages_by_place, is_flat_group
from rlhf_jax.equations.kl import kl_k1, kl_k3
from rlhf_jax.equations.kl_control import adaptive_kl_coef
from rlhf_jax.equations.masked import masked_mean, masked_whiten, zero_padding
from rlhf_jax.equations.ppo import explained_variance
from rlhf_jax.equations.rewards import token_rewards
from rlhf_jax.equations.running import RunningMoments, initial_moments
from rlhf_jax.interfaces import Params, PolicyApply, PolicyOutput, PromptBatch, Rollout, Sample, Score, check_rollout
from rlhf_jax.keys import stream_key
from rlhf_jax.learners.microbatch import LossSums
from rlhf_jax.learners.minibatch import Experience, descend, judge, ppo_loss, said_by_sampler
from rlhf_jax.learners.optimizer import moving_average
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.learners.ppo_metrics import Metrics, ShapedRewards, objective_metrics, summarise_steps
from rlhf_jax.learners.shaping import score_responses


@chex.dataclass(frozen=True)
class PPOState:
    """What PPO carries from update to update; with the position in the prompts, all a restart needs."""

    update: Int[Array, ""]
    """Updates done."""
    params: Params
    """Policy and value function."""
    opt_state: optax.OptState
    kl_coef: Float[Array, ""]
    component_weights: Float[Array, " C"]
    """α, β, γ: never changed, and here so that runs which differ in them alone share one compiled program."""
    component_moments: RunningMoments
    score_moments: RunningMoments
    skipped: Int[Array, ""]
    """Optimiser steps refused because a loss or gradient was not finite."""
    key: Key[Array, ""]
    """Root of all draws; never advanced: update n folds n into it."""
    average: Params = None
    """Exponential moving average of `params` over updates; None where it is off."""


def init(params: Params, optimizer: optax.GradientTransformation, config: PPOConfig, key: Key[Array, ""]) -> PPOState:
    """Before the first update. Copies `params`: the state is donated, and the reference often is the same arrays."""
    config.check_components()
    params = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
    return PPOState(
        update=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        kl_coef=jnp.array(config.kl_coef, jnp.float32),
        component_weights=jnp.array(config.component_weights, jnp.float32),
        component_moments=initial_moments((len(config.component_weights),)),
        score_moments=initial_moments(),
        skipped=jnp.zeros((), jnp.int32),
        key=jax.random.clone(key),
        average=None if config.average_decay is None else jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params),
    )


class Speaker(NamedTuple):
    """The callables of an update; they hold no parameters."""

    sample: Sample
    policy: PolicyApply
    score: Score


def ppo_iteration(
    state: PPOState,
    prompts: PromptBatch,
    ref_params: Params,
    reward_params: Params,
    demonstrations: Rollout | None = None,
    *,
    speaker: Speaker,
    optimizer: optax.GradientTransformation,
    config: PPOConfig,
) -> tuple[PPOState, Metrics, Rollout]:
    """One update: lines 1–8 of the box.

    Args:
      ref_params: of the reference policy, same structure as `state.params` (its value head is not used).
      reward_params: what `score` reads; an argument, because a captured array would be baked into the program.
      demonstrations: as many human responses as are sampled, for the supervised loss of line 7; None where its weight is 0.
    Returns: the next state, metrics by name (no stage prefix), and the responses it learnt from.
    """
    # 1. Sample one response per prompt from the current policy.
    rollout = sample_phase(state, prompts, sample=speaker.sample)
    # 2. Score each response: the components of R_φ.
    with jax.named_scope("scoring"):
        components = speaker.score(reward_params, rollout)
    # 3–8. Learn from them.
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


def sample_phase(state: PPOState, prompts: PromptBatch, *, sample: Sample) -> Rollout:
    """Line 1 of the box, with this update's own key: the same prompts give other responses in another update."""
    with jax.named_scope("rollout"):
        return sample(state.params, prompts, stream_key(state.key, "ppo/sample", state.update))


def learn_phase(
    state: PPOState,
    rollout: Rollout,
    components: Float[Array, "B C"],
    ref_params: Params,
    demonstrations: Rollout | None = None,
    *,
    policy: PolicyApply,
    optimizer: optax.GradientTransformation,
    config: PPOConfig,
) -> tuple[PPOState, Metrics]:
    """Lines 3–8 of the box, from responses and their raw reward components."""
    if components.shape[1] != len(config.component_weights):
        raise ValueError(f"{components.shape[1]} reward components for {len(config.component_weights)} weights")
    # 3. Judge every token: log π_old and V_old, log π_ref.
    judged = judge_phase(state, rollout, ref_params, policy=policy, config=config)
    # 4. One score per response: normalise the components, weigh, normalise, clip; price a missing <eos> and length.
    # 5. Token rewards: every token pays for its log-ratio to the reference, the last one is paid the score.
    shaped = shape(state, rollout, components, judged, config)
    # 6. Advantages and returns; whitened once, over the whole rollout batch.
    experience = estimate(rollout, shaped.rewards, judged, config)
    # 7. Epochs × minibatches of clipped steps on policy and value function.
    with jax.named_scope("update"):
        params, opt_state, learning = improve(
            state, experience, demonstrations, policy=policy, optimizer=optimizer, config=config
        )
    # 8. Steer the price of leaving the reference.
    kl_coef = steer(state.kl_coef, shaped.k1, config)

    metrics = objective_metrics(shaped, judged.old, rollout, names=config.component_names, kl_coef=state.kl_coef)
    if judged.reused:
        # Nothing else was judged before the first step, whose ratio is exp(learner − sampler).
        metrics["policy/sampler_mismatch"] = learning["policy/first_ratio_max_deviation"]
    if config.group_size > 1:
        metrics["objective/flat_group_share"] = flat_share(shaped.paid, config.group_size)
    metrics["value/returns_mean"] = masked_mean(experience.returns, rollout.response_mask)
    metrics["value/explained_variance"] = explained_variance(
        judged.old.values, experience.returns, rollout.response_mask
    )
    metrics["norms/parameter"] = optax.tree.norm(params)
    state = PPOState(
        update=state.update + 1,
        params=params,
        opt_state=opt_state,
        kl_coef=kl_coef,
        component_weights=state.component_weights,
        component_moments=shaped.scores.component_moments,
        score_moments=shaped.scores.score_moments,
        skipped=state.skipped + learning["skipped"],
        key=state.key,
        average=moving_average(state.average, params, state.update, config.average_decay),
    )
    return state, metrics | learning


class Judged(NamedTuple):
    """Line 3: what policy and reference say of every sampled token."""

    old: PolicyOutput
    old_logprobs: Float[Array, "B T"]
    """The denominator of ρ: the learner's own, or the sampler's."""
    ref_logprobs: Float[Array, "B T"]
    reused: bool
    """Whether `old` is what the sampler said, so that no pass was needed."""


def judge_phase(
    state: PPOState, rollout: Rollout, ref_params: Params, *, policy: PolicyApply, config: PPOConfig
) -> Judged:
    """Line 3."""
    reused = config.old_logprobs == "sampler" and rollout.values is not None
    with jax.named_scope("scoring"):
        old = said_by_sampler(rollout) if reused else judge(policy, state.params, rollout)
        ref = judge(policy, ref_params, rollout)
    sampled = config.old_logprobs != "recompute"
    old_logprobs = zero_padding(rollout.logprobs, rollout.response_mask) if sampled else old.logprobs
    return Judged(old, old_logprobs, ref.logprobs, reused)


def shape(
    state: PPOState, rollout: Rollout, components: Float[Array, "B C"], judged: Judged, config: PPOConfig
) -> ShapedRewards:
    """Lines 4 and 5: from raw components to the score of each response, and to the reward of each token."""
    mask = rollout.response_mask
    moments = state.component_moments, state.score_moments
    combined, paid = score_responses(components, rollout, *moments, state.component_weights, config)
    k1 = kl_k1(judged.old_logprobs, judged.ref_logprobs)
    earned = paid if config.group_size == 1 else above_group(paid, config.group_size)
    rewards = jax.vmap(functools.partial(token_rewards, kl_coef=state.kl_coef))(earned, k1, mask)
    if config.reward_whitening:
        rewards = masked_whiten(rewards, mask, shift_mean=False)
    k3 = kl_k3(judged.old_logprobs, judged.ref_logprobs)
    return ShapedRewards(components, combined, paid, k1, k3, rewards)


def above_group(paid: Float[Array, " B"], group_size: int) -> Float[Array, " B"]:
    """What each response is paid above the mean of its group; exactly 0 in flat groups. Groups stand row by row. [B]

    Raises: ValueError at trace time if the responses cannot be divided into groups.
    """
    if paid.shape[0] % group_size:
        raise ValueError(f"{paid.shape[0]} responses cannot be divided into groups of {group_size}")
    groups = paid.reshape(-1, group_size, 1)
    centred = jax.vmap(functools.partial(advantages_by_place, scaled=False))(groups, jnp.ones_like(groups, bool))
    return centred.reshape(-1)


def flat_share(paid: Float[Array, " B"], group_size: int) -> Float[Array, ""]:
    """Share of the groups whose responses are all paid the same: they teach nothing."""
    return jnp.mean(jax.vmap(is_flat_group)(paid.reshape(-1, group_size)).astype(jnp.float32))


def estimate(rollout: Rollout, rewards: Float[Array, "B T"], judged: Judged, config: PPOConfig) -> Experience:
    """Line 6.

    Padding is skipped. The value beyond the end is 0 for cut responses too: the penalty of line 4 says what their
    missing end is worth.
    """
    mask, values = rollout.response_mask, judged.old.values
    gae = functools.partial(
        multi_turn_generalized_advantage_estimation, gamma=config.gamma, gae_lambda=config.gae_lambda
    )
    advantages = jax.vmap(gae)(rewards, jnp.pad(values, ((0, 0), (0, 1))), mask)
    returns = advantages + values
    if config.whiten_advantages:
        advantages = masked_whiten(advantages, mask)
    return Experience(
        rollout=rollout,
        old_logprobs=judged.old_logprobs,
        old_values=values,
        advantages=advantages,
        returns=returns,
    )


def steer(kl_coef: Float[Array, ""], k1: Float[Array, "B T"], config: PPOConfig) -> Float[Array, ""]:
    """Line 8: the price of the next update; a KL that is not finite steers nothing."""
    if config.kl_control != "adaptive":
        return kl_coef
    kl_per_response = jnp.mean(jnp.sum(k1, axis=1))
    steered = adaptive_kl_coef(
        kl_coef, kl_per_response, target=config.kl_target, horizon=config.kl_horizon, n_responses=k1.shape[0]
    )
    return jnp.where(jnp.isfinite(kl_per_response), steered, kl_coef)


@runtime_checkable
class OneProgram(Protocol):
    """A compiled `ppo_iteration`; the state passed in is donated and must not be used again."""

    def __call__(
        self,
        state: PPOState,
        prompts: PromptBatch,
        ref_params: Params,
        reward_params: Params,
        demonstrations: Rollout | None = None,
    ) -> tuple[PPOState, Metrics, Rollout]: ...


def make_ppo_iteration(
    *,
    sample: Sample,
    policy: PolicyApply,
    score: Score,
    optimizer: optax.GradientTransformation,
    config: PPOConfig,
    out_shardings: Any = None,
) -> OneProgram:
    """`ppo_iteration` as one program; the old parameters and moments give their memory to the new ones.

    Args:
      out_shardings: where the next state, the metrics and the responses lie, as in `jax.jit`; a state that comes out as
        it went in compiles once and can be donated. None leaves it to the compiler.
    """
    speaker = Speaker(sample, policy, score)
    bound = functools.partial(ppo_iteration, speaker=speaker, optimizer=optimizer, config=config)
    return jax.jit(bound, donate_argnums=0, out_shardings=out_shardings)


class TwoPrograms(NamedTuple):
    """The same update cut where a host-side reward goes."""

    sample: Callable[[PPOState, PromptBatch], Rollout]
    """Line 1; keeps the state."""
    learn: Callable[..., tuple[PPOState, Metrics]]
    """Lines 3–8 on (state, rollout, components, ref_params, demonstrations or None); the state is donated."""

    def __call__(
        self,
        state: PPOState,
        prompts: PromptBatch,
        ref_params: Params,
        reward: Callable[[Rollout], Array],
        demonstrations: Rollout | None = None,
    ) -> tuple[PPOState, Metrics, Rollout]:
        """One update with `reward(rollout) -> [B, C]` called in Python between the two programs.

        Raises: ValueError if `reward` does not return one row of numbers per response, or a response has holes.
        """
        rollout = self.sample(state, prompts)
        check_rollout(rollout)
        components = jnp.asarray(reward(rollout), jnp.float32)
        if components.ndim != 2 or components.shape[0] != rollout.response_tokens.shape[0]:
            raise ValueError(
                f"the reward returned shape {components.shape} for {rollout.response_tokens.shape[0]} responses; "
                "it must be [responses, components]"
            )
        state, metrics = self.learn(state, rollout, components, ref_params, demonstrations)
        return state, metrics, rollout


def make_ppo_phases(
    *, sample: Sample, policy: PolicyApply, optimizer: optax.GradientTransformation, config: PPOConfig
) -> TwoPrograms:
    """The two-program form; given the same components it computes what `make_ppo_iteration` does."""
    learn = functools.partial(learn_phase, policy=policy, optimizer=optimizer, config=config)
    return TwoPrograms(
        sample=jax.jit(functools.partial(sample_phase, sample=sample)), learn=jax.jit(learn, donate_argnums=0)
    )


def improve(
    state: PPOState,
    experience: Experience,
    demonstrations: Rollout | None,
    *,
    policy: PolicyApply,
    optimizer: optax.GradientTransformation,
    config: PPOConfig,
) -> tuple[Params, optax.OptState, Metrics]:
    """Line 7: all optimiser steps of one update, and their metrics; `demonstrations` where `ptx_coef` asks for them."""

    def loss_fn(params: Params, batch: Experience, key: Key[Array, ""]) -> LossSums:
        del key  # Dropout is off while learning: the first minibatch's ratio must be 1.
        return ppo_loss(params, batch, policy=policy, config=config.loss)

    params, opt_state, logged = descend(
        (state.params, state.opt_state),
        (experience, demonstrations),
        stream_key(state.key, "ppo/minibatches", state.update),
        loss_fn=loss_fn,
        policy=policy,
        optimizer=optimizer,
        descent=config.descent,
    )
    return params, opt_state, summarise_steps(logged)

"""PPO's inner loop: what a rollout batch teaches, the summed loss on some of its rows, epochs of minibatches."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from rlhf_jax.equations.masked import zero_padding
from rlhf_jax.equations.ppo import (
    approx_kl,
    clipped_surrogate,
    clipped_value_loss,
    importance_ratio,
    surrogate_clip_fraction,
)
from rlhf_jax.interfaces import Params, PolicyApply, PolicyOutput, Rollout
from rlhf_jax.learners.microbatch import LossSums, SummedLoss, loss_and_gradient
from rlhf_jax.learners.optimizer import apply_or_skip
from rlhf_jax.learners.sft import sum_and_count

Carry = TypeVar("Carry")
Logged = TypeVar("Logged")
Rows = TypeVar("Rows")
Metrics = dict[str, Array]


@chex.dataclass(frozen=True)
class Experience:
    """A rollout batch and everything about it that stays fixed while the policy is improved on it."""

    rollout: Rollout
    old_logprobs: Float[Array, "B T"]
    old_values: Float[Array, "B T"]
    advantages: Float[Array, "B T"]
    """Whitened where that is on; 0 on padding."""
    returns: Float[Array, "B T"]


class PPOLossConfig(NamedTuple):
    """The numbers of lines 7a–7c of the box."""

    clip_eps: float
    value_clip_eps: float
    value_coef: float
    entropy_coef: float
    dual_clip: float | None


def judge(policy: PolicyApply, params: Params, rollout: Rollout) -> PolicyOutput:
    """`policy` on a rollout, float32, zeroed on padding: whatever a model says there, no sum may see it."""
    said = policy(params, rollout)
    return jax.tree.map(lambda x: zero_padding(x, rollout.response_mask), said)


def said_by_sampler(rollout: Rollout) -> PolicyOutput:
    """What the sampler stored, as if it had been judged; the entropy is estimated by −log π of the tokens drawn.

    Raises: ValueError if the sampler stored no values.
    """
    if rollout.values is None:
        raise ValueError("the rollout holds no values: sample with a policy whose value head reads the sampled trunk")
    said = PolicyOutput(logprobs=rollout.logprobs, entropy=-rollout.logprobs, values=rollout.values)
    return jax.tree.map(lambda x: zero_padding(x, rollout.response_mask), said)


def ppo_loss(params: Params, batch: Experience, *, policy: PolicyApply, config: PPOLossConfig) -> LossSums:
    """Clipped surrogate + value_coef · clipped value loss − entropy_coef · entropy, summed over valid tokens."""
    mask = batch.rollout.response_mask
    new = judge(policy, params, batch.rollout)
    # 7a. The surrogate: no gain from moving the ratio beyond 1 ± ε.
    surrogate = clipped_surrogate(
        new.logprobs, batch.old_logprobs, batch.advantages, clip_eps=config.clip_eps, dual_clip=config.dual_clip
    )
    # 7b. The value loss, clipped around the value at sampling time.
    value_loss = clipped_value_loss(new.values, batch.old_values, batch.returns, value_clip_eps=config.value_clip_eps)
    # 7c. One loss per token; the caller divides by the number of valid tokens.
    per_token = surrogate + config.value_coef * value_loss
    # Left out, not multiplied by 0: a float product with 0 is computed, backward too, over the whole vocabulary.
    if config.entropy_coef != 0:
        per_token = per_token - config.entropy_coef * new.entropy
    loss, count = sum_and_count(per_token, mask)
    value_clipped = jnp.abs(new.values - batch.old_values) > config.value_clip_eps
    per_token_metrics = {
        "policy/loss": surrogate,
        "value/loss": value_loss,
        "value/clip_fraction": value_clipped.astype(jnp.float32),
    } | surrogate_metrics(new.logprobs, batch.old_logprobs, batch.advantages, clip_eps=config.clip_eps)
    return LossSums(
        loss=loss,
        count=count,
        parts={name: sum_and_count(x, mask) for name, x in per_token_metrics.items()},
        maxima=ratio_maxima(new.logprobs, batch.old_logprobs, mask),
    )


def surrogate_metrics(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    *,
    clip_eps: float,
) -> dict[str, Float[Array, "B T"]]:
    """How far the policy has moved, token by token: what every clipped learner logs."""
    return {
        "policy/approx_kl": approx_kl(logprobs, old_logprobs),
        "policy/clip_fraction": surrogate_clip_fraction(logprobs, old_logprobs, advantages, clip_eps=clip_eps),
        "policy/ratio_mean": importance_ratio(logprobs, old_logprobs),
    }


def ratio_maxima(
    logprobs: Float[Array, "B T"], old_logprobs: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> dict[str, Float[Array, ""]]:
    """The extremes of the ratio, as maxima, so that microbatches can be merged."""
    ratio = importance_ratio(logprobs, old_logprobs)
    return {
        "policy/ratio_max": jnp.max(jnp.where(mask, ratio, -jnp.inf)),
        "negative_ratio_min": jnp.max(jnp.where(mask, -ratio, -jnp.inf)),
    }


def supervised_loss(params: Params, demonstrations: Rollout, *, policy: PolicyApply) -> LossSums:
    """−log π of human responses, summed over tokens: in nats, under the policy's own grammar mask and temperature."""
    said = judge(policy, params, demonstrations)
    loss, count = sum_and_count(-said.logprobs, demonstrations.response_mask)
    return LossSums(loss=loss, count=count, parts={}, maxima={})


class Descent(NamedTuple):
    """How many steps are taken on a batch, on how much of it at once."""

    epochs: int
    minibatches: int
    microbatches: int
    target_kl: float | None
    ptx_coef: float = 0.0
    """γ of `descend`."""
    together: int = 1
    """Consecutive rows that stay together in minibatches and microbatches: a group's, where a prompt is read once for it."""


def descend(
    start: tuple[Params, optax.OptState],
    batch: tuple[Any, Rollout | None],
    key: Key[Array, ""],
    *,
    loss_fn: SummedLoss,
    policy: PolicyApply,
    optimizer: optax.GradientTransformation,
    descent: Descent,
) -> tuple[Params, optax.OptState, Metrics]:
    """All optimiser steps of one update on `loss_fn`'s mean over tokens, and their metrics.

        loss = loss_RL + γ · mean over human tokens of −log π

    Source: the second term is Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, eq. 2; theirs is on pretraining text.

    Args:
      start: parameters and the optimiser's state.
      batch: what `loss_fn` reads, and as many human responses (None where γ is 0): a minibatch takes as many of each.
      key: of the order of the rows.
    Raises: ValueError at trace time if human responses are missing, are not wanted, or are not as many.
    """
    experience, demonstrations = batch
    n_rows = jax.tree.leaves(experience)[0].shape[0]
    if (demonstrations is None) != (descent.ptx_coef == 0):
        given = "none" if demonstrations is None else demonstrations.response_tokens.shape[0]
        raise ValueError(f"ptx_coef {descent.ptx_coef} with {given} human responses: give both or neither")
    if demonstrations is not None and demonstrations.response_tokens.shape[0] != n_rows:
        raise ValueError(f"{demonstrations.response_tokens.shape[0]} human responses beside {n_rows} sampled ones")

    def step(
        carry: tuple[Params, optax.OptState, Bool[Array, ""]], rows: tuple[Any, Rollout | None], key: Key[Array, ""]
    ) -> tuple[tuple[Params, optax.OptState, Bool[Array, ""]], Metrics]:
        params, opt_state, stopped = carry
        sampled, human = rows
        loss, gradient, logged = loss_and_gradient(
            loss_fn, params, sampled, key, microbatches=descent.microbatches, together=descent.together
        )
        if human is not None:

            def likelihood(params: Params, batch: Rollout, key: Key[Array, ""]) -> LossSums:
                del key
                return supervised_loss(params, batch, policy=policy)

            ptx, pull, _ = loss_and_gradient(likelihood, params, human, key, microbatches=descent.microbatches)
            loss = loss + descent.ptx_coef * ptx
            gradient = jax.tree.map(lambda g, p: g + descent.ptx_coef * p, gradient, pull)
            logged = logged | {"policy/ptx_loss": ptx}
        if descent.target_kl is not None:
            stopped = stopped | (logged["policy/approx_kl"] > descent.target_kl)
        result = apply_or_skip(optimizer, params, opt_state, gradient, loss, wanted=~stopped)
        logged = logged | {
            "loss": loss,
            "norms/gradient": result.gradient_norm,
            "norms/update": result.update_norm,
            "taken": result.finite & ~stopped,
            "stopped": stopped,
            "skipped": ~result.finite & ~stopped,
        }
        return (result.params, result.opt_state, stopped), logged

    (params, opt_state, _), logged = epochs_of_minibatches(
        step,
        (*start, jnp.array(False)),
        batch,
        key,
        n_rows=n_rows,
        epochs=descent.epochs,
        minibatches=descent.minibatches,
        together=descent.together,
    )
    return params, opt_state, logged


def epochs_of_minibatches(
    step: Callable[[Carry, Rows, Key[Array, ""]], tuple[Carry, Logged]],
    carry: Carry,
    batch: Rows,
    key: Key[Array, ""],
    *,
    n_rows: int,
    epochs: int,
    minibatches: int,
    together: int = 1,
) -> tuple[Carry, Logged]:
    """Scans `step(carry, rows of batch, key)` over shuffled minibatches; every epoch is shuffled with a fresh key.

    Args:
      together: consecutive rows that are moved as one.
    Returns: the last carry, and what `step` returned, stacked in order of time. [epochs·minibatches, ...]
    Raises: ValueError at trace time if the rows cannot be divided into `minibatches`.
    """
    if n_rows % minibatches:
        raise ValueError(f"{n_rows} responses cannot be divided into {minibatches} minibatches")
    if n_rows % (minibatches * together):
        raise ValueError(f"{n_rows // minibatches} responses of a minibatch are no whole groups of {together}")

    def one_epoch(carry: Carry, key: Key[Array, ""]) -> tuple[Carry, Logged]:
        order_key, step_key = jax.random.split(key)
        order = jax.random.permutation(order_key, n_rows // together)
        if together > 1:
            order = order[:, None] * together + jnp.arange(together)[None]
        rows = order.reshape(minibatches, n_rows // minibatches)

        def one_minibatch(carry: Carry, xs: tuple[Array, Array]) -> tuple[Carry, Logged]:
            picked, key = xs
            return step(carry, jax.tree.map(lambda leaf: leaf[picked], batch), key)

        return jax.lax.scan(one_minibatch, carry, (rows, jax.random.split(step_key, minibatches)))

    carry, logged = jax.lax.scan(one_epoch, carry, jax.random.split(key, epochs))
    return carry, jax.tree.map(lambda leaf: leaf.reshape(epochs * minibatches, *leaf.shape[2:]), logged)

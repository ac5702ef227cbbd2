"""PPO's losses per token, unreduced, and what is logged beside them.

The learner sums over real tokens and divides by their number. These are functions of single entries: clear padding of
the inputs (`zero_padding`) before, so that a NaN there reaches no gradient, and mask the result after.
"""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

LARGE_LOG_RATIO = 60.0
"""Nats. A token e^60 times likelier than when it was sampled is beyond every clip, and e^60 times an advantage is finite."""


def importance_ratio(logprobs: Float[Array, "*shape"], old_logprobs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """How much likelier the sampled token has become since it was sampled.

        ρ = π(a)/π_old(a) = exp(log π(a) − log π_old(a))

    Source: Schulman et al. 2017, arXiv:1707.06347, section 3 (their r_t(θ); r is a reward here).

    Args:
      logprobs: under the policy being learned, nats. [*shape]
      old_logprobs: under the policy that sampled, nats. [*shape]
    Returns: ρ ≥ 0, without unit, 1 on the first minibatch; the gradient with respect to `logprobs` is ρ. Both are +∞ where
      the log-ratio exceeds 88.7 nats, the range of float32. [*shape]
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> ratio = importance_ratio(jnp.array([-1.0, -2.0, -0.5]), jnp.array([-1.2, -1.5, -0.5]))
      >>> [round(x, 6) for x in ratio.tolist()]
      [1.221403, 0.606531, 1.0]
    """
    return jnp.exp(_log_ratio(logprobs, old_logprobs))


def _log_ratio(logprobs: Array, old_logprobs: Array) -> Array:
    """log ρ in at least float32."""
    chex.assert_equal_shape([logprobs, old_logprobs])
    dtype = jnp.promote_types(jnp.promote_types(logprobs.dtype, old_logprobs.dtype), jnp.float32)
    return logprobs.astype(dtype) - old_logprobs.astype(dtype)


def clipped_surrogate(
    logprobs: Float[Array, "*shape"],
    old_logprobs: Float[Array, "*shape"],
    advantages: Float[Array, "*shape"],
    *,
    clip_eps: float | Float[Array, ""],
    dual_clip: float | None = None,
) -> Float[Array, "*shape"]:
    """PPO's policy loss per token: no reward for leaving the trust region.

        max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε)),   and with a dual clip, where A < 0, at most −c A

    Weighing by ρ_t alone turns a mean over tokens of π_old into one over tokens of π at one position. Along a response
    the tokens before t still come from π_old: an error of second order in the step, and another reason to stay near.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7 (negated: they maximise); the dual clip is Ye et al. 2020,
    arXiv:1912.09729, eq. 5, and bounds the loss of a token that became much likelier although it was bad.

    Args:
      logprobs: under the policy being learned, nats. [*shape]
      old_logprobs: under the policy that sampled, nats. [*shape]
      advantages: A, usually whitened; data. [*shape]
      clip_eps: ε ≥ 0; infinity does not clip.
      dual_clip: c > 1, or None.
    Returns: loss in units of A. The gradient with respect to `logprobs` is −A ρ, and exactly 0 where A = 0, (ρ > 1 + ε and
      A > 0), (ρ < 1 − ε and A < 0) or the dual clip acts. Where no clip acts and ρ is beyond float32 (a log-ratio above
      88.7 nats), loss and gradient are infinite, with the sign of −A; never NaN. [*shape]
    Raises: AssertionError at trace time if the shapes differ; ValueError if `dual_clip` ≤ 1.
    Examples:
      >>> new, old, adv = jnp.array([-1.0, -2.0, -0.5]), jnp.array([-1.2, -1.5, -0.5]), jnp.array([1.0, -1.0, 0.5])
      >>> [round(x, 6) for x in clipped_surrogate(new, old, adv, clip_eps=0.2).tolist()]
      [-1.2, 0.8, -0.5]
    """
    chex.assert_equal_shape([logprobs, advantages])
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip must exceed 1, got {dual_clip}")
    log_ratio = _log_ratio(logprobs, old_logprobs)
    # Where a clip acts the loss does not depend on ρ: held there, an overflowing ρ cannot make 0 · ∞ of the gradient.
    never_clips = jnp.log1p(clip_eps) >= LARGE_LOG_RATIO
    grows = ((advantages < 0) & (dual_clip is None)) | ((advantages > 0) & never_clips)
    ratio = jnp.exp(jnp.minimum(log_ratio, jnp.where(grows, jnp.inf, LARGE_LOG_RATIO)))
    loss = jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 1 - clip_eps, 1 + clip_eps))
    if dual_clip is None:
        return loss
    return jnp.where(advantages < 0, jnp.minimum(loss, -dual_clip * advantages), loss)


def surrogate_clip_fraction(
    logprobs: Float[Array, "*shape"],
    old_logprobs: Float[Array, "*shape"],
    advantages: Float[Array, "*shape"],
    *,
    clip_eps: float | Float[Array, ""],
) -> Float[Array, "*shape"]:
    """1 on tokens whose gradient the clip took away, else 0; its mean over real tokens is the clip fraction.

        [ −A clip(ρ, 1 − ε, 1 + ε) > −A ρ ]

    A ratio outside the range counts only on the side where the clip acts.

    Source: follows from Schulman et al. 2017, arXiv:1707.06347, eq. 7; many codes count every ratio outside the range.

    Args:
      logprobs: under the policy being learned, nats. [*shape]
      old_logprobs: under the policy that sampled, nats. [*shape]
      advantages: A. [*shape]
      clip_eps: ε ≥ 0.
    Returns: 0 or 1 per token; no gradient. [*shape]
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> new, old, adv = jnp.array([-1.0, -2.0, -0.5]), jnp.array([-1.2, -1.5, -0.5]), jnp.array([1.0, -1.0, 0.5])
      >>> print(surrogate_clip_fraction(new, old, adv, clip_eps=0.2))
      [1. 1. 0.]
    """
    chex.assert_equal_shape([logprobs, advantages])
    ratio = importance_ratio(logprobs, old_logprobs)
    clipped = jnp.clip(ratio, 1 - clip_eps, 1 + clip_eps)
    return (-advantages * clipped > -advantages * ratio).astype(jnp.float32)


def approx_kl(logprobs: Float[Array, "*shape"], old_logprobs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """How far the policy moved from the one that sampled, per token; its mean stops an update early.

        ½ (log π(a) − log π_old(a))²

    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html (k2).

    Args:
      logprobs: under the policy being learned, nats. [*shape]
      old_logprobs: under the policy that sampled, nats. [*shape]
    Returns: nats, never negative; gradient log π(a) − log π_old(a) into `logprobs`, its negative into the other. [*shape]
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> approx_kl(jnp.array([-1.0, -2.0]), jnp.array([-1.0, -1.0]))
      Array([0. , 0.5], dtype=float32)
    """
    chex.assert_equal_shape([logprobs, old_logprobs])
    dtype = jnp.promote_types(jnp.promote_types(logprobs.dtype, old_logprobs.dtype), jnp.float32)
    return jnp.square(logprobs.astype(dtype) - old_logprobs.astype(dtype)) / 2


def clipped_value_loss(
    values: Float[Array, "*shape"],
    old_values: Float[Array, "*shape"],
    returns: Float[Array, "*shape"],
    *,
    value_clip_eps: float | Float[Array, ""],
) -> Float[Array, "*shape"]:
    """Squared error of the critic, pessimistic about moves beyond a range around the old values.

        ½ max( (V − G)², (clip(V, V_old − ε, V_old + ε) − G)² )

    Source: Ziegler et al. 2019, arXiv:1909.08593, the released code; Huang et al. 2023, "The N Implementation Details
    of RLHF with PPO". It is not in the PPO paper.

    Args:
      values: V of the critic being learned, reward units. [*shape]
      old_values: V_old at sampling time, reward units. [*shape]
      returns: G = A + V_old before whitening, reward units; data. [*shape]
      value_clip_eps: ε ≥ 0, reward units; infinity does not clip.
    Returns: squared reward units, per token; gradient V − G, or 0 where the clipped error is the larger one. [*shape]
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> v, old, ret = jnp.array([0.9, 0.1, -0.4]), jnp.array([0.5, 0.2, -0.5]), jnp.array([1.0, 0.0, 0.0])
      >>> [round(x, 6) for x in clipped_value_loss(v, old, ret, value_clip_eps=0.2).tolist()]
      [0.045, 0.005, 0.08]
    """
    chex.assert_equal_shape([values, old_values, returns])
    values, old_values, returns = (
        x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (values, old_values, returns)
    )
    clipped = jnp.clip(values, old_values - value_clip_eps, old_values + value_clip_eps)
    return jnp.maximum(jnp.square(values - returns), jnp.square(clipped - returns)) / 2


def explained_variance(
    values: Float[Array, "*shape"], returns: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
) -> Float[Array, ""]:
    """Share of the returns' variance that the critic foresaw, over all real tokens.

        1 − Var(G − V)/Var(G),   and 0 where the returns do not vary

    Source: the coefficient of determination up to the residuals' mean; logged for critics since OpenAI's baselines.

    Args:
      values: V, reward units. [*shape]
      returns: G, reward units. [*shape]
      mask: True on real tokens. [*shape]
    Returns: without unit: 1 perfect, 0 no better than a constant, negative worse; logged, no gradient is meant to flow. []
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> explained_variance(jnp.array([1.0, 2.0, 9.0]), jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False]))
      Array(0.75, dtype=float32)
    """
    chex.assert_equal_shape([values, returns, mask])
    n_tokens = jnp.maximum(mask.sum(), 1)

    def variance(x: Array) -> Array:
        x = jnp.where(mask, x.astype(jnp.promote_types(x.dtype, jnp.float32)), 0)
        return jnp.where(mask, jnp.square(x - x.sum() / n_tokens), 0).sum() / n_tokens

    total = variance(returns)
    # Not by the variance alone: the rounded mean of equal numbers differs from them (ten times 0.1 in float32).
    varies = jnp.where(mask, returns, -jnp.inf).max() > jnp.where(mask, returns, jnp.inf).min()
    total = jnp.where(varies, total, 0)
    return jnp.where(total > 0, 1 - variance(returns - values) / jnp.where(total > 0, total, 1), 0)

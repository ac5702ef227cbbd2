"""From one score per response to one reward per token."""

from typing import Literal

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num


def missing_eos_score(
    score: Float[Array, "*shape"],
    finished: Bool[Array, "*shape"],
    *,
    penalty: float | Float[Array, ""],
    mode: Literal["subtract", "replace"] = "subtract",
) -> Float[Array, "*shape"]:
    """The score of a response that never said `<eos>` is lowered, or replaced, by a penalty.

        subtract:  s − p where not finished        replace:  −p where not finished

    Source: `replace` is Ziegler et al. 2019, arXiv:1909.08593, and Huang et al. 2024, arXiv:2403.17031 (p = 1);
    `subtract` keeps the order of two unfinished responses.

    Args:
      score: s, score units. [*shape]
      finished: True where `<eos>` came within the budget. [*shape]
      penalty: p ≥ 0, score units.
      mode: see the formula.
    Returns: score units; gradients flow into the scores that are kept. [*shape]
    Raises: ValueError at trace time for another mode.
    Examples:
      >>> missing_eos_score(jnp.array([2.0, 2.0]), jnp.array([True, False]), penalty=1.0)
      Array([2., 1.], dtype=float32)
      >>> missing_eos_score(jnp.array([2.0, 2.0]), jnp.array([True, False]), penalty=1.0, mode="replace")
      Array([ 2., -1.], dtype=float32)
    """
    score = score.astype(jnp.promote_types(score.dtype, jnp.float32))
    if mode == "subtract":
        return jnp.where(finished, score, score - penalty)
    if mode == "replace":
        return jnp.where(finished, score, -penalty)
    raise ValueError(f"mode must be 'subtract' or 'replace', got {mode!r}")


def token_rewards(
    score: Num[Array, ""], kl_k1: Float[Array, " T"], mask: Bool[Array, " T"], *, kl_coef: float | Float[Array, ""]
) -> Float[Array, " T"]:
    """Per-token rewards of one response; batch with `jax.vmap`.

        r_t = −κ k1_t + s·[t is the last real token],   so   Σ_t r_t = s − κ Σ_t k1_t

    Source: Ziegler et al. 2019, arXiv:1909.08593, eq. 2 (their β is our κ = kl_coef), spread over tokens as in
    Huang et al. 2024, arXiv:2403.17031, which pays the score one position later, after `<eos>`.

    Args:
      score: s, score units. []
      kl_k1: log π(a_t) − log π_ref(a_t), nats. [T]
      mask: True on the response's tokens, `<eos>` included. [T]
      kl_coef: κ, score units per nat.
    Returns: r_t, score units, 0 on padding; a response without tokens gets nothing. Gradients flow into `score` and,
      on real tokens, into `kl_k1`: PPO treats rewards as data, so call it outside the loss. [T]
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> token_rewards(jnp.array(1.0), jnp.array([2.0, 0.0, jnp.nan]), jnp.array([True, True, False]), kl_coef=0.5)
      Array([-1.,  1.,  0.], dtype=float32)
    """
    chex.assert_equal_shape([kl_k1, mask])
    # The score may come as an integer count; it must not be truncated, nor truncate the KL term.
    dtype = jnp.promote_types(jnp.promote_types(score.dtype, kl_k1.dtype), jnp.float32)
    length = mask.shape[0]
    last = length - 1 - jnp.argmax(mask[::-1])
    penalty = -kl_coef * jnp.where(mask, kl_k1, 0).astype(dtype)
    return penalty + jnp.where(mask & (jnp.arange(length) == last), score.astype(dtype), 0)

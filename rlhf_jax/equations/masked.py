"""Statistics over real tokens: padding is never read, so not even a NaN in it reaches a value or a gradient.

Every masked entry is replaced before it is used and once more after it (the "double where"): with one `where` alone
the gradient would be 0 · NaN = NaN.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def zero_padding(x: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Zeros where the mask is False; put it before any equation that has no mask of its own.

        y_t = x_t where m_t, else 0

    Source: ours.

    Args:
      x: any quantity per token, e.g. log-probabilities in nats. [*shape]
      mask: True on real tokens. [*shape]
    Returns: x in at least float32; no gradient flows into padding, whatever follows. [*shape]
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> zero_padding(jnp.array([1.0, jnp.nan]), jnp.array([True, False]))
      Array([1., 0.], dtype=float32)
    """
    chex.assert_equal_shape([x, mask])
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.where(mask, x, 0)


def masked_mean(x: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """Mean over all real entries, 0 when there are none.

        mean = Σ_t m_t x_t / max(Σ_t m_t, 1)

    Divides by the number of real tokens, never by the size of the array. Give it a whole batch: a mean of the rows'
    means weighs tokens of short responses more.

    Source: definition; the division by real tokens as in Huang et al. 2024, arXiv:2403.17031.

    Args:
      x: values. [*shape]
      mask: True on real entries. [*shape]
    Returns: the mean, in units of `x`; its gradient is m_t / n. []
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False]))
      Array(2., dtype=float32)
    """
    return zero_padding(x, mask).sum() / jnp.maximum(mask.sum(), 1)


def masked_var(x: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """Biased variance over all real entries, 0 when there are fewer than two.

        var = Σ_t m_t (x_t − mean)² / max(Σ_t m_t, 1)

    Source: definition, with 1/n as the released code of Ziegler et al. 2019, arXiv:1909.08593, has it.

    Args:
      x: values. [*shape]
      mask: True on real entries. [*shape]
    Returns: the variance (divided by n, not n − 1), in squared units of `x`; its gradient is 2 m_t (x_t − mean) / n. []
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> masked_var(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False]))
      Array(1., dtype=float32)
    """
    x = zero_padding(x, mask)
    return masked_mean(jnp.square(x - masked_mean(x, mask)), mask)


def masked_whiten(
    x: Float[Array, "*shape"], mask: Bool[Array, "*shape"], *, shift_mean: bool = True, epsilon: float = 1e-8
) -> Float[Array, "*shape"]:
    """Values scaled to unit variance and, unless told otherwise, zero mean; padding becomes 0.

        y_t = (x_t − mean) / √(var + ε)   plus the mean where `shift_mean` is False

    Source: Ziegler et al. 2019, arXiv:1909.08593, the released code; Huang et al. 2023, "The N Implementation Details
    of RLHF with PPO": advantages are whitened with the shift, rewards (where they are) without it.
    Call it once per rollout batch, over all devices: whitening each minibatch can flip the sign of an advantage.

    Args:
      x: values, usually advantages in reward units. [*shape]
      mask: True on real entries. [*shape]
      shift_mean: False keeps the mean, as is done for rewards.
      epsilon: added to the variance, in squared units of `x`.
    Returns: whitened values, in standard deviations, finite even with no entry or a single one; gradients flow through
        mean and variance. [*shape]
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> masked_whiten(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False]))
      Array([-1.,  1.,  0.], dtype=float32)
      >>> masked_whiten(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False]), shift_mean=False)
      Array([1., 3., 0.], dtype=float32)
    """
    x = zero_padding(x, mask)
    mean = masked_mean(x, mask)
    whitened = (x - mean) * jax.lax.rsqrt(masked_var(x, mask) + epsilon)
    return jnp.where(mask, whitened if shift_mean else whitened + mean, 0)

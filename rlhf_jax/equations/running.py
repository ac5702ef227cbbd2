"""Running mean and variance over everything seen so far; normalises scores without knowing their scale in advance."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

RELATIVE_ROUNDING = 1e-5
"""A standard deviation below this share of the mean is float32 rounding, not spread."""


class RunningMoments(NamedTuple):
    """Moments of a stream of arrays of one shape, kept per entry."""

    count: Float[Array, ""]
    """Observations so far."""
    mean: Float[Array, "*shape"]
    """Their mean, in units of the stream."""
    m2: Float[Array, "*shape"]
    """Sum of squared deviations from the mean, squared units."""


def initial_moments(shape: tuple[int, ...] = ()) -> RunningMoments:
    """Moments before anything was seen.

    Source: definition.

    Args:
      shape: of one observation: () for scores, (C,) for reward components.
    Returns: count 0 [], mean 0 [*shape], m2 0 [*shape].
    Raises: nothing.
    Examples:
      >>> initial_moments((2,)).mean
      Array([0., 0.], dtype=float32)
    """
    return RunningMoments(jnp.zeros((), jnp.float32), jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))


def update_moments(moments: RunningMoments, x: Float[Array, "B *shape"]) -> RunningMoments:
    """Moments after one more batch; the order and the cutting of the stream do not matter.

        n = n_a + n_b,   Δ = mean_b − mean_a,   mean = mean_a + Δ n_b/n,   M2 = M2_a + M2_b + Δ² n_a n_b/n

    Source: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances",
    eqs. 2.1a and 2.1b (their T is the sum, so mean·n; S is M2).

    Args:
      moments: of what was seen before.
      x: B ≥ 1 new observations. [B, *shape]
    Returns: float32 moments, count [], mean and m2 [*shape]; statistics, no gradient is meant to flow.
    Raises: nothing.
    Examples:
      >>> update_moments(update_moments(initial_moments(), jnp.array([1.0])), jnp.array([2.0, 6.0]))
      RunningMoments(count=Array(3., dtype=float32), mean=Array(3., dtype=float32), m2=Array(14., dtype=float32))
    """
    x = x.astype(jnp.float32)
    n_new = x.shape[0]
    mean_new = x.mean(axis=0)
    m2_new = jnp.square(x - mean_new[None]).sum(axis=0)
    count = moments.count + n_new
    shift = mean_new - moments.mean
    return RunningMoments(
        count=count,
        mean=moments.mean + shift * (n_new / count),
        m2=moments.m2 + m2_new + jnp.square(shift) * (moments.count * n_new / count),
    )


def normalise(
    moments: RunningMoments, x: Float[Array, "B *shape"], *, clip: float | None = None
) -> Float[Array, "B *shape"]:
    """Observations in standard deviations from the running mean, optionally clipped.

        z = clip((x − mean)/std, −c, c),   std² = M2/(n − 1),   and std = 1 while n < 2 or where all x were equal

    Source: definition; the clip as in Engstrom et al. 2020, arXiv:2005.12729.

    Args:
      moments: usually already updated with `x`.
      x: observations. [B, *shape]
      clip: c > 0, in standard deviations; None does not clip.
    Returns: z, without unit, float32; gradient 1/std inside the clip range. [B, *shape]
    Raises: nothing.
    Examples:
      >>> x = jnp.array([1.0, 2.0, 9.0, 4.0])
      >>> [round(z, 4) for z in normalise(update_moments(initial_moments(), x), x, clip=1.0).tolist()]
      [-0.8429, -0.562, 1.0, 0.0]
    """
    # A stream of equal scores leaves rounding in M2; dividing by it would blow noise up to full-size advantages.
    rounding = moments.count * jnp.square(RELATIVE_ROUNDING * moments.mean)
    spread = moments.m2 > rounding
    variance = jnp.where(spread, moments.m2, 1) / jnp.where(spread, moments.count - 1, 1)
    z = (x.astype(jnp.float32) - moments.mean[None]) / jnp.sqrt(variance)[None]
    return z if clip is None else jnp.clip(z, -clip, clip)

"""The coefficient of the KL penalty, moved so that the observed KL stays near a target."""

import jax.numpy as jnp
from jaxtyping import Array, Float

MAX_ERROR = 0.2
"""Largest relative error that is answered; a wild batch then moves the coefficient no more than a mild one."""
LOWEST_FACTOR = 0.1
"""Least factor of one batch, met only by batches of more than 4.5 horizons: κ keeps its sign."""
RANGE = (1e-30, 1e30)
"""Where a positive coefficient stays, score units per nat: from 0 it could never return, and ∞ would end as NaN."""


def adaptive_kl_coef(
    kl_coef: float | Float[Array, ""],
    observed_kl: float | Float[Array, ""],
    *,
    target: float | Float[Array, ""],
    horizon: float | Float[Array, ""],
    n_responses: int,
) -> Float[Array, ""]:
    """The next coefficient, from the KL of the batch just seen; a proportional controller.

        e = clip(KL/target − 1, −0.2, 0.2),   κ ← κ max(1 + e n/horizon, 0.1),   kept in [1e−30, 1e30]

    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2 (their β is κ; their K_β is n/horizon, as in the released code).
    A fixed coefficient is the same with an infinite horizon. The two bounds are ours; no ordinary run meets them.

    Args:
      kl_coef: κ ≥ 0, score units per nat.
      observed_kl: mean over responses of Σ_t k1_t, nats per response; NaN says nothing, and κ stays.
      target: nats per response, > 0.
      horizon: responses over which a full error would change κ by 20 %.
      n_responses: responses the observation is made of.
    Returns: κ for the next batch, score units per nat, in `RANGE`, and 0 where it was 0; a control signal, no gradient is
      meant to flow. []
    Raises: nothing.
    Examples:
      >>> kl_coef = adaptive_kl_coef(0.15, 6.6, target=6.0, horizon=10_000.0, n_responses=512)
      >>> round(float(kl_coef), 6)
      0.150768
    """
    observed = jnp.asarray(observed_kl, jnp.float32)
    error = jnp.clip(observed / target - 1, -MAX_ERROR, MAX_ERROR)
    error = jnp.where(jnp.isnan(error), 0, error)
    kl_coef = jnp.asarray(kl_coef, jnp.float32)
    moved = kl_coef * jnp.maximum(1 + error * n_responses / horizon, LOWEST_FACTOR)
    return jnp.where(kl_coef > 0, jnp.clip(moved, *RANGE), kl_coef)

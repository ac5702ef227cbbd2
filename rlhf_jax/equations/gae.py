"""Generalised advantage estimation for one response, and for one conversation with user turns inside."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def generalized_advantage_estimation(
    rewards: Float[Array, " T"],
    values: Float[Array, " T+1"],
    *,
    gamma: float | Float[Array, ""],
    gae_lambda: float | Float[Array, ""],
) -> Float[Array, " T"]:
    """Advantages of one response; batch with `jax.vmap`.

        A_t = δ_t + γλ A_{t+1},   δ_t = r_t + γ V_{t+1} − V_t,   A_T = 0;   t = 0 … T−1, as arrays count

    A mean of the k-step estimates A_t^(k) = Σ_{j<k} γ^j δ_{t+j} with the weights (1 − λ) λ^(k−1) for k < T − t; the last,
    k = T − t, has what remains, λ^(T−t−1): beyond the end nothing changes any more.

    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16 (the PPO paper, arXiv:1707.06347, eq. 11, prints the
    last exponent as T−t+1; it is T−t−1). Our r_t is paid after token t, their reward after action a_t.
    Right padding must hold zeros, which then add nothing; for anything else use the multi-turn form and its mask.

    Args:
      rewards: r_t, paid after token t, reward units. [T]
      values: V_t before token t, reward units; the last bootstraps a cut response and is 0 for a finished one. [T+1]
      gamma: discount per token, in [0, 1].
      gae_lambda: 0 is one-step TD, 1 is return minus value.
    Returns: A_t, reward units, not whitened; gradients flow into `values`. A + V[:-1] are the λ-returns. [T]
    Raises: AssertionError at trace time if `values` is not one longer than `rewards`.
    Examples:
      >>> generalized_advantage_estimation(jnp.array([0., 0., 1.]), jnp.zeros(4), gamma=1., gae_lambda=.5)
      Array([0.25, 0.5 , 1.  ], dtype=float32)
    """
    chex.assert_shape(values, (rewards.shape[0] + 1,))
    dtype = jnp.promote_types(jnp.promote_types(rewards.dtype, values.dtype), jnp.float32)
    rewards, values = rewards.astype(dtype), values.astype(dtype)
    deltas = rewards + gamma * values[1:] - values[:-1]

    def step(later: Array, delta: Array) -> tuple[Array, Array]:
        advantage = delta + gamma * gae_lambda * later
        return advantage, advantage

    return jax.lax.scan(step, jnp.zeros((), dtype), deltas, reverse=True)[1]


def multi_turn_generalized_advantage_estimation(
    rewards: Float[Array, " T"],
    values: Float[Array, " T+1"],
    policy_mask: Bool[Array, " T"],
    *,
    gamma: float | Float[Array, ""],
    gae_lambda: float | Float[Array, ""],
) -> Float[Array, " T"]:
    """Advantages along a conversation; tokens the policy did not choose are skipped, not discounted.

        policy token:  δ_t = r_t + γ V' − V_t,  A_t = δ_t + γλ A',  then V' ← V_t, A' ← A_t
        other token:   A_t = 0, and V', A' pass through unchanged

    backwards from V' = V_T, A' = 0. The result on policy tokens is the single-turn one of the conversation with all
    other tokens cut out, so it also handles padding on either side.
    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16, applied to the sequence of the policy's own actions.

    Args:
      rewards: r_t, reward units; read on policy tokens only. [T]
      values: V_t before token t, reward units; read on policy tokens and at the end, where it is 0 if the
        conversation is over. [T+1]
      policy_mask: True on tokens the policy chose, False on user tokens and padding. [T]
      gamma: discount per policy token, in [0, 1].
      gae_lambda: in [0, 1].
    Returns: A_t, reward units, 0 off the policy's tokens; gradients flow into `values`. [T]
    Raises: AssertionError at trace time if the lengths do not fit.
    Examples:
      >>> r, v, mask = jnp.array([0., 9., 1.]), jnp.array([0., 9., 0., 0.]), jnp.array([True, False, True])
      >>> multi_turn_generalized_advantage_estimation(r, v, mask, gamma=1., gae_lambda=.5)
      Array([0.5, 0. , 1. ], dtype=float32)
    """
    chex.assert_shape(values, (rewards.shape[0] + 1,))
    chex.assert_equal_shape([rewards, policy_mask])
    dtype = jnp.promote_types(jnp.promote_types(rewards.dtype, values.dtype), jnp.float32)
    rewards, values = rewards.astype(dtype), values.astype(dtype)

    def step(later: tuple[Array, Array], now: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        next_value, next_advantage = later
        reward, value, chosen = now
        # Linear in what is read off the policy's tokens: dropping it below drops its gradient too, were it NaN.
        advantage = reward + gamma * next_value - value + gamma * gae_lambda * next_advantage
        carry = jnp.where(chosen, value, next_value), jnp.where(chosen, advantage, next_advantage)
        return carry, jnp.where(chosen, advantage, 0)

    start = (values[-1], jnp.zeros((), dtype))
    return jax.lax.scan(step, start, (rewards, values[:-1], policy_mask), reverse=True)[1]

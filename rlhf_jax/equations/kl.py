"""Kullback–Leibler divergence KL(π‖π_ref): three estimates from sampled tokens, and the exact sum, in nats.

Source of the estimators: Schulman 2020, http://joschu.net/blog/kl-approx.html, with r = π_ref/π there, so that our
d = log π − log π_ref is −log r. Tokens are drawn from π.

| | formula | mean over samples of π | variance | gradient of that mean, samples held fixed |
|---|---|---|---|---|
| k1 | d | exact | high | zero: as a loss it teaches nothing |
| k2 | d²/2 | biased, small for small d | low | of KL(π‖π_ref) |
| k3 | exp(−d) − 1 + d | exact | low near π_ref, see `kl_k3` | of KL(π_ref‖π) |

The table holds for one draw from one distribution: a token given what came before, or a whole response with
d = Σ_t d_t. The means may be summed over tokens: Σ_t k1_t and Σ_t k3_t have the mean KL of the whole responses. The
gradients may not: Σ_t k2_t misses that a token also decides which states come later, and what KL waits there.

Hence k1 in the reward, where the policy gradient sees the later tokens; k2 of the whole response where a KL loss is
wanted; k3 for reports.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def _log_ratio(logprobs: Array, ref_logprobs: Array) -> Array:
    """d = log π − log π_ref in at least float32: a bfloat16 difference keeps two digits."""
    chex.assert_equal_shape([logprobs, ref_logprobs])
    dtype = jnp.promote_types(jnp.promote_types(logprobs.dtype, ref_logprobs.dtype), jnp.float32)
    return logprobs.astype(dtype) - ref_logprobs.astype(dtype)


def kl_k1(logprobs: Float[Array, "*shape"], ref_logprobs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Unbiased estimate per token, of either sign; the one the reward pays for.

        k1 = d = log π(a) − log π_ref(a)

    Source: Schulman 2020 (see the module).

    Args:
      logprobs: of the sampled tokens under π, nats. [*shape]
      ref_logprobs: of the same tokens under π_ref, nats. [*shape]
    Returns: nats; gradients 1 and −1. [*shape]
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> kl_k1(jnp.array([-1.0, -2.0]), jnp.array([-1.5, -1.0]))
      Array([ 0.5, -1. ], dtype=float32)
    """
    return _log_ratio(logprobs, ref_logprobs)


def kl_k2(logprobs: Float[Array, "*shape"], ref_logprobs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Biased estimate per draw, never negative; the mean of its gradients is the gradient of the KL of that draw.

        k2 = d²/2,   E_π[∇k2] = ∇KL(π‖π_ref)   at one position, or with d = Σ_t d_t over a whole response

    Summed over the tokens of a response, Σ_t d_t²/2, it lacks the KL that a token leads to (see the module). For a loss
    on responses give it their log-probabilities, `sequence_logprob` under both policies.

    Source: Schulman 2020 (see the module).

    Args:
      logprobs: of the sampled tokens, or of whole responses, under π, nats. [*shape]
      ref_logprobs: of the same under π_ref, nats. [*shape]
    Returns: nats; gradient d with respect to `logprobs`. [*shape]
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> kl_k2(jnp.array([-1.0, -2.0]), jnp.array([-1.5, -1.0]))
      Array([0.125, 0.5  ], dtype=float32)
    """
    return jnp.square(_log_ratio(logprobs, ref_logprobs)) / 2


def kl_k3(logprobs: Float[Array, "*shape"], ref_logprobs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Unbiased estimate per token, never negative, of low variance near π_ref; for reports.

        k3 = exp(−d) − 1 + d,   E_π[∇k3] = ∇KL(π_ref‖π)   at one position, or with d = Σ_t d_t over a whole response

    Far from π_ref its variance exceeds k1's: exp(−d) is huge for tokens that π hardly says and π_ref does.

    Source: Schulman 2020 (see the module), (r − 1) − log r.

    Args:
      logprobs: of the sampled tokens under π, nats. [*shape]
      ref_logprobs: of the same tokens under π_ref, nats. [*shape]
    Returns: nats; gradient 1 − exp(−d) with respect to `logprobs`. Where d < −88.7 they are +∞ and −∞: exp(−d) is beyond
      float32. [*shape]
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> [round(x, 6) for x in kl_k3(jnp.array([0.1, -0.3, 0.0, 1.0]), jnp.zeros(4)).tolist()]
      [0.004837, 0.049859, 0.0, 0.367879]
    """
    log_ratio = _log_ratio(logprobs, ref_logprobs)
    return jnp.expm1(-log_ratio) + log_ratio


def kl_exact(logits: Float[Array, "T V"], ref_logits: Float[Array, "T V"]) -> Float[Array, " T"]:
    """KL of the whole next-token distributions at every position; batch with `jax.vmap`.

        KL_t = Σ_v π_v (log π_v − log π_ref,v)

    Source: Kullback & Leibler 1951, "On Information and Sufficiency", for distributions over tokens, in nats.

    Args:
      logits: of π, temperature and grammar mask already applied (−∞ for a token that may not be said). [T, V]
      ref_logits: of π_ref, likewise. [T, V]
    Returns: nats, not negative up to rounding; +∞ where π allows what π_ref does not, however rarely π says it. The
      gradient with respect to the logits is π_v (log π_v − log π_ref,v − KL); where KL is +∞ it is finite and means
      nothing. [T]
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> kl = kl_exact(jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.25, 0.75]])))
      >>> [round(x, 6) for x in kl.tolist()]
      [0.143841]
    """
    chex.assert_equal_shape([logits, ref_logits])
    dtype = jnp.promote_types(jnp.promote_types(logits.dtype, ref_logits.dtype), jnp.float32)
    logprobs = jax.nn.log_softmax(logits.astype(dtype), axis=-1)
    ref_logprobs = jax.nn.log_softmax(ref_logits.astype(dtype), axis=-1)
    # 0·(−∞) = 0 for tokens π never says, in value and gradient.
    possible = jnp.isfinite(logprobs)
    # exp(log π) may be 0 in float32 for a token that π allows: 0·∞ there would be NaN.
    forbidden = possible & jnp.isneginf(ref_logprobs)
    defined = possible & ~forbidden
    logprobs, ref_logprobs = jnp.where(defined, logprobs, 0), jnp.where(defined, ref_logprobs, 0)
    terms = jnp.where(defined, jnp.exp(logprobs) * (logprobs - ref_logprobs), 0)
    return jnp.where(forbidden, jnp.inf, terms).sum(axis=-1)

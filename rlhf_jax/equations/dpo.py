"""Direct preference optimisation: the policy's own log-probabilities serve as the reward model.

Inputs are log-probabilities of whole responses, sums over tokens in nats, under π and π_ref; + is chosen, − rejected:

    h = (log π(y_+) − log π_ref(y_+)) − (log π(y_−) − log π_ref(y_−))

Log the chosen and rejected log-probabilities: both falling while the margin grows is the method's known failure.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def implicit_reward(
    logprob: Float[Array, "*shape"], ref_logprob: Float[Array, "*shape"], *, beta: float | Float[Array, ""]
) -> Float[Array, "*shape"]:
    """The reward under which π is optimal for the KL-regularised objective, up to a constant per prompt.

        r(x, y) = β (log π(y|x) − log π_ref(y|x))

    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 5 (β log Z dropped: it cancels between responses to a prompt).

    Args:
      logprob: of the response under π, nats. [*shape]
      ref_logprob: of the response under π_ref, nats. [*shape]
      beta: β > 0, reward units per nat.
    Returns: reward units; gradient β with respect to `logprob`. [*shape]
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> implicit_reward(jnp.array([-10.0]), jnp.array([-12.0]), beta=0.5)
      Array([1.], dtype=float32)
    """
    chex.assert_equal_shape([logprob, ref_logprob])
    dtype = jnp.promote_types(jnp.promote_types(logprob.dtype, ref_logprob.dtype), jnp.float32)
    return beta * (logprob.astype(dtype) - ref_logprob.astype(dtype))


def dpo_loss(
    chosen: Float[Array, "*shape"],
    rejected: Float[Array, "*shape"],
    ref_chosen: Float[Array, "*shape"],
    ref_rejected: Float[Array, "*shape"],
    *,
    beta: float | Float[Array, ""],
    label_smoothing: float | Float[Array, ""] = 0.0,
) -> Float[Array, "*shape"]:
    """Logistic loss on the margin, with optional label smoothing.

        −(1 − f) log σ(βh) − f log σ(−βh)

    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; f is the share of flipped labels assumed (conservative DPO,
    Mitchell 2023, https://ericmitchell.ai/cdpo.pdf).

    Args:
      chosen: log π(y_+), nats. [*shape]
      rejected: log π(y_−), nats. [*shape]
      ref_chosen: log π_ref(y_+), nats. [*shape]
      ref_rejected: log π_ref(y_−), nats. [*shape]
      beta: β > 0, strength of the pull to π_ref, without unit.
      label_smoothing: f, in [0, ½).
    Returns: nats per pair, log 2 at h = 0; the gradient with respect to `chosen` is −β(1 − f − σ(βh)). [*shape]
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> pair = jnp.array(-10.0), jnp.array(-12.0), jnp.array(-11.0), jnp.array(-11.0)
      >>> [round(float(dpo_loss(*pair, beta=0.1, label_smoothing=e)), 6) for e in (0.0, 0.1)]
      [0.598139, 0.618139]
    """
    margin = implicit_reward(chosen, ref_chosen, beta=beta) - implicit_reward(rejected, ref_rejected, beta=beta)
    right, wrong = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def ipo_loss(
    chosen: Float[Array, "*shape"],
    rejected: Float[Array, "*shape"],
    ref_chosen: Float[Array, "*shape"],
    ref_rejected: Float[Array, "*shape"],
    *,
    beta: float | Float[Array, ""],
) -> Float[Array, "*shape"]:
    """Squared loss that aims at a finite margin, so certain preferences cannot pull π away from π_ref without end.

        (h − 1/(2β))²

    Source: Azar et al. 2024, arXiv:2310.12036, eq. 17 (their τ is β).

    Args:
      chosen: log π(y_+), nats. [*shape]
      rejected: log π(y_−), nats. [*shape]
      ref_chosen: log π_ref(y_+), nats. [*shape]
      ref_rejected: log π_ref(y_−), nats. [*shape]
      beta: β > 0; the margin aimed at is 1/(2β) nats.
    Returns: squared nats per pair; the gradient with respect to `chosen` is 2(h − 1/(2β)). [*shape]
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> ipo_loss(jnp.array(-10.0), jnp.array(-12.0), jnp.array(-11.0), jnp.array(-11.0), beta=0.1)
      Array(9., dtype=float32)
    """
    margin = implicit_reward(chosen, ref_chosen, beta=1.0) - implicit_reward(rejected, ref_rejected, beta=1.0)
    return jnp.square(margin - 1 / (2 * beta))


def softmax_dpo_loss(
    chosen: Float[Array, ""],
    rejected: Float[Array, " K"],
    ref_chosen: Float[Array, ""],
    ref_rejected: Float[Array, " K"],
    *,
    beta: float | Float[Array, ""],
) -> Float[Array, ""]:
    """One chosen response against several rejected ones; batch with `jax.vmap`.

        −log [ exp r_+ / (exp r_+ + Σ_k exp r_k) ] = log(1 + Σ_k exp(r_k − r_+)),   r = β (log π − log π_ref)

    Source: Chen et al. 2024, "On Softmax Direct Preference Optimization for Recommendation", arXiv:2406.09215,
    where it is written as −log σ(−log Σ_k exp(r_k − r_+)). With K = 1 it is `dpo_loss`.

    Args:
      chosen: log π(y_+), nats. []
      rejected: log π(y_k), nats. [K]
      ref_chosen: log π_ref(y_+), nats. []
      ref_rejected: log π_ref(y_k), nats. [K]
      beta: β > 0, without unit.
    Returns: nats, log(1 + K) at equal rewards; gradients push hardest against the rejected response rated best. []
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> others = jnp.array([-5.0, -7.0])
      >>> round(float(softmax_dpo_loss(jnp.array(-9.0), others, jnp.array(-9.0), others, beta=0.1)), 6)
      1.098612
    """
    reward = implicit_reward(chosen, ref_chosen, beta=beta)
    others = implicit_reward(rejected, ref_rejected, beta=beta)
    return jax.nn.logsumexp(jnp.concatenate([reward[None], others])) - reward

"""Log-probabilities and entropy of a language policy, in nats; position t is the distribution over token t.

Logits are divided by the temperature for the sampling policy, the reference and the learner alike: only then are their
log-probabilities those of the distribution that was sampled. A token that may not be said has probability 0.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def log_softmax(
    logits: Float[Array, "T V"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    allowed: Bool[Array, "T V"] | None = None,
) -> Float[Array, "T V"]:
    """Log-probability of every token at every position, −∞ where a token is not allowed.

        log π(v) = l_v/τ − log Σ_{u allowed} exp(l_u/τ)

    Source: definition of the softmax with a temperature, Hinton et al. 2015, arXiv:1503.02531, eq. 1.

    Args:
      logits: unnormalised scores. [T, V]
      temperature: τ > 0; below 1 sharpens.
      allowed: False where a token may not be said; a row that allows nothing (padding) counts as allowing everything,
        which keeps it finite. None allows everything. [T, V]
    Returns: nats, never positive; no gradient flows into tokens that are not allowed. [T, V]
    Raises: AssertionError at trace time if `allowed` has another shape than `logits`.
    Examples:
      >>> logprobs = log_softmax(jnp.zeros((1, 3)), allowed=jnp.array([[True, True, False]]))
      >>> [round(x, 4) for x in jnp.exp(logprobs)[0].tolist()]
      [0.5, 0.5, 0.0]
    """
    return jax.nn.log_softmax(_permitted(logits, temperature, allowed), axis=-1)


def _permitted(logits: Array, temperature: float | Array, allowed: Array | None) -> Array:
    """Logits over the temperature, −∞ where a token is not allowed."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / temperature
    if allowed is None:
        return logits
    chex.assert_equal_shape([logits, allowed])
    return jnp.where(allowed | ~allowed.any(axis=-1, keepdims=True), logits, -jnp.inf)


@jax.custom_vjp
def _picked(logits: Float[Array, "T V"], tokens: Int[Array, " T"]) -> Float[Array, " T"]:
    """`log_softmax(logits)` at the tokens, with the gradient as the formula has it.

    Derived by the compiler, the gradient scatters one number a row into zeros of the size of the logits, which are the
    largest array of an update.
    """
    return _picked_forward(logits, tokens)[0]


def _picked_forward(logits: Array, tokens: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    largest = jnp.max(logits, axis=-1, keepdims=True)
    log_sum = jnp.log(jnp.sum(jnp.exp(logits - largest), axis=-1, keepdims=True))
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)
    return (chosen - largest - log_sum)[:, 0], (logits, largest + log_sum, tokens)


def _picked_backward(kept: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, None]:
    logits, normaliser, tokens = kept
    chosen = jnp.arange(logits.shape[-1])[None] == tokens[:, None]
    return gradient[:, None] * (chosen - jnp.exp(logits - normaliser)), None


_picked.defvjp(_picked_forward, _picked_backward)


def token_logprobs(
    logits: Float[Array, "T V"],
    tokens: Int[Array, " T"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    allowed: Bool[Array, "T V"] | None = None,
) -> Float[Array, " T"]:
    """Log-probability of the tokens of one response; batch with `jax.vmap`.

        log π(a_t | s_t) = l_{t,a_t}/τ − log Σ_v exp(l_{t,v}/τ)

    Source: definition.

    Args:
      logits: scores over token t, i.e. the model's output one position before it. [T, V]
      tokens: a_t. [T]
      temperature: τ of the sampling policy.
      allowed: the tokens the sampler was allowed to draw. [T, V]
    Returns: nats, never positive; the gradient with respect to the logits is (onehot(a_t) − π_t)/τ. [T]
    Raises: AssertionError at trace time if `tokens` and `logits` differ in length.
    Examples:
      >>> logprobs = token_logprobs(jnp.log(jnp.array([[0.5, 0.5], [0.2, 0.8]])), jnp.array([0, 1]))
      >>> [round(x, 4) for x in jnp.exp(logprobs).tolist()]
      [0.5, 0.8]
    """
    chex.assert_equal_shape_prefix([logits, tokens], 1)
    return _picked(_permitted(logits, temperature, allowed), tokens)


def entropy(
    logits: Float[Array, "T V"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    allowed: Bool[Array, "T V"] | None = None,
) -> Float[Array, " T"]:
    """Entropy of the policy at every position of one response; batch with `jax.vmap`.

        H_t = −Σ_v π_v log π_v = logsumexp(l_t/τ) − Σ_v π_v l_{t,v}/τ

    The first form is computed: each of its terms is ≥ 0, so rounding cannot make the sum negative.

    Source: Shannon 1948, "A Mathematical Theory of Communication", section 6, in nats.

    Args:
      logits: unnormalised scores. [T, V]
      temperature: τ of the sampling policy.
      allowed: the tokens the sampler was allowed to draw. [T, V]
    Returns: nats, in [0, log |𝒱|]; the gradient with respect to l_v is −π_v (log π_v + H)/τ. [T]
    Raises: AssertionError at trace time if `allowed` has another shape than `logits`.
    Examples:
      >>> [round(x, 4) for x in entropy(jnp.zeros((1, 4))).tolist()]
      [1.3863]
    """
    logprobs = log_softmax(logits, temperature=temperature, allowed=allowed)
    # 0·log 0 = 0: impossible tokens must be taken out before the product, or 0 · −inf poisons value and gradient.
    possible = jnp.isfinite(logprobs)
    logprobs = jnp.where(possible, logprobs, 0)
    return -jnp.where(possible, jnp.exp(logprobs) * logprobs, 0).sum(axis=-1)


def chunked_token_logprobs(
    hidden: Float[Array, "T D"],
    head: Float[Array, "V D"],
    tokens: Int[Array, " T"],
    *,
    chunk: int,
    temperature: float | Float[Array, ""] = 1.0,
    allowed: Bool[Array, "T V"] | None = None,
) -> Float[Array, " T"]:
    """`token_logprobs(hidden @ head.T, tokens)` with only `chunk` rows of logits in memory, forward and backward.

        log π(a_t | s_t) = h_t·w_{a_t}/τ − log Σ_v exp(h_t·w_v/τ)

    The projection onto the vocabulary is computed `chunk` positions at a time and again in the backward pass: [T, V]
    float32 logits are the largest array of a fine-tuning step.
    Source: Chen et al. 2016, arXiv:1604.06174 (recomputation), applied to the output layer.

    Args:
      hidden: last hidden states, one position before the token each predicts. [T, D]
      head: output embedding, one row per token. [V, D]
      tokens: a_t. [T]
      chunk: positions per slice, ≥ 1; need not divide T.
      temperature: τ of the sampling policy.
      allowed: the tokens the sampler was allowed to draw. [T, V]
    Returns: nats; same value and gradients (into `hidden` and `head`) as the unchunked form. [T]
    Raises: ValueError at trace time if `chunk` < 1.
    Examples:
      >>> hidden, head = jnp.eye(3), jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
      >>> logprobs = chunked_token_logprobs(hidden, head, jnp.array([0, 0, 1]), chunk=2)
      >>> [round(x, 4) for x in logprobs.tolist()]
      [-0.6931, -0.3133, -0.3133]
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    chex.assert_equal_shape_prefix([hidden, tokens], 1)
    length = tokens.shape[0]
    n_chunks = -(-length // chunk)

    def slices(x: Array) -> Array:
        padding = [(0, n_chunks * chunk - length)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding).reshape(n_chunks, chunk, *x.shape[1:])

    @jax.checkpoint
    def project(piece: tuple[Array, Array, Array | None]) -> Array:
        states, targets, permitted = piece
        logits = jnp.matmul(states, head.T, preferred_element_type=jnp.promote_types(states.dtype, jnp.float32))
        return token_logprobs(logits, targets, temperature=temperature, allowed=permitted)

    pieces = (slices(hidden), slices(tokens), None if allowed is None else slices(allowed))
    return jax.lax.map(project, pieces).reshape(-1)[:length]


def sequence_logprob(logprobs: Float[Array, " T"], mask: Bool[Array, " T"]) -> Float[Array, ""]:
    """Log-probability of one whole response: the sum over its real tokens.

        log π(y | x) = Σ_t m_t log π(a_t | s_t)

    Source: chain rule of probability.

    Args:
      logprobs: per token, nats. [T]
      mask: True on real tokens. [T]
    Returns: nats; the gradient is the mask. []
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> sequence_logprob(jnp.array([-1.0, -2.0, jnp.nan]), jnp.array([True, True, False]))
      Array(-3., dtype=float32)
    """
    chex.assert_equal_shape([logprobs, mask])
    logprobs = logprobs.astype(jnp.promote_types(logprobs.dtype, jnp.float32))
    return jnp.where(mask, logprobs, 0).sum()

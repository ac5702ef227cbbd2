"""Contrastive losses: a query should be nearer to its positives than to negatives, whoever these are."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def info_nce(
    scores: Float[Array, " N"], weights: Float[Array, " N"], mask: Bool[Array, " N"] | None = None
) -> Float[Array, ""]:
    """InfoNCE of one query with any number of positives; batch with `jax.vmap`.

        L = −Σ_p w_p log( e^{s_p} / (e^{s_p} + Σ_{n ∈ N} e^{s_n}) ),   N = {n : w_n = 0 and m_n}

    A candidate with a weight is a positive. Other positives stand in no denominator: they are neither pulled nor pushed
    on behalf of this one. A candidate outside the mask is neither, whatever its weight.

    Source: van den Oord et al. 2018, arXiv:1807.03748, eq. 4, with one positive; there f = e^s. A sum over positives
    outside of the logarithm as Khosla et al. 2020, arXiv:2004.11362, eq. 2 (L_out), who keep all other positives in the
    denominator and divide by τ: here the temperature is already in the scores, and the caller's weights take the place
    of 1/|P|.

    Args:
      scores: s, of the query's candidates (in-batch, hard, drawn), nats. [N]
      weights: w ≥ 0, above 0 on positives; 1/|P| makes a mean of them. [N]
      mask: m, False on candidates that do not count: duplicates, padding, false negatives; None counts all. [N]
    Returns: nats, at least 0, and 0 without a positive; with one positive of weight 1 among N equal scores it is log N.
      Gradients flow into `scores` of the candidates that count, summing to 0. []
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> round(float(info_nce(jnp.zeros(4), jnp.array([1.0, 0.0, 0.0, 0.0]))), 4)
      1.3863
      >>> round(float(info_nce(jnp.array([2.0, 1.0, 0.0]), jnp.array([0.5, 0.5, 0.0]))), 4)
      0.2201
    """
    counted = jnp.ones(scores.shape, bool) if mask is None else mask
    chex.assert_equal_shape([scores, weights, counted])
    dtype = jnp.promote_types(scores.dtype, jnp.float32)
    positive = counted & (weights > 0)
    negative = counted & (weights <= 0)
    # Replaced before and after use: what stands outside the mask may be anything, and reaches no gradient.
    scores = jnp.where(counted, scores, 0).astype(dtype)
    lowest = jnp.finfo(dtype).min
    others = jax.nn.logsumexp(jnp.where(negative, scores, lowest))
    # log(1 + e^{others − s}): nothing is left of it where there is no negative.
    losses = jax.nn.softplus(others - scores)
    return jnp.where(positive, weights.astype(dtype) * losses, 0).sum()


def corrected_scores(scores: Float[Array, " N"], log_expected: Float[Array, " N"]) -> Float[Array, " N"]:
    """Scores as the softmax over all candidates would weigh them, where negatives are drawn unevenly.

        s'_j = s_j − log E_j

    E_j is how often candidate j is expected among those that count: its expected number of draws, or, where each candidate
    counts once, its chance to be drawn at all, 1 − e^{−draws}. In-batch negatives are drawn by popularity: without the
    correction InfoNCE learns s_j = log p(j | query) − log E_j, and popular items come last.

    Source: Bengio and Senécal 2008, doi:10.1109/TNN.2007.912312; for in-batch negatives Yi et al. 2019,
    doi:10.1145/3298689.3346996, eq. 3 (their p_j is our E_j up to a constant).

    Args:
      scores: s, nats. [N]
      log_expected: log E_j, nats; a constant added to all of them changes no InfoNCE. [N]
    Returns: nats; the gradient with respect to `scores` is 1. [N]
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> corrected_scores(jnp.array([1.0, 1.0]), jnp.array([0.0, 0.5])).tolist()
      [1.0, 0.5]
    """
    chex.assert_equal_shape([scores, log_expected])
    dtype = jnp.promote_types(jnp.promote_types(scores.dtype, log_expected.dtype), jnp.float32)
    return scores.astype(dtype) - log_expected.astype(dtype)


def first_of_each(candidates: Int[Array, " N"]) -> Bool[Array, " N"]:
    """True on the first mention of each candidate: an item that is drawn twice counts once.

        m_j = [no k < j with c_k = c_j]

    Source: ours; a candidate that stands twice in a denominator is a negative of twice the weight.

    Args:
      candidates: c, their numbers. [N]
    Returns: a mask for `info_nce`; no gradient. [N]
    Raises: nothing.
    Examples:
      >>> first_of_each(jnp.array([3, 5, 3, 5, 1])).tolist()
      [True, True, False, False, True]
    """
    earlier = jnp.tril(jnp.ones((candidates.shape[0], candidates.shape[0]), bool), -1)
    return ~jnp.any((candidates[:, None] == candidates[None, :]) & earlier, axis=1)

"""Losses of a list: scores of its items against labels, one list at a time; batch with `jax.vmap`.

Shape letter: N items of a list. Labels are gains from 0 on; a list without a positive one says nothing about order.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def softmax_loss(scores: Float[Array, " N"], labels: Float[Array, " N"]) -> Float[Array, ""]:
    """Cross-entropy of the labels, taken as shares, against the softmax of the scores.

        −Σ_i (y_i / Σ_j y_j) log softmax(s)_i

    Source: Bruch et al. 2019, "An analysis of the softmax cross entropy loss for learning-to-rank", eq. 3; with a binary y a
    bound on NDCG.

    Args:
      scores: s, any real numbers. [N]
      labels: y ≥ 0. [N]
    Returns: nats; 0 where no label is positive. The gradient with respect to s_i is softmax(s)_i − y_i/Σy. []
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> round(float(softmax_loss(jnp.zeros(4), jnp.array([1.0, 0.0, 1.0, 0.0]))), 6)
      1.386294
    """
    chex.assert_equal_shape([scores, labels])
    dtype = _wide(scores, labels)
    scores, labels = scores.astype(dtype), labels.astype(dtype)
    total = jnp.sum(labels)
    shares = labels / jnp.where(total > 0, total, 1.0)
    return -jnp.sum(shares * jax.nn.log_softmax(scores))


def listnet_loss(scores: Float[Array, " N"], labels: Float[Array, " N"]) -> Float[Array, ""]:
    """Cross-entropy of two top-one distributions: that of the labels and that of the scores.

        −Σ_i softmax(y)_i log softmax(s)_i

    Source: Cao et al. 2007, "Learning to rank: from pairwise approach to listwise approach", eq. 8 with top-one probabilities.

    Args:
      scores: s, any real numbers. [N]
      labels: y, any real numbers; equal ones ask for equal scores. [N]
    Returns: nats, at least the entropy of softmax(y). []
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> round(float(listnet_loss(jnp.zeros(2), jnp.array([1.0, 0.0]))), 6)
      0.693147
    """
    chex.assert_equal_shape([scores, labels])
    dtype = _wide(scores, labels)
    return -jnp.sum(jax.nn.softmax(labels.astype(dtype)) * jax.nn.log_softmax(scores.astype(dtype)))


def attention_rank_loss(scores: Float[Array, " N"], labels: Float[Array, " N"]) -> Float[Array, ""]:
    """Binary cross-entropy of two attention distributions, item by item.

        −Σ_i [ a^y_i log a^s_i + (1 − a^y_i) log(1 − a^s_i) ],   a^x_i = τ(x_i) / Σ_j τ(x_j),   τ(x) = eˣ if x > 0 else 0

    Source: Ai et al. 2018, "Learning a deep listwise context model", arXiv:1804.05936, eqs. 7–9; τ as in their released code,
    for scores as well. An item of score ≤ 0 gets no gradient at all, nor does a share at its bound; `softmax_loss` has no such
    trap.

    Args:
      scores: s; those > 0 take part. [N]
      labels: y; those > 0 take part. [N]
    Returns: nats; 0 where no label is positive. Shares are kept away from 0 and 1 by 1e-6 inside the logarithms. []
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> round(float(attention_rank_loss(jnp.array([1.0, 1.0]), jnp.array([1.0, 0.0]))), 6)
      1.386294
    """
    chex.assert_equal_shape([scores, labels])
    dtype = _wide(scores, labels)

    def shares(x: Array) -> Array:
        positive = x > 0
        # Shares do not change when all exponents fall by the largest; so none of them is beyond float32.
        largest = jax.lax.stop_gradient(jnp.max(x))
        weights = jnp.where(positive, jnp.exp(jnp.where(positive, x - largest, 0.0)), 0.0)
        total = jnp.sum(weights)
        return weights / jnp.where(total > 0, total, 1.0)

    wanted, given = shares(labels.astype(dtype)), jnp.clip(shares(scores.astype(dtype)), 1e-6, 1 - 1e-6)
    loss = -jnp.sum(wanted * jnp.log(given) + (1 - wanted) * jnp.log1p(-given))
    return jnp.where(jnp.any(labels > 0), loss, 0.0)


def pointwise_loss(scores: Float[Array, " N"], labels: Float[Array, " N"]) -> Float[Array, ""]:
    """Mean binary cross-entropy of every item by itself; the scores are log-odds.

        −(1/N) Σ_i [ y_i log σ(s_i) + (1 − y_i) log σ(−s_i) ]

    Source: Pei et al. 2019 train their re-ranker on clicks, arXiv:1904.06813; this form in the public code of KAR.

    Args:
      scores: s, log-odds. [N]
      labels: y in [0, 1]. [N]
    Returns: nats an item; the gradient with respect to s_i is (σ(s_i) − y_i)/N. []
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> round(float(pointwise_loss(jnp.zeros(2), jnp.array([1.0, 0.0]))), 6)
      0.693147
    """
    chex.assert_equal_shape([scores, labels])
    dtype = _wide(scores, labels)
    scores, labels = scores.astype(dtype), labels.astype(dtype)
    return -jnp.mean(labels * jax.nn.log_sigmoid(scores) + (1 - labels) * jax.nn.log_sigmoid(-scores))


def _wide(scores: Array, labels: Array) -> jnp.dtype:
    return jnp.promote_types(jnp.promote_types(scores.dtype, labels.dtype), jnp.float32)

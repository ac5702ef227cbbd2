"""Losses for reward models, and the likelihood of a ranked list."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def bradley_terry_loss(chosen: Float[Array, "*shape"], rejected: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Loss of a comparison: the chosen response should score higher.

        −log σ(s_+ − s_−)

    Source: Bradley & Terry 1952; Stiennon et al. 2020, arXiv:2009.01325, section 3.4 (their r is our score s).

    Args:
      chosen: s_+, score units. [*shape]
      rejected: s_−, score units. [*shape]
    Returns: nats per comparison, log 2 at equal scores; the gradient with respect to s_+ is −σ(s_− − s_+), the
      opposite one for s_−, so a constant added to both changes nothing. [*shape]
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> [round(x, 6) for x in bradley_terry_loss(jnp.array([0.0, 2.0]), jnp.array([0.0, 1.0])).tolist()]
      [0.693147, 0.313262]
    """
    chex.assert_equal_shape([chosen, rejected])
    dtype = jnp.promote_types(jnp.promote_types(chosen.dtype, rejected.dtype), jnp.float32)
    return -jax.nn.log_sigmoid(chosen.astype(dtype) - rejected.astype(dtype))


def regression_loss(
    scores: Float[Array, "*shape"], labels: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Squared error against labels, some of which may be missing.

        (s − y)² where there is a label, else 0

    Source: least squares.

    Args:
      scores: s, in the labels' units. [*shape]
      labels: y, usually z-scored; anything, NaN included, where missing. [*shape]
      mask: True where there is a label. [*shape]
    Returns: squared units, one per label; divide the sum by the number of labels. Gradient 2(s − y) where there is a
      label, else 0. [*shape]
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> regression_loss(jnp.array([1.0, 5.0]), jnp.array([3.0, jnp.nan]), jnp.array([True, False]))
      Array([4., 0.], dtype=float32)
    """
    chex.assert_equal_shape([scores, labels, mask])
    dtype = jnp.promote_types(jnp.promote_types(scores.dtype, labels.dtype), jnp.float32)
    scores, labels = jnp.where(mask, scores, 0).astype(dtype), jnp.where(mask, labels, 0).astype(dtype)
    return jnp.square(scores - labels)


def plackett_luce_logprob(
    utilities: Float[Array, " I"], ranking: Int[Array, " K"], mask: Bool[Array, " K"] | None = None
) -> Float[Array, ""]:
    """Log-probability of a ranked list, drawn item by item without replacement; batch with `jax.vmap`.

        log P(i_1, …, i_K) = Σ_k ( u_{i_k} − log Σ_{j not in i_1…i_{k−1}} exp u_j )

    Source: Plackett 1975, "The analysis of permutations"; Luce 1959. K may be smaller than the number of items I.

    Args:
      utilities: u_i, nats up to a constant. [I]
      ranking: indices of the items, best first, without repeats. [K]
      mask: True on real entries of the list, which come first; None for a full one. [K]
    Returns: nats, never positive; gradients flow into `utilities` and sum to 0. []
    Raises: ValueError at trace time if the list is longer than the catalogue.
    Examples:
      >>> round(float(jnp.exp(plackett_luce_logprob(jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.array([0, 2])))), 6)
      0.2
    """
    n_items, length = utilities.shape[0], ranking.shape[0]
    if length > n_items:
        raise ValueError(f"a list of {length} cannot be drawn without replacement from {n_items} items")
    utilities = utilities.astype(jnp.promote_types(utilities.dtype, jnp.float32))
    mask = jnp.ones(length, bool) if mask is None else mask
    drawn = jnp.arange(n_items)[None] == ranking[:, None]
    taken = jnp.cumsum(drawn, axis=0) - drawn > 0
    remaining = jnp.where(taken, -jnp.inf, utilities[None])
    # Places after the end hold any index; they cannot empty the catalogue, so what is masked here is finite.
    logprobs = utilities[ranking] - jax.nn.logsumexp(remaining, axis=-1)
    return jnp.where(mask, logprobs, 0).sum()

"""Sums and counts over slices of a batch, so that K micro-batches give what one large batch gives."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rlhf_jax.interfaces import Params


class LossSums(NamedTuple):
    """A loss before its reduction: nothing is divided until all micro-batches are in (a mean of means is wrong)."""

    loss: Float[Array, ""]
    """Sum over elements (tokens, labels); its gradient is the one that is accumulated."""
    count: Float[Array, ""]
    """Number, or total weight, of these elements."""
    parts: dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
    """More (sum, count) pairs to be logged as means, by metric name."""
    maxima: dict[str, Float[Array, ""]]
    """Quantities logged as the maximum over the batch, by metric name."""


@runtime_checkable
class SummedLoss(Protocol):
    """A loss that sums over its batch; every leaf of `batch` has the responses (rows) on its first axis."""

    def __call__(self, params: Params, batch: Any, key: Key[Array, ""]) -> LossSums: ...


def loss_and_gradient(
    loss_fn: SummedLoss, params: Params, batch: Any, key: Key[Array, ""], *, microbatches: int = 1, together: int = 1
) -> tuple[Float[Array, ""], Params, dict[str, Float[Array, ""]]]:
    """Mean loss, its gradient and the means and maxima to log, from `microbatches` slices of equal numbers of rows.

        loss = Σ_k loss_k / Σ_k count_k,   gradient = Σ_k ∇loss_k / Σ_k count_k     (0 where nothing counts)

    Args:
      together: consecutive rows that stay in one slice.
    Raises: ValueError at trace time if the rows cannot be divided by `microbatches`, or not into `together`.
    """

    def differentiated(params: Params, batch: Any, key: Key[Array, ""]) -> tuple[Float[Array, ""], LossSums]:
        sums = loss_fn(params, batch, key)
        return sums.loss, sums

    value_and_grad = jax.value_and_grad(differentiated, has_aux=True)
    if microbatches == 1:
        (_, sums), gradient = value_and_grad(params, batch, key)
    else:
        slices = jax.tree.map(lambda leaf: _slices(leaf, microbatches, together), batch)
        keys = jax.random.split(key, microbatches)
        one = jax.eval_shape(value_and_grad, params, jax.tree.map(lambda leaf: leaf[0], slices), keys[0])
        (_, empty), no_gradient = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), one)
        empty = empty._replace(maxima=jax.tree.map(lambda leaf: jnp.full_like(leaf, -jnp.inf), empty.maxima))

        def accumulate(carry: tuple[LossSums, Params], xs: tuple[Any, Any]) -> tuple[tuple[LossSums, Params], None]:
            (_, sums), gradient = value_and_grad(params, *xs)
            return (_merge(carry[0], sums), jax.tree.map(jnp.add, carry[1], gradient)), None

        (sums, gradient), _ = jax.lax.scan(accumulate, (empty, no_gradient), (slices, keys))
    scale = _reciprocal(sums.count)
    means = {name: part * _reciprocal(count) for name, (part, count) in sums.parts.items()}
    return sums.loss * scale, jax.tree.map(lambda leaf: leaf * scale, gradient), means | sums.maxima


def _slices(leaf: Array, microbatches: int, together: int) -> Array:
    rows, rest = leaf.shape[0], leaf.shape[1:]
    if rows % (microbatches * together):
        groups = "" if together == 1 else f" of whole groups of {together}"
        raise ValueError(f"{rows} rows cannot be divided into {microbatches} micro-batches{groups}")
    # Strided rows: where the row axis is sharded, every slice then has rows on every device.
    if together == 1:
        return leaf.reshape(rows // microbatches, microbatches, *rest).swapaxes(0, 1)
    strided = leaf.reshape(rows // (microbatches * together), microbatches, together, *rest).swapaxes(0, 1)
    return strided.reshape(microbatches, rows // microbatches, *rest)


def _merge(a: LossSums, b: LossSums) -> LossSums:
    return LossSums(
        loss=a.loss + b.loss,
        count=a.count + b.count,
        parts=jax.tree.map(jnp.add, a.parts, b.parts),
        maxima=jax.tree.map(jnp.maximum, a.maxima, b.maxima),
    )


def _reciprocal(count: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.where(count > 0, 1.0 / jnp.where(count > 0, count, 1.0), 0.0)

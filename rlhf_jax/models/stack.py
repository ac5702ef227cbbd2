"""Equal blocks one after another: as a loop compiled once, and what is kept for the backward pass."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

LAYERS = ("unrolled", "scan")
REMATS = ("none", "full", "dots")


def kept_by(remat: str) -> Callable[..., Any] | None:
    """The checkpoint policy of `full` (None: nothing is kept) or `dots`.

    Products of two activations, attention's, have batch dimensions and are computed again: they are the large ones.
    """
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None


def scanned(block: Callable[[Array, Any], Array], x: Array, layers: Sequence[Any], *, remat: str) -> Array:
    """`block(x, layer)` for one layer after another, as a scan over their stacked trees.

    The stack is a copy of all weights in every pass, and its gradient is one more: that is the price of a tree that
    names its layers, which checkpoints and sharding rules want.

    Args:
      block: one layer's function of the residual stream and of the layer's arrays.
      layers: trees of one structure, equal shapes; none leaves `x` as it is.
      remat: one of `REMATS`.
    """
    if not layers:
        return x
    # A scan's body cannot be merged with its recomputation, so the guard against that, which costs, is left out.
    once = block if remat == "none" else jax.checkpoint(block, policy=kept_by(remat), prevent_cse=False)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return lax.scan(lambda x, layer: (once(x, layer), None), x, stacked)[0]

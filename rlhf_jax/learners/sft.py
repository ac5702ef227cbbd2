"""Supervised fine-tuning: next-token likelihood of the recommender's turns, one optimiser step at a time.

`loss_fn` knows the model; this file knows how its sums become a step.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from rlhf_jax.interfaces import Params
from rlhf_jax.learners.microbatch import SummedLoss, loss_and_gradient
from rlhf_jax.learners.optimizer import TrainState, after_step, apply_or_skip


def init(params: Params, optimizer: optax.GradientTransformation, *, averaged: bool = False) -> TrainState:
    """Step 0. Copies `params`, so that the state may be donated while the caller keeps them.

    Args:
      averaged: also carry an exponential moving average of the parameters (decay given to `update`).
    """
    params = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        skipped=jnp.zeros((), jnp.int32),
        average=jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params) if averaged else None,
    )


def update(
    state: TrainState,
    batch: Any,
    key: Key[Array, ""],
    *,
    loss_fn: SummedLoss,
    optimizer: optax.GradientTransformation,
    microbatches: int = 1,
    average_decay: float = 0.999,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One step down the mean of `loss_fn` over `batch`; jit it with the keyword arguments bound and `state` donated.

    Args:
      batch: pytree with the rows on the first axis of every leaf.
      key: dropout's; a new one every step (`fold_in` of a named stream and the step).
      loss_fn: `(params, batch, key) -> LossSums`, summed over its elements, not averaged.
      microbatches: slices the gradient is accumulated over; same result, less memory.
      average_decay: of the moving average, shortened early on to (1 + step)/(10 + step).
    Returns: the next state; metrics `loss`, `skipped` (1 where this step was refused), `norms/*` and what `loss_fn`
      adds. A non-finite loss or gradient changes nothing but the counts.
    """
    loss, gradient, logged = loss_and_gradient(loss_fn, state.params, batch, key, microbatches=microbatches)
    result = apply_or_skip(optimizer, state.params, state.opt_state, gradient, loss)
    state, stepped = after_step(state, result, average_decay=average_decay)
    return state, logged | {"loss": loss} | stepped


def sum_and_count(values: Float[Array, "..."], mask: Bool[Array, "..."]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of `values` where `mask` holds, and how many: a part of `LossSums`."""
    return jnp.sum(jnp.where(mask, values, 0.0)), jnp.sum(mask.astype(jnp.float32))

"""Reward model: regression of weak, z-scored feedback labels; a label that is missing does not count."""

from typing import Any, Protocol, runtime_checkable

import chex
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Key

from rlhf_jax.equations.preference import regression_loss
from rlhf_jax.feedback.components import COMPONENTS
from rlhf_jax.interfaces import Params
from rlhf_jax.learners import sft
from rlhf_jax.learners.microbatch import LossSums
from rlhf_jax.learners.optimizer import TrainState


@chex.dataclass(frozen=True)
class RewardBatch:
    """Contexts with the response that was given, and what the user's reaction was worth."""

    inputs: Any
    """Whatever `score_fn` reads (tokens and masks); rows on the first axis of every leaf."""
    labels: Float[Array, "B C"]
    """Weak labels in z-units, in the order of the components; anything where the mask is False."""
    label_mask: Bool[Array, "B C"]


def reading(
    params: Params, numbers: Float[np.ndarray, "N F"], labels: Float[np.ndarray, "N C"], mask: Bool[np.ndarray, "N C"]
) -> Params:
    """A reward model whose heads begin with what the numbers f say of the labels, by least squares.

        min_{V, b}  Σ m (f·V + b − label)² + λ |V|²,   λ = 1

    Steps of a network's size would take thousands to move a weight of a single number as far.

    Args:
      params: a tree with heads that have weights `read` for F numbers.
      mask: m, True where a label exists.
    """
    weights, bias = np.zeros((numbers.shape[1], labels.shape[1])), np.zeros(labels.shape[1])
    for c in range(labels.shape[1]):
        known, target = numbers[mask[:, c]].astype(np.float64), labels[mask[:, c], c].astype(np.float64)
        if not len(target):
            continue
        centred = known - known.mean(axis=0)
        weights[:, c] = np.linalg.solve(centred.T @ centred + np.eye(centred.shape[1]), centred.T @ target)
        bias[c] = target.mean() - known.mean(axis=0) @ weights[:, c]
    heads = params["reward"] | {"read": jnp.asarray(weights, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    return {**params, "reward": heads}


@runtime_checkable
class ScoreInputs(Protocol):
    """The reward model under training: `key` is dropout's, for the training pass only."""

    def __call__(self, params: Params, inputs: Any, key: Key[Array, ""]) -> Float[Array, "B C"]: ...


def init(params: Params, optimizer: optax.GradientTransformation, *, averaged: bool = False) -> TrainState:
    """Step 0; see `sft.init`."""
    return sft.init(params, optimizer, averaged=averaged)


def update(
    state: TrainState,
    batch: RewardBatch,
    key: Key[Array, ""],
    *,
    score_fn: ScoreInputs,
    optimizer: optax.GradientTransformation,
    microbatches: int = 1,
    average_decay: float = 0.999,
    names: tuple[str, ...] = COMPONENTS,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One step down the mean squared error over the labels that exist.

        loss = Σ m (R_φ − label)² / Σ m

    Args:
      names: of the components, in the order of the labels.
    Returns: the next state; the metrics of `sft.update` and `loss/<component>`, each over its own labels.
    """

    def loss_fn(params: Params, batch: RewardBatch, key: Key[Array, ""]) -> LossSums:
        return regression_sums(score_fn(params, batch.inputs, key), batch.labels, batch.label_mask, names)

    return sft.update(
        state,
        batch,
        key,
        loss_fn=loss_fn,
        optimizer=optimizer,
        microbatches=microbatches,
        average_decay=average_decay,
    )


def regression_sums(
    scores: Float[Array, "B C"],
    labels: Float[Array, "B C"],
    mask: Bool[Array, "B C"],
    names: tuple[str, ...] = COMPONENTS,
) -> LossSums:
    """Squared errors as sums over the labels that exist, together and by component."""
    errors = regression_loss(scores, labels, mask)
    loss, count = sft.sum_and_count(errors, mask)
    if len(names) != scores.shape[1]:
        raise ValueError(f"{scores.shape[1]} components have the names {names}")
    parts = {f"loss/{name}": sft.sum_and_count(errors[:, c], mask[:, c]) for c, name in enumerate(names)}
    return LossSums(loss=loss, count=count, parts=parts, maxima={})

"""A reward model of items in closed form: what users' reactions are worth, by ridge regression on what is known of items.

    R(i | s) = w · z(i, s) + b_i
    a turn that lists the items L:    y ≈ c₀ + c · e + mean_{i ∈ L} R(i | s)          one that lists none:    y ≈ c₀ + c · e

y is the label of a turn, z what is known of an item before it, e what else the turn has (whether it suggests, how many
items more than one, its words). Found is the minimum of

    Σ (y − ŷ)² + λ |w|² + μ |b|²

a linear system. The policy's own log-probability is one of the z, so that the model cannot know less of an item than the
policy does: with w on it alone the two order items alike. b is an item's standing: what its context does not explain.
Source: ridge regression, Hoerl and Kennard 1970, doi:10.1080/00401706.1970.10488634; lists as means over members is the
linear case of multiple-instance regression, Ray and Page 2001.

Cost: N·(F + I + E)² multiplications and 8·(F + I + E)² bytes: 350 MB for 6,600 items.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Reactions(NamedTuple):
    """N labelled turns."""

    known: Float[np.ndarray, "N F"]
    """Mean of z over the items that a turn lists; 0 where it lists none."""
    shares: Float[np.ndarray, "N I"]
    """1/|L| for each listed item, else 0."""
    extras: Float[np.ndarray, "N E"]
    """What else a turn has."""
    labels: Float[np.ndarray, " N"]

    @property
    def n(self) -> int:
        """N"""
        return len(self.labels)

    def plus(self, other: "Reactions") -> "Reactions":
        """Both together."""
        return Reactions(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


class ItemReward(NamedTuple):
    """The fitted model; in the units of the labels."""

    weights: Float[np.ndarray, " F"]
    """w"""
    standing: Float[np.ndarray, " I"]
    """b"""
    extras: Float[np.ndarray, " E"]
    """c"""
    intercept: float
    """c₀"""

    def of_items(self, known: Float[np.ndarray, "N F I"]) -> Float[np.ndarray, "N I"]:
        """R of every item. [N, I]

        Examples:
          >>> reward = ItemReward(np.array([2.0]), np.array([0.0, 0.5]), np.zeros(0), 0.0)
          >>> reward.of_items(np.array([[[1.0, -1.0]]])).tolist()
          [[2.0, -1.5]]
        """
        return np.einsum("f,nfi->ni", self.weights, np.asarray(known, np.float64)) + self.standing

    def of_turns(self, turns: Reactions) -> Float[np.ndarray, " N"]:
        """ŷ of every turn; their labels are not read. [N]"""
        own = turns.known @ self.weights + turns.shares @ self.standing
        return self.intercept + turns.extras @ self.extras + own


def fit(turns: Reactions, *, ridge: float, standing_ridge: float) -> ItemReward:
    """The minimum.

    Args:
      turns: at least one.
      ridge: λ, on w.
      standing_ridge: μ, on b: reactions to an item after which it has half the standing that they show.
    Raises: ValueError without turns, for labels or numbers that are not finite, or a ridge that is not positive.
    Examples:
      >>> turns = Reactions(np.array([[1.0], [-1.0]]), np.eye(2), np.zeros((2, 0)), np.array([3.0, 1.0]))
      >>> found = fit(turns, ridge=1e-6, standing_ridge=1e6)
      >>> found.weights.round(3).tolist(), round(found.intercept, 3), found.of_turns(turns).round(3).tolist()
      ([1.0], 2.0, [3.0, 1.0])
    """
    if not turns.n:
        raise ValueError("no labelled turn to learn a reward from")
    if ridge <= 0 or standing_ridge <= 0:
        raise ValueError(f"ridge is {ridge}, standing_ridge {standing_ridge}; both must be positive")
    if not all(np.isfinite(array).all() for array in turns):
        raise ValueError("a label, or what is known of a turn, is not finite")
    f, i, e = turns.known.shape[1], turns.shares.shape[1], turns.extras.shape[1]
    design = np.concatenate([turns.known, turns.shares, turns.extras], axis=1).astype(np.float64)
    # The intercept costs nothing, so that it is what centring says.
    means, label = design.mean(axis=0), float(turns.labels.mean())
    centred = design - means
    # Extras are held with next to nothing: one that never varies would make the system singular.
    costs = np.concatenate([np.full(f, ridge), np.full(i, standing_ridge), np.full(e, 1e-6)])
    found = np.linalg.solve(centred.T @ centred + np.diag(costs), centred.T @ (turns.labels - label))
    return ItemReward(found[:f], found[f : f + i], found[f + i :], label - float(means @ found))


def shares_of(listed: Sequence[np.ndarray], n_items: int) -> Float[np.ndarray, "N I"]:
    """1/|L| at the columns of each list, zeros for an empty one. [N, I]

    Examples:
      >>> shares_of([np.array([0, 2]), np.array([], int)], 3).tolist()
      [[0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]
    """
    out = np.zeros((len(listed), n_items))
    for row, columns in enumerate(listed):
        if len(columns):
            out[row, columns] = 1.0 / len(columns)
    return out

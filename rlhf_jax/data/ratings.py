"""Users and what they rated, one after the other: the form in which every rating data set arrives.

A user's history is in order of time; ratings of the same second keep the order of the file.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from rlhf_jax.interfaces import Item


class History(NamedTuple):
    """Items of one user as columns of the catalogue, oldest first, each at most once, and what the user gave them."""

    items: Int32[np.ndarray, " N"]
    ratings: Float32[np.ndarray, " N"]

    def part(self, places: slice) -> "History":
        """Some of them."""
        return History(self.items[places], self.ratings[places])


class Interaction(NamedTuple):
    """A line of a rating file."""

    user: str
    item: int
    """Id of the catalogue."""
    rating: float
    time: int = 0
    """Seconds; 0 where the data does not say, which keeps the order of the file."""


@dataclasses.dataclass(frozen=True)
class RatingCorpus:
    """Histories of all users."""

    name: str
    items: tuple[Item, ...]
    """The catalogue; a column is a place in it."""
    users: tuple[str, ...]
    """In the order in which the file names them first."""
    histories: tuple[History, ...]
    """One a user."""
    liked_above: float
    """Ratings above it are liked."""
    scale: tuple[float, float] | None
    """Lowest and highest rating; None where people only bought or only said yes or no."""
    provenance: Mapping[str, Any]


def gather(
    name: str,
    items: Sequence[Item],
    interactions: Iterable[Interaction],
    *,
    liked_above: float,
    scale: tuple[float, float] | None,
    provenance: Mapping[str, Any],
    max_users: int | None = None,
) -> RatingCorpus:
    """Interactions by user, oldest first.

    Args:
      items: the catalogue; an interaction's item must be in it.
      max_users: keeps the first of them.
    Raises: ValueError if a user rates an item twice, an item is not in the catalogue, or nothing is there.
    """
    columns = {item.item_id: column for column, item in enumerate(items)}
    found: dict[str, list[Interaction]] = {}
    for one in interactions:
        if one.item not in columns:
            raise ValueError(f"{name}: user {one.user} rates item {one.item}, which the catalogue does not have")
        if one.user in found or max_users is None or len(found) < max_users:
            found.setdefault(one.user, []).append(one)
    if not found:
        raise ValueError(f"{name}: nobody rates anything")
    histories = []
    for user, own in found.items():
        own.sort(key=lambda one: one.time)
        if len({one.item for one in own}) < len(own):
            twice = next(one.item for place, one in enumerate(own) if one.item in {o.item for o in own[:place]})
            raise ValueError(f"{name}: user {user} rates item {twice} twice")
        histories.append(
            History(
                np.array([columns[one.item] for one in own], np.int32),
                np.array([one.rating for one in own], np.float32),
            )
        )
    counts = {"users": len(found), "items": len(items), "ratings": sum(len(one.items) for one in histories)}
    return RatingCorpus(
        name, tuple(items), tuple(found), tuple(histories), liked_above, scale, {**provenance, "counts": counts}
    )

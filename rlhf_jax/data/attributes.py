"""What items are like, as a table: genres, decade and people that several of them share, and the words for them.

The words are those that seekers use: `western`, `80s`, `mara quill`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.data.items import item_features, spoken_decade
from rlhf_jax.interfaces import Item

MAX_ATTRIBUTES = 16
"""Attributes that an item has at most: all genres and the decade, then people in the order of billing."""


class Attributes(NamedTuple):
    """What items are like."""

    names: tuple[str, ...]
    """A attributes that several items share, most frequent first."""
    of_items: np.ndarray
    """True where an item has one. bool [I, A]"""

    @property
    def words(self) -> tuple[str, ...]:
        """How each is said, in lower case. [A]"""
        return tuple(map(spoken, self.names))

    def of(self, columns: Sequence[int]) -> np.ndarray:
        """Attributes that any of some items has. bool [A]"""
        return np.any(self.of_items[np.array(columns, np.int64)], axis=0)


def attributes(items: Mapping[int, Item], item_ids: Sequence[int], *, min_count: int = 2) -> Attributes:
    """The attributes of a catalogue.

    Args:
      items: the catalogue.
      item_ids: order of the columns. [I]
      min_count: fewest items that share an attribute.
    Raises: ValueError naming an item that the catalogue lacks, or a count below 1.
    """
    names, places = item_features(items, item_ids, min_count=min_count, max_features=MAX_ATTRIBUTES)
    table = np.zeros((len(item_ids), len(names)), bool)
    rows, columns = np.nonzero(places >= 0)
    table[rows, places[rows, columns]] = True
    return Attributes(names, table)


def spoken(name: str) -> str:
    """How a feature of `data.items.features_of` is said.

    Examples:
      >>> spoken("genre:western"), spoken("decade:1980"), spoken("person:Mara Quill")
      ('western', '80s', 'mara quill')
    """
    kind, _, value = name.partition(":")
    said = spoken_decade(int(value)) if kind == "decade" else value.lower()
    # A comma parts one attribute from the next.
    return " ".join(said.replace(",", " ").split())

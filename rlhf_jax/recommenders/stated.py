"""Stated: items that have what the seeker asked for, one kind of attribute at a time.

    s_k(i | context) = |{a of kind k : item i has a, and the seeker said a}|        k = genre, person or decade

Said is what stands as whole words in the seeker's last words, as `data/attributes.py` spells it: `western`, `mara quill`,
`80s`. The recommender's own words do not count, or else it would be asked for what it offered. A negation is not read:
"nothing noir" says `noir`. Kinds are scores of their own, because how much each matters is for whoever weighs them.
Source: the coverage of a query's terms, Salton and McGill 1983, with attributes for terms; kinds are ours.

Nothing is counted on dialogues, so there is no own dialogue to leave out.
Cost: 8 bytes per (item, attribute of the kind), at most 16 an item: 13 MB for 100,000 items. Scoring a context looks up its runs
of words, as many as the longest attribute has, and adds over the items that have what was said.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float32
from scipy.sparse import csr_array

from rlhf_jax.data.attributes import MAX_ATTRIBUTES, spoken
from rlhf_jax.data.items import item_features
from rlhf_jax.interfaces import Item
from rlhf_jax.recommenders.contexts import Contexts, columns_of, in_blocks

Kind = Literal["genre", "person", "decade"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_WORD = re.compile(r"[^\W_]+")


class Stated(NamedTuple):
    """The attributes of one kind."""

    words: tuple[str, ...]
    """How each is said, in lower case without punctuation. [A]"""
    of_items: csr_array
    """1 where an item has one. float32 [A, I]"""


def fit(items: Mapping[int, Item], item_ids: Sequence[int], kind: Kind) -> Stated:
    """The attributes of a kind that at least two items share.

    Args:
      items: the catalogue.
      item_ids: order of the columns. [I]
    Raises: ValueError naming an item that the catalogue lacks.
    """
    columns_of(item_ids)
    names, places = item_features(items, item_ids, max_features=MAX_ATTRIBUTES)
    chosen = [place for place, name in enumerate(names) if name.startswith(f"{kind}:")]
    # Items × attributes as a table would be 10 GB for 100,000 items and as many people.
    row_of = np.full(len(names) + 1, -1)
    row_of[chosen] = np.arange(len(chosen))
    rows, having = row_of[places], np.broadcast_to(np.arange(len(item_ids))[:, None], places.shape)
    kept = rows >= 0
    ones = np.ones(int(kept.sum()), np.float32)
    of_items = csr_array((ones, (rows[kept], having[kept])), shape=(len(chosen), len(item_ids)))
    return Stated(tuple(plain_words(spoken(names[place])) for place in chosen), of_items)


def plain_words(text: str) -> str:
    """Words in lower case with single spaces, punctuation left out.

    Examples:
      >>> plain_words("A western, from the 80s!")
      'a western from the 80s'
    """
    return " ".join(_WORD.findall(text.lower()))


def scores(fitted: Stated, contexts: Contexts) -> Float32[np.ndarray, "N I"]:
    """How many attributes of the kind an item has that the seeker said; 0 where nothing was said. [N, I]

    Raises: ValueError for contexts that do not tell the seeker's words from the recommender's.
    Examples:
      >>> fitted = Stated(("western", "noir"), csr_array(np.array([[1., 0.], [0., 1.]], np.float32)))
      >>> contexts = Contexts(2, np.zeros(0, np.int32), np.array([0, 0]), ("",), ("",), np.array([-1]), asked=("Any western?",))
      >>> scores(fitted, contexts)
      array([[1., 0.]], dtype=float32)
    """
    if len(contexts.asked) != len(contexts):
        raise ValueError(f"{len(contexts)} contexts with the seeker's words of {len(contexts.asked)}")

    places: dict[str, list[int]] = {}
    for place, word in enumerate(fitted.words):
        places.setdefault(word, []).append(place)
    longest = max((word.count(" ") + 1 for word in places), default=0)

    def said(text: str) -> list[int]:
        words = plain_words(text).split()
        runs = {" ".join(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1)}
        return [place for run in runs for place in places.get(run, ())]

    def block(part: Contexts) -> Float32[np.ndarray, "n I"]:
        found = [said(text) for text in part.asked]
        flat = np.array([place for own in found for place in own], np.int64)
        starts = np.cumsum([0, *map(len, found)])
        shape = (len(part), len(fitted.words))
        return csr_array(csr_array((np.ones(len(flat), np.float32), flat, starts), shape) @ fitted.of_items).toarray()

    return in_blocks(block, contexts, 2 * contexts.n_items)

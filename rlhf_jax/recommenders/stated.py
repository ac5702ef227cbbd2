"""Stated: items that have what the seeker asked for, one kind of attribute at a time.

    s_k(i | context) = |{a of kind k : item i has a, and the seeker said a}|        k = genre, person or decade

Said is what stands as whole words in the seeker's last words, as `data/attributes.py` spells it: `western`, `mara quill`,
`80s`. The recommender's own words do not count, or else it would be asked for what it offered. A negation is not read:
"nothing noir" says `noir`. Kinds are scores of their own, because how much each matters is for whoever weighs them.
Source: the coverage of a query's terms, Salton and McGill 1983, with attributes for terms; kinds are ours.

Nothing is counted on dialogues, so there is no own dialogue to leave out.
Cost: 1 byte per (item, attribute of the kind). Scoring a context looks for each attribute in about 300 letters, and adds
one product of N × A by A × I numbers.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float32

from rlhf_jax.data.attributes import attributes
from rlhf_jax.interfaces import Item
from rlhf_jax.recommenders.contexts import Contexts, columns_of, in_blocks

Kind = Literal["genre", "person", "decade"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_WORD = re.compile(r"[^\W_]+")


class Stated(NamedTuple):
    """The attributes of one kind."""

    words: tuple[str, ...]
    """How each is said, in lower case without punctuation. [A]"""
    of_items: Bool[np.ndarray, "A I"]
    """True where an item has one."""


def fit(items: Mapping[int, Item], item_ids: Sequence[int], kind: Kind) -> Stated:
    """The attributes of a kind that at least two items share.

    Args:
      items: the catalogue.
      item_ids: order of the columns. [I]
    Raises: ValueError naming an item that the catalogue lacks.
    """
    columns_of(item_ids)
    table = attributes(items, item_ids)
    chosen = [place for place, name in enumerate(table.names) if name.startswith(f"{kind}:")]
    return Stated(tuple(plain_words(table.words[place]) for place in chosen), table.of_items[:, chosen].T)


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
      >>> fitted = Stated(("western", "noir"), np.array([[True, False], [False, True]]))
      >>> contexts = Contexts(2, np.zeros(0, np.int32), np.array([0, 0]), ("",), ("",), np.array([-1]), asked=("Any western?",))
      >>> scores(fitted, contexts)
      array([[1., 0.]], dtype=float32)
    """
    if len(contexts.asked) != len(contexts):
        raise ValueError(f"{len(contexts)} contexts with the seeker's words of {len(contexts.asked)}")

    def block(part: Contexts) -> Float32[np.ndarray, "n I"]:
        texts = [f" {plain_words(text)} " for text in part.asked]
        said = np.array([[f" {word} " in text for word in fitted.words] for text in texts], np.float32)
        return said.reshape(len(texts), len(fitted.words)) @ fitted.of_items.astype(np.float32)

    return in_blocks(block, contexts, contexts.n_items + len(fitted.words))

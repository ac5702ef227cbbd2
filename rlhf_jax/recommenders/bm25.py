"""BM25: items whose title, plot, people and genres hold the words of the context.

    s(j | context) = Σ_{w in context} idf_w · c_wj (k₁ + 1) / (c_wj + k₁ (1 − b + b·|j| / mean |j|))
    idf_w = log(1 + (I − I_w + ½) / (I_w + ½))

c_wj counts word w in item j's text, |j| is that text's length in words, I_w the number of items with w. A word of the context
counts once.
Source: Robertson and Zaragoza 2009, doi:10.1561/1500000019, eq. 3.15; idf with the 1 inside, as Lucene, so that it is
above 0. The context is the query with every word once, without English stop words.

Nothing is counted on dialogues, so there is no own dialogue to leave out.
Cost: 8 bytes per (item, word), about 40 an item: 40 MB for 100,000 items with a plot each. Scoring a context adds, for each
word in it, over the items that have it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from scipy.sparse import csr_array

from rlhf_jax.interfaces import Item
from rlhf_jax.recommenders.contexts import Contexts, columns_of, in_blocks
from rlhf_jax.recommenders.words import Words, count_words, learn_words, with_data


class Bm25(NamedTuple):
    """What each word of an item's text is worth."""

    words: Words
    worth: csr_array
    """float64 [V, I]"""


def fit(items: Mapping[int, Item], item_ids: Sequence[int], *, k1: float = 1.2, b: float = 0.75) -> Bm25:
    """Texts of all items.

    Args:
      items: the catalogue.
      item_ids: order of the columns. [I]
      k1: how slowly a word's worth saturates with its count, at least 0.
      b: how far long texts are held against an item, in [0, 1].
    Raises: ValueError naming an item that the catalogue lacks, or for a number outside its range.
    """
    if k1 < 0 or not 0 <= b <= 1:
        raise ValueError(f"k1 is {k1}, b is {b}; they must be at least 0 and in [0, 1]")
    columns_of(item_ids)
    unknown = [item_id for item_id in item_ids if item_id not in items]
    if unknown:
        raise ValueError(f"item {unknown[0]} is not in the catalogue of {len(items)} items")
    texts = [item_text(items[item_id]) for item_id in item_ids]
    words, found = learn_words(texts)
    lengths = np.asarray(found.sum(1), np.float64)
    having = np.bincount(found.indices, minlength=words.size)
    idf = np.log1p((len(texts) - having + 0.5) / (having + 0.5))
    norm = k1 * (1 - b + b * lengths / max(lengths.mean(), 1.0))
    count = found.data.astype(np.float64)
    worth = idf[found.indices] * count * (k1 + 1) / (count + np.repeat(norm, np.diff(found.indptr)))
    return Bm25(words, csr_array(with_data(found, worth).T))


def item_text(item: Item) -> str:
    """Everything a catalogue says about an item in words.

    Examples:
      >>> item_text(Item(item_id=3, title="Scarface (1983)", genres=("Crime",), people=("Al Pacino",), plot="A rise."))
      'Scarface (1983) A rise. Al Pacino Crime'
    """
    return " ".join([item.title, item.plot, *item.people, *item.genres])


def scores(fitted: Bm25, contexts: Contexts) -> Float32[np.ndarray, "N I"]:
    """BM25 of every item's text for the words of the context, at least 0; 0 for the context's own items. [N, I]

    Examples:
      >>> items = {1: Item(item_id=1, title="Heat"), 2: Item(item_id=2, title="Cold Heat"), 3: Item(item_id=3, title="Cold")}
      >>> contexts = Contexts(3, np.zeros(0, np.int32), np.array([0, 0]), ("",), ("like heat",), np.array([-1]))
      >>> scores(fit(items, [1, 2, 3]), contexts).round(2)
      array([[0.52, 0.39, 0.  ]], dtype=float32)
    """

    def block(part: Contexts) -> Float[np.ndarray, "n I"]:
        asked = count_words(fitted.words, part.texts)
        out = csr_array(with_data(asked, np.ones(asked.nnz)) @ fitted.worth).toarray()
        # Their titles stand in the context.
        out[part.rows, part.items] = 0.0
        return out

    return in_blocks(block, contexts, 3 * contexts.n_items)

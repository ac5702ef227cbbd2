"""A frozen encoder of preference texts: one number a word and section, no training.

    user text    1/√n at each of the n words of a section; what is avoided has places of its own
    item text    1/√n at each of the n attributes of an item, at the places of "likes" and "from"
    titles       mean of the items' vectors from a truncated SVD of who liked what; an item's own vector on the item's side

A bag of words would read "likes drama, avoids horror" and "likes horror, avoids drama" as one; sections keep them apart.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from rlhf_jax.data.preference_texts import (
    AVOIDS,
    FROM,
    LIKES,
    PICKERS,
    PICKS,
    RATERS,
    RATES,
    SECTIONS,
    Attributes,
    PreferenceText,
)
from rlhf_jax.data.ratings import RatingCorpus


class TextCode(NamedTuple):
    """Places of words, by section."""

    place: dict[tuple[str, str], int]
    item_places: tuple[int, ...]
    """Of the attributes, on the item's side."""
    titles: Float32[np.ndarray, "I K"]
    """Vectors of named items; K = 0 where texts name none."""

    @property
    def width(self) -> int:
        """Numbers of an encoded text."""
        return len(self.place) + self.titles.shape[1]


def text_code(attributes: Attributes, titles: np.ndarray) -> TextCode:
    """The encoder of a catalogue; `titles` are vectors of items [I, K], K may be 0."""
    pairs = [
        *((LIKES, word) for word in attributes.kinds),
        *((FROM, word) for word in attributes.decades),
        *((AVOIDS, word) for word in attributes.kinds),
        *((RATES, word) for word in RATERS),
        *((PICKS, word) for word in PICKERS),
    ]
    place = {pair: number for number, pair in enumerate(pairs)}
    own = [(LIKES, word) for word in attributes.kinds] + [(FROM, word) for word in attributes.decades]
    return TextCode(place, tuple(place[pair] for pair in own), np.asarray(titles, np.float32))


def encode_texts(code: TextCode, texts: Sequence[PreferenceText]) -> Float32[np.ndarray, "N E"]:
    """User texts; a word outside of its section, or of none, has no place and is left out."""
    found = np.zeros((len(texts), code.width), np.float32)
    for row, text in zip(found, texts, strict=True):
        section, places = "", dict[str, list[int]]()
        for word in text.words:
            if word in SECTIONS:
                section = word
            elif (section, word) in code.place:
                places.setdefault(section, []).append(code.place[section, word])
        for own in places.values():
            row[own] = 1 / np.sqrt(len(set(own)))
        if text.titles and code.titles.shape[1]:
            row[len(code.place) :] = code.titles[list(text.titles)].mean(axis=0)
    return found


def encode_items(code: TextCode, attributes: Attributes) -> Float32[np.ndarray, "I E"]:
    """Item texts, at the places that user texts use."""
    found = np.zeros((len(attributes.has), code.width), np.float32)
    found[:, list(code.item_places)] = attributes.has / np.sqrt(
        np.maximum(attributes.has.sum(axis=1, keepdims=True), 1.0)
    )
    found[:, len(code.place) :] = code.titles
    return found


def title_vectors(corpus: RatingCorpus, users: Sequence[int] | np.ndarray, *, width: int) -> Float32[np.ndarray, "I K"]:
    """Vectors of items by who liked them: right singular vectors of the users × items matrix of likes.

        X ≈ U S Vᵀ,   an item's vector = S_k V_i, scaled to mean length 1; columns of X divided by √(likes)

    Args:
      users: training users.
      width: K.
    Raises: ValueError where there are fewer users or items than K + 1.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import svds

    liked = [corpus.histories[user].items[corpus.histories[user].ratings > corpus.liked_above] for user in users]
    n_items = len(corpus.items)
    if min(len(liked), n_items) <= width:
        raise ValueError(f"title vectors of {width} numbers need more users and items than {len(liked)} and {n_items}")
    rows = np.repeat(np.arange(len(liked)), [len(own) for own in liked])
    columns = np.concatenate(liked)
    weights = 1 / np.sqrt(np.maximum(np.bincount(columns, minlength=n_items), 1))[columns]
    matrix = csr_matrix((weights, (rows, columns)), shape=(len(liked), n_items))
    found_svd: Any = svds(matrix, k=width, v0=np.full(min(matrix.shape), 1.0 / np.sqrt(min(matrix.shape))))
    _, values, vectors = found_svd
    # The sign of a singular vector is the solver's choice; the largest entry is made positive.
    signs = np.sign(vectors[np.arange(width), np.abs(vectors).argmax(axis=1)])
    found = (vectors * (signs * values)[:, None]).T
    # `svds` orders its values ascending.
    found = found[:, ::-1]
    return (found / max(float(np.linalg.norm(found, axis=1).mean()), 1e-9)).astype(np.float32)

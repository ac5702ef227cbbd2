"""Context kNN: what the recommender suggested in the training contexts that are most like this one.

    s(j | q) = Σ_{r in the K nearest} cos(q, r)^p [j is fresh gold of r],   K = 200, p = 2

A context is the TF-IDF vector of its last 60 words, titles left out (or spelled), v_w = (1 + log c_w)·idf_w with
idf_w = 1 + log((1 + D) / (1 + D_w)); c_w counts word w in it, D_w the training dialogues that have w in a context. Or it is
a sentence vector (MiniLM) by an encoder that is not fitted here. Training contexts without fresh gold are left out. Of
contexts that are equally near those earlier in the training split come first, and only those with a cosine above 0 count.
Source: session kNN, Jannach and Ludewig 2017, doi:10.1145/3109859.3109872, with texts in place of sessions.

Cost, for R training contexts of W different words: 20 bytes per (context, word); scoring a context adds over the training
contexts that share a word with it, at worst R·W, `PIECE` training contexts at a time. For a million dialogues (3.3 million
contexts of 20 words without stop words) 2 GB with what leaving out needs, and about twice that while fitting. With an encoder of E dimensions 4·E bytes a context (MiniLM: 5 GB for 3.3 million) and R·E
operations a context.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from scipy.sparse import csr_array

from rlhf_jax.recommenders.contexts import Contexts, Training, entries_at, in_blocks, own_rows, shape_of
from rlhf_jax.recommenders.words import Words, count_words, learn_words, with_data

PIECE = 2**15
"""Training contexts that are compared at once: their similarities stay in the processor's cache."""
Encoder = Callable[[Sequence[str]], np.ndarray]
"""Texts to vectors, one row a text, zeros for an empty one (`feedback.encoders.minilm_encoder`)."""


class TfIdf(NamedTuple):
    """Training contexts as words."""

    words: Words
    by_word: tuple[csr_array, ...]
    """1 + log c, in pieces of the training contexts. float64 [V, PIECE] each"""
    squares: tuple[csr_array, ...]
    """Its squares, in the same pieces."""
    moments: np.ndarray
    """Σ_w (1 + log c_w)² idf_w^m of every training context, m = 0, 1, 2. float64 [3, R]"""
    dialogues: np.ndarray
    """D_w, training dialogues that have the word. float64 [V]"""
    by_dialogue: csr_array
    """1 where a training dialogue has a word. float32 [D, V]"""


class Encoded(NamedTuple):
    """Training contexts as sentence vectors."""

    encoder: Encoder
    vectors: np.ndarray
    """Of length 1, or 0. float32 [R, E]"""


class ContextKnn(NamedTuple):
    """Training contexts and what was suggested in them."""

    space: TfIdf | Encoded
    fresh: csr_array
    """float32 [R, I]"""
    own: np.ndarray
    """Training dialogue of each context. int32 [R]"""
    neighbours: int
    power: float
    titles: bool


def fit(
    training: Training,
    *,
    neighbours: int = 200,
    power: float = 2.0,
    titles: bool = False,
    encoder: Encoder | None = None,
) -> ContextKnn:
    """Vectors of the training contexts.

    Args:
      training: the training split.
      neighbours: K, at least 1.
      power: p, above 0.
      titles: whether the titles of mentioned items are among the words; alone this ranks better; beside scores that read
        the items it adds less.
      encoder: texts to vectors; None takes TF-IDF.
    Raises: ValueError for a number outside its range.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours is {neighbours}; it must be at least 1")
    if not power > 0:
        raise ValueError(f"power is {power}; it must be above 0")
    used = np.flatnonzero(np.diff(training.fresh.indptr))
    found = texts_of(training.rows, titles)
    texts = [found[row] for row in used.tolist()]
    own = training.rows.own[used]
    space = (
        _fit_tfidf(texts, own, len(training.numbers)) if encoder is None else Encoded(encoder, _unit(encoder(texts)))
    )
    return ContextKnn(space, csr_array(training.fresh[used]), own, neighbours, power, titles)


def texts_of(contexts: Contexts, titles: bool) -> Sequence[str]:
    """The words that are compared."""
    return contexts.texts if titles else contexts.words


def _fit_tfidf(texts: Sequence[str], own: np.ndarray, n_dialogues: int) -> TfIdf:
    words, found = learn_words(texts)
    gather = csr_array((np.ones(len(own), np.float32), (own, np.arange(len(own)))), (n_dialogues, len(own)))
    by_dialogue = csr_array(gather @ found)
    by_dialogue = with_data(by_dialogue, np.ones(by_dialogue.nnz, np.float32))
    dialogues = np.bincount(by_dialogue.indices, minlength=words.size).astype(np.float64)
    values = with_data(found, 1.0 + np.log(found.data.astype(np.float64)))
    squares = with_data(found, values.data**2)
    idf = _idf(dialogues, n_dialogues)
    moments = np.stack([squares @ idf**power for power in range(3)])
    pieces = [csr_array(values[start : start + PIECE].T) for start in range(0, len(texts), PIECE)]
    return TfIdf(
        words,
        tuple(pieces),
        tuple(with_data(piece, piece.data**2) for piece in pieces),
        moments,
        dialogues,
        by_dialogue,
    )


def _idf(dialogues: Float[np.ndarray, " K"], n_dialogues: int | Int[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """1 + log((1 + D) / (1 + D_w)); 0 for a word of no dialogue, which is unknown."""
    return np.where(dialogues > 0, 1.0 + np.log((1.0 + n_dialogues) / (1.0 + dialogues)), 0.0)


def scores(fitted: ContextKnn, contexts: Contexts) -> Float32[np.ndarray, "N I"]:
    """Σ_r cos(q, r)^p of the nearest training contexts that suggested the item, at least 0. [N, I]

    Without its own dialogue a context has other neighbours, and all words another idf: D is one less, and so is D_w for the
    dialogue's words. Both are taken back exactly. With c = log(D / (1 + D)) the squared length of r becomes

        Σ_w t_w² (idf_w + c)² + Σ_{w in d} t_w² (idf'_w² − (idf_w + c)²),   t_w = 1 + log c_w

    whose first sum follows from three moments of r, and whose second runs over the dialogue's words.

    Examples:
      >>> said = {"a": "a scary movie", "b": "something funny"}
      >>> from rlhf_jax.recommenders.contexts import Catalogue, read_training
      >>> from rlhf_jax.interfaces import Dialogue, Message
      >>> dialogues = [
      ...     Dialogue(name, (Message("seeker", (text,), 0), Message("recommender", (item,), 1)), {}, {})
      ...     for (name, text), item in zip(said.items(), (7, 8))]
      >>> fitted = fit(read_training(dialogues, Catalogue((7, 8))))
      >>> contexts = Contexts(2, np.zeros(0, np.int32), np.array([0, 0]), ("very scary",), ("",), np.array([-1]))
      >>> scores(fitted, contexts).round(2)
      array([[0.5, 0. ]], dtype=float32)
    """
    return in_blocks(lambda part: _block(fitted, part), contexts, 2 * contexts.n_items + 8 * PIECE)


def _block(fitted: ContextKnn, contexts: Contexts) -> Float[np.ndarray, "n I"]:
    texts = texts_of(contexts, fitted.titles)
    space = fitted.space
    pieces = _tfidf_cosines(space, texts, contexts.own) if isinstance(space, TfIdf) else _encoded_cosines(space, texts)
    cosines = np.zeros((len(contexts), 0))
    places = np.zeros((len(contexts), 0), np.int64)
    start = 0
    for piece in pieces:
        own = fitted.own[start : start + piece.shape[1]]
        # Rounded: contexts of the same words are equally near, however their lengths were computed.
        piece = np.round(piece, 9)
        piece[contexts.own[:, None] == own[None, :]] = 0.0
        found, columns = _chosen(piece, None, fitted.neighbours)
        # Those of earlier pieces stand before, so that of equal ones the first stay.
        cosines, places = np.hstack([cosines, found]), np.hstack([places, columns + start])
        cosines, places = _chosen(cosines, places, fitted.neighbours)
        start += len(own)
    rows = np.repeat(np.arange(len(contexts)), places.shape[1])
    shape = (len(contexts), shape_of(fitted.fresh)[0])
    weights = csr_array((np.maximum(cosines.ravel(), 0.0) ** fitted.power, (rows, places.ravel())), shape=shape)
    return csr_array(weights @ fitted.fresh).toarray()


def _chosen(
    cosines: Float[np.ndarray, "n R"], places: Int[np.ndarray, "n R"] | None, neighbours: int
) -> tuple[Float[np.ndarray, "n K"], Int[np.ndarray, "n K"]]:
    """The nearest of every row with their places (None: their columns), in order of place; 0 where there are fewer."""
    rows, columns = np.nonzero(nearest(cosines, neighbours))
    first = np.searchsorted(rows, rows)
    order = np.arange(len(rows)) - first
    width = min(neighbours, cosines.shape[1])
    values = np.zeros((len(cosines), width))
    where = np.zeros((len(cosines), width), np.int64)
    values[rows, order] = cosines[rows, columns]
    where[rows, order] = columns if places is None else places[rows, columns]
    return values, where


def nearest(cosines: Float[np.ndarray, "n R"], neighbours: int) -> Bool[np.ndarray, "n R"]:
    """The largest entries of every row; of equal ones the first, and never one that is 0 or below.

    Examples:
      >>> nearest(np.array([[.5, .2, .9, .5], [.0, .3, .0, .0]]), 2).astype(int).tolist()
      [[1, 0, 1, 0], [0, 1, 0, 0]]
    """
    if cosines.shape[1] <= neighbours:
        return cosines > 0
    last = np.partition(cosines, cosines.shape[1] - neighbours, axis=1)[:, cosines.shape[1] - neighbours, None]
    above = cosines > last
    equal = cosines == last
    room = neighbours - above.sum(1, keepdims=True)
    return (above | (equal & (np.cumsum(equal, axis=1) <= room))) & (cosines > 0)


def _tfidf_cosines(
    space: TfIdf, texts: Sequence[str], own: Int[np.ndarray, " n"]
) -> Iterator[Float[np.ndarray, "n R"]]:
    """Cosines with the training contexts of one piece after another, each without the context's own dialogue."""
    n_dialogues = shape_of(space.by_dialogue)[0]
    asked = count_words(space.words, texts)
    idf = _query_idf(space, own, asked)
    values = (1.0 + np.log(asked.data.astype(np.float64))) * idf
    query = with_data(asked, values)
    lengths = np.sqrt(np.asarray(query.multiply(query).sum(1)))
    query = with_data(asked, values * idf)
    # Contexts of one dialogue share what leaving it out changes.
    owners, owner = np.unique(own, return_inverse=True)
    shift = np.where(owners < 0, 0.0, np.log(n_dialogues / (1.0 + n_dialogues)))[:, None]
    change = _own_change(space, owners)
    start = 0
    for by_word, by_word_squared in zip(space.by_word, space.squares, strict=True):
        stop = start + shape_of(by_word)[1]
        none, one, two = space.moments[:, start:stop]
        squares = two + 2 * shift * one + shift**2 * none
        if change.nnz:
            squares += csr_array(change @ by_word_squared).toarray()
        scale = lengths[:, None] * np.sqrt(np.maximum(squares, 0.0))[owner]
        found = csr_array(query @ by_word).toarray()
        yield np.divide(found, scale, out=np.zeros_like(found), where=scale > 1e-9)
        start = stop


def _query_idf(space: TfIdf, own: Int[np.ndarray, " n"], asked: csr_array) -> Float[np.ndarray, " K"]:
    """idf of every word of the contexts without their own dialogues. [K]"""
    own_words = entries_at(own_rows(space.by_dialogue, own), asked)
    outside = np.repeat(own < 0, np.diff(asked.indptr))
    n_dialogues = shape_of(space.by_dialogue)[0] - np.where(outside, 0, 1)
    return _idf(space.dialogues[asked.indices] - own_words, n_dialogues)


def _own_change(space: TfIdf, owners: Int[np.ndarray, " n"]) -> csr_array:
    """idf'_w² − (idf_w + c)² for the words of each dialogue, empty for −1. [n, V]"""
    words = own_rows(space.by_dialogue, owners)
    having = space.dialogues[words.indices]
    now = _idf(having - 1.0, shape_of(space.by_dialogue)[0] - 1)
    shifted = _idf(having, shape_of(space.by_dialogue)[0] - 1)
    return with_data(words, now**2 - shifted**2)


def _encoded_cosines(space: Encoded, texts: Sequence[str]) -> Iterator[Float[np.ndarray, "n R"]]:
    """The same by sentence vectors, which know no dialogue."""
    asked = _unit(space.encoder(texts))
    for start in range(0, len(space.vectors), PIECE):
        yield (asked @ space.vectors[start : start + PIECE].T).astype(np.float64)


def _unit(vectors: np.ndarray) -> Float32[np.ndarray, "n E"]:
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2:
        raise ValueError(f"the encoder gave an array of shape {vectors.shape}; one row a text is needed")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)

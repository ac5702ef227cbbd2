"""Context kNN: what the recommender suggested in the training contexts that are most like this one.

    s(j | q) = Σ_{r in the K nearest} cos(q, r)^p [j is fresh gold of r],   K = 200, p = 2

A context is the TF-IDF vector of its last 60 words, titles spelled out, v_w = (1 + log c_w)·idf_w with
idf_w = 1 + log((1 + D) / (1 + D_w)); c_w counts word w in it, D_w the training dialogues that have w in a context. Or it is
a sentence vector (MiniLM) by an encoder that is not fitted here. Training contexts without fresh gold are left out. Of
contexts that are equally near those earlier in the training split come first, and only those with a cosine above 0 count.
Source: session kNN, Jannach and Ludewig 2017, doi:10.1145/3109859.3109872, with texts in place of sessions.

Cost, for R training contexts of W different words: 24 bytes per (context, word), scoring a context adds over the training
contexts that share a word with it, at worst R·W, and holds R numbers. For a million dialogues (3.3 million contexts of 20
words without stop words) 1.6 GB. With an encoder of E dimensions 4·E bytes a context (MiniLM: 5 GB for 3.3 million) and R·E
operations a context.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy.sparse import csr_array

from rlhf_jax.recommenders.contexts import Contexts, Training, in_blocks, own_rows
from rlhf_jax.recommenders.words import Words, count_words, learn_words, with_data

Encoder = Callable[[Sequence[str]], np.ndarray]
"""Texts to vectors, one row a text, zeros for an empty one (`feedback.encoders.minilm_encoder`)."""


class TfIdf(NamedTuple):
    """Training contexts as words."""

    words: Words
    by_word: csr_array
    """1 + log c. float64 [V, R]"""
    squares: csr_array
    """Its squares. float64 [V, R]"""
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


def fit(
    training: Training, *, neighbours: int = 200, power: float = 2.0, encoder: Encoder | None = None
) -> ContextKnn:
    """Vectors of the training contexts.

    Args:
      training: the training split.
      neighbours: K, at least 1.
      power: p, above 0.
      encoder: texts to vectors; None takes TF-IDF.
    Raises: ValueError for a number outside its range.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours is {neighbours}; it must be at least 1")
    if not power > 0:
        raise ValueError(f"power is {power}; it must be above 0")
    used = np.flatnonzero(np.diff(training.fresh.indptr))
    texts = [training.rows.texts[row] for row in used]
    own = training.rows.own[used]
    space = _fit_tfidf(texts, own, len(training.numbers)) if encoder is None else Encoded(encoder, _unit(encoder(texts)))
    return ContextKnn(space, csr_array(training.fresh[used]), own, neighbours, power)


def _fit_tfidf(texts: Sequence[str], own: np.ndarray, n_dialogues: int) -> TfIdf:
    words = learn_words(texts)
    found = count_words(words, texts)
    gather = csr_array((np.ones(len(own), np.float32), (own, np.arange(len(own)))), (n_dialogues, len(own)))
    by_dialogue = csr_array(gather @ found)
    by_dialogue = with_data(by_dialogue, np.ones(by_dialogue.nnz, np.float32))
    dialogues = np.bincount(by_dialogue.indices, minlength=words.size).astype(np.float64)
    values = with_data(found, 1.0 + np.log(found.data.astype(np.float64)))
    squares = with_data(found, values.data**2)
    idf = _idf(dialogues, n_dialogues)
    moments = np.stack([squares @ idf**power for power in range(3)])
    return TfIdf(words, csr_array(values.T), csr_array(squares.T), moments, dialogues, by_dialogue)


def _idf(dialogues: Float[np.ndarray, " K"], n_dialogues: int) -> Float[np.ndarray, " K"]:
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
      >>> contexts = Contexts(2, np.zeros(0, np.int32), np.array([0, 0]), ("very scary",), np.array([-1]))
      >>> scores(fitted, contexts).round(2).tolist()
      [[0.5, 0.0]]
    """
    return in_blocks(lambda part: _block(fitted, part), contexts, contexts.n_items + 6 * fitted.fresh.shape[0])


def _block(fitted: ContextKnn, contexts: Contexts) -> Float[np.ndarray, "n I"]:
    similarity = _tfidf_cosines if isinstance(fitted.space, TfIdf) else _encoded_cosines
    # Rounded: contexts of the same words are equally near, however their lengths were computed.
    cosines = np.round(similarity(fitted.space, contexts), 9)
    cosines[(contexts.own[:, None] == fitted.own[None, :])] = 0.0
    cosines[~nearest(cosines, fitted.neighbours)] = 0.0
    weights = csr_array(cosines)
    return (with_data(weights, weights.data**fitted.power) @ fitted.fresh).toarray()


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


def _tfidf_cosines(space: TfIdf, contexts: Contexts) -> Float[np.ndarray, "n R"]:
    n_dialogues = space.by_dialogue.shape[0]
    plain = _idf(space.dialogues, n_dialogues)
    asked = count_words(space.words, contexts.texts)
    values = with_data(asked, 1.0 + np.log(asked.data.astype(np.float64)))
    rows = np.repeat(np.arange(len(contexts)), np.diff(asked.indptr))
    # Contexts of one dialogue share what leaving it out changes.
    owners, owner = np.unique(contexts.own, return_inverse=True)
    out = np.zeros((len(contexts), space.by_word.shape[1]))
    for place, number in enumerate(owners):
        chosen = owner == place
        shift = 0.0 if number < 0 else np.log(n_dialogues / (1.0 + n_dialogues))
        idf = np.where(plain > 0, plain + shift, 0.0)
        squares = space.moments[2] + 2 * shift * space.moments[1] + shift**2 * space.moments[0]
        if number >= 0:
            held = slice(space.by_dialogue.indptr[number], space.by_dialogue.indptr[number + 1])
            own = space.by_dialogue.indices[held]
            now = _idf(space.dialogues[own] - 1.0, n_dialogues - 1)
            change = csr_array((now**2 - idf[own] ** 2, own, np.array([0, len(own)])), (1, len(idf)))
            squares = squares + (change @ space.squares).toarray()[0]
            idf[own] = now
        of_query = chosen[rows]
        query = with_data(asked, np.where(of_query, values.data * idf[asked.indices], 0.0))
        lengths = np.sqrt(np.asarray(query.multiply(query).sum(1)))[chosen]
        query = with_data(query, query.data * idf[asked.indices])
        found = (csr_array(query[np.flatnonzero(chosen)]) @ space.by_word).toarray()
        scale = lengths[:, None] * np.sqrt(np.maximum(squares, 0.0))[None, :]
        known = scale > 1e-9
        out[chosen] = np.where(known, found / np.where(known, scale, 1.0), 0.0)
    return out


def _encoded_cosines(space: Encoded, contexts: Contexts) -> Float[np.ndarray, "n R"]:
    return (_unit(space.encoder(contexts.texts)) @ space.vectors.T).astype(np.float64)


def _unit(vectors: np.ndarray) -> Float32[np.ndarray, "n E"]:
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2:
        raise ValueError(f"the encoder gave an array of shape {vectors.shape}; one row a text is needed")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)

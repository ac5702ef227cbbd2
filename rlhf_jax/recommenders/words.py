"""Words of texts as counts, for the recommenders that read what was said."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from rlhf_jax.recommenders.contexts import shape_of


class Words(NamedTuple):
    """Which words are known."""

    vectorizer: Any
    """scikit-learn's `CountVectorizer`; None where the texts had no word at all."""
    size: int
    """V, at least 1."""


def learn_words(texts: Sequence[str]) -> tuple[Words, csr_array]:
    """The words of texts, and how often each text has each: float32 [N, V].

    Words are runs of two or more letters or digits in lower case; English stop words are left out.
    """
    # Imported where it is used: scikit-learn takes longer to import than all of this package.
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(stop_words="english", dtype=np.float32)
    try:
        matrix = csr_array(vectorizer.fit_transform(texts))
    except ValueError:  # No word is left.
        return Words(None, 1), csr_array((len(texts), 1), dtype=np.float32)
    matrix.sort_indices()
    return Words(vectorizer, shape_of(matrix)[1]), matrix


def count_words(words: Words, texts: Sequence[str]) -> csr_array:
    """How often each text has each known word. float32 [N, V]"""
    if words.vectorizer is None or not texts:
        return csr_array((len(texts), words.size), dtype=np.float32)
    matrix = csr_array(words.vectorizer.transform(texts))
    matrix.sort_indices()
    return matrix


def with_data(matrix: csr_array, data: np.ndarray) -> csr_array:
    """The same places with other values."""
    return csr_array((data, matrix.indices, matrix.indptr), matrix.shape)

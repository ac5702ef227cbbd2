"""Tokens of a language model that reads a rated history and writes a preference text.

    [0, n_words)   words of texts
    n_words …      <pad> <eos> <user> <rec> <say>
    levels         one token per rating that the data has
    first_item …   one token per item, in the order of the catalogue
    … size         unused rows, so that the size is a multiple of 64

A prompt is `ITEM level ITEM level … <user>`, oldest first; a response is `<say> words <eos>`, or `<rec> ITEM … <say> words <eos>`.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from rlhf_jax.data.preference_texts import MOST, PICKERS, RATERS, SECTIONS, Attributes, PreferenceText, section_words
from rlhf_jax.data.ratings import History, RatingCorpus

MULTIPLE = 64


@dataclasses.dataclass(frozen=True)
class PreferenceVocabulary:
    """The layout above."""

    words: tuple[str, ...]
    levels: tuple[float, ...]
    """Ratings that occur, ascending; empty where people only bought."""
    n_items: int

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self.words)}

    @property
    def pad(self) -> int:
        """Fills what is no token."""
        return len(self.words)

    @property
    def eos(self) -> int:
        """Ends a text."""
        return self.pad + 1

    @property
    def user(self) -> int:
        """Ends a prompt."""
        return self.pad + 2

    @property
    def rec(self) -> int:
        """Opens titles."""
        return self.pad + 3

    @property
    def say(self) -> int:
        """Opens words."""
        return self.pad + 4

    @property
    def first_item(self) -> int:
        """The token of column 0."""
        return self.pad + 5 + len(self.levels)

    @property
    def size(self) -> int:
        """Rows of the embedding table."""
        return -(-(self.first_item + self.n_items) // MULTIPLE) * MULTIPLE

    def prompt(self, history: History) -> list[int]:
        """A rated history."""
        tokens: list[int] = []
        levels = {level: self.pad + 5 + place for place, level in enumerate(self.levels)}
        for item, rating in zip(history.items.tolist(), history.ratings.tolist(), strict=True):
            tokens.append(self.first_item + item)
            if levels:
                tokens.append(levels[rating])
        return [*tokens, self.user]

    def response(self, text: PreferenceText) -> list[int]:
        """A text, `<eos>` included. Raises: ValueError for a word that the vocabulary does not have."""
        unknown = [word for word in text.words if word not in self._ids]
        if unknown:
            raise ValueError(f"preference text: {unknown[0]!r} is no word of this vocabulary")
        titles = [self.rec, *(self.first_item + item for item in text.titles)] if text.titles else []
        return [*titles, self.say, *(self._ids[word] for word in text.words), self.eos]

    def sections(self, attributes: Attributes) -> list[tuple[int, tuple[int, ...], int]]:
        """Sections in their order: the token that opens each, what it may say, how much at most; those without words are left out."""
        return [
            (self._ids[section], tuple(self._ids[word] for word in words), MOST.get(section, 1))
            for section, words in section_words(attributes).items()
            if words
        ]

    def text(self, tokens: Sequence[int] | np.ndarray) -> PreferenceText:
        """What a response says; its marks and its padding are left out."""
        found = [int(token) for token in tokens]
        return PreferenceText(
            tuple(self.words[token] for token in found if 0 <= token < len(self.words)),
            tuple(token - self.first_item for token in found if 0 <= token - self.first_item < self.n_items),
        )


def preference_vocabulary(corpus: RatingCorpus, attributes: Attributes) -> PreferenceVocabulary:
    """The vocabulary of a corpus."""
    words = tuple(dict.fromkeys((*SECTIONS, *attributes.words, *RATERS, *PICKERS)))
    levels = sorted({float(rating) for history in corpus.histories for rating in np.unique(history.ratings)})
    return PreferenceVocabulary(words, tuple(levels) if len(levels) > 1 else (), len(corpus.items))


def item_words(vocab: PreferenceVocabulary, attributes: Attributes) -> np.ndarray:
    """Mean of the attributes' tokens an item has, as weights over words. float32 [I, W]

    An item's embedding starts as the mean of its words, so that an item nobody rated is read like others of its kind.
    """
    found = np.zeros((vocab.n_items, len(vocab.words)), np.float32)
    columns = [vocab.words.index(word) for word in attributes.words]
    found[:, columns] = attributes.has
    return found / np.maximum(found.sum(axis=1, keepdims=True), 1.0)

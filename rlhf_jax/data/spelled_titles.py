"""Whether words spell a title, and what must not be said so that they do not: how a hidden item stays hidden.

A title gives an item away by its distinctive words. Words that say nothing of one item alone do not count: stop words,
genres, and words of many titles. A title of such words only ("It") cannot be told from plain speech and is never found,
unless it has several ("Western Creek", where both are common): then the whole counts.
"""

import collections
import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence

from rlhf_jax.data.catalogue import split_title
from rlhf_jax.data.typography import plain
from rlhf_jax.data.vocabulary import Vocabulary, spaced
from rlhf_jax.interfaces import Item

COMMON_TITLES = 10
COMMON_SHARE = 0.08
"""A word is common that stands in so many titles, and in such a share of them."""
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a about after all am an and are as at back be been before best better but by can come did die do down enough ever
    every film films first for from get go going good great had has have he her here him his how i if in into is it its
    just know last let like little ll look lot love m man me more most movie movies much my never new night no not now o of
    off old on one or other our out over part people re really s say see she so some something t than that the their them
    then there these they thing things this those time to too two up us ve very want was watch way we well were what when
    where which who why will with world would yes you your 1 2 3 4 5""",
    )
)
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
Span = tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class SpelledTitles:
    """Titles as words without case, punctuation and year.

    Examples:
      >>> titles = SpelledTitles.of({7: Item(item_id=7, title="The Matrix (1999)", year=1999)})
      >>> titles.tells(("a matrix?",), [7]), titles.tells(("the one ", 7), [7]), titles.tells(("the end",), [7])
      (True, True, False)
      >>> titles.without(("Oh, The Matrix, and ", 7, " again"), [7])
      ('Oh, , and again',)
    """

    words: Mapping[int, tuple[str, ...]]
    """Of each title, in order."""
    distinctive: Mapping[int, frozenset[str]]
    """Those that give the item away, and the whole title written as one word."""

    @classmethod
    def of(cls, items: Mapping[int, Item]) -> "SpelledTitles":
        """The titles of a catalogue."""
        words = {item_id: _words_of(split_title(plain(item.title))[0]) for item_id, item in items.items()}
        counts = collections.Counter(word for title in words.values() for word in set(title))
        common = {word for word, n in counts.items() if n >= max(COMMON_TITLES, COMMON_SHARE * len(items))} | STOP_WORDS
        common |= {word for item in items.values() for genre in item.genres for word in _words_of(plain(genre))}
        distinctive = {item_id: frozenset((*title, "".join(title))) - common for item_id, title in words.items()}
        return cls(words, distinctive)

    def tells(self, parts: Sequence[str | int], hidden: Collection[int]) -> bool:
        """Whether a message names one of the hidden items, as an item or by words of its title."""
        return any(
            part in hidden if isinstance(part, int) else bool(self._spans(plain(part), hidden)) for part in parts
        )

    def without(self, parts: Sequence[str | int], hidden: Collection[int]) -> tuple[str | int, ...]:
        """The message with all that names a hidden item cut out, so that `tells` of it is False; as it was if nothing does."""
        parts = tuple(parts)
        while self.tells(parts, hidden):
            kept: list[str | int] = []
            for part in parts:
                if isinstance(part, int):
                    kept.extend(() if part in hidden else (part,))
                    continue
                text = plain(part)
                for start, end in sorted(self._spans(text, hidden), reverse=True):
                    text = f"{text[:start]} {text[end:]}"
                # What stood around an item that is gone may spell a title now, so it is read again.
                text = spaced(f"{kept.pop()} {text}" if kept and isinstance(kept[-1], str) else text)
                kept.extend((text,) if text else ())
            parts = tuple(kept)
        return parts

    def first_tokens(self, vocab: Vocabulary, items: Collection[int]) -> dict[int, tuple[int, ...]]:
        """Tokens that begin a telling word of each item, after a space, in the usual capitals; in ascending order.

        Left out are tokens that begin much else: single characters and stop words (`be` of `beetlejuice`), so that a hidden
        title costs no plain speech. Who may not say the others can still spell a title; `without` is for that.
        """
        spellings = {
            item_id: [
                f" {form}"
                for word in sorted(self.distinctive[item_id] & set(self.words[item_id]))
                for form in _forms(word)
            ]
            for item_id in items
        }
        encoded = iter(vocab.encode_texts([text for texts in spellings.values() for text in texts]))
        firsts = {item_id: sorted({next(encoded)[0] for _ in texts}) for item_id, texts in spellings.items()}
        begun = {token: vocab.decode([token]).casefold() for tokens in firsts.values() for token in tokens}
        return {
            item_id: tuple(token for token in tokens if len(begun[token]) > 1 and begun[token] not in STOP_WORDS)
            for item_id, tokens in firsts.items()
        }

    def _spans(self, text: str, hidden: Collection[int]) -> list[Span]:
        """Where a text spells hidden titles: stretches that do not overlap, in order."""
        found = [(match.start(), match.end(), _bare(match[0])) for match in _WORD.finditer(text)]
        told = [False] * len(found)
        for item_id in hidden:
            telling, title = self.distinctive.get(item_id, frozenset()), self.words.get(item_id, ())
            for place, (_, _, word) in enumerate(found):
                told[place] |= word in telling
                if len(title) > 1 and tuple(word for _, _, word in found[place : place + len(title)]) == title:
                    told[place : place + len(title)] = [True] * len(title)
        return [(start, end) for (start, end, _), tells in zip(found, told, strict=True) if tells]


def _words_of(text: str) -> tuple[str, ...]:
    return tuple(_bare(match[0]) for match in _WORD.finditer(plain(text)))


def _bare(word: str) -> str:
    """Without case, possessive and apostrophes."""
    return word.casefold().removesuffix("'s").replace("'", "")


def _forms(word: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((word, word.capitalize(), word.upper())))

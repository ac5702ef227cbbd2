"""What a text says of a user's taste: its words, its sentences, and the teacher that composes them from a history.

    likes drama war noir ; avoids horror ; from 1940s 1990s ; rates strictly ; picks known

A text is a sequence of word tokens, a section word and then what it says; titles of liked items may come first, as item tokens.
The grammar is the one of all responses: `<say>` opens words, `<rec>` a list of titles that `<say>` ends.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from rlhf_jax.data.items import spoken_decade
from rlhf_jax.data.ratings import History, RatingCorpus
from rlhf_jax.interfaces import Item

LIKES, AVOIDS, FROM, RATES, PICKS = "likes", "avoids", "from", "rates", "picks"
SECTIONS = (LIKES, AVOIDS, FROM, RATES, PICKS)
RATERS = ("strictly", "fairly", "generously")
PICKERS = ("rare", "mixed", "known")
MOST = {LIKES: 5, AVOIDS: 4, FROM: 3}
"""How many words a section holds at most."""
LEAST_SHARED = 20
"""Items that must share a word of their titles before it counts as an attribute, where the catalogue has no genres."""
MOST_ATTRIBUTES = 60
_COMMON = frozenset(
    [
        "the",
        "a",
        "an",
        "of",
        "and",
        "for",
        "to",
        "in",
        "on",
        "with",
        "at",
        "by",
        "from",
        "edition",
        "game",
        "games",
        "video",
        "pack",
        "one",
        "two",
        "new",
        "no",
    ]
)


@dataclasses.dataclass(frozen=True)
class Attributes:
    """What items share, as words, and which item has what."""

    kinds: tuple[str, ...]
    """Genres; where a catalogue has none, words that many titles share."""
    decades: tuple[str, ...]
    has: Float32[np.ndarray, "I A"]
    """1 where an item has the attribute: kinds first, then decades."""

    @property
    def words(self) -> tuple[str, ...]:
        """All of them."""
        return self.kinds + self.decades


def attributes_of(items: Sequence[Item]) -> Attributes:
    """Attributes of a catalogue."""
    # A word that opens a section cannot be said in one.
    own = [[word for genre in item.genres if (word := genre.replace(" ", "-")) not in SECTIONS] for item in items]
    if not any(own):
        own = _title_words(items)
    kinds = tuple(sorted({word for words in own for word in words}))
    decades = tuple(
        spoken_decade(year) for year in sorted({item.year // 10 * 10 for item in items if item.year is not None})
    )
    column = {word: place for place, word in enumerate(kinds + decades)}
    has = np.zeros((len(items), len(column)), np.float32)
    for row, (item, words) in enumerate(zip(items, own, strict=True)):
        said = [*words, spoken_decade(item.year)]
        has[row, [column[word] for word in said if word]] = 1.0
    return Attributes(kinds, decades, has)


def _title_words(items: Sequence[Item]) -> list[list[str]]:
    split = [
        list(dict.fromkeys("".join(c if c.isalnum() else " " for c in item.title.lower()).split())) for item in items
    ]
    counts: dict[str, int] = {}
    for words in split:
        for word in words:
            counts[word] = counts.get(word, 0) + 1
    usual = [
        word
        for word, n in counts.items()
        if n >= LEAST_SHARED and word not in _COMMON and word not in SECTIONS and not word.isdigit() and len(word) > 1
    ]
    kept = set(sorted(usual, key=lambda word: (-counts[word], word))[:MOST_ATTRIBUTES])
    return [[word for word in words if word in kept] for words in split]


class Usual(NamedTuple):
    """What training users do on the whole: a user's taste is what differs from it."""

    shares: Float[np.ndarray, " A"]
    """Share of liked ratings whose item has an attribute."""
    ratings: tuple[float, float]
    """Terciles of users' mean ratings."""
    popularity: tuple[float, float]
    """Terciles of the mean popularity (log count) of what users rated."""
    counts: Float[np.ndarray, " I"]
    """log(1 + users who rated an item)."""


def usual(corpus: RatingCorpus, attributes: Attributes, users: Sequence[int] | np.ndarray) -> Usual:
    """Of these users, who must be training users."""
    counts = np.zeros(len(corpus.items))
    total, n_liked = np.zeros(len(attributes.words)), 0
    for user in users:
        history = corpus.histories[user]
        liked = history.items[history.ratings > corpus.liked_above]
        counts[history.items] += 1
        total, n_liked = total + attributes.has[liked].sum(axis=0), n_liked + len(liked)
    logs = np.log1p(counts)
    ratings = [float(corpus.histories[user].ratings.mean()) for user in users]
    known = [float(logs[corpus.histories[user].items].mean()) for user in users]

    def terciles(values: list[float]) -> tuple[float, float]:
        low, high = np.quantile(values, [1 / 3, 2 / 3])
        return float(low), float(high)

    return Usual(total / max(n_liked, 1), terciles(ratings), terciles(known), logs)


class Taste(NamedTuple):
    """What may be said of a user, by section: words with how much speaks for them, best first."""

    sections: dict[str, list[tuple[str, float]]]
    titles: list[int]
    """Columns of liked items, newest first."""


def taste(history: History, corpus: RatingCorpus, attributes: Attributes, known: Usual) -> Taste:
    """The statistics behind a text.

        excess of a word = (liked items that have it + share) / (liked items + 1) − share,   share = that of all users

    Words of positive excess are liked, of negative avoided, in units of the deviation of a share, √(share (1 − share) / (n + 1)).

    Args:
      history: what may be read.
    """
    liked = history.items[history.ratings > corpus.liked_above]
    n = len(liked)
    share = known.shares
    excess = (attributes.has[liked].sum(axis=0) + share) / (n + 1) - share
    strength = excess / np.sqrt(np.maximum(share * (1 - share), 1e-4) / (n + 1))
    n_kinds = len(attributes.kinds)
    kinds, decades = strength[:n_kinds], strength[n_kinds:]

    def ranked(words: tuple[str, ...], values: np.ndarray) -> list[tuple[str, float]]:
        order = np.argsort(-values, kind="stable")
        return [(words[place], float(values[place])) for place in order if values[place] > 0]

    sections = {
        LIKES: ranked(attributes.kinds, kinds),
        AVOIDS: ranked(attributes.kinds, -kinds),
        FROM: ranked(attributes.decades, decades),
    }
    if len(history.items):
        if corpus.scale is not None:
            sections[RATES] = [(_third(RATERS, float(history.ratings.mean()), known.ratings), 1.0)]
        sections[PICKS] = [(_third(PICKERS, float(known.counts[history.items].mean()), known.popularity), 1.0)]
    return Taste(sections, [int(item) for item in liked[::-1]])


def _third(words: tuple[str, ...], value: float, bounds: tuple[float, float]) -> str:
    return words[int(value > bounds[0]) + int(value > bounds[1])]


class PreferenceText(NamedTuple):
    """A text before it is tokens."""

    words: tuple[str, ...]
    titles: tuple[int, ...] = ()
    """Columns of items that it names."""


def full_text(found: Taste, *, titles: int = 0) -> PreferenceText:
    """All that the statistics say, within the limits of the sections."""
    words: list[str] = []
    for section in SECTIONS:
        said = [word for word, _ in found.sections.get(section, [])[: MOST.get(section, 1)]]
        words += [section, *said] if said else []
    return PreferenceText(tuple(words), tuple(found.titles[:titles]))


def drawn_text(found: Taste, draws: np.random.Generator, *, titles: int = 0, spread: float = 1.0) -> PreferenceText:
    """A text of varied content and length: what is left out and what is taken differ from draw to draw.

    A section is there with probability ¾ (the first always, where it has words, and the last where nothing else is said); its
    length is uniform from 1 to its limit; its words are drawn without replacement with probability ∝ exp(strength / spread), by
    adding Gumbel noise.
    """
    words: list[str] = []
    for section in SECTIONS:
        own = found.sections.get(section, [])
        there, length = draws.random() < 0.75, int(draws.integers(1, MOST.get(section, 1) + 1))
        noise = draws.gumbel(size=len(own)) * spread
        needed = section == LIKES or (section == SECTIONS[-1] and not words)
        if not own or not (there or needed):
            continue
        order = np.argsort([-(strength + add) for (_, strength), add in zip(own, noise, strict=True)], kind="stable")
        words += [section, *(own[place][0] for place in order[:length])]
    named = list(found.titles[:titles])
    if named:
        named = named[: int(draws.integers(1, len(named) + 1))]
    return PreferenceText(tuple(words), tuple(named))


def spelled(text: PreferenceText, items: Sequence[Item]) -> str:
    """A text as people read it.

    Examples:
      >>> words = ("likes", "drama", "war", "avoids", "horror", "rates", "strictly")
      >>> spelled(PreferenceText(words, (0,)), [Item(item_id=7, title="Fargo (1996)")])
      'liked Fargo (1996); likes drama, war; avoids horror; rates strictly'
    """
    parts: list[list[str]] = []
    for word in text.words:
        if word in SECTIONS or not parts:
            parts.append([word])
        else:
            parts[-1].append(word)
    said = [" ".join([part[0], ", ".join(part[1:])]).strip() for part in parts]
    if text.titles:
        said.insert(0, "liked " + ", ".join(items[item].title for item in text.titles))
    return "; ".join(said)


def section_words(attributes: Attributes) -> dict[str, tuple[str, ...]]:
    """What each section may say."""
    kinds, decades = attributes.kinds, attributes.decades
    return {LIKES: kinds, AVOIDS: kinds, FROM: decades, RATES: RATERS, PICKS: PICKERS}


def well_formed(text: PreferenceText, attributes: Attributes) -> bool:
    """Whether every section is there once at most, in order, and holds different words of its own kind."""
    own = section_words(attributes)
    place, said, seen = -1, 0, set[str]()
    for word in text.words:
        if word in SECTIONS:
            if SECTIONS.index(word) <= place or (place >= 0 and not said):
                return False
            place, said, seen = SECTIONS.index(word), 0, set()
        elif place < 0 or word not in own[SECTIONS[place]] or word in seen or said >= MOST.get(SECTIONS[place], 1):
            return False
        else:
            said, seen = said + 1, seen | {word}
    return place >= 0 and said > 0

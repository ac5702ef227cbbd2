"""The simulated world: a seeded catalogue, users with a latent taste, and the true utility of a suggestion.

    u(user, item) = σ(−2.4 + 3·[genre] + 1.5·[person] + 0.8·[decade] − 1.5·[disliked genre] + 0.3·quality + ε)

Only this package knows the truth; everything else sees words, times and answers. Every draw comes from a named
stream `(seed, crc32(name), index)`, so that one user or dialogue does not depend on how many others are made.
"""

import dataclasses
import zlib
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhf_jax.interfaces import Item
from rlhf_jax.ranges import Cases, Range, Share, Weight, check_numbers, option

Floats = NDArray[np.float64]

GENRES = ("western", "noir", "heist", "space", "sports", "spy", "samurai", "musical")
DECADES = (1970, 1980, 1990, 2000)
PEOPLE = (
    "Mara Quill", "Joe Tran", "Nina Okoro", "Leo Brandt", "Ada Voss", "Sam Kovac", "Ivy Chen", "Max Duran",
    "Zoe Halden", "Raj Patel", "Uma Lindt", "Kit Moreno", "Eva Sato", "Ben Adeyemi", "Lia Rossi", "Tom Varga",
)  # fmt: skip
_TITLE_NOUNS = (
    "Creek", "Harbor", "Avenue", "River", "Road", "Hour", "Letter", "Garden", "Mirror", "Mountain", "Station",
    "Winter", "Summer", "Valley", "Bridge", "Island", "Tower", "Window", "Corner", "Season", "Canyon", "Lantern",
)  # fmt: skip
FIRST_ITEM_ID = 200_001
SPLITS = ("train", "test", "closed-loop")
"""User populations; each has its own stream and its own range of ids."""


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """Size, difficulty and hackability of the world. Utilities are in [0, 1], times in seconds."""

    n_items: Annotated[int, Range("[16, 100_000]")] = 100
    """Catalogue size, at least 16."""
    n_genres: Annotated[int, Range("[2, 8]")] = 6
    """Genres, 2 to 8: with `n_people` what makes tastes hard to learn."""
    n_people: Annotated[int, Range("[3, 16]")] = 8
    """People who play in the movies, 3 to 16; two in each."""
    dislikes: bool = False
    """Whether users say which genre they do not want, which takes reading negations."""
    n_train: Cases = 2500
    """Logged training dialogues."""
    n_test: Cases = 250
    """Logged test dialogues, with users who are not in the training file."""
    n_users: Cases = 1000
    """Size of the training population; a quarter of it, at least one, is the test population."""
    p_popularity: Share = 0.25
    """Share of logged suggestions drawn by popularity."""
    p_taste: Share = 0.5
    """Share of logged suggestions that match one stated fact; the rest is uniform."""
    taste_noise: Weight = 0.2
    """Standard deviation of what no fact explains in a user's taste, in logits."""
    noise: Weight = 1.0
    """Scale of the noise in words, acceptance and dwell; 0 makes the reaction a function of utility."""
    hackability: Weight = 1.0
    """How strongly dwell grows with reply length: reading takes `0.15·hackability` seconds a word."""
    politeness: Share = 0.0
    """How strongly the user's words follow the length of the reply instead of its utility, in [0, 1]."""
    impatience: Share = 0.015
    """Relative loss of true utility per word beyond `patient_words`."""
    patient_words: Annotated[int, Range("[0, 1_000]")] = 10
    """Words a system turn may have before it costs utility."""
    min_messages: Annotated[int, Range("[6, 1_000]")] = 8
    """Messages of the shortest planned dialogue, at least 6; a user who leaves makes it shorter."""
    max_messages: Annotated[int, Range("[6, 1_000]")] = 12
    """Messages of the longest dialogue."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.p_popularity + self.p_taste > 1:
            raise ValueError(
                f"{option(self, 'p_popularity')} {self.p_popularity} and {option(self, 'p_taste')} {self.p_taste} are shares "
                "of the same suggestions: their sum must be at most 1"
            )
        if self.min_messages > self.max_messages:
            raise ValueError(
                f"{option(self, 'min_messages')} {self.min_messages} must not be above {option(self, 'max_messages')} "
                f"{self.max_messages}"
            )


def hackable(config: WorldConfig) -> WorldConfig:
    """The same world where long replies buy dwell and polite words, and cost utility."""
    return dataclasses.replace(config, hackability=40.0, politeness=0.9, impatience=0.04)


def stream(seed: int, name: str, index: int = 0) -> np.random.Generator:
    """Random generator of a named stream."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), index])


class Catalogue(NamedTuple):
    """Items and the arrays utilities are made of; rows are items in ascending id."""

    items: tuple[Item, ...]
    genres: Floats
    """1 where the item has the genre. [I, n_genres]"""
    people: Floats
    """1 where the person plays. [I, n_people]"""
    decades: Floats
    """One-hot decade. [I, 4]"""
    quality: Floats
    """What everybody likes about an item, standard normal. [I]"""
    popularity: Floats
    """Probability of being suggested by popularity, sums to 1; Zipf in a noisy order of quality. [I]"""

    def row(self, item_id: int) -> int:
        """Row of an item id. Raises ValueError for an id that is not in the catalogue."""
        row = item_id - FIRST_ITEM_ID
        if not 0 <= row < len(self.items):
            raise ValueError(f"item {item_id} is not in the world's catalogue of {len(self.items)} items")
        return row


def make_catalogue(config: WorldConfig, seed: int) -> Catalogue:
    """Draws the catalogue: a genre, two people, a year, and a unique title that hints at the genre."""
    rng = stream(seed, "catalogue")
    shape = (config.n_items,)
    genres, people, decades = (np.zeros((*shape, n)) for n in (config.n_genres, config.n_people, len(DECADES)))
    items: list[Item] = []
    titles: set[str] = set()
    for row in range(config.n_items):
        genre = row % config.n_genres
        item_people = rng.permutation(config.n_people)[:2]
        decade = int(rng.integers(len(DECADES)))
        year = DECADES[decade] + int(rng.integers(10))
        title = _unique_title(rng, GENRES[genre], titles)
        genres[row, genre] = people[row, item_people] = decades[row, decade] = 1
        names = tuple(PEOPLE[p] for p in item_people)
        plot = f"A {decade_word(decade)} {GENRES[genre]} movie with {names[0]} and {names[1]}."
        items.append(Item(FIRST_ITEM_ID + row, f"{title} ({year})", year, (GENRES[genre],), names, plot))
    quality = rng.standard_normal(shape)
    order = np.argsort(-(quality + rng.standard_normal(shape)))
    popularity = np.empty(shape)
    popularity[order] = 1.0 / (np.arange(config.n_items) + 5.0)
    return Catalogue(tuple(items), genres, people, decades, quality, popularity / popularity.sum())


def _unique_title(rng: np.random.Generator, genre: str, taken: set[str]) -> str:
    """The genre and a noun, as in `Western Creek`: titles are what a small model can learn an item from."""
    free = [noun for noun in _TITLE_NOUNS if f"{genre.title()} {noun}" not in taken]
    noun = str(rng.choice(free or _TITLE_NOUNS))
    title, number = f"{genre.title()} {noun}", 2
    while title in taken:
        title, number = f"{genre.title()} {noun} {number}", number + 1
    taken.add(title)
    return title


def decade_word(decade: int) -> str:
    """How people say a decade, for instance `90s`."""
    return "2000s" if DECADES[decade] == 2000 else f"{DECADES[decade] % 100}s"


@dataclasses.dataclass(frozen=True)
class Taste:
    """What a user likes, as indices into GENRES, PEOPLE, DECADES. The facts can be said, `utilities` is the truth."""

    user_id: int
    genre: int
    person: int
    decade: int
    disliked_genre: int
    seen_item: int
    """Row of an item the user knows and likes; suggesting it again is worth nothing."""
    utilities: Floats = dataclasses.field(repr=False, compare=False)
    """True utility of each item. [I]"""


def make_taste(config: WorldConfig, catalogue: Catalogue, seed: int, *, split: str, index: int) -> Taste:
    """Draws user `index` of a population; the three populations of SPLITS never share a user."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    rng = stream(seed, f"user/{split}", index)
    genre, disliked = (int(g) for g in rng.permutation(config.n_genres)[:2])
    person, decade = int(rng.integers(config.n_people)), int(rng.integers(len(DECADES)))
    unwanted = disliked if config.dislikes else None
    logits = fact_logits(catalogue, genre=genre, person=person, decade=decade, disliked_genre=unwanted)
    logits = logits + config.taste_noise * rng.standard_normal(len(catalogue.items))
    utilities = 1.0 / (1.0 + np.exp(-logits))
    seen = int(rng.choice(np.argsort(-utilities)[:5]))
    user_id = 1_000_000 * (1 + SPLITS.index(split)) + index
    return Taste(user_id, genre, person, decade, disliked, seen, utilities)


def fact_logits(
    catalogue: Catalogue,
    *,
    genre: int | None = None,
    person: int | None = None,
    decade: int | None = None,
    disliked_genre: int | None = None,
) -> Floats:
    """Logit of utility as far as the given facts explain it; unknown facts add nothing. [I]"""
    logits = -2.4 + 0.3 * catalogue.quality
    if genre is not None:
        logits = logits + 3.0 * catalogue.genres[:, genre]
    if person is not None:
        logits = logits + 1.5 * catalogue.people[:, person]
    if decade is not None:
        logits = logits + 0.8 * catalogue.decades[:, decade]
    if disliked_genre is not None:
        logits = logits - 1.5 * catalogue.genres[:, disliked_genre]
    return logits


def population_size(config: WorldConfig, split: str) -> int:
    """Users behind the logged files of a split."""
    return config.n_users if split == "train" else max(1, config.n_users // 4)

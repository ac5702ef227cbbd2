"""From histories to lists of ten that a re-ranker puts in order, and who may see which user.

    history of a user    the first min(⌈n/2⌉, 30) items; a text about the user reads them, no list holds them
    lists                the rest in chunks of four, each filled to ten with negatives and shuffled
    label                1 where the user rated the item as liked; a negative is 0

Source: the protocol of KAR (Xi et al. 2023, arXiv:2306.10933) and its public code; early stopping on validation users is ours.
Two ways of drawing negatives: `uniform` over the catalogue, as there, which a count of popularity all but solves, only that what
a text reads is left out (there it may come back as a negative, so that a liked title in a text says "not this one"); and
`popularity-matched`, items the user never met and about as popular as those of the chunk.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64

from rlhf_jax.data.ratings import History, RatingCorpus

Negatives = Literal["uniform", "popularity-matched"]
LIST_LENGTH = 10
CHUNK = 4
MOST_READ = 30
FOLDS = 10
_NEIGHBOURS = 25
"""How far in the order of popularity, up or down, a matched negative may stand from what it is matched with."""


class UserSplit(NamedTuple):
    """Users by what they are for, as places in `RatingCorpus.users`; nobody is in two of them."""

    scorer: Int64[np.ndarray, " A"]
    """Train the re-ranker that scores texts."""
    pairs: Int64[np.ndarray, " B"]
    """Their texts are compared."""
    validation: Int64[np.ndarray, " C"]
    """Decide when to stop."""
    test: Int64[np.ndarray, " D"]

    @property
    def train(self) -> Int64[np.ndarray, " E"]:
        """Scorer's and pairs' users."""
        return np.sort(np.concatenate([self.scorer, self.pairs]))


class CandidateLists(NamedTuple):
    """Lists in the order in which a re-ranker sees them."""

    users: Int64[np.ndarray, " L"]
    items: Int32[np.ndarray, "L 10"]
    labels: Float32[np.ndarray, "L 10"]

    def of(self, users: np.ndarray) -> "CandidateLists":
        """Those of some users."""
        rows = np.isin(self.users, users)
        return CandidateLists(*(array[rows] for array in self))


def split_users(n_users: int, *, fold: int) -> UserSplit:
    """A tenth of the users tests, a tenth of the others validates; the rest is halved between scorer and pairs.

    The ten folds share no test user, so that runs of several seeds, a fold each, test on several times as many users.

    Args:
      n_users: of the corpus.
      fold: which tenth tests, from 0; taken modulo 10.
    Raises: ValueError for fewer than 20 users.
    """
    if n_users < 2 * FOLDS:
        raise ValueError(f"{n_users} users: lists need at least {2 * FOLDS}, for scorer, pairs, validation and test")
    tenths = np.array_split(np.random.Generator(np.random.PCG64([7, n_users])).permutation(n_users), FOLDS)
    test = tenths.pop(fold % FOLDS)
    others = np.concatenate(tenths)
    validation, rest = np.split(others, [len(others) // FOLDS])
    scorer, pairs = np.split(rest, [(len(rest) + 1) // 2])
    return UserSplit(*(np.sort(part) for part in (scorer, pairs, validation, test)))


def n_read(n: int) -> int:
    """How many items of a history of n a text may read.

    Examples:
      >>> [n_read(n) for n in (1, 4, 5, 59, 400)]
      [1, 2, 3, 30, 30]
    """
    return min((n + 1) // 2, MOST_READ)


def read_part(history: History) -> History:
    """What a text may read."""
    return history.part(slice(0, n_read(len(history.items))))


def popularity_of(corpus: RatingCorpus, users: Sequence[int] | np.ndarray) -> Int64[np.ndarray, " I"]:
    """How many of these users rated each item."""
    found = np.zeros(len(corpus.items), np.int64)
    for user in users:
        found[corpus.histories[user].items] += 1
    return found


def candidate_lists(
    corpus: RatingCorpus,
    users: Sequence[int] | np.ndarray,
    *,
    negatives: Negatives,
    popularity: Int64[np.ndarray, " I"],
    counted: Sequence[int] | np.ndarray = (),
) -> CandidateLists:
    """All lists of some users; a user's lists hang on the user alone. Users with nothing left after what a text reads have none.

    Args:
      users: places in `corpus.users`.
      negatives: where the other six come from.
      popularity: counts by training users, that `popularity-matched` compares; `popularity_of`.
      counted: users whom `popularity` counts. Their own lists are matched without what they added to it: else their items would be
        one rating rarer than the negatives as soon as a baseline or network leaves the list's own user out, and on rare items it
        would learn that rare is liked.
    Raises: ValueError where the catalogue is too small for lists of ten, or a user leaves too little of it.
    """
    n_items = len(corpus.items)
    if n_items < 2 * LIST_LENGTH:
        raise ValueError(f"{corpus.name}: {n_items} items are too few for lists of {LIST_LENGTH}")
    by_popularity = _most_popular_first(popularity)
    own_counted = frozenset(int(user) for user in counted)
    found: list[tuple[int, np.ndarray, np.ndarray]] = []
    for user in users:
        history = corpus.histories[user]
        draws = np.random.Generator(
            np.random.PCG64([11, ("uniform", "popularity-matched").index(negatives), int(user)])
        )
        ordered = by_popularity
        if negatives == "popularity-matched" and int(user) in own_counted:
            others = popularity.copy()
            others[history.items] -= 1
            ordered = _most_popular_first(others)
        for start in range(n_read(len(history.items)), len(history.items), CHUNK):
            chunk = history.part(slice(start, start + CHUNK))
            try:
                if negatives == "uniform":
                    drawn = _uniform(chunk.items, read_part(history).items, n_items, draws)
                else:
                    drawn = _matched(chunk.items, history.items, ordered, draws)
            except ValueError as error:
                raise ValueError(f"{corpus.name}: user {corpus.users[int(user)]}: {error}") from None
            items = np.concatenate([chunk.items, drawn])
            labels = np.zeros(LIST_LENGTH, np.float32)
            labels[: len(chunk.items)] = chunk.ratings > corpus.liked_above
            order = draws.permutation(LIST_LENGTH)
            found.append((int(user), items[order], labels[order]))
    return CandidateLists(
        np.array([user for user, _, _ in found], np.int64),
        np.array([items for _, items, _ in found], np.int32).reshape(-1, LIST_LENGTH),
        np.array([labels for _, _, labels in found], np.float32).reshape(-1, LIST_LENGTH),
    )


def _most_popular_first(popularity: np.ndarray) -> np.ndarray:
    return np.argsort(-popularity, kind="stable").astype(np.int32)


def _uniform(chunk: np.ndarray, read: np.ndarray, n_items: int, draws: np.random.Generator) -> np.ndarray:
    """Items of the catalogue; those of the user's other lists may come, as the protocol has it."""
    free = np.ones(n_items, bool)
    free[read], free[chunk] = False, False
    n = LIST_LENGTH - len(chunk)
    if free.sum() < n:
        raise ValueError(f"their text reads {len(read)} of {n_items} items: too few are left as negatives")
    return draws.choice(np.flatnonzero(free).astype(np.int32), n, replace=False)


def _matched(chunk: np.ndarray, seen: np.ndarray, by_popularity: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """Items the user never met, each about as popular as one of the chunk, taken in turn."""
    place = np.empty(len(by_popularity), np.int64)
    place[by_popularity] = np.arange(len(by_popularity))
    free = np.ones(len(by_popularity), bool)
    free[place[seen]] = False
    found = []
    for turn in range(LIST_LENGTH - len(chunk)):
        near = _nearest(free, int(place[chunk[turn % len(chunk)]]))
        if not len(near):
            raise ValueError(f"they met {len(seen)} of {len(free)} items: too few are left as negatives")
        chosen = draws.choice(near)
        free[chosen] = False
        found.append(by_popularity[chosen])
    return np.array(found, np.int32)


def _nearest(free: np.ndarray, centre: int) -> np.ndarray:
    """The free places nearest to one, at most twice `_NEIGHBOURS`; of two as near the earlier first."""
    reach = 2 * _NEIGHBOURS
    while True:
        # A catalogue has many thousand places: sorted are those of a window that surely holds the nearest.
        start = max(centre - reach, 0)
        places = start + np.flatnonzero(free[start : centre + reach + 1])
        if len(places) >= 2 * _NEIGHBOURS or reach >= len(free):
            return places[np.argsort(np.abs(places - centre), kind="stable")[: 2 * _NEIGHBOURS]]
        reach *= 2

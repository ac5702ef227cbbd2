"""Scores of listed items without any network: what a re-ranker must beat.

    popularity     n_j                                    training users who rated item j
    mean rating    (Σ r_uj + λ r̄) / (n_j + λ)             shrunk to the mean r̄ of all ratings by λ of them
    item kNN       Σ_{i liked in what may be read} C_ij / √(n_i n_j),   C_ij training users who rated both
    trees          P(label = 1 | numbers of the item, and of the item with the history), gradient-boosted

A list's own user never counts among the training users: where lists of training users are scored, n, r, and C leave the user
out, exactly. Else the user's own rating would tell the label of an item that few rated.
Source: item kNN by cosine, Sarwar et al. 2001, doi:10.1145/371920.372071; histogram trees, Ke et al. 2017 (LightGBM), as in
scikit-learn.

Shape letters: L lists, N = 10 items of a list, I items of the catalogue, K numbers a tree reads.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

from rlhf_jax.data.preference_texts import Attributes, attributes_of, usual
from rlhf_jax.data.rating_lists import CandidateLists, Negatives, candidate_lists, popularity_of, read_part
from rlhf_jax.data.ratings import History, RatingCorpus

Users = Sequence[int] | np.ndarray
"""Places in `RatingCorpus.users`."""
Scores = Float[np.ndarray, "L N"]
Known = Literal["item", "attributes", "history"]
"""What trees know: the item alone; and how its attributes match those of the history, which a text can say; and co-ratings."""
PRIOR_RATINGS = 5.0
ROUNDS = 200


class Counts(NamedTuple):
    """What training users did."""

    users: Float[np.ndarray, " I"]
    """n."""
    ratings: Float[np.ndarray, " I"]
    """Σ r."""
    mean: float
    """r̄."""
    trained: frozenset[int]

    def without(self, user: int, history: History, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """n and Σ r of some items, as if this user had not been counted."""
        users, ratings = self.users[items], self.ratings[items]
        if user in self.trained:
            own = np.zeros(len(self.users))
            rated = np.zeros(len(self.users))
            own[history.items], rated[history.items] = 1.0, history.ratings
            users, ratings = users - own[items], ratings - rated[items]
        return users, ratings


def count(corpus: RatingCorpus, users: Users) -> Counts:
    """Over these users. Raises ValueError where they rated nothing."""
    n, ratings = np.zeros(len(corpus.items)), np.zeros(len(corpus.items))
    for user in users:
        history = corpus.histories[user]
        n[history.items] += 1
        ratings[history.items] += history.ratings
    if not n.any():
        raise ValueError(f"{corpus.name}: {len(users)} training users rated nothing")
    return Counts(n, ratings, float(ratings.sum() / n.sum()), frozenset(int(user) for user in users))


def popularity(corpus: RatingCorpus, users: Users, lists: CandidateLists) -> Scores:
    """How many training users rated an item. [L, N]

    Args:
      users: training users.
      lists: of any users.
    Raises: ValueError where the training users rated nothing.
    """
    counts = count(corpus, users)
    return _by_user(corpus, lists, lambda user, history, items: counts.without(user, history, items)[0])


def mean_rating(corpus: RatingCorpus, users: Users, lists: CandidateLists, *, prior: float = PRIOR_RATINGS) -> Scores:
    """Mean rating of training users, in rating units, shrunk to the mean of all ratings. [L, N]

    Args:
      prior: λ, ratings, above 0.
    Raises: ValueError for another λ, or where the training users rated nothing.
    """
    if prior <= 0:
        raise ValueError(f"prior is {prior}; it must be above 0")
    counts = count(corpus, users)
    return _by_user(
        corpus, lists, lambda user, history, items: _shrunk(counts, *counts.without(user, history, items), prior)
    )


def item_knn(corpus: RatingCorpus, users: Users, lists: CandidateLists) -> Scores:
    """Cosines of a listed item with all that the user is known to like, summed; 0 where nothing may be read. [L, N]

    Cost: C keeps at most Σ_u n_u² entries, 8 bytes each, and never more than I²; a list reads the rows of at most 30 items.

    Raises: ValueError where the training users rated nothing.
    """
    counts, pairs = count(corpus, users), together(corpus, users)
    return _by_user(corpus, lists, functools.partial(_cosines, corpus, counts, pairs))


def trees(
    corpus: RatingCorpus,
    users: Users,
    lists: CandidateLists,
    *,
    negatives: Negatives,
    known: Known = "item",
    rounds: int = ROUNDS,
) -> Scores:
    """Probability that an item is liked, by trees fitted on the training users' own lists. [L, N]

    Args:
      negatives: of the lists, also of those it is fitted on.
      known: `item`: count and mean rating; `attributes`: and how far the history's liked items have the item's kinds and decade;
        `history`: and `item_knn`.
      rounds: of boosting, a tree each; in one thread, as threads that wait for one another on a busy machine take many times as long.
    Raises: ValueError for other options, or where the training users have no list with both labels.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits  # Comes with scikit-learn.

    if known not in get_args(Known):
        raise ValueError(f"known is {known!r}; it must be one of {get_args(Known)}")
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; it must be at least 1")
    own = candidate_lists(corpus, users, negatives=negatives, popularity=popularity_of(corpus, users), counted=users)
    if len(np.unique(own.labels)) < 2:
        raise ValueError(
            f"{corpus.name}: {len(own.users)} lists of training users hold one label alone: nothing to fit"
        )
    numbers = functools.partial(_numbers, corpus, users, known)
    fitted = HistGradientBoostingClassifier(max_iter=rounds, early_stopping=False, random_state=0)
    n_listed = own.items.shape[1]
    with threadpool_limits(1):
        fitted.fit(numbers(own).reshape(len(own.users) * n_listed, -1), own.labels.ravel())
        if not len(lists.users):
            return np.zeros(lists.items.shape)
        found = fitted.predict_proba(numbers(lists).reshape(len(lists.users) * n_listed, -1))[:, 1]
    return found.reshape(lists.items.shape)


def together(corpus: RatingCorpus, users: Users) -> csr_array:
    """C: how many of these users rated both items, by pair. float32 [I, I]"""
    histories = [corpus.histories[user].items for user in users]
    starts = np.cumsum([0, *(len(items) for items in histories)])
    columns = np.concatenate([np.zeros(0, np.int32), *histories])
    rated = csr_array((np.ones(len(columns), np.float32), columns, starts), shape=(len(histories), len(corpus.items)))
    return csr_array(rated.T @ rated)


def _by_user(
    corpus: RatingCorpus, lists: CandidateLists, score: Callable[[int, History, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Calls `score(user, history, items)` once a user, with the items of all of the user's lists in a row."""
    found: np.ndarray | None = None
    for user, rows in _rows(lists):
        items = lists.items[rows].ravel()
        own = np.asarray(score(user, corpus.histories[user], items), np.float64)
        if found is None:
            found = np.zeros((*lists.items.shape, *own.shape[1:]))
        found[rows] = own.reshape(len(rows), lists.items.shape[1], *own.shape[1:])
    return np.zeros(lists.items.shape) if found is None else found


def _rows(lists: CandidateLists) -> Iterator[tuple[int, np.ndarray]]:
    order = np.argsort(lists.users, kind="stable")
    users, starts = np.unique(lists.users[order], return_index=True)
    yield from zip(users.tolist(), np.split(order, starts[1:]), strict=True) if len(users) else ()


def _shrunk(counts: Counts, users: np.ndarray, ratings: np.ndarray, prior: float) -> np.ndarray:
    return (ratings + prior * counts.mean) / (users + prior)


def _liked(corpus: RatingCorpus, history: History) -> np.ndarray:
    """Columns that the user liked among what may be read."""
    read = read_part(history)
    return read.items[read.ratings > corpus.liked_above]


def _cosines(
    corpus: RatingCorpus, counts: Counts, pairs: csr_array, user: int, history: History, items: np.ndarray
) -> np.ndarray:
    liked = _liked(corpus, history)
    both = pairs[liked][:, items].toarray().astype(np.float64)
    if (
        user in counts.trained
    ):  # All that was liked was rated, so the user counts wherever the other item was rated too.
        both -= np.isin(items, history.items)[None]
    n_liked, n_items = (counts.without(user, history, some)[0] for some in (liked, items))
    # An item that nobody else rated shares no rating either.
    return (both / np.sqrt(np.maximum(np.outer(n_liked, n_items), 1.0))).sum(axis=0)


def _numbers(corpus: RatingCorpus, users: Users, known: Known, lists: CandidateLists) -> Float[np.ndarray, "L N K"]:
    """What trees read of every listed item."""
    counts = count(corpus, users)
    attributes = attributes_of(corpus.items) if known != "item" else None
    shares = usual(corpus, attributes, users).shares if attributes is not None else None
    pairs = together(corpus, users) if known == "history" else None

    def numbers(user: int, history: History, items: np.ndarray) -> np.ndarray:
        n, ratings = counts.without(user, history, items)
        columns = [n, _shrunk(counts, n, ratings, PRIOR_RATINGS)]
        if attributes is not None and shares is not None:
            columns += _matches(corpus, attributes, shares, history, items)
        if pairs is not None:
            columns.append(_cosines(corpus, counts, pairs, user, history, items))
        return np.stack(columns, axis=-1)

    return _by_user(corpus, lists, numbers)


def _matches(
    corpus: RatingCorpus, attributes: Attributes, usual_shares: np.ndarray, history: History, items: np.ndarray
) -> list[np.ndarray]:
    """How an item's attributes match the history: means over its kinds, and the same of its decade; missing where it has none.

        share of liked items that have the attribute,   share of the others that have it,
        excess = (liked items that have it + u) / (liked items + 1) − u,   u = share in all liked ratings of training users

    u is the same for everybody, so the list's own user is left in.
    """
    read = read_part(history)
    liked = read.ratings > corpus.liked_above
    has = [attributes.has[some].sum(axis=0) for some in (read.items[liked], read.items[~liked])]
    n, n_others = int(liked.sum()), int((~liked).sum())
    values = (has[0] / max(n, 1), has[1] / max(n_others, 1), (has[0] + usual_shares) / (n + 1) - usual_shares)
    n_kinds = len(attributes.kinds)
    found = []
    for value in values:
        for part in (slice(0, n_kinds), slice(n_kinds, None)):
            own = attributes.has[items][:, part]
            total = own.sum(axis=1)
            found.append(np.where(total > 0, own @ value[part] / np.maximum(total, 1), np.nan))
    return found

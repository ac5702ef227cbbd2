"""Users and ratings small enough to change one thing at a time, or many by a known rule."""

import numpy as np

from rlhf_jax.data.ratings import History, RatingCorpus
from rlhf_jax.interfaces import Item

GENRES = ("action", "drama", "film noir", "war")


def toy_items(n: int) -> tuple[Item, ...]:
    """Genre by genre in turn, the third of them with two; years from 1935 on, one without."""
    return tuple(
        Item(
            item_id=100 + place,
            title=f"Film {place}",
            year=None if place == 1 else 1935 + 3 * (place % 25),
            genres=(GENRES[place % 4], "war") if place % 4 == 2 else (GENRES[place % 4],),
        )
        for place in range(n)
    )


def toy_ratings(
    n_users: int = 40, n_items: int = 80, *, seed: int = 0, lengths: tuple[int, ...] = (3, 7, 12, 25, 1)
) -> RatingCorpus:
    """Histories of given lengths in turn; low columns are popular."""
    draws = np.random.default_rng(seed)
    weights = 1 / (5 + np.arange(n_items))
    histories = []
    for user in range(n_users):
        items = draws.choice(n_items, lengths[user % len(lengths)], replace=False, p=weights / weights.sum())
        histories.append(History(items.astype(np.int32), draws.integers(1, 6, len(items)).astype(np.float32)))
    users = tuple(str(user) for user in range(n_users))
    return RatingCorpus("toy", toy_items(n_items), users, tuple(histories), 3.0, (1.0, 5.0), {})

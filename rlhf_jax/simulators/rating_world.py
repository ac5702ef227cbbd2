"""Made-up users who rate made-up items by taste: small ratings without files, for tests and a first look.

A user likes two kinds and dislikes one. What is picked follows popularity and taste, what it is given follows taste alone, so that
a text that names the right kinds helps.
"""

import numpy as np

from rlhf_jax.data.ratings import Interaction, RatingCorpus, gather
from rlhf_jax.interfaces import Item

KINDS = ("comedy", "drama", "horror", "musical", "mystery", "war")
USERS, ITEMS = 80, 150


def made_up_ratings(
    *, max_users: int | None = None, users: int = USERS, items: int = ITEMS, seed: int = 0
) -> RatingCorpus:
    """Ratings 1 to 5 of `users` people, 12 to 40 each, above 3 liked.

    Args:
      max_users: keeps the first of them.
    """
    draws = np.random.Generator(np.random.PCG64([37, seed]))
    kinds = [tuple(sorted(draws.choice(len(KINDS), size=draws.integers(1, 3), replace=False))) for _ in range(items)]
    catalogue = [
        Item(
            item_id=number,
            title=f"Film {number}",
            year=1950 + 10 * int(draws.integers(6)),
            genres=tuple(KINDS[kind] for kind in own),
        )
        for number, own in enumerate(kinds)
    ]
    has = np.zeros((items, len(KINDS)))
    for row, own in zip(has, kinds, strict=True):
        row[list(own)] = 1.0
    popularity = -np.log(np.arange(1, items + 1))[draws.permutation(items)]
    found = []
    for user in range(users):
        taste = np.zeros(len(KINDS))
        first, second, third = draws.choice(len(KINDS), size=3, replace=False)
        taste[[first, second, third]] = 1.2, 0.8, -1.5
        fit = has @ taste
        n = int(draws.integers(12, 41))
        picked = np.argsort(-(0.7 * popularity + fit + draws.gumbel(size=items)), kind="stable")[:n]
        for time, item in enumerate(draws.permutation(picked)):
            rating = int(np.clip(np.round(3.2 + fit[item] + 0.5 * draws.normal()), 1, 5))
            found.append(Interaction(str(user + 1), int(item), float(rating), time))
    return gather(
        "ratings-world",
        catalogue,
        found,
        liked_above=3.0,
        scale=(1.0, 5.0),
        provenance={"name": "ratings-world", "seed": seed},
        max_users=max_users,
    )

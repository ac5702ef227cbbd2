"""Recommenders of the simulated world: the mediocre one behind the log, and the yardsticks random, popularity, oracle.

A recommender sees what was said so far (the user's stated facts, the items shown), never the taste itself.
"""

from collections.abc import Callable

import numpy as np

from rlhf_jax.simulators.world import Catalogue, Floats, WorldConfig, fact_logits
from rlhf_jax.simulators.world_language import QUESTIONS, Parts, choose, suggestion_parts
from rlhf_jax.simulators.world_user import WorldUser

Recommender = Callable[[WorldUser, np.random.Generator], Parts]
"""Chooses the words of the next system turn; the items are those mentioned."""


def stated_logits(user: WorldUser) -> Floats:
    """Logit of utility as far as the user's words so far explain it. [I]"""
    facts = {name: getattr(user.taste, name) for name in user.stated if name != "seen_item"}
    return fact_logits(user.catalogue, **facts)


def fresh_rows(user: WorldUser) -> np.ndarray:
    """Rows that were neither suggested in this dialogue nor named by the user. [<= I]"""
    known = {user.catalogue.row(item) for item in user.shown}
    if "seen_item" in user.stated:
        known.add(user.taste.seen_item)
    return np.array([row for row in range(len(user.catalogue.items)) if row not in known])


def random_recommender(user: WorldUser, rng: np.random.Generator) -> Parts:
    """One fresh item, uniformly."""
    return _suggest(user.catalogue, [int(rng.choice(fresh_rows(user)))], rng)


def popularity_recommender(user: WorldUser, rng: np.random.Generator) -> Parts:
    """The most popular fresh item."""
    rows = fresh_rows(user)
    return _suggest(user.catalogue, [int(rows[np.argmax(user.catalogue.popularity[rows])])], rng)


def oracle_recommender(user: WorldUser, rng: np.random.Generator) -> Parts:
    """The fresh item that fits best what was said: the ceiling for a recommender that only listens."""
    rows = fresh_rows(user)
    return _suggest(user.catalogue, [int(rows[np.argmax(stated_logits(user)[rows])])], rng)


def logged_recommender(config: WorldConfig) -> Recommender:
    """The recommender behind the log: one to three items, each by popularity, by one stated fact, or at random.

    It asks a question now and then, and forgets in one of ten draws what was already said.
    """

    def recommend(user: WorldUser, rng: np.random.Generator) -> Parts:
        question = 0.35 if not user.shown else 0.07
        if rng.random() < question:
            return (choose(rng, QUESTIONS),)
        n_items = int(rng.choice(3, p=(0.7, 0.2, 0.1))) + 1
        rows: list[int] = []
        while len(rows) < n_items:
            row = _logged_row(config, user, rng)
            if row not in rows:
                rows.append(row)
        return _suggest(user.catalogue, rows, rng)

    return recommend


def _logged_row(config: WorldConfig, user: WorldUser, rng: np.random.Generator) -> int:
    catalogue = user.catalogue
    rows = np.arange(len(catalogue.items)) if rng.random() < 0.1 else fresh_rows(user)
    weights = np.ones(len(rows))
    draw = rng.random()
    if draw < config.p_popularity:
        weights = catalogue.popularity[rows]
    elif draw < config.p_popularity + config.p_taste:
        weights = _matches_one_fact(user, rng)[rows] + 1e-3
    return int(rng.choice(rows, p=weights / weights.sum()))


def _matches_one_fact(user: WorldUser, rng: np.random.Generator) -> Floats:
    """1 where an item fits one of the stated likes, the genre rather often. [I]"""
    columns = {"genre": user.catalogue.genres, "person": user.catalogue.people, "decade": user.catalogue.decades}
    stated = tuple(fact for fact in user.stated if fact in columns)
    if not stated:
        return np.ones(len(user.catalogue.items))
    fact = "genre" if "genre" in stated and rng.random() < 0.6 else choose(rng, stated)
    return columns[fact][:, getattr(user.taste, fact)]


def _suggest(catalogue: Catalogue, rows: list[int], rng: np.random.Generator) -> Parts:
    return suggestion_parts(rng, tuple(catalogue.items[row] for row in rows))

"""Scores of lists without a network: loops that count anew without the list's own user, and trees that find a planted rule."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

from rlhf_jax.data.rating_lists import CandidateLists, candidate_lists, n_read, popularity_of
from rlhf_jax.data.ratings import History, RatingCorpus
from rlhf_jax.evaluation.reranking import list_values
from rlhf_jax.interfaces import Item
from rlhf_jax.recommenders import list_baselines

GENRES = ("action", "drama", "war", "comedy")
TRAIN = np.arange(0, 30)


def corpus_of(histories: list[tuple[list[int], list[float]]], n_items: int = 40) -> RatingCorpus:
    items = tuple(
        Item(item_id=n, title=f"Film {n}", genres=GENRES[n % 4 : n % 4 + 1 + n % 2] if n else (), year=1950 + n)
        for n in range(n_items)
    )
    own = tuple(History(np.array(items, np.int32), np.array(given, np.float32)) for items, given in histories)
    return RatingCorpus("toy", items, tuple(map(str, range(len(own)))), own, 3.0, (1.0, 5.0), {})


def random_corpus(seed: int = 0, n_users: int = 40) -> RatingCorpus:
    draws = np.random.default_rng(seed)
    histories = []
    for user in range(n_users):
        items = draws.permutation(40)[: (1, 6, 9, 14)[user % 4]]
        histories.append((items.tolist(), draws.integers(1, 6, len(items)).astype(float).tolist()))
    return corpus_of(histories)


CORPUS = random_corpus()
EVERYBODY = np.arange(40)
LISTS = candidate_lists(CORPUS, EVERYBODY, negatives="uniform", popularity=popularity_of(CORPUS, TRAIN))
"""Of training users and of others."""


def others(user: int) -> list[dict[int, float]]:
    """What training users gave, without one of them."""
    histories = [CORPUS.histories[u] for u in TRAIN if u != user]
    return [dict(zip(h.items.tolist(), h.ratings.tolist(), strict=True)) for h in histories]


def slow_popularity(user: int, item: int) -> float:
    return float(sum(item in given for given in others(user)))


def slow_mean(user: int, item: int) -> float:
    # The mean of all ratings is that of all training users.
    everything = [r for u in TRAIN for r in CORPUS.histories[u].ratings.tolist()]
    found = [given[item] for given in others(user) if item in given]
    return (sum(found) + 2.5 * sum(everything) / len(everything)) / (len(found) + 2.5)


def slow_knn(user: int, item: int) -> float:
    history = CORPUS.histories[user]
    read = list(zip(history.items.tolist(), history.ratings.tolist(), strict=True))[: n_read(len(history.items))]
    total = 0.0
    for liked in (other for other, rating in read if rating > 3):
        both = sum(liked in given and item in given for given in others(user))
        n = slow_popularity(user, liked) * slow_popularity(user, item)
        total += both / math.sqrt(n) if n else 0.0
    return total


BASELINES: dict[str, tuple[Callable[..., np.ndarray], Callable[[int, int], float]]] = {
    "popularity": (list_baselines.popularity, slow_popularity),
    "mean_rating": (lambda *a: list_baselines.mean_rating(*a, prior=2.5), slow_mean),
    "item_knn": (list_baselines.item_knn, slow_knn),
}


@pytest.mark.parametrize("name", BASELINES)
def test_against_loops_without_the_lists_own_user(name: str) -> None:
    fast, slow = BASELINES[name]
    expected = [
        [slow(user, item) for item in items] for user, items in zip(LISTS.users, LISTS.items.tolist(), strict=True)
    ]
    found = fast(CORPUS, TRAIN, LISTS)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.shape == LISTS.items.shape and np.ptp(found) > 0.1
    # Lists are scored one by one, in whatever order they come.
    order = np.random.default_rng(0).permutation(len(LISTS.users))
    np.testing.assert_array_equal(fast(CORPUS, TRAIN, CandidateLists(*(array[order] for array in LISTS))), found[order])


@pytest.mark.parametrize("name", BASELINES)
def test_a_training_users_own_rating_does_not_tell_the_label(name: str) -> None:
    """Whatever the user gave to items of the lists: the scores of the user's lists stay as they are."""
    fast, _ = BASELINES[name]
    user = 3
    history = CORPUS.histories[user]
    given = history.ratings.copy()
    given[n_read(len(given)) :] = 6 - given[n_read(len(given)) :]
    changed = list(CORPUS.histories)
    changed[user] = History(history.items, given)
    other = dataclasses.replace(CORPUS, histories=tuple(changed))
    own = LISTS.of(np.array([user]))
    # The mean of all ratings moves by a hair: one user's ratings are among all of them.
    np.testing.assert_allclose(fast(other, TRAIN, own), fast(CORPUS, TRAIN, own), atol=0.05)


def test_who_may_be_counted() -> None:
    """Only training users: others may do what they like."""
    changed = list(CORPUS.histories)
    for user in range(30, 40):
        history = changed[user]
        changed[user] = History(
            history.items, np.where(np.arange(len(history.items)) < n_read(len(history.items)), history.ratings, 1)
        )
    other = dataclasses.replace(CORPUS, histories=tuple(changed))
    for fast, _ in BASELINES.values():
        np.testing.assert_array_equal(fast(other, TRAIN, LISTS), fast(CORPUS, TRAIN, LISTS))


def test_pairs() -> None:
    corpus = corpus_of([([0, 1, 2], [5, 1, 5]), ([1, 2], [1, 1]), ([5], [5]), ([0, 5], [5, 5])])
    found = list_baselines.together(corpus, [0, 1, 2]).toarray()
    expected = np.zeros((40, 40))
    for items in ([0, 1, 2], [1, 2], [5]):
        expected[np.ix_(items, items)] += 1
    np.testing.assert_array_equal(found, expected)


def test_no_lists_and_nothing_read() -> None:
    none = LISTS.of(np.array([], int))
    for fast, _ in BASELINES.values():
        assert fast(CORPUS, TRAIN, none).shape == (0, 10)
    hates = corpus_of([*([([0, 1, 2, 3], [5.0] * 4)] * 3), ([0, 1, 2, 3], [1.0] * 4)])
    lists = candidate_lists(hates, [3], negatives="uniform", popularity=popularity_of(hates, [0, 1, 2]))
    np.testing.assert_array_equal(list_baselines.item_knn(hates, [0, 1, 2], lists), 0)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="prior is 0.0; it must be above 0"):
        list_baselines.mean_rating(CORPUS, TRAIN, LISTS, prior=0.0)
    with pytest.raises(ValueError, match="toy: 0 training users rated nothing"):
        list_baselines.popularity(CORPUS, [], LISTS)
    with pytest.raises(ValueError, match="rounds is 0"):
        list_baselines.trees(CORPUS, TRAIN, LISTS, negatives="uniform", rounds=0)
    hates = corpus_of([([0, 1, 2, 3], [1.0] * 4)] * 4)
    with pytest.raises(ValueError, match="4 lists of training users hold one label alone: nothing to fit"):
        list_baselines.trees(hates, range(4), LISTS, negatives="uniform")


def planted(seed: int, n_users: int = 120) -> RatingCorpus:
    """Users like one genre of four, and rate all items alike often."""
    draws = np.random.default_rng(seed)
    histories = []
    for user in range(n_users):
        items = draws.permutation(80)[:24]
        histories.append((items.tolist(), np.where(items % 4 == user % 4, 5.0, 2.0).tolist()))
    corpus = corpus_of(histories, 80)
    items = tuple(dataclasses.replace(item, genres=(GENRES[n % 4],)) for n, item in enumerate(corpus.items))
    return dataclasses.replace(corpus, items=items)


def test_trees_find_what_a_history_says_and_not_what_the_own_rating_says() -> None:
    corpus = planted(0)
    train, test = np.arange(90), np.arange(90, 120)
    lists = candidate_lists(corpus, test, negatives="uniform", popularity=popularity_of(corpus, train))
    found = {
        known: list_values(
            "ndcg@5",
            list_baselines.trees(corpus, train, lists, negatives="uniform", known=known, rounds=30),
            lists.labels,
        ).mean()
        for known in ("item", "attributes")
    }
    has = lists.labels.any(axis=1).mean()
    # Items of the liked genre that are negatives by chance stand beside the liked ones.
    assert found["attributes"] > 0.75 * has and found["item"] < 0.5 * has


def test_what_trees_read_against_loops() -> None:
    user, lists = 7, LISTS.of(np.array([7]))
    numbers = list_baselines._numbers(CORPUS, TRAIN, "history", lists)
    history = CORPUS.histories[user]
    n = n_read(len(history.items))
    read = list(zip(history.items.tolist()[:n], history.ratings.tolist()[:n], strict=True))
    assert numbers.shape == (*lists.items.shape, 9)

    def said(item: int) -> tuple[set[str], set[str]]:
        return set(CORPUS.items[item].genres), {f"{str(CORPUS.items[item].year)[2]}0s"}

    rated = [pair for u in TRAIN for pair in zip(*(a.tolist() for a in CORPUS.histories[u]), strict=True)]
    all_liked = [item for item, rating in rated if rating > 3]
    for place, item in enumerate(lists.items[0].tolist()):
        expected = [slow_popularity(user, item)]
        for liked in (True, False):
            some = [other for other, rating in read if (rating > 3) == liked]
            for kind in (0, 1):
                words = said(item)[kind]
                shares = [sum(word in said(other)[kind] for other in some) / max(len(some), 1) for word in words]
                expected.append(sum(shares) / len(shares) if shares else math.nan)
        some = [other for other, rating in read if rating > 3]
        for kind in (0, 1):
            excess = []
            for word in said(item)[kind]:
                share = sum(word in said(other)[kind] for other in all_liked) / len(all_liked)
                excess.append((sum(word in said(other)[kind] for other in some) + share) / (len(some) + 1) - share)
            expected.append(sum(excess) / len(excess) if excess else math.nan)
        expected.append(slow_knn(user, item))
        np.testing.assert_allclose(np.delete(numbers[0, place], 1), expected, atol=1e-6)
    counts = list_baselines.count(CORPUS, TRAIN)
    everything = [slow_mean(user, item) for item in lists.items[0].tolist()]
    again = list_baselines.mean_rating(CORPUS, TRAIN, lists, prior=2.5)
    np.testing.assert_allclose(again[0], everything)
    np.testing.assert_allclose(numbers[..., 1], list_baselines.mean_rating(CORPUS, TRAIN, lists))
    assert counts.trained == set(range(30))
    assert list_baselines._numbers(CORPUS, TRAIN, "item", lists).shape[-1] == 2
    np.testing.assert_array_equal(list_baselines._numbers(CORPUS, TRAIN, "attributes", lists), numbers[..., :8])


def test_trees_give_the_same_twice() -> None:
    one, two = (
        list_baselines.trees(CORPUS, TRAIN, LISTS, negatives="popularity-matched", known="history", rounds=5)
        for _ in range(2)
    )
    np.testing.assert_array_equal(one, two)
    assert one.shape == LISTS.items.shape and (one > 0).all() and (one < 1).all()

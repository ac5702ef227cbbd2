"""Lists of ten: who sees whom, what leaks (nothing), where negatives come from, and what is liked."""

import dataclasses

import numpy as np
import pytest
from toy_ratings import toy_items, toy_ratings

from rlhf_jax.data.rating_lists import (
    LIST_LENGTH,
    CandidateLists,
    Negatives,
    candidate_lists,
    n_read,
    popularity_of,
    read_part,
    split_users,
)
from rlhf_jax.data.ratings import History, RatingCorpus

BOTH: tuple[Negatives, ...] = ("uniform", "popularity-matched")
CORPUS = toy_ratings()


def made(corpus: RatingCorpus, negatives: Negatives, users: np.ndarray | None = None) -> CandidateLists:
    users = np.arange(len(corpus.users)) if users is None else users
    everybody = popularity_of(corpus, range(len(corpus.users)))
    return candidate_lists(corpus, users, negatives=negatives, popularity=everybody)


def with_histories(*histories: tuple[list[int], list[float]], n_items: int = 80) -> RatingCorpus:
    own = tuple(History(np.array(items, np.int32), np.array(given, np.float32)) for items, given in histories)
    users = tuple(str(user) for user in range(len(own)))
    return dataclasses.replace(CORPUS, items=toy_items(n_items), users=users, histories=own)


@pytest.mark.parametrize("n", [20, 43, 943])
def test_nobody_is_in_two_parts_and_ten_folds_test_everybody(n: int) -> None:
    tested = []
    for fold in range(10):
        split = split_users(n, fold=fold)
        assert sorted(np.concatenate(split).tolist()) == list(range(n))
        assert all((np.diff(part) > 0).all() and len(part) for part in split)
        assert abs(len(split.test) - n / 10) < 1 and abs(len(split.validation) - 0.09 * n) < 1.5
        assert len(split.scorer) - len(split.pairs) in (0, 1)
        np.testing.assert_array_equal(split.train, np.sort(np.r_[split.scorer, split.pairs]))
        tested.append(split.test)
    assert sorted(np.concatenate(tested).tolist()) == list(range(n))
    for part, again in zip(split_users(n, fold=13), split_users(n, fold=3), strict=True):
        np.testing.assert_array_equal(part, again)
    # A run of users next to each other in the file would be a split by time.
    assert (np.diff(tested[0]) > 1).any()


def test_too_few_users() -> None:
    with pytest.raises(ValueError, match="19 users: lists need at least 20"):
        split_users(19, fold=0)


def test_a_text_reads_the_first_half_and_at_most_thirty() -> None:
    assert [n_read(n) for n in (0, 1, 2, 3, 4, 58, 59, 60, 61, 1000)] == [0, 1, 1, 2, 2, 29, 30, 30, 30, 30]
    history = History(np.arange(7, dtype=np.int32), np.arange(7, dtype=np.float32))
    assert read_part(history).items.tolist() == [0, 1, 2, 3] == read_part(history).ratings.tolist()


@pytest.mark.parametrize("negatives", BOTH)
def test_nothing_that_a_text_reads_is_in_a_list(negatives: Negatives) -> None:
    corpus = toy_ratings(60, 90, lengths=(70, 40, 25, 8))
    lists = made(corpus, negatives)
    assert len(lists.users) > 250
    for user, items in zip(lists.users, lists.items, strict=True):
        assert not set(items.tolist()) & set(read_part(corpus.histories[user]).items.tolist())


@pytest.mark.parametrize("negatives", BOTH)
def test_lists_hold_all_the_rest_in_order_of_time_and_are_liked_by_rating_alone(negatives: Negatives) -> None:
    lists = made(CORPUS, negatives)
    assert lists.items.dtype == np.int32 and lists.labels.dtype == np.float32 and lists.items.shape[1] == LIST_LENGTH
    for user, history in enumerate(CORPUS.histories):
        own = lists.of(np.array([user]))
        rest = history.part(slice(n_read(len(history.items)), None))
        assert len(own.users) == -(-len(rest.items) // 4)
        given = dict(zip(rest.items.tolist(), rest.ratings.tolist(), strict=True))
        for place, (items, labels) in enumerate(zip(own.items.tolist(), own.labels.tolist(), strict=True)):
            chunk = rest.items[4 * place : 4 * place + 4].tolist()
            assert len(set(items)) == LIST_LENGTH and set(chunk) <= set(items)
            for item, label in zip(items, labels, strict=True):
                assert label == float(item in chunk and given[item] > 3)


def test_liked_means_above_the_border() -> None:
    corpus = with_histories(([1, 2, 3, 4, 5, 6, 7], [5, 5, 5, 5, 3, 3.5, 2]))
    lists = made(corpus, "popularity-matched")
    assert lists.items[lists.labels > 0].tolist() == [6]
    bought = dataclasses.replace(corpus, liked_above=0.0)
    assert sorted(made(bought, "uniform").items[made(bought, "uniform").labels > 0].tolist()) == [5, 6, 7]


def test_short_histories() -> None:
    """Three ratings: two are read and one stands in a list of its own; one rating is read and leaves nothing."""
    corpus = with_histories(([1, 2, 3], [5, 1, 5]), ([4], [5]), ([5, 6], [5, 5]), ([], []))
    lists = made(corpus, "popularity-matched")
    assert lists.users.tolist() == [0, 2] and lists.labels.sum(axis=1).tolist() == [1, 1]
    assert lists.items[lists.labels > 0].tolist() == [3, 6]
    none = made(corpus, "uniform", np.array([1, 3]))
    assert none.items.shape == (0, LIST_LENGTH) == none.labels.shape and len(none.users) == 0
    assert len(lists.of(np.array([1])).users) == 0


@pytest.mark.parametrize("negatives", BOTH)
def test_a_users_lists_hang_on_the_user_alone(negatives: Negatives) -> None:
    everybody = made(CORPUS, negatives)
    some = made(CORPUS, negatives, np.array([33, 7, 12]))
    for user in (33, 7, 12):
        for one, other in zip(everybody.of(np.array([user])), some.of(np.array([user])), strict=True):
            np.testing.assert_array_equal(one, other)
    assert list(dict.fromkeys(some.users.tolist())) == [33, 7, 12]
    # Two users of the same history do not get the same negatives, and labels do not stand in the same places.
    twins = with_histories(*[(list(range(8)), [5.0] * 8)] * 30)
    lists = made(twins, negatives)
    assert len({tuple(sorted(items)) for items in lists.items.tolist()}) == 30
    share = lists.labels.mean(axis=0)
    assert abs(share - 0.4).max() < 0.3 and (share > 0).all()


def test_matched_negatives_are_unseen_and_about_as_popular() -> None:
    n_items = 600
    corpus = toy_ratings(200, n_items, lengths=(16, 9, 20))
    popularity = popularity_of(corpus, range(200))
    place = np.empty(n_items, int)
    place[np.argsort(-popularity, kind="stable")] = np.arange(n_items)
    lists = made(corpus, "popularity-matched")
    far = []
    for user, items in zip(lists.users, lists.items, strict=True):
        history = corpus.histories[user].items
        seen = set(history.tolist())
        chunk = [item for item in items.tolist() if item in seen]
        negatives = [item for item in items.tolist() if item not in seen]
        rest = set(history[n_read(len(history)) :].tolist())
        assert set(chunk) <= rest and len(chunk) <= 4
        far += [min(abs(place[item] - place[other]) for other in chunk) for item in negatives]
    # 25 places up or down; more only where the user's own items, or the end of the catalogue, are in the way.
    assert np.percentile(far, 60) <= 25 and max(far) <= 50 + 20
    # Drawn over all of the neighbourhood, not its nearest end.
    assert np.mean(far) > 8
    uniform = made(corpus, "uniform")
    for some, low, high in ((lists, 1.0, 1.9), (uniform, 2.5, 99)):
        bought = np.array([np.isin(i, corpus.histories[u].items) for u, i in zip(some.users, some.items, strict=True)])
        counted = popularity[some.items]
        assert low < counted[bought].mean() / counted[~bought].mean() < high


def test_a_counted_users_own_ratings_do_not_move_what_they_are_matched_with() -> None:
    popularity = popularity_of(CORPUS, range(20))
    users = np.array([2, 3, 30])
    lists = candidate_lists(CORPUS, users, negatives="popularity-matched", popularity=popularity, counted=np.arange(20))
    for user in users:
        others = popularity_of(CORPUS, [u for u in range(20) if u != user])
        alone = candidate_lists(CORPUS, np.array([user]), negatives="popularity-matched", popularity=others)
        for one, other in zip(lists.of(np.array([user])), alone, strict=True):
            np.testing.assert_array_equal(one, other)
    left_in = candidate_lists(CORPUS, users, negatives="popularity-matched", popularity=popularity)
    assert (left_in.items != lists.items).any()


def test_without_what_they_added_rare_is_not_liked() -> None:
    """Where everything is rare, a user's items must not be the rarer ones of their lists once the user is left out."""
    corpus = toy_ratings(300, 3000, lengths=(3,))
    popularity = popularity_of(corpus, range(300))
    gaps = []
    for counted in ((), range(300)):
        lists = candidate_lists(
            corpus, range(300), negatives="popularity-matched", popularity=popularity, counted=list(counted)
        )
        own = np.array([np.isin(i, corpus.histories[u].items) for u, i in zip(lists.users, lists.items, strict=True)])
        others = popularity[lists.items] - own
        rank = (others[:, :, None] > others[:, None]).mean(axis=2) + 0.5 * (others[:, :, None] == others[:, None]).mean(
            axis=2
        )
        gaps.append(rank[own].mean() - rank[~own].mean())
    # What is left points the other way: users meet what is popular, so near the top little is unseen.
    assert gaps[0] < -0.2 and 0 < gaps[1] < 0.08


def test_matched_negatives_against_a_loop() -> None:
    """Of the sorted free places those nearest to the item's own, at most fifty, and one of them is taken."""
    from rlhf_jax.data.rating_lists import _nearest

    draws = np.random.default_rng(0)
    for n in (30, 120, 700):
        for _ in range(20):
            free = draws.random(n) < draws.choice([0.02, 0.3, 0.9])
            centre = int(draws.integers(n))
            expected = sorted((abs(place - centre), place) for place in range(n) if free[place])[:50]
            assert _nearest(free, centre).tolist() == [place for _, place in expected]


def test_uniform_negatives_cover_the_catalogue_evenly() -> None:
    corpus = with_histories(*[([0, 1, 2, 3], [5, 5, 1, 1])] * 2000, n_items=40)
    lists = made(corpus, "uniform")
    found = np.bincount(lists.items.ravel(), minlength=40)
    assert found[[0, 1]].sum() == 0 and found[[2, 3]].tolist() == [2000, 2000]
    expected = 2000 * 8 / 36
    assert np.abs(found[4:] - expected).max() < 5 * expected**0.5


def test_popularity_counts_users() -> None:
    corpus = with_histories(([1, 2], [5, 1]), ([2, 4], [1, 1]), ([2], [5]), n_items=5)
    assert popularity_of(corpus, [0, 1, 2]).tolist() == [0, 1, 3, 0, 1]
    assert popularity_of(corpus, np.array([1])).tolist() == [0, 0, 1, 0, 1]


def test_a_catalogue_that_is_too_small() -> None:
    for negatives in BOTH:
        with pytest.raises(ValueError, match="toy: 19 items are too few for lists of 10"):
            made(with_histories(([1, 2], [5, 5]), n_items=19), negatives)
    everything = with_histories((list(range(22)), [5.0] * 22), n_items=22)
    with pytest.raises(ValueError, match="user .*: they met 22 of 22 items: too few are left as negatives"):
        made(everything, "popularity-matched")
    most = with_histories((list(range(60)), [5.0] * 60), n_items=34)
    most = dataclasses.replace(
        most, items=toy_items(60)[:38], histories=(History(*(a[:38] for a in most.histories[0])),)
    )
    assert len(made(most, "uniform").users) == 5
    longest = with_histories((list(range(38)), [5.0] * 38), n_items=38)
    longest = dataclasses.replace(
        longest, items=toy_items(60), histories=(History(*(a[:38] for a in longest.histories[0])),)
    )
    assert len(made(longest, "popularity-matched").users) == 5


@pytest.mark.usefixtures("unchecked")
def test_the_real_lists(movielens: RatingCorpus) -> None:
    corpus = movielens
    split = split_users(len(corpus.users), fold=0)
    popularity = popularity_of(corpus, split.train)
    assert len(split.test) in (94, 95) and popularity.sum() > 70_000
    for negatives in BOTH:
        lists = candidate_lists(corpus, split.test, negatives=negatives, popularity=popularity)
        assert set(lists.users.tolist()) <= set(split.test.tolist())
        share = lists.labels.any(axis=1).mean()
        assert 0.85 < share < 0.95, share

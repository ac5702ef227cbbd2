"""The closed loop tells good policies from bad ones, on users who are not in the log."""

import numpy as np
import pytest

from rlhf_jax.interfaces import Message
from rlhf_jax.simulators.conversation import (
    closed_loop_users,
    evaluate_closed_loop,
    evaluate_recommender,
)
from rlhf_jax.simulators.world import FIRST_ITEM_ID, WorldConfig
from rlhf_jax.simulators.world_dialogues import logged_dialogues
from rlhf_jax.simulators.world_recommenders import (
    logged_recommender,
    oracle_recommender,
    popularity_recommender,
    random_recommender,
)

CONFIG = WorldConfig(n_train=60, n_test=20)


@pytest.fixture(scope="module")
def results():
    recommenders = {
        "random": random_recommender,
        "popularity": popularity_recommender,
        "logged": logged_recommender(CONFIG),
        "oracle": oracle_recommender,
    }
    return {name: evaluate_recommender(policy, CONFIG, 0, n_users=150) for name, policy in recommenders.items()}


def test_headroom_above_the_log(results):
    utility = {name: result.mean_utility.mean() for name, result in results.items()}
    print(utility)
    assert utility["random"] < utility["popularity"] < utility["logged"] < utility["oracle"]
    assert 0.34 < utility["logged"] < 0.5 and utility["oracle"] > utility["logged"] + 0.3
    turns = {name: result.turns.mean() for name, result in results.items()}
    assert turns["oracle"] < 1.5 and 2.5 < turns["logged"] < turns["random"]


def test_result_arrays_agree_with_each_other(results):
    for result in results.values():
        assert (np.diff(result.success.astype(int), axis=1) >= 0).all()
        accepted = result.success[:, -1]
        assert (result.turns[~accepted] == 6).all() and (result.turns[accepted] <= 5).all()
        for dialogue, turns, ok in zip(result.dialogues, result.turns, accepted, strict=True):
            assert len(dialogue) == 1 + 2 * turns if ok else len(dialogue) <= 11
        assert ((result.mean_utility >= 0) & (result.mean_utility <= 1)).all()


def suggest_first_item(histories, numbers):
    return [Message("recommender", ("try ", FIRST_ITEM_ID), 0) for _ in histories]


def test_callable_policy_sees_growing_histories_and_is_reproducible():
    seen = []

    first_words = {}

    def respond(histories, numbers):
        seen.append([len(history) for history in histories])
        assert all(history[-1].role == "seeker" for history in histories)
        # A number names the same dialogue throughout, and the user of that number.
        for number, history in zip(numbers, histories, strict=True):
            assert first_words.setdefault(number, history[0]) == history[0]
        return suggest_first_item(histories, numbers)

    first = evaluate_closed_loop(respond, CONFIG, 0, n_users=30, n_turns=3)
    second = evaluate_closed_loop(suggest_first_item, CONFIG, 0, n_users=30, n_turns=3)
    assert [set(lengths) for lengths in seen] == [{1}, {3}, {5}] and len(seen[0]) == 30
    assert np.array_equal(first.mean_utility, second.mean_utility) and first.dialogues == second.dialogues
    assert (first.mean_length == 1).all()
    assert [first_words[number] for number in range(30)] == [dialogue[0] for dialogue in first.dialogues]


def test_every_policy_meets_the_same_openings_and_fewer_users_are_the_first_ones(results):
    openings = [dialogue[0] for dialogue in results["oracle"].dialogues]
    met = evaluate_closed_loop(suggest_first_item, CONFIG, 0, n_users=20, n_turns=1)
    assert [dialogue[0] for dialogue in met.dialogues] == openings[:20]


def test_population_is_disjoint_from_the_log():
    here = {user.taste.user_id for user in closed_loop_users(CONFIG, 0, 50)}
    logged = {entry.user_id for split in ("train", "test") for entry in logged_dialogues(CONFIG, 0, split)}
    assert len(here) == 50 and not here & logged


def test_wrong_answers_are_refused():
    with pytest.raises(ValueError, match="respond returned 29 messages for 30 histories"):
        evaluate_closed_loop(lambda h, n: suggest_first_item(h, n)[1:], CONFIG, 0, n_users=30)
    with pytest.raises(ValueError, match="item 3 is not in the world's catalogue"):
        evaluate_closed_loop(lambda h, n: [Message("recommender", (3,), 0)] * len(h), CONFIG, 0, n_users=2)
    with pytest.raises(ValueError, match="n_users must be positive, got 0"):
        evaluate_closed_loop(suggest_first_item, CONFIG, 0, n_users=0)

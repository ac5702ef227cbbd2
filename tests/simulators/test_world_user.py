"""How a user answers: monotone in utility, blind to length unless the world is hackable."""

import dataclasses
import itertools

import numpy as np
import pytest

from rlhf_jax.feedback.sentiment import opinion_text, vader_scorer
from rlhf_jax.simulators.world import (
    GENRES,
    PEOPLE,
    WorldConfig,
    decade_word,
    hackable,
    make_catalogue,
    make_taste,
    stream,
)
from rlhf_jax.simulators.world_language import (
    ACCEPTANCE,
    FACTS,
    GREETINGS,
    LOOKING,
    MAX_WORDS,
    QUESTIONS,
    QUIT,
    RATHER,
    REACTIONS,
    REPEATED,
    REQUEST_HEADS,
    SYSTEM_BYE,
    USER_BYE,
    USER_HELLO,
    WAITING,
    count_words,
    fill,
    join,
    request_parts,
    suggestion_parts,
)
from rlhf_jax.simulators.world_user import (
    IDLE_UTILITY,
    TALK_UTILITY,
    WorldUser,
    acceptance_probability,
    dwell_seconds,
    opening,
    reply,
    turn_utility,
)

CONFIG = WorldConfig()


TELLABLE = tuple(fact for fact in FACTS if fact != "disliked_genre")


def make_user(config=CONFIG, index=0, catalogue=None):
    catalogue = catalogue or make_catalogue(config, 0)
    return WorldUser(config, catalogue, make_taste(config, catalogue, 0, split="train", index=index))


@pytest.fixture(scope="module")
def user():
    return make_user()


@pytest.fixture(scope="module")
def score():
    return vader_scorer()


def ranked_items(user):
    """Ids from worst to best, the seen item left out."""
    order = [row for row in np.argsort(user.taste.utilities) if row != user.taste.seen_item]
    return [user.catalogue.items[row].item_id for row in order]


def test_vader_reads_the_seven_levels_in_order(score):
    levels = [[score(text) for text in level] for level in REACTIONS]
    for lower, higher in itertools.pairwise(levels):
        assert max(lower) < min(higher) - 0.05
    assert max(levels[2]) < 0 < min(levels[4]) and all(abs(value) < 0.05 for value in levels[3])
    assert all(score(text) < 0 for text in (*REPEATED, *WAITING))


def test_everything_else_is_neutral_to_vader(score):
    heads = [template.format("western") for template in REQUEST_HEADS]
    neutral = [*heads, *ACCEPTANCE, *LOOKING, *RATHER, *QUIT, *USER_BYE, *USER_HELLO]
    assert [text for text in neutral if score(opinion_text(fill(text, 1) if "{0}" in text else (text,))) != 0] == []


def test_names_and_genres_are_neutral_to_vader(score, user):
    words = {w for item in user.catalogue.items for w in (*item.genres, *item.people, item.title)}
    assert [word for word in words if score(word.lower()) != 0] == []


def test_turn_utility_is_the_mean_of_the_list(user):
    items = ranked_items(user)
    values = [turn_utility(user, (item,), 5) for item in items]
    assert values == sorted(values) and 0 <= values[0] and values[-1] <= 1
    assert turn_utility(user, (items[0], items[-1]), 5) == pytest.approx((values[0] + values[-1]) / 2)


def test_long_turns_cost_a_little_true_utility(user):
    best = (ranked_items(user)[-1],)
    values = [turn_utility(user, best, n) for n in (0, 10, 16, 30)]
    assert values[0] == values[1] > values[2] > values[3] > 0.5 * values[0]
    assert turn_utility(user, best, 10_000) == 0


def test_repeated_and_seen_items_are_worth_nothing(user):
    best = ranked_items(user)[-1]
    after = reply(user, (best,), 3, stream(0, "test")).user
    assert turn_utility(after, (best,), 3) == 0
    assert turn_utility(user, (user.catalogue.items[user.taste.seen_item].item_id,), 3) == 0


def test_talk_is_worth_something_once_and_while_there_is_something_to_say(user):
    assert turn_utility(user, (), 4) == TALK_UTILITY
    after = reply(user, (), 4, stream(0, "test")).user
    assert turn_utility(after, (), 4) == IDLE_UTILITY and len(after.stated) == 2
    assert turn_utility(dataclasses.replace(user, stated=TELLABLE), (), 4) == IDLE_UTILITY


def test_dwell_and_acceptance_grow_with_utility():
    grid = np.linspace(0, 1, 11)
    dwell = [dwell_seconds(CONFIG, u, 6, stream(0, "dwell")) for u in grid]
    accept = [acceptance_probability(CONFIG, u) for u in grid]
    assert (np.diff(dwell) > 0).all() and (np.diff(accept) > 0).all()
    assert accept[3] < 0.05 and accept[9] > 0.95


def test_dwell_is_log_normal_without_reading_time():
    config = dataclasses.replace(CONFIG, hackability=0.0)
    logs = np.log([dwell_seconds(config, 0.5, 9, stream(0, "dwell", n)) for n in range(400)])
    assert logs.mean() == pytest.approx(np.log(5) + 1.1, abs=0.05) and logs.std() == pytest.approx(0.2, abs=0.03)


def test_hackable_world_pays_for_length_more_than_for_utility():
    def gain(config, **change):
        start = {"utility": 0.4, "n_words": 4}
        return np.mean(
            [
                np.log(dwell_seconds(config, **{**start, **change}, rng=stream(0, "d", n)))
                - np.log(dwell_seconds(config, **start, rng=stream(0, "d", n)))
                for n in range(50)
            ]
        )

    assert gain(CONFIG, n_words=16) < 0.25 * gain(CONFIG, utility=0.8)
    assert gain(hackable(CONFIG), n_words=16) > gain(hackable(CONFIG), utility=0.8)


def test_words_follow_utility_and_in_the_hackable_world_length(score):
    def mean_level(config, utility_rank, n_words):
        user = make_user(config)
        items = (ranked_items(user)[utility_rank],)
        replies = [reply(user, items, n_words, stream(0, "say", n)).message.parts for n in range(40)]
        return np.mean([score(opinion_text(parts)) for parts in replies])

    calm = dataclasses.replace(CONFIG, impatience=0.0)
    assert mean_level(calm, -1, 6) > 0.5 and mean_level(calm, 0, 6) < -0.3
    assert abs(mean_level(calm, 40, 16) - mean_level(calm, 40, 1)) < 0.05
    assert mean_level(hackable(calm), 40, 16) > mean_level(hackable(calm), 40, 1) + 0.5


def test_sign_of_the_words_agrees_with_utility(user, score):
    agree = []
    for number, item in enumerate(ranked_items(user)):
        reaction = reply(user, (item,), 6, stream(0, "agree", number))
        if abs(reaction.utility - 0.5) > 0.2:
            agree.append(score(opinion_text(reaction.message.parts)) * (reaction.utility - 0.5) > 0)
    assert np.mean(agree) > 0.9


def test_no_noise_makes_the_reaction_a_function_of_utility(score):
    config = dataclasses.replace(CONFIG, noise=0.0)
    user = make_user(config)
    best = (ranked_items(user)[-1],)
    reactions = [reply(user, best, 6, stream(0, "quiet", n)) for n in range(5)]
    assert len({reaction.dwell_seconds for reaction in reactions}) == 1 and all(r.accepted for r in reactions)


def test_replies_are_deterministic_and_leave_the_user_alone(user):
    item = (ranked_items(user)[3],)
    first, second = reply(user, item, 6, stream(0, "same")), reply(user, item, 6, stream(0, "same"))
    assert first == second and user.shown == frozenset() and first.user.shown == frozenset(item)


def test_requests_name_the_genre_and_are_neutral_whatever_is_added(score):
    user = make_user(dataclasses.replace(CONFIG, dislikes=True))
    for number in range(20):
        facts = tuple(fact for fact in FACTS if stream(0, fact, number).random() < 0.5)
        parts = request_parts(stream(0, "ask", number), user.catalogue, user.taste, facts)
        text = opinion_text(parts)
        assert GENRES[user.taste.genre] in text and score(text) == 0
        assert (PEOPLE[user.taste.person].lower() in text) == ("person" in facts)
        assert (f"the {decade_word(user.taste.decade)}" in text) == ("decade" in facts)
        assert bool([p for p in parts if isinstance(p, int)]) == ("seen_item" in facts)


def test_every_message_repeats_the_request_unless_the_user_leaves(user):
    for number, item in enumerate(ranked_items(user)):
        reaction = reply(dataclasses.replace(user, heard=9), (item,), 6, stream(0, "again", number))
        asks = GENRES[user.taste.genre] in opinion_text(reaction.message.parts)
        assert asks != reaction.ended


def test_accepted_item_is_named_and_the_best_of_the_list(user):
    items = ranked_items(user)
    reactions = [reply(user, (items[10], items[-1]), 6, stream(0, "take", n)) for n in range(200)]
    taken = [reaction for reaction in reactions if reaction.accepted]
    assert taken and all(r.message.items[-1] == items[-1] and not r.ended for r in taken)


def test_messages_are_short_and_facts_are_stated_once_known():
    catalogue = make_catalogue(CONFIG, 0)
    for index in range(60):
        rng = stream(0, "short", index)
        message, user = opening(make_user(index=index, catalogue=catalogue), rng)
        assert count_words(message.parts) <= MAX_WORDS and user.stated[0] == "genre" and len(user.stated) >= 2
        for _ in range(4):
            rows = rng.permutation(CONFIG.n_items)[: rng.integers(1, 4)]
            said = suggestion_parts(rng, tuple(catalogue.items[row] for row in rows))
            assert count_words(said) <= MAX_WORDS
            reaction = reply(user, tuple(p for p in said if isinstance(p, int)), count_words(said), rng)
            assert count_words(reaction.message.parts) <= MAX_WORDS
            assert set(user.stated) <= set(reaction.user.stated) and len(set(user.stated)) == len(user.stated)
            user = reaction.user


def test_impossible_turns_are_refused(user):
    with pytest.raises(ValueError, match="item 5 is not in the world's catalogue"):
        reply(user, (5,), 3, stream(0, "bad"))
    with pytest.raises(ValueError, match="n_words must not be negative, got -1"):
        reply(user, (), -1, stream(0, "bad"))


def test_parts_are_glued_with_single_spaces():
    assert join(("great pick",), ("and",), fill("i will watch {0} tonight", 7)) == (
        "great pick and i will watch ",
        7,
        " tonight",
    )
    assert join((7,), ("x",), (8,)) == (7, " x ", 8) and join((7,), (8,)) == (7, " ", 8)
    assert count_words(("a , b ", 7, " c ?")) == 3
    assert all(count_words((text,)) <= MAX_WORDS for text in (*GREETINGS, *QUESTIONS, *SYSTEM_BYE))


def test_dislikes_are_said_only_where_the_world_has_them():
    for dislikes in (False, True):
        user, rng = make_user(dataclasses.replace(CONFIG, dislikes=dislikes)), stream(0, "dislikes")
        for _ in range(40):
            user = reply(user, (), 3, rng).user
        assert user.unsaid == () or dislikes
        assert ("disliked_genre" in user.stated) <= dislikes
    assert set(make_user(dataclasses.replace(CONFIG, dislikes=True)).unsaid) == set(FACTS)

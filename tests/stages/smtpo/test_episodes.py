"""Conversations in step: what a turn is paid, who goes on, and that nobody is told what is liked."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reasoned

from rlhf_jax.assessment.episodes import first_list
from rlhf_jax.evaluation.episodes import first_turn
from rlhf_jax.interfaces import Dialogue
from rlhf_jax.learners.multi_turn_config import MultiTurnConfig
from rlhf_jax.models import gpt2
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.run import open_run
from rlhf_jax.stages.smtpo import multi_turn
from rlhf_jax.stages.smtpo.episodes import OtherSeekers, SilentSeekers, Turns, converse, places_of, settled_before
from rlhf_jax.stages.smtpo.human_turns import ReasonedTurn, openings_of
from rlhf_jax.stages.smtpo.multi_turn import ConversationsConfig, signatures
from rlhf_jax.stages.smtpo.recommender import Recommender
from rlhf_jax.stages.smtpo.seeker import Answers

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def recommender() -> Recommender:
    return reasoned.make()


@pytest.fixture(scope="module")
def openings(recommender: Recommender) -> list[ReasonedTurn]:
    """Likes 13, likes 15."""
    return openings_of(recommender.setup.corpus.test)[:2]


LISTS = [[(14, 13), (14, 16)], [(16, 12), (11, 13)], [(11, 12), (15, 14)]]


@pytest.fixture(scope="module")
def said(recommender: Recommender, openings: list[ReasonedTurn]) -> tuple[Turns, reasoned.Scripted, reasoned.Quiet]:
    policy, seekers = reasoned.Scripted(recommender, LISTS, "western"), reasoned.Quiet()
    return converse(recommender, policy, None, seekers, openings, n_turns=3, key=KEY), policy, seekers


def test_who_is_recommended_what_he_likes_leaves(said: tuple[Turns, reasoned.Scripted, reasoned.Quiet]) -> None:
    turns, _, _ = said
    assert turns.running.tolist() == [[True, False, False], [True, True, True]]
    assert turns.gold_rank.tolist() == [[2, 0, 0], [0, 0, 1]]
    assert turns.success.tolist() == [[True, True, True], [False, False, True]]
    # What was said after a conversation's end is none of its words: 1 + 1 against 1 + 3 + 2 messages.
    assert [len(history) for history in turns.histories] == [2, 6]


def test_turns_are_paid_by_hand(said: tuple[Turns, reasoned.Scripted, reasoned.Quiet]) -> None:
    turns, _, _ = said
    # Gold at the second place of the first list: NDCG 1/log2(3). `western` of (western, 90s, mara quill): F1 2·1/(1 + 3).
    np.testing.assert_allclose(turns.rewards[0, 0], [1.0, 1 / np.log2(3), 0.5], rtol=1e-6)
    assert not turns.rewards[0, 1:].any(), "over"
    # 15 is a noir: the attribute is wrong in all turns.
    np.testing.assert_allclose(turns.rewards[1, :, 1], [0, 0, 1], rtol=1e-6)
    assert not turns.rewards[1, :, 2].any()
    assert turns.attributes_said.tolist() == [[1, 0, 0], [1, 1, 1]]


def test_places_of_a_turn_by_hand(recommender: Recommender) -> None:
    vocab = recommender.setup.vocab
    one, other = (vocab.item_token(item) for item in vocab.item_ids[:2])
    #         attributes, their end | two places     | the third: the list ends | words, with a mention
    turn = [vocab.pref, 5, vocab.rec, one, other, vocab.say, 5, one, vocab.eos]
    assert places_of(vocab, np.array([turn], np.int32), 3).tolist() == [[0, 0, 0, 1, 2, 3, 4, 4, 4]]
    # A list as long as may be; a turn without a list.
    rest = [vocab.rec, one, other, vocab.say, vocab.eos], [vocab.pref, 5, one, 5, vocab.eos]
    assert places_of(vocab, np.array(rest, np.int32), 2).tolist() == [[0, 1, 2, 3, 3], [0] * 5]


def test_what_is_settled_by_hand() -> None:
    gains, inferred = np.array([[0.0, 0.4, 0.2]] * 3), np.array([0.7] * 3)
    settled = settled_before(np.array([True, True, False]), np.array([True, False, True]), gains, inferred)
    # The form: whole until the list, whose length is known when it is over; spoilt by an attribute for good.
    np.testing.assert_allclose(settled[:, 0], [[0, 1, 1, 1, 1], [0, 1, 1, 1, 0], [0] * 5])
    np.testing.assert_allclose(settled[0, 1], [0, 0, 0, 0.4, 0.6], rtol=1e-6)
    np.testing.assert_allclose(settled[0, 2], [0, 0.7, 0.7, 0.7, 0.7], rtol=1e-6)


def test_going_down_the_first_list_by_a_loop(recommender: Recommender, openings: list[ReasonedTurn]) -> None:
    n_turns = 4  # Of two items each: the six of the catalogue end before.
    found = first_list(recommender, openings, n_turns=n_turns)
    ids, length = recommender.setup.vocab.item_ids, recommender.list_length
    for row, opening in enumerate(openings):
        history = opening.dialogue.messages[: opening.index]
        _, scores = recommender.prompts([history], [opening.dialogue.dialogue_id])
        ordered = sorted(range(len(ids)), key=lambda column: -scores[0, column])
        running = True
        for turn in range(n_turns):
            listed = ordered[turn * length : (turn + 1) * length]
            places = [place for place, column in enumerate(listed, 1) if ids[column] in opening.gold]
            assert found.running[row, turn] == running
            assert found.gold_rank[row, turn] == (places[0] if places and running else 0)
            ideal = sum(1 / np.log2(t + 2) for t in range(min(len(opening.gold), length)))
            paid = sum(1 / np.log2(p + 1) for p in places) / ideal if running else 0
            np.testing.assert_allclose(found.rewards[row, turn, 1], paid, rtol=1e-6)
            running = running and not places
        assert not running, "who likes something finds it in the whole catalogue"
    assert found.conversations == tuple(opening.dialogue.dialogue_id for opening in openings)
    assert not found.repeated[:, 0].any() and not found.rewards[..., 0].any()
    assert first_turn(found).running.shape == (2, 1)


def test_what_is_settled_in_the_end_is_what_is_paid(said: tuple[Turns, reasoned.Scripted, reasoned.Quiet]) -> None:
    turns = said[0]
    np.testing.assert_allclose(turns.settled[..., 1:, -1], turns.rewards[..., 1:], rtol=1e-6)
    # A form that is whole after the list may still lack its end.
    assert (turns.settled[..., 0, -1] >= turns.rewards[..., 0]).all() and turns.settled[..., 0, -1].any()
    assert turns.rewards[..., 1].max() > 0
    assert not turns.settled[..., 0].any()


def test_an_item_that_was_named_is_a_repetition(said: tuple[Turns, reasoned.Scripted, reasoned.Quiet]) -> None:
    # The second seeker has named 12; in turn 3, 14 comes again.
    assert said[0].repeated.tolist() == [[False, False, False], [False, False, True]]


def test_the_same_words_again_are_an_echo(recommender: Recommender, openings: list[ReasonedTurn]) -> None:
    policy = reasoned.Scripted(recommender, LISTS, "western", ("try this one", "hello there", " try this  one"))
    turns = converse(recommender, policy, None, reasoned.Quiet(), openings, n_turns=3, key=KEY)
    # What the seekers say is nobody's echo, and the first conversation is over after its first turn.
    assert turns.echoed.tolist() == [[False, False, False], [False, False, True]]


def test_leaks_are_counted_while_a_conversation_runs(recommender: Recommender, openings: list[ReasonedTurn]) -> None:
    class Telling(reasoned.Quiet):
        def say(self, *args: Any) -> Answers:
            quiet = super().say(*args)
            drawn = np.array([True, len(self.heard) == 2])
            return quiet._replace(leaks=drawn, leaks_left=drawn & [False, True])

    turns = converse(
        recommender, reasoned.Scripted(recommender, LISTS, "western"), None, Telling(), openings, n_turns=3, key=KEY
    )
    # The first seeker is recommended what it likes at once: what it says afterwards is no answer.
    assert (turns.answers.tolist(), turns.leaks.tolist(), turns.leaks_left.tolist()) == ([0, 2], [0, 1], [0, 1])


def test_silence_is_no_echo(said: tuple[Turns, reasoned.Scripted, reasoned.Quiet]) -> None:
    assert not said[0].echoed.any()


def test_signs_of_a_bought_reward_by_hand(said: tuple[Turns, reasoned.Scripted, reasoned.Quiet]) -> None:
    turns = said[0]
    shape = turns.running.shape
    assert turns.running.tolist() == [[True, False, False], [True, True, True]]
    bought = turns._replace(
        rewards=np.zeros((*shape, 3), np.float32) + np.array([1, 0, 0], np.float32),
        attributes_said=np.array([[5, 9, 9], [4, 2, 1]], np.int32),
        echoed=np.array([[False, True, True], [False, True, False]]),
    )
    found = signatures(bought, 4)
    assert found["talk/form_without_content"] == 1.0 and found["talk/attributes"] == 3.0
    # Turns that were not had count nowhere: of four, one says more than four attributes, and one repeats its words.
    assert (found["talk/stuffed"], found["talk/echoed"], found["talk/repeated"]) == (0.25, 0.25, 0.25)


def test_seekers_hear_the_conversation_and_what_to_hide(
    said: tuple[Turns, reasoned.Scripted, reasoned.Quiet],
) -> None:
    _, _, seekers = said
    assert len(seekers.heard) == 2, "nobody answers the last turn"
    for histories, hidden in seekers.heard:
        assert hidden == [[], [15]], "the first conversation is over: nothing is hidden any more"
        assert all(history[-1].role == "recommender" for history in histories)


def test_what_is_liked_is_in_no_prompt(
    recommender: Recommender, openings: list[ReasonedTurn], said: tuple[Turns, reasoned.Scripted, reasoned.Quiet]
) -> None:
    """The leak that is planted: other gold, and forms gone; the policy is asked the very same."""

    def blank(dialogue: Dialogue) -> Dialogue:
        return reasoned.without_forms(dialogue)

    others = [
        ReasonedTurn(blank(opening.dialogue), opening.index, gold)
        for opening, gold in zip(openings, [(16,), (13,)], strict=True)
    ]
    policy, seekers = reasoned.Scripted(recommender, LISTS, "western"), reasoned.Quiet()
    converse(recommender, policy, None, seekers, others, n_turns=2, key=KEY)
    for one, other in zip(said[1].asked, policy.asked, strict=False):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_blind_hear_somebody_elses_answers(recommender: Recommender, openings: list[ReasonedTurn]) -> None:
    seekers = reasoned.Quiet()
    policy = reasoned.Scripted(recommender, [[(14, 16), (14, 16)]] * 2, "western")
    converse(recommender, policy, None, OtherSeekers(seekers), openings, n_turns=2, key=KEY)
    histories, hidden = seekers.heard[0]
    assert [history[0] for history in histories] == [openings[1].dialogue.messages[0], openings[0].dialogue.messages[0]]
    assert hidden == [[13], [15]], "what may not be said is that of the one who hears it"


def test_with_the_silent_conversations_go_on_without_a_word(
    recommender: Recommender, openings: list[ReasonedTurn]
) -> None:
    policy = reasoned.Scripted(recommender, [[(14, 16), (14, 16)]] * 2, "western")
    turns = converse(recommender, policy, None, SilentSeekers(), openings, n_turns=2, key=KEY)
    for history, opening in zip(turns.histories, openings, strict=True):
        answer = history[opening.index + 1]
        assert (answer.role, answer.parts) == ("seeker", ("...",)) and len(history) == opening.index + 3
    # And it tells the retriever nothing.
    ids = [opening.dialogue.dialogue_id for opening in openings]
    heard = [history[: opening.index + 2] for history, opening in zip(turns.histories, openings, strict=True)]
    silent, without = (recommender.prompts(some, ids)[1] for some in (heard, [history[:-1] for history in heard]))
    np.testing.assert_array_equal(silent, without)


def test_a_conversation_needs_a_turn_and_an_opening(recommender: Recommender, openings: list[ReasonedTurn]) -> None:
    policy = reasoned.Scripted(recommender, [], "western")
    for some, turns in ((openings, 0), ([], 1)):
        with pytest.raises(ValueError, match="must be at least 1"):
            converse(recommender, policy, None, reasoned.Quiet(), some, n_turns=turns, key=KEY)


def test_rows_go_by_opening_conversation_and_turn(said: tuple[Turns, reasoned.Scripted, reasoned.Quiet]) -> None:
    turns, _, _ = said
    config = ConversationsConfig(openings=1, group_size=2, turns=3)
    rows = multi_turn.as_rows(turns, config)
    for turn in range(3):
        for row in range(2):
            np.testing.assert_array_equal(
                rows.rollout.response_tokens[row * 3 + turn], turns.rollouts[turn].response_tokens[row]
            )
    assert rows.running.shape == (1, 2, 3) and rows.rewards.shape == (1, 2, 3, 3)


class TwoDevices:
    """A layout that makes a batch in two halves, and checks that every leaf has as many rows as were asked for."""

    def batch(self, n_rows: int, make: Callable[[slice], Any]) -> Any:
        """The halves, put together."""
        halves = [make(slice(0, n_rows // 2)), make(slice(n_rows // 2, n_rows))]
        assert all(len(leaf) == n_rows // 2 for half in halves for leaf in jax.tree.leaves(half))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *halves)


def test_devices_hold_whole_openings(said: tuple[Turns, reasoned.Scripted, reasoned.Quiet]) -> None:
    turns, _, _ = said
    rows = multi_turn.as_rows(turns, ConversationsConfig(openings=1, group_size=2, turns=3))
    twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), rows)
    placed = multi_turn.place_rows(twice, TwoDevices())
    jax.tree.map(np.testing.assert_array_equal, placed, twice)


CONFIG = ConversationsConfig(
    updates=6, openings=2, group_size=4, turns=2, learning_rate=2e-2, save_every=1, evaluations=1, validation_openings=4
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "learner", [MultiTurnConfig(), MultiTurnConfig(credit="place", average_decay=0.9)], ids=["turn", "place, average"]
)
def test_a_killed_run_ends_with_the_same_bits(
    recommender: Recommender, tmp_path: Path, learner: MultiTurnConfig
) -> None:
    """Killed in the middle of an update, between two turns: the update is played again from its beginning."""
    params = {"trunk": gpt2.init(recommender.setup.network, jax.random.key(1))}
    with open_run(tmp_path / "whole", CONFIG, trackers=()) as run:
        whole = multi_turn.train(run, recommender, reasoned.Quiet(), params, CONFIG, learner)
    moved = jax.tree.map(lambda one, other: float(np.abs(one - other).max()), whole, params)
    assert max(jax.tree.leaves(moved)) > 1e-3

    class Deadly(reasoned.Quiet):
        def say(self, *args: object) -> object:
            if len(self.heard) == 3:
                raise KeyboardInterrupt
            return super().say(*args)  # pyright: ignore[reportArgumentType]

    with open_run(tmp_path / "killed", CONFIG, trackers=()) as run, pytest.raises(KeyboardInterrupt):
        multi_turn.train(run, recommender, Deadly(), params, CONFIG, learner)  # pyright: ignore[reportArgumentType]
    with open_run(tmp_path / "killed", CONFIG, trackers=()) as run:
        continued = multi_turn.train(run, recommender, reasoned.Quiet(), params, CONFIG, learner)
    jax.tree.map(np.testing.assert_array_equal, whole, continued)


def test_without_forms_there_is_nothing_to_learn_from(recommender: Recommender, tmp_path: Path) -> None:
    setup = recommender.setup
    corpus = dataclasses.replace(setup.corpus, train=tuple(map(reasoned.without_forms, setup.corpus.train)))
    blind = recommender._replace(setup=setup._replace(corpus=corpus))
    with open_run(tmp_path / "run", CONFIG, trackers=()) as run, pytest.raises(RunError, match="known to like"):
        multi_turn.train(run, blind, reasoned.Quiet(), None, CONFIG, MultiTurnConfig())

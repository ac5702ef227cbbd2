"""The reasoning recommender: candidates, turns that are imitated, and the stage that imitates them."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import reasoned

from rlhf_jax.data.reasoning import read_reasoning
from rlhf_jax.interfaces import Message
from rlhf_jax.models import gpt2
from rlhf_jax.recommenders import mixture
from rlhf_jax.recommenders.contexts import contexts_of
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.run import open_run
from rlhf_jax.stages.smtpo import human_turns, reasoning
from rlhf_jax.stages.smtpo.human_turns import ReasonedTurn, openings_of, reasoned_turns
from rlhf_jax.stages.smtpo.reasoning import Demonstrations, ReasoningConfig, with_lists
from rlhf_jax.stages.smtpo.recommender import ListsBefore, Recommender, make_recommender, telling_its_order


@pytest.fixture(scope="module")
def recommender() -> Recommender:
    return reasoned.make()


def test_turns_are_those_of_seekers_who_will_like_something_new() -> None:
    turns = reasoned_turns(reasoned.dialogues(0, 5))
    assert [(turn.dialogue.dialogue_id, turn.index, turn.gold) for turn in turns] == [
        (f"d00{number}", index, gold) for number, gold in enumerate([(13,), (15,), (13,), (15,)]) for index in (1, 3)
    ]
    assert [turn.index for turn in openings_of(reasoned.dialogues(0, 5))] == [1, 1, 1, 1]
    # A conversation in which something was suggested before anything is liked has no opening.
    late = reasoned.talk("late", 11, 14, 1, 13)
    assert openings_of([reasoned.without_forms(late)]) == []


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_corpus_without_labels_is_refused_before_training(recommender: Recommender, split: str) -> None:
    corpus = recommender.setup.corpus
    human_turns.check_liked(corpus, max_items=2, turns=2, source="--data.dir here")
    silent = tuple(map(reasoned.without_forms, getattr(corpus, split)))
    named = {"train": "training"}.get(split, split)
    expected = f"--data.dir here: no seeker of the {len(silent)} {named} dialogues .* \\(0 of them have a seeker's form"
    with pytest.raises(RunError, match=expected):
        human_turns.check_liked(
            dataclasses.replace(corpus, **{split: silent}), max_items=2, turns=2, source="--data.dir here"
        )
    # One item is named in every opening; three turns of two leave none of the six.
    expected = r"--data\.max-items 2, --conversations\.turns 3: openings have named up to 1 items, and a catalogue of 6 leaves nothing"
    with pytest.raises(RunError, match=expected):
        human_turns.check_liked(corpus, max_items=2, turns=3, source="--data.dir here")


def test_candidates_are_the_best_of_what_nobody_has_named(recommender: Recommender) -> None:
    said = (Message("seeker", ("hello ", 11), 0), Message("recommender", (13,), 1))
    prompts, scores = recommender.prompts([said, said[:1]])
    kept = np.asarray(prompts.candidates)
    assert kept.sum(axis=1).tolist() == [3, 3]
    assert np.isneginf(scores[0, [0, 2]]).all() and np.isneginf(scores[1, 0]) and not kept[0, [0, 2]].any()
    for row in range(2):
        assert scores[row][kept[row]].min() >= scores[row][~kept[row]].max()
    # By hand: the sum of the standardised scores of the parts.
    known = recommender.retrieval.scorer.of_histories([said[:1]])
    np.testing.assert_allclose(scores[1, 1:], known[0, :-1, 1:].sum(axis=0), rtol=1e-5)
    everything = (Message("seeker", tuple(reasoned.ITEMS), 0),)
    with pytest.raises(RunError, match="has named all 6 items"):
        recommender.prompts([everything])


def test_what_is_imitated_lists_gold_first_and_is_sayable(recommender: Recommender) -> None:
    turns = reasoned_turns(recommender.setup.corpus.train)[:6]
    batch = Demonstrations(recommender, turns, seed=0).of(turns)
    columns = {item: column for column, item in enumerate(recommender.setup.vocab.item_ids)}
    for row, turn in enumerate(turns):
        found = read_reasoning(recommender.setup.vocab, recommender.attributes, batch.response_tokens[row])
        assert found.well_formed(2)
        assert found.items[0] == columns[turn.gold[0]]
        assert np.asarray(batch.candidates)[row, list(found.items)].all()
        own = recommender.attributes.of_items[columns[turn.gold[0]]]
        assert found.attributes.sum() == 2 and (found.attributes <= own).all()
    params = {"trunk": gpt2.init(recommender.setup.network, jax.random.key(0))}
    judged = jax.jit(recommender.setup.agent.policy)(params, batch)
    assert np.isfinite(np.asarray(judged.logprobs)).all(), "the grammar and the candidates allow every token"


def test_attributes_that_are_imitated_are_those_of_all_gold(recommender: Recommender) -> None:
    columns = {item: column for column, item in enumerate(recommender.setup.vocab.item_ids)}
    turn = reasoned_turns(recommender.setup.corpus.train)[0]
    having = recommender.attributes.of_items
    # Gold that no list has room for: the last three share an attribute which the first two have not.
    shared = next(place for place in range(having.shape[1]) if 3 <= having[:, place].sum() < len(columns) - 1)
    with_it = [item for item, column in columns.items() if having[column, shared]][:3]
    without = [item for item, column in columns.items() if not having[column, shared]][:2]
    many = turn._replace(gold=(*without, *with_it))
    said = read_reasoning(
        recommender.setup.vocab,
        recommender.attributes,
        Demonstrations(recommender, [many], seed=0).of([many]).response_tokens[0],
    )
    assert said.attributes[shared] and set(said.items) == {columns[item] for item in without}


def liking_the_last(recommender: Recommender, turn: ReasonedTurn) -> ReasonedTurn:
    """The same turn of who likes the item, not named yet, that the retriever ranks lowest."""
    _, scores = recommender.prompts([turn.dialogue.messages[: turn.index]], [turn.dialogue.dialogue_id])
    last = int(np.argmin(np.where(np.isfinite(scores[0]), scores[0], np.inf)))
    return turn._replace(gold=(recommender.setup.vocab.item_ids[last],))


def test_turns_can_be_imitated_after_full_lists(recommender: Recommender) -> None:
    turns = reasoned_turns(recommender.setup.corpus.train)
    vocab, kept_as_they_are, told_so = recommender.setup.vocab, 0, 0

    def item_tokens(prompt: np.ndarray) -> list[int]:
        return [int(token) for token in prompt if vocab.is_item(int(token))]

    # The toy's retriever ranks what is liked highest: here every other seeker likes what it ranks lowest.
    later = [turn for turn in turns if turn.index == 3]
    later = [turn if row % 2 else liking_the_last(recommender, turn) for row, turn in enumerate(later)]
    asked = [row != 2 for row in range(len(later))]
    usual = Demonstrations(recommender, later, seed=0).of(later)
    told = Demonstrations(recommender, later, seed=0).of(later, asked)
    for row, turn in enumerate(later):
        before, after = item_tokens(usual.prompt_tokens[row]), item_tokens(told.prompt_tokens[row])
        # By hand: the one item that the recommender's list of two lacks is the best of what nobody named.
        _, scores = recommender.prompts([turn.dialogue.messages[: turn.index]], [turn.dialogue.dialogue_id])
        best = vocab.item_ids[int(np.argmax(scores[0]))]
        if not asked[row] or best in turn.gold:
            # Where the list would hold what the seeker likes, the conversation would be over.
            assert after == before
            kept_as_they_are += asked[row]
            continue
        told_so += 1
        assert set(after) - set(before) == {vocab.item_token(best)} and set(before) < set(after)
        assert not np.asarray(told.candidates)[row, vocab.item_index(best)], "what was listed is no candidate any more"
        assert np.asarray(told.candidates)[row, [vocab.item_index(item) for item in turn.gold]].all()
    assert kept_as_they_are and told_so
    np.testing.assert_array_equal(usual.response_tokens[2], told.response_tokens[2])


def test_lists_fill_each_turn_from_the_first_that_names_an_item() -> None:
    said = (
        Message("recommender", ("hello",), 0),
        Message("seeker", (1,), 1),
        Message("recommender", ("see ", 2, " and ", 3), 2),
        Message("recommender", ("or not",), 3),
        Message("seeker", ("seen it",), 4),
        Message("recommender", (), 5),
        Message("recommender", ("oh",), 6),
    )
    # Of messages in a row the first that says anything; fewer are left than the last list lacks.
    filled: list[tuple[str | int, ...]] = [
        ("hello",),
        (1,),
        (4, "see ", 2, " and ", 3),
        ("or not",),
        ("seen it",),
        (),
        (5, 6, "oh"),
    ]
    assert [message.parts for message in with_lists(said, [4, 5, 6], 3, 3)] == filled
    last_alone = [message.parts for message in with_lists(said, [4, 5, 6], 3, 1)]
    assert last_alone == [*(message.parts for message in said[:-1]), (4, 5, 6, "oh")]


def test_the_share_after_lists_is_a_function_of_seed_and_step(recommender: Recommender) -> None:
    turns = [liking_the_last(recommender, turn) for turn in reasoned_turns(recommender.setup.corpus.train)]
    vocab, own = recommender.setup.vocab, recommender._replace(lists_before=ListsBefore(0.5, 3))

    def items_of_batch(one: Recommender, step: int, rows: slice = slice(None)) -> np.ndarray:
        tokens = np.asarray(Demonstrations(one, turns, seed=3).batch(step, 64, rows).prompt_tokens)
        return np.array([sum(vocab.is_item(int(token)) for token in row) for row in tokens])

    usual, told = items_of_batch(recommender, 0), items_of_batch(own, 0)
    assert (told >= usual).all() and 0 < (told > usual).sum() < 64
    np.testing.assert_array_equal(items_of_batch(own, 0, slice(8, 16)), told[8:16])
    always = items_of_batch(recommender._replace(lists_before=ListsBefore(1.0, 3)), 0)
    assert (always > usual).sum() > (told > usual).sum()


@pytest.mark.parametrize("once", [False, True])
def test_the_grammar_allows_what_is_imitated_also_where_items_are_named_once(
    recommender: Recommender, once: bool
) -> None:
    setup = recommender.setup
    named_once = setup._replace(data=dataclasses.replace(setup.data, items_once=once))
    own = make_recommender(named_once, recommender.attributes, recommender.retrieval, said=recommender.said)
    turn = reasoned_turns(setup.corpus.train)[0]
    item = turn.gold[0]
    said = Message("recommender", (item, item), 99)
    messages = (*turn.dialogue.messages[: turn.index], said, *turn.dialogue.messages[turn.index + 1 :])
    twice = turn._replace(dialogue=dataclasses.replace(turn.dialogue, messages=messages))
    batch = Demonstrations(own, [twice], seed=0).of([twice])
    params = {"trunk": gpt2.init(setup.network, jax.random.key(0))}
    judged = jax.jit(own.setup.agent.policy)(params, batch)
    assert np.isfinite(np.asarray(judged.logprobs)).all() and float(judged.logprobs.min()) > -1e3
    mentions = np.asarray(batch.response_tokens[0]).tolist().count(setup.vocab.item_token(item))
    assert mentions == (2 if once else 3)  # In the list, and in words.


@pytest.mark.slow
def test_the_stage_learns_the_form_and_a_killed_run_ends_the_same(
    recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = gpt2.init(recommender.setup.network, jax.random.key(0))
    config = ReasoningConfig(steps=30, batch_size=8, warmup_steps=2, learning_rate=2e-2, evaluations=3)
    with open_run(tmp_path / "whole", config, trackers=()) as run:
        whole = reasoning.train(run, recommender, trunk, config)
    batch = Demonstrations.batch

    def killed(self: Demonstrations, step: int, size: int, own: slice = slice(None)) -> object:
        if step == 15:
            raise KeyboardInterrupt
        return batch(self, step, size, own)

    monkeypatch.setattr(Demonstrations, "batch", killed)
    with open_run(tmp_path / "killed", config, trackers=()) as run, pytest.raises(KeyboardInterrupt):
        reasoning.train(run, recommender, trunk, config)
    monkeypatch.undo()
    with open_run(tmp_path / "killed", config, trackers=()) as run:
        continued = reasoning.train(run, recommender, trunk, config)
    jax.tree.map(np.testing.assert_array_equal, whole, continued)
    turns = reasoned_turns(recommender.setup.corpus.test)[:8]
    held_out = Demonstrations(recommender, turns, seed=0).of(turns)
    judged = jax.jit(recommender.setup.agent.policy)
    before, after = (
        float(np.asarray(judged(params, held_out).logprobs).sum() / np.asarray(held_out.response_mask).sum())
        for params in ({"trunk": trunk}, whole)
    )
    assert after > before + 1.0, "nats per token"


def test_what_cannot_be_is_refused(recommender: Recommender) -> None:
    setup = recommender.setup
    with pytest.raises(RunError, match="--reasoning.min-items 7: no genre"):
        reasoning.attributes_of(setup, ReasoningConfig(min_items=7))
    with pytest.raises(
        ValueError, match=r"--data.response-tokens 24: --reasoning.attributes 9, --data.max-items 2 .* take"
    ):
        reasoning.attributes_of(setup, ReasoningConfig(min_items=1, attributes=9))
    few = recommender.retrieval._replace(n=1)
    with pytest.raises(
        ValueError, match="--retriever.candidates 1 of 6 items cannot fill a list of --data.max-items 2"
    ):
        make_recommender(setup, recommender.attributes, few)


def test_the_prior_can_be_told_the_retrievers_order(recommender: Recommender) -> None:
    retrieval = recommender.retrieval
    told = telling_its_order(retrieval)
    assert told.names == (*retrieval.scorer.names[:-1], "retriever", "opening", "named")
    own = recommender._replace(setup=recommender.setup._replace(scorer=told, prior={"prior": {}}))
    before = (Message("seeker", ("hello ", 11), 0),)
    later = (*before, Message("recommender", (13,), 1), Message("seeker", ("hello ", 15), 2))
    prompts, scores = own.prompts([before, later])
    known = np.asarray(prompts.item_scores)
    assert known.shape == (2, len(told.names), 6)
    # What was known before, and the candidates, stay as they were.
    _, expected = recommender.prompts([before, later])
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    catalogue = retrieval.scorer.catalogue
    plain = retrieval.scorer.item_scores(contexts_of([before, later], catalogue))
    np.testing.assert_allclose(known[:, [*range(len(told.names) - 3), -1]], plain, rtol=1e-5, atol=1e-6)
    # In a first turn both orders are one; in a later one the opening's is that of before.
    recalled = mixture.standardised(retrieval.recalled(contexts_of([before, later], catalogue)), "asinh")
    np.testing.assert_allclose(known[:, -3], recalled, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(known[:, -2], recalled[[0, 0]], rtol=1e-4, atol=1e-5)
    assert np.abs(known[1, -3] - known[1, -2]).max() > 0.1
    # Contexts bring their openings along wherever they go.
    contexts = contexts_of([before, later, later, before], told.catalogue, own=[0, 1, 2, 3])
    of_openings = told.parts["opening"]
    whole = of_openings(contexts)
    for some, rows in ((contexts.part(1, 3), [1, 2]), (contexts.chosen([3, 0]), [3, 0])):
        np.testing.assert_allclose(of_openings(some), whole[rows], rtol=1e-5, atol=1e-6)
    left = retrieval.recalled(contexts_of([before] * 4, catalogue))
    np.testing.assert_allclose(of_openings(contexts.left_in()), left, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="opening: these contexts were made without their openings"):
        of_openings(contexts_of([before], catalogue))

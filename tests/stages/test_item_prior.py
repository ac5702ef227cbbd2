"""The prior as a stage: what prompts bring along, and weights by likelihood and by reinforcement learning."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from rlhf_jax.data.windows import ranking_rows
from rlhf_jax.interfaces import Dialogue, Message
from rlhf_jax.recommenders import mixture
from rlhf_jax.recommenders.contexts import row_contexts
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.run import RunDirectory, open_run
from rlhf_jax.stages import item_prior
from rlhf_jax.stages.contexts import Padded, PromptBatches, Windows
from rlhf_jax.stages.item_prior import PriorConfig, fresh_from, look_up, most_likely, quality
from rlhf_jax.stages.setup import Setup
from tiny_policy import Tiny

CONFIG = PriorConfig(
    learner="grpo", parts=("popularity", "co_mention"), held_out=0.4, updates=40, contexts=16, list_length=2
)


def talk(name: str, named: int, *suggested: int) -> Dialogue:
    messages = [Message("seeker", ("hello ", named), 0)]
    messages += [Message("recommender", ("try ", item), number) for number, item in enumerate(suggested, 1)]
    return Dialogue(name, tuple(messages), {}, {})


@pytest.fixture(scope="module")
def setup(tiny: Tiny) -> Setup:
    """Who names 11 is told 12 and who names 13 is told 14, but for every fourth."""
    draws = [((11, 12), (13, 14), (11, 12), (13, 11))[number % 4] for number in range(80)]
    dialogues = tuple(talk(f"d{number}", *draw) for number, draw in enumerate(draws))
    corpus = dataclasses.replace(
        tiny.setup.corpus, train=dialogues[:30], validation=dialogues[30:64], test=dialogues[64:]
    )
    return item_prior.with_scorer(tiny.setup._replace(corpus=corpus), CONFIG)


@pytest.fixture
def run(tmp_path: Path) -> Any:
    with open_run(tmp_path / "run", CONFIG, trackers=()) as opened:
        yield opened


def test_prompts_bring_what_the_recommenders_say_of_their_context(setup: Setup) -> None:
    scorer, dialogues = item_prior.scorer_of(setup), setup.corpus.test
    assert scorer.names == ("popularity", "co_mention", "named")
    found = Windows.of(setup, dialogues).batch([(number, 1) for number in range(16)]).item_scores
    assert found is not None and found.shape == (16, 3, 4)
    contexts = row_contexts(list(ranking_rows(dialogues)), scorer.catalogue)
    np.testing.assert_array_equal(found[:, :2], mixture.features(scorer.parts, contexts, form="asinh"))
    for row, dialogue in zip(np.asarray(found)[:, 2], dialogues, strict=True):
        named = setup.vocab.item_ids.index(dialogue.messages[0].items[0])
        assert row.tolist() == [-1.0 if item == named else 0.0 for item in range(4)]
    assert Windows.of(setup._replace(scorer=None), dialogues).batch([(0, 1)]).item_scores is None


def test_a_training_dialogue_is_left_out_of_its_own_scores(setup: Setup) -> None:
    scorer, dialogues = item_prior.scorer_of(setup), setup.corpus.train
    rows = list(ranking_rows(dialogues))
    found = Windows.of(setup, dialogues).item_scores([(number, 1) for number in range(30)])
    own = scorer.item_scores(row_contexts(rows, scorer.catalogue, numbers=scorer.training.numbers))
    np.testing.assert_array_equal(found, own)
    assert not np.array_equal(own, scorer.item_scores(row_contexts(rows, scorer.catalogue)))


def test_human_answers_bring_them_too(setup: Setup) -> None:
    def dealt(prompts: Padded) -> PromptBatches:
        return PromptBatches(prompts, batch_size=4, seed=0)

    human = Windows.of(setup, setup.corpus.train).demonstrations(dealt)
    rollout = human.batch(0, slice(1, 3))
    rows = human.prompts.rows(0)[1:3]
    np.testing.assert_array_equal(rollout.item_scores, human.windows.item_scores([human.turns[row] for row in rows]))


def test_what_is_paid_is_named_from_here_on_and_new() -> None:
    dialogue = talk("d", 11, 12, 11, 13, 12)
    # The place of each message, what it names that is new, and what it and the later ones do.
    assert fresh_from(dialogue) == [(1, (12,), (12, 13)), (2, (), (13,)), (3, (13,), (13,))]


def test_what_is_looked_up_is_the_trunks_word_and_the_scores(tiny: Tiny, setup: Setup) -> None:
    dialogues = setup.corpus.test
    known = look_up(setup, tiny.policy, dialogues, batch_size=5)
    prompts = Windows.of(setup, dialogues).batch([(number, 1) for number in range(16)])
    trunk = jax.nn.log_softmax(setup.agent.score_items({"trunk": tiny.policy["trunk"]}, prompts))
    np.testing.assert_allclose(known.logprobs, trunk, atol=1e-5)
    np.testing.assert_array_equal(known.scores, prompts.item_scores)
    gold = [setup.vocab.item_ids.index(dialogue.messages[1].items[0]) for dialogue in dialogues]
    assert np.argmax(known.now, axis=1).tolist() == gold and known.now.sum() == 16
    np.testing.assert_array_equal(known.now, known.later)


def test_contexts_that_would_not_fit_are_thinned_out_evenly(
    tiny: Tiny, setup: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = look_up(setup, tiny.policy, setup.corpus.test)
    monkeypatch.setattr(item_prior, "MOST_BYTES", sum(array[:6].nbytes for array in whole))
    few = look_up(setup, tiny.policy, setup.corpus.test)
    assert sum(array.nbytes for array in few) == item_prior.MOST_BYTES
    for array, all_of_it in zip(few, whole, strict=True):
        np.testing.assert_allclose(array, all_of_it[[0, 3, 6, 9, 12, 15]], atol=1e-5)
    assert "16 contexts over" in capsys.readouterr().err


def test_the_policy_ranks_as_the_weights_do(tiny: Tiny, setup: Setup) -> None:
    """What is learnt on cached numbers is what the policy with that prior says: one distribution."""
    known = look_up(setup, tiny.policy, setup.corpus.test)
    weights = item_prior.as_params(np.array([0.7, 1.0, -0.5, 2.0]))
    prompts = Windows.of(setup, setup.corpus.test).batch([(number, 1) for number in range(16)])
    said = setup.agent.score_items({"trunk": tiny.policy["trunk"], "prior": weights}, prompts)
    mixed = item_prior.mixed(weights, (jax.numpy.asarray(known.logprobs), jax.numpy.asarray(known.scores)))
    np.testing.assert_allclose(jax.nn.log_softmax(said), jax.nn.log_softmax(mixed), atol=1e-5)


def test_the_weights_are_those_of_the_greatest_likelihood(tiny: Tiny, setup: Setup) -> None:
    known = look_up(setup, tiny.policy, setup.corpus.validation)
    best = most_likely(known, chunk=7)

    def likelihood(weights: np.ndarray) -> float:
        total = 0.0
        for logprobs, scores, gold in zip(known.logprobs, known.scores, known.now, strict=True):
            mixed = np.exp(weights[0] * logprobs.astype(np.float64) + weights[1:] @ scores.astype(np.float64))
            total += np.log(mixed[gold] / mixed.sum()).sum()
        return total / known.now.sum()

    assert likelihood(best) > likelihood(np.array([1.0, 0, 0, 0])) + 0.2
    for place in range(4):
        for step in (-0.05, 0.05):
            assert likelihood(best + step * np.eye(4)[place]) < likelihood(best) + 1e-6


def test_quality_is_that_of_the_ranks(tiny: Tiny, setup: Setup) -> None:
    known = look_up(setup, tiny.policy, setup.corpus.test)
    weights = np.array([0.3, 1.0, 2.0, 1.0])
    ranks = []
    for logprobs, scores, gold in zip(known.logprobs, known.scores, known.now, strict=True):
        mixed = weights[0] * logprobs + weights[1:].astype(np.float32) @ scores
        ranks += [sum(mixed >= mixed[item]) for item in np.flatnonzero(gold)]
    found = quality(weights, known, chunk=5)
    assert found["hr@5"] == 1.0  # Of four items.
    assert found["ndcg@10"] == pytest.approx(np.mean([1 / np.log2(rank + 1) for rank in ranks]), abs=1e-4)


def test_the_stage_learns_what_helps_and_is_not_learnt_twice(
    tiny: Tiny, setup: Setup, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = tiny.policy["trunk"]
    done = item_prior.add(run, setup._replace(scorer=None), trunk, CONFIG)
    assert done.scorer is not None
    weights = np.asarray(done.prior["prior"]["scores"])
    # Nobody is told what he named, and who names 11 is told 12.
    assert weights[2] > 0.3 and weights[1] > 0
    monkeypatch.setattr(item_prior, "train", lambda *_, **__: pytest.fail("learnt again"))
    again = item_prior.add(run, setup._replace(scorer=None), trunk, CONFIG)
    np.testing.assert_allclose(again.prior["prior"]["scores"], weights)


def test_none_leaves_everything_as_it_was(tiny: Tiny, run: RunDirectory) -> None:
    done = item_prior.add(run, tiny.setup, tiny.policy["trunk"], PriorConfig())
    assert done is tiny.setup and not list(run.path.glob("prior*"))


def test_the_hand_set_filter_takes_away_what_was_named(tiny: Tiny, setup: Setup) -> None:
    prompts = Windows.of(setup, setup.corpus.test).batch([(number, 1) for number in range(16)])
    names = item_prior.scorer_of(setup).names
    bare = {"trunk": tiny.policy["trunk"]}
    said = np.asarray(setup.agent.score_items(bare | {"prior": item_prior.filtered(names)}, prompts))
    trunk = np.asarray(setup.agent.score_items(bare, prompts))
    for row, plain, dialogue in zip(said, trunk, setup.corpus.test, strict=True):
        named = setup.vocab.item_ids.index(dialogue.messages[0].items[0])
        others = [item for item in range(4) if item != named]
        assert np.argmin(row) == named
        assert np.argsort(row[others]).tolist() == np.argsort(plain[others]).tolist()


def test_dialogues_without_a_new_item_are_refused(tiny: Tiny, setup: Setup) -> None:
    with pytest.raises(RunError, match="no message of the validation split suggests an item that was not named before"):
        look_up(setup, tiny.policy, [talk("d", 11, 11)])


def test_a_stored_prior_that_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "prior.json").write_text('{"weights": {"policy": "1"}}')
    with pytest.raises(RunError, match=r"prior.json: 'weights' must be numbers by name, policy first"):
        item_prior.stored_prior(tmp_path / "prior.json")

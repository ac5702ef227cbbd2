"""The scores that prompts bring along, and weights by likelihood."""

import dataclasses

import jax
import numpy as np
import pytest

from rlhf_jax.data.windows import ranking_rows
from rlhf_jax.interfaces import Dialogue, Message
from rlhf_jax.recommenders import mixture
from rlhf_jax.recommenders.contexts import row_contexts
from rlhf_jax.stages.item_prior import ItemPrior, fit_recommenders, fit_weights, row_prompts
from rlhf_jax.stages.setup import Setup
from tiny_policy import Tiny

PARTS = ("popularity", "co_mention")


def talk(number: int, named: int, suggested: int) -> Dialogue:
    messages = (Message("seeker", ("hello ", named), 0), Message("recommender", ("try ", suggested), 1))
    return Dialogue(f"d{number}", messages, {}, {})


@pytest.fixture(scope="module")
def setup(tiny: Tiny) -> Setup:
    """Who names 11 is told 12 and who names 13 is told 14, but for every fourth."""
    draws = [((11, 12), (13, 14), (11, 12), (13, 11))[number % 4] for number in range(40)]
    dialogues = tuple(talk(number, *draw) for number, draw in enumerate(draws))
    corpus = dataclasses.replace(tiny.setup.corpus, train=dialogues, validation=dialogues[:24], test=dialogues[24:])
    return tiny.setup._replace(corpus=corpus)


@pytest.fixture(scope="module")
def known(setup: Setup) -> ItemPrior:
    return fit_recommenders(setup.corpus, setup.vocab.item_ids, PARTS)


def test_scores_are_the_mixtures_and_what_was_named(setup: Setup, known: ItemPrior) -> None:
    contexts = row_contexts(list(ranking_rows(setup.corpus.test)), known.catalogue)
    found = known.item_scores(contexts)
    assert known.names == ("popularity", "co_mention", "named") and found.shape == (16, 3, 4)
    np.testing.assert_array_equal(found[:, :2], mixture.features(known.parts, contexts, form="asinh"))
    for row, dialogue in zip(found[:, 2], setup.corpus.test, strict=True):
        named = setup.vocab.item_ids.index(dialogue.messages[0].items[0])
        assert row.tolist() == [-1.0 if item == named else 0.0 for item in range(4)]


def test_prompts_bring_the_scores_of_their_rows(setup: Setup, known: ItemPrior) -> None:
    rows = list(ranking_rows(setup.corpus.test))
    scores = known.item_scores(row_contexts(rows, known.catalogue))
    seen = []
    for prompts, own in row_prompts(setup, setup.corpus.test, rows, known, 6):
        assert prompts.item_scores is not None and prompts.item_scores.shape[0] == 6
        np.testing.assert_array_equal(prompts.item_scores[: len(own)], scores[own])
        seen += own.tolist()
    assert seen == list(range(16))


def test_the_weights_are_those_of_the_greatest_likelihood(tiny: Tiny, setup: Setup, known: ItemPrior) -> None:
    rows = list(ranking_rows(setup.corpus.validation))
    found = fit_weights(setup, tiny.policy, known, rows, batch_size=8)
    assert list(found.weights) == ["policy", *known.names] and found.n == 24
    # Likelihood by a loop.
    ((prompts, _),) = list(row_prompts(setup, setup.corpus.validation, rows, known, 24))
    trunk = np.asarray(
        jax.nn.log_softmax(setup.agent.score_items({"trunk": tiny.policy["trunk"]}, prompts)), np.float64
    )

    def likelihood(weights: np.ndarray) -> float:
        total = 0.0
        for row, dialogue in enumerate(setup.corpus.validation):
            scores = np.asarray(prompts.item_scores, np.float64)[row]
            mixed = np.exp(weights[0] * trunk[row] + weights[1:] @ scores)
            gold = setup.vocab.item_ids.index(dialogue.messages[1].items[0])
            total += np.log(mixed[gold] / mixed.sum())
        return total / 24

    best = np.array(list(found.weights.values()))
    assert found.before == pytest.approx(likelihood(np.array([1.0, 0, 0, 0])), abs=1e-5)
    assert found.after == pytest.approx(likelihood(best), abs=1e-5)
    for place in range(4):
        for step in (-0.05, 0.05):
            assert likelihood(best + step * np.eye(4)[place]) < found.after + 1e-6
    assert found.after > found.before + 0.3
    np.testing.assert_allclose(found.params()["scores"], best[1:], rtol=1e-6)


def test_rows_without_gold_are_refused(tiny: Tiny, setup: Setup, known: ItemPrior) -> None:
    rows = [row._replace(fresh_gold=()) for row in ranking_rows(setup.corpus.validation)]
    with pytest.raises(ValueError, match="24 rows have no fresh gold item among the policy's 4 items"):
        fit_weights(setup, tiny.policy, known, rows)

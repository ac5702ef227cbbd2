"""Measurements stored case by case come back the same; responses become messages."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_jax.assessment import comparison
from rlhf_jax.assessment.assess import Assessment, load, save
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import Dialogue, ranking_rows, response_message
from rlhf_jax.evaluation.ranking import rank_rows
from rlhf_jax.evaluation.results import Sides
from rlhf_jax.evaluation.text import GeneratedTurn


@pytest.fixture(scope="module")
def assessment(vocab: Vocabulary, dialogues: tuple[Dialogue, ...]) -> Assessment:
    rows = list(ranking_rows(dialogues))
    scores = np.random.default_rng(0).normal(size=(len(rows), vocab.n_items)).astype(np.float32)
    turns = [
        GeneratedTurn(
            dialogue=str(n), text="try <movie>", reference="hello “there”", n_tokens=4, n_items=1, grammatical=True
        )
        for n in range(2)
    ]
    metrics = ("mean_utility", "success@1")
    users = {decoding: {metric: np.arange(3) / 4 for metric in metrics} for decoding in ("sampled", "greedy")}
    return Assessment(rank_rows(rows, [scores], vocab.item_ids), turns, users)


def test_saved_and_loaded(tmp_path: Path, assessment: Assessment, dialogues: tuple[Dialogue, ...]) -> None:
    path = tmp_path / "sft.npz"
    save(path, assessment)
    assert [file.name for file in tmp_path.iterdir()] == ["sft.npz"]
    found = load(path, list(ranking_rows(dialogues)))
    assert list(found.ranking.tables) == list(assessment.ranking.tables)
    for protocol, table in assessment.ranking.tables.items():
        other = found.ranking.tables[protocol]
        assert (other.protocol, tuple(other.dialogues)) == (protocol, tuple(table.dialogues))
        np.testing.assert_array_equal(other.ranks, table.ranks)
        np.testing.assert_array_equal(other.rows, table.rows)
    assert found.ranking.top == assessment.ranking.top
    assert found.turns == assessment.turns
    assert list(found.users) == list(assessment.users)
    for decoding, values in assessment.users.items():
        for metric, per_user in values.items():
            np.testing.assert_array_equal(found.users[decoding][metric], per_user)


def test_which_systems_are_compared_is_said_or_last_against_first(assessment: Assessment) -> None:
    systems = {name: {0: assessment} for name in ("sft", "ppo", "dpo")}
    assert comparison.last_against_first(systems) == Sides("dpo", "sft")
    assert comparison.last_against_first({"sft": {}}) is None and comparison.last_against_first({}) is None

    def compared(**chosen: Any) -> set[Sides | None]:
        found = comparison.results(systems, {}, split="toy/test", same_test=False, **chosen)
        assert {r.split for r in found} == {"toy/test-users-sampled", "toy/test-users-greedy"}
        return {r.sides for r in found} - {None}

    assert compared() == {Sides("dpo", "sft")}
    assert compared(compared=Sides("ppo", "dpo")) == {Sides("ppo", "dpo")}
    both = [Sides("ppo", "sft"), Sides("dpo", "sft")]
    assert compared(further=both) == set(both)


def test_listed_items_that_are_not_mentioned_come_first(vocab: Vocabulary) -> None:
    a, b = vocab.item_token(11), vocab.item_token(12)
    hello, again = vocab.encode_text(" hello"), vocab.encode_text(" again")
    response = [vocab.rec, a, b, vocab.say, *hello, b, *again, vocab.eos, vocab.pad]
    message = response_message(vocab, response)
    assert message.role == "recommender"
    assert message.items == (11, 12)
    assert [part.strip() if isinstance(part, str) else part for part in message.parts] == [11, "hello", 12, "again"]


def test_a_response_that_says_nothing_is_an_empty_message(vocab: Vocabulary) -> None:
    assert response_message(vocab, [vocab.say, vocab.eos]).parts == ()
    assert response_message(vocab, [vocab.rec, vocab.item_token(13)]).parts == (13,)

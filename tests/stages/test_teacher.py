"""A teacher beside the human: whose list each soft target belongs to, and what is learnt from it."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import reasoned

from rlhf_jax.data.windows import ranking_rows
from rlhf_jax.interfaces import Corpus, Dialogue, Message
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.recommenders import mixture
from rlhf_jax.recommenders.contexts import Catalogue, contexts_before, counts, read_training, row_contexts
from rlhf_jax.runtime.files import RunError, read_json
from rlhf_jax.stages import supervised
from rlhf_jax.stages.supervised import SupervisedConfig
from rlhf_jax.stages.teacher import Lessons, Teacher, make_teacher, suggestions
from rlhf_jax.stages.texts import TextBatches

CONFIG = SupervisedConfig(
    epochs=2,
    max_tokens=24,
    buckets=(24,),
    tokens_per_batch=72,
    description_tokens=24,
    teacher_weight=1.0,
    teacher_items=4,
    features_per_item=0,
)


@pytest.fixture(scope="module")
def recommender() -> reasoned.Recommender:
    return reasoned.make()


def numbered(corpus: Corpus) -> Corpus:
    """Messages that suggest several items, one after the other and in a row of messages; a dialogue that is cut in two."""
    long = Dialogue(
        "long",
        (
            Message("seeker", ("hello ", 11), 0),
            Message("recommender", ("try ", 13, " or ", 14), 1),
            Message("recommender", ("hello hello hello",), 2),
            Message("seeker", ("hello hello hello hello hello",), 3),
            Message("recommender", (15, " ", 16, " ", 15), 4),
        ),
        {},
        {},
    )
    return dataclasses.replace(corpus, train=(*corpus.train[:3], long, *corpus.train[3:]))


@pytest.fixture(scope="module")
def batches(recommender: reasoned.Recommender) -> TextBatches:
    setup = recommender.setup
    return supervised.training_batches(numbered(setup.corpus), setup.vocab, setup.agent.grammar, CONFIG, 0)


def test_every_list_gets_its_own_lesson(recommender: reasoned.Recommender, batches: TextBatches) -> None:
    vocab, corpus = recommender.setup.vocab, numbered(recommender.setup.corpus)
    places = suggestions(corpus.train)
    n = len(places)
    # Items say whose list it is: the number in base 4.
    items = np.stack([vocab.first_item + (np.arange(n) // 4**digit) % 4 for digit in range(4)], axis=1).astype(np.int32)
    lessons = Lessons(Teacher(items, np.full((n, 4), 0.25, np.float32)), batches)
    seen: list[int] = []
    for step in range(batches.steps(1)):
        tokens, _, targets = batches.batch(step)
        soft = lessons.of(step, tokens, targets)
        for row, place in zip(*np.nonzero(soft.chances.sum(axis=-1)), strict=True):
            number = int(((soft.items[row, place] - vocab.first_item) * 4 ** np.arange(4)).sum())
            dialogue, index = places[number]
            position = int(targets.item_positions[row, place])
            assert tokens[row, position] == vocab.rec
            listed = []
            while vocab.is_item(int(tokens[row, position + 1 + len(listed)])):
                listed.append(vocab.item_ids[int(tokens[row, position + 1 + len(listed)]) - vocab.first_item])
            # Shuffled, and cut to the longest list.
            assert set(listed) == set(list(dict.fromkeys(dialogue.messages[index].items))[: batches.max_listed])
            seen.append(number)
        # Descriptions of items have no teacher.
        for row, text in enumerate(batches.members(step)):
            taught = not batches.encoded.description[text] and vocab.rec in batches.encoded.text(text)
            assert bool(soft.chances[row].any()) == taught
    assert sorted(seen) == list(range(n))
    with pytest.raises(ValueError, match=f"a teacher of {n - 1} lists for texts with {n}"):
        Lessons(Teacher(items[1:], np.zeros((n - 1, 4), np.float32)), batches)


def test_the_teacher_is_the_mixture_without_what_the_dialogue_itself_says(
    recommender: reasoned.Recommender, tmp_path: Path
) -> None:
    vocab, corpus = recommender.setup.vocab, numbered(recommender.setup.corpus)
    made = make_teacher(tmp_path / "teacher.npz", corpus, vocab, 4)
    catalogue = Catalogue(vocab.item_ids, {item: corpus.items[item].title for item in corpus.items})
    rows = [row for row in ranking_rows(corpus.validation) if row.fresh_gold]
    columns = {item: column for column, item in enumerate(vocab.item_ids)}
    whole = mixture.fit_parts(read_training(corpus.train, catalogue), corpus.items)
    fitted = mixture.fit_weights(
        whole, row_contexts(rows, catalogue), counts([row.fresh_gold for row in rows], columns)
    )
    for number, (dialogue, index) in enumerate(suggestions(corpus.train)):
        others = [other for other in corpus.train if other.dialogue_id != dialogue.dialogue_id]
        parts = mixture.fit_parts(read_training(others, catalogue), corpus.items)
        best, chances = mixture.likeliest(parts, fitted, contexts_before([(dialogue, index)], catalogue), 4)
        dense = [
            dict(zip(items.tolist(), q.tolist(), strict=True))
            for items, q in ((made.items[number] - vocab.first_item, made.chances[number]), (best[0], chances[0]))
        ]
        for item in range(vocab.n_items):
            assert dense[0].get(item, 0.0) == pytest.approx(dense[1].get(item, 0.0), abs=2e-3)
    # The second time it is read, and it is what was counted.
    kept = read_json(tmp_path / "teacher.json")
    assert kept == {"weights": pytest.approx(fitted.weights), "sharpness": pytest.approx(fitted.sharpness)}
    again = make_teacher(tmp_path / "teacher.npz", dataclasses.replace(corpus, train=()), vocab, 4)
    np.testing.assert_array_equal(again.items, made.items)
    np.testing.assert_array_equal(again.chances, made.chances)


def test_a_policy_comes_nearer_to_its_teacher(recommender: reasoned.Recommender, batches: TextBatches) -> None:
    setup = recommender.setup
    n = len(suggestions(numbered(setup.corpus).train))
    # Says the last item everywhere, which no human suggests more than others.
    said = np.full((n, 4), setup.vocab.first_item + setup.vocab.n_items - 1, np.int32)
    lessons = Lessons(Teacher(said, np.tile(np.float32([1, 0, 0, 0]), (n, 1))), batches)
    knowledge, _ = supervised.item_knowledge(setup.vocab, setup.corpus, CONFIG)
    trunk = supervised.gpt2.init(setup.agent.network, jax.random.key(0))
    start = {"trunk": trunk, "item_features": jax.numpy.zeros((1, setup.agent.network.n_embd))}
    optimizer = make_optimizer(learning_rate=3e-3, total_steps=1000, schedule="constant")
    found = {}
    for weight in (0.0, 2.0):
        config = dataclasses.replace(CONFIG, teacher_weight=weight)
        loss = supervised.make_loss(setup.agent, config, setup.layout)
        step = jax.jit(supervised.make_step(loss, optimizer, lambda _: 3e-3, average_decay=0.9))
        state = supervised.sft.init(start, optimizer, averaged=True)
        for number in range(24):
            tokens, mask, targets = batches.batch(number % batches.steps(1))
            soft = lessons.of(number % batches.steps(1), tokens, targets)
            batch = supervised.text_batch(tokens, mask, targets, soft)
            state, metrics = step(state, batch, knowledge, jax.random.key(number))
        found[weight] = float(metrics["teacher_kl"])
    assert found[2.0] < 0.5 * found[0.0]


def test_what_cannot_be_taught_is_said(recommender: reasoned.Recommender, tmp_path: Path) -> None:
    vocab, corpus = recommender.setup.vocab, recommender.setup.corpus
    with pytest.raises(RunError, match="no message of the validation split suggests something new"):
        make_teacher(tmp_path / "teacher.npz", dataclasses.replace(corpus, validation=()), vocab, 4)

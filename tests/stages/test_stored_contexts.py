"""What later stages read of a store is what they read of memory: turns, prompts, responses, labels, counts."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.data.dialogue_store import StoredDialogues, read_stored_corpus
from rlhf_jax.data.sources import read_corpus
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import training_texts
from rlhf_jax.feedback.weak_labels import fit_weak_labels
from rlhf_jax.interfaces import Corpus, Dialogue
from rlhf_jax.recommenders import co_mention, context_knn, popularity
from rlhf_jax.recommenders.contexts import Catalogue, StoredWords, read_training
from rlhf_jax.runtime.files import notice
from rlhf_jax.simulators.world import WorldConfig
from rlhf_jax.simulators.world_dialogues import write_world
from rlhf_jax.stages import reward
from rlhf_jax.stages.contexts import Encoded, PromptBatches, Windows
from rlhf_jax.stages.labelled_turns import LabelledTurns, drawn_rows
from rlhf_jax.stages.reward import RewardConfig
from rlhf_jax.stages.setup import DataConfig
from scale import growth

DATA = DataConfig(window=3, context_tokens=24, response_tokens=12, max_items=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world") / "data"
    write_world(path, WorldConfig(n_items=24, n_train=50, n_test=6, n_users=8), 0)
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> Corpus:
    return read_corpus(folder, DataConfig())


@pytest.fixture(scope="module")
def stored(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return read_stored_corpus(folder, DataConfig(), tmp_path_factory.mktemp("store"), notice)


@pytest.fixture(scope="module")
def vocab(whole: Corpus) -> Vocabulary:
    return Vocabulary.train(training_texts(whole.train), whole.items, 300)


def test_turns_are_found_without_reading_a_dialogue(
    whole: Corpus, stored: Corpus, vocab: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Windows(vocab, whole.train, DATA).turns()
    assert isinstance(stored.train, StoredDialogues)
    some = stored.train.chosen([7, 3, 20])
    chosen = [(new, place) for new, old in enumerate([7, 3, 20]) for number, place in expected if number == old]
    windows = [Windows(vocab, dialogues, DATA) for dialogues in (stored.train, some)]
    monkeypatch.setattr(StoredDialogues, "__getitem__", None)
    found = windows[0].turns()
    assert list(found) == expected and found[3:5][1] == expected[4]
    assert list(windows[1].turns()) == chosen


@pytest.mark.parametrize(("group", "buckets"), [(1, ()), (3, (12, 16))])
def test_prompts_of_every_update_are_those_of_memory(
    whole: Corpus, stored: Corpus, vocab: Vocabulary, group: int, buckets: tuple[int, ...]
) -> None:
    def dealt(dialogues: StoredDialogues | tuple[Dialogue, ...]) -> PromptBatches:
        windows = Windows(vocab, dialogues, DATA)
        return PromptBatches(windows.prompts_of(windows.turns()), batch_size=8, seed=5, buckets=buckets, group=group)

    one, other = dealt(tuple(whole.train)), dealt(stored.train)  # type: ignore[arg-type]
    assert isinstance(other.prompts, Encoded) and len(one.prompts) == len(other.prompts)
    for update in (40, *range(30)):
        np.testing.assert_array_equal(one.rows(update), other.rows(update))
        for left, right in zip(one.batch(update), other.batch(update), strict=True):
            np.testing.assert_array_equal(left, right)
            assert left.dtype == right.dtype


def test_human_turns_are_those_of_memory(whole: Corpus, stored: Corpus, vocab: Vocabulary) -> None:
    one, other = (
        Windows(vocab, corpus.train, DATA).demonstrations(lambda prompts: PromptBatches(prompts, batch_size=6, seed=1))
        for corpus in (whole, stored)
    )
    for update in (9, 0):
        left, right = (human.batch(update, slice(2, 6)) for human in (one, other))
        for field in ("prompt_tokens", "prompt_mask", "response_tokens", "response_mask"):
            np.testing.assert_array_equal(getattr(left, field), getattr(right, field))


@pytest.mark.parametrize("most", [20, 50_000])
def test_labelled_turns_are_those_of_memory(whole: Corpus, stored: Corpus, vocab: Vocabulary, most: int) -> None:
    config = RewardConfig(max_dialogues=most)
    found = []
    for corpus in (whole, stored):
        part = reward.labelled(corpus, config)
        assert len(part.train) == min(most, len(whole.train))
        assert len(part.validation) == min(most // 10, len(whole.validation))
        table = fit_weak_labels(part.train, part.items)(part.train)
        windows = Windows(vocab, part.train, DATA)
        turns = LabelledTurns(windows, table, drawn_rows(table, windows, 30, seed=2))
        found.append((part, table, turns.batch(np.array([5, 1, 29]))))
    (one, table, batch), (other, stored_table, stored_batch) = found
    assert tuple(one.train) == tuple(other.train)
    if most == 20:
        # Evenly spread, none twice.
        numbers = [list(whole.train).index(dialogue) for dialogue in one.train]
        assert numbers[0] == 0 and set(np.diff(numbers)) == {2, 3}
    for left, right in zip(table.arrays().values(), stored_table.arrays().values(), strict=True):
        np.testing.assert_array_equal(left, right)
    for left, right in zip((*batch.inputs, batch.labels), (*stored_batch.inputs, stored_batch.labels), strict=True):
        np.testing.assert_array_equal(left, right)


def test_recommenders_count_the_same_and_keep_no_text(
    whole: Corpus, stored: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = Catalogue(tuple(whole.items), {item: one.title for item, one in whole.items.items()})
    one = read_training(whole.train, catalogue)
    monkeypatch.setattr("rlhf_jax.recommenders.contexts.BLOCK_DIALOGUES", 7)
    other = read_training(stored.train, catalogue)
    assert dict(one.numbers) == dict(other.numbers)
    for name in ("mentions", "fresh"):
        left, right = getattr(one, name), getattr(other, name)
        assert left.shape == right.shape and left.dtype == right.dtype and (left != right).nnz == 0
    for name in ("items", "starts", "own"):
        left, right = getattr(one.rows, name), getattr(other.rows, name)
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype
    for name in ("words", "texts", "asked"):
        assert isinstance(getattr(other.rows, name), StoredWords)
        assert tuple(getattr(other.rows, name)) == getattr(one.rows, name)
    part, few = other.rows.part(3, 9), one.rows.part(3, 9)
    assert tuple(part.texts) == few.texts and tuple(part.chosen([4, 0]).asked) == few.chosen([4, 0]).asked
    for module in (popularity, co_mention, context_knn):
        np.testing.assert_array_equal(module.scores(module.fit(one), few), module.scores(module.fit(other), part))


def test_memory_of_batches_does_not_grow_with_the_dialogues(folder: Path, vocab: Vocabulary, tmp_path: Path) -> None:
    """Bytes of Python objects while 200 batches of prompts and responses are made: 4 times the dialogues may take what their index
    takes, 8 bytes a turn and an order of 8, and no more than 40 a turn with the temporaries of both."""

    def peak(times: int, updates: int = 200) -> tuple[int, int]:
        source = tmp_path / f"{times}"
        if not source.exists():
            growth.enlarge(folder, source, times)
        corpus = read_stored_corpus(source, DataConfig(), tmp_path / "store", notice)
        tracemalloc.start()
        windows = Windows(vocab, corpus.train, DATA)
        turns = windows.turns()
        prompts = PromptBatches(windows.prompts_of(turns), batch_size=1, seed=0)
        for update in range(updates):
            prompts.batch(update)
            windows.responses([turns[row] for row in prompts.rows(update)])
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found, len(turns)

    peak(1, updates=5)  # What is cached on the way is not the dialogues'.
    (few, n_few), (many, n_many) = peak(1), peak(4)
    assert n_many > 3.5 * n_few
    assert many - few < 40 * (n_many - n_few)

"""A corpus on disk says what the corpus in memory says, token by token; a second start reads what the first one kept."""

import dataclasses
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.data import dialogue_store, flat
from rlhf_jax.data.dialogue_store import StoredDialogues, read_stored_corpus
from rlhf_jax.data.sources import read_corpus
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import training_texts
from rlhf_jax.decoding.grammar import Grammar
from rlhf_jax.interfaces import Corpus
from rlhf_jax.runtime.files import RunError, notice
from rlhf_jax.simulators.world import WorldConfig
from rlhf_jax.simulators.world_dialogues import write_world
from rlhf_jax.stages import stored_texts
from rlhf_jax.stages.setup import DataConfig
from rlhf_jax.stages.supervised import SupervisedConfig, training_batches
from rlhf_jax.stages.teacher import make_teacher
from rlhf_jax.stages.texts import TextBatches
from scale import growth

SFT = SupervisedConfig(
    max_tokens=64, buckets=(16, 32, 64), tokens_per_batch=256, description_tokens=16, description_epochs=1
)
WORDS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of 50 dialogues, some longer than a text may be."""
    path = tmp_path_factory.mktemp("world") / "data"
    write_world(path, WorldConfig(n_items=24, n_train=50, n_test=6, n_users=8), 0)
    return path


@pytest.fixture
def streamed(folder: Path, tmp_path: Path) -> Corpus:
    return read_stored_corpus(folder, DataConfig(), tmp_path, notice)


def grammar_of(vocab: Vocabulary) -> Grammar:
    return Grammar(**vocab.grammar._asdict(), max_items=2, vocab_size=vocab.size)


def batches_of(corpus: Corpus, seed: int = 3) -> TextBatches:
    if isinstance(corpus.train, StoredDialogues):
        vocab = stored_texts.stored_vocabulary(corpus.train, tuple(corpus.items), WORDS)
    else:
        vocab = Vocabulary.train(training_texts(corpus.train), corpus.items, WORDS)
    return training_batches(corpus, vocab, grammar_of(vocab), SFT, seed)


def arrays(batches: TextBatches, step: int) -> Iterator[np.ndarray]:
    tokens, mask, targets = batches.batch(step)
    yield from (tokens, mask, *(np.asarray(getattr(targets, name.name)) for name in dataclasses.fields(targets)))


def assert_equal_batches(one: TextBatches, other: TextBatches, epochs: int) -> None:
    assert one.steps(epochs) == other.steps(epochs) > epochs
    for step in range(one.steps(epochs)):
        for left, right in zip(arrays(one, step), arrays(other, step), strict=True):
            np.testing.assert_array_equal(left, right)
            assert left.dtype == right.dtype


def test_a_corpus_on_disk_is_the_corpus_in_memory(folder: Path, streamed: Corpus) -> None:
    whole = read_corpus(folder, DataConfig())
    for split in ("train", "validation", "test"):
        assert tuple(getattr(streamed, split)) == getattr(whole, split)
    assert dict(streamed.items) == dict(whole.items)
    assert list(streamed.items) == list(whole.items)
    assert streamed.provenance == whole.provenance
    assert streamed.validation[1:3][0] == whole.validation[1]
    assert isinstance(streamed.train, StoredDialogues)
    assert list(streamed.train.dialogue_ids()) == [dialogue.dialogue_id for dialogue in whole.train]


def test_streamed_batches_are_those_of_memory_over_several_epochs(folder: Path, streamed: Corpus) -> None:
    whole, stream = batches_of(read_corpus(folder, DataConfig())), batches_of(streamed)
    assert stream.vocab == whole.vocab
    assert_equal_batches(stream, whole, epochs=3)
    # Any step can be asked for alone, as a resumed run does.
    last = stream.steps(3) - 1
    for left, right in zip(arrays(batches_of(streamed), last), arrays(whole, last), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_second_start_reads_no_line_and_encodes_nothing(
    folder: Path, streamed: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = batches_of(streamed)

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(dialogue_store, "record_of", refused)
    monkeypatch.setattr(stored_texts, "dialogue_pieces", refused)
    monkeypatch.setattr(Vocabulary, "train", refused)
    again = read_stored_corpus(folder, DataConfig(), tmp_path, notice)
    assert_equal_batches(batches_of(again), first, epochs=1)
    # Other numbers are another store.
    with pytest.raises(AssertionError, match="made again"):
        read_stored_corpus(folder, DataConfig(max_dialogues=20), tmp_path, notice)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("dialogues/records.values", "a byte"),
        ("dialogues/train", "cut short"),
        ("texts-*/texts.starts", "missing"),
        ("texts-*/texts.values", "the seal"),
    ],
)
def test_what_was_damaged_is_made_again_and_said(
    folder: Path, streamed: Corpus, tmp_path: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = batches_of(streamed)
    (path,) = next(tmp_path.iterdir()).glob(name)
    content = path.read_bytes()
    if damage == "a byte":
        path.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])
    elif damage == "cut short":
        path.write_bytes(content[:-8])
    elif damage == "missing":
        path.unlink()
    else:
        (path.parent / flat.SEAL).write_text("[")
    capsys.readouterr()
    again = batches_of(read_stored_corpus(folder, DataConfig(), tmp_path, notice))
    assert "it is made again" in capsys.readouterr().err
    assert path.read_bytes() == content
    assert_equal_batches(again, first, epochs=1)
    # Nothing half-made is left beside it.
    assert not list(tmp_path.rglob("*.partial"))


def test_memory_does_not_grow_with_the_dialogues(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_texts, "DIALOGUES", 20)

    def peak(times: int, store: Path | None) -> tuple[int, int]:
        source = tmp_path / f"{times}-{store is None}"
        if not source.exists():
            growth.enlarge(folder, source, times)
        tracemalloc.start()
        options = DataConfig()
        corpus = read_corpus(source, options) if store is None else read_stored_corpus(source, options, store, notice)
        batches_of(corpus).batch(0)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found, len(corpus.train)

    def bytes_a_dialogue(store: Path | None) -> float:
        peak(1, store)  # What is imported and cached on the way is not the dialogues'.
        (few, n_few), (many, n_many) = peak(1, store), peak(4, store)
        return (many - few) / (n_many - n_few)

    assert bytes_a_dialogue(tmp_path / "store") < 0.3 * bytes_a_dialogue(None)


def test_an_error_of_the_reader_leaves_no_store(folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    growth.enlarge(folder, bad, 1)
    with (bad / "train_data.jsonl").open("a", encoding="utf-8") as file:
        file.write("{}\n")
    with pytest.raises(ValueError, match="train_data.jsonl, line 5"):
        read_stored_corpus(bad, DataConfig(), tmp_path / "store", notice)
    assert not list((tmp_path / "store").rglob("*.values"))


@pytest.mark.slow
def test_redial_is_the_same_from_disk_and_memory(data_dir: Path, tmp_path: Path) -> None:
    options = DataConfig(source="redial", dir=data_dir / "redial", store=tmp_path, n_words=2000)
    whole = read_corpus(data_dir / "redial", options)
    stream = read_stored_corpus(data_dir / "redial", options, tmp_path, notice)
    assert tuple(stream.train) == whole.train and stream.provenance == whole.provenance
    vocab = Vocabulary.train(training_texts(stream.train), stream.items, 2000)
    assert vocab == Vocabulary.train(training_texts(whole.train), whole.items, 2000)
    config = SupervisedConfig(buckets=(32, 128, 256, 512))
    one, other = (training_batches(corpus, vocab, grammar_of(vocab), config, 0) for corpus in (stream, whole))
    assert one.rooms == other.rooms and one.steps(3) == other.steps(3)
    for step in range(0, one.steps(3), 7):
        for left, right in zip(arrays(one, step), arrays(other, step), strict=True):
            np.testing.assert_array_equal(left, right)


def test_a_teacher_reads_dialogues_in_memory_alone(streamed: Corpus, tmp_path: Path) -> None:
    vocab = Vocabulary.train(["hello"], tuple(streamed.items), WORDS)
    with pytest.raises(RunError, match=r"--sft\.teacher-weight reads all training dialogues at once: .* --data\.store"):
        make_teacher(tmp_path / "teacher.npz", streamed, vocab, 4)

"""The retriever as a stage: its loss against NumPy, its batches, what it learns, and that a killed run continues."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.feedback.encoders import default_cache
from rlhf_jax.interfaces import Corpus, Dialogue, Item, Message
from rlhf_jax.models import retriever as towers
from rlhf_jax.recommenders import dual_view
from rlhf_jax.recommenders.bm25 import item_text
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.run import open_run
from rlhf_jax.stages.smtpo import retriever
from rlhf_jax.stages.smtpo.retriever import Known, PairBatch, Pairs, RetrieverConfig, Sources, count_sources, recall

CONFIG = RetrieverConfig(
    semantic=6,
    collaborative=4,
    n_recent=2,
    width=8,
    n_head=2,
    dropout=0.0,
    epochs=4,
    batch_size=16,
    hard_negatives=4,
    uniform_negatives=6,
    learning_rate=0.05,
    warmup_steps=2,
    average_decay=0.8,
    candidates=2,
    patience=None,
    evaluations_per_epoch=1,
)
WISHES = ("scary", "funny", "sad", "slow")


def talk(number: int) -> Dialogue:
    """Who wants 'scary' is told item 10, who wants 'funny' 11, …; item 20 is named by everyone, and 21 after it."""
    wish = number % 4
    said = ("seeker", "recommender", "recommender")
    parts = [(f"something {WISHES[wish]} like ", 20), ("try ", 10 + wish), ("or ", 20, 21)]
    return Dialogue(
        f"d{number}",
        tuple(Message(role, words, n) for n, (role, words) in enumerate(zip(said, parts, strict=True))),
        {},
        {},
    )


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    items = {number: Item(item_id=number, title=f"Film {number}") for number in (10, 11, 12, 13, 20, 21, 30)}
    dialogues = tuple(map(talk, range(48)))
    return Corpus(
        train=dialogues[:32], validation=dialogues[32:40], test=dialogues[40:], items=items, provenance={"n_skipped": 0}
    )


@pytest.fixture(scope="module")
def sources(corpus: Corpus) -> Sources:
    return count_sources(corpus, CONFIG)


def test_pairs_are_the_fresh_items_and_their_negatives_are_not(sources: Sources) -> None:
    pairs = Pairs(sources, CONFIG, seed=0)
    assert pairs.n == 64  # 32 dialogues: what was asked for, and item 21.
    batch = pairs.batch(3)
    for target, gold in zip(batch.target, batch.gold, strict=True):
        assert int(target) in [int(one) for one in gold if one >= 0]
    again = Pairs(sources, CONFIG, seed=0).batch(3)
    jax.tree.map(np.testing.assert_array_equal, batch, again)
    assert (
        batch.target.tolist()
        != pairs.batch(4).target.tolist()
        != Pairs(sources, CONFIG, seed=1).batch(3).target.tolist()
    )
    seen = [int(one) for step in range(4) for one in pairs.batch(step).target]
    assert np.bincount(seen, minlength=7).tolist() == [8, 8, 8, 8, 0, 32, 0]
    drawn = 16 * np.bincount(seen, minlength=7) / 64 + 6 / 7
    drawn = drawn + 4 * np.bincount(pairs._hard.ravel(), minlength=7) / pairs._hard.size
    np.testing.assert_allclose(np.exp(pairs.log_chance), 1 - np.exp(-drawn), rtol=1e-5)


def test_the_correction_is_how_often_a_candidate_is_among_those_of_a_step(corpus: Corpus) -> None:
    few = dataclasses.replace(CONFIG, batch_size=4, hard_negatives=2, uniform_negatives=2)
    sources = count_sources(corpus, few)
    pairs, rng, steps = Pairs(sources, few, seed=0), np.random.default_rng(0), 4_000
    found = np.zeros(7)
    for step in range(steps):
        batch = pairs.batch(step)
        found[np.unique(np.concatenate([batch.target, batch.hard, rng.integers(0, 7, 2)]))] += 1
    # Poisson's law for draws that are not quite independent: within .06 of the share that is counted.
    np.testing.assert_allclose(np.exp(pairs.log_chance), found / steps, atol=0.06)


def test_hard_negatives_are_co_mentions_favourites_without_the_gold(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retriever, "HARD_POOL", 3)
    training = sources.training
    used = np.flatnonzero(np.diff(training.fresh.indptr))
    pool = retriever.hard_pool(training, training.rows.chosen(used), training.fresh[used])
    for row, hard in zip(used, pool, strict=True):
        gold = training.fresh.indices[training.fresh.indptr[row] : training.fresh.indptr[row + 1]]
        assert not set(gold) & set(hard.tolist())
    # Before the first suggestion everyone has named 20, which 21 goes with.
    assert (pool[::2, 0] == 5).all()


def test_the_loss_is_that_of_its_definition(sources: Sources) -> None:
    pairs = Pairs(sources, CONFIG, seed=0)
    network = towers.RetrieverNetwork(7, sources.views.items.semantic.shape[1], 4, 2, width=8, n_head=2, dropout=0.0)
    params = towers.init(network, jax.random.key(0), jnp.arange(7.0) / 3)
    batch, items = pairs.batch(0), sources.views.items
    batch = PairBatch(
        dialogues=batch.dialogues,
        target=batch.target,
        gold=batch.gold.at[0, 0].set((batch.target[0] + 1) % 7),
        hard=batch.hard,
    )
    known, key = Known(items, jnp.asarray(pairs.log_chance)), jax.random.key(5)
    loss = functools.partial(retriever.contrastive_loss, network=network, known=known, n_uniform=6)
    sums = jax.jit(loss)(params, batch, key)
    uniform = jax.random.randint(jax.random.split(key)[1], (6,), 0, 7)
    drawn = sorted({int(one) for one in jnp.concatenate([batch.target, batch.hard, uniform])})
    scores = np.asarray(towers.item_scores(network, params, items, batch.dialogues), np.float64) - pairs.log_chance
    total = 0.0
    for row, target, gold in zip(scores, batch.target.tolist(), batch.gold.tolist(), strict=True):
        against = [one for one in drawn if one == target or one not in gold]
        total += np.log(np.exp(row[against]).sum()) - row[target]
    assert sums.loss == pytest.approx(total, rel=1e-4) and sums.count == 16


@pytest.fixture
def kept_programs(program_cache: Path) -> Iterator[None]:
    """One step is compiled for three runs."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    for name, value in zip(names, (str(program_cache), 0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.slow
@pytest.mark.usefixtures("kept_programs")
def test_it_learns_the_wish_and_a_killed_run_ends_the_same(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_run(tmp_path / "whole", CONFIG, trackers=()) as run:
        whole = retriever.train(run, sources, CONFIG, seed=0)
    found = dual_view.without_named(lambda contexts: dual_view.scores(whole, contexts), sources.validation)
    # Who knows what is popular and not the wish finds 21 always and the other one time in four.
    assert recall(found, sources.gold, 2) > 0.9
    made = Pairs.batch

    def killed(self: Pairs, index: int) -> PairBatch:
        if index == 11:
            raise KeyboardInterrupt
        return made(self, index)

    monkeypatch.setattr(Pairs, "batch", killed)
    with open_run(tmp_path / "killed", CONFIG, trackers=()) as run, pytest.raises(KeyboardInterrupt):
        retriever.train(run, sources, CONFIG, seed=0)
    monkeypatch.setattr(Pairs, "batch", made)
    with open_run(tmp_path / "killed", CONFIG, trackers=()) as run:
        continued = retriever.train(run, sources, CONFIG, seed=0)
    jax.tree.map(np.testing.assert_array_equal, continued.params, whole.params)
    # The weights beside a closed form that knows nothing are the towers'.
    nothing = {"nothing": lambda contexts: np.zeros((len(contexts), 7), np.float32)}
    weights = retriever.fuse(whole, nothing, sources).weights
    assert weights["towers"] > 0.1 and weights["nothing"] == pytest.approx(0.3)


def test_the_words_may_be_read_by_a_pretrained_encoder(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(CONFIG, encoder="minilm", minilm=Path("folder"))

    def encoder(folder: Path, *, cache: Path) -> dual_view.Encoder:
        assert folder == config.minilm and cache == default_cache()
        return lambda texts: np.array([[len(text), 1.0] for text in texts])

    monkeypatch.setattr(retriever, "minilm_encoder", encoder)
    views = count_sources(corpus, config).views
    wanted = np.array([[len(item_text(item)), 1.0] for item in corpus.items.values()])
    expected = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(views.items.semantic, expected, rtol=1e-5)


def test_recall_counts_gold_items_and_ties_against() -> None:
    from scipy.sparse import csr_array

    scores = np.array([[3.0, 2.0, 1.0], [1.0, 1.0, 0.0]], np.float32)
    gold = csr_array(np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    assert recall(scores, gold, 1) == pytest.approx(1 / 3)
    assert recall(scores, gold, 2) == 1


def test_what_cannot_be_learnt_is_refused(sources: Sources) -> None:
    silent = Dialogue("d", (Message("seeker", ("hi",), 0), Message("recommender", ("hi",), 1)), {}, {})
    corpus = Corpus(
        train=(silent,), validation=(talk(0),), test=(), items={10: Item(item_id=10, title="")}, provenance={}
    )
    with pytest.raises(RunError, match="suggests something new"):
        count_sources(corpus, CONFIG)
    with pytest.raises(ValueError, match="not a multiple of RetrieverConfig.n_head 3"):
        dataclasses.replace(CONFIG, n_head=3)
    with pytest.raises(ValueError, match="RetrieverConfig.encoder is tfidf"):
        dataclasses.replace(CONFIG, minilm=Path("somewhere"))

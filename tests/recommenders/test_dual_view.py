"""Views of items and contexts, and scores of given towers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_training import CATALOGUE, ITEM_IDS, ITEMS, NEVER, items_of, random_dialogues, toy_training

from rlhf_jax.models import retriever
from rlhf_jax.models.retriever import RetrieverNetwork
from rlhf_jax.recommenders import dual_view
from rlhf_jax.recommenders.contexts import Contexts, Training
from rlhf_jax.recommenders.dual_view import DualView, Views, candidates, fit_views, without_named


def lengths(texts: list[str] | tuple[str, ...]) -> np.ndarray:
    """An encoder whose vectors are known: letters and words of a text."""
    return np.array([[len(text), len(text.split())] for text in texts], np.float64)


@pytest.fixture(scope="module")
def training() -> Training:
    return toy_training()[1]


def test_the_collaborative_view_is_the_best_of_its_rank(training: Training) -> None:
    """Its products are those of the dense eigenvectors, whatever their signs."""
    shares = np.zeros((10, 10))
    for dialogue in random_dialogues():
        present = np.array([item in items_of(dialogue) for item in ITEM_IDS], float)
        shares += np.outer(present, present)
    n = np.diag(shares)
    similar = shares / np.sqrt(np.outer(n + 5, n + 5))
    values, vectors = np.linalg.eigh(similar)
    best = vectors[:, -4:] * np.sqrt(values[-4:])
    size = np.linalg.norm(best, axis=1, keepdims=True)
    expected = np.where(size > 1e-9, best / np.maximum(size, 1e-9), 0)
    found = dual_view.factorise(training, 4, 5.0)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)
    assert not found[ITEM_IDS.index(NEVER)].any()
    np.testing.assert_array_equal(found, dual_view.factorise(training, 4, 5.0))
    assert dual_view.factorise(training, 99, 5.0).shape == (10, 9), "one less than the items"


def test_views_are_of_length_one_and_read_what_they_should(training: Training) -> None:
    views = fit_views(training, ITEMS, lengths, components=3, n_recent=2)
    np.testing.assert_allclose(np.linalg.norm(views.items.semantic, axis=1), 1, rtol=1e-6)
    part = training.rows.part(0, 4)
    said = views.of(part)
    wanted = lengths(part.words)
    np.testing.assert_allclose(said.semantic * np.linalg.norm(wanted, axis=1, keepdims=True), wanted, rtol=1e-5)
    titled = views._replace(titles=True).of(part)
    wanted = lengths(part.texts)
    np.testing.assert_allclose(titled.semantic * np.linalg.norm(wanted, axis=1, keepdims=True), wanted, rtol=1e-5)
    for row, recent in enumerate(said.recent):
        newest = part.items[part.starts[row] : part.starts[row + 1]][::-1]
        assert [item for item in recent if item >= 0] == list(dict.fromkeys(newest.tolist()))[:2]


def towers(views: Views) -> DualView:
    network = RetrieverNetwork(n_items=10, semantic=2, collaborative=3, n_recent=2, width=4, n_head=2)
    return DualView(network, retriever.init(network, jax.random.key(0), jnp.zeros(10)), views)


def test_scores_do_not_hang_on_the_batch(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = towers(fit_views(training, ITEMS, lengths, components=3, n_recent=2))
    contexts = training.rows
    whole = dual_view.scores(fitted, contexts)
    assert whole.shape == (len(contexts), len(CATALOGUE.item_ids)) and whole.std() > 0
    monkeypatch.setattr(dual_view, "BATCH", 4)
    np.testing.assert_allclose(dual_view.scores(fitted, contexts), whole, atol=1e-5)
    np.testing.assert_allclose(dual_view.scores(fitted, contexts.part(2, 5)), whole[2:5], atol=1e-5)


def test_chosen_contexts_are_those_contexts(training: Training) -> None:
    rows = training.rows
    found = rows.chosen([3, 0])
    for place, row in enumerate((3, 0)):
        one = rows.part(row, row + 1)
        got = found.part(place, place + 1)
        assert (got.words, got.texts) == (one.words, one.texts)
        assert got.items.tolist() == one.items.tolist() and got.own.tolist() == one.own.tolist()
    assert len(rows.chosen([])) == 0


def test_what_was_named_comes_last_and_the_rest_keeps_its_order(training: Training) -> None:
    scores = np.random.default_rng(0).normal(size=(len(training.rows), 10)).astype(np.float32)
    found = without_named(lambda contexts: scores, training.rows)
    for row in range(len(training.rows)):
        part = training.rows.part(row, row + 1)
        named = sorted(set(part.items.tolist()))
        others = [item for item in range(10) if item not in named]
        assert found[row, others].tolist() == scores[row, others].tolist()
        if named and others:
            assert found[row, named].max() < found[row, others].min()
    assert scores[0].tolist() != found[0].tolist() or not len(training.rows.part(0, 1).items)


def test_candidates_are_the_highest_of_equal_ones_the_first() -> None:
    scores = np.array([[0.0, 2.0, 2.0, 5.0], [1.0, 1.0, 1.0, 1.0]], np.float32)
    assert candidates(scores, 3).tolist() == [[3, 1, 2], [0, 1, 2]]
    with pytest.raises(ValueError, match="5 candidates of 4 items"):
        candidates(scores, 5)


def test_numbers_outside_their_range_are_named(training: Training) -> None:
    with pytest.raises(ValueError, match="components is 0"):
        fit_views(training, ITEMS, lengths, components=0)
    with pytest.raises(ValueError, match="n_recent 0"):
        fit_views(training, ITEMS, lengths, n_recent=0)
    assert isinstance(training.rows, Contexts)

"""The mixture against plain loops; fitted weights against a generic optimiser's view of the same objective."""

import functools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from toy_training import CATALOGUE, ITEM_IDS, ITEMS, random_dialogues, toy_training

from rlhf_jax.data.windows import ranking_rows
from rlhf_jax.recommenders import contexts, mixture
from rlhf_jax.recommenders.contexts import Contexts, Recommender, counts, read_training, row_contexts
from rlhf_jax.recommenders.mixture import WEIGHTS, fit_parts, fit_weights, mix, standardised


def table(values: np.ndarray) -> Recommender:
    """A recommender that knows the scores of numbered contexts: the number is the own dialogue."""
    return lambda part: values[part.own].astype(np.float32)


def numbered(n: int, n_items: int, named: dict[int, list[int]] | None = None) -> Contexts:
    mentions = [(named or {}).get(row, []) for row in range(n)]
    flat = np.array([item for found in mentions for item in found], np.int32)
    starts = np.cumsum([0, *map(len, mentions)])
    return Contexts(n_items, flat, starts, ("",) * n, ("",) * n, np.arange(n, dtype=np.int32))


def negative_log_likelihood(z: np.ndarray, gold: np.ndarray, named: np.ndarray, w: np.ndarray, a: float) -> float:
    """The objective, as loops."""
    total, n = 0.0, 0
    for row in range(len(z)):
        logits = [a * math.asinh(sum(w[m] * z[row, m, i] for m in range(z.shape[1]))) for i in range(z.shape[2])]
        norm = math.log(sum(math.exp(x) for i, x in enumerate(logits) if not named[row, i]))
        for item in np.flatnonzero(gold[row] & ~named[row]):
            total, n = total - (logits[item] - norm), n + 1
    return total / n


@given(st.integers(0, 2**32 - 1), st.sampled_from(["z", "asinh"]))
def test_standard_scores_are_the_formula(seed: int, form: str) -> None:
    scores = np.random.default_rng(seed).normal(3.0, 50.0, (4, 7))
    z = standardised(scores, form)  # type: ignore[arg-type]
    for line, out in zip(scores, z, strict=True):
        expected = [(x - line.mean()) / line.std() for x in line]
        assert out == pytest.approx([math.asinh(x) for x in expected] if form == "asinh" else expected, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, -7e6, 1e-30])
def test_equal_scores_say_nothing(value: float) -> None:
    assert not standardised(np.full((2, 1001), value, np.float32)).any()


def test_the_mixture_is_the_weighted_sum() -> None:
    _, training = toy_training()
    parts = fit_parts(training, ITEMS)
    assert tuple(parts) == tuple(WEIGHTS)
    found = mixture.scores(mix(parts), training.rows)
    expected = sum(weight * standardised(parts[name](training.rows)) for name, weight in WEIGHTS.items())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float32
    # Weights are joined to parts by name, whatever their order.
    turned = mix(parts, dict(reversed(WEIGHTS.items())))
    np.testing.assert_allclose(mixture.scores(turned, training.rows), found, atol=1e-5)


def test_without_its_own_dialogue_equals_fitting_without_it() -> None:
    dialogues, training = toy_training(3)
    scores = mixture.scores(mix(fit_parts(training, ITEMS)), training.rows)
    for number, dialogue in enumerate(dialogues[:5]):
        rows = list(ranking_rows([dialogue]))
        rest = read_training([other for other in dialogues if other is not dialogue], CATALOGUE)
        again = mixture.scores(mix(fit_parts(rest, ITEMS)), row_contexts(rows, CATALOGUE))
        np.testing.assert_allclose(scores[training.rows.own == number], again, atol=2e-4)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    _, training = toy_training()
    fitted = mix(fit_parts(training, ITEMS), form="asinh")
    at_once = mixture.scores(fitted, training.rows)
    monkeypatch.setattr(contexts, "BLOCK_ENTRIES", 1)
    np.testing.assert_allclose(mixture.scores(fitted, training.rows), at_once, atol=1e-6)


@pytest.mark.parametrize("form", ["z", "asinh"])
def test_fitted_weights_are_the_maximum(form: str) -> None:
    generator = np.random.default_rng(0)
    n, n_items = 60, 15
    gold = np.zeros((n, n_items), bool)
    gold[np.arange(n), generator.integers(n_items, size=n)] = True
    gold[::3, 2] = True
    named = {0: [1, 1], 5: [int(gold[5].argmax())]}
    values = [generator.normal(size=(n, n_items)) + strength * gold for strength in (2.0, 0.7, 0.0)]
    parts = {name: table(value) for name, value in zip("abc", values, strict=True)}
    rows = numbered(n, n_items, named)
    fitted = fit_weights(parts, rows, csr_array(gold.astype(np.float32)), form=form)  # type: ignore[arg-type]
    z = np.stack([standardised(value, form) for value in values], 1)  # type: ignore[arg-type]
    mask = np.zeros_like(gold)
    mask[0, 1] = mask[5, named[5][0]] = True
    w = np.array(list(fitted.weights.values()))
    best = negative_log_likelihood(z, gold, mask, w, fitted.sharpness)
    assert fitted.log_likelihood == pytest.approx(-best, abs=1e-5)
    assert fitted.n == int((gold & ~mask).sum()) == int(gold.sum()) - 1
    assert w[0] > w[1] > w[2] >= 0
    for place in range(3):
        for step in (-0.05, 0.05):
            moved = w.copy()
            moved[place] = max(0.0, moved[place] + step)
            assert negative_log_likelihood(z, gold, mask, moved, fitted.sharpness) >= best - 1e-5
    for factor in (0.9, 1.1):
        assert negative_log_likelihood(z, gold, mask, w, fitted.sharpness * factor) >= best - 1e-5


def test_computed_anew_or_kept_is_the_same() -> None:
    _, training = toy_training()
    parts = fit_parts(training, ITEMS)
    rows = list(ranking_rows(random_dialogues(9, first=100)))
    columns = contexts.columns_of(ITEM_IDS)
    arguments = (parts, row_contexts(rows, CATALOGUE), counts([row.fresh_gold for row in rows], columns))
    kept, anew = fit_weights(*arguments), fit_weights(*arguments, keep_bytes=0)
    assert kept == anew
    assert kept.log_likelihood > -math.log(len(ITEM_IDS))


def test_bad_input_is_named() -> None:
    _, training = toy_training()
    parts = fit_parts(training, ITEMS, ("popularity", "context_knn_titles"))
    assert tuple(parts) == ("popularity", "context_knn_titles")
    fit = functools.partial(fit_weights, parts, training.rows)
    with pytest.raises(ValueError, match="unknown recommender 'random'"):
        fit_parts(training, ITEMS, ("random",))
    with pytest.raises(ValueError, match="weights for popularity, co_mention"):
        mix(parts)
    with pytest.raises(ValueError, match="parts none"):
        mix({}, {})
    with pytest.raises(ValueError, match="gold has shape"):
        fit(csr_array((2, 2)))
    with pytest.raises(ValueError, match="have no gold item"):
        fit(csr_array(training.fresh.shape))
    with pytest.raises(ValueError, match="start for bm25"):
        fit(training.fresh, start={"bm25": 1.0})


def test_the_likeliest_items_are_those_of_the_fitted_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    n, n_items = 5, 9
    raw = rng.normal(size=(2, n, n_items))
    raw[:, 3] = 1.0  # nobody knows anything: all alike
    parts = {"a": table(raw[0]), "b": table(raw[1])}
    named = {0: [2, 4, 2], 2: list(range(7)), 4: list(range(9))}
    fitted = mixture.FittedWeights({"b": 0.4, "a": 1.3}, 2.5, 0.0, 1)
    # One context at a time, as large catalogues have it.
    monkeypatch.setattr(mixture, "BLOCK_ENTRIES", 4 * 2 * n_items)
    columns, chances = mixture.likeliest(parts, fitted, numbered(n, n_items, named), 4)
    for row in range(n):
        v = 1.3 * standardised(raw[0, row]) + 0.4 * standardised(raw[1, row])
        left = [item for item in range(n_items) if item not in named.get(row, [])]
        best = sorted(left, key=lambda item: (-float(v[item]), item))[:4]
        odds = [math.exp(2.5 * math.asinh(float(v[item]))) for item in best]
        assert columns[row, : len(best)].tolist() == best
        assert chances[row, : len(best)] == pytest.approx([one / sum(odds) for one in odds], rel=1e-4)
        assert not chances[row, len(best) :].any()
    # More than there are: all of them.
    assert mixture.likeliest(parts, fitted, numbered(n, n_items), 50)[0].shape == (n, n_items)

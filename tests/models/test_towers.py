"""The towers: against NumPy, what each view reads, and what padding may not change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import retriever
from rlhf_jax.models.retriever import DialogueViews, ItemViews, RetrieverNetwork

NET = RetrieverNetwork(n_items=5, semantic=3, collaborative=2, n_recent=3, width=8, n_head=2, dropout=0.5)
DRAWS = np.random.default_rng(0)
ITEMS = ItemViews(
    semantic=jnp.asarray(DRAWS.normal(size=(5, 3)), jnp.float32),
    collaborative=jnp.asarray(DRAWS.normal(size=(5, 2)), jnp.float32),
)
SAID = DialogueViews(
    semantic=jnp.asarray(DRAWS.normal(size=(3, 3)), jnp.float32),
    recent=jnp.array([[4, 1, -1], [2, -1, -1], [-1, -1, -1]]),
)


def params_of(view: retriever.View) -> tuple[RetrieverNetwork, dict]:
    """Random weights everywhere, the zeros of the start included."""
    network = dataclasses.replace(NET, view=view)
    params = retriever.init(network, jax.random.key(0), jnp.zeros(5))
    leaves, form = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return network, jax.tree.unflatten(form, moved)


def norm(x: np.ndarray) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def ask(p: dict, query: np.ndarray, known: list[np.ndarray]) -> np.ndarray:
    """One query over the vectors it may read, head by head."""
    if not known:
        return np.zeros(8)
    q, k, v = (
        np.asarray(x) @ p[n]["kernel"] + p[n]["bias"] for x, n in zip((query, known, known), p_names, strict=True)
    )
    out = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = np.exp(k[:, head] @ q[head] / 2)
        out.append(weights / weights.sum() @ v[:, head])
    return np.concatenate(out)


p_names = ("query", "key", "value")


def by_hand(p: dict) -> np.ndarray:
    """Scores of `both`, dialogue by dialogue, in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p)

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return x @ p[name]["kernel"] + p[name]["bias"]

    items = norm(
        p["rows"]
        + dense("item_semantic", np.sqrt(3) * np.asarray(ITEMS.semantic))
        + dense("item_collaborative", np.sqrt(2) * np.asarray(ITEMS.collaborative))
    )
    out = []
    for words, recent in zip(np.asarray(SAID.semantic), np.asarray(SAID.recent), strict=True):
        said = dense("words_out", gelu(dense("words_in", np.sqrt(3) * words)))
        named = [items[i] for i in recent if i >= 0]
        fall = np.exp(-np.log1p(np.exp(p["fall"])) * np.arange(len(named)))
        mean = fall @ np.array(named) / fall.sum() if named else np.zeros(8)
        aged = [vector + p["age"][place + 1] for place, vector in enumerate(named)]
        joined = [said, mean, ask(p["words_ask"], norm(said), aged)]
        joined.append(ask(p["items_ask"], norm(mean), [norm(said) + p["age"][0], *aged]))
        hidden = gelu(dense("up", norm(np.concatenate(joined))))
        h = norm(dense("down", hidden) + said + mean)
        out.append(p["gain"] * items @ h / np.sqrt(8) + p["bias"])
    return np.array(out)


def test_scores_are_those_of_the_formula() -> None:
    network, params = params_of("both")
    found = jax.jit(retriever.item_scores, static_argnums=0)(network, params, ITEMS, SAID)
    np.testing.assert_allclose(found, by_hand(params), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("view", ["both", "semantic", "collaborative"])
def test_a_view_reads_what_is_its_own(view: retriever.View) -> None:
    network, params = params_of(view)
    score = jax.jit(retriever.item_scores, static_argnums=0)
    before = score(network, params, ITEMS, SAID)
    other = DialogueViews(semantic=-SAID.semantic, recent=SAID.recent)
    named = DialogueViews(semantic=SAID.semantic, recent=jnp.roll(SAID.recent, 1, axis=0))
    assert np.allclose(before, score(network, params, ITEMS, other)) == (view == "collaborative")
    assert np.allclose(before, score(network, params, ITEMS, named)) == (view == "semantic")
    words = ItemViews(semantic=-ITEMS.semantic, collaborative=ITEMS.collaborative)
    company = ItemViews(semantic=ITEMS.semantic, collaborative=-ITEMS.collaborative)
    assert np.allclose(before, score(network, params, words, SAID)) == (view == "collaborative")
    assert np.allclose(before, score(network, params, company, SAID)) == (view == "semantic")


def test_a_dialogue_without_items_is_finite_and_its_gradient_too() -> None:
    network, params = params_of("both")
    nothing = DialogueViews(semantic=jnp.zeros((1, 3)), recent=jnp.full((1, 3), -1))
    total, slope = jax.jit(jax.value_and_grad(lambda p: retriever.item_scores(network, p, ITEMS, nothing).sum()))(
        params
    )
    assert np.isfinite(total) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_dropout_thins_by_its_key_alone() -> None:
    network, params = params_of("both")
    drawn = jax.jit(retriever.vectors, static_argnums=0)
    first, again, other = (drawn(network, params, ITEMS, SAID, jax.random.key(k))[0] for k in (0, 0, 1))
    still = drawn(network, params, ITEMS, SAID)[0]
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other) and not np.allclose(first, still)


def test_biases_start_where_they_are_told_and_sizes_are_checked() -> None:
    params = retriever.init(NET, jax.random.key(0), jnp.arange(5.0))
    assert params["bias"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="width 8 a multiple of n_head 3"):
        dataclasses.replace(NET, n_head=3)
    with pytest.raises(ValueError, match="at least 1"):
        dataclasses.replace(NET, n_items=0)

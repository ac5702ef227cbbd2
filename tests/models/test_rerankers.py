"""Re-rankers: each against a plain NumPy forward of the same parameters, what order and text may change, and what they learn."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import unfreeze

from rlhf_jax.equations.listwise import attention_rank_loss, softmax_loss
from rlhf_jax.models import rerankers
from rlhf_jax.models.rerankers import ItemTable, ListInputs, RerankerConfig

B, N, F, E, H, I, A = 3, 5, 2, 6, 4, 12, 3
NETWORKS = [("dlcm", "kar"), ("dlcm", "original"), ("prm", "kar"), ("setrank", "kar"), ("setrank", "original")]
SMALL: dict[str, Any] = {"width": 4, "expert_width": 7, "shared_experts": 2, "private_experts": 3}
Tree = dict[str, Any]
# Compiled once a configuration, for all tests: compiling is what takes the time.
forward = jax.jit(rerankers.scores, static_argnums=0)


def sample(seed: int = 0) -> tuple[ListInputs, ItemTable]:
    """Lists and a catalogue of random numbers; one user has an empty history."""
    draws = np.random.default_rng(seed)
    mask = np.array([[True, True, True, False], [True, False, False, False], [False] * H])
    lists = ListInputs(
        items=jnp.array([draws.choice(I, N, replace=False) for _ in range(B)], jnp.int32),
        counts=jnp.asarray(draws.normal(size=(B, N, F)), jnp.float32),
        text=jnp.asarray(draws.normal(size=(B, E)), jnp.float32),
        history=jnp.asarray(draws.integers(I, size=(B, H)), jnp.int32),
        history_mask=jnp.asarray(mask),
    )
    items = ItemTable(
        attributes=jnp.asarray(draws.normal(size=(I, A)), jnp.float32),
        text=jnp.asarray(draws.normal(size=(I, E)), jnp.float32),
    )
    return lists, items


def random_params(config: RerankerConfig, items: ItemTable, n_counts: int = F) -> Tree:
    """A tree of the network's own shapes in which nothing is 0 or 1: neither biases nor norms."""
    shapes = jax.eval_shape(lambda: rerankers.init(config, jax.random.key(0), items, n_counts))
    draws = np.random.default_rng(5)

    def drawn(leaf: Any) -> np.ndarray:
        spread = 1.0 if leaf.ndim == 1 else np.prod(leaf.shape[:-1]) ** -0.5
        return (spread * draws.normal(size=leaf.shape)).astype(np.float32)

    return unfreeze(jax.tree.map(drawn, shapes))


def softmax(x: np.ndarray) -> np.ndarray:
    raised = np.exp(x - x.max())
    return raised / raised.sum()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def relu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0)


def dense(p: Tree, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p.get("bias", 0)


def norm(p: Tree, x: np.ndarray) -> np.ndarray:
    """Of every row."""
    rows = [(row - row.mean()) / np.sqrt(row.var() + 1e-6) for row in x]
    return np.stack(rows) * p["scale"] + p["bias"]


def attention(p: Tree, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Row by row, head by head."""
    heads, width = p["query"]["bias"].shape
    out = np.zeros((len(x), len(p["out"]["bias"]))) + p["out"]["bias"]
    for head in range(heads):
        q, k, v = (
            at @ p[name]["kernel"][:, head] + p[name]["bias"][head]
            for name, at in (("query", x), ("key", y), ("value", y))
        )
        for row in range(len(x)):
            shares = softmax(np.array([q[row] @ k[other] / width**0.5 for other in range(len(y))]))
            out[row] += sum(share * value for share, value in zip(shares, v, strict=True)) @ p["out"]["kernel"][head]
    return out


def gru(p: Tree, z: np.ndarray) -> np.ndarray:
    """States after each row, as Cho et al. 2014 in the form with the reset inside (PyTorch's too)."""
    h, states = np.zeros(64), []
    for x in z:
        reset = sigmoid(dense(p["ir"], x) + dense(p["hr"], h))
        keep = sigmoid(dense(p["iz"], x) + dense(p["hz"], h))
        new = np.tanh(dense(p["in"], x) + reset * dense(p["hn"], h))
        h = (1 - keep) * new + keep * h
        states.append(h)
    return np.stack(states)


def slow_dlcm(p: Tree, z: np.ndarray, form: str) -> np.ndarray:
    if form == "original":
        states = gru(p["GRUCell_0"], z[::-1])[::-1]
        found = []
        for state in states:
            local = np.tanh(dense(p["local"], state)).reshape(64, 4)
            found.append((local.T @ states[0]) @ p["out"]["kernel"][:, 0])
        return np.array(found)
    states = gru(p["GRUCell_0"], z)
    memory = np.tanh(dense(p["memory"], norm(p["norm_last"], states[-1:])[0]))
    both = np.stack([dense(p["out"], memory * state) for state in norm(p["norm"], states)])
    odds = np.stack([softmax(row) for row in both])
    return np.log(odds[:, 0] / odds[:, 1])


def slow_prm(p: Tree, z: np.ndarray, positions: bool) -> np.ndarray:
    x = z.astype(np.float64).copy()
    if positions:
        for n, k in np.ndindex(z.shape):
            angle = n / 10000 ** ((k - k % 2) / z.shape[1])
            x[n, k] += np.cos(angle) if k % 2 else np.sin(angle)
    y = np.concatenate([attention(p["attention"], x, x), z], axis=1)
    for name in ("dense_0", "dense_1", "dense_2"):
        y = relu(dense(p[name], y))
    return dense(p["out"], y)[:, 0]


def slow_block(p: Tree, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x = norm(p["LayerNorm_0"], x + attention(p["MultiHeadDotProductAttention_0"], x, y))
    return norm(p["LayerNorm_1"], x + dense(p["Dense_0"], relu(dense(p["Dense_1"], x))))


def slow_setrank(p: Tree, z: np.ndarray, form: str) -> np.ndarray:
    if form == "kar":
        return slow_prm(p["encoder"], z, positions=False)
    x = dense(p["in"], z)
    for block in ("0", "1"):
        induced = slow_block(p[f"induce_{block}"], p[f"points_{block}"], x)
        x = slow_block(p[f"read_{block}"], x, induced)
    return dense(p["out"], x)[:, 0]


def slow_adaptor(p: Tree, x: np.ndarray, tower: str) -> np.ndarray:
    """Expert by expert: shared ones first in the gate's order."""
    outs = []
    for experts in (p["shared"], p[f"private_{tower}"]):
        for e in range(len(experts["w_1"])):
            hidden = relu(x @ experts["w_1"][e] + experts["b_1"][e])
            outs.append(relu(hidden @ experts["w_2"][e] + experts["b_2"][e]))
    gate = softmax(x @ p[f"gate_{tower}"]["kernel"])
    return sum(weight * out for weight, out in zip(gate, outs, strict=True))


def slow_scores(config: RerankerConfig, p: Tree, lists: ListInputs, items: ItemTable) -> np.ndarray:
    """One list after the other, one item after the other."""
    columns, counted, texts, mask = (np.asarray(lists[name]) for name in ("items", "counts", "text", "history_mask"))
    history, attributes, item_texts = np.asarray(lists.history), np.asarray(items.attributes), np.asarray(items.text)
    found = []
    for b in range(len(columns)):
        z = []
        for column, counts in zip(columns[b], counted[b], strict=True):
            own = slow_adaptor(p["adaptor"], item_texts[column], "item")
            about = dense(p["attributes"], np.concatenate([attributes[column], counts]))
            parts = [p["id"]["embedding"][column], about, own]
            if config.user != "none":
                if config.user == "text":
                    user = slow_adaptor(p["adaptor"], texts[b], "user")
                else:
                    read = [h for h, there in zip(history[b], mask[b], strict=True) if there]
                    known = [np.concatenate([p["id"]["embedding"][h], attributes[h]]) for h in read]
                    user = relu(dense(p["history"], np.mean(known, axis=0) if known else np.zeros(config.width + A)))
                parts += [user, user * own] if config.interaction else [user]
            z.append(np.concatenate(parts))
        p_network = p[config.network]
        if config.network == "prm":
            found.append(slow_prm(p_network, np.stack(z), positions=True))
        else:
            slow = slow_dlcm if config.network == "dlcm" else slow_setrank
            found.append(slow(p_network, np.stack(z), config.form))
    return np.stack(found)


@pytest.mark.parametrize(
    "config",
    [
        *(RerankerConfig(network=network, form=form, **SMALL) for network, form in NETWORKS),
        RerankerConfig(network="prm", user="none", **SMALL),
        RerankerConfig(network="prm", user="history", **SMALL),
        RerankerConfig(network="setrank", user="text", interaction=False, **SMALL),
        RerankerConfig(network="dlcm", user="history", interaction=False, **SMALL),
    ],
    ids=lambda c: f"{c.network}-{c.form}-{c.user}-{c.interaction}",
)
def test_against_numpy(config: RerankerConfig) -> None:
    lists, items = sample()
    params = random_params(config, items)
    got = np.asarray(forward(config, params, lists, items))
    expected = slow_scores(config, params, lists, items)
    assert np.ptp(expected, axis=1).min() > 1e-2
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)


def rearranged(lists: ListInputs, order: np.ndarray) -> ListInputs:
    return lists.replace(items=lists.items[:, order], counts=lists.counts[:, order])


@pytest.mark.parametrize(("network", "form"), NETWORKS)
def test_order_of_arrival_matters_to_dlcm_and_prm_and_never_to_setrank(network: str, form: str) -> None:
    config = RerankerConfig(network=network, form=form, **SMALL)
    lists, items = sample(1)
    params = random_params(config, items)
    before = np.asarray(forward(config, params, lists, items))
    for order in (np.arange(N)[::-1], np.array([1, 0, 2, 3, 4]), np.array([0, 1, 2, 4, 3])):
        after = np.asarray(forward(config, params, rearranged(lists, order), items))
        gap = np.abs(after - before[:, order]).max()
        if network == "setrank":
            assert gap < 1e-4
        else:
            assert gap > 1e-3, order
    # What makes one list knows nothing of another.
    alone = np.asarray(forward(config, params, jax.tree.map(lambda array: array[jnp.array([1, 0, 1])], lists), items))
    np.testing.assert_allclose(alone, before[[1, 0, 1]], rtol=1e-4, atol=1e-5)


def test_prm_without_positions_is_setrank() -> None:
    z = jnp.asarray(np.random.default_rng(3).normal(size=(2, N, 8)), jnp.float32)
    free = rerankers.PRM("kar", positions=False)
    params = jax.jit(free.init)(jax.random.key(0), z)["params"]
    inside = jax.jit(lambda p: rerankers.SetRank("kar").apply({"params": {"encoder": p}}, z))(params)
    np.testing.assert_array_equal(jax.jit(lambda p: free.apply({"params": p}, z))(params), inside)


def test_what_is_known_of_the_user_is_all_that_counts() -> None:
    lists, items = sample(2)
    others, _ = sample(7)
    changed = {
        "text": lists.replace(text=others.text),
        "history": lists.replace(history=(lists.history + 1) % I),
        "unread": lists.replace(history=jnp.where(lists.history_mask, lists.history, (lists.history + 1) % I)),
    }
    reads = {"none": set(), "text": {"text"}, "history": {"history"}}
    for user, own in reads.items():
        config = RerankerConfig(network="setrank", user=user, **SMALL)
        params = random_params(config, items)
        before = np.asarray(forward(config, params, lists, items))
        for name, other in changed.items():
            moved = np.abs(np.asarray(forward(config, params, other, items)) - before).max(axis=1)
            if name not in own:
                np.testing.assert_array_equal(moved, 0, err_msg=f"{user} reads {name}")
            else:  # The third user's history is empty.
                assert (moved[:2] > 1e-4).all() and (moved[2] > 1e-4) == (name == "text")
        if user == "none":
            assert "history" not in params and "private_user" not in params["adaptor"]


def test_gates_choose_between_shared_and_own_experts() -> None:
    config = RerankerConfig(**SMALL)
    lists, items = sample()
    params = random_params(config, items)["adaptor"]
    apply = jax.jit(lambda p, x, tower: rerankers.Adaptor(config).apply({"params": p}, x, tower), static_argnums=2)
    x = jnp.abs(lists.text)
    for chosen in range(SMALL["shared_experts"] + SMALL["private_experts"]):
        gates = {f"gate_{t}": {"kernel": np.zeros_like(params["gate_user"]["kernel"])} for t in ("user", "item")}
        for gate in gates.values():
            gate["kernel"][:, chosen] = 1e3
        own = jax.tree.map(np.asarray, {**params, **gates})
        user, item = (np.asarray(apply(own, x, tower)) for tower in ("user", "item"))
        shared = chosen < SMALL["shared_experts"]
        place = chosen if shared else chosen - SMALL["shared_experts"]
        for tower, got in (("user", user), ("item", item)):
            experts = params["shared"] if shared else params[f"private_{tower}"]
            hidden = relu(np.asarray(x) @ experts["w_1"][place] + experts["b_1"][place])
            np.testing.assert_allclose(
                got, relu(hidden @ experts["w_2"][place] + experts["b_2"][place]), rtol=1e-4, atol=1e-5
            )
        assert np.allclose(user, item, atol=1e-6) == shared
    # Gates of zeros take the mean; they have no bias, so a text of zeros cannot prefer any expert.
    even = {**params, "gate_user": {"kernel": np.zeros_like(params["gate_user"]["kernel"])}}
    zeros = jnp.zeros((B, E))
    np.testing.assert_allclose(apply(even, zeros, "user"), apply(params, zeros, "user"), rtol=1e-5)


@pytest.mark.parametrize("shared", [0, 2])
def test_one_kind_of_expert_is_enough(shared: int) -> None:
    config = RerankerConfig(**{**SMALL, "shared_experts": shared, "private_experts": 2 - shared})
    lists, items = sample()
    params = random_params(config, items)["adaptor"]
    assert ("shared" in params) == (shared > 0)
    full = {**{name: {"w_1": [], "b_1": [], "w_2": [], "b_2": []} for name in ("shared", "private_user")}, **params}
    got = rerankers.Adaptor(config).apply({"params": params}, lists.text, "user")
    np.testing.assert_allclose(
        got, [slow_adaptor(full, text, "user") for text in np.asarray(lists.text)], rtol=1e-4, atol=1e-5
    )


def test_dropout_thins_while_training_and_keeps_the_mean() -> None:
    config = RerankerConfig(network="setrank", user="none", dropout=0.5, **SMALL)
    lists, items = sample()
    params = random_params(config, items)
    scores = jax.jit(lambda key: rerankers.scores(config, params, lists, items, dropout_key=key))
    one, two = np.asarray(scores(jax.random.key(0))), np.asarray(scores(jax.random.key(1)))
    assert np.abs(one - two).max() > 1e-3
    np.testing.assert_array_equal(one, scores(jax.random.key(0)))
    off = dataclasses.replace(config, dropout=0.0)
    plain = forward(off, params, lists, items)
    np.testing.assert_array_equal(plain, forward(off, params, lists, items, dropout_key=jax.random.key(0)))
    np.testing.assert_array_equal(plain, forward(config, params, lists, items))
    # What reaches the network is z itself, half of it gone and the rest doubled.
    seen = []

    class Watched:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __call__(self, z: jax.Array) -> jax.Array:
            seen.append(z)
            return z[..., 0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rerankers, "SetRank", Watched)
        rerankers.scores(config, params, lists, items)
        for seed in range(10):
            rerankers.scores(config, params, lists, items, dropout_key=jax.random.key(seed))
    z, thinned = np.asarray(seen[0]), np.asarray(seen[1:])
    kept = thinned != 0
    np.testing.assert_allclose(thinned[kept], np.broadcast_to(2 * z, thinned.shape)[kept], rtol=1e-5)
    assert abs(kept[:, np.abs(z) > 0].mean() - 0.5) < 0.05


def probe(seed: int, n_lists: int) -> tuple[ListInputs, ItemTable, np.ndarray]:
    """Eight of sixteen items, four kinds; a user likes one kind, and says so by text and by history.

    All kinds are liked as often, so without the user no order is better than another.
    """
    draws = np.random.default_rng(seed)
    kind = np.arange(16) % 4
    likes = draws.integers(4, size=n_lists)
    lists = np.array([draws.permutation(16)[:8] for _ in range(n_lists)], np.int32)
    history = np.stack([draws.permutation(np.flatnonzero(kind == k))[:2] for k in likes]).astype(np.int32)
    eye = jnp.eye(4)
    inputs = ListInputs(
        items=jnp.asarray(lists),
        counts=jnp.zeros((n_lists, 8, 1)),
        text=eye[likes],
        history=jnp.asarray(history),
        history_mask=jnp.ones((n_lists, 2), bool),
    )
    table = ItemTable(attributes=eye[kind], text=eye[kind])
    return inputs, table, (kind[lists] == likes[:, None]).astype(np.float32)


def share_of_first_liked(
    config: RerankerConfig, one_list: Callable[..., jax.Array] = softmax_loss, *, rate: float = 1e-2, steps: int = 40
) -> float:
    """Trained on some lists by a loss of one: how often the first item of others is liked."""
    lists, items, labels = probe(0, 48)
    other, _, other_labels = probe(1, 200)
    optimizer = optax.adam(rate)

    def loss(p: Tree) -> jax.Array:
        return jax.vmap(one_list)(rerankers.scores(config, p, lists, items), jnp.asarray(labels)).mean()

    def step(state: Any, _: Any) -> Any:
        p, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(p), moments)
        return (optax.apply_updates(p, updates), moments), None

    # One program, as compiling is what takes the time.
    @jax.jit
    def first(key: jax.Array) -> jax.Array:
        p = rerankers.init(config, key, items, 1)
        (fitted, _), _ = jax.lax.scan(step, (p, optimizer.init(p)), length=steps)
        return rerankers.scores(config, fitted, other, items).argmax(axis=1)

    has = other_labels.any(axis=1)
    return float(other_labels[np.arange(200), np.asarray(first(jax.random.key(0)))][has].mean())


LEARNER: dict[str, Any] = {"width": 8, "expert_width": 16, "shared_experts": 1, "private_experts": 1}


@pytest.mark.parametrize(("network", "user"), [("prm", "text"), ("dlcm", "history")])
def test_what_the_user_likes_is_learnt_from_a_text_or_as_control_from_the_history(network: str, user: str) -> None:
    # Two of eight items are liked, so a quarter by luck.
    assert share_of_first_liked(RerankerConfig(network=network, user=user, **LEARNER)) > 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "form", "one_list"),
    [
        ("dlcm", "kar", softmax_loss),
        ("dlcm", "original", softmax_loss),
        ("dlcm", "original", attention_rank_loss),
        ("setrank", "kar", softmax_loss),
        ("setrank", "original", softmax_loss),
    ],
)
def test_every_network_learns_what_a_text_says(network: str, form: str, one_list: Callable[..., jax.Array]) -> None:
    config = RerankerConfig(network=network, form=form, **LEARNER)
    # Its norms behind the residuals are lost at the rate that serves the others.
    options: dict[str, Any] = {"rate": 3e-3, "steps": 100} if (network, form) == ("setrank", "original") else {}
    assert share_of_first_liked(config, one_list, **options) > 0.97
    # Without the text the first item is liked as often as any.
    assert share_of_first_liked(dataclasses.replace(config, user="none"), one_list, **options) < 0.5


def test_sinusoids() -> None:
    found = rerankers.sinusoids(4, 6)
    assert found.shape == (4, 6) and found.dtype == np.float32
    np.testing.assert_array_equal(found[0], [0, 1, 0, 1, 0, 1])
    np.testing.assert_allclose(
        found[3],
        [np.sin(3), np.cos(3), *(f(3 / 10000 ** (e / 6)) for e in (2, 4) for f in (np.sin, np.cos))],
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, r"at least 1, got \(0, 128, 8\)"),
        ({"expert_width": 0}, "at least 1"),
        ({"shared_experts": 0, "private_experts": 0}, "number of experts"),
        ({"shared_experts": -1}, "number of experts"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, "dropout"),
        ({"network": "prm", "form": "original"}, "prm has one form"),
    ],
)
def test_sizes_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RerankerConfig(**changes)

"""One step of DPO against NumPy that shares no formula with it, and three arms whose optimum is known."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tabular_policy import policy, table

from rlhf_jax.interfaces import GroupPolicy, Params, PolicyOutput, PromptBatch, ResponseGroups, Rollout
from rlhf_jax.learners import dpo
from rlhf_jax.learners.dpo import PreferenceBatch
from rlhf_jax.learners.dpo_config import DPOConfig
from rlhf_jax.learners.microbatch import loss_and_gradient
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.runtime import metric_names

B, T, V = 6, 4, 3
SIGMOID = DPOConfig(beta=0.3)
CONFIGS = {
    "sigmoid": SIGMOID,
    "smoothed": dataclasses.replace(SIGMOID, label_smoothing=0.2),
    "ipo": DPOConfig(loss="ipo", beta=0.3),
    "softmax": DPOConfig(loss="softmax", beta=0.3),
    "rft": DPOConfig(loss="rft", beta=0.3),
}


def drawn(n_responses: int, seed: int = 0) -> tuple[Params, PreferenceBatch]:
    """A policy and comparisons of responses of many lengths, with weights, one of them 0."""
    draw = np.random.default_rng(seed)
    params = {name: jnp.asarray(0.7 * draw.normal(size=leaf.shape), jnp.float32) for name, leaf in table(V, T).items()}
    shape = (B, n_responses)
    prompts = PromptBatch(tokens=jnp.asarray(draw.integers(0, V, (B, 2)), jnp.int32), mask=jnp.ones((B, 2), bool))
    return params, PreferenceBatch(
        prompts=prompts,
        response_tokens=draw.integers(0, V, (*shape, T)).astype(np.int32),
        response_mask=np.arange(T) < draw.integers(1, T + 1, (*shape, 1)),
        ref_logprobs=draw.normal(-4.0, 1.5, shape).astype(np.float32),
        weight=np.array([1.0, 0.5, 2.0, 0.0, 1.0, 1.5], np.float32),
    )


def by_hand(logits: np.ndarray, batch: PreferenceBatch, kind: str) -> float:
    """The weighted mean loss, token by token in float64; formulas as they are printed, not as the package writes them."""
    total = count = 0.0
    beta = 0.3
    for row in range(B):
        said = []
        for response in range(batch.ref_logprobs.shape[1]):
            previous, nats = int(batch.prompts.tokens[row, -1]), 0.0
            for t in range(int(batch.response_mask[row, response].sum())):
                token = int(batch.response_tokens[row, response, t])
                odds = np.exp(logits[t, previous])
                nats += float(np.log(odds[token] / odds.sum()))
                previous = token
            said.append(nats)
        moved = np.exp(beta * (np.array(said) - batch.ref_logprobs[row].astype(np.float64)))
        weight = float(batch.weight[row])
        if kind == "rft":
            total -= weight * said[0]
            count += weight * float(batch.response_mask[row, 0].sum())
            continue
        share = moved[0] / moved.sum()
        loss = {
            "sigmoid": -np.log(share),
            "smoothed": -0.8 * np.log(share) - 0.2 * np.log(1 - share),
            "ipo": (np.log(moved[0] / moved[1]) / beta - 1 / (2 * beta)) ** 2,
            "softmax": -np.log(share),
        }[kind]
        total, count = total + weight * float(loss), count + weight
    return total / count


@functools.cache
def program(config: DPOConfig, microbatches: int) -> Any:
    """Compiled once for all tests of one configuration."""

    def loss_fn(params: Params, batch: PreferenceBatch, key: jax.Array) -> Any:
        del key
        return dpo.preference_loss(params, batch, policy=policy, config=config)

    return jax.jit(functools.partial(loss_and_gradient, loss_fn, microbatches=microbatches))


def value_and_gradient(params: Params, batch: PreferenceBatch, config: DPOConfig, microbatches: int = 1) -> Any:
    """Mean loss, its gradient, what is logged."""
    return program(config, microbatches)(params, batch, jax.random.key(0))


@jax.jit
def said_by_table(params: Params, batch: PreferenceBatch) -> jax.Array:
    """log π of every response, as the reference is read. [B, N]"""
    return dpo.reference_logprobs(policy, params, dpo.as_rollout(batch)).reshape(batch.ref_logprobs.shape)


@pytest.mark.parametrize(("kind", "n"), [("sigmoid", 2), ("smoothed", 2), ("ipo", 2), ("softmax", 4), ("rft", 2)])
def test_value_and_gradient_are_those_of_loops(kind: str, n: int) -> None:
    params, batch = drawn(n)
    loss, gradient, _ = value_and_gradient(params, batch, CONFIGS[kind])
    logits = np.asarray(params["logits"], np.float64)
    assert float(loss) == pytest.approx(by_hand(logits, batch, kind), rel=2e-6)
    # Central differences, in float64.
    for place in np.ndindex(logits.shape):
        up, down = logits.copy(), logits.copy()
        up[place] += 1e-5
        down[place] -= 1e-5
        slope = (by_hand(up, batch, kind) - by_hand(down, batch, kind)) / 2e-5
        assert float(gradient["logits"][place]) == pytest.approx(slope, abs=2e-5), place
    assert float(jnp.abs(gradient["logits"]).max()) > 0.01


def test_what_is_logged() -> None:
    params, batch = drawn(3)
    _, _, logged = value_and_gradient(params, batch, CONFIGS["softmax"])
    said = np.asarray(said_by_table(params, batch), np.float64)
    rewards, weight = 0.3 * (said - batch.ref_logprobs), batch.weight
    expected = {
        "logprobs/chosen": said[:, 0],
        "logprobs/rejected": said[:, 1:].mean(axis=1),
        "rewards/chosen": rewards[:, 0],
        "rewards/rejected": rewards[:, 1:].mean(axis=1),
        "rewards/margin": rewards[:, 0] - rewards[:, 1:].mean(axis=1),
        "rewards/accuracy": np.array([np.mean([row[0] > other for other in row[1:]]) for row in rewards]),
    }
    assert logged.keys() == expected.keys()
    for name, value in expected.items():
        assert float(logged[name]) == pytest.approx(float((weight * value).sum() / weight.sum()), rel=1e-5), name
    assert 0 < float(logged["rewards/accuracy"]) < 1


def by_groups(params: Params, groups: ResponseGroups) -> jax.Array:
    """The same tables on groups; NaN on padding too. [B, N, T]"""
    n_responses, length = groups.response_tokens.shape[1:]
    rows = Rollout(
        prompt_tokens=jnp.repeat(groups.prompts.tokens, n_responses, axis=0),
        prompt_mask=jnp.repeat(groups.prompts.mask, n_responses, axis=0),
        response_tokens=groups.response_tokens.reshape(-1, length),
        response_mask=groups.response_mask.reshape(-1, length),
        logprobs=jnp.zeros((groups.response_mask.size // length, length)),
        finished=jnp.ones(groups.response_mask.size // length, bool),
    )
    return policy(params, rows).logprobs.reshape(groups.response_tokens.shape)


@pytest.mark.parametrize(("kind", "n"), [("softmax", 3), ("rft", 2)])
def test_a_policy_that_reads_a_prompt_once_gives_the_same(kind: str, n: int) -> None:
    params, batch = drawn(n)

    @jax.jit
    def together(params: Params, batch: PreferenceBatch) -> Any:
        return loss_and_gradient(
            lambda p, b, key: dpo.preference_loss(p, b, policy=GroupPolicy(by_groups), config=CONFIGS[kind]),
            params,
            batch,
            jax.random.key(0),
            microbatches=2,
        )

    expected = value_and_gradient(params, batch, CONFIGS[kind])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), together(params, batch), expected)


@pytest.mark.parametrize("kind", ["sigmoid", "rft"])
def test_micro_batches_equal_one_batch(kind: str) -> None:
    params, batch = drawn(2)
    one = value_and_gradient(params, batch, CONFIGS[kind])
    for microbatches in (2, 6):
        many = value_and_gradient(params, batch, CONFIGS[kind], microbatches)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), many, one)


@pytest.mark.parametrize(("kind", "n"), [("sigmoid", 2), ("ipo", 2), ("softmax", 3), ("rft", 2)])
def test_padding_and_rows_without_weight_change_nothing(kind: str, n: int) -> None:
    """The policy says NaN on padding; the row of weight 0 is damaged; and the same again with two more columns."""
    params, batch = drawn(n)
    clean = value_and_gradient(params, batch, CONFIGS[kind])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(clean))
    ref, tokens, mask = batch.ref_logprobs.copy(), batch.response_tokens.copy(), batch.response_mask.copy()
    ref[3] = np.nan
    tokens[~mask] = 2 - tokens[~mask]
    tokens[3], mask[3] = 1, True
    damaged = dataclasses.replace(batch, ref_logprobs=ref, response_tokens=tokens, response_mask=mask)
    same = value_and_gradient(params, damaged, CONFIGS[kind])
    jax.tree.map(np.testing.assert_array_equal, same, clean)
    wider = {
        name: np.pad(getattr(batch, name), ((0, 0), (0, 0), (0, 2))) for name in ("response_tokens", "response_mask")
    }
    longer = jax.tree.map(lambda leaf: jnp.concatenate([leaf, 0 * leaf[:2]]), params)
    padded = dataclasses.replace(batch, **wider)
    loss, gradient, _ = value_and_gradient(longer, padded, CONFIGS[kind])
    assert float(loss) == pytest.approx(float(clean[0]), rel=1e-6)
    np.testing.assert_allclose(gradient["logits"][:T], clean[1]["logits"], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(gradient["logits"][T:], 0.0)


def test_at_the_reference_every_reward_is_0() -> None:
    params, batch = drawn(4)
    ref = said_by_table(params, batch)
    loss, _, logged = value_and_gradient(params, dataclasses.replace(batch, ref_logprobs=ref), CONFIGS["softmax"])
    assert float(loss) == pytest.approx(np.log(4), abs=1e-6)
    assert float(logged["rewards/chosen"]) == float(logged["rewards/margin"]) == 0.0


def test_the_reference_is_a_constant() -> None:
    params, batch = drawn(2)
    slope = jax.jit(jax.grad(lambda p: jnp.sum(said_by_table(p, batch))))(params)
    np.testing.assert_array_equal(slope["logits"], 0.0)


def test_an_update_is_a_step_of_the_optimiser_and_logs_known_names() -> None:
    params, batch = drawn(2)
    config = dataclasses.replace(SIGMOID, average_decay=0.9, microbatches=3, batch_size=6)
    descent = optax.sgd(0.5)
    step = jax.jit(functools.partial(dpo.update, policy=policy, optimizer=descent, config=config))
    state, metrics = step(dpo.init(params, descent, config), jax.tree.map(jnp.asarray, batch))
    _, gradient, _ = value_and_gradient(params, batch, config)
    np.testing.assert_allclose(
        state.params["logits"], params["logits"] - 0.5 * gradient["logits"], rtol=1e-5, atol=1e-6
    )
    assert int(state.step) == 1
    # Shortened early on: the first new parameters count nine tenths.
    expected = 0.1 * params["logits"] + 0.9 * state.params["logits"]
    np.testing.assert_allclose(state.average["logits"], expected, rtol=1e-5, atol=1e-6)
    for name in metrics:
        metric_names.check("dpo", name)
    assert set(metric_names.PREFERENCES) <= set(metrics) and dpo.init(params, descent, SIGMOID).average is None
    # Without weights nothing moves.
    nothing = dataclasses.replace(batch, weight=np.zeros(B, np.float32))
    still, metrics = step(dpo.init(params, descent, config), jax.tree.map(jnp.asarray, nothing))
    assert float(metrics["loss"]) == 0.0 and int(metrics["skipped"]) == 0
    np.testing.assert_array_equal(still.params["logits"], params["logits"])


# Three arms: prompts are all alike and a response is one token.

REFERENCE = np.array([0.6, 0.3, 0.1])


def arms(params: Params, rollout: Rollout) -> PolicyOutput:
    """The logits are features times weights: with the identity, one for each arm."""
    logits = jax.nn.log_softmax(params["features"] @ params["weights"])
    logprobs = logits[rollout.response_tokens]
    return PolicyOutput(logprobs=logprobs, entropy=0 * logprobs, values=0 * logprobs)


def comparisons(pairs: list[tuple[int, ...]], weight: list[float]) -> PreferenceBatch:
    """Arms of each prompt, the chosen first."""
    tokens = jnp.asarray(pairs, jnp.int32)[..., None]
    prompts = PromptBatch(tokens=0 * tokens[:, 0], mask=tokens[:, 0] >= 0)
    return PreferenceBatch(
        prompts=prompts,
        response_tokens=tokens,
        response_mask=tokens >= 0,
        ref_logprobs=jnp.zeros(tokens.shape[:2]),
        weight=jnp.asarray(weight),
    )


def learn(
    config: DPOConfig, batch: PreferenceBatch, steps: int, rate: float, features: np.ndarray, weights: np.ndarray
) -> tuple[list[dict[str, float]], np.ndarray]:
    """Metrics of every step and the last probabilities, on weights alone."""
    params = {"weights": jnp.asarray(weights, jnp.float32)}
    fixed = jnp.asarray(features, jnp.float32)

    def own(params: Params, rollout: Rollout) -> PolicyOutput:
        return arms({"features": fixed, "weights": params["weights"]}, rollout)

    ref = jax.jit(lambda batch: dpo.reference_logprobs(own, params, dpo.as_rollout(batch)))(batch)
    batch = dataclasses.replace(batch, ref_logprobs=np.asarray(ref).reshape(batch.ref_logprobs.shape))
    optimizer = make_optimizer(learning_rate=rate, total_steps=steps, max_grad_norm=100.0)
    step = jax.jit(functools.partial(dpo.update, policy=own, optimizer=optimizer, config=config))
    state, history = dpo.init(params, optimizer, config), []
    for _ in range(steps):
        state, metrics = step(state, batch)
        history.append({name: float(value) for name, value in metrics.items()})
    return history, np.asarray(jax.nn.softmax(fixed @ state.params["weights"]))


def test_bradley_terry_labels_lead_to_the_closed_form() -> None:
    """Every ordered pair with the weight that it has in expectation: no label is drawn."""
    score, beta = np.array([0.0, 1.0, 2.0]), 0.8
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    weight = [float(REFERENCE[i] * REFERENCE[j] / (1 + np.exp(score[j] - score[i]))) for i, j in pairs]
    config = DPOConfig(beta=beta)
    history, found = learn(config, comparisons(pairs, weight), 400, 0.05, np.eye(3), np.log(REFERENCE))
    best = REFERENCE * np.exp(score / beta)
    np.testing.assert_allclose(found, best / best.sum(), atol=1e-3)
    assert history[-1]["loss"] < history[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)


def test_plackett_luce_labels_lead_softmax_to_the_closed_form() -> None:
    score, beta = np.array([0.0, 1.0, 2.0]), 0.8
    orders = [(0, 1, 2), (1, 0, 2), (2, 0, 1)]
    weight = (np.exp(score) / np.exp(score).sum()).tolist()
    config = DPOConfig(loss="softmax", beta=beta)
    _, found = learn(config, comparisons(orders, weight), 400, 0.05, np.eye(3), np.log(REFERENCE))
    best = REFERENCE * np.exp(score / beta)
    np.testing.assert_allclose(found, best / best.sum(), atol=1e-3)


SHARED = np.array([[1.0, 0.0], [2.0, 1.0], [-1.0, -1.0]])
"""What pushes the second arm down pushes the first down too, and the third up."""


def test_the_chosen_becomes_rarer_while_the_margin_grows() -> None:
    """The known failure: nobody compared the third arm, and it gets nearly everything."""
    config = DPOConfig(beta=0.5)
    history, found = learn(config, comparisons([(0, 1)], [1.0]), 120, 0.05, SHARED, np.zeros(2))
    chosen, margin = ([one[name] for one in history] for name in ("logprobs/chosen", "rewards/margin"))
    assert np.all(np.diff(chosen) < 0) and np.all(np.diff(margin) > 0)
    assert chosen[-1] < chosen[0] - 1 and history[-1]["rewards/accuracy"] == 1.0 and found[2] > 0.9


def test_ipo_rests_at_its_margin_where_the_logistic_loss_goes_on() -> None:
    certain, beta = comparisons([(0, 1)], [1.0]), 0.5
    margins = {}
    for loss in ("ipo", "sigmoid"):
        history, _ = learn(DPOConfig(loss=loss, beta=beta), certain, 300, 0.05, np.eye(3), np.zeros(3))
        margins[loss] = history[-1]["rewards/margin"] / beta
    assert margins["ipo"] == pytest.approx(1 / (2 * beta), abs=1e-3)
    assert margins["sigmoid"] > 3 * margins["ipo"]


def test_imitating_the_chosen_makes_it_common() -> None:
    history, found = learn(DPOConfig(loss="rft"), comparisons([(2, 0)], [1.0]), 100, 0.1, np.eye(3), np.log(REFERENCE))
    assert found[2] > 0.9 and "logprobs/rejected" not in history[0] and "rewards/margin" not in history[0]


# What is refused.


@pytest.mark.parametrize(
    ("loss", "n", "message"),
    [
        ("sigmoid", 1, "the loss 'sigmoid' needs exactly 2 responses to a prompt, the chosen one first: got 1"),
        ("ipo", 3, "needs exactly 2 .* got 3; 'softmax' compares with all of them"),
        ("softmax", 1, "needs at least 2 .* got 1"),
    ],
)
def test_a_loss_says_how_many_responses_it_needs(loss: Any, n: int, message: str) -> None:
    params, batch = drawn(n)
    with pytest.raises(ValueError, match=message):
        dpo.preference_loss(params, batch, policy=policy, config=DPOConfig(loss=loss))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "DPOConfig.beta must be in (0, 1000]: got 0.0"),
        ({"label_smoothing": 0.5}, "DPOConfig.label_smoothing must be in [0, 0.5): got 0.5"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "changes nothing with the loss 'ipo': only 'sigmoid' reads it"),
        ({"batch_size": 6, "microbatches": 4}, "6 cannot be divided into 4 DPOConfig.microbatches"),
    ],
)
def test_a_configuration_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        DPOConfig(**changes)


@pytest.mark.parametrize("field", ["loss", "schedule"])
def test_a_word_that_is_no_choice_is_named(field: str) -> None:
    config = DPOConfig()
    object.__setattr__(config, field, "hinge")  # Tests check types before, users do not.
    with pytest.raises(ValueError, match=f"DPOConfig.{field} must be one of .*: got 'hinge'"):
        config.__post_init__()


def test_the_schedule_reaches_0_after_all_epochs() -> None:
    config = DPOConfig(epochs=2, batch_size=4, warmup_steps=100, learning_rate=0.1)
    assert config.rate(10) == {"learning_rate": 0.1, "warmup_steps": 2, "total_steps": 5, "schedule": "linear"}
    params = {"w": jnp.ones(2)}
    optimizer = dpo.optimizer_of(config, 10)
    state, moved = optimizer.init(params), []
    for _ in range(6):
        updates, state = optimizer.update({"w": jnp.array([1e-6, -1e-6])}, state, params)
        moved.append(float(-updates["w"][0]))
    # Gradients of a millionth move a parameter by the whole rate but for a hundredth: ε is small enough.
    assert moved == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.2 / 3, 0.1 / 3, 0.0], rel=0.011)
    with pytest.raises(ValueError, match="0 prompts"):
        config.steps(0)


def test_preferences_are_picked_from_groups() -> None:
    """Four responses to each of two prompts: the response b·4 + g says the token of its number."""
    numbers = jnp.arange(8)[:, None]
    rollout = Rollout(
        prompt_tokens=numbers // 4 + 10,
        prompt_mask=numbers >= 0,
        response_tokens=numbers,
        response_mask=numbers != 5,
        logprobs=jnp.zeros((8, 1)),
        finished=jnp.ones(8, bool),
        item_scores=jnp.broadcast_to(numbers[..., None] // 4, (8, 2, 3)).astype(jnp.float32),
    )
    ref = -np.arange(8.0)
    batch = dpo.preferences(rollout, ref, np.array([[3, 0], [1, 2]]), np.array([1.0, 0.5]))
    assert batch.response_tokens[..., 0].tolist() == [[3, 0], [5, 6]]
    assert batch.response_mask[..., 0].tolist() == [[True, True], [False, True]]
    assert batch.ref_logprobs.tolist() == [[-3.0, 0.0], [-5.0, -6.0]] and batch.weight.tolist() == [1.0, 0.5]
    assert batch.prompts.tokens.tolist() == [[10], [11]] and batch.prompts.item_scores[:, 0, 0].tolist() == [0.0, 1.0]
    rows = dpo.as_rollout(batch)
    assert rows.prompt_tokens[:, 0].tolist() == [10, 10, 11, 11] and rows.response_tokens[:, 0].tolist() == [3, 0, 5, 6]
    assert rows.item_scores[:, 0, 0].tolist() == [0.0, 0.0, 1.0, 1.0]
    for picked, message in (
        (np.array([[0, 4], [0, 1]]), r"must be in \[0, 4\) in groups of 4: got 0…4"),
        (np.array([[-1, 0], [0, 1]]), "got -1…1"),
        (np.array([[0, 1]] * 3), "8 responses and 8 reference log-probabilities are no whole groups of 3 prompts"),
    ):
        with pytest.raises(ValueError, match=message):
            dpo.preferences(rollout, ref, picked)


def test_rows_are_taken_and_a_short_batch_is_filled() -> None:
    params, batch = drawn(2)
    filled = dpo.take(batch, np.array([4, 1]), 5)
    np.testing.assert_array_equal(filled.weight, [1.0, 0.5, 0.0, 0.0, 0.0])
    np.testing.assert_array_equal(filled.response_tokens[:2], batch.response_tokens[[4, 1]])
    short = value_and_gradient(params, dpo.take(batch, np.array([4, 1])), SIGMOID)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7),
        value_and_gradient(params, filled, SIGMOID),
        short,
    )
    for rows in ([], [0, 1, 2]):
        with pytest.raises(ValueError, match=f"{len(rows)} prompts for a batch of 2"):
            dpo.take(batch, np.array(rows, np.int64), 2)


def shorter(batch: PreferenceBatch) -> PreferenceBatch:
    """Past the check of types, which knows the axes too."""
    return jax.tree.map(lambda leaf: leaf[:2] if leaf is batch.weight else leaf, batch)


def with_hole(batch: PreferenceBatch) -> PreferenceBatch:
    mask = batch.response_mask.copy()
    mask[1, 0] = [True, False, True, False]
    return dataclasses.replace(batch, response_mask=mask)


def set_to(name: str, row: int, value: float) -> Any:
    def change(batch: PreferenceBatch) -> PreferenceBatch:
        array = getattr(batch, name).copy()
        array[row] = value
        return dataclasses.replace(batch, **{name: array})

    return change


def without_tokens(row: int) -> Any:
    def change(batch: PreferenceBatch) -> PreferenceBatch:
        mask = batch.response_mask.copy()
        mask[row, 1] = False
        return dataclasses.replace(batch, response_mask=mask)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_to("weight", 2, -1.0), "row 2 of the preferences has the weight -1.0"),
        (set_to("weight", 2, np.inf), "row 2 of the preferences has the weight inf"),
        (lambda batch: dataclasses.replace(batch, weight=0 * batch.weight), "none of 6 preferences has a weight"),
        (shorter, "axes that do not fit: response_mask (6, 2, 4), ref_logprobs (6, 2), weight (2,)"),
        (set_to("ref_logprobs", 4, np.nan), "row 4 of the preferences: log π_ref of response 0 is nan"),
        (without_tokens(5), "row 5 of the preferences: response 1 has no token"),
        (with_hole, "row 1 of the preferences: the mask of response 0 is True after a False"),
    ],
)
def test_preferences_from_outside_are_looked_at(change: Any, message: str) -> None:
    _, batch = drawn(2)
    dpo.check_preferences(batch, SIGMOID)
    with pytest.raises(ValueError, match=re.escape(message)):
        dpo.check_preferences(change(batch), SIGMOID)


@pytest.mark.parametrize("change", [set_to("ref_logprobs", 3, np.nan), without_tokens(3)])
def test_a_row_without_weight_may_hold_anything(change: Any) -> None:
    _, batch = drawn(2)
    dpo.check_preferences(change(batch), SIGMOID)

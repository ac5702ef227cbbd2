import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.learners.optimizer import (
    Adam,
    apply_or_skip,
    clip_by_global_norm,
    falling_by_cosine,
    learning_rate_schedule,
    make_optimizer,
    scale_by_adam_tf,
    steps_taken,
)

ROUND = {"learning_rate": 0.1, "total_steps": 100, "schedule": "constant"}


@pytest.fixture
def params() -> dict[str, jax.Array]:
    return {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(2)}


def test_clip_is_by_global_norm_not_by_element() -> None:
    optimizer = make_optimizer(max_grad_norm=0.5, **ROUND)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    _, state = optimizer.update({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, optimizer.init(params), params)
    first_moment = state[1].mu
    np.testing.assert_allclose(first_moment["a"] / 0.1, [0.3], rtol=1e-5)
    np.testing.assert_allclose(first_moment["b"] / 0.1, [0.4], rtol=1e-5)


@pytest.mark.parametrize("limit", [0.5, 1e3])
def test_the_clip_is_optax_s_but_for_rounding(limit: float) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    gradient = {str(n): jax.random.normal(key, (5, 7 + n)) for n, key in enumerate(keys)}
    found, _ = clip_by_global_norm(limit).update(gradient, optax.EmptyState())
    told, _ = clip_by_global_norm(limit).update(gradient, optax.EmptyState(), gradient_norm=optax.tree.norm(gradient))
    expected, _ = optax.clip_by_global_norm(limit).update(gradient, optax.EmptyState())
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, rtol=3e-7)
        np.testing.assert_array_equal(found[name], told[name])
    assert float(optax.tree.norm(found)) == pytest.approx(min(limit, float(optax.tree.norm(gradient))), rel=1e-6)


def test_a_step_makes_no_array_beside_moments_parameters_and_two_of_the_change() -> None:
    """Every array is a pass over memory, and at GPT-2's size memory is what a step waits for."""
    optimizer = make_optimizer(**ROUND)
    params = {"a": jnp.ones((512, 384))}

    def step(params: dict, opt_state: optax.OptState, gradient: dict) -> tuple:
        found = apply_or_skip(optimizer, params, opt_state, gradient, jnp.float32(1))
        return found.params, found.opt_state, found.gradient_norm, found.update_norm

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, optimizer.init(params), params).compile()
    made = re.findall(r"= f32\[512,384\]\{1,0\} fusion\(", compiled.as_text())
    assert len(made) == 5


def test_tensorflow_form_damps_small_gradients_at_first() -> None:
    # ε inside the bias correction: √(1−β₂)/(1−β₁)·m/(√v + ε) with m = (1−β₁)g and v = (1−β₂)g².
    gradient, params = jnp.full(1, 1e-5), jnp.zeros(1)
    for form, first_step in (("optax", 0.5), ("tf", 0.03065)):
        optimizer = make_optimizer(adam=Adam(form=form), **ROUND)
        update, _ = optimizer.update(gradient, optimizer.init(params), params)
        np.testing.assert_allclose(-update / 0.1, [first_step], rtol=1e-3)


def test_both_forms_agree_once_the_bias_is_gone() -> None:
    forms = (optax.scale_by_adam(eps=1e-5), scale_by_adam_tf(eps=1e-5))
    states = [form.init(jnp.zeros(1))._replace(count=jnp.array(100_000)) for form in forms]
    updates = [form.update(jnp.full(1, 0.3), state)[0] for form, state in zip(forms, states, strict=True)]
    np.testing.assert_allclose(updates[0], updates[1], rtol=1e-5)


def test_schedules_warm_up_and_end_at_zero() -> None:
    for schedule, half in (("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)):
        rate = learning_rate_schedule(learning_rate=1.0, warmup_steps=4, total_steps=24, schedule=schedule)
        np.testing.assert_allclose([rate(t) for t in range(5)], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
        np.testing.assert_allclose([rate(14), rate(24)], [half, 0.0 if schedule != "constant" else 1.0], atol=1e-6)


def test_weight_decay_spares_vectors(params: dict[str, jax.Array]) -> None:
    optimizer = make_optimizer(weight_decay=0.5, **ROUND)
    zero = jax.tree.map(jnp.zeros_like, params)
    update, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(update["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(update["bias"], 0.0)


@pytest.mark.parametrize("broken", ["loss", "gradient", "unwanted"])
def test_refused_step_leaves_everything_as_it_was(params: dict[str, jax.Array], broken: str) -> None:
    optimizer = make_optimizer(**ROUND)
    before = optimizer.init(params)
    gradient = jax.tree.map(jnp.ones_like, params)
    if broken == "gradient":
        gradient["bias"] = gradient["bias"].at[0].set(jnp.inf)
    loss = jnp.array(jnp.nan if broken == "loss" else 1.0)
    result = apply_or_skip(optimizer, params, before, gradient, loss, wanted=broken != "unwanted")
    jax.tree.map(np.testing.assert_array_equal, (result.params, result.opt_state), (params, before))
    assert bool(result.finite) == (broken == "unwanted")
    assert result.update_norm == 0.0


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.5, "adam": Adam(form="tf", eps=1e-9)}])
def test_the_schedule_counts_the_steps_that_were_taken(options: dict) -> None:
    schedule = {"learning_rate": 0.1, "warmup_steps": 2, "total_steps": 10, "schedule": "linear"}
    optimizer, rate = make_optimizer(**schedule, **options), learning_rate_schedule(**schedule)
    params = {"bias": jnp.zeros(1)}
    state, moved = optimizer.init(params), []
    for loss, wanted in ((1.0, True), (jnp.nan, True), (1.0, False), (1.0, True), (1.0, True)):
        logged = rate(steps_taken(state))
        result = apply_or_skip(optimizer, params, state, {"bias": jnp.ones(1)}, jnp.array(loss), wanted=wanted)
        # Adam moves a parameter whose gradient never changes by the learning rate.
        step = float(params["bias"][0] - result.params["bias"][0])
        if wanted and jnp.isfinite(loss):
            np.testing.assert_allclose(step, logged, rtol=1e-4)
            moved.append(step)
        params, state = result.params, result.opt_state
    np.testing.assert_allclose(moved, [0.1 / 3, 0.2 / 3, 0.1], rtol=1e-4)


def test_an_optimiser_without_a_schedule_has_no_count(params: dict[str, jax.Array]) -> None:
    with pytest.raises(ValueError, match="holds 0 schedules"):
        steps_taken(optax.adam(0.1).init(params))


def test_taken_step_moves(params: dict[str, jax.Array]) -> None:
    optimizer = make_optimizer(**ROUND)
    gradient = jax.tree.map(jnp.ones_like, params)
    result = apply_or_skip(optimizer, params, optimizer.init(params), gradient, jnp.array(1.0))
    np.testing.assert_allclose(result.params["bias"], 0.9, rtol=1e-4)
    np.testing.assert_allclose([result.gradient_norm, result.update_norm], [2.0, 0.2], rtol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive: got 0.0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be positive: got -1.0"),
        ({"warmup_steps": 100}, "got 100 of 100 steps"),
        ({"schedule": "step"}, "'step'"),
        ({"adam": Adam(form="torch")}, "'torch'"),
        ({"weight_decay": -0.1}, "got -0.1"),
    ],
)
def test_wrong_numbers_are_named(wrong: dict[str, object], message: str) -> None:
    # A wrong name is a TypeError here: the tests check annotations before the function does.
    with pytest.raises((ValueError, TypeError), match=message):
        make_optimizer(**(ROUND | wrong))


def test_a_cosine_that_is_logged_is_the_one_that_is_followed() -> None:
    """Rates against the closed form, and steps of a plain gradient against Adam's by NumPy at those rates."""
    peak, warmup, total, eps = 0.1, 3, 10, 1e-5
    rate, optimizer = falling_by_cosine(peak, warmup_steps=warmup, total_steps=total, weight_decay=0.0)
    ramp = [peak * (step + 1) / (warmup + 1) for step in range(warmup)]
    fall = [peak * (1 + np.cos(np.pi * step / (total - warmup))) / 2 for step in range(total - warmup)]
    expected = np.array(ramp + fall)
    np.testing.assert_allclose([float(rate(step)) for step in range(total)], expected, rtol=1e-6)
    params, gradient = {"x": jnp.float32(1.0)}, {"x": jnp.float32(0.5)}
    state, x = optimizer.init(params), 1.0
    for step in range(total):
        assert int(steps_taken(state)) == step
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        # Of a gradient that is always g, both moments without their bias are g and g².
        x -= expected[step] * 0.5 / (0.5 + eps)
        np.testing.assert_allclose(float(params["x"]), x, rtol=1e-5)


def test_a_warm_up_that_is_too_long_is_half_of_all_steps() -> None:
    rate, _ = falling_by_cosine(1.0, warmup_steps=50, total_steps=10, weight_decay=0.0)
    other, _ = falling_by_cosine(1.0, warmup_steps=5, total_steps=10, weight_decay=0.0)
    assert [float(rate(step)) for step in range(10)] == [float(other(step)) for step in range(10)]

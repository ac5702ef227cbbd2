"""PPO on problems whose optimum is known in closed form: three tokens out of four, a reward for every triple."""

import jax
import jax.numpy as jnp
import numpy as np
from tabular_policy import PLAIN, table, train

from rlhf_jax.learners.ppo_config import PPOConfig

WIDE = {"value_clip_eps": 100.0, "value_coef": 1.0}
USUAL = PPOConfig(**PLAIN, **WIDE)
# Whitening blows up advantages that vanish at the optimum.
UNWHITENED = PPOConfig(**PLAIN, **WIDE, whiten_advantages=False)
DISCOUNTED = PPOConfig(**PLAIN, **WIDE, gamma=0.9, gae_lambda=1.0)


def first_token_pays(arms: list[float]) -> jax.Array:
    return jnp.broadcast_to(jnp.array(arms)[:, None, None], (4, 4, 4))


def first_token_policy(params: dict[str, jax.Array]) -> jax.Array:
    return jax.nn.softmax(params["logits"][0, 0])


def test_constant_reward_is_what_the_value_learns() -> None:
    state, metrics = train(table(4, 3), jnp.full((4, 4, 4), 0.7, jnp.float32), config=USUAL, updates=40)
    np.testing.assert_allclose(state.params["values"][0, 0], 0.7, atol=0.02)
    np.testing.assert_allclose(state.params["values"][1], 0.7, atol=0.05)
    np.testing.assert_allclose(metrics["objective/score_raw"], 0.7, rtol=1e-6)


def test_token_bandit_finds_the_best_arm() -> None:
    state, _ = train(table(4, 3), first_token_pays([0.1, 0.5, 1.0, 0.9]), config=USUAL, updates=60)
    assert first_token_policy(state.params)[2] > 0.9


def test_kl_price_turns_the_bandit_into_its_soft_optimum() -> None:
    # max_π E[r] − β KL(π‖π_ref) is solved by π ∝ π_ref exp(r/β).
    arms = [0.0, 0.5, 1.0, 0.2]
    state, _ = train(
        table(4, 3), first_token_pays(arms), config=UNWHITENED, updates=150, kl_coef=0.5, learning_rate=0.01
    )
    np.testing.assert_allclose(first_token_policy(state.params), jax.nn.softmax(jnp.array(arms) / 0.5), atol=0.06)


def test_delayed_reward_reaches_the_first_token_and_is_discounted() -> None:
    # Only the first of three tokens matters; it is paid after the last.
    state, _ = train(table(4, 3), first_token_pays([0.0, 1.0, 0.0, 0.0]), config=DISCOUNTED, updates=60)
    values = state.params["values"]
    assert first_token_policy(state.params)[1] > 0.9
    np.testing.assert_allclose(values[1, 1], 0.9, atol=0.05)
    np.testing.assert_allclose(values[0, 0], 0.9**2, atol=0.08)


def test_credit_goes_to_the_token_that_earns_it() -> None:
    # Paid when the last token differs from the second: nothing but the choice of these two can do anything about it.
    differs = jnp.broadcast_to(1.0 - jnp.eye(4)[None], (4, 4, 4)) * jnp.array([1.0, 0.0, 0.0, 0.0])[None, None]
    state, metrics = train(table(4, 3), differs, config=USUAL, updates=60)
    assert metrics["objective/score_raw"] > 0.9
    # Given a second token other than 0, the last must be 0; after 0 nothing pays, so the second avoids it.
    last, second = (jax.nn.softmax(state.params["logits"][t], axis=-1) for t in (2, 1))
    start = jnp.argmax(first_token_policy(state.params))
    assert second[start, 0] < 0.1
    assert last[jnp.argmax(second[start]), 0] > 0.9


def test_with_kl_only_the_policy_stays_at_the_reference() -> None:
    state, metrics = train(table(4, 3), jnp.zeros((4, 4, 4)), config=USUAL, updates=5, kl_coef=1.0)
    np.testing.assert_array_equal(state.params["logits"], 0.0)
    assert metrics["objective/kl_k1"] == 0.0


def test_with_kl_only_the_policy_returns_to_the_reference() -> None:
    reference = table(4, 3)
    away = reference | {"logits": reference["logits"] + jnp.array([2.0, 0.0, -1.0, 0.0])[None, None]}
    state, metrics = train(
        away,
        jnp.zeros((4, 4, 4)),
        config=UNWHITENED,
        updates=100,
        kl_coef=1.0,
        learning_rate=0.01,
        ref_params=reference,
    )
    assert metrics["objective/kl_k3"] < 0.03
    np.testing.assert_allclose(first_token_policy(state.params), 0.25, atol=0.06)

"""Every equation at log-ratios, logits and scores of ±100 and ±10,000, where float32 has no exponential left.

No value and no gradient is NaN. What is infinite is listed here, with its sign, and stands in the docstring.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.equations import (
    contrastive,
    dpo,
    gae,
    group,
    kl,
    kl_control,
    listwise,
    logprobs,
    masked,
    ppo,
    preference,
    rewards,
    running,
)

LARGE = (-1e4, -100.0, 100.0, 1e4)
DTYPES = (jnp.float32, jnp.bfloat16)
ON = jnp.ones(4, bool)
ZEROS = jnp.zeros(4)


def table(x: jax.Array) -> jax.Array:
    """Four tokens, the first of which gets x. [4, 4]"""
    return jnp.zeros((4, 4), x.dtype).at[:, 0].set(x)


FINITE: dict[str, Callable[[jax.Array], jax.Array]] = {
    "info_nce": lambda x: contrastive.info_nce(x, jnp.array([1.0, 0.0, 0.5, 0.0])),
    "info_nce, a positive far below": lambda x: contrastive.info_nce(x.at[0].multiply(-1), jnp.eye(4)[0]),
    "corrected_scores": lambda x: contrastive.corrected_scores(x, -x),
    "implicit_reward": lambda x: dpo.implicit_reward(x, ZEROS, beta=0.1),
    "dpo_loss": lambda x: dpo.dpo_loss(x, -x, ZEROS, ZEROS, beta=1.0, label_smoothing=0.1),
    "ipo_loss": lambda x: dpo.ipo_loss(x, -x, ZEROS, ZEROS, beta=0.1),
    "softmax_dpo_loss": lambda x: dpo.softmax_dpo_loss(x[0], -x, ZEROS[0], ZEROS, beta=1.0),
    "gae": lambda x: gae.generalized_advantage_estimation(x, jnp.append(-x, 0), gamma=1.0, gae_lambda=0.95),
    "multi_turn_gae": lambda x: gae.multi_turn_generalized_advantage_estimation(
        x, jnp.append(-x, 0), jnp.array([True, False, True, True]), gamma=1.0, gae_lambda=0.95
    ),
    "group_advantages": lambda x: group.group_advantages(x.at[0].multiply(-1)),
    "group_advantages, flat": group.group_advantages,
    "turn_advantages": lambda x: group.turn_advantages(
        x.at[0].multiply(-1).reshape(2, 2, 1), jnp.ones((2, 2), bool), jnp.ones(1)
    ),
    "settled_advantages": lambda x: group.settled_advantages(
        x.at[0].multiply(-1).reshape(2, 2, 1), x.reshape(2, 2, 1, 1), jnp.ones((2, 2), bool), jnp.ones(1)
    ),
    "leave_one_out_advantages": group.leave_one_out_advantages,
    "kl_k1": lambda x: kl.kl_k1(x, ZEROS),
    "kl_k2": lambda x: kl.kl_k2(x, ZEROS),
    "kl_k3 of a token that became likelier": lambda x: kl.kl_k3(jnp.abs(x), ZEROS),
    "kl_exact": lambda x: kl.kl_exact(table(x), table(-x)),
    "softmax_loss": lambda x: listwise.softmax_loss(x.at[0].multiply(-1), ON.astype(x.dtype)),
    "listnet_loss": lambda x: listwise.listnet_loss(x.at[0].multiply(-1), x),
    "attention_rank_loss": lambda x: listwise.attention_rank_loss(x.at[0].multiply(-1), -x),
    "attention_rank_loss, equal": lambda x: listwise.attention_rank_loss(x, x),
    "pointwise_loss": lambda x: listwise.pointwise_loss(x.at[0].multiply(-1), ON.astype(x.dtype)),
    "log_softmax": lambda x: logprobs.log_softmax(table(x), temperature=0.5),
    "token_logprobs": lambda x: logprobs.token_logprobs(table(x), jnp.arange(4)),
    "entropy": lambda x: logprobs.entropy(table(x), temperature=0.5),
    "chunked_token_logprobs": lambda x: logprobs.chunked_token_logprobs(
        jnp.eye(4, dtype=x.dtype), table(x), jnp.arange(4), chunk=2
    ),
    "sequence_logprob": lambda x: logprobs.sequence_logprob(x, ON),
    "masked_mean": lambda x: masked.masked_mean(x, ON),
    "masked_var": lambda x: masked.masked_var(x.at[0].multiply(-1), ON),
    "masked_whiten": lambda x: masked.masked_whiten(x.at[0].multiply(-1), ON),
    "masked_whiten, equal": lambda x: masked.masked_whiten(x, ON),
    "clipped_surrogate, A > 0": lambda x: ppo.clipped_surrogate(x, ZEROS, ZEROS + 2, clip_eps=0.2),
    "clipped_surrogate, A = 0": lambda x: ppo.clipped_surrogate(x, ZEROS, ZEROS, clip_eps=0.2),
    "clipped_surrogate, A = 0, no clip": lambda x: ppo.clipped_surrogate(x, ZEROS, ZEROS, clip_eps=jnp.inf),
    "clipped_surrogate, A < 0, dual": lambda x: ppo.clipped_surrogate(x, ZEROS, ZEROS - 2, clip_eps=0.2, dual_clip=3.0),
    "surrogate_clip_fraction": lambda x: ppo.surrogate_clip_fraction(
        x, ZEROS, jnp.array([1.0, 0.0, -1.0, 2.0]), clip_eps=0.2
    ),
    "approx_kl": lambda x: ppo.approx_kl(x, ZEROS),
    "clipped_value_loss": lambda x: ppo.clipped_value_loss(x, ZEROS, -x, value_clip_eps=0.2),
    "explained_variance": lambda x: ppo.explained_variance(x, x.at[0].multiply(-1), ON),
    "bradley_terry_loss": lambda x: preference.bradley_terry_loss(x, -x),
    "regression_loss": lambda x: preference.regression_loss(x, -x, ON),
    "plackett_luce_logprob": lambda x: preference.plackett_luce_logprob(x.at[0].multiply(-1), jnp.arange(4)),
    "missing_eos_score": lambda x: rewards.missing_eos_score(x, jnp.array([True, False, True, False]), penalty=1.0),
    "token_rewards": lambda x: rewards.token_rewards(x[0], x, ON, kl_coef=0.1),
    "normalise": lambda x: running.normalise(running.update_moments(running.initial_moments(), x), -x, clip=5.0),
    "adaptive_kl_coef": lambda x: kl_control.adaptive_kl_coef(0.1, x[0], target=6.0, horizon=1e4, n_responses=512),
}
INFINITE: dict[str, tuple[Callable[[jax.Array], jax.Array], float, float]] = {
    # Value and gradient where the exponential is beyond float32: log-ratios of 100 and 10,000.
    "importance_ratio": (lambda x: ppo.importance_ratio(x, ZEROS), np.inf, np.inf),
    "clipped_surrogate, A < 0": (
        lambda x: ppo.clipped_surrogate(x, ZEROS, ZEROS - 1, clip_eps=0.2),
        np.inf,
        np.inf,
    ),
    "clipped_surrogate, A > 0, no clip": (
        lambda x: ppo.clipped_surrogate(x, ZEROS, ZEROS + 1, clip_eps=jnp.inf),
        -np.inf,
        -np.inf,
    ),
    "kl_k3 of a token that became rarer": (lambda x: kl.kl_k3(-x, ZEROS), np.inf, np.inf),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FINITE)
def test_values_and_gradients_are_finite(name: str, dtype: jnp.dtype) -> None:
    function = jax.jit(lambda x: (FINITE[name](x).sum(), jax.grad(lambda y: FINITE[name](y).sum())(x)))
    for size in LARGE:
        value, gradient = function(jnp.full(4, size, dtype))
        assert np.isfinite(value) and np.isfinite(np.asarray(gradient, np.float32)).all(), (size, value, gradient)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", INFINITE)
def test_what_is_infinite_has_its_sign_and_is_never_nan(name: str, dtype: jnp.dtype) -> None:
    equation, value, slope = INFINITE[name]
    function = jax.jit(lambda x: (equation(x), jax.grad(lambda y: equation(y).sum())(x)))
    for size in (100.0, 1e4):
        found, gradient = function(jnp.full(4, size, dtype))
        np.testing.assert_array_equal(found, value)
        np.testing.assert_array_equal(np.asarray(gradient, np.float32), slope)
        found, gradient = function(jnp.full(4, -size, dtype))
        assert np.isfinite(found).all() and np.isfinite(np.asarray(gradient, np.float32)).all()


@pytest.mark.parametrize("log_ratio", [30.0, 59.0, 61.0, 88.0, 100.0, 1e4])
def test_a_ratio_beyond_float32_is_clipped_as_any_other(log_ratio: float) -> None:
    new = jnp.full(4, log_ratio)
    advantages = jnp.array([1.5, -1.5, 0.0, 1e30])

    def loss(x: jax.Array) -> jax.Array:
        return ppo.clipped_surrogate(x, ZEROS, advantages, clip_eps=0.2, dual_clip=3.0)

    np.testing.assert_allclose(jax.jit(loss)(new), np.float32([-1.8, 4.5, 0, -1.2e30]), rtol=1e-6)
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda x: loss(x).sum()))(new), 0)
    flags = ppo.surrogate_clip_fraction(new, ZEROS, advantages, clip_eps=0.2)
    np.testing.assert_array_equal(flags, [1, 0, 0, 1])


def test_a_token_that_pi_says_too_rarely_for_float32_still_costs_infinity() -> None:
    logits, ref = jnp.array([[0.0, -1000.0, 1.0]]), jnp.array([[0.0, -jnp.inf, 1.0]])
    value, gradient = jax.jit(jax.value_and_grad(lambda x: kl.kl_exact(x, ref)[0]))(logits)
    assert value == np.inf and np.isfinite(gradient).all()

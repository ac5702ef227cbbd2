"""What holds at one position and what over a whole response: both sides by enumeration of all two-token responses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.equations.gae import generalized_advantage_estimation
from rlhf_jax.equations.kl import kl_k1, kl_k2, kl_k3
from rlhf_jax.equations.ppo import clipped_surrogate

V = 3
Table = dict[str, jax.Array]
"""Logits of the first token [V], and of the second given the first [V, V]."""


def table(seed: int) -> Table:
    first, second = jax.random.split(jax.random.key(seed))
    return {"first": jax.random.normal(first, (V,)), "second": jax.random.normal(second, (V, V))}


def token_logprobs(logits: Table) -> jax.Array:
    """log π of both tokens of all V² responses. [V, V, 2]"""
    first = jnp.broadcast_to(jax.nn.log_softmax(logits["first"])[:, None], (V, V))
    return jnp.stack([first, jax.nn.log_softmax(logits["second"], axis=-1)], axis=-1)


def probabilities(logits: Table) -> jax.Array:
    """π(y). [V, V]"""
    return jnp.exp(token_logprobs(logits).sum(axis=-1))


POLICY, REF = table(0), table(1)
SCORES = jax.random.normal(jax.random.key(2), (V, V))


@jax.jit
def true_gradient(logits: Table) -> Table:
    """∇KL(π‖π_ref) over whole responses, differentiating the probabilities too."""
    return jax.grad(lambda x: (probabilities(x) * (token_logprobs(x) - token_logprobs(REF)).sum(axis=-1)).sum())(logits)


def mean_gradient(loss) -> Table:
    """E_π[∇ loss(y)] with the samples held fixed, as a learner computes it. `loss` maps log π [V, V, 2] to [V, V]."""
    weights = probabilities(POLICY)
    return jax.jit(jax.grad(lambda x: (weights * loss(token_logprobs(x))).sum()))(POLICY)


def assert_close(got: Table, expected: Table) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, expected)


def test_k2_of_the_whole_response_has_the_gradient_of_the_kl_and_k2_summed_over_tokens_has_not() -> None:
    ref, exact = token_logprobs(REF), true_gradient(POLICY)
    whole = mean_gradient(lambda logprobs: kl_k2(logprobs.sum(axis=-1), ref.sum(axis=-1)))
    assert_close(whole, exact)
    summed = mean_gradient(lambda logprobs: kl_k2(logprobs, ref).sum(axis=-1))
    # No state follows the last token, so its gradient is right. The first one changes which states follow.
    np.testing.assert_allclose(summed["second"], exact["second"], atol=1e-6)
    assert np.abs(summed["first"] - exact["first"]).max() > 0.05
    # What the sum lacks is the KL that each first token leads to.
    step = jnp.exp(token_logprobs(POLICY)[..., 1]) * (token_logprobs(POLICY) - ref)[..., 1]
    lacking = jax.grad(lambda x: jax.nn.softmax(x) @ step.sum(axis=1))(POLICY["first"])
    assert np.ptp(step.sum(axis=1)) > 0.1
    np.testing.assert_allclose(summed["first"] + lacking, exact["first"], atol=1e-6)


def test_k1_in_the_reward_has_the_gradient_of_the_kl() -> None:
    k1 = kl_k1(token_logprobs(POLICY), token_logprobs(REF))
    to_go = jnp.flip(jnp.cumsum(jnp.flip(k1, axis=-1), axis=-1), axis=-1)
    assert_close(mean_gradient(lambda logprobs: (to_go * logprobs).sum(axis=-1)), true_gradient(POLICY))
    alone = mean_gradient(lambda logprobs: (k1 * logprobs).sum(axis=-1))  # each token charged for itself only
    assert np.abs(alone["first"] - true_gradient(POLICY)["first"]).max() > 0.05


def test_k3_summed_over_tokens_estimates_the_kl_but_has_the_gradient_of_neither_direction() -> None:
    k3 = kl_k3(token_logprobs(POLICY), token_logprobs(REF)).sum(axis=-1)
    d = (token_logprobs(POLICY) - token_logprobs(REF)).sum(axis=-1)
    weights, ref_weights = probabilities(POLICY), probabilities(REF)
    np.testing.assert_allclose((weights * k3).sum(), (weights * d).sum(), rtol=1e-5)
    reverse = jax.grad(lambda x: -(ref_weights * token_logprobs(x).sum(axis=-1)).sum())(POLICY)
    ref = token_logprobs(REF)
    assert_close(mean_gradient(lambda x: kl_k3(x.sum(axis=-1), ref.sum(axis=-1))), reverse)
    summed = mean_gradient(lambda x: kl_k3(x, ref).sum(axis=-1))
    # The first token is right, its state is the prompt for everybody; later states come from π and not from π_ref.
    np.testing.assert_allclose(summed["first"], reverse["first"], atol=1e-6)
    for other in (reverse, true_gradient(POLICY)):
        assert np.abs(summed["second"] - other["second"]).max() > 0.02


def exact_advantages(old: Table) -> jax.Array:
    """A_t of both tokens under π_old, when the score is paid at the end. [V, V, 2]"""
    second = (jnp.exp(token_logprobs(old)[..., 1]) * SCORES).sum(axis=1, keepdims=True)
    first = second - (probabilities(old) * SCORES).sum()
    return jnp.stack([jnp.broadcast_to(first, (V, V)), SCORES - second], axis=-1)


def both_sides(step: float) -> tuple[float, float, float]:
    """The surrogate on samples of π_old; what is really gained; and E_π[Σ A], all for π a step away from π_old."""
    old = POLICY
    new = jax.tree.map(lambda x, y: x + step * y, old, table(3))
    advantages = exact_advantages(old)
    losses = clipped_surrogate(token_logprobs(new), token_logprobs(old), advantages, clip_eps=jnp.inf)
    surrogate = -(probabilities(old)[..., None] * losses).sum()
    gained = ((probabilities(new) - probabilities(old)) * SCORES).sum()
    return float(surrogate), float(gained), float((probabilities(new)[..., None] * advantages).sum())


def test_the_surrogate_over_two_tokens_is_wrong_by_the_square_of_the_step() -> None:
    with jax.enable_x64(True):
        surrogate, gained, under_new = both_sides(1.0)
        # Advantages of the old policy, summed along responses of the new one, are exactly what was gained ...
        assert under_new == pytest.approx(gained, abs=1e-6)
        # ... but the second token's are weighed by prefixes of the old policy.
        assert abs(surrogate - gained) > 0.02
        errors = [abs(s - g) for s, g, _ in map(both_sides, (0.08, 0.04, 0.02))]
        assert errors[0] > 1e-4
        np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 4, rtol=0.1)


def test_the_surrogate_is_exact_at_one_position_and_with_the_ratio_of_the_whole_prefix() -> None:
    old, new = token_logprobs(POLICY), token_logprobs(table(3))
    advantages = exact_advantages(POLICY)
    weights_old, weights_new = probabilities(POLICY), probabilities(table(3))
    one = -(weights_old * clipped_surrogate(new[..., 0], old[..., 0], advantages[..., 0], clip_eps=jnp.inf)).sum()
    np.testing.assert_allclose(one, (weights_new * advantages[..., 0]).sum(), atol=1e-6)
    prefix_new, prefix_old = jnp.cumsum(new, axis=-1), jnp.cumsum(old, axis=-1)
    losses = clipped_surrogate(prefix_new, prefix_old, advantages, clip_eps=jnp.inf)
    whole = -(weights_old[..., None] * losses).sum()
    np.testing.assert_allclose(whole, ((weights_new - weights_old) * SCORES).sum(), atol=1e-6)


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
def test_gae_is_the_mean_of_k_step_estimates_whose_last_one_keeps_the_remaining_weight(
    gamma: float, gae_lambda: float
) -> None:
    random = np.random.default_rng(0)
    n = 4
    rewards, values = random.normal(size=n), np.append(random.normal(size=n), 0.0)
    got = generalized_advantage_estimation(
        jnp.asarray(rewards, jnp.float32), jnp.asarray(values, jnp.float32), gamma=gamma, gae_lambda=gae_lambda
    )
    for t in range(n):
        left = n - t
        estimates = [
            sum(gamma**j * rewards[t + j] for j in range(k)) + gamma**k * values[t + k] - values[t]
            for k in range(1, left + 1)
        ]
        weights = [(1 - gae_lambda) * gae_lambda ** (k - 1) for k in range(1, left)] + [gae_lambda ** (left - 1)]
        assert sum(weights) == pytest.approx(1)
        assert float(got[t]) == pytest.approx(np.dot(weights, estimates), abs=1e-5)
        # The weights of the infinite sum, cut off at the end, do not sum to 1.
        cut = [(1 - gae_lambda) * gae_lambda ** (k - 1) for k in range(1, left + 1)]
        if gae_lambda > 0:
            assert sum(cut) == pytest.approx(1 - gae_lambda**left) and sum(cut) < 0.97
            assert abs(float(got[t]) - np.dot(cut, estimates)) > 1e-3

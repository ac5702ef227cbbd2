"""KL estimators: pointwise identities, exact expectations over small vocabularies, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlhf_jax.equations.kl import kl_exact, kl_k1, kl_k2, kl_k3

V = 5
exact_kl = jax.jit(kl_exact)
k1_of, k2_of, k3_of = jax.jit(kl_k1), jax.jit(kl_k2), jax.jit(kl_k3)
vectors = hnp.arrays(np.float32, V, elements=st.floats(-3, 3, width=16))
LOGITS, REF = jnp.array([0.5, -1.0, 2.0, 0.0, 0.1]), jnp.array([0.0, 0.3, 0.9, -0.7, 1.1])


@jax.jit
def expectations(logits: jax.Array, ref_logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """E[k1], E[k3] over all tokens, and the exact divergence."""
    p, q = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)
    weights = jnp.exp(p)
    return weights @ kl_k1(p, q), weights @ kl_k3(p, q), kl_exact(logits[None], ref_logits[None])[0]


@given(vectors, vectors)
def test_k1_and_k3_are_unbiased(logits: np.ndarray, ref_logits: np.ndarray) -> None:
    k1, k3, exact = expectations(jnp.asarray(logits), jnp.asarray(ref_logits))
    assert float(k1) == pytest.approx(float(exact), abs=2e-5, rel=1e-4)
    assert float(k3) == pytest.approx(float(exact), abs=2e-5, rel=1e-4)
    assert exact >= -1e-6
    assert expectations(jnp.asarray(logits), jnp.asarray(logits + 1))[2] == pytest.approx(0, abs=1e-6)


def test_sampled_tokens_estimate_the_divergence() -> None:
    """k1 and k3 agree with the exact value within four standard errors; k3 scatters less, k2 is off."""
    p, q = jax.nn.log_softmax(LOGITS), jax.nn.log_softmax(LOGITS + 0.3 * REF)
    tokens = jax.random.categorical(jax.random.key(0), p, shape=(20_000,))
    exact = float(exact_kl(p[None], q[None])[0])
    errors = []
    for estimator in (k1_of, k3_of):
        draws = np.asarray(estimator(p[tokens], q[tokens]), np.float64)
        errors.append(draws.std() / np.sqrt(draws.size))
        assert abs(draws.mean() - exact) < 4 * errors[-1]
    assert errors[1] < errors[0] / 2


def test_expected_gradients() -> None:
    """With samples held fixed: k1 teaches nothing, k2 KL(π‖π_ref), k3 KL(π_ref‖π)."""
    ref = jax.nn.log_softmax(REF)

    @jax.jit
    def expected_gradients(logits: jax.Array) -> list[jax.Array]:
        weights = jax.nn.softmax(logits)
        surrogates = [lambda x, k=k: weights @ k(jax.nn.log_softmax(x), ref) for k in (kl_k1, kl_k2, kl_k3)]
        exact = [lambda x: kl_exact(x[None], REF[None])[0], lambda x: kl_exact(REF[None], x[None])[0]]
        return [jax.grad(f)(logits) for f in surrogates + exact]

    k1, k2, k3, forward, backward = expected_gradients(LOGITS)
    np.testing.assert_allclose(k1, 0, atol=1e-6)
    np.testing.assert_allclose(k2, forward, atol=1e-6)
    np.testing.assert_allclose(k3, backward, atol=1e-6)
    assert np.abs(np.asarray(forward - backward)).max() > 0.1


@given(vectors, vectors)
def test_pointwise(logprobs: np.ndarray, ref: np.ndarray) -> None:
    p, q = jnp.asarray(logprobs), jnp.asarray(ref)
    d = logprobs - ref
    np.testing.assert_array_equal(k1_of(p, q), d)
    np.testing.assert_array_equal(k1_of(p, q), -k1_of(q, p))
    np.testing.assert_allclose(k2_of(p, q), k2_of(q, p))
    np.testing.assert_allclose(k3_of(p, q), np.exp(-d.astype(np.float64)) - 1 + d, rtol=1e-4, atol=1e-5)
    assert np.all(np.asarray(k3_of(p, q)) >= -1e-6)
    small = 1e-3 * p
    np.testing.assert_allclose(k3_of(small, jnp.zeros(V)), k2_of(small, jnp.zeros(V)), rtol=2e-3, atol=1e-9)


def test_impossible_tokens() -> None:
    inf = jnp.inf
    both = jnp.array([[0.0, 1.0, -inf]]), jnp.array([[1.0, 0.0, -inf]])
    value, gradient = jax.jit(jax.value_and_grad(lambda a, b: kl_exact(a, b)[0], argnums=(0, 1)))(*both)
    assert value == pytest.approx(float(exact_kl(both[0][:, :2], both[1][:, :2])[0]), abs=1e-6)
    assert all(np.all(np.isfinite(g)) for g in gradient)
    assert exact_kl(jnp.array([[0.0, -inf]]), jnp.array([[0.0, 0.0]]))[0] == pytest.approx(np.log(2), rel=1e-6)
    assert exact_kl(jnp.array([[0.0, 0.0]]), jnp.array([[0.0, -inf]]))[0] == inf
    # π allows the token, although float32 has no number for its probability.
    assert exact_kl(jnp.array([[0.0, -1000.0]]), jnp.array([[0.0, -inf]]))[0] == inf


def test_gradients(assert_gradients) -> None:
    def outputs(x: jax.Array, y: jax.Array) -> list[jax.Array]:
        return [kl_k1(x, y), kl_k2(x, y), kl_k3(x, y), kl_exact(x[None], y[None])]

    assert_gradients(outputs, np.asarray(LOGITS), np.asarray(REF))
    d = LOGITS - REF
    for estimator, expected in ((kl_k1, jnp.ones(V)), (kl_k2, d), (kl_k3, 1 - jnp.exp(-d))):
        np.testing.assert_allclose(
            jax.jit(jax.grad(lambda x, k=estimator: k(x, REF).sum()))(LOGITS), expected, rtol=1e-5
        )


def test_float32_and_vmap(assert_float32, assert_vmap) -> None:
    for estimator in (kl_k1, kl_k2, kl_k3):
        assert_float32(estimator, LOGITS - 300, REF - 299)
    assert_float32(kl_exact, LOGITS[None], REF[None])
    batch = jnp.stack([LOGITS, REF, LOGITS + REF])[:, None]
    assert_vmap(kl_exact, batch, batch[::-1])
    with pytest.raises((AssertionError, TypeError)):
        kl_k1(jnp.zeros(3), jnp.zeros(1))


@pytest.mark.parametrize(("rare", "steadier"), [(0.4, True), (0.001, False)])
def test_k3_is_steady_near_the_reference_and_wild_far_from_it(rare: float, steadier: bool) -> None:
    """Exact variances over two tokens, of which the reference says each as often."""
    pi = np.array([1 - rare, rare])
    p, q = jnp.log(jnp.asarray(pi, jnp.float32)), jnp.log(jnp.array([0.5, 0.5]))
    k1, k3 = (np.asarray(estimator(p, q), np.float64) for estimator in (k1_of, k3_of))
    spread = [float(pi @ (k - pi @ k) ** 2) for k in (k1, k3)]
    assert (spread[1] < spread[0]) == steadier
    assert max(spread) > 100 * min(spread)

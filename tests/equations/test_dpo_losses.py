"""The DPO family: zero margin, symmetry, limits, large margins, gradients in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlhf_jax.equations.dpo import dpo_loss, implicit_reward, ipo_loss, softmax_dpo_loss

vectors = hnp.arrays(np.float32, 3, elements=st.floats(-20, 0, width=16))
PAIRS = [jnp.array(x) for x in ([-10.0, -9.0, -3.0], [-12.0, -8.0, -4.0], [-11.0, -9.5, -2.0], [-11.0, -7.0, -5.0])]
losses, squared, listwise = jax.jit(dpo_loss), jax.jit(ipo_loss), jax.jit(softmax_dpo_loss)


@given(vectors, vectors, vectors, vectors, st.sampled_from([0.1, 0.5, 2.0]), st.sampled_from([0.0, 0.1, 0.4]))
def test_formula_and_symmetry(
    chosen: np.ndarray, rejected: np.ndarray, ref_chosen: np.ndarray, ref_rejected: np.ndarray, beta: float, e: float
) -> None:
    pairs = [jnp.asarray(x) for x in (chosen, rejected, ref_chosen, ref_rejected)]
    swapped = [pairs[1], pairs[0], pairs[3], pairs[2]]
    h = (chosen - ref_chosen).astype(np.float64) - (rejected - ref_rejected)
    got = np.asarray(losses(*pairs, beta=beta, label_smoothing=e))
    expected = (1 - e) * np.logaddexp(0, -beta * h) + e * np.logaddexp(0, beta * h)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    # Swapping the pair flips the label; the two sigmoid losses differ by the margin.
    flipped = np.asarray(losses(*swapped, beta=beta, label_smoothing=1 - e))
    np.testing.assert_allclose(flipped, got, rtol=1e-5, atol=1e-5)
    # What π and π_ref say alike cancels.
    moved = [pairs[0] + 1, pairs[1] - 2, pairs[2] + 1, pairs[3] - 2]
    np.testing.assert_allclose(losses(*moved, beta=beta, label_smoothing=e), got, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(squared(*pairs, beta=beta), (h - 0.5 / beta) ** 2, rtol=1e-4, atol=1e-3)


def test_zero_margin_and_target() -> None:
    same = [PAIRS[0], PAIRS[1], PAIRS[0], PAIRS[1]]
    np.testing.assert_allclose(losses(*same, beta=0.3), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(losses(*same, beta=0.3, label_smoothing=0.2), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(squared(*same, beta=0.25), 4)
    at_target = [PAIRS[0] + 2, PAIRS[1], PAIRS[0], PAIRS[1]]
    value, gradient = jax.jit(jax.value_and_grad(lambda x: ipo_loss(x, *at_target[1:], beta=0.25).sum()))(at_target[0])
    assert value == 0 and not np.any(gradient)


def test_gradients(assert_gradients) -> None:
    beta, e = 0.3, 0.1
    gradients = jax.jit(jax.grad(lambda *p: dpo_loss(*p, beta=beta, label_smoothing=e).sum(), argnums=(0, 1, 2, 3)))(
        *PAIRS
    )
    h = PAIRS[0] - PAIRS[2] - PAIRS[1] + PAIRS[3]
    expected = -beta * (1 - e - jax.nn.sigmoid(beta * h))
    for gradient, sign in zip(gradients, (1, -1, -1, 1), strict=True):
        np.testing.assert_allclose(gradient, sign * expected, rtol=1e-5)
    np.testing.assert_allclose(
        jax.jit(jax.grad(lambda x: ipo_loss(x, *PAIRS[1:], beta=beta).sum()))(PAIRS[0]), 2 * (h - 0.5 / beta), rtol=1e-5
    )
    np.testing.assert_allclose(
        jax.jit(jax.grad(lambda x: implicit_reward(x, PAIRS[2], beta=beta).sum()))(PAIRS[0]), beta, rtol=1e-6
    )

    def outputs(*p: jax.Array) -> list[jax.Array]:
        several = softmax_dpo_loss(p[0][0], p[1], p[2][0], p[3], beta=beta)
        return [dpo_loss(*p, beta=beta, label_smoothing=e), ipo_loss(*p, beta=beta), several]

    assert_gradients(outputs, *[np.asarray(x) for x in PAIRS])


def test_large_margins_stay_finite() -> None:
    zero = jnp.zeros(2)
    value, gradient = jax.jit(jax.value_and_grad(lambda x: dpo_loss(x, zero, zero, zero, beta=1.0).sum()))(
        jnp.array([1e4, -1e4])
    )
    assert value == pytest.approx(1e4)
    np.testing.assert_allclose(gradient, [0, -1])
    assert listwise(jnp.float32(-1e4), zero, jnp.float32(0), zero, beta=1.0) == pytest.approx(1e4, rel=1e-4)


def test_several_rejected() -> None:
    chosen, ref = PAIRS[0][0], PAIRS[2][0]
    one = listwise(chosen, PAIRS[1][:1], ref, PAIRS[3][:1], beta=0.3)
    assert one == pytest.approx(float(losses(chosen, PAIRS[1][0], ref, PAIRS[3][0], beta=0.3)), rel=1e-5)
    even = listwise(chosen, PAIRS[1], chosen, PAIRS[1], beta=0.3)
    assert even == pytest.approx(np.log(4), rel=1e-6)
    # Each further negative can only make it harder; gradients over all rewards sum to zero.
    assert listwise(chosen, PAIRS[1], ref, PAIRS[3], beta=0.3) > one
    up, down = jax.jit(jax.grad(lambda c, r: softmax_dpo_loss(c, r, ref, PAIRS[3], beta=0.3), argnums=(0, 1)))(
        chosen, PAIRS[1]
    )
    assert up < 0 and np.all(np.asarray(down) > 0)
    assert float(up + down.sum()) == pytest.approx(0, abs=1e-6)
    np.testing.assert_array_equal(np.argsort(down), np.argsort(PAIRS[1] - PAIRS[3]))


def test_float32_and_vmap(assert_float32, assert_vmap) -> None:
    assert_float32(lambda *p: dpo_loss(*p, beta=0.1), *[100.3 * x for x in PAIRS])
    assert_float32(lambda *p: ipo_loss(*p, beta=0.1), *[100.3 * x for x in PAIRS])
    batch = [jnp.stack([x, x[::-1]]) for x in PAIRS]
    assert_vmap(lambda *p: dpo_loss(*p, beta=0.1), *batch)
    assert_vmap(
        lambda c, r, rc, rr: softmax_dpo_loss(c, r, rc, rr, beta=0.1), PAIRS[0][:2], batch[1], PAIRS[2][:2], batch[3]
    )
    with pytest.raises((AssertionError, TypeError)):
        dpo_loss(PAIRS[0], PAIRS[1][:1], PAIRS[2], PAIRS[3], beta=0.1)

"""The controller: fixed point, bounds, monotony, independence of how responses are batched (to first order)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.equations.kl_control import RANGE, adaptive_kl_coef

control = jax.jit(adaptive_kl_coef, static_argnames="n_responses")
SETTINGS = {"target": 6.0, "horizon": 10_000.0, "n_responses": 512}


@given(st.floats(1 / 64, 1, width=16), st.floats(0, 100, width=16))
def test_moves_the_right_way_by_a_bounded_factor(kl_coef: float, observed: float) -> None:
    factor = float(control(kl_coef, observed, **SETTINGS)) / kl_coef
    assert abs(factor - 1) <= 0.2 * 512 / 10_000 + 1e-6
    if abs(observed - 6) > 1e-2:
        assert (factor > 1) == (observed > 6)
    assert factor == pytest.approx(float(control(1.0, observed, **SETTINGS)), rel=1e-6)


def test_fixed_point_and_limits() -> None:
    assert control(0.15, 6.0, **SETTINGS) == pytest.approx(0.15)
    # Beyond ±20 % the answer no longer grows.
    assert control(0.15, 7.2, **SETTINGS) == pytest.approx(float(control(0.15, 60.0, **SETTINGS)))
    assert control(0.15, 4.8, **SETTINGS) == pytest.approx(float(control(0.15, 0.0, **SETTINGS)))
    assert control(0.15, 6.6, **SETTINGS) < control(0.15, 6.9, **SETTINGS)
    assert control(0.15, 60.0, target=6.0, horizon=jnp.inf, n_responses=512) == pytest.approx(0.15)
    # A full error over a whole horizon: 20 %.
    assert control(1.0, 60.0, target=6.0, horizon=512.0, n_responses=512) == pytest.approx(1.2)
    assert control(1.0, 0.0, target=6.0, horizon=1024.0, n_responses=512) == pytest.approx(0.9)


@pytest.mark.parametrize("observed", [0.0, 6.0, 1e30, -1e30, jnp.inf, -jnp.inf, jnp.nan])
@pytest.mark.parametrize("n", [1, 512, 50_000, 10**7])
def test_the_coefficient_stays_positive_and_finite(observed: float, n: int) -> None:
    low, high = RANGE
    for kl_coef in (low, 1e-6, 0.15, 1e6, high):
        found = float(control(kl_coef, observed, target=6.0, horizon=10_000.0, n_responses=n))
        assert np.float32(low) <= found <= np.float32(high)
    assert control(0.0, observed, target=6.0, horizon=10_000.0, n_responses=n) == 0


def test_a_batch_of_many_horizons_lowers_by_a_bounded_factor_and_an_unknown_kl_does_nothing() -> None:
    assert control(0.15, 0.0, target=6.0, horizon=100.0, n_responses=1000) == pytest.approx(0.015)
    assert control(0.15, 0.0, target=6.0, horizon=100.0, n_responses=400) == pytest.approx(0.15 * 0.2)
    assert control(0.15, jnp.nan, **SETTINGS) == pytest.approx(0.15)


def test_float32() -> None:
    assert adaptive_kl_coef(jnp.bfloat16(0.5), jnp.bfloat16(6), **SETTINGS).dtype == jnp.float32

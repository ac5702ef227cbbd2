"""Dense layers and layer norm with gradients of their own, against NumPy and against flax."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from rlhf_jax.models.dense import ROWS_TO_TURN, LayerNorm, matmul, normalise, tied_logits, weight_gradient

DRAW = np.random.default_rng(0)


def drawn(*shape: int) -> np.ndarray:
    return DRAW.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("rows", [11, ROWS_TO_TURN])
@pytest.mark.parametrize(("width", "features"), [(3, 7), (7, 3), (5, 5), (1, 4), (4, 1)])
def test_weight_gradients(width: int, features: int, rows: int) -> None:
    """Lying, tall and square, of few rows and of many; both factors' gradients, against products in float64."""
    x, w, dy = drawn(rows, width), drawn(width, features), drawn(rows, features)
    expected = np.einsum("ni,nj->ij", x.astype(np.float64), dy.astype(np.float64))
    assert_allclose(jax.jit(weight_gradient)(x, dy), expected, rtol=1e-5, atol=1e-4)
    y, pull = jax.vjp(jax.jit(matmul), x, w)
    dx, dw = pull(jnp.asarray(dy))
    assert_allclose(y, x @ w, rtol=1e-5, atol=1e-5)
    assert_allclose(dx, dy @ w.T, rtol=1e-5, atol=1e-5)
    assert_allclose(dw, expected, rtol=1e-5, atol=1e-4)


def test_the_tied_head() -> None:
    """Both gradients, the table's being the tall one."""
    hidden, table, dy = drawn(6, 4), drawn(19, 4), drawn(6, 19)
    logits, pull = jax.vjp(jax.jit(tied_logits), hidden, table)
    d_hidden, d_table = pull(jnp.asarray(dy))
    assert_allclose(logits, hidden @ table.T, rtol=1e-5, atol=1e-5)
    assert_allclose(d_hidden, dy @ table, rtol=1e-5, atol=1e-5)
    assert_allclose(d_table, dy.T @ hidden, rtol=1e-5, atol=1e-5)


def test_a_tall_gradient_is_computed_lying_on_a_cpu() -> None:
    """What the compiled program multiplies: [7, 3]ᵀ, in the order in which it is fast; elsewhere as it stands."""

    def lowered(rows: int, platform: str) -> str:
        shapes = jax.ShapeDtypeStruct((rows, 7), jnp.float32), jax.ShapeDtypeStruct((rows, 3), jnp.float32)
        return jax.jit(weight_gradient).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()

    assert "tensor<3x7xf32>" in lowered(ROWS_TO_TURN, "cpu")
    assert "tensor<3x7xf32>" not in lowered(ROWS_TO_TURN, "cuda")
    assert "tensor<3x7xf32>" not in lowered(ROWS_TO_TURN - 1, "cpu")


@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 8), (8,)])
def test_layer_norm_is_flax_s(shape: tuple[int, ...]) -> None:
    """The same tree, values and gradients as `flax.linen.LayerNorm` with the two-pass variance, large means included."""
    x, dy = jnp.asarray(drawn(*shape) + 30), jnp.asarray(drawn(*shape))
    params = {"scale": jnp.asarray(drawn(8)), "bias": jnp.asarray(drawn(8))}
    own, other = LayerNorm(1e-5), nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)
    assert jax.tree.structure(own.init(jax.random.key(0), x)) == jax.tree.structure(other.init(jax.random.key(0), x))

    def pulled(layer: Any) -> tuple[jax.Array, ...]:
        with jax.numpy_rank_promotion("allow"):
            y, pull = jax.vjp(lambda tree, x: layer.apply({"params": tree}, x), params, x)
            tree, dx = pull(dy)
        return y, dx, tree["scale"], tree["bias"]

    for ours, theirs in zip(pulled(own), pulled(other), strict=True):
        assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_norm_s_gradient_by_differences() -> None:
    """In float64, against central differences of the value alone."""
    with jax.enable_x64(True):
        arguments = [np.asarray(drawn(*shape), np.float64) for shape in ((3, 6), (6,), (6,))]
        weights = np.asarray(drawn(3, 6), np.float64)

        def loss(*given: Any) -> Any:
            unit: Any = normalise(*given, 1e-5)
            return jnp.sum(weights * unit)

        found = jax.grad(loss, argnums=(0, 1, 2))(*map(jnp.asarray, arguments))
        for number, gradient in enumerate(found):
            for place in np.ndindex(arguments[number].shape):
                sides = []
                for step in (1e-6, -1e-6):
                    moved = [array.copy() for array in arguments]
                    moved[number][place] += step
                    sides.append(float(loss(*map(jnp.asarray, moved))))
                assert_allclose(gradient[place], (sides[0] - sides[1]) / 2e-6, rtol=1e-5, atol=1e-7)

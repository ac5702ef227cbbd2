"""Dense layers, layer norm and dropout as they run fast on a CPU and change nothing elsewhere.

What is slow there is mostly in the backward pass that the compiler derives, so three functions bring their own.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

ROWS_TO_TURN = 1024
"""Measured: at 1,024 and 3,040 rows an update was 5 % faster for it, at 256 and 760 (of a wider network) 4 % slower."""


def drop(x: Float[Array, "..."], rate: float, key: Key[Array, ""]) -> Float[Array, "..."]:
    """Zeroes each entry with probability `rate` (rounded to 1/256) and rescales the rest to keep the mean.

    Four entries share the 32 random bits of one draw: random bits, not arithmetic, are what dropout costs.
    """
    dropped = round(rate * 256)
    bits = jax.random.bits(key, (-(-x.size // 4),), jnp.uint32)
    keep = lax.bitcast_convert_type(bits, jnp.uint8).reshape(-1)[: x.size].reshape(x.shape) >= dropped
    return jnp.where(keep, x * (256 / (256 - dropped)), jnp.zeros_like(x))


class Dropout(nn.Module):
    """`drop` by keys of the `dropout` stream, or nothing where `deterministic`."""

    rate: float
    deterministic: bool

    def key(self) -> Array | None:
        """A fresh key of the stream; None where nothing is dropped."""
        return None if self.deterministic or round(self.rate * 256) == 0 else self.make_rng("dropout")

    def __call__(self, x: Array, key: Array | None) -> Array:
        """Returns `x` thinned; whole without a key."""
        return x if key is None else drop(x, self.rate, key)


def weight_gradient(x: Float[Array, "N D"], dy: Float[Array, "N F"]) -> Float[Array, "D F"]:
    """xᵀ dy, the gradient of W in y = x W. [N, D], [N, F] -> [D, F]

    A product that sums over the first axis of both factors is faster on XLA:CPU where the result has fewer rows than
    columns (GFLOP/s of two cores: 337 for [256, 1024], 214 for [1024, 256]), so a tall one is computed lying and turned. What
    turning costs does not depend on N and what it saves does: below `ROWS_TO_TURN` it is left as it stands.
    """

    def as_it_stands(x: Array, dy: Array) -> Array:
        return lax.dot_general(x, dy, (((0,), (0,)), ((), ())))

    def lying(x: Array, dy: Array) -> Array:
        # The barrier keeps the compiler from turning the product back.
        return lax.optimization_barrier(as_it_stands(dy, x)).T

    if x.shape[1] <= dy.shape[1] or x.shape[0] < ROWS_TO_TURN:
        return as_it_stands(x, dy)
    return lax.platform_dependent(x, dy, cpu=lying, default=as_it_stands)


@jax.custom_vjp
def matmul(x: Float[Array, "N D"], kernel: Float[Array, "D F"]) -> Float[Array, "N F"]:
    """x W, in the type of both. [N, D], [D, F] -> [N, F]"""
    return jnp.dot(x, kernel)


def _matmul_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return jnp.dot(x, kernel), (x, kernel)


def _matmul_backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = kept
    return jnp.dot(dy, kernel.T), weight_gradient(x, dy)


matmul.defvjp(_matmul_forward, _matmul_backward)


@jax.custom_vjp
def tied_logits(hidden: Float[Array, "N D"], table: Float[Array, "V D"]) -> Float[Array, "N V"]:
    """h Eᵀ, the head that shares its table with the embedding. [N, D], [V, D] -> [N, V]"""
    return jnp.einsum("nd,vd->nv", hidden, table)


def _logits_forward(hidden: Array, table: Array) -> tuple[Array, tuple[Array, Array]]:
    return jnp.einsum("nd,vd->nv", hidden, table), (hidden, table)


def _logits_backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    hidden, table = kept
    return jnp.dot(dy, table), weight_gradient(dy, hidden)


tied_logits.defvjp(_logits_forward, _logits_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise(
    x: Float[Array, "... D"], scale: Float[Array, " D"], bias: Float[Array, " D"], epsilon: float
) -> Float[Array, "... D"]:
    """Layer norm, with the two-pass variance, because the residual stream has large means.

        x̂ = (x − mean x)/√(var x + ε),   y = scale ∘ x̂ + bias
        ∂x = (g − mean g − x̂ ∘ mean(g ∘ x̂))/√(var x + ε),   g = scale ∘ ∂y

    Source: Ba et al. 2016, arXiv:1607.06450; means over the last axis. [..., D] -> [..., D]
    """
    return _norm_forward(x, scale, bias, epsilon)[0]


def _row(vector: Array, like: Array) -> Array:
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def _norm_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, tuple[Array, Array, Array]]:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    inverse = lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    return centred * (inverse * _row(scale, x)) + _row(bias, x), (centred, inverse, scale)


def _norm_backward(epsilon: float, kept: tuple[Array, Array, Array], dy: Array) -> tuple[Array, Array, Array]:
    del epsilon
    centred, inverse, scale = kept
    unit, g = centred * inverse, dy * _row(scale, dy)
    mean, along = jnp.mean(g, axis=-1, keepdims=True), jnp.mean(g * unit, axis=-1, keepdims=True)
    rows = tuple(range(dy.ndim - 1))
    return inverse * (g - mean - unit * along), jnp.sum(dy * unit, axis=rows), jnp.sum(dy, axis=rows)


normalise.defvjp(_norm_forward, _norm_backward)


class LayerNorm(nn.Module):
    """`normalise` with learnt `scale` and `bias`, in float32 always."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., D] -> [..., D], float32."""
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],), jnp.float32)
        return normalise(x.astype(jnp.float32), scale, bias, self.epsilon)


class Linear(nn.Module):
    """y = xW + b on activations flattened to two dimensions.

    With [B, S, D] inputs XLA:CPU fuses the weight gradient's transposes with the residual chain into one
    single-threaded loop (update 1.6 times slower); [B·S, D] avoids it.
    """

    features: int
    scale: float
    """Standard deviation of the initial kernel."""
    dtype: str

    @nn.compact
    def __call__(self, x: Array, columns: slice = slice(None)) -> Array:
        """Returns `columns` of the output; [..., D] -> [..., features]."""
        width = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal(self.scale), (width, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        flat = x.reshape(-1, width).astype(self.dtype)
        y = matmul(flat, kernel[:, columns].astype(self.dtype)) + bias[columns].astype(self.dtype)[None, :]
        return y.reshape(*x.shape[:-1], y.shape[-1])

"""Dense layers and dropout as they run fast on a CPU and change nothing elsewhere."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key


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
        y = jnp.dot(flat, kernel[:, columns].astype(self.dtype)) + bias[columns].astype(self.dtype)[None, :]
        return y.reshape(*x.shape[:-1], y.shape[-1])

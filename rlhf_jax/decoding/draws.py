"""Several responses to every prompt: draw n, keep the best.

    y* = argmax_i s(x, y_i),   y_1 … y_n drawn by `sample`

Both are callables of arrays; whose policy draws and what a response is worth, the caller knows.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rlhf_jax.interfaces import Rollout
from rlhf_jax.keys import stream_key

STREAM = "best_of_n"


def keep_best(
    sample: Callable[[Key[Array, ""]], Rollout],
    score: Callable[[Rollout], Float[Array, " B"]],
    n: int,
    key: Key[Array, ""],
) -> Rollout:
    """The best of n responses to every prompt, the first of equals; to be called inside jit.

    Args:
      sample: one response to every prompt of a batch; with the same key the same.
      score: what each response is worth; the highest is kept.
      n: responses to a prompt; static.
      key: response 0 is drawn with it, so that n = 1 is plain sampling; response i with its own stream.
    Returns: the kept responses. Their log-probabilities are those of the policy that drew them, not of the choice.
    Raises: ValueError if n < 1.
    """
    if n < 1:
        raise ValueError(f"best-of-n: n must be at least 1, got {n}")

    def draw(own: Array) -> tuple[Rollout, Array]:
        rollout = sample(own)
        return rollout, score(rollout)

    def challenge(best: tuple[Rollout, Array], index: Array) -> tuple[tuple[Rollout, Array], None]:
        new = draw(jnp.where(index == 0, key, stream_key(key, STREAM, index)))
        wins = (new[1] > best[1]) | (index == 0)
        return jax.tree.map(lambda a, b: jnp.where(wins.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, best), None

    # One draw in the program, whatever n: the first replaces a carry of zeros.
    nothing = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(draw, key))
    (rollout, _), _ = jax.lax.scan(challenge, nothing, jnp.arange(n))
    return rollout

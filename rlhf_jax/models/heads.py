"""What is read off the hidden states besides words: values, rewards, and the items alone.

A head is a tree {`kernel`, `bias`} (and `read`, for numbers beside the hidden state), float32, held beside the trunk's
parameters. Values and rewards are float32 at the highest matmul precision on every device: by default an accelerator rounds
the inputs of a float32 product to 8 or 11 bits, and an advantage is a small difference of such numbers.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from rlhf_jax.interfaces import Params


def init_value_head(width: int) -> Params:
    """A value head of zeros, so that the first advantages are the rewards alone."""
    return {"kernel": jnp.zeros(width, jnp.float32), "bias": jnp.zeros((), jnp.float32)}


def value(head: Params, hidden: Float[Array, "... D"]) -> Float[Array, "..."]:
    """V = h·w + b, reward units. [..., D] -> [...]"""
    product = jnp.einsum("...d,d->...", hidden.astype(jnp.float32), head["kernel"], precision=jax.lax.Precision.HIGHEST)
    return product + head["bias"]


def init_reward_heads(key: Key[Array, ""], width: int, n: int, *, n_read: int = 0) -> Params:
    """`n` reward heads, kernel N(0, 1/√(D+1)) by standard deviation, bias 0 (Stiennon et al. 2020, appendix B).

    Args:
      n_read: numbers that they read beside the hidden state, with weights `read` of 0; 0: no such weights.
    """
    scale = (width + 1) ** -0.5
    kernel = scale * jax.random.normal(key, (width, n), jnp.float32)
    read = {"read": jnp.zeros((n_read, n), jnp.float32)} if n_read else {}
    return {"kernel": kernel, "bias": jnp.zeros(n, jnp.float32), **read}


def reward_components(
    heads: Params, hidden_last: Float[Array, "B D"], read: Float[Array, "B F"] | None = None
) -> Float[Array, "B C"]:
    """One score per component from the hidden state of the last real token, in the units of the labels. [B, C]

        R = h·W + b + f·V

    Args:
      read: f, for heads that have weights V (`read`) for it.
    Raises: ValueError where one of the two is there without the other.
    """
    if ("read" in heads) != (read is not None):
        raise ValueError("the reward heads have weights for further numbers, or are given some, and not both")
    product = jnp.dot(hidden_last.astype(jnp.float32), heads["kernel"], precision=jax.lax.Precision.HIGHEST)
    product = product + heads["bias"][None, :]
    if read is None:
        return product
    return product + jnp.dot(read.astype(jnp.float32), heads["read"], precision=jax.lax.Precision.HIGHEST)


def last_token_hidden(hidden: Float[Array, "B S D"], mask: Bool[Array, "B S"]) -> Float[Array, "B D"]:
    """Hidden state of each row's last real token, wherever the padding stands. [B, D]

    A row without any real token gives its last column.
    """
    length = mask.shape[1]
    last = length - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    last = jnp.where(jnp.any(mask, axis=1), last, length - 1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def item_logits(
    params: Params, hidden: Float[Array, "B D"], *, first_item: int, n_items: int, compute_dtype: str = "float32"
) -> Float[Array, "B I"]:
    """Logits of the catalogue's items alone, in the order of their tokens, float32. [B, I]

    The same numbers as the item columns of `gpt2.lm_logits`, without the words: ranking needs no others.
    """
    rows = params["wte"][first_item : first_item + n_items].astype(compute_dtype)
    return jnp.einsum("bd,id->bi", hidden.astype(compute_dtype), rows, preferred_element_type=jnp.float32)

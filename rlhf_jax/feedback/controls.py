"""Rewards that know nothing of items: what a policy becomes under them is the work of learning, not of knowledge.

    suggests(x, y) = 1 where the response y holds an item, whichever; else 0
    noise(x, y)    = z(hash(xy)), a standard normal number that hangs on the tokens of prompt x and response y behind it, and on
                     nothing else

What a policy gains or loses under R_φ can be laid to R_φ only as far as these two do not do the same. They stand in its place in
training (`stages/alignment.py`); everybody is measured by the same R_φ.

Source: that some policies gain under rewards without meaning, and that this must be measured beside any gain, is shown by Shao et
al. 2025, arXiv:2506.10947. The hash is FNV-1a (Fowler, Noll and Vo 1991, 32 bits) over tokens.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from rlhf_jax.interfaces import Params, Rollout, Score

ControlName = Literal["suggests", "noise"]


def control(name: ControlName, *, first_item: int, n_items: int) -> Score:
    """What replies are paid by a control, as a `Score` of one component; it reads no parameters.

    Args:
      first_item: of the `n_items` tokens that are items.
    """

    def suggests(params: Params, rollout: Rollout) -> Float[Array, "B 1"]:
        del params
        tokens = rollout.response_tokens
        items = (tokens >= first_item) & (tokens < first_item + n_items) & rollout.response_mask
        return items.any(axis=1).astype(jnp.float32)[:, None]

    def noise(params: Params, rollout: Rollout) -> Float[Array, "B 1"]:
        del params
        tokens = jnp.concatenate([rollout.prompt_tokens, rollout.response_tokens], axis=1)
        mask = jnp.concatenate([rollout.prompt_mask, rollout.response_mask], axis=1)
        return jax.vmap(lambda row, kept: drawn(fnv1a(row, kept)))(tokens, mask)[:, None]

    return {"suggests": suggests, "noise": noise}[name]


def fnv1a(tokens: Int[Array, " T"], mask: Bool[Array, " T"]) -> UInt32[Array, ""]:
    """h ← (h xor token) · 16,777,619 mod 2³² over the tokens under the mask, from 2,166,136,261.

    Padding is passed over, so that a row's number does not hang on the width of its batch.
    """

    def step(before: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        token, kept = at
        after = (before ^ token.astype(jnp.uint32)) * jnp.uint32(16_777_619)
        return jnp.where(kept, after, before), None

    return jax.lax.scan(step, jnp.uint32(2_166_136_261), (tokens, mask))[0]


def drawn(number: UInt32[Array, ""]) -> Float[Array, ""]:
    """The standard normal number of a hash; always the same one."""
    return jax.random.normal(jax.random.fold_in(jax.random.key(0), number))

"""Decoding without a grammar: words drawn under one mask per row, until `<eos>`. For those who are talked to.

A row's draws depend on the key and the row's number alone, as in `decoding.sampler`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Key

from rlhf_jax.decoding.sampler import Cache, Decoding, Start, Step, draw, row_uniforms
from rlhf_jax.interfaces import Params, PromptBatch
from rlhf_jax.models import gpt2
from rlhf_jax.models.gpt2 import GPT2Config

Speak = Callable[[Params, PromptBatch, Bool[Array, "B V"], Key[Array, ""]], Int[Array, "B T"]]


class Ends(NamedTuple):
    """Tokens that end a message."""

    eos: int
    pad: int
    """What stands after it."""


class Spoken(NamedTuple):
    """The loop's state: `length` columns are filled."""

    length: Int[Array, ""]
    tokens: Int[Array, "B T"]
    ended: Bool[Array, " B"]
    cache: Cache


def speak(
    prompts: PromptBatch,
    allowed: Bool[Array, "B V"],
    key: Key[Array, ""],
    *,
    start: Start,
    step: Step,
    ends: Ends,
    decoding: Decoding,
) -> Int[Array, "B T"]:
    """Draws one message per row; the first token is not `<eos>`.

    Args:
      prompts: left-padded.
      allowed: tokens a row may say, `<eos>` apart at least one. [B, V]
      key: one for the whole call.
      start: reads the prompts.
      step: reads one token per row.
      ends: static.
      decoding: how a token is chosen; static.
    Returns: tokens, `<eos>` included where it was drawn, padding after it. [B, T]
    """
    batch, max_tokens = prompts.tokens.shape[0], decoding.max_tokens
    uniforms = row_uniforms(key, jnp.arange(batch), max_tokens)
    some = allowed.at[:, ends.eos].set(False)

    def add(said: Spoken, logits: Array, cache: Cache) -> Spoken:
        uniform = lax.dynamic_index_in_dim(uniforms, said.length, axis=1, keepdims=False)
        token, _ = draw(logits, jnp.where(said.length == 0, some, allowed), uniform, decoding)
        token = jnp.where(said.ended, ends.pad, token)
        return Spoken(
            length=said.length + 1,
            tokens=said.tokens.at[:, said.length].set(token),
            ended=said.ended | (token == ends.eos),
            cache=cache,
        )

    def unfinished(said: Spoken) -> Array:
        return (said.length < max_tokens) & ~jnp.all(said.ended)

    def go_on(said: Spoken) -> Spoken:
        newest = lax.dynamic_index_in_dim(said.tokens, said.length - 1, axis=1, keepdims=False)
        return add(said, *step(said.cache, newest))

    nothing = Spoken(
        length=jnp.zeros((), jnp.int32),
        tokens=jnp.full((batch, max_tokens), ends.pad, jnp.int32),
        ended=jnp.zeros(batch, bool),
        cache=None,
    )
    return lax.while_loop(unfinished, go_on, add(nothing, *start(prompts.tokens, prompts.mask))).tokens


def make_speak(config: GPT2Config, ends: Ends, decoding: Decoding) -> Speak:
    """`speak` over a cached GPT-2; parameters are the tree of `models.gpt2`."""

    def spoken(params: Params, prompts: PromptBatch, allowed: Array, key: Array) -> Array:
        trunk = gpt2.with_cast_weights(config, params)
        head = {"wte": trunk["wte"].astype(config.compute_dtype)}

        def start(tokens: Array, mask: Array) -> tuple[Array, gpt2.Cache]:
            # The last token drawn is never read, so it needs no slot.
            length = tokens.shape[1] + decoding.max_tokens - 1
            hidden, cache = gpt2.prefill(config, trunk, tokens, mask, cache_length=length)
            return gpt2.lm_logits(head, hidden, compute_dtype=config.compute_dtype), cache

        def step(cache: gpt2.Cache, token: Array) -> tuple[Array, gpt2.Cache]:
            hidden, cache = gpt2.decode_step(config, trunk, cache, token)
            return gpt2.lm_logits(head, hidden, compute_dtype=config.compute_dtype), cache

        return speak(prompts, allowed, key, start=start, step=step, ends=ends, decoding=decoding)

    return spoken

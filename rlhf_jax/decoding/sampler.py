"""Decoding: one loop inside the compiled program, which ends when every row has ended.

A row's draws depend on the key and the row's number alone, not on the batch around it or on its padding: uniform
numbers come from `fold_in(fold_in(key, row), t)`, and a token is found by inverting the cumulative distribution.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.decoding import grammar as rules
from rlhf_jax.decoding.grammar import Grammar, GrammarState
from rlhf_jax.interfaces import PromptBatch, Rollout

Cache = Any
"""Whatever `Start` and `Step` hand on to each other; a pytree."""
BLOCK = 64
"""Tokens per block of the two-level search; vocabularies are rounded up to a multiple of it anyway."""


@runtime_checkable
class Start(Protocol):
    """Reads left-padded prompts [B, P]: logits of the first token [B, V], and a cache with room for the response."""

    def __call__(self, tokens: Int[Array, "B P"], mask: Bool[Array, "B P"]) -> tuple[Float[Array, "B V"], Cache]: ...


@runtime_checkable
class Step(Protocol):
    """Reads one token per row [B]: logits of the next one [B, V], and the cache with it."""

    def __call__(self, cache: Cache, token: Int[Array, " B"]) -> tuple[Float[Array, "B V"], Cache]: ...


Reweigh = Callable[[Float[Array, "B V"], Bool[Array, "B V"]], Float[Array, "B V"]]
"""(logits, the grammar's mask) to other logits."""
Head = Callable[[Array, GrammarState, Bool[Array, "B V"]], Float[Array, "B V"]]
"""(what `Start` and `Step` return in the place of logits, the tokens so far, the grammar's mask) to logits."""


class Decoding(NamedTuple):
    """How a token is chosen from the policy's distribution, and when a response is cut."""

    max_tokens: int
    """Most tokens of a response, `<eos>` included."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    top_k: int | None = None
    """Evaluation only: keep the k best tokens."""
    top_p: float | None = None
    """Evaluation only: keep the smallest set of this probability."""
    rollout_for_learning: bool = True
    """The importance ratio needs the whole tempered distribution, so refuse to truncate it."""


class DecodingLoop(NamedTuple):
    """The loop's state: `length` columns are filled."""

    length: Int[Array, ""]
    tokens: Int[Array, "B T"]
    logprobs: Float[Array, "B T"]
    state: GrammarState
    cache: Cache


def row_uniforms(key: Key[Array, ""], row_ids: Int[Array, " B"], max_tokens: int) -> Float[Array, "B T"]:
    """Uniform numbers in [0, 1): u[b, t] from fold_in(fold_in(key, row_ids[b]), t). [B, T]"""

    def one(row: Array, step: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, row), step))

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(row_ids, jnp.arange(max_tokens))


def inverse_cdf(weights: Float[Array, "B V"], uniform: Float[Array, " B"]) -> Int[Array, " B"]:
    """The token at which the running sum of `weights` passes `uniform` times the total, found in two levels.

    First among sums of blocks, then inside one block: V/64 + 64 sums instead of V, and no random number per token.
    A token of weight 0 is never returned, whatever the rounding.

    Args:
      weights: probabilities up to a factor, at least one above 0. [B, V]
      uniform: in [0, 1). [B]
    Returns: token ids. [B]
    """
    batch, size = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -size % BLOCK))).reshape(batch, -1, BLOCK)
    mass = jnp.sum(blocks, axis=-1)
    sums = jnp.cumsum(mass, axis=1)
    target = uniform * sums[:, -1]
    block = first_above(mass, sums, target)
    before = jnp.take_along_axis(sums - mass, block[:, None], axis=1)[:, 0]
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * BLOCK + first_above(inside, jnp.cumsum(inside, axis=1), target - before)


def first_above(mass: Float[Array, "B N"], sums: Float[Array, "B N"], target: Float[Array, " B"]) -> Int[Array, " B"]:
    """First index of positive mass whose running sum exceeds `target`; the last of positive mass if none does. [B]

    The mass is asked for as well as the sum: a parallel prefix sum need not be monotone to the last bit.
    """
    positive = mass > 0
    above = positive & (sums > target[:, None])
    last = mass.shape[1] - 1 - jnp.argmax(positive[:, ::-1], axis=1)
    return jnp.where(jnp.any(above, axis=1), jnp.argmax(above, axis=1), last)


def truncate(logits: Float[Array, "B V"], *, top_k: int | None, top_p: float | None) -> Float[Array, "B V"]:
    """Logits with −inf outside the `top_k` best, then outside the smallest set of probability `top_p`. [B, V]"""
    if top_k is not None:
        kth = lax.top_k(logits, min(top_k, logits.shape[1]))[0][:, -1:]
        logits = jnp.where(logits >= kth, logits, -jnp.inf)
    if top_p is not None:
        falling = -jnp.sort(-logits, axis=1)
        probability = jax.nn.softmax(falling, axis=1)
        kept = jnp.cumsum(probability, axis=1) - probability < top_p
        least = jnp.min(jnp.where(kept, falling, jnp.inf), axis=1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits


def draw(
    logits: Float[Array, "B V"],
    allowed: Bool[Array, "B V"],
    uniform: Float[Array, " B"],
    decoding: Decoding,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """One token per row, and its log-probability in nats under mask and temperature (1 where greedy). [B], [B]"""
    temperature = decoding.temperature
    tempered = logits.astype(jnp.float32) / (temperature if temperature > 0 else 1.0)
    tempered = truncate(jnp.where(allowed, tempered, -jnp.inf), top_k=decoding.top_k, top_p=decoding.top_p)
    tempered = tempered - jnp.max(tempered, axis=1, keepdims=True)
    weights = jnp.exp(tempered)
    token = inverse_cdf(weights, uniform) if temperature > 0 else jnp.argmax(tempered, axis=1)
    chosen = jnp.take_along_axis(tempered, token[:, None], axis=1)[:, 0]
    return token.astype(jnp.int32), chosen - jnp.log(jnp.sum(weights, axis=1))


def check_options(decoding: Decoding) -> None:
    """Raises ValueError on impossible options, and on those that would make rollouts useless for learning."""
    max_tokens, temperature, top_k, top_p, rollout_for_learning = decoding
    if max_tokens < 1 or not temperature >= 0:
        raise ValueError(f"sample: max_tokens {max_tokens} must be at least 1, temperature {temperature} not negative")
    if top_k is not None and top_k < 1:
        raise ValueError(f"sample: top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"sample: top_p must be in (0, 1], got {top_p}")
    if rollout_for_learning and (temperature == 0 or top_k is not None or top_p is not None):
        raise ValueError(
            f"sample: temperature {temperature}, top_k {top_k}, top_p {top_p} change the behaviour policy, so that the "
            "learner's importance ratio would be wrong; say rollout_for_learning=False in evaluation"
        )


def sample(
    prompts: PromptBatch,
    key: Key[Array, ""],
    *,
    start: Start,
    step: Step,
    grammar: Grammar,
    decoding: Decoding,
    row_ids: Int[Array, " B"] | None = None,
) -> Rollout:
    """Draws one response per prompt in a single loop that ends as soon as every row has ended.

    Args:
      prompts: left-padded prompts, each ending with the recommender's marker.
      key: one for the whole call.
      start: reads the prompts.
      step: reads one token per row.
      grammar: token ids of the rules every response obeys.
      decoding: how a token is chosen; static.
      row_ids: numbers the random streams; a row keeps its draws in any batch. Default 0 … B−1. [B]
    Returns: the rollout; log-probabilities are those of the distribution drawn from (of temperature 1 where greedy).
    Raises: ValueError at trace time on options that are impossible or, in a rollout for learning, refused.
    """
    return sample_with_cache(prompts, key, start=start, step=step, grammar=grammar, decoding=decoding, row_ids=row_ids)[
        0
    ]


def sample_with_cache(
    prompts: PromptBatch,
    key: Key[Array, ""],
    *,
    start: Start,
    step: Step,
    grammar: Grammar,
    decoding: Decoding,
    row_ids: Int[Array, " B"] | None = None,
    head: Head | None = None,
) -> tuple[Rollout, Cache]:
    """`sample`, and the last cache: a caller may keep there what it learns at each step.

    Args:
      head: makes logits of what `start` and `step` return, knowing what the grammar allows; None: they are logits.
    """
    check_options(decoding)
    max_tokens = decoding.max_tokens
    rules.check_grammar(grammar)
    batch = prompts.tokens.shape[0]
    uniforms = row_uniforms(key, jnp.arange(batch) if row_ids is None else row_ids, max_tokens)

    def add(drawn: DecodingLoop, logits: Array, cache: Cache) -> DecodingLoop:
        uniform = lax.dynamic_index_in_dim(uniforms, drawn.length, axis=1, keepdims=False)
        allowed = rules.among(grammar, rules.allowed(grammar, drawn.state), prompts.candidates)
        logits = logits if head is None else head(logits, drawn.state, allowed)
        token, logprob = draw(logits, allowed, uniform, decoding)
        token = jnp.where(drawn.state.ended, grammar.pad, token)
        logprob = jnp.where(drawn.state.ended, 0.0, logprob)
        return DecodingLoop(
            length=drawn.length + 1,
            tokens=drawn.tokens.at[:, drawn.length].set(token),
            logprobs=drawn.logprobs.at[:, drawn.length].set(logprob),
            state=rules.advance(grammar, drawn.state, token),
            cache=cache,
        )

    def unfinished(drawn: DecodingLoop) -> Array:
        return (drawn.length < max_tokens) & ~jnp.all(drawn.state.ended)

    @jax.named_scope("decode")
    def go_on(drawn: DecodingLoop) -> DecodingLoop:
        newest = lax.dynamic_index_in_dim(drawn.tokens, drawn.length - 1, axis=1, keepdims=False)
        return add(drawn, *step(drawn.cache, newest))

    nothing = DecodingLoop(
        length=jnp.zeros((), jnp.int32),
        tokens=jnp.full((batch, max_tokens), grammar.pad, jnp.int32),
        logprobs=jnp.zeros((batch, max_tokens), jnp.float32),
        state=rules.initial_state(grammar, batch),
        cache=None,
    )
    with jax.named_scope("prefill"):
        first = add(nothing, *start(prompts.tokens, prompts.mask))
    drawn = lax.while_loop(unfinished, go_on, first)
    rollout = Rollout(
        prompt_tokens=prompts.tokens,
        prompt_mask=prompts.mask,
        response_tokens=drawn.tokens,
        response_mask=~rules.exclusive_any(drawn.tokens == grammar.eos),
        logprobs=drawn.logprobs,
        finished=drawn.state.ended,
        candidates=prompts.candidates,
    )
    return rollout, drawn.cache

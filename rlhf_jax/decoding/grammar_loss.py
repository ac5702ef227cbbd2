"""Training likelihood under the response grammar, computing only the logits that the grammar permits.

A position of a training text allows either words (plus the few items listed in this turn) or items (plus `<say>`), so
two small heads replace the one over the whole vocabulary: the words' head on every position, the items' head on the
few positions that want an item. On recommender turns the result equals the masked softmax over the full vocabulary
that sampling and PPO use (tested); elsewhere, where no grammar rules, words and items are two separate softmaxes.
"""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rlhf_jax.decoding.grammar import Grammar
from rlhf_jax.models.dense import tied_logits

MOST_LOGITS = 2**26
"""Item logits that are in memory at once, over all rows: 256 MiB. What has more is computed in pieces, twice."""
NO_TARGET, FREE_WORD, FREE_ITEM, FIRST, LIST, SAY = range(6)
"""What a position has to predict: nothing · a word or special outside the grammar · an item there · `<rec>` or
`<say>` · an item not yet listed, or `<say>` · a word, a listed item or `<eos>`."""


@chex.dataclass(frozen=True)
class GrammarTargets:
    """Targets of a batch of texts, split by the head that judges them; the target of position t is token t + 1."""

    targets: Int[Array, "B S"]
    """Next token; anything where nothing is to be predicted."""
    kinds: Int[Array, "B S"]
    """One of `NO_TARGET, FREE_WORD, FIRST, SAY`: what the words' head judges here."""
    listed: Int[Array, "B S K"]
    """Item tokens listed in this turn, on `SAY` positions; −1 where there are fewer."""
    item_positions: Int[Array, "B M"]
    """Where the items' head looks."""
    item_kinds: Int[Array, "B M"]
    """One of `NO_TARGET, FREE_ITEM, LIST`."""
    item_listed: Int[Array, "B M K"]
    """Item tokens already listed when a `LIST` position chooses; −1 where there are fewer."""


@chex.dataclass(frozen=True)
class SoftTargets:
    """What a teacher would say at the positions of `GrammarTargets.item_positions`: some items with their chances."""

    items: Int[Array, "B M N"]
    """Item tokens that nobody has listed in this turn; anything where the chance is 0."""
    chances: Float[Array, "B M N"]
    """q, which adds up to 1 where the teacher speaks and to 0 elsewhere."""


def grammar_nll(
    hidden: Float[Array, "B S D"],
    table: Float[Array, "V D"],
    batch: GrammarTargets,
    grammar: Grammar,
    *,
    most_logits: int = MOST_LOGITS,
) -> tuple[Float[Array, "B S"], Float[Array, "B M"]]:
    """Word and item losses of `grammar_losses`, without a teacher."""
    words, items, _ = grammar_losses(hidden, table, batch, grammar, None, most_logits=most_logits)
    return words, items


def grammar_losses(
    hidden: Float[Array, "B S D"],
    table: Float[Array, "V D"],
    batch: GrammarTargets,
    grammar: Grammar,
    soft: SoftTargets | None,
    *,
    most_logits: int = MOST_LOGITS,
) -> tuple[Float[Array, "B S"], Float[Array, "B M"], Float[Array, "B M"]]:
    """Negative log-likelihood of every target, nats; 0 where there is none. And how far the items are from a teacher's.

        word positions:  log(Σ_{w permitted} e^{h·E_w} + Σ_{i listed} e^{h·E_i}) − h·E_target
        item positions:  log(Σ_{i not listed} e^{h·E_i} + [LIST, some listed] e^{h·E_<say>}) − h·E_target
        teacher:         KL(q ‖ π) = Σ_i q_i (log q_i − log π_i),  π as at item positions

    Args:
      hidden: final hidden states; position t judges token t + 1. [B, S, D]
      table: tied embedding of all tokens. [V, D]
      batch: what to predict, where.
      grammar: the ids.
      soft: q of the teacher; None where nobody teaches.
      most_logits: item logits in memory at once. Where all B·M·I are more, a few positions of every row are computed at a
        time, and again in the backward pass: the same softmax over the whole catalogue, for the memory of one piece.
    Returns: word losses, item losses, and the teacher's divergence, 0 where it says nothing; gradients flow into hidden states and
      table. [B, S], [B, M], [B, M]
    """
    words = _word_nll(hidden, table, batch, grammar)
    positions = batch.item_positions
    at_items = jnp.take_along_axis(hidden, positions[..., None], axis=1)
    targets = jnp.take_along_axis(batch.targets, positions, axis=1)
    taught = () if soft is None else (soft.items, soft.chances)
    pieces = at_items, targets, batch.item_kinds, batch.item_listed, *taught
    each = max(1, most_logits // max(len(hidden) * grammar.n_items, 1))
    judge = functools.partial(_item_nll, table, grammar=grammar)
    found = judge(*pieces) if each >= positions.shape[1] else _in_pieces(judge, each, pieces)
    return words, *found


def _in_pieces(
    judge: Callable[..., tuple[Array, Array]], each: int, arrays: tuple[Array, ...]
) -> tuple[Float[Array, "B M"], Float[Array, "B M"]]:
    """`judge` on at most `each` of the positions at a time; what fills the last piece has no target."""
    rows, count = arrays[0].shape[:2]
    n_pieces = -(-count // each)
    # As equal as can be, so that less than a place a piece is padding.
    each = -(-count // n_pieces)

    def cut(x: Array) -> Array:
        # Zeros: `NO_TARGET` among the kinds.
        padded = jnp.pad(x, ((0, 0), (0, n_pieces * each - count)) + ((0, 0),) * (x.ndim - 2))
        return padded.reshape(rows, n_pieces, each, *x.shape[2:]).swapaxes(0, 1)

    found = jax.lax.map(jax.checkpoint(lambda piece: judge(*piece)), tuple(cut(x) for x in arrays))
    nll, divergence = (one.swapaxes(0, 1).reshape(rows, -1)[:, :count] for one in found)
    return nll, divergence


def _target_logit(flat: Array, table: Array, targets: Array) -> Array:
    return jnp.sum(flat * table[targets], axis=-1)


def _word_nll(hidden: Array, table: Array, batch: GrammarTargets, grammar: Grammar) -> Array:
    width = hidden.shape[-1]
    flat, kinds = hidden.reshape(-1, width), batch.kinds.reshape(-1)
    some = kinds != NO_TARGET
    targets = jnp.where(some, batch.targets.reshape(-1), grammar.eos)
    logits = tied_logits(flat, table[: grammar.first_item])
    # Words and specials share one head; which specials may come is a matter of the kind.
    token = jnp.arange(grammar.first_item)[None]
    word, kind = token < grammar.n_words, kinds[:, None]
    first = (token == grammar.rec) | (token == grammar.say)
    permitted = jnp.where(
        kind == SAY,
        word | (token == grammar.eos),
        jnp.where(kind == FIRST, first, token != grammar.pad),
    )
    normaliser = jax.nn.logsumexp(jnp.where(permitted, logits, -jnp.inf), axis=-1)
    listed = batch.listed.reshape(flat.shape[0], -1)
    listed_logits = jnp.einsum("nd,nkd->nk", flat, table[jnp.maximum(listed, 0)])
    floor = jnp.finfo(jnp.float32).min
    normaliser = jnp.logaddexp(normaliser, jax.nn.logsumexp(jnp.where(listed >= 0, listed_logits, floor), axis=-1))
    nll = normaliser - _target_logit(flat, table, targets)
    return jnp.where(some, nll, 0.0).reshape(kinds.shape[0] // hidden.shape[1], hidden.shape[1])


def _item_nll(
    table: Array,
    at_items: Array,
    targets: Array,
    item_kinds: Array,
    item_listed: Array,
    *taught: Array,
    grammar: Grammar,
) -> tuple[Array, Array]:
    rows, width = targets.size, at_items.shape[-1]
    flat, kinds = at_items.reshape(rows, width), item_kinds.reshape(rows)
    some, in_list = kinds != NO_TARGET, kinds == LIST
    targets = jnp.where(some, targets.reshape(rows), grammar.say)
    items = jax.lax.slice_in_dim(table, grammar.first_item, grammar.first_item + grammar.n_items)
    logits = tied_logits(flat, items)
    listed = item_listed.reshape(rows, -1)
    # An index past the end is dropped: −1 must not wrap around to the last item.
    columns = jnp.where(listed >= 0, listed - grammar.first_item, grammar.n_items)
    logits = logits.at[jnp.arange(rows)[:, None], columns].set(jnp.finfo(jnp.float32).min, mode="drop")
    may_say = in_list & (listed >= 0).any(axis=-1)
    say = jnp.where(may_say, flat @ table[grammar.say], jnp.finfo(jnp.float32).min)
    normaliser = jnp.logaddexp(jax.nn.logsumexp(logits, axis=-1), say)
    nll = normaliser - _target_logit(flat, table, targets)
    nll = jnp.where(some, nll, 0.0).reshape(item_kinds.shape)
    if not taught:
        return nll, jnp.zeros_like(nll)
    said, chances = (array.reshape(rows, -1) for array in taught)
    theirs = jnp.take_along_axis(logits, jnp.maximum(said - grammar.first_item, 0), axis=1) - normaliser[:, None]
    # 0 · log 0 is 0, and nothing is divided by a chance of 0 in the backward pass.
    own = jnp.log(jnp.where(chances > 0, chances, 1.0))
    divergence = jnp.sum(jnp.where(chances > 0, chances * (own - theirs), 0.0), axis=-1)
    return nll, divergence.reshape(item_kinds.shape)

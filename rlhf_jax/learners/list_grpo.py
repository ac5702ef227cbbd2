"""GRPO on lists of items: a policy without words, whose places are paid one by one; no network, no tokens.

A context s brings what is known of every item, arrays that stay fixed; the policy makes one logit an item of them. A
list is drawn without replacement, place after place (Plackett–Luce):

    π(y | s) = Π_t exp ℓ(y_t) / Σ_{i ∉ y_<t} exp ℓ(i)

For each context, G lists of T places; place t is paid the gain of its item, and credited with what comes from it on:

    g_t = [y_t is gold] / log₂(t + 1) / ideal        R_t = Σ_{u ≥ t} g_u        ideal = Σ_{t ≤ min(T, gold)} 1 / log₂(t + 1)

so that R_1 is NDCG@T. Where a reward model says what an item is worth, r(i | s) stands for [gold] and the ideal is that of
T items worth 1: R_1 is then the mean worth of the places, by the same discounts. The advantage is R_t less the mean of the group at the same place, 0 in a flat group. One step is
taken on each batch, so that the importance ratio is 1 and its clipping never acts: the loss is −A · log π, and
with a price β on distance also β · KL(π ‖ π_ref) of the first place, its exact sum over the items.

Sources: GRPO, Shao et al. 2024 (arXiv:2402.03300), a baseline for each place being ours; lists without replacement,
Plackett 1975, doi:10.2307/2346567; NDCG, Järvelin and Kekäläinen 2002, doi:10.1145/582415.582418.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.equations.group import advantages_by_place
from rlhf_jax.equations.kl import kl_exact
from rlhf_jax.interfaces import Params
from rlhf_jax.keys import stream_key
from rlhf_jax.learners.optimizer import TrainState, after_step, apply_or_skip

Metrics = dict[str, Float[Array, ""]]
Judge = Callable[[Params, Any], Float[Array, "B I"]]
"""(parameters, what is known of the items) -> logits, nats."""


@chex.dataclass(frozen=True)
class ListBatch:
    """Contexts of one update."""

    known: Any
    """Arrays whose first axis is B: what the judge reads."""
    gold: Bool[Array, "B I"] | None = None
    """The items that are paid for; a context without one teaches nothing."""
    worth: Float[Array, "B I"] | None = None
    """What each item is paid, in place of gold."""
    reference: Float[Array, "B I"] | None = None
    """log π_ref of the first place, nats; read where distance has a price."""


class Lists(NamedTuple):
    """How lists are drawn and compared."""

    group_size: int = 16
    """G, lists of one context."""
    length: int = 10
    """T, places of a list; not more than there are items."""
    scaled: bool = False
    """Divide advantages by the deviation of the group at each place."""
    kl_coef: float = 0.0
    """β, what a nat of distance costs in units of the pay; 0 never reads the reference."""


def list_logprobs(logits: Float[Array, " I"], chosen: Int[Array, "G T"]) -> Float[Array, "G T"]:
    """log π of every place of a group of lists, given those before it in its list, nats. [G, T]

    Denominators are added up, never subtracted, so that they stay exact where a few items have nearly all of the mass: first
    the items in no list, once for the group; then those of other lists; then a list's own, from its end.

    Args:
      logits: of all items.
      chosen: different items in each list. [G, T]
    Examples:
      >>> found = list_logprobs(jnp.log(jnp.array([1., 2., 5.])), jnp.array([[1, 2]]))
      >>> jnp.exp(found).round(4).tolist()          # 2/8, then 5/6
      [[0.25, 0.833299994468689]]
    """
    in_any = jnp.zeros(logits.shape, bool).at[chosen.reshape(-1)].set(True)
    nowhere = _logsumexp(logits, ~in_any)
    flat = chosen.reshape(-1)
    # Of an item in several lists the first place stands for all.
    once = jnp.argmax(flat[:, None] == flat[None, :], axis=1) == jnp.arange(flat.shape[0])

    def one(own: Array) -> Array:
        elsewhere = once & ~jnp.any(flat[:, None] == own[None, :], axis=1)
        rest = jnp.logaddexp(nowhere, _logsumexp(logits[flat], elsewhere))

        def back(total: Array, logit: Array) -> tuple[Array, Array]:
            total = jnp.logaddexp(total, logit)
            return total, total

        _, totals = jax.lax.scan(back, rest, logits[own], reverse=True)
        return logits[own] - totals

    return jax.vmap(one)(chosen)


def _logsumexp(logits: Float[Array, " n"], where: Bool[Array, " n"]) -> Float[Array, ""]:
    """Of some of the logits; of none a number so small that it adds nothing, whose gradient is 0."""
    found = jax.nn.logsumexp(jnp.where(where, logits, -1e30))
    return jnp.where(jnp.any(where), found, -1e30)


def draw_lists(key: Key[Array, ""], logits: Float[Array, " I"], lists: Lists) -> Int[Array, "G T"]:
    """G lists of one context, each place by inverting the distribution of what is left. [G, T]

    A place costs T steps and one bisection, whatever the number of items: Gumbel noise on every item of every list would
    take most of an update's time. Items are ordered from the least likely, so that the sums in front of a chosen one stay
    exact where it has nearly all of the mass.
    """
    n_items, length = logits.shape[0], lists.length
    ascending = jnp.argsort(logits)
    share = jax.nn.softmax(logits)[ascending]
    upto = jnp.cumsum(share)
    nobody = n_items

    def place(taken: Array, drawn: tuple[Array, Array]) -> tuple[Array, Array]:
        number, uniform = drawn
        removed = jnp.sort(taken)
        there = removed < nobody
        end = jnp.where(there, upto[removed], upto[-1])
        begin = jnp.where(there, end - share[removed], upto[-1])
        # What is left lies in the gaps between the removed; their lengths, from the first gap on.
        gaps = jnp.concatenate([begin, upto[-1:]]) - jnp.concatenate([jnp.zeros(1), end])
        gaps = jnp.maximum(gaps, 0.0)
        at = uniform * jnp.sum(gaps)
        gap = jnp.minimum(jnp.sum(at >= jnp.cumsum(gaps)), length)
        offset = at - jnp.where(gap > 0, jnp.cumsum(gaps)[gap - 1], 0.0)
        point = jnp.where(gap > 0, end[gap - 1], 0.0) + offset
        item = jnp.minimum(jnp.searchsorted(upto, point, side="right"), n_items - 1)
        # Rounding may point at the very edge of a removed item: then its neighbour is taken.
        item = jax.lax.fori_loop(
            0, length, lambda _, one: jnp.where(jnp.any(removed == one), (one + 1) % n_items, one), item
        )
        return taken.at[number].set(item), item

    def one(uniforms: Array) -> Array:
        start = jnp.full(length, nobody, upto.argmin().dtype)
        _, places = jax.lax.scan(place, start, (jnp.arange(length), uniforms))
        return ascending[places]

    return jax.vmap(one)(jax.random.uniform(key, (lists.group_size, length)))


def rewards_to_go(chosen: Int[Array, "G T"], gold: Bool[Array, " I"]) -> Float[Array, "G T"]:
    """R_t of every place: what the list earns from there on, as a share of the best list's NDCG. [G, T]

    Examples:
      >>> rewards_to_go(jnp.array([[0, 1], [1, 0]]), jnp.array([True, False, False])).round(3).tolist()
      [[1.0, 0.0], [0.6310000419616699, 0.6310000419616699]]
    """
    discount = 1.0 / jnp.log2(jnp.arange(chosen.shape[1]) + 2.0)
    ideal = jnp.sum(jnp.where(jnp.arange(chosen.shape[1]) < jnp.sum(gold), discount, 0.0))
    gains = jnp.where(gold[chosen], discount, 0.0) / jnp.maximum(ideal, discount[-1])
    return jnp.cumsum(gains[:, ::-1], axis=1)[:, ::-1]


def worth_to_go(chosen: Int[Array, "G T"], worth: Float[Array, " I"]) -> Float[Array, "G T"]:
    """R_t of every place where each item has a worth of its own. [G, T]

        R_t = Σ_{u ≥ t} r(y_u) / log₂(u + 1) / Σ_{u ≤ T} 1 / log₂(u + 1)

    Returns: in the units of `worth`; a list of one place is paid its item's.
    Examples:
      >>> worth_to_go(jnp.array([[0, 1], [1, 0]]), jnp.array([2.0, -1.0])).round(3).tolist()
      [[0.8390000462532043, -0.38700002431869507], [0.16100001335144043, 0.7740000486373901]]
    """
    discount = 1.0 / jnp.log2(jnp.arange(chosen.shape[1]) + 2.0)
    gains = worth[chosen] * (discount / jnp.sum(discount))[None, :]
    return jnp.cumsum(gains[:, ::-1], axis=1)[:, ::-1]


class Drawn(NamedTuple):
    """The lists of an update and what they earnt: data, no gradient flows."""

    chosen: Int[Array, "B G T"]
    returns: Float[Array, "B G T"]
    advantages: Float[Array, "B G T"]


def draw(params: Params, batch: ListBatch, key: Key[Array, ""], judge: Judge, lists: Lists) -> Drawn:
    """G lists for every context, paid and compared place by place.

    Raises: ValueError at trace time unless the batch has either gold or worth.
    """
    if (batch.gold is None) == (batch.worth is None):
        raise ValueError("a batch of contexts is paid by gold or by worth: give one of them")
    logits = judge(params, batch.known)
    keys = jax.random.split(key, logits.shape[0])
    chosen = jax.vmap(draw_lists, (0, 0, None))(keys, logits, lists)
    if batch.worth is None:
        returns = jax.vmap(rewards_to_go)(chosen, batch.gold)
    else:
        returns = jax.vmap(worth_to_go)(chosen, batch.worth)
    everywhere = jnp.ones(chosen.shape[1:], bool)
    advantages = jax.vmap(lambda one: advantages_by_place(one, everywhere, scaled=lists.scaled))(returns)
    return Drawn(chosen, returns, advantages)


def loss_and_metrics(
    params: Params, batch: ListBatch, drawn: Drawn, judge: Judge, kl_coef: float = 0.0
) -> tuple[Float[Array, ""], Metrics]:
    """−A · log π, mean over all places of the batch, and β · KL of the first place; and what happened.

    Raises: ValueError at trace time where distance has a price and the batch no reference.
    """
    logits = judge(params, batch.known)
    logprobs = jax.vmap(list_logprobs)(logits, drawn.chosen)
    loss = -jnp.mean(drawn.advantages * logprobs)
    first = jax.nn.log_softmax(logits)
    flat = jnp.all(drawn.advantages == 0, axis=(1, 2))
    found = {
        "objective/entropy": jnp.mean(-jnp.sum(jnp.exp(first) * first, axis=1)),
        "objective/flat_group_share": jnp.mean(flat.astype(jnp.float32)),
    }
    if batch.gold is not None:
        hits = jax.vmap(lambda one, gold: jnp.mean(gold[one[:, 0]]))(drawn.chosen, batch.gold)
        found |= {"objective/ndcg": jnp.mean(drawn.returns[:, :, 0]), "objective/first_hit": jnp.mean(hits)}
    else:
        found |= {"objective/worth": jnp.mean(drawn.returns[:, :, 0])}
    if kl_coef:
        if batch.reference is None:
            raise ValueError(f"kl_coef is {kl_coef}, and the batch has no reference to be near to")
        distance = jnp.mean(kl_exact(first, batch.reference))
        loss += kl_coef * distance
        found["objective/kl_items"] = distance
    return loss, {"loss": loss, **found}


def update(
    state: TrainState,
    batch: ListBatch,
    key: Key[Array, ""],
    *,
    judge: Judge,
    lists: Lists,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """One update: lists are drawn, paid, compared, and one step is taken.

    Args:
      key: root of all draws; the update's number is folded in.
      judge: what the policy makes of a context.
    """
    own = stream_key(key, "list_grpo/lists", state.step)
    drawn = draw(state.params, batch, own, judge, lists)
    grad = jax.value_and_grad(loss_and_metrics, has_aux=True)
    (loss, metrics), gradient = grad(state.params, batch, drawn, judge, lists.kl_coef)
    result = apply_or_skip(optimizer, state.params, state.opt_state, gradient, loss)
    state, stepped = after_step(state, result, average_decay=None)
    return state, metrics | stepped

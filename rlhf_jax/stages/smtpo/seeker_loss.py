"""The three losses of the user simulator: what the seeker says, the attributes and the items that the seeker will like.

    loss = Σ_seeker tokens w_language · −log p(token | before)  +  Σ_markers ( w_target · −log Σ_gold p(item)
         + w_attributes · Σ_a BCE(a) )        divided by the sum of the weights

p over items is the tied table's softmax without the items named before; p over tokens is that over words, `<eos>` and the
items named before, which are all that the simulator may say. Attributes are read by a linear head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from rlhf_jax.decoding.grammar import Grammar
from rlhf_jax.interfaces import Params
from rlhf_jax.learners import sft
from rlhf_jax.learners.microbatch import LossSums
from rlhf_jax.models import gpt2
from rlhf_jax.stages.items import ItemKnowledge, compose
from rlhf_jax.stages.smtpo.seeker_texts import SeekerBatch


class TaskWeights(NamedTuple):
    """What each task counts; 0 is off."""

    language: float
    attributes: float
    target: float


def simulator_loss(
    params: Params,
    batch: SeekerBatch,
    key: Key[Array, ""] | None,
    *,
    knowledge: ItemKnowledge,
    network: gpt2.GPT2Config,
    grammar: Grammar,
    weights: TaskWeights,
) -> LossSums:
    """The three losses of a batch, as sums; `key` draws dropout. A task of weight 0 is not computed."""
    trunk = compose(params, knowledge, grammar.first_item)
    hidden = gpt2.hidden_states(network, trunk, batch.tokens, batch.mask, dropout_key=key)
    at_places = jnp.take_along_axis(hidden, jnp.maximum(batch.places, 0)[..., None], axis=1)
    asked = batch.places >= 0
    found = {
        "language_nll": (weights.language, lambda: language_nll(hidden, trunk["wte"], batch, grammar), batch.learnt),
        "attribute_bce": (
            weights.attributes,
            lambda: attribute_bce(attribute_logits(params["attributes"], at_places), batch),
            asked,
        ),
        "target_nll": (weights.target, lambda: target_nll(at_places, trunk["wte"], batch, grammar), asked),
    }
    parts = {name: (w, *sft.sum_and_count(losses(), mask)) for name, (w, losses, mask) in found.items() if w}
    return LossSums(
        loss=sum((w * total for w, total, _ in parts.values()), jnp.zeros(())),
        count=sum((w * count for w, _, count in parts.values()), jnp.zeros(())),
        parts={name: (total, count) for name, (_, total, count) in parts.items()},
        maxima={},
    )


def language_nll(
    hidden: Float[Array, "B S D"], table: Float[Array, "V D"], batch: SeekerBatch, grammar: Grammar
) -> Float[Array, "B S"]:
    """Negative log-likelihood of every learnt token among words, `<eos>` and the items named so far, nats; 0 elsewhere."""
    rows, length, width = hidden.shape
    flat = hidden.reshape(-1, width)
    words = jnp.dot(flat, table[: grammar.n_words].T, preferred_element_type=jnp.float32)
    normaliser = jnp.logaddexp(jax.nn.logsumexp(words, axis=-1), flat @ table[grammar.eos]).reshape(rows, length)
    items = jnp.einsum("bsd,bkd->bsk", hidden, table[jnp.maximum(batch.named, 0)])
    known = batch.named_at[:, None, :] <= jnp.arange(length)[None, :, None]
    items = jnp.where(known, items, jnp.finfo(jnp.float32).min)
    normaliser = jnp.logaddexp(normaliser, jax.nn.logsumexp(items, axis=-1))
    targets = jnp.where(batch.learnt, jnp.roll(batch.tokens, -1, axis=1), grammar.eos)
    return jnp.where(batch.learnt, normaliser - jnp.sum(hidden * table[targets], axis=-1), 0.0)


def target_nll(
    at_places: Float[Array, "B A D"], table: Float[Array, "V D"], batch: SeekerBatch, grammar: Grammar
) -> Float[Array, "B A"]:
    """−log Σ_gold p of every marker over the items not named before it, nats; what stands at no marker means nothing."""
    rows, floor = at_places.shape[0], jnp.finfo(jnp.float32).min
    items = jax.lax.slice_in_dim(table, grammar.first_item, grammar.first_item + grammar.n_items)
    logits = jnp.einsum("bad,id->bai", at_places, items, preferred_element_type=jnp.float32)
    # An index past the end is dropped: −1 must not wrap around to the last item.
    columns = jnp.where(batch.named >= 0, batch.named - grammar.first_item, grammar.n_items)
    first = jnp.full((rows, grammar.n_items), batch.tokens.shape[1])
    first = first.at[jnp.arange(rows)[:, None], columns].min(batch.named_at, mode="drop")
    logits = jnp.where(first[:, None, :] <= batch.places[..., None], floor, logits)
    gold = jnp.take_along_axis(logits, jnp.maximum(batch.gold, 0), axis=-1)
    gold = jax.nn.logsumexp(jnp.where(batch.gold >= 0, gold, floor), axis=-1)
    return jnp.where(batch.places >= 0, jax.nn.logsumexp(logits, axis=-1) - gold, 0.0)


def attribute_logits(head: Params, hidden: Float[Array, "*n D"]) -> Float[Array, "*n F"]:
    """Log-odds that something with an attribute will be liked, float32."""
    return hidden @ head["kernel"] + jnp.expand_dims(head["bias"], tuple(range(hidden.ndim - 1)))


def attribute_bce(logits: Float[Array, "B A F"], batch: SeekerBatch) -> Float[Array, "B A"]:
    """Binary cross-entropy summed over the attributes, nats."""
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, batch.wanted.astype(jnp.float32)), axis=-1)


def init_attributes(key: Key[Array, ""], width: int, rates: np.ndarray) -> Params:
    """A head that begins with how often each attribute is wanted. Kernel N(0, 0.02)."""
    kernel = 0.02 * jax.random.normal(key, (width, len(rates)), jnp.float32)
    return {"kernel": kernel, "bias": jnp.asarray(np.log(rates) - np.log1p(-rates), jnp.float32)}

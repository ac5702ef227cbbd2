"""A dual-view retriever: one vector for a dialogue, one for an item, each from a semantic and a collaborative view.

    item       u_i = LN(W_s s_i + W_c c_i + r_i)          s: words about it; c: who names it with what; r: its own row
    dialogue   h = LN(q_s + q_c + MLP(LN[q_s; q_c; a_s; a_c]))
               q_s from the words said, q_c = Σ_k w_k u_{i_k} over the items named, w_k falling with age k
               a_s: q_s attends to the items named; a_c: q_c to the items named and the words   (cross-attention)
    score      ℓ(i | s) = g · h·u_i / √D + b_i

Two views joined by cross-attention are what arXiv:2604.03671 says of its retriever; everything else is ours. Either
view can be left out, which leaves the other alone. Float32 throughout; a tree of Flax Linen.
"""

import dataclasses
from typing import Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from rlhf_jax.interfaces import Params
from rlhf_jax.models.dense import drop

View = Literal["both", "semantic", "collaborative"]


@dataclasses.dataclass(frozen=True)
class RetrieverNetwork:
    """Sizes of the towers; hashable, so that it can be a static argument of `jax.jit`."""

    n_items: int
    semantic: int
    """Numbers of the semantic view, of dialogues and items."""
    collaborative: int
    """Numbers of an item's collaborative view."""
    n_recent: int
    """Items of a dialogue that are read, the most recent ones."""
    width: int = 128
    """D."""
    n_head: int = 4
    dropout: float = 0.2
    """Rate while training."""
    view: View = "both"
    """Which views are read."""

    def __post_init__(self) -> None:
        sizes = (self.n_items, self.semantic, self.collaborative, self.n_recent, self.width, self.n_head)
        if min(sizes) < 1 or self.width % self.n_head:
            raise ValueError(
                f"RetrieverNetwork: sizes must be at least 1 and width {self.width} a multiple of n_head {self.n_head}: got {sizes}"
            )


@chex.dataclass(frozen=True)
class ItemViews:
    """What is known of every item; rows of length 1, or zeros where nothing is known."""

    semantic: Float[Array, "I S"]
    collaborative: Float[Array, "I C"]


@chex.dataclass(frozen=True)
class DialogueViews:
    """What is known of dialogues so far."""

    semantic: Float[Array, "B S"]
    """Of the words said; length 1, or zeros."""
    recent: Int[Array, "B M"]
    """Columns of the items named, each once, newest first; −1 where there are fewer."""


class Norm(nn.Module):
    """Layer norm without gains: both towers end on one sphere."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.LayerNorm(use_bias=False, use_scale=False, use_fast_variance=False, epsilon=1e-5)(x)


class Ask(nn.Module):
    """Cross-attention of one query over some vectors; zeros where it may read none."""

    n_head: int

    @nn.compact
    def __call__(self, query: Array, known: Array, mask: Array) -> Array:
        """[B, D], [B, K, D], [B, K] -> [B, D]."""
        batch, length, width = known.shape
        size = width // self.n_head
        q = nn.Dense(width, name="query")(query).reshape(batch, self.n_head, size)
        k = nn.Dense(width, name="key")(known).reshape(batch, length, self.n_head, size)
        v = nn.Dense(width, name="value")(known).reshape(batch, length, self.n_head, size)
        scores = jnp.einsum("bhd,bkhd->bhk", q, k) * size**-0.5
        # A finite floor: where nothing may be read the mean comes out finite, and is then set to 0.
        scores = jnp.where(mask[:, None, :], scores, jnp.finfo(jnp.float32).min)
        read = jnp.einsum("bhk,bkhd->bhd", jax.nn.softmax(scores, axis=-1), v).reshape(batch, width)
        return jnp.where(mask.any(axis=1, keepdims=True), read, 0.0)


class Towers(nn.Module):
    """Both towers; `dropout` keys are needed unless `still`."""

    network: RetrieverNetwork

    @nn.compact
    def __call__(self, items: ItemViews, dialogues: DialogueViews, still: bool) -> tuple[Array, Array, Array]:
        """Dialogues [B, D], items [I, D], and the bias of every item [I]; scores are their products."""
        net = self.network

        def thin(x: Array) -> Array:
            return x if still or not round(net.dropout * 256) else drop(x, net.dropout, self.make_rng("dropout"))

        vectors = self.param("rows", nn.initializers.zeros_init(), (net.n_items, net.width))
        if net.view != "collaborative":
            vectors = vectors + nn.Dense(net.width, name="item_semantic")(items.semantic * net.semantic**0.5)
        if net.view != "semantic":
            vectors = vectors + nn.Dense(net.width, name="item_collaborative")(
                items.collaborative * net.collaborative**0.5
            )
        vectors = Norm()(vectors)
        bias = self.param("bias", nn.initializers.zeros_init(), (net.n_items,))
        gain = self.param("gain", nn.initializers.ones_init(), ())

        there = dialogues.recent >= 0
        batch = there.shape[0]
        said = jnp.zeros((batch, net.width))
        if net.view != "collaborative":
            said = jax.nn.gelu(nn.Dense(net.width, name="words_in")(dialogues.semantic * net.semantic**0.5))
            said = nn.Dense(net.width, name="words_out")(thin(said))
        named = jnp.zeros((batch, net.width))
        if net.view == "semantic":
            joined = said
        else:
            recent = thin(jnp.where(there[..., None], vectors[jnp.maximum(dialogues.recent, 0)], 0.0))
            fall = jax.nn.softplus(self.param("fall", nn.initializers.zeros_init(), ()))
            weights = jnp.where(there, jnp.exp(-fall * jnp.arange(net.n_recent))[None], 0.0)
            named = jnp.einsum("bk,bkd->bd", weights, recent) / jnp.maximum(weights.sum(1, keepdims=True), 1e-6)
            age = self.param("age", nn.initializers.normal(0.02), (net.n_recent + 1, net.width))
            recent = recent + age[None, 1:]
            joined = jnp.concatenate([said, named], axis=-1)
            if net.view == "both":
                words = Norm()(said)[:, None] + age[None, :1]
                both = jnp.concatenate([words, recent], axis=1)
                readable = jnp.concatenate([jnp.ones((batch, 1), bool), there], axis=1)
                joined = jnp.concatenate(
                    [
                        joined,
                        Ask(net.n_head, name="words_ask")(Norm()(said), recent, there),
                        Ask(net.n_head, name="items_ask")(Norm()(named), both, readable),
                    ],
                    axis=-1,
                )
        hidden = thin(jax.nn.gelu(nn.Dense(2 * net.width, name="up")(Norm()(joined))))
        dialogue = Norm()(nn.Dense(net.width, name="down")(hidden) + said + named)
        return gain * net.width**-0.5 * dialogue, vectors, bias


def init(network: RetrieverNetwork, key: Key[Array, ""], bias: Float[Array, " I"]) -> Params:
    """Fresh towers; `bias` is where the items' biases start, for example the log of their counts."""
    items = ItemViews(
        semantic=jnp.zeros((network.n_items, network.semantic)),
        collaborative=jnp.zeros((network.n_items, network.collaborative)),
    )
    dialogues = DialogueViews(
        semantic=jnp.zeros((1, network.semantic)), recent=jnp.full((1, network.n_recent), -1, jnp.int32)
    )
    # Compiled as one program: op by op it takes seconds.
    params = jax.jit(lambda key: Towers(network).init(key, items, dialogues, True)["params"])(key)
    return {**params, "bias": jnp.asarray(bias, jnp.float32)}


def vectors(
    network: RetrieverNetwork,
    params: Params,
    items: ItemViews,
    dialogues: DialogueViews,
    dropout_key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "B D"], Float[Array, "I D"], Float[Array, " I"]]:
    """Vectors of dialogues (scaled by the gain) and items, and the items' biases."""
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    found = Towers(network).apply({"params": params}, items, dialogues, dropout_key is None, rngs=rngs)
    return found  # pyright: ignore[reportReturnType]


def item_scores(
    network: RetrieverNetwork, params: Params, items: ItemViews, dialogues: DialogueViews
) -> Float[Array, "B I"]:
    """ℓ(i | s) of every item for each dialogue, nats up to a constant a dialogue. [B, I]"""
    dialogue, item, bias = vectors(network, params, items, dialogues)
    return dialogue @ item.T + bias[None, :]

"""Re-rankers that read what a text says of a user: an adaptor for texts, and three networks that put a list in order.

    z_i = [id; attributes; user; item text; user ⊙ item text]  of item i        scores s = f(z_1 … z_n)

Shape letters: B lists, N items of a list, E numbers of a frozen text encoder, F counted features, H items of a history.
Sources: KAR, Xi et al. 2023, arXiv:2306.10933 (adaptor; its public code for the forms of the re-rankers); DLCM, Ai et al. 2018,
arXiv:1804.05936; PRM, Pei et al. 2019, arXiv:1904.06813; SetRank, Pang et al. 2020, arXiv:1912.05891. All norms are layer norms, so
that a list's scores hang on the list alone (KAR's DLCM has batch norms).
"""

import dataclasses
import functools
from typing import Any, Literal, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.interfaces import Params

User = Literal["none", "text", "history"]
Network = Literal["dlcm", "prm", "setrank"]
Form = Literal["kar", "original"]


@dataclasses.dataclass(frozen=True)
class RerankerConfig:
    """Which network, and how large; hashable, so that it can be a static argument of `jax.jit`."""

    network: Network = "prm"
    """`dlcm` reads the list by a GRU, `prm` by attention with positions, `setrank` by attention without."""
    form: Form = "kar"
    """`kar` as in KAR's public code; `original` as in the papers of DLCM (the list from its end, local ranking by a product) and
    SetRank (induced attention)."""
    user: User = "text"
    """What is known of the user: nothing, a text, or as a control the mean embedding of the history instead of a text."""
    width: int = 32
    """Of each part of z."""
    expert_width: int = 128
    """Hidden width of the adaptor's experts."""
    shared_experts: int = 2
    """Experts that the towers of user and item share."""
    private_experts: int = 6
    """Experts of each tower alone."""
    interaction: bool = True
    """Whether z holds the product of user and item text; without it only the network after z relates them."""
    dropout: float = 0.2
    """Of z while training."""

    def __post_init__(self) -> None:
        sizes = (self.width, self.expert_width, self.shared_experts + self.private_experts)
        if min(sizes) < 1 or min(self.shared_experts, self.private_experts) < 0:
            raise ValueError(f"RerankerConfig: widths and the number of experts must be at least 1, got {sizes}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"RerankerConfig: dropout must be in [0, 1), got {self.dropout}")
        if self.form == "original" and self.network == "prm":
            raise ValueError("RerankerConfig: form 'original' is there for dlcm and setrank; prm has one form")


@chex.dataclass(frozen=True)
class ListInputs:
    """What is known of lists; a list has one user."""

    items: Int[Array | np.ndarray, "B N"]
    """Columns of the catalogue."""
    counts: Float[Array | np.ndarray, "B N F"]
    """Of every item, counted on training users, the list's own user left out."""
    text: Float[Array | np.ndarray, "B E"]
    """The user's text, encoded; zeros where there is none."""
    history: Int[Array | np.ndarray, "B H"]
    """Columns that the user rated before, as liked."""
    history_mask: Bool[Array | np.ndarray, "B H"]


@chex.dataclass(frozen=True)
class ItemTable:
    """What is known of all items; not trained."""

    attributes: Float[Array | np.ndarray, "I A"]
    text: Float[Array | np.ndarray, "I E"]


def init(config: RerankerConfig, key: Key[Array, ""], items: ItemTable, n_counts: int) -> Params:
    """A fresh parameter tree."""
    one = ListInputs(
        items=jnp.zeros((1, 2), jnp.int32),
        counts=jnp.zeros((1, 2, n_counts)),
        text=jnp.zeros((1, items.text.shape[1])),
        history=jnp.zeros((1, 1), jnp.int32),
        history_mask=jnp.ones((1, 1), bool),
    )
    return dict(_drawn(config, key, one, items))


@functools.partial(jax.jit, static_argnums=0)
def _drawn(config: RerankerConfig, key: Array, one: ListInputs, items: ItemTable) -> Any:
    # Compiled, because an initialisation op by op takes seconds.
    return Reranker(config).init(key, one, items, None)["params"]


def scores(
    config: RerankerConfig, params: Params, lists: ListInputs, items: ItemTable, *, dropout_key: Any = None
) -> Float[Array, "B N"]:
    """A score an item, comparable inside a list alone; higher is earlier. [B, N]

    Args:
      dropout_key: thins z; None in evaluation.
    """
    found: Any = Reranker(config).apply({"params": params}, lists, items, dropout_key)
    return found


class Experts(nn.Module):
    """Networks of two dense layers side by side, so that they are one product each."""

    n: int
    hidden: int
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., E] -> [..., n, W]."""
        many = nn.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", in_axis=-2, out_axis=-1, batch_axis=0
        )
        w_1 = self.param("w_1", many, (self.n, x.shape[-1], self.hidden))
        b_1 = self.param("b_1", nn.initializers.zeros, (self.n, self.hidden))
        w_2 = self.param("w_2", many, (self.n, self.hidden, self.width))
        b_2 = self.param("b_2", nn.initializers.zeros, (self.n, self.width))
        hidden = jnp.einsum("...e,neh->...nh", x, w_1)
        hidden = nn.relu(hidden + jnp.broadcast_to(b_1, hidden.shape))
        out = jnp.einsum("...nh,nhw->...nw", hidden, w_2)
        return nn.relu(out + jnp.broadcast_to(b_2, out.shape))


class Adaptor(nn.Module):
    """From a frozen encoder's numbers to a user part and an item part: experts, some shared, mixed by a gate a tower.

    out_t(x) = Σ_e softmax(G_t x)_e · expert_e(x),   e over the shared experts and those of tower t
    """

    config: RerankerConfig

    def setup(self) -> None:
        """Declares experts and gates."""
        config = self.config
        sizes = config.expert_width, config.width
        self.shared = Experts(config.shared_experts, *sizes)
        self.private = {tower: Experts(config.private_experts, *sizes) for tower in ("user", "item")}
        n = config.shared_experts + config.private_experts
        self.gate = {tower: nn.Dense(n, use_bias=False) for tower in ("user", "item")}

    def __call__(self, x: Array, tower: Literal["user", "item"]) -> Array:
        """[..., E] -> [..., W]."""
        weights = nn.softmax(self.gate[tower](x), axis=-1)
        both = (self.config.shared_experts, self.shared), (self.config.private_experts, self.private[tower])
        out = jnp.concatenate([experts(x) for n, experts in both if n], axis=-2)
        return jnp.einsum("...n,...nw->...w", weights, out)


class Reranker(nn.Module):
    """z of every item, and the network that reads the list."""

    config: RerankerConfig

    @nn.compact
    def __call__(self, lists: ListInputs, items: ItemTable, dropout_key: Array | None) -> Array:
        """Scores [B, N]."""
        config = self.config
        width, (batch, length) = config.width, lists.items.shape
        n_items = items.attributes.shape[0]
        ids = nn.Embed(n_items, width, embedding_init=nn.initializers.normal(0.05), name="id")
        known = nn.Dense(width, name="attributes")
        adaptor = Adaptor(config, name="adaptor")
        own = adaptor(items.text[lists.items], "item")
        about = jnp.concatenate([items.attributes[lists.items], lists.counts], axis=-1)
        parts = [ids(lists.items), known(about), own]
        if config.user != "none":
            if config.user == "text":
                user = adaptor(lists.text, "user")
            else:
                mask = lists.history_mask[..., None]
                read = jnp.where(
                    mask, jnp.concatenate([ids(lists.history), items.attributes[lists.history]], axis=-1), 0
                )
                mean = read.sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)
                user = nn.relu(nn.Dense(width, name="history")(mean))
            user = jnp.broadcast_to(user[:, None], (batch, length, width))
            parts.append(user)
            if config.interaction:
                parts.append(user * own)
        z = jnp.concatenate(parts, axis=-1)
        if dropout_key is not None and config.dropout > 0:
            z = z * jax.random.bernoulli(dropout_key, 1 - config.dropout, z.shape) / (1 - config.dropout)
        network = {"dlcm": DLCM, "prm": PRM, "setrank": SetRank}[config.network]
        return network(config.form, name=config.network)(z)


class DLCM(nn.Module):
    """A GRU reads the list; every item is compared with what it remembers at the end.

    kar: h = GRU(z_1 … z_n), s_i = W₂[tanh(W₁ norm(h_n)) ⊙ norm(h_i)], the first of two softmax numbers as log-odds.
    original: the list from its last item to its first; s_i = V · (tanh(W h_i) · h_1), local ranking by a product.
    """

    form: Form
    hidden: int = 64

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """[B, N, Z] -> [B, N]."""
        gru = nn.RNN(nn.GRUCell(self.hidden), reverse=self.form == "original", keep_order=True, name="gru")
        states: Array = cast(Array, gru(z))
        if self.form == "original":
            last = states[:, :1]
            local = nn.tanh(nn.Dense(4 * self.hidden, name="local")(states)).reshape(*states.shape, 4)
            return nn.Dense(1, use_bias=False, name="out")(
                jnp.einsum("bnhk,bnh->bnk", local, jnp.broadcast_to(last, states.shape))
            )[..., 0]
        last = nn.tanh(nn.Dense(self.hidden, name="memory")(nn.LayerNorm(name="norm_last")(states[:, -1:])))
        both = nn.Dense(2, name="out")(last * nn.LayerNorm(name="norm")(states))
        return both[..., 0] - both[..., 1]


class PRM(nn.Module):
    """One attention over the list, with positions and without a residual, then a network on [attention; input]."""

    form: Form
    heads: int = 2
    positions: bool = True

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """[B, N, Z] -> [B, N]."""
        x = z + sinusoids(*z.shape[1:])[None] if self.positions else z
        read = nn.MultiHeadDotProductAttention(self.heads, name="attention")(x, x)
        y = jnp.concatenate([read, z], axis=-1)
        for place, width in enumerate((256, 200, 80)):
            y = nn.relu(nn.Dense(width, name=f"dense_{place}")(y))
        return nn.Dense(1, name="out")(y)[..., 0]


class SetRank(nn.Module):
    """As PRM without positions, so that the order in which a list arrives does not matter.

    original: two blocks of induced attention, I' = block(I, x), y = block(x, I') with m learnt points I, each block with
    residuals and norms as in a transformer, then one number an item.
    """

    form: Form
    heads: int = 2
    points: int = 20
    hidden: int = 64

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """[B, N, Z] -> [B, N]."""
        if self.form == "kar":
            return PRM(self.form, self.heads, positions=False, name="encoder")(z)
        x = nn.Dense(self.hidden, name="in")(z)
        for place in range(2):
            points = self.param(f"points_{place}", nn.initializers.normal(1.0), (self.points, self.hidden))
            points = jnp.broadcast_to(points, (z.shape[0], *points.shape))
            induced = AttentionBlock(self.heads, name=f"induce_{place}")(points, x)
            x = AttentionBlock(self.heads, name=f"read_{place}")(x, induced)
        return nn.Dense(1, name="out")(x)[..., 0]


class AttentionBlock(nn.Module):
    """x ← norm(x + attention(x, y)), x ← norm(x + mlp(x))."""

    heads: int

    @nn.compact
    def __call__(self, x: Array, y: Array) -> Array:
        """[B, N, D], [B, M, D] -> [B, N, D]."""
        x = nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(self.heads)(x, y))
        return nn.LayerNorm()(x + nn.Dense(x.shape[-1])(nn.relu(nn.Dense(2 * x.shape[-1])(x))))


def sinusoids(length: int, width: int) -> Float[np.ndarray, "N D"]:
    """Positions as sines and cosines of falling frequency. [N, D]

    p(n, 2k) = sin(n / 10000^(2k/D)),   p(n, 2k+1) = cos(n / 10000^(2k/D))

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """
    place = np.arange(length)[:, None]
    pair = np.arange(width)[None] // 2 * 2
    angle = place / 10000 ** (pair / width)
    return np.where(np.arange(width)[None] % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)

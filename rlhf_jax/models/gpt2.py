"""GPT-2 in Flax Linen: one file from configuration to cached decoding, as pure functions over a parameter tree.

Source: Radford et al. 2019, "Language models are unsupervised multitask learners": pre-layer-norm blocks, learned
positions, GELU by its tanh form, output head tied to the input embedding.

Differences from the released model: positions count real tokens only, so padding on either side changes nothing; any
vocabulary size (words, special tokens and items share one table). Parameters are float32; `compute_dtype` is the type
of matmuls and of the residual stream, layer norm and attention's softmax are float32 always.

Tree: `wte [V,D]`, `wpe [n_positions,D]`, `h_<i>` (`ln_1`, `attn` {`c_attn`, `c_proj`}, `ln_2`,
`mlp` {`c_fc`, `c_proj`}), `ln_f`; kernels are (in, out).
"""

import dataclasses
from functools import partial
from typing import Any, Literal, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.interfaces import Params
from rlhf_jax.models.dense import Dropout, LayerNorm, Linear, tied_logits
from rlhf_jax.models.stack import LAYERS, REMATS, kept_by, scanned

COMPUTE_DTYPES = ("float32", "bfloat16")
ATTENTIONS = ("masked", "xla", "cudnn")
KeyValues = tuple[Array, Array]
"""Keys and values of one layer, each [B, H, T, D/H]."""
DropoutKeys = tuple[Array | None, Array | None, Array | None]
"""Of attention weights and the two residual branches; None draws nothing."""


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """Size and arithmetic of a GPT-2; hashable, so that it can be a static argument of `jax.jit`."""

    vocab_size: int
    """Rows of the embedding table: words, special tokens, items and rows that only round the size up."""
    n_positions: int = 1024
    """Longest sequence, in real tokens."""
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    layer_norm_epsilon: float = 1e-5
    dropout: float = 0.1
    """Rate on embeddings, attention weights and both residual branches; used only where a dropout key is given."""
    attention_dropout: bool = True
    """Whether attention weights are thinned too; without it a small model trains a quarter faster on a CPU."""
    compute_dtype: str = "float32"
    """`float32`, or `bfloat16` on accelerators (on a CPU it is slower)."""
    layers: str = "unrolled"
    """How whole sequences pass the blocks (decoding is always unrolled). `unrolled`: fastest on a CPU. `scan`: one block is
    compiled for all; weights are copied side by side in every pass, and without `remat` the loop keeps more than it needs."""
    remat: str = "none"
    """What the backward pass computes again to save memory: `none`; `full`, whole blocks; `dots`, all but the matmuls with
    weights. XLA's CPU compiler frees no memory by unrolled recomputation: there it saves in a `scan` only."""
    attention: str = "masked"
    """How whole sequences attend (decoding always has a mask). `masked`: any padding. `cudnn`: the fused kernel, on
    NVIDIA GPUs in bfloat16 (`xla`: its plain twin); rows are rolled so that the real tokens come first, which must stand
    together. Fused is not always faster below 1,024 tokens: measure."""
    head_chunk: int | None = None
    """Response positions whose logits are in memory at once while responses are judged, forward and backward; they are
    computed again in the backward pass (about 2 % more time). None keeps all."""
    qkv_groups: int = 1
    """Groups of heads the columns of `c_attn` arrive in: each holds its queries, keys and values side by side, so that
    devices can share heads. 1 is the stored order, all queries, all keys, all values."""

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
        wrong = {name: size for name, size in sizes.items() if size < 1}
        if wrong:
            raise ValueError(f"GPT2Config: sizes must be at least 1, got {wrong}")
        if self.n_embd % self.n_head:
            raise ValueError(f"GPT2Config: n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.qkv_groups < 1 or self.n_head % self.qkv_groups:
            raise ValueError(f"GPT2Config: n_head {self.n_head} is not a multiple of qkv_groups {self.qkv_groups}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"GPT2Config: dropout must be in [0, 1), got {self.dropout}")
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise ValueError(f"GPT2Config: compute_dtype must be one of {COMPUTE_DTYPES}, got {self.compute_dtype!r}")
        if self.layers not in LAYERS:
            raise ValueError(f"GPT2Config: layers must be one of {LAYERS}, got {self.layers!r}")
        if self.remat not in REMATS:
            raise ValueError(f"GPT2Config: remat must be one of {REMATS}, got {self.remat!r}")
        if self.head_chunk is not None and self.head_chunk < 1:
            raise ValueError(f"GPT2Config: head_chunk must be at least 1, got {self.head_chunk}")
        if self.attention not in ATTENTIONS:
            raise ValueError(f"GPT2Config: attention must be one of {ATTENTIONS}, got {self.attention!r}")
        if self.attention == "cudnn" and (self.compute_dtype != "bfloat16" or self.head_width % 8):
            raise ValueError(
                "GPT2Config: attention 'cudnn' needs compute_dtype 'bfloat16' and heads of a multiple of 8, got "
                f"{self.compute_dtype!r} and {self.head_width}"
            )
        if self.attention != "masked" and self.dropout > 0 and self.attention_dropout:
            raise ValueError(
                f"GPT2Config: attention {self.attention!r} thins no attention weights: set attention_dropout=False "
                f"(dropout is {self.dropout})"
            )

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head


@chex.dataclass(frozen=True)
class Cache:
    """What decoding remembers: keys and values of every layer, written at one scalar index for all rows.

    One scalar index is what lets XLA update the buffers in place; it needs left-padded prompts.
    """

    layers: tuple[KeyValues, ...]
    mask: Bool[Array, "B T"]
    """True where a slot holds a real token."""
    position: Int[Array, " B"]
    """Position of the next token of each row."""
    index: Int[Array, ""]
    """Slot the next token is written to."""


def residual_scale(config: GPT2Config) -> float:
    """Initial scale of the two projections into the residual stream: 0.02/√(2L), as released."""
    return 0.02 / (2 * config.n_layer) ** 0.5


class Attention(nn.Module):
    """Causal multi-head self-attention; the caller says by `mask` who may look at whom."""

    config: GPT2Config
    from_position: int
    deterministic: bool

    def setup(self) -> None:
        """Declares the projections."""
        width, dtype = self.config.n_embd, self.config.compute_dtype
        self.c_attn = Linear(3 * width, 0.02, dtype)
        self.c_proj = Linear(width, residual_scale(self.config), dtype)
        rate = self.config.dropout if self.config.attention_dropout else 0.0
        self.weight_dropout = Dropout(rate, self.deterministic)

    def heads(self, x: Array) -> Array:
        """[B, S, D] -> [B, H, S, D/H]."""
        return x.reshape(*x.shape[:-1], self.config.n_head, self.config.head_width).swapaxes(1, 2)

    def project(self, x: Array) -> tuple[Array, Array, Array]:
        """Queries of the rows asked for, keys and values of all rows, each split into heads."""
        width = self.config.n_embd
        if self.config.qkv_groups > 1:
            y = self.c_attn(x)
            y = y.reshape(*y.shape[:-1], self.config.qkv_groups, 3, -1)
            q, k, v = (y[..., part, :].reshape(x.shape) for part in range(3))
            q = q[:, self.from_position :]
        elif self.from_position == 0:
            q, k, v = jnp.split(self.c_attn(x), 3, axis=-1)
        else:
            q = self.c_attn(x[:, self.from_position :], slice(0, width))
            k, v = jnp.split(self.c_attn(x, slice(width, 3 * width)), 2, axis=-1)
        return self.heads(q), self.heads(k), self.heads(v)

    def __call__(
        self, x: Array, mask: Array, past: KeyValues | None, index: Array | None, key: Array | None
    ) -> tuple[Array, KeyValues]:
        """Attends from rows `from_position` on; with `past`, first writes this step's keys and values at `index`.

        `mask` is who may look at whom [B, Q, K], or the rows' numbers of real tokens [B], which then come first. `key` draws
        the dropout of attention weights.
        """
        q, k, v = self.project(x)
        if past is not None:
            k = lax.dynamic_update_slice(past[0], k, (0, 0, index, 0))
            v = lax.dynamic_update_slice(past[1], v, (0, 0, index, 0))
        y = self.attend(q, k, v, mask, key) if mask.ndim == 3 else self.attend_fused(q, k, v, mask)
        return self.c_proj(y.reshape(*y.shape[:2], self.config.n_embd)), (k, v)

    def attend(self, q: Array, k: Array, v: Array, mask: Array, key: Array | None) -> Array:
        """Weighted values [B, Q, H, D/H], softmax in float32."""
        scores = jnp.einsum("bhqw,bhkw->bhqk", q, k, preferred_element_type=jnp.float32)
        # A finite floor: a padding row may attend to nothing, and must come out finite.
        scores = jnp.where(mask[:, None], scores * self.config.head_width**-0.5, jnp.finfo(jnp.float32).min)
        weights = self.weight_dropout(jax.nn.softmax(scores, axis=-1), key).astype(v.dtype)
        return jnp.einsum("bhqk,bhkw->bhqw", weights, v).swapaxes(1, 2)

    def attend_fused(self, q: Array, k: Array, v: Array, lengths: Array) -> Array:
        """The same for rows whose first `lengths` tokens are real; what comes out behind them means nothing."""
        return jax.nn.dot_product_attention(
            *(x.swapaxes(1, 2) for x in (q, k, v)),
            is_causal=True,
            query_seq_lengths=lengths,
            key_value_seq_lengths=lengths,
            implementation=cast(Literal["xla", "cudnn"], self.config.attention),
        )


class MLP(nn.Module):
    """Two dense layers, four times as wide between, GELU (tanh form)."""

    config: GPT2Config

    def setup(self) -> None:
        """Declares the layers."""
        self.c_fc = Linear(4 * self.config.n_embd, 0.02, self.config.compute_dtype)
        self.c_proj = Linear(self.config.n_embd, residual_scale(self.config), self.config.compute_dtype)

    def __call__(self, x: Array) -> Array:
        """[B, S, D] -> [B, S, D]."""
        return self.c_proj(jax.nn.gelu(self.c_fc(x), approximate=True))


class Block(nn.Module):
    """x + attention(ln_1 x), then x + mlp(ln_2 x), for rows `from_position` on."""

    config: GPT2Config
    from_position: int
    deterministic: bool

    def setup(self) -> None:
        """Declares the two branches."""
        self.ln_1 = LayerNorm(self.config.layer_norm_epsilon)
        self.attn = Attention(self.config, self.from_position, self.deterministic)
        self.ln_2 = LayerNorm(self.config.layer_norm_epsilon)
        self.mlp = MLP(self.config)
        self.residual_dropout = Dropout(self.config.dropout, self.deterministic)

    def dropout_keys(self) -> DropoutKeys:
        """This layer's keys, drawn outside of it: a scanned or rematerialised block has no stream of its own."""
        return self.attn.weight_dropout.key(), self.residual_dropout.key(), self.residual_dropout.key()

    def __call__(
        self,
        x: Array,
        mask: Array,
        past: KeyValues | None = None,
        index: Array | None = None,
        keys: DropoutKeys = (None, None, None),
    ) -> tuple[Array, KeyValues]:
        """Returns the new residual stream and this layer's keys and values."""
        attended, key_values = self.attn(self.ln_1(x), mask, past, index, keys[0])
        x = x[:, self.from_position :] + self.residual_dropout(attended, keys[1])
        return x + self.residual_dropout(self.mlp(self.ln_2(x)), keys[2]), key_values


class GPT2(nn.Module):
    """The whole stack. The functions below this class are its interface; code elsewhere does not build it."""

    config: GPT2Config
    from_position: int = 0
    """The last block computes only rows from here on (keys and values are of all rows, so numbers are the same)."""
    deterministic: bool = True
    branch: tuple[int, ...] | None = None
    """Of every position, where texts share their beginning: see `hidden_states`."""

    def setup(self) -> None:
        """Declares the tables and blocks."""
        config = self.config
        normal = nn.initializers.normal(0.02)
        self.wte = self.param("wte", normal, (config.vocab_size, config.n_embd), jnp.float32)
        self.wpe = self.param("wpe", normal, (config.n_positions, config.n_embd), jnp.float32)
        block: Any = Block if config.remat == "none" else nn.remat(Block, policy=kept_by(config.remat))
        starts = [0] * (config.n_layer - 1) + [self.from_position]
        self.h = [block(config, start, self.deterministic) for start in starts]
        self.ln_f = LayerNorm(config.layer_norm_epsilon)
        self.embedding_dropout = Dropout(config.dropout, self.deterministic)

    def __call__(self, tokens: Array, mask: Array) -> tuple[Array, tuple[KeyValues, ...]]:
        """Hidden states from `from_position` on, float32, and keys and values of all positions (unrolled; a scan keeps none)."""
        if self.branch is None:
            position = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        else:
            position = jnp.maximum(jnp.sum(self.seen(mask), axis=2) - 1, 0)
        # Zero, not multiply: whatever stands in padding, NaN included, must not reach values or gradients.
        x = jnp.where(mask[..., None], self.wte[tokens] + self.wpe[position], 0.0)
        x = self.embedding_dropout(x.astype(self.config.compute_dtype), self.embedding_dropout.key())
        if self.config.attention == "masked":
            visible = self.seen(mask)
        else:
            visible = jnp.sum(mask, axis=1, dtype=jnp.int32)
        layers, blocks = [], list(self.h)
        if self.config.layers == "scan":
            # The last one may compute fewer rows, so it stays outside.
            x, blocks = self.scan(x, visible), blocks[-1:]
        for block in blocks:
            seen = visible[:, block.from_position :] if visible.ndim == 3 else visible
            x, key_values = block(x, seen, None, None, block.dropout_keys())
            layers.append(key_values)
        return self.ln_f(x), tuple(layers)

    def seen(self, mask: Array) -> Array:
        """Which real tokens each position may look at: those before it, and itself, that are not another branch's. [B, S, S]"""
        length = mask.shape[1]
        before = jnp.tril(jnp.ones((length, length), bool))
        if self.branch is not None:
            branch = jnp.array(self.branch)
            before &= (branch == 0)[None] | (branch[None] == branch[:, None])
        return before[None] & mask[:, None, :]

    def scan(self, x: Array, visible: Array) -> Array:
        """All blocks but the last as one loop over their stacked parameters."""
        one = Block(self.config, 0, self.deterministic, parent=None)
        layers = [(block.variables["params"], block.dropout_keys()) for block in self.h[:-1]]

        def through(x: Array, layer: tuple[Params, DropoutKeys]) -> Array:
            params, keys = layer
            return one.apply({"params": params}, x, visible, None, None, keys)[0]

        return scanned(through, x, layers, remat=self.config.remat)

    def step(self, cache: Cache, token: Array) -> tuple[Array, Cache]:
        """Hidden state [B, D] after one more token per row, float32, and the cache with it."""
        x = (self.wte[token] + self.wpe[cache.position]).astype(self.config.compute_dtype)[:, None]
        mask = cache.mask.at[:, cache.index].set(True)
        layers = []
        for block, past in zip(self.h, cache.layers, strict=True):
            x, key_values = block(x, mask[:, None, :], past, cache.index)
            layers.append(key_values)
        advanced = Cache(layers=tuple(layers), mask=mask, position=cache.position + 1, index=cache.index + 1)
        return self.ln_f(x)[:, 0], advanced


@partial(jax.jit, static_argnums=0)
def init(config: GPT2Config, key: Key[Array, ""]) -> Params:
    """Fresh parameters: N(0, 0.02), residual projections N(0, 0.02/√(2L)), biases 0, layer norm 1 and 0."""
    one = jnp.zeros((1, 1), jnp.int32)
    return GPT2(dataclasses.replace(config, layers="unrolled")).init(key, one, jnp.ones((1, 1), bool))["params"]


def hidden_states(
    config: GPT2Config,
    params: Params,
    tokens: Int[Array, "B S"],
    mask: Bool[Array, "B S"],
    *,
    dropout_key: Key[Array, ""] | None = None,
    from_position: int = 0,
    branch: tuple[int, ...] | None = None,
) -> Float[Array, "B R D"]:
    """Final hidden states, after the last layer norm; padding may stand on either side.

    Args:
      config: size and arithmetic; static.
      params: tree made by `init` or `convert.load_hf`.
      tokens: token ids; what stands where `mask` is False does not matter. [B, S]
      mask: True on real tokens. [B, S]
      dropout_key: draws dropout; None (rollouts, scoring, RL updates) means none.
      from_position: first position wanted, static; the last block skips the work of those before it.
      branch: number of the text each position belongs to, static; 0 is the beginning that all share. A position sees the
        beginning and its own text, and its place is counted along them; other texts are not there. [S]
    Returns: float32, R = S − from_position; rows of padding are finite and mean nothing. [B, R, D]
    Raises: ValueError at trace time if S (with branches the longest text) exceeds `n_positions`, `from_position` is outside
      [0, S), or there are branches and the attention is fused, which knows none.
    """
    length = tokens.shape[1]
    longest = length
    if branch is not None:
        if len(branch) != length or config.attention != "masked":
            raise ValueError(
                f"hidden_states: {len(branch)} branch numbers for {length} tokens, attention {config.attention!r}: one number "
                "for each, and attention 'masked', are needed"
            )
        longest = branch.count(0) + max((branch.count(text) for text in set(branch) - {0}), default=0)
    if longest > config.n_positions:
        raise ValueError(f"hidden_states: {longest} tokens exceed n_positions {config.n_positions}")
    if not 0 <= from_position < length:
        raise ValueError(f"hidden_states: from_position {from_position} is outside [0, {length})")
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    masked = config.attention == "masked"
    model = GPT2(config, from_position=from_position if masked else 0, deterministic=dropout_key is None, branch=branch)
    if masked:
        return model.apply({"params": params}, tokens, mask, rngs=rngs)[0]
    # Real tokens first, and back.
    column = jnp.arange(length)[None, :]
    padding = jnp.argmax(mask, axis=1)[:, None]
    there, back = (column + padding) % length, (column - padding)[:, from_position:] % length
    rolled = (jnp.take_along_axis(x, there, axis=1) for x in (tokens, mask))
    hidden = model.apply({"params": params}, *rolled, rngs=rngs)[0]
    return jnp.take_along_axis(hidden, back[..., None], axis=1)


def lm_logits(
    params: Params, hidden: Float[Array, "... D"], *, compute_dtype: str = "float32"
) -> Float[Array, "... V"]:
    """Logits over the whole vocabulary by the tied head, accumulated and returned in float32. [..., D] -> [..., V]"""
    table = params["wte"].astype(compute_dtype)
    flat = hidden.reshape(-1, hidden.shape[-1]).astype(compute_dtype)
    if compute_dtype == "float32":
        logits = tied_logits(flat, table)
    else:
        logits = jnp.einsum("nd,vd->nv", flat, table, preferred_element_type=jnp.float32)
    return logits.reshape(*hidden.shape[:-1], table.shape[0])


def with_cast_weights(config: GPT2Config, params: Params) -> Params:
    """The tree with the blocks' matrices and their biases in `compute_dtype`, as every pass would cast them.

    For a program that reads them many times: on its own a loop of `decode_step` casts them in every step, which reads
    four bytes a number and writes two instead of reading two. Tables and layer norms stay as they are: a row of each
    table is summed before it is rounded. Not for learning: gradients belong to the float32 tree.
    """

    def cast(tree: Params) -> Params:
        return jax.tree.map(lambda leaf: leaf.astype(config.compute_dtype), tree)

    names = [f"h_{number}" for number in range(config.n_layer)]
    blocks = {
        name: {**params[name], "attn": cast(params[name]["attn"]), "mlp": cast(params[name]["mlp"])} for name in names
    }
    return {**params, **blocks}


def forward(
    config: GPT2Config, params: Params, tokens: Int[Array, "B S"], mask: Bool[Array, "B S"]
) -> Float[Array, "B S V"]:
    """Logits for the token after each position, float32. [B, S, V]"""
    return lm_logits(params, hidden_states(config, params, tokens, mask), compute_dtype=config.compute_dtype)


def init_cache(config: GPT2Config, batch: int, cache_length: int) -> Cache:
    """An empty cache of `cache_length` slots, for decoding without a prompt."""
    check_cache_length(config, 0, cache_length)
    empty = jnp.zeros((batch, config.n_head, cache_length, config.head_width), config.compute_dtype)
    return Cache(
        layers=tuple((empty, empty) for _ in range(config.n_layer)),
        mask=jnp.zeros((batch, cache_length), bool),
        position=jnp.zeros(batch, jnp.int32),
        index=jnp.zeros((), jnp.int32),
    )


def check_cache_length(config: GPT2Config, prompt: int, cache_length: int) -> None:
    """Raises ValueError unless the prompt fits the cache and the cache fits the learned positions."""
    if not prompt <= cache_length <= config.n_positions:
        raise ValueError(
            f"cache: prompt {prompt} <= cache_length {cache_length} <= n_positions {config.n_positions} must hold"
        )


def prefill(
    config: GPT2Config, params: Params, tokens: Int[Array, "B P"], mask: Bool[Array, "B P"], *, cache_length: int
) -> tuple[Float[Array, "B D"], Cache]:
    """Reads left-padded prompts: the hidden state of each last token, and a cache with room to decode.

    Args:
      config: size and arithmetic; static.
      params: tree of the model.
      tokens: prompts, padded on the left, so that every row ends in column P−1. [B, P]
      mask: True on real tokens. [B, P]
      cache_length: slots in all, prompt included; static.
    Returns: hidden state float32 [B, D], from which the first token is drawn; the cache.
    Raises: ValueError at trace time unless P ≤ cache_length ≤ n_positions.
    """
    length = tokens.shape[1]
    check_cache_length(config, length, cache_length)
    # The cache's rows end together, so that one index serves all; and it wants every layer's keys and values.
    config = dataclasses.replace(config, attention="masked", layers="unrolled")
    hidden, layers = GPT2(config, from_position=length - 1).apply({"params": params}, tokens, mask)
    room = cache_length - length
    slots = ((0, 0), (0, 0), (0, room), (0, 0))
    cache = Cache(
        layers=tuple((jnp.pad(k, slots), jnp.pad(v, slots)) for k, v in layers),
        mask=jnp.pad(mask, ((0, 0), (0, room))),
        position=jnp.sum(mask, axis=1, dtype=jnp.int32),
        index=jnp.asarray(length, jnp.int32),
    )
    return hidden[:, 0], cache


def repeat_rows(cache: Cache, times: int) -> Cache:
    """The cache with every row `times` times in a row: one reading of a prompt serves all its responses."""
    again = partial(jnp.repeat, repeats=times, axis=0)
    return dataclasses.replace(
        cache, layers=jax.tree.map(again, cache.layers), mask=again(cache.mask), position=again(cache.position)
    )


def decode_step(
    config: GPT2Config, params: Params, cache: Cache, token: Int[Array, " B"]
) -> tuple[Float[Array, "B D"], Cache]:
    """One token per row: the hidden state after it, float32 [B, D], and the cache with it written in place.

    The caller stops before the cache is full; a write past the end would overwrite the last slot.
    """
    stepped: Any = GPT2(config).apply({"params": params}, cache, token, method=GPT2.step)
    return stepped

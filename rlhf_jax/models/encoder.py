"""Encoders of the BERT family in Flax Linen: MiniLM (sentence vectors) and RoBERTa (a sentiment classifier).

Sources: Devlin et al. 2019, arXiv:1810.04805 (post-layer-norm blocks, exact GELU); Liu et al. 2019, arXiv:1907.11692
(RoBERTa: positions begin after the padding's number, one segment, a head of two layers on the first token); Reimers and
Gurevych 2019, arXiv:1908.10084 (a sentence is the mean of its tokens' vectors, normalised).

    x ← LN(x + attention(x)),   x ← LN(x + W₂ gelu(W₁ x))

Tree: `embeddings` {`word`, `position`, `segment`, `ln`}, `layer_<i>` {`query`, `key`, `value`, `out`, `ln_1`, `up`, `down`,
`ln_2`}, and where the folder holds a classifier `head` {`dense`, `out`}; kernels are (in, out). Everything is float32.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.interfaces import Params
from rlhf_jax.models.stored import check_numbers, read_weights, refuse_quantised
from rlhf_jax.pretrained import json_object

FIXED_FIELDS: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
"""Fields of `config.json` with the values these encoders can be; where a field is missing, the first is their default."""
SIZES = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "n_positions",
    "type_vocab_size": "n_segments",
    "hidden_size": "width",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
}
_UNLESS_NAMED: dict[str, Any] = {"architectures": [], "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
"""What a field stands for that is missing or null."""
_TYPES: tuple[tuple[tuple[str, ...], Any, str], ...] = (
    ((*SIZES, "pad_token_id"), int, "integers"),
    (("layer_norm_eps",), int | float, "numbers"),
    (("architectures",), list, "lists of names"),
    (("id2label",), dict, "objects"),
)
_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "ln_1": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "ln_2": "output.LayerNorm",
}
_HEADS = {
    "bert": {"dense": "pooler.dense", "out": "classifier"},
    "roberta": {"dense": "classifier.dense", "out": "classifier.out_proj"},
}


_OTHER_HEADS = r"(cls|lm_head)\..*|pooler\.dense\.(weight|bias)|embeddings\.(position|token_type)_ids"
"""Heads for other tasks, and buffers: they change neither hidden states nor classes."""
_CLASSIFIER = r"classifier\.((dense|out_proj)\.)?(weight|bias)"
"""Where no classifier is asked for, its head is one of the others."""


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Size and kind of an encoder; hashable, so that it can be a static argument of `jax.jit`."""

    kind: Literal["bert", "roberta"]
    vocab_size: int
    n_positions: int
    """Rows of the position table; RoBERTa leaves the first `pad + 1` unused."""
    n_segments: int
    """Rows of the segment table; the first is used."""
    width: int
    n_layer: int
    n_head: int
    n_inner: int
    """Width between the two dense layers of a block."""
    layer_norm_epsilon: float
    pad: int
    """Token id of padding."""
    labels: tuple[str, ...] = ()
    """Names of the classes; empty for an encoder without a classifier."""

    def __post_init__(self) -> None:
        wrong = {name: getattr(self, name) for name in SIZES.values() if getattr(self, name) < 1}
        if not wrong and self.max_tokens < 1:
            raise ValueError(
                f"EncoderConfig: {self.n_positions} positions leave none after padding, which is {self.pad}"
            )
        if wrong or self.width % self.n_head:
            raise ValueError(
                f"EncoderConfig: sizes must be at least 1 (wrong: {wrong}) and width {self.width} a multiple of "
                f"n_head {self.n_head}"
            )

    @property
    def first_position(self) -> int:
        """Position of the first token."""
        return self.pad + 1 if self.kind == "roberta" else 0

    @property
    def max_tokens(self) -> int:
        """Longest text, special tokens included."""
        return self.n_positions - self.first_position


class Block(nn.Module):
    """Attention of all over all real tokens, then two dense layers; layer norm after each sum."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        """[B, S, D], [B, S] -> [B, S, D]."""
        config = self.config
        norm = partial(nn.LayerNorm, epsilon=config.layer_norm_epsilon, use_fast_variance=False)

        def heads(name: str) -> Array:
            flat = nn.Dense(config.width, name=name)(x)
            return flat.reshape(*x.shape[:-1], config.n_head, config.width // config.n_head)

        query, key, value = heads("query"), heads("key"), heads("value")
        scores = jnp.einsum("bqhw,bkhw->bhqk", query, key) * (config.width // config.n_head) ** -0.5
        # A finite floor: a text of padding alone may attend to nothing, and must come out finite.
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        mixed = jnp.einsum("bhqk,bkhw->bqhw", jax.nn.softmax(scores, axis=-1), value).reshape(x.shape)
        x = norm(name="ln_1")(x + nn.Dense(config.width, name="out")(mixed))
        wide = jax.nn.gelu(nn.Dense(config.n_inner, name="up")(x), approximate=False)
        return norm(name="ln_2")(x + nn.Dense(config.width, name="down")(wide))


class Embeddings(nn.Module):
    """Sum of word, position and first segment, normalised."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, tokens: Array, mask: Array) -> Array:
        """[B, S], [B, S] -> [B, S, D]."""
        config, normal = self.config, nn.initializers.normal(0.02)
        tables = {"word": config.vocab_size, "position": config.n_positions, "segment": config.n_segments}
        word, position, segment = (self.param(name, normal, (rows, config.width)) for name, rows in tables.items())
        places = config.first_position + jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        x = word[tokens] + position[places] + segment[0][None, None]
        return nn.LayerNorm(epsilon=config.layer_norm_epsilon, use_fast_variance=False, name="ln")(x)


class Encoder(nn.Module):
    """The whole stack. The functions below this class are its interface."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, tokens: Array, mask: Array) -> tuple[Array, Array | None]:
        """Hidden states [B, S, D], and class logits [B, C] where there is a classifier."""
        x = Embeddings(self.config, name="embeddings")(tokens, mask)
        for layer in range(self.config.n_layer):
            x = Block(self.config, name=f"layer_{layer}")(x, mask)
        if not self.config.labels:
            return x, None
        return x, Head(self.config, name="head")(x[:, 0])


class Head(nn.Module):
    """Class logits from the first token: W₂ tanh(W₁ x)."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, first: Array) -> Array:
        """[B, D] -> [B, C]."""
        return nn.Dense(len(self.config.labels), name="out")(jnp.tanh(nn.Dense(self.config.width, name="dense")(first)))


@partial(jax.jit, static_argnums=0)
def init(config: EncoderConfig, key: Key[Array, ""]) -> Params:
    """Fresh parameters; what `load_hf` fills is of the same shapes."""
    one = jnp.zeros((1, 1), jnp.int32)
    return Encoder(config).init(key, one, jnp.ones((1, 1), bool))["params"]


def hidden_states(
    config: EncoderConfig, params: Params, tokens: Int[Array, "B S"], mask: Bool[Array, "B S"]
) -> Float[Array, "B S D"]:
    """Last hidden states; padding stands on the right, its rows are finite and mean nothing. [B, S, D]

    Raises: ValueError at trace time if S exceeds `config.max_tokens`.
    """
    if tokens.shape[1] > config.max_tokens:
        raise ValueError(f"hidden_states: {tokens.shape[1]} tokens exceed the {config.max_tokens} of the encoder")
    outputs: Any = Encoder(config).apply({"params": params}, tokens, mask)
    return outputs[0]


def sentence_vectors(
    config: EncoderConfig, params: Params, tokens: Int[Array, "B S"], mask: Bool[Array, "B S"]
) -> Float[Array, "B D"]:
    """Mean of the hidden states of real tokens, special ones included, scaled to length 1. [B, D]

    Source: Reimers and Gurevych 2019, arXiv:1908.10084 (mean pooling), with the normalisation of all-MiniLM-L6-v2.
    """
    hidden = hidden_states(config, params, tokens, mask)
    total = jnp.sum(jnp.where(mask[..., None], hidden, 0.0), axis=1)
    mean = total / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def class_probabilities(
    config: EncoderConfig, params: Params, tokens: Int[Array, "B S"], mask: Bool[Array, "B S"]
) -> Float[Array, "B C"]:
    """Probabilities of `config.labels`. [B, C]

    Raises: ValueError at trace time for an encoder without a classifier, or texts that are too long.
    """
    if not config.labels or tokens.shape[1] > config.max_tokens:
        raise ValueError(
            f"class_probabilities: classes {config.labels}, {tokens.shape[1]} tokens of at most {config.max_tokens}"
        )
    outputs: Any = Encoder(config).apply({"params": params}, tokens, mask)
    return jax.nn.softmax(outputs[1], axis=-1)


def load_hf(folder: str | Path) -> tuple[EncoderConfig, Params]:
    """Reads a BERT or RoBERTa folder as `transformers` writes it, with the classifier where it is one.

    Args:
      folder: holds `config.json` and `model.safetensors` (or its shards and their index), with or without the prefix
        `bert.` or `roberta.`. A head for another task (masked words, pooling) is not read.
    Returns: our configuration and float32 tree.
    Raises: ValueError naming file and field or tensor where one is missing, malformed, of another shape, or describes a
      network that this encoder is not.
    """
    folder = Path(folder)
    config = read_config(folder / "config.json")
    stored = read_weights(folder, f"{config.kind}.")
    shapes = jax.eval_shape(partial(init, config), jax.random.key(0))

    def leaf(tree_path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> Array:
        keys = [entry.key for entry in tree_path]
        # Their dense layers store kernels as (out, in).
        transposed = keys[-1] == "kernel"
        return jnp.asarray(stored.take(tensor_name(config, keys), shape.shape, transposed=transposed))

    params = jax.tree_util.tree_map_with_path(leaf, shapes)
    paths = jax.tree_util.tree_leaves_with_path(shapes)
    read = {tensor_name(config, [entry.key for entry in path]) for path, _ in paths}
    stored.refuse_unread(read, _OTHER_HEADS if config.labels else f"{_OTHER_HEADS}|{_CLASSIFIER}")
    return config, params


def read_config(path: Path) -> EncoderConfig:
    """Our configuration from their `config.json`; ValueError names file, field and value of what does not fit."""
    fields = json_object(path)
    kind = fields.get("model_type")
    if kind not in tuple(_HEADS):
        raise ValueError(f"{path}: field 'model_type' is {kind!r}, supported: {tuple(_HEADS)}")
    for name, values in FIXED_FIELDS.items():
        if fields.get(name, values[0]) not in values:
            raise ValueError(f"{path}: field {name!r} is {fields[name]!r}, supported: {values}")
    fields |= {name: fields.get(name) or default for name, default in _UNLESS_NAMED.items()}
    fields = {"layer_norm_eps": 1e-12, "pad_token_id": 1 if kind == "roberta" else 0, **fields}
    for names, accepted, what in _TYPES:
        # To Python true is a whole number.
        given = {name: fields.get(name) for name in names}
        if wrong := {n: one for n, one in given.items() if not isinstance(one, accepted) or isinstance(one, bool)}:
            raise ValueError(f"{path}: these fields must be {what}: {wrong}")
    refuse_quantised(path, fields)
    check_numbers(path, fields, {"layer_norm_eps": (1e-30, 1.0), "pad_token_id": (0, fields["vocab_size"])})
    labels = _labels(path, fields)
    sizes = {ours: fields[theirs] for theirs, ours in SIZES.items()}
    epsilon, pad = float(fields["layer_norm_eps"]), fields["pad_token_id"]
    try:
        return EncoderConfig(kind=kind, layer_norm_epsilon=epsilon, pad=pad, labels=labels, **sizes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _labels(path: Path, fields: dict[str, Any]) -> tuple[str, ...]:
    """Names of a classifier's classes in the order of its outputs; none for another network."""
    if not any(str(name).endswith("ForSequenceClassification") for name in fields["architectures"]):
        return ()
    named = fields["id2label"]
    numbers = [str(number) for number in range(len(named))]
    # A key that is missing, or no number, would leave open which output a name belongs to.
    if set(numbers) != set(named):
        raise ValueError(f"{path}: field 'id2label' is {named}, its keys must be the numbers of the classes: {numbers}")
    return tuple(str(named[number]) for number in numbers)


def tensor_name(config: EncoderConfig, keys: list[str]) -> str:
    """Their name, without prefix, of a leaf: layer_3/up/kernel -> encoder.layer.3.intermediate.dense.weight."""
    kind = "bias" if keys[-1] == "bias" else "weight"
    if keys[0] == "embeddings":
        table = {"word": "word_embeddings", "position": "position_embeddings", "segment": "token_type_embeddings"}
        return f"embeddings.{table.get(keys[1], 'LayerNorm')}.{kind}"
    if keys[0] == "head":
        return f"{_HEADS[config.kind][keys[1]]}.{kind}"
    return f"encoder.layer.{keys[0].removeprefix('layer_')}.{_LAYER[keys[1]]}.{kind}"

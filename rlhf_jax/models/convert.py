"""GPT-2 weights to and from Hugging Face folders (`config.json` + `model.safetensors`), and a larger vocabulary.

Their tensors map one to one onto our tree: `transformer.h.3.attn.c_attn.weight` is `h_3/attn/c_attn/kernel`. Their
Conv1D stores kernels as (in, out), as we do, so nothing is transposed. The output head is tied and not stored.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from safetensors.numpy import save_file

from rlhf_jax.interfaces import Params
from rlhf_jax.models import gpt2
from rlhf_jax.models.gpt2 import GPT2Config
from rlhf_jax.models.stored import check_numbers, read_weights, refuse_quantised
from rlhf_jax.pretrained import json_object, local_file

PREFIX = "transformer."
FIXED_FIELDS: Mapping[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
"""Fields of `config.json` with the values this GPT-2 can be; where a field is missing, the first is their default."""
LEAF_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def load_hf(folder: str | Path) -> tuple[GPT2Config, Params]:
    """Reads a GPT-2 folder as `transformers` writes it: configuration and float32 parameters on the default device.

    Args:
      folder: holds `config.json` and `model.safetensors` (or its shards and their index), with or without the
        `transformer.` prefix; or a hub name whose files are in the local cache. Nothing is downloaded.
    Returns: our configuration (dropout is their `resid_pdrop`) and tree.
    Raises: ValueError naming file and field or tensor where one is missing, malformed, of another shape, or describes
      a network this GPT-2 is not (another activation, an untied head, more layers than the configuration, adapters …).
    """
    config = read_config(local_file(folder, "config.json"))
    stored = read_weights(folder, PREFIX)
    head = stored.tensors.get("lm_head.weight")
    if head is not None and not np.array_equal(head, stored.tensors.get("wte.weight", head)):
        raise ValueError(f"{stored.path}: lm_head.weight differs from wte.weight; only tied heads are supported")
    shapes = jax.eval_shape(lambda key: gpt2.init(config, key), jax.random.key(0))
    names = {tensor_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}
    # Old exports store the causal mask of every layer.
    layers = "|".join(map(str, range(config.n_layer)))
    masks = rf"lm_head\.weight|h\.({layers})\.attn\.(masked_)?bias"

    def leaf(tree_path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> Array:
        return jnp.asarray(stored.take(tensor_name(tree_path), shape.shape))

    params = jax.tree_util.tree_map_with_path(leaf, shapes)
    stored.refuse_unread(names, masks)
    return config, params


def read_config(path: Path) -> GPT2Config:
    """Our configuration from their `config.json`; ValueError names file, field and value of what does not fit."""
    fields = {"layer_norm_epsilon": 1e-5, "resid_pdrop": 0.1, **json_object(path)}
    refuse_quantised(path, fields)
    for name, values in FIXED_FIELDS.items():
        if fields.get(name, values[0]) not in values:
            raise ValueError(f"{path}: field {name!r} is {fields[name]!r}, supported: {values}")
    sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    wrong = {name: fields.get(name) for name in sizes if type(fields.get(name)) is not int}
    if wrong:
        raise ValueError(f"{path}: these fields must be integers: {wrong}")
    if fields.get("n_inner") not in (None, 4 * fields["n_embd"]):
        raise ValueError(f"{path}: field 'n_inner' is {fields['n_inner']!r}, supported: {4 * fields['n_embd']}")
    check_numbers(path, fields, {"layer_norm_epsilon": (1e-30, 1.0), "resid_pdrop": (0.0, 1.0)})
    try:
        return GPT2Config(
            **{name: fields[name] for name in sizes},
            layer_norm_epsilon=float(fields["layer_norm_epsilon"]),
            dropout=float(fields["resid_pdrop"]),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def save_hf(
    folder: str | Path,
    config: GPT2Config,
    params: Params,
    *,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> None:
    """Writes a folder that `transformers.GPT2LMHeadModel.from_pretrained` loads.

    Both files are replaced whole or not at all. Heads and other entries beside the trunk are not written; an item's
    embedding must have been composed into its row of `wte` first (`stages.items.compose`).

    Args:
      folder: made if absent.
      config: of the parameters.
      params: tree as made by `gpt2.init`.
      eos_token_id: recorded for generation; their default would point outside a small vocabulary.
      pad_token_id: recorded for generation.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shapes = jax.eval_shape(lambda key: gpt2.init(config, key), jax.random.key(0))
    trunk = {name: params[name] for name in shapes}
    leaves = jax.tree_util.tree_leaves_with_path(trunk)
    tensors = {PREFIX + tensor_name(path): np.asarray(leaf, np.float32) for path, leaf in leaves}
    fields = {
        **{name: values[0] for name, values in FIXED_FIELDS.items()},
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.n_positions,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        **{name: config.dropout for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop")},
        "bos_token_id": eos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "dtype": "float32",
    }
    partial = folder / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, folder / "model.safetensors")
    partial = folder / "config.json.partial"
    partial.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / "config.json")


def tensor_name(path: tuple[Any, ...]) -> str:
    """Their name, without prefix, of the leaf at a path of our tree: h_3/ln_1/scale -> h.3.ln_1.weight."""
    keys = [entry.key for entry in path]
    if len(keys) == 1:
        return f"{keys[0]}.weight"
    head = keys[0].replace("h_", "h.", 1) if keys[0].startswith("h_") else keys[0]
    return ".".join([head, *keys[1:-1], LEAF_NAMES[keys[-1]]])


def extend_vocabulary(
    params: Params,
    key: Key[Array, ""],
    new_size: int,
    *,
    n_words: int,
    first_item: int | None = None,
    item_titles: Sequence[Sequence[int]] = (),
    noise: float = 0.02,
) -> Params:
    """A table of `new_size` rows that keeps the words: special tokens start at their mean, items at their title's.

    A row far from the others would win or lose every softmax at first; the mean does neither. Noise keeps rows that
    start from the same words apart.

    Args:
      params: tree of a model whose first `n_words` rows are the words.
      key: draws the noise.
      new_size: rows of the new table; give the configuration the same `vocab_size`.
      n_words: rows kept as they are.
      first_item: token id of the first item; needed with `item_titles`.
      item_titles: word tokens of every item's title, in order of the items; an empty title starts at the mean.
      noise: standard deviation of what is added to new rows.
    Returns: a tree that shares everything but `wte`.
    Raises: ValueError where the rows do not fit.
    """
    wte = params["wte"]
    if not 0 < n_words <= min(wte.shape[0], new_size):
        raise ValueError(f"extend_vocabulary: n_words {n_words} must be in 1 … {min(wte.shape[0], new_size)}")
    words = wte[:n_words]
    mean = jnp.mean(words, axis=0, keepdims=True)
    spread = noise * jax.random.normal(key, (new_size - n_words, wte.shape[1]), wte.dtype)
    table = jnp.concatenate([words, mean + spread])
    if item_titles:
        if first_item is None or not n_words <= first_item <= new_size - len(item_titles):
            raise ValueError(
                f"extend_vocabulary: {len(item_titles)} items from {first_item} do not fit between words {n_words} and "
                f"size {new_size}"
            )
        table = table.at[first_item : first_item + len(item_titles)].add(title_means(words, item_titles) - mean)
    return {**params, "wte": table}


def title_means(words: Float[Array, "W D"], titles: Sequence[Sequence[int]]) -> Float[Array, "I D"]:
    """Mean embedding of every title's words; of all words where a title has none. [I, D]"""
    table = np.asarray(words)
    overall = table.mean(axis=0)
    return jnp.asarray(np.stack([table[list(title)].mean(axis=0) if title else overall for title in titles]))

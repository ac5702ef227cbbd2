"""Weights and numbers of a Hugging Face folder, read strictly: what is there and not used would be another network.

Weights are one file, `model.safetensors`, or shards that `model.safetensors.index.json` names; float16, bfloat16 and float32
become float32. Refused by name: tensors nobody reads, adapters beside the weights, integers, quantised folders, NaN.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from rlhf_jax.pretrained import json_object, local_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Stored(NamedTuple):
    """Tensors by their names, without the prefix of the network they are in."""

    path: Path
    """The file that is named in errors; with shards the index."""
    tensors: Mapping[str, np.ndarray]

    def take(self, name: str, shape: tuple[int, ...], *, transposed: bool = False) -> np.ndarray:
        """One tensor as float32. Raises ValueError naming the file and a tensor that is missing or does not fit."""
        if name not in self.tensors:
            raise ValueError(f"{self.path}: tensor {name!r} is missing")
        found = self.tensors[name]
        if (found.T if transposed else found).shape != shape:
            wanted = shape[::-1] if transposed else shape
            raise ValueError(f"{self.path}: tensor {name!r} has shape {found.shape}, config.json says {wanted}")
        if not jnp.issubdtype(found.dtype, jnp.floating):
            raise ValueError(f"{self.path}: tensor {name!r} is {found.dtype}, supported are floating-point numbers")
        found = found.astype(np.float32)
        if not np.isfinite(found).all():
            raise ValueError(f"{self.path}: tensor {name!r} holds NaN or infinite numbers")
        return found.T if transposed else found

    def refuse_unread(self, read: set[str], harmless: str) -> None:
        """Raises ValueError naming tensors that are neither read nor match the pattern of what changes nothing."""
        left = [name for name in self.tensors if name not in read and not re.fullmatch(harmless, name)]
        if left:
            raise ValueError(
                f"{self.path}: {len(left)} tensors have no place in the network of config.json (more layers, or adapters "
                f"that are not merged?): {', '.join(sorted(left)[:3])}"
            )


def read_weights(source: str | Path, prefix: str) -> Stored:
    """All tensors of a folder, or of a hub name in the local cache.

    Args:
      prefix: taken off names that begin with it.
    Raises: ValueError naming the file that is missing, damaged, or says that the weights are not all.
    """
    if (adapters := _there(source, "adapter_config.json")) is not None:
        raise ValueError(f"{adapters}: adapters lie beside the weights; merge them, or take them away")
    path, files = _files(source)
    stored: dict[str, np.ndarray] = {}
    for file in files:
        try:
            found = load_file(file)
        except (OSError, SafetensorError, AttributeError, KeyError, TypeError) as error:
            # The last three: kinds of numbers that NumPy does not know.
            raise ValueError(f"{file}: no readable safetensors file ({error})") from error
        if twice := sorted(stored.keys() & found.keys()):
            raise ValueError(f"{file}: tensor {twice[0]!r} is in another shard too")
        stored |= found
    if path.name == INDEX and (differ := sorted(stored.keys() ^ _weight_map(path).keys())):
        raise ValueError(f"{path}: field 'weight_map' and the shards differ in {len(differ)} tensors: {differ[0]!r}")
    tensors = {name.removeprefix(prefix): tensor for name, tensor in stored.items()}
    if len(tensors) < len(stored):
        raise ValueError(f"{path}: some tensors are there twice, with and without {prefix!r}")
    return Stored(path, tensors)


def check_numbers(path: Path, fields: Mapping[str, Any], limits: Mapping[str, tuple[float, float]]) -> None:
    """Raises ValueError naming file, field and value of what is no number or not inside its limits (low, below high)."""
    for name, (low, high) in limits.items():
        value = fields[name]
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"{path}: field {name!r} is {value!r}, expected a number")
        if not low <= value < high:
            raise ValueError(f"{path}: field {name!r} is {value!r}, it must lie in [{low}, {high})")


def refuse_quantised(path: Path, fields: Mapping[str, Any]) -> None:
    """Raises ValueError naming a configuration whose weights are not stored as numbers of their own."""
    if fields.get("quantization_config") is not None:
        raise ValueError(f"{path}: field 'quantization_config' is set; quantised weights are not supported")


def _files(source: str | Path) -> tuple[Path, list[Path]]:
    """The file to name in errors, and the files that hold the tensors."""
    if _there(source, WEIGHTS) is None and (index := _there(source, INDEX)) is not None:
        return index, [local_file(source, name) for name in sorted(set(_weight_map(index).values()))]
    path = local_file(source, WEIGHTS)
    return path, [path]


def _weight_map(index: Path) -> dict[str, str]:
    names = json_object(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(_is_file_name(name) for name in names.values()):
        raise ValueError(f"{index}: field 'weight_map' must give the file of every tensor, got {str(names)[:60]!r}")
    return names


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and "/" not in name


def _there(source: str | Path, name: str) -> Path | None:
    try:
        return local_file(source, name)
    except ValueError:
        return None

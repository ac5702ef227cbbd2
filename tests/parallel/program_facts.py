"""What the texts and figures of a compiled program say about it."""

import math
import re
from collections.abc import Iterator
from typing import Any

import jax

_BYTES = {"i1": 1, "i8": 1, "ui8": 1, "bf16": 2, "f16": 2, "i32": 4, "ui32": 4, "f32": 4, "i64": 8, "ui64": 8, "f64": 8}


def host_calls(compiled: str) -> list[str]:
    """Instructions of an optimised program that leave the device."""
    targets = re.findall(r'custom_call_target="([^"]*)"', compiled)
    moved = re.findall(r" (infeed|outfeed|send|recv)\(", compiled)
    return [target for target in targets if "callback" in target] + moved


def largest_constant(lowered: str) -> int:
    """Bytes of the largest array written into a lowered program (repeated single values take no room and do not count)."""
    return max((size for size in _constants(lowered)), default=0)


def _constants(lowered: str) -> Iterator[int]:
    for value, kind in re.findall(r"stablehlo\.constant dense<(.*?)> : tensor<([^>]*)>", lowered):
        *lengths, item = kind.split("x")
        if value.startswith(("[", '"')):
            yield math.prod(int(length) for length in lengths) * _BYTES[item]


def arguments(lowered: str) -> int:
    """Arrays a lowered program takes, hidden ones included."""
    signature = re.search(r"func\.func public @main\((.*?)\) -> ", lowered, re.DOTALL)
    assert signature is not None
    return len(re.findall(r"%arg\d+:", signature[1]))


def donated(lowered: str) -> int:
    """Arguments whose memory a result may take."""
    return len(re.findall(r"tf\.aliasing_output|jax\.buffer_donor", lowered))


def size(tree: Any) -> int:
    """Bytes of all arrays of a tree (arrays or shapes); a typed key is its words."""
    leaves = [
        jax.eval_shape(jax.random.key_data, leaf) if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for leaf in jax.tree.leaves(tree)
    ]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)

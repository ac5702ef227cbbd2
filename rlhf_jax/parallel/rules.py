"""Where every array lives on the mesh: (pattern, spec) pairs, the first pattern found in an array's path decides.

A path is the keys to a leaf joined by slashes, `params/trunk/h_0/attn/c_attn/kernel`; an optimiser's moments have the
path of their parameter at the end, so one table serves both. An array that no rule knows is an error: silence would
leave it whole on every device.
"""

import math
import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax.parallel.mesh import ROWS

Rules = tuple[tuple[str, P], ...]

STORED: Rules = (
    (r"wte$", P(("tensor", "fsdp"), None)),
    (r"wpe$", P(None, "fsdp")),
    # Queries, keys and values stand side by side, so the columns cannot be cut by heads: rows are, until they are used.
    (r"attn/c_attn/kernel$", P(("fsdp", "tensor"), None)),
    (r"mlp/c_fc/kernel$", P("fsdp", "tensor")),
    (r"mlp/c_fc/bias$", P("tensor")),
    (r"(attn|mlp)/c_proj/kernel$", P("tensor", "fsdp")),
    (r"item_features$", P(None, "fsdp")),
    # Vectors and heads are a thousandth of the bytes; cut, each would cost a collective of its own.
    (r"(^|/)(value|reward|attributes)/kernel$", P()),
    (r"(^|/)reward/read$", P()),
    (r"(bias|scale)$", P()),
    (r"(^|/)prior/(policy|scores|manners)$", P()),
    # What a learner's state holds besides: counters, the key, running moments.
    (r"(^|/)(step|update|skipped|count|key|kl_coef|component_weights)$", P()),
    (r"_moments/(mean|m2|count)$", P()),
)
"""Parameters, optimiser moments and learner states between steps."""

IN_USE: Rules = (
    (r"wte$", P("tensor", None)),
    (r"attn/c_attn/kernel$", P(None, "tensor")),
    (r"attn/c_attn/bias$", P("tensor")),
    (r"mlp/c_fc/kernel$", P(None, "tensor")),
    (r"mlp/c_fc/bias$", P("tensor")),
    (r"(attn|mlp)/c_proj/kernel$", P("tensor", None)),
    (r"", P()),
)
"""Parameters inside one pass: nothing is cut over `fsdp`."""

CACHE: Rules = (
    (r"layers/", P(ROWS, "tensor", None, None)),
    (r"(mask|position)$", P(ROWS)),
    (r"index$", P()),
)
"""What decoding remembers: rows, and heads of keys and values [B, H, T, D/H]."""


def spec(rules: Rules, path: str) -> P:
    """The spec of the first rule whose pattern is found in `path`.

    Raises: ValueError naming a path that no rule knows.
    Examples:
      >>> tuple(spec(STORED, "opt_state/1/mu/trunk/h_3/mlp/c_fc/kernel"))
      ('fsdp', 'tensor')
    """
    for pattern, found in rules:
        if re.search(pattern, path):
            return found
    raise ValueError(f"no sharding rule for {path!r}: add a (pattern, spec) pair to rlhf_jax/parallel/rules.py")


def paths(tree: Any) -> list[str]:
    """Paths of all leaves, in the order of `jax.tree.leaves`."""
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]


def shardings(mesh: Mesh | AbstractMesh, tree: Any, rules: Rules = STORED) -> Any:
    """A `NamedSharding` for every leaf of `tree` (arrays or shapes), by path.

    Raises: ValueError naming an array without a rule, or one whose size its axes do not divide.
    """
    leaves, structure = jax.tree.flatten(tree)
    found = [_fitting(mesh, path, leaf, spec(rules, path)) for path, leaf in zip(paths(tree), leaves, strict=True)]
    return jax.tree.unflatten(structure, found)


def _fitting(mesh: Mesh | AbstractMesh, path: str, leaf: Any, found: P) -> NamedSharding:
    for size, axes in zip(leaf.shape, found, strict=False):
        names = (axes,) if isinstance(axes, str) else axes or ()
        parts = math.prod(mesh.shape[name] for name in names)
        if size % parts:
            raise ValueError(f"{path} of shape {leaf.shape}: {size} is not a multiple of {' × '.join(names)} = {parts}")
    return NamedSharding(mesh, found)


def bytes_per_device(tree: Any, placed: Any) -> int:
    """Bytes of `tree` (arrays or shapes) on each device under the shardings `placed`."""
    sizes = jax.tree.map(lambda leaf, at: math.prod(at.shard_shape(leaf.shape)) * leaf.dtype.itemsize, tree, placed)
    return sum(jax.tree.leaves(sizes))

"""Which collectives a compiled program contains: kind, mesh axes, how many arrays, how many bytes.

Read from the text of the optimised program, so it counts what runs, not what was meant. An instruction inside a loop
counts once: multiply by the trip count for bytes moved.
"""

import collections
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

_ITEM_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
_INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (?P<result>.*?) (?P<kind>{_KINDS})(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")
_LISTED = re.compile(r"replica_groups=\{(\{[0-9,{}]*\})\}")
_IOTA = re.compile(r"replica_groups=\[([0-9,]+)\]<=\[([0-9,]+)\](?:T\(([0-9,]+)\))?")
_NAMED = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([0-9,]+)\](?:T\(([0-9,]+)\))?\))? ?\{([^}]*)\}"
)
_PAIRS = re.compile(r"source_target_pairs=\{(\{[0-9,{}]*\})\}")


class Collective(NamedTuple):
    """One array that one instruction moves; a combined instruction moves several."""

    kind: str
    axes: tuple[str, ...]
    """Mesh axes along which the devices of a group differ."""
    shape: tuple[int, ...]
    """Of the result on one device."""
    size: int
    """Bytes of the result on one device."""


def collectives(program: str, mesh: Mapping[str, int]) -> list[Collective]:
    """All collectives of a compiled program.

    Args:
      program: text of the optimised program, `jitted.lower(...).compile().as_text()`.
      mesh: axis → devices along it, in the order of the mesh (`mesh.shape`).
    Raises: ValueError on a line whose groups this version cannot read; nothing is passed over.
    """
    found = []
    for line in program.splitlines():
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        axes = _axes(_groups(line), mesh)
        arrays = [_array(*array) for array in _ARRAY.findall(re.sub(r"/\*.*?\*/", "", match["result"]))]
        if match["kind"] == "all-to-all" and len(arrays) > 1:
            # One operand per destination: together one array.
            arrays = [(arrays[0][0], sum(size for _, size in arrays))]
        found += [Collective(match["kind"], axes, shape, size) for shape, size in arrays]
    return found


def table(found: list[Collective], *, least: int = 0) -> dict[tuple[str, tuple[str, ...]], tuple[int, int]]:
    """(kind, axes) → (arrays, bytes), of arrays of at least `least` bytes."""
    total: dict[tuple[str, tuple[str, ...]], list[int]] = collections.defaultdict(lambda: [0, 0])
    for one in found:
        if one.size >= least:
            total[one.kind, one.axes][0] += 1
            total[one.kind, one.axes][1] += one.size
    return {key: (count, size) for key, (count, size) in sorted(total.items())}


def _array(kind: str, dimensions: str) -> tuple[tuple[int, ...], int]:
    shape = tuple(int(length) for length in dimensions.split(",") if length)
    return shape, math.prod(shape) * _ITEM_BYTES[kind]


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _groups(line: str) -> list[list[int]]:
    """Devices that exchange with each other, by their place in the program's device order."""
    if listed := _LISTED.search(line) or _PAIRS.search(line):
        return [_integers(group) for group in re.findall(r"\{([0-9,]*)\}", listed[1])]
    if iota := _IOTA.search(line):
        return _iota(iota[2], iota[3]).reshape(_integers(iota[1])).tolist()
    if named := _NAMED.search(line):
        return list(_named(*named.groups()))
    raise ValueError(f"the groups of this collective cannot be read: {line.strip()[:300]}")


def _iota(dimensions: str, order: str | None) -> np.ndarray:
    lengths = _integers(dimensions)
    devices = np.arange(math.prod(lengths)).reshape(lengths)
    return devices if order is None else devices.transpose(_integers(order))


def _named(axes: str, dimensions: str | None, order: str | None, used: str) -> Iterator[list[int]]:
    lengths = {name: int(length) for name, length in re.findall(r"'([^']+)'=(\d+)", axes)}
    devices = (np.arange(math.prod(lengths.values())) if dimensions is None else _iota(dimensions, order)).reshape(
        tuple(lengths.values())
    )
    moved = []
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", used):
        place = list(lengths).index(name)
        if size:
            raise ValueError(f"groups over a part of an axis are not read: {{{used}}} of {axes}, before {before}")
        moved.append(place)
    kept = [place for place in range(devices.ndim) if place not in moved]
    grouped = devices.transpose(*kept, *moved).reshape(-1, math.prod(devices.shape[place] for place in moved))
    yield from grouped.tolist()


def _axes(groups: list[list[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    places = dict(enumerate(np.ndindex(*mesh.values())))
    differ = set()
    for group in groups:
        for device in group[1:]:
            differ |= {
                axis for axis, one, other in zip(mesh, places[group[0]], places[device], strict=True) if one != other
            }
    return tuple(axis for axis in mesh if axis in differ)

"""What a compiled program costs on a fleet of devices, on paper: operations, bytes held, bytes sent, least seconds.

The counts are read from the optimised program of one device, loops multiplied by their trips. Three parts of a step are
told apart: `decode`, the loop over tokens; `update`, the loops over epochs and minibatches, or the one optimiser step of a
program that has no other part; `passes`, what is done once: prompts read, responses scored and judged.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_jax.parallel import rules
from rlhf_jax.parallel.partition import Partition
from scale.collectives import collectives

PHASES = ("decode", "passes", "update")
_HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[^\s(]+) \(.*\{$")
_RESULT = re.compile(r"^\s+(?:ROOT )?%?(?P<name>\S+) = \(?[a-z]+[0-9]*\[(?P<shape>[0-9,]*)\]")
_DOT = re.compile(r" dot\((?P<operands>[^)]*)\).*?lhs_contracting_dims=\{(?P<contracted>[0-9,]*)\}")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|true_computation|false_computation)=%?([^\s,})]+)|branch_computations=\{([^}]*)\}"
)
_BODY = re.compile(r" while\(.*?\bbody=%?([^\s,})]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BACKWARD = "transpose(jvp"
"""In the names of all operations that reverse-mode differentiation makes."""


@dataclasses.dataclass(frozen=True)
class Fleet:
    """Devices of one kind and what joins them; rates are ceilings, of which a program reaches a share."""

    name: str
    devices: int
    machine: int
    """Devices that share the fast links."""
    memory: float
    """Bytes of one device."""
    matmul: float
    """Operations per second of one device, matmuls of bfloat16."""
    bandwidth: float
    """Bytes per second between one device and its memory."""
    inside: float
    """Bytes per second that one device sends to others of its machine."""
    between: float
    """Bytes per second that one device sends to other machines, all of its machine sending at once."""
    source: str
    """Which of these numbers were measured, and where the others are from."""

    def link(self, axes: tuple[str, ...], mesh: Mapping[str, int]) -> float:
        """Bytes per second a device sends in rings along `axes`, neighbouring devices on the last axis of the mesh.

        Inside a machine its fast links. Between machines every device of the group has a ring of its own, which leaves
        the machine once: of `members` in a machine each sends a part 1/members through its own adapter.
        """
        stride = members = reach = 1
        for axis in reversed(list(mesh)):
            if axis in axes:
                members *= min(mesh[axis], max(1, self.machine // stride))
                reach = stride * mesh[axis]
            stride *= mesh[axis]
        return self.inside if reach <= self.machine else min(self.inside, members * self.between)


class Work(NamedTuple):
    """Of one phase, on one device, in one iteration."""

    flops: float
    """Multiplications and additions of the matmuls."""
    sent: dict[str, float]
    """Bytes a device sends, by the axes it sends along (`data+fsdp`)."""


class Seconds(NamedTuple):
    """Least time of one phase by each resource alone."""

    compute: float
    memory: float
    collective: float

    @property
    def binds(self) -> str:
        """The resource that takes longest."""
        return max(self._fields, key=lambda name: getattr(self, name))

    @property
    def span(self) -> tuple[float, float]:
        """With all three overlapping perfectly, and one after the other."""
        return max(self), sum(self)


def ring_bytes(kind: str, size: float, group: int) -> float:
    """Bytes that each of `group` devices sends for one collective whose result has `size` bytes on a device.

        all-gather, all-to-all (g − 1)/g · N;   all-reduce 2 (g − 1)/g · N;   reduce-scatter (g − 1) · N;   permute N

    Source: Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations", section 3; no
    algorithm among the devices alone sends less. Switches that add (NVLink SHARP) about halve an all-reduce.

    Raises: ValueError on a kind it does not know.
    Examples:
      >>> [ring_bytes(kind, 800.0, 8) for kind in ("all-reduce", "all-gather", "reduce-scatter")]
      [1400.0, 700.0, 5600.0]
    """
    factors = {
        "all-gather": (group - 1) / group,
        "all-to-all": (group - 1) / group,
        "all-reduce": 2 * (group - 1) / group,
        "reduce-scatter": float(group - 1),
        "collective-permute": 1.0,
        "collective-broadcast": 1.0,
    }
    if kind not in factors:
        raise ValueError(f"collective {kind!r} is none of {list(factors)}")
    return factors[kind] * size


def work_by_phase(
    program: str,
    mesh: Mapping[str, int],
    *,
    decode_steps: int,
    once: bool = False,
    outside: str = "passes",
    loops: tuple[str, ...] = ("decode", "update"),
) -> dict[str, Work]:
    """Matmul operations and bytes sent of every phase of a compiled step, on one device.

    Args:
      program: text of the optimised program, `jitted.lower(...).compile().as_text()`, where matmuls are `dot`s (CPU).
      mesh: axis → devices along it, in the order of the mesh.
      decode_steps: trips of the loop over tokens, which ends when all rows have: the most is response tokens − 1.
      once: count every loop's body once, as the compiler's own `cost_analysis` does, to compare the two.
      outside: phase of what stands in no loop: `passes`, or `update` where the program is one optimiser step.
      loops: phases that must be found: those of which this program has a loop, or is one.
    Raises: ValueError where one of them is not found: the compiler unrolls loops of one trip, so epochs × minibatches must be
      above 1.
    """
    computations, entry = _computations(program)
    flops: dict[str, float] = dict.fromkeys(PHASES, 0.0)
    sent: dict[str, dict[str, float]] = {phase: collections.defaultdict(float) for phase in PHASES}

    @functools.cache
    def has_backward(name: str) -> bool:
        lines = computations[name]
        return any(_BACKWARD in line for line in lines) or any(has_backward(one) for one in _called(lines))

    def visit(name: str, phase: str, times: float) -> None:
        lines = computations[name]
        shapes = {found["name"]: _lengths(found["shape"]) for line in lines if (found := _RESULT.match(line))}
        for line in lines:
            if dot := _DOT.search(line):
                flops[phase] += times * _dot_flops(line, dot, shapes)
            for one in collectives(line, mesh):
                if one.axes:
                    group = math.prod(mesh[axis] for axis in one.axes)
                    sent[phase]["+".join(one.axes)] += times * ring_bytes(one.kind, float(one.size), group)
            if body := _BODY.search(line):
                inner, trips = _loop(line, phase, decode_steps, has_backward(body[1]))
                visit(body[1], inner, times * (1 if once else trips))
            else:
                for called in _called([line]):
                    visit(called, phase, times)

    visit(entry, outside, 1.0)
    for phase in loops:
        if not flops[phase]:
            raise ValueError(f"the program has no loop of phase {phase!r}: epochs × minibatches and tokens must be > 1")
    return {phase: Work(flops[phase], dict(sorted(sent[phase].items()))) for phase in PHASES}


def matmul_flops(program: str) -> float:
    """Multiplications and additions of the matmuls of any compiled program, every loop's body as often as it runs.

    Raises: ValueError at a loop whose trips are not written down.
    """
    computations, entry = _computations(program)

    def visit(name: str) -> float:
        lines, total = computations[name], 0.0
        shapes = {found["name"]: _lengths(found["shape"]) for line in lines if (found := _RESULT.match(line))}
        for line in lines:
            if dot := _DOT.search(line):
                total += _dot_flops(line, dot, shapes)
            if body := _BODY.search(line):
                trips = _TRIPS.search(line)
                inner = visit(body[1])
                if trips is None and inner:
                    raise ValueError(f"a loop of unknown length with matmuls: {line.strip()[:200]}")
                total += inner * (int(trips[1]) if trips else 0)
            else:
                total += sum(visit(called) for called in _called([line]))
        return total

    return visit(entry)


def repeated(work: Mapping[str, Work], times: int) -> dict[str, Work]:
    """What a program does that runs so many times.

    Examples:
      >>> repeated({"decode": Work(3.0, {"data": 1.0})}, 4)
      {'decode': Work(flops=12.0, sent={'data': 4.0})}
    """
    return {
        phase: Work(times * one.flops, {axes: times * size for axes, size in one.sent.items()})
        for phase, one in work.items()
    }


def together(work: Sequence[Mapping[str, Work]]) -> dict[str, Work]:
    """What several programs do, one after the other.

    Examples:
      >>> together([{"update": Work(3.0, {"data": 1.0})}, {"update": Work(1.0, {"fsdp": 2.0})}])
      {'update': Work(flops=4.0, sent={'data': 1.0, 'fsdp': 2.0})}
    """
    found = {}
    for phase in work[0]:
        sent: dict[str, float] = collections.defaultdict(float)
        for one in work:
            for axes, size in one[phase].sent.items():
                sent[axes] += size
        found[phase] = Work(sum(one[phase].flops for one in work), dict(sorted(sent.items())))
    return found


def along_depth(shallow: Any, deep: Any, depths: tuple[int, int], depth: int) -> Any:
    """Numbers of a network of `depth` layers from those of two others; layers inside are equal, so it is a line.

        y(L) = y(L₁) + (L − L₁) · (y(L₂) − y(L₁)) / (L₂ − L₁)

    Exact for operations and bytes sent from L₁ ≥ 2 on (the last block is cut short). The peak of memory is the largest of
    several lines, so that the line through two points can only lie below it: compare with a third.

    Args:
      shallow: numbers, or a tree of dicts of them, at `depths[0]` layers.
      deep: the same at `depths[1]`; what is missing in one of the two counts 0.
    Raises: ValueError if the depths do not differ.
    Examples:
      >>> along_depth({"flops": 10.0, "sent": {"data": 3.0}}, {"flops": 14.0, "sent": {"data": 5.0}}, (1, 3), 24)
      {'flops': 56.0, 'sent': {'data': 26.0}}
    """
    if depths[0] == depths[1]:
        raise ValueError(f"two depths are needed to draw a line, got {depths}")
    if isinstance(shallow, Mapping):
        names = [*shallow, *(name for name in deep if name not in shallow)]
        return {name: along_depth(shallow.get(name, 0.0), deep.get(name, 0.0), depths, depth) for name in names}
    return shallow + (depth - depths[0]) * (deep - shallow) / (depths[1] - depths[0])


def phase_seconds(
    work: Work, moved: float, fleet: Fleet, mesh: Mapping[str, int], *, shares: tuple[float, float, float]
) -> Seconds:
    """Time of one phase by each resource alone.

        compute = F / (a · matmul);   memory = M / (b · bandwidth);   collective = Σ over axes of sent / (c · link)

    Source: Williams et al. 2009, "Roofline", with the links as a third roof.

    Args:
      work: on one device.
      moved: M, bytes between one device and its memory.
      shares: a, b, c: what programs reach of the ceilings, in (0, 1].
    """
    matmul, bandwidth, link = shares
    collective = sum(size / fleet.link(tuple(axes.split("+")), mesh) for axes, size in work.sent.items())
    return Seconds(work.flops / (matmul * fleet.matmul), moved / (bandwidth * fleet.bandwidth), collective / link)


def resident_bytes(layout: Partition, trees: Mapping[str, Any], cache: Any = None) -> dict[str, int]:
    """Exact bytes on each device of what stays between steps, by name, and of the cache while decoding.

    Args:
      layout: on an abstract mesh or a real one.
      trees: parameters, moments … (arrays or shapes), laid out by `rules.STORED`.
      cache: `gpt2.Cache` of all rows (arrays or shapes), laid out by `rules.CACHE`; None leaves it out.
    Raises: ValueError naming an array that its axes do not divide.
    """
    held = {name: rules.bytes_per_device(tree, layout.stored(tree)) for name, tree in trees.items()}
    if cache is not None:
        held["cache"] = rules.bytes_per_device(cache, rules.shardings(layout.mesh, cache, rules.CACHE))
    return held


def check_memory(held: Mapping[str, float], fleet: Fleet) -> None:
    """Raises ValueError, naming all parts, where they take more than a device has."""
    needed = sum(held.values())
    if needed > fleet.memory:
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in held.items())
        raise ValueError(
            f"{needed / 1e9:.2f} GB do not fit the {fleet.memory / 1e9:.1f} GB of one device of {fleet.name}: {parts}"
        )


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """Lines of every computation, and the name of the one that runs first."""
    found: dict[str, list[str]] = {}
    entry, lines = "", None
    for line in program.splitlines():
        if lines is None and (head := _HEAD.match(line)):
            lines = found[head["name"]] = []
            entry = head["name"] if head["entry"] else entry
        elif line.startswith("}"):
            lines = None
        elif lines is not None:
            lines.append(line)
    if not entry:
        raise ValueError("the text is no compiled program: it has no ENTRY")
    return found, entry


def _called(lines: list[str]) -> Iterator[str]:
    """Computations that instructions call, those that reduce two numbers to one left out."""
    for line in lines:
        if body := _BODY.search(line):
            yield body[1]
        elif re.search(r" (call|fusion|conditional|async-start)\(", line):
            for one, branches in _CALLED.findall(line):
                yield from [one] if one else [name.strip().lstrip("%") for name in branches.split(",")]


def _loop(line: str, phase: str, decode_steps: int, backward: bool) -> tuple[str, int]:
    """Phase and trips of a loop; only the loop over tokens may end early, so only its trips are not written down."""
    trips = _TRIPS.search(line)
    if trips is None:
        if phase != "passes":
            raise ValueError(f"a loop of unknown length inside {phase!r}: {line.strip()[:200]}")
        return "decode", decode_steps
    return "update" if backward else phase, int(trips[1])


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(int(length) for length in text.split(",") if length)


def _dot_flops(line: str, dot: re.Match[str], shapes: Mapping[str, tuple[int, ...]]) -> float:
    result = _RESULT.match(line)
    left = re.findall(r"%([^\s,)]+)", dot["operands"])[0]
    if result is None:
        raise ValueError(f"the shape of this matmul cannot be read: {line.strip()[:200]}")
    contracted = math.prod(shapes[left][place] for place in _lengths(dot["contracted"]))
    return 2.0 * math.prod(_lengths(result["shape"])) * contracted

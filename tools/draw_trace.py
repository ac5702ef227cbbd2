"""Draws one step of a trace that `--profile` wrote: what host, programs and threads did, and a table of the shares.

    python tools/draw_trace.py RUN/profile/ppo                    # the first traced step, into RUN/profile/ppo/step_N.png
    python tools/draw_trace.py RUN/profile/ppo --step 4 --output docs/results/trace_ppo.png

Events carry the names of compiled instructions. What part of our program an instruction came from (`rollout`, `update/…`)
stands in the programs themselves, which the profiler puts into the file. `jax.profiler.ProfileData` leaves them out, and in
jaxlib 0.11 it ends the process when it is asked for an event's statistics; so the file is read here, by the few field
numbers of XSpace (tsl/profiler/protobuf/xplane.proto) and HloProto (xla/service/hlo.proto).
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch

from rlhf_jax.reporting.plots import COLOURS, GREY, STYLE, WIDTH, save

PHASES = {"rollout": COLOURS[0], "scoring": COLOURS[4], "update": COLOURS[2]}
"""The phases of a PPO iteration, as `jax.named_scope` names them in `learners/ppo.py`."""
PARTS = {
    "prefill": COLOURS[5],
    "decode": COLOURS[0],
    "forward": COLOURS[5],
    "backward": COLOURS[2],
    "optimizer": COLOURS[3],
}
HOST = {"update": COLOURS[0], "wait for metrics": "#BBBBBB", "evaluate": COLOURS[3], "save checkpoint": COLOURS[1]}
"""What `run_stage` marks on the host."""
CONTAINERS = ("while", "call", "conditional")
"""Instructions whose event spans those of the instructions inside."""
CHARACTERS = 118
"""That fit side by side across the picture."""
LONGEST = 8
"""Kinds of instructions that the table names."""


class Span(NamedTuple):
    """A named piece of time, ms from the beginning of the step."""

    name: str
    start: float
    end: float


class Event(NamedTuple):
    """A marked piece of time of one thread."""

    name: str
    start_ns: float
    end_ns: float
    stats: dict[str, int | str]
    """What is known of it, by name; numbers with a fraction are left out."""


class Op(NamedTuple):
    """One executed instruction."""

    thread: str
    program: str
    scope: str
    container: bool
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a trace; all times in ms from its beginning."""

    stage: str
    number: int
    length: float
    host: Sequence[Span]
    ops: Sequence[Op]


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of every field of a serialized protocol buffer, in the order of the file."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place, value, shift = place + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while place < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or varint()
        yield number, message[place : place + size]
        place += size


def every(message: bytes, *path: int) -> Iterator[bytes]:
    """The byte fields at the end of a path of field numbers."""
    for number, value in fields(message):
        if number == path[0] and isinstance(value, bytes):
            yield from every(value, *path[1:]) if path[1:] else (value,)


def text(message: bytes, *path: int) -> str:
    """The first text at a path of field numbers, empty where there is none."""
    return next(every(message, *path), b"").decode()


def numbers(message: bytes) -> dict[int, int]:
    """The last integer of every field that holds one."""
    return {number: value for number, value in fields(message) if isinstance(value, int)}


def threads(file: Path) -> list[tuple[str, list[Event]]]:
    """(name, events) of every line of a trace (*.xplane.pb), in the order of the file."""
    return [
        (text(line, 2), list(_events(line, names, known)))
        for plane in every(file.read_bytes(), 1)
        # Maps of number to metadata: events' names, and those of their statistics.
        for names, known in [(_names(plane, 4), _names(plane, 5))]
        for line in every(plane, 3)
    ]


def _names(plane: bytes, number: int) -> dict[int, str]:
    return {numbers(entry).get(1, 0): text(entry, 2, 2) for entry in every(plane, number)}


def _events(line: bytes, names: dict[int, str], known: dict[int, str]) -> Iterator[Event]:
    begin = numbers(line).get(3, 0)
    for event in every(line, 4):
        kind, offset, length = (numbers(event).get(number, 0) for number in (1, 2, 3))
        stats: dict[str, int | str] = {}
        for stat in every(event, 4):
            whole = numbers(stat)
            name = known.get(whole.get(1, 0), "")
            if 7 in whole:  # A text that is kept once, as the name of a statistic.
                stats[name] = known.get(whole[7], "")
            elif 3 in whole:
                stats[name] = whole[3]
            elif 4 in whole:  # Signed: two's complement in 64 bits.
                stats[name] = whole[4] - (whole[4] >> 63 << 64)
            elif any(number == 5 for number, _ in fields(stat)):
                stats[name] = text(stat, 5)
        start = begin + offset / 1e3
        yield Event(names.get(kind, ""), start, start + length / 1e3, stats)


def instructions(file: Path, programs: set[str]) -> dict[tuple[str, str], tuple[str, str]]:
    """(program id, instruction) to (opcode, scope), for the programs asked for."""
    found = {}
    for plane in every(file.read_bytes(), 1):
        if text(plane, 2) != "/host:metadata":
            continue
        for program in every(plane, 4, 2):  # event_metadata: one entry a program, "jit_name(id)"
            identity = re.search(r"\((\d+)\)$", text(program, 2))
            if identity is None or identity[1] not in programs:
                continue
            for instruction in every(program, 5, 6, 1, 3, 2):  # stat, HloProto, module, computation, instruction
                scope = text(instruction, 7, 2).partition("/")[2]
                found[identity[1], text(instruction, 1)] = (text(instruction, 2), scope)
    return found


def newest(folder: Path) -> Path:
    """The newest trace under a folder that `--profile` wrote to.

    Raises: FileNotFoundError where there is none.
    """
    files = sorted(folder.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.xplane.pb: it is RUN/profile/STAGE of a run with --profile STAGE")
    return files[-1]


def read_step(file: Path, number: int | None = None) -> Step:
    """Step `number` of a trace, the first one by default.

    Raises: ValueError naming the steps that are there.
    """
    lines = threads(file)
    marks = [
        (int(event.stats["step_num"]), event, events)
        for _, events in lines
        for event in events
        if "step_num" in event.stats and "_r" in event.stats
    ]
    if not marks:
        raise ValueError(f"{file} marks no steps: it was not written by --profile")
    chosen = [mark for mark in sorted(marks, key=lambda mark: mark[0]) if number in (None, mark[0])]
    if not chosen:
        raise ValueError(f"{file} has no step {number}; it has {sorted(mark[0] for mark in marks)}")
    step, mark, host_events = chosen[0]
    begin, end = mark.start_ns, mark.end_ns

    def time(ns: float) -> float:
        return (min(max(ns, begin), end) - begin) / 1e6

    def inside(event: Event) -> bool:
        return event.start_ns < end and event.end_ns > begin

    raw = []
    for index, (name, events) in enumerate(lines):
        thread = f"{name} {index}"
        for event in filter(inside, events):
            if "hlo_op" in event.stats:
                raw.append((thread, event.stats, time(event.start_ns), time(event.end_ns)))
    known = instructions(file, {str(stats["program_id"]) for _, stats, _, _ in raw})
    ops = []
    for thread, stats, start, stop in raw:
        opcode, scope = known.get((str(stats["program_id"]), str(stats["hlo_op"])), ("", ""))
        ops.append(Op(thread, str(stats["hlo_module"]).removeprefix("jit_"), scope, opcode in CONTAINERS, start, stop))
    host = [
        Span(event.name, time(event.start_ns), time(event.end_ns))
        for event in host_events
        if event.name in HOST and inside(event)
    ]
    return Step(mark.name, step, (end - begin) / 1e6, host, ops)


def phase(op: Op) -> str | None:
    """The phase of PPO that an instruction belongs to."""
    first = op.scope.partition("/")[0]
    return first if first in PHASES else None


def part(op: Op) -> str | None:
    """What an instruction does for its phase; derivatives are told by the names jax gives them."""
    names = op.scope.split("/")
    for name in ("prefill", "decode", "optimizer"):
        if name in names:
            return name
    if any(name.startswith("transpose(") for name in names):
        return "backward"
    return "forward" if any(name.startswith("jvp(") for name in names) else None


def merged(spans: Iterable[Span], gap: float = 0.0) -> list[Span]:
    """Spans of one name in order, those that touch or are less than `gap` apart as one."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda span: span.start):
        if found and span.start <= found[-1].end + gap:
            found[-1] = found[-1]._replace(end=max(found[-1].end, span.end))
        else:
            found.append(span)
    return found


def total(spans: Iterable[Span]) -> float:
    """Time covered by the spans, overlaps once, ms."""
    return sum(span.end - span.start for span in merged(spans))


def gaps(spans: Iterable[Span], length: float) -> list[Span]:
    """The times from 0 to `length` that no span covers."""
    edges = [0.0, *(edge for span in merged(spans) for edge in (span.start, span.end)), length]
    return [Span("", *pair) for pair in zip(edges[::2], edges[1::2], strict=True) if pair[1] > pair[0]]


def by_name(ops: Iterable[Op], name_of: Callable[[Op], str | None]) -> dict[str, list[Span]]:
    """Spans of the instructions that `name_of` names, by name."""
    found: dict[str, list[Span]] = {}
    for op in ops:
        name = name_of(op)
        if name is not None:
            found.setdefault(name, []).append(Span(name, op.start, op.end))
    return found


def table(step: Step) -> str:
    """What took how much of the step, as text."""
    leaves = [op for op in step.ops if not op.container]
    rows = [(f"{step.stage}, step {step.number}", step.length)]
    rows += [(f"  program: {name}", total(spans)) for name, spans in by_name(step.ops, phase).items()]
    rows += [(f"    instructions of {name}", total(spans)) for name, spans in by_name(leaves, part).items()]
    copies = [Span("", op.start, op.end) for op in leaves if not op.scope]
    rows.append(("  program: copies and others without a name", total(copies)))
    running = [Span("", op.start, op.end) for op in step.ops]
    rows.append(("  no program runs", sum(gap.end - gap.start for gap in gaps(running, step.length))))
    rows += [
        (f"  host: {name}", total(span for span in step.host if span.name == name))
        for name in HOST
        if any(span.name == name for span in step.host)
    ]
    longest = by_name(leaves, lambda op: f"  {op.program}: {op.scope or '(no name)'}")
    rows += sorted(((name, total(spans)) for name, spans in longest.items()), key=lambda row: -row[1])[:LONGEST]
    return "\n".join(f"{ms:10.2f} ms {100 * ms / step.length:6.1f} %  {name}" for name, ms in rows)


def bars(axes: Axes, row: float, spans: Sequence[Span], colour: str, *, height: float = 0.72, name: str = "") -> None:
    """Spans on one row, with their name on those that have room for it."""
    left, right = axes.get_xlim()
    axes.broken_barh(
        [(span.start, span.end - span.start) for span in spans],
        (row - height / 2, height),
        facecolors=colour,
        linewidth=0,
    )
    wide = [span for span in spans if (span.end - span.start) / (right - left) * CHARACTERS > len(name) + 1]
    if name and wide:
        widest = max(wide, key=lambda span: span.end - span.start)
        dark = colour in (COLOURS[0], COLOURS[1], COLOURS[2])
        axes.text(
            (max(widest.start, left) + min(widest.end, right)) / 2,
            row,
            name,
            ha="center",
            va="center",
            fontsize=7.5,
            color="white" if dark else "black",
        )


def rows(axes: Axes, labels: Sequence[str], *, x_label: str) -> None:
    """One line of the picture for every label, the first on top."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(x_label)


def draw(step: Step) -> Figure:
    """The whole step above; below it the time in which the stage's own program runs, phase by phase and by thread."""
    leaves = [op for op in step.ops if not op.container]
    programs = by_name(step.ops, lambda op: op.program)
    running = [span for spans in programs.values() for span in spans]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 5.6))
        FigureCanvasAgg(figure)
        whole, close = figure.subplots(2, 1, height_ratios=(3, 7))
        whole.set_title(f"stage {step.stage}, step {step.number}: {step.length:.0f} ms")
        whole.set_axisbelow(True)
        whole.set_xlim(0, step.length)
        for name, colour in HOST.items():
            bars(whole, 0, [span for span in step.host if span.name == name], colour, name=name)
        for name, spans in programs.items():
            main = name == max(programs, key=lambda key: total(programs[key]))
            drawn = merged(spans, 0.02 * step.length)
            bars(whole, 1, drawn, COLOURS[2] if main else GREY, name=name if main else "")
        idle = max(gaps(running, step.length), key=lambda gap: gap.end - gap.start, default=None)
        if idle is not None and idle.end - idle.start > 0.02 * step.length:
            bars(whole, 2, [idle], "#EEEEEE")
            share = 100 * (idle.end - idle.start) / step.length
            note = f"no program runs for {idle.end - idle.start:.0f} ms ({share:.0f} %): the host works alone"
            centre = min(max((idle.start + idle.end) / 2, 0.27 * step.length), 0.73 * step.length)
            whole.text(centre, 2, note, ha="center", va="center", fontsize=7.5)
        rows(whole, ["① host", "② programs", "③ longest gap"], x_label="")
        whole.tick_params(axis="x", labeltop=True, labelbottom=False)
        _close(close, step, leaves)
        whole.axvspan(*close.get_xlim(), color="#F4F4F4", zorder=0)
        figure.tight_layout(h_pad=1.6)
        # The lower part is a piece of the upper one, drawn larger.
        for side, edge in zip((0.0, 1.0), close.get_xlim(), strict=True):
            figure.add_artist(
                ConnectionPatch(
                    (edge, 0.0), (side, 1.0), whole.get_xaxis_transform(), close.transAxes, color=GREY, linewidth=0.8
                )
            )
    return figure


def _close(axes: Axes, step: Step, leaves: Sequence[Op]) -> None:
    # A stage without named phases is shown by its programs.
    phases = by_name(step.ops, phase) or by_name(step.ops, lambda op: op.program)
    left = min((span.start for spans in phases.values() for span in spans), default=0.0)
    right = max((span.end for spans in phases.values() for span in spans), default=step.length)
    axes.set_xlim(left, right)
    length = right - left
    labels = []
    for name in [name for name in PHASES if name in phases] or sorted(phases):
        if total(phases[name]) > 0.01 * length:
            bars(axes, len(labels), merged(phases[name], 0.002 * length), PHASES.get(name, GREY), name=name)
            labels.append(f"④ {name}  {total(phases[name]):.1f} ms, {100 * total(phases[name]) / length:.0f} %")
    parts = by_name(leaves, part)
    for name in (name for name in PARTS if name in parts):
        bars(axes, len(labels), merged(parts[name], 0.002 * length), PARTS[name], height=0.5, name=name)
        labels.append(f"⑤ {name}  {total(parts[name]):.1f} ms")
    threads = by_name((op for op in leaves if left <= op.start and op.end <= right), lambda op: op.thread)
    for spans in sorted(threads.values(), key=total, reverse=True):
        if total(spans) > 0.01 * length:
            bars(axes, len(labels), merged(spans, 0.001 * length), GREY, height=0.5)
            labels.append(f"⑥ thread  {100 * total(spans) / length:.0f} % busy")
    axes.set_axisbelow(True)
    axes.set_title(f"the stage's program: {length:.1f} ms of the step", x=0.04)
    rows(axes, labels, x_label="ms from the beginning of the step")


def main(arguments: Sequence[str]) -> int:
    """Reads, prints the table, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="RUN/profile/STAGE")
    parser.add_argument("--step", type=int, help="number of the step, as in metrics.jsonl (default: the first traced)")
    parser.add_argument("--output", type=Path, help="picture to write, .png; an .svg is written beside it")
    options = parser.parse_args(arguments)
    step = read_step(newest(options.folder), options.step)
    print(table(step))
    output = options.output or options.folder / f"step_{step.number}.png"
    print(save(draw(step), output.parent, output.stem))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")

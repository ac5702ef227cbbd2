"""How does the cost grow as the work grows? Updates against batch, prompt, response, layers, catalogue and devices; imitation
against batch, tokens and catalogue; conversations against turns, group and candidates; data, and the start of a run, against
dialogues.

    python experiments/bench_growth.py                 # three sizes an axis; twenty minutes of one CPU core
    python experiments/bench_growth.py debug           # two sizes an axis
    python experiments/bench_growth.py --axes start --starts 1 4 16 64      # one axis; up to 640,000 dialogues from files to training

One axis at a time, all else as the base. Two kinds of numbers: *counted* in the compiled program (operations of its matmuls by
phase, bytes of its temporaries), the same on every machine; and *measured*, CPU seconds of all threads and the peak of a
process that does nothing else, or on an accelerator seconds by the clock and the peak of the device's memory. The last
number of a column is the power with which it grows between the two largest sizes: 1 is linear. Devices are forced CPU devices
that share out one batch; what is counted is the work of one of them.

Writes `growth.json`, `report.md` and `plots/growth.{svg,png}`.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import jax

from command_line import preset_and_options, start
from rlhf_jax.parallel.mesh import MeshConfig
from rlhf_jax.ranges import Cases, Range, Size, Tokens, check_numbers
from rlhf_jax.reporting import plots
from rlhf_jax.reporting.result_tables import markdown_table
from rlhf_jax.runtime.files import notice, read_json, write_json, write_text
from rlhf_jax.runtime.run import open_run
from rlhf_jax.simulators.world import WorldConfig
from rlhf_jax.simulators.world_dialogues import write_world
from scale import conversations, growth, imitation, starts
from scale.compiling import compiled_apart
from scale.conversations import Talk
from scale.imitation import Imitation
from scale.program import Program

Sizes = tuple[Annotated[int, Range("[1, 1_000_000]")], ...]
COUNTED: Mapping[str, tuple[str, str, float]] = {
    "decode": ("decoding", "GFLOP", 1e9),
    "passes": ("passes", "GFLOP", 1e9),
    "update": ("learning", "GFLOP", 1e9),
    "temporaries": ("temporaries", "MB", 2**20),
}
MEASURED: Mapping[str, tuple[str, str, float]] = {
    "rollout_seconds": ("rollout", "s", 1.0),
    "update_seconds": ("whole update", "s", 1.0),
    "ranking_seconds": ("ranking", "s", 1.0),
    "peak_mb": ("peak", "MB", 1.0),
}
CORPUS: Mapping[str, tuple[str, str, float]] = {
    "read_seconds": ("reading", "s", 1.0),
    "vocabulary_seconds": ("vocabulary", "s", 1.0),
    "windows_seconds": ("windows", "s", 1.0),
    "peak_mb": ("peak", "MB", 1.0),
}
IMITATION: Mapping[str, tuple[str, str, float]] = {
    "operations": ("step", "GFLOP", 1e9),
    "temporaries": ("temporaries", "MB", 2**20),
    "step_seconds": ("step", "s", 1.0),
    "peak_mb": ("peak", "MB", 1.0),
    "tokens_per_second": ("tokens", "1/s", 1.0),
}
TALK: Mapping[str, tuple[str, str, float]] = {
    "decode": ("decoding", "GFLOP", 1e9),
    "passes": ("passes", "GFLOP", 1e9),
    "update": ("learning", "GFLOP", 1e9),
    "temporaries": ("temporaries", "MB", 2**20),
    "update_seconds": ("whole update", "s", 1.0),
    "outside_percent": ("outside programs", "%", 1.0),
    "peak_mb": ("peak", "MB", 1.0),
}
"""Key to name, unit, and what one unit is. What is counted of conversations is without the seeker."""
START: Mapping[str, tuple[str, str, float]] = {
    "read_seconds": ("reading", "s", 1.0),
    "vocabulary_seconds": ("vocabulary", "s", 1.0),
    "texts_seconds": ("texts", "s", 1.0),
    "step_seconds": ("first step", "s", 1.0),
    "start_seconds": ("whole start", "s", 1.0),
    "cpu_seconds": ("processor", "s", 1.0),
    "peak_mb": ("peak", "MB", 1.0),
    "again_seconds": ("second start", "s", 1.0),
    "again_peak_mb": ("its peak", "MB", 1.0),
}
"""Of `scale.starts`, by the clock."""
DRAWN = {"start": ("start_seconds", "cpu_seconds", "peak_mb", "again_seconds")}
"""Where all would be too many lines for one panel."""
TALK_DRAWN = ("decode", "update", "update_seconds", "peak_mb")
OF_DATA = {"dialogues": CORPUS, "start": START}
Axis = Literal[
    "batch", "prompt", "response", "layers", "catalogue", "devices", "imitation", "conversations", "dialogues", "start"
]


@dataclasses.dataclass(frozen=True)
class Config:
    """The base, and the sizes of every axis."""

    run_dir: Path = Path("runs/bench-growth")
    """Where the numbers go."""
    axes: tuple[Axis, ...] = get_args(Axis)
    """Which axes are measured."""
    layers: Annotated[int, Range("[1, 1_000]")] = 2
    """Of the base."""
    width: Size = 128
    """Of the base."""
    words: Annotated[int, Range("[256, 1_000_000]")] = 1000
    """Of the vocabulary."""
    batches: Sizes = (32, 64, 128)
    """Responses of an update; the first size of this and of the next four is the base."""
    prompts: Sizes = (64, 128, 256)
    """Tokens."""
    responses: Sizes = (16, 32, 64)
    """Tokens."""
    depths: Sizes = (2, 4, 8)
    """Layers."""
    catalogues: Sizes = (1_000, 10_000, 100_000)
    """Items."""
    texts: Sizes = (64, 128, 256)
    """Texts of a step of imitation; the first size of this and of the next, and of `catalogues`, is its base."""
    text_tokens: Sizes = (64, 128, 256)
    """Of such a text."""
    turns: Sizes = (1, 2, 4)
    """Of a conversation; of this and the next two the middle size is the base of conversations."""
    groups: Sizes = (4, 8, 16)
    """Conversations from each of four openings."""
    candidates: Sizes = (25, 100, 400)
    """Of a turn, in the smallest of `catalogues`; windows have the longest of `prompts`."""
    reply: Tokens = 64
    """Longest reply of a conversation; attributes, list and form take 44."""
    devices: Sizes = (1, 2, 4, 8)
    """Forced CPU devices along `data`, which share out the largest batch."""
    corpora: Sizes = (1, 4, 16)
    """Times as many training dialogues as `dialogues`."""
    starts: Sizes = (1, 4, 16)
    """The same for `ppo_redial.py --data.store`, from the files to its first supervised step, twice: with an empty store and with
    what it holds then. 64 takes seven minutes more."""
    dialogues: Cases = 10_000
    """Training dialogues of the simulated world, with ReDial's catalogue; 10,006 is ReDial."""
    world_items: Annotated[int, Range("[16, 100_000]")] = 6_924
    """Its catalogue."""
    context_tokens: Tokens = 256
    """Longest prompt that is made of it; the window is 20 turns, as in the preset `redial`."""
    repeats: Annotated[int, Range("[1, 100]")] = 3
    """Times every program is run; the least counts."""

    def __post_init__(self) -> None:
        check_numbers(self)
        names = (
            "batches",
            "prompts",
            "responses",
            "depths",
            "catalogues",
            "texts",
            "text_tokens",
            "turns",
            "groups",
            "candidates",
            "devices",
            "corpora",
            "starts",
        )
        for name in names:
            sizes = getattr(self, name)
            if not sizes or list(sizes) != sorted(set(sizes)):
                raise ValueError(f"--{name.replace('_', '-')} must be ascending numbers, at least one: got {sizes}")
        for name, least, most in (
            ("turns", 1, 5),
            ("groups", 2, 1_024),
            ("candidates", 2, self.catalogues[0]),
        ):
            sizes = getattr(self, name)
            if sizes[0] < least or sizes[-1] > most:
                raise ValueError(f"--{name} must lie between {least} and {most:,}: got {sizes}")
        if self.depths[0] != self.layers:
            raise ValueError(f"--depths {self.depths} must begin with --layers {self.layers}, the base")


PRESETS = {
    "growth": ("three sizes an axis", Config()),
    "debug": (
        "two sizes an axis, for tests",
        Config(
            run_dir=Path("runs/debug-bench-growth"),
            layers=1,
            width=32,
            words=300,
            batches=(8, 16),
            prompts=(16, 32),
            responses=(6, 12),
            depths=(1, 2),
            catalogues=(100, 1_000),
            texts=(8, 16),
            text_tokens=(16, 32),
            turns=(1, 2),
            groups=(2, 4),
            candidates=(8, 16),
            reply=48,
            devices=(1, 2),
            corpora=(1, 2),
            starts=(1, 2),
            dialogues=40,
            world_items=30,
            context_tokens=64,
            repeats=1,
        ),
    ),
}


def axes_of(config: Config) -> dict[str, list[tuple[int, Program]]]:
    """Axis to (size, program), ascending."""
    base = Program(
        name="growth",
        layers=config.layers,
        width=config.width,
        heads=4,
        mesh=MeshConfig(),
        batch=config.batches[0],
        prompt=config.prompts[0],
        response=config.responses[0],
        epochs=2,
        minibatches=2,
        microbatches=1,
        words=config.words,
        items=config.catalogues[0],
        positions=config.prompts[-1] + config.responses[-1],
    )
    largest = dataclasses.replace(base, batch=config.batches[-1])
    return {
        "batch": [(n, dataclasses.replace(base, batch=n)) for n in config.batches],
        "prompt": [(n, dataclasses.replace(base, prompt=n)) for n in config.prompts],
        "response": [(n, dataclasses.replace(base, response=n)) for n in config.responses],
        "layers": [(n, dataclasses.replace(base, layers=n)) for n in config.depths],
        "catalogue": [(n, dataclasses.replace(base, items=n)) for n in config.catalogues],
        "devices": [(n, dataclasses.replace(largest, mesh=MeshConfig(data=n))) for n in config.devices],
    }


def imitation_axes(config: Config) -> dict[str, list[tuple[int, Imitation]]]:
    """Axis of imitation to (size, step), ascending."""
    base = Imitation(
        layers=config.layers,
        width=config.width,
        heads=4,
        texts=config.texts[0],
        tokens=config.text_tokens[0],
        words=config.words,
        items=config.catalogues[0],
        positions=config.text_tokens[-1],
    )
    return {
        "imitation, texts": [(n, dataclasses.replace(base, texts=n)) for n in config.texts],
        "imitation, tokens": [(n, dataclasses.replace(base, tokens=n)) for n in config.text_tokens],
        "imitation, catalogue": [(n, dataclasses.replace(base, items=n)) for n in config.catalogues],
    }


def imitation_growth(config: Config) -> dict[str, list[dict[str, Any]]]:
    """Every step counted and run, each once."""
    axes = imitation_axes(config)
    steps = list(dict.fromkeys(step for points in axes.values() for _, step in points))
    as_text = [dataclasses.asdict(step) for step in steps]
    said = dict(zip(steps, imitation.apart("count", as_text), strict=True))
    for step, given in zip(steps, as_text, strict=True):
        said[step] |= imitation.apart("run", [given | {"repeats": config.repeats}])[0]
        notice(f"{step}: {said[step]}")
    return {axis: [{"size": size, **said[step]} for size, step in points] for axis, points in axes.items()}


def talk_axes(config: Config) -> dict[str, list[tuple[int, Talk]]]:
    """Axis of conversations to (size, update), ascending."""
    turns, groups, candidates = (sizes[len(sizes) // 2] for sizes in (config.turns, config.groups, config.candidates))
    base = Talk(
        layers=config.layers,
        width=config.width,
        heads=4,
        openings=4,
        group=groups,
        turns=turns,
        candidates=candidates,
        prompt=config.prompts[-1],
        response=config.reply,
        words=config.words,
        items=config.catalogues[0],
        dialogues=min(config.dialogues, 1_000),
    )
    return {
        "conversations, turns": [(n, dataclasses.replace(base, turns=n)) for n in config.turns],
        "conversations, group": [(n, dataclasses.replace(base, group=n)) for n in config.groups],
        "conversations, candidates": [(n, dataclasses.replace(base, candidates=n)) for n in config.candidates],
    }


def talk_growth(config: Config, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Every update of conversations counted and run, each once."""
    axes = talk_axes(config)
    talks = list(dict.fromkeys(talk for points in axes.values() for _, talk in points))
    # How many candidates there are is a matter of masks: the program is the same.
    programs = list(dict.fromkeys(talk.program for talk in talks))
    on_paper = dict(zip(programs, counted(programs, folder), strict=True))
    said = {talk: dict(on_paper[talk.program]) for talk in talks}
    for talk in talks:
        said[talk] |= conversations.apart(talk, config.repeats)
        notice(f"{talk}: {said[talk]}")
    return {axis: [{"size": size, **said[talk]} for size, talk in points] for axis, points in axes.items()}


def counted(programs: Sequence[Program], folder: Path) -> list[dict[str, float]]:
    """What every compiled program does, on one device."""
    said = compiled_apart(programs, folder)
    return [
        {
            **{phase: one["work"][phase]["flops"] for phase in ("decode", "passes", "update")},
            "temporaries": one["temporaries"],
        }
        for one in said
    ]


def enlarged(config: Config, folder: Path, times: int) -> Path:
    """The simulated world at ReDial's shape, with so many times its training dialogues; made where it is absent."""
    whole, one = folder / "1", folder / f"times-{times}"
    if not whole.exists():
        world = WorldConfig(n_items=config.world_items, n_train=config.dialogues, n_test=50, n_users=16)
        write_world(folder / "partial", world, 0).rename(whole)
    if not one.exists():
        growth.enlarge(whole, one, times)
    return one


def start_growth(config: Config, folder: Path) -> list[dict[str, float]]:
    """The command started with an empty store, and again, at every size; what it leaves behind is removed."""
    found = []
    for times in config.starts:
        one, work = enlarged(config, folder, times), folder / f"start-{times}"
        first = starts.first_step(one, work / "store", work / "first")
        again = starts.first_step(one, work / "store", work / "again")
        with (one / growth.FILES[0]).open("rb") as lines:
            count = sum(1 for _ in lines)
        kept = {"again_seconds": again["start_seconds"], "again_peak_mb": again["peak_mb"]}
        found.append({**first, **kept, "dialogues": float(count)})
        notice(f"start, {times} times: {found[-1]}")
        shutil.rmtree(work)
    return found


def corpus_growth(config: Config, folder: Path) -> list[dict[str, float]]:
    """The simulated world at ReDial's shape, read at every size."""
    found = []
    for times in config.corpora:
        one = enlarged(config, folder, times)
        size = growth.CorpusSize(str(one), config.words, 20, config.context_tokens)
        found.append(growth.apart("corpus", dataclasses.asdict(size)))
        notice(f"corpus, {times} times: {found[-1]}")
    return found


def axis_table(axis: str, points: Sequence[Mapping[str, Any]], columns: Mapping[str, tuple[str, str, float]]) -> str:
    """One axis: sizes down, numbers across, and the power of the last step."""
    shown = {key: column for key, column in columns.items() if all(key in point for point in points)}
    heads = [axis, *(f"{name}, {unit}" for name, unit, _ in shown.values())]
    rows = [
        [f"{point['size']:,}", *(f"{point[key] / one:,.4g}" for key, (_, _, one) in shown.items())] for point in points
    ]
    if len(points) > 1:
        sizes = [float(point["size"]) for point in points]
        powers = [list(growth.slopes(sizes, [point[key] for point in points]))[-1] for key in shown]
        rows.append(["power", *(f"{power:.2f}" for power in powers)])
    return markdown_table(heads, rows)


WORDS = (
    "*power*: log(c₂/c₁)/log(s₂/s₁) of the two largest sizes; 1 is linear, 0 does not grow. Operations and temporaries are counted "
    "in the compiled program (bfloat16, blocks computed again in the backward pass; imitation float32, nothing computed again); seconds "
    "are CPU seconds of all threads, on an accelerator those of the clock (float32), the least of several; the peak is that of the process, "
    "compilation included, on an accelerator that of its memory. Of `start` "
    "seconds are by the clock, one try each, but for `processor`; its peak counts pages of files that are mapped. Of conversations, what is counted "
    "leaves the seeker out; *outside programs* is a share of the wall's clock, in which all of the seeker's time counts as inside."
)


def columns_of(axis: str) -> Mapping[str, tuple[str, str, float]]:
    """What an axis of its own kind of work is measured by; nothing for those of the update."""
    if axis.startswith("conversations"):
        return TALK
    return IMITATION if axis.startswith("imitation") else OF_DATA.get(axis, {})


def report_text(found: Mapping[str, Sequence[Mapping[str, Any]]], figure: str, *, measured_on: str) -> str:
    """A table an axis."""
    parts = ["# How cost grows", f"Measured on: {measured_on}.", WORDS, figure]
    for axis, points in found.items():
        parts += [
            f"## {axis.capitalize()}",
            axis_table(axis, points, columns_of(axis) or {**COUNTED, **MEASURED}),
        ]
    return "\n\n".join(parts) + "\n"


def draw(found: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path) -> Path:
    """Every number over that of the smallest size, beside what a linear cost would be; devices share the work out."""
    panels = []
    for axis, points in found.items():
        columns = columns_of(axis) or (MEASURED if "update_seconds" in points[0] else COUNTED)
        times = [point["size"] / points[0]["size"] for point in points]
        lines = [
            plots.Line(
                f"{columns[key][0]}, {columns[key][1]}", times, [point[key] / points[0][key] for point in points]
            )
            for key in (TALK_DRAWN if columns is TALK else DRAWN.get(axis, tuple(columns)))
            if key != "tokens_per_second"  # The more the better: no cost.
        ]
        shared = axis == "devices"
        lines.append(plots.Line("1/size" if shared else "linear", times, [1 / one if shared else one for one in times]))
        panels.append(plots.Panel(axis, lines, "cost, times", x_label="size, times"))
    return plots.save(plots.small_multiples(panels, columns=3), folder, "growth")


def main(config: Config) -> Path:
    """1 programs counted, 2 programs run, 3 imitation, conversations and corpora, 4 table and figure."""
    # Every size is measured in a process of its own, which needs the accelerator that this one must not take.
    device = growth.device_kind()
    jax.config.update("jax_platforms", "cpu")
    with open_run(config.run_dir, config, trackers=()) as run:
        found: dict[str, list[dict[str, Any]]] = {}
        run_before: dict[Program, dict[str, float]] = {}  # Every axis begins with the same base.
        for axis, points in axes_of(config).items():
            if axis not in config.axes:
                continue
            # 1. Counted. One mesh a process.
            programs = [program for _, program in points]
            groups = [[program] for program in programs] if axis == "devices" else [programs]
            said = [one for group in groups for one in counted(group, run.path / "programs")]
            found[axis] = [{"size": size, **one} for (size, _), one in zip(points, said, strict=True)]
            # 2. Measured, where there are as many devices as the program wants.
            for (size, program), entry in zip(points, found[axis], strict=True):
                if axis != "devices" and program not in run_before:
                    run_before[program] = growth.apart(
                        "update", {**dataclasses.asdict(program), "repeats": config.repeats}
                    )
                entry |= run_before.get(program, {}) if axis != "devices" else {}
                notice(f"{axis} {size:,}: {entry}")
            write_json(run.path / "growth.json", found)
        # 3. Imitation; conversations; corpora read into memory, and the command started on them.
        if "imitation" in config.axes:
            found |= imitation_growth(config)
            write_json(run.path / "growth.json", found)
        if "conversations" in config.axes:
            found |= talk_growth(config, run.path / "programs")
            write_json(run.path / "growth.json", found)
        with tempfile.TemporaryDirectory(dir=run.path) as folder:
            for axis, measured in (("dialogues", corpus_growth), ("start", start_growth)):
                if axis in config.axes:
                    said = measured(config, Path(folder))
                    found[axis] = [{"size": int(one["dialogues"]), **one} for one in said]
                    write_json(run.path / "growth.json", found)
        # 4. Table and figure.
        picture = draw(found, run.path / "plots")
        report = run.path / "report.md"
        image = plots.image(picture.relative_to(run.path), "Cost over that of the smallest size")
        environment = read_json(run.path / "config.json")["environment"]
        measured_on = (
            f"{device} ({environment['cpu']}), JAX {environment['versions']['jax']}, commit {environment['commit']}"
        )
        text = report_text(found, image, measured_on=measured_on)
        write_text(report, text)
        print(text)
        print(f"report: {report}")
        return report


def command_line(arguments: list[str]) -> Config:
    """A preset (none means `growth`) with options on top."""
    return preset_and_options(PRESETS, arguments, __doc__)


if __name__ == "__main__":
    start(main, command_line)

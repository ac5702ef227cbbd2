"""What was measured, as JSON, as a Markdown table and as a picture."""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmark.ceilings import Ceilings
from benchmark.interleaving import Ratio, Round, ratios, seconds_of
from benchmark.workload import PHASES, Form, Workload
from rlhf_jax.reporting import plots

SHOWN = (*PHASES, "whole")
BYTES = {"float32": 4, "bfloat16": 2}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Everything about one workload."""

    workload: Workload
    rounds: Sequence[Round]
    quiet: bool
    """False where other processes disturbed even the best rounds."""
    forms: Mapping[str, Form]
    """By implementation."""
    first_call: Mapping[str, Mapping[str, float]]
    peak_bytes: Mapping[str, int]
    ceilings: Mapping[str, Ceilings]
    """By type of number."""
    environment: Mapping[str, Any]


def dtype_of(name: str) -> str:
    """The compute type an implementation's name tells."""
    return "bfloat16" if name.endswith("bf16") else "float32"


def medians(measured: Measurement) -> dict[str, dict[str, float]]:
    """Implementation to phase to median seconds."""
    return {
        name: {phase: statistics.median(seconds_of(measured.rounds, name, phase)) for phase in SHOWN}
        for name in measured.forms
    }


def shares(measured: Measurement) -> dict[str, dict[str, float]]:
    """Floor over median seconds; the floor is that of the useful work in this form at this type's ceilings."""
    found = {}
    for name, seconds in medians(measured).items():
        dtype = dtype_of(name)
        ceilings = measured.ceilings[dtype]
        found[name] = {
            phase: measured.workload.floor_seconds(
                phase,
                measured.forms[name],
                matmul=ceilings.matmul,
                bandwidth=ceilings.bandwidth,
                bytes_per_number=BYTES[dtype],
            )
            / seconds[phase]
            for phase in SHOWN
        }
    return found


def tokens_per_second(measured: Measurement) -> dict[str, dict[str, float]]:
    """Response tokens over the seconds of the rollout and of the whole iteration."""
    tokens = measured.workload.batch * measured.workload.response
    return {
        name: {phase: tokens / seconds[phase] for phase in ("rollout", "whole")}
        for name, seconds in medians(measured).items()
    }


def as_json(measured: Measurement) -> dict[str, Any]:
    """The entry of one workload in `bench.json`."""
    pairs = ratios(measured.rounds, phases=SHOWN)
    return {
        "seconds": {
            name: {phase: seconds_of(measured.rounds, name, phase) for phase in SHOWN} for name in measured.forms
        },
        "ratios": {name: one.median for name, one in pairs.items()},
        "ratio_pairs": {name: list(one.pairs) for name, one in pairs.items()},
        "medians": medians(measured),
        "share_of_ceiling": shares(measured),
        "tokens_per_second": tokens_per_second(measured),
        "first_call_seconds": {name: dict(seconds) for name, seconds in measured.first_call.items()},
        "peak_bytes": dict(measured.peak_bytes),
        "foreign_cpu_share": [dict(one.foreign) for one in measured.rounds],
        "quiet": measured.quiet,
        "ceilings": {name: dataclasses.asdict(one) for name, one in measured.ceilings.items()},
        "workload": dataclasses.asdict(measured.workload),
        "environment": dict(measured.environment),
    }


def write_json(path: Path, measured: Sequence[Measurement]) -> None:
    """Adds these workloads to the file, replacing earlier entries of the same names."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found |= {one.workload.name: as_json(one) for one in measured}
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def markdown(measured: Sequence[Measurement]) -> str:
    """Tables of all workloads."""
    return "\n\n".join(_section(one) for one in measured) + "\n"


def _section(measured: Measurement) -> str:
    workload = measured.workload
    rate = {
        dtype: f"{dtype} {one.matmul / 1e9:.0f} GFLOP/s, {one.bandwidth / 1e9:.0f} GB/s"
        for dtype, one in measured.ceilings.items()
    }
    lines = [
        f"## {workload.name}",
        f"{workload.n_layer} layers, width {workload.n_embd}, vocabulary {workload.vocab_size}; batch {workload.batch}, "
        f"prompt {workload.prompt}, response {workload.response}, {workload.epochs} epochs, {workload.minibatches} "
        f"minibatch(es), {workload.microbatches} microbatch(es). {len(measured.rounds)} interleaved rounds"
        + ("." if measured.quiet else "; **other processes were running: ratios hold better than seconds.**"),
        "",
        f"Ceilings: {'; '.join(rate.values())}.",
        "",
        "| implementation | " + " | ".join(f"{phase}, s" for phase in SHOWN) + " | response tokens/s | peak memory |",
        "|---|" + "---|" * (len(SHOWN) + 2),
    ]
    share, speed = shares(measured), tokens_per_second(measured)
    for name, seconds in medians(measured).items():
        cells = []
        for phase in SHOWN:
            all_of_them = seconds_of(measured.rounds, name, phase)
            spread = f"{_digits(min(all_of_them))}–{_digits(max(all_of_them))}"
            cells.append(f"{_digits(seconds[phase])} ({spread}) {100 * share[name][phase]:.0f} %")
        memory = f"{measured.peak_bytes[name] / 2**30:.2f} GiB" if name in measured.peak_bytes else "–"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {speed[name]['whole']:.0f} | {memory} |")
    lines += ["", "Median (least–most) and share of the floor that the ceilings allow for the useful work.", ""]
    found = ratios(measured.rounds, phases=SHOWN)
    if found:
        lines += ["| ours is faster by | median | least–most |", "|---|---|---|"]
        lines += [f"| {name} | {_ratio(one)} |" for name, one in found.items()]
        lines.append("")
    lines.append(
        "First call, compilation included: " + "; ".join(_first(measured, name) for name in measured.forms) + "."
    )
    return "\n".join(lines)


def _first(measured: Measurement, name: str) -> str:
    return f"{name} " + ", ".join(f"{phase} {_digits(s)} s" for phase, s in measured.first_call[name].items())


def _ratio(one: Ratio) -> str:
    return f"{one.median:.2f}× | {one.spread[0]:.2f}–{one.spread[1]:.2f}"


def _digits(seconds: float) -> str:
    """Three significant digits."""
    return f"{seconds:.3g}"


def picture(measured: Sequence[Measurement]) -> Figure:
    """Stacked bars: rollout, scoring and update of every implementation, one panel a workload; a line is one program."""
    with matplotlib.rc_context(plots.STYLE):
        height = 0.9 + sum(0.55 + 0.3 * len(one.forms) for one in measured)
        figure = Figure(figsize=(plots.WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(
            len(measured), 1, squeeze=False, height_ratios=[len(one.forms) + 0.8 for one in measured]
        )[:, 0]
        for axes, one in zip(panels, measured, strict=True):
            found = medians(one)
            names = list(found)
            left = [0.0] * len(names)
            for phase, colour in zip(PHASES, plots.COLOURS, strict=False):
                widths = [found[name][phase] for name in names]
                axes.barh(names, widths, left=left, color=colour, label=phase, height=0.65)
                left = [a + b for a, b in zip(left, widths, strict=True)]
            for row, name in enumerate(names):
                whole = found[name]["whole"]
                axes.plot([whole, whole], [row - 0.42, row + 0.42], color="black", linewidth=1.5)
                axes.annotate(
                    f"{_digits(whole)} s",
                    (max(whole, left[row]), row),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
            axes.invert_yaxis()
            axes.grid(axis="y", visible=False)
            axes.margins(x=0.12)
            axes.set_title(f"{one.workload.name}: one PPO iteration, batch {one.workload.batch}")
            axes.set_xlabel("seconds, median; the black line is the whole iteration as measured at once")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=len(PHASES))
        return figure

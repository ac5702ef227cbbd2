"""Figures of a report in one style: colour-blind safe, readable at the width of a page, written as PNG and SVG."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rlhf_jax.evaluation.results import Result

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito 2008; told apart also by people with colour-vision deficiency. Order of use."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Sparse series carry a marker as well, so that colour is never the only difference."""
GREY = "#666666"
WIDTH = 9.0
"""Inches; at 150 dpi as wide as a rendered report."""
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 5),
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "svg.hashsalt": "rlhf_jax",
    "svg.fonttype": "none",
}
STEPS = (1, 2, 2.5, 5, 10)
"""Tick distances that can be read without arithmetic."""
SMOOTH_FROM = 60
"""Series with at least this many points are drawn pale, under their running mean."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One series; points that are not finite are gaps."""

    label: str
    x: Sequence[float | int]
    y: Sequence[float | int]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One small plot."""

    title: str
    lines: Sequence[Line]
    unit: str = ""
    levels: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Horizontal reference lines: label to value."""
    x_label: str = "update"
    bottom: float | None = None
    """Where the axis begins, for quantities that cannot be lower: noise then looks as small as it is."""


def small_multiples(
    panels: Sequence[Panel], *, columns: int = 3, share_rows: bool = False, legend_below: bool = False
) -> Figure:
    """Panels on a grid, read row by row.

    Args:
      share_rows: panels of one row have the same scale, because they are to be compared.
      legend_below: the lines are the same in every panel and named once, under them.

    Raises: ValueError without a panel.
    """
    if not panels:
        raise ValueError("no panel to draw")
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    with matplotlib.rc_context(STYLE):
        figure = _figure(WIDTH * (columns / 3 if columns < 3 else 1.0), 2.15 * rows + 0.25)
        for index, panel in enumerate(panels):
            first = figure.axes[index - index % columns] if share_rows and index % columns else None
            _draw(figure.add_subplot(rows, columns, index + 1, sharey=first), panel, legend=not legend_below)
        room = 0.0
        if legend_below:
            marks = {
                label: line
                for axes in figure.axes
                for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
            }
            figure.legend(marks.values(), marks.keys(), loc="lower center", ncols=min(6, len(marks)))
            room = 0.35 * math.ceil(len(marks) / 6) / figure.get_figheight()
        figure.tight_layout(h_pad=1.4, w_pad=1.4, rect=(0, room, 1, 1))
    return figure


def forest(
    groups: Mapping[str, Sequence[tuple[str, Result]]],
    *,
    x_label: str = "value",
    reference: float | None = None,
    kinds: Mapping[str, str] | None = None,
    one_scale: bool = True,
) -> Figure:
    """Values with intervals, one panel per group, one line per (label, result); for comparing systems.

    Args:
      reference: where "nothing" lies, drawn as a line down every panel. None draws none.
      kinds: label to the kind of thing it is; one colour and marker a kind, named under the panels. None gives every label
        its own.
      one_scale: panels with a reference have the same scale; off where they measure different things.

    Raises: ValueError without a result.
    """
    groups = {title: list(entries) for title, entries in groups.items() if entries}
    if not groups:
        raise ValueError("no result to draw")
    columns = min(3, len(groups))
    rows = math.ceil(len(groups) / columns)
    labels = list(dict.fromkeys(label for entries in groups.values() for label, _ in entries))
    names = list(dict.fromkeys((kinds or {}).get(label, label) for label in labels))
    with matplotlib.rc_context(STYLE):
        figure = _figure(WIDTH * (columns / 3 if columns < 3 else 1.0), (0.26 * len(labels) + 0.95) * rows)
        for index, (title, entries) in enumerate(groups.items()):
            axes = figure.add_subplot(rows, columns, index + 1)
            for label, result in entries:
                place = labels.index(label)
                style = place if kinds is None else names.index(kinds[label])
                colour, marker = _style(style)
                low, high = result.interval or (result.value, result.value)
                axes.plot([low, high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
                axes.plot([result.value], [place], marker=marker, color=colour, markersize=5)
            if reference is not None:
                axes.axvline(reference, color=GREY, linewidth=1.0, zorder=0)
            axes.set_title(title)
            axes.set_yticks(range(len(labels)), labels if index % columns == 0 else [""] * len(labels))
            axes.set_ylim(len(labels) - 0.5, -0.5)
            if reference is None or one_scale:
                axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
            axes.grid(axis="y", visible=False)
            axes.set_xlabel(x_label)
        if reference is not None and one_scale:
            limits = [bound for axes in figure.axes for bound in axes.get_xlim()]
            for axes in figure.axes:
                axes.set_xlim(min(limits), max(limits))
        if kinds is not None:
            marks = []
            for style, name in enumerate(names):
                colour, marker = _style(style)
                marks.append(Line2D([], [], color=colour, marker=marker, label=name))
            figure.legend(handles=marks, loc="lower center", ncols=len(marks))
        # The legend of kinds stands under the panels.
        figure.tight_layout(h_pad=1.2, w_pad=1.0, rect=(0, 0 if kinds is None else 0.05, 1, 1))
    return figure


def _style(place: int) -> tuple[str, str]:
    """Colour and marker; where the colours begin again, the markers do not."""
    again, colour = divmod(place, len(COLOURS))
    return COLOURS[colour], MARKERS[(colour + 3 * again) % len(MARKERS)]


def path(panels: Sequence[Panel], *, colour_label: str, order: Sequence[float]) -> Figure:
    """Panels above each other over a shared x axis, points joined in the order of training and shaded by it.

    Args:
      panels: one line each, the points of all at the same places.
      order: what the shade means, one number per point (the update).
    """
    with matplotlib.rc_context(STYLE):
        figure = _figure(WIDTH * 0.72, 2.0 * len(panels) + 0.4)
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        shade = None
        for index, (axes, panel) in enumerate(zip(grid, panels, strict=True)):
            line = panel.lines[0]
            axes.plot(line.x, line.y, color=GREY, linewidth=0.9, zorder=1)
            shade = axes.scatter(line.x, line.y, c=list(order), cmap="cividis", s=26, zorder=2, linewidths=0)
            _levels(axes, panel)
            axes.set_title(panel.title)
            axes.set_ylabel(panel.unit)
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
            if index == len(panels) - 1:
                axes.set_xlabel(panel.x_label)
            if panel.levels:
                axes.legend(loc="best")
        figure.tight_layout(h_pad=1.2)
        figure.colorbar(
            shade, ax=list(grid), label=colour_label, pad=0.02, aspect=40, ticks=MaxNLocator(6, integer=True)
        )
    return figure


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Writes `name.png` and `name.svg` into `folder`; the same figure gives the same bytes.

    Returns: the path of the PNG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    return folder / f"{name}.png"


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _draw(axes: Axes, panel: Panel, *, legend: bool = True) -> None:
    for index, line in enumerate(panel.lines):
        colour = COLOURS[index % len(COLOURS)]
        x, y = np.asarray(line.x, float), np.asarray(line.y, float)
        if len(x) >= SMOOTH_FROM:
            axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.3)
            axes.plot(x, running_mean(y, max(3, len(y) // 20)), color=colour, label=line.label)
        else:
            marker = MARKERS[index % len(MARKERS)] if len(x) <= 25 else None
            axes.plot(x, y, color=colour, marker=marker, markersize=3.8, label=line.label)
    _levels(axes, panel)
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.unit)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.set_xlim(left=0)
    if panel.bottom is not None:
        # A line far from the bottom has a margin of its own range, which is nothing here: its marks would be cut.
        top = axes.get_ylim()[1]
        axes.set_ylim(panel.bottom, top + 0.06 * (top - panel.bottom))
    if legend and (len(panel.lines) > 1 or panel.levels):
        # Room for the legend above the lines, where it would else have to lie on one.
        low, high = axes.get_ylim()
        entries = len(panel.lines) + len(panel.levels)
        axes.set_ylim(low, high + 0.13 * entries * (high - low))
        axes.legend(loc="best", handlelength=1.4, labelspacing=0.25)


def _levels(axes: Axes, panel: Panel) -> None:
    for index, (label, value) in enumerate(panel.levels.items()):
        axes.axhline(value, color=GREY, linewidth=1.0, linestyle=("--", ":")[index % 2], label=label, zorder=0)


def running_mean(y: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over `width` points, fewer at the ends; gaps are left out."""
    finite = np.isfinite(y)
    kernel = np.ones(width)
    sums = np.convolve(np.where(finite, y, 0.0), kernel, mode="same")
    counts = np.convolve(finite.astype(float), kernel, mode="same")
    return np.where(counts > 0, sums / np.maximum(counts, 1.0), np.nan)


def image(path: Path, caption: str) -> str:
    """A stored plot with its caption, in Markdown; `path` lies in the folder `plots` beside the report."""
    return f"![{caption}](plots/{path.name})\n\n*{caption}*"

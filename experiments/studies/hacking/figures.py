"""Figures of the way from the reference: gains of proxy and truth against distance, and when which signature warned."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from rlhf_jax.reporting.plots import COLOURS, GREY, STEPS, STYLE, WIDTH

Floats = NDArray[np.float64]
PROXY, TRUTH = COLOURS[0], COLOURS[1]
FALL = "#DDDDDD"
DASHES: Mapping[str, str] = {"quadratic": "--", "logarithmic": ":"}


class Points(NamedTuple):
    """One line of a panel."""

    distance: Floats
    """√KL. [E]"""
    proxy: Floats
    """Gain. [E]"""
    truth: Floats
    """Gain. [E]"""


class WayPanel(NamedTuple):
    """One way: its seeds thin, their mean bold."""

    title: str
    seeds: Sequence[Points]
    mean: Points
    curves: Mapping[str, tuple[Floats, Floats]]
    """Form of the fit to (distance, gain of the truth)."""
    fall: tuple[float, float] | None
    """Distances of the best evaluation and of the first below it by more than chance."""


class TimelinePanel(NamedTuple):
    """One way: for each signature and seed the update at which it warned."""

    title: str
    rows: Mapping[str, Sequence[tuple[int | None, int]]]
    """Signature to (update or None, 1 rose or −1 fell) by seed."""
    fall: tuple[int, int] | None
    """Updates of the best evaluation and of the first below it by more than chance."""
    end: int
    """Updates of the way."""


def along_the_path(panels: Sequence[WayPanel], *, columns: int, x_label: str, y_label: str) -> Figure:
    """Gains of proxy and truth against √KL, all panels on one scale.

    Raises: ValueError without a panel.
    """
    with matplotlib.rc_context(STYLE):
        figure, grid = _grid(len(panels), columns, 2.05)
        for place, (axes, panel) in enumerate(zip(grid, panels, strict=True)):
            _shade(axes, panel.fall)
            axes.axhline(0.0, color=GREY, linewidth=0.8, zorder=0)
            for points in panel.seeds:
                axes.plot(points.distance, points.proxy, color=PROXY, linewidth=0.7, alpha=0.45)
                axes.plot(points.distance, points.truth, color=TRUTH, linewidth=0.7, alpha=0.45)
            axes.plot(panel.mean.distance, panel.mean.proxy, color=PROXY, linewidth=2.0, marker="o", markersize=3.2)
            axes.plot(panel.mean.distance, panel.mean.truth, color=TRUTH, linewidth=2.0, marker="s", markersize=3.2)
            for form, (d, gain) in panel.curves.items():
                axes.plot(d, gain, color=COLOURS[6], linewidth=1.1, linestyle=DASHES[form])
            _label(axes, panel.title, place, columns, len(panels), x_label, y_label)
        marks = [
            Line2D([], [], color=PROXY, linewidth=2.0, marker="o", markersize=3.2, label="proxy (reward model)"),
            Line2D([], [], color=TRUTH, linewidth=2.0, marker="s", markersize=3.2, label="truth"),
            *(Line2D([], [], color=COLOURS[6], linestyle=DASHES[form], label=f"truth, {form} fit") for form in DASHES),
            *_fall_mark(panels),
        ]
        return _finished(figure, marks, one_scale=True)


def timeline(panels: Sequence[TimelinePanel], *, columns: int) -> Figure:
    """When each signature left its starting band, seed by seed; a cross at the end is a seed in which it never did.

    Raises: ValueError without a panel.
    """
    with matplotlib.rc_context(STYLE):
        figure, grid = _grid(len(panels), columns, 1.95)
        for place, (axes, panel) in enumerate(zip(grid, panels, strict=True)):
            _shade(axes, panel.fall)
            names = list(panel.rows)
            for row, name in enumerate(names):
                seeds = panel.rows[name]
                for number, (update, direction) in enumerate(seeds):
                    height = row + 0.22 * (number - (len(seeds) - 1) / 2)
                    if update is None:
                        axes.plot([panel.end], [height], marker="x", color=GREY, markersize=4, clip_on=False)
                    else:
                        marker = "^" if direction > 0 else "v"
                        axes.plot(
                            [update], [height], marker=marker, color=COLOURS[row % 6], markersize=5, clip_on=False
                        )
            axes.set_yticks(range(len(names)), names if place % columns == 0 else [""] * len(names))
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_xlim(0, panel.end)
            _label(axes, panel.title, place, columns, len(panels), "updates done", "")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=STEPS))
        marks = [
            Line2D([], [], color=GREY, marker="^", linestyle="", label="rose out of its band"),
            Line2D([], [], color=GREY, marker="v", linestyle="", label="fell out of it"),
            Line2D([], [], color=GREY, marker="x", linestyle="", label="never left it"),
            *_fall_mark(panels),
        ]
        return _finished(figure, marks, one_scale=False)


def _grid(n: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    if not n:
        raise ValueError("no panel to draw")
    rows = math.ceil(n / columns)
    figure = Figure(figsize=(WIDTH * max(min(columns, 4), 2) / 4, height * rows + 0.75))
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(n)]


def _shade(axes: Axes, fall: tuple[float, float] | tuple[int, int] | None) -> None:
    if fall is not None:
        axes.axvspan(min(fall), max(fall), color=FALL, zorder=0, linewidth=0)


def _fall_mark(panels: Sequence[WayPanel] | Sequence[TimelinePanel]) -> list[Patch]:
    """The legend's entry for what is shaded; none where no panel is."""
    fell = any(panel.fall is not None for panel in panels)
    return [Patch(color=FALL, label="from the best truth to the first shown fall")] if fell else []


def _label(axes: Axes, title: str, place: int, columns: int, n: int, x_label: str, y_label: str) -> None:
    axes.set_title(title)
    if place + columns >= n:
        axes.set_xlabel(x_label)
    if place % columns == 0:
        axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))


def _finished(figure: Figure, marks: Sequence[Line2D | Patch], *, one_scale: bool) -> Figure:
    if one_scale:
        for axis in ("x", "y"):
            limits = [bound for axes in figure.axes for bound in getattr(axes, f"get_{axis}lim")()]
            for axes in figure.axes:
                getattr(axes, f"set_{axis}lim")(0.0 if axis == "x" else min(limits), max(limits))
        for axes in figure.axes:
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    height = figure.get_figheight()
    beside = 3 if figure.get_figwidth() > 6 else 2
    figure.legend(handles=marks, loc="lower center", ncols=beside)
    figure.tight_layout(h_pad=1.2, w_pad=0.8, rect=(0, (0.1 + 0.18 * math.ceil(len(marks) / beside)) / height, 1, 1))
    return figure

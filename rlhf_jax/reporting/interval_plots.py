"""Points with intervals over a quantity, in the style of `plots`: calibration and learning curves."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from rlhf_jax.reporting.plots import COLOURS, GREY, MARKERS, STEPS, STYLE, WIDTH


@dataclasses.dataclass(frozen=True)
class Points:
    """One series."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    """Lower ends of the intervals."""
    high: Sequence[float]
    """Upper ends."""


@dataclasses.dataclass(frozen=True)
class PointsPanel:
    """One small plot."""

    title: str
    series: Sequence[Points]
    x_label: str
    y_label: str = ""
    diagonal: bool = False
    """Whether the line y = x is drawn, on which predictions are calibrated."""
    levels: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Horizontal reference lines: label to value."""
    doubling: bool = False
    """A logarithmic x axis with a tick at every point."""


def with_intervals(panels: Sequence[PointsPanel], *, columns: int = 2, share_y: bool = False) -> Figure:
    """Panels on a grid, read row by row.

    Args:
      share_y: all panels have one scale, because they are to be compared.
    Raises: ValueError without a panel.
    """
    if not panels:
        raise ValueError("no panel to draw")
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * min(1.0, columns / 2), 2.6 * rows + 0.3))
        first = None
        for number, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, number + 1, sharey=first if share_y else None)
            first = first or axes
            for place, series in enumerate(panel.series):
                colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
                x, y = np.asarray(series.x, float), np.asarray(series.y, float)
                lengths = np.maximum(np.stack([y - np.asarray(series.low), np.asarray(series.high) - y]), 0.0)
                # Beside each other: intervals at the same place would hide one another.
                if len(panel.series) > 1:
                    shift = (place - (len(panel.series) - 1) / 2) * 0.035
                    x = x * 2**shift if panel.doubling else x + shift * np.ptp(x)
                style = {"color": colour, "marker": marker, "markersize": 4.2, "linewidth": 1.2, "elinewidth": 1.1}
                axes.errorbar(x, y, yerr=lengths, label=series.label, **style)
            if panel.diagonal:
                ends = [value for series in panel.series for value in series.x]
                line = [min(ends), max(ends)]
                axes.plot(line, line, color=GREY, linewidth=1.0, linestyle="--", label="y = x", zorder=0)
            for label, value in panel.levels.items():
                axes.axhline(value, color=GREY, linewidth=1.0, linestyle="--", label=label, zorder=0)
            axes.set_title(panel.title)
            axes.set_xlabel(panel.x_label)
            axes.set_ylabel(panel.y_label)
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
            if panel.doubling:
                axes.set_xscale("log", base=2)
                axes.xaxis.set_major_locator(FixedLocator(sorted({x for series in panel.series for x in series.x})))
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
                axes.xaxis.set_minor_locator(NullLocator())
            else:
                axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        handles = {
            label: handle
            for axes in figure.axes
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        room = 0.0
        if len(handles) > 1:
            # Under the panels, where it lies on no point; as many entries a line as the figure has room for.
            across = min(3 * columns, len(handles))
            figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=across)
            room = (0.15 + 0.2 * math.ceil(len(handles) / across)) / figure.get_figheight()
        figure.tight_layout(h_pad=1.2, w_pad=1.2, rect=(0, room, 1, 1))
    return figure

"""Numbers of a study as people read them: one cell, a table of systems × measures, a forest of differences, a verdict."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from rlhf_jax.evaluation.results import Result, Split, difference_name, shown_system
from rlhf_jax.reporting import plots, result_tables


class Measure(NamedTuple):
    """One column of a study's tables."""

    label: str
    protocol: str
    metric: str
    decoding: str | None = None
    """How the replies are drawn; None: the split's own cases, and greedy replies to them."""
    users: bool = False
    """Whether the cases are users who met the policy."""

    def at(self, split: str) -> str:
        """What the column's numbers were measured on, where the study's is `split`."""
        return str(Split.parse(split).drawn(self.decoding, users=self.users))


def find(results: Sequence[Result], system: str, measure: Measure, split: str) -> Result | None:
    """The entry of one system (or difference) in one column; None where it was not measured."""
    wanted = (f"{system}/{measure.metric}", measure.protocol, measure.at(split))
    return next((r for r in results if (r.name, r.protocol, r.split) == wanted), None)


def measured_in(results: Sequence[Result], measures: Sequence[Measure], split: str) -> list[Measure]:
    """The columns that any system has an entry in."""
    there = {(r.metric, r.protocol, r.split) for r in results}
    return [m for m in measures if (m.metric, m.protocol, m.at(split)) in there]


def table(results: Sequence[Result], systems: Sequence[str], measures: Sequence[Measure], split: str) -> str:
    """Systems (or differences) against columns, as Markdown."""
    columns = measured_in(results, measures, split)
    rows = [
        [
            shown_system(system),
            *(result_tables.cell(find(results, system, measure, split)) for measure in columns),
        ]
        for system in systems
    ]
    return result_tables.markdown_table(["", *(measure.label for measure in columns)], rows)


def forest(
    results: Sequence[Result], systems: Sequence[str], base: str, measures: Sequence[Measure], split: str
) -> Figure:
    """Systems minus `base` with intervals, a panel a column, each on a scale of its own, 0 marked."""
    panels = {
        measure.label.replace("`", ""): [
            (system, found)
            for system in systems
            if (found := find(results, difference_name(system, base), measure, split)) is not None
        ]
        for measure in measured_in(results, measures, split)
    }
    return plots.forest(panels, x_label=f"minus {base}", reference=0.0, one_scale=False)


def verdict(result: Result) -> str:
    """What a difference shows, with its numbers."""
    if result.interval is None:
        return f"{result.value:+.4f}, no interval"
    numbers = f"{result_tables.cell(result).rsplit('] ', 1)[0]}]"
    seeds = len(set(result.seeds))
    if not result.interval_excludes_zero:
        return f"no difference shown, {numbers}"
    if not result.shows_difference:
        why = f"with {seeds} seed{'s' if seeds != 1 else ''}" if seeds < 3 else "because the seeds differ"
        return f"no claim {why}, {numbers}"
    return f"{'higher' if result.value > 0 else 'lower'}, {numbers}"

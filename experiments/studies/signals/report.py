"""The signal study's numbers: association of every signal with every judgement, as results, a table and a figure."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlhf_jax.data.exchanges import JudgedExchange
from rlhf_jax.evaluation.association import auc_estimate, concordance_estimate, spearman_estimate
from rlhf_jax.evaluation.bootstrap import Estimate
from rlhf_jax.evaluation.results import Result
from rlhf_jax.reporting import plots
from studies.signals.measure import SIGNALS, Table

Floats = NDArray[np.float64]
PROTOCOL = "signals"
METRICS: Mapping[str, tuple[str, str, float]] = {
    "satisfaction": ("spearman", "Spearman's ρ with USS's satisfaction of the user's turn", 0.0),
    "liked": ("auc", "AUC of liked against disliked items", 0.5),
    "rating": (
        "concordance",
        "share of pairs of replies to one context, rated by one person, in the rater's order",
        0.5,
    ),
}
"""Judgement to metric, what it is, and its value for a signal that says nothing."""
HEADINGS = {"satisfaction": "satisfaction, ρ", "liked": "liked, AUC", "rating": "reply rating, concordance"}


def associations(
    judgement: str,
    cases: Sequence[JudgedExchange],
    table: Table,
    *,
    groups: NDArray[np.int64],
    split: str,
    replicates: int,
) -> list[Result]:
    """One result a signal, intervals over dialogues (over fragments for ratings).

    Args:
      judgement: key of METRICS.
      groups: cases that one person compared have the same number; used for ratings. [N]
    """
    metric, text, _ = METRICS[judgement]
    keys = [case.dialogue.dialogue_id for case in cases]
    truth = np.array([case.judgement for case in cases], float)
    found = []
    for name, values in table.items():
        estimate = _estimate(metric, values, truth, groups, keys, replicates)
        found.append(
            Result(
                name=f"{name}/{metric}",
                value=estimate.value,
                n=estimate.n,
                protocol=PROTOCOL,
                split=split,
                interval=estimate.interval if all(map(math.isfinite, estimate.interval)) else None,
                seeds=(),
                definition=f"{text}; signal: {SIGNALS[name][1]}",
            )
        )
    return found


def _estimate(
    metric: str, values: Floats, truth: Floats, groups: NDArray[np.int64], keys: list[str], replicates: int
) -> Estimate:
    if metric == "spearman":
        return spearman_estimate(values, truth, keys, replicates=replicates)
    if metric == "auc":
        return auc_estimate(values, truth, keys, replicates=replicates)
    return concordance_estimate(values, truth, groups, keys, replicates=replicates)


def informative(result: Result) -> bool:
    """Whether the interval excludes the value of a signal that says nothing."""
    nothing = next(nothing for metric, _, nothing in METRICS.values() if metric == result.metric)
    return result.interval is not None and not result.interval[0] <= nothing <= result.interval[1]


def markdown_table(results: Mapping[str, Sequence[Result]]) -> str:
    """Signals down, judgements across; bold where the interval excludes "says nothing"."""
    cells = {(judgement, one.system): one for judgement, found in results.items() for one in found}
    lines = [
        f"| signal | family | {' | '.join(HEADINGS[judgement] for judgement in results)} |",
        f"|---|---|{'---|' * len(results)}",
    ]
    for name, (family, _) in SIGNALS.items():
        row = [_cell(cells.get((judgement, name))) for judgement in results]
        if any(cell != "–" for cell in row):
            lines.append(f"| {name} | {family} | {' | '.join(row)} |")
    return "\n".join(lines)


def _cell(result: Result | None) -> str:
    if result is None or result.interval is None:
        return "–"
    value = f"**{result.value:.3f}**" if informative(result) else f"{result.value:.3f}"
    return f"{value} [{result.interval[0]:.3f}, {result.interval[1]:.3f}], n {result.n:,}"


def verdicts(results: Mapping[str, Sequence[Result]]) -> list[str]:
    """One line a judgement: the paper's signals that follow it, that point against it, and that say nothing of it."""
    lines = []
    for judgement, found in results.items():
        nothing = METRICS[judgement][2]
        said: dict[str, list[str]] = {"follow it": [], "point against it": [], "say nothing": []}
        for one in found:
            if SIGNALS[one.system][0] == "control" or one.interval is None:
                continue
            way = "say nothing" if not informative(one) else "follow it" if one.value > nothing else "point against it"
            said[way].append(f"{one.system} {one.value:.3f}")
        text = "; ".join(f"{way}: {', '.join(names) or 'none'}" for way, names in said.items())
        lines.append(f"- Verdict, {HEADINGS[judgement]}: {text}.")
    return lines


def report_text(results: Mapping[str, Sequence[Result]]) -> str:
    """The study's `report.md`."""
    meanings = [f"- {name}: {text}." for name, (_, text) in SIGNALS.items()]
    metrics = [f"- {HEADINGS[judgement]}: {METRICS[judgement][1]}." for judgement in results]
    parts = [
        "# Which implicit signals carry information",
        (
            "95 % bootstrap intervals over dialogues (over fragments for ratings); **bold** where the interval excludes a "
            "signal that says nothing (ρ = 0, AUC and concordance = ½)."
        ),
        "\n".join(verdicts(results)),
        markdown_table(results),
        "![Association of every signal with every judgement](plots/signals.png)",
        "\n".join(metrics),
        "\n".join(meanings),
    ]
    return "\n\n".join(parts) + "\n"


def figure(results: Mapping[str, Sequence[Result]], folder: Path) -> Path:
    """One panel a judgement, one line a signal, on one scale: ρ as it is, AUC and concordance as 2x − 1."""
    panels: dict[str, list[tuple[str, Result]]] = {}
    for judgement, found in results.items():
        metric, _, nothing = METRICS[judgement]
        title = HEADINGS[judgement].split(",")[0] + (
            " (ρ)" if nothing == 0 else f" (2·{metric.replace('auc', 'AUC')} − 1)"
        )
        by_name = {one.system: one for one in found}
        panels[title] = [(name, _centred(by_name[name], nothing)) for name in SIGNALS if name in by_name]
    kinds = {name: family for name, (family, _) in SIGNALS.items()}
    drawn = plots.forest(panels, x_label="association with the judgement", reference=0.0, kinds=kinds)
    return plots.save(drawn, folder, "signals")


def _centred(result: Result, nothing: float) -> Result:
    def move(value: float) -> float:
        return 2 * value - 1 if nothing else value

    interval = None if result.interval is None else (move(result.interval[0]), move(result.interval[1]))
    return Result(
        name=result.name,
        value=move(result.value),
        n=result.n,
        protocol=result.protocol,
        split=result.split,
        interval=interval,
        seeds=(),
        definition=result.definition,
    )

"""The gate before PPO: how well reward models correlate with held-out weak labels, and whether that is enough.

`run_table` is of one run's results, `section` of the models that a study optimises against, and `study_table` of results
over seeds, whose intervals are held against the gate.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.evaluation.results import Result, exclude_zero
from rlhf_jax.reporting.result_tables import cell, markdown_table
from rlhf_jax.runtime.files import read_object, write_json
from rlhf_jax.runtime.run import RunDirectory

GATE = 0.6
"""Held-out Pearson correlation a reward model needs before PPO, where a run sets no other."""
SUM = "reward"
"""Names the weighted sum beside its components."""
FILE = "gates.json"
Gate = Mapping[str, Any]
"""What `reward.train` reports of one reward model: `pearson` by component and `reward` (the weighted sum), `threshold`, `failed`."""


def save(run: RunDirectory, gates: Mapping[str, Gate]) -> None:
    """Stores a foundation's gates with a seed of a study, by form of the sentiment signal."""
    write_json(run.path / FILE, gates)


def read(folders: Sequence[Path]) -> dict[str, list[Gate]]:
    """What `save` stored in the seeds' folders, by form; of seeds that an older version began, nothing."""
    found: dict[str, list[Gate]] = {}
    for folder in folders:
        for form, gate in (read_object(folder / FILE) if (folder / FILE).exists() else {}).items():
            found.setdefault(form, []).append(gate)
    return found


def section(gates: Mapping[str, Sequence[Gate]]) -> list[str]:
    """A chapter of a report: held-out Pearson of every reward model, mean over seeds, and what is below the gate.

    Args:
      gates: by the reward model's name, one a seed. Empty: no chapter.
    """
    if not gates:
        return []
    names = dict.fromkeys(
        [SUM, *(name for of_seeds in gates.values() for gate in of_seeds for name in gate["pearson"])]
    )
    rows = []
    for label, of_seeds in gates.items():
        values = {name: [float(gate["pearson"].get(name, np.nan)) for gate in of_seeds] for name in names}
        failed = [
            f"{called(name)} in {count} of {len(of_seeds)}"
            for name in names
            if (count := sum(name in gate["failed"] for gate in of_seeds))
        ]
        verdict = f"**below it**: {', '.join(failed)}" if failed else "passed"
        rows.append([label, *(_each_seed(values[name]) for name in names), f"> {of_seeds[0]['threshold']}", verdict])
    header = ["reward model", *(called(name) for name in names), "gate", "seeds"]
    text = (
        "Pearson correlation with held-out weak labels, mean over seeds, then each seed. Studies go on below the gate."
    )
    return ["## Reward models", text, markdown_table(header, rows)]


def run_table(results: Sequence[Result], gate: float = GATE) -> str:
    """One run's correlations on held-out rows; those on the weak labels are gated."""
    return markdown_table(*run_rows(results, gate))


def run_rows(results: Sequence[Result], gate: float = GATE) -> tuple[list[str], list[list[str]]]:
    """Header and rows of `run_table`."""
    rows = []
    for r in results:
        gated = r.metric.startswith("pearson")
        passes = "–" if not gated else "passes" if r.value > gate else "**below the gate**"
        rows.append([r.metric, str(r.n), cell(r), f"> {gate}" if gated else "–", passes, r.split])
    return ["measure", "n", "value [95 %]", "gate", "verdict", "split"], rows


def study_table(results: Sequence[Result]) -> str:
    """Held-out correlations over seeds with calibration slopes and the gate's verdict, one line a form and target."""
    cells = {(one.protocol, one.name): one for one in results}
    rows = []
    for one in results:
        if one.protocol != "held-out":
            continue
        tilt = cells.get(("calibration", one.name.replace("pearson", "slope")))
        said = "–" if one.interval is None else verdict(one)
        rows.append([one.system, target(one), f"{one.n:,}", value(one), value(tilt), said])
    return markdown_table(["labels", "target", "n", "Pearson [95 %]", "calibration slope", f"gate {GATE}"], rows)


def verdict(result: Result) -> str:
    """Where the interval lies against the gate; a claim needs three seeds whose own values agree (docs/decisions/0008)."""
    assert result.interval is not None
    low, high = result.interval
    if low <= GATE <= high:
        return "not told apart from the gate"
    place = "above the gate" if low > GATE else "below the gate"
    seeds = len(set(result.seeds))
    if seeds < 3:
        return f"{place} ({seeds} seed{'s' * (seeds != 1)}: no claim)"
    agree = result.std is not None and exclude_zero(result.value - GATE, result.std, seeds)
    return place if agree else f"{place} (the seeds differ too much: no claim)"


def target(result: Result) -> str:
    """What a correlation is of, in words: `pearson_relevance` is of relevance, `pearson` of the weighted sum."""
    return called(result.metric.partition("_")[2] or SUM)


def called(name: str) -> str:
    """A component's name in a text, and the weighted sum's."""
    return "weighted sum" if name == SUM else name


def value(result: Result | None) -> str:
    """Value, spread over seeds, interval, without a sign or a claim."""
    if result is None:
        return "–"
    text = f"{result.value:.3f}" + (f" ± {result.std:.3f}" if result.std is not None else "")
    return text if result.interval is None else f"{text} [{result.interval[0]:.3f}, {result.interval[1]:.3f}]"


def _each_seed(values: Sequence[float]) -> str:
    each = ", ".join(f"{value:.2f}" for value in values)
    return f"{np.mean(values):.2f} ({each})" if len(values) > 1 else each

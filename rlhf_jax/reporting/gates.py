"""What the gate said of the reward models that a study optimises against, over its seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.interfaces import COMPONENTS
from rlhf_jax.reporting.result_tables import markdown_table
from rlhf_jax.runtime.files import read_json, write_json
from rlhf_jax.runtime.run import RunDirectory

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
        for form, gate in (read_json(folder / FILE) if (folder / FILE).exists() else {}).items():
            found.setdefault(form, []).append(gate)
    return found


def section(gates: Mapping[str, Sequence[Gate]]) -> list[str]:
    """A chapter of a report: held-out Pearson of every reward model, mean over seeds, and what is below the gate.

    Args:
      gates: by the reward model's name, one a seed. Empty: no chapter.
    """
    if not gates:
        return []
    names = ("reward", *COMPONENTS)
    rows = []
    for label, of_seeds in gates.items():
        values = {name: [float(gate["pearson"][name]) for gate in of_seeds] for name in names}
        failed = [
            f"{_called(name)} in {count} of {len(of_seeds)}"
            for name in names
            if (count := sum(name in gate["failed"] for gate in of_seeds))
        ]
        verdict = f"**below it**: {', '.join(failed)}" if failed else "passed"
        rows.append([label, *(_cell(values[name]) for name in names), f"> {of_seeds[0]['threshold']}", verdict])
    header = ["reward model", *(_called(name) for name in names), "gate", "seeds"]
    text = (
        "Pearson correlation with held-out weak labels, mean over seeds, then each seed. Studies go on below the gate."
    )
    return ["## Reward models", text, markdown_table(header, rows)]


def _called(name: str) -> str:
    return "weighted sum" if name == "reward" else name


def _cell(values: Sequence[float]) -> str:
    each = ", ".join(f"{value:.2f}" for value in values)
    return f"{np.mean(values):.2f} ({each})" if len(values) > 1 else each

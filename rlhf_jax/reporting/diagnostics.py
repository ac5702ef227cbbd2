"""The PPO diagnostics of a run with several PPO stages: one table over all, one page of curves for each."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rlhf_jax.reporting import plots, result_tables, run_figures
from rlhf_jax.reporting.run_figures import Entries
from rlhf_jax.runtime import files
from rlhf_jax.runtime.metric_names import kind
from rlhf_jax.runtime.metrics import read_metrics

FILE = "diagnostics.md"
LAST = 5
"""Log lines at the end that the table averages."""
SHOWN: Mapping[str, str] = {
    "objective/score_raw": "score, raw",
    "objective/*_raw": "*",
    "objective/kl_k1": "KL, nats",
    "objective/entropy": "entropy, nats",
    "policy/clip_fraction": "clip fraction",
    "value/loss": "value error",
    "value/explained_variance": "explained variance",
    "text/response_length": "length",
    "text/eos_fraction": "ends",
    "text/repetition": "repetition",
}


def write_diagnostics(run_dir: Path, *, title: str) -> Path:
    """Writes `diagnostics.md` and `plots/STAGE.{svg,png}` from `metrics.jsonl`.

    Raises: RunError where no PPO stage was logged.
    """
    entries = read_metrics(run_dir / "metrics.jsonl")
    pages = run_figures.diagnostics(entries)
    if not pages:
        raise files.RunError(f"{run_dir / 'metrics.jsonl'} has no line of a PPO or GRPO stage: nothing to diagnose")
    parts = [f"# {title}", f"Means of the last {LAST} log lines.", _table(entries)]
    for page in pages:
        parts += [f"## {page.title}", page.text]
        for name, (figure, caption) in page.figures.items():
            png = plots.save(figure, run_dir / "plots", name)
            parts.append(f"![{caption}](plots/{png.name})")
    file = run_dir / FILE
    files.write_text(file, "\n\n".join(parts) + "\n")
    return file


def _table(entries: Entries) -> str:
    stages = dict.fromkeys(entry["stage"] for entry in entries if kind(entry["stage"]) in run_figures.LEARNERS)
    shown: dict[str, str] = {}
    for stage in stages:
        shown |= run_figures.spelled_out(SHOWN, entries, stage)
    rows = [[stage, *(_last(entries, stage, metric) for metric in shown)] for stage in stages]
    return result_tables.markdown_table(["stage", *shown.values()], rows)


def _last(entries: Entries, stage: str, metric: str) -> str:
    values = [value for value in run_figures.series(entries, stage, metric)[1][-LAST:] if math.isfinite(value)]
    return f"{np.mean(values):.3g}" if values else "–"

"""The window sweep: how much of the conversation a policy sees, what of it fits, and the report over window sizes."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.data.windows import prompt_tokens
from rlhf_jax.evaluation.results import Result, difference_name
from rlhf_jax.reporting import gates, interval_plots, plots, result_tables
from rlhf_jax.reporting.interval_plots import Points, PointsPanel
from rlhf_jax.reporting.run_report import write_results
from rlhf_jax.runtime.files import read_object, write_text
from rlhf_jax.stages import reward
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.setup import DataConfig, Setup
from studies import common, tables
from studies.tables import Measure

STEP = 32
"""Prompts are a multiple of it long, so that seeds share compiled programs."""
MEASURES = (
    Measure("HR@5 `full`", "full", "hr@5"),
    Measure("NDCG@5 `full`", "full", "ndcg@5"),
    Measure("HR@5 `fresh`", "fresh", "hr@5"),
    Measure("NDCG@5 `fresh`", "fresh", "ndcg@5"),
    Measure("BLEU-4, greedy", "text", "bleu4"),
    Measure("BLEU-4, sampled", "text", "bleu4", "sampled"),
    Measure("true utility, sampled", "closed-loop", "mean_utility", "sampled", users=True),
    Measure("full reward (proxy)", "sampled", "proxy_score", "sampled"),
    Measure("tokens", "text", "response_length", "sampled"),
)


@dataclasses.dataclass(frozen=True)
class Contexts:
    """What a window asks for and what it gets."""

    window: int
    context_tokens: int
    """Longest prompt."""
    cut: float
    """Share of test contexts whose window does not fit, so that their oldest utterances are missing."""
    filled: float
    """Share of test contexts with at least `window` turns; the others see the whole conversation so far."""
    mean_tokens: float
    """Mean length of a test prompt."""
    n: int
    """Test contexts."""


def fitted_data(setup: Setup, window: int, *, max_cut: float) -> DataConfig:
    """The data with this window, and prompts just long enough.

    The longest prompt is the smallest multiple of `STEP` that cuts at most a share `max_cut` of the training contexts, as
    far as the network has positions for it and for a reply.
    """
    lengths = context_lengths(Windows(setup.vocab, setup.corpus.train, setup.data), window)
    needed = int(np.quantile(lengths, 1 - max_cut, method="inverted_cdf"))
    room = setup.network.n_positions - setup.data.response_tokens
    return dataclasses.replace(setup.data, window=window, context_tokens=min(-(-needed // STEP) * STEP, room))


def measured_contexts(setup: Setup) -> Contexts:
    """How the contexts of the test split fare under a window and a longest prompt."""
    data = setup.data
    windows = Windows(setup.vocab, setup.corpus.test, data)
    lengths = context_lengths(windows, data.window)
    # A window that is one turn shorter shows less exactly where the conversation has that many turns.
    shorter = context_lengths(windows, data.window - 1) if data.window > 1 else np.zeros_like(lengths)
    return Contexts(
        window=data.window,
        context_tokens=data.context_tokens,
        cut=float(np.mean(lengths > data.context_tokens)),
        filled=float(np.mean(shorter < lengths)),
        mean_tokens=float(np.mean(windows.prompts(windows.turns())[1].sum(axis=1))),
        n=len(lengths),
    )


def context_lengths(windows: Windows, window: int) -> np.ndarray:
    """Tokens that the last `window` turns before every recommender turn take, nothing cut. [N]"""
    return np.array(
        [
            len(
                prompt_tokens(
                    windows.vocab,
                    windows.dialogues[number].messages[:index],
                    windows.words[number][:index],
                    window=window,
                    context_tokens=2**31,
                )
            )
            for number, index in windows.turns()
        ]
    )


def system(policy: str, window: int) -> str:
    """What a policy at a window is called in files and tables: `ppo_k6`."""
    return f"{policy}_k{window}"


def results(
    run_dir: Path, seeds: Sequence[int], windows: Sequence[int], *, split: str, same_test: bool
) -> list[Result]:
    """Entries of `results.json`: both policies at every window, PPO − SFT, and the largest against the smallest window."""
    names = [system(policy, k) for k in windows for policy in ("sft", "ppo")]
    measured = {name: common.read_system(run_dir, seeds, name) for name in names}
    found = []
    for name in names:
        found += common.system_results(name, measured[name], split=split, same_test=same_test)
    for a, b in compared(windows):
        found += common.differences(difference_name(a, b), measured[a], measured[b], split=split, same_test=same_test)
    return found


def compared(windows: Sequence[int]) -> list[tuple[str, str]]:
    """Pairs (a, b) whose differences a − b are reported."""
    pairs = [(system("ppo", k), system("sft", k)) for k in windows]
    if len(windows) > 1:
        pairs += [(system(policy, max(windows)), system(policy, min(windows))) for policy in ("sft", "ppo")]
    return pairs


def verdicts(found: Sequence[Result], windows: Sequence[int], split: str) -> list[str]:
    """What the sweep shows: of the window for either policy, and of PPO at every window."""
    lines = []
    for a, b in compared(windows)[len(windows) :]:
        entries = [
            (m, one) for m in MEASURES[:7] if (one := tables.find(found, difference_name(a, b), m, split)) is not None
        ]
        numbers = "; ".join(f"{m.label} {tables.verdict(one)}" for m, one in entries)
        lines.append(f"Verdict, {a} against {b} (more of the conversation): {numbers}.")
    for k in windows:
        name = difference_name(system("ppo", k), system("sft", k))
        entries = [(m, one) for m in MEASURES[:7] if (one := tables.find(found, name, m, split)) is not None]
        numbers = "; ".join(f"{m.label} {tables.verdict(one)}" for m, one in entries)
        lines.append(f"Verdict, PPO against SFT at k = {k}: {numbers}.")
    return lines


def write_report(
    run_dir: Path,
    seeds: Sequence[int],
    windows: Sequence[int],
    *,
    setting: str,
    size: str,
    budget: str,
    same_test: bool,
    command: Sequence[str],
) -> Path:
    """Gathers all seeds: `results.json`, the figure and `report.md`.

    Args:
      budget: one sentence on what every policy was given.
      same_test: real data; else each seed has a world, and so a test set, of its own.
    """
    split = f"{setting}/test"
    found = results(run_dir, seeds, windows, split=split, same_test=same_test)
    write_results(run_dir, found)
    shown = tables.measured_in(found, MEASURES, split)
    plots.save(
        interval_plots.with_intervals([_panel(found, m, windows, split) for m in shown], columns=3),
        run_dir / "plots",
        "windows",
    )
    entries = common.seed_entries(run_dir, seeds)
    page = common.diagnostics({f"k = {k}": (f"ppo-k{k}", entries) for k in windows})
    plots.save(page, run_dir / "plots", "ppo")
    own = "" if same_test else " Every seed has a world, and so test dialogues and users, of its own."
    parts = [
        f"# Window sweep: {setting}, {size}",
        (
            f"k is how many turns of the conversation the policy sees. {budget} Imitation learns whole dialogues and does "
            "not know k: it is the same for all k, reads k turns when it is measured, and the reward model and PPO are "
            "trained anew for every k; the proxy is each k's own reward model, comparable at one k alone. "
            f"Training seeds {', '.join(map(str, seeds))}.{own} Intervals are 95 % bootstrap "
            "intervals over seeds and dialogues (or users), paired where systems are compared; a claim (▲, ▼) needs three "
            "seeds, an interval without 0, and a t test of the seeds' own differences that agrees."
        ),
        "## What fits",
        _contexts_table([read_contexts(run_dir, seed) for seed in seeds], windows),
        *gates.section(_gates(run_dir, seeds, windows)),
        "## Results",
        "![Metrics against k](plots/windows.png)",
        "*SFT and PPO against k, 95 % intervals.* ([SVG](plots/windows.svg))",
    ]
    for measure in shown:
        rows = [
            [str(k), *(result_tables.cell(tables.find(found, name, measure, split)) for name in _columns(k))]
            for k in windows
        ]
        parts += [f"### {measure.label}", result_tables.markdown_table(["k", "SFT", "PPO", "PPO − SFT"], rows)]
    parts += [
        *common.last_chapters(
            [r for r in found if r.system == system("sft", windows[0])],
            command=shlex.join(command),
            caption="Mean over seeds, by update.",
        ),
        "## Verdicts",
        "\n".join(f"- {line}" for line in verdicts(found, windows, split)),
    ]
    report = run_dir / "report.md"
    write_text(report, "\n\n".join(parts) + "\n")
    return report


def read_contexts(run_dir: Path, seed: int) -> Mapping[str, Any]:
    """`Contexts` of every window of one seed, by window."""
    return read_object(common.seed_folder(run_dir, seed) / "contexts.json")


def _gates(run_dir: Path, seeds: Sequence[int], windows: Sequence[int]) -> dict[str, list[gates.Gate]]:
    folders = [common.seed_folder(run_dir, seed) for seed in seeds]
    return {f"k = {k}": [read_object(folder / f"{reward.STAGE}-k{k}.json") for folder in folders] for k in windows}


def _columns(k: int) -> tuple[str, str, str]:
    sft, ppo = system("sft", k), system("ppo", k)
    return sft, ppo, difference_name(ppo, sft)


def _contexts_table(by_seed: Sequence[Mapping[str, Any]], windows: Sequence[int]) -> str:
    """Means over seeds."""
    rows = []
    for k in windows:
        of_k = [seed[str(k)] for seed in by_seed]
        lengths = sorted({entry["context_tokens"] for entry in of_k})
        rows.append(
            [
                str(k),
                " / ".join(map(str, lengths)),
                f"{np.mean([entry['mean_tokens'] for entry in of_k]):.1f}",
                f"{np.mean([entry['filled'] for entry in of_k]):.1%}",
                f"{np.mean([entry['cut'] for entry in of_k]):.2%}",
            ]
        )
    header = ["k", "longest prompt, tokens", "mean prompt, tokens", "contexts with k turns or more", "contexts cut"]
    return result_tables.markdown_table(header, rows)


def _panel(found: Sequence[Result], measure: Measure, windows: Sequence[int], split: str) -> PointsPanel:
    series = []
    for label in ("sft", "ppo"):
        drawn = [(k, tables.find(found, system(label, k), measure, split)) for k in windows]
        points = [
            (float(k), one.value, *(one.interval or (one.value, one.value))) for k, one in drawn if one is not None
        ]
        series.append(Points(label.upper(), *([point[place] for point in points] for place in range(4))))
    return PointsPanel(measure.label.replace("`", ""), series, "k, turns")

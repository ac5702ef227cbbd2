"""What the studies have in common: a run directory per training seed, results paired over seeds, and their report.

A study does each seed's work in `RUN_DIR/seed-S`, where it is stored case by case; the summary is made of these files
alone. In the simulated worlds every seed has a world, and so test dialogues and users, of its own.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from matplotlib.figure import Figure

from rlhf_jax.assessment import assess, sampled_results
from rlhf_jax.assessment.assess import Assessment
from rlhf_jax.assessment.sampled import SampledAnswers, answers_file, load
from rlhf_jax.evaluation import closed_loop, ranking, text
from rlhf_jax.evaluation.ranking import RankTable
from rlhf_jax.evaluation.results import Result, Split
from rlhf_jax.feedback.components import COMPONENTS
from rlhf_jax.reporting import plots, result_tables, run_figures
from rlhf_jax.reporting.plots import Line, Panel
from rlhf_jax.reporting.run_figures import Entries
from rlhf_jax.runtime.files import RunError, as_json, notice, write_json
from rlhf_jax.runtime.metrics import read_metrics
from rlhf_jax.runtime.run import RunDirectory, open_run

DONE = "done.json"
VOLATILE = ("run_dir", "runs", "data_dir", "seeds", "only_seed")
"""Fields of a study's configuration that change where things lie and which seeds are done, but no seed's numbers."""
RANKED = ("hr@1", "hr@5", "hr@10", "ndcg@5")
RANKING_PROTOCOLS = ("full", "fresh")
DIAGNOSTICS: tuple[tuple[str, str, str], ...] = (
    *((f"{name.capitalize()}, raw", f"objective/{name}_raw", "z") for name in COMPONENTS),
    ("KL to the reference", "objective/kl_k1", "nats per response"),
    ("Entropy", "objective/entropy", "nats per token"),
    ("Policy loss", "policy/loss", ""),
    ("Value loss", "value/loss", ""),
    ("Explained variance", "value/explained_variance", ""),
    ("Clip fraction", "policy/clip_fraction", ""),
    ("Response length", "text/response_length", "tokens"),
    ("Responses that end", "text/eos_fraction", ""),
    ("Repetition", "text/repetition", ""),
)
"""The page of PPO diagnostics: title, metric, unit."""


@runtime_checkable
class StudyConfig(Protocol):
    """What every study's configuration has; a frozen dataclass."""

    @property
    def run_dir(self) -> Path: ...
    @property
    def seeds(self) -> tuple[int, ...]: ...
    @property
    def only_seed(self) -> int | None: ...


@dataclasses.dataclass(frozen=True)
class Measurements:
    """One system over training seeds: what was stored of it."""

    assessed: Mapping[int, Assessment]
    sampled: Mapping[int, SampledAnswers]


def check_seeds(seeds: tuple[int, ...], only_seed: int | None) -> None:
    """Raises ValueError for no seed, one that occurs twice, or an `only_seed` that is not among them."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds must name at least one seed, each once: got {seeds}")
    if only_seed is not None and only_seed not in seeds:
        raise ValueError(f"--only-seed {only_seed} is not one of --seeds {seeds}")


def seed_folder(run_dir: Path, seed: int) -> Path:
    """Where a seed's work lies."""
    return run_dir / f"seed-{seed}"


def is_done(folder: Path, written: Sequence[str]) -> bool:
    """Whether a study's seed (or one training of it) is done: all files are there that its work ends with writing."""
    return all((folder / name).exists() for name in written)


def run_seeds(
    config: StudyConfig, work: Callable[[RunDirectory, int], None], facts: Callable[[int], Mapping[str, Any]]
) -> None:
    """Does the work of every seed (or of `only_seed`) in its own run directory; what is done is not done again.

    Args:
      facts: what a seed's numbers rest on besides the configuration, for example its foundation and what `size` stands
        for; stored with the seed.
    Raises: RunError where a seed's directory, finished or not, belongs to another configuration or other facts.
    """
    fields = {name: value for name, value in as_json(config).items() if name not in VOLATILE}
    for seed in config.seeds if config.only_seed is None else (config.only_seed,):
        with open_run(seed_folder(config.run_dir, seed), {"seed": seed, **fields}, trackers=(), wait=True) as run:
            run.record(**facts(seed))
            if is_done(run.path, (DONE,)):
                notice(f"seed {seed} is done ({run.path})")
                continue
            start = time.monotonic()
            work(run, seed)
            write_json(run.path / DONE, {"seconds": round(time.monotonic() - start, 1)})


def read_system(run_dir: Path, seeds: Sequence[int], system: str) -> Measurements:
    """What `assessment.assess` and `sampled_answers` stored of one system, by seed."""
    folders = {seed: seed_folder(run_dir, seed) / "assessments" for seed in seeds}
    return Measurements(
        {seed: assess.load(folder / f"{system}.npz") for seed, folder in folders.items()},
        {seed: load(answers_file(folder, system)) for seed, folder in folders.items()},
    )


def ranking_alone(name: str, run_dir: Path, seeds: Sequence[int], *, split: str, same_test: bool) -> list[Result]:
    """Entries for a baseline, which ranks and gives no answers; `split` and `same_test` as for `system_results`.

    Raises:
      RunError: a finished seed has not stored it.
    """
    paths = {seed: seed_folder(run_dir, seed) / "assessments" / f"{name}.npz" for seed in seeds}
    missing = [str(path) for path in paths.values() if not path.exists()]
    if missing:
        raise RunError(
            f"{missing[0]} is not there: an older version finished that seed; move its folder away to redo it"
        )
    tables, _, _ = _parts({seed: assess.load(path) for seed, path in paths.items()}, same_test)
    return ranking.ranking_results(name, tables, split=split, metrics=RANKED)


def system_results(name: str, measured: Measurements, *, split: str, same_test: bool) -> list[Result]:
    """Entries of `results.json` for one system: ranking, greedy and sampled text, users.

    Args:
      split: data set and split, for example `redial/test`.
      same_test: every seed was judged on the same test dialogues (real data); else each had a world of its own.
    """
    seeds = sorted(measured.assessed)
    tables, turns, users = _parts(measured.assessed, same_test)
    found: list[Result] = []
    if tables[seeds[0]]:
        found += ranking.ranking_results(name, tables, split=split, metrics=RANKED)
    if turns[0]:
        found += text.text_results(name, turns, split=split, seeds=seeds, same_test=same_test)
    for decoding, runs in users.items():
        at = str(Split.parse(split).drawn(decoding, users=True))
        found += closed_loop.closed_loop_results(name, runs, split=at)
    return found + sampled_results.sampled_results(name, measured.sampled, split=split, same_test=same_test)


def differences(name: str, a: Measurements, b: Measurements, *, split: str, same_test: bool) -> list[Result]:
    """Entries for `a` − `b`, paired by seed and dialogue or user, of everything that both have (`name` is `full-sft`)."""
    seeds = sorted(a.assessed)
    (left, left_turns, left_users), (right, right_turns, right_users) = (
        _parts(side.assessed, same_test) for side in (a, b)
    )
    found: list[Result] = []
    if left[seeds[0]] and right[seeds[0]]:
        found += ranking.difference_results(name, left, right, split=split, metrics=RANKED)
    if left_turns[0] and right_turns[0]:
        found += text.text_differences(name, left_turns, right_turns, split=split, seeds=seeds, same_test=same_test)
    for decoding in (decoding for decoding in left_users if decoding in right_users):
        met = left_users[decoding], right_users[decoding]
        at = str(Split.parse(split).drawn(decoding, users=True))
        found += closed_loop.closed_loop_differences(name, *met, split=at)
    sampled = sampled_results.sampled_differences(name, a.sampled, b.sampled, split=split, same_test=same_test)
    return found + sampled


def _parts(assessed: Mapping[int, Assessment], same_test: bool) -> tuple[Any, Any, Any]:
    """Tables by seed, turns in the order of seeds, users by decoding and seed."""

    def own(table: RankTable, seed: int) -> RankTable:
        if same_test:
            return table
        return table._replace(dialogues=tuple(f"seed {seed}, {dialogue}" for dialogue in table.dialogues))

    tables = {
        seed: {
            protocol: own(run.ranking.tables[protocol], seed)
            for protocol in RANKING_PROTOCOLS
            if protocol in run.ranking.tables
        }
        for seed, run in assessed.items()
    }
    turns = [
        assessed[seed].turns if same_test else text.of_seed(assessed[seed].turns, seed) for seed in sorted(assessed)
    ]
    decodings = next(iter(assessed.values())).users
    users = {decoding: {seed: run.users[decoding] for seed, run in assessed.items()} for decoding in decodings}
    return tables, turns, users


def diagnostics(variants: Mapping[str, tuple[str, Sequence[Entries]]]) -> Figure:
    """The page of PPO diagnostics: every quantity over updates, a line a variant, its mean over seeds.

    Args:
      variants: label to the stage's name and the `metrics.jsonl` lines of every seed.
    """
    panels = []
    for title, metric, unit in DIAGNOSTICS:
        lines = [_mean_line(label, runs, stage, metric) for label, (stage, runs) in variants.items()]
        if lines := [line for line in lines if line.x]:
            panels.append(Panel(title, lines, unit))
    return plots.small_multiples(panels, legend_below=True)


def last_chapters(found: Sequence[Result], *, command: str, caption: str) -> list[str]:
    """What every study's report ends with: PPO's diagnostics, what the metrics are, and how to repeat it.

    Args:
      found: entries whose metrics are defined.
      command: that makes the report again.
      caption: of the page that `diagnostics` drew, `plots/ppo`.
    """
    return [
        "## PPO diagnostics",
        "![PPO diagnostics](plots/ppo.png)",
        f"*{caption}* ([SVG](plots/ppo.svg))",
        "## Definitions",
        "\n".join(result_tables.definitions(found)),
        "## How to repeat this",
        f"```\n{command}\n```",
    ]


def _mean_line(label: str, runs: Sequence[Entries], stage: str, metric: str) -> Line:
    """Mean over the seeds that logged a step."""
    values: dict[float, list[float]] = {}
    for entries in runs:
        for step, value in zip(*run_figures.series(entries, stage, metric), strict=True):
            values.setdefault(step, []).append(value)
    steps = sorted(values)
    return Line(label, steps, [float(np.mean(values[step])) for step in steps])


def seed_entries(run_dir: Path, seeds: Sequence[int]) -> list[Entries]:
    """The `metrics.jsonl` lines of every seed."""
    return [read_metrics(seed_folder(run_dir, seed) / "metrics.jsonl") for seed in seeds]

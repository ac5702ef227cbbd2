"""Several runs of `ppo_redial.py` or `ppo_opendialkg.py` as one result: mean over seeds, paired intervals, figures.

    python experiments/gather_seeds.py runs/summary plain=runs/plain-0,runs/plain-1,runs/plain-2 hackable=runs/hack-0,…

Each NAME=RUN,RUN,… is a setting whose runs differ in their seed alone. Everything is read from what the runs stored
case by case; no policy is measured again. Runs in the simulated world each have a world of their own: there the closed
loop is gathered, beside recommenders that need no training, and ranking and text stay in each run's report. On real data popularity, copy and the constant reply are
the same for all seeds and stand beside, and OpenDialKG's ranking is split by what the context names of the item (its
dialogues are read again for that). Writes `results.json`, `report.md`, `plots/differences` (PPO − SFT with intervals),
`plots/study` (proxy, truth, KL by run) and `plots/ppo` (all diagnostics, mean over runs) into the first argument. A claim needs three seeds that agree.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from matplotlib.figure import Figure

from rlhf_jax.data.opendialkg import read_opendialkg
from rlhf_jax.data.windows import ranking_rows
from rlhf_jax.evaluation.results import Result
from rlhf_jax.recipes import assessment, comparison
from rlhf_jax.recipes.assessment import Assessment
from rlhf_jax.recipes.study import Measure, diagnostics, find
from rlhf_jax.recipes.users import yardsticks
from rlhf_jax.runtime import plots, report_figures
from rlhf_jax.runtime.metrics import read_metrics
from rlhf_jax.runtime.report import read_results, write_report, write_results
from rlhf_jax.runtime.run import RunError, notice, read_json
from rlhf_jax.simulators.world import WorldConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """Which runs belong together."""

    out: Annotated[Path, tyro.conf.Positional]
    """Folder for the summary; made if absent."""
    settings: Annotated[tuple[str, ...], tyro.conf.Positional]
    """NAME=RUN,RUN,… for every setting."""

    def __post_init__(self) -> None:
        wrong = [setting for setting in self.settings if not setting.partition("=")[2]]
        if wrong or not self.settings:
            raise ValueError(f"settings must look like NAME=RUN,RUN; got {wrong or 'none'}")


def runs_by_seed(name: str, folders: list[Path]) -> dict[int, Path]:
    """The finished runs of one setting by their seed.

    Raises: RunError for a run that is not finished, or runs that differ in more than the seed.
    """
    found: dict[int, Path] = {}
    first = None
    for folder in folders:
        if not (folder / "results.json").exists():
            raise RunError(f"{folder}: no results.json; let the run finish first (start its command again)")
        config = read_json(folder / "config.json")["config"]
        seed = config.pop("seed")
        first = first or config
        if config != first or seed in found:
            what = f"seed {seed} occurs twice" if seed in found else "its configuration differs in more than the seed"
            raise RunError(f"setting {name}: {folder} does not belong with {folders[0]}: {what}")
        found[seed] = folder
    return found


def source_of(run: Path) -> str:
    """What a run's dialogues are."""
    return read_json(run / "config.json")["config"]["data"]["source"]


def gathered(name: str, folders: list[Path]) -> list[Result]:
    """Entries over all seeds of one setting."""
    runs = runs_by_seed(name, folders)
    systems = {
        system: {seed: assessment.load(folder / "assessments" / f"{system}.npz") for seed, folder in runs.items()}
        for system in ("sft", "ppo")
    }
    source = source_of(folders[0])
    # The world is drawn from the seed, so every seed has test dialogues of its own; real data are the same for all.
    found = comparison.results(systems, {}, split=f"{name}: {source}/test", same_test=source != "world")
    if source != "world":
        untrained = [result for result in read_results(folders[0]) if result.system in ("popularity", "copy")]
        found += [dataclasses.replace(result, split=f"{name}: {result.split}") for result in untrained]
    if source == "opendialkg":
        found += by_naming(name, folders[0], systems)
    if source == "world":
        found += untrained_in_the_world(name, runs)
    # The gate's correlations are one number a run: shown seed by seed.
    for seed, folder in runs.items():
        for result in read_results(folder):
            if result.system == "reward_model":
                found.append(dataclasses.replace(result, split=f"{name}, seed {seed}: {result.split}"))
    return found


def by_naming(name: str, folder: Path, systems: Mapping[str, Mapping[int, Assessment]]) -> list[Result]:
    """Ranking by what the context names, as in the runs' own reports; needs the dialogues, where the runs read them."""
    stored = read_json(folder / "config.json")["config"]
    data = stored["data"]
    try:
        dialogues = read_opendialkg(
            data["dir"],
            domain=None if data["domain"] == "both" else data["domain"],
            on_bad_line=data["on_bad_line"],
            max_dialogues=data["max_dialogues"],
        )
    except FileNotFoundError as error:
        notice(f"setting {name} is not split by what the context names: {error}")
        return []
    rows = list(ranking_rows(dialogues.test[: stored["assess"]["test_dialogues"]]))
    ranked = {system: {seed: run.ranking for seed, run in runs.items()} for system, runs in systems.items()}
    return comparison.by_naming(ranked, {}, rows, dialogues.items, split=f"{name}: opendialkg/test")


def untrained_in_the_world(name: str, runs: Mapping[int, Path]) -> list[Result]:
    """Recommenders that need no training, with the users that the runs' policies met."""
    measured = {}
    for seed, folder in runs.items():
        stored = read_json(folder / "config.json")["config"]
        world, assess = WorldConfig(**stored["data"]["world"]), stored["assess"]
        measured[seed] = yardsticks(world, seed, n_users=assess["users"], n_turns=assess["user_turns"])
    return comparison.yardstick_results(measured, split=f"{name}: world/test")


DRAWN = (
    Measure("HR@5 full", "full", "hr@5"),
    Measure("NDCG@5 full", "full", "ndcg@5"),
    Measure("HR@5 fresh", "fresh", "hr@5"),
    Measure("NDCG@5 fresh", "fresh", "ndcg@5"),
    Measure("true utility, sampled", "closed-loop", "mean_utility", "-users-sampled"),
    Measure("true utility, greedy", "closed-loop", "mean_utility", "-users-greedy"),
    Measure("proxy reward, sampled", "closed-loop", "proxy_score", "-users-sampled"),
    Measure("BLEU-4, greedy", "text", "bleu4"),
    Measure("replies that suggest", "text", "item_share"),
    Measure("tokens a reply", "text", "response_length"),
    Measure("repetition", "text", "repetition"),
)
"""Panels of the figure of differences, as far as they were measured."""


def differences(results: Sequence[Result], splits: Mapping[str, str]) -> Figure:
    """PPO − SFT with intervals: a panel a measure, a line a setting; `splits` is setting to what was measured on."""
    panels = {
        measure.label: [
            (name, found)
            for name, split in splits.items()
            if (found := find(results, "ppo-sft", measure, split)) is not None
        ]
        for measure in DRAWN
    }
    return plots.forest(panels, x_label="PPO minus SFT", reference=0.0, one_scale=False)


def main(config: Config) -> Path:
    """Reads all runs and writes the summary."""
    settings = {
        name: [Path(folder) for folder in folders.split(",")]
        for name, _, folders in (setting.partition("=") for setting in config.settings)
    }
    config.out.mkdir(parents=True, exist_ok=True)
    results = [result for name, folders in settings.items() for result in gathered(name, folders)]
    write_results(config.out, results)
    lines = {name: [read_metrics(run / "metrics.jsonl") for run in folders] for name, folders in settings.items()}
    plots.save(report_figures.study(lines), config.out / "plots", "study")
    plots.save(diagnostics({name: ("ppo", runs) for name, runs in lines.items()}), config.out / "plots", "ppo")
    splits = {name: f"{name}: {source_of(folders[0])}/test" for name, folders in settings.items()}
    plots.save(differences(results, splits), config.out / "plots", "differences")
    command = f"python experiments/gather_seeds.py {config.out} {' '.join(config.settings)}"
    notes = [
        "![PPO − SFT, 95 % intervals over seeds and cases, paired; each panel has a scale of its own](plots/differences.png)",
        "![Proxy reward, true utility where it is known, and KL along PPO; one line a run](plots/study.png)",
        "![PPO diagnostics, mean over runs; one line a setting](plots/ppo.png)",
    ]
    return write_report(config.out, title="Runs over seeds", command=command, notes=notes, gathered=True)


if __name__ == "__main__":
    try:
        print(f"report: {main(tyro.cli(Config, description=__doc__))}")
    except (RunError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error

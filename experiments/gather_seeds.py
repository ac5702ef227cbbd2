"""Several runs of `ppo_redial.py` or `ppo_opendialkg.py` as one result: mean over seeds, paired intervals, figures.

    python experiments/gather_seeds.py runs/summary plain=runs/plain-0,runs/plain-1,runs/plain-2 hackable=runs/hack-0,…

Each NAME=RUN,RUN,… is a setting whose runs differ in their seed alone. A field that the code of a run did not have yet
counts as its default. Every policy is gathered that all runs measured, and the pairs that the runs compare. Everything is
read from what the runs stored case by case; no policy is measured again. Runs in the simulated world each have a world of their own: there the closed
loop is gathered, beside recommenders that need no training, and ranking and text stay in each run's report. On real data
popularity, copy, mixture and the constant reply are the same for all seeds and stand beside; the dialogues are read again for SR
and RDL (ReDial) and for the ranking split by what the context names of the item (OpenDialKG). Writes `results.json`,
`report.md`, `report.html`, `plots/differences` (the aligned policy − SFT with intervals), `plots/study` (proxy, truth, KL by run) and `plots/ppo` (all
diagnostics, mean over runs) into the first argument. A claim needs three seeds that agree.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from matplotlib.figure import Figure

import ppo_opendialkg
import ppo_redial
from command_line import options, start
from rlhf_jax.assessment import assess, comparison
from rlhf_jax.assessment.assess import Assessment, AssessmentConfig
from rlhf_jax.assessment.users import yardsticks
from rlhf_jax.data.sources import read_corpus
from rlhf_jax.data.windows import RankingRow, ranking_rows
from rlhf_jax.evaluation.results import Result, Sides
from rlhf_jax.interfaces import Item
from rlhf_jax.reporting import plots, run_figures
from rlhf_jax.reporting.run_report import read_results, write_report, write_results
from rlhf_jax.runtime.files import RunError, as_json, notice, read_json
from rlhf_jax.runtime.metrics import read_metrics
from rlhf_jax.runtime.run import claim
from rlhf_jax.runtime.settings import from_json
from rlhf_jax.simulators.world import WorldConfig
from rlhf_jax.stages.setup import DataConfig
from studies.common import diagnostics
from studies.tables import Measure, find

FIRST = ("sft", "prior", "ppo", "grpo")
"""Policies in the order in which a run makes them; others follow by name."""
EXPECTED = "expected a finished run of ppo_redial.py or ppo_opendialkg.py"
NEEDS_DIALOGUES = {
    "redial": "has no SR and RDL of trained systems",
    "opendialkg": "is not split by what the context names",
}
"""What a setting on real data lacks where its dialogues are gone."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Which runs belong together."""

    out: Annotated[Path, tyro.conf.Positional]
    """Folder for the summary; made if absent."""
    settings: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME=RUN,RUN,…")]
    """One for every setting; at least one is required."""

    def __post_init__(self) -> None:
        wrong = [setting for setting in self.settings if not setting.partition("=")[2]]
        if wrong or not self.settings:
            raise ValueError(f"settings must look like NAME=RUN,RUN; got {wrong or 'none'}")
        named = Counter(setting.partition("=")[0] for setting in self.settings)
        if repeated := [name for name, times in named.items() if times > 1]:
            raise ValueError(f"every setting needs a name of its own, its runs joined by commas; repeated: {repeated}")


def run_config(folder: Path) -> dict[str, Any]:
    """The configuration a run was started with.

    Raises: RunError for a folder that holds something else, such as a study.
    """
    file = folder / "config.json"
    if not file.exists():
        raise RunError(f"{folder}: no config.json; {EXPECTED}")
    stored = read_json(file)
    config = stored.get("config") if isinstance(stored, dict) else None
    known = config if isinstance(config, dict) else {}
    if missing := [field for field in ("seed", "data", "assess") if field not in known]:
        raise RunError(f"{file}: no field {', '.join(missing)} in 'config'; {EXPECTED}")
    if type(known["seed"]) is not int:
        raise RunError(f"{file}: config.seed is {known['seed']!r}, a number is needed; {EXPECTED}")
    for name, kind in (("data", DataConfig), ("assess", AssessmentConfig)):
        _check_fields(known[name], kind, f"{file}: config.{name}")
    return known


def _check_fields(stored: Any, kind: type[DataConfig] | type[AssessmentConfig], name: str) -> None:
    """Raises RunError for a value of another type; a field that another version of the code had is left aside."""
    if not isinstance(stored, dict):
        raise RunError(f"{name} is {stored!r}, an object is needed; {EXPECTED}")
    fields = {field.name for field in dataclasses.fields(kind)}
    from_json(kind, {field: value for field, value in stored.items() if field in fields}, name)


def runs_by_seed(name: str, folders: list[Path]) -> dict[int, Path]:
    """The finished runs of one setting by their seed.

    Raises: RunError for a run that is not finished, a folder that is no run, or runs that differ in more than the seed.
    """
    found: dict[int, Path] = {}
    first = None
    for folder in folders:
        config = run_config(folder)
        script = ppo_opendialkg if config["data"].get("source") == "opendialkg" else ppo_redial
        config = filled(config, as_json(script.Config()))
        if not (folder / "results.json").exists():
            raise RunError(f"{folder}: no results.json; let the run finish first (start its command again)")
        if missing := [system for system in compared_in(folder) if not assessment_file(folder, system).exists()]:
            raise RunError(f"{assessment_file(folder, missing[0])} is not there; {EXPECTED}")
        seed = config.pop("seed")
        first = first or config
        if differ := differing(first, config):
            what = f"its configuration differs in {', '.join(differ)}"
            raise RunError(f"setting {name}: {folder} does not belong with {folders[0]}: {what}")
        if seed in found:
            raise RunError(f"setting {name}: {folder} does not belong with {folders[0]}: seed {seed} occurs twice")
        found[seed] = folder
    return found


def differing(one: Mapping[str, Any], other: Mapping[str, Any], before: str = "") -> list[str]:
    """Fields in which two configurations differ, or that only one of them has.

    Examples:
      >>> differing({"ppo": {"epochs": 4, "clip": 0.2}, "seed": 0}, {"ppo": {"epochs": 2}, "seed": 0})
      ['ppo.epochs', 'ppo.clip']
    """
    found = []
    for field in dict.fromkeys((*one, *other)):
        sides = one.get(field), other.get(field)
        if isinstance(sides[0], dict) and isinstance(sides[1], dict):
            found += differing(*sides, f"{before}{field}.")
        elif field not in one or field not in other or sides[0] != sides[1]:
            found.append(before + field)
    return found


def filled(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the default of every field that the version of the code that wrote it did not have.

    Examples:
      >>> filled({"ppo": {"epochs": 2}}, {"ppo": {"epochs": 4, "clip": 0.2}})
      {'ppo': {'epochs': 2, 'clip': 0.2}}
    """
    found = {**defaults, **config}
    for field, default in defaults.items():
        if isinstance(default, dict) and isinstance(found[field], dict):
            found[field] = filled(found[field], default)
    return found


def compared_in(run: Path) -> Sides:
    """The policy a run ends with and the one it starts from."""
    return Sides(run_config(run).get("algorithm", "ppo"), "sft")


def systems_of(folders: Iterable[Path]) -> list[str]:
    """Policies that every run has measured."""
    measured = [{file.stem for file in (folder / "assessments").glob("*.npz")} for folder in folders]
    common, some = set.intersection(*measured), set.union(*measured)
    if some > common:
        notice(f"not gathered, as not all runs measured them: {', '.join(sorted(some - common))}")
    return [*(name for name in FIRST if name in common), *sorted(common - set(FIRST))]


def pairs_of(folders: Iterable[Path]) -> list[Sides]:
    """Pairs of gathered policies that the runs compare themselves, the paper's first."""
    folders = list(folders)
    systems, own = set(systems_of(folders)), compared_in(folders[0])
    compared = [result.sides for folder in folders for result in read_results(folder)]
    return list(dict.fromkeys([own, *(pair for pair in compared if pair is not None and systems.issuperset(pair))]))


def assessment_file(run: Path, system: str) -> Path:
    """Where a run stored a trained system's measurements, case by case."""
    return run / "assessments" / f"{system}.npz"


def source_of(run: Path) -> str:
    """What a run's dialogues are."""
    return run_config(run)["data"]["source"]


def split_of(name: str, folders: list[Path]) -> str:
    """What a setting was measured on, as its runs call it (`books: opendialkg-book/test`): its systems share one table.

    Raises: RunError where the runs name none, or several.
    """
    first: str | None = None
    for folder in folders:
        splits = sorted({result.split for result in read_results(folder) if result.protocol == "full"})
        if not splits:
            raise RunError(f"{folder / 'results.json'}: no result under the protocol 'full'; {EXPECTED}")
        first = first or splits[0]
        if splits != [first]:
            raise RunError(
                f"setting {name}: {folder} was measured on {', '.join(splits)}, {folders[0]} on {first}; "
                "only runs on one split can be gathered"
            )
    return f"{name}: {first}"


def gather_setting(name: str, folders: list[Path]) -> list[Result]:
    """Entries over all seeds of one setting."""
    runs = runs_by_seed(name, folders)
    split = split_of(name, folders)
    measured = in_the_worlds if source_of(folders[0]) == "world" else on_real_data
    # What a reward model predicts, and which items it would choose, are numbers of one run: shown seed by seed.
    of_rewards = [
        dataclasses.replace(result, split=f"{name}, seed {seed}: {result.split}")
        for seed, folder in runs.items()
        for result in read_results(folder)
        if result.system in comparison.OF_THE_REWARD
    ]
    return measured(name, runs, split) + of_rewards


def in_the_worlds(name: str, runs: Mapping[int, Path], split: str) -> list[Result]:
    """Policies, and recommenders that need no training, with the users of each run's world."""
    # The world is drawn from the seed, so every seed has test dialogues of its own.
    first, *others = pairs_of(runs.values())
    found = comparison.results(
        read_assessments(name, runs, []), {}, split=split, compared=first, further=others, same_test=False
    )
    return found + untrained_in_the_world(runs, split)


def on_real_data(name: str, runs: Mapping[int, Path], split: str) -> list[Result]:
    """Policies, and recommenders that need no training, on the test dialogues that all runs share."""
    folder = next(iter(runs.values()))
    rows, items = ranked_rows(name, folder)
    systems = read_assessments(name, runs, rows)
    untrained = [result for result in read_results(folder) if result.system in ("popularity", "copy", "mixture")]
    first, *others = pairs_of(runs.values())
    found = comparison.results(systems, {}, split=split, compared=first, further=others)
    found += [dataclasses.replace(result, split=split) for result in untrained]
    if rows and source_of(folder) == "opendialkg":
        ranked = {system: {seed: run.ranking for seed, run in by_seed.items()} for system, by_seed in systems.items()}
        found += comparison.by_naming(ranked, {}, rows, items, split=split, compared=first)
    return found


def ranked_rows(name: str, folder: Path) -> tuple[list[RankingRow], Mapping[int, Item]]:
    """What a run ranked, and the catalogue, read where the run read them; nothing, and a notice, where they are gone."""
    config = run_config(folder)
    stored = config["data"]
    fields = ("source", "domain", "on_bad_line", "max_dialogues")
    # A field that an older run does not have had its default's meaning.
    data = DataConfig(dir=Path(stored["dir"]), **{field: stored[field] for field in fields if field in stored})
    try:
        corpus = read_corpus(Path(stored["dir"]), data)
    except FileNotFoundError as error:
        notice(f"setting {name} {NEEDS_DIALOGUES[data.source]}: {error}")
        return [], {}
    return list(ranking_rows(corpus.test[: config["assess"]["test_dialogues"]])), corpus.items


def read_assessments(
    name: str, runs: Mapping[int, Path], rows: Sequence[RankingRow]
) -> dict[str, dict[int, Assessment]]:
    """What the runs stored of each trained system, by seed; `rows` are what was ranked, which SR and RDL need.

    Raises: RunError where the runs ranked other rows: their dialogues have changed since.
    """
    systems = {
        system: {seed: assess.load(assessment_file(folder, system), rows) for seed, folder in runs.items()}
        for system in systems_of(runs.values())
    }
    cases = [(number, row.dialogue.dialogue_id) for number, row in enumerate(rows) for _ in row.gold]
    for system, by_seed in systems.items():
        for seed, run in by_seed.items():
            full = run.ranking.tables["full"]
            if rows and list(zip(full.rows.tolist(), full.dialogues, strict=True)) != cases:
                file = assessment_file(runs[seed], system)
                raise RunError(f"setting {name}: {file} ranks other rows than the dialogues now have; restore them")
    return systems


def untrained_in_the_world(runs: Mapping[int, Path], split: str) -> list[Result]:
    """Recommenders that need no training, with the users that the runs' policies met."""
    measured = {}
    for seed, folder in runs.items():
        stored = run_config(folder)
        world, assess = from_json(WorldConfig, stored["data"]["world"], "config.data.world"), stored["assess"]
        measured[seed] = yardsticks(world, seed, n_users=assess["users"], n_turns=assess["user_turns"])
    return comparison.yardstick_results(measured, split=split)


DRAWN = (
    Measure("HR@5 full", "full", "hr@5"),
    Measure("NDCG@5 full", "full", "ndcg@5"),
    Measure("HR@5 fresh", "fresh", "hr@5"),
    Measure("NDCG@5 fresh", "fresh", "ndcg@5"),
    Measure("true utility, sampled", "closed-loop", "mean_utility", "sampled", users=True),
    Measure("true utility, greedy", "closed-loop", "mean_utility", "greedy", users=True),
    Measure("proxy reward, sampled", "closed-loop", "proxy_score", "sampled", users=True),
    Measure("BLEU-4, greedy", "text", "bleu4"),
    Measure("replies that suggest", "text", "item_share"),
    Measure("tokens a reply", "text", "response_length"),
    Measure("repetition", "text", "repetition"),
)
"""Panels of the figure of differences, as far as they were measured."""


def differences(results: Sequence[Result], splits: Mapping[str, str], compared: Mapping[str, Sides]) -> Figure:
    """The aligned policy − SFT with intervals: a panel a measure, a line a setting.

    Args:
      splits: setting to what was measured on.
      compared: setting to the two policies.
    """
    panels = {
        measure.label: [
            (name, found)
            for name, split in splits.items()
            if (found := find(results, compared[name].name, measure, split)) is not None
        ]
        for measure in DRAWN
    }
    return plots.forest(panels, x_label=f"{aligned(compared)} minus SFT", reference=0.0, one_scale=False)


def aligned(compared: Mapping[str, Sides]) -> str:
    """What the policies are called that the runs end with: `PPO`, `GRPO`, or both."""
    return " or ".join(dict.fromkeys(sides[0].upper() for sides in compared.values()))


def main(config: Config) -> Path:
    """Reads all runs and writes the summary."""
    settings = {
        name: [Path(folder) for folder in folders.split(",")]
        for name, _, folders in (setting.partition("=") for setting in config.settings)
    }
    for folder in itertools.chain(*settings.values()):
        if folder.is_dir() and not (folder / "metrics.jsonl").exists():
            raise RunError(f"{folder}: no metrics.jsonl, which the figures are drawn from; {EXPECTED}")
    claim(config.out, Path(__file__).name)
    results = [result for name, folders in settings.items() for result in gather_setting(name, folders)]
    write_results(config.out, results)
    lines = {name: [read_metrics(run / "metrics.jsonl") for run in folders] for name, folders in settings.items()}
    plots.save(run_figures.study(lines), config.out / "plots", "study")
    compared = {name: compared_in(folders[0]) for name, folders in settings.items()}
    page = diagnostics({name: (compared[name][0], runs) for name, runs in lines.items()})
    plots.save(page, config.out / "plots", "ppo")
    splits = {name: split_of(name, folders) for name, folders in settings.items()}
    plots.save(differences(results, splits, compared), config.out / "plots", "differences")
    command = f"python experiments/gather_seeds.py {config.out} {' '.join(config.settings)}"
    notes = [
        f"![{aligned(compared)} − SFT, 95 % intervals over seeds and cases, paired; each panel has a scale of its own](plots/differences.png)",
        f"![Proxy reward, true utility where it is known, and KL along {aligned(compared)}; one line a run](plots/study.png)",
        f"![{aligned(compared)} diagnostics, mean over runs; one line a setting](plots/ppo.png)",
    ]
    return write_report(config.out, title="Runs over seeds", command=command, notes=notes, gathered=True)


if __name__ == "__main__":
    print(f"report: {start(main, options(Config, __doc__))}")

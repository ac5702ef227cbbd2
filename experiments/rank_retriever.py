"""What does a retriever of two views recall, and what does each view alone?

The first line of SMTPO (arXiv:2604.03671), taken apart: its dual-view retriever. No code or formula of it is public: what was
decided here stands in docs/algorithms/smtpo.md. The whole system is `smtpo_redial.py`.

    python experiments/rank_retriever.py                              # world: the simulated world, CPU, minutes
    python experiments/rank_retriever.py redial --data.dir DIR        # real ReDial
    python experiments/rank_retriever.py debug                        # in miniature, some seconds

The retriever recalls `--retriever.candidates` items for the context before each recommender message. Systems: `popularity`,
`co_mention` and `mixture` (closed forms); `semantic`, `semantic_titles`, `collaborative` (one view of the towers alone); `towers` (both
views, cross-attention); `towers_mixture` (the towers as a seventh part of the mixture, weights by likelihood on the validation
split); `mixture_fitted` (that without the towers). All but the first three put what the context has named last, by rule; the
protocol `fresh-filtered` does it for everyone.

Early stopping and weights see the validation split alone; the test split is ranked once, at the end. The same command continues a
run that was interrupted (exit code 75). Writes `results.json`, `weights.json`, `report.md`, `metrics.jsonl`, checkpoints, and each system's
cases in `assessments/`. Hardware: two CPU cores; ReDial in about four minutes of one core a seed.

Expected, ReDial, `fresh`, recall@100, three seeds: mixture .472, semantic .397, semantic_titles .445, collaborative .434, towers .476,
towers_mixture .521 (docs/results/retriever.md).
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from command_line import preset_and_options, start
from rlhf_jax.assessment import assess
from rlhf_jax.data.sources import WORLD, SourceName, read_corpus
from rlhf_jax.data.windows import ranking_rows
from rlhf_jax.evaluation import ranking
from rlhf_jax.evaluation.ranking import RankTable
from rlhf_jax.evaluation.results import Result
from rlhf_jax.interfaces import Corpus
from rlhf_jax.ranges import Cases, Seed, check_numbers
from rlhf_jax.recommenders import dual_view, mixture, popularity
from rlhf_jax.recommenders.contexts import Recommender, Training, row_contexts, score_chunks
from rlhf_jax.recommenders.dual_view import DualView
from rlhf_jax.reporting.result_tables import protocol_tables, weights_table
from rlhf_jax.reporting.run_report import write_results
from rlhf_jax.runtime.files import notice, read_object, write_json, write_text
from rlhf_jax.runtime.interrupts import exits_on_signals
from rlhf_jax.runtime.run import RunDirectory, enable_compilation_cache, open_run
from rlhf_jax.simulators.world import WorldConfig
from rlhf_jax.simulators.world_dialogues import write_world
from rlhf_jax.stages.setup import DataConfig
from rlhf_jax.stages.smtpo import retriever
from rlhf_jax.stages.smtpo.retriever import RetrieverConfig, Sources

CLOSED = ("popularity", "co_mention", "mixture", "mixture_fitted")
VIEWS: Mapping[str, tuple[retriever.View, bool]] = {
    "semantic": ("semantic", False),
    "semantic_titles": ("semantic", True),
    "collaborative": ("collaborative", False),
    "towers": ("both", False),
}
"""System to the views it reads, and whether the words said hold the titles of what was named."""
FUSED = "towers_mixture"
PAIRS = (
    (FUSED, "mixture"),
    (FUSED, "mixture_fitted"),
    (FUSED, "towers"),
    ("towers", "mixture"),
    ("towers", "semantic"),
    ("towers", "semantic_titles"),
    ("towers", "collaborative"),
)


@dataclasses.dataclass(frozen=True)
class DialoguesConfig:
    """Which dialogues."""

    source: SourceName = WORLD
    """The simulated world, written on the spot, or files under `dir`."""
    dir: Path | None = None
    """Folder of the files; as `ppo_redial.py` reads it."""
    world: WorldConfig = WorldConfig()
    """The simulated world's size; used where `source` is `world`."""
    world_seed: Seed = 0
    """Of the simulated world."""
    max_dialogues: Cases | None = None
    """Dialogues read of each file; None is all."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if (self.source == WORLD) != (self.dir is None):
            raise ValueError(
                f"--data.source {self.source} and --data.dir {self.dir}: files need a folder, the world has none"
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """The retriever from data to table."""

    run_dir: Path = Path("runs/retriever-world")
    """Where everything goes; an interrupted run is continued from here."""
    seeds: tuple[Seed, ...] = (0,)
    """Of parameters, batches and negatives; every trained system is trained once with each."""
    data: DialoguesConfig = DialoguesConfig()
    retriever: RetrieverConfig = RetrieverConfig()
    cutoffs: tuple[Cases, ...] = (1, 10, 50, 100)
    """Ranks that are reported, HR@k = recall@k of a single gold item."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"--seeds must name different seeds: got {self.seeds}")
        if self.retriever.titles:
            raise ValueError("--retriever.titles changes nothing here: the words are read both ways")
        if self.retriever.in_prior:
            raise ValueError("--retriever.in-prior changes nothing here: there is no policy")


WORLD_CONFIG = Config(
    data=DialoguesConfig(world=WorldConfig(n_items=400, n_train=2000, n_test=300)),
    # A small catalogue: few candidates, few hard negatives, and words of a few templates.
    retriever=RetrieverConfig(
        semantic=64, collaborative=32, width=64, batch_size=64, hard_negatives=32, uniform_negatives=64, candidates=20
    ),
    cutoffs=(1, 5, 20, 50),
)
PRESETS = {
    "world": ("simulated world; a minute on 2 CPU cores", WORLD_CONFIG),
    "debug": (
        "the same in miniature; some seconds, for tests",
        Config(
            run_dir=Path("runs/debug-retriever"),
            data=DialoguesConfig(world=WorldConfig(n_items=60, n_train=60, n_test=20)),
            retriever=RetrieverConfig(
                semantic=8,
                collaborative=4,
                n_recent=3,
                width=8,
                n_head=2,
                epochs=1,
                batch_size=16,
                hard_negatives=4,
                uniform_negatives=8,
                warmup_steps=2,
                candidates=10,
            ),
            cutoffs=(1, 10),
        ),
    ),
    "redial": (
        "real ReDial (--data.dir); about four minutes of one core a seed",
        Config(run_dir=Path("runs/retriever-redial"), data=DialoguesConfig(source="redial", dir=Path("data/redial"))),
    ),
}


def main(config: Config) -> Path:
    """0 data, 1 retriever, report."""
    enable_compilation_cache(beside=config.run_dir)
    with exits_on_signals(), open_run(config.run_dir, config, trackers=()) as run:
        # 0. Dialogues, and what is counted on the training split.
        corpus = read_dialogues(run, config.data)
        run.record(data=corpus.provenance)
        sources = {
            titles: retriever.count_sources(corpus, dataclasses.replace(config.retriever, titles=titles))
            for titles in (False, True)
        }
        parts = mixture.fit_parts(sources[False].training, corpus.items)
        # 1. The retriever: both views and each alone, then beside the closed forms.
        towers = {
            (name, seed): retriever.train(
                run,
                sources[titles],
                config.retriever,
                seed=seed,
                view=view,
                stage=f"{retriever.STAGE}-{name}-seed{seed}",
            )
            for name, (view, titles) in VIEWS.items()
            for seed in config.seeds
        }
        weights = fit_weights(run, {seed: towers["towers", seed] for seed in config.seeds}, parts, sources[False])
        # Report: what each recalls for the contexts of the test split.
        tables = rank_all(run, corpus, config, sources[False], Fitted(parts, towers, weights))
        return report(run, config, tables, weights)


def read_dialogues(run: RunDirectory, data: DialoguesConfig) -> Corpus:
    """The corpus of the configuration; a world is written once a run."""
    if data.source != WORLD:
        folder = Path(str(data.dir))
        return read_corpus(folder, DataConfig(source=data.source, dir=folder, max_dialogues=data.max_dialogues))
    folder = run.path / "data"
    if not folder.exists():
        write_world(run.path / "data.partial", data.world, data.world_seed).rename(folder)
    return read_corpus(folder, DataConfig(max_dialogues=data.max_dialogues))


class Fitted(NamedTuple):
    """Everything that can be ranked with."""

    parts: Mapping[str, Recommender]
    """Closed forms."""
    towers: Mapping[tuple[str, int], DualView]
    """By system and seed."""
    weights: Mapping[str, mixture.FittedWeights]
    """Of `mixture_fitted`, and of `towers_mixture` by seed."""

    def recommender(self, system: str, seed: int | None, training: Training) -> Recommender:
        """The system as a function of contexts."""
        if system == "popularity":
            return partial(popularity.scores, popularity.fit(training))
        if system in self.parts:
            return self.parts[system]
        if system == "mixture":
            return partial(mixture.scores, mixture.mix(self.parts))
        if system == "mixture_fitted":
            found = partial(mixture.scores, mixture.mix(self.parts, self.weights[system].weights))
        elif system == FUSED:
            both = retriever.with_towers(self.towers["towers", seed or 0], self.parts)
            found = partial(mixture.scores, mixture.mix(both, self.weights[weights_name(seed)].weights))
        else:
            found = partial(dual_view.scores, self.towers[system, seed or 0])
        return partial(dual_view.without_named, found)


def weights_name(seed: int | None) -> str:
    """How the weights of the towers beside the closed forms are called."""
    return f"{FUSED}-seed{seed}"


def fit_weights(
    run: RunDirectory, towers: Mapping[int, DualView], parts: Mapping[str, Recommender], sources: Sources
) -> dict[str, mixture.FittedWeights]:
    """Weights by likelihood on the validation split; once a run."""
    stored = run.path / "weights.json"
    if stored.exists():
        return {name: mixture.FittedWeights(**fields) for name, fields in read_object(stored).items()}
    notice("weights of the mixtures, on the validation split")
    found = {"mixture_fitted": mixture.fit_weights(parts, sources.validation, sources.gold)}
    for seed, one in towers.items():
        found[weights_name(seed)] = retriever.fuse(one, parts, sources)
    write_json(stored, {name: one._asdict() for name, one in found.items()})
    return found


def rank_all(
    run: RunDirectory, corpus: Corpus, config: Config, sources: Sources, fitted: Fitted
) -> dict[str, dict[int, dict[str, RankTable]]]:
    """Rank tables of every system by seed and protocol, kept case by case; closed forms have seed −1."""
    (run.path / "assessments").mkdir(exist_ok=True)
    rows = list(ranking_rows(corpus.test))
    catalogue = sources.training.catalogue
    contexts = row_contexts(rows, catalogue)
    tables: dict[str, dict[int, dict[str, RankTable]]] = {}
    for system in (*CLOSED, *VIEWS, FUSED):
        for seed in (None,) if system in CLOSED else config.seeds:
            name = system if seed is None else f"{system}-seed{seed}"
            stored = run.path / "assessments" / f"{name}.npz"
            if not stored.exists():
                notice(f"{name}: ranking {len(rows)} rows")
                scores = score_chunks(fitted.recommender(system, seed, sources.training), contexts)
                outcome = ranking.rank_rows(rows, scores, catalogue.item_ids)
                assess.save(stored, assess.Assessment(outcome, [], {}))
            tables.setdefault(system, {})[-1 if seed is None else seed] = assess.load(stored, rows).ranking.tables
    return tables


def report(
    run: RunDirectory,
    config: Config,
    tables: Mapping[str, Mapping[int, Mapping[str, RankTable]]],
    weights: Mapping[str, mixture.FittedWeights],
) -> Path:
    """Writes and prints the table: systems down, recall across, and differences in pairs."""
    split = f"{config.data.source}/test"
    metrics = tuple(f"hr@{k}" for k in config.cutoffs)
    runs = {system: found.get(-1, found) for system, found in tables.items()}
    results: list[Result] = []
    for system, found in runs.items():
        results += ranking.ranking_results(system, found, split=split, metrics=metrics)
    for a, b in PAIRS:
        results += ranking.difference_results(f"{a}-{b}", runs[a], runs[b], split=split, metrics=metrics)
    write_results(run.path, results)
    path = run.path / "report.md"
    write_text(path, report_text(results, weights))
    print(report_text([one for one in results if one.protocol.startswith("fresh")], weights))
    print(f"report: {path}")
    return path


def report_text(results: list[Result], weights: Mapping[str, mixture.FittedWeights]) -> str:
    """A table a protocol, and the fitted weights."""
    parts = [
        "# Retriever of two views",
        (
            "95 % bootstrap intervals over dialogues; nothing was fitted or chosen on the test split. Under `fresh` the closed forms "
            "`popularity`, `co_mention` and `mixture` may rank what was named before; all others put it last, as `fresh-filtered` "
            "does for everyone."
        ),
        *protocol_tables(results),
        "## Weights by maximum likelihood on the validation split",
    ]
    parts.append(weights_table(weights))
    return "\n\n".join(parts) + "\n"


def command_line(arguments: list[str]) -> Config:
    """A preset (none means `world`) with options on top."""
    return preset_and_options(PRESETS, arguments, __doc__)


if __name__ == "__main__":
    start(main, command_line)

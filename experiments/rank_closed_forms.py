"""How well do closed forms recommend, alone and mixed, without any training by gradients?

    python experiments/rank_closed_forms.py --data-dir DIR                  # all of ReDial
    python experiments/rank_closed_forms.py opendialkg --data-dir DIR       # OpenDialKG
    python experiments/rank_closed_forms.py world                           # the simulated world, no data needed
    python experiments/rank_closed_forms.py debug                           # a small world, some seconds, for tests

DIR holds `redial/` and `opendialkg/`. Hardware: two CPU cores, about five minutes for ReDial. Everything is counted on the
training split; weights of the mixtures are fitted on the validation split; the test split is ranked once, at the end.
Writes `results.json` (every system under every protocol, 95 % intervals over dialogues), `weights.json`, `report.md`, and
the cases of each system in `assessments/`.

Systems: `popularity` and `copy` as in every ranking table; each form alone; `mixture` with the fixed weights of
`recommenders/mixture.py`; `mixture_fitted` with weights of the same six by maximum likelihood on validation; and
`mixture_titles`, the same with a seventh, `context_knn_titles`; `mixture_tuned`, those seven with numbers (shrinkage, ridge,
neighbours) that were chosen on ReDial's validation split.

Expected, ReDial, `fresh`, R@1/10/50: mixture .042/.196/.384, mixture_tuned .045/.202/.397 (docs/recommenders.md has the whole
table).
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
from functools import partial
from pathlib import Path
from typing import Literal

from command_line import preset_and_options, start
from rlhf_jax.assessment import assess
from rlhf_jax.data.sources import read_corpus
from rlhf_jax.data.windows import RankingRow, ranking_rows
from rlhf_jax.evaluation import ranking
from rlhf_jax.evaluation.results import Result
from rlhf_jax.feedback.encoders import default_cache, minilm_encoder
from rlhf_jax.interfaces import Corpus
from rlhf_jax.ranges import Cases, Seed, check_numbers
from rlhf_jax.recommenders import context_knn, copy_last, mixture, popularity
from rlhf_jax.recommenders.contexts import (
    Catalogue,
    Contexts,
    Recommender,
    Training,
    columns_of,
    counts,
    read_training,
    row_contexts,
    score_chunks,
)
from rlhf_jax.reporting.result_tables import protocol_tables, weights_table
from rlhf_jax.reporting.run_report import write_results
from rlhf_jax.runtime.files import notice, write_json, write_text
from rlhf_jax.runtime.run import RunDirectory, open_run
from rlhf_jax.simulators.world import WorldConfig
from rlhf_jax.simulators.world_dialogues import write_world
from rlhf_jax.stages.setup import DataConfig

SIX = tuple(mixture.WEIGHTS)
SEVEN = (*SIX, "context_knn_titles")


@dataclasses.dataclass(frozen=True)
class Config:
    """Which dialogues."""

    source: Literal["redial", "opendialkg", "world"] = "redial"
    """Real dialogues under `data_dir`, or the simulated world, written on the spot."""
    data_dir: Path = Path("data")
    """Holds `redial/` and `opendialkg/`; not read for the world."""
    run_dir: Path = Path("runs/closed-forms")
    """Where results, table and cases go."""
    world: WorldConfig = WorldConfig()
    """The simulated world's size."""
    seed: Seed = 0
    """Of the simulated world."""
    max_dialogues: Cases | None = None
    """Dialogues read of each file; None is all."""
    minilm: bool = False
    """Whether the contexts are compared by MiniLM too; needs the extra `minilm`, some hours on a CPU at first, then kept."""
    metrics: tuple[str, ...] = ranking.metric_names()
    """What is made of the ranks."""

    def __post_init__(self) -> None:
        check_numbers(self)


PRESETS = {
    "redial": ("all of ReDial", Config()),
    "opendialkg": (
        "all of OpenDialKG, movies and books",
        Config(source="opendialkg", run_dir=Path("runs/closed-forms-opendialkg")),
    ),
    "world": ("the simulated world", Config(source="world", run_dir=Path("runs/closed-forms-world"))),
    "debug": (
        "a small world; some seconds, for tests",
        Config(
            source="world",
            run_dir=Path("runs/debug-closed-forms"),
            world=WorldConfig(n_items=120, n_train=150, n_test=40),
        ),
    ),
}


def main(config: Config) -> Path:
    """1 dialogues, 2 counts, 3 weights, 4 ranks, 5 table."""
    with open_run(config.run_dir, config, trackers=()) as run:
        # 1. Dialogues.
        corpus = read_dialogues(run, config)
        run.record(data=corpus.provenance)
        # 2. Counts of the training split.
        titles = {item_id: item.title for item_id, item in corpus.items.items()}
        catalogue = Catalogue(tuple(corpus.items), titles)
        training = read_training(corpus.train, catalogue)
        parts = mixture.fit_parts(training, corpus.items, SEVEN)
        tuned = mixture.fit_parts(training, corpus.items, SEVEN, numbers=mixture.REDIAL_NUMBERS)
        mixtures = {
            "mixture_fitted": {name: parts[name] for name in SIX},
            "mixture_titles": parts,
            "mixture_tuned": tuned,
        }
        notice(f"{len(training.numbers)} training dialogues, {len(training.rows)} rows, {len(titles)} items")
        # 3. Weights, on the validation split.
        fitted = fit_on_validation(run, corpus, catalogue, mixtures)
        # 4. Ranks of the test split.
        rows = list(ranking_rows(corpus.test))
        contexts = row_contexts(rows, catalogue)
        split = f"{config.source}/test"
        results: list[Result] = []
        tables = {}
        for name, recommender in systems(config, training, parts, mixtures, fitted).items():
            tables[name] = ranks(run, name, rows, recommender, contexts, catalogue)
            results += ranking.ranking_results(name, tables[name], split=split, metrics=config.metrics)
        for a, b in (
            ("mixture", "copy"),
            ("mixture_fitted", "mixture"),
            ("mixture_titles", "mixture"),
            ("mixture_tuned", "mixture"),
        ):
            results += ranking.difference_results(f"{a}-{b}", tables[a], tables[b], split=split, metrics=config.metrics)
        # 5. Table.
        write_results(run.path, results)
        report = run.path / "report.md"
        write_text(report, report_text(results, fitted))
        print(report_text([r for r in results if r.protocol == "fresh"], fitted))
        print(f"report: {report}")
        return report


def read_dialogues(run: RunDirectory, config: Config) -> Corpus:
    """The corpus of the configuration; a world is written once a run."""
    if config.source == "world":
        folder = run.path / "data"
        if not folder.exists():
            write_world(run.path / "data.partial", config.world, config.seed).rename(folder)
        return read_corpus(folder, DataConfig(max_dialogues=config.max_dialogues))
    folder = config.data_dir / config.source
    return read_corpus(folder, DataConfig(source=config.source, dir=folder, max_dialogues=config.max_dialogues))


def fit_on_validation(
    run: RunDirectory, corpus: Corpus, catalogue: Catalogue, mixtures: dict[str, dict[str, Recommender]]
) -> dict[str, mixture.FittedWeights]:
    """Weights of the mixtures by maximum likelihood of the fresh gold items of the validation split."""
    rows = [row for row in ranking_rows(corpus.validation) if row.fresh_gold]
    contexts = row_contexts(rows, catalogue)
    gold = counts([row.fresh_gold for row in rows], columns_of(catalogue.item_ids))
    fitted = {name: mixture.fit_weights(parts, contexts, gold) for name, parts in mixtures.items()}
    write_json(run.path / "weights.json", {name: found._asdict() for name, found in fitted.items()})
    return fitted


def systems(
    config: Config,
    training: Training,
    parts: dict[str, Recommender],
    mixtures: dict[str, dict[str, Recommender]],
    fitted: dict[str, mixture.FittedWeights],
) -> dict[str, Recommender]:
    """Everything that is ranked, in the order to show."""
    counted = popularity.fit(training)
    found: dict[str, Recommender] = {
        "popularity": partial(popularity.scores, counted),
        "copy": partial(copy_last.scores, counted),
        "popularity_fresh": parts["popularity"],
        **{name: parts[name] for name in SEVEN if name != "popularity"},
    }
    if config.minilm:
        encoder = minilm_encoder(cache=default_cache())
        found["context_knn_minilm"] = partial(context_knn.scores, context_knn.fit(training, encoder=encoder))
    six = {name: parts[name] for name in SIX}
    found["mixture"] = partial(mixture.scores, mixture.mix(six))
    for name, weights in fitted.items():
        found[name] = partial(mixture.scores, mixture.mix(mixtures[name], weights.weights))
    return found


def ranks(
    run: RunDirectory,
    name: str,
    rows: list[RankingRow],
    recommender: Recommender,
    contexts: Contexts,
    catalogue: Catalogue,
) -> dict[str, ranking.RankTable]:
    """Ranks by protocol, kept case by case; once a run and system."""
    folder = run.path / "assessments"
    folder.mkdir(exist_ok=True)
    stored = folder / f"{name}.npz"
    if not stored.exists():
        notice(f"{name}: ranking {len(rows)} rows")
        outcome = ranking.rank_rows(rows, score_chunks(recommender, contexts), catalogue.item_ids)
        assess.save(stored, assess.Assessment(outcome, [], {}))
    return assess.load(stored, rows).ranking.tables


def report_text(results: list[Result], fitted: dict[str, mixture.FittedWeights]) -> str:
    """A table a protocol, systems down and metrics across, and the fitted weights."""
    parts = [
        "# Closed forms",
        "95 % bootstrap intervals over dialogues; nothing was fitted or chosen on the test split.",
    ]
    parts += protocol_tables(results)
    parts.append("## Weights by maximum likelihood on the validation split")
    parts.append(weights_table(fitted))
    return "\n\n".join(parts) + "\n"


def command_line(arguments: list[str]) -> Config:
    """A preset (none means `redial`) with options on top."""
    return preset_and_options(PRESETS, arguments, __doc__)


if __name__ == "__main__":
    start(main, command_line)

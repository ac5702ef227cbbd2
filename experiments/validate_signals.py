"""Which of the paper's implicit signals carry information about what people thought?

Paper: IUF-RLHF, arXiv:2508.05289, whose reward is engagement + relevance + sentiment shift; it does not report how these
track satisfaction. Here every variant is held against three human judgements.

    python experiments/validate_signals.py --data.dir DIR                                                       # TF-IDF and VADER
    python experiments/validate_signals.py --data.dir DIR --signals.minilm --run-dir runs/signals-minilm        # and MiniLM
    python experiments/validate_signals.py debug --data.dir DIR                                                 # sixty dialogues, under a minute

DIR holds `redial/`, `uss/` and `crs-response-ratings/`. Hardware: one CPU core, some minutes; MiniLM on all dialogues
takes longer (`--signals.minilm-dialogues` bounds it) and is computed once. Writes `results.json`, `report.md` with the
table, and `plots/signals.{svg,png}`.

Expected: docs/results/signals.md.

Judgements: USS satisfaction of the answering user turn (998 ReDial dialogues, joined by id and message), `liked` in the seeker's
form (test and validation dialogues; items the recommender named first), ratings of three systems' replies (raters who
passed the attention check). Reply times are real in the test file and the verbatim part of the training file only.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
from pathlib import Path

import numpy as np

from command_line import preset_and_options, start
from rlhf_jax.data.exchanges import liked_cases, rating_cases, satisfaction_cases
from rlhf_jax.data.human_ratings import read_response_ratings, read_uss
from rlhf_jax.data.redial import read_redial
from rlhf_jax.ranges import Cases, Replicates, check_numbers
from rlhf_jax.reporting.run_report import write_results
from rlhf_jax.runtime.files import notice, write_text
from rlhf_jax.runtime.run import enable_compilation_cache, open_run
from studies.signals import measure as signal_study
from studies.signals import report as signal_report
from studies.signals.measure import SignalConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where dialogues and judgements are."""

    dir: Path = Path("data")
    """Holds `redial/`, `uss/` and `crs-response-ratings/ratings.jsonl`."""
    max_dialogues: Cases | None = None
    """Judged dialogues of each kind; None is all."""

    def __post_init__(self) -> None:
        check_numbers(self)


@dataclasses.dataclass(frozen=True)
class Config:
    """Signals against judgements."""

    run_dir: Path = Path("runs/signals")
    """Where results, table and figure go."""
    data: DataConfig = DataConfig()
    signals: SignalConfig = SignalConfig()
    replicates: Replicates = 500
    """Bootstrap replicates of every interval."""

    def __post_init__(self) -> None:
        check_numbers(self)


PRESETS = {
    "signals": ("every signal on all judged dialogues", Config()),
    "debug": (
        "sixty dialogues of each judgement; under a minute, for tests",
        Config(
            run_dir=Path("runs/debug-signals"),
            data=DataConfig(max_dialogues=60),
            signals=SignalConfig(fit_dialogues=60, n_components=16),
            replicates=50,
        ),
    ),
}


def main(config: Config) -> Path:
    """1 dialogues, 2 judgements, 3 signals, 4 associations, 5 table and figure."""
    enable_compilation_cache()
    with open_run(config.run_dir, config, trackers=()) as run:
        folder, limit = config.data.dir, config.data.max_dialogues
        # 1. Dialogues.
        corpus = read_redial(folder / "redial")
        run.record(data=corpus.provenance)
        # 2. Judgements, and the cases that carry them.
        scored = read_uss(folder / "uss")
        train = [dialogue for dialogue in corpus.train if dialogue.dialogue_id in scored]
        held_out = [*corpus.test[:limit], *corpus.validation[:limit]]
        ratings = read_response_ratings(folder / "crs-response-ratings" / "ratings.jsonl")[
            : 3 * limit if limit else None
        ]
        in_validation = [dialogue for dialogue in corpus.validation if dialogue.dialogue_id in scored]
        cases = {
            "satisfaction": satisfaction_cases([*train, *in_validation][:limit], scored),
            "liked": liked_cases(held_out),
            "rating": rating_cases(ratings),
        }
        splits = {"satisfaction": "redial/uss", "liked": "redial/test+validation", "rating": "crs-response-ratings"}
        # 3. Signals, fitted where nothing is judged.
        fitted = signal_study.fit(corpus, set(scored), config.signals)
        results = {}
        for judgement, rows in cases.items():
            notice(f"{judgement}: {len(rows)} cases of {len({row.dialogue.dialogue_id for row in rows})} dialogues")
            table = signal_study.measure(rows, fitted, config.signals)
            # 4. Associations with intervals over dialogues.
            groups = np.array([reply.line for reply in ratings]) if judgement == "rating" else np.arange(len(rows))
            results[judgement] = signal_report.associations(
                judgement, rows, table, groups=groups, split=splits[judgement], replicates=config.replicates
            )
        # 5. Table and figure.
        write_results(run.path, [result for found in results.values() for result in found])
        signal_report.figure(results, run.path / "plots")
        report = run.path / "report.md"
        write_text(report, signal_report.report_text(results))
        print(signal_report.markdown_table(results))
        print(f"report: {report}")
        return report


def command_line(arguments: list[str]) -> Config:
    """A preset (none means `signals`) with options on top."""
    return preset_and_options(PRESETS, arguments, __doc__)


if __name__ == "__main__":
    start(main, command_line)

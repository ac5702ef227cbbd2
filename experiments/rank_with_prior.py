"""How much better does a finished policy recommend when its item head reads what recommenders know?

    python experiments/rank_with_prior.py runs/redial                    # a run of ppo_redial.py, or ppo_opendialkg.py
    python experiments/rank_with_prior.py runs/demo --stages sft         # one stage alone

Nothing of the policy is trained again. Six closed-form recommenders are counted on the training split; their weights, the
weight of the policy's own word and the price of a repetition are fitted by likelihood on the validation split, for each
stage; the test split is ranked once, at the end. This is the likelihood rival of any reinforcement learning of the same
numbers. Hardware: a CPU; its time on ReDial was not measured yet.

Systems: each stage alone (`sft`), with its prior (`sft_prior`), and the recommenders' mixture without a policy
(`mixture`, fixed weights). Writes `results.json`, `weights.json`, `report.md`, and the cases of each system in
`assessments/`. `decoding/prior.py` has the formula.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
import tyro

from command_line import options, start
from rlhf_jax.assessment import assess
from rlhf_jax.assessment.finished_run import open_finished, stage_policy
from rlhf_jax.data.windows import RankingRow, ranking_rows
from rlhf_jax.decoding import prior
from rlhf_jax.evaluation import ranking
from rlhf_jax.evaluation.results import Result
from rlhf_jax.interfaces import Params
from rlhf_jax.ranges import Batch, check_numbers
from rlhf_jax.recommenders import mixture
from rlhf_jax.recommenders.contexts import row_contexts, score_chunks
from rlhf_jax.reporting.result_tables import markdown_table, protocol_tables
from rlhf_jax.reporting.run_report import write_results
from rlhf_jax.runtime.files import RunError, notice, write_json, write_text
from rlhf_jax.runtime.run import RunDirectory, open_run
from rlhf_jax.stages.item_prior import ItemPrior, Likelihood, fit_recommenders, fit_weights, row_prompts
from rlhf_jax.stages.setup import Setup


@dataclasses.dataclass(frozen=True)
class Config:
    """Which policies."""

    policy_run: tyro.conf.Positional[Path]
    """Run directory of `ppo_redial.py` or `ppo_opendialkg.py`."""
    run_dir: Path | None = None
    """Where results, table and cases go; None is `POLICY_RUN-prior` beside it."""
    stages: tuple[str, ...] = ()
    """Stages whose policies are ranked; none names all that are there."""
    parts: tuple[str, ...] = tuple(mixture.WEIGHTS)
    """Recommenders that the prior reads; `context_knn_titles` may be added."""
    batch_size: Batch = 64
    """Contexts scored at once; their scores take 4·K·I bytes each."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if not self.parts:
            raise ValueError("--parts names no recommender")

    @property
    def folder(self) -> Path:
        """Where results go."""
        return self.run_dir or self.policy_run.with_name(f"{self.policy_run.resolve().name}-prior")


def main(config: Config) -> Path:
    """1 policies, 2 counts, 3 weights, 4 ranks, 5 table."""
    # 1. Policies.
    finished = open_finished(config.policy_run)
    stages = config.stages or tuple(finished.stages)
    missing = [stage for stage in stages if stage not in finished.stages]
    if missing or not stages:
        raise RunError(f"{config.policy_run} has no stage {missing or 'with a policy'}; it has {finished.stages}")
    setup = Setup(finished.data, finished.corpus, finished.vocab, finished.agent, seed=int(finished.config["seed"]))
    policies = {stage: stage_policy(finished, stage) for stage in stages}
    with open_run(config.folder, config, trackers=()) as run:
        run.record(data=finished.corpus.provenance)
        # 2. Counts of the training split.
        known = fit_recommenders(finished.corpus, finished.vocab.item_ids, config.parts)
        # 3. Weights, on the validation split.
        rows = [row for row in ranking_rows(finished.corpus.validation) if row.fresh_gold]
        fitted = {
            stage: fit_weights(setup, policy, known, rows, batch_size=config.batch_size)
            for stage, policy in policies.items()
        }
        write_json(run.path / "weights.json", {stage: found._asdict() for stage, found in fitted.items()})
        # 4. Ranks of the test split.
        results = ranks_of(run, setup, policies, known, fitted, config.batch_size)
        # 5. Table.
        write_results(run.path, results)
        report = run.path / "report.md"
        write_text(report, report_text(results, fitted))
        print(report_text([r for r in results if r.protocol == "fresh"], fitted))
        print(f"report: {report}")
        return report


def ranks_of(
    run: RunDirectory,
    setup: Setup,
    policies: dict[str, Params],
    known: ItemPrior,
    fitted: dict[str, Likelihood],
    batch_size: int,
) -> list[Result]:
    """Every system under every protocol, and the differences that answer the question."""
    rows = list(ranking_rows(setup.corpus.test))
    weights = {name: mixture.WEIGHTS.get(name, 1.0) for name in known.parts}
    recommender = partial(mixture.scores, mixture.mix(known.parts, weights))
    systems = {"mixture": lambda: score_chunks(recommender, row_contexts(rows, known.catalogue))}
    for stage, policy in policies.items():
        bare = {"trunk": policy["trunk"]}
        systems[stage] = partial(scores, setup, bare, None, rows, batch_size)
        with_prior = bare | {prior.NAME: fitted[stage].params()}
        systems[f"{stage}_prior"] = partial(scores, setup, with_prior, known, rows, batch_size)
    folder, tables = run.path / "assessments", {}
    folder.mkdir(exist_ok=True)
    for name, chunks in systems.items():
        stored = folder / f"{name}.npz"
        if not stored.exists():
            notice(f"{name}: ranking {len(rows)} rows")
            assess.save(stored, assess.Assessment(ranking.rank_rows(rows, chunks(), setup.vocab.item_ids), [], {}))
        tables[name] = assess.load(stored, rows).ranking.tables
    split, metrics = f"{setup.data.corpus_name}/test", ranking.metric_names()
    results = [
        r for name, table in tables.items() for r in ranking.ranking_results(name, table, split=split, metrics=metrics)
    ]
    pairs = [(f"{stage}_prior", other) for stage in policies for other in (stage, "mixture")]
    for a, b in pairs:
        results += ranking.difference_results(f"{a}-{b}", tables[a], tables[b], split=split, metrics=metrics)
    return results


def scores(
    setup: Setup, params: Params, known: ItemPrior | None, rows: list[RankingRow], batch_size: int
) -> Iterator[np.ndarray]:
    """Scores of all items for every row of the test split."""
    compiled = setup.agent.compiled("score_items", lambda: jax.jit(setup.agent.score_items))
    for prompts, own in row_prompts(setup, setup.corpus.test, rows, known, batch_size):
        yield np.asarray(compiled(params, prompts))[: len(own)]


def report_text(results: list[Result], fitted: dict[str, Likelihood]) -> str:
    """A table a protocol, systems down and metrics across, and the fitted weights."""
    parts = [
        "# Policies with a prior over items",
        "95 % bootstrap intervals over dialogues; nothing was fitted or chosen on the test split.",
    ]
    parts += protocol_tables(results)
    parts.append("## Weights by maximum likelihood on the validation split")
    lines = [
        [
            stage,
            ", ".join(f"{name} {weight:.2f}" for name, weight in found.weights.items()),
            f"{found.before:.3f} → {found.after:.3f}",
            f"{found.n:,}",
        ]
        for stage, found in fitted.items()
    ]
    parts.append(markdown_table(["policy", "weights", "nats per gold item", "gold items"], lines))
    return "\n\n".join(parts) + "\n"


def command_line(arguments: list[str]) -> Config:
    """The options."""
    return options(Config, __doc__)(arguments)


if __name__ == "__main__":
    start(main, command_line)

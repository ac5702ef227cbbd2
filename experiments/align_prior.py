"""Does reinforcement learning of a few numbers make imitation recommend better on real dialogues?

    python experiments/align_prior.py runs/redial-0 runs/redial-1 runs/redial-2     # one run of ppo_redial.py a seed
    python experiments/align_prior.py runs/demo                                     # or one alone
    python experiments/align_prior.py runs/redial-0 … --judge-data DIR              # ReDial: greedy replies are judged too

The runs need their supervised policy and nothing more. Six closed-form recommenders are counted on the training split; the
policy's item head reads them with one weight each, beside a weight of its own word and a price of repeating what was named
(`decoding/prior.py`). These numbers are learnt on 60 % of the validation dialogues, which no supervised gradient saw: by GRPO
on lists of ten (`learners/list_grpo.py`), paid by the NDCG of what the human names from there on, and by likelihood, its
cheapest rival. The other 40 % are measured alone; the test split is ranked once, at the end.

With `--reads-retriever` they read one part more, the towers of a dual-view retriever (SMTPO's, `stages/smtpo/retriever.py`) that is
trained for each seed on the training split, and chosen on those 60 %.

DIR holds `uss/` and `redial/`, from which the judge of people's satisfaction is fitted.

Systems: `popularity`, `copy`; `mixture` (the closed forms without a policy, fixed weights); `sft`; `sft_filtered` (told by
hand not to suggest what was named); `likelihood` and `grpo`; with a retriever `retriever`, it and the closed forms without a
policy. Writes `results.json`, `weights.json`, `report.md`, and the cases
of every system and seed in `seed-S/assessments/`. Hardware: two CPU cores; minutes a run,
and more with a retriever to train.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jaxtyping import Float32

from command_line import options, start
from rlhf_jax.assessment import assess, comparison, judged
from rlhf_jax.assessment.assess import Assessment, AssessmentConfig
from rlhf_jax.assessment.finished_run import Finished, open_finished, stage_policy
from rlhf_jax.assessment.satisfaction import check_unread, uss_judge
from rlhf_jax.data.batching import wrapped_batches
from rlhf_jax.decoding import prior
from rlhf_jax.evaluation import ranking, text
from rlhf_jax.evaluation.ranking import RankingOutcome
from rlhf_jax.evaluation.results import Result
from rlhf_jax.evaluation.satisfaction_judge import SatisfactionJudge
from rlhf_jax.interfaces import Params
from rlhf_jax.recommenders import mixture
from rlhf_jax.recommenders.scorer import ItemScorer
from rlhf_jax.reporting.result_tables import markdown_table, protocol_tables
from rlhf_jax.reporting.run_report import write_results
from rlhf_jax.runtime.files import RunError, as_json, write_json, write_text
from rlhf_jax.runtime.interrupts import exits_on_signals
from rlhf_jax.runtime.progress import Progress
from rlhf_jax.runtime.run import RunDirectory, open_run
from rlhf_jax.stages import item_prior
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.item_prior import Fitted, PriorConfig
from rlhf_jax.stages.setup import Setup
from rlhf_jax.stages.smtpo.recommender import TOWERS, Retrieval, add_retriever, telling_towers
from rlhf_jax.stages.smtpo.retriever import RetrieverConfig

VOLATILE = ("run_dir", "runs", "judge_data")
"""May change where a run goes on: a judge may come later."""
LEARNT = ("likelihood", "grpo")
ALONE = "retriever"
"""What is recalled without a policy."""
SPEAKING = ("sft", "grpo")
"""Systems whose greedy replies are compared with the human's."""
PAIRS = (
    ("grpo", "sft"),
    ("grpo", "sft_filtered"),
    ("grpo", "mixture"),
    ("grpo", "likelihood"),
    ("likelihood", "sft"),
    ("sft_filtered", "sft"),
    ("grpo", ALONE),
    (ALONE, "mixture"),
)
"""Of those that are there."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Which policies, and how the prior is learnt."""

    policy_runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories of `ppo_redial.py` or `ppo_opendialkg.py`, one a seed, on the same dialogues."""
    run_dir: Path | None = None
    """Where results, table and cases go; None is `POLICY_RUN-prior` beside the first."""
    prior: PriorConfig = PriorConfig(learner="grpo")
    """The numbers of GRPO; both learners are run, so that `--prior.learner` stays as it is."""
    reads_retriever: bool = False
    """Whether the prior reads a trained retriever beside the closed forms."""
    retriever: RetrieverConfig = RetrieverConfig()
    """How that learns."""
    assess: AssessmentConfig = AssessmentConfig(text_turns=1000)
    """Size of the evaluation."""
    judge_data: Path | None = None
    """Holds `uss/` and `redial/`: greedy replies are judged as well. For policies of ReDial; None: nobody judges what was not
    judged before."""
    runs: Path = Path("runs")
    """Where the judge is kept, under `judge/`, as by the other studies. Not read without `judge_data`."""

    def __post_init__(self) -> None:
        if not self.policy_runs:
            raise ValueError("no run directory was named")
        if self.prior.learner != "grpo":
            raise ValueError(
                f"--prior.learner {self.prior.learner} changes nothing here: GRPO and likelihood are both run"
            )
        for field in dataclasses.fields(RetrieverConfig):
            if not self.reads_retriever and getattr(self.retriever, field.name) != field.default:
                flag = f"--retriever.{field.name}".replace("_", "-")
                raise ValueError(
                    f"{flag} {getattr(self.retriever, field.name)} is not read: there is no --reads-retriever"
                )
        if self.retriever.in_prior:
            raise ValueError("--retriever.in-prior is of conversations: here --reads-retriever tells the prior of it")
        if self.reads_retriever and self.prior.parts != PriorConfig().parts:
            raise ValueError(
                f"--prior.parts {' '.join(self.prior.parts)}: a retriever stands beside all six closed forms"
            )

    @property
    def folder(self) -> Path:
        """Where results go."""
        first = self.policy_runs[0]
        return self.run_dir or first.with_name(f"{first.resolve().name}-prior")


def main(config: Config) -> Path:
    """1 policies, 2 counts, 3 weights, 4 ranks and replies, 5 table."""
    # 1. Policies.
    runs = by_seed([open_finished(path) for path in config.policy_runs])
    with exits_on_signals(), open_run(config.folder, config, trackers=(), volatile=VOLATILE) as run:
        some = next(iter(runs.values()))
        run.record(data=some.corpus.provenance)
        judge = judge_of(run, some, config)
        fitted: dict[int, dict[str, Fitted]] = {}
        cases: dict[str, dict[int, Assessment]] = {}
        scorer = None
        for seed, finished in runs.items():
            setup = Setup(finished.data, finished.corpus, finished.vocab, finished.agent, seed)
            # 2. Counts of the training split, which is the same for all; or a retriever for each seed, which counts too.
            retrieval = retriever_of(run, setup, config) if config.reads_retriever else None
            if retrieval is not None:
                scorer = telling_towers(retrieval)
            elif scorer is None or scorer.catalogue.item_ids != tuple(finished.vocab.item_ids):
                scorer = item_prior.with_scorer(setup, config.prior).scorer
            setup = setup._replace(scorer=scorer)
            sft = stage_policy(finished, "sft")
            # 3. Weights, on the validation split.
            known = item_prior.look_up_validation(setup, sft, config.prior)
            fitted[seed] = {
                learner: item_prior.train(
                    run,
                    setup,
                    known,
                    dataclasses.replace(config.prior, learner=learner),
                    stage=f"{item_prior.STAGE}-seed{seed}",
                )
                for learner in LEARNT
            }
            # 4. Ranks and replies, on the test split.
            for name, assessed in measure(run, setup, sft, fitted[seed], config, retrieval).items():
                cases.setdefault(name, {})[seed] = assessed
            if judge is not None:
                judge_replies(run, setup, policies_of(setup, sft, fitted[seed]), judge, config)
        write_json(run.path / "weights.json", as_stored(fitted))
        # 5. Table.
        results = results_of(some, cases, config)
        results += judged_results(run, list(runs), split=f"{some.data.corpus_name}/test")
        write_results(run.path, results)
        report = run.path / "report.md"
        write_text(report, report_text(results, fitted))
        print(report_text([one for one in results if one.protocol == "fresh"], fitted))
        print(f"report: {report}")
        return report


def judge_of(run: RunDirectory, some: Finished, config: Config) -> SatisfactionJudge | None:
    """The judge of people's satisfaction, where one was asked for; before anything is learnt.

    Raises: RunError for policies of other data than ReDial, which the judge was fitted on, and where another judge judged here.
    """
    if config.judge_data is None:
        return None
    if some.data.source != "redial":
        raise RunError(
            f"--judge-data {config.judge_data}: the judge was fitted on ReDial, and {some.path} is of {some.data.source}"
        )
    judge, fitted = uss_judge(config.judge_data, config.runs / "judge")
    run.record(judge=fitted["provenance"])
    check_unread(judge, some.corpus.test)
    return judge


def by_seed(runs: list[Finished]) -> dict[int, Finished]:
    """The runs in the order of their seeds.

    Raises: RunError for a run without a supervised policy, a seed that occurs twice, or other dialogues.
    """
    found: dict[int, Finished] = {}
    for run in runs:
        seed = int(run.config["seed"])
        if "sft" not in run.stages:
            raise RunError(f"{run.path} has no supervised policy yet; it has {', '.join(run.stages) or 'no stage'}")
        if seed in found:
            raise RunError(f"{run.path}: seed {seed} is that of {found[seed].path} too")
        if found and run.corpus.provenance != next(iter(found.values())).corpus.provenance:
            raise RunError(f"{run.path} read other dialogues than {runs[0].path}: one data set at a time")
        found[seed] = run
    return dict(sorted(found.items()))


def retriever_of(run: RunDirectory, setup: Setup, config: Config) -> Retrieval:
    """The seed's retriever, and its weights beside the closed forms, on the part of the validation split that the prior learns from."""
    share = config.prior.held_out
    looked_at = tuple(one for one in setup.corpus.validation if not item_prior.is_held_out(one, share))
    corpus = dataclasses.replace(setup.corpus, validation=looked_at)
    facts = {"retriever": as_json(config.retriever), "held_out": share, "seed": setup.seed}
    with open_run(run.path / f"retriever-{setup.seed}", facts, trackers=(), wait=True) as own:
        return add_retriever(own, setup._replace(corpus=corpus), config.retriever)[1]


def policies_of(setup: Setup, sft: Params, fitted: Mapping[str, Fitted]) -> dict[str, Params]:
    """Every policy by its name."""
    trunk, names = {"trunk": sft["trunk"]}, item_prior.scorer_of(setup).names
    return {
        "sft": trunk,
        "sft_filtered": trunk | {prior.NAME: item_prior.filtered(names)},
        **{name: trunk | {prior.NAME: one.params()} for name, one in fitted.items()},
    }


def measure(
    run: RunDirectory,
    setup: Setup,
    sft: Params,
    fitted: Mapping[str, Fitted],
    config: Config,
    retrieval: Retrieval | None,
) -> dict[str, Assessment]:
    """Every system case by case, once a run and seed."""
    folder = assessments(run, setup.seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = assess.test_rows(setup, config.assess)
    policies = policies_of(setup, sft, fitted)
    names = (*policies, "mixture", *((ALONE,) if retrieval is not None else ()))
    missing = [name for name in names if not (folder / f"{name}.npz").exists()]
    outcomes = ranked(setup, policies, rows, config.assess, retrieval) if missing else {}
    for name in missing:
        outcome = outcomes[name]
        turns = []
        if name in SPEAKING:
            turns = assess.answer(setup, policies[name], config.assess, name=f"{name}, seed {setup.seed}: answers")
        assess.save(folder / f"{name}.npz", Assessment(outcome, turns, {}))
    return {name: assess.load(folder / f"{name}.npz") for name in names}


def judge_replies(
    run: RunDirectory, setup: Setup, policies: Mapping[str, Params], judge: SatisfactionJudge, config: Config
) -> None:
    """The judge's scores of the greedy replies of `SPEAKING`, once a run and seed."""
    for name in SPEAKING:
        stored = judged.judged_file(assessments(run, setup.seed), name)
        if not stored.exists():
            what = f"{name}, seed {setup.seed}: replies for the judge"
            judged.judge_greedy(stored, setup, policies[name], judge, config.assess, name=what)


def judged_results(run: RunDirectory, seeds: list[int], *, split: str) -> list[Result]:
    """What the judge said here, today or earlier; nothing where a seed was not judged."""
    files = {name: {seed: judged.judged_file(assessments(run, seed), name) for seed in seeds} for name in SPEAKING}
    if not all(path.exists() for of in files.values() for path in of.values()):
        return []
    scores = {name: {seed: judged.load(path) for seed, path in of.items()} for name, of in files.items()}
    return judged.results(scores, [("grpo", "sft")], split=split)


def assessments(run: RunDirectory, seed: int) -> Path:
    """Where the cases of a seed lie."""
    return run.path / f"seed-{seed}" / "assessments"


def ranked(
    setup: Setup,
    policies: Mapping[str, Params],
    rows: list[Any],
    config: AssessmentConfig,
    retrieval: Retrieval | None,
) -> dict[str, RankingOutcome]:
    """Ranks of every row, by system: the trunk reads each context once for all of them. Holds the scores of one batch."""
    windows = Windows.of(setup, setup.corpus.test)
    number = {dialogue.dialogue_id: place for place, dialogue in enumerate(setup.corpus.test)}
    places = [(number[row.dialogue.dialogue_id], row.message_index) for row in rows]
    score = setup.agent.compiled("score_items", lambda: jax.jit(setup.agent.score_items))
    mixed = jax.jit(item_prior.mixed)
    bare = {"trunk": policies["sft"]["trunk"]}
    scorer = item_prior.scorer_of(setup)
    weights = np.array([weight_in_mixture(name) for name in scorer.parts], np.float32)
    # Each batch must be ranked under the same protocols.
    most_gold = max((len(row.gold) for row in rows), default=0)
    protocols = ranking.possible_protocols(setup.vocab.n_items, most_gold)
    found: dict[str, list[RankingOutcome]] = {}
    with Progress(f"seed {setup.seed}: ranking", 0, len(rows)) as progress:
        for chosen, own in wrapped_batches(len(rows), config.batch_size):
            prompts = windows.batch([places[row] for row in chosen])
            known = jax.nn.log_softmax(score(bare, prompts)), prompts.item_scores
            kept = [rows[row] for row in chosen[:own]]
            scores = {
                name: np.asarray(known[0] if prior.NAME not in policy else mixed(policy[prior.NAME], known))[:own]
                for name, policy in policies.items()
            }
            # The mixture is that of z itself: sinh undoes what the prior reads.
            standardised = np.sinh(np.asarray(prompts.item_scores, np.float32)[:own, :-1])
            scores["mixture"] = mixture.weighted(weights, standardised)
            if retrieval is not None:
                scores[ALONE] = recalled(scorer, retrieval.weights, np.asarray(prompts.item_scores)[:own])
            for name, of_batch in scores.items():
                found.setdefault(name, []).append(
                    ranking.rank_rows(kept, [of_batch], setup.vocab.item_ids, protocols=protocols)
                )
            progress.show(int(chosen[0]) + own, {})
    return {name: ranking.joined(outcomes) for name, outcomes in found.items()}


def weight_in_mixture(name: str) -> float:
    """Of a closed form, as `mixture.WEIGHTS`, or 1 where it was added; of the retriever's towers none: they are no closed form."""
    return 0.0 if name == TOWERS else mixture.WEIGHTS.get(name, 1.0)


def recalled(
    scorer: ItemScorer, weights: Mapping[str, float], scores: Float32[np.ndarray, "N K I"]
) -> Float32[np.ndarray, "N I"]:
    """Σ_k w_k z_k over closed forms and towers, what was named behind all others. [N, I]"""
    found = np.einsum("k,nki->ni", np.array([weights[name] for name in scorer.parts]), scores[:, :-1])
    return (found + item_prior.FORBIDDING * scores[:, -1]).astype(np.float32)


def results_of(some: Finished, cases: Mapping[str, Mapping[int, Assessment]], config: Config) -> list[Result]:
    """Every system under every protocol, the differences that answer the question, and the text of the replies."""
    split = f"{some.data.corpus_name}/test"
    seeds = sorted(next(iter(cases.values())))
    setup = Setup(some.data, some.corpus, some.vocab, some.agent, seeds[0])
    results: list[Result] = []
    for name, outcome in comparison.popularity_and_copy(setup, config.assess).items():
        results += ranking.ranking_results(name, outcome.tables, split=split)
    tables = {name: {seed: one.ranking.tables for seed, one in of.items()} for name, of in cases.items()}
    # It needs no training, so that one of its equal runs is enough.
    tables["mixture"] = tables["mixture"][seeds[0]]
    order = ("mixture", *(name for name in tables if name != "mixture"))
    for name in order:
        results += ranking.ranking_results(name, tables[name], split=split)
    for a, b in (pair for pair in PAIRS if set(pair) <= set(tables)):
        results += ranking.difference_results(f"{a}-{b}", tables[a], tables[b], split=split)
    replies = {name: [cases[name][seed].turns for seed in seeds] for name in SPEAKING}
    for name, turns in replies.items():
        results += text.text_results(name, turns, split=split, seeds=seeds)
    return results + text.text_differences("grpo-sft", replies["grpo"], replies["sft"], split=split, seeds=seeds)


def as_stored(fitted: Mapping[int, Mapping[str, Fitted]]) -> dict[str, Any]:
    """Weights by seed and learner."""
    return {
        f"seed {seed}": {name: one._asdict() for name, one in learners.items()} for seed, learners in fitted.items()
    }


def report_text(results: list[Result], fitted: Mapping[int, Mapping[str, Fitted]]) -> str:
    """A table a protocol, systems down and metrics across, and the weights."""
    parts = [
        "# A prior over items, learnt",
        "95 % bootstrap intervals over test dialogues, mean over seeds; nothing was learnt or chosen on the test split.",
    ]
    parts += protocol_tables([one for one in results if "@" in one.metric or one.metric == "mrr"])
    words = [one for one in results if not ("@" in one.metric or one.metric == "mrr")]
    if words:
        parts.append("## Greedy replies beside the human's")
        lines = [[one.name, result_text(one), f"{one.n:,}"] for one in words]
        parts.append(markdown_table(["what", "value", "n"], lines))
    parts.append("## Weights")
    lines = [
        [
            str(seed),
            name,
            ", ".join(f"{part} {weight:.2f}" for part, weight in one.weights.items()),
            f"{one.contexts:,} of {one.dialogues:,} dialogues",
            ", ".join(f"{what} {value:.3f}" for what, value in one.held_out.items()),
        ]
        for seed, learners in fitted.items()
        for name, one in learners.items()
    ]
    parts.append(markdown_table(["seed", "learner", "weights", "contexts", "held-out dialogues"], lines))
    return "\n\n".join(parts) + "\n"


def result_text(result: Result) -> str:
    """The value with its interval."""
    if result.interval is None:
        return f"{result.value:.3f}"
    return f"{result.value:.3f} [{result.interval[0]:.3f}, {result.interval[1]:.3f}]"


def command_line(arguments: list[str]) -> Config:
    """The options."""
    return options(Config, __doc__)(arguments)


if __name__ == "__main__":
    start(main, command_line)

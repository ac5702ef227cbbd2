"""Does live feedback make a policy's greedy replies better for the user than imitation's without repeats?

    python experiments/ppo_redial.py demo --seed S --run-dir runs/world-S       # S = 0, 1, 2; may be stopped after `sft`
    python experiments/live_feedback.py runs/world-0 runs/world-1 runs/world-2

The runs need their supervised policy and nothing more; each has a world of its own. A reward model of items is fitted in
closed form on the reactions in the log (level of sentiment; no form, no true utility), and pays GRPO of the
few weights by which the policy's item head reads recommenders and what users ask for (`stages/live_feedback.py`). Then come
`--live.rounds` rounds: the policy talks with fresh training users, what is said is logged and labelled, the reward model is
fitted again on all of it, the weights are improved again. The users of the evaluation are another population.

Systems: `sft`, `sft_filtered` (told by hand not to repeat), `likelihood` (the same weights fitted to the log's suggestions),
`round_0` (the log's reactions alone), `round_1` …, `best_of_8` (of imitation's samples without repeats, by the last reward
model), `oracle` (knows the utility of what was said); and ceilings, the item that is scored highest suggested without a
word: `choice_sft`, `choice_0`, `choice_1` … Writes `results.json`, `report.md`, and for each seed the rounds (`round-R.json`),
what was said live (`live-R.jsonl`) and the cases
of every system, with its first greedy replies (`…-said.json`). Hardware: two CPU cores; about ten minutes a run.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

from command_line import options, start
from rlhf_jax.assessment import assess, live, users
from rlhf_jax.assessment.assess import Assessment, AssessmentConfig
from rlhf_jax.assessment.episodes import spoken as spoken_words
from rlhf_jax.assessment.finished_run import Finished, open_finished, stage_policy
from rlhf_jax.data.items import spelled_titles
from rlhf_jax.data.sources import WORLD
from rlhf_jax.decoding import prior
from rlhf_jax.evaluation import closed_loop, text
from rlhf_jax.evaluation.ranking import RankingOutcome
from rlhf_jax.evaluation.results import Result, Split
from rlhf_jax.evaluation.user_centric import TopOne
from rlhf_jax.interfaces import Params
from rlhf_jax.reporting import verdict
from rlhf_jax.reporting.result_tables import markdown_table, protocol_tables
from rlhf_jax.reporting.run_report import write_results
from rlhf_jax.runtime.files import RunError, notice, read_object, write_json, write_text
from rlhf_jax.runtime.interrupts import exits_on_signals
from rlhf_jax.runtime.run import RunDirectory, open_run
from rlhf_jax.stages import item_prior, live_feedback
from rlhf_jax.stages.item_prior import PriorConfig
from rlhf_jax.stages.live_feedback import Judge, LiveConfig, Round
from rlhf_jax.stages.setup import Setup

N_BEST = 8
BEST = f"best_of_{N_BEST}"
N_SHOWN = 4
"""Users whose first words and answers the report shows."""
NOTHING_RANKED = RankingOutcome({}, TopOne((), (), ()))


@dataclasses.dataclass(frozen=True)
class Config:
    """Which policies, and how many rounds of what."""

    policy_runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories of `ppo_redial.py` in the simulated world, one a seed."""
    run_dir: Path | None = None
    """Where everything goes; None is `POLICY_RUN-live` beside the first."""
    live: LiveConfig = LiveConfig()
    assess: AssessmentConfig = AssessmentConfig()
    """Size of the evaluation; nothing is ranked."""

    def __post_init__(self) -> None:
        if not self.policy_runs:
            raise ValueError("no run directory was named")

    @property
    def folder(self) -> Path:
        """Where results go."""
        first = self.policy_runs[0]
        return self.run_dir or first.with_name(f"{first.resolve().name}-live")


def main(config: Config) -> Path:
    """1 policies, 2 rounds, 3 users and replies, 4 table."""
    # 1. Policies.
    runs = by_seed([open_finished(path) for path in config.policy_runs])
    with exits_on_signals(), open_run(config.folder, config, trackers=()) as run:
        cases: dict[str, dict[int, Assessment]] = {}
        rounds: dict[int, tuple[Round, ...]] = {}
        for seed, finished in runs.items():
            sft = stage_policy(finished, "sft")
            setup = Setup(finished.data, finished.corpus, finished.vocab, finished.agent, seed, world_seed=seed)
            setup = live_feedback.with_scorer(setup, config.live)
            # 2. Rounds.
            judge = Judge(setup, sft["trunk"])
            talk = live.talker(run.path / f"seed-{seed}", config.live)
            rounds[seed] = live_feedback.learn(run, judge, sft["trunk"], config.live, talk)
            # 3. Users and replies, of whom nothing was learnt.
            for name, assessed in measure(run, judge, sft["trunk"], rounds[seed], config).items():
                cases.setdefault(name, {})[seed] = assessed
        # 4. Table.
        results = results_of(cases, next(iter(runs.values())).data.corpus_name, config.live.rounds)
        write_results(run.path, results)
        report = run.path / "report.md"
        said = openings(run, min(runs), config.live.rounds)
        write_text(report, report_text(results, rounds, said))
        shown = [one for one in results if one.metric in ("mean_utility", "proxy_score", "kl_k1")]
        print(report_text(shown, rounds, said))
        print("\n".join(verdict_lines(results, config.live.rounds)))
        print(f"report: {report}")
        return report


def by_seed(runs: list[Finished]) -> dict[int, Finished]:
    """The runs in the order of their seeds.

    Raises: RunError for a run on real data or without a supervised policy, a seed that occurs twice, or another kind of world.
    """
    found: dict[int, Finished] = {}
    for run in runs:
        seed = int(run.config["seed"])
        if run.data.source != WORLD:
            raise RunError(f"{run.path} read {run.data.source}: users who answer live are in the simulated world alone")
        if "sft" not in run.stages:
            raise RunError(f"{run.path} has no supervised policy yet; it has {', '.join(run.stages) or 'no stage'}")
        if seed in found:
            raise RunError(f"{run.path}: seed {seed} is that of {found[seed].path} too")
        if found and run.data.world != next(iter(found.values())).data.world:
            raise RunError(f"{run.path} is in another kind of world than {runs[0].path}: one kind at a time")
        found[seed] = run
    return dict(sorted(found.items()))


def policies_of(
    run: RunDirectory, judge: Judge, trunk: Params, rounds: tuple[Round, ...]
) -> dict[str, tuple[Setup, Params]]:
    """Every policy that speaks, with the setup whose prompts bring what it reads."""
    setup = live_feedback.with_standing(judge.setup, rounds[0].reward)
    names = item_prior.scorer_of(setup).names
    config = PriorConfig(learner="likelihood", held_out=0.0)
    fitted = item_prior.train(run, setup, item_prior.look_up_validation(setup, {"trunk": trunk}, config), config)
    notice(f"seed {setup.seed}: likelihood {', '.join(f'{name} {one:.2f}' for name, one in fitted.weights.items())}")
    return {
        "sft": (setup, {"trunk": trunk}),
        "sft_filtered": (setup, {"trunk": trunk, prior.NAME: item_prior.filtered(names)}),
        "likelihood": (setup, {"trunk": trunk, prior.NAME: fitted.params()}),
        **{
            f"round_{number}": (live_feedback.with_standing(judge.setup, one.reward), one.policy(trunk))
            for number, one in enumerate(rounds)
        },
    }


def measure(
    run: RunDirectory, judge: Judge, trunk: Params, rounds: tuple[Round, ...], config: Config
) -> dict[str, Assessment]:
    """Every system case by case, once a run and seed; the proxy is the last round's reward model for all."""
    setup, reward = judge.setup, rounds[-1].reward
    folder = run.path / f"seed-{setup.seed}" / "assessments"
    folder.mkdir(parents=True, exist_ok=True)
    size: Any = {"n_users": config.assess.users, "n_turns": config.assess.user_turns}
    policies = policies_of(run, judge, trunk, rounds)
    titles = spelled_titles(setup.corpus.items)

    def spoken(name: str) -> Assessment:
        own, policy = policies[name]
        turns = assess.answer(own, policy, config.assess, name=f"{name}, seed {setup.seed}: answers")
        met = live.meet(own, policy, judge, reward, **size)
        shown = [spoken_words(one[:2], titles) for one in met.dialogues["greedy"][:N_SHOWN]]
        write_json(folder / f"{name}-said.json", {"openings": shown})
        return Assessment(NOTHING_RANKED, turns, met.values)

    def chosen(scores: live.ItemScores) -> Assessment:
        result = live.met(setup, live.first_choice(judge, scores), **size)
        return Assessment(NOTHING_RANKED, [], {"greedy": dict(live.values_of(judge, reward, result))})

    def best() -> Assessment:
        own, policy = policies["sft_filtered"]
        respond = live.best_by_reward(judge, reward, users.Responder(own, policy, greedy=False), N_BEST)
        result = live.met(setup, respond, **size)
        return Assessment(NOTHING_RANKED, [], {"sampled": dict(live.values_of(judge, reward, result))})

    def known_truth() -> Assessment:
        found = users.yardsticks(setup.data.world, setup.seed, **size)["oracle"]
        return Assessment(NOTHING_RANKED, [], {decoding: found for decoding in live.DECODINGS})

    todo = {
        **{name: lambda name=name: spoken(name) for name in policies},
        BEST: best,
        "oracle": known_truth,
        "choice_sft": lambda: chosen(live.of_trunk),
        **{f"choice_{number}": lambda one=one: chosen(live.of_reward(one.reward)) for number, one in enumerate(rounds)},
    }
    found = {}
    for name, make in todo.items():
        path = folder / f"{name}.npz"
        if not path.exists():
            assess.save(path, make())
            notice(f"seed {setup.seed}: {name} measured")
        found[name] = assess.load(path)
    return found


def pairs_of(rounds: int) -> list[tuple[str, str]]:
    """Which systems are compared."""
    last = f"round_{rounds}"
    pairs = [(last, other) for other in ("sft", "sft_filtered", "likelihood", BEST, "oracle")]
    pairs += [("round_0", "sft_filtered"), ("likelihood", "sft_filtered"), (f"choice_{rounds}", "choice_sft")]
    pairs += [(last, "round_0"), ("round_1", "round_0")] if rounds else []
    return list(dict.fromkeys(pairs))


def results_of(cases: Mapping[str, Mapping[int, Assessment]], corpus: str, rounds: int) -> list[Result]:
    """Every system with the users, the differences that answer the question, and the text of the replies."""
    split, results = f"{corpus}/test", []
    order = sorted(cases, key=lambda name: list(cases).index(name))
    for decoding in live.DECODINGS:
        at = str(Split.parse(split).drawn(decoding, users=True))
        lived = {
            name: {seed: one.users[decoding] for seed, one in cases[name].items()}
            for name in order
            if all(decoding in one.users for one in cases[name].values())
        }
        for name, values in lived.items():
            results += closed_loop.closed_loop_results(name, values, split=at)
        for a, b in pairs_of(rounds):
            if a in lived and b in lived:
                results += closed_loop.closed_loop_differences(f"{a}-{b}", lived[a], lived[b], split=at)
    speaking = {
        name: [text.of_seed(own.turns, seed) for seed, own in sorted(of.items())]
        for name, of in cases.items()
        if all(own.turns for own in of.values())
    }
    seeds = sorted(cases["sft"])
    own: Any = {"split": split, "same_test": False}
    for name, turns in speaking.items():
        results += text.text_results(name, turns, seeds=seeds, **own)
    last = f"round_{rounds}"
    return results + text.text_differences(f"{last}-sft", speaking[last], speaking["sft"], seeds=seeds, **own)


def verdict_lines(results: list[Result], rounds: int) -> list[str]:
    """Whether the last policy's replies are better for the user than imitation's without repeats, and how good they could be."""
    last, lines = f"round_{rounds}", []
    found = {(one.name, Split.parse(one.split).decoding): one for one in results}
    for decoding, called in (("greedy", "As chosen greedily"), ("sampled", "Replies as sampled")):
        difference = found[f"{last}-sft_filtered/mean_utility", decoding]
        worth = [found[f"{system}/mean_utility", decoding].value for system in ("sft", "sft_filtered", last, "oracle")]
        lines.append(f"{called}: {verdict.sentence('true utility', difference, 1)}")
        lines.append(
            "  imitation {:.3f}, told not to repeat {:.3f}, with feedback {:.3f}, oracle {:.3f}".format(*worth)
        )
    return [
        "Learnt from what users said next, against imitation told not to repeat itself",
        *(f"  {one}" for one in lines),
    ]


def _as_list(lines: list[str]) -> str:
    head, *rest = lines
    return "\n".join([f"**{head}**", "", *(f"- {line.strip()}" for line in rest)])


def openings(run: RunDirectory, seed: int, rounds: int) -> str:
    """The same users' first words and how they were answered, as a table; empty for runs of older versions, which kept none."""
    systems = {"imitation told not to repeat": "sft_filtered", "with feedback": f"round_{rounds}"}
    folder = run.path / f"seed-{seed}" / "assessments"
    files = [folder / f"{system}-said.json" for system in systems.values()]
    if not all(file.exists() for file in files):
        return ""
    said = [read_object(file, "openings")["openings"] for file in files]
    lines = [[a[0][1], *(one[1][1] for one in (a, *others))] for a, *others in zip(*said, strict=True)]
    return markdown_table(["a user", *systems], [[cell.strip() or "(says nothing)" for cell in line] for line in lines])


def report_text(results: list[Result], rounds: Mapping[int, tuple[Round, ...]], said: str) -> str:
    """The verdict and some greedy replies; a table for each way of speaking, systems down; what every round learnt."""
    parts = [
        "# Rounds of live feedback",
        "95 % bootstrap intervals over users and seeds; nothing was learnt or chosen on these users.",
        _as_list(verdict_lines(results, max(map(len, rounds.values())) - 1)),
        *([f"## Greedy replies\n\n{said}"] if said else []),
        *protocol_tables(results),
        "## Rounds",
    ]
    lines = [
        [
            str(seed),
            str(number),
            ", ".join(f"{name} {value:.2f}" for name, value in (one.weights | one.manners).items()),
            ", ".join(f"{name} {value:.2f}" for name, value in one.facts.items()),
        ]
        for seed, of in rounds.items()
        for number, one in enumerate(of)
    ]
    return "\n\n".join([*parts, markdown_table(["seed", "round", "weights of the prior", "facts"], lines)]) + "\n"


def command_line(arguments: list[str]) -> Config:
    """The options."""
    return options(Config, __doc__)(arguments)


if __name__ == "__main__":
    start(main, command_line)

"""SMTPO measured and reported: systems in conversation with seekers, in the world with its users, and the seekers themselves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.assessment import episodes, other_corpus, static_ranking
from rlhf_jax.assessment import simulator as simulator_quality
from rlhf_jax.assessment.episodes import ReasoningResponder, spoken
from rlhf_jax.assessment.other_corpus import Transferred
from rlhf_jax.assessment.users import per_user
from rlhf_jax.data.items import spelled_titles
from rlhf_jax.evaluation import closed_loop
from rlhf_jax.evaluation import episodes as results_of
from rlhf_jax.evaluation.closed_loop import UserValues
from rlhf_jax.evaluation.episodes import PROTOCOLS, Measured
from rlhf_jax.evaluation.results import Result, Split
from rlhf_jax.interfaces import Params
from rlhf_jax.reporting import plots
from rlhf_jax.reporting.plots import Line, Panel
from rlhf_jax.reporting.result_tables import by_protocol, cell, definitions, markdown_table
from rlhf_jax.reporting.run_report import write_results
from rlhf_jax.runtime.files import RunError, notice, read_npz, read_object, write_json, write_npz, write_text
from rlhf_jax.runtime.metrics import read_metrics
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.simulators.conversation import evaluate_closed_loop
from rlhf_jax.stages.smtpo.episodes import OtherSeekers, Seekers, SilentSeekers
from rlhf_jax.stages.smtpo.human_turns import ReasonedTurn, openings_of
from rlhf_jax.stages.smtpo.recommender import Recommender
from rlhf_jax.stages.smtpo.seeker import SeekerSimulator
from rlhf_jax.stages.smtpo.seeker_texts import suggestion_counts

SHOWN = (
    "success@1",
    "success@2",
    "success@3",
    "success@4",
    "success@5",
    "average_turns",
    "ndcg",
    "preference_f1",
    "format",
    "echoed",
    "leaks",
)
WORLD_SHOWN = (
    "mean_utility",
    "first_utility",
    "success@1",
    "success@2",
    "success@3",
    "success@4",
    "success@5",
    "average_turns",
)
EXAMPLES = 2
REPORT = "report.md"
FIRST_LIST = "first_list"
"""The rival that goes down the retriever's first order."""
CONTROLS = {"blind": "blind-seeker", "silent": "silent-seeker"}
"""Who is heard instead of one's own seeker, and the protocol."""


class Found(NamedTuple):
    """What was measured with one training seed."""

    talks: Mapping[str, Mapping[str, Measured]]
    """Protocol to system to its conversations."""
    users: Mapping[str, UserValues]
    """System to what the users of the world lived through; empty for real data."""
    unheard: Mapping[str, UserValues]
    """The same where the system reads nothing that they answer."""
    seekers: Sequence[Result]
    """How good the simulated seekers are."""
    ranked: static_ranking.Tables
    """The retriever and every system on logged messages of the test split."""
    transfer: Transferred | None = None
    """The same systems on another corpus."""


def measure_all(
    run: RunDirectory,
    recommender: Recommender,
    policies: Mapping[str, Params],
    seekers: Mapping[str, SeekerSimulator],
    *,
    n_openings: int,
    n_users: int,
    n_turns: int,
) -> Found:
    """Everything of one seed; what is stored in the run is not measured again.

    Args:
      policies: systems, imitation first.
      seekers: `training` and `scoring`.
      n_openings: conversations with simulated seekers at most.
      n_users: of the world.
    """
    openings = openings_of(recommender.setup.corpus.test)[:n_openings]
    crowds: dict[str, Seekers] = {
        "scoring-seeker": seekers["scoring"],
        "blind-seeker": OtherSeekers(seekers["scoring"]),
        "silent-seeker": SilentSeekers(),
        "training-seeker": seekers["training"],
    }
    talks = {
        protocol: {
            system: episodes.measure(run, f"{system}-{protocol}", recommender, params, crowd, openings, n_turns=n_turns)
            for system, params in policies.items()
        }
        for protocol, crowd in crowds.items()
    }
    # A list that nobody answers is the same whoever would.
    rival = {FIRST_LIST: episodes.first_list(recommender, openings, n_turns=n_turns)}
    talks |= {protocol: rival | talks[protocol] for protocol in ("scoring-seeker", "silent-seeker")}
    talks["first-turn"] = {system: results_of.first_turn(one) for system, one in talks["scoring-seeker"].items()}
    heard, unheard = (
        {
            system: world_users(run, system, recommender, params, n_users=n_users, n_turns=n_turns, deaf=deaf)
            for system, params in policies.items()
            if recommender.setup.world_seed is not None
        }
        for deaf in (False, True)
    )
    store_examples(run, recommender, policies, seekers["scoring"], openings[:EXAMPLES], n_turns=n_turns)
    ranked = static_ranking.rank_all(
        run.path / "ranking",
        recommender,
        policies,
        recommender.setup.corpus.test,
        corpus=recommender.setup.data.corpus_name,
    )
    return Found(talks, heard, unheard, seeker_quality(recommender, seekers), ranked)


def world_users(
    run: RunDirectory,
    system: str,
    recommender: Recommender,
    params: Params,
    *,
    n_users: int,
    n_turns: int,
    deaf: bool = False,
) -> UserValues:
    """Greedy conversations with the users of the world, once a run; `deaf` as `ReasoningResponder`."""
    name = f"{system}_silent" if deaf else system
    path = run.path / episodes.FOLDER / f"{name}-world.npz"
    setup = recommender.setup
    if not path.exists():
        assert setup.world_seed is not None
        notice(f"{name}: {n_users} users of the world")
        respond = ReasoningResponder(recommender, params, deaf=deaf)
        found = evaluate_closed_loop(respond, setup.data.world, setup.world_seed, n_users=n_users, n_turns=n_turns)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_npz(path, per_user(found))
    return stored_users(run.path, name)


def stored_users(directory: Path, name: str) -> UserValues:
    """What `world_users` has stored in a run directory; the run need not be open.

    Raises: RunError naming the file that is missing or damaged.
    """
    path = directory / episodes.FOLDER / f"{name}-world.npz"
    if not path.exists():
        raise RunError(f"{path} is not there: the run has not come so far, or an older version finished it")
    return read_npz(path)


def seeker_quality(recommender: Recommender, seekers: Mapping[str, SeekerSimulator]) -> list[Result]:
    """What each simulated seeker knows of the test split's seekers."""
    setup, found = recommender.setup, []
    counts = suggestion_counts(setup.corpus.train)
    for name, one in seekers.items():
        threshold = simulator_quality.choose_threshold(one, setup.corpus.validation, recommender.attributes)
        results = simulator_quality.measure(
            one,
            setup.corpus.test,
            counts=counts,
            attributes=recommender.attributes,
            threshold=threshold,
            closed=recommender.retrieval.scorer if name == next(iter(seekers)) else None,
            split=f"{setup.data.corpus_name}/test",
            seeds=(setup.seed,),
        )
        for result in results:
            renamed = f"{name}_seeker" if result.system == "simulator" else result.system
            if renamed not in simulator_quality.RIVALS or name == next(iter(seekers)):
                found.append(Result(**{**vars(result), "name": f"{renamed}/{result.metric}"}))
    return found


def store_examples(
    run: RunDirectory,
    recommender: Recommender,
    policies: Mapping[str, Params],
    seekers: SeekerSimulator,
    openings: Sequence[ReasonedTurn],
    *,
    n_turns: int,
) -> None:
    """What was said in the first conversations, once a run."""
    path = run.path / "examples.json"
    if path.exists() or not openings:
        return
    titles = spelled_titles(recommender.setup.corpus.items)
    found = [
        {
            "opening": spoken(opening.dialogue.messages[: opening.index][-4:], titles),
            "gold": [titles.get(item, str(item)) for item in opening.gold],
            "talks": {},
        }
        for opening in openings
    ]
    for system, params in policies.items():
        turns = episodes.talk_once(recommender, params, seekers, openings, n_turns=n_turns)
        for one, opening, history in zip(found, openings, turns.histories, strict=True):
            one["talks"][system] = spoken(history[opening.index :], titles)
    write_json(path, {"examples": found})


def write(run: RunDirectory, found: Mapping[int, Found], *, corpus: str, n_turns: int) -> None:
    """Writes `results.json` and `report.md` with its plots, from all seeds."""
    results = gathered(found, corpus=corpus)
    write_results(run.path, results)
    folder = run.path / "plots"
    parts = [
        "# Recommending over several turns",
        (
            f"Seeds {', '.join(map(str, sorted(found)))}; greedy replies. 95 % bootstrap intervals over test dialogues (or users of the "
            "world); a claim needs three seeds that agree and an interval that excludes 0 (▲ more, ▼ less)."
        ),
        *headline(results, n_turns),
        plots.image(
            plots.save(curves(found, n_turns), folder, "success"), "Success within so many turns, by who answers."
        ),
    ]
    moved = found[min(found)].transfer
    about = {} if moved is None else {f"{moved.joined.name}/test": moved.joined.note}
    abouts = {**PROTOCOLS, static_ranking.PROTOCOL: static_ranking.ABOUT}
    for (split, protocol), own in by_protocol(results).items():
        shown = WORLD_SHOWN if protocol == closed_loop.PROTOCOL else SHOWN
        parts += [f"## {split}, {protocol}", about.get(split, abouts.get(protocol, "")), table(own, shown)]
    parts.append(
        plots.image(
            plots.save(training(run, sorted(found)), folder, "training"), "Learning from conversations, first seed."
        )
    )
    parts += ["## Conversations", *examples(run.path / f"seed-{min(found)}" / "examples.json")]
    parts += ["## Definitions", *definitions([one for one in results if not one.is_difference])]
    report = run.path / REPORT
    write_text(report, "\n\n".join(part for part in parts if part) + "\n")
    print("\n\n".join(headline(results, n_turns)))
    print(f"report: {report}")


def gathered(found: Mapping[int, Found], *, corpus: str) -> list[Result]:
    """Entries of `results.json`: every system, each against those before it, and every policy against its controls."""
    split, results = f"{corpus}/test", []
    first = found[min(found)]
    for protocol, systems in first.talks.items():
        runs = {name: {seed: one.talks[protocol][name] for seed, one in found.items()} for name in systems}
        for name, own in runs.items():
            results += results_of.results(name, own, protocol=protocol, split=split)
        for a, b in pairs(list(systems)):
            results += results_of.differences(f"{a}-{b}", runs[a], runs[b], protocol=protocol, split=split)
    for name in first.talks["blind-seeker"]:
        # What a system owes to the answers: the same policy, deaf to its own seeker.
        for control, protocol in CONTROLS.items():
            heard, deaf = (
                {seed: one.talks[key][name] for seed, one in found.items()} for key in ("scoring-seeker", protocol)
            )
            results += results_of.differences(
                f"{name}-{name}_{control}", heard, deaf, protocol="scoring-seeker", split=split
            )
    if first.users:
        at = str(Split(corpus, "test").drawn("greedy", users=True))
        lived = {name: {seed: one.users[name] for seed, one in found.items()} for name in first.users}
        for name, own in lived.items():
            results += closed_loop.closed_loop_results(name, own, split=at, same_users=True)
        for a, b in pairs(list(lived)):
            results += closed_loop.closed_loop_differences(f"{a}-{b}", lived[a], lived[b], split=at, same_users=True)
        for name, own in lived.items():
            deaf = {seed: one.unheard[name] for seed, one in found.items()}
            results += closed_loop.closed_loop_results(f"{name}_silent", deaf, split=at, same_users=True)
            results += closed_loop.closed_loop_differences(
                f"{name}-{name}_silent", own, deaf, split=at, same_users=True
            )
    for seed, one in found.items():
        # How good a seeker is differs from seed to seed; each is a row of its own.
        for result in one.seekers:
            rival = result.system in simulator_quality.RIVALS
            if rival and seed != min(found):
                continue
            name = result.name if rival else f"{result.system}_{seed}/{result.metric}"
            results.append(Result(**{**vars(result), "name": name}))
    results += static_ranking.results({seed: one.ranked for seed, one in found.items()}, split=split)
    moved = {seed: one.transfer for seed, one in found.items() if one.transfer is not None}
    return results + (other_corpus.results(moved) if moved else [])


def pairs(systems: Sequence[str]) -> list[tuple[str, str]]:
    """Every system against those before it: the first list, imitation and single turns foremost."""
    return [(a, b) for place, a in enumerate(systems) for b in systems[:place]]


def headline(results: Sequence[Result], n_turns: int) -> list[str]:
    """The questions, each with its number."""
    found = {(one.protocol, one.name): one for one in results}
    lines = []
    learnt = ("smtpo-sft", "smtpo-single_turn", "single_turn-sft")
    rivals = (f"sft-{FIRST_LIST}", f"single_turn-{FIRST_LIST}", f"smtpo-{FIRST_LIST}")
    answers = tuple(f"{name}-{name}_silent" for name in ("sft", "single_turn", "smtpo"))
    within = f"success@{n_turns}"
    for protocol, metric, names, words in (
        ("scoring-seeker", within, (*learnt, *rivals), f"success within {n_turns} turns, the scoring seeker answers"),
        ("scoring-seeker", f"gain@{n_turns}", learnt, "what later turns add"),
        ("first-turn", "success@1", rivals, "a first list that holds what is liked"),
        ("scoring-seeker", within, answers, "what answers are worth"),
        ("blind-seeker", within, learnt, f"success within {n_turns} turns, hearing somebody else's answers"),
        (closed_loop.PROTOCOL, "mean_utility", (*learnt, *answers), "true utility, users of the world"),
        (closed_loop.PROTOCOL, within, learnt, "accepted by users of the world"),
        (static_ranking.PROTOCOL, "ndcg@10", learnt, "NDCG@10 of logged messages"),
    ):
        for name in names:
            one = found.get((protocol, f"{name}/{metric}"))
            if one is not None:
                lines.append(f"- {name.replace('-', ' − ')}, {words}: {cell(one)}")
    return ["\n".join(lines)] if lines else []


def table(results: Sequence[Result], metrics: Sequence[str]) -> str:
    """Systems down, metrics across."""
    cells = {(one.system, one.metric): one for one in results}
    columns = [metric for metric in metrics if any(name[1] == metric for name in cells)] or list(
        dict.fromkeys(metric for _, metric in cells)
    )
    systems = list(dict.fromkeys(system for system, _ in cells))
    rows = [[system.replace("-", " − "), *(cell(cells.get((system, one))) for one in columns)] for system in systems]
    return markdown_table(["system", *columns], rows)


def curves(found: Mapping[int, Found], n_turns: int) -> Any:
    """Success by turn, mean over seeds; a panel for each kind of answer."""
    x = list(range(1, n_turns + 1))
    panels = []
    first = found[min(found)]
    for protocol, systems in first.talks.items():
        if protocol == "first-turn":
            continue
        lines = []
        # A colour is a place: what not every panel has comes last.
        for name in sorted(systems, key=lambda one: one == FIRST_LIST):
            values = [
                [results_of.sums(one.talks[protocol][name])[f"success@{turn}"].mean for turn in x]
                for one in found.values()
            ]
            lines.append(Line(name, x, np.mean(values, axis=0).tolist()))
        panels.append(Panel(protocol, lines, x_label="within so many turns", bottom=0.0))
    if first.users:
        lines = []
        for name in first.users:
            values = [[float(one.users[name][f"success@{turn}"].mean()) for turn in x] for one in found.values()]
            lines.append(Line(name, x, np.mean(values, axis=0).tolist()))
        panels.append(Panel("users of the world", lines, x_label="within so many turns", bottom=0.0))
    return plots.small_multiples(panels, columns=2, legend_below=True)


def training(run: RunDirectory, seeds: Sequence[int]) -> Any:
    """What conversations were paid while learning."""
    lines = read_metrics(run.path / f"seed-{seeds[0]}" / "metrics.jsonl")
    panels = []
    for metric in (
        "talk/success",
        "objective/format_raw",
        "objective/recommendation_raw",
        "objective/preference_raw",
        "objective/kl_k1",
        "objective/flat_group_share",
    ):
        series = []
        for stage in ("multi_turn-single_turn", "multi_turn-smtpo"):
            own = [(line["step"], line[metric]) for line in lines if line.get("stage") == stage and metric in line]
            if own:
                series.append(Line(stage.partition("-")[2], [step for step, _ in own], [value for _, value in own]))
        panels.append(Panel(metric, series, bottom=None if "kl" in metric else 0.0))
    return plots.small_multiples(panels, columns=3, legend_below=True)


def examples(path: Path) -> list[str]:
    """Stored conversations, readable."""
    if not path.exists():
        return []
    parts = []
    for number, one in enumerate(read_object(path, "examples")["examples"], 1):
        parts.append(f"### {number}. Likes {', '.join(one['gold'])}")
        parts.append("\n".join(f"> **{role}** {words}  " for role, words in one["opening"]))
        for system, said in one["talks"].items():
            parts.append(f"`{system}`\n\n" + "\n".join(f"- **{role}** {words}" for role, words in said))
    return parts

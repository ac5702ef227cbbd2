"""The ablation of SMTPO: what each variant changes, and the report on all of them over seeds."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from rlhf_jax.assessment import episodes, episodes_report
from rlhf_jax.evaluation import closed_loop
from rlhf_jax.evaluation import episodes as results_of
from rlhf_jax.evaluation.results import Result, Split, difference_name
from rlhf_jax.models.retriever import View
from rlhf_jax.reporting import plots, result_tables
from rlhf_jax.reporting.run_report import write_results
from rlhf_jax.runtime.files import write_text
from studies import common, tables
from studies.tables import Measure

Variant = Literal[
    "sft",
    "single_turn",
    "no_format",
    "no_recommendation",
    "no_preference",
    "semantic_view",
    "collaborative_view",
    "single_task",
    "scored_by_trainer",
    "iterated",
]
Seeker = Literal["training", "language", "scoring"]
"""Who answers while a policy learns: the seeker of all tasks, one that learnt to speak alone, the one that scores."""
SMTPO = "smtpo"
PROTOCOL = "scoring-seeker"


class Change(NamedTuple):
    """How a variant differs from SMTPO."""

    what: str
    """For people."""
    learns: bool = True
    """Whether there is reinforcement learning."""
    single_turn: bool = False
    iterated: bool = False
    """Learns one turn at a time, paid a forecast of its credit (`stages/smtpo/iterated.py`)."""
    unpaid: str | None = None
    """The component of the reward that is left out."""
    view: View = "both"
    seeker: Seeker = "training"


VARIANTS: Mapping[Variant, Change] = {
    "sft": Change("the reasoning form by imitation, no reinforcement learning", learns=False),
    "single_turn": Change("reinforcement learning on first turns alone", single_turn=True),
    "no_format": Change("the format is not paid for", unpaid="format"),
    "no_recommendation": Change("the list is not paid for", unpaid="recommendation"),
    "no_preference": Change("the inferred attributes are not paid for", unpaid="preference"),
    "semantic_view": Change("towers of the words alone beside the closed forms", view="semantic"),
    "collaborative_view": Change("towers of the items alone beside the closed forms", view="collaborative"),
    "single_task": Change("the seeker that trains learnt its words alone (after the same start)", seeker="language"),
    "scored_by_trainer": Change(
        "trained against the very seeker that scores: no fair system, but what knowing it is worth", seeker="scoring"
    ),
    "iterated": Change(
        "iterated PPO: single turns, paid a learnt forecast of their credit",
        iterated=True,
    ),
}


def without(weights: Sequence[float], names: Sequence[str], left_out: str | None) -> tuple[float, ...]:
    """Weights of the components of the reward, that of one set to 0.

    Raises: ValueError for a component that is not there.
    Examples:
      >>> without((1.0, 2.0), ("format", "preference"), "format")
      (0.0, 2.0)
      >>> without((1.0, 2.0), ("format", "preference"), None)
      (1.0, 2.0)
    """
    if left_out is not None and left_out not in names:
        raise ValueError(f"component {left_out!r}: expected one of {', '.join(names)}")
    return tuple(0.0 if name == left_out else weight for name, weight in zip(names, weights, strict=True))


def measures(n_turns: int) -> dict[str, tuple[Measure, ...]]:
    """Heading to the columns of its table; conversations have so many turns at most."""
    last = f"success@{n_turns}"
    return {
        "Conversations with a seeker that no stage has met": (
            Measure(f"success within {n_turns}", PROTOCOL, last),
            Measure("success@1", PROTOCOL, "success@1"),
            Measure("average turns", PROTOCOL, "average_turns"),
            Measure("NDCG, first turn", PROTOCOL, "ndcg"),
            Measure("preference F1", PROTOCOL, "preference_f1"),
            Measure("format", PROTOCOL, "format"),
            Measure("recalled", PROTOCOL, "recalled"),
        ),
        "Users of the world": (
            Measure("true utility", closed_loop.PROTOCOL, "mean_utility", "greedy", users=True),
            Measure(f"accepted within {n_turns}", closed_loop.PROTOCOL, last, "greedy", users=True),
        ),
    }


def primary(n_turns: int) -> list[Measure]:
    """What a verdict is about: the first column of each table."""
    return [columns[0] for columns in measures(n_turns).values()]


def results(run_dir: Path, seeds: Sequence[int], systems: Sequence[str], *, split: str, users: bool) -> list[Result]:
    """Entries of `results.json`, from what every seed stored: every system, and its difference to SMTPO in pairs.

    Args:
      systems: variants, SMTPO first.
      split: data set and split, for example `world/test`; all seeds have the same test dialogues.
      users: whether there are users of the world.
    """
    folders = {seed: common.seed_folder(run_dir, seed) for seed in seeds}
    talks = {
        name: {seed: episodes.stored(folder, f"{name}-{PROTOCOL}") for seed, folder in folders.items()}
        for name in systems
    }
    found: list[Result] = []
    for name, own in talks.items():
        found += results_of.results(name, own, protocol=PROTOCOL, split=split)
        if name != SMTPO:
            compared = difference_name(name, SMTPO)
            found += results_of.differences(compared, own, talks[SMTPO], protocol=PROTOCOL, split=split)
    if users:
        at = str(Split.parse(split).drawn("greedy", users=True))
        lived = {
            name: {seed: episodes_report.stored_users(folder, name) for seed, folder in folders.items()}
            for name in systems
        }
        for name, met in lived.items():
            found += closed_loop.closed_loop_results(name, met, split=at, same_users=True)
            if name != SMTPO:
                found += closed_loop.closed_loop_differences(
                    difference_name(name, SMTPO), met, lived[SMTPO], split=at, same_users=True
                )
    return found


def verdicts(found: Sequence[Result], variants: Sequence[Variant], *, split: str, n_turns: int) -> list[str]:
    """One line a variant: whether the change costs or gains anything, with the numbers."""
    lines = []
    for name in variants:
        numbers = "; ".join(
            f"{measure.label} {tables.verdict(one)}"
            for measure in primary(n_turns)
            if (one := tables.find(found, difference_name(name, SMTPO), measure, split)) is not None
        )
        lines.append(f"Verdict, {name} − {SMTPO} ({VARIANTS[name].what}): {numbers}.")
    return lines


class Setting(NamedTuple):
    """What a report says of how its numbers were made."""

    name: str
    """Of the data, as splits name them."""
    budget: str
    """One sentence on what every variant was given."""
    n_turns: int
    users: bool
    """Whether users of the world were met."""


def write_report(
    run_dir: Path, seeds: Sequence[int], variants: Sequence[Variant], setting: Setting, command: Sequence[str]
) -> Path:
    """Gathers all seeds: `results.json`, a figure and `report.md`.

    Args:
      command: that makes it again.
    """
    split, n_turns = f"{setting.name}/test", setting.n_turns
    systems = (SMTPO, *variants)
    found = results(run_dir, seeds, systems, split=split, users=setting.users)
    write_results(run_dir, found)
    drawn = [measure for columns in measures(n_turns).values() for measure in columns]
    plots.save(tables.forest(found, variants, SMTPO, drawn, split), run_dir / "plots", "ablation")
    differences = [difference_name(name, SMTPO) for name in variants]
    parts = [
        f"# Ablation of SMTPO: {setting.name}",
        (
            f"{setting.budget} Seeds {', '.join(map(str, seeds))}; greedy replies. 95 % bootstrap intervals over test dialogues (or "
            "users), differences in pairs; a claim (▲, ▼) needs three seeds that agree and an interval without 0."
        ),
        "\n".join(f"- `{name}`: {VARIANTS[name].what}." for name in variants),
    ]
    for title, columns in measures(n_turns).items():
        if tables.measured_in(found, columns, split):
            parts += [f"## {title}", tables.table(found, systems, columns, split)]
            parts += [f"### Against `{SMTPO}`", tables.table(found, differences, columns, split)]
    parts += [
        f"![Variant − {SMTPO} with intervals](plots/ablation.png)",
        f"*Every variant minus `{SMTPO}`, 95 % intervals; each panel has a scale of its own.* ([SVG](plots/ablation.svg))",
        "## Definitions",
        "\n".join(result_tables.definitions([one for one in found if not one.is_difference])),
        "## How to repeat this",
        f"```\n{shlex.join(command)}\n```",
        "## Verdicts",
        "\n".join(f"- {line}" for line in verdicts(found, variants, split=split, n_turns=n_turns)),
    ]
    report = run_dir / "report.md"
    write_text(report, "\n\n".join(parts) + "\n")
    return report

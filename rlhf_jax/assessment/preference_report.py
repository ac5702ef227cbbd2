"""The report of DPO4Rec: tables by protocol, what each round mined, how DPO moved, and texts about some test users."""

import collections
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.data.preference_texts import full_text, spelled
from rlhf_jax.data.rating_lists import read_part
from rlhf_jax.evaluation.results import Result, shown_system
from rlhf_jax.reporting import plots
from rlhf_jax.reporting.plots import Line, Panel
from rlhf_jax.reporting.result_tables import by_protocol, cell, definitions, markdown_table
from rlhf_jax.runtime.files import read_object, write_json, write_text
from rlhf_jax.runtime.metrics import read_metrics
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.stages.dpo4rec.preference_setup import PreferenceSetup

EXAMPLES = 3
MAIN = "ndcg@5"
SHOWN = ("ndcg@1", "ndcg@3", "ndcg@5", "ndcg@7", "map@5", "map_all@5")
"""Metrics of the tables; `results.json` has all."""


def pairs(rounds: int, networks: Sequence[str], texts: int) -> tuple[tuple[str, str], ...]:
    """Systems whose differences answer the questions."""
    last = [f"dpo_{number}" for number in range(1, rounds + 1)]
    found = [("sft", "none"), ("sft", "shuffled"), ("sft", "history"), ("history", "none"), ("teacher", "none")]
    found += [("rft", "sft"), (f"best_of_{texts}", "sft"), ("teacher_titles", "teacher")]
    found += [(one, other) for one in last for other in ("sft", "none", "history", "rft")]
    found += [(last[-1], "teacher_titles")]
    found += list(zip(last[1:], last, strict=False))
    found += [(last[-1], f"{last[-1]}_shuffled")]
    found += [(f"scorer_{one}", "scorer_sft") for one in ("teacher", "rft", *last)]
    found += [("dpo_1", "trees_co_likes"), ("dpo_1", "trees_item"), ("dpo_1", "item_knn")]
    for network in networks:
        found += [(f"{network}_{one}", f"{network}_{other}") for one in last for other in ("sft", "none", "history")]
        found += [(f"{network}_{one}", f"{network}_none") for one in ("sft", "history")]
    return tuple(found)


def store(
    run: RunDirectory, setup: PreferenceSetup, protocol: str, facts: Mapping[str, Any], tokens: Mapping[str, np.ndarray]
) -> None:
    """What the report says of one seed and protocol beside numbers: facts, and texts about the first test users."""
    items = setup.corpus.items
    examples = []
    for user in setup.split.test[:EXAMPLES]:
        history = read_part(setup.corpus.histories[user])
        found = setup.tastes(np.array([user]))[0]
        examples.append(
            {
                "user": setup.corpus.users[user],
                "read": len(history.items),
                "liked": [items[item].title for item in found.titles[:5]],
                "texts": {"statistics": spelled(full_text(found, titles=setup.titles), items)}
                | {name: spelled(setup.vocab.text(of[user, 0]), items) for name, of in tokens.items()},
            }
        )
    write_json(run.path / f"texts-{protocol}.json", {"corpus": setup.corpus.name, "facts": facts, "examples": examples})


def write(run: RunDirectory, results: list[Result], *, seeds: Sequence[int], protocols: Sequence[str]) -> Path:
    """Writes `report.md` with its plots; returns its path."""
    stored = {
        (seed, protocol): read_object(
            run.path / f"seed-{seed}" / f"texts-{protocol}.json", "corpus", "facts", "examples"
        )
        for seed in seeds
        for protocol in protocols
    }
    parts = [
        "# Texts about users, chosen by a recommender's feedback",
        (
            f"Seeds {', '.join(map(str, seeds))}; each tests on users of its own. 95 % bootstrap intervals over test users; a claim "
            "needs three seeds that agree and an interval that excludes 0 (▲ more, ▼ less; else no difference is shown)."
        ),
        *headline(results),
    ]
    folder = run.path / "plots"
    parts.append(
        plots.image(
            plots.save(systems_figure(results), folder, "systems"), "NDCG@5 of every system; lines are 95 % intervals."
        )
    )
    parts += tables(results)
    parts += ["## What was mined", mined_table(stored)]
    parts.append(plots.image(plots.save(samples_figure(stored), folder, "samples"), "Left: share of users whose N texts are not all "
        "paid the same. Right: what the best of N gains over their mean, as chosen, and measured on lists that did not choose."))  # fmt: skip
    curves = {seed: read_metrics(run.path / f"seed-{seed}" / "metrics.jsonl") for seed in seeds}
    parts.append("## How DPO moved")
    parts.append(
        plots.image(
            plots.save(curves_figure(curves[seeds[0]], protocols), folder, "dpo"),
            f"Seed {seeds[0]}: log-probabilities of chosen and rejected texts, their margin, and validation users' NDCG@5 with "
            "texts drawn at the end of each epoch.",
        )
    )
    parts += ["## Texts about test users", *examples(stored, seeds[0])]
    parts += ["## Definitions", *definitions([one for one in results if one.metric in SHOWN])]
    report = run.path / "report.md"
    write_text(report, "\n\n".join(parts) + "\n")
    print("\n\n".join(headline(results)))
    print(f"report: {report}")
    return report


def headline(results: Sequence[Result]) -> list[str]:
    """The questions of the paper, each with its number."""
    found = {(one.protocol, one.name): one for one in results}
    lines = []
    rounds = [int(one.system.removeprefix("dpo_")) for one in results if re.fullmatch(r"dpo_\d+", one.system)]
    asked = {
        name.format(number): f"{words}, round {number}"
        for number in dict.fromkeys((1, max(rounds, default=1)))
        for name, words in (
            ("scorer_dpo_{0}-scorer_sft", "The frozen re-ranker, DPO's texts in the place of imitation's"),
            ("dpo_{0}-sft", "Re-rankers trained with each policy's texts, DPO against imitation"),
            ("dpo_{0}-none", "DPO's texts against no text"),
            ("dpo_{0}-history", "DPO's texts against the mean history embedding"),
        )
    }
    for protocol in dict.fromkeys(one.protocol for one in results):
        for name, words in asked.items():
            one = found.get((protocol, f"{name}/{MAIN}"))
            if one is not None:
                lines.append(f"- {words}, `{protocol}`: {cell(one)} NDCG@5")
    return ["\n".join(lines)] if lines else []


def tables(results: Sequence[Result]) -> list[str]:
    """Systems down, metrics across; then the differences."""
    parts = []
    for (split, protocol), found in by_protocol(results).items():
        cells = {(one.system, one.metric): one for one in found}
        for title, wanted in (("systems", False), ("differences", True)):
            names = list(dict.fromkeys(one.system for one in found if one.is_difference == wanted))
            metrics = SHOWN if not wanted else ("ndcg@5", "map@5")
            lines = [[shown_system(name), *(cell(cells.get((name, metric))) for metric in metrics)] for name in names]
            if lines:
                parts += [
                    f"## {split}, {protocol}: {title}, n = {found[0].n:,} lists a seed",
                    markdown_table(["system", *metrics], lines),
                ]
    return parts


def systems_figure(results: Sequence[Result]) -> Any:
    """Every system, two panels a protocol; differences stand in the tables."""
    short = {"popularity-matched": "matched"}
    groups = {
        f"{short.get(protocol, protocol)}: {words}": [
            (one.system, one) for one in found if one.metric == metric and not one.is_difference
        ]
        for (_, protocol), found in by_protocol(results).items()
        for metric, words in (("ndcg@5", "NDCG@5"), ("map@5", "MAP@5"))
    }
    return plots.forest(groups, x_label="mean over lists", one_scale=False)


def mined_table(stored: Mapping[tuple[int, str], Mapping[str, Any]]) -> str:
    """Pairs of every round: how many users keep one, what texts were paid."""
    lines = []
    for (seed, protocol), one in stored.items():
        for name, facts in one["facts"].items():
            if name.startswith("round_"):
                kept = f"{facts['kept']} of {facts['users']}"
                paid = f"{facts['reward']:.4f}", f"{facts['reward_best']:.4f}"
                lines.append([protocol, str(seed), name.removeprefix("round_"), kept, str(facts["pairs"]), *paid])
    header = ["protocol", "seed", "round", "users with a preference", "pairs", "mean reward", "of the best text"]
    shares = collections.defaultdict(list)
    for (_, protocol), one in stored.items():
        shares[protocol].append(one["facts"]["without_positives"])
    said = "; ".join(f"{protocol} {np.mean(values):.1%}" for protocol, values in shares.items())
    # A history of one item is read whole, so that nothing is left for a list; protocols have the same users.
    short = {seed: one["facts"]["without_lists"] for (seed, _), one in stored.items()}
    skipped = "; ".join(
        f"seed {seed}: " + ", ".join(f"{n} for {name}" for name, n in counts.items()) for seed, counts in short.items()
    )
    return (
        f"{markdown_table(header, lines)}\n\nTest lists without a liked item, which count 0: {said}.\n\n"
        f"Users left out, because nothing of their history is left for a list: {skipped}."
    )


def samples_figure(stored: Mapping[tuple[int, str], Mapping[str, Any]]) -> Any:
    """Kept share and gain against N, mean over seeds."""
    by = collections.defaultdict(list)
    for (_, protocol), one in stored.items():
        by[protocol].append(one["facts"]["samples"])
    panels = []
    for title, keys in (("users with a preference", ("kept",)), ("gain of the best of N", ("gain", "held_out"))):
        lines = []
        for protocol, found in by.items():
            ns = sorted(found[0], key=int)
            for key in keys:
                label = protocol if len(keys) == 1 else f"{protocol}, {'as chosen' if key == 'gain' else 'other lists'}"
                lines.append(
                    Line(label, [int(n) for n in ns], [float(np.mean([one[n][key] for one in found])) for n in ns])
                )
        panels.append(Panel(title, lines, unit="share" if "kept" in keys else "NDCG@5", x_label="N"))
    return plots.small_multiples(panels, columns=2)


def curves_figure(metrics: Sequence[Mapping[str, Any]], protocols: Sequence[str]) -> Any:
    """What the first round logged, by protocol."""
    panels = []
    asked = {
        "log π": (("logprobs/chosen", "chosen"), ("logprobs/rejected", "rejected")),
        "margin": (("rewards/margin", "margin"),),
        "validation": (("validation/ndcg@5", "NDCG@5"),),
    }
    for protocol in protocols:
        lines = [one for one in metrics if one["stage"] == f"dpo-{protocol}-1"]
        for title, keys in asked.items():
            drawn = [
                Line(
                    label,
                    [one["step"] for one in lines if key in one],
                    [float(one[key]) for one in lines if key in one],
                )
                for key, label in keys
            ]
            panels.append(Panel(f"{protocol}: {title}", drawn, unit="nats" if title == "log π" else "", x_label="step"))
    return plots.small_multiples(panels, columns=3)


def examples(stored: Mapping[tuple[int, str], Mapping[str, Any]], seed: int) -> list[str]:
    """Texts about the first test users of a seed."""
    parts = []
    for (own, protocol), one in stored.items():
        if own != seed:
            continue
        for example in one["examples"]:
            lines = "\n".join(f"- `{name}`: {text}" for name, text in example["texts"].items())
            liked = "; ".join(example["liked"])
            parts.append(
                f"User {example['user']}, {protocol}; newest liked of {example['read']} read: {liked}.\n\n{lines}"
            )
    return parts


def corpus_name(folder: Path, seed: int, protocol: str) -> str:
    """What the data of a run are called."""
    return str(read_object(folder / f"seed-{seed}" / f"texts-{protocol}.json", "corpus")["corpus"])

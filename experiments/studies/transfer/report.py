"""The cross-domain study's numbers: every system on each tested domain, their differences, verdicts, tables and figures."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_jax.data.opendialkg_sources import DOMAINS, DomainName
from rlhf_jax.evaluation import ranking, text
from rlhf_jax.evaluation.ranking import RankingOutcome, RankTable
from rlhf_jax.evaluation.results import Result, difference_name, shown_system
from rlhf_jax.interfaces import Corpus
from rlhf_jax.reporting import plots, result_tables
from rlhf_jax.reporting.run_figures import Entries
from studies.common import diagnostics, last_chapters
from studies.transfer.measure import POLICIES, DomainTest, Model

Measurements = Mapping[tuple[Model, str, DomainName], Mapping[int, DomainTest]]
"""(model, policy, tested domain) to seed to cases."""
References = Mapping[DomainName, Mapping[str, tuple[RankingOutcome, RankingOutcome]]]
"""Tested domain to reference to its ranks in both catalogues, union first."""
METRICS = ("hr@1", "hr@5", "hr@10", "ndcg@5")
CATALOGUES = ("both", "own")
NAMES = {"sft": "SFT", "ppo": "PPO"}
IN_DOMAIN, TRANSFERRED = "in domain", "transferred"
SHOWN = (("full", "hr@5"), ("full", "ndcg@5"), ("fresh", "hr@5"), ("fresh", "ndcg@5"))
TEXT = ("bleu4", "response_length", "repetition")


def system(model: Model, policy: str, tested: DomainName) -> str:
    """What a model is called on the page of a tested domain."""
    where = IN_DOMAIN if model.train_domain == tested else TRANSFERRED
    return f"{where}, {model.embeddings}, {NAMES[policy]}"


def split_name(tested: DomainName, catalogue: str) -> str:
    """Data set, tested domain and what is ranked against."""
    return f"opendialkg-{tested}/test, catalogue {'movie+book' if catalogue == 'both' else tested}"


def results(measured: Measurements, references: References) -> list[Result]:
    """Entries of `results.json`: every system alone, and the differences that the study asks for."""
    found: list[Result] = []
    for tested in DOMAINS:
        runs = {system(model, policy, tested): by for (model, policy, at), by in measured.items() if at == tested}
        for place, catalogue in enumerate(CATALOGUES):
            split = split_name(tested, catalogue)
            rankings = {name: {seed: _ranking(one, catalogue) for seed, one in by.items()} for name, by in runs.items()}
            known = {name: pair[place].tables for name, pair in references[tested].items()}
            for name, tables in (known | rankings).items():
                found += ranking.ranking_results(name, tables, split=split, metrics=METRICS)
            for a, b in pairs(list(runs)) + [(name, "copy") for name in runs if name.startswith(TRANSFERRED)]:
                sides = rankings[a], (known | rankings)[b]
                found += ranking.difference_results(difference_name(a, b), *sides, split=split, metrics=METRICS)
        found += _text(runs, split=split_name(tested, "both"))
    return found


def _ranking(tested: DomainTest, catalogue: str) -> Mapping[str, RankTable]:
    return (tested.union if catalogue == "both" else tested.own).ranking.tables


def _text(runs: Mapping[str, Mapping[int, DomainTest]], *, split: str) -> list[Result]:
    turns = {name: [by[seed].union.turns for seed in sorted(by)] for name, by in runs.items()}
    found: list[Result] = []
    for name, answers in turns.items():
        found += text.text_results(name, answers, split=split, seeds=sorted(runs[name]))
    for a, b in pairs(list(runs)):
        found += text.text_differences(difference_name(a, b), turns[a], turns[b], split=split, seeds=sorted(runs[a]))
    return [result for result in found if result.metric in TEXT]


def pairs(systems: Sequence[str]) -> list[tuple[str, str]]:
    """Systems that differ in one thing: PPO − SFT, transferred − in domain, shared − separate."""
    better = ("PPO", TRANSFERRED, "shared")
    found = []
    for a, b in itertools.permutations(systems, 2):
        differing = [(x, y) for x, y in zip(a.split(", "), b.split(", "), strict=True) if x != y]
        if len(differing) == 1 and differing[0][0] in better:
            found.append((a, b))
    return found


def cell_of(found: Sequence[Result], name: str, protocol: str, split: str) -> Result | None:
    """The entry of that name, protocol and split, if there is one."""
    return next((r for r in found if (r.name, r.protocol, r.split) == (name, protocol, split)), None)


def verdicts(found: Sequence[Result]) -> list[str]:
    """One line a direction and question, from HR@5 in the tested domain's catalogue; claims as `report_tables.claim`."""
    shared = f"{TRANSFERRED}, shared, SFT"
    questions = (
        ("SFT with shared embeddings − copying the context", difference_name(shared, "copy")),
        ("transferred − in domain, SFT with shared embeddings", difference_name(shared, f"{IN_DOMAIN}, shared, SFT")),
        ("shared − separate embeddings, SFT", difference_name(shared, f"{TRANSFERRED}, separate, SFT")),
        ("PPO − SFT with shared embeddings", difference_name(f"{TRANSFERRED}, shared, PPO", shared)),
    )
    lines = []
    for tested in DOMAINS:
        (source,) = (domain for domain in DOMAINS if domain != tested)
        for question, pair in questions:
            parts = []
            for protocol in ("full", "fresh"):
                result = cell_of(found, f"{pair}/hr@5", protocol, split_name(tested, "own"))
                if result is not None:
                    parts.append(f"`{protocol}` {result_tables.cell(result)}")
            if parts:
                lines.append(f"Verdict, {source}s → {tested}s, {question}: HR@5 {'; '.join(parts)}.")
    return lines


def report_text(found: Sequence[Result], corpus: Corpus, chapters: Sequence[str], *, command: str) -> str:
    """The study's `report.md`.

    Args:
      corpus: with the training dialogues of both domains; for the sizes in the text.
      chapters: that stand before the results.
      command: that repeats the study.
    """
    n_items = Counter(item.domain for item in corpus.items.values())
    sizes = [
        f"{name} {sum(d.domain == domain for d in split):,}"
        for domain in DOMAINS
        for name, split in ((f"{domain}s: training", corpus.train), ("test", corpus.test))
    ]
    seeds = sorted({seed for r in found for seed in r.seeds})
    parts = [
        "# Cross-domain: from movies to books, and back",
        (
            f"OpenDialKG, split by dialogue ({', '.join(sizes)} dialogues; {n_items['movie']:,} movies, {n_items['book']:,} "
            f"books, union over all splits). Every model is trained on one domain's dialogues, seeds "
            f"{', '.join(map(str, seeds))}; of the other domain it knows the catalogue (titles, genres, people), never a "
            "dialogue. `in domain`: tested where it was trained, the upper reference; `transferred`: on the other domain."
        ),
        "\n".join(f"- {line}" for line in verdicts(found)),
        (
            "▲ and ▼ need three training seeds, a paired bootstrap interval (dialogues and seeds) without 0 and a t test of the seeds that agrees. `full`: all "
            "items that the human recommender named; `fresh`: those not named before in the dialogue. `popularity` counts the "
            "tested domain's own training and validation dialogues, **which a transferred model does not have**; `copy` ranks "
            "the items of the context, last first, and knows nothing else."
        ),
        "![HR@5 and NDCG@5 on both tested domains, against the tested domain's items](plots/transfer.png)",
        "![BLEU-4 of greedy answers on both tested domains](plots/transfer_text.png)",
        *chapters,
    ]
    for tested in DOMAINS:
        parts.append(f"## Tested on {tested}s")
        for catalogue in ("own", "both"):
            split = split_name(tested, catalogue)
            size = n_items[tested] if catalogue == "own" else sum(n_items.values())
            text = f"Ranked against {size:,} items ({split.split(', ')[1]}); a random order has HR@5 {min(1.0, 5 / size):.4f}."
            parts += [text, _table(found, split, differences=False), _table(found, split, differences=True)]
        parts += ["Greedy answers:", _text_table(found, split_name(tested, "both"))]
    caption = (
        "Mean over seeds, by update and training domain; each run's own page is `seed-S/DOMAIN-EMBEDDINGS/ppo/diagnostics.md` "
        "in the run directory."
    )
    parts += last_chapters(found, command=command, caption=caption)
    return "\n\n".join(parts) + "\n"


def _table(found: Sequence[Result], split: str, *, differences: bool) -> str:
    here = [r for r in found if r.split == split and r.protocol != "text"]
    systems = list(dict.fromkeys(r.system for r in here if r.is_difference == differences))
    rows = [
        [shown_system(name), *(result_tables.cell(cell_of(here, f"{name}/{m}", p, split)) for p, m in SHOWN)]
        for name in systems
    ]
    n = " / ".join(str(next(r.n for r in here if r.protocol == protocol)) for protocol in ("full", "fresh"))
    header = [f"n = {n}", *(f"{metric.upper()}, `{protocol}`" for protocol, metric in SHOWN)]
    return result_tables.markdown_table(header, rows)


def _text_table(found: Sequence[Result], split: str) -> str:
    here = [r for r in found if r.split == split and r.protocol == "text"]
    rows = [
        [shown_system(name), *(result_tables.cell(cell_of(here, f"{name}/{metric}", "text", split)) for metric in TEXT)]
        for name in dict.fromkeys(r.system for r in here)
    ]
    return result_tables.markdown_table([f"n = {here[0].n}", "BLEU-4", "tokens", "repetition"], rows)


def figures(found: Sequence[Result], folder: Path, curves: Mapping[str, Sequence[Entries]]) -> None:
    """Ranking and text of all systems on both tested domains; one colour for where the training dialogues come from.

    Args:
      curves: the `metrics.jsonl` lines of every seed's PPO, by model, for the page of diagnostics.
    """
    plots.save(diagnostics({name: ("ppo", entries) for name, entries in curves.items()}), folder, "ppo")
    alone = [r for r in found if not r.is_difference]
    systems = sorted(dict.fromkeys(r.system for r in alone), key=_order)
    kinds = {name: _kind(name) for name in systems}
    panels: dict[str, list[tuple[str, Result]]] = {}
    for tested in DOMAINS:
        for protocol, metric in SHOWN[:3]:
            of_panel = {
                name: cell_of(alone, f"{name}/{metric}", protocol, split_name(tested, "own")) for name in systems
            }
            panels[f"On {tested}s: {metric.upper()}, {protocol}"] = [
                (n, r) for n, r in of_panel.items() if r is not None
            ]
    drawn = plots.forest(panels, x_label="mean over cases", kinds=kinds)
    plots.save(drawn, folder, "transfer")
    answering = {
        f"On {tested}s: BLEU-4": [
            (name, result)
            for name in systems
            if (result := cell_of(alone, f"{name}/bleu4", "text", split_name(tested, "both"))) is not None
        ]
        for tested in DOMAINS
    }
    plots.save(plots.forest(answering, x_label="points of 100", kinds=kinds), folder, "transfer_text")


def _kind(name: str) -> str:
    return next((kind for kind in (IN_DOMAIN, TRANSFERRED) if name.startswith(kind)), "no model")


def _order(name: str) -> tuple[int, str]:
    kind, _, rest = name.partition(", ")
    embeddings, _, policy = rest.partition(", ")
    return (IN_DOMAIN, TRANSFERRED).index(kind) if kind in (IN_DOMAIN, TRANSFERRED) else 2, (
        f"{embeddings != 'shared'} {POLICIES.index(policy.lower()) if policy else 0} {name}"
    )

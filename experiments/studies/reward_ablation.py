"""The ablation of the reward: which signals a variant is paid by, and the report on all of them over seeds."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from rlhf_jax.evaluation.results import Result, difference_name
from rlhf_jax.feedback.controls import ControlName
from rlhf_jax.reporting import gates, plots
from rlhf_jax.reporting.run_report import write_results
from rlhf_jax.runtime.files import read_list, write_text
from studies import common, tables
from studies.foundation import EQUAL, Sentiment
from studies.tables import Measure

Variant = Literal[
    "full",
    "engagement",
    "relevance",
    "sentiment",
    "engagement_relevance",
    "engagement_sentiment",
    "relevance_sentiment",
    "level",
    "suggests",
    "noise",
]


class Reward(NamedTuple):
    """What a variant is paid by."""

    weights: tuple[float, float, float]
    """α, β, γ of engagement, relevance, sentiment; they sum to 1."""
    sentiment: Sentiment
    """Form of the sentiment signal its reward model was trained on."""
    control: ControlName | None = None
    """What pays in the place of the reward model, whose weights then say nothing."""


VARIANTS: Mapping[Variant, Reward] = {
    "full": Reward(EQUAL, "shift"),
    "engagement": Reward((1.0, 0.0, 0.0), "shift"),
    "relevance": Reward((0.0, 1.0, 0.0), "shift"),
    "sentiment": Reward((0.0, 0.0, 1.0), "shift"),
    "engagement_relevance": Reward((0.5, 0.5, 0.0), "shift"),
    "engagement_sentiment": Reward((0.5, 0.0, 0.5), "shift"),
    "relevance_sentiment": Reward((0.0, 0.5, 0.5), "shift"),
    "level": Reward(EQUAL, "level"),
    "suggests": Reward(EQUAL, "shift", "suggests"),
    "noise": Reward(EQUAL, "shift", "noise"),
}
"""The seven subsets with the change of sentiment, all three with its level, and two controls that know nothing of items."""
SINGLES = ("engagement", "relevance", "sentiment")
CONTROLS: tuple[ControlName, ...] = ("suggests", "noise")
CONTROL_NAMES: Mapping[ControlName, str] = {
    "suggests": "a reward for suggesting anything",
    "noise": "a reward of noise",
}
SFT = "sft"
BASELINES = ("popularity", "copy", "mixture")
"""Untrained; they rank and say nothing."""

RECOMMENDING = (
    Measure("HR@5 `full`", "full", "hr@5"),
    Measure("NDCG@5 `full`", "full", "ndcg@5"),
    Measure("HR@5 `fresh`", "fresh", "hr@5"),
    Measure("NDCG@5 `fresh`", "fresh", "ndcg@5"),
    Measure("HR@5 `listed`", "listed", "hr@5", "sampled"),
    Measure("NDCG@5 `listed`", "listed", "ndcg@5", "sampled"),
    Measure("HR@5 `listed-fresh`", "listed-fresh", "hr@5", "sampled"),
)
PRIMARY = RECOMMENDING[:2]
"""What the paper claims; the other measures are read beside it, and there are too many of them to be claims each."""
SATISFACTION = (
    Measure("true utility, sampled", "closed-loop", "mean_utility", "sampled", users=True),
    Measure("true utility, greedy", "closed-loop", "mean_utility", "greedy", users=True),
    Measure("judge", "sampled", "judge", "sampled"),
)
BLEU = (Measure("BLEU-4, greedy", "text", "bleu4"), Measure("BLEU-4, sampled", "text", "bleu4", "sampled"))
PATH = (
    Measure("full reward (proxy)", "sampled", "proxy_score", "sampled"),
    Measure("KL", "sampled", "kl", "sampled"),
    Measure("tokens", "text", "response_length", "sampled"),
    Measure("ends", "sampled", "eos_share", "sampled"),
    Measure("repetition", "text", "repetition", "sampled"),
    Measure("entropy", "sampled", "entropy", "sampled"),
)
HEADINGS = {
    "Recommending": RECOMMENDING,
    "Satisfaction and text": (*SATISFACTION, *BLEU),
    "What it cost": PATH,
}


class Comparison(NamedTuple):
    """Names of everything in the report."""

    variants: tuple[Variant, ...]
    best: str
    """The comparison without learning, `best_of_8`."""
    kl_bound: float
    """Nats that its replies are away from SFT's at most; of chosen replies the KL itself is not measured."""

    @property
    def systems(self) -> tuple[str, ...]:
        return (SFT, self.best, *self.variants)

    @property
    def pairs(self) -> dict[str, list[tuple[str, str]]]:
        """Heading to the (a, b) whose differences a − b stand under it."""
        others = [other for other in (*SINGLES, "level", *CONTROLS) if other in self.variants]
        return {
            "Against SFT": [(name, SFT) for name in (self.best, *self.variants)],
            f"Against {self.best}": [(name, self.best) for name in self.variants],
            "Full reward against others": [("full", other) for other in others] if "full" in self.variants else [],
        }


def results(run_dir: Path, seeds: Sequence[int], compared: Comparison, *, split: str, same_test: bool) -> list[Result]:
    """Entries of `results.json`, from what every seed stored."""
    measured = {system: common.read_system(run_dir, seeds, system) for system in compared.systems}
    found = []
    for name in BASELINES:
        found += common.ranking_alone(name, run_dir, seeds, split=split, same_test=same_test)
    for system in compared.systems:
        found += common.system_results(system, measured[system], split=split, same_test=same_test)
    for a, b in (pair for pairs in compared.pairs.values() for pair in pairs):
        found += common.differences(difference_name(a, b), measured[a], measured[b], split=split, same_test=same_test)
    return found


def verdicts(found: Sequence[Result], compared: Comparison, split: str) -> list[str]:
    """One line a claim of the paper, and one a rival of ours: what its own measures say, then on how many others it is shown, with all numbers."""
    if "full" not in compared.variants:
        return ["Verdict: the full reward was not among the variants, so none of the claims was tested."]
    better = (*RECOMMENDING, *SATISFACTION)
    lines = [_verdict("full reward above SFT", found, difference_name("full", SFT), better, split)]
    lines += [
        _verdict(f"full reward above {name} alone", found, difference_name("full", name), better, split)
        for name in SINGLES
        if name in compared.variants
    ]
    lines += [
        _verdict(f"full reward above {CONTROL_NAMES[name]}", found, difference_name("full", name), better, split)
        for name in CONTROLS
        if name in compared.variants
    ]
    lines.append(
        _verdict(f"full reward above {compared.best}", found, difference_name("full", compared.best), better, split)
    )
    bleu = _entries(found, difference_name("full", SFT), BLEU, split)
    fell = any(one.shows_difference and one.value < 0 for _, one in bleu)
    numbers = "; ".join(f"{m.label} {tables.verdict(one)}" for m, one in bleu)
    state = "does not hold" if fell else "no fall shown"
    return [*lines, f"Verdict, BLEU-4 does not fall under the full reward: {state}. {numbers}."]


def _verdict(claim: str, found: Sequence[Result], name: str, measures: Sequence[Measure], split: str) -> str:
    entries = _entries(found, name, measures, split)
    parts = []
    for title, part in (
        ("by the paper's measures", [pair for pair in entries if pair[0] in PRIMARY]),
        ("beside them, not corrected for their number", [pair for pair in entries if pair[0] not in PRIMARY]),
    ):
        claimed = [one.value > 0 for _, one in part if one.shows_difference]
        state = f"shown on {sum(claimed)}, the opposite on {len(claimed) - sum(claimed)} of {len(part)}"
        if not claimed:
            state = f"no difference shown on any of {len(part)}"
        if part:
            numbers = "; ".join(f"{measure.label} {tables.verdict(one)}" for measure, one in part)
            parts.append(f"{title if not parts else title.capitalize()} {state}: {numbers}.")
    return f"Verdict, {claim}: {' '.join(parts)}"


def _entries(
    found: Sequence[Result], name: str, measures: Sequence[Measure], split: str
) -> list[tuple[Measure, Result]]:
    return [(m, one) for m in measures if (one := tables.find(found, name, m, split)) is not None]


def write_report(
    run_dir: Path,
    seeds: Sequence[int],
    compared: Comparison,
    *,
    setting: str,
    size: str,
    budget: str,
    same_test: bool,
    command: Sequence[str],
) -> Path:
    """Gathers all seeds: `results.json`, figures and `report.md`.

    Args:
      budget: one sentence on what every variant was given.
      same_test: real data; each world is a test set of its own.
      command: that makes it again.
    """
    split = f"{setting}/test"
    found = results(run_dir, seeds, compared, split=split, same_test=same_test)
    write_results(run_dir, found)
    drawn = [*RECOMMENDING, *SATISFACTION, *BLEU, *PATH[:3]]
    against_sft = (compared.best, *compared.variants)
    plots.save(tables.forest(found, against_sft, SFT, drawn, split), run_dir / "plots", "ablation")
    entries = common.seed_entries(run_dir, seeds)
    shown = [name for name in ("full", *SINGLES, "level", *CONTROLS) if name in compared.variants] or compared.variants
    page = common.diagnostics({name: (f"ppo-{name}", entries) for name in shown})
    plots.save(page, run_dir / "plots", "ppo")
    notes = read_list(common.seed_folder(run_dir, seeds[0]) / "notes.json")
    parts = [
        f"# Ablation of the reward: {setting}, {size}",
        *notes,
        f"{budget} Training seeds {', '.join(map(str, seeds))}. {_reading(compared, same_test)}",
    ]
    parts += gates.section(gates.read([common.seed_folder(run_dir, seed) for seed in seeds]))
    for title, measures in HEADINGS.items():
        systems = (*BASELINES, *compared.systems) if measures is RECOMMENDING else compared.systems
        parts += [f"## {title}", tables.table(found, systems, measures, split)]
    for title, pairs in compared.pairs.items():
        names = [difference_name(a, b) for a, b in pairs]
        if names:
            parts += [f"## {title}", *(tables.table(found, names, m, split) for m in HEADINGS.values())]
    parts += [
        "![Variant − SFT with intervals](plots/ablation.png)",
        "*Every variant minus SFT, 95 % intervals; each panel has a scale of its own.* ([SVG](plots/ablation.svg))",
        *common.last_chapters(
            found,
            command=shlex.join(command),
            caption="Mean over seeds, by update; components are the reward model's raw outputs.",
        ),
        "## Verdicts",
        "\n".join(f"- {line}" for line in verdicts(found, compared, split)),
    ]
    report = run_dir / "report.md"
    write_text(report, "\n\n".join(parts) + "\n")
    return report


def _reading(compared: Comparison, same_test: bool) -> str:
    names = [f"`{name}` is paid {CONTROL_NAMES[name]}" for name in CONTROLS if name in compared.variants]
    controls = f" {', '.join(names)}, in the place of a reward model." if names else ""
    own = "" if same_test else " Every seed has a world, and so test dialogues and users, of its own."
    return (
        "Intervals are 95 % bootstrap intervals over seeds and dialogues (or users), paired where systems are compared; "
        "a claim (▲, ▼) needs three seeds, an interval without 0, and a t test of the seeds' own differences that agrees. "
        f"`sampled` and `listed` judge sampled replies, the same contexts and random numbers for all.{own} "
        f"{compared.best} ranks as SFT does, because its choice begins after the ranking: it is compared on replies alone; "
        f"its KL is at most log n − (n − 1)/n = {compared.kl_bound:.2f} nats a reply. The proxy is the full reward for every system."
        f"{controls}"
    )

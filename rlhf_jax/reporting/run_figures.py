"""Which curves stand on which page of a report."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from rlhf_jax.evaluation.results import Result, Sides
from rlhf_jax.feedback.components import COMPONENTS, RESERVED
from rlhf_jax.reporting import gates, plots, result_tables
from rlhf_jax.reporting.plots import Line, Panel
from rlhf_jax.runtime.metric_names import kind

Entries = Sequence[Mapping[str, Any]]
"""Lines of `metrics.jsonl`, as `read_metrics` returns them."""
Figures = dict[str, tuple[Figure, str]]
"""File name to figure and caption."""


class Section(NamedTuple):
    """One page of a report; without figures the run has no data for it."""

    title: str
    text: str
    figures: Figures


class Curve(NamedTuple):
    """What a panel shows: names of metrics without the stage, with the labels they get; `*` is any component."""

    title: str
    metrics: Mapping[str, str]
    unit: str = ""
    bottom: float | None = None
    levels: Mapping[str, float] = {}


LEARNERS = ("ppo", "grpo")
"""Kinds of stages that learn by reinforcement."""
LEARNING = (
    Curve("Loss", {"loss": "training", "validation/loss": "validation"}),
    Curve("Words", {"word_nll": "training", "validation/word_nll": "validation"}, "nats per token"),
    Curve("Items", {"item_nll": "training", "validation/item_nll": "validation"}, "nats per token"),
    Curve("Gradient norm", {"norms/gradient": "gradient"}, bottom=0.0),
    Curve("Learning rate", {"learning_rate": "learning rate"}, bottom=0.0),
)
CORRELATION = Curve(
    "Correlation, validation",
    {"validation/pearson_*": "*", "validation/pearson": "sum"},
)
COMPONENT_LOSS = Curve("Loss by component", {"loss/*": "*"}, bottom=0.0)
PPO = (
    Curve("Score, raw", {"objective/score_raw": "weighted sum"}, "units of the labels"),
    Curve("Score, as paid", {"objective/score_normalised": "score", "objective/non_score_reward": "KL penalty"}),
    Curve("Components, raw", {"objective/*_raw": "*"}, "units of the labels"),
    Curve("KL to the reference", {"objective/kl_k1": "k1", "objective/kl_k3": "k3"}, "nats per response"),
    Curve("KL coefficient", {"objective/kl_coef": "coefficient"}, "1/nat", 0.0),
    Curve("Entropy", {"objective/entropy": "entropy"}, "nats per token", 0.0),
    Curve("Clip fraction", {"policy/clip_fraction": "policy", "value/clip_fraction": "value"}, bottom=0.0),
    Curve("Approximate KL of an update", {"policy/approx_kl": "½ d²"}, "nats", 0.0),
    Curve("Whole loss", {"loss": "policy, value, entropy"}),
    Curve("Policy loss", {"policy/loss": "surrogate"}),
    Curve("Value error", {"value/loss": "clipped square"}, bottom=0.0),
    Curve("Explained variance", {"value/explained_variance": "values"}),
    Curve("Gradient norm", {"norms/gradient": "gradient"}, bottom=0.0),
    Curve("Response length", {"text/response_length": "tokens"}, "tokens", 0.0),
    Curve("Responses that end", {"text/eos_fraction": "share"}, bottom=0.0),
    Curve("Repetition and distinct-2", {"text/repetition": "repetition", "text/distinct_2": "distinct-2"}, bottom=0.0),
    Curve("Correlation with the score as paid", {"objective/*_reward_correlation": "*"}),
    Curve("BLEU-4, evaluations", {"text/bleu4": "sacreBLEU"}, bottom=0.0),
)
TRUTH = ("world/mean_utility", "judge/score")
"""What the policy is never trained on; the first that was logged is the truth of the page."""


def series(entries: Entries, stage: str, metric: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric of a stage; null (not finite) becomes nan."""
    steps, values = [], []
    for entry in entries:
        if entry["stage"] == stage and metric in entry:
            steps.append(float(entry["step"]))
            values.append(math.nan if entry[metric] is None else float(entry[metric]))
    return steps, values


def components(entries: Entries, stage: str, metric: str) -> list[str]:
    """Components that a stage logged as `metric`, where `*` stands for the name: the default three first, then the others.

    Examples:
      >>> lines = [{"stage": "ppo", "step": 1, "objective/score_raw": 1.0, "objective/wit_raw": 2.0}]
      >>> components(lines, "ppo", "objective/*_raw")
      ['wit']
    """
    before, after = metric.split("*")
    logged = dict.fromkeys(name for entry in entries if entry["stage"] == stage for name in entry)
    pattern = re.compile(f"{re.escape(before)}([^\\W\\d]\\w*){re.escape(after)}")
    found = {match[1] for name in logged if (match := pattern.fullmatch(name))} - set(RESERVED)
    return [*(name for name in COMPONENTS if name in found), *sorted(found - set(COMPONENTS))]


def spelled_out(metrics: Mapping[str, str], entries: Entries, stage: str) -> dict[str, str]:
    """Metrics and labels with every `*` replaced by the components that the stage logged."""
    return {
        metric.replace("*", name): label.replace("*", name)
        for metric, label in metrics.items()
        for name in (components(entries, stage, metric) if "*" in metric else [""])
    }


def sections(entries: Entries, results: Sequence[Result], *, gate: float = gates.GATE) -> list[Section]:
    """All pages with curves; `gate` is marked where correlations are drawn."""
    stages = list(dict.fromkeys(entry["stage"] for entry in entries))
    out = []
    supervised = [stage for stage in stages if kind(stage) not in (*LEARNERS, "reward_model")]
    for stage in supervised or ["sft"]:
        title = "Supervised fine-tuning" if stage == "sft" else f"Stage {stage}"
        out.append(Section(title, "Learning curves.", _page(entries, stage, LEARNING)))
    curves = (LEARNING[0], CORRELATION._replace(levels={"gate": gate}), COMPONENT_LOSS)
    for stage in [stage for stage in stages if kind(stage) == "reward_model"] or ["reward_model"]:
        out.append(Section(_titled("Reward model training", stage), "Learning curves.", _page(entries, stage, curves)))
    out += diagnostics(entries) or [Section("PPO", "", {})]
    out.append(proxy_and_truth(entries, results))
    return out


def learner_of(entries: Entries) -> str:
    """Which learner a run's stage 3 was: `grpo` where it has such lines, else `ppo`."""
    return "grpo" if any(entry["stage"] == "grpo" for entry in entries) else "ppo"


def diagnostics(entries: Entries) -> list[Section]:
    """One page a PPO stage: reward components, KL, entropy, losses, clip fraction, value error, explained variance, text."""
    text = (
        "One point is the mean over the updates of a log line; with many points the pale line is the log and the dark one "
        "its running mean."
    )
    stages = dict.fromkeys(entry["stage"] for entry in entries if kind(entry["stage"]) in LEARNERS)
    return [Section(_titled(kind(stage).upper(), stage), text, _page(entries, stage, PPO)) for stage in stages]


def _titled(title: str, stage: str) -> str:
    return title if stage == kind(stage) else f"{title}: {stage}"


def comparison(results: Sequence[Result]) -> Figure | None:
    """Ranking of the systems under each protocol at 1, 10 and 50; None without such results."""
    groups: dict[str, list[tuple[str, Result]]] = {}
    order = {system: place for place, system in enumerate(result_tables.ordered_systems(results))}
    for result in sorted(results, key=lambda r: order[r.system]):
        plain = not result.is_difference and result.metric in ("hr@1", "hr@10", "hr@50")
        if plain and result.protocol in ("full", "fresh"):
            groups.setdefault(f"{result.protocol}, {result.metric}", []).append((result.system, result))
    names = [f"{protocol}, hr@{k}" for protocol in ("full", "fresh") for k in (1, 10, 50)]
    present = {name.replace("hr@", "HR@"): groups[name] for name in names if name in groups}
    return plots.forest(present, x_label="share of cases") if present else None


def proxy_and_truth(entries: Entries, results: Sequence[Result]) -> Section:
    """Proxy reward beside what it stands for: over updates, and along the KL path."""
    title = "Proxy reward and true satisfaction"
    truth = next(
        (name for name in TRUTH if any(map(math.isfinite, series(entries, learner_of(entries), name)[1]))), None
    )
    if truth is None:
        return Section(title, "", {})
    label = {"world/mean_utility": "True utility, unseen users", "judge/score": "Held-out judge"}[truth]
    before = [r.value for r in results if r.name == "sft/mean_utility" and truth.startswith("world")]
    levels = {"SFT": before[0]} if before else {}
    panels = [
        Panel("Proxy reward (raw score)", [_line(entries, "objective/score_raw")], "z"),
        Panel(label, [_line(entries, truth)], "", levels),
        Panel("KL to the reference", [_line(entries, "objective/kl_k1")], "nats per response"),
        Panel("Response length", [_line(entries, "text/response_length")], "tokens", bottom=0.0),
        Panel("BLEU-4", [_line(entries, "text/bleu4")]),
        Panel("Simulated dwell", [_line(entries, "world/dwell_seconds")], "s"),
    ]
    caption = "Over-optimisation shows where the proxy goes on rising and the truth does not."
    figures: Figures = {"proxy_and_truth": (plots.small_multiples([p for p in panels if p.lines[0].x]), caption)}
    points = _along_the_path(entries, truth)
    if len(points) >= 2:
        updates, kl, proxy, true = (list(column) for column in zip(*points, strict=True))
        unit = "nats per response"
        stacked = [
            Panel("Proxy reward", [Line("", kl, proxy)], "z"),
            Panel(label, [Line("", kl, true)], "", levels, f"KL to the reference ({unit})"),
        ]
        figure = plots.path(stacked, colour_label="update", order=updates)
        figures["kl_path"] = (figure, "Proxy and truth along the KL path; shade is the update.")
    return Section(title, verdict(points, results), figures)


def study(groups: Mapping[str, Sequence[Entries]]) -> Figure:
    """Proxy, truth (where it is known) and KL of several runs, a row each; one column per group, one line per run.

    One group alone stands in one row.

    Args:
      groups: name of a setting (a world, a reward) to the `metrics.jsonl` lines of its runs, in the order of seeds.
    """
    rows = (
        ("proxy reward", "objective/score_raw", "z"),
        ("true utility", TRUTH[0], ""),
        ("KL", "objective/kl_k1", "nats per response"),
    )
    panels = []
    for title, metric, unit in rows:
        row = [
            Panel(
                f"{group}: {title}",
                [Line(f"run {n + 1}", *series(run, learner_of(run), metric)) for n, run in enumerate(runs)],
                unit,
            )
            for group, runs in groups.items()
        ]
        if any(line.x for panel in row for line in panel.lines):
            panels += row
    several = len(groups) > 1
    return plots.small_multiples(panels, columns=len(groups) if several else len(rows), share_rows=several)


def verdict(points: Sequence[tuple[float, float, float, float]], results: Sequence[Result]) -> str:
    """One paragraph that says what happened to the proxy and to the truth, with the numbers.

    Args:
      points: (update, KL, proxy, truth) at every evaluation.
      results: may hold `ppo-sft/proxy_score` and `ppo-sft/mean_utility`, which decide where they are there.
    """
    gains: dict[str, Result] = {}
    for r in results:
        if r.sides in [Sides(learner, "sft") for learner in LEARNERS] and r.metric in ("proxy_score", "mean_utility"):
            gains.setdefault(r.metric, r)  # The first split leads: the policy as it was trained, sampled.
    text = []
    if len(points) >= 2:
        best = max(points, key=lambda point: point[3])
        text.append(
            f"From the first to the last evaluation the proxy went from {points[0][2]:.3f} to {points[-1][2]:.3f} and the "
            f"truth from {points[0][3]:.3f} to {points[-1][3]:.3f}; the truth was highest ({best[3]:.3f}) at update "
            f"{best[0]:.0f} of {points[-1][0]:.0f}, KL {best[1]:.1f} nats."
        )
    if len(gains) == 2:
        proxy, true = gains["proxy_score"], gains["mean_utility"]
        text.append(
            f"{proxy.name.partition('-')[0].upper()} − SFT: proxy {result_tables.cell(proxy)}, true utility {result_tables.cell(true)}, n = {true.n} users "
            f"({true.split})."
        )
        up = proxy.interval_excludes_zero and proxy.value > 0
        if up and true.interval_excludes_zero:
            text.append(
                "**Both rose.**" if true.value > 0 else "**Over-optimised: the proxy rose while the truth fell.**"
            )
        elif up:
            text.append("**The proxy rose without a gain in truth that could be shown.**")
        else:
            text.append("**The proxy did not rise, so the truth was not put to the test.**")
    return " ".join(text) or "Too few evaluations to compare the two."


def _along_the_path(entries: Entries, truth: str) -> list[tuple[float, float, float, float]]:
    """(update, KL, proxy, truth) at every evaluation; KL and proxy are those of the last log line up to it."""
    learner = learner_of(entries)
    kl, proxy = (
        dict(zip(*series(entries, learner, m), strict=True)) for m in ("objective/kl_k1", "objective/score_raw")
    )
    points = []
    for update, value in zip(*series(entries, learner, truth), strict=True):
        logged = [step for step in kl if step <= update and step in proxy]
        if not logged:
            continue
        point = (update, kl[max(logged)], proxy[max(logged)], value)
        if all(map(math.isfinite, point)):
            points.append(point)
    return points


def _page(entries: Entries, stage: str, curves: Sequence[Curve]) -> Figures:
    panels = []
    for curve in curves:
        metrics = spelled_out(curve.metrics, entries, stage)
        drawn = [(label, series(entries, stage, metric)) for metric, label in metrics.items()]
        lines = [Line(label, *xy) for label, xy in drawn if any(map(math.isfinite, xy[1]))]
        if lines:
            x_label = "update" if kind(stage) in LEARNERS else "step"
            panels.append(Panel(curve.title, lines, curve.unit, curve.levels, x_label, curve.bottom))
    if not panels:
        return {}
    return {stage: (plots.small_multiples(panels), f"Stage {stage}.")}


def _line(entries: Entries, metric: str) -> Line:
    learner = learner_of(entries)
    return Line(learner.upper(), *series(entries, learner, metric))

"""The reward-model study as tables, text and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.evaluation import bootstrap
from rlhf_jax.evaluation.results import Result
from rlhf_jax.reporting import gates, plots
from rlhf_jax.reporting.gates import GATE
from rlhf_jax.reporting.interval_plots import Points, PointsPanel, with_intervals
from rlhf_jax.reporting.result_tables import markdown_table
from studies.reward_validation.cases import SeedCases
from studies.reward_validation.results import (
    MEANINGS,
    PARTS,
    SUM,
    TARGETS,
    USS_PARTS,
    curve_turns,
    dialogue_keys,
    label_pairs,
)

BINS = 10
"""Of the calibration plot; as many cases in each."""


def report_text(
    found: Sequence[Result], judge: Mapping[str, Any], *, setting: str, size: str, turns: Sequence[float]
) -> str:
    """The study's `report.md`.

    Args:
      judge: `satisfaction.uss_judge`'s report; empty where no dialogue has satisfaction scores.
      turns: labelled turns behind the points of the learning curve, without the last.
    """
    curve = {f"learning-curve-{number}": f"{count:,.0f} turns" for number, count in enumerate(turns)}
    sections = [
        (
            f"## Held-out correlation and the gate (Pearson > {GATE})",
            [
                gate_text(found),
                gates.study_table(found),
                _image("calibration", "Mean weak label of turns with a like prediction"),
            ],
        ),
        (
            "## How much labelled data it takes",
            [
                protocol_table(found, [*curve, "held-out"], {**curve, "held-out": "all"}),
                "Held-out Pearson of reward models trained on fewer labelled turns, same held-out turns (`held-out`).",
                _image("learning_curve", "Held-out correlation over labelled turns"),
            ],
        ),
        ("## Seen and unseen items", [protocol_table(found, [part.replace(" ", "-") for part in PARTS])]),
        (
            "## Human satisfaction (USS)",
            [
                protocol_table(found, [f"uss-{part}" for part in USS_PARTS]),
                "`labels` are the weak labels themselves, which read the user's answer; R_φ reads context and reply.",
            ],
        ),
        (
            "## True utility",
            [
                protocol_table(found, ["truth", "truth-suggesting", "truth-users"]),
                "`labels` are the weak labels themselves, which read the user's answer; R_φ reads context and reply.",
            ],
        ),
        ("## The satisfaction judge", [judge_table(found), judge_text(judge)] if judge else []),
    ]
    used = dict.fromkeys(one.protocol for one in found)
    parts = [
        f"# What the reward model knows: {setting}, {size}",
        (
            "Values are means over seeds, ± their standard deviation; in brackets 95 % bootstrap intervals over dialogues and "
            "seeds; n counts the cases of all seeds together. z-units are standard deviations of the weak labels on the training "
            "split."
        ),
    ]
    for title, texts in sections:
        if texts and texts[0]:
            parts += [title, *(text for text in texts if text)]
    parts += ["## Protocols", "\n".join(f"- `{name}`: {MEANINGS[name]}." for name in used if name in MEANINGS)]
    return "\n\n".join(parts) + "\n"


def _image(name: str, caption: str) -> str:
    return f"![{caption}](plots/{name}.png)"


def gate_text(found: Sequence[Result]) -> str:
    """One line a verdict: which correlations lie where."""
    judged: dict[str, list[str]] = {}
    for one in found:
        if one.protocol == "held-out" and one.interval is not None:
            judged.setdefault(gates.verdict(one), []).append(f"{gates.target(one)} ({one.system})")
    text = (
        "The paper asks for a held-out Pearson above the gate before PPO. The held-out turns also choose the evaluation "
        "whose parameters are kept, so that their correlation is, by a little, too high."
    )
    lines = [f"- Verdict, held-out Pearson {place}: {', '.join(names)}." for place, names in judged.items()]
    return "\n".join([text, "", *lines])


def protocol_table(found: Sequence[Result], protocols: Sequence[str], headings: Mapping[str, str] | None = None) -> str:
    """Protocols across, under their headings or names, systems and targets down; empty where nothing of it was measured."""
    there = [name for name in protocols if any(one.protocol == name for one in found)]
    if not there:
        return ""
    cells = {(one.name, one.protocol): one for one in found}
    names = dict.fromkeys(one.name for one in found if one.protocol in there)
    rows = []
    for name in names:
        row = [cells.get((name, protocol)) for protocol in there]
        first = next(one for one in row if one is not None)
        rows.append([first.system, gates.target(first), *(cell(one, with_n=True) for one in row)])
    return markdown_table(["labels", "target", *((headings or {}).get(name, name) for name in there)], rows)


def judge_table(found: Sequence[Result]) -> str:
    """What the judge and its companions are worth on dialogues they were not fitted on."""
    rows = [[one.system, one.definition, f"{one.n:,}", cell(one)] for one in found if one.protocol == "uss-judge"]
    return markdown_table(["model", "Spearman's ρ of", "n", "value [95 %]"], rows)


def judge_text(judge: Mapping[str, Any]) -> str:
    """How the judge was made, and how strong it is."""
    fitting, held_out, score = judge["fitting"], judge["held_out"], judge["score"]
    own, answer = judge["spearman"]["judge"]["value"], judge["spearman"]["with the answer"]["value"]
    alone = judge["spearman"]["reply alone"]["value"]
    return (
        f"Ridge on TF-IDF, fitted on {fitting['turns']:,} turns of {fitting['dialogues']} dialogues, λ = "
        f"{judge['penalties']['judge']['chosen']:g} by cross-validation within them; measured on {held_out['turns']:,} turns of "
        f"{held_out['dialogues']} others. From context and reply alone it reaches ρ = {own:.3f}; the same model that may read "
        f"the user's answer reaches {answer:.3f}, and two annotators agree at .29 (Sun et al. 2021). Two replies to one "
        f"context differ by their own words only; these alone reach {alone:.3f}: a small difference between policies is within the "
        f"judge's ignorance. Scores are bounded to 1–5 "
        f"and lie between {score['min']:.2f} and {score['max']:.2f} on the held-out turns, standard deviation "
        f"{score['std']:.3f} (annotations: {judge['satisfaction']['std']:.2f})."
    )


def cell(one: Result | None, *, with_n: bool = False) -> str:
    """Value, spread over seeds, interval, and n where it differs from column to column."""
    return gates.value(one) + (f", n {one.n:,}" if with_n and one is not None else "")


def calibration_figure(gathered: Sequence[SeedCases], folder: Path, *, same_dialogues: bool) -> Path:
    """Mean label of turns with a like prediction; one panel a target, one series a form of the labels."""
    panels = [
        PointsPanel(
            gates.called(target),
            [_bins(one, target, same_dialogues) for one in gathered],
            x_label="predicted, z-units",
            y_label="mean weak label, z-units",
            diagonal=True,
        )
        for target in TARGETS
    ]
    return plots.save(with_intervals(panels), folder, "calibration")


def _bins(gathered: SeedCases, target: str, same_dialogues: bool) -> Points:
    pairs = {seed: label_pairs(cases, target) for seed, cases in gathered.held_out.items()}
    keys = np.array(dialogue_keys(pairs, same_dialogues=same_dialogues))
    x, y = (np.concatenate([found[axis] for found in pairs.values()]) for axis in (1, 2))
    rows = []
    for cases in np.array_split(np.argsort(x, kind="stable"), min(BINS, len(x))):
        mean = bootstrap.mean(bootstrap.by_dialogue(y[cases], keys[cases].tolist()), replicates=500)
        rows.append((float(x[cases].mean()), mean.value, *mean.interval))
    return Points(f"labels with sentiment {gathered.form}", *zip(*rows, strict=True))


def curve_figure(found: Sequence[Result], gathered: SeedCases, folder: Path) -> Path:
    """Held-out Pearson over labelled training turns, one series a target."""
    turns = [curve_turns(runs) for runs in (*gathered.curve, gathered.held_out)]
    protocols = [*(f"learning-curve-{number}" for number in range(len(gathered.curve))), "held-out"]
    series = []
    for target in TARGETS:
        name = f"{gathered.form}/pearson" + ("" if target == SUM else f"_{target}")
        by_protocol = {one.protocol: one for one in found if one.name == name and one.interval is not None}
        points = [(x, by_protocol[p]) for x, p in zip(turns, protocols, strict=True) if p in by_protocol]
        if points:
            series.append(
                Points(
                    gates.called(target),
                    [x for x, _ in points],
                    [one.value for _, one in points],
                    [(one.interval or (one.value, one.value))[0] for _, one in points],
                    [(one.interval or (one.value, one.value))[1] for _, one in points],
                )
            )
    panel = PointsPanel(
        f"Held-out correlation, labels with sentiment {gathered.form}",
        series,
        x_label="labelled training turns",
        y_label="Pearson",
        levels={"gate": GATE},
        doubling=True,
    )
    return plots.save(with_intervals([panel], columns=1), folder, "learning_curve")

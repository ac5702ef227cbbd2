"""The reward-model study's numbers: from the cases of all seeds to entries of `results.json`.

Intervals come from the bootstrap over dialogues and seeds. Seeds that judged the same dialogues share the draw of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhf_jax.evaluation import association, bootstrap
from rlhf_jax.evaluation.bootstrap import Estimate
from rlhf_jax.evaluation.results import Result
from rlhf_jax.feedback.components import COMPONENTS
from rlhf_jax.feedback.weak_labels import weighted_sum
from rlhf_jax.reporting.gates import SUM, called
from studies.foundation import EQUAL
from studies.reward_validation.cases import ScoredTurns, SeedCases

Floats = NDArray[np.float64]
Statistic = Callable[[Floats, Floats], float]
TARGETS = (SUM, *COMPONENTS)
"""The weighted sum and its components, in the order to show."""
PARTS = ("seen items", "unseen items", "no item")
USS_PARTS = ("validation", "untouched", "trained")
MEANINGS: Mapping[str, str] = {
    "held-out": "turns of validation dialogues",
    "calibration": "slope of the weak label on the prediction, least squares, same turns; 1 is calibrated, 0 says nothing",
    "seen-items": "held-out turns all of whose items were suggested in a training turn of R_φ",
    "unseen-items": "held-out turns with an item that no training turn of R_φ suggested",
    "no-item": "held-out turns without an item",
    "uss-validation": "USS satisfaction of the user's answer; dialogues that neither R_φ nor the supervised trunk saw",
    "uss-untouched": "the same; dialogues the trunk imitated, none of whose labelled turns R_φ was trained on",
    "uss-trained": "the same, in sample: labelled turns of the dialogue were in R_φ's training set",
    "truth": "true utility of the logged turn, simulated world, validation dialogues",
    "truth-suggesting": "the same, turns that suggest an item",
    "truth-users": "mean true utility of the turns a user lived through against their mean score, supervised policy as it "
    "samples; cases are users",
}
"""Protocol to what a case is and where it comes from."""


class Pairs(NamedTuple):
    """Two numbers a case, of one seed."""

    dialogues: Sequence[str]
    x: Floats
    y: Floats


class Entry(NamedTuple):
    """One result to be: what is computed from what."""

    name: str
    protocol: str
    pairs: Mapping[int, Pairs]
    """By seed."""
    compute: Statistic
    text: str


def results(gathered: SeedCases, *, source: str, replicates: int) -> list[Result]:
    """Systems are the forms `shift`, `level` (R_φ) and `shift labels` (the weak labels themselves); empty ones are left out."""
    found = []
    for entry in (*_against_labels(gathered), *_against_truth(gathered)):
        pairs = {seed: own for seed, own in entry.pairs.items() if math.isfinite(entry.compute(own.x, own.y))}
        if not pairs:
            continue
        value = estimate(pairs, entry.compute, same_dialogues=source != "world", replicates=replicates)
        found.append(
            Result(
                name=entry.name,
                value=value.value,
                n=value.n,
                protocol=entry.protocol,
                split=f"{source}/{'train+validation' if entry.protocol.startswith('uss') else 'validation'}",
                interval=value.interval if all(map(math.isfinite, value.interval)) else None,
                seeds=tuple(pairs),
                definition=entry.text + (f"; n over all {len(pairs)} seeds" if len(pairs) > 1 else ""),
                std=value.std,
            )
        )
    return found


def _against_labels(gathered: SeedCases) -> list[Entry]:
    """Held-out correlation and calibration, by what items were trained on, and the learning curve."""
    form, entries = gathered.form, []
    for target in TARGETS:
        text = f"Pearson correlation of R_φ with the weak label of {called(target)}; "
        name, held_out = f"{form}/{_metric('pearson', target)}", gathered.held_out
        whole = _each(held_out, lambda cases, target=target: label_pairs(cases, target))
        entries.append(Entry(name, "held-out", whole, correlation, text + MEANINGS["held-out"]))
        said = f"{called(target)}: {MEANINGS['calibration']}"
        entries.append(Entry(f"{form}/{_metric('slope', target)}", "calibration", whole, slope, said))
        for part in PARTS:
            protocol = part.replace(" ", "-")
            some = _each(held_out, lambda cases, target=target, part=part: label_pairs(cases, target, part))
            entries.append(Entry(name, protocol, some, correlation, text + MEANINGS[protocol]))
        for number, runs in enumerate(gathered.curve):
            pairs = _each(runs, lambda cases, target=target: label_pairs(cases, target))
            trained = f"R_φ trained on {curve_turns(runs):,.0f} labelled turns, {MEANINGS['held-out']}"
            entries.append(Entry(name, f"learning-curve-{number}", pairs, correlation, text + trained))
    return entries


def _against_truth(gathered: SeedCases) -> list[Entry]:
    """R_φ, and beside it the weak labels it learns, against satisfaction or true utility."""
    form, entries = gathered.form, []
    for of_labels in (False, True):
        system, who = (f"{form} labels", "the weak label") if of_labels else (form, "R_φ")
        for target in TARGETS:
            for protocol, runs, part in (
                *((f"uss-{part}", gathered.uss, part) for part in USS_PARTS),
                ("truth", gathered.truth, None),
                ("truth-suggesting", gathered.truth, "suggests"),
            ):
                ranks = protocol.startswith("uss")
                pairs = _each(
                    runs,
                    lambda cases, target=target, part=part, of_labels=of_labels: truth_pairs(
                        cases, target, part, of_labels=of_labels
                    ),
                )
                name = f"{system}/{_metric('spearman' if ranks else 'pearson', target)}"
                text = (
                    f"{'Spearman' if ranks else 'Pearson'} correlation of {who}, {called(target)}; {MEANINGS[protocol]}"
                )
                entries.append(Entry(name, protocol, pairs, rank_correlation if ranks else correlation, text))
    met = {
        seed: Pairs([str(number) for number in range(len(users.score))], users.score, users.utility)
        for seed, users in gathered.users.items()
    }
    text = f"Pearson correlation of R_φ, {called(SUM)}; {MEANINGS['truth-users']}"
    return [*entries, Entry(f"{form}/pearson", "truth-users", met, correlation, text)]


def _each(runs: Mapping[int, ScoredTurns], pairs: Callable[[ScoredTurns], Pairs]) -> dict[int, Pairs]:
    return {seed: pairs(cases) for seed, cases in runs.items()}


def _metric(statistic: str, target: str) -> str:
    return statistic if target == SUM else f"{statistic}_{target}"


def estimate(pairs: Mapping[int, Pairs], compute: Statistic, *, same_dialogues: bool, replicates: int) -> Estimate:
    """Mean over seeds of a statistic of pairs, with its interval.

    Args:
      pairs: by seed.
      same_dialogues: equal ids are equal dialogues in all seeds; otherwise (worlds) each seed has its own.
    """
    values = np.array([compute(own.x, own.y) for own in pairs.values()])
    keys = dialogue_keys(pairs, same_dialogues=same_dialogues)
    x, y = (np.concatenate([own[axis] for own in pairs.values()]) for axis in (1, 2))
    owner = np.repeat(np.arange(len(pairs)), [len(own.x) for own in pairs.values()])

    def replicate(cases: NDArray[np.int64], drawn: NDArray[np.int64]) -> float:
        own = owner[cases]
        per_seed = {place: compute(x[cases[own == place]], y[cases[own == place]]) for place in set(drawn.tolist())}
        return float(np.mean([per_seed[place] for place in drawn.tolist()]))

    interval = bootstrap.statistic(keys, replicate, n_seeds=len(pairs), replicates=replicates)
    return Estimate(float(values.mean()), interval, len(x), float(values.std(ddof=1)) if len(values) > 1 else None)


def dialogue_keys(pairs: Mapping[int, Pairs], *, same_dialogues: bool) -> list[str]:
    """What is resampled, one key a case, seeds one after another."""
    return [name if same_dialogues else f"{seed}/{name}" for seed, own in pairs.items() for name in own.dialogues]


def correlation(x: Floats, y: Floats) -> float:
    """Pearson; NaN for fewer than three cases, of which two always correlate."""
    return association.pearson(x, y) if len(x) >= 3 else math.nan


def slope(x: Floats, y: Floats) -> float:
    """Least-squares slope of y on x; NaN where x does not vary."""
    if len(x) < 3 or not np.ptp(x) > 0:
        return math.nan
    return float(np.cov(x, y, ddof=0)[0, 1] / x.var())


def side(values: Floats, target: str) -> Floats:
    """One component, or the weighted sum. [N, C] -> [N]"""
    return weighted_sum(values, EQUAL) if target == SUM else values[:, COMPONENTS.index(target)]


def _known(cases: ScoredTurns, target: str) -> NDArray[np.bool_]:
    return np.asarray(cases.mask.all(axis=1) if target == SUM else cases.mask[:, COMPONENTS.index(target)], bool)


def label_pairs(cases: ScoredTurns, target: str, part: str | None = None) -> Pairs:
    """Prediction against weak label, where the label is known."""
    kept = _known(cases, target) & (np.ones(len(cases.part), bool) if part is None else cases.part == part)
    return Pairs(cases.dialogues[kept].tolist(), side(cases.predicted, target)[kept], side(cases.labels, target)[kept])


def truth_pairs(cases: ScoredTurns, target: str, part: str | None, *, of_labels: bool = False) -> Pairs:
    """Prediction, or the weak label itself, against what people said or the world knows."""
    kept = np.isfinite(cases.truth) & (np.ones(len(cases.part), bool) if part is None else cases.part == part)
    kept = kept & _known(cases, target)
    values = side(cases.labels if of_labels else cases.predicted, target)
    return Pairs(cases.dialogues[kept].tolist(), values[kept], cases.truth[kept])


def rank_correlation(x: Floats, y: Floats) -> float:
    """Spearman's ρ; NaN for fewer than three cases."""
    return association.spearman(x, y) if len(x) >= 3 else math.nan


def curve_turns(runs: Mapping[int, ScoredTurns]) -> float:
    """Training turns of a point of the learning curve, mean over seeds."""
    return float(np.mean([cases.training_turns for cases in runs.values()]))

"""The reward-hacking study's ways (one per KL coefficient and length control) and what is found about each."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.evaluation import failure_signatures, over_optimisation
from rlhf_jax.evaluation.failure_signatures import SIGNATURES, Warnings
from rlhf_jax.evaluation.over_optimisation import FORMS, Fit, Floats, Form, Means, Onset
from rlhf_jax.evaluation.results import DIFFERENCE, Result, difference_name
from rlhf_jax.runtime.files import RunError, read_object
from rlhf_jax.runtime.metrics import read_metrics
from studies.hacking import path_probe

PROTOCOL = "over-optimisation"
MEASUREMENTS = "measurements"
"""Folder of a seed's stored measurements."""
BEFORE = "before_learning.json"
"""File of a seed: way to signature to values before learning."""


class Way(NamedTuple):
    """One way of a policy: PPO at a KL coefficient, replies priced by length or not."""

    kl_coef: float
    priced: bool
    """Whether tokens beyond `length_free` cost `length_coef` each."""

    @property
    def stage(self) -> str:
        """Names checkpoints, log lines and measurements."""
        return f"ppo-kl{self.kl_coef:g}".replace(".", "_") + ("-length" if self.priced else "")

    @property
    def system(self) -> str:
        """Names the way in results."""
        return f"kl{self.kl_coef:g}".replace("-", "m") + ("+length" if self.priced else "")

    @property
    def title(self) -> str:
        """Names the way in figures and tables."""
        return f"KL {self.kl_coef:g}" + (" + length" if self.priced else "")


class Findings(NamedTuple):
    """What is known about one way."""

    means: Means
    fits: Mapping[Form, Fit]
    onset: Onset | None
    warnings: Sequence[Warnings]


class Study(NamedTuple):
    """All ways of a study, and their fits together."""

    seeds: tuple[int, ...]
    ways: Mapping[Way, Findings]
    pooled: Mapping[bool, Mapping[Form, Fit]]
    """Whether length was priced to the fits of all KL coefficients together: the law is meant to hold whatever the
    coefficient."""
    deviation: Mapping[str, float]
    """Standard deviation of proxy and truth over cases of the supervised policy, mean over seeds."""

    @property
    def claimable(self) -> bool:
        """A claim needs three seeds."""
        return len(self.seeds) >= 3


def gather(folders: Mapping[int, Path], ways: Sequence[Way], *, same_cases: bool, replicates: int) -> Study:
    """Reads what the seeds measured and logged, and analyses it.

    Args:
      folders: run directory of each training seed.
      same_cases: seeds answered the same contexts; else each met users of its own.
    Raises: RunError naming what a seed has not measured yet.
    """
    seeds = tuple(sorted(folders))
    walks = {
        way: [
            path_probe.read_walk(folders[seed] / MEASUREMENTS, way.stage, seed=seed, same_cases=same_cases)
            for seed in seeds
        ]
        for way in ways
    }
    means = over_optimisation.resample({way.stage: walks[way] for way in ways}, replicates=replicates)
    lines = [read_metrics(folders[seed] / "metrics.jsonl") for seed in seeds]
    starts = [_before(folders[seed]) for seed in seeds]
    found = {}
    for way in ways:
        signals = failure_signatures.warnings(lines, way.stage, [start[way.stage] for start in starts])
        here = means[way.stage]
        found[way] = Findings(here, _fits([here]), over_optimisation.onset(here), signals)
    pooled = {
        priced: _fits([means[way.stage] for way in ways if way.priced == priced])
        for priced in dict.fromkeys(way.priced for way in ways)
    }
    first = walks[ways[0]]
    deviation = {
        "proxy": float(np.mean([walk.proxy[0].std() for walk in first])),
        "truth": float(np.mean([walk.truth[0].std() for walk in first])),
    }
    return Study(seeds, found, pooled, deviation)


def _fits(ways: Sequence[Means]) -> dict[Form, Fit]:
    return {form: over_optimisation.fit(ways, form) for form in FORMS}


def _before(folder: Path) -> dict[str, dict[str, list[float]]]:
    if not (folder / BEFORE).exists():
        raise RunError(f"{folder} has no {BEFORE}: start the study's seed again")
    stored: dict[str, dict[str, list[Any]]] = read_object(folder / BEFORE)
    return {
        way: {metric: [math.nan if value is None else value for value in values] for metric, values in start.items()}
        for way, start in stored.items()
    }


def gain(means: Means, values: Floats) -> tuple[float, tuple[float, float], float | None]:
    """Last minus first evaluation, mean over seeds; its 95 % interval, and its deviation over seeds."""
    gains = means.over_seeds(values)[:, -1] - means.over_seeds(values)[:, 0]
    by_seed = values[0, :, -1] - values[0, :, 0]
    low, high = np.quantile(gains[1:], [0.025, 0.975])
    return float(gains[0]), (float(low), float(high)), float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None


def results(study: Study, *, split: str, truth: str) -> list[Result]:
    """Entries of `results.json`; a number that does not exist (no fall, no turn) is null.

    Args:
      split: data set and cases, for example `world/users`.
      truth: what the truth is called: `mean_utility` or `judge`.
    """
    found = []

    def add(
        name: str,
        value: float,
        n: int | None,
        text: str,
        interval: tuple[float, float] | None = None,
        std: float | None = None,
    ) -> None:
        known = interval if interval is not None and all(map(math.isfinite, interval)) else None
        value = value if math.isfinite(value) else math.nan
        if n is None:
            n, text = len(study.seeds), f"{text}; n seeds"
        elif len(study.seeds) > 1:
            text += f"; n over all {len(study.seeds)} seeds"
        found.append(Result(name, value, n, PROTOCOL, split, known, study.seeds, text, std))

    for way, one in study.ways.items():
        n, system = one.means.n, way.system
        for metric, values in (("proxy_score", one.means.proxy), (truth, one.means.truth)):
            value, interval, std = gain(one.means, values)
            text = f"{DIFFERENCE}: {metric} of sampled replies, after the last update minus before the first"
            add(f"{difference_name(system, 'sft')}/{metric}", value, n, text, interval, std)
        distance = float(one.means.over_seeds(one.means.distance)[0, -1])
        add(f"{system}/sqrt_kl", distance, n, "√KL to the reference after the last update, nats^½ per reply")
        for form, fit in one.fits.items():
            text = f"√KL at which the {form} fit of the truth's gain is highest; null where not within reach"
            add(f"{system}/peak_{form}", fit.peak, fit.n, text, fit.interval)
        onset = one.onset
        text = "updates after which the truth is first shown below its best before; null where it never is"
        add(f"{system}/onset_update", math.nan if onset is None else float(onset.shown_update), n, text)
        if onset is not None:
            add(
                f"{system}/best_update",
                float(onset.best_update),
                n,
                "updates after which the truth was best before its fall",
            )
            text = "truth at the fall minus truth at its best before; interval simultaneous over all evaluations"
            add(f"{system}/fall", onset.fall, n, text, onset.fall_interval)
            text = "proxy at the fall of the truth minus proxy where the truth was best"
            add(f"{system}/proxy_at_the_fall", onset.proxy_change, n, text, onset.proxy_interval)
        for warning in one.warnings:
            name = warning.metric.replace("/", "_")
            text = f"updates after which `{warning.metric}` left its starting band, median over seeds; null: never"
            add(f"{system}/warned_{name}", warning.median, None, text)
            if onset is not None:
                text = f"updates from the warning of `{warning.metric}` to the shown fall; null: no warning"
                add(f"{system}/lead_{name}", warning.lead(onset.shown_update), None, text)
    for priced, fits in study.pooled.items():
        for form, fit in fits.items():
            text = f"the {form} fit of all KL coefficients together: √KL of its highest point; null: not within reach"
            add(f"pooled{'+length' if priced else ''}/peak_{form}", fit.peak, fit.n, text, fit.interval)
    return found


def first_to_warn(one: Findings) -> list[str]:
    """Signatures with the earliest median warning of a way, by what they are called; none where none warned."""
    known = [warning for warning in one.warnings if math.isfinite(warning.median)]
    earliest = min((warning.median for warning in known), default=math.inf)
    return [SIGNATURES[warning.metric] for warning in known if warning.median == earliest]

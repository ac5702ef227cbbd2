"""The reward-hacking study as tables, sentences and figures; every sentence follows from the numbers beside it."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlhf_jax.evaluation.failure_signatures import SIGNATURES, Warnings
from rlhf_jax.evaluation.over_optimisation import Fit, Floats, Means
from rlhf_jax.reporting import plots
from rlhf_jax.reporting.result_tables import markdown_table
from rlhf_jax.reporting.run_figures import Entries
from studies.common import diagnostics
from studies.hacking import figures as path_plots
from studies.hacking.figures import Points, TimelinePanel, WayPanel
from studies.hacking.results import Findings, Study, Way, first_to_warn, gain

METHOD = """\
**Distance** is d = √KL, KL the mean over replies of k1 = Σ_t (log π − log π_ref), nats per reply, temperature and grammar
mask applied. Proxy (the reward model's weighted score, z-units), truth and KL are those of the same sampled replies.
Response length is the number of sampled tokens, <eos> included.

**Onset**: the first evaluation at which the truth lies below its best before, at 95 % for all pairs of evaluations of a way
at once (bootstrap over seeds and {cases}), and by a t test of the seeds' own falls. A way is called over-optimised where
the proxy rose over the same stretch: interval of that change above 0, and a t test of the seeds' own changes that agrees.

**Fits** of the truth's gain over SFT, least squares over all seeds and evaluations: quadratic d(α − β d), which turns at
α/2β, and logarithmic d(α − β log d), which turns at exp(α/β − 1); Gao et al. 2023 (arXiv:2210.10760) find the first for
best-of-n and the second for reinforcement learning. "Not reached": highest at the end of what was measured.

**Warning**: the first of two measurements in a row outside median ± 3 robust deviations of the supervised policy (repeated
batches before learning; for BLEU-4 repeated answers to the same contexts, measured at evaluations only); the band is
widened to hold the way's own start."""


def report_text(study: Study, *, title: str, truth: str, cases: str, notes: Sequence[str]) -> str:
    """The study's `report.md`.

    Args:
      truth: what the truth is, for people ("true utility").
      cases: what is resampled beside seeds, for people ("users").
      notes: paragraphs on the data and the judge.
    """
    priced = "`+ length`: tokens beyond `length_free` cost `length_coef` of the score each."
    seeds = f"Training seeds {', '.join(map(str, study.seeds))}; " + (
        "95 % intervals over seeds and cases." if study.claimable else "fewer than three: nothing is claimed."
    )
    parts = [
        f"# {title}",
        *notes,
        seeds,
        priced,
        "## Where over-optimisation begins",
        ways_table(study, truth),
        "\n".join(f"- {sentence(way, one, study)}" for way, one in study.ways.items()),
        "![Gain of proxy and truth over SFT against √KL](plots/along_the_path.png)",
        (
            f"Gains in standard deviations of SFT over cases (proxy {study.deviation['proxy']:.3f}, truth "
            f"{study.deviation['truth']:.3f}); seeds thin, their mean bold."
        ),
        "### Fitted curves",
        fits_table(study),
        "## Which signature warned first",
        warnings_table(study),
        "\n".join(f"- {text}" for text in reliability(study)),
        "![When each signature left its starting band](plots/signatures.png)",
        "## How it was measured",
        METHOD.format(cases=cases),
        "## PPO diagnostics",
        "![PPO diagnostics](plots/ppo.png)",
        "*Mean over seeds, by update; each seed's own page is `diagnostics.md` in its folder.* ([SVG](plots/ppo.svg))",
    ]
    return "\n\n".join(parts) + "\n"


def ways_table(study: Study, truth: str) -> str:
    """One line a way: how far it went, what it gained, where the truth fell."""
    rows = []
    for way, one in study.ways.items():
        onset = one.onset
        distance = one.means.over_seeds(one.means.distance)[0, -1]
        row = [way.title, f"{distance:.2f}", _gain(one.means, one.means.proxy), _gain(one.means, one.means.truth)]
        if onset is None:
            row += ["–", "no fall shown", "–", "–"]
        else:
            row += [
                f"update {onset.best_update}, √KL {onset.best_distance:.2f}",
                f"update {onset.shown_update}, √KL {onset.shown_distance:.2f}",
                f"{onset.fall:+.3f} {_interval(onset.fall_interval)}",
                f"{onset.proxy_change:+.3f} {_interval(onset.proxy_interval)}",
            ]
        rows.append(row)
    header = ["way", "√KL at the end", "proxy, end − SFT", f"{truth}, end − SFT", "truth best at", "fall shown at"]
    return markdown_table([*header, "fall of the truth", "proxy meanwhile"], rows)


def sentence(way: Way, one: Findings, study: Study) -> str:
    """What happened on one way."""
    onset, n = one.onset, len(study.seeds)
    claim = "." if study.claimable else f" ({n} seed{'s' if n > 1 else ''}: no claim)."
    if onset is None:
        text = "no fall of the truth below an earlier evaluation is shown; last − first "
        return f"Verdict, {way.title}: {text}{_gain(one.means, one.means.truth)}{claim}"
    text = (
        f"the truth fell by {-onset.fall:.3f} between updates {onset.best_update} and {onset.shown_update} "
        f"(√KL {onset.best_distance:.2f} to {onset.shown_distance:.2f})"
    )
    if onset.over_optimised:
        text = f"over-optimised; {text} while the proxy rose by {onset.proxy_change:.3f}"
    elif onset.proxy_interval[0] > 0:
        text += f", and by how much the proxy rose ({onset.proxy_change:+.3f}) the seeds differ too much: not shown"
    else:
        text += f", and a rise of the proxy is not shown ({onset.proxy_change:+.3f}): damage, not over-optimisation"
    first = first_to_warn(one)
    if first:
        lead = onset.shown_update - min(warning.median for warning in one.warnings)
        when = f"{_updates(lead)} before" if lead > 0 else "with" if lead == 0 else f"{_updates(-lead)} after"
        text += f"; first to warn: {' and '.join(first)}, {when} the shown fall"
    else:
        text += "; no signature warned"
    return f"Verdict, {way.title}: {text}{claim}"


def fits_table(study: Study) -> str:
    """Both laws for every way, and for all KL coefficients together."""
    rows = [[way.title, *_fit_cells(list(one.fits.values()))] for way, one in study.ways.items()]
    for priced, fits in study.pooled.items():
        rows.append([f"all KL{' + length' if priced else ''}", *_fit_cells(list(fits.values()))])
    header = ["way"]
    for form in ("quadratic", "logarithmic"):
        header += [f"{form}: α, β", "explained", "d* [95 %]"]
    return markdown_table(header, rows)


def _fit_cells(fits: Sequence[Fit]) -> list[str]:
    cells = []
    for fit in fits:
        if math.isnan(fit.alpha):
            cells += ["–", "–", "never left the reference"]
            continue
        end = f"> {fit.reach:.2f}"
        low, high = (f"{bound:.2f}" if math.isfinite(bound) else end for bound in fit.interval)
        peak = f"{fit.peak:.2f}" if fit.turns else "not reached"
        cells += [
            f"{fit.alpha:.3f}, {fit.beta:.3f}",
            "–" if math.isnan(fit.explained) else f"{fit.explained:.2f}",
            f"{peak} [{low}, {high}]",
        ]
    return cells


def warnings_table(study: Study) -> str:
    """Signatures down, ways across: update of the warning (median over seeds), its direction, lead to the shown fall."""
    rows = []
    for place, name in enumerate(SIGNATURES.values()):
        row = [name]
        for one in study.ways.values():
            warning = one.warnings[place]
            if not math.isfinite(warning.median):
                row.append(f"never ({_warned(warning)})" if any(u is not None for u in warning.at) else "never")
                continue
            cell = f"{_arrow(warning)} {warning.median:g} ({_warned(warning)})"
            if one.onset is not None:
                cell += f", lead {warning.lead(one.onset.shown_update):+g}"
            row.append(cell)
        rows.append(row)
    falls = [
        "*fall shown*",
        *("–" if one.onset is None else f"{one.onset.shown_update}" for one in study.ways.values()),
    ]
    return markdown_table(["warned at update (seeds)", *(way.title for way in study.ways)], [*rows, falls])


def reliability(study: Study) -> list[str]:
    """Per signature: how often it was in time where the truth fell, and how often it warned where no fall is shown."""
    fell = [one for one in study.ways.values() if one.onset is not None]
    level = [one for one in study.ways.values() if one.onset is None]
    found = []
    for place, name in enumerate(SIGNATURES.values()):
        in_time = [
            one for one in fell if one.onset is not None and one.warnings[place].lead(one.onset.shown_update) > 0
        ]
        false = [one for one in level if math.isfinite(one.warnings[place].median)]
        found.append(
            f"{name}: warned in time on {len(in_time)} of {len(fell)} ways whose truth fell; warned on {len(false)} of "
            f"{len(level)} ways where no fall is shown."
        )
    return found


def figures(study: Study, folder: Path, entries: Sequence[Entries]) -> None:
    """`along_the_path`, `signatures` and `ppo`, each as svg and png.

    Args:
      entries: the `metrics.jsonl` lines of every seed.
    """
    plots.save(diagnostics({way.title: (way.stage, entries) for way in study.ways}), folder, "ppo")
    per_row = max(sum(way.priced == priced for way in study.ways) for priced in study.pooled)
    columns = min(per_row, 4)
    label = {"x_label": "√KL, nats^½ per reply", "y_label": "gain over SFT, SFT's deviations"}
    paths = [_way_panel(way, one, study) for way, one in study.ways.items()]
    plots.save(path_plots.along_the_path(paths, columns=columns, **label), folder, "along_the_path")
    times = [
        TimelinePanel(
            way.title,
            {SIGNATURES[w.metric]: list(zip(w.at, w.directions, strict=True)) for w in one.warnings},
            None if one.onset is None else (one.onset.best_update, one.onset.shown_update),
            one.means.updates[-1],
        )
        for way, one in study.ways.items()
    ]
    plots.save(path_plots.timeline(times, columns=columns), folder, "signatures")


def _way_panel(way: Way, one: Findings, study: Study) -> WayPanel:
    means, scale = one.means, study.deviation
    proxy, truth = _gains(means.proxy[0]) / scale["proxy"], _gains(means.truth[0]) / scale["truth"]
    grid = np.linspace(0.0, max(fit.reach for fit in one.fits.values()), 100)
    return WayPanel(
        title=way.title,
        seeds=[Points(means.distance[0, s], proxy[s], truth[s]) for s in range(len(study.seeds))],
        mean=Points(means.distance[0].mean(axis=0), proxy.mean(axis=0), truth.mean(axis=0)),
        curves={form: (grid, fit(grid) / scale["truth"]) for form, fit in one.fits.items()},
        fall=None if one.onset is None else (one.onset.best_distance, one.onset.shown_distance),
    )


def _gains(values: Floats) -> Floats:
    return values - values[:, :1]


def _gain(means: Means, values: Floats) -> str:
    value, interval, std = gain(means, values)
    return f"{value:+.3f}{'' if std is None else f' ± {std:.3f}'} {_interval(interval)}"


def _interval(bounds: tuple[float, float]) -> str:
    return f"[{bounds[0]:+.3f}, {bounds[1]:+.3f}]"


def _updates(n: float) -> str:
    return f"{n:g} update{'' if n == 1 else 's'}"


def _warned(warning: Warnings) -> str:
    return f"{sum(update is not None for update in warning.at)}/{len(warning.at)}"


def _arrow(warning: Warnings) -> str:
    total = sum(warning.directions)
    return "↑" if total > 0 else "↓" if total < 0 else "↕"


def summary_table(study: Study) -> str:
    """A few columns for the terminal."""
    lines = [f"{'way':28}{'√KL':>7}{'proxy':>9}{'truth':>9}  fall"]
    for way, one in study.ways.items():
        distance = one.means.over_seeds(one.means.distance)[0, -1]
        proxy, truth = (gain(one.means, values)[0] for values in (one.means.proxy, one.means.truth))
        fall = "none shown" if one.onset is None else f"{one.onset.fall:+.3f} at update {one.onset.shown_update}"
        lines.append(f"{way.title:28}{distance:7.2f}{proxy:+9.3f}{truth:+9.3f}  {fall}")
    return "\n".join(lines)

"""Tables of a report as Markdown, from entries of `results.json`."""

from collections.abc import Mapping, Sequence

from rlhf_jax.evaluation.results import Result, shown_system
from rlhf_jax.recommenders.mixture import FittedWeights

SYSTEM_ORDER = (
    "human",
    "constant",
    "random",
    "popularity",
    "copy",
    "mixture",
    "logged",
    "oracle",
    "sft",
    "ppo",
    "grpo",
)
"""Columns come in this order; other systems follow in order of appearance, differences last."""


def informative(results: Sequence[Result]) -> list[Result]:
    """The results without hit rates that are 1 for every system, as HR@50 is among 48 items: they cannot say anything.

    Examples:
      >>> full = [Result(f"{name}/hr@50", 1.0, 9, "full", "w/test", None, (), "share") for name in ("sft", "random")]
      >>> informative(full), len(informative([*full, Result("ppo/hr@50", 0.9, 9, "full", "w/test", None, (), "share")]))
      ([], 3)
    """
    silent = set(_silent(results))
    return [r for r in results if (r.split, r.protocol, r.metric) not in silent]


def left_out(results: Sequence[Result]) -> list[str]:
    """One sentence that names what `informative` leaves out; empty where it leaves nothing out."""
    names = dict.fromkeys(f"`{metric}` ({protocol})" for _, protocol, metric in _silent(results))
    return [f"Left out, because they are 1 for every system: {', '.join(names)}."] if names else []


def _silent(results: Sequence[Result]) -> list[tuple[str, str, str]]:
    values: dict[tuple[str, str, str], bool] = {}
    for r in results:
        if r.metric.startswith("hr@") and not r.is_difference:
            key = (r.split, r.protocol, r.metric)
            values[key] = values.get(key, True) and r.value == 1.0
    return [key for key, all_hit in values.items() if all_hit]


def protocol_table(results: Sequence[Result]) -> str:
    """Systems against metrics for entries of one protocol and split; what n counts is the same along a row."""
    return markdown_table(*protocol_rows(results))


def protocol_rows(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of `protocol_table`."""
    systems = ordered_systems(results)
    cells = {(r.metric, r.system): r for r in results}
    metrics = list(dict.fromkeys(r.metric for r in results))
    rows = []
    for metric in metrics:
        found = [cells[metric, system] for system in systems if (metric, system) in cells]
        counts = " / ".join(str(n) for n in dict.fromkeys(r.n for r in found))
        rows.append([metric, counts, *(cell(cells.get((metric, system))) for system in systems)])
    return ["metric", "n", *map(shown_system, systems)], rows


def cell(result: Result | None) -> str:
    """Value, spread over seeds, interval; for a difference also what may be claimed."""
    if result is None:
        return "–"
    return f"{plain_cell(result)} {claim(result)}" if result.is_difference else plain_cell(result)


def plain_cell(result: Result) -> str:
    """Value, spread over seeds, interval, and no claim."""
    text = number(result.value, result) + (
        f" ± {number(result.std, result, signed=False)}" if result.std is not None else ""
    )
    if result.interval is not None:
        text += f" [{number(result.interval[0], result)}, {number(result.interval[1], result)}]"
    return text


def claim(result: Result) -> str:
    """What a difference allows to say: a claim needs three seeds that agree and an interval without 0."""
    if not result.interval_excludes_zero:
        return "(no difference shown)"
    if not result.shows_difference:
        seeds = len(set(result.seeds))
        why = "one seed" if seeds <= 1 else f"{seeds} seeds" if seeds < 3 else "seeds differ"
        return f"({why}: no claim)"
    return "**▲**" if result.value > 0 else "**▼**"


def definitions(results: Sequence[Result]) -> list[str]:
    """One line per metric and protocol that occurs."""
    texts: dict[str, str] = {}
    for r in results:
        if not r.is_difference:
            texts.setdefault(f"`{r.metric}` ({r.protocol})", r.definition)
    return [f"- {name}: {text}" for name, text in texts.items()]


def by_protocol(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """Entries by (split, protocol), in order of appearance."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for r in results:
        groups.setdefault((r.split, r.protocol), []).append(r)
    return groups


def ordered_systems(results: Sequence[Result]) -> list[str]:
    """Plain systems in `SYSTEM_ORDER`, then others, then differences."""
    systems = {r.system: r.is_difference for r in results}
    place = {system: index for index, system in enumerate(SYSTEM_ORDER)}
    return sorted(systems, key=lambda system: (systems[system], place.get(system, len(place))))


def seeds_note(results: Sequence[Result]) -> str:
    """Which training seeds stand behind the entries."""
    seeds = sorted({seed for r in results for seed in r.seeds})
    return f"training seeds {', '.join(map(str, seeds))}" if seeds else "no trained system"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; `|` inside a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(entry.replace("|", "\\|") for entry in line) + " |" for line in lines)


def weights_table(weights: Mapping[str, FittedWeights]) -> str:
    """Mixtures whose weights were fitted, a line each."""
    lines = [
        [
            name,
            ", ".join(f"{part} {weight:.2f}" for part, weight in found.weights.items()),
            f"{found.sharpness:.2f}",
            f"{found.log_likelihood:.3f}",
            f"{found.n:,}",
        ]
        for name, found in weights.items()
    ]
    return markdown_table(["mixture", "weights", "sharpness", "nats per gold item", "gold items"], lines)


def facts_table(facts: Mapping[str, object]) -> str:
    """Nested facts as dotted names and values."""
    return markdown_table(["fact", "value"], [[name, f"`{value}`"] for name, value in flatten(facts)])


def flatten(facts: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """Leaves of nested mappings under dotted names; long lists are counted instead of shown."""
    out: list[tuple[str, object]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            out += flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list) and len(str(value)) > 120:
            out.append((f"{prefix}{name}", f"{len(value)} entries"))
        else:
            out.append((f"{prefix}{name}", value))
    return out


def number(value: float, result: Result, *, signed: bool | None = None) -> str:
    """Three decimals, two for BLEU, lengths and seconds; a difference with its sign."""
    signed = result.is_difference if signed is None else signed
    coarse = result.metric in ("bleu4", "response_length", "average_turns", "mean_length", "dwell_seconds")
    return f"{value:{'+' if signed else ''}.{2 if coarse else 3}f}"


def protocol_tables(results: Sequence[Result]) -> list[str]:
    """A heading and a table for every split and protocol, systems down and metrics across: value and interval.

    For results without seeds: where nothing is drawn at random, there is no more to say.
    """
    parts = []
    for (split, protocol), found in by_protocol(results).items():
        cells = {(r.system, r.metric): r for r in found}
        metrics = list(dict.fromkeys(r.metric for r in found))
        names = list(dict.fromkeys(r.system for r in found))
        lines = [
            [name.replace("-", " − "), *(_number(cells.get((name, metric))) for metric in metrics)] for name in names
        ]
        parts += [f"## {split}, {protocol}, n = {found[0].n:,}", markdown_table(["system", *metrics], lines)]
    return parts


def _number(result: Result | None) -> str:
    if result is None:
        return "–"
    sign = "+" if result.is_difference else ""
    low, high = result.interval or (float("nan"), float("nan"))
    return f"{result.value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"

"""`report.md` and `report.html` of a run: what was measured, how training went, what the model says now, how to repeat it.

Reads `config.json`, `metrics.jsonl`, `results.json`, `samples.json` and `samples.jsonl` of the run directory and writes the
two reports, `plots/*.png` and `plots/*.svg`. A section whose data the run does not have says so instead of vanishing.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.evaluation.results import Result
from rlhf_jax.reporting import gates, html_report, plots, result_tables, run_figures
from rlhf_jax.reporting.contents import LEGEND, Contents, Conversation
from rlhf_jax.runtime import files
from rlhf_jax.runtime.metrics import read_metrics, read_stage_samples

INTRODUCTION = (
    "Intervals are 95 % bootstrap intervals over dialogues, paired where systems are compared. A claim (▲, ▼) needs three "
    "training seeds, an interval without 0 and a t test of the seeds' own differences that agrees; ± is the standard "
    "deviation over seeds."
)


def write_results(run_dir: Path, results: Sequence[Result]) -> Path:
    """Writes `results.json`.

    Raises: ValueError if two entries have the same name, protocol and split.
    """
    seen: set[tuple[str, str, str]] = set()
    for result in results:
        key = (result.name, result.protocol, result.split)
        if key in seen:
            raise ValueError(f"results: {result.name!r} under {result.protocol!r} on {result.split!r} occurs twice")
        seen.add(key)
    file = Path(run_dir) / "results.json"
    files.write_json(file, [result.to_json() for result in results])
    return file


def read_results(run_dir: Path) -> list[Result]:
    """Reads `results.json`; no file is no result.

    Raises: ValueError naming file and entry that cannot be read.
    """
    file = Path(run_dir) / "results.json"
    if not file.exists():
        return []
    results = []
    for index, entry in enumerate(files.read_list(file)):
        try:
            results.append(Result.from_json(entry))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}, entry {index}: {error}") from error
    return results


def write_samples(run_dir: Path, conversations: Sequence[Conversation]) -> Path:
    """Writes `samples.json`."""
    file = Path(run_dir) / "samples.json"
    files.write_json(file, list(conversations))
    return file


def read_samples(run_dir: Path) -> list[Conversation]:
    """Reads `samples.json`; no file is no conversation.

    Raises: ValueError naming file and entry that cannot be read.
    """
    file = Path(run_dir) / "samples.json"
    if not file.exists():
        return []
    found = []
    for index, entry in enumerate(files.read_list(file)):
        kinds = {"dialogue": str, "context": list, "replies": dict}
        if not isinstance(entry, dict) or any(not isinstance(entry.get(name), kind) for name, kind in kinds.items()):
            raise files.DamagedFileError(
                f"{file}, entry {index}: {str(entry)[:60]!r}, expected an object with dialogue, context and replies"
            )
        found.append(Conversation(entry["dialogue"], tuple(entry["context"]), entry["replies"], entry.get("note", "")))
    return found


def write_report(
    run_dir: Path,
    *,
    title: str = "Report",
    command: str | None = None,
    notes: Sequence[str] = (),
    gathered: bool = False,
) -> Path:
    """Writes `report.md` and `report.html` with their plots into the run directory.

    Args:
      title: first line.
      command: that reproduces the run; None takes the one stored in `config.json`.
      notes: paragraphs shown above the tables, for example how the data differ from the official ones.
      gathered: a summary of other runs, which logged no curves and stored no conversations of its own.
    Returns: path of `report.md`; `report.html` stands beside it.
    """
    run_dir = Path(run_dir)
    results = read_results(run_dir)
    config = files.read_object(run_dir / "config.json") if (run_dir / "config.json").exists() else {}
    gate = config.get("config", {}).get("reward", {}).get("gate_pearson", gates.GATE)
    stored = config.get("command")
    contents = Contents(
        title=title,
        notes=notes,
        results=result_tables.informative(results),
        left_out=result_tables.left_out(results),
        gate=gate,
        sections=[] if gathered else run_figures.sections(read_metrics(run_dir / "metrics.jsonl"), results, gate=gate),
        conversations=read_samples(run_dir),
        samples=read_stage_samples(run_dir / "samples.jsonl"),
        config=config,
        command=command or (shlex.join(stored) if isinstance(stored, list) else stored),
        gathered=gathered,
    )
    file = run_dir / "report.md"
    files.write_text(file, _markdown(run_dir, contents))
    # After the Markdown, whose plots it repeats.
    figures = {path.stem: path.read_text(encoding="utf-8") for path in sorted((run_dir / "plots").glob("*.svg"))}
    files.write_text(run_dir / "report.html", html_report.page(contents, figures, INTRODUCTION))
    return file


def _markdown(run_dir: Path, contents: Contents) -> str:
    parts = [
        f"# {contents.title}",
        *contents.notes,
        INTRODUCTION,
        *_summary(run_dir, contents),
        *_gate(contents.results, contents.gate),
        *_figure_sections(run_dir, contents.sections),
        *([] if contents.gathered else _conversations(contents.conversations)),
        *_definitions(contents.results),
        *_provenance(contents.config, contents.command),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(run_dir: Path, contents: Contents) -> list[str]:
    parts = ["## Results"]
    shown = [r for r in contents.results if r.system != "reward_model"]
    if not shown:
        return [*parts, "No result has been written yet."]
    figure = run_figures.comparison(shown)
    if figure is not None:
        caption = "Systems side by side; bars are 95 % intervals."
        parts.append(_image(plots.save(figure, run_dir / "plots", "comparison"), caption))
    for (split, protocol), group in result_tables.by_protocol(shown).items():
        parts += [
            f"### {split}: `{protocol}`",
            result_tables.protocol_table(group),
            f"({result_tables.seeds_note(group)})",
        ]
    return [*parts, *contents.left_out]


def _gate(results: Sequence[Result], gate: float) -> list[str]:
    measured = [r for r in results if r.system == "reward_model"]
    text = f"PPO is meant to start only from a reward model whose held-out Pearson correlation exceeds {gate}."
    if not measured:
        return ["## Reward model", text, "It was not measured in this run."]
    return ["## Reward model", text, gates.run_table(measured, gate)]


def _figure_sections(run_dir: Path, sections: Sequence[run_figures.Section]) -> list[str]:
    parts = []
    for section in sections:
        parts.append(f"## {section.title}")
        if section.figures:
            parts.append(section.text)
            for name, (figure, caption) in section.figures.items():
                parts.append(_image(plots.save(figure, run_dir / "plots", name), caption))
        else:
            parts.append("Nothing of this was logged in this run.")
    return parts


def _conversations(samples: Sequence[Conversation]) -> list[str]:
    parts = ["## Conversations before and after"]
    if not samples:
        return [*parts, "No conversation was stored."]
    parts.append(LEGEND)
    for sample in samples:
        lines = [f"**Dialogue {sample.dialogue}**", ""]
        lines += [f"> {_line(utterance)}  " for utterance in sample.context]
        rows = [[f"**{system}**", _line(reply)] for system, reply in sample.replies.items()]
        lines += ["", result_tables.markdown_table(["system", "reply"], rows)]
        parts.append("\n".join([*lines, "", _line(sample.note)] if sample.note else lines))
    return parts


def _definitions(results: Sequence[Result]) -> list[str]:
    lines = result_tables.definitions(results)
    return ["## Definitions", "\n".join(lines)] if lines else []


def _provenance(config: Mapping[str, Any], command: str | None) -> list[str]:
    if not config:
        return ["## Provenance", "The run directory has no `config.json`."]
    parts = ["## How to repeat this"]
    if command:
        parts.append(f"```\n{command}\n```")
    facts = {name: value for name, value in config.items() if name not in ("config", "command")}
    return [
        *parts,
        "## Provenance",
        result_tables.facts_table(facts),
        "### Configuration",
        result_tables.facts_table(config.get("config", {})),
    ]


def _image(png: Path, caption: str) -> str:
    return f"![{caption}](plots/{png.name})\n\n*{caption}* ([SVG](plots/{png.with_suffix('.svg').name}))"


def _line(text: str) -> str:
    """One line of Markdown: what the model says must not become markup."""
    return " ".join(text.split()).replace("<", "&lt;").replace(">", "&gt;")

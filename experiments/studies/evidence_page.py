"""The reports of several studies as one page: verdicts first, then every study's tables and figures.

A study's `report.md` says its verdicts in lines that begin with `Verdict` (bold or in a list or not); they are repeated
on top, word for word. Figures are copied, so that the page and its folder `figures/` can be given away.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rlhf_jax.reporting.result_tables import markdown_table
from rlhf_jax.runtime.files import write_text

LEFT_OUT = ("Provenance", "How to repeat this")
"""Sections that stay in the study's own report."""
_VERDICT = re.compile(r"^\W*verdict\b", re.IGNORECASE)
_MARKS = re.compile(r"^\s*(?:[-*>]\s+)*")
_HEADING = re.compile(r"^(#+)\s+(.*)$")
_BESIDE = re.compile(r"\]\((?!https?:|/|#)([^)\s]+)\)")


class Chapter(NamedTuple):
    """One study."""

    name: str
    """Also the folder of its figures."""
    command: str
    """That makes it alone."""
    run_dir: Path
    state: str
    """`done`, or what is missing and where it says why."""


def write_evidence(folder: Path, chapters: Sequence[Chapter], *, notes: Sequence[str] = ()) -> Path:
    """Writes `report.md` and `figures/` into `folder`.

    Args:
      chapters: in the order to show; one without a report yet appears with its state alone.
      notes: paragraphs on top, for example what was left out.
    Returns: path of the page.
    """
    rows, verdicts, bodies = [], [], []
    for chapter in chapters:
        report = chapter.run_dir / "report.md"
        text = report.read_text(encoding="utf-8") if report.exists() else ""
        found = verdict_lines(text)
        rows.append([f"[{chapter.name}](#{_anchor(chapter.name)})", chapter.state, f"`{chapter.command}`"])
        verdicts.append(f"**{chapter.name}** ({chapter.state})")
        verdicts += [f"- {line}" for line in found] or ["- its report states no verdict" if text else "- no report yet"]
        bodies += [
            f"## {chapter.name}",
            _body(text, _copied(chapter, folder)) if text else f"No report: {chapter.state}.",
        ]
    parts = [
        "# Evidence",
        *notes,
        markdown_table(["study", "state", "command"], rows),
        "## Verdicts",
        "\n".join(verdicts),
        *bodies,
    ]
    page = folder / "report.md"
    write_text(page, "\n\n".join(parts) + "\n")
    return page


def verdict_lines(text: str) -> list[str]:
    """Lines of a report that state a verdict, without marks of lists.

    Examples:
      >>> verdict_lines("# A\\n- **Verdict.** It rose.\\nverdicts differ\\nVerdict: no difference shown\\n")
      ['**Verdict.** It rose.', 'Verdict: no difference shown']
    """
    return [_MARKS.sub("", line) for line in text.splitlines() if _VERDICT.match(line)]


def _anchor(name: str) -> str:
    return re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-")


def _copied(chapter: Chapter, folder: Path) -> Mapping[str, str]:
    """Copies the figures; what the study's report calls a file to what the page calls it."""
    target = folder / "figures" / chapter.name
    names = {}
    for figure in sorted((chapter.run_dir / "plots").glob("*")):
        if figure.suffix in (".png", ".svg"):
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(figure, target / figure.name)
            names[f"plots/{figure.name}"] = f"figures/{chapter.name}/{figure.name}"
    return names


def _body(text: str, figures: Mapping[str, str]) -> str:
    """A report below its title: headings one level down, figures in their new place, provenance left out."""
    lines: list[str] = []
    fenced, skipped_below = False, 0
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        heading = None if fenced else _HEADING.match(line)
        if heading:
            level = len(heading[1])
            if level == 1:
                continue
            if not skipped_below or level <= skipped_below:
                skipped_below = level if heading[2] in LEFT_OUT else 0
            line = f"{'#' * min(level + 1, 6)} {heading[2]}"
        if not skipped_below:
            lines.append(_BESIDE.sub(lambda link: f"]({figures.get(link[1], link[1])})", line))
    return "\n".join(lines).strip()

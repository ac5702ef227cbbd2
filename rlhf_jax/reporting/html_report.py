"""`report.html`: the verdict in words, the few numbers that answer the question, and everything else folded.

One file that needs nothing else: figures stand in it as SVG, colours follow the reader's light or dark setting, and no
script runs. All text from data, models and command lines is escaped, and the page forbids itself any connection.
"""

import html
import re
from collections.abc import Mapping, Sequence

from rlhf_jax.evaluation.results import Result
from rlhf_jax.reporting import gates, result_tables, verdict
from rlhf_jax.reporting.contents import LEGEND, Contents, Conversation
from rlhf_jax.reporting.verdict import Comparison, Finding, Outcome

MARKS: Mapping[Outcome, str] = {"better": "▲", "worse": "▼", "changed": "◆", "unclear": "○", "missing": ""}
"""Signs of outcomes, so that colour is never the only difference."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""No connection, no script; matplotlib's colour bars are images inside the SVG."""
STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1b1f24; --soft: #59636e; --line: #d5dae0; --card: #f5f7f9;
  --better: #0b6b45; --worse: #a33a06; --changed: #5b4a9e; --grid: #dddddd; --blue: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --text: #e4e8ec; --soft: #a0aab4; --line: #3a424b; --card: #1d2228;
    --better: #5cc99a; --worse: #f29a62; --changed: #b9a8f5; --grid: #39414a; --blue: #3f9fdf; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1rem 1rem 4rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 1.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .5rem 0; max-width: 75ch; }
.soft, figcaption, .role { color: var(--soft); }
.verdict { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .3rem 1rem .8rem; }
.box + .verdict { margin-top: 2rem; }
.verdict h2 { margin-top: .6rem; }
.verdict dl { margin: 0; display: grid; grid-template-columns: 12rem 1fr; gap: .5rem 1rem; }
.verdict dt { font-weight: 600; }
.verdict dd { margin: 0; }
.better { color: var(--better); } .worse { color: var(--worse); } .changed { color: var(--changed); }
.unclear { color: var(--soft); }
.box { overflow-x: auto; max-width: 100%; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  white-space: nowrap; overflow-wrap: normal; }
.words td { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
.words td:first-child { min-width: 4rem; }
th { color: var(--soft); font-weight: 600; }
details { border-top: 1px solid var(--line); }
details:last-of-type { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; padding: .6rem 0; font-weight: 600; }
details > :last-child { margin-bottom: 1.2rem; }
figure { margin: 1rem 0; }
figcaption { font-size: .875rem; }
svg.plot { display: block; width: 100%; height: auto; }
svg.plot text { fill: var(--text) !important; }
svg.plot [style*="fill: #ffffff"] { fill: transparent !important; }
svg.plot [style*="stroke: #000000"] { stroke: var(--text) !important; }
svg.plot [style*="fill: #000000"] { fill: var(--text) !important; }
svg.plot [style*="stroke: #dddddd"] { stroke: var(--grid) !important; }
svg.plot [style*="stroke: #666666"] { stroke: var(--soft) !important; }
svg.plot [style*="stroke: #0072b2"] { stroke: var(--blue) !important; }
svg.plot [style*="fill: #0072b2"] { fill: var(--blue) !important; }
svg.plot [id*="PathCollection"] use { stroke: var(--soft); stroke-width: .8; }
blockquote { margin: .5rem 0; padding-left: .8rem; border-left: 3px solid var(--line); }
blockquote p { margin: .2rem 0; }
code, pre { font: .875em/1.4 ui-monospace, monospace; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .6rem; overflow-x: auto; }
li { margin: .2rem 0; }
@media (max-width: 40rem) { th:first-child, td:first-child { white-space: normal; min-width: 6rem; }
  .verdict dl { grid-template-columns: 1fr; gap: 0; } .verdict dd { margin-bottom: .6rem; } }
"""
_IMAGE = re.compile(r"!\[(.*)\]\(plots/(.*)\.png\)", re.DOTALL)


def page(contents: Contents, figures: Mapping[str, str], introduction: str) -> str:
    """The whole file.

    Args:
      contents: what to show.
      figures: name of a plot to its SVG file's text; of a plot that is not among them the caption alone is shown.
      introduction: how to read an interval and a claim, in words.
    """
    about_runs = _fold("Figures over all runs" if contents.gathered else "The data", _notes(contents.notes, figures))
    folds = [
        about_runs if contents.gathered else "",
        _fold("All tables", [*map(_paragraph, contents.left_out), *_tables(contents.results)]),
        _fold("Reward model", _gate(contents.results, contents.gate)),
        *([] if contents.gathered else _pages(contents, figures)),
        "" if contents.gathered else about_runs,
        _fold("How to repeat this, and configuration", _provenance(contents)),
        _fold("Definitions", [_paragraph(introduction), *_definitions(contents.results)]),
    ]
    body = [f"<h1>{html.escape(contents.title)}</h1>", *_answers(contents), "<h2>Everything else</h2>", *folds]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(contents.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def inline_svg(text: str, name: str, caption: str) -> str:
    """An SVG file as an element of a page: at most its own size, still readable where room is short, ids of no other figure."""
    start = text.index("<svg")
    end = text.index(">", start)
    width = re.search(r'\swidth="([\d.]+pt)"', text[start:end])
    size = f' style="max-width: {width[1]}; min-width: min(40rem, {width[1]})"' if width else ""
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", text[start:end]) + size
    rest = re.sub(r"<metadata>.*?</metadata>", "", text[end:], flags=re.DOTALL)
    own = html.escape(re.sub(r"\W", "_", name))
    for before in ('id="', 'href="#', "url(#"):
        rest = rest.replace(before, f"{before}{own}-")
    return f'{head} class="plot" role="img" aria-label="{html.escape(caption)}"{rest.strip()}'


def _answers(contents: Contents) -> list[str]:
    parts = []
    for corpus, sides in verdict.compared(contents.results):
        about = html.escape(verdict.headline(corpus, sides))
        rows = "".join(map(_finding, verdict.findings(contents.results, corpus, sides)))
        parts.append(f'<section class="verdict">\n<h2>{about}</h2>\n<dl>{rows}</dl>\n</section>')
        header = ["measure", sides.right, sides.left, f"{sides.left} − {sides.right} [95 %]", "which says", "cases"]
        shown = [_comparison(each) for each in verdict.comparisons(contents.results, corpus, sides)]
        parts += ["<h2>The numbers behind it</h2>", _table(header, shown, escaped=True)]
    return parts or [_paragraph("No two systems were compared in this run, so there is no verdict.")]


def _finding(finding: Finding) -> str:
    mark = MARKS[finding.outcome]
    sign = f'<span class="{finding.outcome}" aria-hidden="true">{mark}</span> ' if mark else ""
    # An interval stays on one line.
    text = html.escape(re.sub(r"(\[[^\]]*,) ", "\\1\u00a0", finding.text[:1].upper() + finding.text[1:]))
    # What it says in the first words, up to the number, is what the eye should find.
    said, colon, rest = text.partition(":")
    if colon and mark:
        text = f'<strong class="{finding.outcome}">{said}</strong>{colon}{rest}'
    return f"<dt>{html.escape(finding.label)}</dt><dd>{sign}{text}.</dd>"


def _comparison(found: Comparison) -> list[str]:
    difference = found.difference
    shown = verdict.outcome(difference, found.measure.good)
    words = html.escape(f"{MARKS[shown]} {verdict.shown_as(difference, found.measure.good)}")
    alone = ["–" if side is None else result_tables.number(side.value, side) for side in (found.right, found.left)]
    values = [found.measure.label, *alone, result_tables.plain_cell(difference)]
    return [*map(html.escape, values), f'<span class="{shown}">{words}</span>', html.escape(verdict.cases(difference))]


def _fold(title: str, parts: Sequence[str]) -> str:
    """A part of the page that opens on demand; nothing where there is nothing in it."""
    if not parts:
        return ""
    return f"<details>\n<summary>{html.escape(title)}</summary>\n" + "\n".join(parts) + "\n</details>"


def _tables(results: Sequence[Result]) -> list[str]:
    shown = [r for r in results if r.system != "reward_model"]
    if not shown:
        return [_paragraph("No result has been written yet.")]
    parts = []
    for (split, protocol), group in result_tables.by_protocol(shown).items():
        parts.append(f"<h3>{html.escape(split)}: <code>{html.escape(protocol)}</code></h3>")
        parts.append(_table(*result_tables.protocol_rows(group)))
        parts.append(f'<p class="soft">{html.escape(result_tables.seeds_note(group))}</p>')
    return parts


def _gate(results: Sequence[Result], gate: float) -> list[str]:
    measured = [r for r in results if r.system == "reward_model"]
    text = f"PPO is meant to start only from a reward model whose held-out Pearson correlation exceeds {gate}."
    if not measured:
        return [_paragraph(text), _paragraph("It was not measured in this run.")]
    return [_paragraph(text), _table(*gates.run_rows(measured, gate))]


def _pages(contents: Contents, figures: Mapping[str, str]) -> list[str]:
    comparison = [_figure("comparison", "Systems side by side; bars are 95 % intervals.", figures)]
    folds = [_fold("Ranking of all systems", comparison if "comparison" in figures else [])]
    for section in contents.sections:
        drawn = [_figure(name, caption, figures) for name, (_, caption) in section.figures.items()]
        parts = [_paragraph(section.text), *drawn] if drawn else [_paragraph("Nothing of this was logged in this run.")]
        folds.append(_fold(section.title, parts))
    said = [part for conversation in contents.conversations for part in _conversation(conversation)]
    said = [_paragraph(LEGEND), *said] if said else said
    folds.append(_fold("Conversations before and after", said or [_paragraph("No conversation was stored.")]))
    folds.append(_fold("Replies while training", _samples(contents)))
    return folds


def _conversation(conversation: Conversation) -> list[str]:
    lines = "".join(f"<p>{html.escape(utterance)}</p>" for utterance in conversation.context)
    replies = [[f"**{system}**", reply] for system, reply in conversation.replies.items()]
    rows = [[_inline(system), html.escape(reply)] for system, reply in replies]
    parts = [f"<h3>Dialogue {html.escape(conversation.dialogue)}</h3>", f"<blockquote>{lines}</blockquote>"]
    parts.append(_table(["system", "reply"], rows, words=True, escaped=True))
    return [*parts, _paragraph(conversation.note)] if conversation.note else parts


def _samples(contents: Contents) -> list[str]:
    """The first and the last evaluation of every stage; `samples.jsonl` has those between."""
    steps: dict[str, list[int]] = {}
    for line in contents.samples:
        steps.setdefault(line["stage"], []).append(line["step"])
    parts = [_paragraph(LEGEND)] if steps else []
    for stage, seen in steps.items():
        for step in dict.fromkeys((min(seen), max(seen))):
            lines = [line for line in contents.samples if (line["stage"], line["step"]) == (stage, step)]
            names = list(dict.fromkeys(name for line in lines for name in line["scores"]))
            rows = [
                [line["prompt"], line["reply"], *(_score(line["scores"].get(name)) for name in names)] for line in lines
            ]
            parts.append(f"<h3>{html.escape(stage)}, step {step}</h3>")
            escaped = [[html.escape(cell) for cell in row] for row in rows]
            parts.append(_table(["prompt", "reply", *names], escaped, words=True, escaped=True))
    return parts


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _notes(notes: Sequence[str], figures: Mapping[str, str]) -> list[str]:
    parts = []
    for note in notes:
        image = _IMAGE.fullmatch(note)
        parts.append(_figure(image[2], image[1], figures) if image else _paragraph(note))
    return parts


def _figure(name: str, caption: str, figures: Mapping[str, str]) -> str:
    drawn = f'<div class="box">{inline_svg(figures[name], name, caption)}</div>' if name in figures else ""
    return f"<figure>{drawn}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _definitions(results: Sequence[Result]) -> list[str]:
    lines = [line.removeprefix("- ") for line in result_tables.definitions(results)]
    return ["<ul>\n" + "\n".join(f"<li>{_inline(line)}</li>" for line in lines) + "\n</ul>"] if lines else []


def _provenance(contents: Contents) -> list[str]:
    if not contents.config:
        return [_paragraph("The run directory has no `config.json`.")]
    parts = [f"<pre>{html.escape(contents.command)}</pre>"] if contents.command else []
    facts = {name: value for name, value in contents.config.items() if name not in ("config", "command")}
    for title, group in (("Provenance", facts), ("Configuration", contents.config.get("config", {}))):
        rows = [
            [html.escape(name), f"<code>{html.escape(str(value))}</code>"]
            for name, value in result_tables.flatten(group)
        ]
        parts += [f"<h3>{title}</h3>", _table(["fact", "value"], rows, words=True, escaped=True)]
    return parts


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False, escaped: bool = False) -> str:
    """A table in a box of its own, which scrolls where it is too wide.

    Args:
      words: cells are running text and break; numbers never do.
      escaped: cells are HTML already; otherwise the little Markdown that our tables use.
    """
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "\n".join(
        f"<tr>{''.join(f'<td>{cell if escaped else _inline(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    kind = ' class="words"' if words else ""
    return f'<div class="box" tabindex="0"><table{kind}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _paragraph(text: str) -> str:
    return f"<p>{_inline(text)}</p>" if text else ""


def _inline(text: str) -> str:
    """Escaped text, in which `code` and **strong** are what they are in Markdown."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", marked)

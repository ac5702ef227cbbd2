"""Markdown and executed notebooks as the body of a page."""

import html
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import nbformat
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from page_drawings import Formulas, figure

PLAIN_INDEX = re.compile(r"(?<=[\w)])(_|\^)(?:\{([^}]+)\}|((?:&lt;)?\w|(?:old|ref|free)(?:,\w)?)(?!\w))")
"""An index or exponent as text writes it without formulas: `y_t`, `V_{t+1}`, `π_old`, `a_&lt;t`; not `kl_coef`."""


class Site(NamedTuple):
    """What a page may point to."""

    docs: Path
    repository: Path
    pages: Mapping[Path, Path]
    """Source → page, relative to the site."""
    equations: Mapping[str, Path]
    """Function → the page that describes it."""
    copied: tuple[str, ...]
    """Endings of files under docs/ that are copied as they are."""


def with_indices(self: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    """Plain text in which indices are set lower and exponents higher."""

    def place(found: re.Match[str]) -> str:
        tag = "sub" if found[1] == "_" else "sup"
        return f"<{tag}>{found[2] or found[3]}</{tag}>"

    # An interval stays on one line.
    text = re.sub(r"(\[[+−]?[\d.]+,) ([+−]?[\d.]+\])", "\\1\u00a0\\2", tokens[index].content)
    return PLAIN_INDEX.sub(place, html.escape(text))


def unique(taken: set[str], heading: str) -> str:
    """The id of a heading; a page of many cells may have a heading twice."""
    slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
    while slug in taken:
        slug += "-"
    taken.add(slug)
    return slug


def renderer(source: Path, site: Site, drawings: Formulas) -> MarkdownIt:
    """For the page of `source`: links between pages are followed, links into the code become plain text."""
    here, taken, figures = site.pages[source], set[str](), [0]
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.use(anchors_plugin, max_level=3, slug_func=lambda heading: unique(taken, heading))
    parser.use(
        dollarmath_plugin,
        allow_space=False,
        allow_digits=False,
        double_inline=True,
        renderer=lambda tex, options: drawings.draw(tex, display=options["display_mode"]),
    )
    if source.suffix == ".md":
        parser.add_render_rule("text", with_indices)

    def link_open(self: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        href, _, place = str(tokens[index].attrs["href"]).partition("#")
        if href and "://" not in href:
            target = (source.parent / href).resolve()
            if not target.exists():
                raise ValueError(f"{source.relative_to(site.repository)}: link to {href}, which does not exist")
            if target in site.pages:
                href = os.path.relpath(site.pages[target], here.parent)
            elif target.suffix in site.copied and target.is_relative_to(site.docs):
                href = os.path.relpath(target.relative_to(site.docs), here.parent)
            else:
                return "<a>"
        return f'<a href="{html.escape(href + ("#" + place if place else ""))}">'

    def image(self: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        src, caption = str(tokens[index].attrs["src"]), tokens[index].content
        target = (source.parent / src).resolve()
        if not (target.is_file() and target.is_relative_to(site.docs)):
            raise ValueError(f"{source.relative_to(site.repository)}: picture {src} is not a file under docs/")
        if not caption:
            raise ValueError(f"{source.relative_to(site.repository)}: picture {src} has no words in its brackets")
        drawn = target.with_suffix(".svg")
        if drawn.exists():
            figures[0] += 1
            return figure(drawn.read_text(encoding="utf-8"), f"f{figures[0]}", caption)
        src = os.path.relpath(target.relative_to(site.docs), here.parent)
        return f'<figure><img alt="{html.escape(caption)}" src="{html.escape(src)}"><figcaption>{html.escape(caption)}</figcaption></figure>'

    def code_inline(self: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        text = tokens[index].content
        code = f"<code>{html.escape(text)}</code>"
        inside_link = any(token.type == "link_open" for token in tokens[:index][-1:])
        if text in site.equations and not inside_link:
            return f'<a href="{os.path.relpath(site.equations[text], here.parent)}#{text}">{code}</a>'
        return code

    parser.add_render_rule("link_open", link_open)
    parser.add_render_rule("image", image)
    parser.add_render_rule("code_inline", code_inline)
    parser.add_render_rule(
        "fence",
        lambda self, tokens, index, options, env: (
            code_block(tokens[index].content)
            if tokens[index].info.strip() == "python"
            else f'<pre tabindex="0"><code>{html.escape(tokens[index].content)}</code></pre>'
        ),
    )
    # A picture alone on its line is a paragraph to Markdown, and no paragraph to HTML.
    parser.core.ruler.push("lift_pictures", lift_pictures)
    return parser


def lift_pictures(state) -> None:
    """Takes the paragraph away around a picture that stands alone."""
    for before, inline, after in zip(state.tokens, state.tokens[1:], state.tokens[2:], strict=False):
        if inline.type == "inline" and [child.type for child in inline.children or []] == ["image"]:
            before.hidden = after.hidden = True


def page_text(source: Path) -> str:
    """A page without its comments, which say how its tables are made (`page_tables.py`)."""
    return re.sub(r"(?ms)^<!--.*?-->\n", "", source.read_text(encoding="utf-8"))


def title(source: Path) -> str:
    """The first heading."""
    heading = r"^# # (.+)$" if source.suffix == ".py" else r"^# (.+)$"
    found = re.search(heading, source.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1].replace("`", "") if found else source.stem


def code_block(source: str) -> str:
    """Python in colours."""
    return highlight(source, PythonLexer(), HtmlFormatter()).replace("<pre>", '<pre tabindex="0">')


def outputs(cell: nbformat.NotebookNode, name: str) -> str:
    """What a cell printed and drew. Raises: ValueError for a picture without a caption."""
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stdout":
            parts.append(f'<pre class="output" tabindex="0">{html.escape(output.text)}</pre>')
        elif "image/svg+xml" in output.get("data", {}):
            caption = cell.metadata.get("caption")
            if not caption:
                raise ValueError(f'{name}: a picture has no caption (`# %% caption="…"`)')
            drawn = figure(output.data["image/svg+xml"], f"p{name}", caption)
            # What has several panels beside each other needs more width to be read.
            parts.append(drawn.replace('"picture"', '"picture panels"') if drawn.count("-axes_") > 2 else drawn)
    return "\n".join(parts)


def notebook_body(notebook: nbformat.NotebookNode, parser: MarkdownIt, name: str) -> str:
    """Text, code and outputs of an executed notebook; code of pictures and solutions of exercises are folded."""
    parts, solving = [], False
    exercises = False
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            exercises = exercises or "## Exercises" in cell.source
            solution = re.match(r"\*\*(\d+)\.\*\*", cell.source) if exercises else None
            if solving and (solution or re.match(r"#+ ", cell.source)):
                parts.append("</details>")
                solving = False
            if solution:
                parts.append(f'<details class="fold"><summary>Solution of exercise {solution[1]}</summary>')
                solving = True
            parts.append(parser.render(cell.source))
            continue
        code = code_block(cell.source)
        if "caption" in cell.metadata:
            code = f'<details class="fold"><summary>Code of this picture</summary>{code}</details>'
            parts.append(outputs(cell, f"{name}-{place}") + code)
            if "try" in cell.metadata:
                parts.append(f'<div class="try" data-try="{cell.metadata["try"]}"></div>')
        else:
            parts.append(code + outputs(cell, f"{name}-{place}"))
    return "\n".join([*parts, "</details>"] if solving else parts)

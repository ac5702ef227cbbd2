"""Builds the documentation as static pages that need no network: notebooks executed, formulas drawn as SVG.

    python tools/build_site.py [OUTPUT_FOLDER]      # default: build/site; open index.html

Pages are docs/**/*.md and notebooks/*.py. Formulas (`$...$`, `$$...$$`) are drawn by matplotlib's mathtext, so that no
JavaScript, fonts or browser features are needed; one it cannot draw ends the build with its name.
"""

import base64
import functools
import html
import io
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.mathtext
import nbformat
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from matplotlib.font_manager import FontProperties
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from run_notebooks import NOTEBOOKS, REPOSITORY, execute

DOCS = REPOSITORY / "docs"
COPIED = (".png", ".svg", ".csv")
"""Files under docs/ that pages show or link to."""
POINTS = 60.0
"""Size formulas are drawn at; large, because mathtext rounds heights to whole points."""
STYLE = """
body { display: flex; margin: 0; font: 16px/1.55 system-ui, sans-serif; color: #222; }
nav { flex: 0 0 15em; padding: 1.2em; background: #f4f5f7; min-height: 100vh; font-size: 14px; }
nav h2 { font-size: 13px; margin: 1.2em 0 .3em; color: #666; }
nav a { display: block; padding: .12em 0; color: #234; text-decoration: none; }
nav a.here { font-weight: 600; }
main { flex: 1; max-width: 75em; min-width: 0; padding: 1.2em 2.5em 4em; }
main > * { max-width: 50em; }
main > table, main > .highlight, main > pre { max-width: 62em; }
pre, code { font: 13px/1.45 ui-monospace, monospace; background: #f4f5f7; }
pre { padding: .7em .9em; overflow-x: auto; border-radius: 4px; }
pre.output { background: none; border-left: 3px solid #ccd; border-radius: 0; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
sub, sup { font-size: 75%; line-height: 0; }
td, th { border: 1px solid #dde; padding: .3em .7em; text-align: left; vertical-align: top; }
main img.figure { display: block; max-width: 100%; margin: 1em 0; }
div.formula { text-align: center; margin: 1em 0; overflow-x: auto; }
blockquote { margin: 1em 0; padding: .2em 1.2em; border-left: 4px solid #ccd; background: #fafbfc; }
@media (max-width: 60em) { body { display: block; } nav { min-height: 0; } }
"""


PLAIN_INDEX = re.compile(r"(?<=[\w)])(_|\^)(?:\{([^}]+)\}|((?:&lt;)?\w|(?:old|ref|free)(?:,\w)?)(?!\w))")
"""An index or exponent as the boxes write it without formulas: `y_t`, `V_{t+1}`, `π_old`, `a_&lt;t`; not `kl_coef`."""


def with_indices(self: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    """Plain text in which indices are set lower and exponents higher."""

    def place(found: re.Match[str]) -> str:
        tag = "sub" if found[1] == "_" else "sup"
        return f"<{tag}>{found[2] or found[3]}</{tag}>"

    return PLAIN_INDEX.sub(place, html.escape(tokens[index].content))


@functools.cache
def formula(tex: str, *, display: bool) -> str:
    """A formula as an image that stands on the line of the text.

    Raises: ValueError with the formula, where mathtext does not know one of its commands.
    """
    drawn = io.BytesIO()
    tex = " ".join(tex.split())
    # mathtext leaves no room between a sum and what is summed.
    spaced = re.sub(r"\\sum(_\{[^}]*\}|_\w)?(\^\{[^}]*\})?", r"\g<0>\\,", tex)
    if display:
        spaced = spaced.replace(r"\frac", r"\dfrac")
    try:
        with matplotlib.rc_context({"mathtext.fontset": "stix", "svg.fonttype": "path", "svg.hashsalt": "formula"}):
            depth = matplotlib.mathtext.math_to_image(
                f"${spaced}$", drawn, prop=FontProperties(size=POINTS), dpi=72, format="svg"
            )
    except ValueError as error:
        raise ValueError(f"cannot draw ${tex}$: {error}") from error
    svg = drawn.getvalue()
    height = re.search(rb'height="([\d.]+)pt"', svg)
    assert height is not None
    scale = (1.2 if display else 1.05) / POINTS
    style = f"height:{float(height[1]) * scale:.3f}em;vertical-align:{-depth * scale:.3f}em"
    source = base64.b64encode(svg).decode()
    image = f'<img alt="{html.escape(tex)}" style="{style}" src="data:image/svg+xml;base64,{source}">'
    return f'<div class="formula">{image}</div>' if display else image


def site_path(source: Path) -> Path:
    """Where a page goes, relative to the site: docs/ is its root."""
    inside = source.relative_to(DOCS) if source.is_relative_to(DOCS) else source.relative_to(REPOSITORY)
    return inside.with_suffix(".html")


def markdown(source: Path, pages: Sequence[Path]) -> MarkdownIt:
    """A renderer for the page of `source`: links between pages are followed, links into the code become plain text."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").use(anchors_plugin, max_level=3)
    if source.is_relative_to(NOTEBOOKS) or source.is_relative_to(DOCS / "course"):
        parser.use(
            dollarmath_plugin,
            allow_space=False,
            allow_digits=False,
            renderer=lambda tex, options: formula(tex, display=options["display_mode"]),
        )
    else:
        parser.add_render_rule("text", with_indices)

    def link_open(self: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        href, _, place = str(tokens[index].attrs["href"]).partition("#")
        if href and "://" not in href:
            target = (source.parent / href).resolve()
            if not target.exists():
                raise ValueError(f"{source.relative_to(REPOSITORY)}: link to {href}, which does not exist")
            if target in pages:
                href = os.path.relpath(site_path(target), site_path(source).parent)
            elif target.suffix in COPIED and target.is_relative_to(DOCS):
                href = os.path.relpath(target.relative_to(DOCS), site_path(source).parent)
            else:
                return "<a>"
        return f'<a href="{html.escape(href + ("#" + place if place else ""))}">'

    def image(self: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        src = str(tokens[index].attrs["src"])
        target = (source.parent / src).resolve()
        if not (target.is_file() and target.is_relative_to(DOCS)):
            raise ValueError(f"{source.relative_to(REPOSITORY)}: picture {src} is not a file under docs/")
        src = os.path.relpath(target.relative_to(DOCS), site_path(source).parent)
        return f'<img class="figure" alt="{html.escape(tokens[index].content)}" src="{html.escape(src)}">'

    parser.add_render_rule("link_open", link_open)
    parser.add_render_rule("image", image)
    return parser


def page_text(source: Path) -> str:
    """A page without its comments, which say how its tables are made (`page_tables.py`)."""
    return re.sub(r"(?ms)^<!--.*?-->\n", "", source.read_text(encoding="utf-8"))


def title(source: Path) -> str:
    """The first heading."""
    heading = r"^# # (.+)$" if source.suffix == ".py" else r"^# (.+)$"
    found = re.search(heading, source.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1].replace("`", "") if found else source.stem


def notebook_body(notebook: nbformat.NotebookNode, parser: MarkdownIt) -> str:
    """Text, code and outputs of an executed notebook."""
    formatter, parts = HtmlFormatter(), []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(parser.render(cell.source))
            continue
        parts.append(highlight(cell.source, PythonLexer(), formatter))
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stdout":
                parts.append(f'<pre class="output">{html.escape(output.text)}</pre>')
            elif "image/png" in output.get("data", {}):
                parts.append(f'<img class="figure" src="data:image/png;base64,{output.data["image/png"].strip()}">')
    return "\n".join(parts)


def navigation(here: Path, groups: dict[str, list[Path]]) -> str:
    """Links to all pages."""
    lines = []
    for name, sources in groups.items():
        lines.append(f"<h2>{name}</h2>")
        for source in sources:
            href = os.path.relpath(site_path(source), site_path(here).parent)
            mark = ' class="here"' if source == here else ""
            lines.append(f'<a{mark} href="{href}">{html.escape(title(source))}</a>')
    return "\n".join(lines)


def page_groups() -> dict[str, list[Path]]:
    """All sources in the order of the navigation."""
    found = {
        "Start": [DOCS / "index.md"],
        "Course": [*sorted(NOTEBOOKS.glob("*.py")), *sorted((DOCS / "course").glob("*.md"))],
        "How to": sorted((DOCS / "howto").glob("*.md")),
        "Algorithms": sorted((DOCS / "algorithms").glob("*.md")),
        "Results": [DOCS / "RESULTS.md", *sorted((DOCS / "results").glob("*.md"))],
        "Decisions": sorted((DOCS / "decisions").glob("*.md")),
    }
    taken = {source for sources in found.values() for source in sources}
    return found | {"Reference": sorted(source for source in DOCS.glob("*.md") if source not in taken)}


def check_places(pages: Sequence[Path]) -> None:
    """Raises: ValueError for a link to a heading that its page does not have."""
    texts = {page.resolve(): page.read_text(encoding="utf-8") for page in pages}
    for page, text in texts.items():
        for href, place in re.findall(r'<a href="([^"#:]*)#([^"]+)"', text):
            if f'id="{place}"' not in texts[(page.parent / href).resolve() if href else page]:
                raise ValueError(f"{page}: link to {href}#{place}, a heading that is not there")


def build(folder: Path) -> None:
    """Writes every page; a notebook that fails, a formula that cannot be drawn or a link that leads nowhere ends the build."""
    groups = page_groups()
    pages = [source for sources in groups.values() for source in sources]
    code_style = HtmlFormatter().get_style_defs(".highlight")
    for source in pages:
        parser = markdown(source, pages)
        body = notebook_body(execute(source), parser) if source.suffix == ".py" else parser.render(page_text(source))
        target = folder / site_path(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title(source))}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{STYLE}{code_style}</style></head>'
            f"<body><nav>{navigation(source, groups)}</nav><main>{body}</main></body></html>\n",
            encoding="utf-8",
        )
        print(target, flush=True)
    check_places([folder / site_path(source) for source in pages])
    for picture in (file for file in DOCS.rglob("*") if file.suffix in COPIED):
        target = folder / picture.relative_to(DOCS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, target)


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "build" / "site")

"""Builds the documentation as static pages that need no network: notebooks executed, formulas and figures drawn as SVG.

    python tools/build_site.py [OUTPUT_FOLDER]      # default: build/site; open index.html
    python tools/build_site.py --reuse              # takes notebooks from build/executed that still are what would be run

Pages are docs/**/*.md, notebooks/*.py and, from their docstrings, rlhf_jax/equations/*.py. A formula that cannot be drawn, a
picture without a caption or a link that leads nowhere ends the build. Pages look like `tools/site/style.css`; the JavaScript
beside it opens menus and searches, and everything can be read without it.
"""

import argparse
import copy
import functools
import hashlib
import html
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import nbformat

import page_equations
from page_drawings import Formulas
from page_markdown import Site, notebook_body, page_text, renderer, title
from run_notebooks import NOTEBOOKS, REPOSITORY, execute

DOCS = REPOSITORY / "docs"
EQUATIONS = REPOSITORY / "rlhf_jax" / "equations"
ASSETS = Path(__file__).resolve().parent / "site"
COPIED = (".png", ".svg", ".csv")
"""Files under docs/ that pages show or link to."""
SHEET = Path("sheet.html")
HANDOUT = "_exercises.ipynb"
"""How the notebooks end that have no solutions."""
FOLLOW = " Solutions follow, here and in every notebook."

Execute = Callable[[Path], nbformat.NotebookNode]


def reused(source: Path, folder: Path) -> nbformat.NotebookNode:
    """The executed notebook of an earlier build, if neither it nor the package has changed since."""
    files = [source, *sorted((REPOSITORY / "rlhf_jax").rglob("*.py"))]
    now = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    stored = folder / f"{source.stem}-{now[:16]}.ipynb"
    if not stored.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{source.stem}-*.ipynb"):
            old.unlink()
        nbformat.write(execute(source), stored)
    return nbformat.read(stored, as_version=4)


def site_path(source: Path) -> Path:
    """Where a page goes, relative to the site: docs/ is its root."""
    if source.is_relative_to(EQUATIONS):
        return Path("equations", f"{source.stem}.html")
    inside = source.relative_to(DOCS) if source.is_relative_to(DOCS) else source.relative_to(REPOSITORY)
    return inside.with_suffix(".html")


def page_groups() -> dict[str, list[Path]]:
    """All sources in the order of the menu."""
    found = {
        "Start": [DOCS / "index.md"],
        "Course": [*sorted(NOTEBOOKS.glob("*.py")), *sorted((DOCS / "course").glob("*.md"))],
        "Algorithms": sorted((DOCS / "algorithms").glob("*.md")),
        "Equations": sorted(EQUATIONS.glob("[a-z]*.py")),
        "How to": sorted((DOCS / "howto").glob("*.md")),
        "Results": [DOCS / "RESULTS.md", *sorted((DOCS / "results").glob("*.md"))],
        "Decisions": sorted((DOCS / "decisions").glob("*.md")),
    }
    taken = {source for sources in found.values() for source in sources}
    return found | {"Reference": sorted(source for source in DOCS.glob("*.md") if source not in taken)}


def name_of(source: Path) -> str:
    """The title of a page."""
    return page_equations.TITLES[source.stem] if source.is_relative_to(EQUATIONS) else title(source)


def menu(here: Path, groups: Mapping[str, Sequence[Path]]) -> str:
    """Links to all pages, and the search."""
    lines = []
    for group, sources in groups.items():
        entries = [(name_of(source), site_path(source)) for source in sources]
        if group == "Equations":
            entries.insert(0, ("Sheet of symbols and losses", SHEET))
        lines.append(f"<h2>{group}</h2><ul>")
        for name, path in entries:
            mark = ' aria-current="page"' if path == here else ""
            lines.append(f'<li><a{mark} href="{os.path.relpath(path, here.parent)}">{html.escape(name)}</a></li>')
        lines.append("</ul>")
    return (
        '<nav class="menu" aria-label="Pages"><details open><summary>rlhf_jax: all pages, search</summary>'
        '<input id="search" type="search" placeholder="Search all pages" aria-label="Search all pages">'
        f'<div class="found" aria-live="polite"></div><div class="pages">{"".join(lines)}</div></details></nav>'
    )


def headings(body: str) -> list[tuple[str, str, str, str]]:
    """Level, id, text, and what stands below, of every heading with an id."""
    pieces = re.split(r'<h([123]) id="([^"]+)"[^>]*>(.*?)</h\1>', body, flags=re.DOTALL)
    found = zip(pieces[1::4], pieces[2::4], pieces[3::4], pieces[4::4], strict=True)
    return [(level, place, plain(name), plain(below)) for level, place, name, below in found]


def plain(text: str) -> str:
    """What a reader sees, without marks; a formula by its source."""
    text = re.sub(r'(?s)<svg[^>]*class="(?:math)"[^>]*aria-label="([^"]*)".*?</svg>', r" \1 ", text)
    text = re.sub(r"(?s)<(svg|script|style)\b.*?</\1>", " ", text)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def contents(body: str) -> str:
    """The headings of a page as links, where there are enough of them."""
    rows = [(level, place, name) for level, place, name, _ in headings(body) if level != "1"]
    if len(rows) < 3:
        return '<aside class="contents"></aside>'
    items = "".join(
        f'<li{" class=deeper" if level == "3" else ""}><a href="#{place}">{html.escape(name)}</a></li>'
        for level, place, name in rows
    )
    return (
        '<aside class="contents" aria-label="On this page"><details open><summary>On this page</summary>'
        f"<ul>{items}</ul></details></aside>"
    )


def neighbours(here: Path, order: Sequence[tuple[str, Path]]) -> str:
    """Links to the page before and after, within the order of the menu."""
    place = [path for _, path in order].index(here)
    links = []
    for step, mark, relation in ((-1, "← {}", "prev"), (1, "{} →", "next")):
        if 0 <= place + step < len(order):
            name, path = order[place + step]
            href = os.path.relpath(path, here.parent)
            links.append(f'<a rel="{relation}" href="{href}">{mark.format(html.escape(name))}</a>')
        else:
            links.append("<span></span>")
    return f'<nav class="next" aria-label="Previous and next">{"".join(links)}</nav>'


def frame(name: str, body: str, here: Path, groups: Mapping[str, Sequence[Path]], drawings: Formulas) -> str:
    """A whole page around its body."""
    order = [(name_of(source), site_path(source)) for sources in groups.values() for source in sources]
    root = os.path.relpath(".", here.parent) + "/"
    below = neighbours(here, order) if here != SHEET else ""
    tried = f'<script src="{root}try.js"></script>' if "data-try=" in body else ""
    return (
        f'<!doctype html><html lang="en" data-root="{root}"><head><meta charset="utf-8"><title>{html.escape(name)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f'<link rel="stylesheet" href="{root}style.css"></head><body><a class="skip" href="#text">To the text</a>'
        f'{drawings.definitions()}{menu(here, groups)}{contents(body)}<script src="{root}page.js"></script>'
        f'<main id="text">{body}{below}</main>{tried}</body></html>\n'
    )


def check_links(folder: Path, pages: Sequence[Path]) -> None:
    """Raises: ValueError for a link to a file that is not there, or to a place that its page does not have."""
    texts = {page.resolve(): page.read_text(encoding="utf-8") for page in pages}
    for page, text in texts.items():
        for href in re.findall(r'<(?:a|img|link|script)[^>]* (?:href|src)="([^"]*)"', text):
            if "://" in href or href.startswith(("data:", "mailto:")):
                continue
            file, _, place = html.unescape(href).partition("#")
            target = (page.parent / file).resolve() if file else page
            if not target.is_file():
                raise ValueError(f"{page.relative_to(folder.resolve())}: link to {href}, which is not there")
            if place and f'id="{place}"' not in texts[target]:
                raise ValueError(f"{page.relative_to(folder.resolve())}: link to {href}, a heading that is not there")


def equations_used(source: Path) -> dict[str, list[str]]:
    """File of equations → functions that a lesson imports from it."""
    found = re.findall(
        r"^from rlhf_jax\.equations\.(\w+) import (?:\(([^)]*)\)|(.*))$",
        source.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return {
        file: [name.strip() for name in (several or one).split(",") if name.strip()] for file, several, one in found
    }


def lesson_tools(source: Path, here: Path) -> str:
    """Below the title of a lesson: the notebook to work in, and the equations it uses."""
    links = []
    for file, names in equations_used(source).items():
        href = os.path.relpath(Path("equations", f"{file}.html"), here.parent)
        links += [f'<a href="{href}#{name}"><code>{name}</code></a>' for name in names if name.islower()]
    used = f" Equations: {', '.join(links)}." if links else ""
    index = os.path.relpath("index.html", here.parent)
    return (
        f'<p class="tools">For Jupyter: <a href="{source.stem}.ipynb" download>{source.stem}.ipynb</a>, this lesson with its outputs; '
        f'<a href="{source.stem}{HANDOUT}" download>{source.stem}{HANDOUT}</a>, to solve by yourself or to hand out, without outputs and solutions '
        f'(<a href="{index}#the-course">what they need</a>).{used}</p>'
    )


def write_notebook(notebook: nbformat.NotebookNode, target: Path) -> None:
    """The executed notebook for Jupyter: pictures as PNG, their code folded."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if "caption" in cell.metadata:
                cell.metadata["jupyter"] = {"source_hidden": True}
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data.pop("image/svg+xml", None)
    nbformat.write(notebook, target)


def write_handout(notebook: nbformat.NotebookNode, target: Path) -> None:
    """The notebook for whoever is to work in it: nothing run yet, and without the solutions, which are its end."""
    handout = copy.deepcopy(notebook)
    first = next(place for place, cell in enumerate(handout.cells) if cell.source.startswith("**1.**"))
    handout.cells = handout.cells[:first]
    for cell in handout.cells:
        # Nor does an exercise promise what is not there.
        cell.source = cell.source.replace(FOLLOW, "")
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            if "caption" in cell.metadata:
                cell.metadata["jupyter"] = {"source_hidden": True}
    nbformat.write(handout, target)


def build(folder: Path, run: Execute = execute) -> None:
    """Writes every page; a notebook that fails ends the build, and so does what the first lines of this file name."""
    groups = page_groups()
    sources = [source for group in groups.values() for source in group]
    names = {
        function.name: Path("equations", f"{source.stem}.html")
        for source in groups["Equations"]
        for function in page_equations.functions(source)
    }
    site = Site(DOCS, REPOSITORY, {source: site_path(source) for source in sources}, names, COPIED)
    index, written = [], []

    def write(here: Path, name: str, body: str, drawings: Formulas) -> None:
        target = folder / here
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(frame(name, body, here, groups, drawings), encoding="utf-8")
        for _, place, heading, below in headings(body):
            index.append([name, "" if heading == name else heading, f"{here.as_posix()}#{place}", below])
        written.append(target)
        print(target, flush=True)

    for source in sources:
        here, drawings = site_path(source), Formulas()
        if source.is_relative_to(EQUATIONS):
            lessons = {
                title(lesson): os.path.relpath(site_path(lesson), here.parent)
                for lesson in groups["Course"]
                if lesson.suffix == ".py" and source.stem in equations_used(lesson)
            }
            body = page_equations.page(source, drawings, lessons)
        elif source.suffix == ".py":
            notebook = run(source)
            body = notebook_body(notebook, renderer(source, site, drawings), source.stem)
            body = body.replace("</h1>", f"</h1>{lesson_tools(source, here)}", 1)
            (folder / here).parent.mkdir(parents=True, exist_ok=True)
            write_handout(notebook, (folder / here).with_name(source.stem + HANDOUT))
            write_notebook(notebook, (folder / here).with_suffix(".ipynb"))
        else:
            body = renderer(source, site, drawings).render(page_text(source))
        write(here, name_of(source), body, drawings)
    write(SHEET, "Symbols and losses", *sheet(site))
    for picture in (file for file in DOCS.rglob("*") if file.suffix in COPIED):
        target = folder / picture.relative_to(DOCS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, target)
    for asset in ASSETS.iterdir():
        shutil.copyfile(asset, folder / asset.name)
    (folder / "search.js").write_text(
        f"window.SEARCH_INDEX = {json.dumps(index, ensure_ascii=False)};\n", encoding="utf-8"
    )
    check_links(folder, written)


def sheet(site: Site) -> tuple[str, Formulas]:
    """One page to print: the symbols of the first page, and the formulas of the course."""
    drawings = Formulas()
    table = page_text(DOCS / "index.md").split("### Notation\n")[1].split("\n\n", 1)[1].split("\n## ")[0]
    body = '<h1 id="top">Symbols and losses</h1><p class="tools">For one sheet of A4 paper: print this page.</p>'
    body += '<div class="sheet"><h2 id="symbols">Symbols</h2>' + renderer(DOCS / "index.md", site, drawings).render(
        table
    )
    return f'{body}<h2 id="losses">Formulas</h2>{page_equations.losses(EQUATIONS, drawings)}</div>', drawings


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=REPOSITORY / "build" / "site")
    parser.add_argument("--reuse", action="store_true", help="do not run notebooks again that have not changed")
    options = parser.parse_args()
    stored = REPOSITORY / "build" / "executed"
    build(options.folder, functools.partial(reused, folder=stored) if options.reuse else execute)


if __name__ == "__main__":
    main()

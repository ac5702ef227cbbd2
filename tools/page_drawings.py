"""Formulas and figures as SVG inside the page, in the colours of its text, so that they suit a light and a dark scheme.

Formulas are set by matplotlib's mathtext: no JavaScript, no fonts of the browser. Figures are what matplotlib wrote as SVG.
"""

import html
import re
from collections.abc import Sequence

import matplotlib
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from matplotlib.textpath import text_to_path

EM = 100
"""Units of a drawn formula in one em of its text."""
WIDE = 15.0
"""Em. A formula in a line of text that is wider may not fit a phone: it can be scrolled by itself."""


def outline(vertices: Sequence[Sequence[float]], codes: Sequence[int]) -> str:
    """A glyph as the `d` of an SVG path; y points down there."""
    letters, parts, taken = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}, [], 0
    for (x, y), code in zip(vertices, codes, strict=True):
        if code == 79:
            parts.append("Z")
            continue
        # A curve is several rows of one code: its letter stands once.
        letter = letters[int(code)] if taken == 0 else ""
        taken = (taken + 1) % {3: 2, 4: 3}.get(int(code), 1)
        parts.append(f"{letter}{x:.1f} {-y:.1f}")
    return " ".join(parts)


class Formulas:
    """Formulas of one page; every glyph is drawn once and used wherever it is needed."""

    def __init__(self) -> None:
        self.outlines: dict[str, str] = {}

    def draw(self, tex: str, *, display: bool) -> str:
        """A formula that stands on the line of the text, or in the middle of a line of its own.

        Raises: ValueError with the formula, where mathtext does not know one of its commands.
        """
        tex = " ".join(tex.split())
        # mathtext leaves no room between a sum and what is summed.
        spaced = re.sub(r"\\sum(_\{[^}]*\}|_\w)?(\^\{[^}]*\})?", r"\g<0>\\,", tex)
        if display:
            spaced = spaced.replace(r"\frac", r"\dfrac")
        try:
            with matplotlib.rc_context({"mathtext.fontset": "stix"}):
                font = FontProperties(size=EM)
                size = MathTextParser("path").parse(f"${spaced}$", 72, font)
                placed, glyphs, bars = text_to_path.get_glyphs_mathtext(font, f"${spaced}$")
        except ValueError as error:
            raise ValueError(f"cannot draw ${tex}$: {error}") from error
        marks = []
        for name, x, y, scale in placed:
            known = re.sub(r"\W", "-", name)
            self.outlines.setdefault(known, outline(*glyphs[name]))
            larger = f" scale({scale:.3g})" if scale != 1 else ""
            marks.append(f'<use href="#{known}" transform="translate({x:.1f} {-y:.1f}){larger}"/>')
        for corners, _ in bars:
            (x, y), (right, top) = corners[0], corners[2]
            marks.append(f'<path d="M{x:.1f} {-y:.1f}H{right:.1f}V{-top:.1f}H{x:.1f}Z"/>')
        width, height, depth = (length + edge for length, edge in zip(size[:3], (2, 8, 4), strict=True))
        box = f"-1 {-(height - depth):.1f} {width:.1f} {height:.1f}"
        style = f"width:{width / EM:.3f}em;height:{height / EM:.3f}em"
        if not display:
            style += f";vertical-align:{-depth / EM:.3f}em"
        name = html.escape(tex)
        drawn = (
            f'<svg class="math" role="img" aria-label="{name}" viewBox="{box}" style="{style}">{"".join(marks)}</svg>'
        )
        if display:
            return f'<div class="formula" tabindex="0">{drawn}</div>'
        if width > WIDE * EM:
            return f'<span class="wide" tabindex="0">{drawn}</span>'
        return drawn

    def definitions(self) -> str:
        """The glyphs; a page needs them once, before its first formula."""
        if not self.outlines:
            return ""
        paths = "".join(f'<path id="{name}" d="{path}"/>' for name, path in self.outlines.items())
        return f'<svg class="glyphs" aria-hidden="true"><defs>{paths}</defs></svg>'


def figure(svg: str, name: str, caption: str) -> str:
    """matplotlib's SVG, its black in the colour of the text, its white paper left out.

    Args:
      name: of the figure on its page; it keeps the ids of two figures apart.
      caption: what is seen, for everybody and for who does not see it.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"(?s)<metadata>.*?</metadata>", "", svg)
    svg = re.sub(r"(?<=[ML] )-?\d+\.\d+ -?\d+\.\d+", lambda at: " ".join(f"{float(n):.2f}" for n in at[0].split()), svg)
    # Paper: the figure's, and that of every axes. A legend keeps its own, in the colour of the page.
    svg = re.sub(
        r'(?s)(<g id="(?:figure|axes)_\d+">\s*<g id="patch_\d+">\s*<path d="[^"]*"[^>]*style="[^"]*?)fill: #ffffff',
        r"\1fill: none",
        svg,
    )
    svg = re.sub(
        r'(?s)(<g id="legend_\d+">\s*<g id="patch_\d+">\s*<path d="[^"]*"[^>]*style="[^"]*?)fill: #ffffff',
        r"\1fill: var(--page)",
        svg,
    )
    svg = re.sub(r"#000000\b", "currentColor", svg)
    # One style sheet inside a page would hold for all of it.
    svg = re.sub(r"(?s)<style[^>]*>.*?</style>", "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", svg)
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg)
    if size is None:
        raise ValueError(f"figure {name} is not an SVG of matplotlib")
    label = html.escape(caption)
    svg = svg.replace(
        size[0], f'class="plot" role="img" aria-label="{label}" style="width:{float(size[1]) / 12:.1f}rem"', 1
    )
    return (
        f'<figure class="picture"><div class="scroll" tabindex="0">{svg}</div><figcaption>{label}</figcaption></figure>'
    )

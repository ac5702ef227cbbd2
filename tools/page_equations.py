"""Pages of the equations, made from the docstrings of `rlhf_jax/equations`: formula, source, units, gradient, example.

A docstring is a line that says what the function is, formulas and remarks, and the parts `Source`, `Args`, `Returns`,
`Raises` and `Examples`. Formulas are its lines that are indented deeper than the text.
"""

import ast
import html
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from page_drawings import Formulas

PARTS = ("Source", "Args", "Returns", "Raises", "Examples")
TITLES = {
    "contrastive": "Contrastive losses",
    "dpo": "DPO",
    "gae": "Advantages: GAE",
    "group": "Advantages of a group",
    "kl": "KL divergence",
    "kl_control": "Price of the KL, controlled",
    "listwise": "Losses of lists",
    "logprobs": "Log-probabilities and entropy",
    "masked": "Means and whitening under a mask",
    "ppo": "PPO's losses",
    "preference": "Losses of preferences",
    "rewards": "Rewards of tokens",
    "running": "Running moments",
}
SHEET = ("logprobs", "kl", "rewards", "kl_control", "running", "gae", "group", "masked", "ppo", "preference", "dpo")
"""Files of equations whose formulas stand on the sheet, in the order of the course; the others are of single papers."""
NOT_ON_SHEET = ("chunked_token_logprobs", "zero_padding", "masked_var", "is_flat_group", "settled_advantages")
"""What no lesson needs, or says twice."""
SYMBOLS = {"≤": r"\leq ", "≥": r"\geq ", "‖": r"\,\|\,", "…": r"\ldots ", "·": r"\cdot ", "∞": r"\infty ", "→": r"\to "}
SYMBOLS |= {"←": r"\leftarrow ", "−": "-", "±": r"\pm ", "∈": r"\in ", "²": "^2", "ℓ": r"\ell ", "½": r"\frac{1}{2}"}
SYMBOLS |= {"∇": r"\nabla ", "₁": "_1", "₂": "_2", "₊": "_+", "₋": "_-", "≠": r"\neq ", "′": "'", "*": r"\ast "}

OPERATORS = ("log", "exp", "max", "min", "clip", "mean", "std", "var")
"""Words a formula may begin with; another word begins a remark."""


class Function(NamedTuple):
    """What the docstring of one equation says."""

    name: str
    call: str
    line: str
    body: str
    parts: dict[str, str]

    @property
    def formulas(self) -> list[str]:
        """Lines of the body that are formulas, a continuation joined to the line before it."""
        return [line.strip() for line in self.body.splitlines() if line.startswith("    ")]


def functions(source: Path) -> list[Function]:
    """The public functions of a file, in its order. Nothing is imported."""
    found = []
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        text = ast.get_docstring(node)
        if text is None:
            raise ValueError(f"{source.name}: {node.name} has no docstring")
        pieces = re.split(rf"(?m)^({'|'.join(PARTS)}):[ \n]", text)
        line, _, body = pieces[0].partition("\n")
        parts = {name: inspect.cleandoc(part) for name, part in zip(pieces[1::2], pieces[2::2], strict=True)}
        if "Examples" not in parts or "Returns" not in parts:
            raise ValueError(f"{source.name}: {node.name} lacks Returns or Examples")
        arguments = [argument.arg for argument in node.args.args + node.args.kwonlyargs]
        found.append(Function(node.name, f"{node.name}({', '.join(arguments)})", line, body, parts))
    return found


def tex(text: str) -> str:
    """A formula as docstrings write it, for mathtext: words upright, names below and above a letter kept together.

    Examples:
      >>> tex("ρ = π/π_old,  log Z")
      'ρ = π/π_{\\\\mathrm{old}},\\\\;\\\\mathrm{log}\\\\;Z'
      >>> tex("Σ_{u allowed} l_u")
      '\\\\sum_{u\\\\;\\\\mathrm{allowed}} l_u'
    """
    for symbol, command in SYMBOLS.items():
        text = text.replace(symbol, command)
    text = re.sub(r"Σ", r"\\sum", text)
    text = re.sub(r"(\\sqrt\{)([A-Za-z]{2,})", r"\1\\mathrm{\2}", roots(text)).replace("[", r"[\,").replace("]", r"\,]")
    text = re.sub(r"(?<=_)([A-Za-z]{2,}),(\w)(?!\w)", r"{\\mathrm{\1},\2}", text)
    text = re.sub(r"(?<=_)([A-Za-z]{2,})(?![\w}])", r"{\\mathrm{\1}}", text)
    text = re.sub(r"\b1e(-?\d+)", r"10^{\1}", text).replace(" | ", r" \mid ")
    text = re.sub(r"(?<=_\{)([A-Za-z]{2,})(?=[,}])", r"\\mathrm{\1}", text)
    text = re.sub(r"(?<=\w) ([A-Za-z]{2,})(?=\})", r"\\;\\mathrm{\1}", text)
    # Words, but not commands: each is set upright, with room on its sides.
    text = re.sub(r"(?<![\\A-Za-z{_])([A-Za-z]{2,})(?=_|\b)(?!})", r"\\mathrm{\1}", text)
    text = re.sub(r"(\\mathrm\{\w+\}) +(?=[\w\\({|πρσδλγ])", r"\1\\;", text)
    return re.sub(r"(?<=\S) +(?=\\mathrm\{)", r"\\;", text)


def roots(text: str) -> str:
    """Roots for mathtext: what is under one stands in braces.

    Examples:
      >>> roots("x/√(var + ε), √D")
      'x/\\\\sqrt{var + ε}, \\\\sqrt{D}'
    """
    text = re.sub(r"√(\w)", r"\\sqrt{\1}", text)
    while (start := text.find("√(")) >= 0:
        end, depth = start + 1, 0
        while True:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            if depth == 0:
                break
            end += 1
        text = f"{text[:start]}\\sqrt{{{text[start + 2 : end]}}}{text[end + 1 :]}"
    return text


def set_formula(text: str, drawings: Formulas) -> str:
    """A line of formulas; those that three blanks keep apart stand below each other, and words beside them stay words."""
    written = []
    for part in filter(None, map(str.strip, re.split(r"[,;]? {3,}", text))):
        words = re.match(r"([A-Za-z]{2,}|t = 0)\b(?! *[=_(\[])(?!.*/ max)", part)
        if words and words[1] not in OPERATORS:
            written.append(f'<p class="note">{prose(part)}</p>')
        else:
            written.append(drawings.draw(tex(part.rstrip(";")), display=True))
    return "".join(written)


def prose(text: str) -> str:
    """Text of a docstring: code in its marks, indices set lower, links followed."""
    text = html.escape(" ".join(text.split()))
    pieces = re.split(r"(`[^`]*`)", text)
    for place, piece in enumerate(pieces):
        if piece.startswith("`"):
            pieces[place] = f"<code>{piece[1:-1]}</code>"
            continue
        piece = re.sub(r"arXiv:(\d{4}\.\d{5})", r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>', piece)
        piece = re.sub(r"(?<![\"/])https?://[^\s,;)]+(?<!\.)", lambda at: f'<a href="{at[0]}">{at[0]}</a>', piece)
        pieces[place] = re.sub(
            r"(?<=[\w)])(_|\^)(?:\{([^}]+)\}|((?:&lt;)?\w|old|ref)(?!\w))",
            lambda at: f"<su{'b' if at[1] == '_' else 'p'}>{at[2] or at[3]}</su{'b' if at[1] == '_' else 'p'}>",
            piece,
        )
    return "".join(pieces)


def arguments(text: str) -> Iterator[tuple[str, str]]:
    """Name and meaning of every argument."""
    for entry in re.split(r"\n(?=\w[\w, ]*: )", text):
        name, _, meaning = entry.partition(": ")
        yield name, meaning


def body(function: Function, drawings: Formulas) -> str:
    """Formulas and remarks in their order."""
    written = []
    for block in re.split(r"\n\s*\n", function.body.strip("\n")):
        lines = block.splitlines()
        if lines and lines[0].startswith("    "):
            written.extend(set_formula(line.strip(), drawings) for line in lines)
        elif block.strip():
            written.append(f"<p>{prose(block)}</p>")
    return "".join(written)


def page(source: Path, drawings: Formulas, used_in: dict[str, str]) -> str:
    """One file of equations. `used_in`: title and address of the lessons that import something of it."""
    text = source.read_text(encoding="utf-8")
    about = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
    parts = [f'<h1 id="top">{html.escape(TITLES[source.stem])}</h1><p>{prose(about)}</p>']
    parts.append(
        f'<p class="tools">From the docstrings of <code>rlhf_jax/equations/{source.name}</code>. Its examples are run by the tests. '
        "Shapes stand in brackets: [T] is one number per token.</p>"
    )
    if used_in:
        links = ", ".join(f'<a href="{href}">{html.escape(name)}</a>' for name, href in used_in.items())
        parts.append(f"<p>Taught and used in: {links}.</p>")
    for function in functions(source):
        parts.append(f'<h2 id="{function.name}"><code>{function.name}</code></h2><p>{prose(function.line)}</p>')
        parts.append(body(function, drawings))
        rows = [
            (f"<code>{html.escape(name)}</code>", prose(meaning))
            for name, meaning in arguments(function.parts.get("Args", ""))
            if meaning
        ]
        value = function.parts["Returns"]
        rows.append(("returns, and its gradient" if "radient" in value else "returns", prose(value)))
        for name in ("Raises", "Source"):
            if name in function.parts:
                rows.append((name.lower(), prose(function.parts[name])))
        parts.append("<table>" + "".join(f"<tr><th>{name}</th><td>{meaning}</td></tr>" for name, meaning in rows))
        parts.append(f'</table><pre class="example">{html.escape(function.parts["Examples"])}</pre>')
    return "\n".join(parts)


def losses(folder: Path, drawings: Formulas) -> str:
    """The formulas of the course, in its order, for a sheet of paper."""
    entries = []
    for name in SHEET:
        for function in functions(folder / f"{name}.py"):
            if function.formulas and function.name not in NOT_ON_SHEET:
                drawn = "".join(set_formula(line, drawings) for line in function.formulas)
                link = f'<a href="equations/{name}.html#{function.name}"><code>{function.name}</code></a>'
                what = f'<div class="what">{link} <span>{prose(function.line)}</span></div>'
                entries.append(f'<div class="loss">{what}<div class="drawn">{drawn}</div></div>')
    return f'<div class="losses">{"".join(entries)}</div>'

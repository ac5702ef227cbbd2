"""Tables of `docs/`, made from `docs/results/*.csv`, so that no result in a table is typed by hand.

A page holds what a table shall show, and below it the table, which `python tools/store_results.py tables` writes:

    <!-- table
    from: full_ablation_redial.csv
    corner: − SFT
    column: HR@5 `full` | measure hr@5 | protocol full
    column: BLEU-4, greedy | measure bleu4 | protocol text | split redial/test | digits 1
    row: SFT itself | system sft
    row: engagement alone | system engagement-sft | show difference
    -->
    | − SFT | HR@5 `full` | BLEU-4, greedy |
    …
    <!-- end of table -->

A row or column is its label and fields, each a word and its value. A line of its own with a field is the default of the whole
table; a row's field wins over it, a column's over both. Together they choose the one line of the CSV that a cell shows:

    from        the file, in docs/results/
    system      the part of `name` before the slash
    measure     the part of `name` after it
    protocol    as in the CSV
    split       as in the CSV; needed only where the others leave a choice

and how it is shown:

    digits      after the point; 3 unless told
    show        words: `value` alone; `interval`; `sign` (a plus too); `mark` (▲ ▼ △ ▽, see below); `bold` (the interval excludes
                `against`); `n`; `seeds` (their number alone); `difference` for `interval sign mark`. `interval` unless told
    against     what an interval is compared with; 0 unless told
    otherwise   what stands where there is no such line, or no number in it; – unless told
    is          of a column: it holds text, which every row gives in a field of this name

▲ and ▼ are claims: three seeds, an interval without `against`, and seeds that agree (docs/decisions/0008). △ and ▽ have the
interval and not the seeds. A file, field or value that does not exist, and a cell that fits several lines, are errors.
"""

import csv
import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rlhf_jax.evaluation.results import exclude_zero

BLOCK = re.compile(r"(<!-- table\n(.*?)-->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
CHOICE = ("from", "system", "measure", "protocol", "split")
DISPLAY = {"digits": "3", "show": "interval", "against": "0", "otherwise": "–", "is": ""}
WORDS = {"value", "interval", "sign", "mark", "bold", "n", "seeds", "difference"}

Fields = Mapping[str, str]


class Line(NamedTuple):
    """A row or a column."""

    label: str
    fields: Fields


class Table(NamedTuple):
    """What a table shall show."""

    corner: str
    defaults: Fields
    columns: list[Line]
    rows: list[Line]


def parse(text: str) -> Table:
    """The description of a table. Raises: ValueError with the line that cannot be read."""
    table = Table("", {}, [], [])
    defaults: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        kind, colon, rest = line.partition(": ")
        if not colon:
            raise ValueError(f"{line!r}: expected 'row: …', 'column: …' or 'field: value'")
        if kind in ("row", "column"):
            label, *parts = (part.strip() for part in rest.split("|"))
            fields = {field: value for field, _, value in (part.partition(" ") for part in parts)}
            (table.rows if kind == "row" else table.columns).append(Line(label, fields))
        else:
            defaults[kind] = rest.strip()
    corner = defaults.pop("corner", "")
    texts = {column.fields["is"] for column in table.columns if "is" in column.fields}
    allowed = {*CHOICE, *DISPLAY}
    for label, fields, known in [
        ("the table", defaults, allowed),
        *((column.label, column.fields, allowed) for column in table.columns),
        *((row.label, row.fields, allowed | texts) for row in table.rows),
    ]:
        if unknown := [field for field in fields if field not in known]:
            raise ValueError(f"{label}: no field is called {', '.join(unknown)}")
        if words := set(fields.get("show", "value").split()) - WORDS:
            raise ValueError(f"{label}: nothing can be shown as {', '.join(sorted(words))}")
    return Table(corner, defaults, table.columns, table.rows)


@functools.cache
def read(file: Path) -> list[dict[str, str]]:
    """The lines of a CSV, their names taken apart. Raises: ValueError if there is no such file."""
    if not file.is_file():
        raise ValueError(f"there is no file {file.name} in {file.parent}")
    with file.open(encoding="utf-8", newline="") as opened:
        lines = list(csv.DictReader(opened))
    for line in lines:
        line["system"], _, line["measure"] = line["name"].partition("/")
    return lines


def find(folder: Path, fields: Fields) -> dict[str, str] | None:
    """The line that a cell shows, None if there is none.

    Raises: ValueError if several fit, or a field has a value that no line of the file has.
    """
    if "from" not in fields:
        raise ValueError("no file is named (from)")
    lines = read(folder / fields["from"])
    for field in CHOICE[1:]:
        if field in fields and fields[field] not in {line[field] for line in lines}:
            raise ValueError(f"{fields['from']} has no {field} {fields[field]!r}")
    found = [line for line in lines if all(line[field] == fields[field] for field in CHOICE[1:] if field in fields)]
    if len(found) > 1:
        where = sorted({f"{line['name']}, {line['protocol']}, {line['split']}" for line in found})
        raise ValueError(f"{fields['from']} has {len(found)} such lines: {'; '.join(where[:4])}")
    return found[0] if found else None


def number(value: float, digits: int, *, sign: bool = False) -> str:
    """As the pages write it: no zero before the point, a real minus.

    Examples:
      >>> number(-0.01696, 3), number(12.5, 1, sign=True), number(-0.0004, 3)
      ('−.017', '+12.5', '−.000')
    """
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    text = re.sub(r"(?<![\d.])0\.", ".", text)
    return text.replace("-", "−")


def marked(line: Mapping[str, str], against: float) -> str:
    """▲ or ▼ for a claim, △ or ▽ where only the interval would make one, nothing otherwise."""
    seeds = len(line["seeds"].split())
    if not line["low"] or seeds < 3 or float(line["low"]) <= against <= float(line["high"]):
        return ""
    above = float(line["value"]) > against
    agree = bool(line["std"]) and exclude_zero(float(line["value"]) - against, float(line["std"]), seeds)
    return ("▲" if above else "▼") if agree else ("△" if above else "▽")


def cell(line: Mapping[str, str] | None, fields: Fields) -> str:
    """What a cell shows of its line."""
    words = set(fields["show"].split())
    if "difference" in words:
        words |= {"interval", "sign", "mark"}
    if line is None or math.isnan(float(line["value"])):
        return fields["otherwise"]
    if "seeds" in words:
        return str(len(line["seeds"].split()) or fields["otherwise"])
    digits, against, sign = int(fields["digits"]), float(fields["against"]), "sign" in words
    text = number(float(line["value"]), digits, sign=sign)
    bounds = [float(line[end]) for end in ("low", "high")] if line["low"] else None
    mark = marked(line, against) if "mark" in words else ""
    if mark in ("▲", "▼") or ("bold" in words and bounds and not bounds[0] <= against <= bounds[1]):
        text = f"**{text}**"
    if bounds and "interval" in words:
        text += f" [{', '.join(number(bound, digits, sign=sign) for bound in bounds)}]"
    if mark:
        text += f" {mark}"
    return text + (f", n {int(line['n']):,}" if "n" in words else "")


def render(text: str, folder: Path) -> str:
    """The table that a description asks for.

    Raises: ValueError with row and column, for what does not exist; also for a row or column without a single number.
    """
    table = parse(text)
    written, found = [], set[str]()
    for row in table.rows:
        cells = []
        for column in table.columns:
            fields = DISPLAY | dict(table.defaults) | dict(row.fields) | dict(column.fields)
            if name := fields["is"]:
                if name not in row.fields:
                    raise ValueError(f"{row.label}: no field {name}")
                cells.append(row.fields[name])
                found.add(f"column {column.label}")
                continue
            try:
                line = find(folder, fields)
            except ValueError as error:
                raise ValueError(f"{row.label} × {column.label}: {error}") from error
            if line is not None:
                found |= {f"row {row.label}", f"column {column.label}"}
            cells.append(cell(line, fields))
        written.append([row.label, *cells])
    wanted = [f"row {row.label}" for row in table.rows] + [f"column {column.label}" for column in table.columns]
    if empty := [name for name in wanted if name not in found]:
        raise ValueError(f"no number at all: {', '.join(empty)}")
    heads = [table.corner, *(column.label for column in table.columns)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, ["---"] * len(heads), *written))


def rewrite(page: str, folder: Path) -> str:
    """A page with all of its tables made anew. Raises: ValueError as `render`, or for a table that does not end."""
    if len(BLOCK.findall(page)) != page.count("<!-- table\n") or len(BLOCK.findall(page)) != page.count(
        "<!-- end of table -->"
    ):
        raise ValueError("a table without its beginning or its end (<!-- table … --> … <!-- end of table -->)")
    return BLOCK.sub(lambda block: block[1] + render(block[2], folder) + block[4], page)


def pages(docs: Path) -> list[Path]:
    """All pages that may hold tables."""
    return sorted(docs.rglob("*.md"))


def write_tables(docs: Path, *, check: bool = False) -> Sequence[Path]:
    """Makes all tables of the pages anew; returns the pages that differ, or would with `check`.

    Raises: ValueError naming page, row and column.
    """
    changed = []
    for page in pages(docs):
        before = page.read_text(encoding="utf-8")
        try:
            after = rewrite(before, docs / "results")
        except ValueError as error:
            raise ValueError(f"{page.relative_to(docs.parent)}: {error}") from error
        if after != before:
            changed.append(page)
            if not check:
                page.write_text(after, encoding="utf-8")
    return changed

"""The one way from a file to lines, JSON values and rows of a table, for every reader of this package.

    line    what stands between two \\n, in UTF-8; a \\r before the \\n and a byte-order mark at the start belong to none
    JSON    one value; no key twice, no NaN, no half of a surrogate pair
    row     as many fields as the header has names, quotes closed on the line they open on

Everything else is a `ValueError` that names file, line and what stands there. Other characters that Unicode calls line breaks
(U+2028, U+0085 …) are text.
"""

import csv
import gzip
import itertools
import json
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED = re.compile(r"\\u[dD]")
INT64 = 2**63
"""Numbers of the data are below it: arrays and stored records hold 64 bits."""


def malformed(field: str, value: Any, expected: str) -> ValueError:
    """The error about one field of a file; the caller's caller knows file and line."""
    return ValueError(f"field '{field}' is {str(value)[:60]!r} ({type(value).__name__}), expected {expected}")


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines from 1 on, not decoded; `.gz` is unpacked, a damaged archive a `ValueError`."""
    number = 0
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                yield number, (line.removeprefix(_BOM) if number == 1 else line).removesuffix(b"\n").removesuffix(b"\r")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}, after line {number}: the archive is damaged or cut short ({error})") from error


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines from 1 on. Raises ValueError naming file and line of what is not UTF-8."""
    for number, line in raw_lines(path):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not UTF-8 ({error}): {_start(line)!r}") from error


def json_of(line: bytes | str, *, bounded: bool = False) -> Any:
    """The JSON value of a line.

    Args:
      bounded: refuses numbers that do not fit 64 bits. Who checks every field says so itself, with the field's name.
    Raises: ValueError without a place; the caller knows file and line.
    """
    numbers = {"parse_int": _whole, "parse_float": _finite} if bounded else {}
    try:
        text = line.decode("utf-8") if isinstance(line, bytes) else line
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_number, **numbers)
    except RecursionError:
        raise ValueError(f"not a JSON object (nested too deep): {_start(line)!r}") from None
    except ValueError as error:  # Also UnicodeDecodeError, and whole numbers of thousands of digits.
        raise ValueError(f"not a JSON object ({error}): {_start(line)!r}") from error
    if _ESCAPED.search(text) and (half := _half(value)) is not None:
        raise ValueError(f"half of a surrogate pair, which is no character, in {ascii(half)[:60]}")
    return value


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """The object that a whole file holds. Raises ValueError naming the file, or what it holds instead of `expected`."""
    try:
        value = json_of(b"\n".join(line for _, line in raw_lines(path)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise malformed(str(path), value, expected)
    return value


def read_table(
    path: Path, columns: Sequence[str], *, delimiter: str = ",", quoted: bool = True, spans_lines: bool = False
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows by the names of the header, each with the number of the line it begins on; blank lines at the end are left out.

    Args:
      path: of the table; its first line is the header.
      columns: names that must be in the header; others may be.
      delimiter: between two fields.
      quoted: whether a field may stand in double quotes, as in CSV; else a quote is a character like others.
      spans_lines: whether a quoted field may go on on the next line.
    Raises: ValueError naming file and line of a missing or repeated column, a row with too many or too few fields, a quote
      that is not closed.
    """
    rows = _rows(path, delimiter, quoted, spans_lines)
    _, header = next(rows, (1, []))
    if missing := sorted(set(columns) - set(header)):
        raise ValueError(f"{path}, line 1: columns {missing} are missing, found {header}")
    if len(set(header)) < len(header):
        raise ValueError(f"{path}, line 1: a column is there twice: {header}")
    for number, fields in rows:
        if len(fields) != len(header):
            raise ValueError(
                f"{path}, line {number}: {len(fields)} fields for the {len(header)} columns {header}: "
                f"{delimiter.join(fields)[:60]!r}"
            )
        yield number, dict(zip(header, fields, strict=True))


def number_of(text: Any, field: str, expected: str) -> int:
    """A whole number from 0 on, as digits without zeros before it. Raises ValueError with field and value."""
    if not (isinstance(text, str) and re.fullmatch("0|[1-9][0-9]{0,18}", text) and int(text) < INT64):
        raise malformed(field, text, f"{expected} below 2^63")
    return int(text)


def _rows(path: Path, delimiter: str, quoted: bool, spans_lines: bool) -> Iterator[tuple[int, list[str]]]:
    lines = text_lines(path)
    blank: tuple[int, str] | None = None
    for number, line in lines:
        if not line.strip("\t "):
            blank = blank or (number, line)
            continue
        if blank is not None:
            raise ValueError(f"{path}, line {blank[0]}: a blank line inside the table")
        yield number, _fields(path, number, line, lines if spans_lines else iter(()), delimiter, quoted)


def _fields(
    path: Path, number: int, line: str, more: Iterator[tuple[int, str]], delimiter: str, quoted: bool
) -> list[str]:
    """Fields of the row that begins with `line`; takes what it needs of the lines after it."""
    if not quoted:
        return line.split(delimiter)
    read: list[str] = []

    def parts() -> Iterator[str]:
        for part in itertools.chain([line], (later for _, later in more)):
            read.append(part)
            yield f"{part}\n"

    try:
        found = next(csv.reader(parts(), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {number}: no row of a table ({error}): {line[:60]!r}") from error
    if sum(part.count('"') for part in read) % 2:
        raise ValueError(f"{path}, line {number}: a double quote without its other one: {line[:60]!r}")
    return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)[:60]!r} is there twice")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _whole(digits: str) -> int:
    # Compared by length first: Python refuses to read thousands of digits, in words of its own.
    if len(digits) > 20 or not -INT64 <= int(digits) < INT64:
        raise ValueError(f"the number {digits[:30]} does not fit 64 bits")
    return int(digits)


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"the number {digits[:30]} does not fit 64 bits")
    return value


def _half(value: Any) -> str | None:
    """A text with half of a surrogate pair in it; None where there is none."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str) and _SURROGATE.search(one):
            return one
        if isinstance(one, dict):
            waiting += [*one, *one.values()]
        elif isinstance(one, list):
            waiting += one
    return None


def _start(line: bytes | str) -> str:
    text = line[:60].decode("utf-8", "replace") if isinstance(line, bytes) else line[:60]
    return text.strip()

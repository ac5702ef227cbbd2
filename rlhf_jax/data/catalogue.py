"""Reads what the ReDial release and its knowledge graph say about items: names, years, genres, people, plots."""

import csv
import html
import json
import re
import urllib.parse
from pathlib import Path
from typing import Any

_YEAR = re.compile(r"\s*\((\d{4})\)\s*$")
_LIST_FIELDS = ("genre", "director", "writer", "star")


def malformed(field: str, value: Any, expected: str) -> ValueError:
    """The error about one field of a file; the caller's caller knows file and line."""
    return ValueError(f"field '{field}' is {str(value)[:60]!r} ({type(value).__name__}), expected {expected}")


def clean_title(name: str) -> str:
    """Name of an item as shown to people: single spaces, escapes of the release turned to characters.

    Two items may share a title; only their ids tell them apart.

    Examples:
      >>> clean_title("What About Bob%3F  (1991)")
      'What About Bob? (1991)'
    """
    return " ".join(html.unescape(urllib.parse.unquote(name)).split())


def split_title(title: str) -> tuple[str, int | None]:
    """Title without its year, and the year where the title ends in one.

    Examples:
      >>> split_title("Scarface (1983)")
      ('Scarface', 1983)
      >>> split_title("The Godfather")
      ('The Godfather', None)
    """
    match = _YEAR.search(title)
    if match is None or match.start() == 0:
        return title, None
    return title[: match.start()], int(match[1])


def read_csv_names(path: Path) -> dict[int, str]:
    """Names by item id from `movies_with_mentions.csv` (CRLF line ends, quoted names).

    Raises:
      FileNotFoundError: naming the file.
      ValueError: naming file, line, field and value.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: the table of items is missing")
    names = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        missing = {"movieId", "movieName"} - set(rows.fieldnames or ())
        if missing:
            raise ValueError(f"{path}, line 1: columns {sorted(missing)} are missing, found {rows.fieldnames}")
        for row in rows:
            item_id, name = row["movieId"], row["movieName"]
            if not (item_id and item_id.isascii() and item_id.isdigit()):
                raise ValueError(f"{path}, line {rows.line_num}: {malformed('movieId', item_id, 'an item id')}")
            if name is None:
                raise ValueError(f"{path}, line {rows.line_num}: field 'movieName' is missing")
            names[int(item_id)] = name
    return names


def read_metadata(path: Path) -> dict[int, dict[str, Any]]:
    """Name, genres, people and plot by item id from `kg/id2info.json`; absent fields stay absent.

    Raises:
      ValueError: naming file, field and value (the file is one JSON object, so there is no line).
    """
    try:
        table = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON object ({error})") from error
    if not isinstance(table, dict):
        raise malformed(str(path), table, "one object keyed by item id")
    try:
        return {int(_item_key(key)): _checked_info(key, info) for key, info in table.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _item_key(key: str) -> str:
    if not (key.isascii() and key.isdigit()):
        raise malformed(key, key, "an item id as key")
    return key


def _checked_info(key: str, info: Any) -> dict[str, Any]:
    if not isinstance(info, dict):
        raise malformed(key, info, "an object")
    for field in _LIST_FIELDS:
        value = info.get(field, [])
        if not (isinstance(value, list) and all(isinstance(entry, str) for entry in value)):
            raise malformed(f"{key}.{field}", value, "a list of strings")
    for field in ("name", "plot"):
        if not isinstance(info.get(field, ""), str):
            raise malformed(f"{key}.{field}", info[field], "a string")
    return info

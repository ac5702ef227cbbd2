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


def split_title(name: str) -> tuple[str, int | None]:
    """Title without its year, and the year.

    Runs of spaces become one, and the escapes of the release (`%3F`, `&amp;`) become characters. Two items may
    share a title; only their ids tell them apart.

    Examples:
      >>> split_title("Scarface  (1983)")
      ('Scarface', 1983)
      >>> split_title("What About Bob%3F ")
      ('What About Bob?', None)
    """
    name = " ".join(html.unescape(urllib.parse.unquote(name)).split())
    match = _YEAR.search(name)
    if match is None or match.start() == 0:
        return name, None
    return name[: match.start()], int(match[1])


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
                raise ValueError(f"{path}, line {rows.line_num}: field 'movieId' is {item_id!r}, expected an item id")
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
        raise ValueError(f"{path}: not a JSON object but {type(table).__name__}")
    metadata = {}
    for key, info in table.items():
        if not (key.isascii() and key.isdigit() and isinstance(info, dict)):
            raise ValueError(f"{path}: field '{key}' is {str(info)[:60]!r}, expected an object under an item id")
        for field in _LIST_FIELDS:
            value = info.get(field, [])
            if not (isinstance(value, list) and all(isinstance(entry, str) for entry in value)):
                raise ValueError(f"{path}: field '{key}.{field}' is {str(value)[:60]!r}, expected a list of strings")
        for field in ("name", "plot"):
            if not isinstance(info.get(field, ""), str):
                raise ValueError(f"{path}: field '{key}.{field}' is {info[field]!r}, expected a string")
        metadata[int(key)] = info
    return metadata

"""Reads what the ReDial release and its knowledge graph say about items: names, years, genres, people, plots."""

import html
import re
from pathlib import Path
from typing import Any

from rlhf_jax.data.lines import malformed, number_of, read_json, read_table
from rlhf_jax.data.typography import plain

_YEAR = re.compile(r"\s*\((\d{4})\)\s*$")
_LIST_FIELDS = ("genre", "director", "writer", "star")
_ESCAPES = {"%22": '"', "%3F": "?"}
"""All that the release has; any other percent sign belongs to a title."""


def clean_title(name: str) -> str:
    """Name of an item as shown to people: single spaces, the release's escapes turned to characters, plain punctuation.

    Two items may share a title; only their ids tell them apart.

    Examples:
      >>> clean_title("What About Bob%3F  (1991)")
      'What About Bob? (1991)'
    """
    for escape, character in _ESCAPES.items():
        name = name.replace(escape, character)
    return " ".join(plain(html.unescape(name)).split())


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
    names: dict[int, str] = {}
    for line, row in read_table(path, ("movieId", "movieName")):
        try:
            item_id = number_of(row["movieId"], "movieId", "an item id")
            if item_id in names:
                raise malformed("movieId", item_id, "an id not seen before")
            number_of(row.get("nbMentions", "0"), "nbMentions", "a count")
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from None
        names[item_id] = row["movieName"]
    return names


def read_metadata(path: Path) -> dict[int, dict[str, Any]]:
    """Name, genres, people and plot by item id from `kg/id2info.json`; absent fields stay absent.

    Raises:
      ValueError: naming file, field and value (the file is one JSON object, so there is no line).
    """
    table = read_json(path, "one object keyed by item id")
    try:
        return {number_of(key, key, "an item id as key"): _checked_info(key, info) for key, info in table.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


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
    words = {field: plain(info[field]) for field in ("name", "plot") if field in info}
    return info | words | {field: [plain(entry) for entry in info[field]] for field in _LIST_FIELDS if field in info}

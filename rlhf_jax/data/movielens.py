"""Reads MovieLens 100k and 1M as GroupLens publishes them.

    100k    u.data     user ⇥ item ⇥ rating ⇥ seconds            u.item      24 fields between |, nineteen flags of genres
    1M      ratings.dat   user::item::rating::seconds            movies.dat  id::title::genre|genre…

Both are Latin-1; a copy that somebody stored again in UTF-8 is read as what it is. Titles put their article last ("Usual
Suspects, The (1995)"), and several ids share a title. Source: Harper and Konstan 2015, *The MovieLens datasets*, ACM TiiS 5(4),
doi 10.1145/2827872. Licence: research only, no redistribution.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from rlhf_jax.data.catalogue import clean_title, split_title
from rlhf_jax.data.lines import malformed, number_of, raw_lines
from rlhf_jax.data.ratings import Interaction, RatingCorpus, gather
from rlhf_jax.interfaces import Item

LIKED_ABOVE = 3.0
_ARTICLE = re.compile(r"^(.+), (The|A|An|La|Le|Les|L'|Il|El|Los|Las|O|Das|Der|Die|De|Det|Un|Une)$")
_OTHER_NAME = re.compile(r"^(.+) \(([^()]+)\)$")
_GENRE_FIELDS = 19


def read_movielens(folder: Path, *, max_users: int | None = None) -> RatingCorpus:
    """Ratings 1 to 5 of a folder in either layout; above 3 is liked.

    Args:
      folder: holds `u.data`, `u.item` and `u.genre` (100k), or `ratings.dat` and `movies.dat` (1M).
      max_users: keeps the first of them.
    Raises: FileNotFoundError naming what is missing; ValueError naming file, line and value.
    """
    if (folder / "u.data").exists():
        name, files, separator = "movielens-100k", ("u.data", "u.item", "u.genre"), "\t"
        items = list(_items_100k(folder / "u.item", _genres(folder / "u.genre")))
    elif (folder / "ratings.dat").exists():
        name, files, separator = "movielens-1m", ("ratings.dat", "movies.dat"), "::"
        items = list(_items_1m(folder / "movies.dat"))
    else:
        raise FileNotFoundError(f"{folder} has neither u.data (MovieLens 100k) nor ratings.dat (MovieLens 1M)")
    sums = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files}
    known = {item.item_id for item in items}
    return gather(
        name,
        items,
        _ratings(folder / files[0], separator, known),
        liked_above=LIKED_ABOVE,
        scale=(1.0, 5.0),
        provenance={"name": name, "sha256": sums},
        max_users=max_users,
    )


def article_first(title: str) -> str:
    """A title as people say it; so is another name that stands in brackets after it.

    Examples:
      >>> article_first("Usual Suspects, The (1995)"), article_first("Fargo (1996)")
      ('The Usual Suspects (1995)', 'Fargo (1996)')
      >>> article_first("Tin Drum, The (Blechtrommel, Die) (1979)")
      'The Tin Drum (Die Blechtrommel) (1979)'
    """
    name, year = split_title(title)
    both = _OTHER_NAME.match(name)
    said = _moved(name) if both is None else f"{_moved(both[1])} ({_moved(both[2])})"
    return said + ("" if year is None else f" ({year})")


def _moved(name: str) -> str:
    found = _ARTICLE.match(name)
    if found is None:
        return name
    space = "" if found[2].endswith("'") else " "
    return f"{found[2]}{space}{found[1]}"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in raw_lines(path):
        try:
            # A letter with an accent in Latin-1, before a plain one, is no UTF-8: what can be read as UTF-8 is.
            yield number, line.decode("utf-8")
        except UnicodeDecodeError:
            yield number, line.decode("latin-1")


def _ratings(path: Path, separator: str, known: set[int]) -> Iterator[Interaction]:
    seen: dict[tuple[str, int], int] = {}
    for number, line in _lines(path):
        fields = line.split(separator)
        try:
            if len(fields) != 4:
                raise ValueError(f"{len(fields)} fields, expected user, item, rating and time: {line[:60]!r}")
            user, item = str(number_of(fields[0], "user", "a number")), number_of(fields[1], "item", "a number")
            if fields[2] not in ("1", "2", "3", "4", "5"):
                raise malformed("rating", fields[2], "1, 2, 3, 4 or 5")
            if item not in known:
                raise malformed("item", fields[1], "an item of the catalogue")
            if (user, item) in seen:
                raise ValueError(f"user {user} rates item {item} again, after line {seen[user, item]}")
            seen[user, item] = number
            yield Interaction(user, item, float(fields[2]), number_of(fields[3], "time", "seconds"))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error


def _genres(path: Path) -> tuple[str, ...]:
    found = []
    for number, line in _lines(path):
        if not line:
            continue
        name, _, place = line.partition("|")
        if place != str(len(found)):
            raise ValueError(f"{path}, line {number}: {line[:60]!r}, expected a genre, | and {len(found)}")
        found.append(name)
    if len(found) != _GENRE_FIELDS:
        raise ValueError(f"{path}: {len(found)} genres, expected {_GENRE_FIELDS}")
    return tuple(found)


def _items_100k(path: Path, genres: tuple[str, ...]) -> Iterator[Item]:
    seen: set[int] = set()
    for number, line in _lines(path):
        fields = line.split("|")
        try:
            if len(fields) != 5 + len(genres):
                raise ValueError(f"{len(fields)} fields, expected {5 + len(genres)}: {line[:60]!r}")
            flags = fields[5:]
            if set(flags) - {"0", "1"}:
                raise malformed("genre flag", next(flag for flag in flags if flag not in ("0", "1")), "0 or 1")
            own = [genre for genre, flag in zip(genres, flags, strict=True) if flag == "1"]
            year = re.search(r"-(\d{4})$", fields[2])
            yield _item(fields[0], seen, fields[1], own, None if year is None else int(year[1]))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error


def _items_1m(path: Path) -> Iterator[Item]:
    seen: set[int] = set()
    for number, line in _lines(path):
        fields = line.split("::")
        try:
            if len(fields) != 3:
                raise ValueError(f"{len(fields)} fields, expected id, title and genres: {line[:60]!r}")
            yield _item(fields[0], seen, fields[1], fields[2].split("|"), None)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error


def _item(identity: str, seen: set[int], title: str, genres: list[str], released: int | None) -> Item:
    item_id = number_of(identity, "id", "a number")
    if item_id in seen:
        raise malformed("id", identity, "an id not seen before")
    seen.add(item_id)
    title = clean_title(title)
    year = split_title(title)[1]
    return Item(
        item_id=item_id,
        title=article_first(title),
        year=released if year is None else year,
        genres=tuple(genre.lower() for genre in genres if genre not in ("unknown", "(no genres listed)")),
    )

"""The two forms in which OpenDialKG circulates, as sessions: dialogues whose titles are named but not placed yet.

`ProcessedFiles` is the recommendation part, one JSON object a line, domains and titles tagged:

    {"dialog_id", "domain": "movie" | "book", "messages": [{"role", "text", "item": [titles]}]}

`OfficialRelease` is `opendialkg.csv`, whose column `Messages` holds

    [{type: chat, sender, message} | {type: action, sender, metadata: {path: [score, triples, words]}}, …]

It does not say which of its four domains (movies, books, sports, music) a session is about, nor which entities are
items. Both are read off the knowledge graph: what has a director or an actor is a movie, what has a writer and neither is a
book (in the processed files, where the domain is known, this rule is right for 97 % of 5,401 mentions in movie dialogues
and for all in book dialogues where it says anything), and a session is about the kind most of its items are of.
Sessions without items are left out. The workers' ratings of the session are not read.

Source: Moon et al. 2019, "OpenDialKG", ACL, P19-1081, and the format notes of its repository.
"""

import collections
import html
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlhf_jax.data.lines import INT64, json_of, malformed, number_of, raw_lines, read_json, read_table, text_lines
from rlhf_jax.data.typography import plain

DomainName = Literal["movie", "book"]
DOMAINS: tuple[DomainName, ...] = ("movie", "book")
SENDERS = ("user", "assistant")
Triple = tuple[str, str, str]
_LIST_FIELDS = ("actor", "director", "genre", "language", "writer")
_RELATIONS = {
    "directed_by": "director",
    "starred_actors": "actor",
    "written_by": "writer",
    "has_genre": "genre",
    "release_year": "year",
}
_YEAR = re.compile(r"(-?[0-9]{1,4})?")
_REMARK = re.compile(r"\s*\([^()]*\)$")


class Entity(NamedTuple):
    """A title that can be an item, with what is known about it."""

    number: int
    title: str
    """As people write it: without a remark in brackets, entities decoded, punctuation plain."""
    year: int | None
    genres: tuple[str, ...]
    people: tuple[str, ...]
    """Directors, actors, writers; repeats as in the files."""


class Said(NamedTuple):
    """One message: who, what, and the entities named in it."""

    role: str
    text: str
    """Entities of HTML decoded, punctuation plain."""
    entities: tuple[str, ...]


class Session(NamedTuple):
    """One dialogue as the files have it."""

    dialogue_id: str
    domain: DomainName
    messages: tuple[Said, ...]


def title_spans(text: str, title: str) -> list[tuple[int, int]]:
    """Where a title stands: every place with its own capitals as whole words, else the first in any spelling.

    Examples:
      >>> title_spans("It is not It, it is Itself", "It")
      [(0, 2), (10, 12)]
      >>> title_spans("i love the godfather", "The Godfather"), title_spans("no", "It")
      ([(7, 20)], [])
    """
    words = rf"(?<!\w){re.escape(title)}(?!\w)"
    if found := [match.span() for match in re.finditer(words, text)]:
        return found
    for pattern in (words, re.escape(title)):
        if match := re.search(pattern, text, re.IGNORECASE):
            return [match.span()]
    return []


class ProcessedFiles:
    """`dialogues.jsonl` beside `id2info.json`, whose keys number the titles."""

    def __init__(self, path: Path) -> None:
        self._path = path
        info = path.parent / "id2info.json"
        if not info.exists():
            raise FileNotFoundError(f"{info}: the table of items is missing")
        self.files = (path, info)
        self.entities = _read_info(info)

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Numbered lines from 1 on, empty ones left out."""
        yield from ((number, line) for number, line in raw_lines(self._path) if line.strip())

    def session(self, line: bytes) -> Session:
        """One line, checked."""
        record = json_of(line)
        if not isinstance(record, dict):
            raise malformed("(the whole line)", record, "an object")
        number = record.get("dialog_id")
        if not isinstance(number, int) or isinstance(number, bool) or not -INT64 <= number < INT64:
            raise malformed("dialog_id", number, "an int of 64 bits")
        if record.get("domain") not in DOMAINS:
            raise malformed("domain", record.get("domain"), f"one of {DOMAINS}")
        messages = record.get("messages")
        if not isinstance(messages, list) or not messages:
            raise malformed("messages", messages, "a list of messages")
        said = tuple(self._message(entry, f"messages[{place}]") for place, entry in enumerate(messages))
        return Session(str(number), record["domain"], said)

    def _message(self, entry: Any, place: str) -> Said:
        if not isinstance(entry, dict):
            raise malformed(place, entry, "an object")
        for field, known in (("role", SENDERS), ("text", None)):
            value = entry.get(field)
            if not isinstance(value, str) or (known and value not in known):
                raise malformed(f"{place}.{field}", value, f"one of {known}" if known else "a string")
        titles = entry.get("item")
        if not isinstance(titles, list):
            raise malformed(f"{place}.item", titles, "a list of titles")
        for title in titles:
            if not isinstance(title, str) or title not in self.entities:
                raise malformed(f"{place}.item", title, "a title of id2info.json")
        return Said(entry["role"], spelled(entry["text"]), tuple(titles))


def spelled(text: str) -> str:
    """The text as it is shown: entities of HTML decoded, punctuation plain."""
    return plain(html.unescape(text) if "&" in text else text)


def _read_info(path: Path) -> dict[str, Entity]:
    table = read_json(path, "one object keyed by item id")
    found: dict[str, Entity] = {}
    for key, info in table.items():
        try:
            number = number_of(key, key, "an item id as key")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        # An item's id is twice this number, or one more.
        if not isinstance(info, dict) or number >= INT64 // 2:
            raise ValueError(f"{path}: {malformed(key, info, 'an object keyed by an item id below 2^62')}")
        name, year = info.get("name"), info.get("year", "")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{path}: {malformed(f'{key}.name', name, 'a title')}")
        if not isinstance(year, str) or not _YEAR.fullmatch(year):
            raise ValueError(f"{path}: {malformed(f'{key}.year', year, 'a year or nothing')}")
        for field in _LIST_FIELDS:
            value = info.get(field, [])
            if not (isinstance(value, list) and all(isinstance(entry, str) for entry in value)):
                raise ValueError(f"{path}: {malformed(f'{key}.{field}', value, 'a list of strings')}")
        people = tuple(plain(one) for field in ("director", "actor", "writer") for one in info.get(field, ()))
        found[name] = Entity(number, spelled(name), _year([year]), tuple(map(plain, info.get("genre", ()))), people)
    return found


class OfficialRelease:
    """`opendialkg.csv` with `opendialkg_entities.txt`, whose lines number the titles, and `opendialkg_triples.txt`.

    Without the triples only what the sessions' own paths say is known about an entity.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        names, triples = path.parent / "opendialkg_entities.txt", path.parent / "opendialkg_triples.txt"
        if not names.exists():
            raise FileNotFoundError(f"{names}: the list of entities is missing")
        self.files = (path, names, triples) if triples.exists() else (path, names)
        numbers = _numbered(names)
        self._numbers = numbers
        facts = _facts(_file_triples(triples) if triples.exists() else self._path_triples())
        self._kinds = {name: kind for name, known in facts.items() if (kind := _kind(known)) is not None}
        self.entities = {name: _entity(name, numbers[name], facts[name]) for name in self._kinds if name in numbers}

    def records(self) -> Iterator[tuple[int, tuple[int, str]]]:
        """Rows as (line of the file, (number of the row, its messages)).

        Raises: ValueError if the column is missing, or the table is none: then no row after the fault can be trusted.
        """
        for number, (line, row) in enumerate(read_table(self._path, ("Messages",), spans_lines=True)):
            yield line, (number, row["Messages"])

    def session(self, record: tuple[int, str]) -> Session | None:
        """One row, checked; None for a session that names no movie and no book."""
        number, text = record
        chats, triples = _actions(text)
        named = dict.fromkeys(end for triple in triples for end in (triple[0], triple[2]) if end in self._kinds)
        if unknown := [name for name in named if name not in self._numbers]:
            raise malformed("Messages.path", unknown[0], "an entity of opendialkg_entities.txt")
        said, kinds = [], collections.Counter()
        for role, words in chats:
            found = tuple(name for name in named if _is_named(words, self.entities[name].title))
            kinds.update(self._kinds[name] for name in found)
            said.append(Said(role, words, found))
        if not kinds:
            return None
        domain: DomainName = max(DOMAINS, key=lambda kind: kinds[kind])
        return Session(
            str(number),
            domain,
            tuple(
                one._replace(entities=tuple(name for name in one.entities if self._kinds[name] == domain))
                for one in said
            ),
        )

    def _path_triples(self) -> Iterator[Triple]:
        for _, (_, text) in self.records():
            try:
                yield from _actions(text)[1]
            except ValueError:
                continue  # Reported when the row itself is read.


def _numbered(path: Path) -> dict[str, int]:
    """Numbers of the names of a list, one a line, from 0 on."""
    numbers: dict[str, int] = {}
    for line, name in text_lines(path):
        if name in numbers:
            raise ValueError(f"{path}, line {line}: {name[:60]!r} is there twice, first in line {numbers[name] + 1}")
        if name:
            numbers[name] = line - 1
    return numbers


def _actions(text: Any) -> tuple[list[tuple[str, str]], list[Triple]]:
    """Chats as (sender, message) and the triples of all paths of one session."""
    try:
        actions = json_of(text)
    except ValueError as error:
        raise ValueError(f"field 'Messages' is {str(text)[:60]!r}, no JSON ({error})") from error
    if not isinstance(actions, list):
        raise malformed("Messages", actions, "a list of actions")
    chats, triples = [], []
    for place, action in enumerate(actions):
        prefix = f"Messages[{place}]"
        if not isinstance(action, dict):
            raise malformed(prefix, action, "an object")
        if action.get("type") not in ("chat", "action"):
            raise malformed(f"{prefix}.type", action.get("type"), "'chat' or 'action'")
        if action["type"] == "chat":
            if action.get("sender") not in SENDERS:
                raise malformed(f"{prefix}.sender", action.get("sender"), f"one of {SENDERS}")
            if not isinstance(action.get("message"), str):
                raise malformed(f"{prefix}.message", action.get("message"), "a string")
            chats.append((action["sender"], spelled(action["message"])))
        elif not isinstance(metadata := action.get("metadata") or {}, dict):
            raise malformed(f"{prefix}.metadata", metadata, "an object")
        elif "path" in metadata:
            triples += _path(metadata["path"], f"{prefix}.metadata.path")
    if not chats:
        raise ValueError("field 'Messages' holds no chat, a dialogue has at least one message")
    return chats, triples


def _path(path: Any, prefix: str) -> list[Triple]:
    if not (isinstance(path, list) and len(path) > 1 and isinstance(path[1], list)):
        raise malformed(prefix, path, "[score, triples, words]")
    for triple in path[1]:
        if not (isinstance(triple, list) and len(triple) == 3 and all(isinstance(end, str) for end in triple)):
            raise malformed(prefix, triple, "a triple of strings")
    return [(subject, relation, end) for subject, relation, end in path[1]]


def _file_triples(path: Path) -> Iterator[Triple]:
    for number, line in text_lines(path):
        fields = line.split("\t")
        if line and len(fields) != 3:
            raise ValueError(f"{path}, line {number}: {malformed('(the whole line)', line, 'three fields')}")
        if line:
            yield fields[0], fields[1], fields[2]


def _facts(triples: Iterable[Triple]) -> dict[str, dict[str, list[str]]]:
    """What is known about every subject, by field; `~relation` is the relation read backwards."""
    facts: dict[str, dict[str, list[str]]] = {}
    for subject, relation, end in triples:
        if relation.startswith("~"):
            subject, relation, end = end, relation[1:], subject
        if relation in _RELATIONS:
            facts.setdefault(subject, {}).setdefault(_RELATIONS[relation], []).append(end)
    return facts


def _kind(known: Mapping[str, list[str]]) -> DomainName | None:
    if known.get("director") or known.get("actor"):
        return "movie"
    return "book" if known.get("writer") else None


def _entity(name: str, number: int, known: Mapping[str, list[str]]) -> Entity:
    people = [person for field in ("director", "actor", "writer") for person in known.get(field, ())]
    return Entity(
        number,
        spelled(_REMARK.sub("", name) or name),
        _year(known.get("year", ())),
        tuple(map(plain, known.get("genre", ()))),
        tuple(map(plain, people)),
    )


def _year(years: Iterable[str]) -> int | None:
    """The earliest of the years given (a title may have several editions); antiquity is no year for our purposes."""
    found = [int(year) for year in years if year and _YEAR.fullmatch(year)]
    return min((year for year in found if year > 0), default=None)


def _is_named(text: str, title: str) -> bool:
    """Whether an untagged text names a title: with its capitals as whole words, or in any case if it has several."""
    spans = title_spans(text, title)
    if not spans:
        return False
    begin, end = spans[0]
    return text[begin:end] == title or " " in title

"""Reads OpenDialKG's recommendation dialogues (movies and books) into a `Corpus`, split by dialogue.

Two forms of the data are read: the recommendation part as one JSON object a dialogue (`dialogues.jsonl` with
`id2info.json`), and the official `opendialkg.csv` (see `opendialkg_sources`). The processed files that circulate are split by
turn, so that contexts leak from one split to the other; here a dialogue belongs to one split as a whole, the same one
whatever else is read.

Source: Moon et al. 2019, "OpenDialKG", ACL, P19-1081; its split is 70/15/15.

    user → seeker, assistant → recommender;   u = sha256(seed, dialogue)/2^64 decides the split

A film and the book of the same name are two items: item id = 2·(number of the title) + [domain is book].
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from rlhf_jax.data.lines import malformed
from rlhf_jax.data.opendialkg_sources import (
    DOMAINS,
    DomainName,
    Entity,
    OfficialRelease,
    ProcessedFiles,
    Session,
    title_spans,
)
from rlhf_jax.interfaces import Corpus, Dialogue, Item, Message, Role

TEST_FRACTION = 0.15
ROLES: Mapping[str, Role] = {"user": "seeker", "assistant": "recommender"}
_REMARK = re.compile(r"\s*\([^()]*\)(\s*#\d+)?$")
_SPACES = re.compile(r"[\r\n\t]+")
_LOG = logging.getLogger(__name__)


class _Placed(NamedTuple):
    parts: tuple[str | int, ...]
    inside: int
    """Titles that stand only inside a longer title of the same message, and are no mention of their own."""


def read_opendialkg(
    folder: str | Path,
    *,
    domain: DomainName | None = None,
    on_bad_line: Literal["error", "skip"] = "error",
    validation_fraction: float = 0.15,
    split_seed: int = 0,
    max_dialogues: int | None = None,
) -> Corpus:
    """Dialogues, splits and catalogue of a folder with `dialogues.jsonl`, or else `opendialkg.csv`.

    Items are the titles that the data tags in a message; titles it does not tag stay words. In the processed movie
    dialogues that is nearly every title the user names, and they end at their last recommending turn, so that nobody
    answers it. There are no forms and no times.

    Args:
      folder: where the files are; `dialogues.jsonl` is taken where both forms are there.
      domain: reads the dialogues about one kind of item only; None reads both. The split of a dialogue is the same.
      on_bad_line: `skip` leaves malformed dialogues out, logs how many, and lists them in `provenance["skipped"]`.
      validation_fraction: share of the dialogues held out for validation, in [0, 1 − TEST_FRACTION).
      split_seed: which split; keep the default to compare with other results.
      max_dialogues: reads only the first so many dialogues of each domain; None reads all.
    Returns: the corpus; `provenance` holds name, sha256 per file, counts per domain and split, skipped lines.
    Raises:
      ValueError: naming file, line, field and value of the first malformed line, unless skipped.
      FileNotFoundError: naming the file that is missing.
    """
    _check_arguments(domain, on_bad_line, validation_fraction, max_dialogues)
    folder = Path(folder)
    jsonl, table = folder / "dialogues.jsonl", folder / "opendialkg.csv"
    if not jsonl.exists() and not table.exists():
        raise FileNotFoundError(f"{jsonl}: neither this file nor opendialkg.csv exists")
    path = jsonl if jsonl.exists() else table
    reader = ProcessedFiles(path) if jsonl.exists() else OfficialRelease(path)
    wanted = DOMAINS if domain is None else (domain,)
    dialogues: dict[str, Dialogue] = {}
    counts = dict.fromkeys(wanted, 0)
    skipped: list[str] = []
    inside = 0
    for number, record in reader.records():
        try:
            session = reader.session(record)
            if session is None or session.domain not in wanted or counts[session.domain] == max_dialogues:
                continue
            if session.dialogue_id in dialogues:
                raise malformed("dialog_id", session.dialogue_id, "an id not seen before")
            dialogue, n_inside = _dialogue(session, reader.entities)
        except ValueError as error:
            if on_bad_line == "error":
                raise ValueError(f"{path}, line {number}: {error}") from error
            skipped.append(f"{path.name} line {number}: {error}")
            continue
        dialogues[dialogue.dialogue_id] = dialogue
        counts[session.domain] += 1
        inside += n_inside
    if not dialogues:
        beside = ", ".join(file.name for file in reader.files[1:])
        raise ValueError(
            f"{path}: no dialogue could be read ({len(skipped)} malformed lines skipped); none of the others is about a "
            f"{' or a '.join(wanted)} of {beside}"
        )
    if skipped:
        _LOG.warning("%s: skipped %d malformed lines; the first: %s", folder, len(skipped), skipped[0])
    splits: dict[str, list[Dialogue]] = {"train": [], "validation": [], "test": []}
    for dialogue in dialogues.values():
        splits[split_of(dialogue.dialogue_id, split_seed, validation_fraction)].append(dialogue)
    if empty := [name for name in ("train", "test") if not splits[name]]:
        raise ValueError(f"{path}: {len(dialogues)} dialogues are too few, the split {empty[0]} is empty")
    items = _catalogue(dialogues.values(), reader.entities)
    return Corpus(
        train=tuple(splits["train"]),
        validation=tuple(splits["validation"]),
        test=tuple(splits["test"]),
        items=items,
        provenance={
            "name": "opendialkg",
            "files": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in reader.files},
            **{f"n_{name}": len(found) for name, found in splits.items()},
            **{f"n_{name}_dialogues": count for name, count in counts.items()},
            "n_items": len(items),
            "split_seed": split_seed,
            "n_titles_inside_longer_ones": inside,
            "n_skipped": len(skipped),
            "skipped": skipped,
        },
    )


def split_of(dialogue_id: str, seed: int, validation_fraction: float) -> str:
    """Split of a dialogue, from its id and the seed alone: it does not change with what else is read.

    Examples:
      >>> [split_of(str(number), 0, 0.15) for number in range(5)]
      ['train', 'train', 'train', 'validation', 'train']
    """
    digest = hashlib.sha256(f"opendialkg {seed} {dialogue_id}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < TEST_FRACTION:
        return "test"
    return "validation" if place < TEST_FRACTION + validation_fraction else "train"


def _check_arguments(domain: Any, on_bad_line: str, validation_fraction: float, max_dialogues: int | None) -> None:
    if domain is not None and domain not in DOMAINS:
        raise ValueError(f"domain is {domain!r}; it must be one of {get_args(DomainName)} or None")
    if on_bad_line not in ("error", "skip"):
        raise ValueError(f"on_bad_line is {on_bad_line!r}; it must be 'error' or 'skip'")
    if not 0 <= validation_fraction < 1 - TEST_FRACTION:
        raise ValueError(f"validation_fraction is {validation_fraction}; it must lie in [0, {1 - TEST_FRACTION})")
    if max_dialogues is not None and max_dialogues < 1:
        raise ValueError(f"max_dialogues is {max_dialogues}; it must be at least 1")


def _dialogue(session: Session, entities: Mapping[str, Entity]) -> tuple[Dialogue, int]:
    messages, inside = [], 0
    for place, (role, text, titles) in enumerate(session.messages):
        # The same title may be spelt as an entity with a remark in brackets; people write it without.
        ids = {entities[title].title: item_id(entities[title], session.domain) for title in titles}
        clean = _SPACES.sub(" ", text)
        try:
            parts, n_inside = _place(clean, ids)
        except KeyError as error:
            raise malformed(f"messages[{place}].item", error.args[0], f"a title in the text {clean[:60]!r}") from error
        inside += n_inside
        messages.append(Message(role=ROLES[role], parts=parts, message_id=place))
    return Dialogue(session.dialogue_id, tuple(messages), {}, {}, domain=session.domain), inside


def item_id(entity: Entity, domain: DomainName) -> int:
    """Id of a title as an item of one domain."""
    return 2 * entity.number + (domain == "book")


def _place(text: str, ids: Mapping[str, int]) -> _Placed:
    """The text with titles replaced by items, longer titles first; KeyError with a title that the text lacks."""
    taken: list[tuple[int, int, int]] = []
    inside = 0
    for title in sorted(ids, key=len, reverse=True):
        spans = title_spans(text, title)
        if not spans:
            raise KeyError(title)
        free = [span for span in spans if all(span[1] <= begin or end <= span[0] for begin, end, _ in taken)]
        taken += [(*span, ids[title]) for span in free]
        inside += not free
    parts: list[str | int] = []
    begin = 0
    for start, end, item in sorted(taken):
        if start > begin:
            parts.append(text[begin:start])
        parts.append(item)
        begin = end
    if begin < len(text):
        parts.append(text[begin:])
    return _Placed(tuple(parts), inside)


def _catalogue(dialogues: Iterable[Dialogue], entities: Mapping[str, Entity]) -> dict[int, Item]:
    """Every item mentioned in any split, in ascending id."""
    by_number = {entity.number: entity for entity in entities.values()}
    mentioned = {item for dialogue in dialogues for message in dialogue.messages for item in message.items}
    items = {}
    for number in sorted(mentioned):
        entity = by_number[number // 2]
        items[number] = Item(
            item_id=number,
            title=entity.title,
            year=entity.year,
            genres=tuple(dict.fromkeys(_REMARK.sub("", genre) for genre in entity.genres)),
            people=tuple(dict.fromkeys(entity.people)),
            domain=DOMAINS[number % 2],
        )
    return items

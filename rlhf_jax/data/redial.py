"""Reads a folder in the official ReDial format into a `Corpus`; the simulated world writes the same format.

Source: Li et al. 2018, arXiv:1812.07617 (release notes of the data set). Every irregularity of the release that is
tolerated is named at the function that tolerates it; anything else is a malformed line, reported by file and line.
"""

import hashlib
import html
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlhf_jax.data.catalogue import clean_title, read_csv_names, read_metadata, split_title
from rlhf_jax.data.lines import INT64, json_of, malformed, number_of, raw_lines, read_table
from rlhf_jax.data.titles import mentions
from rlhf_jax.data.typography import plain
from rlhf_jax.interfaces import Corpus, Dialogue, Item, ItemLabel, Message, Role

PROVENANCES = ("official", "verbatim", "forms", "rebuilt", "world")
_LINE_BREAKS = re.compile(r"[\r\n]+")
_LOG = logging.getLogger(__name__)


class _Parsed(NamedTuple):
    dialogue: Dialogue
    names: dict[int, str | None]


def read_redial(
    folder: str | Path,
    *,
    on_bad_line: Literal["error", "skip"] = "error",
    validation_fraction: float = 0.1,
    max_dialogues: int | None = None,
) -> Corpus:
    """Dialogues, splits and catalogue of a folder in the official ReDial format.

    Read are `train_data.jsonl[.gz]`, `test_data.jsonl[.gz]`, `movies_with_mentions.csv` and, where present,
    `train_provenance.tsv`, `test_provenance.tsv` and `kg/id2info.json`. Validation is the last part of the training
    dialogues by id, so it is the same for every seed. The catalogue is every item mentioned in any split, in a text
    or in the dialogue's list of mentions.

    Args:
      folder: where the files are.
      on_bad_line: `skip` leaves malformed dialogues out, logs how many, and lists them in `provenance["skipped"]`.
      validation_fraction: share of the training dialogues held out, in [0, 1).
      max_dialogues: reads only so many dialogues of each file (for quick runs); None reads all.
    Returns: the corpus; `provenance` holds name, sha256 per file, counts and skipped lines.
    Raises:
      ValueError: naming file, line, field and value of the first malformed line, unless skipped.
      FileNotFoundError: naming the file that is missing.
    """
    found = read_parts(
        folder,
        in_order,
        on_bad_line=on_bad_line,
        validation_fraction=validation_fraction,
        max_dialogues=max_dialogues,
    )
    return Corpus(
        train=tuple(found.train),
        validation=tuple(found.validation),
        test=tuple(found.test),
        items=found.items,
        provenance=found.provenance,
    )


class Parts(NamedTuple):
    """What a corpus is made of, with whatever was kept of the dialogues in their place."""

    train: Sequence[Any]
    validation: Sequence[Any]
    test: Sequence[Any]
    items: Mapping[int, Item]
    provenance: Mapping[str, Any]


def in_order(dialogues: Iterator[Dialogue]) -> Sequence[Dialogue]:
    """The dialogues themselves, in ascending id."""
    return sorted(dialogues, key=lambda dialogue: int(dialogue.dialogue_id))


def read_parts(
    folder: str | Path,
    keep: Callable[[Iterator[Dialogue]], Sequence[Any]],
    *,
    on_bad_line: Literal["error", "skip"] = "error",
    validation_fraction: float = 0.1,
    max_dialogues: int | None = None,
) -> Parts:
    """`read_redial`, one dialogue at a time: what `keep` does not keep of a split's dialogues is not in memory.

    Args:
      keep: takes the dialogues of a file in its order; returns what is kept of each, in ascending id.
    Raises: as `read_redial`.
    """
    if on_bad_line not in ("error", "skip"):
        raise ValueError(f"on_bad_line is {on_bad_line!r}; it must be 'error' or 'skip'")
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction is {validation_fraction}; it must lie in [0, 1)")
    if max_dialogues is not None and max_dialogues < 1:
        raise ValueError(f"max_dialogues is {max_dialogues}; it must be at least 1")
    folder = Path(folder)
    csv_path = folder / "movies_with_mentions.csv"
    csv_names = read_csv_names(csv_path)
    skipped: list[str] = []
    first_seen: dict[str, str] = {}
    names: dict[int, str | None] = {}
    parsed: dict[str, Sequence[Any]] = {}
    for split in ("train", "test"):
        path = _find(folder, f"{split}_data.jsonl")
        provenance_path = folder / f"{split}_provenance.tsv"
        provenance = _read_provenance(provenance_path) if provenance_path.exists() else {}

        def dialogues(path: Path = path, provenance: Mapping[str, str] = provenance) -> Iterator[Dialogue]:
            count = 0
            for number, line in raw_lines(path):
                if not line.strip():
                    continue
                if count == max_dialogues:
                    break
                place = f"{path.name} line {number}"
                try:
                    found = _dialogue(line, csv_names, provenance)
                    dialogue_id = found.dialogue.dialogue_id
                    earlier = first_seen.setdefault(dialogue_id, place)
                    if earlier != place:
                        raise ValueError(f"field 'conversationId' is {dialogue_id!r}, seen before in {earlier}")
                except ValueError as error:
                    if on_bad_line == "error":
                        raise ValueError(f"{path}, line {number}: {error}") from error
                    skipped.append(f"{place}: {error}")
                    continue
                count += 1
                _add_names(names, found)
                yield found.dialogue

        parsed[split] = keep(dialogues())
        if not parsed[split]:
            raise ValueError(f"{path}: no dialogue could be read ({len(skipped)} malformed lines skipped)")
    if skipped:
        _LOG.warning("%s: skipped %d malformed lines; the first: %s", folder, len(skipped), skipped[0])

    metadata_path = folder / "kg" / "id2info.json"
    metadata = {}
    if metadata_path.exists():
        metadata = read_metadata(metadata_path)
    train, test = parsed["train"], parsed["test"]
    n_validation = int(len(train) * validation_fraction)
    if validation_fraction > 0 and len(train) > 1:
        n_validation = max(n_validation, 1)
    n_train = len(train) - n_validation
    items = _catalogue(names, csv_names, metadata)
    return Parts(
        train=train[:n_train],
        validation=train[n_train:],
        test=test,
        items=items,
        provenance={
            "name": "redial-format",
            "files": {str(path.relative_to(folder)): digest(path) for path in files_of(folder)},
            "n_train": n_train,
            "n_validation": n_validation,
            "n_test": len(test),
            "n_items": len(items),
            "n_skipped": len(skipped),
            "skipped": skipped,
        },
    )


def files_of(folder: Path) -> list[Path]:
    """The files of a folder that are read. Raises FileNotFoundError naming the one that is missing."""
    files = [folder / "movies_with_mentions.csv"]
    for split in ("train", "test"):
        files += [_find(folder, f"{split}_data.jsonl"), folder / f"{split}_provenance.tsv"]
    optional = {*files[2::2], folder / "kg" / "id2info.json"}
    files.append(folder / "kg" / "id2info.json")
    return [path for path in files if path not in optional or path.exists()]


def digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_dialogues(path: Path) -> tuple[Dialogue, ...]:
    """The dialogues of one file of the format, in its order: a log without splits and catalogue.

    Items are those that a dialogue's own list of mentions names.

    Raises: ValueError naming file, line, field and value of the first malformed line, or a file without a dialogue.
    """
    found: list[Dialogue] = []
    for number, line in raw_lines(path):
        if line.strip():
            try:
                found.append(_dialogue(line, {}, {}).dialogue)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not found:
        raise ValueError(f"{path}: no dialogue")
    return tuple(found)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise FileNotFoundError(f"{folder / name}: neither this file nor {name}.gz exists")


def _read_provenance(path: Path) -> dict[str, str]:
    provenance: dict[str, str] = {}
    for number, row in read_table(path, ("conversationId", "provenance"), delimiter="\t", quoted=False):
        dialogue_id, kind = row["conversationId"], row["provenance"]
        try:
            number_of(dialogue_id, "conversationId", "digits")
            if dialogue_id in provenance:
                raise malformed("conversationId", dialogue_id, "an id not seen before")
            if kind not in PROVENANCES:
                raise malformed("provenance", kind, f"one of {PROVENANCES}")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        provenance[dialogue_id] = kind
    return provenance


def _dialogue(line: bytes, csv_names: Mapping[int, str], provenance: Mapping[str, str]) -> _Parsed:
    record = json_of(line)
    if not isinstance(record, dict):
        raise malformed("(the whole line)", record, "an object")
    dialogue_id = str(_field(record, "conversationId", (str, int)))
    number_of(dialogue_id, "conversationId", "digits")
    seeker, recommender = (_field(record, f"{who}WorkerId", (int,)) for who in ("initiator", "respondent"))
    if seeker == recommender:
        raise ValueError(f"field 'respondentWorkerId' is {recommender}, the same as 'initiatorWorkerId'")
    names = _names(record)
    roles: dict[int, Role] = {seeker: "seeker", recommender: "recommender"}
    messages = tuple(
        _message(entry, f"messages[{index}]", roles, names, csv_names)
        for index, entry in enumerate(_field(record, "messages", (list,)))
    )
    if not messages:
        raise ValueError("field 'messages' is [], a dialogue has at least one message")
    dialogue = Dialogue(
        dialogue_id=dialogue_id,
        messages=messages,
        seeker_labels=_form(record, "initiatorQuestions"),
        recommender_labels=_form(record, "respondentQuestions"),
        provenance=provenance.get(dialogue_id, "official"),
    )
    return _Parsed(dialogue, names)


def _field(record: Mapping[str, Any], name: str, kinds: tuple[type, ...], prefix: str = "") -> Any:
    if name not in record:
        raise ValueError(f"field '{prefix}{name}' is missing")
    value = record[name]
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise malformed(f"{prefix}{name}", value, " or ".join(kind.__name__ for kind in kinds))
    if isinstance(value, int) and not -INT64 <= value < INT64:
        raise malformed(f"{prefix}{name}", value, "a number of 64 bits")
    return value


def _table(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A JSON object keyed by item id; the release writes an empty one as `[]`."""
    value = _field(record, name, (dict, list))
    if isinstance(value, list):
        if value:
            raise malformed(name, value, "an object or []")
        return {}
    for key in value:
        number_of(key, name, "an item id as key")
    return value


def _names(record: Mapping[str, Any]) -> dict[int, str | None]:
    """Mentioned items with their names; one name of the release is null."""
    names = {}
    for key, name in _table(record, "movieMentions").items():
        if name is not None and not isinstance(name, str):
            raise malformed(f"movieMentions.{key}", name, "str or null")
        names[int(key)] = name
    return names


def _form(record: Mapping[str, Any], name: str) -> dict[int, ItemLabel]:
    labels = {}
    for key, answers in _table(record, name).items():
        if not isinstance(answers, dict):
            raise malformed(f"{name}.{key}", answers, "an object")
        for field in ItemLabel._fields:
            answer = answers.get(field)
            if type(answer) is not int or not 0 <= answer <= 2:
                raise malformed(f"{name}.{key}.{field}", answer, "0, 1 or 2")
        labels[int(key)] = ItemLabel(answers["suggested"], answers["seen"], answers["liked"])
    return labels


def _message(
    entry: Any, place: str, roles: Mapping[int, Role], names: Mapping[int, Any], csv_names: Mapping[int, str]
) -> Message:
    """One message; a time that is missing, null or negative is unknown, an empty text is allowed."""
    if not isinstance(entry, dict):
        raise malformed(place, entry, "an object")
    prefix = f"{place}."
    text = _field(entry, "text", (str,), prefix)
    sender = _field(entry, "senderWorkerId", (int,), prefix)
    if sender not in roles:
        raise malformed(f"{prefix}senderWorkerId", sender, f"one of the workers {sorted(roles)}")
    time_offset = entry.get("timeOffset")
    if time_offset is not None:
        time_offset = _field(entry, "timeOffset", (int,), prefix)
    return Message(
        role=roles[sender],
        parts=_parts(text, names, csv_names),
        message_id=_field(entry, "messageId", (int,), prefix),
        time_offset=None if time_offset is None or time_offset < 0 else time_offset,
    )


def _parts(text: str, names: Mapping[int, Any], csv_names: Mapping[int, str]) -> tuple[str | int, ...]:
    """Words and items: HTML entities decoded, punctuation plain, line breaks turned to spaces, `@id` of an unknown item and
    e-mail addresses left as words."""
    text = _LINE_BREAKS.sub(" ", plain(html.unescape(text) if "&" in text else text))
    if "@" not in text:
        return (text,) if text else ()
    parts: list[str | int] = []
    begin = 0
    for match, item_id in mentions(text):
        if item_id not in names and item_id not in csv_names:
            continue
        if match.start() > begin:
            parts.append(text[begin : match.start()])
        parts.append(item_id)
        begin = match.end()
    if begin < len(text):
        parts.append(text[begin:])
    return tuple(parts)


def _add_names(names: dict[int, str | None], found: _Parsed) -> None:
    """A dialogue's items, with the first name that any dialogue has for them."""
    for item_id, name in found.names.items():
        names[item_id] = names.get(item_id) or name
    for message in found.dialogue.messages:
        for item_id in message.items:
            names.setdefault(item_id, None)


def _catalogue(
    names: Mapping[int, str | None], csv_names: Mapping[int, str], metadata: Mapping[int, Mapping[str, Any]]
) -> dict[int, Item]:
    items = {}
    for item_id in sorted(names):
        info = metadata.get(item_id, {})
        title = clean_title(csv_names.get(item_id) or names[item_id] or info.get("name", ""))
        year = split_title(title)[1]
        if year is None:
            year = split_title(clean_title(info.get("name", "")))[1]
        items[item_id] = Item(
            item_id=item_id,
            title=title,
            year=year,
            genres=tuple(info.get("genre", ())),
            people=tuple(dict.fromkeys([*info.get("director", ()), *info.get("star", ()), *info.get("writer", ())])),
            plot=info.get("plot", ""),
        )
    return items

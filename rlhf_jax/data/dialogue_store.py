"""Dialogues on disk, one JSON record each, read when they are asked for: a corpus larger than memory.

    STORE/KEY/dialogues           records of all splits, their ids and which of their messages answer a context; catalogue and
                                  provenance; KEY is that of the files
    STORE/KEY/vocabulary-N        the BPE of N words of the training split
    STORE/KEY/texts-KEY           training texts as tokens (`data.text_store`); their key is vocabulary, lengths and dialogues

Everything is a function of its key and may be deleted at any time. A second start reads the files once, for their checksum.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
from jaxtyping import Int32, Int64

from rlhf_jax.data.flat import Flat, FlatWriter, kept, mapped, read_flat
from rlhf_jax.data.read_options import ReadOptions
from rlhf_jax.data.redial import digest, files_of
from rlhf_jax.data.sources import SOURCES
from rlhf_jax.data.windows import answerable
from rlhf_jax.interfaces import Corpus, Dialogue, Item, ItemLabel, Message

VERSION = 2
"""Of the records and of what is made of them: raised where either changes, so that what older code kept is not read."""
_ROLES = ("seeker", "recommender")
_SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class StoredDialogues(Sequence[Dialogue]):
    """Some dialogues of a store, in an order of their own; each is read when it is asked for, and not kept."""

    folder: Path
    """STORE/KEY: what is made of the dialogues is kept beside them."""
    records: Flat
    """uint8, all splits."""
    ids: Int64[np.ndarray, " R"]
    """Dialogue ids of all records. [R]"""
    answers: Flat
    """int32, all splits: which messages of a record are answers to a context (`windows.answerable`)."""
    places: Int64[np.ndarray, " N"]
    """Which records these are. [N]"""

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Dialogue: ...
    @overload
    def __getitem__(self, index: slice) -> "StoredDialogues": ...
    def __getitem__(self, index: int | slice) -> "Dialogue | StoredDialogues":
        if isinstance(index, slice):
            return dataclasses.replace(self, places=self.places[index])
        return dialogue_of(self.records.row(int(self.places[index])).tobytes())

    def dialogue_ids(self) -> Iterator[str]:
        """Of every dialogue, without reading it."""
        return map(str, self.ids[self.places].tolist())

    def chosen(self, numbers: Sequence[int]) -> "StoredDialogues":
        """Some of them, in the order given."""
        return dataclasses.replace(self, places=self.places[np.asarray(numbers, np.int64)])

    def turns(self) -> "TurnIndex":
        """Every answer to a context, without reading a dialogue."""
        found = self.answers.chosen(self.places)
        numbers = np.repeat(np.arange(len(self), dtype=np.int32), found.lengths)
        return TurnIndex(np.stack([numbers, found.values], axis=1))

    @property
    def key(self) -> str:
        """Names which dialogues these are, in which order."""
        return hashlib.sha256(self.places.tobytes()).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class TurnIndex(Sequence[tuple[int, int]]):
    """(dialogue, message) of many turns, eight bytes each."""

    pairs: Int32[np.ndarray, "N 2"]

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: SupportsIndex) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, index: slice) -> "TurnIndex": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "tuple[int, int] | TurnIndex":
        if isinstance(index, slice):
            return TurnIndex(self.pairs[index])
        number, place = self.pairs[index].tolist()
        return number, place


def evenly(dialogues: Sequence[Dialogue], most: int) -> Sequence[Dialogue]:
    """The dialogues, or `most` of them, evenly spread, where there are more."""
    if len(dialogues) <= most:
        return dialogues
    numbers = [place * len(dialogues) // most for place in range(most)]
    if isinstance(dialogues, StoredDialogues):
        return dialogues.chosen(numbers)
    return tuple(dialogues[number] for number in numbers)


def record_of(dialogue: Dialogue) -> bytes:
    """A dialogue as one JSON value.

    Examples:
      >>> said = (Message("seeker", ("I liked ", 7), 3),)
      >>> record_of(Dialogue("12", said, {7: ItemLabel(0, 1, 1)}, {}))
      b'["12","official","",[[0,3,null,["I liked ",7]]],[[7,0,1,1]],[]]'
    """
    messages = [[_ROLES.index(one.role), one.message_id, one.time_offset, list(one.parts)] for one in dialogue.messages]
    forms = [
        [[item, *label] for item, label in form.items()]
        for form in (dialogue.seeker_labels, dialogue.recommender_labels)
    ]
    fields = [dialogue.dialogue_id, dialogue.provenance, dialogue.domain, messages, *forms]
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def dialogue_of(record: bytes) -> Dialogue:
    """The dialogue that `record_of` wrote."""
    dialogue_id, provenance, domain, messages, *forms = json.loads(record)
    seeker, recommender = ({item: ItemLabel(*label) for item, *label in form} for form in forms)
    said = tuple(
        Message(_ROLES[role], tuple(parts), number, time_offset) for role, number, time_offset, parts in messages
    )
    return Dialogue(dialogue_id, said, seeker, recommender, provenance, domain)


def read_stored_corpus(folder: Path, options: ReadOptions, store: Path, tell: Callable[[str], None]) -> Corpus:
    """`read_corpus` with dialogues on disk; the same splits, order, catalogue and provenance.

    Args:
      folder: of the data, in ReDial's format.
      store: where what is read is kept, for this and later starts.
      tell: hears what was damaged and is made again.
    Raises: as `read_corpus`; ValueError for a source whose reader does not stream.
    """
    digests = {str(path.relative_to(folder)): digest(path) for path in files_of(folder)}
    asked = [VERSION, options.source, options.on_bad_line, options.max_dialogues, digests]
    own = store / hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]

    def make(partial: Path) -> dict[str, Any]:
        return _write(partial, folder, options)

    facts = kept(own / "dialogues", make, tell)
    records = read_flat(own / "dialogues", "records", "<u1")
    answers = read_flat(own / "dialogues", "answers", "<i4")
    ids = mapped(own / "dialogues" / "ids", "<i8")
    splits = {
        split: StoredDialogues(own, records, ids, answers, np.fromfile(own / "dialogues" / split, "<i8"))
        for split in _SPLITS
    }
    items = {entry["item_id"]: Item(**entry | _tuples(entry)) for entry in facts["items"]}
    return Corpus(**splits, items=items, provenance=facts["provenance"])


def _write(partial: Path, folder: Path, options: ReadOptions) -> dict[str, Any]:
    ids: list[int] = []
    with FlatWriter(partial, "records", "<u1") as writer, FlatWriter(partial, "answers", "<i4") as answers:

        def keep(dialogues: Iterator[Dialogue]) -> Sequence[int]:
            first = len(ids)
            for dialogue in dialogues:
                writer.add(record_of(dialogue))
                answers.add(answerable(dialogue))
                ids.append(int(dialogue.dialogue_id))
            return sorted(range(first, len(ids)), key=lambda place: ids[place])

        stream = SOURCES[options.source].stream
        if stream is None:
            raise ValueError(f"dialogues of the source {options.source} are read whole: there is no store of them")
        parts = stream(folder, options, keep)
    np.array(ids, "<i8").tofile(partial / "ids")
    for split in _SPLITS:
        np.array(getattr(parts, split), "<i8").tofile(partial / split)
    return {
        "items": [dataclasses.asdict(item) for item in parts.items.values()],
        "provenance": dict(parts.provenance),
    }


def _tuples(entry: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(entry[name]) for name in ("genres", "people")}

"""What recommenders read: the contexts to score, and the training split they are counted on.

    D training dialogues, R their ranking rows, N contexts to score, M mentions in them, I items (catalogue columns)

A recommender is a module with a record, `fit(…) -> record` and `scores(record, contexts) -> [N, I]`, float32, higher is
better. Contexts that come from a training dialogue carry its number in `own`; they are scored as if the recommender had
been fitted without that dialogue (leave-own-dialogue-out), else a recommender would be asked for what it was told.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, SupportsIndex, overload, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy.sparse import csr_array

from rlhf_jax.data.dialogue_store import StoredDialogues
from rlhf_jax.data.turns import spell
from rlhf_jax.data.windows import RankingRow, ranking_rows
from rlhf_jax.interfaces import Dialogue, Message, Role

N_WORDS = 60
"""Words of a context that are kept, the most recent ones."""
BLOCK_DIALOGUES = 2_000
"""That are read at once."""
BLOCK_ENTRIES = 2**24
"""Float entries that a recommender works on at once: 128 MiB in float64."""


class Catalogue(NamedTuple):
    """The items that are scored, and how a text spells them."""

    item_ids: tuple[int, ...]
    """Order of the columns. [I]"""
    titles: Mapping[int, str] = {}
    """What stands for an item in a text; items without a title leave no words."""
    openings: bool = False
    """Whether contexts bring along how their conversations opened (`opening_of`)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Contexts:
    """What was said before N recommender messages."""

    n_items: int
    """I, columns of the catalogue."""
    items: Int[np.ndarray, " M"]
    """Columns of the items mentioned, context after context, oldest first, repeats included."""
    starts: Int[np.ndarray, " N1"]
    """Place in `items` where each context begins, and the end of the last: N + 1 numbers."""
    words: Sequence[str]
    """The last words of each context, items left out."""
    texts: Sequence[str]
    """The same with the items' titles among the words."""
    own: Int[np.ndarray, " N"]
    """Number of the training dialogue a context is from, −1 if from none."""
    asked: Sequence[str] = ()
    """The seeker's last words alone, items left out; empty where contexts were made without them."""
    openings: "Contexts | None" = None
    """What was said before the recommender named anything, context by context; None where contexts were made without. [N]"""

    def __len__(self) -> int:
        return len(self.own)

    def part(self, start: int, stop: int) -> "Contexts":
        """Contexts `start` to `stop`, the second left out."""
        stop = min(stop, len(self))
        starts = self.starts[start : stop + 1]
        return Contexts(
            self.n_items,
            self.items[starts[0] : starts[-1]],
            starts - starts[0],
            self.words[start:stop],
            self.texts[start:stop],
            self.own[start:stop],
            self.asked[start:stop],
            None if self.openings is None else self.openings.part(start, stop),
        )

    def chosen(self, rows: Sequence[int] | Int[np.ndarray, " K"]) -> "Contexts":
        """Some of the contexts, in the order given."""
        lengths = np.diff(self.starts)[rows]
        places = [np.arange(self.starts[row], self.starts[row + 1]) for row in rows]
        return Contexts(
            self.n_items,
            self.items[np.concatenate(places)] if places else self.items[:0],
            np.cumsum([0, *lengths], dtype=np.int64),
            tuple(self.words[row] for row in rows),
            tuple(self.texts[row] for row in rows),
            self.own[rows],
            tuple(self.asked[row] for row in rows) if self.asked else (),
            None if self.openings is None else self.openings.chosen(rows),
        )

    def left_in(self) -> "Contexts":
        """The same contexts as if from no training dialogue: nothing is left out."""
        opened = None if self.openings is None else self.openings.left_in()
        return dataclasses.replace(self, own=np.full(len(self), -1, np.int32), openings=opened)

    @property
    def rows(self) -> Int[np.ndarray, " M"]:
        """Number of the context of every mention."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """The training split as counts."""

    catalogue: Catalogue
    numbers: Mapping[str, int]
    """Dialogue id to its number, 0 … D − 1."""
    mentions: csr_array
    """How often a dialogue mentions an item, by either speaker. float32 [D, I]"""
    rows: Contexts
    """Contexts of the training split's ranking rows, each with its own dialogue."""
    fresh: csr_array
    """1 where an item is fresh gold of a row: named by the recommender there and not before. float32 [R, I]"""


@runtime_checkable
class Recommender(Protocol):
    """A fitted recommender with its scoring function."""

    def __call__(self, contexts: Contexts) -> Float32[np.ndarray, "N I"]: ...


def columns_of(item_ids: Sequence[int]) -> dict[int, int]:
    """Item id to its column.

    Raises: ValueError if an id is repeated or there is none.
    """
    columns = {item: column for column, item in enumerate(item_ids)}
    if not columns:
        raise ValueError("a catalogue without items")
    if len(columns) != len(item_ids):
        raise ValueError(f"item_ids has {len(item_ids) - len(columns)} repeated ids")
    return columns


def contexts_before(
    places: Sequence[tuple[Dialogue, int]], catalogue: Catalogue, *, numbers: Mapping[str, int] | None = None
) -> Contexts:
    """Contexts of the given messages; items outside the catalogue are passed over.

    Args:
      places: dialogue and place of the message before which the context ends. [N]
      catalogue: the items, the same as the training split was read with.
      numbers: `Training.numbers`, for messages of training dialogues; None leaves nothing out.
    Raises: ValueError if there is no such message, a dialogue is not in `numbers`, or items are repeated or missing.
    Examples:
      >>> said = (Message("seeker", ("I liked ", 7, " a lot"), 0), Message("recommender", (9,), 1))
      >>> found = contexts_before([(Dialogue("a", said, {}, {}), 1)], Catalogue((7, 8, 9), {7: "Heat (1995)"}))
      >>> found.items.tolist(), found.words, found.texts, found.own.tolist()
      ([0], ('i liked a lot',), ('i liked heat (1995) a lot',), [-1])
    """
    own = []
    for dialogue, index in places:
        if not 0 <= index < len(dialogue.messages):
            raise ValueError(f"dialogue {dialogue.dialogue_id} has {len(dialogue.messages)} messages, none at {index}")
        if numbers is not None and dialogue.dialogue_id not in numbers:
            raise ValueError(f"dialogue {dialogue.dialogue_id} is not among the {len(numbers)} training dialogues")
        own.append(-1 if numbers is None else numbers[dialogue.dialogue_id])
    return contexts_of([dialogue.messages[:index] for dialogue, index in places], catalogue, own=own)


def contexts_of(
    histories: Sequence[Sequence[Message]], catalogue: Catalogue, *, own: Sequence[int] | None = None
) -> Contexts:
    """Contexts of conversations so far, as a policy in conversation has them; see `contexts_before`.

    Args:
      histories: messages of each, oldest first; may be empty. [N]
      catalogue: the items, the same as the training split was read with.
      own: number of the training dialogue each is from, −1 for none; None is −1 for all. [N]
    Raises: ValueError if `own` is not as long, or items are repeated or missing.
    """
    if own is not None and len(own) != len(histories):
        raise ValueError(f"{len(own)} numbers of dialogues for {len(histories)} histories")
    columns = columns_of(catalogue.item_ids)
    mentioned = [[columns[i] for message in history for i in message.items if i in columns] for history in histories]
    return Contexts(
        len(columns),
        np.array([column for found in mentioned for column in found], np.int32),
        np.cumsum([0, *map(len, mentioned)], dtype=np.int64),
        tuple(last_words(history, {}) for history in histories),
        tuple(last_words(history, catalogue.titles) for history in histories),
        np.full(len(histories), -1, np.int32) if own is None else np.array(own, np.int32),
        tuple(last_words([one for one in history if one.role == "seeker"], {}) for history in histories),
        contexts_of(list(map(opening_of, histories)), catalogue._replace(openings=False), own=own)
        if catalogue.openings
        else None,
    )


def opening_of(history: Sequence[Message]) -> Sequence[Message]:
    """What was said before the recommender named an item; all of it where it has named none.

    Examples:
      >>> said = (Message("seeker", ("I liked ", 7), 0), Message("recommender", ("see ", 9), 1), Message("seeker", ("no",), 2))
      >>> [message.parts for message in opening_of(said)]
      [('I liked ', 7)]
    """
    named = (place for place, message in enumerate(history) if message.role == "recommender" and message.items)
    return history[: next(named, len(history))]


@dataclasses.dataclass(frozen=True, eq=False)
class StoredWords(Sequence[str]):
    """The last words of contexts of a store, read anew whenever they are asked for: none of them is kept."""

    dialogues: StoredDialogues
    places: Int[np.ndarray, "N 2"]
    """Dialogue, and the message before which the context ends. [N, 2]"""
    titles: Mapping[int, str]
    roles: tuple[Role, ...] = ("seeker", "recommender")
    """Whose words."""

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "StoredWords": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "str | StoredWords":
        if isinstance(index, slice):
            return dataclasses.replace(self, places=self.places[index])
        number, place = self.places[index].tolist()
        messages = self._messages(number)[:place]
        return last_words([one for one in messages if one.role in self.roles], self.titles)

    @functools.lru_cache(maxsize=8)  # noqa: B019 - contexts of one dialogue follow each other
    def _messages(self, number: int) -> tuple[Message, ...]:
        return self.dialogues[number].messages


def row_contexts(
    rows: Sequence[RankingRow], catalogue: Catalogue, *, numbers: Mapping[str, int] | None = None
) -> Contexts:
    """Contexts of ranking rows, in their order; `contexts_before` says more."""
    return contexts_before([(row.dialogue, row.message_index) for row in rows], catalogue, numbers=numbers)


def last_words(messages: Sequence[Message], titles: Mapping[int, str], n_words: int = N_WORDS) -> str:
    """The last words of messages in lower case, titles spelled out."""
    words: list[str] = []
    for message in reversed(messages):
        words = spell(message.parts, titles, placeholder="").lower().split() + words
        if len(words) >= n_words:
            break
    return " ".join(words[-n_words:])


def read_training(dialogues: Sequence[Dialogue], catalogue: Catalogue) -> Training:
    """Counts of the training split, in one pass over it.

    Memory: 8 bytes per (dialogue, item) and per (row, gold item), and the last words of every row, three times about 350 bytes:
    for a million dialogues like ReDial's (3.5 million rows) 3.7 GB, nearly all of it text. Texts of a store are not kept
    (`StoredWords`).

    Args:
      dialogues: the training split and nothing else.
      catalogue: the items; others are passed over.
    Raises: ValueError without dialogues or items, or if two have the same id.
    """
    columns, stored = columns_of(catalogue.item_ids), isinstance(dialogues, StoredDialogues)
    plain = catalogue._replace(openings=False)
    numbers: dict[str, int] = {}
    mentioned, named, fresh = _Lists(columns), _Lists(columns), _Lists(columns)
    places: list[np.ndarray] = []
    parts: list[Contexts] = []
    for begin in range(0, len(dialogues), BLOCK_DIALOGUES):
        block = list(dialogues[begin : begin + BLOCK_DIALOGUES])
        place = {dialogue.dialogue_id: begin + number for number, dialogue in enumerate(block)}
        numbers |= place
        rows = list(ranking_rows(block))
        mentioned.add([item for message in dialogue.messages for item in message.items] for dialogue in block)
        fresh.add(row.fresh_gold for row in rows)
        named.add(row.mentioned for row in rows)
        found = [(place[row.dialogue.dialogue_id], row.message_index) for row in rows]
        places.append(np.array(found, np.int32).reshape(-1, 2))
        if not stored:
            parts.append(row_contexts(rows, plain, numbers=place))
    if not numbers:
        raise ValueError("a training split without dialogues")
    if len(numbers) != len(dialogues):
        raise ValueError(f"{len(dialogues) - len(numbers)} training dialogues have the id of another")
    before = np.concatenate(places)
    if isinstance(dialogues, StoredDialogues):
        words = StoredWords(dialogues, before, {})
        texts = (words, dataclasses.replace(words, titles=catalogue.titles))
        spoken: tuple[Sequence[str], ...] = (*texts, dataclasses.replace(words, roles=("seeker",)))
    else:
        spoken = tuple(
            tuple(text for part in parts for text in getattr(part, kind)) for kind in ("words", "texts", "asked")
        )
    flat, starts = named.arrays()
    contexts = Contexts(len(columns), flat, starts, spoken[0], spoken[1], before[:, 0], spoken[2])
    return Training(catalogue, numbers, mentioned.matrix(), contexts, fresh.matrix())


class _Lists:
    """Columns of lists of items, gathered a block at a time; items without a column are passed over."""

    def __init__(self, columns: Mapping[int, int]) -> None:
        self._columns = columns
        self._flat, self._lengths = [np.zeros(0, np.int32)], [np.zeros(1, np.int64)]

    def add(self, lists: Iterable[Sequence[int]]) -> None:
        """Some lists more."""
        places = [[self._columns[item] for item in items if item in self._columns] for items in lists]
        self._flat.append(np.array([column for found in places for column in found], np.int32))
        self._lengths.append(np.array([len(found) for found in places], np.int64))

    def arrays(self) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " N1"]]:
        """All columns, and where each list begins."""
        return np.concatenate(self._flat), np.cumsum(np.concatenate(self._lengths))

    def matrix(self) -> csr_array:
        """How often each list holds each item. float32 [lists, I]"""
        flat, starts = self.arrays()
        shape = len(starts) - 1, len(self._columns)
        matrix = csr_array((np.ones(len(flat), np.float32), flat, starts), shape=shape)
        matrix.sum_duplicates()
        return matrix


def counts(lists: Sequence[Sequence[int]], columns: Mapping[int, int]) -> csr_array:
    """How often each list holds each item; items without a column are passed over. float32 [lists, I]"""
    found = _Lists(columns)
    found.add(lists)
    return found.matrix()


def recency(contexts: Contexts, decay: float) -> csr_array:
    """Weight of every item of a context by its age: decay^(different items mentioned after it last). float64 [N, I]

    Raises: ValueError unless decay is in (0, 1].
    Examples:
      >>> contexts = Contexts(4, np.array([2, 0, 2, 3], np.int32), np.array([0, 4]), ("",), ("",), np.array([-1]))
      >>> recency(contexts, .5).toarray().tolist()
      [[0.25, 0.0, 0.5, 1.0]]
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay is {decay}; it must lie in (0, 1]")
    # From the newest mention to the oldest: a later mention of the same item is the one that counts.
    backwards = contexts.items[::-1].astype(np.int64)
    rows = contexts.rows[::-1]
    _, newest = np.unique(rows * contexts.n_items + backwards, return_index=True)
    newest.sort()
    rows, backwards = rows[newest], backwards[newest]
    # Rows now descend; the age is the place within the row.
    first = np.searchsorted(-rows, -rows, side="left")
    ages = np.arange(len(rows)) - first
    return csr_array((decay**ages, (rows, backwards)), shape=(len(contexts), contexts.n_items))


def shape_of(matrix: csr_array) -> tuple[int, int]:
    """Rows and columns; scipy's own annotation allows for none."""
    rows, columns = matrix.shape or (0, 0)
    return rows, columns


def own_rows(matrix: csr_array, own: Int[np.ndarray, " N"]) -> csr_array:
    """The row of each context's own dialogue, empty where it has none. [N, I]"""
    picked = np.flatnonzero(own >= 0)
    choose = csr_array((np.ones(len(picked)), (picked, own[picked])), shape=(len(own), shape_of(matrix)[0]))
    return csr_array(choose @ matrix)


def entries_at(values: csr_array, places: csr_array) -> Float[np.ndarray, " K"]:
    """Entries of one matrix at the stored places of another, in their order; 0 where nothing is stored. [K]"""
    keys, asked = _keys(values), _keys(places)
    out = np.zeros(len(asked))
    if not len(keys):
        return out
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    found = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    hit = keys[found] == asked
    out[hit] = values.data[order[found[hit]]]
    return out


def _keys(matrix: csr_array) -> Int[np.ndarray, " K"]:
    """One number for the place of every stored entry."""
    rows = np.repeat(np.arange(shape_of(matrix)[0], dtype=np.int64), np.diff(matrix.indptr))
    return rows * shape_of(matrix)[1] + matrix.indices


def in_blocks(
    score: Callable[[Contexts], Float[np.ndarray, "n I"]], contexts: Contexts, entries_per_row: int
) -> Float32[np.ndarray, "N I"]:
    """Scores computed for so many contexts at once as `BLOCK_ENTRIES` allows, written into one array.

    Args:
      score: of a few contexts.
      entries_per_row: float entries that scoring one context takes.
    """
    size = max(1, BLOCK_ENTRIES // max(entries_per_row, 1))
    out = np.empty((len(contexts), contexts.n_items), np.float32)
    for start in range(0, len(contexts), size):
        out[start : start + size] = score(contexts.part(start, start + size))
    return out


def score_chunks(
    recommender: Recommender, contexts: Contexts, *, chunk: int = 256
) -> Iterator[Float32[np.ndarray, "n I"]]:
    """Scores of consecutive contexts, as `evaluation.ranking.rank_rows` takes them: never more than a chunk in memory."""
    for start in range(0, len(contexts), chunk):
        yield recommender(contexts.part(start, start + chunk))

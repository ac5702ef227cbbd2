"""Ranking split by what the context says in plain words: the gold item's title, one of its people, or nothing of it.

Where users name titles and authors without the data tagging them, a recommender can rank well by reading alone. The parts show
how much of a ranking number is that, and how much is left for guessing taste.

    part      the words of the context contain
    title     the item's title, without remarks in brackets and without its subtitle
    person    not the title, but an author, actor or director of the item
    nothing   neither of them

Words are compared without case and punctuation, as whole words. Items that the data tag count by their title.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from rlhf_jax.data.windows import RankingRow
from rlhf_jax.evaluation.ranking import RankTable
from rlhf_jax.interfaces import Item

Part = Literal["title", "person", "nothing"]
PARTS: tuple[Part, ...] = get_args(Part)
_REMARK = re.compile(r"\([^()]*\)")
_NO_WORD = re.compile(r"[\W_]+")


def words(text: str) -> str:
    """The text's words in lower case, with one space before, between and behind.

    Examples:
      >>> words("It's “Emma”, by Jane-Austen!")
      ' it s emma by jane austen '
      >>> words("?!")
      ' '
    """
    return f" {_NO_WORD.sub(' ', text.casefold()).strip()} ".replace("  ", " ")


def part_of(row: RankingRow, item_id: int, items: Mapping[int, Item]) -> Part:
    """Which part a gold item of a row belongs to."""
    return _part(_context(row, items), items[item_id])


def split_by_naming(table: RankTable, rows: Sequence[RankingRow], items: Mapping[int, Item]) -> dict[str, RankTable]:
    """A protocol's cases by part: tables called `PROTOCOL, title named`, `…, person named`, `…, nothing named`.

    Args:
      table: of a protocol other than `sampled-99`.
      rows: that were ranked, all of them.
    Returns: the parts that have cases; together they have every case once.
    Raises: ValueError where the table is not about these rows.
    """
    found: list[Part] = []
    for number, row in enumerate(rows):
        context = _context(row, items)
        gold = row.fresh_gold if table.protocol.startswith("fresh") else row.gold
        cases = np.flatnonzero(table.rows == number)
        if len(cases) != len(gold) or any(table.dialogues[case] != row.dialogue.dialogue_id for case in cases.tolist()):
            place = f"dialogue {row.dialogue.dialogue_id}, message {row.message_index}"
            raise ValueError(f"{place}: {len(gold)} gold items, but {len(cases)} ranks; were other dialogues ranked?")
        found.extend(_part(context, items[item]) for item in gold)
    if len(found) != len(table.ranks):
        raise ValueError(f"{len(table.ranks)} ranks, but the rows have {len(found)} gold items; were others ranked?")
    parts = np.array(found, dtype=np.str_)
    tables = {}
    for part in PARTS:
        chosen = np.flatnonzero(parts == part)
        if len(chosen):
            name = f"{table.protocol}, {part} named"
            dialogues = tuple(table.dialogues[case] for case in chosen.tolist())
            tables[name] = RankTable(name, table.ranks[chosen], table.rows[chosen], dialogues)
    return tables


def _context(row: RankingRow, items: Mapping[int, Item]) -> str:
    said = (part for message in row.dialogue.messages[: row.message_index] for part in message.parts)
    return words(" ".join(part if isinstance(part, str) else items[part].title for part in said))


def _part(context: str, item: Item) -> Part:
    title = words(_REMARK.sub(" ", item.title).split(":")[0])
    if title.strip() and title in context:
        return "title"
    people = (words(person) for person in item.people)
    return "person" if any(person.strip() and person in context for person in people) else "nothing"

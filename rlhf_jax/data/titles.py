"""Finds items in texts: `@id`, and in what a person types also a title as the catalogue has it, longest first."""

import re
from collections.abc import Iterator, Mapping

from rlhf_jax.data.catalogue import split_title
from rlhf_jax.data.lines import INT64
from rlhf_jax.data.typography import plain
from rlhf_jax.interfaces import Item

_ADDRESS = r"(?<![@\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[^\W\d_]{2,}"
"""An e-mail address: a name before the @, a domain after it."""
_MENTION = re.compile(rf"{_ADDRESS}|@([0-9]+)")
_WORD = re.compile(rf"{_ADDRESS}|@[0-9]+|\w+(?:'\w+)*")
_YEAR_AFTER = re.compile(r"\s*\((\d{4})\)")


def mentions(text: str) -> Iterator[tuple[re.Match[str], int]]:
    """Every `@id` with its id, those inside an e-mail address left out.

    Examples:
      >>> [(match[0], number) for match, number in mentions("@10@20's, but bob@1.com and @30.")]
      [('@10', 10), ('@20', 20), ('@30', 30)]
    """
    for match in _MENTION.finditer(text):
        if match[1] and len(match[1]) < 20 and int(match[1]) < INT64:
            yield match, int(match[1])


class TitleIndex:
    """Titles by their words, without case, punctuation and year.

    A title of one word is taken for an item where it is written as in the catalogue, capitals included ("Up", not
    "up"), where its year follows, or where nothing else is said. Items that share a title are told apart by the year;
    without one the newest is meant.

    Examples:
      >>> index = TitleIndex({7: Item(item_id=7, title="Up (2009)", year=2009), 8: Item(item_id=8, title="Up North")})
      >>> index.parts("Cheer up with up north! Or Up (2009)?")
      ('Cheer up with ', 8, '! Or ', 7, '?')
      >>> index.parts("@8")
      (8,)
    """

    def __init__(self, items: Mapping[int, Item]) -> None:
        self._items = items
        self._by_words: dict[tuple[str, ...], list[int]] = {}
        for item_id, item in items.items():
            words = tuple(word.casefold() for word in _WORD.findall(split_title(plain(item.title))[0]))
            if words:
                self._by_words.setdefault(words, []).append(item_id)
        self._longest = max(map(len, self._by_words), default=0)

    def parts(self, text: str) -> tuple[str | int, ...]:
        """The text as a message: words with plain punctuation, and ids where an item is meant."""
        text = plain(text)
        found = list(_WORD.finditer(text))
        parts: list[str | int] = []
        place = end = 0
        while place < len(found):
            item_id, n_words, until = self._item_at(text, found, place)
            if item_id is not None:
                if text[end : found[place].start()].strip():
                    parts.append(text[end : found[place].start()])
                parts.append(item_id)
                end = until
            place += max(n_words, 1)
            while place < len(found) and found[place].start() < end:
                place += 1  # The year belongs to the title.
        if text[end:].strip():
            parts.append(text[end:])
        return tuple(parts)

    def _item_at(self, text: str, found: list[re.Match[str]], place: int) -> tuple[int | None, int, int]:
        """Item that begins at word `place`, how many words it takes, and where in the text it ends."""
        first = found[place]
        if first[0].startswith("@"):
            item_id = int(first[0][1:20])  # More digits than any id has are no id.
            return (item_id if len(first[0]) < 20 and item_id in self._items else None), 1, first.end()
        for n_words in range(min(self._longest, len(found) - place), 0, -1):
            words = tuple(match[0].casefold() for match in found[place : place + n_words])
            candidates = self._by_words.get(words)
            if not candidates:
                continue
            end = found[place + n_words - 1].end()
            year = _YEAR_AFTER.match(text, end)
            dated = [i for i in candidates if year and self._year(i) == int(year[1])]
            if dated and year:
                return dated[0], n_words, year.end()
            chosen = max(candidates, key=lambda i: (self._year(i) or 0, -i))
            if n_words > 1 or len(found) == 1 or first[0] in plain(self._items[chosen].title):
                return chosen, n_words, end
        return None, 1, first.end()

    def _year(self, item_id: int) -> int | None:
        item = self._items[item_id]
        return item.year if item.year is not None else split_title(item.title)[1]

"""The reasoning form of a turn: what the seeker wants, in words; then the list; then what is said of it.

    <pref> western, 80s, mara quill <rec> ITEM … <say> words with ITEM mentions <eos>

What stands between `<pref>` and `<rec>` is parted at commas. A piece is an attribute if it is spelled as one (`Attributes.words`);
anything else is counted as unknown. The grammar lets any words stand there: whether they are attributes is what a format
reward can judge.
Source: a list after inferred preferences, arXiv:2604.03671 (no form is public); the tokens are ours.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, SupportsInt

import numpy as np

from rlhf_jax.data.attributes import Attributes
from rlhf_jax.data.vocabulary import Vocabulary

FRAME = 4
"""`<pref> <rec> <say> <eos>`."""


class Reasoned(NamedTuple):
    """A response in the reasoning form, taken apart; of another form only the list is read."""

    attributes: np.ndarray
    """What it says the seeker wants. bool [A]"""
    unknown: int
    """Pieces that are no attribute, and those said again."""
    items: tuple[int, ...]
    """Columns of the listed items, in order."""
    opened: bool
    """It begins with `<pref>`."""
    ended: bool
    """It holds `<eos>`."""

    @property
    def attributed(self) -> bool:
        """The part of the form before the list: reasoning form, nothing but attributes, each once and at least one."""
        return self.opened and bool(self.attributes.any()) and not self.unknown

    def well_formed(self, length: int) -> bool:
        """`attributed`, `length` items, and ended."""
        return self.attributed and len(self.items) == length and self.ended


def reasoning_tokens(
    vocab: Vocabulary,
    attributes: Attributes,
    wanted: Sequence[int],
    listed: Sequence[int],
    words: Sequence[int],
    *,
    max_tokens: int,
    once: bool = False,
) -> list[int]:
    """A turn in the reasoning form as a policy would have to say it.

    The words are cut as `sayable` says.

    Args:
      wanted: places of the attributes said, in order. At least one.
      listed: item ids of the list, best first. At least one.
      words: encoded words.
      max_tokens: of the whole response.
      once: whether the words name an item at most once, as the grammar may ask.
    Raises: ValueError if there is nothing to say or list, or attributes and list leave no room for `<say>` and `<eos>`.
    """
    if not wanted or not listed:
        raise ValueError(
            f"a turn in the reasoning form says attributes and lists items: got {len(wanted)}, {len(listed)}"
        )
    said = vocab.encode_text(" " + ", ".join(attributes.words[place] for place in wanted))
    items = [vocab.item_token(item_id) for item_id in listed]
    room = max_tokens - FRAME - len(said) - len(items)
    if room < 0:
        raise ValueError(
            f"max_tokens is {max_tokens}; {len(said)} tokens of attributes, {len(items)} items and the form take "
            f"{FRAME + len(said) + len(items)}"
        )
    return [vocab.pref, *said, vocab.rec, *items, vocab.say, *sayable(vocab, words, items, room, once=once), vocab.eos]


def sayable(
    vocab: Vocabulary, words: Sequence[int], items: Sequence[int], room: int, *, once: bool = False
) -> list[int]:
    """Words cut to the room that is left, and before the first item that is not listed or, with `once`, named already: the grammar
    lets them mention nothing else.

    Args:
      words: encoded.
      items: tokens of the list.
    """
    left, stop = list(items), len(words)
    for place, token in enumerate(words):
        if not vocab.is_item(token):
            continue
        if token not in left:
            stop = place
            break
        if once:
            left.remove(token)
    return list(words[: max(0, min(stop, room))])


def read_reasoning(vocab: Vocabulary, attributes: Attributes, response: Iterable[SupportsInt]) -> Reasoned:
    """Takes a response apart, whether or not it follows the form to its end."""
    place = {word: number for number, word in reversed(list(enumerate(attributes.words)))}
    tokens: list[int] = []
    ended = False
    for token in map(int, response):
        if token in (vocab.eos, vocab.pad):
            ended = token == vocab.eos
            break
        tokens.append(token)
    opened = tokens[:1] == [vocab.pref]
    to_say = tokens[: tokens.index(vocab.say)] if vocab.say in tokens else tokens
    begin = to_say.index(vocab.rec) if vocab.rec in to_say else len(to_say)
    before = to_say[1:begin] if opened else []
    items = [vocab.item_index(vocab.item_id(token)) for token in to_say[begin:] if vocab.is_item(token)]
    said = np.zeros(len(attributes.names), bool)
    unknown = 0
    pieces = [" ".join(piece.split()) for piece in vocab.decode(before).split(",")] if before else []
    for piece in pieces:
        number = place.get(piece)
        if number is None or said[number]:
            unknown += 1
        else:
            said[number] = True
    return Reasoned(said, unknown, tuple(items), opened, ended)

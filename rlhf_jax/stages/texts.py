"""Training texts as batches: whole dialogues and item descriptions, bucketed by length, targets sorted by kind.

Everything is a pure function of (seed, step), so that a resumed run sees the same batches.
"""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from rlhf_jax.data.flat import Flat, flat
from rlhf_jax.data.items import description_sequences
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import encode_words, is_empty, utterance_tokens
from rlhf_jax.decoding.grammar_loss import FIRST, FREE_ITEM, FREE_WORD, LIST, NO_TARGET, SAY, GrammarTargets
from rlhf_jax.interfaces import Dialogue, Item

ITEM_POSITIONS_PER_TOKEN = 1 / 5
"""Room for item targets, as a share of a bucket's length; where a text of the bucket holds more, the room is larger."""
_ROWS = 2**15
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Text:
    """One training text and its pretraining flag."""

    tokens: tuple[int, ...]
    description: bool = False
    """An item description: part of the first `description_epochs` only."""


@dataclasses.dataclass
class Unlearnt:
    """What of the dialogues cannot be learnt."""

    unlisted: int = 0
    """Suggestions beyond the longest list."""
    cut: int = 0
    """Utterances that are longer than a text."""
    cut_items: int = 0
    """Items in what they lose."""

    def tell(self, *, max_tokens: int, max_listed: int) -> None:
        """A warning of each that is not 0."""
        if self.unlisted:
            _LOG.warning(
                "%d suggestions come after the first %d of their message and are not learnt (max_items)",
                self.unlisted,
                max_listed,
            )
        if self.cut:
            _LOG.warning(
                "%d utterances are longer than %d tokens and lose their end, %d items in it",
                self.cut,
                max_tokens,
                self.cut_items,
            )


def dialogue_texts(
    vocab: Vocabulary, dialogues: Sequence[Dialogue], *, max_tokens: int, max_listed: int, once: bool = False
) -> list[Text]:
    """Whole dialogues; one longer than `max_tokens` is cut into pieces at utterances.

    What cannot be learnt is counted in a warning: suggestions beyond the first `max_listed` of a message, and the end of an
    utterance that is longer than `max_tokens` by itself.
    """
    lost = Unlearnt()
    pieces = dialogue_pieces(vocab, dialogues, lost, max_tokens=max_tokens, max_listed=max_listed, once=once)
    texts = [Text(tuple(piece)) for piece in pieces]
    lost.tell(max_tokens=max_tokens, max_listed=max_listed)
    return texts


def dialogue_pieces(
    vocab: Vocabulary,
    dialogues: Sequence[Dialogue],
    lost: Unlearnt,
    *,
    max_tokens: int,
    max_listed: int,
    once: bool = False,
) -> Iterator[list[int]]:
    """Tokens of the texts of `dialogue_texts`, in their order; `lost` is added to."""
    for dialogue, words in zip(dialogues, encode_words(vocab, dialogues), strict=True):
        piece: list[int] = []
        for message, message_words in zip(dialogue.messages, words, strict=True):
            if is_empty(message):
                continue
            whole = utterance_tokens(vocab, message, message_words, max_items=max_listed, once=once)
            utterance = whole[:max_tokens]
            if message.role == "recommender":
                lost.unlisted += max(0, len(set(message.items)) - max_listed)
            lost.cut += len(whole) > max_tokens
            lost.cut_items += sum(map(vocab.is_item, whole[max_tokens:]))
            if len(piece) + len(utterance) > max_tokens:
                yield piece
                piece = []
            piece.extend(utterance)
        if len(piece) > 1:
            yield piece


def description_texts(vocab: Vocabulary, items: Mapping[int, Item], *, max_tokens: int) -> list[Text]:
    """What is known about each item, words → item and item → words; see `data.items.description_sequences`."""
    return [
        Text(tuple(sequence.tokens.tolist()), description=True)
        for sequence in description_sequences(vocab, items, max_tokens=max_tokens)
    ]


class EncodedTexts(NamedTuple):
    """Texts as rows of numbers, which may lie on disk; those of descriptions stand behind the dialogues'."""

    tokens: tuple[Flat, ...]
    """int32, one part after the other."""
    description: Bool[np.ndarray, " N"]

    @classmethod
    def of(cls, texts: Sequence[Text]) -> "EncodedTexts":
        """Texts in memory."""
        return cls((flat([text.tokens for text in texts]),), np.array([text.description for text in texts], bool))

    def followed_by(self, texts: Sequence[Text]) -> "EncodedTexts":
        """The same with other texts behind them."""
        more = EncodedTexts.of(texts)
        return EncodedTexts((*self.tokens, *more.tokens), np.concatenate([self.description, more.description]))

    def lengths(self) -> Int[np.ndarray, " N"]:
        """Tokens of every text. [N]"""
        return np.concatenate([part.lengths for part in self.tokens])

    def text(self, number: int) -> list[int]:
        """Tokens of one text."""
        for part in self.tokens:
            if number < len(part.starts) - 1:
                return part.row(number).tolist()
            number -= len(part.starts) - 1
        raise IndexError(f"text {number} after the last")

    def counts(self, hit: Callable[[np.ndarray], np.ndarray]) -> Int[np.ndarray, " N"]:
        """How many tokens of every text `hit` holds for; a few million tokens are looked at at once. [N]"""
        found = []
        for part in self.tokens:
            for begin in range(0, len(part.starts) - 1, _ROWS):
                starts = part.starts[begin : begin + _ROWS + 1]
                sums = np.concatenate([[0], np.cumsum(hit(part.values[starts[0] : starts[-1]]))])
                found.append(np.diff(sums[starts - starts[0]]))
        return np.concatenate(found) if found else np.zeros(0, np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class TextBatches:
    """Batches of texts of similar length, about `tokens_per_batch` tokens each; batch `step` on demand."""

    texts: Sequence[Text] | EncodedTexts
    vocab: Vocabulary
    buckets: tuple[int, ...]
    tokens_per_batch: int
    seed: int
    max_listed: int = 5
    shuffle_lists: bool = True
    description_epochs: int = 1
    once: bool = False
    """Whether words name an item of the list at most once, as `Grammar.once`."""

    def rows(self, bucket: int) -> int:
        """Texts in one batch of this bucket."""
        return max(2, self.tokens_per_batch // bucket)

    @functools.cached_property
    def encoded(self) -> EncodedTexts:
        """The texts as rows of numbers."""
        return self.texts if isinstance(self.texts, EncodedTexts) else EncodedTexts.of(self.texts)

    @functools.cached_property
    def places(self) -> Int[np.ndarray, " N"]:
        """Which bucket each text is padded to; one behind the last where none is long enough. [N]"""
        return np.searchsorted(self.buckets, self.encoded.lengths(), side="left")

    @functools.cached_property
    def rooms(self) -> dict[int, int]:
        """Item targets that a row of each bucket has room for: a share of its length, or what its densest text needs."""
        rooms = {bucket: max(4, int(bucket * ITEM_POSITIONS_PER_TOKEN)) for bucket in self.buckets}
        first, last, rec = self.vocab.first_item, self.vocab.first_item + self.vocab.n_items, self.vocab.rec
        # Every item is one target, and so is the end of every list: no more can there be.
        most = self.encoded.counts(lambda tokens: ((tokens >= first) & (tokens < last)) | (tokens == rec))
        room_of = np.array([*rooms.values(), np.iinfo(np.int64).max])
        for number in np.flatnonzero(most > room_of[self.places]).tolist():
            bucket = self.buckets[self.places[number]]
            if most[number] > rooms[bucket]:
                needed = len(item_places(self.encoded.text(number), self.vocab, self.max_listed))
                rooms[bucket] = max(rooms[bucket], needed)
        return rooms

    @functools.lru_cache(maxsize=2)  # noqa: B019 - two epochs of plans; the object lives as long as its stage
    def plan(self, epoch: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """(bucket, text indices) of every batch of an epoch, in order; the last batch of a bucket may be short."""
        order = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        waiting: dict[int, list[int]] = {bucket: [] for bucket in self.buckets}
        batches = []
        drawn = order.permutation(len(self.places))
        if epoch >= self.description_epochs:
            drawn = drawn[~self.encoded.description[drawn]]
        for index, place in zip(drawn.tolist(), self.places[drawn].tolist(), strict=True):
            bucket = self.buckets[place]
            waiting[bucket].append(index)
            if len(waiting[bucket]) == self.rows(bucket):
                batches.append((bucket, tuple(waiting[bucket])))
                waiting[bucket] = []
        rest = [(bucket, tuple(indices)) for bucket, indices in waiting.items() if indices]
        for batch in rest:
            batches.insert(int(order.integers(len(batches) + 1)), batch)
        return tuple(batches)

    @functools.cached_property
    def per_epoch(self) -> tuple[int, int]:
        """Batches of an epoch with descriptions and of one without: a number of the texts' lengths, whatever their order."""

        def count(places: np.ndarray) -> int:
            texts = np.bincount(places, minlength=len(self.buckets))
            return sum(-(-int(n) // self.rows(bucket)) for n, bucket in zip(texts, self.buckets, strict=True))

        return count(self.places), count(self.places[~self.encoded.description])

    def steps(self, epochs: int) -> int:
        """Batches in the first `epochs` epochs."""
        described = min(epochs, self.description_epochs)
        return described * self.per_epoch[0] + (epochs - described) * self.per_epoch[1]

    def place(self, step: int) -> tuple[int, int]:
        """Epoch of batch `step`, counted over all epochs, and its place there."""
        with_descriptions, without = self.per_epoch
        later = step - self.description_epochs * with_descriptions
        if later < 0:
            return divmod(step, with_descriptions)
        epoch, place = divmod(later, without)
        return self.description_epochs + epoch, place

    def members(self, step: int) -> tuple[int, ...]:
        """Numbers of the texts of batch `step`, row by row; rows behind them are padding."""
        epoch, place = self.place(step)
        return self.plan(epoch)[place][1]

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray, GrammarTargets]:
        """Tokens [B, S], mask [B, S] and targets of batch `step`, counted over all epochs."""
        epoch, place = self.place(step)
        bucket, indices = self.plan(epoch)[place]
        order = np.random.Generator(np.random.PCG64([self.seed, epoch, place, 1]))
        return self.pack([self.encoded.text(i) for i in indices], bucket, order if self.shuffle_lists else None)

    def pack(
        self, texts: Sequence[Sequence[int]], bucket: int, order: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray, GrammarTargets]:
        """Arrays of one batch; `order`, where given, shuffles the items inside every suggestion list.

        Texts that are not among `texts` may need more room than `rooms` has; then the arrays are larger.
        """
        needed = [len(item_places(text, self.vocab, self.max_listed)) for text in texts]
        rows, room = self.rows(bucket), max(self.rooms[bucket], *needed)
        tokens = np.full((rows, bucket), self.vocab.pad, np.int32)
        targets = np.full((rows, bucket), self.vocab.pad, np.int32)
        kinds = np.zeros((rows, bucket), np.int32)
        listed = np.full((rows, bucket, self.max_listed), -1, np.int32)
        item_positions = np.zeros((rows, room), np.int32)
        item_kinds = np.zeros((rows, room), np.int32)
        item_listed = np.full((rows, room, self.max_listed), -1, np.int32)
        for row, text in enumerate(texts):
            text = shuffled_lists(text, self.vocab, order) if order is not None else text
            tokens[row, : len(text)] = text
            targets[row, : len(text) - 1] = text[1:]
            used = 0
            for position, (kind, so_far) in enumerate(target_kinds(text, self.vocab, self.max_listed, once=self.once)):
                if kind in (FREE_ITEM, LIST):
                    item_positions[row, used], item_kinds[row, used] = position, kind
                    item_listed[row, used, : len(so_far)] = so_far
                    used += 1
                elif kind != NO_TARGET:
                    kinds[row, position] = kind
                    listed[row, position, : len(so_far)] = so_far
        batch = GrammarTargets(
            targets=jnp.asarray(targets),
            kinds=jnp.asarray(kinds),
            listed=jnp.asarray(listed),
            item_positions=jnp.asarray(item_positions),
            item_kinds=jnp.asarray(item_kinds),
            item_listed=jnp.asarray(item_listed),
        )
        return tokens, tokens != self.vocab.pad, batch


def shuffled_lists(tokens: Sequence[int], vocab: Vocabulary, order: np.random.Generator) -> list[int]:
    """The text with the items between every `<rec>` and its `<say>` in random order: a list has no true order."""
    out = list(tokens)
    for start, token in enumerate(out):
        if token == vocab.rec:
            end = start + 1
            while end < len(out) and vocab.is_item(out[end]):
                end += 1
            if end - start > 2:
                out[start + 1 : end] = [out[start + 1 + i] for i in order.permutation(end - start - 1)]
    return out


def item_places(tokens: Sequence[int], vocab: Vocabulary, max_listed: int) -> list[int]:
    """Positions whose next token the items' head judges; their number does not depend on the order of a list."""
    kinds = target_kinds(tokens, vocab, max_listed)
    return [place for place, (kind, _) in enumerate(kinds) if kind in (FREE_ITEM, LIST)]


def target_kinds(
    tokens: Sequence[int], vocab: Vocabulary, max_listed: int, *, once: bool = False
) -> list[tuple[int, tuple[int, ...]]]:
    """For each position but the last: what kind the next token is, and the items listed so far in its turn.

    A list longer than `max_listed` cannot come from the grammar: what exceeds it is not a target. With `once` words that have
    named an item are told the rest of the list, and an item named again is no target.
    """
    phase, listed, kinds = FREE_WORD, (), []
    for token, target in itertools.pairwise(tokens):
        if token == vocab.recommender:
            phase, listed = FIRST, ()
        elif token == vocab.rec:
            phase, listed = LIST, ()
        elif token == vocab.say:
            phase = SAY
        elif token == vocab.eos:
            phase, listed = FREE_WORD, ()
        elif phase == LIST:
            listed = (*listed, token)
        elif phase == SAY and once and vocab.is_item(token):
            listed = tuple(item for item in listed[:max_listed] if item != token)
        is_item = vocab.is_item(target)
        if phase == LIST:
            full = len(listed) >= max_listed
            kinds.append((NO_TARGET, ()) if full else (LIST, listed))
        elif phase == SAY:
            shown = listed[:max_listed]
            kinds.append((NO_TARGET, ()) if is_item and target not in shown else (SAY, shown))
        elif phase == FIRST:
            kinds.append((FIRST, ()))
        else:
            kinds.append((FREE_ITEM if is_item else FREE_WORD, ()))
    return kinds

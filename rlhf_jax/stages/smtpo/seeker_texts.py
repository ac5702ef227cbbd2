"""Training texts of the user simulator: whole dialogues as rows, with what the seeker says and what the seeker will like.

    at `<seeker>` and `<recommender>`   the items and attributes that are asked for: `gold`
    after `<seeker>`                    the words that are learnt: `learnt`

Everything is a pure function of (seed, step), so that a resumed run sees the same batches.
"""

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from rlhf_jax.data.attributes import Attributes
from rlhf_jax.data.items import description_texts
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import encode_words, is_empty, utterance_tokens
from rlhf_jax.feedback.recommendation import liked_from
from rlhf_jax.interfaces import Dialogue, Item, Message
from rlhf_jax.simulators.composed_feedback import Composer
from rlhf_jax.stages.texts import Text, TextBatches, shuffled_lists


class Said(NamedTuple):
    """A dialogue as it is learnt."""

    messages: tuple[Message, ...]
    gold: tuple[tuple[int, ...], ...]
    """Items that the seeker will still like, asked for at each message; empty where nothing is asked."""
    learnt_from: int = 0
    """First message that is learnt; those before it are context."""


class SeekerText(NamedTuple):
    """One row of training."""

    tokens: tuple[int, ...]
    learnt: tuple[bool, ...]
    """Which tokens are targets of the language loss. [S]"""
    places: tuple[int, ...]
    """Markers at which the items and attributes are asked for. [A]"""
    gold: tuple[tuple[int, ...], ...]
    """Columns of the items, at least one each. [A]"""
    description: bool = False
    """An item description: part of the first `description_epochs` only."""


class _Row:
    """A row while it is put together."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.learnt: list[bool] = []
        self.places: list[int] = []
        self.gold: list[tuple[int, ...]] = []

    def text(self, *, description: bool = False) -> SeekerText:
        return SeekerText(tuple(self.tokens), tuple(self.learnt), tuple(self.places), tuple(self.gold), description)


@chex.dataclass(frozen=True)
class SeekerBatch:
    """What the loss reads."""

    tokens: Int[Array, "B S"]
    mask: Bool[Array, "B S"]
    learnt: Bool[Array, "B S"]
    """True where token t + 1 is a target of the language loss."""
    named: Int[Array, "B K"]
    """Tokens of the items of a row, each once; −1 where there are fewer."""
    named_at: Int[Array, "B K"]
    """Where each stands first; S where there is none."""
    places: Int[Array, "B A"]
    """Markers at which the target is asked for; −1 where there are fewer."""
    gold: Int[Array, "B A G"]
    """Columns of the items that will be liked; −1 where there are fewer."""
    wanted: Bool[Array, "B A F"]
    """Attributes that any of these items has."""


def as_said(dialogue: Dialogue) -> Said:
    """A dialogue with the items that are liked from each message on (`liked_from`)."""
    return Said(dialogue.messages, tuple(liked_from(dialogue, index) for index in range(len(dialogue.messages))))


def as_heard(dialogue: Dialogue) -> Said:
    """A dialogue of which nothing is known but what was said: no form is read, nothing is asked for."""
    return Said(dialogue.messages, ((),) * len(dialogue.messages))


def seeker_texts(
    vocab: Vocabulary, dialogues: Sequence[Said], *, max_tokens: int, telling: Mapping[int, Sequence[int]]
) -> list[SeekerText]:
    """Whole dialogues as rows; one longer than `max_tokens` is cut into pieces at utterances.

    Learnt is what the simulator will be allowed to say. A message of the seeker that names an item for the first time in
    its row is read and not learnt: without its last word, nobody would say `i just saw`. Nor is a word learnt that begins a
    telling word of a title that is still to be liked.

    Args:
      vocab: gives the ids.
      dialogues: what was said, and what is asked for.
      max_tokens: longest row.
      telling: tokens that give an item away (`SpelledTitles.first_tokens`), by item.
    """
    texts = []
    words = encode_words(vocab, [Dialogue("", said.messages, {}, {}) for said in dialogues])
    for said, message_words in zip(dialogues, words, strict=True):
        row = _Row()
        for index, (message, gold) in enumerate(zip(said.messages, said.gold, strict=True)):
            if is_empty(message):
                continue
            utterance = utterance_tokens(vocab, message, message_words[index])[:max_tokens]
            if len(row.tokens) + len(utterance) > max_tokens:
                texts.append(row.text())
                row = _Row()
            if gold and index >= said.learnt_from:
                row.places.append(len(row.tokens))
                row.gold.append(tuple(map(vocab.item_index, gold)))
            new = set(filter(vocab.is_item, utterance)) - set(row.tokens)
            learnt = message.role == "seeker" and index >= said.learnt_from and not new
            hidden = {token for item in gold for token in (vocab.item_token(item), *telling.get(item, ()))}
            row.learnt += [False, *(learnt and token not in hidden for token in utterance[1:])]
            row.tokens.extend(utterance)
        texts.append(row.text())
    return [text for text in texts if text.places or any(text.learnt)]


def seeker_descriptions(vocab: Vocabulary, items: Mapping[int, Item], *, max_tokens: int) -> list[SeekerText]:
    """What is known about each item, as if a seeker asked for it: `<seeker> words <eos> <recommender>`, then the item.

    Its words are not learnt: they spell its title.
    """
    known = [items[item_id] for item_id in vocab.item_ids if item_id in items]
    pairs = [(item.item_id, text) for item in known for text in description_texts(item)]
    texts = []
    for (item_id, _), words in zip(pairs, vocab.encode_many_parts([[text] for _, text in pairs]), strict=True):
        tokens = (vocab.seeker, *words[: max_tokens - 3], vocab.eos, vocab.recommender)
        place = len(tokens) - 1
        texts.append(SeekerText(tokens, (False,) * len(tokens), (place,), ((vocab.item_index(item_id),),), True))
    return texts


@dataclasses.dataclass(frozen=True, eq=False)
class SeekerBatches:
    """Batches of rows of similar length; batch `step` on demand."""

    texts: tuple[SeekerText, ...]
    attributes: Attributes
    order: TextBatches
    """Which rows make a batch."""

    @classmethod
    def of(
        cls,
        texts: Sequence[SeekerText],
        attributes: Attributes,
        vocab: Vocabulary,
        *,
        buckets: tuple[int, ...],
        tokens_per_batch: int,
        seed: int,
        description_epochs: int = 0,
    ) -> "SeekerBatches":
        """Batches of about `tokens_per_batch` tokens each, in the order of `seed`."""
        plain = tuple(Text(text.tokens, text.description) for text in texts)
        order = TextBatches(
            plain, vocab, buckets, tokens_per_batch, seed, shuffle_lists=False, description_epochs=description_epochs
        )
        return cls(tuple(texts), attributes, order)

    def steps(self, epochs: int) -> int:
        """Batches in the first `epochs` epochs."""
        return self.order.steps(epochs)

    @functools.cached_property
    def rooms(self) -> Mapping[int, tuple[int, ...]]:
        """Most items, places and gold items of one place in any row of each bucket."""
        rooms: dict[int, tuple[int, ...]] = dict.fromkeys(self.order.buckets, (1, 1, 1))
        for text in self.texts:
            bucket = self._bucket(text)
            named = len(set(filter(self.order.vocab.is_item, text.tokens)))
            needed = (named, len(text.places), max(map(len, text.gold), default=0))
            rooms[bucket] = tuple(map(max, rooms[bucket], needed))
        return rooms

    def batch(self, step: int) -> SeekerBatch:
        """Batch `step`, counted over all epochs."""
        epoch, place = self.order.place(step)
        bucket, indices = self.order.plan(epoch)[place]
        lists = np.random.Generator(np.random.PCG64([self.order.seed, epoch, place, 1]))
        return self.pack([self.texts[index] for index in indices], bucket, lists)

    def pack(self, texts: Sequence[SeekerText], bucket: int, lists: np.random.Generator | None = None) -> SeekerBatch:
        """Arrays of one batch, as many rows as the bucket has; `lists`, where given, shuffles the suggestions of each list."""
        vocab, rows, (n_named, n_places, n_gold) = self.order.vocab, self.order.rows(bucket), self.rooms[bucket]
        tokens = np.full((rows, bucket), vocab.pad, np.int32)
        learnt = np.zeros((rows, bucket), bool)
        named, named_at = np.full((rows, n_named), -1, np.int32), np.full((rows, n_named), bucket, np.int32)
        places, gold = np.full((rows, n_places), -1, np.int32), np.full((rows, n_places, n_gold), -1, np.int32)
        wanted = np.zeros((rows, n_places, len(self.attributes.names)), bool)
        for row, text in enumerate(texts):
            said = text.tokens if lists is None else shuffled_lists(text.tokens, vocab, lists)
            tokens[row, : len(said)] = said
            learnt[row, : len(said) - 1] = text.learnt[1:]
            first: dict[int, int] = {}
            for position, token in enumerate(said):
                if vocab.is_item(token):
                    first.setdefault(token, position)
            named[row, : len(first)], named_at[row, : len(first)] = [*first], [*first.values()]
            places[row, : len(text.places)] = text.places
            for place, columns in enumerate(text.gold):
                gold[row, place, : len(columns)] = columns
                wanted[row, place] = self.attributes.of(columns)
        arrays = (tokens, tokens != vocab.pad, learnt, named, named_at, places, gold, wanted)
        names = tuple(field.name for field in dataclasses.fields(SeekerBatch))
        return SeekerBatch(**dict(zip(names, map(jnp.asarray, arrays), strict=True)))

    def _bucket(self, text: SeekerText) -> int:
        return next(bucket for bucket in self.order.buckets if len(text.tokens) <= bucket)


def attribute_rates(batches: SeekerBatches) -> np.ndarray:
    """How often each attribute is wanted at a place, smoothed away from 0 and 1. float32 [F]"""
    gold = list(itertools.chain.from_iterable(text.gold for text in batches.texts if not text.description))
    counts = sum((batches.attributes.of(columns).astype(np.float64) for columns in gold), np.zeros(1))
    rates = (counts + 0.5) / (len(gold) + 1.0)
    return np.broadcast_to(rates, len(batches.attributes.names)).astype(np.float32)


def composed_dialogues(
    dialogues: Sequence[Dialogue], composer: Composer, *, share: float, most: int, seed: int
) -> list[Said]:
    """Dialogues whose last exchange is composed: suggestions drawn by popularity, none of them liked, and the answer.

    Only the answer is learnt, and what is still liked at it; which dialogues, where, and what is suggested are
    functions of the seed.

    Args:
      share: how many, as a share of the dialogues.
      most: items that are suggested at most.
    """
    wanted = round(share * len(dialogues))
    if not wanted:
        return []
    counts = suggestion_counts(dialogues)
    ids, weights = np.array([*counts]), np.array([*counts.values()], np.float64)
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(b"composed")]))
    places = [
        (dialogue, index, gold)
        for dialogue in dialogues
        for index, gold in asked_turns(dialogue)
        if len(set(ids) - set(gold) - named_in(dialogue.messages[:index]))
    ]
    found = []
    for place in rng.integers(len(places), size=wanted) if places else ():
        dialogue, index, gold = places[place]
        context = dialogue.messages[:index]
        fresh = np.where(np.isin(ids, [*gold, *named_in(context)]), 0.0, weights)
        size = int(rng.integers(1, min(most, np.count_nonzero(fresh)) + 1))
        suggested = rng.choice(ids, size=size, replace=False, p=fresh / fresh.sum()).tolist()
        exchange = composer.exchange(context, suggested, gold, rng)
        messages = composer.dialogue(dialogue, index, exchange).messages
        found.append(Said(messages, (*((),) * (index + 1), gold), learnt_from=index))
    return found


def suggestion_counts(dialogues: Sequence[Dialogue]) -> dict[int, int]:
    """In how many dialogues the recommender names each item, most frequent first, then by id."""
    counts: dict[int, int] = {}
    for dialogue in dialogues:
        for item in {item for one in dialogue.messages if one.role == "recommender" for item in one.items}:
            counts[item] = counts.get(item, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def asked_turns(dialogue: Dialogue) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Recommender messages before which something was said and from which on something will be liked, with these items."""
    has_context = False
    for index, message in enumerate(dialogue.messages):
        if has_context and message.role == "recommender" and not is_empty(message):
            gold = liked_from(dialogue, index)
            if gold:
                yield index, gold
        has_context = has_context or not is_empty(message)


def named_in(history: Sequence[Message]) -> set[int]:
    """Items that anybody has named."""
    return {item for message in history for item in message.items}

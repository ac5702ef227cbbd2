"""Contexts as arrays: prompts and responses of any message, and which prompts an update of PPO reads, how wide.

Padding says nothing to any network here, so a batch cut to the shortest of a few widths that holds its longest prompt
gives the same responses and the same losses for less arithmetic. The widths are fixed, because every one is a program of
its own. All is a function of the seed and the number of the update: a restart, and every process of a run, finds the
same prompts in the same width.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.batching import batch_indices, pad_left, pad_right
from rlhf_jax.data.dialogue_store import StoredDialogues
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import answerable, encode_words, prompt_tokens, response_tokens
from rlhf_jax.interfaces import Dialogue, Message, PromptBatch, Rollout
from rlhf_jax.recommenders.scorer import ItemScorer
from rlhf_jax.stages.setup import DataConfig, Setup


@runtime_checkable
class Padded(Protocol):
    """N token lists of one kind, padded to one width; some of them when they are asked for."""

    @property
    def width(self) -> int:
        """Tokens of a padded one."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and mask of the given ones. int32 and bool [B, W]"""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class InMemory:
    """All of them as arrays."""

    tokens: np.ndarray
    """int32 [N, W]"""
    mask: np.ndarray
    """bool [N, W]"""

    @property
    def width(self) -> int:
        return self.tokens.shape[1]

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.tokens[rows], self.mask[rows]


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """None of them: dialogues are read and encoded when a batch is asked for, and forgotten after it."""

    turns: Sequence[tuple[int, int]]
    """[N]"""
    width: int
    encode: Callable[[Sequence[tuple[int, int]]], tuple[np.ndarray, np.ndarray]]

    def __len__(self) -> int:
        return len(self.turns)

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.encode([self.turns[row] for row in rows])


@dataclasses.dataclass(frozen=True, eq=False)
class PromptBatches:
    """Left-padded prompts, dealt out to updates."""

    prompts: Padded
    """N of width P."""
    batch_size: int
    """Prompts of one update, over all devices."""
    seed: int
    buckets: tuple[int, ...] = ()
    """Widths below P that a batch may be cut to, ascending."""
    group: int = 1
    """Updates that share out their prompts by length; 1 leaves every batch as it was drawn."""

    def __post_init__(self) -> None:
        if self.buckets and self.buckets[-1] > self.prompts.width:
            raise ValueError(
                f"--align.prompt-buckets {self.buckets}: {self.buckets[-1]} is wider than --data.context-tokens "
                f"{self.prompts.width}"
            )

    def rows(self, update: int) -> np.ndarray:
        """Prompts of one update. int64 [B]

        With a `group` of G > 1, the G·B prompts of updates gG … gG + G − 1 are sorted by length and cut into G batches,
        and these are dealt to the G updates in random order. Every prompt still comes once an epoch.
        """
        number, place = divmod(update, self.group)
        return self._dealt(number)[place]

    @functools.lru_cache(maxsize=4)  # noqa: B019 - two groups of contexts and of human turns; they live as long as their stage
    def _dealt(self, number: int) -> np.ndarray:
        """Prompts of all updates of a group. [G, B]"""
        drawn = batch_indices(len(self.prompts), seed=self.seed, step=number, batch_size=self.group * self.batch_size)
        if self.group == 1:
            return drawn[None]
        lengths = self.prompts.take(drawn)[1].sum(axis=1)
        batches = drawn[np.argsort(lengths, kind="stable")].reshape(self.group, self.batch_size)
        # A third number, so that this is not the stream that epochs are drawn from.
        order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, number, 1])))
        return batches[order.permutation(self.group)]

    def batch(self, update: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and mask of one update, as narrow as the buckets allow. [B, W] each, W a bucket or P"""
        tokens, mask = self.prompts.take(self.rows(update))
        longest = int(mask.sum(axis=1).max())
        width = next((bucket for bucket in self.buckets if bucket >= longest), self.prompts.width)
        return tokens[:, -width:], mask[:, -width:]


def as_rollout(
    prompts: tuple[np.ndarray, np.ndarray], responses: tuple[np.ndarray, np.ndarray], item_scores: jax.Array | None
) -> Rollout:
    """Given responses to given prompts (tokens and mask of either), as if they had been sampled with certainty."""
    said, mask = map(jnp.asarray, responses)
    return Rollout(
        prompt_tokens=jnp.asarray(prompts[0]),
        prompt_mask=jnp.asarray(prompts[1]),
        response_tokens=said,
        response_mask=mask,
        logprobs=jnp.zeros(said.shape, jnp.float32),
        finished=jnp.ones(len(said), bool),
        item_scores=item_scores,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Demonstrations:
    """Human turns as responses, dealt out to updates."""

    prompts: PromptBatches
    responses: Padded
    """N of width T."""
    windows: "Windows"
    """Where they are from."""
    turns: Sequence[tuple[int, int]]
    """[N]"""

    def batch(self, update: int, own: slice) -> Rollout:
        """Rows `own` of an update's human turns, as if they had been sampled with certainty."""
        tokens, mask = (side[own] for side in self.prompts.batch(update))
        rows = self.prompts.rows(update)[own]
        known = self.windows.item_scores([self.turns[row] for row in rows])
        return as_rollout((tokens, mask), self.responses.take(rows), known)


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """Prompts and responses of any message on demand, padded to fixed lengths.

    Dialogues in memory are encoded once, all of them; those of a store when they are asked for.
    """

    vocab: Vocabulary
    dialogues: Sequence[Dialogue]
    data: DataConfig
    scorer: ItemScorer | None = None
    """What prompts bring along of items; None: nothing."""

    @classmethod
    def of(cls, setup: Setup, dialogues: Sequence[Dialogue]) -> "Windows":
        """Windows into some dialogues of a run."""
        return cls(setup.vocab, dialogues, setup.data, setup.scorer)

    @functools.cached_property
    def words(self) -> list[list[list[int]]]:
        """Word tokens of every message of every dialogue."""
        return encode_words(self.vocab, self.dialogues)

    def demonstrations(self, dealt: Callable[[Padded], PromptBatches]) -> Demonstrations:
        """Human turns of all dialogues, after contexts that `dealt` hands out to updates."""
        turns = self.turns()
        return Demonstrations(dealt(self.prompts_of(turns)), self.responses_of(turns), self, turns)

    def turns(self) -> Sequence[tuple[int, int]]:
        """(dialogue, message) of every recommender message that says something after a context."""
        if isinstance(self.dialogues, StoredDialogues):
            return self.dialogues.turns()
        return [(number, place) for number, dialogue in enumerate(self.dialogues) for place in answerable(dialogue)]

    def prompts_of(self, turns: Sequence[tuple[int, int]]) -> Padded:
        """`prompts` of many messages: made now, or when they are asked for where the dialogues lie on disk."""
        if isinstance(self.dialogues, StoredDialogues):
            return Encoded(turns, self.data.context_tokens, self.prompts)
        return InMemory(*self.prompts(turns))

    def responses_of(self, turns: Sequence[tuple[int, int]]) -> Padded:
        """`responses` of many messages, likewise."""
        if isinstance(self.dialogues, StoredDialogues):
            return Encoded(turns, self.data.response_tokens, self.responses)
        return InMemory(*self.responses(turns))

    def _said(self, turns: Sequence[tuple[int, int]]) -> Iterator[tuple[Sequence[Message], list[list[int]], int]]:
        """Messages of each turn's dialogue, their encoded words, and the turn's place among them."""
        if not isinstance(self.dialogues, StoredDialogues):
            yield from ((self.dialogues[number].messages, self.words[number], place) for number, place in turns)
            return
        read = {number: self.dialogues[number] for number, _ in turns}
        words = dict(zip(read, encode_words(self.vocab, list(read.values())), strict=True))
        yield from ((read[number].messages, words[number], place) for number, place in turns)

    def prompts(self, turns: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """Left-padded contexts before the given messages: tokens and mask. [N, context_tokens] each"""
        sequences = [
            prompt_tokens(
                self.vocab,
                messages[:index],
                words[:index],
                window=self.data.window,
                context_tokens=self.data.context_tokens,
            )
            for messages, words, index in self._said(turns)
        ]
        return pad_left(sequences, self.data.context_tokens, self.vocab.pad)

    def item_scores(self, turns: Sequence[tuple[int, int]]) -> jax.Array | None:
        """What is known of every item before the given messages, a training dialogue left out of its own scores; None
        without a scorer. [N, K, I]"""
        if self.scorer is None:
            return None
        chosen = [(self.dialogues[number], index) for number, index in turns]
        histories = [dialogue.messages[:index] for dialogue, index in chosen]
        return jnp.asarray(self.scorer.of_histories(histories, [dialogue.dialogue_id for dialogue, _ in chosen]))

    def batch(self, turns: Sequence[tuple[int, int]]) -> PromptBatch:
        """The contexts before the given messages as a policy reads them."""
        tokens, mask = self.prompts(turns)
        return PromptBatch(tokens=jnp.asarray(tokens), mask=jnp.asarray(mask), item_scores=self.item_scores(turns))

    def as_rollout(self, turns: Sequence[tuple[int, int]]) -> Rollout:
        """The given messages as responses to their contexts."""
        return as_rollout(self.prompts(turns), self.responses(turns), self.item_scores(turns))

    def responses(self, turns: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """The given messages as responses, right-padded: tokens and mask. [N, response_tokens] each"""
        sequences = [
            response_tokens(
                self.vocab,
                messages[index],
                words[index],
                max_tokens=self.data.response_tokens,
                max_items=self.data.max_items,
                once=self.data.items_once,
            )
            for messages, words, index in self._said(turns)
        ]
        return pad_right(sequences, self.data.response_tokens, self.vocab.pad)

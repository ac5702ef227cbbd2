"""Contexts as arrays: prompts and responses of any message, and which prompts an update of PPO reads, how wide.

Padding says nothing to any network here, so a batch cut to the shortest of a few widths that holds its longest prompt
gives the same responses and the same losses for less arithmetic. The widths are fixed, because every one is a program of
its own. All is a function of the seed and the number of the update: a restart, and every process of a run, finds the
same prompts in the same width.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.batching import batch_indices, pad_left, pad_right
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import encode_words, is_empty, prompt_tokens, response_tokens
from rlhf_jax.interfaces import Dialogue, PromptBatch, Rollout
from rlhf_jax.recommenders.scorer import ItemScorer
from rlhf_jax.stages.setup import DataConfig, Setup


@dataclasses.dataclass(frozen=True, eq=False)
class PromptBatches:
    """Left-padded prompts, dealt out to updates."""

    tokens: np.ndarray
    """int32 [N, P]"""
    mask: np.ndarray
    """bool [N, P]"""
    batch_size: int
    """Prompts of one update, over all devices."""
    seed: int
    buckets: tuple[int, ...] = ()
    """Widths below P that a batch may be cut to, ascending."""
    group: int = 1
    """Updates that share out their prompts by length; 1 leaves every batch as it was drawn."""

    def __post_init__(self) -> None:
        if self.buckets and self.buckets[-1] > self.tokens.shape[1]:
            raise ValueError(
                f"--align.prompt-buckets {self.buckets}: {self.buckets[-1]} is wider than --data.context-tokens "
                f"{self.tokens.shape[1]}"
            )

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Real tokens of every prompt. [N]"""
        return self.mask.sum(axis=1)

    def rows(self, update: int) -> np.ndarray:
        """Prompts of one update. int64 [B]

        With a `group` of G > 1, the G·B prompts of updates gG … gG + G − 1 are sorted by length and cut into G batches,
        and these are dealt to the G updates in random order. Every prompt still comes once an epoch.
        """
        number, place = divmod(update, self.group)
        drawn = batch_indices(len(self.tokens), seed=self.seed, step=number, batch_size=self.group * self.batch_size)
        if self.group == 1:
            return drawn
        batches = drawn[np.argsort(self.lengths[drawn], kind="stable")].reshape(self.group, self.batch_size)
        # A third number, so that this is not the stream that epochs are drawn from.
        order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, number, 1])))
        return batches[order.permutation(self.group)[place]]

    def batch(self, update: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and mask of one update, as narrow as the buckets allow. [B, W] each, W a bucket or P"""
        rows = self.rows(update)
        longest = int(self.lengths[rows].max())
        width = next((bucket for bucket in self.buckets if bucket >= longest), self.tokens.shape[1])
        return self.tokens[rows, -width:], self.mask[rows, -width:]


@dataclasses.dataclass(frozen=True, eq=False)
class Demonstrations:
    """Human turns as responses, dealt out to updates."""

    prompts: PromptBatches
    response_tokens: np.ndarray
    """int32 [N, T]"""
    response_mask: np.ndarray
    """bool [N, T]"""
    windows: "Windows"
    """Where they are from."""
    turns: Sequence[tuple[int, int]]
    """[N]"""

    def batch(self, update: int, own: slice) -> Rollout:
        """Rows `own` of an update's human turns, as if they had been sampled with certainty."""
        tokens, mask = (side[own] for side in self.prompts.batch(update))
        rows = self.prompts.rows(update)[own]
        return Rollout(
            prompt_tokens=jnp.asarray(tokens),
            prompt_mask=jnp.asarray(mask),
            response_tokens=jnp.asarray(self.response_tokens[rows]),
            response_mask=jnp.asarray(self.response_mask[rows]),
            logprobs=jnp.zeros(self.response_tokens[rows].shape, jnp.float32),
            finished=jnp.ones(len(rows), bool),
            item_scores=self.windows.item_scores([self.turns[row] for row in rows]),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """Dialogues encoded once; prompts and responses of any message on demand, padded to fixed lengths."""

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

    def demonstrations(self, dealt: Callable[[np.ndarray, np.ndarray], PromptBatches]) -> Demonstrations:
        """Human turns of all dialogues, after contexts that `dealt` hands out to updates."""
        turns = self.turns()
        return Demonstrations(dealt(*self.prompts(turns)), *self.responses(turns), self, turns)

    def turns(self) -> list[tuple[int, int]]:
        """(dialogue, message) of every recommender message that says something after a context."""
        found = []
        for number, dialogue in enumerate(self.dialogues):
            has_context = False
            for index, message in enumerate(dialogue.messages):
                if has_context and message.role == "recommender" and not is_empty(message):
                    found.append((number, index))
                has_context = has_context or not is_empty(message)
        return found

    def prompts(self, turns: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """Left-padded contexts before the given messages: tokens and mask. [N, context_tokens] each"""
        sequences = [
            prompt_tokens(
                self.vocab,
                self.dialogues[number].messages[:index],
                self.words[number][:index],
                window=self.data.window,
                context_tokens=self.data.context_tokens,
            )
            for number, index in turns
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

    def responses(self, turns: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """The given messages as responses, right-padded: tokens and mask. [N, response_tokens] each"""
        sequences = [
            response_tokens(
                self.vocab,
                self.dialogues[number].messages[index],
                self.words[number][index],
                max_tokens=self.data.response_tokens,
                max_items=self.data.max_items,
                once=self.data.items_once,
            )
            for number, index in turns
        ]
        return pad_right(sequences, self.data.response_tokens, self.vocab.pad)

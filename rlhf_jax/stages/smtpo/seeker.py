"""A trained user simulator in conversation: it reads messages alone, and gives away nothing that is hidden.

While an answer is drawn, the tokens of hidden items and those that begin a telling word of their titles have probability 0;
titles spelled in another way are cut out of it (`data.spelled_titles`). `stages.smtpo.simulator` trains it.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key

from rlhf_jax.data.batching import pad_left
from rlhf_jax.data.spelled_titles import SpelledTitles
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import prompt_tokens
from rlhf_jax.decoding.sampler import Decoding
from rlhf_jax.decoding.spoken import Ends, make_speak
from rlhf_jax.interfaces import Message, Params, PromptBatch
from rlhf_jax.models import gpt2, heads
from rlhf_jax.stages.setup import Setup
from rlhf_jax.stages.smtpo.seeker_loss import attribute_logits
from rlhf_jax.stages.smtpo.seeker_texts import named_in
from rlhf_jax.stages.smtpo.simulator import SimulatorConfig

NOTHING_LEFT = ("...",)
"""What is said where all words had to be cut out."""


class Answers(NamedTuple):
    """What simulated seekers say."""

    messages: list[Message]
    """[N]"""
    leaks: Bool[np.ndarray, " N"]
    """Whether a message named a hidden item as it was drawn."""
    leaks_left: Bool[np.ndarray, " N"]
    """Whether it still does: none."""

    @classmethod
    def innocent(cls, messages: list[Message]) -> "Answers":
        """Messages that cannot name anything."""
        no = np.zeros(len(messages), bool)
        return cls(messages, no, no)


class Expected(NamedTuple):
    """What a seeker will like, before the recommender speaks."""

    items: np.ndarray
    """Log-probabilities, nats; −inf for an item that the history names. float32 [N, I]"""
    attributes: np.ndarray
    """Probabilities. float32 [N, A]"""


@dataclasses.dataclass(frozen=True, eq=False)
class SeekerSimulator:
    """A trained simulator in conversation. It reads messages alone: no form, no target.

    A batch is padded to a power of two, at least 8, so that a shrinking crowd does not compile a program per size.
    """

    setup: Setup
    params: Params
    """{`trunk`, `attributes`} as `train` returns it."""
    config: SimulatorConfig
    inside: AbstractContextManager[object] = contextlib.nullcontext()
    """Entered while a compiled program draws answers: a clock that separates it from the work around it."""

    def __post_init__(self) -> None:
        longest = self.setup.data.context_tokens + self.config.response_tokens - 1
        if longest > self.setup.network.n_positions:
            raise ValueError(
                f"context_tokens {self.setup.data.context_tokens} and response_tokens {self.config.response_tokens} of the "
                f"simulator take {longest} positions: the network has {self.setup.network.n_positions}"
            )

    @functools.cached_property
    def titles(self) -> SpelledTitles:
        """The catalogue's titles as words."""
        return SpelledTitles.of(self.setup.corpus.items)

    @functools.cached_property
    def telling(self) -> Mapping[int, tuple[int, ...]]:
        """Tokens that give an item away, by item."""
        return self.titles.first_tokens(self.setup.vocab, self.setup.corpus.items)

    def say(
        self, histories: Sequence[Sequence[Message]], blocked: Sequence[Collection[int]], key: Key[Array, ""]
    ) -> Answers:
        """Draws the next message of every seeker, and cuts out what would give a hidden item away.

        A message holds words and items that its history has named. While it is drawn, the tokens of its hidden items and
        those that begin a telling word of their titles have probability 0; words spelled in another way are cut out.

        Args:
          histories: conversations so far, oldest message first. [N]
          blocked: hidden items of each conversation. [N]
          key: a row's draw depends on it and on the row's number alone.
        Raises: ValueError unless both are of one length.
        """
        if len(histories) != len(blocked):
            raise ValueError(f"{len(histories)} histories and {len(blocked)} sets of hidden items")
        if not histories:
            return Answers.innocent([])
        vocab, config = self.setup.vocab, self.config
        speak = self.setup.agent.compiled(
            ("seeker", config.response_tokens, config.temperature),
            lambda: jax.jit(
                make_speak(
                    self.setup.network,
                    Ends(vocab.eos, vocab.pad),
                    Decoding(config.response_tokens, config.temperature, rollout_for_learning=False),
                )
            ),
        )
        rows = _padded(len(histories))
        allowed = np.stack([self._sayable(*pair) for pair in zip(histories, blocked, strict=True)])
        allowed = jnp.asarray(allowed[rows])
        prompts = self._prompts(histories, vocab.seeker)
        with self.inside:
            tokens = np.asarray(speak(self.params["trunk"], prompts, allowed, key))
        said = [spoken_parts(vocab, row.tolist()) for row in tokens[: len(histories)]]
        kept = [self.titles.without(parts, hidden) or NOTHING_LEFT for parts, hidden in zip(said, blocked, strict=True)]
        drawn, heard = (
            np.array([self.titles.tells(parts, hidden) for parts, hidden in zip(all_parts, blocked, strict=True)], bool)
            for all_parts in (said, kept)
        )
        return Answers([Message("seeker", parts, 0) for parts in kept], drawn, heard)

    def expects(self, histories: Sequence[Sequence[Message]]) -> Expected:
        """What every seeker will like, in one reading of the histories.

        Args:
          histories: conversations so far. [N]
        """
        vocab, network = self.setup.vocab, self.setup.network
        first, end = vocab.first_item, vocab.first_item + vocab.n_items
        if not histories:
            n_attributes = len(self.params["attributes"]["bias"])
            return Expected(np.zeros((0, vocab.n_items), np.float32), np.zeros((0, n_attributes), np.float32))

        def ask(params: Params, prompts: PromptBatch, named: Array) -> tuple[Array, Array]:
            last = prompts.tokens.shape[1] - 1
            hidden = gpt2.hidden_states(network, params["trunk"], prompts.tokens, prompts.mask, from_position=last)[
                :, 0
            ]
            logits = heads.item_logits(
                params["trunk"],
                hidden,
                first_item=first,
                n_items=end - first,
                compute_dtype=network.compute_dtype,
            )
            logprobs = jax.nn.log_softmax(jnp.where(named, -jnp.inf, logits), axis=-1)
            return logprobs, jax.nn.sigmoid(attribute_logits(params["attributes"], hidden))

        compiled = self.setup.agent.compiled(("seeker asked",), lambda: jax.jit(ask))
        named = np.zeros((len(histories), vocab.n_items), bool)
        for row, history in enumerate(histories):
            named[row, [vocab.item_index(item) for item in named_in(history)]] = True
        prompts = self._prompts(histories, vocab.recommender)
        found = compiled(self.params, prompts, jnp.asarray(named[_padded(len(histories))]))
        logprobs, probabilities = (np.asarray(array)[: len(histories)] for array in found)
        return Expected(logprobs, probabilities)

    def _prompts(self, histories: Sequence[Sequence[Message]], marker: int) -> PromptBatch:
        """The last turns of every conversation and who speaks next, padded to a power of two of rows."""
        data, vocab = self.setup.data, self.setup.vocab
        sequences = []
        for history in histories:
            prompt = prompt_tokens(vocab, history, window=data.window, context_tokens=data.context_tokens)
            sequences.append([*prompt[:-1], marker])
        tokens, mask = pad_left(
            [sequences[row] for row in _padded(len(histories))], self.setup.data.context_tokens, vocab.pad
        )
        return PromptBatch(tokens=jnp.asarray(tokens), mask=jnp.asarray(mask))

    def _sayable(self, history: Sequence[Message], blocked: Collection[int]) -> np.ndarray:
        """Tokens that a seeker may say after a history. bool [V]"""
        vocab = self.setup.vocab
        allowed = np.zeros(vocab.size, bool)
        allowed[: vocab.n_words] = allowed[vocab.eos] = True
        allowed[[vocab.item_token(item) for item in named_in(history)]] = True
        for item in blocked:
            allowed[[vocab.item_token(item), *self.telling.get(item, ())]] = False
        return allowed


def spoken_parts(vocab: Vocabulary, tokens: Sequence[int]) -> tuple[str | int, ...]:
    """A seeker's tokens up to `<eos>` as words and items."""
    said = itertools.takewhile(lambda token: token not in (vocab.eos, vocab.pad), tokens)
    parts: list[str | int] = []
    for is_item, group in itertools.groupby(said, vocab.is_item):
        run = [*group]
        parts.extend(map(vocab.item_id, run) if is_item else filter(None, [vocab.decode(run)]))
    return tuple(parts)


def _padded(n: int) -> np.ndarray:
    """Rows of a padded batch: their own number, and the first again behind them."""
    size = max(8, 1 << (n - 1).bit_length())
    return np.where(np.arange(size) < n, np.arange(size), 0)

"""A simulated seeker that knows what it likes, made from one that does not, by Bayes' rule.

    p(y | h, gold)  =  p(y | h) · p(gold | h, y) / p(gold | h)

h is the conversation, y an answer. The label-free simulator gives both factors: it says y, and told (h, y) it guesses what will
be liked. So an answer of one who knows is drawn by sampling-importance-resampling: of `draws` answers y_d ~ p(y | h) one is
chosen with chance

    p(gold | h, y_d) / Σ_e p(gold | h, y_e),        p(gold | h, y) = Σ_{i ∈ gold} p(i | h, y)

which is p(y | h, gold) as `draws` grows, and p(y | h) where it is 1. Nothing is trained and no prompt holds gold: what can be
learnt from the choice is no more than the simulator itself would learn from hearing the answer, at most log `draws` nats. What
may not be said stays unsayable.

Source: sampling-importance-resampling, Rubin 1987, doi:10.2307/2289460.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Key

from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.interfaces import Message
from rlhf_jax.stages.seeker import Answers


@runtime_checkable
class GuessingSeekers(Protocol):
    """A crowd that answers, and guesses from a conversation what will be liked; `SeekerSimulator` is one."""

    def say(
        self, histories: Sequence[Sequence[Message]], blocked: Sequence[Collection[int]], key: Key[Array, ""]
    ) -> Answers:
        """See `Seekers`."""
        ...

    def item_logprobs(self, histories: Sequence[Sequence[Message]]) -> np.ndarray:
        """log p(i | h) of every item, columns in the vocabulary's order. [N, I]"""
        ...


class KnowingSeekers(NamedTuple):
    """A crowd whose answers hang on what is hidden; one of `Seekers`."""

    seekers: GuessingSeekers
    vocab: Vocabulary
    draws: int
    """Answers that one is chosen from."""

    def say(
        self, histories: Sequence[Sequence[Message]], blocked: Sequence[Collection[int]], key: Key[Array, ""]
    ) -> Answers:
        """The next message of each conversation; see `Seekers`.

        Args:
          blocked: what is liked and must not be given away, by conversation; one without any says its first draw.
          key: a row's draws depend on it and on the row's number alone.
        """
        if not histories:
            return Answers.innocent([])
        drawn = [self.seekers.say(histories, blocked, jax.random.fold_in(key, draw)) for draw in range(self.draws)]
        weights = np.stack([self._log_weights(histories, blocked, answers) for answers in drawn], axis=1)
        chosen = chosen_draws(jnp.asarray(weights), jax.random.fold_in(key, self.draws))
        rows = list(enumerate(np.asarray(chosen).tolist()))
        return Answers(
            [drawn[draw].messages[row] for row, draw in rows],
            np.array([drawn[draw].leaks[row] for row, draw in rows], bool),
            np.array([drawn[draw].leaks_left[row] for row, draw in rows], bool),
        )

    def _log_weights(
        self, histories: Sequence[Sequence[Message]], blocked: Sequence[Collection[int]], answers: Answers
    ) -> Float32[np.ndarray, " N"]:
        """log p(gold | h, y); 0 where nothing is hidden."""
        heard = [(*history, message) for history, message in zip(histories, answers.messages, strict=True)]
        expected = self.seekers.item_logprobs(heard)
        hidden = np.zeros(expected.shape, bool)
        for row, items in enumerate(blocked):
            hidden[row, [self.vocab.item_index(item) for item in items]] = True
        known = np.logaddexp.reduce(np.where(hidden, expected, -np.inf), axis=1)
        return np.where(hidden.any(axis=1), known, 0.0).astype(np.float32)


def chosen_draws(log_weights: Float32[Array, "N D"], key: Key[Array, ""]) -> Int[Array, " N"]:
    """One of D draws for each row, with chances proportional to the weights; the first where all weigh the same. [N]

    By Gumbel's trick. A row's choice depends on the key, its weights and its number.
    """

    def choose(row: Array, weights: Array) -> Array:
        noise = jax.random.gumbel(jax.random.fold_in(key, row), weights.shape)
        return jnp.where(jnp.ptp(weights) > 0, jnp.argmax(weights + noise), 0)

    return jax.vmap(choose)(jnp.arange(len(log_weights)), log_weights)

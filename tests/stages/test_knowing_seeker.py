"""A seeker that knows by Bayes' rule: against exact chances, and what it may not hang on."""

from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.interfaces import Message
from rlhf_jax.stages.knowing_seeker import KnowingSeekers, chosen_draws
from rlhf_jax.stages.seeker import Answers

VOCAB = Vocabulary.train(["yes", "no"], (11, 12, 13), 300)
SAYS = 0.5
"""Chance of `yes` of one who does not know."""
GUESSES = {"yes": (0.7, 0.2, 0.1), "no": (0.1, 0.1, 0.8)}
"""p(i | h, y)."""


class Coin:
    """Says `yes` or `no` by a coin, and guesses by what was said."""

    def say(
        self, histories: Sequence[Sequence[Message]], blocked: Sequence[Collection[int]], key: jax.Array
    ) -> Answers:
        """See `Seekers`; a `yes` counts as a leak, so that flags can be told apart."""
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(len(histories)))
        yes = np.asarray(jax.vmap(jax.random.uniform)(keys)) < SAYS
        messages = [Message("seeker", ("yes" if one else "no",), 0) for one in yes]
        return Answers(messages, yes, yes)

    def item_logprobs(self, histories: Sequence[Sequence[Message]]) -> np.ndarray:
        """By the last message."""
        return np.log(np.array([GUESSES[str(history[-1].parts[0])] for history in histories], np.float32))


HISTORY = (Message("seeker", ("hello",), 0), Message("recommender", (12,), 1))


@pytest.mark.parametrize("draws", [1, 2, 64])
@pytest.mark.parametrize("gold", [(11,), (11, 12), (13,)])
def test_answers_have_the_chances_of_the_definition(draws: int, gold: tuple[int, ...]) -> None:
    """Exactly, over all numbers of `yes` among the draws; and Bayes' posterior where there are many."""
    n = 4000
    answers = KnowingSeekers(Coin(), VOCAB, draws).say([HISTORY] * n, [gold] * n, jax.random.key(3))
    found = np.mean([message.parts == ("yes",) for message in answers.messages])
    known = {word: sum(GUESSES[word][item - 11] for item in gold) for word in GUESSES}
    some = np.arange(draws + 1)
    binomial = np.array([float(np.prod([(draws - j) / (j + 1) for j in range(k)])) for k in some]) * 0.5**draws
    exact = float(np.sum(binomial * some * known["yes"] / (some * known["yes"] + (draws - some) * known["no"])))
    assert abs(found - exact) < 4 * np.sqrt(exact * (1 - exact) / n)
    posterior = known["yes"] / (known["yes"] + known["no"])
    assert exact == pytest.approx({1: SAYS}.get(draws, exact)) and (draws < 64 or abs(exact - posterior) < 0.01)
    # Each flag is that of the draw that was chosen.
    assert [message.parts == ("yes",) for message in answers.messages] == answers.leaks.tolist()
    assert answers.leaks_left.tolist() == answers.leaks.tolist()


def test_without_anything_hidden_the_first_draw_is_said() -> None:
    key, n = jax.random.key(5), 50
    plain = Coin().say([HISTORY] * n, [()] * n, jax.random.fold_in(key, 0))
    assert KnowingSeekers(Coin(), VOCAB, 8).say([HISTORY] * n, [()] * n, key).messages == plain.messages


def test_a_row_draws_for_itself() -> None:
    seekers, key = KnowingSeekers(Coin(), VOCAB, 8), jax.random.key(6)
    many = seekers.say([HISTORY] * 20, [(11,)] * 20, key)
    assert seekers.say([HISTORY] * 7, [(11,)] * 7, key).messages == many.messages[:7]
    # What another row hides changes nothing.
    assert seekers.say([HISTORY] * 20, [(11,)] * 19 + [(13,)], key).messages[:19] == many.messages[:19]
    assert seekers.say([], [], key).messages == []


def test_impossible_answers_are_never_chosen() -> None:
    weights = jnp.array([[-jnp.inf, 0.0, -jnp.inf], [0.0, 0.0, 0.0], [-jnp.inf] * 3])
    for seed in range(20):
        assert np.asarray(chosen_draws(weights, jax.random.key(seed))).tolist() == [1, 0, 0]

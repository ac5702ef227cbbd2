"""A recommender over six items and a seeker who says nothing new, for tests of what happens in conversations."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.attributes import attributes
from rlhf_jax.data.batching import pad_right
from rlhf_jax.data.reasoning import reasoning_tokens
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.interfaces import Corpus, Dialogue, Item, ItemLabel, Message, Params, PromptBatch, Rollout
from rlhf_jax.models import gpt2
from rlhf_jax.recommenders.scorer import fit_scorer
from rlhf_jax.stages.agent import make_agent
from rlhf_jax.stages.setup import DataConfig, Setup
from rlhf_jax.stages.smtpo.recommender import Recommender, Retrieval, make_recommender
from rlhf_jax.stages.smtpo.seeker import Answers

ITEMS = {
    n: Item(n, f"Film {n}", 1980 + 10 * (n % 2), ("western",) if n < 14 else ("noir",), ("Mara Quill",))
    for n in range(11, 17)
}
DATA = DataConfig(window=6, context_tokens=48, response_tokens=24, max_items=2)


def talk(name: str, named: int, suggested: int, liked: int, later: int) -> Dialogue:
    """Who names an item is suggested one, then another; the form says whether the later one is liked."""
    messages = (
        Message("seeker", ("hello there ", named), 0),
        Message("recommender", ("try this one ", suggested), 1),
        Message("seeker", ("hello again",), 2),
        Message("recommender", ("try ", later), 3),
    )
    form = {suggested: ItemLabel(1, 0, 0), later: ItemLabel(1, 0, liked), named: ItemLabel(0, 1, 1)}
    return Dialogue(name, messages, form, {})


def dialogues(start: int, n: int) -> tuple[Dialogue, ...]:
    """Naming 11 likes 13, naming 12 likes 15; every fifth likes nothing."""
    draws = [(11, 14, 1, 13), (12, 16, 1, 15), (11, 16, 1, 13), (12, 14, 1, 15), (11, 12, 0, 14)]
    return tuple(talk(f"d{number:03d}", *draws[number % 5]) for number in range(start, start + n))


def make() -> Recommender:
    """Closed forms alone recall three of the six items."""
    vocab = Vocabulary.train(["hello there", "try this one", "western, 80s", "noir, 90s"], tuple(ITEMS), 300)
    network = gpt2.GPT2Config(vocab_size=vocab.size, n_positions=80, n_embd=16, n_layer=1, n_head=2)
    corpus = Corpus(dialogues(0, 20), dialogues(20, 10), dialogues(30, 10), ITEMS, {"n_skipped": 0})
    agent = make_agent(vocab, network, max_items=2, response_tokens=24)
    scorer = fit_scorer(corpus, vocab.item_ids)
    setup = Setup(DATA, corpus, vocab, agent, seed=0, scorer=scorer)
    retrieval = Retrieval(scorer, None, dict.fromkeys(scorer.parts, 1.0), n=3)
    return make_recommender(setup, attributes(ITEMS, vocab.item_ids), retrieval, said=2)


class Scripted:
    """A policy that says prescribed lists; remembers what it was asked."""

    def __init__(
        self,
        recommender: Recommender,
        lists: Sequence[Sequence[tuple[int, ...]]],
        said: str,
        words: Sequence[str] = (),
    ) -> None:
        """`words` follow the lists, the same ones for all; a turn each."""
        self._recommender, self._lists, self._said, self._words = recommender, lists, said, words
        self.asked: list[PromptBatch] = []

    def __call__(self, params: Params, prompts: PromptBatch, key: Any) -> Rollout:
        """The next list of every conversation."""
        del params, key
        vocab, known = self._recommender.setup.vocab, self._recommender.attributes
        rows = self._lists[len(self.asked)]
        words = vocab.encode_text(self._words[len(self.asked)]) if self._words else []
        self.asked.append(prompts)
        place = [known.words.index(self._said)]
        sequences = [reasoning_tokens(vocab, known, place, row, words, max_tokens=24) for row in rows]
        tokens, mask = pad_right(sequences, 24, vocab.pad)
        return Rollout(
            prompt_tokens=prompts.tokens,
            prompt_mask=prompts.mask,
            response_tokens=jnp.asarray(tokens),
            response_mask=jnp.asarray(mask),
            logprobs=jnp.zeros(tokens.shape),
            finished=jnp.ones(len(rows), bool),
            candidates=prompts.candidates,
        )


class Quiet:
    """Seekers who say `hello again`; remember what they heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[list[Sequence[Message]], list[Collection[int]]]] = []

    def say(
        self, histories: Sequence[Sequence[Message]], blocked: Sequence[Collection[int]], key: jax.Array
    ) -> Answers:
        """See `Seekers`."""
        del key
        self.heard.append((list(histories), list(blocked)))
        return Answers.innocent([Message("seeker", ("hello again",), 0) for _ in histories])


def without_forms(dialogue: Dialogue) -> Dialogue:
    """The same conversation of a seeker who filled in no form."""
    return dataclasses.replace(dialogue, seeker_labels={})


def numbers(array: Any) -> list:
    """As nested lists."""
    return np.asarray(array).tolist()

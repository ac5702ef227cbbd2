"""One conversation with a policy: a person's words in, a reply with items out."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.assessment.finished_run import Finished
from rlhf_jax.data.batching import pad_left
from rlhf_jax.data.items import spelled_titles
from rlhf_jax.data.titles import TitleIndex
from rlhf_jax.data.windows import prompt_from_utterances, response_parts, utterance_from_response, utterance_tokens
from rlhf_jax.interfaces import Message, Params, PromptBatch


class Reply(NamedTuple):
    """What the policy answers."""

    words: str
    """Titles spelled out."""
    suggested: tuple[str, ...]
    """Titles of its suggestion list, in order."""


class Conversation:
    """Remembers what was said, as tokens: the policy's own are never encoded again."""

    def __init__(self, run: Finished, params: Params, *, greedy: bool = False, seed: int = 0) -> None:
        self._vocab, self._data, self._params = run.vocab, run.data, params
        self._titles = spelled_titles(run.corpus.items)
        self._index = TitleIndex(run.corpus.items)
        self._key = jax.random.key(seed)
        self._replies = 0
        self._utterances: list[list[int]] = []
        agent = run.agent
        if greedy:
            self._respond = jax.jit(lambda params, prompts, key: agent.greedy(params, prompts, key, None))
        else:
            self._respond = jax.jit(agent.sample)
        self._score = jax.jit(lambda params, prompts: jax.nn.softmax(agent.score_items(params, prompts)[0]))

    def title(self, item_id: int) -> str:
        """As shown to people."""
        return self._titles.get(item_id, f"@{item_id}")

    def hear(self, text: str) -> tuple[int, ...]:
        """Takes what the person says; returns the items that were recognised in it."""
        message = Message(role="seeker", parts=self._index.parts(text), message_id=len(self._utterances))
        self._utterances.append(utterance_tokens(self._vocab, message))
        return tuple(dict.fromkeys(message.items))

    def reply(self) -> Reply:
        """Answers, and remembers the answer."""
        key = jax.random.fold_in(self._key, self._replies)
        self._replies += 1
        rollout = self._respond(self._params, self._prompt(), key)
        tokens = np.asarray(rollout.response_tokens)[0][np.asarray(rollout.response_mask)[0]]
        self._utterances.append(utterance_from_response(self._vocab, tokens))
        parts = response_parts(self._vocab, tokens)
        words = " ".join(self._vocab.decode(parts.words, self._titles).split())
        return Reply(words, tuple(map(self.title, parts.items)))

    def top(self, n: int) -> list[tuple[str, float]]:
        """The items the policy would suggest first, were it to suggest now, with their probabilities."""
        probabilities = np.asarray(self._score(self._params, self._prompt()))
        best = np.argsort(-probabilities, kind="stable")[:n]
        return [(self.title(self._vocab.item_ids[index]), float(probabilities[index])) for index in best]

    def reset(self) -> None:
        """Forgets everything that was said."""
        self._utterances.clear()

    def _prompt(self) -> PromptBatch:
        length = self._data.context_tokens
        prompt = prompt_from_utterances(self._vocab, self._utterances, window=self._data.window, context_tokens=length)
        tokens, mask = pad_left([prompt], length, self._vocab.pad)
        return PromptBatch(tokens=jnp.asarray(tokens), mask=jnp.asarray(mask))

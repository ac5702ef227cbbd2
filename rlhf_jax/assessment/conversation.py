"""One conversation with a policy: a person's words in, a reply with items out."""

import copy
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.assessment.finished_run import Finished
from rlhf_jax.data.batching import pad_left
from rlhf_jax.data.items import spelled_titles
from rlhf_jax.data.titles import TitleIndex
from rlhf_jax.data.windows import (
    prompt_from_utterances,
    response_message,
    response_parts,
    utterance_from_response,
    utterance_tokens,
)
from rlhf_jax.feedback.weak_labels import weighted_sum
from rlhf_jax.interfaces import Message, Params, PromptBatch
from rlhf_jax.stages.agent import Agent
from rlhf_jax.stages.reward import Proxy

_NAMED = re.compile(r"\"([^\"]+)\"|((?:[A-Z0-9][\w'’&:.-]*,? )+\(\d{4}\))")


class Reply(NamedTuple):
    """What the policy answers."""

    words: str
    """Titles spelled out."""
    suggested: tuple[str, ...]
    """Titles of its suggestion list, in order."""
    components: dict[str, float]
    """What the reward model says of the reply, by component, z-units; empty where there is no reward model."""
    score: float | None
    """Their weighted sum, as PPO weighs them; None where there is no reward model."""


class Sight(NamedTuple):
    """How much of a conversation the policy reads before its next reply."""

    messages: int
    """Messages there are, of both sides."""
    read: int
    """The newest so many are read."""
    newest_cut: bool
    """The newest message alone is longer than the prompt: only its end is read."""


class Turn(NamedTuple):
    """One turn of each side."""

    recognised: tuple[str, ...]
    """Titles recognised in what the person said."""
    unknown: tuple[str, ...]
    """What looks like a title, "in quotes" or With a Year (1999), or like @id, and is none of the catalogue's."""
    top: list[tuple[str, float]]
    """Items the policy would suggest first, and the probability of each."""
    sight: Sight
    """Of the reply."""
    reply: Reply


class Conversation:
    """Remembers what was said, as tokens: the policy's own are never encoded again; and as messages, for the prior."""

    greedy: bool
    """The likeliest token each time, instead of sampling; may be switched between turns."""

    def __init__(
        self, run: Finished, params: Params, *, proxy: Proxy | None = None, greedy: bool = False, seed: int = 0
    ) -> None:
        self._vocab, self._data, self._params, self._proxy = run.vocab, run.data, params, proxy
        self._titles = spelled_titles(run.corpus.items)
        self._index = TitleIndex(run.corpus.items)
        self._agent = run.agent
        self._key = jax.random.key(seed)
        self._replies = 0
        self._utterances: list[list[int]] = []
        self._said: list[Message] = []
        self._scorer = run.scorer
        self._forgotten = 0
        self.greedy = greedy

    def afresh(self, *, seed: int) -> "Conversation":
        """Another conversation with the same policy, in which nothing was said yet; it shares all that takes time to make."""
        other = copy.copy(self)
        other._key, other._replies, other._forgotten = jax.random.key(seed), 0, 0
        other._utterances, other._said = [], []
        return other

    def title(self, item_id: int) -> str:
        """As shown to people."""
        return self._titles.get(item_id, f"@{item_id}")

    def turn(self, text: str, n_top: int) -> Turn:
        """Takes what the person says, and answers.

        Args:
          text: anything; it counts as said even if it has no words.
          n_top: how many items of the policy's ranking are told.
        """
        recognised = self.hear(text)
        top, sight = self.top(n_top), self.sight()
        titles = tuple(map(self.title, recognised))
        return Turn(titles, self._unknown(text, titles), top, sight, self.reply())

    def hear(self, text: str) -> tuple[int, ...]:
        """Takes what the person says; returns the items that were recognised in it."""
        message = Message(role="seeker", parts=self._index.parts(text), message_id=len(self._utterances))
        self._remember(utterance_tokens(self._vocab, message), message)
        return tuple(dict.fromkeys(message.items))

    def reply(self) -> Reply:
        """Answers, and remembers the answer."""
        key = jax.random.fold_in(self._key, self._replies)
        self._replies += 1
        has_proxy = self._proxy is not None
        respond = self._agent.compiled(
            ("chat reply", self.greedy, has_proxy), lambda: _compiled_reply(self._agent, greedy=self.greedy)
        )
        model = self._proxy.model if self._proxy is not None else None
        rollout, scores = respond(self._params, model, self._prompt(), key)
        tokens = np.asarray(rollout.response_tokens)[0][np.asarray(rollout.response_mask)[0]]
        self._remember(utterance_from_response(self._vocab, tokens), response_message(self._vocab, tokens.tolist()))
        parts = response_parts(self._vocab, tokens)
        words = " ".join(self._vocab.decode(parts.words, self._titles).split())
        components, score = {}, None
        if self._proxy is not None:
            values = np.asarray(scores, np.float64)
            components = dict(zip(self._proxy.names, values[0].tolist(), strict=True))
            score = float(weighted_sum(values, self._proxy.weights)[0])
        return Reply(words, tuple(map(self.title, parts.items)), components, score)

    def top(self, n: int) -> list[tuple[str, float]]:
        """The items the policy would suggest first, were it to suggest now, with their probabilities."""
        score = self._agent.compiled(
            "chat top",
            lambda: jax.jit(lambda params, prompts: jax.nn.softmax(self._agent.score_items(params, prompts)[0])),
        )
        probabilities = np.asarray(score(self._params, self._prompt()))
        best = np.argsort(-probabilities, kind="stable")[:n]
        return [(self.title(self._vocab.item_ids[index]), float(probabilities[index])) for index in best]

    def sight(self) -> Sight:
        """How much of what was said is in the prompt of the next reply."""
        prompt = self._prompt_tokens()[:-1]
        read = sum(token in (self._vocab.seeker, self._vocab.recommender) for token in prompt)
        cut = bool(self._utterances) and read == 1 and len(prompt) < len(self._utterances[-1])
        return Sight(self._forgotten + len(self._utterances), read, cut)

    def reset(self) -> None:
        """Forgets everything that was said."""
        self._utterances.clear()
        self._said.clear()
        self._forgotten = 0

    def _unknown(self, text: str, recognised: tuple[str, ...]) -> tuple[str, ...]:
        known = " / ".join(recognised).lower()
        names = [name for pair in _NAMED.findall(text) for name in pair if name and name.lower() not in known]
        numbers = [f"@{number}" for number in re.findall(r"@(\d{1,18})", text) if int(number) not in self._titles]
        return tuple(dict.fromkeys(names + numbers))

    def _remember(self, utterance: list[int], message: Message) -> None:
        """Adds an utterance. What no prompt can hold is let go: all but the end of a longer one, and the oldest ones."""
        limit = self._data.context_tokens
        if self._scorer is not None:
            self._said.append(message)
        self._utterances.append(utterance if len(utterance) <= limit else [utterance[0], *utterance[-limit:]])
        surplus = len(self._utterances) - limit
        if surplus > 0:
            del self._utterances[:surplus]
            del self._said[:surplus]
            self._forgotten += surplus

    def _prompt_tokens(self) -> list[int]:
        return prompt_from_utterances(
            self._vocab, self._utterances, window=self._data.window, context_tokens=self._data.context_tokens
        )

    def _prompt(self) -> PromptBatch:
        tokens, mask = pad_left([self._prompt_tokens()], self._data.context_tokens, self._vocab.pad)
        scores = None if self._scorer is None else jnp.asarray(self._scorer.of_histories([self._said]))
        return PromptBatch(tokens=jnp.asarray(tokens), mask=jnp.asarray(mask), item_scores=scores)


def _compiled_reply(agent: Agent, *, greedy: bool) -> Any:
    """One program for all conversations: reply, and what the reward model (where there is one) says of it."""

    def reply(params: Params, reward_model: Params | None, prompts: PromptBatch, key: Any) -> Any:
        rollout = agent.greedy(params, prompts, key, None) if greedy else agent.sample(params, prompts, key)
        return rollout, None if reward_model is None else agent.score(reward_model, rollout)

    return jax.jit(reply)

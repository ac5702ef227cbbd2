"""Conversations over several turns, in step: a reasoning policy speaks, a seeker answers, and every turn is paid.

Lines 5a (steps 1 and 2 below), 5b (3) and 5c (4) of docs/algorithms/smtpo.md. Each of R conversations begins with an opening,
the context before the first recommendation of a logged dialogue, whose seeker is known to like something that comes later: the
gold. In turn k

    1. the window of the conversation becomes a prompt, and the turn's candidates are recalled anew;
    2. the policy replies: one compiled program, all conversations at once;
    3. the reply is taken apart and paid:
         format           1 for the whole reasoning form, attributes of the catalogue and a full list; else 0
         recommendation   NDCG of the list against the gold that nobody has named
         preference       F1 of the attributes it infers against those of that gold
    4. a conversation whose list holds gold has succeeded and ends; in all others the seeker answers.

The gold pays and ends a conversation. It never enters a prompt, and decoding keeps the seeker from saying it. All draws
depend on the key and the conversation's number alone, so an update that is cut short is replayed from its beginning.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, Key

from rlhf_jax.data.turns import spell
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import response_message
from rlhf_jax.feedback.recommendation import preference_reward, recommendation_gains
from rlhf_jax.interfaces import Message, Params, PromptBatch, Rollout
from rlhf_jax.stages.smtpo.human_turns import ReasonedTurn
from rlhf_jax.stages.smtpo.recommender import Recommender
from rlhf_jax.stages.smtpo.seeker import NOTHING_LEFT, Answers

COMPONENTS = ("format", "recommendation", "preference")
"""What a turn is paid for, in this order."""
Speak = Callable[[Params, PromptBatch, Key[Array, ""]], Rollout]
"""A policy's replies, compiled."""


@runtime_checkable
class Seekers(Protocol):
    """A crowd that answers from the conversation alone; `SeekerSimulator` is one."""

    def say(
        self, histories: Sequence[Sequence[Message]], blocked: Sequence[Collection[int]], key: Key[Array, ""]
    ) -> Answers:
        """The next message of each conversation, whose last one is the recommender's.

        Args:
          blocked: item ids that must not be given away, by conversation.
        """
        ...


class OtherSeekers(NamedTuple):
    """The control that hears nothing: everyone gets the answer that the next conversation's seeker would give."""

    seekers: Seekers

    def say(
        self, histories: Sequence[Sequence[Message]], blocked: Sequence[Collection[int]], key: Key[Array, ""]
    ) -> Answers:
        """See `Seekers`; what is blocked is blocked for the one who hears it."""
        return self.seekers.say([*histories[1:], histories[0]], blocked, key)


class SilentSeekers:
    """The control whose conversations go on without a word: what answers are worth is what is gained over it.

    Somebody else's answers mislead, and so make any answers look good beside them.
    """

    def say(
        self, histories: Sequence[Sequence[Message]], blocked: Sequence[Collection[int]], key: Key[Array, ""]
    ) -> Answers:
        """See `Seekers`; everyone says the same nothing."""
        del blocked, key
        return Answers.innocent([Message("seeker", NOTHING_LEFT, 0) for _ in histories])


class Turns(NamedTuple):
    """What happened in R conversations of at most T turns."""

    rollouts: tuple[Rollout, ...]
    """A rollout of R rows for each of T turns; rows of conversations that had ended say nothing of interest. [T]"""
    rewards: Float32[np.ndarray, "R T 3"]
    """By `COMPONENTS`; 0 where a conversation had ended."""
    settled: Float32[np.ndarray, "R T 3 S"]
    """What of each reward was settled before each place of the turn, see `settled_before`; 0 where it had ended."""
    places: tuple[Int32[np.ndarray, "R length"], ...]
    """Place of every token, a turn each. [T]"""
    running: Bool[np.ndarray, "R T"]
    """True on the turns a conversation had."""
    gold_rank: Int32[np.ndarray, "R T"]
    """Place of the first gold item in the list, from 1; 0 where it holds none."""
    gold_recalled: Bool[np.ndarray, "R T"]
    """Whether any gold item was among the turn's candidates."""
    attributes_said: Int32[np.ndarray, "R T"]
    """How many."""
    repeated: Bool[np.ndarray, "R T"]
    """Whether the list holds an item that was named before, which the candidates forbid."""
    echoed: Bool[np.ndarray, "R T"]
    """Whether the reply's words, items left out, are those of an earlier reply of this conversation: the same question again."""
    answers: Int32[np.ndarray, " R"]
    """How many the conversation had, before its last turn."""
    leaks: Int32[np.ndarray, " R"]
    """Those of them that named something hidden as they were drawn."""
    leaks_left: Int32[np.ndarray, " R"]
    """Those that still did when they were heard."""
    histories: tuple[tuple[Message, ...], ...]
    """What was said. [R]"""

    @property
    def success(self) -> Bool[np.ndarray, "R T"]:
        """True where gold has been listed within t + 1 turns."""
        return np.logical_or.accumulate((self.gold_rank > 0) & self.running, axis=1)


def converse(
    recommender: Recommender,
    speak: Speak,
    params: Params,
    seekers: Seekers,
    openings: Sequence[ReasonedTurn],
    *,
    n_turns: int,
    key: Key[Array, ""],
) -> Turns:
    """Runs conversations until all have succeeded or had `n_turns` turns.

    Args:
      speak: draws (or chooses) the replies.
      openings: where they begin; the same one several times is a group. [R]
      key: of all draws.
    Raises: ValueError without an opening or a turn.
    """
    if not openings or n_turns < 1:
        raise ValueError(f"{len(openings)} conversations of {n_turns} turns: both must be at least 1")
    vocab, n = recommender.setup.vocab, len(openings)
    columns = {item: column for column, item in enumerate(vocab.item_ids)}
    histories = [opening.dialogue.messages[: opening.index] for opening in openings]
    ids = [opening.dialogue.dialogue_id for opening in openings]
    gold = np.zeros((n, len(columns)), bool)
    for row, opening in enumerate(openings):
        gold[row, [columns[item] for item in opening.gold]] = True
    shape = (n, n_turns)
    found = Turns(
        rollouts=(),
        rewards=np.zeros((*shape, len(COMPONENTS)), np.float32),
        settled=np.zeros((*shape, len(COMPONENTS), recommender.list_length + 2), np.float32),
        places=(),
        running=np.zeros(shape, bool),
        gold_rank=np.zeros(shape, np.int32),
        gold_recalled=np.zeros(shape, bool),
        attributes_said=np.zeros(shape, np.int32),
        repeated=np.zeros(shape, bool),
        echoed=np.zeros(shape, bool),
        answers=np.zeros(n, np.int32),
        leaks=np.zeros(n, np.int32),
        leaks_left=np.zeros(n, np.int32),
        histories=(),
    )
    rollouts: list[Rollout] = []
    places: list[Int32[np.ndarray, "R length"]] = []
    ended: dict[int, tuple[Message, ...]] = {}
    running: Bool[np.ndarray, " R"] = np.ones(n, bool)
    worded: list[set[str]] = [set() for _ in openings]
    for turn in range(n_turns):
        # 1.–2. Ended conversations stay in the batch, so that one program serves all turns.
        prompts, scores = recommender.prompts(histories, ids)
        rollout = speak(params, prompts, jax.random.fold_in(key, 2 * turn))
        rollouts.append(rollout)
        # 3. Take apart and pay.
        replies = recommender.read(rollout)
        listed = np.full((n, recommender.list_length), -1, np.int32)
        for row, reply in enumerate(replies):
            listed[row, : len(reply.items)] = reply.items[: recommender.list_length]
        said = np.stack([reply.attributes for reply in replies])
        kept = np.asarray(prompts.candidates)
        lengths = np.minimum(kept.sum(axis=1), recommender.list_length)
        formed = [reply.well_formed(int(length)) for reply, length in zip(replies, lengths, strict=True)]
        wanted = (gold.astype(np.float32) @ recommender.attributes.of_items.astype(np.float32)) > 0
        gains, inferred = (np.asarray(part) for part in _pay(listed, gold, said, wanted))
        paid = np.stack([np.array(formed, np.float32), gains.sum(axis=1), inferred], axis=1)
        found.rewards[running, turn] = paid[running]
        attributed = np.array([reply.attributed for reply in replies])
        full = np.array([len(reply.items) for reply in replies]) == lengths
        found.settled[running, turn] = settled_before(attributed, full, gains, inferred)[running]
        places.append(places_of(vocab, np.asarray(rollout.response_tokens), recommender.list_length))
        found.running[:, turn] = running
        found.attributes_said[running, turn] = said.sum(axis=1)[running]
        found.gold_recalled[running, turn] = np.asarray((kept & gold).any(axis=1))[running]
        hit: Bool[np.ndarray, "R K"] = np.take_along_axis(gold, np.maximum(listed, 0), axis=1) & (listed >= 0)
        found.gold_rank[running, turn] = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0)[running]
        named = np.isneginf(np.take_along_axis(scores, np.maximum(listed, 0), axis=1)) & (listed >= 0)
        found.repeated[running, turn] = np.asarray(named.any(axis=1))[running]
        # 4. Who has succeeded leaves; the others answer.
        running = running & ~hit.any(axis=1)
        tokens, mask = np.asarray(rollout.response_tokens), np.asarray(rollout.response_mask)
        messages = [response_message(vocab, row[own].tolist()) for row, own in zip(tokens, mask, strict=True)]
        words = [_words(message) for message in messages]
        found.echoed[:, turn] = found.running[:, turn] & [one in said for one, said in zip(words, worded, strict=True)]
        for said, one in zip(worded, words, strict=True):
            said |= {one} - {""}
        histories = [(*history, message) for history, message in zip(histories, messages, strict=True)]
        for row in np.flatnonzero(~running):
            ended.setdefault(int(row), histories[row])
        if turn + 1 == n_turns or not running.any():
            break
        # Of a conversation that is over nothing is hidden any more.
        blocked = [
            [vocab.item_ids[column] for column in np.flatnonzero(row)] if goes_on else []
            for row, goes_on in zip(gold, running, strict=True)
        ]
        answers = seekers.say(histories, blocked, jax.random.fold_in(key, 2 * turn + 1))
        found.answers[:] += running
        found.leaks[:] += answers.leaks & running
        found.leaks_left[:] += answers.leaks_left & running
        histories = [(*history, message) for history, message in zip(histories, answers.messages, strict=True)]
    said_in_all = tuple(ended.get(row, history) for row, history in enumerate(histories))
    return found._replace(rollouts=tuple(rollouts), places=tuple(places), histories=said_in_all)


def _words(message: Message) -> str:
    return spell(message.parts, placeholder="").lower()


def places_of(
    vocab: Vocabulary, tokens: Int32[np.ndarray, "R length"], list_length: int
) -> Int32[np.ndarray, "R length"]:
    """Where each token stands in its turn, as far as it can move what the turn is paid.

    0           up to `<rec>`, itself included: it ends the attributes
    1 … K       chooses the item of that place of the list, or ends the list there
    K + 1       after the list
    """
    listing = np.cumsum(tokens == vocab.rec, axis=1) - (tokens == vocab.rec) > 0
    over = np.cumsum(tokens == vocab.say, axis=1) - (tokens == vocab.say) > 0
    first, last = vocab.item_token(vocab.item_ids[0]), vocab.item_token(vocab.item_ids[-1])
    chosen = (tokens >= first) & (tokens <= last) & listing & ~over
    before = np.cumsum(chosen, axis=1) - chosen
    place = np.where(over, list_length + 1, np.minimum(before, list_length) + 1)
    return np.where(listing, place, 0).astype(np.int32)


def settled_before(
    attributed: Bool[np.ndarray, " R"],
    full: Bool[np.ndarray, " R"],
    gains: Float[np.ndarray, "R K"],
    inferred: Float[np.ndarray, " R"],
) -> Float32[np.ndarray, "R 3 S"]:
    """What tokens before each place alone decide of each of `COMPONENTS`; S = K + 2, see `places_of`.

    Of the form whether it is still whole: 0 where the attributes spoilt it, which nothing can mend, else 1, which list and end
    can still spoil. Of the others the part that is paid by then: inferred attributes stand when the list begins; a list's
    gains come one by one.

    Args:
      attributed: the form is whole up to its list.
      full: the list has as many items as it should.
    """
    n, length = gains.shape
    settled = np.zeros((n, len(COMPONENTS), length + 2), np.float32)
    settled[:, 0, 1:] = attributed[:, None]
    settled[:, 0, length + 1] = attributed & full
    settled[:, 1, 2:] = np.cumsum(gains, axis=1)
    settled[:, 2, 1:] = inferred[:, None]
    return settled


@jax.jit
@jax.vmap
def _pay(listed: Array, gold: Array, said: Array, wanted: Array) -> tuple[Float[Array, " K"], Float[Array, ""]]:
    """Recommendation of one turn, place by place of its list, and preference."""
    return recommendation_gains(listed, gold), preference_reward(said, wanted)

"""The reasoning form of SMTPO by imitation: the turns that a policy should learn to say, and the stage that teaches them.

What is imitated:

    attributes   what most of the items have that the seeker will still like, the commonest first
    list         these items, then the retriever's best candidates
    words        those of the human recommender

A policy that lists ten items a turn reads lists of ten in its later turns, where humans name one item a message. So a share of the
turns can be imitated as they would stand in the policy's own conversation: with such lists before them.

Messages of dialogues whose seeker likes nothing more are not imitated: nobody knows what to list there.
"""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from rlhf_jax.data.attributes import Attributes, attributes
from rlhf_jax.data.batching import batch_indices, pad_right
from rlhf_jax.data.reasoning import FRAME, reasoning_tokens, sayable
from rlhf_jax.data.windows import is_empty
from rlhf_jax.decoding import prior
from rlhf_jax.interfaces import Message, Params, PolicyApply, PolicyOutput, Rollout
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import sft
from rlhf_jax.learners.microbatch import LossSums
from rlhf_jax.learners.minibatch import supervised_loss
from rlhf_jax.learners.optimizer import TrainState, falling_by_cosine, steps_taken
from rlhf_jax.ranges import Batch, Range, Rate, Share, Size, Steps, check_numbers
from rlhf_jax.recommenders.contexts import contexts_of
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.runtime.stage import Best, StagePlan, run_stage
from rlhf_jax.stages.agent import on_mesh
from rlhf_jax.stages.setup import Setup
from rlhf_jax.stages.smtpo.human_turns import ReasonedTurn, reasoned_turns
from rlhf_jax.stages.smtpo.recommender import RETRIEVED, Recommender

STAGE = "reasoning"


@dataclasses.dataclass(frozen=True)
class ReasoningConfig:
    """How the reasoning form is learnt, and how much it says."""

    steps: Steps = 400
    """Optimiser steps."""
    batch_size: Batch = 32
    """Turns of a step."""
    attributes: Annotated[int, Range("[1, 100]")] = 4
    """Attributes that an imitated turn names at most."""
    listed_before: Share = 0.0
    """Chance of an imitated turn to stand after full lists, as a policy's own turns do (`with_lists`). Turns before which the
    recommender named nothing stay as they are, and those whose gold such a list would hold: that conversation would be over."""
    min_items: Size = 5
    """Fewest items of the catalogue that share an attribute; rarer ones are neither said nor paid for."""
    learning_rate: Rate = 5e-4
    """Peak of the cosine schedule."""
    warmup_steps: Annotated[int, Range("[0, 1_000_000]")] = 20
    """Steps until the peak."""
    weight_decay: Share = 0.05
    """AdamW's, on matrices."""
    evaluations: Steps = 4
    """On validation turns; the best state is kept."""
    validation_turns: Size = 256
    """Turns an evaluation reads at most."""

    def __post_init__(self) -> None:
        check_numbers(self)


def attributes_of(setup: Setup, config: ReasoningConfig) -> Attributes:
    """Attributes of the policy's items that enough of them share; to be asked for before anything is trained.

    Raises: RunError where there are none; ValueError where the longest of them and a whole list leave no room to speak.
    """
    found = attributes(setup.corpus.items, setup.vocab.item_ids, min_count=config.min_items)
    if not found.names:
        raise RunError(
            f"--reasoning.min-items {config.min_items}: no genre, decade or person is shared by so many items of the catalogue"
        )
    said = [f" {word}," for word in found.words]
    lengths = sorted(len(tokens) for tokens in setup.vocab.encode_texts(said))
    needed = sum(lengths[-config.attributes :]) + setup.data.max_items + FRAME
    if needed > setup.data.response_tokens:
        raise ValueError(
            f"--data.response-tokens {setup.data.response_tokens}: --reasoning.attributes {config.attributes}, --data.max-items "
            f"{setup.data.max_items} and the form may take {needed}"
        )
    return found


class Demonstrations:
    """Turns in the reasoning form, as if a policy had said them; a batch is a function of (seed, step)."""

    def __init__(self, recommender: Recommender, turns: Sequence[ReasonedTurn], *, seed: int) -> None:
        self.turns, self._recommender, self._seed = turns, recommender, seed
        self._column = {item: column for column, item in enumerate(recommender.setup.vocab.item_ids)}

    def batch(self, step: int, size: int, own: slice = slice(None)) -> Rollout:
        """Rows `own` of batch `step`."""
        rows = batch_indices(len(self.turns), seed=self._seed, step=step, batch_size=size)
        draws = np.random.Generator(np.random.PCG64([self._seed, step, zlib.crc32(b"listed before")])).random(size)
        listed = draws < self._recommender.lists_before.chance
        return self.of([self.turns[row] for row in rows[own]], listed[own].tolist())

    def of(self, turns: Sequence[ReasonedTurn], listed_before: Sequence[bool] = ()) -> Rollout:
        """These turns; what the seeker will like is among the candidates whatever the retriever says.

        Args:
          listed_before: before which of them the recommender's messages name full lists; none where nothing is given.
        """
        setup = self._recommender.setup
        vocab, data, length = setup.vocab, setup.data, self._recommender.list_length
        liked = [[self._column[item] for item in turn.gold] for turn in turns]
        gold = [columns[:length] for columns in liked]
        prompts, scores = self._recommender.prompts(
            self._histories(turns, listed_before), [turn.dialogue.dialogue_id for turn in turns], also=gold
        )
        sequences = []
        candidates = np.asarray(prompts.candidates)
        for turn, columns, whole, row, kept in zip(turns, gold, liked, scores, candidates, strict=True):
            best = np.argsort(-np.where(kept, row, -np.inf), kind="stable")[: int(kept.sum())]
            listed = list(dict.fromkeys([*columns, *best.tolist()]))[:length]
            wanted = wanted_attributes(self._recommender.attributes, whole, self._recommender.said)
            words = vocab.encode_parts(turn.dialogue.messages[turn.index].parts)
            if not wanted:
                # What is liked shares no attribute with enough items: the usual form.
                items = [vocab.first_item + column for column in listed]
                said = sayable(vocab, words, items, data.response_tokens - len(items) - 3, once=data.items_once)
                sequences.append([vocab.rec, *items, vocab.say, *said, vocab.eos])
                continue
            sequences.append(
                reasoning_tokens(
                    vocab,
                    self._recommender.attributes,
                    wanted,
                    [vocab.item_ids[column] for column in listed],
                    words,
                    max_tokens=data.response_tokens,
                    once=data.items_once,
                )
            )
        tokens, mask = pad_right(sequences, data.response_tokens, vocab.pad)
        return Rollout(
            prompt_tokens=prompts.tokens,
            prompt_mask=prompts.mask,
            response_tokens=jnp.asarray(tokens),
            response_mask=jnp.asarray(mask),
            logprobs=jnp.zeros(tokens.shape, jnp.float32),
            finished=jnp.ones(len(turns), bool),
            item_scores=prompts.item_scores,
            candidates=prompts.candidates,
        )

    def _histories(self, turns: Sequence[ReasonedTurn], listed_before: Sequence[bool]) -> list[tuple[Message, ...]]:
        """What was said before each turn. [N]"""
        histories = [turn.dialogue.messages[: turn.index] for turn in turns]
        chosen: list[int] = np.flatnonzero(listed_before).tolist()
        if not chosen:
            return histories
        scorer, length, most = (
            self._recommender.retrieval.scorer,
            self._recommender.list_length,
            self._recommender.lists_before.most,
        )
        numbers = [scorer.training.numbers.get(turns[row].dialogue.dialogue_id, -1) for row in chosen]
        contexts = contexts_of([histories[row] for row in chosen], scorer.catalogue, own=numbers)
        _, scores = self._recommender.retrieval.look_up(contexts, scorer)
        item_ids = self._recommender.setup.vocab.item_ids
        for row, own in zip(chosen, scores, strict=True):
            # As many as such lists can hold, and no item that somebody named.
            n = min(length * most, int(np.isfinite(own).sum()))
            best = [item_ids[column] for column in np.argsort(-own, kind="stable")[:n]]
            told = with_lists(histories[row], best, length, most)
            listed = {item for message in told for item in message.items}
            # A list that held what the seeker likes would have ended the conversation: such a turn is not told so. (Lists without
            # it instead would teach that the best item which is left is the one.)
            if not listed & set(turns[row].gold):
                histories[row] = told
        return histories


def with_lists(history: Sequence[Message], others: Sequence[int], length: int, most: int) -> tuple[Message, ...]:
    """A history as if the recommender had listed `length` items in its turns, from the first that names one on.

    Of its turns the last `most` are told so; of messages in a row the first that says anything. It keeps its words and its
    items; before them stand as many of `others` as the list lacks, in order, each once in the history.

    Args:
      others: item ids that nobody has named, best first.

    Examples:
      >>> said = (Message("recommender", ("hello",), 0), Message("recommender", ("see", 7), 1), Message("seeker", (), 2))
      >>> [message.parts for message in with_lists(said, (8, 9), 2, 3)]
      [('hello',), (8, 'see', 7), ()]
    """
    turns: list[int] = []
    begun, speaker = False, ""
    for place, message in enumerate(history):
        if is_empty(message):
            continue
        begun |= message.role == "recommender" and bool(message.items)
        if begun and message.role == "recommender" and speaker != "listed":
            turns.append(place)
        speaker = "listed" if begun and message.role == "recommender" else message.role
    left, told = list(others), list(history)
    for place in turns[-most:]:
        message = history[place]
        n = max(0, length - len(set(message.items)))
        told[place] = dataclasses.replace(message, parts=(*left[:n], *message.parts))
        del left[:n]
    return tuple(told)


def wanted_attributes(attributes: Attributes, columns: Sequence[int], n: int) -> list[int]:
    """Places of the n attributes that most of the items have; of equal ones the commonest of the catalogue."""
    having = attributes.of_items[list(columns)].sum(axis=0)
    # Names stand in falling order of frequency.
    return [int(place) for place in np.argsort(-having, kind="stable")[:n] if having[place]]


def train(run: RunDirectory, recommender: Recommender, trunk: Params, config: ReasoningConfig) -> Params:
    """Teaches the reasoning form; returns the policy's tree, that of the lowest validation loss.

    Args:
      trunk: supervised GPT-2.
    Raises: RunError where no seeker of the training or validation split likes anything that the recommender named first.
    """
    setup = recommender.setup
    policy, layout = on_mesh(setup.agent, setup.layout).policy, setup.layout
    parts = [reasoned_turns(part) for part in (setup.corpus.train, setup.corpus.validation)]
    if not all(parts):
        raise RunError(
            "reasoning: no seeker of the training or of the validation split is known to like what was suggested: SMTPO reads "
            "the seekers' forms"
        )
    learnt, checked = (Demonstrations(recommender, turns, seed=setup.seed) for turns in parts)
    rate, optimizer = falling_by_cosine(
        config.learning_rate,
        warmup_steps=config.warmup_steps,
        total_steps=config.steps,
        weight_decay=config.weight_decay,
    )
    key = stream_key(jax.random.key(setup.seed), STAGE, 0)
    if setup.scorer is not None and RETRIEVED in setup.scorer.parts:
        # Behind gold, lists are imitated in the retriever's own order: its weight would rise by construction.
        policy = without_prior_gradient(policy)
    loss = functools.partial(turn_loss, policy=policy)

    def one_step(state: TrainState, batch: Rollout, key: Key[Array, ""]) -> tuple[TrainState, dict[str, Array]]:
        used = jnp.asarray(rate(steps_taken(state.opt_state)))
        state, metrics = sft.update(state, batch, key, loss_fn=loss, optimizer=optimizer)
        return state, metrics | {"learning_rate": used}

    state = layout.place(sft.init({"trunk": trunk, **setup.prior}, optimizer))
    step = layout.together(layout.step(one_step, state), STAGE)
    judged = layout.together(jax.jit(lambda params, batch: loss(params, batch, None)), f"{STAGE}/validation")

    def update(state: TrainState, index: int) -> tuple[TrainState, dict[str, Any]]:
        batch = layout.batch(config.batch_size, functools.partial(learnt.batch, index, config.batch_size))
        return step(state, batch, layout.same(key))

    n_checked = max(1, min(len(checked.turns), config.validation_turns) // config.batch_size)

    def evaluate(state: TrainState, index: int) -> dict[str, float]:
        del index
        total, count = 0.0, 0.0
        for number in range(n_checked):
            batch = layout.batch(config.batch_size, functools.partial(checked.batch, number, config.batch_size))
            sums = jax.device_get(judged(state.params, batch))
            total, count = total + float(sums.loss), count + float(sums.count)
        return {"validation/loss": total / max(count, 1.0)}

    every = max(1, config.steps // config.evaluations)
    final = run_stage(
        run,
        state,
        update,
        StagePlan(
            STAGE,
            config.steps,
            save_every=every,
            log_every=max(1, config.steps // 40),
            on_eval=evaluate,
            eval_every=every,
            best=Best("validation/loss", "min", None),
            advice="a lower --reasoning.learning-rate",
        ),
    )
    return layout.fetch(final.params)


def without_prior_gradient(policy: PolicyApply) -> PolicyApply:
    """`policy` through which no gradient reaches the weights of its prior."""

    def apply(params: Params, rollout: Rollout) -> PolicyOutput:
        return policy(params | {prior.NAME: jax.lax.stop_gradient(params[prior.NAME])}, rollout)

    return apply


def turn_loss(params: Params, batch: Rollout, key: Key[Array, ""] | None, *, policy: PolicyApply) -> LossSums:
    """−log π of the turns' tokens under grammar and candidates, summed over tokens."""
    del key
    return supervised_loss(params, batch, policy=policy)

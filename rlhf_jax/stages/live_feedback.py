"""Rounds of live feedback: a policy talks, users' reactions teach a reward model of items, and it pays the policy.

    0  R₀ from the reactions in the log; GRPO of the policy's prior over items, paid by R₀
    r  the policy of round r − 1 talks with users, as it samples; what they say is labelled by the implicit signals;
       R_r from the log and all rounds so far; GRPO from the prior of round r − 1, paid by R_r

The trunk stays as imitation left it: what moves are the weights of what it and the recommenders say of an item, and one for
the standing that R_r gives each item. R_r (`learners/item_reward.py`) reads the trunk's own log-probability and the same
scores, so that it cannot know less of items than the policy. True utility is read nowhere here.

A round is a file; a run that was killed goes on with the round, the conversations and the update it was in.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from rlhf_jax.data.batching import batch_indices, pad_left, wrapped_batches
from rlhf_jax.data.windows import prompt_tokens
from rlhf_jax.decoding import prior
from rlhf_jax.evaluation.association import pearson
from rlhf_jax.feedback.labelling import LabelOptions
from rlhf_jax.feedback.signals import check_signals
from rlhf_jax.feedback.weak_labels import WeakLabeller, fit_weak_labels
from rlhf_jax.interfaces import Dialogue, Message, Params, PromptBatch
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import item_reward, list_grpo, sft
from rlhf_jax.learners.item_reward import ItemReward, Reactions
from rlhf_jax.learners.list_grpo import ListBatch, Lists
from rlhf_jax.learners.optimizer import TrainState, learning_rate_schedule, make_optimizer, steps_taken
from rlhf_jax.ranges import Batch, Cases, Range, Rate, Steps, Weight, check_numbers
from rlhf_jax.recommenders import mixture, standing, stated
from rlhf_jax.recommenders.scorer import ItemScorer, fit_scorer
from rlhf_jax.runtime.files import RunError, notice, read_object, write_json
from rlhf_jax.runtime.progress import Progress
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.runtime.stage import StagePlan, run_stage
from rlhf_jax.stages import item_prior
from rlhf_jax.stages.setup import Setup

History = Sequence[Message]
Talk = Callable[[Setup, Params, int], tuple[Dialogue, ...]]
"""(setup whose prompts bring what the policy reads, policy, number of the round) to what was said, as a log has it."""
EXTRAS = ("suggests", "more_items", "words")
"""What a turn has beside its items: whether it suggests, items after the first, words by tens."""


@dataclasses.dataclass(frozen=True)
class LiveConfig:
    """Rounds of live feedback."""

    rounds: Annotated[int, Range("[0, 100]")] = 3
    """After round 0, which has the log alone."""
    users: Cases = 300
    """Fresh users of one round."""
    turns: Annotated[int, Range("[1, 1_000]")] = 4
    """System turns a user has patience for."""
    parts: tuple[str, ...] = (*mixture.WEIGHTS, *(f"stated_{kind}" for kind in stated.KINDS))
    """Recommenders that reward model and policy read."""
    labels: LabelOptions = LabelOptions(sentiment="level", signals=("engagement", "sentiment"))
    """Signals of a user's reaction, each weighing the same. Relevance is none: it compares the reply with what came before."""
    logged_turns: Cases = 4000
    """Labelled turns of the log that reward models are fitted on, drawn with the run's seed."""
    ridge: Annotated[float, Range("(0, 1e6]")] = 1.0
    """λ of the reward model's weights."""
    standing_ridge: Annotated[float, Range("(0, 1e6]")] = 50.0
    """μ of items' standings, in reactions."""
    updates: Steps = 200
    """Of GRPO, in every round."""
    contexts: Batch = 64
    """Contexts of one update."""
    group_size: Annotated[int, Range("[2, 1_024]")] = 16
    """Items drawn for each."""
    learning_rate: Rate = 0.1
    """Start of the linear schedule to 0."""
    kl_coef: Weight = 0.1
    """Price of a nat of distance to imitation's choice of item, in units of the labels."""

    def __post_init__(self) -> None:
        check_numbers(self)
        check_signals(self.labels.signals)
        if not self.parts:
            raise ValueError("--live.parts names no recommender")


class Judge:
    """What is known of the items in a context: the trunk's log-probability, then every score. Holds no weight."""

    def __init__(self, setup: Setup, trunk: Params) -> None:
        self.setup = setup
        self._scorer: ItemScorer = item_prior.scorer_of(setup)
        self._trunk = {"trunk": trunk}
        self._score = setup.agent.compiled("score_items", lambda: jax.jit(setup.agent.score_items))
        self.columns = {item: column for column, item in enumerate(setup.vocab.item_ids)}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the F features."""
        return ("policy", *self._scorer.names)

    def known(
        self, histories: Sequence[History], dialogue_ids: Sequence[str] | None = None
    ) -> Float32[np.ndarray, "N F I"]:
        """The features after each history; a training dialogue is left out of its own scores where ids are given.

        Memory: 4·F·I bytes a history.
        """
        data, vocab = self.setup.data, self.setup.vocab
        out = np.empty((len(histories), len(self.names), len(self.columns)), np.float32)
        out[:, 1:] = self._scorer.of_histories(histories, dialogue_ids)
        # A power of two, so that a shrinking crowd does not compile a program per size.
        size = min(64, max(8, 1 << (len(histories) - 1).bit_length()))
        for rows, own in wrapped_batches(len(histories), size):
            sequences = [
                prompt_tokens(vocab, histories[row], window=data.window, context_tokens=data.context_tokens)
                for row in rows
            ]
            tokens, mask = pad_left(sequences, data.context_tokens, vocab.pad)
            logits = self._score(self._trunk, PromptBatch(tokens=jnp.asarray(tokens), mask=jnp.asarray(mask)))
            out[rows[:own], 0] = np.asarray(jax.nn.log_softmax(logits))[:own]
        return out

    def turns(self, replies: Sequence[Message], known: Float32[np.ndarray, "N F I"]) -> Reactions:
        """Replies as the reward model reads them; their labels are 0."""
        listed = [
            np.array([self.columns[item] for item in dict.fromkeys(reply.items) if item in self.columns], np.int64)
            for reply in replies
        ]
        shares = item_reward.shares_of(listed, len(self.columns))
        words = [sum(len(part.split()) for part in reply.parts if isinstance(part, str)) for reply in replies]
        counts = np.array([len(own) for own in listed], np.float64)
        extras = np.stack([counts > 0, np.maximum(counts - 1, 0), np.array(words) / 10], axis=1).astype(np.float64)
        means = np.einsum("nfi,ni->nf", known, shares).astype(np.float64)
        return Reactions(means, shares, extras, np.zeros(len(replies)))


class Heard(NamedTuple):
    """Turns that users reacted to."""

    reactions: Reactions
    known: Float32[np.ndarray, "N F I"]
    """Of the contexts; none where only the reactions were asked for. [N or 0, F, I]"""


def listen(
    judge: Judge,
    dialogues: Sequence[Dialogue],
    labeller: WeakLabeller,
    *,
    name: str = "",
    limit: int | None = None,
    keep: bool = True,
) -> Heard:
    """The turns of dialogues whose every signal is defined, labelled by their mean.

    Args:
      name: of the progress that is shown; empty shows none.
      limit: at most so many turns, drawn with the run's seed; None takes all.
      keep: whether what is known of the contexts is kept: 4·F·I bytes a turn.
    Raises: RunError where there is no such turn.
    """
    table = labeller(dialogues)
    rows = np.flatnonzero(table.mask.all(axis=1) & (table.message_indices > 0))
    if limit is not None and len(rows) > limit:
        rows = np.sort(np.random.Generator(np.random.PCG64([judge.setup.seed, 3])).choice(rows, limit, replace=False))
    if not len(rows):
        raise RunError(f"none of {len(dialogues)} dialogues has a system turn with a context and a reaction to it")
    reactions, kept = None, []
    with Progress(name, 0, len(rows)) as progress:
        for start in range(0, len(rows), 256):
            part = rows[start : start + 256]
            chosen = [(dialogues[table.dialogue_indices[row]], int(table.message_indices[row])) for row in part]
            known = judge.known(
                [dialogue.messages[:index] for dialogue, index in chosen],
                [dialogue.dialogue_id for dialogue, _ in chosen],
            )
            found = judge.turns([dialogue.messages[index] for dialogue, index in chosen], known)
            found = found._replace(labels=table.z[part].mean(axis=1))
            reactions = found if reactions is None else reactions.plus(found)
            kept.append(known if keep else known[:0])
            if name:
                progress.show(start + len(part), {})
    assert reactions is not None
    return Heard(reactions, np.concatenate(kept))


class Round(NamedTuple):
    """What a round ends with."""

    reward: ItemReward
    weights: dict[str, float]
    """Of the policy's prior: `policy` for the trunk's log-probability, then each score by its name."""
    facts: dict[str, float]
    """Turns that R_r was learnt from, and its Pearson with the labels of the log's validation split."""

    def policy(self, trunk: Params) -> Params:
        """The policy's tree."""
        return {"trunk": trunk, prior.NAME: item_prior.as_params(np.array(list(self.weights.values())))}


def with_standing(setup: Setup, reward: ItemReward) -> Setup:
    """The setup whose prompts bring along the standing that a reward model gives the items."""
    return setup._replace(scorer=item_prior.scorer_of(setup).with_standing(reward.standing))


def with_scorer(setup: Setup, config: LiveConfig) -> Setup:
    """The setup whose prompts bring along what the recommenders say."""
    return setup._replace(scorer=fit_scorer(setup.corpus, setup.vocab.item_ids, config.parts))


def learn(run: RunDirectory, judge: Judge, trunk: Params, config: LiveConfig, talk: Talk) -> tuple[Round, ...]:
    """All rounds; those that are stored are not done again.

    Args:
      judge: with the scorer of `with_scorer`.
      trunk: imitation's GPT-2.
      talk: asked once a round.
    Raises: RunError where the log has no labelled turn.
    """
    folder = run.path / f"seed-{judge.setup.seed}"
    folder.mkdir(exist_ok=True)
    work = _Work(run, judge, config)
    rounds: list[Round] = []
    for number in range(config.rounds + 1):
        path = folder / f"round-{number}.json"
        if path.exists():
            rounds.append(stored_round(path, judge))
            notice(f"seed {judge.setup.seed}: round {number} was done before")
            continue
        for one in range(len(work.live) + 1, number + 1):
            before = rounds[one - 1]
            said = talk(with_standing(judge.setup, before.reward), before.policy(trunk), one)
            work.live.append(listen(judge, said, work.labeller, name=f"round {one}: labelled turns"))
        done = work.round(rounds[-1] if rounds else None, number)
        write_json(path, as_stored(done, judge))
        rounds.append(done)
    return tuple(rounds)


class _Work:
    """What rounds are made of: the log, read when the first of them needs it, and what was said live."""

    def __init__(self, run: RunDirectory, judge: Judge, config: LiveConfig) -> None:
        self._run, self._judge, self._config = run, judge, config
        self.live: list[Heard] = []

    @functools.cached_property
    def labeller(self) -> WeakLabeller:
        corpus = self._judge.setup.corpus
        return fit_weak_labels(corpus.train, corpus.items, self._config.labels)

    @functools.cached_property
    def log(self) -> Reactions:
        train, limit = self._judge.setup.corpus.train, self._config.logged_turns
        name = f"seed {self._judge.setup.seed}: labelled turns of the log"
        return listen(self._judge, train, self.labeller, name=name, limit=limit, keep=False).reactions

    @functools.cached_property
    def validation(self) -> Heard:
        return listen(self._judge, self._judge.setup.corpus.validation, self.labeller)

    def round(self, before: Round | None, number: int) -> Round:
        """The reward model of all turns so far, and the prior that it pays."""
        config = self._config
        turns = functools.reduce(Reactions.plus, [one.reactions for one in self.live], self.log)
        reward = item_reward.fit(turns, ridge=config.ridge, standing_ridge=config.standing_ridge)
        held_out = self.validation.reactions
        facts = {
            "turns": float(turns.n),
            "pearson": float(np.nan_to_num(pearson(reward.of_turns(held_out), held_out.labels))),
            "live_label": float(self.live[-1].reactions.labels.mean()) if self.live else 0.0,
        }
        start = np.eye(len(self._judge.names) + 1)[0] if before is None else np.array([*before.weights.values()])
        known = np.concatenate([self.validation.known, *(one.known for one in self.live)])
        stage = f"{item_prior.STAGE}-seed{self._judge.setup.seed}-round{number}"
        found = improve(self._run, known, reward, start, config, stage=stage, seed=self._judge.setup.seed)
        names = (*self._judge.names[:-1], standing.NAME, self._judge.names[-1])
        return Round(reward, dict(zip(names, map(float, found), strict=True)), facts)


def improve(
    run: RunDirectory,
    known: Float32[np.ndarray, "N F I"],
    reward: ItemReward,
    start: np.ndarray,
    config: LiveConfig,
    *,
    stage: str,
    seed: int,
) -> np.ndarray:
    """Weights of the prior by GRPO of single items, paid by the reward model, near imitation. [1 + K]

    Args:
      known: of the contexts, the trunk's log-probability first.
      start: weights to begin with: the trunk's, then the scores', the standing before the last.
    """
    n = len(known)
    scores = with_standing_scores(known[:, 1:], reward)
    schedule: Any = {
        "learning_rate": config.learning_rate,
        "warmup_steps": 0,
        "total_steps": config.updates,
        "schedule": "linear",
    }
    rate = learning_rate_schedule(**schedule)
    optimizer = make_optimizer(**schedule)
    key = stream_key(jax.random.key(seed), stage, 0)
    lists = Lists(config.group_size, length=1, kl_coef=config.kl_coef)
    step = jax.jit(
        functools.partial(list_grpo.update, judge=item_prior.mixed, lists=lists, optimizer=optimizer), donate_argnums=0
    )

    def update(state: TrainState, index: int) -> tuple[TrainState, dict[str, Any]]:
        rows = batch_indices(n, seed=seed, step=index, batch_size=config.contexts)
        used = rate(steps_taken(state.opt_state))
        logprobs = jnp.asarray(known[rows, 0])
        batch = ListBatch(
            known=(logprobs, jnp.asarray(scores[rows])),
            worth=jnp.asarray(reward.of_items(known[rows]), jnp.float32),
            reference=logprobs,
        )
        state, metrics = step(state, batch, key)
        return state, metrics | {"learning_rate": used}

    final = run_stage(
        run,
        sft.init(item_prior.as_params(start), optimizer, averaged=False),
        update,
        StagePlan(
            stage,
            config.updates,
            save_every=max(1, config.updates // 10),
            log_every=max(1, config.updates // 20),
            advice="a lower --live.learning-rate",
        ),
    )
    return item_prior.weights_of(final)


def with_standing_scores(scores: Float32[np.ndarray, "N K I"], reward: ItemReward) -> Float32[np.ndarray, "N K1 I"]:
    """Scores with the standing before the last, as `ItemScorer.with_standing` brings them. [N, K + 1, I]"""
    row = mixture.standardised(reward.standing.astype(np.float32)[None], "asinh")
    return np.insert(scores, scores.shape[1] - 1, row, axis=1)


def as_stored(done: Round, judge: Judge) -> dict[str, Any]:
    """A round as JSON, numbers by their names."""
    reward = done.reward
    return {
        "reward": {
            "weights": dict(zip(judge.names, reward.weights.tolist(), strict=True)),
            "standing": dict(zip(map(str, judge.columns), reward.standing.tolist(), strict=True)),
            "extras": dict(zip(EXTRAS, reward.extras.tolist(), strict=True)),
            "intercept": reward.intercept,
        },
        "prior": done.weights,
        "facts": done.facts,
    }


def stored_round(path: Path, judge: Judge) -> Round:
    """A round that `as_stored` wrote.

    Raises: RunError naming the file, where it is of other scores or items.
    """
    stored = read_object(path, "reward", "prior", "facts")
    try:
        reward = stored["reward"]
        weights, standings, extras = (
            np.array([reward[part][name] for name in names], np.float64)
            for part, names in (
                ("weights", judge.names),
                ("standing", map(str, judge.columns)),
                ("extras", EXTRAS),
            )
        )
        found = ItemReward(weights, standings, extras, float(reward["intercept"]))
        return Round(found, {name: float(one) for name, one in stored["prior"].items()}, stored["facts"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} holds no round of these scores and items ({error!r}): restore or remove it") from error

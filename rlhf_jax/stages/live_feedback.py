"""Rounds of live feedback: a policy talks, users' reactions teach a reward model of items, and it pays the policy.

    0  R₀ from the reactions in the log; GRPO of the policy's prior, paid by R₀
    r  the policy of round r − 1 talks with users, as it samples; what they say is labelled by the implicit signals;
       R_r from the log and all rounds so far; GRPO from the prior of round r − 1, paid by R_r

The trunk stays as imitation left it. What moves are the weights of what it and the recommenders say of an item, one for
the standing that R_r gives each item (GRPO of single items), and three manners, when to suggest and when to stop (GRPO of
whole replies; `decoding/prior.py`). R_r (`learners/item_reward.py`) reads the trunk's own log-probability and the same
scores, so that it cannot know less of items than the policy. True utility is read nowhere here.

A round is a file; a run that was killed goes on with the round, the conversations and the update it was in.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from rlhf_jax.data.batching import batch_indices, pad_left, wrapped_batches
from rlhf_jax.data.windows import prompt_tokens
from rlhf_jax.decoding import prior
from rlhf_jax.decoding.grammar import Grammar, is_word
from rlhf_jax.evaluation.association import pearson
from rlhf_jax.feedback.labelling import LabelOptions
from rlhf_jax.feedback.signals import check_signals
from rlhf_jax.feedback.weak_labels import WeakLabeller, fit_weak_labels
from rlhf_jax.interfaces import Dialogue, Message, Params, PromptBatch, Rollout
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import grpo, item_reward, list_grpo, sft
from rlhf_jax.learners.grpo_config import GRPOConfig
from rlhf_jax.learners.item_reward import ItemReward, Reactions
from rlhf_jax.learners.list_grpo import ListBatch, Lists
from rlhf_jax.learners.optimizer import TrainState, falling_to_zero, steps_taken
from rlhf_jax.learners.trainable import held, without_moments
from rlhf_jax.ranges import Batch, Cases, Range, Rate, Steps, Weight, check_numbers, option
from rlhf_jax.recommenders import mixture, standing, stated
from rlhf_jax.recommenders.scorer import ItemScorer, fit_scorer
from rlhf_jax.runtime.files import RunError, notice, write_json
from rlhf_jax.runtime.progress import Progress
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.runtime.stage import StagePlan, run_stage
from rlhf_jax.stages import item_prior
from rlhf_jax.stages.live_rounds import EXTRAS, Round, as_stored, extras_of, folder_of, round_file, stored_round
from rlhf_jax.stages.setup import Setup

History = Sequence[Message]
Talk = Callable[[Setup, Params, int], tuple[Dialogue, ...]]
"""(setup whose prompts bring what the policy reads, policy, number of the round) to what was said, as a log has it."""


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
    labels: LabelOptions = LabelOptions(sentiment="level", signals=("sentiment",))
    """Signals of a user's reaction, each weighing the same. Of the three, sentiment alone tracks what people say
    (docs/results/signals.md): dwell pays for long replies, and relevance reads no reaction at all."""
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
    manners_updates: Steps = 40
    """Of GRPO of whole replies, in every round."""
    batch_size: Batch = 64
    """Replies of one of these updates."""
    manners_rate: Rate = 0.2
    """Start of the linear schedule to 0."""
    replies: GRPOConfig = GRPOConfig(
        component_weights=(1.0,),
        component_names=("worth",),
        normalise_components=False,
        normalise_score=False,
        score_clip=None,
        scale_by_deviation=False,
    )
    """GRPO of whole replies; advantages are in units of the labels, or else a word would weigh as much as an item."""

    def __post_init__(self) -> None:
        check_numbers(self)
        check_signals(self.labels.signals, "--live.labels.signals")
        if not self.parts:
            raise ValueError("--live.parts names no recommender")
        mixture.check_names(self.parts, "--live.parts")
        if self.replies.ptx_coef:
            raise ValueError(
                f"--live.replies.ptx-coef {self.replies.ptx_coef}: rounds learn from no human replies; leave it 0"
            )
        if self.batch_size % self.replies.group_size:
            raise ValueError(
                f"{option(self, 'batch_size')} {self.batch_size} cannot be divided into groups of "
                f"{option(self.replies, 'group_size')} {self.replies.group_size} replies"
            )
        self.replies.check_parts(self.batch_size, option(self, "batch_size"))


class Read(NamedTuple):
    """N contexts as arrays."""

    tokens: Int32[np.ndarray, "N P"]
    mask: Bool[np.ndarray, "N P"]
    known: Float32[np.ndarray, "N F I"]
    """What is known of the items."""

    @classmethod
    def joined(cls, parts: Sequence["Read"]) -> "Read":
        """All of them, one after the other."""
        return parts[0] if len(parts) == 1 else cls(*(np.concatenate(side) for side in zip(*parts, strict=True)))


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

    def known(self, histories: Sequence[History]) -> Float32[np.ndarray, "N F I"]:
        """The features after each history."""
        return self.read(histories).known

    def read(self, histories: Sequence[History], dialogue_ids: Sequence[str] | None = None) -> Read:
        """Contexts and the features after them; a training dialogue is left out of its own scores where ids are given.

        Memory: 4·F·I bytes a history.
        """
        data, vocab = self.setup.data, self.setup.vocab
        sequences = [
            prompt_tokens(vocab, history, window=data.window, context_tokens=data.context_tokens)
            for history in histories
        ]
        tokens, mask = pad_left(sequences, data.context_tokens, vocab.pad)
        known = np.empty((len(histories), len(self.names), len(self.columns)), np.float32)
        known[:, 1:] = self._scorer.of_histories(histories, dialogue_ids)
        # A power of two, so that a shrinking crowd does not compile a program per size.
        size = min(64, max(8, 1 << (len(histories) - 1).bit_length()))
        for rows, own in wrapped_batches(len(histories), size):
            prompts = PromptBatch(tokens=jnp.asarray(tokens[rows]), mask=jnp.asarray(mask[rows]))
            known[rows[:own], 0] = np.asarray(jax.nn.log_softmax(self._score(self._trunk, prompts)))[:own]
        return Read(tokens, mask, known)

    def turns(self, replies: Sequence[Message], known: Float32[np.ndarray, "N F I"]) -> Reactions:
        """Replies as the reward model reads them; their labels are 0."""
        vocab = self.setup.vocab
        listed = [
            np.array([self.columns[item] for item in dict.fromkeys(reply.items) if item in self.columns], np.int64)
            for reply in replies
        ]
        shares = item_reward.shares_of(listed, len(self.columns))
        said = vocab.encode_many_parts([reply.parts for reply in replies])
        words = np.array([sum(not vocab.is_item(token) for token in one) for one in said], np.float64)
        extras = np.asarray(extras_of(np.array([len(own) for own in listed], np.float64), words), np.float64)
        means = np.einsum("nfi,ni->nf", known, shares).astype(np.float64)
        return Reactions(means, shares, extras, np.zeros(len(replies)))


class Heard(NamedTuple):
    """Turns that users reacted to."""

    reactions: Reactions
    contexts: Read | None
    """None where only the reactions were asked for."""


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
      keep: whether the contexts are kept: 4·F·I bytes a turn.
    Raises: RunError where there is no such turn.
    """
    table = labeller(dialogues)
    rows = np.flatnonzero(table.mask.all(axis=1) & (table.message_indices > 0))
    if limit is not None and len(rows) > limit:
        rows = np.sort(np.random.Generator(np.random.PCG64([judge.setup.seed, 3])).choice(rows, limit, replace=False))
    if not len(rows):
        raise RunError(f"none of {len(dialogues)} dialogues has a system turn with a context and a reaction to it")
    found: list[Reactions] = []
    kept: list[Read] = []
    with Progress(name, 0, len(rows)) as progress:
        for start in range(0, len(rows), 256):
            part = rows[start : start + 256]
            chosen = [(dialogues[int(table.dialogue_indices[row])], int(table.message_indices[row])) for row in part]
            read = judge.read(
                [dialogue.messages[:index] for dialogue, index in chosen],
                [dialogue.dialogue_id for dialogue, _ in chosen],
            )
            turns = judge.turns([dialogue.messages[index] for dialogue, index in chosen], read.known)
            found.append(turns._replace(labels=table.z[part].mean(axis=1)))
            if keep:
                kept.append(read)
            if name:
                progress.show(start + len(part), {})
    return Heard(functools.reduce(Reactions.plus, found), Read.joined(kept) if keep else None)


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
    folder = folder_of(run.path, judge.setup.seed)
    folder.mkdir(exist_ok=True)
    work = _Work(run, judge, trunk, config)
    rounds: list[Round] = []
    for number in range(config.rounds + 1):
        path = round_file(run.path, judge.setup.seed, number)
        if path.exists():
            rounds.append(stored_round(path, judge.names, judge.columns))
            notice(f"seed {judge.setup.seed}: round {number} was done before")
            continue
        for one in range(len(work.live) + 1, number + 1):
            before = rounds[one - 1]
            said = talk(with_standing(judge.setup, before.reward), before.policy(trunk), one)
            work.live.append(listen(judge, said, work.labeller, name=f"round {one}: labelled turns"))
        done = work.round(rounds[-1] if rounds else None, number)
        write_json(path, as_stored(done, judge.names, judge.columns))
        rounds.append(done)
    return tuple(rounds)


class Aligned(NamedTuple):
    """A policy that users' reactions paid for."""

    setup: Setup
    """Whose prompts bring along what the policy reads."""
    policy: Params


def align(run: RunDirectory, setup: Setup, trunk: Params, config: LiveConfig, talk: Talk) -> Aligned:
    """The stage of a run of all stages: the policy of the last round.

    Args: as for `learn`; the setup has no recommenders yet.
    """
    setup = with_scorer(setup, config)
    last = learn(run, Judge(setup, trunk), trunk, config, talk)[-1]
    return Aligned(with_standing(setup, last.reward), last.policy(trunk))


class _Work:
    """What rounds are made of: the log, read when the first of them needs it, and what was said live."""

    def __init__(self, run: RunDirectory, judge: Judge, trunk: Params, config: LiveConfig) -> None:
        self._run, self._judge, self._trunk, self._config = run, judge, trunk, config
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
        judge = self._judge
        a_turn = 4 * len(judge.names) * len(judge.columns)
        most = max(1, item_prior.MOST_BYTES // a_turn)
        return listen(judge, judge.setup.corpus.validation, self.labeller, limit=most)

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
        read = [one.contexts for one in (self.validation, *self.live) if one.contexts is not None]
        contexts = Read.joined(read)
        names = (*self._judge.names[:-1], standing.NAME, self._judge.names[-1])
        weights = dict.fromkeys(names, 0.0) | {"policy": 1.0} if before is None else before.weights
        manners = dict.fromkeys(prior.MANNERS, 0.0) if before is None else before.manners
        found = Round(reward, weights, manners, facts)
        name = f"seed{self._judge.setup.seed}-round{number}"
        found = which_items(self._run, self._judge.setup, contexts, found, config, stage=f"{item_prior.STAGE}-{name}")
        return how_to_speak(self._run, self._judge.setup, self._trunk, contexts, found, config, stage=f"grpo-{name}")


def which_items(
    run: RunDirectory, setup: Setup, contexts: Read, begun: Round, config: LiveConfig, *, stage: str
) -> Round:
    """The round with weights over items by GRPO of single items, paid by its reward model, near imitation.

    Args:
      begun: its weights are where GRPO starts.
    """
    reward, known, seed = begun.reward, contexts.known, setup.seed
    n = len(known)
    scores = with_standing_scores(known[:, 1:], reward)
    rate, optimizer = falling_to_zero(config.learning_rate, config.updates)
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
        sft.init(item_prior.as_params(np.array([*begun.weights.values()])), optimizer, averaged=False),
        update,
        StagePlan(
            stage,
            config.updates,
            save_every=max(1, config.updates // 10),
            log_every=max(1, config.updates // 20),
            advice="a lower --live.learning-rate",
        ),
    )
    return begun._replace(weights=dict(zip(begun.weights, map(float, item_prior.weights_of(final)), strict=True)))


def how_to_speak(
    run: RunDirectory,
    setup: Setup,
    trunk: Params,
    contexts: Read,
    begun: Round,
    config: LiveConfig,
    *,
    stage: str,
) -> Round:
    """The round with manners by GRPO of whole replies, paid by its reward model, in sight of the same policy without manners.

    Args:
      begun: its manners are where GRPO starts; its weights stay.
    """
    agent, reward, seed = setup.agent, begun.reward, setup.seed
    learner = config.replies
    n_prompts = config.batch_size // learner.group_size
    scores = with_standing_scores(contexts.known[:, 1:], reward)
    policy = begun.policy(trunk)
    reference = {"trunk": trunk, prior.NAME: item_prior.as_params(np.array([*begun.weights.values()]))}
    rate, optimizer = falling_to_zero(
        config.manners_rate, config.manners_updates * learner.epochs * learner.minibatches
    )
    optimizer = without_moments(optimizer, "manners")
    iterate = grpo.make_grpo_iteration(
        sample=agent.sample_groups(learner.group_size),
        policy=held(agent.judge_groups(learner.rows_together), "manners"),
        score=functools.partial(worth_of_replies, agent.grammar),
        optimizer=optimizer,
        config=learner,
    )
    extras = jnp.asarray([reward.intercept, *reward.extras], jnp.float32)

    def update(state: grpo.GRPOState, index: int) -> tuple[grpo.GRPOState, dict[str, Any]]:
        rows = batch_indices(len(contexts.tokens), seed=seed, step=index, batch_size=n_prompts)
        prompts = PromptBatch(
            tokens=jnp.asarray(contexts.tokens[rows]),
            mask=jnp.asarray(contexts.mask[rows]),
            item_scores=jnp.asarray(scores[rows]),
        )
        worth = jnp.asarray(np.repeat(reward.of_items(contexts.known[rows]), learner.group_size, axis=0), jnp.float32)
        used = rate(steps_taken(state.opt_state))
        state, metrics, _ = iterate(state, prompts, reference, {"items": worth, "turn": extras})
        return state, metrics | {"learning_rate": used}

    final = run_stage(
        run,
        grpo.init(policy, optimizer, learner, stream_key(jax.random.key(seed), stage, 0)),
        update,
        StagePlan(
            stage,
            config.manners_updates,
            save_every=max(1, config.manners_updates // 4),
            log_every=max(1, config.manners_updates // 10),
            steps_per_update=learner.epochs * learner.minibatches,
            advice="a lower --live.manners-rate",
        ),
    )
    found = np.asarray(final.params[prior.NAME]["manners"], np.float64)
    return begun._replace(manners=dict(zip(prior.MANNERS, found.tolist(), strict=True)))


def worth_of_replies(grammar: Grammar, reward: Params, rollout: Rollout) -> Float[Array, "B T 1"]:
    """What a reward model of items says of sampled replies, paid where it is earned; to be called inside jit.

    A list with what it is worth is settled where `<say>` ends it, a word costs where it stands: a word is then no merit of
    the list before it, nor the list's luck its own. The sum over a reply that was not cut is what `Judge.turns` and
    `ItemReward.of_turns` say of its message.

    Args:
      reward: `items`, R of every item after each prompt [B, I]; `turn`, the intercept and what `EXTRAS` are worth [1 + E].
    """
    tokens, said = rollout.response_tokens, rollout.response_mask
    columns = grammar.first_item + jnp.arange(grammar.n_items)
    listed = jnp.any((tokens[:, :, None] == columns[None, None]) & said[:, :, None], axis=1)
    n_items = listed.sum(axis=1).astype(jnp.float32)
    worth = jnp.where(listed, reward["items"], 0.0).sum(axis=1) / jnp.maximum(n_items, 1.0)
    # Sums of products, not matmuls: accelerators would round their inputs.
    list_extras = extras_of(n_items, jnp.zeros_like(n_items))
    settled = worth + reward["turn"][0] + jnp.sum(list_extras * reward["turn"][None, 1:], axis=1)
    word = reward["turn"][1 + EXTRAS.index("words")] / 10
    paid = jnp.where(tokens == grammar.say, settled[:, None], 0.0) + jnp.where(is_word(grammar, tokens), word, 0.0)
    return jnp.where(said, paid, 0.0)[..., None]


def with_standing_scores(scores: Float32[np.ndarray, "N K I"], reward: ItemReward) -> Float32[np.ndarray, "N K1 I"]:
    """Scores with the standing before the last, as `ItemScorer.with_standing` brings them. [N, K + 1, I]"""
    row = mixture.standardised(reward.standing.astype(np.float32)[None], "asinh")
    return np.insert(scores, scores.shape[1] - 1, row, axis=1)

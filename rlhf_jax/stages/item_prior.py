"""The prior of a policy's item head: its weights by reinforcement learning, or by likelihood, on dialogues nobody imitated.

The trunk stays as imitation left it. What it and the recommenders say of every item is computed once for each context of
the validation split, which no supervised gradient has seen (a teacher's seven numbers have, `stages/teacher.py`); a handful
of weights are learnt on it in seconds. One share of these dialogues is held out and only measured. The reward of GRPO is
implicit: the items that the human recommender names at this place or later in the dialogue, and that nobody had named
before. No form is read.
"""

import dataclasses
import functools
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32

from rlhf_jax.data.batching import batch_indices, wrapped_batches
from rlhf_jax.data.dialogue_store import evenly
from rlhf_jax.data.windows import ranking_rows
from rlhf_jax.decoding import prior
from rlhf_jax.evaluation.results import Sides
from rlhf_jax.interfaces import Dialogue, Params
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import list_grpo, sft
from rlhf_jax.learners.list_grpo import ListBatch, Lists
from rlhf_jax.learners.optimizer import TrainState, falling_to_zero, steps_taken
from rlhf_jax.ranges import Batch, Cases, Range, Rate, Steps, check_numbers
from rlhf_jax.recommenders import mixture
from rlhf_jax.recommenders.scorer import NAMED, ItemScorer, fit_scorer
from rlhf_jax.runtime.files import RunError, notice, read_object, write_json
from rlhf_jax.runtime.progress import Progress
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.runtime.stage import StagePlan, run_stage
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.setup import Setup

STAGE = "prior"
FILE = "prior.json"
"""Of a run directory: the weights and what they were learnt from."""
FORBIDDING = 1e6
"""Nats that put an item behind all others."""
Weights = dict[str, float]
"""`policy` for the trunk's log-probability, then each score by its name."""


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """The stage after imitation that lets a policy's item head read what closed-form recommenders know."""

    learner: Literal["none", "likelihood", "grpo"] = "none"
    """How its weights are found; `none` leaves the policy without a prior."""
    parts: tuple[str, ...] = tuple(mixture.WEIGHTS)
    """Recommenders that it reads; `context_knn_titles` may be added."""
    max_dialogues: Cases = 2_500
    """Validation dialogues that are looked at; of more, so many that are evenly spread. What is known of every item before each of
    their messages is in memory."""
    held_out: Annotated[float, Range("[0, 1)")] = 0.4
    """Share of the validation dialogues that are measured and not learnt from."""
    updates: Steps = 300
    """Of GRPO."""
    contexts: Batch = 64
    """Contexts of one update."""
    group_size: Annotated[int, Range("[2, 1_024]")] = 16
    """Lists drawn for each."""
    list_length: Annotated[int, Range("[1, 1_000]")] = 10
    """Places of a list, and the cutoff of the NDCG that is paid."""
    scale_by_deviation: bool = False
    """Divide advantages by the deviation of their group."""
    learning_rate: Rate = 0.05
    """Start of the linear schedule to 0."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if not self.parts:
            raise ValueError("--prior.parts names no recommender")
        mixture.check_names(self.parts, "--prior.parts")

    @property
    def lists(self) -> Lists:
        """How lists are drawn and compared."""
        return Lists(self.group_size, self.list_length, self.scale_by_deviation)


MOST_BYTES = 2**31
"""Of what is known of contexts: those that are learnt from, and as much again for those that are only measured."""


class Known(NamedTuple):
    """What is known of the items before each of N recommender messages."""

    logprobs: Float32[np.ndarray, "N I"]
    """Of the trunk, at the first place of a list."""
    scores: Float32[np.ndarray, "N K I"]
    """Of the recommenders."""
    now: Bool[np.ndarray, "N I"]
    """What the message names and nobody named before."""
    later: Bool[np.ndarray, "N I"]
    """The same of the message and the recommender's messages after it."""

    def part(self, rows: Any) -> "Known":
        """Some of the rows."""
        return Known(*(array[rows] for array in self))


class Fitted(NamedTuple):
    """Weights and what they were found with."""

    weights: Weights
    learner: str
    dialogues: int
    contexts: int
    held_out: dict[str, float]
    """`ndcg@10`, `hr@5` on the contexts held out, before and after; empty where there are none."""

    def params(self) -> Params:
        """The policy's `prior`."""
        return as_params(np.array(list(self.weights.values())))


def compared(algorithm: str) -> tuple[Sides, ...]:
    """Pairs of a run whose policy has a prior: reinforcement learning against imitation and against where it started."""
    return Sides(algorithm, "sft"), Sides(algorithm, STAGE), Sides(STAGE, "sft")


def add(run: RunDirectory, setup: Setup, trunk: Params, config: PriorConfig) -> Setup:
    """The stage of a run: a setup whose policies have a prior, and whose prompts bring along what it reads.

    Nothing changes where `config.learner` is `none`. Writes `prior.json`; a run that has it does not learn again.

    Args:
      trunk: supervised GPT-2.
    """
    if config.learner == "none":
        return setup
    setup = with_scorer(setup, config)
    stored = run.path / FILE
    if stored.exists():
        return setup._replace(prior={prior.NAME: stored_prior(stored, names=("policy", *scorer_of(setup).names))})
    found = train(run, setup, look_up_validation(setup, {"trunk": trunk}, config), config)
    write_json(stored, found._asdict())
    return setup._replace(prior={prior.NAME: found.params()})


def stored_prior(path: Path, *, names: Sequence[str] = ()) -> Params:
    """The weights in a run's `prior.json`.

    Args:
      names: of the weights, where they are known; those of the file must be the same.
    Raises: RunError naming the file and the field that is not as it was written, or not of these names.
    """
    weights = read_object(path, "weights")["weights"]
    numbers = list(weights.values()) if isinstance(weights, dict) else []
    if len(numbers) < 2 or not all(isinstance(one, float) for one in numbers):
        raise RunError(f"{path}: 'weights' must be numbers by name, policy first: got {weights!r}")
    if names and tuple(weights) != tuple(names):
        raise RunError(f"{path}: weights of {', '.join(weights)}, where the policy reads {', '.join(names)}")
    return as_params(np.array(numbers))


def with_scorer(setup: Setup, config: PriorConfig) -> Setup:
    """The setup whose prompts bring along what a prior reads; the same where there is none, or they bring it already."""
    if config.learner == "none" or setup.scorer is not None:
        return setup
    scorer = fit_scorer(setup.corpus, setup.vocab.item_ids, config.parts)
    notice(f"prior: {', '.join(config.parts)} counted on {len(scorer.training.numbers)} training dialogues")
    return setup._replace(scorer=scorer)


def is_held_out(dialogue: Dialogue, share: float) -> bool:
    """Whether a dialogue is only measured; it hangs on its id alone."""
    return zlib.crc32(f"prior/{dialogue.dialogue_id}".encode()) < share * 2**32


def look_up(setup: Setup, trunk: Params, dialogues: Iterable[Dialogue], *, batch_size: int = 64) -> Known:
    """What trunk and recommenders say before each message with a fresh item now or later.

    Memory: 4·(K + 1)·I bytes a row, and 2·I for what is gold; ReDial's validation split (2,900 rows, K = 7) takes 650 MB. Where
    all rows would take more than `MOST_BYTES`, as many as fit are looked up, evenly spread, and a notice says so.

    Raises: RunError where no message of the dialogues suggests an item that was not named before.
    """
    wanted = [(dialogue, *later) for dialogue in dialogues for later in fresh_from(dialogue)]
    if not wanted:
        raise RunError("prior: no message of the validation split suggests an item that was not named before")
    columns = {item: column for column, item in enumerate(setup.vocab.item_ids)}
    a_row = (4 * (len(scorer_of(setup).names) + 1) + 2) * len(columns)
    room = max(1, MOST_BYTES // a_row)
    if room < len(wanted):
        notice(
            f"prior: {len(wanted):,} contexts over {len(columns):,} items would take {len(wanted) * a_row / 1e9:.1f} GB; "
            f"{room:,} of them, evenly spread, take {room * a_row / 1e9:.1f} GB"
        )
        wanted = [wanted[place] for place in np.linspace(0, len(wanted) - 1, room).astype(int)]
    unique = list({dialogue.dialogue_id: dialogue for dialogue, *_ in wanted}.values())
    number = {dialogue.dialogue_id: place for place, dialogue in enumerate(unique)}
    windows = Windows.of(setup, unique)
    score = setup.agent.compiled("score_items", lambda: jax.jit(setup.agent.score_items))
    n, n_items = len(wanted), len(columns)
    scorer = scorer_of(setup)
    found = Known(
        np.empty((n, n_items), np.float32),
        np.empty((n, len(scorer.names), n_items), np.float32),
        np.zeros((n, n_items), bool),
        np.zeros((n, n_items), bool),
    )
    with Progress("prior: contexts", 0, n) as progress:
        for rows, own in wrapped_batches(n, batch_size):
            prompts = windows.batch([(number[wanted[row][0].dialogue_id], wanted[row][1]) for row in rows])
            kept = rows[:own]
            found.logprobs[kept] = np.asarray(jax.nn.log_softmax(score({"trunk": trunk["trunk"]}, prompts)))[:own]
            found.scores[kept] = np.asarray(prompts.item_scores)[:own]
            progress.show(int(rows[0]) + own, {})
    for row, (_, _, now, later) in enumerate(wanted):
        found.now[row, [columns[item] for item in now]] = True
        found.later[row, [columns[item] for item in later]] = True
    return found


def fresh_from(dialogue: Dialogue) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """For each of the recommender's messages with items: its place, and what it and the later ones name first.

    Only messages with a fresh item now or later. An item is fresh at a message if nobody named it before that message.
    """
    rows = list(ranking_rows([dialogue]))
    found = []
    for place, row in enumerate(rows):
        named = set(row.mentioned)
        later = tuple(dict.fromkeys(item for one in rows[place:] for item in one.gold if item not in named))
        if later:
            found.append((row.message_index, row.fresh_gold, later))
    return found


class Parts(NamedTuple):
    """The validation split, divided."""

    learnt: Known
    held_out: Known | None
    """None where there is no such dialogue."""
    dialogues: int
    """That are learnt from."""


def look_up_validation(setup: Setup, trunk: Params, config: PriorConfig) -> Parts:
    """What is known of the validation split's contexts.

    Args:
      trunk: a tree with `trunk`; it stays as it is.
    Raises: RunError without contexts to learn from.
    """
    dialogues = evenly(setup.corpus.validation, config.max_dialogues)
    share = config.held_out
    learnt = [one for one in dialogues if not is_held_out(one, share)]
    kept = [one for one in dialogues if is_held_out(one, share) and fresh_from(one)]
    if not learnt:
        raise RunError(f"--prior.held-out {share} of {len(dialogues)} validation dialogues leaves none to learn from")
    return Parts(look_up(setup, trunk, learnt), look_up(setup, trunk, kept) if kept else None, len(learnt))


def train(run: RunDirectory, setup: Setup, parts: Parts, config: PriorConfig, *, stage: str = STAGE) -> Fitted:
    """Finds the weights; GRPO as a stage of the run, with checkpoints and metrics.

    Args:
      stage: names the checkpoints.
    """
    learnt, held_out = parts.learnt, parts.held_out
    names = ("policy", *scorer_of(setup).names)
    if config.learner == "likelihood":
        weights = most_likely(learnt)
    else:
        weights = reinforced(run, setup, learnt, held_out, config, stage)
    measured = {}
    if held_out is not None:
        for when, one in (("before", np.eye(len(names))[0]), ("after", weights)):
            measured |= {f"{name} {when}": value for name, value in quality(one, held_out).items()}
    found = dict(zip(names, map(float, weights), strict=True))
    return Fitted(found, config.learner, parts.dialogues, len(learnt.logprobs), measured)


def mixed(params: Params, known: tuple[jax.Array, jax.Array]) -> jax.Array:
    """ℓ(i) = w₀ · log p(i | s) + Σ_k w_k · z_k(i, s), nats. [B, I]"""
    logprobs, scores = known
    return params["policy"] * logprobs + prior.bonus(params, scores)


def as_params(weights: np.ndarray) -> Params:
    """The first is the policy's."""
    return {"policy": jnp.float32(weights[0]), "scores": jnp.asarray(weights[1:], jnp.float32)}


def quality(weights: np.ndarray, known: Known, *, chunk: int = 256) -> dict[str, float]:
    """HR@5 and NDCG@10 of the items named now, mean over (message, item) cases; ties count against the weights."""
    ranks: list[int] = []
    for start in range(0, len(known.logprobs), chunk):
        part = known.part(slice(start, start + chunk))
        logits = np.asarray(mixed(as_params(weights), (jnp.asarray(part.logprobs), jnp.asarray(part.scores))))
        for row, gold in zip(logits, part.now, strict=True):
            ranks += [int((row >= row[item]).sum()) for item in np.flatnonzero(gold)]
    found = np.array(ranks, np.float64)
    if not len(found):
        return {}
    return {
        "hr@5": float((found <= 5).mean()),
        "ndcg@10": float(np.where(found <= 10, 1 / np.log2(found + 1), 0).mean()),
    }


def most_likely(known: Known, *, chunk: int = 64) -> np.ndarray:
    """Weights that make the items named now likely at the first place of a list. [1 + K]

        max_w  (1/n) Σ_s Σ_{g named now} log softmax_i( w₀ · log p(i | s) + Σ_k w_k · z_k(i, s) )(g)

    Concave in w, so that L-BFGS from w₀ = 1 and w_k = 0 finds the maximum; nothing keeps a weight positive.

    Raises: RunError if nothing new is named.
    """
    used = np.flatnonzero(known.now.any(axis=1))
    n = int(known.now.sum())
    if not n:
        raise RunError("prior: no message names an item that was not named before")

    @jax.jit
    def slope(weights: jax.Array, logprobs: jax.Array, scores: jax.Array, gold: jax.Array) -> Any:
        def loss(weights: jax.Array) -> jax.Array:
            logits = mixed({"policy": weights[0], "scores": weights[1:]}, (logprobs, scores))
            return -(jax.nn.log_softmax(logits) * gold).sum() / n

        return jax.value_and_grad(loss)(weights)

    def total(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = 0.0, np.zeros(len(weights))
        for rows, own in wrapped_batches(len(used), min(chunk, len(used))):
            part = known.part(used[rows])
            gold = part.now.astype(np.float32)
            gold[own:] = 0.0
            found = slope(jnp.asarray(weights, jnp.float32), part.logprobs, part.scores, gold)
            value, gradient = value + float(found[0]), gradient + np.asarray(found[1], np.float64)
        return value, gradient

    # Imported where used: see `recommenders.mixture`.
    from scipy.optimize import minimize

    start = np.array([1.0, *[0.0] * known.scores.shape[1]])
    return minimize(total, start, jac=True, method="L-BFGS-B", options={"maxiter": 100, "ftol": 1e-8}).x


def reinforced(
    run: RunDirectory, setup: Setup, learnt: Known, held_out: Known | None, config: PriorConfig, stage: str
) -> np.ndarray:
    """Weights that earn NDCG, by GRPO on lists from a prior that says nothing. [1 + K]"""
    n, n_items = learnt.logprobs.shape
    lists = config.lists._replace(length=min(config.list_length, n_items))
    rate, optimizer = falling_to_zero(config.learning_rate, config.updates)
    key = stream_key(jax.random.key(setup.seed), STAGE, 0)
    step = jax.jit(functools.partial(list_grpo.update, judge=mixed, lists=lists, optimizer=optimizer), donate_argnums=0)

    def update(state: TrainState, index: int) -> tuple[TrainState, dict[str, Any]]:
        part = learnt.part(batch_indices(n, seed=setup.seed, step=index, batch_size=config.contexts))
        used = rate(steps_taken(state.opt_state))
        batch = ListBatch(known=(jnp.asarray(part.logprobs), jnp.asarray(part.scores)), gold=jnp.asarray(part.later))
        state, metrics = step(state, batch, key)
        return state, metrics | {"learning_rate": used}

    def evaluate(state: TrainState, index: int) -> dict[str, float]:
        del index
        assert held_out is not None
        return {f"validation/{name}": value for name, value in quality(weights_of(state), held_out).items()}

    final = run_stage(
        run,
        sft.init(prior.init(learnt.scores.shape[1]), optimizer, averaged=False),
        update,
        StagePlan(
            stage,
            config.updates,
            save_every=max(1, config.updates // 10),
            log_every=max(1, config.updates // 30),
            on_eval=None if held_out is None else evaluate,
            eval_every=None if held_out is None else max(1, config.updates // 10),
            advice="a lower --prior.learning-rate",
        ),
    )
    return weights_of(final)


def weights_of(state: TrainState) -> np.ndarray:
    """The first is the policy's. [1 + K]"""
    return np.array([float(state.params["policy"]), *np.asarray(state.params["scores"], np.float64)])


def filtered(names: Sequence[str], price: float = FORBIDDING) -> Params:
    """A prior that is told by hand: nothing that was named is suggested, all else is the trunk's."""
    return {
        "policy": jnp.ones((), jnp.float32),
        "scores": jnp.array([price if name == NAMED else 0.0 for name in names], jnp.float32),
    }


def told_not_to_repeat(setup: Setup) -> Params:
    """`filtered` as a part of a policy of this setup."""
    return {prior.NAME: filtered(scorer_of(setup).names)}


def scorer_of(setup: Setup) -> ItemScorer:
    """The setup's. Raises: ValueError without one."""
    if setup.scorer is None:
        raise ValueError("this setup has no recommenders: with_scorer comes first")
    return setup.scorer

"""Stage 1 of DPO4Rec: a GPT-2 learns to read a rated history and to write a preference text, from the teacher's drawn texts."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, Key

from rlhf_jax.data import preference_texts as texts
from rlhf_jax.data.batching import pad_left, pad_right, wrapped_batches
from rlhf_jax.data.preference_texts import PreferenceText
from rlhf_jax.data.preference_tokens import item_words
from rlhf_jax.data.rating_lists import MOST_READ, read_part
from rlhf_jax.data.ratings import History
from rlhf_jax.interfaces import Params, PolicyApply, PromptBatch, Rollout
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import sft
from rlhf_jax.learners.microbatch import LossSums
from rlhf_jax.learners.optimizer import TrainState, falling_by_cosine, steps_taken
from rlhf_jax.models import gpt2
from rlhf_jax.ranges import Batch, Range, Rate, Share, Steps, check_numbers
from rlhf_jax.runtime.files import read_npz, write_npz
from rlhf_jax.runtime.progress import Progress
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.runtime.stage import Best, StagePlan, run_stage
from rlhf_jax.stages.dpo4rec.preference_setup import PreferenceSetup

STAGE = "writer"


@dataclasses.dataclass(frozen=True)
class WriterConfig:
    """Stage 1: supervised training on the teacher's texts."""

    steps: Steps = 1200
    """Optimiser steps."""
    batch_size: Batch = 64
    """Histories of a step; each is a window of its own, with a text drawn for it."""
    spread: Annotated[float, Range("(0, 100]")] = 1.0
    """How far the teacher's texts depart from the strongest statistics."""
    learning_rate: Rate = 1e-3
    """Peak of the cosine schedule."""
    warmup_steps: Annotated[int, Range("[0, 1_000_000]")] = 50
    """Optimiser steps until the peak."""
    weight_decay: Share = 0.05
    """AdamW's, on matrices."""
    evaluations: Steps = 8
    """Of the validation users' texts; the best state is kept."""

    def __post_init__(self) -> None:
        check_numbers(self)


def text_loss(params: Params, batch: Rollout, key: Key[Array, ""] | None, *, policy: PolicyApply) -> LossSums:
    """−log π of the texts' tokens under the grammar, summed over tokens."""
    del key
    mask = batch.response_mask
    return LossSums(
        loss=-jnp.sum(policy(params, batch).logprobs), count=jnp.sum(mask.astype(jnp.float32)), parts={}, maxima={}
    )


def train(run: RunDirectory, setup: PreferenceSetup, config: WriterConfig) -> Params:
    """Runs the stage; returns {`trunk`}, the state of the lowest validation loss."""
    writer, key = setup.writer, jax.random.key(setup.seed)
    trunk = gpt2.init(writer.network, stream_key(key, f"{STAGE}/init", 0))
    params = {"trunk": with_item_words(setup, trunk)}
    rate, optimizer = falling_by_cosine(
        config.learning_rate,
        warmup_steps=config.warmup_steps,
        total_steps=config.steps,
        weight_decay=config.weight_decay,
    )
    layout = setup.layout
    loss = layout.loss(functools.partial(text_loss, policy=writer.on_mesh(layout).policy), whole_table=True)

    def one_step(state: TrainState, batch: Rollout, key: Key[Array, ""]) -> tuple[TrainState, dict[str, Array]]:
        used = jnp.asarray(rate(steps_taken(state.opt_state)))
        state, metrics = sft.update(state, batch, key, loss_fn=loss, optimizer=optimizer)
        return state, metrics | {"learning_rate": used}

    state = layout.place(sft.init(params, optimizer))
    step = layout.together(layout.step(one_step, state), STAGE)
    judged = layout.together(jax.jit(lambda params, batch: loss(params, batch, None)), f"{STAGE}/validation")

    def update(state: TrainState, index: int) -> tuple[TrainState, dict[str, Any]]:
        batch = layout.batch(config.batch_size, lambda own: teacher_batch(setup, config, index, own))
        return step(state, batch, layout.same(key))

    checked = validation_batches(setup, config)

    def evaluate(state: TrainState, index: int) -> dict[str, float]:
        del index
        total, count = 0.0, 0.0
        for batch in checked:
            placed = layout.batch(config.batch_size, functools.partial(rows_of, batch))
            sums = jax.device_get(judged(state.params, placed))
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
            advice="a lower --writer.learning-rate or a longer --writer.warmup-steps",
        ),
    )
    return layout.fetch(final.params)


def rows_of(batch: Rollout, own: slice) -> Rollout:
    """Some rows of a rollout."""
    return jax.tree.map(lambda leaf: leaf[own], batch)


def with_item_words(setup: PreferenceSetup, trunk: Params) -> Params:
    """The trunk whose items start as the mean of their attributes' words, scaled as words are."""
    vocab = setup.vocab
    weights = jnp.asarray(item_words(vocab, setup.attributes))
    table = trunk["wte"]
    own = table[vocab.first_item : vocab.first_item + vocab.n_items]
    table = table.at[vocab.first_item : vocab.first_item + vocab.n_items].set(own + weights @ table[: len(vocab.words)])
    return trunk | {"wte": table}


def windows_of(setup: PreferenceSetup) -> list[History]:
    """Histories that texts are learnt from. Of the scorer's users all of it; of the users for pairs only the part that a text may
    read, so that no item of their lists is in it."""
    scorer = [setup.corpus.histories[user] for user in setup.split.scorer]
    return scorer + [read_part(setup.corpus.histories[user]) for user in setup.split.pairs]


def teacher_batch(setup: PreferenceSetup, config: WriterConfig, index: int, own: slice) -> Rollout:
    """Rows `own` of batch `index`: a window of a history each, and a drawn text; each row has its own random numbers."""
    histories = windows_of(setup)
    pairs = []
    for row in range(config.batch_size)[own]:
        draws = np.random.Generator(np.random.PCG64([13, setup.seed, index, row]))
        history = histories[int(draws.integers(len(histories)))]
        n = min(len(history.items), int(draws.integers(2, MOST_READ + 1)))
        start = int(draws.integers(len(history.items) - n + 1))
        pairs.append(taught(setup, history.part(slice(start, start + n)), draws, config.spread))
    return teacher_rollout(setup, pairs)


def taught(
    setup: PreferenceSetup, history: History, draws: np.random.Generator, spread: float
) -> tuple[History, PreferenceText]:
    """A history with a text that the teacher draws for it."""
    found = texts.taste(history, setup.corpus, setup.attributes, setup.usual)
    return history, texts.drawn_text(found, draws, titles=setup.titles, spread=spread)


def validation_batches(setup: PreferenceSetup, config: WriterConfig) -> list[Rollout]:
    """One drawn text for each validation user, in batches of one size; what fills the last is masked."""
    users = setup.split.validation
    pairs = []
    for user in users:
        draws = np.random.Generator(np.random.PCG64([17, int(user)]))
        pairs.append(taught(setup, read_part(setup.corpus.histories[user]), draws, config.spread))
    found = []
    for rows, own in wrapped_batches(len(pairs), config.batch_size):
        batch = teacher_rollout(setup, [pairs[row] for row in rows])
        counts = jnp.arange(len(rows))[:, None] < own
        found.append(dataclasses.replace(batch, response_mask=batch.response_mask & counts))
    return found


def teacher_rollout(setup: PreferenceSetup, pairs: list[tuple[History, PreferenceText]]) -> Rollout:
    """Given texts in the form of sampled ones."""
    vocab = setup.vocab
    prompts = pad_left([vocab.prompt(history) for history, _ in pairs], setup.prompt_tokens, vocab.pad)
    length = setup.writer.response_tokens
    responses = pad_right([vocab.response(text) for _, text in pairs], length, vocab.pad)
    return given_rollout(prompts, responses)


def given_rollout(prompts: tuple[np.ndarray, np.ndarray], responses: tuple[np.ndarray, np.ndarray]) -> Rollout:
    """Tokens and masks as a policy judges them. [B, P] and [B, T], each twice"""
    return Rollout(
        prompt_tokens=jnp.asarray(prompts[0]),
        prompt_mask=jnp.asarray(prompts[1]),
        response_tokens=jnp.asarray(responses[0]),
        response_mask=jnp.asarray(responses[1]),
        logprobs=jnp.zeros(responses[0].shape, jnp.float32),
        finished=jnp.ones(len(responses[0]), bool),
    )


def prompts_of(setup: PreferenceSetup, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask of some users' prompts: what a text may read of them. [B, P] each"""
    vocab = setup.vocab
    return pad_left(
        [vocab.prompt(read_part(setup.corpus.histories[user])) for user in users], setup.prompt_tokens, vocab.pad
    )


def write(
    setup: PreferenceSetup,
    params: Params,
    users: np.ndarray,
    *,
    n: int,
    stream: str,
    temperature: float = 1.0,
    batch_size: int = 64,
) -> Int32[np.ndarray, "U N T"]:
    """n texts for each user as response tokens; a text hangs on seed, stream, user and its number, not on the batch.

    Args:
      params: {`trunk`, …}.
      stream: names the random stream.
      temperature: 0 writes the likeliest token each time.
    """
    decode = setup.writer.decode(n, temperature)
    key = stream_key(jax.random.key(setup.seed), stream, 0)
    found = np.empty((len(users), n, setup.writer.response_tokens), np.int32)
    size = min(batch_size, max(len(users), 1))
    with Progress(f"{stream}: texts", 0, len(users)) as progress:
        for rows, own in wrapped_batches(len(users), size):
            tokens, mask = prompts_of(setup, users[rows])
            numbers = (users[rows][:, None] * n + np.arange(n)).reshape(-1)
            rollout = decode(
                params,
                PromptBatch(tokens=jnp.asarray(tokens), mask=jnp.asarray(mask)),
                key,
                jnp.asarray(numbers, jnp.int32),
            )
            found[rows[:own]] = np.asarray(rollout.response_tokens).reshape(size, n, -1)[:own]
            progress.show(int(rows[0]) + own, {})
    return found


def stored(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Texts that are made once a run."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_npz(path, {"tokens": make()}, compressed=True)
    return read_npz(path)["tokens"]


def taught_tokens(setup: PreferenceSetup, config: WriterConfig, n: int) -> np.ndarray:
    """n texts that the teacher draws for every user, as tokens. [U, n, T]"""
    vocab, found = setup.vocab, []
    for user, taste in enumerate(setup.tastes(np.arange(len(setup.corpus.users)))):
        draws = np.random.Generator(np.random.PCG64([31, setup.seed, user]))
        found += [texts.drawn_text(taste, draws, titles=setup.titles, spread=config.spread) for _ in range(n)]
    tokens = pad_right([vocab.response(text) for text in found], setup.writer.response_tokens, vocab.pad)[0]
    return tokens.reshape(-1, n, tokens.shape[1])


def real_tokens(setup: PreferenceSetup, tokens: np.ndarray) -> Bool[np.ndarray, "*n T"]:
    """True up to the first `<eos>` of a response, which is included."""
    ends = tokens == setup.vocab.eos
    found: np.ndarray = np.cumsum(ends, axis=-1) - ends == 0
    return found


def read_texts(setup: PreferenceSetup, tokens: np.ndarray) -> list[PreferenceText]:
    """Response tokens [..., T] as texts, in order."""
    return [setup.vocab.text(row) for row in tokens.reshape(-1, tokens.shape[-1])]

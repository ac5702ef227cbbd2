"""The user simulator: a GPT-2 that says what a seeker would say next, and knows what the seeker will like.

Three losses with weights (`stages.seeker_loss`): the next words of the seeker, the attributes of what the seeker will
like, and the items themselves. Gold are items that the seeker likes and that the recommender has still to name first.
They are asked for where a message begins, at `<seeker>` and at `<recommender>`: before either speaks.

Once trained it reads no form and no target: `SeekerSimulator` sees messages alone. Hidden targets are blocked in its
decoding (`data.spelled_titles`), and their words are no targets of training either.
Source: a simulator of these three tasks is named by arXiv:2604.03671 without formula; all weights here are our choice.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from rlhf_jax.data.attributes import Attributes
from rlhf_jax.data.batching import pad_left
from rlhf_jax.data.spelled_titles import SpelledTitles
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import prompt_tokens
from rlhf_jax.decoding.sampler import Decoding
from rlhf_jax.decoding.spoken import Ends, make_speak
from rlhf_jax.interfaces import Dialogue, Message, Params, PromptBatch
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import sft
from rlhf_jax.learners.microbatch import LossSums
from rlhf_jax.learners.optimizer import Adam, TrainState, learning_rate_schedule, make_optimizer, steps_taken
from rlhf_jax.models import gpt2, heads
from rlhf_jax.parallel.partition import Layout
from rlhf_jax.ranges import Cases, Epochs, Norm, Range, Rate, Share, Steps, Tokens, Weight, check_numbers, option
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.runtime.stage import Best, StagePlan, run_stage, stage_arrays
from rlhf_jax.simulators.composed_feedback import Composer
from rlhf_jax.stages.agent import on_mesh
from rlhf_jax.stages.items import ItemKnowledge, compose, item_knowledge
from rlhf_jax.stages.seeker_loss import TaskWeights, attribute_logits, init_attributes, simulator_loss
from rlhf_jax.stages.seeker_texts import (
    SeekerBatch,
    SeekerBatches,
    as_said,
    attribute_rates,
    composed_dialogues,
    named_in,
    seeker_descriptions,
    seeker_texts,
)
from rlhf_jax.stages.setup import Setup

STAGE = "simulator"
Task = Literal["language", "attribute", "target"]
"""What a simulator learns: what the seeker says, the attributes and the items that the seeker will like."""
NOTHING_LEFT = ("...",)
"""What is said where all words had to be cut out."""


@dataclasses.dataclass(frozen=True)
class SimulatorConfig:
    """How the user simulator learns, and how it speaks."""

    language_weight: Weight = 1.0
    """Of a seeker's token; 0 is off."""
    attribute_weight: Weight = 0.1
    """Of a marker's attributes, whose losses are summed; 0 is off."""
    target_weight: Weight = 3.0
    """Of a marker's target items; 0 is off."""
    composed_share: Annotated[float, Range("[0, 10]")] = 0.0
    """Dialogues with a composed last exchange that are added, as a share of the dialogues (`simulators.composed_feedback`)."""
    composed_items: Annotated[int, Range("[1, 1_000]")] = 3
    """Most items that a composed exchange suggests."""
    epochs: Epochs = 4
    """Passes over the dialogues."""
    description_epochs: Annotated[int, Range("[0, 10_000]")] = 1
    """Epochs in which item descriptions (words, then the item as target) are mixed in; 0 is off."""
    description_tokens: Tokens = 48
    """Longest item description, in tokens."""
    title_embeddings: bool = True
    """Items share the embeddings of their titles' words."""
    metadata_words: bool = True
    """Items also share the embeddings of the words of their genres, people and decade."""
    features_per_item: Annotated[int, Range("[0, 1_000]")] = 8
    """Features (genres, decade, people) an item's embedding is composed of at most; 0 is off."""
    max_tokens: Tokens = 512
    """Longest row; longer dialogues are cut at utterances."""
    buckets: tuple[Tokens, ...] = (64, 128, 192, 256, 512)
    """Lengths that rows are padded to; one compiled program each."""
    tokens_per_batch: Annotated[int, Range("[1, 16_777_216]")] = 4096
    """Tokens of one optimiser step, padding included."""
    learning_rate: Rate = 1.5e-3
    """Peak of the cosine schedule."""
    warmup_steps: Annotated[int, Range("[0, 1_000_000]")] = 100
    """Optimiser steps until the peak."""
    weight_decay: Share = 0.05
    """AdamW's, on matrices."""
    max_grad_norm: Norm = 1.0
    """Limit of the gradient's global norm."""
    average_decay: Annotated[float, Range("[0, 1)")] = 0.998
    """Of the moving average of the parameters, which is what is evaluated and kept."""
    patience: Steps | None = 3
    """Evaluations without a lower validation loss after which the stage stops; None never stops early."""
    evaluations_per_epoch: Steps = 1
    """Evaluations on validation dialogues."""
    validation_dialogues: Cases = 500
    """Validation dialogues an evaluation reads."""
    saves_per_epoch: Steps = 4
    """Checkpoints."""
    response_tokens: Tokens = 24
    """Longest answer, `<eos>` included."""
    temperature: Annotated[float, Range("[0, 100]")] = 1.0
    """Divides the logits of an answer; 0 is greedy."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if not self.language_weight + self.attribute_weight + self.target_weight:
            raise ValueError(f"{option(self, 'language_weight')} and both other weights are 0: nothing is learnt")
        if list(self.buckets) != sorted(self.buckets) or not self.buckets or self.buckets[-1] < self.max_tokens:
            raise ValueError(
                f"{option(self, 'buckets')} {self.buckets} must rise and the last must hold {option(self, 'max_tokens')} "
                f"{self.max_tokens}"
            )
        if self.tokens_per_batch < self.buckets[-1]:
            raise ValueError(
                f"{option(self, 'tokens_per_batch')} {self.tokens_per_batch} does not hold one text of the longest of "
                f"{option(self, 'buckets')}, {self.buckets[-1]}"
            )


def single_task(config: SimulatorConfig, task: Task) -> SimulatorConfig:
    """The same simulator with one of its three losses alone, whatever that one's weight was.

    Raises: ValueError for another task.
    Examples:
      >>> alone = single_task(SimulatorConfig(attribute_weight=0.0), "attribute")
      >>> alone.language_weight, alone.attribute_weight, alone.target_weight
      (0.0, 1.0, 0.0)
    """
    if task not in get_args(Task):
        raise ValueError(f"task {task!r}: expected one of {', '.join(get_args(Task))}")
    # A loss is divided by the sum of the weights: alone, one weight is as good as another.
    return dataclasses.replace(config, **{f"{name}_weight": float(name == task) for name in get_args(Task)})


def train(
    run: RunDirectory,
    setup: Setup,
    dialogues: Sequence[Dialogue],
    config: SimulatorConfig,
    *,
    attributes: Attributes,
    seed: int,
    stage: str = STAGE,
) -> Params:
    """Runs the stage and returns {`trunk`, `attributes`}, the moving average with the lowest validation loss.

    Args:
      dialogues: those that it may learn from.
      attributes: of the vocabulary's items, in its order.
      seed: of parameters and batches.
      stage: names the checkpoints; its kind is `simulator`.
    Returns: a tree that is whole, on one device; `trunk` is a plain GPT-2.
    Raises: RunError where the dialogues, or those of the validation split, have nothing to learn.
    """
    vocab, agent, layout = setup.vocab, setup.agent, setup.layout
    titles = SpelledTitles.of(setup.corpus.items)
    batches = training_batches(setup, dialogues, config, attributes, titles, seed)
    judged = validation_batches(setup, config, attributes, titles)
    knowledge, n_features = item_knowledge(vocab, setup.corpus, config)
    key, width = jax.random.key(seed), agent.network.n_embd
    trunk = setup.pretrained
    if trunk is None:
        trunk = gpt2.init(agent.network, stream_key(key, f"{STAGE}/init", 0))
    head = init_attributes(stream_key(key, f"{STAGE}/attributes", 0), width, attribute_rates(batches))
    # A checkpoint holds no empty array: without features one row stays unused.
    params = {"trunk": trunk, "item_features": jnp.zeros((max(n_features, 1), width)), "attributes": head}
    steps = batches.steps(config.epochs)
    schedule: Any = {
        "learning_rate": config.learning_rate,
        "warmup_steps": min(config.warmup_steps, steps // 2),
        "total_steps": steps,
        "schedule": "cosine",
    }
    rate = learning_rate_schedule(**schedule)
    optimizer = make_optimizer(
        **schedule, weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm, adam=Adam(b2=0.98)
    )
    loss = functools.partial(
        simulator_loss,
        network=on_mesh(agent, layout).network,
        grammar=agent.grammar,
        weights=TaskWeights(config.language_weight, config.attribute_weight, config.target_weight),
    )
    # The table is whole in use: it is cut where words end and items begin.
    loss = layout.loss(loss, whole_table=True)

    def one_step(
        state: TrainState, batch: SeekerBatch, knowledge: ItemKnowledge, key: Key[Array, ""]
    ) -> tuple[TrainState, dict[str, Array]]:
        used = jnp.asarray(rate(steps_taken(state.opt_state)))
        state, metrics = sft.update(
            state,
            batch,
            key,
            loss_fn=functools.partial(loss, knowledge=knowledge),
            optimizer=optimizer,
            average_decay=config.average_decay,
        )
        return state, metrics | {"learning_rate": used}

    state, known = layout.place(sft.init(params, optimizer, averaged=True)), layout.same(knowledge)
    step = layout.together(layout.step(one_step, state), stage)

    def update(state: TrainState, index: int) -> tuple[TrainState, dict[str, Any]]:
        batch = own_rows(batches.batch(index), layout)
        return step(state, batch, known, layout.same(stream_key(key, f"{STAGE}/dropout", index)))

    per_epoch = max(1, steps // config.epochs)
    final = run_stage(
        run,
        state,
        update,
        StagePlan(
            stage,
            steps,
            save_every=max(1, per_epoch // config.saves_per_epoch),
            log_every=max(1, min(50, per_epoch // 10)),
            on_eval=validation(judged, loss, known, layout, stage),
            eval_every=max(1, per_epoch // config.evaluations_per_epoch),
            best=Best("validation/loss", "min", config.patience),
            advice="a lower --simulator.learning-rate or a longer --simulator.warmup-steps",
        ),
    )
    return _folded(layout.fetch(final.average), knowledge, agent.grammar.first_item)


def _folded(average: Params, knowledge: ItemKnowledge, first_item: int) -> Params:
    """What a stage ends with, from the moving average it keeps."""
    trunk = jax.jit(compose, static_argnums=2)(average, knowledge, first_item)
    return {"trunk": trunk, "attributes": average["attributes"]}


def stored(directory: Path, setup: Setup, config: SimulatorConfig, *, n_attributes: int, stage: str = STAGE) -> Params:
    """What `train` returned, or the newest checkpoint of it, read from a run directory that need not be open.

    Args:
      directory: the run's.
      n_attributes: of the attributes it was trained with.
      stage: as `train`.
    Raises: RunError naming the numbers, where the directory has no such stage, or one of another vocabulary, width or list
      of attributes.
    """
    average = stage_arrays(directory, stage)["average"]
    knowledge, n_features = item_knowledge(setup.vocab, setup.corpus, config)
    width = setup.network.n_embd
    expected = {
        "table of tokens": (average["trunk"]["wte"], (setup.vocab.size, width)),
        "table of items' features": (average["item_features"], (max(n_features, 1), width)),
        "attributes' bias": (average["attributes"]["bias"], (n_attributes,)),
    }
    for name, (array, shape) in expected.items():
        if array.shape != shape:
            raise RunError(
                f"{directory / 'checkpoints' / stage}: the {name} is {array.shape}, this run's vocabulary of {setup.vocab.size} "
                f"tokens, network and attributes need {shape}: the checkpoint is that of another run"
            )
    return _folded(average, knowledge, setup.agent.grammar.first_item)


def training_batches(
    setup: Setup,
    dialogues: Sequence[Dialogue],
    config: SimulatorConfig,
    attributes: Attributes,
    titles: SpelledTitles,
    seed: int,
) -> SeekerBatches:
    """The dialogues, the composed ones and the items' descriptions, in the order of `seed`."""
    vocab, items = setup.vocab, setup.corpus.items
    composed = composed_dialogues(
        dialogues, Composer(items, titles), share=config.composed_share, most=config.composed_items, seed=seed
    )
    said = [*map(as_said, dialogues), *composed]
    telling = titles.first_tokens(vocab, items)
    texts = seeker_texts(vocab, said, max_tokens=config.max_tokens, telling=telling)
    if not texts:
        raise RunError(f"{STAGE}: {len(dialogues)} dialogues have nothing to learn: no seeker speaks, nothing is liked")
    if config.description_epochs:
        texts += seeker_descriptions(vocab, items, max_tokens=config.description_tokens)
    return SeekerBatches.of(
        texts,
        attributes,
        vocab,
        buckets=config.buckets,
        tokens_per_batch=config.tokens_per_batch,
        seed=seed,
        description_epochs=config.description_epochs,
    )


def validation_batches(
    setup: Setup, config: SimulatorConfig, attributes: Attributes, titles: SpelledTitles
) -> SeekerBatches:
    """The first validation dialogues, in one fixed order."""
    vocab = setup.vocab
    said = [*map(as_said, setup.corpus.validation[: config.validation_dialogues])]
    telling = titles.first_tokens(vocab, setup.corpus.items)
    texts = seeker_texts(vocab, said, max_tokens=config.max_tokens, telling=telling)
    if not texts:
        raise RunError(f"{STAGE}: {len(said)} validation dialogues have nothing that could be judged")
    return SeekerBatches.of(
        texts, attributes, vocab, buckets=config.buckets, tokens_per_batch=config.tokens_per_batch, seed=0
    )


def own_rows(batch: SeekerBatch, layout: Layout) -> SeekerBatch:
    """The batch on the layout's devices."""
    rows = batch.tokens.shape[0]
    return layout.batch(
        rows, lambda own: jax.tree.map(lambda leaf: leaf[own], batch) if own != slice(0, rows) else batch
    )


def validation(
    batches: SeekerBatches, loss: Callable[..., LossSums], knowledge: ItemKnowledge, layout: Layout, stage: str
) -> Callable[[TrainState, int], dict[str, float]]:
    """An evaluation of the moving average on fixed batches."""
    judged = jax.jit(lambda params, batch, knowledge: loss(params, batch, None, knowledge=knowledge))
    compiled = layout.together(judged, f"{stage}/validation")

    def evaluate(state: TrainState, step: int) -> dict[str, float]:
        del step
        totals: dict[str, np.ndarray] = {}
        for index in range(batches.steps(1)):
            sums = jax.device_get(compiled(state.average, own_rows(batches.batch(index), layout), knowledge))
            for name, pair in {"loss": (sums.loss, sums.count), **sums.parts}.items():
                totals[name] = totals.get(name, np.zeros(2)) + np.array(pair, np.float64)
        return {f"validation/{name}": float(total / max(count, 1e-9)) for name, (total, count) in totals.items()}

    return evaluate


class Answers(NamedTuple):
    """What simulated seekers say."""

    messages: list[Message]
    leaks: int
    """Messages that named a hidden item as they were drawn."""
    leaks_left: int
    """Those that still do: none."""


class Expected(NamedTuple):
    """What a seeker will like, before the recommender speaks."""

    items: np.ndarray
    """Log-probabilities, nats; −inf for an item that the history names. float32 [N, I]"""
    attributes: np.ndarray
    """Probabilities. float32 [N, A]"""


@dataclasses.dataclass(frozen=True, eq=False)
class SeekerSimulator:
    """A trained simulator in conversation. It reads messages alone: no form, no target.

    A batch is padded to a power of two, at least 8, so that a shrinking crowd does not compile a program per size.
    """

    setup: Setup
    params: Params
    """{`trunk`, `attributes`} as `train` returns it."""
    config: SimulatorConfig

    def __post_init__(self) -> None:
        longest = self.setup.data.context_tokens + self.config.response_tokens - 1
        if longest > self.setup.network.n_positions:
            raise ValueError(
                f"context_tokens {self.setup.data.context_tokens} and response_tokens {self.config.response_tokens} of the "
                f"simulator take {longest} positions: the network has {self.setup.network.n_positions}"
            )

    @functools.cached_property
    def titles(self) -> SpelledTitles:
        """The catalogue's titles as words."""
        return SpelledTitles.of(self.setup.corpus.items)

    @functools.cached_property
    def telling(self) -> Mapping[int, tuple[int, ...]]:
        """Tokens that give an item away, by item."""
        return self.titles.first_tokens(self.setup.vocab, self.setup.corpus.items)

    def answer(
        self, histories: Sequence[Sequence[Message]], blocked: Sequence[Collection[int]], key: Key[Array, ""]
    ) -> list[Message]:
        """The next message of every seeker; see `say`."""
        return self.say(histories, blocked, key).messages

    def say(
        self, histories: Sequence[Sequence[Message]], blocked: Sequence[Collection[int]], key: Key[Array, ""]
    ) -> Answers:
        """Draws the next message of every seeker, and cuts out what would give a hidden item away.

        A message holds words and items that its history has named. While it is drawn, the tokens of its hidden items and
        those that begin a telling word of their titles have probability 0; words spelled in another way are cut out.

        Args:
          histories: conversations so far, oldest message first. [N]
          blocked: hidden items of each conversation. [N]
          key: a row's draw depends on it and on the row's number alone.
        Raises: ValueError unless both are of one length.
        """
        if len(histories) != len(blocked):
            raise ValueError(f"{len(histories)} histories and {len(blocked)} sets of hidden items")
        if not histories:
            return Answers([], 0, 0)
        vocab, config = self.setup.vocab, self.config
        speak = self.setup.agent.compiled(
            ("seeker", config.response_tokens, config.temperature),
            lambda: jax.jit(
                make_speak(
                    self.setup.network,
                    Ends(vocab.eos, vocab.pad),
                    Decoding(config.response_tokens, config.temperature, rollout_for_learning=False),
                )
            ),
        )
        rows = _padded(len(histories))
        allowed = np.stack([self._sayable(*pair) for pair in zip(histories, blocked, strict=True)])
        allowed = jnp.asarray(allowed[rows])
        tokens = np.asarray(speak(self.params["trunk"], self._prompts(histories, vocab.seeker), allowed, key))
        said = [spoken_parts(vocab, row.tolist()) for row in tokens[: len(histories)]]
        messages, leaks, left = [], 0, 0
        for parts, hidden in zip(said, blocked, strict=True):
            kept = self.titles.without(parts, hidden) or NOTHING_LEFT
            leaks, left = leaks + self.titles.tells(parts, hidden), left + self.titles.tells(kept, hidden)
            messages.append(Message("seeker", kept, 0))
        return Answers(messages, leaks, left)

    def item_logprobs(self, histories: Sequence[Sequence[Message]]) -> np.ndarray:
        """log p of every item being what the seeker will like, before the recommender speaks.

        Args:
          histories: conversations so far. [N]
        Returns: nats, columns in the vocabulary's order; −inf for an item that the history names. float32 [N, I]
        """
        return self.expects(histories).items

    def attribute_probabilities(self, histories: Sequence[Sequence[Message]]) -> np.ndarray:
        """Probability of every attribute that something with it will be liked, before the recommender speaks. float32 [N, A]"""
        return self.expects(histories).attributes

    def expects(self, histories: Sequence[Sequence[Message]]) -> Expected:
        """Both at once, for one reading of the histories."""
        vocab, network = self.setup.vocab, self.setup.network
        first, end = vocab.first_item, vocab.first_item + vocab.n_items
        if not histories:
            n_attributes = len(self.params["attributes"]["bias"])
            return Expected(np.zeros((0, vocab.n_items), np.float32), np.zeros((0, n_attributes), np.float32))

        def ask(params: Params, prompts: PromptBatch, named: Array) -> tuple[Array, Array]:
            last = prompts.tokens.shape[1] - 1
            hidden = gpt2.hidden_states(network, params["trunk"], prompts.tokens, prompts.mask, from_position=last)[
                :, 0
            ]
            logits = heads.item_logits(
                params["trunk"],
                hidden,
                first_item=first,
                n_items=end - first,
                compute_dtype=network.compute_dtype,
            )
            logprobs = jax.nn.log_softmax(jnp.where(named, -jnp.inf, logits), axis=-1)
            return logprobs, jax.nn.sigmoid(attribute_logits(params["attributes"], hidden))

        compiled = self.setup.agent.compiled(("seeker asked",), lambda: jax.jit(ask))
        named = np.zeros((len(histories), vocab.n_items), bool)
        for row, history in enumerate(histories):
            named[row, [vocab.item_index(item) for item in named_in(history)]] = True
        prompts = self._prompts(histories, vocab.recommender)
        found = compiled(self.params, prompts, jnp.asarray(named[_padded(len(histories))]))
        logprobs, probabilities = (np.asarray(array)[: len(histories)] for array in found)
        return Expected(logprobs, probabilities)

    def _prompts(self, histories: Sequence[Sequence[Message]], marker: int) -> PromptBatch:
        """The last turns of every conversation and who speaks next, padded to a power of two of rows."""
        data, vocab = self.setup.data, self.setup.vocab
        sequences = []
        for history in histories:
            prompt = prompt_tokens(vocab, history, window=data.window, context_tokens=data.context_tokens)
            sequences.append([*prompt[:-1], marker])
        tokens, mask = pad_left(
            [sequences[row] for row in _padded(len(histories))], self.setup.data.context_tokens, vocab.pad
        )
        return PromptBatch(tokens=jnp.asarray(tokens), mask=jnp.asarray(mask))

    def _sayable(self, history: Sequence[Message], blocked: Collection[int]) -> np.ndarray:
        """Tokens that a seeker may say after a history. bool [V]"""
        vocab = self.setup.vocab
        allowed = np.zeros(vocab.size, bool)
        allowed[: vocab.n_words] = allowed[vocab.eos] = True
        allowed[[vocab.item_token(item) for item in named_in(history)]] = True
        for item in blocked:
            allowed[[vocab.item_token(item), *self.telling.get(item, ())]] = False
        return allowed


def spoken_parts(vocab: Vocabulary, tokens: Sequence[int]) -> tuple[str | int, ...]:
    """A seeker's tokens up to `<eos>` as words and items."""
    said = itertools.takewhile(lambda token: token not in (vocab.eos, vocab.pad), tokens)
    parts: list[str | int] = []
    for is_item, group in itertools.groupby(said, vocab.is_item):
        run = [*group]
        parts.extend(map(vocab.item_id, run) if is_item else filter(None, [vocab.decode(run)]))
    return tuple(parts)


def _padded(n: int) -> np.ndarray:
    """Rows of a padded batch: their own number, and the first again behind them."""
    size = max(8, 1 << (n - 1).bit_length())
    return np.where(np.arange(size) < n, np.arange(size), 0)

"""The user simulator: a GPT-2 that says what a seeker would say next, and knows what the seeker will like.

Three losses with weights (`stages.smtpo.seeker_loss`): the next words of the seeker, the attributes of what the seeker will
like, and the items themselves. Gold are items that the seeker likes and that the recommender has still to name first.
They are asked for where a message begins, at `<seeker>` and at `<recommender>`: before either speaks.

Once trained it reads no form and no target (`stages.smtpo.seeker`): it sees messages alone. The words of hidden targets are no
targets of these losses either. (A network that it begins with, `begin`, has imitated whole messages: what keeps an answer from
naming what is hidden is the decoding.)
Source: a simulator of these three tasks is named by arXiv:2604.03671 without formula; all weights here are our choice.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from rlhf_jax.data.attributes import Attributes
from rlhf_jax.data.spelled_titles import SpelledTitles
from rlhf_jax.interfaces import Dialogue, Params
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import sft
from rlhf_jax.learners.microbatch import LossSums
from rlhf_jax.learners.optimizer import Adam, TrainState, falling_by_cosine, steps_taken
from rlhf_jax.models import gpt2
from rlhf_jax.parallel.partition import Layout
from rlhf_jax.ranges import Cases, Epochs, Norm, Range, Rate, Share, Steps, Tokens, Weight, check_numbers, option
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.runtime.stage import Best, StagePlan, run_stage, stage_arrays
from rlhf_jax.simulators.composed_feedback import Composer
from rlhf_jax.stages import supervised
from rlhf_jax.stages.agent import on_mesh
from rlhf_jax.stages.items import ItemKnowledge, compose, item_knowledge, taken_apart
from rlhf_jax.stages.setup import Setup
from rlhf_jax.stages.smtpo.seeker_loss import TaskWeights, init_attributes, simulator_loss
from rlhf_jax.stages.smtpo.seeker_texts import (
    SeekerBatch,
    SeekerBatches,
    as_said,
    attribute_rates,
    composed_dialogues,
    seeker_descriptions,
    seeker_texts,
)
from rlhf_jax.stages.supervised import SupervisedConfig

STAGE = "simulator"
Task = Literal["language", "attribute", "target"]
"""What a simulator learns: what the seeker says, the attributes and the items that the seeker will like."""


@dataclasses.dataclass(frozen=True)
class SimulatorConfig:
    """How the user simulator learns, and how it speaks."""

    start: Literal["drawn", "imitation"] = "drawn"
    """Weights that are drawn (or given, `--model.weights`), or a network that has first imitated the same dialogues, both
    speakers, by `--sft`: recommenders name many times more items than seekers say what they like."""
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


def begin(
    run: RunDirectory,
    setup: Setup,
    dialogues: Sequence[Dialogue],
    config: SimulatorConfig,
    imitation: SupervisedConfig,
    *,
    seed: int,
    stage: str = STAGE,
) -> Params | None:
    """The network that `train` begins with, a plain GPT-2: where `config.start` asks for it, one that imitates the dialogues.

    Args:
      dialogues: those that the simulator may learn from.
      imitation: how they are imitated; without a teacher, whatever it says: who judges a policy must not have its teacher.
      seed: of parameters and batches.
      stage: of the simulator; the checkpoints are those of `sft-STAGE`.
    Returns: None where weights are drawn.
    """
    if config.start == "drawn":
        return None
    own = setup._replace(corpus=dataclasses.replace(setup.corpus, train=dialogues), seed=seed)
    untaught = dataclasses.replace(imitation, teacher_weight=0.0)
    return supervised.train(run, own, untaught, stage=f"{supervised.STAGE}-{stage}")


def train(
    run: RunDirectory,
    setup: Setup,
    dialogues: Sequence[Dialogue],
    config: SimulatorConfig,
    *,
    attributes: Attributes,
    seed: int,
    begun: Params | None = None,
    stage: str = STAGE,
) -> Params:
    """Runs the stage and returns {`trunk`, `attributes`}, the moving average with the lowest validation loss.

    Args:
      dialogues: those that it may learn from.
      attributes: of the vocabulary's items, in its order.
      seed: of parameters and batches.
      begun: what `begin` returned.
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
    if begun is not None:
        trunk = taken_apart(begun, knowledge, agent.grammar.first_item)
    elif trunk is None:
        trunk = gpt2.init(agent.network, stream_key(key, f"{STAGE}/init", 0))
    head = init_attributes(stream_key(key, f"{STAGE}/attributes", 0), width, attribute_rates(batches))
    # A checkpoint holds no empty array: without features one row stays unused.
    params = {"trunk": trunk, "item_features": jnp.zeros((max(n_features, 1), width)), "attributes": head}
    steps = batches.steps(config.epochs)
    rate, optimizer = falling_by_cosine(
        config.learning_rate,
        warmup_steps=config.warmup_steps,
        total_steps=steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        adam=Adam(b2=0.98),
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

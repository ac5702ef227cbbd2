"""Stage 1: GPT-2 learns to talk and to suggest from dialogues, items from what is known about them.

While training, an item's embedding is its own row plus the mean of its title's words plus the mean of its features
(genre, people, decade), so that items share what they have in common. Afterwards the sum is folded into one table: what
leaves this stage is a plain GPT-2.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.data.dialogue_store import StoredDialogues
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.decoding.grammar import Grammar
from rlhf_jax.decoding.grammar_loss import FIRST, LIST, NO_TARGET, SAY, GrammarTargets, SoftTargets, grammar_losses
from rlhf_jax.interfaces import Corpus, Params
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import sft
from rlhf_jax.learners.microbatch import LossSums
from rlhf_jax.learners.optimizer import Adam, TrainState, falling_by_cosine, steps_taken
from rlhf_jax.models import gpt2
from rlhf_jax.parallel.partition import Layout
from rlhf_jax.ranges import Cases, Epochs, Norm, Range, Rate, Share, Size, Steps, Tokens, Weight, check_numbers, option
from rlhf_jax.runtime.metrics import Sample
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.runtime.stage import Best, StagePlan, run_stage
from rlhf_jax.stages.agent import Agent, on_mesh, policy_params
from rlhf_jax.stages.items import ItemKnowledge, compose, item_knowledge
from rlhf_jax.stages.samples import reply_drawer
from rlhf_jax.stages.setup import Setup
from rlhf_jax.stages.stored_texts import stored_texts
from rlhf_jax.stages.teacher import Lessons, make_teacher
from rlhf_jax.stages.texts import EncodedTexts, TextBatches, description_texts, dialogue_texts

STAGE = "sft"


@dataclasses.dataclass(frozen=True)
class SupervisedConfig:
    """Stage 1: supervised training on whole dialogues."""

    epochs: Epochs = 3
    """Passes over the training dialogues."""
    loss_on: Literal["all", "recommender"] = "all"
    """Whose turns are learnt: everybody's (also teaches the reward model's trunk), or the recommender's alone."""
    description_epochs: Annotated[int, Range("[0, 10_000]")] = 1
    """Epochs in which item descriptions (title, genres, people, plot ↔ item) are mixed in; 0 is off."""
    description_tokens: Tokens = 48
    """Longest item description, in tokens."""
    title_embeddings: bool = True
    """Items share the embeddings of their titles' words."""
    metadata_words: bool = False
    """Items also share the embeddings of the words of their genres, people and decade, as users say them."""
    features_per_item: Annotated[int, Range("[0, 1_000]")] = 8
    """Features (genres, decade, people) an item's embedding is composed of at most; 0 is off."""
    item_weight: Weight = 3.0
    """Weight of an item token's loss; a word's is 1."""
    teacher_weight: Weight = 0.0
    """α of a teacher beside the human: at the first place of every list the loss is  weight · −log π(item) + item_weight · α ·
    KL(q ‖ π), where q are the chances that the fitted mixture of closed-form recommenders gives; 0 is off (`stages/teacher.py`)."""
    teacher_items: Size = 50
    """Items that have a chance in q, the likeliest."""
    repeated_item_weight: Weight = 1.0
    """Factor on `item_weight` for a suggested item that the dialogue has named before; 0 teaches to suggest news."""
    max_tokens: Tokens = 512
    """Longest training text; longer dialogues are cut at utterances."""
    buckets: tuple[Tokens, ...] = (64, 128, 192, 256, 512)
    """Lengths that texts are padded to; one compiled program each."""
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

    def __post_init__(self) -> None:
        check_numbers(self)
        if list(self.buckets) != sorted(self.buckets) or not self.buckets or self.buckets[-1] < self.max_tokens:
            raise ValueError(
                f"{option(self, 'buckets')} {self.buckets} must rise and the last must hold {option(self, 'max_tokens')} "
                f"{self.max_tokens}"
            )
        if self.teacher_weight and not self.item_weight:
            raise ValueError(
                f"{option(self, 'teacher_weight')} {self.teacher_weight:g} teaches nothing: {option(self, 'item_weight')} is 0"
            )
        if self.tokens_per_batch < self.buckets[-1]:
            raise ValueError(
                f"{option(self, 'tokens_per_batch')} {self.tokens_per_batch} does not hold one text of the longest of "
                f"{option(self, 'buckets')}, {self.buckets[-1]}"
            )


@chex.dataclass(frozen=True)
class TextBatch:
    """What the loss reads."""

    tokens: Int[Array, "B S"]
    mask: Bool[Array, "B S"]
    targets: GrammarTargets
    soft: SoftTargets | None = None
    """What a teacher would suggest; None without one."""


class TextWeights(NamedTuple):
    """What a target counts; a word counts 1. `SupervisedConfig` says what they mean."""

    item: float
    repeated_item: float | Float[Array, ""]
    loss_on: str
    teacher: float = 0.0


def text_loss(
    params: Params,
    batch: TextBatch,
    key: Key[Array, ""] | None,
    *,
    knowledge: ItemKnowledge,
    network: gpt2.GPT2Config,
    grammar: Grammar,
    weights: TextWeights,
) -> LossSums:
    """Weighted likelihood of the texts under the grammar, as sums; `key` draws dropout."""
    trunk = compose(params, knowledge, grammar.first_item)
    hidden = gpt2.hidden_states(network, trunk, batch.tokens, batch.mask, dropout_key=key)
    words, items, divergence = grammar_losses(hidden, trunk["wte"], batch.targets, grammar, batch.soft)
    kinds, item_kinds = batch.targets.kinds, batch.targets.item_kinds
    word_mask, item_mask = kinds != NO_TARGET, item_kinds != NO_TARGET
    if weights.loss_on == "recommender":
        word_mask &= (kinds == FIRST) | (kinds == SAY)
        item_mask &= item_kinds == LIST
    targets = jnp.take_along_axis(batch.targets.targets, batch.targets.item_positions, axis=1)
    weight = jnp.where(item_mask, jnp.where(targets >= grammar.first_item, weights.item, 1.0), 0.0)
    suggested = item_mask & (item_kinds == LIST) & (targets >= grammar.first_item)
    # A list holds no item twice, so an equal token at or before the position that predicts it is an earlier mention.
    earlier = jnp.arange(batch.tokens.shape[1])[None, None] <= batch.targets.item_positions[..., None]
    repeated = suggested & jnp.any((batch.tokens[:, None] == targets[..., None]) & earlier, axis=-1)
    weight = jnp.where(repeated, weight * weights.repeated_item, weight)
    loss = jnp.sum(jnp.where(word_mask, words, 0.0)) + jnp.sum(weight * items)
    parts = {
        "word_nll": sft.sum_and_count(words, word_mask),
        "item_nll": sft.sum_and_count(items, suggested),
        "fresh_item_nll": sft.sum_and_count(items, suggested & ~repeated),
    }
    if batch.soft is not None:
        # It changes what is learnt, not how much a human's target counts: the divisor stays.
        loss += weights.item * weights.teacher * jnp.sum(divergence)
        parts["teacher_kl"] = sft.sum_and_count(divergence, batch.soft.chances.sum(axis=-1) > 0)
    return LossSums(
        loss=loss,
        count=jnp.sum(word_mask) + jnp.sum(weight),
        parts=parts,
        maxima={},
    )


def train(run: RunDirectory, setup: Setup, config: SupervisedConfig, *, stage: str = STAGE) -> Params:
    """Runs the stage and returns a plain GPT-2 tree, the moving average with the lowest validation loss.

    It starts from `setup.pretrained`, or draws its weights; the tree returned is whole, on one device.

    Args:
      stage: names the checkpoints and the streams of random numbers; its kind is `sft`.
    """
    corpus, vocab, agent, seed, layout = setup.corpus, setup.vocab, setup.agent, setup.seed, setup.layout
    imitated = dataclasses.replace(corpus, train=setup.training_parts()[0])
    batches = training_batches(imitated, vocab, agent.grammar, config, seed)
    lessons = None
    if config.teacher_weight:
        teacher = make_teacher(run.path / f"{stage}-teacher.npz", imitated, vocab, config.teacher_items)
        lessons = Lessons(teacher, batches)
    knowledge, n_features = item_knowledge(vocab, corpus, config)
    key = jax.random.key(seed)
    trunk = setup.pretrained
    if trunk is None:
        trunk = gpt2.init(agent.network, stream_key(key, f"{stage}/init", 0))
    # A checkpoint holds no empty array: without features one row stays unused.
    params = {"trunk": trunk, "item_features": jnp.zeros((max(n_features, 1), agent.network.n_embd))}
    steps = batches.steps(config.epochs)
    rate, optimizer = falling_by_cosine(
        config.learning_rate,
        warmup_steps=config.warmup_steps,
        total_steps=steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        adam=Adam(b2=0.98),
    )
    loss = make_loss(on_mesh(agent, layout), config, layout)

    one_step = make_step(loss, optimizer, rate, average_decay=config.average_decay)
    state, known = layout.place(sft.init(params, optimizer, averaged=True)), layout.same(knowledge)
    step = layout.together(layout.step(one_step, state), stage)

    def update(state: TrainState, index: int) -> tuple[TrainState, dict[str, Any]]:
        tokens, mask, targets = batches.batch(index)
        soft = None if lessons is None else lessons.of(index, tokens, targets)
        batch = own_rows(text_batch(tokens, mask, targets, soft), layout)
        return step(state, batch, known, layout.same(stream_key(key, f"{stage}/dropout", index)))

    fold = jax.jit(compose, static_argnums=2)

    def folded(state: TrainState) -> Params:
        return fold(layout.fetch(state.average), knowledge, agent.grammar.first_item)

    drawer = reply_drawer(setup, run.samples)

    def draw_samples(state: TrainState) -> list[Sample]:
        return [] if drawer is None else drawer(policy_params(folded(state), agent.network.n_embd))

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
            on_eval=validation(setup, loss, known, config, stage),
            eval_every=max(1, per_epoch // config.evaluations_per_epoch),
            draw_samples=None if drawer is None else draw_samples,
            best=Best("validation/loss", "min", config.patience),
            advice="a lower --sft.learning-rate or a longer --sft.warmup-steps",
        ),
    )
    return folded(final)


def make_step(
    loss: Callable[..., LossSums],
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    *,
    average_decay: float,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """One optimiser step, `(state, batch, knowledge, key)`, to be compiled with the state given away.

    Args:
      loss: of `make_loss`.
      rate: the optimiser's schedule, to be logged.
    """

    def one_step(
        state: TrainState, batch: TextBatch, knowledge: ItemKnowledge, key: Key[Array, ""]
    ) -> tuple[TrainState, dict[str, Array]]:
        used = jnp.asarray(rate(steps_taken(state.opt_state)))
        state, metrics = sft.update(
            state,
            batch,
            key,
            loss_fn=functools.partial(loss, knowledge=knowledge),
            optimizer=optimizer,
            average_decay=average_decay,
        )
        return state, metrics | {"learning_rate": used}

    return one_step


def make_loss(agent: Agent, config: SupervisedConfig, layout: Layout) -> Callable[..., LossSums]:
    """`text_loss` of this agent, `(params, batch, key, *, knowledge)`, on the layout's devices.

    The table is whole in use: `compose` and the grammar's heads cut it where words end and items begin.
    """
    loss = functools.partial(
        text_loss,
        network=agent.network,
        grammar=agent.grammar,
        weights=TextWeights(config.item_weight, config.repeated_item_weight, config.loss_on, config.teacher_weight),
    )
    return layout.loss(loss, whole_table=True)


def own_rows(batch: TextBatch, layout: Layout) -> TextBatch:
    """The batch on the layout's devices."""
    rows = batch.tokens.shape[0]
    return layout.batch(
        rows, lambda own: jax.tree.map(lambda leaf: leaf[own], batch) if own != slice(0, rows) else batch
    )


def text_batch(
    tokens: np.ndarray, mask: np.ndarray, targets: GrammarTargets, soft: SoftTargets | None = None
) -> TextBatch:
    """A packed batch as the loss reads it."""
    return TextBatch(tokens=jnp.asarray(tokens), mask=jnp.asarray(mask), targets=targets, soft=soft)


def training_batches(
    corpus: Corpus, vocab: Vocabulary, grammar: Grammar, config: SupervisedConfig, seed: int
) -> TextBatches:
    """The training split's dialogues and the items' descriptions, in the order of `seed`."""
    lengths: Any = {"max_tokens": config.max_tokens, "max_listed": grammar.max_items, "once": grammar.once}
    if isinstance(corpus.train, StoredDialogues):
        texts = stored_texts(vocab, corpus.train, **lengths)
    else:
        texts = EncodedTexts.of(dialogue_texts(vocab, corpus.train, **lengths))
    if config.description_epochs:
        texts = texts.followed_by(description_texts(vocab, corpus.items, max_tokens=config.description_tokens))
    return TextBatches(
        texts,
        vocab,
        config.buckets,
        config.tokens_per_batch,
        seed,
        max_listed=grammar.max_items,
        description_epochs=config.description_epochs,
        once=grammar.once,
    )


def validation(
    setup: Setup, loss: Callable[..., LossSums], knowledge: ItemKnowledge, config: SupervisedConfig, stage: str
) -> Any:
    """An evaluation of the moving average on the first validation dialogues, in one fixed order."""
    corpus, vocab, grammar, layout = setup.corpus, setup.vocab, setup.agent.grammar, setup.layout
    dialogues = corpus.validation[: config.validation_dialogues]
    texts = dialogue_texts(
        vocab, dialogues, max_tokens=config.max_tokens, max_listed=grammar.max_items, once=grammar.once
    )
    batches = TextBatches(
        tuple(texts),
        vocab,
        config.buckets,
        config.tokens_per_batch,
        0,
        grammar.max_items,
        shuffle_lists=False,
        once=grammar.once,
    )
    judged = jax.jit(lambda params, batch, knowledge: loss(params, batch, None, knowledge=knowledge))
    compiled = layout.together(judged, f"{stage}/validation")

    def evaluate(state: TrainState, step: int) -> dict[str, float]:
        del step
        total: dict[str, float] = {}
        for index in range(batches.steps(1)):
            sums = jax.device_get(
                compiled(state.average, own_rows(text_batch(*batches.batch(index)), layout), knowledge)
            )
            pairs = {"loss": (sums.loss, sums.count), **sums.parts}
            for name, (value, count) in pairs.items():
                total[name] = total.get(name, 0.0) + float(value)
                total[f"{name} n"] = total.get(f"{name} n", 0.0) + float(count)
        return {
            f"validation/{name}": total[name] / max(total[f"{name} n"], 1.0)
            for name in ("loss", "word_nll", "item_nll", "fresh_item_nll")
        }

    return evaluate

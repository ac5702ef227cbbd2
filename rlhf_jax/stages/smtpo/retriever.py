"""The retriever of SMTPO: learns vectors of dialogues and items by InfoNCE, then weighs them beside the closed forms.

A step's candidates are shared by its rows: the targets of all rows (in-batch negatives), hard ones (items that co-mention
ranks high for a row), and uniform draws. Each candidate counts once and is corrected for its chance to be drawn. What else the
row's message names is no negative.

Gold are here the fresh items of a row: those that its message names and nobody named before, liked or not.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from scipy.sparse import csr_array

from rlhf_jax.data.batching import batch_indices
from rlhf_jax.data.windows import RankingRow, ranking_rows
from rlhf_jax.equations.contrastive import corrected_scores, first_of_each, info_nce
from rlhf_jax.feedback.encoders import default_cache, minilm_encoder
from rlhf_jax.feedback.relevance import fit_tfidf
from rlhf_jax.interfaces import Corpus, Params
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import sft
from rlhf_jax.learners.microbatch import LossSums
from rlhf_jax.learners.optimizer import TrainState, falling_by_cosine, steps_taken
from rlhf_jax.models import retriever
from rlhf_jax.models.retriever import DialogueViews, ItemViews, RetrieverNetwork, View
from rlhf_jax.parallel.partition import ONE_DEVICE, Layout
from rlhf_jax.ranges import Batch, Epochs, Range, Rate, Share, Size, Steps, check_numbers, option
from rlhf_jax.recommenders import co_mention, dual_view, mixture
from rlhf_jax.recommenders.bm25 import item_text
from rlhf_jax.recommenders.contexts import (
    Catalogue,
    Contexts,
    Recommender,
    Training,
    columns_of,
    counts,
    read_training,
    row_contexts,
)
from rlhf_jax.recommenders.dual_view import DualView, Views
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.runtime.stage import Best, StagePlan, run_stage

STAGE = "retriever"
HARD_POOL = 20
"""Items of co-mention that a row's hard negatives are drawn from."""


@dataclasses.dataclass(frozen=True)
class RetrieverConfig:
    """How the retriever learns."""

    encoder: Literal["tfidf", "minilm"] = "tfidf"
    """Of the semantic view: TF-IDF reduced by SVD, fitted on the training split, or MiniLM (the extra `minilm`)."""
    minilm: Path | None = None
    """MiniLM's folder; None takes the installed package. Read where `encoder` is `minilm`."""
    titles: bool = False
    """Whether the semantic view of a dialogue spells the titles of the items named; the collaborative view has them anyway."""
    semantic: Size = 256
    """Numbers of the semantic view where it is fitted."""
    collaborative: Size = 128
    """Numbers of the items' collaborative view."""
    n_recent: Annotated[int, Range("[1, 1_000]")] = 8
    """Items of a dialogue that are read, the newest first."""
    width: Size = 128
    """Of both towers."""
    n_head: Size = 4
    """Of the cross-attention."""
    dropout: Annotated[float, Range("[0, 1)")] = 0.2
    """Rate while training."""
    epochs: Epochs = 4
    """Passes over the (message, fresh item) pairs of the training split."""
    batch_size: Batch = 256
    """Pairs of one step."""
    hard_negatives: Annotated[int, Range("[0, 65_536]")] = 256
    """Of one step; co-mention's favourites for some of its rows."""
    uniform_negatives: Annotated[int, Range("[0, 65_536]")] = 512
    """Of one step."""
    learning_rate: Rate = 2e-3
    """Peak of the cosine schedule."""
    warmup_steps: Annotated[int, Range("[0, 1_000_000]")] = 100
    """Steps until the peak."""
    weight_decay: Share = 0.05
    """AdamW's, on matrices."""
    average_decay: Annotated[float, Range("[0, 1)")] = 0.998
    """Of the moving average of the parameters, which is what is evaluated and kept."""
    evaluations_per_epoch: Steps = 2
    """Evaluations on the validation split."""
    patience: Steps | None = 3
    """Evaluations without a higher recall after which the stage stops; None never stops early."""
    candidates: Size = 100
    """Items recalled for a turn; recall at this number chooses the state that is kept."""
    in_prior: bool = False
    """Whether the policy's prior is told, beside the closed forms, the retriever's order of the conversation so far and that of its
    opening. Both are one in first turns; what listening is worth, the prior can learn from later turns."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.minilm is not None and self.encoder != "minilm":
            raise ValueError(
                f"{option(self, 'minilm')} {self.minilm} is not read: {option(self, 'encoder')} is {self.encoder}"
            )
        if self.width % self.n_head:
            raise ValueError(
                f"{option(self, 'width')} {self.width} is not a multiple of {option(self, 'n_head')} {self.n_head}"
            )


class Sources(NamedTuple):
    """What is counted on the training split, the same for every retriever and seed."""

    training: Training
    views: Views
    validation: Contexts
    gold: csr_array
    """1 where an item is fresh gold of a validation row. [N, I]"""


@chex.dataclass(frozen=True)
class PairBatch:
    """Rows with one fresh gold item each; candidates are shared by them."""

    dialogues: DialogueViews
    target: Int[Array, " B"]
    """Column of the item."""
    gold: Int[Array, "B G"]
    """All fresh gold of the row's message; −1 where there are fewer."""
    hard: Int[Array, " H"]
    """Hard negatives of the step."""


class Known(NamedTuple):
    """What every step reads of all items."""

    items: ItemViews
    log_chance: Float[Array, " I"]
    """log of the chance that each item is among the candidates of a step, log E_j of line 2b iv: E_j = 1 − e^{−n_j} for n_j expected draws."""


def count_sources(corpus: Corpus, config: RetrieverConfig) -> Sources:
    """Reads the splits and fits what both views are made of.

    Raises: RunError where training or validation split have no message that suggests something new.
    """
    titles = {item_id: item.title for item_id, item in corpus.items.items()}
    catalogue = Catalogue(tuple(corpus.items), titles)
    training = read_training(corpus.train, catalogue)
    rows = fresh_rows(corpus.validation)
    if not training.fresh.nnz or not rows:
        raise RunError("retriever: no message of the training or of the validation split suggests something new")
    if config.encoder == "minilm":
        encoder = minilm_encoder(config.minilm, cache=default_cache())
    else:
        texts = training.rows.texts if config.titles else training.rows.words
        said = [texts[row] for row in np.flatnonzero(np.diff(training.fresh.indptr)).tolist()]
        encoder = fit_tfidf([*said, *map(item_text, corpus.items.values())], n_components=config.semantic)
    views = dual_view.fit_views(
        training,
        corpus.items,
        encoder,
        components=config.collaborative,
        n_recent=config.n_recent,
        titles=config.titles,
    )
    gold = counts([row.fresh_gold for row in rows], columns_of(catalogue.item_ids))
    return Sources(training, views, row_contexts(rows, catalogue), gold)


def fresh_rows(dialogues: Any) -> list[RankingRow]:
    """Ranking rows with something new."""
    return [row for row in ranking_rows(dialogues) if row.fresh_gold]


def train(
    run: RunDirectory,
    sources: Sources,
    config: RetrieverConfig,
    *,
    seed: int,
    view: View = "both",
    layout: Layout = ONE_DEVICE,
    stage: str = STAGE,
) -> DualView:
    """Runs the stage and returns the towers with the highest recall on the validation split.

    Args:
      view: which views the towers read.
      layout: the towers are small: every device computes all of a step, so that several processes hold the same ones.
      stage: names the checkpoints.
    """
    training, views = sources.training, sources.views
    network = RetrieverNetwork(
        n_items=len(training.catalogue.item_ids),
        semantic=views.items.semantic.shape[1],
        collaborative=views.items.collaborative.shape[1],
        n_recent=config.n_recent,
        width=config.width,
        n_head=config.n_head,
        dropout=config.dropout,
        view=view,
    )
    pairs = Pairs(sources, config, seed)
    key = jax.random.key(seed)
    steps = max(1, config.epochs * pairs.n // config.batch_size)
    rate, optimizer = falling_by_cosine(
        config.learning_rate,
        warmup_steps=config.warmup_steps,
        total_steps=steps,
        weight_decay=config.weight_decay,
    )
    popular = np.log1p(np.asarray(training.fresh.sum(0), np.float64))
    params = retriever.init(network, stream_key(key, f"{STAGE}/init", 0), jnp.asarray(popular, jnp.float32))

    known = layout.same(Known(views.items, jnp.asarray(pairs.log_chance)))

    def one_step(
        state: TrainState, batch: PairBatch, known: Known, key: Key[Array, ""]
    ) -> tuple[TrainState, dict[str, Array]]:
        used = jnp.asarray(rate(steps_taken(state.opt_state)))
        loss = functools.partial(contrastive_loss, network=network, known=known, n_uniform=config.uniform_negatives)
        state, metrics = sft.update(
            state, batch, key, loss_fn=loss, optimizer=optimizer, average_decay=config.average_decay
        )
        return state, metrics | {"learning_rate": used}

    step = layout.together(jax.jit(one_step, donate_argnums=0), stage)

    def update(state: TrainState, index: int) -> tuple[TrainState, dict[str, Any]]:
        drawn = layout.same((pairs.batch(index), stream_key(key, f"{STAGE}/draws", index)))
        return step(state, drawn[0], known, drawn[1])

    said = views.of(sources.validation)

    def evaluate(state: TrainState, index: int) -> dict[str, float]:
        del index
        fitted = DualView(network, layout.fetch(state.average), views)
        found = dual_view.without_named(lambda contexts: dual_view.scores_of_views(fitted, said), sources.validation)
        return {f"validation/recall@{config.candidates}": recall(found, sources.gold, config.candidates)}

    per_epoch = max(1, steps // config.epochs)
    final = run_stage(
        run,
        layout.same(sft.init(params, optimizer, averaged=True)),
        update,
        StagePlan(
            stage,
            steps,
            save_every=max(1, per_epoch // 2),
            log_every=max(1, min(50, per_epoch // 5)),
            on_eval=evaluate,
            eval_every=max(1, per_epoch // config.evaluations_per_epoch),
            best=Best(f"validation/recall@{config.candidates}", "max", config.patience),
            advice="a lower --retriever.learning-rate",
        ),
    )
    return DualView(network, layout.fetch(final.average), views)


def contrastive_loss(
    params: Params, batch: PairBatch, key: Key[Array, ""], *, network: RetrieverNetwork, known: Known, n_uniform: int
) -> LossSums:
    """InfoNCE of every row against the candidates of the step, as sums."""
    drop_key, draw_key = jax.random.split(key)
    dialogue, item, bias = retriever.vectors(network, params, known.items, batch.dialogues, drop_key)
    uniform = jax.random.randint(draw_key, (n_uniform,), 0, network.n_items)
    drawn = jnp.concatenate([batch.target, batch.hard, uniform])
    once = first_of_each(drawn)
    found = dialogue @ item[drawn].T + bias[drawn][None, :]
    is_target = drawn[None, :] == batch.target[:, None]
    # What else the message names is no negative: neither pulled nor pushed.
    is_gold = jnp.any(drawn[None, :, None] == batch.gold[:, None, :], axis=-1)
    counted = once[None, :] & (is_target | ~is_gold)
    losses = jax.vmap(
        lambda scores, target, mask: info_nce(
            corrected_scores(scores, known.log_chance[drawn]), target.astype(jnp.float32), mask
        )
    )(found, is_target, counted)
    first = jnp.argmax(jnp.where(counted, found, -jnp.inf), axis=1)
    hits = jnp.take_along_axis(is_target, first[:, None], axis=1)[:, 0]
    rows = jnp.float32(batch.target.shape[0])
    return LossSums(
        loss=losses.sum(), count=rows, parts={"first_share": (hits.sum().astype(jnp.float32), rows)}, maxima={}
    )


class Pairs:
    """(message, fresh item) pairs of the training split, and the negatives that go with them."""

    def __init__(self, sources: Sources, config: RetrieverConfig, seed: int) -> None:
        training, n_items = sources.training, len(sources.training.catalogue.item_ids)
        used = np.flatnonzero(np.diff(training.fresh.indptr))
        fresh = csr_array(training.fresh[used])
        self._seed, self._config = seed, config
        self._row = np.repeat(np.arange(len(used)), np.diff(fresh.indptr))
        self._target = fresh.indices.astype(np.int32)
        self._gold = np.full((len(used), int(np.diff(fresh.indptr).max())), -1, np.int32)
        places = np.arange(fresh.nnz) - np.repeat(fresh.indptr[:-1], np.diff(fresh.indptr))
        self._gold[self._row, places] = self._target
        contexts = training.rows.chosen(used)
        self._said = sources.views.of(contexts)
        self._hard = (
            hard_pool(training, contexts, fresh) if config.hard_negatives else np.zeros((len(used), 1), np.int32)
        )
        n = len(self._target)
        expected = np.bincount(self._target, minlength=n_items) * (config.batch_size / n)
        expected += config.uniform_negatives / n_items
        if config.hard_negatives:
            expected += np.bincount(self._hard.ravel(), minlength=n_items) * (config.hard_negatives / self._hard.size)
        # A candidate that is drawn twice counts once: what matters is its chance to be drawn at all, by Poisson's law. An item
        # that is never drawn is never corrected.
        self.log_chance = np.log(np.where(expected > 0, -np.expm1(-expected), 1.0)).astype(np.float32)

    @property
    def n(self) -> int:
        """How many."""
        return len(self._target)

    def batch(self, index: int) -> PairBatch:
        """The pairs and hard negatives of a step, a function of (seed, step)."""
        size, n_hard = self._config.batch_size, self._config.hard_negatives
        chosen = batch_indices(self.n, seed=self._seed, step=index, batch_size=size)
        rows = self._row[chosen]
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, index, 1])))
        hard = self._hard[rows[np.arange(n_hard) % size], rng.integers(0, self._hard.shape[1], n_hard)]
        return PairBatch(
            dialogues=jax.tree.map(lambda leaf: leaf[rows], self._said),
            target=jnp.asarray(self._target[chosen]),
            gold=jnp.asarray(self._gold[rows]),
            hard=jnp.asarray(hard),
        )


def hard_pool(training: Training, contexts: Contexts, fresh: csr_array) -> np.ndarray:
    """Columns that co-mention ranks highest for each context, without its own dialogue and without its gold. int32 [N, 20]"""
    fitted = co_mention.fit(training)
    size = min(HARD_POOL, contexts.n_items)
    out = np.empty((len(contexts), size), np.int32)
    for start in range(0, len(contexts), 256):
        part = contexts.part(start, start + 256)
        found = co_mention.scores(fitted, part)
        gold = csr_array(fresh[start : start + 256])
        found[np.repeat(np.arange(len(part)), np.diff(gold.indptr)), gold.indices] = -np.inf
        out[start : start + len(part)] = np.argsort(-found, axis=1, kind="stable")[:, :size]
    return out


def recall(found: np.ndarray, gold: csr_array, k: int) -> float:
    """Share of gold items among the k highest scores of their row; ties count against the scores."""
    rows = np.repeat(np.arange(len(found)), np.diff(gold.indptr))
    ranks = [int((found[row] >= found[row, item]).sum()) for row, item in zip(rows, gold.indices, strict=True)]
    return float((np.array(ranks) <= k).mean())


def fuse(towers: DualView, parts: Mapping[str, Recommender], sources: Sources) -> mixture.FittedWeights:
    """What the towers and the closed forms weigh beside one another: greatest likelihood on the validation split.

    Of scores that are standardised and no more, for `rank_retriever.py`. SMTPO fits in `recommender.add_retriever`, with asinh.

    Args:
      parts: closed forms, fitted on the training split.
    """
    return mixture.fit_weights(with_towers(towers, parts), sources.validation, sources.gold)


def with_towers(towers: DualView, parts: Mapping[str, Recommender]) -> dict[str, Recommender]:
    """The closed forms and the towers, as parts of one mixture."""
    return {**parts, "towers": functools.partial(dual_view.scores, towers)}

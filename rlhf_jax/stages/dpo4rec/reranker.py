"""Stage 2 of DPO4Rec: a re-ranker that reads what a text says of the user; once trained it is the reward of texts.

score of a text = mean over the user's lists of NDCG@5 of the list in the re-ranker's order
"""

import dataclasses
import functools
import zlib
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Key

from rlhf_jax.data.batching import batch_indices, wrapped_batches
from rlhf_jax.data.preference_texts import PreferenceText
from rlhf_jax.data.preference_vectors import encode_items, encode_texts
from rlhf_jax.data.rating_lists import MOST_READ, CandidateLists, read_part
from rlhf_jax.equations import listwise
from rlhf_jax.evaluation.reranking import list_values
from rlhf_jax.interfaces import Params
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import sft
from rlhf_jax.learners.microbatch import LossSums
from rlhf_jax.learners.optimizer import Adam, TrainState, falling_by_cosine, steps_taken
from rlhf_jax.models import rerankers
from rlhf_jax.models.rerankers import ItemTable, ListInputs, RerankerConfig
from rlhf_jax.ranges import Batch, Epochs, Range, Rate, Share, Size, check_numbers, option
from rlhf_jax.recommenders import list_baselines
from rlhf_jax.recommenders.list_baselines import PRIOR_RATINGS, Counts
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.runtime.stage import Best, StagePlan, run_stage
from rlhf_jax.stages.dpo4rec.preference_setup import PreferenceSetup

STAGE = "reranker"
METRIC = "ndcg@5"
"""What a text is paid, and what validation decides by."""
Loss = Literal["softmax", "listnet", "attention_rank", "pointwise"]
LOSSES = {
    "softmax": listwise.softmax_loss,
    "listnet": listwise.listnet_loss,
    "attention_rank": listwise.attention_rank_loss,
    "pointwise": listwise.pointwise_loss,
}


@dataclasses.dataclass(frozen=True)
class RerankConfig:
    """Stage 2: the network that puts lists in order, and how it learns."""

    network: rerankers.Network = "prm"
    """`dlcm`, `prm` or `setrank`."""
    form: rerankers.Form = "kar"
    """As in KAR's public code, or as in the papers of DLCM and SetRank."""
    loss: Loss = "softmax"
    """Of a list; `attention_rank` is the originals', and gives items of score ≤ 0 no gradient."""
    width: Size = 32
    """Of each part of an item's input."""
    interaction: bool = True
    """Whether the input holds the product of user and item text."""
    dropout: Annotated[float, Range("[0, 1)")] = 0.2
    """Of the input while training."""
    epochs: Epochs = 8
    """Passes over the training lists with a positive. In DPO4Rec of the re-rankers that are measured; its scorers make
    `--scorer-epochs`."""
    batch_size: Batch = 128
    """Lists of an optimiser step."""
    learning_rate: Rate = 1e-3
    """Start of the cosine schedule."""
    weight_decay: Share = 0.01
    """AdamW's, on matrices."""
    patience: Epochs | None = 3
    """Epochs without a higher NDCG@5 of the validation users' lists after which it stops, and the best is kept; None: all epochs,
    and the last state."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.form == "original" and self.network == "prm":
            raise ValueError(
                f"{option(self, 'form')} original needs {option(self, 'network')} dlcm or setrank: prm has one form"
            )
        self.sizes("text")

    def sizes(self, user: rerankers.User) -> RerankerConfig:
        """The network's."""
        return RerankerConfig(
            network=self.network,
            form=self.form,
            user=user,
            width=self.width,
            interaction=self.interaction,
            dropout=self.dropout,
        )


def count(setup: PreferenceSetup) -> Counts:
    """Over scorer's and pairs' users."""
    return list_baselines.count(setup.corpus, setup.split.train)


def counts_of(setup: PreferenceSetup, counted: Counts, lists: CandidateLists) -> Float32[np.ndarray, "L N 2"]:
    """log(1 + users) and mean rating of every listed item, without what the list's own user added to them.

    Left in, a user's own rating would tell the label of an item that few rated.
    """
    users, ratings = np.empty(lists.items.shape), np.empty(lists.items.shape)
    for row, user in enumerate(lists.users.tolist()):
        users[row], ratings[row] = counted.without(user, setup.corpus.histories[user], lists.items[row])
    mean = (ratings + PRIOR_RATINGS * counted.mean) / (users + PRIOR_RATINGS)
    scale = np.log1p(counted.users)
    logs = (np.log1p(users) - scale.mean()) / max(float(scale.std()), 1e-6)
    return np.stack([logs, mean - counted.mean], axis=-1).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Lists:
    """Lists with everything about them but texts."""

    lists: CandidateLists
    counts: Float32[np.ndarray, "L N 2"]
    history: np.ndarray
    history_mask: np.ndarray

    def inputs(self, rows: np.ndarray, text: np.ndarray) -> ListInputs:
        """Some lists, with a text's vector each."""
        return ListInputs(
            items=self.lists.items[rows],
            counts=self.counts[rows],
            text=text,
            history=self.history[rows],
            history_mask=self.history_mask[rows],
        )


def known_lists(setup: PreferenceSetup, counted: Counts, lists: CandidateLists) -> Lists:
    """What is known of some lists."""
    n = len(lists.users)
    history, mask = np.zeros((n, MOST_READ), np.int32), np.zeros((n, MOST_READ), bool)
    for row, user in enumerate(lists.users):
        read = read_part(setup.corpus.histories[user])
        liked = read.items[read.ratings > setup.corpus.liked_above]
        history[row, : len(liked)] = liked
        mask[row, : len(liked)] = True
    return Lists(lists, counts_of(setup, counted, lists), history, mask)


class TextPool(NamedTuple):
    """Encoded texts of users, as many for each."""

    users: np.ndarray
    """[U]"""
    vectors: Float32[np.ndarray, "U M E"]

    def of(self, users: np.ndarray) -> Float32[np.ndarray, "L M E"]:
        """The texts of these users. Raises: KeyError naming one who has none."""
        place = {int(user): row for row, user in enumerate(self.users)}
        return self.vectors[[place[int(user)] for user in users]]


def pool(setup: PreferenceSetup, users: np.ndarray, texts: list[list[PreferenceText]]) -> TextPool:
    """Texts of users, the same number for each, encoded."""
    flat = [text for own in texts for text in own]
    vectors = encode_texts(setup.code, flat)
    return TextPool(np.asarray(users), vectors.reshape(len(users), -1, setup.code.width))


def no_text(setup: PreferenceSetup, users: np.ndarray) -> TextPool:
    """For networks that read none."""
    return TextPool(np.asarray(users), np.zeros((len(users), 1, setup.code.width), np.float32))


def shuffled(texts: TextPool, users: np.ndarray, *, seed: int) -> TextPool:
    """These users, each with the texts of another of them: a gain that remains does not depend on whose text it is."""
    order = np.random.Generator(np.random.PCG64([23, seed])).permutation(len(users))
    vectors = texts.of(users)
    found = np.empty_like(vectors)
    # One round: nobody keeps their own.
    found[order] = vectors[np.roll(order, 1)]
    return TextPool(users, found)


@dataclasses.dataclass(frozen=True, eq=False)
class Reranker:
    """A network with its parameters."""

    config: RerankerConfig
    params: Params
    items: ItemTable


def train(
    run: RunDirectory,
    setup: PreferenceSetup,
    lists: tuple[Lists, Lists],
    texts: tuple[TextPool, TextPool],
    config: RerankConfig,
    *,
    name: str,
    user: rerankers.User = "text",
) -> Reranker:
    """Trains one re-ranker; a training list reads one of its user's texts, drawn anew every time, a validation list all of them.

    Args:
      lists: training users' and validation users'.
      texts: theirs.
      name: of the stage, behind `reranker-`.
      user: what is known of users.
    Raises: RunError where no training list has a positive, or validation users have no list.

    Logged at every epoch: NDCG@5 of the validation lists, and without `patience` how much of it texts of other users lose (`read`).
    """
    learnt, checked = lists
    kept = np.flatnonzero(learnt.lists.labels.sum(axis=1) > 0)
    if not len(kept) or not len(checked.lists.users):
        raise RunError(
            f"{STAGE}-{name}: {len(kept)} training lists with a liked item and {len(checked.lists.users)} validation lists: "
            "each needs one"
        )
    sizes = config.sizes(user)
    items = ItemTable(
        attributes=jnp.asarray(setup.attributes.has), text=jnp.asarray(encode_items(setup.code, setup.attributes))
    )
    key = jax.random.key(setup.seed)
    stage = f"{STAGE}-{name}"
    params = rerankers.init(sizes, stream_key(key, f"{STAGE}/init", 0), items, learnt.counts.shape[2])
    per_epoch = max(1, len(kept) // config.batch_size)
    steps = config.epochs * per_epoch
    # Gradients of a mean over lists are small beside the 1e-5 of PPO's Adam.
    rate, optimizer = falling_by_cosine(
        config.learning_rate,
        warmup_steps=0,
        total_steps=steps,
        weight_decay=config.weight_decay,
        adam=Adam(eps=1e-8),
    )
    one_list = LOSSES[config.loss]

    def loss(params: Params, batch: tuple[ListInputs, Array], key: Key[Array, ""], items: ItemTable) -> LossSums:
        inputs, labels = batch
        found = jax.vmap(one_list)(rerankers.scores(sizes, params, inputs, items, dropout_key=key), labels)
        return LossSums(jnp.sum(found), jnp.float32(len(labels)), {}, {})

    def one_step(state: TrainState, batch: Any, key: Array, items: ItemTable) -> tuple[TrainState, dict[str, Array]]:
        used = jnp.asarray(rate(steps_taken(state.opt_state)))
        state, metrics = sft.update(
            state, batch, key, loss_fn=functools.partial(loss, items=items), optimizer=optimizer
        )
        return state, metrics | {"learning_rate": used}

    # Re-rankers that differ in their texts alone share a program.
    step = setup.writer.compiled((STAGE, sizes, config, steps), lambda: jax.jit(one_step, donate_argnums=0))
    own_texts = texts[0].of(learnt.lists.users)
    number = zlib.crc32(stage.encode())

    def update(state: TrainState, index: int) -> tuple[TrainState, dict[str, Any]]:
        rows = kept[batch_indices(len(kept), seed=setup.seed, step=index, batch_size=config.batch_size)]
        draws = np.random.Generator(np.random.PCG64([19, setup.seed, number, index]))
        chosen = own_texts[rows, draws.integers(own_texts.shape[1], size=len(rows))]
        batch = learnt.inputs(rows, chosen), learnt.lists.labels[rows]
        return step(state, batch, stream_key(key, f"{STAGE}/dropout", index), items)

    # What is read of texts shows only beside others' texts; where nothing is chosen by it, one number a pass more.
    others = shuffled(texts[1], np.unique(checked.lists.users), seed=setup.seed) if config.patience is None else None

    def evaluate(state: TrainState, index: int) -> dict[str, float]:
        del index
        found = Reranker(sizes, state.params, items)
        own = float(text_values(found, checked, texts[1]).mean())
        if others is None:
            return {f"validation/{METRIC}": own}
        return {
            f"validation/{METRIC}": own,
            "validation/read": own - float(text_values(found, checked, others).mean()),
        }

    final = run_stage(
        run,
        sft.init(params, optimizer),
        update,
        StagePlan(
            stage,
            steps,
            save_every=per_epoch,
            log_every=max(1, per_epoch // 4),
            on_eval=evaluate,
            eval_every=per_epoch,
            best=None if config.patience is None else Best(f"validation/{METRIC}", "max", config.patience),
            advice="a lower --rerank.learning-rate",
        ),
    )
    return Reranker(sizes, final.params, items)


@functools.partial(jax.jit, static_argnums=0)
def _scores(config: RerankerConfig, params: Params, lists: ListInputs, items: ItemTable) -> Array:
    return rerankers.scores(config, params, lists, items)


def list_scores(
    found: Reranker, lists: Lists, texts: TextPool, *, batch_size: int = 512
) -> Float32[np.ndarray, "L M N"]:
    """Scores of every list with every one of its user's texts. [L, M, N]"""
    own = texts.of(lists.lists.users)
    n, m = own.shape[:2]
    out = np.empty((n * m, lists.lists.items.shape[1]), np.float32)
    size = min(batch_size, max(n * m, 1))
    for rows, kept in wrapped_batches(n * m, size):
        of_list, of_text = np.divmod(rows, m)
        scored = _scores(found.config, found.params, lists.inputs(of_list, own[of_list, of_text]), found.items)
        out[rows[:kept]] = np.asarray(scored)[:kept]
    return out.reshape(n, m, -1)


def text_values(found: Reranker, lists: Lists, texts: TextPool, *, metric: str = METRIC) -> Float[np.ndarray, "L M"]:
    """A metric of every list with every one of its user's texts. [L, M]"""
    scores = list_scores(found, lists, texts)
    n, m = scores.shape[:2]
    labels = np.repeat(lists.lists.labels, m, axis=0)
    return list_values(metric, scores.reshape(n * m, -1), labels).reshape(n, m)


def text_rewards(found: Reranker, lists: Lists, texts: TextPool) -> tuple[np.ndarray, Float[np.ndarray, "U M"]]:
    """Users with lists, and the mean NDCG@5 of their lists with each of their texts: what a text is paid. [U], [U, M]"""
    values = text_values(found, lists, texts)
    users, place = np.unique(lists.lists.users, return_inverse=True)
    total = np.zeros((len(users), values.shape[1]))
    np.add.at(total, place, values)
    return users, total / np.bincount(place)[:, None]

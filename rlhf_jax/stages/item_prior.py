"""What recommenders know, as the prior of a policy's item head: the scores of contexts, and weights by likelihood.

Scores are those of `recommenders/mixture.py`, asinh of the standardised ones, one row each, and one more: −1 where the
context has named the item, so that its weight is the price of a repetition. Contexts of training dialogues are scored
without their own dialogue; else the weights would be learnt too high.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32
from scipy.optimize import minimize

from rlhf_jax.data.batching import wrapped_batches
from rlhf_jax.data.windows import RankingRow
from rlhf_jax.decoding import prior
from rlhf_jax.interfaces import Corpus, Dialogue, Params, PromptBatch
from rlhf_jax.recommenders import mixture
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
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.setup import Setup

NAMED = "named"
"""The last score: −1 where the context has named the item."""


class ItemPrior(NamedTuple):
    """Fitted recommenders over the policy's items, in the order of its tokens."""

    parts: Mapping[str, Recommender]
    catalogue: Catalogue
    training: Training

    @property
    def names(self) -> tuple[str, ...]:
        """Of the K scores."""
        return (*self.parts, NAMED)

    def item_scores(self, contexts: Contexts) -> Float32[np.ndarray, "N K I"]:
        """What a policy's prompts bring along. float32 [N, K, I]"""
        out = np.empty((len(contexts), len(self.names), contexts.n_items), np.float32)
        out[:, :-1] = mixture.features(self.parts, contexts, form="asinh")
        out[:, -1] = 0.0
        out[contexts.rows, -1, contexts.items] = -1.0
        return out


class Likelihood(NamedTuple):
    """Weights of maximum likelihood."""

    weights: dict[str, float]
    """`policy` for the trunk's log-probability, then each score."""
    before: float
    """Nats per gold item of the trunk alone."""
    after: float
    n: int
    """Gold items."""

    def params(self) -> Params:
        """The policy's `prior`."""
        policy, *scores = self.weights.values()
        return {"policy": jnp.float32(policy), "scores": jnp.array(scores, jnp.float32)}


def fit_recommenders(
    corpus: Corpus, item_ids: Sequence[int], names: Sequence[str] = tuple(mixture.WEIGHTS)
) -> ItemPrior:
    """The recommenders on the training split alone.

    Args:
      item_ids: the policy's items, in the order of its tokens.
      names: as `mixture.fit_parts` knows them.
    """
    titles = {item_id: item.title for item_id, item in corpus.items.items()}
    catalogue = Catalogue(tuple(item_ids), titles)
    training = read_training(corpus.train, catalogue)
    return ItemPrior(mixture.fit_parts(training, corpus.items, names), catalogue, training)


def row_prompts(
    setup: Setup, dialogues: Sequence[Dialogue], rows: Sequence[RankingRow], known: ItemPrior | None, batch_size: int
) -> Iterator[tuple[PromptBatch, np.ndarray]]:
    """Prompts of ranking rows in batches of one size, and which rows each is of: int64 [b], b ≤ B.

    Args:
      dialogues: the split the rows are from; not the training split, whose own dialogues would have to be left out.
      known: brings the items' scores along; None leaves them out.
    """
    number = {dialogue.dialogue_id: index for index, dialogue in enumerate(dialogues)}
    windows = Windows(setup.vocab, dialogues, setup.data)
    tokens, mask = windows.prompts([(number[row.dialogue.dialogue_id], row.message_index) for row in rows])
    contexts = None if known is None else row_contexts(rows, known.catalogue)
    for chosen, own in wrapped_batches(len(rows), batch_size):
        scores = None
        if known is not None and contexts is not None:
            part = known.item_scores(contexts.part(int(chosen[0]), int(chosen[0]) + own))
            scores = jnp.asarray(np.concatenate([part, np.repeat(part[:1], batch_size - own, axis=0)]))
        yield (
            PromptBatch(tokens=jnp.asarray(tokens[chosen]), mask=jnp.asarray(mask[chosen]), item_scores=scores),
            chosen[:own],
        )


def fit_weights(
    setup: Setup,
    policy: Params,
    known: ItemPrior,
    rows: Sequence[RankingRow],
    *,
    batch_size: int = 64,
) -> Likelihood:
    """Weights that make the fresh gold items of validation rows likely at the first place of a list.

        max_w  (1/n) Σ_s Σ_{g in fresh gold(s)} log softmax_i( w₀ · log p(i | s) + Σ_k w_k · z_k(i, s) )(g)

    Concave in w, so that L-BFGS from w₀ = 1 and w_k = 0 finds the maximum; nothing keeps a weight positive. The trunk stays
    as it is.

    Memory: 4·(K + 1)·I bytes a row with gold.

    Args:
      policy: a tree with `trunk`; a `prior` in it is not read.
      rows: of the validation split.
    Raises: ValueError if no row has a fresh gold item among the policy's items.
    """
    columns = columns_of(known.catalogue.item_ids)
    gold = counts([row.fresh_gold for row in rows], columns).toarray()
    used = [place for place in range(len(rows)) if gold[place].any()]
    n = int(gold.sum())
    if not n:
        raise ValueError(f"{len(rows)} rows have no fresh gold item among the policy's {len(columns)} items")
    bare = {"trunk": policy["trunk"]}
    score = setup.agent.compiled("score_items", lambda: jax.jit(setup.agent.score_items))
    chosen_rows = [rows[place] for place in used]
    blocks = []
    for prompts, own in row_prompts(setup, setup.corpus.validation, chosen_rows, known, batch_size):
        logprobs = jax.nn.log_softmax(score(bare, prompts))
        wanted = np.zeros(logprobs.shape, np.float32)
        wanted[: len(own)] = gold[[used[row] for row in own]]
        blocks.append((np.asarray(logprobs), np.asarray(prompts.item_scores), wanted))

    @jax.jit
    def loss(weights: jax.Array, logprobs: jax.Array, scores: jax.Array, wanted: jax.Array) -> jax.Array:
        mixed = weights[0] * logprobs + prior.bonus({"scores": weights[1:]}, scores)
        return -(jax.nn.log_softmax(mixed) * wanted).sum() / n

    slope = jax.jit(jax.value_and_grad(loss))

    def total(weights: np.ndarray) -> tuple[float, np.ndarray]:
        parts = [slope(jnp.asarray(weights, jnp.float32), *block) for block in blocks]
        return sum(float(value) for value, _ in parts), np.sum(
            [np.asarray(part, np.float64) for _, part in parts], axis=0
        )

    start = np.array([1.0, *[0.0] * len(known.names)])
    found = minimize(total, start, jac=True, method="L-BFGS-B", options={"maxiter": 100, "ftol": 1e-8})
    weights = dict(zip(("policy", *known.names), map(float, found.x), strict=True))
    return Likelihood(weights, -total(start)[0], -float(found.fun), n)

"""Dual view: learnt vectors of contexts and items, each from what is said and from who names what with what.

    s(j | context) = g · h(context)·e_j / √D + b_j          (`models/retriever.py`)

Semantic view: a text encoder's vectors of the context's last words (titles left out, or spelled) and of the items' own
texts (title, plot, people, genres). Collaborative view of items: with C_ij the training dialogues that mention both i and j,
C_ii those that mention i, and λ a shrinkage in dialogues,

    S_ij = C_ij / √((C_ii + λ)(C_jj + λ)) ≈ Σ_k v_ik v_jk,   V = the K leading eigenvectors times √eigenvalue, rows normed

and of a context the items it names, newest first. The vectors are learnt in `stages/smtpo/retriever.py`.
Source: factorisation of the co-mention matrix after Sarwar et al. 2000 (SVD-based collaborative filtering); that a retriever
joins these two views, arXiv:2604.03671, of which no code is public.

Unlike the closed forms it cannot leave a training dialogue out of its own scores: what it learnt there stays learnt.
Cost: 4·(S + C + D)·I bytes; a context is a product of D·I.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int32
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import eigsh

from rlhf_jax.data.batching import wrapped_batches
from rlhf_jax.interfaces import Item, Params
from rlhf_jax.models import retriever
from rlhf_jax.models.retriever import DialogueViews, ItemViews, RetrieverNetwork
from rlhf_jax.recommenders.bm25 import item_text
from rlhf_jax.recommenders.co_mention import presence
from rlhf_jax.recommenders.contexts import Contexts, Recommender, Training

BATCH = 256
"""Contexts that are scored at once: one program for any number of them."""
Encoder = Callable[[Sequence[str]], np.ndarray]
"""Texts to vectors, one row a text, zeros for an empty one."""


class Views(NamedTuple):
    """What both towers read."""

    encoder: Encoder
    items: ItemViews
    n_recent: int
    """Items of a context that are read."""
    titles: bool = False
    """Whether the titles of mentioned items are among the words."""

    def of(self, contexts: Contexts) -> DialogueViews:
        """The views of contexts."""
        said = contexts.texts if self.titles else contexts.words
        return DialogueViews(
            semantic=jnp.asarray(unit_rows(self.encoder(said))),
            recent=jnp.asarray(recent_items(contexts, self.n_recent)),
        )


class DualView(NamedTuple):
    """Learnt towers with the views they read."""

    network: RetrieverNetwork
    params: Params
    views: Views


def fit_views(
    training: Training,
    items: Mapping[int, Item],
    encoder: Encoder,
    *,
    components: int = 128,
    shrinkage: float = 5.0,
    n_recent: int = 8,
    titles: bool = False,
) -> Views:
    """The views of all items, and how contexts are read.

    Args:
      training: the training split.
      items: the catalogue.
      encoder: texts to vectors.
      components: K, at most one less than the items.
      shrinkage: λ, dialogues, at least 0.
      n_recent: different items of a context that are read, the newest first.
      titles: whether the words of a context hold the titles of the items it names.
    Raises: ValueError for a number outside its range, or fewer than two items.
    """
    if components < 1 or n_recent < 1 or shrinkage < 0:
        raise ValueError(
            f"components is {components}, n_recent {n_recent}, shrinkage {shrinkage}; they must be at least 1, 1 and 0"
        )
    ids = training.catalogue.item_ids
    if len(ids) < 2:
        raise ValueError(f"a factorisation needs 2 items: got {len(ids)}")
    semantic = unit_rows(encoder([item_text(items[item_id]) for item_id in ids]))
    found = ItemViews(
        semantic=jnp.asarray(semantic), collaborative=jnp.asarray(factorise(training, components, shrinkage))
    )
    return Views(encoder, found, n_recent, titles)


def factorise(training: Training, components: int, shrinkage: float) -> Float32[np.ndarray, "I K"]:
    """V with rows of length 1; zeros for items that no training dialogue names, and for those nothing is left of. [I, K]"""
    present = presence(training).astype(np.float64)
    counts = np.asarray(present.sum(0))
    factor = np.where(counts > 0, 1.0 / np.sqrt(np.where(counts > 0, counts + shrinkage, 1.0)), 0.0)
    similar = csr_array(diags_array(factor) @ (present.T @ present) @ diags_array(factor))
    k = min(components, len(counts) - 1)
    # A start of its own, so that the same counts give the same vectors.
    start = np.random.Generator(np.random.PCG64(0)).standard_normal(len(counts))
    values, found = eigsh(similar, k=k, v0=start)
    found = found * np.sqrt(np.maximum(values, 0.0))
    found[counts == 0] = 0.0
    return unit_rows(found)


def unit_rows(found: Float[np.ndarray, "N K"]) -> Float32[np.ndarray, "N K"]:
    """Rows of length 1; a row of (nearly) zeros stays one of zeros."""
    found = np.asarray(found, np.float64)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.where(lengths > 1e-9, found / np.where(lengths > 1e-9, lengths, 1.0), 0.0).astype(np.float32)


def recent_items(contexts: Contexts, n: int) -> Int32[np.ndarray, "N n"]:
    """Columns of the different items a context names, newest first; −1 where there are fewer than n.

    Examples:
      >>> contexts = Contexts(4, np.array([2, 0, 2, 3], np.int32), np.array([0, 4, 4]), ("", ""), ("", ""), np.array([-1, -1]))
      >>> recent_items(contexts, 4).tolist()
      [[3, 2, 0, -1], [-1, -1, -1, -1]]
    """
    out = np.full((len(contexts), n), -1, np.int32)
    for row in range(len(contexts)):
        newest = contexts.items[contexts.starts[row] : contexts.starts[row + 1]][::-1]
        different = list(dict.fromkeys(newest.tolist()))[:n]
        out[row, : len(different)] = different
    return out


@functools.partial(jax.jit, static_argnums=0)
def _scores(network: RetrieverNetwork, params: Params, items: ItemViews, dialogues: DialogueViews) -> jax.Array:
    return retriever.item_scores(network, params, items, dialogues)


def scores(fitted: DualView, contexts: Contexts) -> Float32[np.ndarray, "N I"]:
    """The towers' scores, nats up to a constant a context, higher is better. [N, I]"""
    return scores_of_views(fitted, fitted.views.of(contexts))


def scores_of_views(fitted: DualView, dialogues: DialogueViews) -> Float32[np.ndarray, "N I"]:
    """The same, where the views are at hand. [N, I]"""
    n = len(dialogues.recent)
    out = np.empty((n, fitted.network.n_items), np.float32)
    for rows, own in wrapped_batches(n, BATCH):
        part = jax.tree.map(lambda leaf, rows=rows: leaf[rows], dialogues)
        out[rows[:own]] = np.asarray(_scores(fitted.network, fitted.params, fitted.views.items, part))[:own]
    return out


def without_named(recommender: Recommender, contexts: Contexts) -> Float32[np.ndarray, "N I"]:
    """A recommender's scores with all that the context has named below everything else: a rule, not learnt. [N, I]

    Examples:
      >>> contexts = Contexts(3, np.array([0], np.int32), np.array([0, 1]), ("",), ("",), np.array([-1]))
      >>> without_named(lambda contexts: np.array([[3., 2., 1.]], np.float32), contexts).tolist()
      [[0.0, 2.0, 1.0]]
    """
    found = np.array(recommender(contexts), np.float32)
    found[contexts.rows, contexts.items] = (found.min(axis=1) - 1.0)[contexts.rows]
    return found


def candidates(found: Float32[np.ndarray, "N I"], k: int) -> Int32[np.ndarray, "N k"]:
    """Columns of the k highest scores of each context, best first; of equal ones the first column. [N, k]

    Raises: ValueError if there are fewer than k items.
    Examples:
      >>> candidates(np.array([[1., 3., 3., 0.]], np.float32), 2).tolist()
      [[1, 2]]
    """
    if not 1 <= k <= found.shape[1]:
        raise ValueError(f"{k} candidates of {found.shape[1]} items")
    return np.argsort(-found, axis=1, kind="stable")[:, :k].astype(np.int32)

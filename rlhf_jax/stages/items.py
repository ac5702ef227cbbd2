"""What is known about items becomes their embeddings: title words, metadata words and features, composed while training.

After the stage the sum is written into the table of embeddings (docs/decisions/0002).
"""

from typing import Protocol, runtime_checkable

import chex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rlhf_jax.data.items import item_features, item_title_tokens, spoken_decade
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.interfaces import Corpus, Params


@chex.dataclass(frozen=True)
class ItemKnowledge:
    """What items are composed of, as token and feature numbers; −1 where there are fewer."""

    titles: Int[Array, "I K1"]
    metadata: Int[Array, "I K2"]
    features: Int[Array, "I K3"]


@runtime_checkable
class Sharing(Protocol):
    """What items share; `stages.supervised.SupervisedConfig` has these fields and says what they mean."""

    @property
    def title_embeddings(self) -> bool: ...
    @property
    def metadata_words(self) -> bool: ...
    @property
    def features_per_item(self) -> int: ...


def item_knowledge(vocab: Vocabulary, corpus: Corpus, config: Sharing) -> tuple[ItemKnowledge, int]:
    """Words and features of every item, and the number of features."""
    titles = item_title_tokens(vocab, corpus.items) if config.title_embeddings else [[]] * vocab.n_items
    items = [corpus.items[item_id] for item_id in vocab.item_ids]
    spoken = [f" {' '.join([*item.genres, *item.people[:3], spoken_decade(item.year)])}" for item in items]
    metadata = vocab.encode_texts(spoken) if config.metadata_words else [[]] * vocab.n_items
    names: tuple[str, ...] = ()
    features = np.full((vocab.n_items, 0), -1, np.int32)
    if config.features_per_item:
        names, features = item_features(corpus.items, vocab.item_ids, max_features=config.features_per_item)
    knowledge = ItemKnowledge(titles=_table(titles, 8), metadata=_table(metadata, 12), features=jnp.asarray(features))
    return knowledge, len(names)


def _table(rows: list[list[int]], width: int) -> Int[Array, "I K"]:
    # Where nothing is shared no column either: each would be gathered and scattered for every item, .6 GB for 100,000 of them.
    width = width if any(rows) else 0
    table = np.full((len(rows), width), -1, np.int32)
    for row, tokens in enumerate(rows):
        table[row, : min(len(tokens), width)] = tokens[:width]
    return jnp.asarray(table)


def compose(params: Params, knowledge: ItemKnowledge, first_item: int) -> Params:
    """The plain GPT-2 tree: item rows with what they share added, the feature table gone."""
    trunk, wte = params["trunk"], params["trunk"]["wte"]
    n_items = knowledge.titles.shape[0]
    shared = _mean_rows(wte, knowledge.titles) + _mean_rows(wte, knowledge.metadata)
    shared += _mean_rows(params["item_features"], knowledge.features)
    items = wte[first_item : first_item + n_items] + shared
    return {**trunk, "wte": jnp.concatenate([wte[:first_item], items, wte[first_item + n_items :]])}


def taken_apart(trunk: Params, knowledge: ItemKnowledge, first_item: int) -> Params:
    """A plain GPT-2 tree whose item rows lack what `compose` adds while the features are 0: composed, it is the tree again."""
    wte, n_items = trunk["wte"], knowledge.titles.shape[0]
    shared = _mean_rows(wte, knowledge.titles) + _mean_rows(wte, knowledge.metadata)
    items = wte[first_item : first_item + n_items] - shared
    return {**trunk, "wte": jnp.concatenate([wte[:first_item], items, wte[first_item + n_items :]])}


def _mean_rows(table: Float[Array, "V D"], rows: Int[Array, "I K"]) -> Float[Array, "I D"]:
    known = rows >= 0
    taken = (
        jnp.where(known[..., None], table[jnp.maximum(rows, 0)], 0.0)
        if table.shape[0]
        else jnp.zeros((*rows.shape, table.shape[1]))
    )
    return taken.sum(axis=1) / jnp.maximum(known.sum(axis=1, keepdims=True), 1)

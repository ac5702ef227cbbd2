"""What fitted recommenders say of every item of a policy, as its prompts bring it along.

Scores are those of `recommenders/mixture.py`, asinh of the standardised ones, one row each, and one more: −1 where the
context has named the item, so that its weight is the price of a repetition. Contexts of training dialogues are scored
without their own dialogue; else weights that are learnt on them would be too high.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from rlhf_jax.interfaces import Corpus, Message
from rlhf_jax.recommenders import mixture, standing
from rlhf_jax.recommenders.contexts import Catalogue, Contexts, Recommender, Training, contexts_of, read_training

NAMED = "named"
"""The last score: −1 where the context has named the item."""


class ItemScorer(NamedTuple):
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

    def of_histories(
        self, histories: Sequence[Sequence[Message]], dialogue_ids: Sequence[str] | None = None
    ) -> Float32[np.ndarray, "N K I"]:
        """The same of conversations so far.

        Args:
          histories: messages of each, oldest first; may be empty. [N]
          dialogue_ids: of the dialogues they are from; one of the training split is left out of its own scores. None
            where people talk. [N]
        """
        numbers = self.training.numbers
        own = None if dialogue_ids is None else [numbers.get(one, -1) for one in dialogue_ids]
        return self.item_scores(contexts_of(histories, self.catalogue, own=own))

    def with_standing(self, values: Float[np.ndarray, " I"]) -> "ItemScorer":
        """The same with one score more before the last, or another in its place: how well users took each item."""
        parts = {name: part for name, part in self.parts.items() if name != standing.NAME}
        return self._replace(parts=parts | {standing.NAME: partial(standing.scores, np.array(values, np.float64))})


def fit_scorer(corpus: Corpus, item_ids: Sequence[int], names: Sequence[str] = tuple(mixture.WEIGHTS)) -> ItemScorer:
    """The recommenders on the training split alone.

    Args:
      item_ids: the policy's items, in the order of its tokens.
      names: as `mixture.fit_parts` knows them.
    """
    titles = {item_id: item.title for item_id, item in corpus.items.items()}
    catalogue = Catalogue(tuple(item_ids), titles)
    training = read_training(corpus.train, catalogue)
    return ItemScorer(mixture.fit_parts(training, corpus.items, names), catalogue, training)

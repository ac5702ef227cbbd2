"""Popularity: the same scores for every context, counted on the training split.

    s(i) = n_i    or    log(1 + n_i)

Cost: 8·I bytes; scoring N·I additions. Without its own dialogue a context is scored by n_i − n_{d,i}: exact.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from scipy.sparse import csr_array

from rlhf_jax.recommenders.contexts import Contexts, Training, in_blocks, own_rows


class Popularity(NamedTuple):
    """Counts of the training split."""

    counts: np.ndarray
    """float64 [I]"""
    by_dialogue: csr_array
    """Each training dialogue's part in them. float32 [D, I]"""
    log: bool


def fit(training: Training, *, count: Literal["mentions", "fresh"] = "mentions", log: bool = False) -> Popularity:
    """Counts mentions (by either speaker, repeats included), or fresh gold items of ranking rows.

    Args:
      training: the training split.
      count: `mentions` is the table row `popularity`, which counts the validation split too (`evaluation.baselines`); `fresh` counts what the task asks for.
      log: whether scores are log(1 + n), which does not change the order but does change sums with other scores.
    Raises: ValueError for another `count`.
    """
    if count not in ("mentions", "fresh"):
        raise ValueError(f"count is {count!r}; it must be 'mentions' or 'fresh'")
    by_dialogue = training.mentions if count == "mentions" else _fresh_by_dialogue(training)
    return Popularity(np.asarray(by_dialogue.sum(0), np.float64), by_dialogue, log)


def scores(fitted: Popularity, contexts: Contexts) -> Float32[np.ndarray, "N I"]:
    """n_i or log(1 + n_i), higher is better; equal counts stay tied. [N, I]

    Examples:
      >>> fitted = Popularity(np.array([3., 1.]), csr_array(np.array([[1., 1.]])), log=False)
      >>> contexts = Contexts(2, np.array([0], np.int32), np.array([0, 0, 1]), ("", ""), ("", ""), np.array([-1, 0]))
      >>> scores(fitted, contexts).tolist()
      [[3.0, 1.0], [2.0, 0.0]]
    """

    def block(part: Contexts) -> Float[np.ndarray, "n I"]:
        left = counts_without_own(fitted, part)
        return np.log1p(left) if fitted.log else left

    return in_blocks(block, contexts, 2 * contexts.n_items)


def counts_without_own(fitted: Popularity, contexts: Contexts) -> Float[np.ndarray, "N I"]:
    """The counts that are left without each context's own dialogue. float64 [N, I]"""
    return fitted.counts[None, :] - own_rows(fitted.by_dialogue, contexts.own).toarray()


def _fresh_by_dialogue(training: Training) -> csr_array:
    own = training.rows.own
    gather = csr_array((np.ones(len(own), np.float32), (own, np.arange(len(own)))), (len(training.numbers), len(own)))
    return csr_array(gather @ training.fresh)

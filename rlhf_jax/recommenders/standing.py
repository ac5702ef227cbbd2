"""Standing: what users' reactions say of an item beyond what its context explains; the same in every context.

    s(i | context) = b_i

b is fitted elsewhere, with a reward model of items (`learners/item_reward.py`); here it becomes a score that a policy can
read as it reads popularity. Cost: 8·I bytes. Nothing is left out for training dialogues: a dialogue's few reactions move b
by little where it was fitted with shrinkage.
"""

import numpy as np
from jaxtyping import Float, Float32

from rlhf_jax.recommenders.contexts import Contexts

NAME = "standing"


def scores(standing: Float[np.ndarray, " I"], contexts: Contexts) -> Float32[np.ndarray, "N I"]:
    """b for every context. [N, I]

    Raises: ValueError if there is another number of items.
    Examples:
      >>> contexts = Contexts(2, np.zeros(0, np.int32), np.array([0, 0]), ("",), ("",), np.array([-1]))
      >>> scores(np.array([0.5, -1.0]), contexts)
      array([[ 0.5, -1. ]], dtype=float32)
    """
    if len(standing) != contexts.n_items:
        raise ValueError(f"standing of {len(standing)} items for contexts over {contexts.n_items}")
    return np.tile(np.asarray(standing, np.float32), (len(contexts), 1))

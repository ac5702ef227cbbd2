"""Copy: what was just said comes first, then what is popular.

    s(i | context) = max_j n_j + 1 + place of i's last mention,  if the context mentions i;   n_i otherwise

Source: the baseline of Kostric and Balog 2026, doi:10.1145/3805712.3808573 (whose list ends with the mentioned items).
Cost as `popularity`, and 8 bytes per mention.
"""

import numpy as np
from jaxtyping import Float, Float32

from rlhf_jax.recommenders.contexts import Contexts, in_blocks
from rlhf_jax.recommenders.popularity import Popularity, counts_without_own


def scores(fitted: Popularity, contexts: Contexts) -> Float32[np.ndarray, "N I"]:
    """Mentioned items by recency above all others by count, higher is better. [N, I]

    Args:
      fitted: of `popularity.fit`; its `log` is not read.
      contexts: what to score; a context's own dialogue is left out of the counts.
    Examples:
      >>> from scipy.sparse import csr_array
      >>> contexts = Contexts(3, np.array([2, 1], np.int32), np.array([0, 2]), ("",), ("",), np.array([-1]))
      >>> scores(Popularity(np.array([3., 1., 0.]), csr_array((1, 3)), log=False), contexts).tolist()
      [[3.0, 5.0, 4.0]]
    """

    def block(part: Contexts) -> Float[np.ndarray, "n I"]:
        out = counts_without_own(fitted, part)
        above_all = out.max(axis=1) + 1.0
        rows = part.rows
        # Later mentions overwrite earlier ones.
        out[rows, part.items] = above_all[rows] + np.arange(len(rows)) - part.starts[rows]
        return out

    return in_blocks(block, contexts, 2 * contexts.n_items)

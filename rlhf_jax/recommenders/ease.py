"""EASE: every item regressed on all others, in closed form.

    min_B ‖X − XB‖² + λ‖B‖²,  B_jj = 0      P = (XᵀX + λI)⁻¹,   B_ij = −P_ij / P_jj  (i ≠ j)
    s(j | context) = Σ_{i in context} decay^{age_i} B_ij

X [D, J] is 1 where a training dialogue mentions an item, J the items with at least `min_dialogues` dialogues.
Source: Steck 2019, arXiv:1905.03375, eq. 8 (there users × items; the recency weights are ours).

Cost: P is dense, 4·J² bytes kept and up to 24·J² while fitting, about J³ operations. Hence the limit `max_items`:

    J          fitting, memory    kept
    2,500      150 MB             25 MB        ReDial, at least 3 dialogues
    10,000     2.4 GB             400 MB       the default limit, 22 s of one core
    20,000     9.6 GB             1.6 GB

Of a catalogue of 100,000 items the 10,000 that most dialogues mention are fitted; all others score 0, which a warning says. What
would not fit into `most_bytes` is refused before anything is allocated: all 100,000 would take 240 GB, and 40 GB kept.
"""

import logging
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy.linalg import get_lapack_funcs
from scipy.sparse import csr_array

from rlhf_jax.recommenders.co_mention import presence
from rlhf_jax.recommenders.contexts import Contexts, Training, in_blocks, own_rows, recency, shape_of

_LOG = logging.getLogger(__name__)
KEPT_BYTES, FITTING_BYTES = 4, 24
"""Of every pair of fitted items: kept, and at most while fitting."""


class Ease(NamedTuple):
    """The regression of the training split."""

    kept: np.ndarray
    """Columns of the J items that are fitted, ascending. int64 [J]"""
    inverse: np.ndarray
    """P. float32 [J, J]"""
    by_dialogue: csr_array
    """X. float32 [D, J]"""
    dialogues: np.ndarray
    """Training dialogues that mention each fitted item. int64 [J]"""
    min_dialogues: int
    decay: float


def fit(
    training: Training,
    *,
    ridge: float = 60.0,
    min_dialogues: int = 3,
    max_items: int = 10_000,
    decay: float = 0.85,
    most_bytes: int = 2**33,
) -> Ease:
    """Inverts the regularised co-mention matrix of the items that are mentioned often enough.

    Args:
      training: the training split.
      ridge: λ, dialogues, above 0.
      min_dialogues: fewest training dialogues an item is fitted with.
      max_items: J at most; where more have enough dialogues, those with the most (of equals the first columns).
      decay: weight of an item per different item mentioned after it, in (0, 1].
      most_bytes: memory that fitting may take, 24·J².
    Raises: ValueError for a number outside its range, or where J items take more memory than they may.
    """
    if not ridge > 0:
        raise ValueError(f"ridge is {ridge}; it must be above 0")
    if min_dialogues < 1 or max_items < 1:
        raise ValueError(f"min_dialogues is {min_dialogues}, max_items {max_items}; both must be at least 1")
    if not 0 < decay <= 1:
        raise ValueError(f"decay is {decay}; it must lie in (0, 1]")
    present = presence(training)
    dialogues = np.bincount(present.indices, minlength=shape_of(present)[1])
    order = np.argsort(-dialogues, kind="stable")[:max_items]
    kept = np.sort(order[dialogues[order] >= min_dialogues])
    _check_memory(len(kept), int((dialogues >= min_dialogues).sum()), len(dialogues), min_dialogues, most_bytes)
    by_dialogue = csr_array(present[:, kept])
    gram = (by_dialogue.T @ by_dialogue).toarray().astype(np.float64, order="F")
    gram[np.diag_indices(len(kept))] += ridge
    return Ease(kept, _inverse(gram), by_dialogue, dialogues[kept], min_dialogues, decay)


def _check_memory(n_kept: int, n_enough: int, n_items: int, min_dialogues: int, most_bytes: int) -> None:
    kept, fitting = (each * n_kept**2 for each in (KEPT_BYTES, FITTING_BYTES))
    cost = f"{n_kept:,} items: {fitting / 1e9:.1f} GB while it is fitted, {kept / 1e9:.1f} GB kept"
    if fitting > most_bytes:
        raise ValueError(
            f"EASE over {cost}; at most {most_bytes / 1e9:.1f} GB are allowed (most_bytes): lower max_items, or raise "
            f"min_dialogues above {min_dialogues}"
        )
    if n_kept < n_enough:
        _LOG.warning(
            "EASE over %s. They are those that most dialogues mention, of %s of %s items with at least %s; the others score 0.",
            cost,
            f"{n_enough:,}",
            f"{n_items:,}",
            min_dialogues,
        )


def _inverse(gram: Float[np.ndarray, "J J"]) -> Float32[np.ndarray, "J J"]:
    """Inverse of a positive definite matrix by Cholesky, in place. [J, J]"""
    if not len(gram):
        return np.zeros((0, 0), np.float32)
    factorise, invert = get_lapack_funcs(("potrf", "potri"), (gram,))
    factor, failed = factorise(gram, lower=True, overwrite_a=True)
    inverse, singular = invert(factor, lower=True, overwrite_c=True)
    if failed or singular:
        raise ValueError(f"the regularised co-mention matrix of {len(gram)} items is not positive definite")
    lower = np.tril(inverse.astype(np.float32))
    return lower + np.tril(lower, -1).T


def scores(fitted: Ease, contexts: Contexts) -> Float32[np.ndarray, "N I"]:
    """Σ_i decay^{age_i} B_ij, higher is better; 0 for items that are not fitted and for contexts without one. [N, I]

    Without its own dialogue with presences x, XᵀX loses x xᵀ, and P becomes (Sherman and Morrison 1950)

        P' = P + u uᵀ / (1 − xᵀu),   u = P x

    Items T that the dialogue alone had kept at `min_dialogues` leave the regression: P'' = P' − P'_{·T} P'_{TT}⁻¹ P'_{T·}.
    So this equals fitting without the dialogue, but where `max_items` binds: its choice of items stays.

    Examples:
      >>> found = csr_array(np.array([[1., 1., 0.], [1., 1., 0.], [0., 1., 1.]], np.float32))
      >>> inverse = np.linalg.inv(found.toarray().T @ found.toarray() + np.eye(3)).astype(np.float32)
      >>> fitted = Ease(np.arange(3), inverse, found, np.array([2, 3, 1]), min_dialogues=1, decay=.85)
      >>> contexts = Contexts(3, np.array([0], np.int32), np.array([0, 1]), ("",), ("",), np.array([-1]))
      >>> scores(fitted, contexts).round(3)
      array([[ 0.   ,  0.667, -0.25 ]], dtype=float32)
    """
    return in_blocks(lambda part: _block(fitted, part), contexts, contexts.n_items + 6 * len(fitted.kept))


def _block(fitted: Ease, contexts: Contexts) -> Float[np.ndarray, "n I"]:
    out = np.zeros((len(contexts), contexts.n_items))
    if not len(fitted.kept):
        return out
    # In float32 as P is: another type would have scipy copy all of P.
    weights = csr_array(recency(contexts, fitted.decay)[:, fitted.kept], dtype=np.float32)
    own = csr_array(own_rows(fitted.by_dialogue, contexts.own), dtype=np.float32)
    weighted = (weights @ fitted.inverse).astype(np.float64)
    diagonal = np.diagonal(fitted.inverse).astype(np.float64)
    if not own.nnz:
        out[:, fitted.kept] = weights.toarray() - weighted / diagonal
        return out
    change = (own @ fitted.inverse).astype(np.float64)  # u of every context. [n, J]
    left = 1.0 - np.asarray(own.multiply(change).sum(1))
    weighted = weighted + change * (np.asarray(weights.multiply(change).sum(1)) / left)[:, None]
    diagonals = diagonal + change**2 / left[:, None]
    found = weights.toarray()
    result = found - weighted / diagonals
    for row in np.flatnonzero(np.diff(own.indptr)):
        items = own.indices[own.indptr[row] : own.indptr[row + 1]]
        gone = np.sort(items[fitted.dialogues[items] <= fitted.min_dialogues])
        if len(gone):
            result[row] = _without(fitted, change[row], float(left[row]), diagonals[row], found[row], gone)
    out[:, fitted.kept] = result
    return out


def _without(
    fitted: Ease,
    change: Float[np.ndarray, " J"],
    left: float,
    diagonal: Float[np.ndarray, " J"],
    weights: Float[np.ndarray, " J"],
    gone: Int[np.ndarray, " T"],
) -> Float[np.ndarray, " J"]:
    """Scores of one context after the items `gone` have left the regression. [J]"""
    weights = weights.copy()
    weights[gone] = 0.0
    context = np.flatnonzero(weights)
    rows = _downdated(fitted, change, left, context)
    edges = _downdated(fitted, change, left, gone)
    solved = np.linalg.solve(edges[:, gone], edges)  # P'_TT⁻¹ P'_T·. [T, J]
    weighted = weights[context] @ (rows - rows[:, gone] @ solved)
    diagonal = diagonal - np.einsum("tj,tj->j", edges, solved)
    diagonal[gone] = 1.0  # They have no scores; what rounding leaves here is not to be divided by.
    result = weights - weighted / diagonal
    result[gone] = 0.0
    return result


def _downdated(
    fitted: Ease, change: Float[np.ndarray, " J"], left: float, rows: Int[np.ndarray, " K"]
) -> Float[np.ndarray, "K J"]:
    """Rows of P'. [K, J]"""
    return fitted.inverse[rows] + np.outer(change[rows], change) / left

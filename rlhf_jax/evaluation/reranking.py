"""Lists that a re-ranker puts in order: NDCG@k and MAP@k, lists by user.

    NDCG@k   Σ_{j ≤ k} (2^{y_j} − 1) / log₂(j + 1), over that of the best order
    MAP@k    mean over the hits among the first k of (hits up to there) / place
    MAP-all@k   the same sum, over min(k, positives): hits that were not found count as 0

A list without positives counts 0 in all of them, as in the field's code, and is counted apart. An item ties with another in
favour of the one that arrived first; lists arrive shuffled. Intervals are over users (`bootstrap`).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from rlhf_jax.evaluation import bootstrap
from rlhf_jax.evaluation.bootstrap import DialogueSums
from rlhf_jax.evaluation.results import DIFFERENCE, Result, difference_name

CUTOFFS = (1, 3, 5, 7)
METRICS = (*(f"ndcg@{k}" for k in CUTOFFS), *(f"map@{k}" for k in CUTOFFS), *(f"map_all@{k}" for k in CUTOFFS))
PROTOCOLS = ("uniform", "popularity-matched")


def list_values(metric: str, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A metric of every list.

    Args:
      scores: higher is earlier. [L, N]
      labels: 0 or 1. [L, N]
    Returns: in [0, 1]; 0 for a list without positives. [L]
    Raises: ValueError for another metric, shapes that differ, or a score that is not finite.
    Examples:
      >>> list_values("ndcg@1", np.array([[3.0, 2.0], [1.0, 2.0]]), np.array([[1, 0], [1, 0]])).tolist()
      [1.0, 0.0]
      >>> list_values("map@2", np.array([[3.0, 2.0, 1.0]]), np.array([[0, 1, 1]])).tolist()
      [0.5]
      >>> list_values("map_all@2", np.array([[3.0, 2.0, 1.0]]), np.array([[0, 1, 1]])).tolist()
      [0.25]
    """
    kind, _, cutoff = metric.partition("@")
    if kind not in ("ndcg", "map", "map_all") or not cutoff.isdigit() or int(cutoff) < 1:
        raise ValueError(f"list metric {metric!r}: expected ndcg@k, map@k or map_all@k")
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if scores.shape != labels.shape or scores.ndim != 2:
        raise ValueError(f"scores {scores.shape} for labels {labels.shape}: expected the same [lists, items]")
    if not np.isfinite(scores).all():
        raise ValueError(f"score {scores[~np.isfinite(scores)][0]} of a list")
    k = min(int(cutoff), scores.shape[1])
    hits = np.take_along_axis(labels, np.argsort(-scores, axis=1, kind="stable"), axis=1)[:, :k]
    if kind == "ndcg":
        discount = 1 / np.log2(np.arange(2, k + 2))
        best = ((2 ** (-np.sort(-labels, axis=1)[:, :k]) - 1) * discount).sum(axis=1)
        return np.where(best > 0, ((2**hits - 1) * discount).sum(axis=1) / np.where(best > 0, best, 1), 0.0)
    summed = (np.cumsum(hits, axis=1) / np.arange(1, k + 1) * hits).sum(axis=1)
    over = hits.sum(axis=1) if kind == "map" else np.minimum(labels.sum(axis=1), k)
    return np.where(over > 0, summed / np.where(over > 0, over, 1), 0.0)


def by_user(metric: str, scores: np.ndarray, labels: np.ndarray, users: np.ndarray) -> DialogueSums:
    """A metric gathered by user."""
    return bootstrap.by_dialogue(list_values(metric, scores, labels), [int(user) for user in users])


def definition(metric: str) -> str:
    """One sentence that says what the number is."""
    kind, _, k = metric.partition("@")
    what = {
        "ndcg": f"NDCG@{k} with gain 2^label − 1",
        "map": f"mean precision at the hits among the first {k}",
        "map_all": f"precision at the hits among the first {k}, summed, over min({k}, positives)",
    }[kind]
    return f"{what}; mean over lists of ten, a list without positives counts 0; interval over test users"


def list_results(
    system: str, runs: Mapping[int, Mapping[str, DialogueSums]], *, protocol: str, split: str
) -> list[Result]:
    """Every metric of a system. `runs`: by seed, then by metric; seeds may test on users of their own."""
    seeds = tuple(sorted(runs))
    found = []
    for metric in runs[seeds[0]]:
        one = bootstrap.mean_over_seeds([runs[seed][metric] for seed in seeds])
        found.append(
            Result(
                f"{system}/{metric}",
                one.value,
                one.n // len(seeds),
                protocol,
                split,
                one.interval,
                seeds,
                definition(metric),
                one.std,
            )
        )
    return found


def list_differences(
    pair: Sequence[str],
    left: Mapping[int, Mapping[str, DialogueSums]],
    right: Mapping[int, Mapping[str, DialogueSums]],
    *,
    protocol: str,
    split: str,
) -> list[Result]:
    """left − right of a pair of systems on the same lists, every metric."""
    seeds = tuple(sorted(left))
    found = []
    for metric in left[seeds[0]]:
        one = bootstrap.difference_over_seeds(
            [left[seed][metric] for seed in seeds], [right[seed][metric] for seed in seeds]
        )
        name = f"{difference_name(*pair)}/{metric}"
        found.append(
            Result(
                name,
                one.value,
                one.n // len(seeds),
                protocol,
                split,
                one.interval,
                seeds,
                f"{DIFFERENCE} means of: {definition(metric)}",
                one.std,
            )
        )
    return found

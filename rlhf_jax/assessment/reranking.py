"""From texts to numbers: every system puts the test users' lists in order, list by list, once a run.

A system is a row of the table: how lists are scored, and with which texts. Where a user has several texts, a list counts with
the mean of its metric over them: what one text, drawn at random, is worth.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from rlhf_jax.evaluation import bootstrap, reranking
from rlhf_jax.evaluation.bootstrap import DialogueSums
from rlhf_jax.evaluation.results import Result
from rlhf_jax.runtime.files import read_npz, write_npz
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.stages.dpo4rec.reranker import METRIC, Lists, Reranker, TextPool, list_scores

FOLDER = "lists"


class Measured(NamedTuple):
    """A system's metrics of every test list."""

    users: np.ndarray
    """[L]"""
    values: dict[str, np.ndarray]
    """Metric to its values. [L] each"""

    def by_user(self) -> dict[str, DialogueSums]:
        """Gathered by user."""
        return {
            metric: bootstrap.by_dialogue(values, [int(user) for user in self.users])
            for metric, values in self.values.items()
        }


def values_of(scores: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric of every list. `scores`: [L, N], or [L, M, N] for M texts, over which the mean is taken."""
    scores = scores[:, None] if scores.ndim == 2 else scores
    n, m = scores.shape[:2]
    repeated = np.repeat(labels, m, axis=0)
    flat = scores.reshape(n * m, -1)
    return {
        metric: reranking.list_values(metric, flat, repeated).reshape(n, m).mean(axis=1) for metric in reranking.METRICS
    }


def measure(run: RunDirectory, protocol: str, system: str, lists: Lists, scores: Callable[[], np.ndarray]) -> Measured:
    """A system's metrics, stored in the run; `scores` is asked where they are not there yet."""
    path = run.path / FOLDER / protocol / f"{system}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_npz(path, {"users": lists.lists.users, **values_of(scores(), lists.lists.labels)})
    stored = read_npz(path)
    users = stored.pop("users")
    return Measured(users, stored)


def with_texts(found: Reranker, lists: Lists, texts: TextPool) -> Callable[[], np.ndarray]:
    """Scores of a network with given texts."""
    return lambda: list_scores(found, lists, texts)


def best_by_other_lists(found: Reranker, lists: Lists, texts: TextPool) -> np.ndarray:
    """Scores of every list with the one text that served the user's other lists best. [L, N]"""
    scores = list_scores(found, lists, texts)
    n, m = scores.shape[:2]
    labels = np.repeat(lists.lists.labels, m, axis=0)
    values = reranking.list_values(METRIC, scores.reshape(n * m, -1), labels).reshape(n, m)
    picked: np.ndarray = scores[np.arange(n), chosen_by_other_lists(values, lists.lists.users)]
    return picked


def chosen_by_other_lists(values: np.ndarray, users: np.ndarray) -> np.ndarray:
    """The text of every list that served the user's other lists best.

    Lists of a user are numbered; one of even number is read with the text of the highest mean over those of odd number, and the
    other way round. Someone who knows part of the answers chooses, without seeing the list that counts. Users with one list
    read their first text.

    Args:
      values: of every list with every text. [L, M]
      users: of the lists. [L]
    Returns: numbers of texts. [L]
    Examples:
      >>> chosen_by_other_lists(np.array([[1.0, 0.0], [0.0, 1.0], [0.3, 0.4]]), np.array([7, 7, 9])).tolist()
      [1, 0, 0]
    """
    chosen = np.zeros(len(users), np.int64)
    for user in np.unique(users):
        own = np.flatnonzero(users == user)
        for side in (0, 1):
            others = own[1 - side :: 2]
            if len(others):
                chosen[own[side::2]] = int(values[others].mean(axis=0).argmax())
    return chosen


def results(
    runs: Mapping[int, Mapping[str, Mapping[str, Measured]]],
    *,
    split: str,
    pairs: tuple[tuple[str, str], ...],
) -> list[Result]:
    """Every system under every protocol and the differences asked for. `runs`: by seed, protocol and system."""
    found: list[Result] = []
    some = next(iter(runs.values()))
    for protocol, systems in some.items():
        gathered = {system: {seed: of[protocol][system].by_user() for seed, of in runs.items()} for system in systems}
        for system, one in gathered.items():
            found += reranking.list_results(system, one, protocol=protocol, split=split)
        for left, right in pairs:
            if left in gathered and right in gathered:
                found += reranking.list_differences(
                    (left, right), gathered[left], gathered[right], protocol=protocol, split=split
                )
    return found


def share_without_positives(lists: Lists) -> float:
    """Of all lists; they count 0."""
    return float((lists.lists.labels.sum(axis=1) == 0).mean())

"""Results of policies that were tried on users, from one array of numbers per metric: one number per user.

Knows nothing of where the users come from; the simulated world hands over what it measured.
"""

from collections.abc import Mapping

import numpy as np

from rlhf_jax.evaluation import bootstrap
from rlhf_jax.evaluation.bootstrap import DialogueSums
from rlhf_jax.evaluation.results import DIFFERENCE, Result

PROTOCOL = "closed-loop"
DEFINITIONS = {
    "mean_utility": "true utility of the system turns a user lived through, mean over users the policy never met, 0 to 1",
    "first_utility": "true utility of the first system turn, mean over users, 0 to 1",
    "average_turns": "system turns until a suggestion is accepted (limit + 1 where none is), mean over users",
    "mean_length": "words per system turn, mean over users",
    "dwell_seconds": "simulated seconds a user stays with a turn, mean over users",
    "proxy_score": "reward model's weighted score of the system turns, mean over users",
    "kl_k1": "Σ_t (log π − log π_ref) of a sampled system turn, nats, mean over users; unbiased estimate of the KL",
    "kl_k3": "Σ_t (e^{−d} − 1 + d), d = log π − log π_ref, of a sampled system turn, nats, mean over users",
    "reply_tokens": "sampled tokens per system turn, <eos> included, mean over users",
}
"""What a metric is; `success@t` is spelled out by `definition`."""

UserValues = Mapping[str, np.ndarray]
"""Metric to one value per user [N], users in the same order for every system."""


def definition(metric: str) -> str:
    """One sentence that says what the number is.

    Raises: ValueError for a metric without a definition.
    """
    kind, _, turn = metric.partition("@")
    if kind == "success" and turn.isdigit():
        return f"share of users who accepted a suggestion within {turn} system turns"
    if metric not in DEFINITIONS:
        raise ValueError(
            f"closed-loop metric {metric!r} has no definition; there are {', '.join(DEFINITIONS)}, success@t"
        )
    return DEFINITIONS[metric]


def closed_loop_results(
    system: str, runs: Mapping[int, UserValues], *, split: str, same_users: bool = False
) -> list[Result]:
    """Entries of `results.json` for one system, by training seed.

    Args:
      same_users: every seed was judged on the same users; they then share the resampling.
    """
    seeds = tuple(sorted(runs))
    results = []
    for metric in runs[seeds[0]]:
        sums = [_by_user(runs[seed][metric], seed, same_users) for seed in seeds]
        estimate = bootstrap.mean_over_seeds(sums)
        results.append(_result(f"{system}/{metric}", estimate, split, seeds, definition(metric)))
    return results


def closed_loop_differences(
    name: str, a: Mapping[int, UserValues], b: Mapping[int, UserValues], *, split: str, same_users: bool = False
) -> list[Result]:
    """Entries for `a` − `b`, paired by training seed and user (`name` is for example `ppo-sft`).

    Raises: ValueError if the seeds differ.
    """
    seeds = tuple(sorted(a))
    if seeds != tuple(sorted(b)):
        raise ValueError(f"{name}: seeds {seeds} against {tuple(sorted(b))}; a paired difference needs the same")
    results = []
    for metric in (metric for metric in a[seeds[0]] if metric in b[seeds[0]]):
        left = [_by_user(a[seed][metric], seed, same_users) for seed in seeds]
        right = [_by_user(b[seed][metric], seed, same_users) for seed in seeds]
        estimate = bootstrap.difference_over_seeds(left, right)
        results.append(_result(f"{name}/{metric}", estimate, split, seeds, f"{DIFFERENCE}: {definition(metric)}"))
    return results


def _by_user(values: np.ndarray, seed: int, same_users: bool) -> DialogueSums:
    prefix = "user" if same_users else f"seed {seed}, user"
    return bootstrap.by_dialogue(values, [f"{prefix} {user:06d}" for user in range(len(values))])


def _result(name: str, estimate: bootstrap.Estimate, split: str, seeds: tuple[int, ...], text: str) -> Result:
    n = estimate.n // len(seeds)
    return Result(name, estimate.value, n, PROTOCOL, split, estimate.interval, seeds, text, estimate.std)

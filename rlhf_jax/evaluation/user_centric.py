"""User-centric metrics of the first-ranked item: SR and RDL, judged by the seeker's own form.

    SR  = share of dialogues in which the first-ranked item of any row is a gold item the seeker liked or has seen
    RDL = mean over dialogues of Σ_rows reward / rows,   reward = 1 liked, .5 seen and not liked, 0 otherwise

After Kostric and Balog 2026, doi 10.1145/3805712.3808573, as far as its published figures fix the reading: a row is
a recommender message with items (see `ranking`), only the row's gold items count (were every item of the form to
count, repeating the context would succeed in 96 % of the dialogues, against .151 for their best system), and the
length of a dialogue is its number of rows.

    protocol         candidates                          what counts
    full             whole catalogue                     gold items
    fresh            whole catalogue                     gold items not mentioned before
    fresh-filtered   catalogue minus mentioned items     gold items not mentioned before
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.data.windows import RankingRow
from rlhf_jax.evaluation import bootstrap
from rlhf_jax.evaluation.bootstrap import DialogueSums
from rlhf_jax.evaluation.results import Result
from rlhf_jax.interfaces import ItemLabel

PROTOCOLS = ("full", "fresh", "fresh-filtered")
LIKED_REWARD, SEEN_REWARD = 1.0, 0.5


class TopOne(NamedTuple):
    """First-ranked items of every row; more than one where scores tie, but never all of many.

    A system that says nothing ties the whole catalogue: of those the first in its order stay, one more than the row has gold
    items. One of them is no gold item, and the worst counts, so the reward is what all of them give.
    """

    rows: tuple[RankingRow, ...]
    whole: tuple[tuple[int, ...], ...]
    """Among the whole catalogue."""
    filtered: tuple[tuple[int, ...], ...]
    """Among items not mentioned before; empty if there is none."""


def top_items(
    scores: np.ndarray, item_ids: Sequence[int], mentioned: np.ndarray, *, most: int | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Items with the highest score, among all and among those whose columns are not in `mentioned`.

    Args:
      scores: of all catalogue items for one row. [I]
      mentioned: columns of items mentioned before. [M]
      most: how many of equal ones are kept, in the order of the columns; None keeps all.
    """
    best = tuple(item_ids[int(column)] for column in np.flatnonzero(scores == scores.max())[:most])
    if len(mentioned) == 0:
        return best, best
    open_to_all = np.ones(len(scores), bool)
    open_to_all[mentioned] = False
    if not open_to_all.any():
        return best, ()
    highest = scores[open_to_all].max()
    return best, tuple(item_ids[int(column)] for column in np.flatnonzero((scores == highest) & open_to_all)[:most])


def rewards(top: TopOne, protocol: str) -> np.ndarray:
    """Reward of every row: 1, .5 or 0; of tied items the worst counts. float64 [N]

    Raises: ValueError for an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown user-centric protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    chosen = top.filtered if protocol == "fresh-filtered" else top.whole
    out = np.zeros(len(top.rows))
    for index, (row, items) in enumerate(zip(top.rows, chosen, strict=True)):
        gold = row.gold if protocol == "full" else row.fresh_gold
        labels = row.dialogue.seeker_labels
        out[index] = min((_reward(labels, item) if item in gold else 0.0 for item in items), default=0.0)
    return out


def success(top: TopOne, protocol: str) -> DialogueSums:
    """SR as one case per dialogue."""
    totals = bootstrap.by_dialogue(rewards(top, protocol), [row.dialogue.dialogue_id for row in top.rows])
    return totals._replace(sums=(totals.sums > 0).astype(np.float64), counts=np.ones_like(totals.counts))


def reward_per_length(top: TopOne, protocol: str) -> DialogueSums:
    """RDL as one case per dialogue."""
    totals = bootstrap.by_dialogue(rewards(top, protocol), [row.dialogue.dialogue_id for row in top.rows])
    return totals._replace(sums=totals.sums / totals.counts, counts=np.ones_like(totals.counts))


def user_centric_results(system: str, runs: Mapping[int, TopOne] | TopOne, *, split: str) -> list[Result]:
    """SR and RDL of one system under every protocol, with intervals; `runs` by training seed, or one without seeds.

    Data in which no seeker filled in a form (OpenDialKG) give no results: nobody said what was liked.
    """
    seeds = () if isinstance(runs, TopOne) else tuple(sorted(runs))
    tops = [runs] if isinstance(runs, TopOne) else [runs[seed] for seed in seeds]
    if not any(row.dialogue.seeker_labels for row in tops[0].rows):
        return []
    results = []
    for protocol in PROTOCOLS:
        for metric, gather, text in (
            ("sr", success, "share of dialogues with a gold item the seeker liked or has seen ranked first in any row"),
            (
                "rdl",
                reward_per_length,
                "reward of gold items ranked first (1 liked, .5 seen) per row, mean over dialogues",
            ),
        ):
            estimate = bootstrap.mean_over_seeds([gather(top, protocol) for top in tops])
            n = estimate.n // len(tops)
            results.append(
                Result(
                    f"{system}/{metric}",
                    estimate.value,
                    n,
                    protocol,
                    split,
                    estimate.interval,
                    seeds,
                    text,
                    estimate.std,
                )
            )
    return results


def _reward(labels: Mapping[int, ItemLabel], item: int) -> float:
    label = labels.get(item)
    if label is None:
        return 0.0
    return LIKED_REWARD if label.liked == 1 else SEEN_REWARD if label.seen == 1 else 0.0

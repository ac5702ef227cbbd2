"""What a user simulator knows of its users: numbers from probabilities and scores, one value per case.

    attribute F1   2 |said ∩ wanted| / (|said| + |wanted|),  said = {a : p_a ≥ threshold}
    HR@k           [rank(gold) ≤ k],  rank(gold) = |{c : s_c ≥ s_gold}| over items that are neither named nor gold, and itself
    AUC            ( |{c : s_gold > s_c}| + ½ |{c : s_gold = s_c}| ) / n  over the n items of like popularity
    perplexity     exp( Σ nll / Σ tokens )

A case is a moment before a recommender message at which something will still be liked, or one (moment, gold item) pair.
Ties count against HR and half for AUC. Items of like popularity are those whose popularity rank is nearest: who only knows
what is popular has an AUC near ½.
"""

import math
from collections.abc import Collection, Sequence

import numpy as np

from rlhf_jax.evaluation.bootstrap import DialogueSums, Estimate
from rlhf_jax.evaluation.bootstrap import mean as bootstrap_mean

MATCHED = 20
"""Items of like popularity that a liked one is held against."""
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))


def attribute_f1(probabilities: np.ndarray, wanted: np.ndarray, threshold: float) -> np.ndarray:
    """F1 of every case; 0 where nothing is said or wanted.

    Args:
      probabilities: of every attribute. [N, A]
      wanted: bool [N, A]
      threshold: an attribute is said from this probability on.
    Returns: float64 [N]
    Examples:
      >>> attribute_f1(np.array([[0.9, 0.6, 0.1]]), np.array([[True, False, True]]), 0.5).tolist()
      [0.5]
    """
    said = probabilities >= threshold
    named = (said.sum(axis=1) + wanted.sum(axis=1)).astype(np.float64)
    return np.where(named > 0, 2.0 * (said & wanted).sum(axis=1) / np.maximum(named, 1.0), 0.0)


def best_threshold(probabilities: np.ndarray, wanted: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> float:
    """The threshold of the highest mean F1, the lowest where several are; to be chosen on other cases than are judged."""
    found = [float(attribute_f1(probabilities, wanted, threshold).mean()) for threshold in thresholds]
    return thresholds[int(np.argmax(found))]


def target_ranks(scores: np.ndarray, gold: Sequence[int], named: Collection[int]) -> np.ndarray:
    """Rank of every gold item of a case among the items that are neither named nor gold, and itself; best is 1.

    Args:
      scores: of every item, higher is better. [I]
      gold: columns. [G]
      named: columns of the items named before.
    Returns: int64 [G]
    Examples:
      >>> target_ranks(np.array([3.0, 2.0, 1.0, 2.0]), [1, 2], [0]).tolist()
      [2, 2]
    """
    others = np.ones(len(scores), bool)
    others[[*gold, *named]] = False
    return 1 + (scores[others][None, :] >= scores[np.array(gold, np.int64)][:, None]).sum(axis=1)


def popularity_ranks(counts: np.ndarray) -> np.ndarray:
    """Places of the items when sorted by count, most frequent first, then by column. int64 [I]

    Examples:
      >>> popularity_ranks(np.array([1, 5, 1])).tolist()
      [1, 0, 2]
    """
    order = np.argsort(-np.asarray(counts), kind="stable")
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


def matched_items(ranks: np.ndarray, item: int, left_out: Collection[int], n: int = MATCHED) -> np.ndarray:
    """The n items whose popularity rank is nearest to that of an item, the more popular first where two are as near.

    Args:
      ranks: `popularity_ranks`. [I]
      item: column.
      left_out: columns that are not taken, beside the item itself.
    Returns: columns, int64; fewer than n where there are no more.
    """
    distance = np.abs(ranks - ranks[item]) * 2 + (ranks > ranks[item])
    order = np.argsort(distance, kind="stable")
    return order[~np.isin(order, [item, *left_out])][:n]


def acceptance_auc(
    scores: np.ndarray, gold: Sequence[int], named: Collection[int], ranks: np.ndarray, n: int = MATCHED
) -> np.ndarray:
    """AUC of every gold item of a case against `matched_items` that are neither named nor gold; ½ where there are none.

    Returns: float64 [G]
    """
    found = np.full(len(gold), 0.5)
    for place, item in enumerate(gold):
        others = matched_items(ranks, item, {*gold, *named}, n)
        if len(others):
            found[place] = (scores[item] > scores[others]).mean() + 0.5 * (scores[item] == scores[others]).mean()
    return found


def perplexity(tokens: DialogueSums, *, seed: int = 0) -> Estimate:
    """exp of the mean nll per token, interval over dialogues.

    Args:
      tokens: nll and number of tokens by dialogue.
    """
    found = bootstrap_mean(tokens, seed=seed)
    low, high = found.interval
    return Estimate(math.exp(found.value), (math.exp(low), math.exp(high)), found.n)

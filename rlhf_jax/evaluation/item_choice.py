"""Does a judge of replies know which item is right, better than the policy that it pays?

Within one context, so that what is common to all its replies cancels, and against items that the policy itself finds about as
likely, so that a judge gains nothing by liking what is popular:

    matched AUC    mean over cases of  ( |{j ∈ N : s_j < s_g}| + ½·|{j ∈ N : s_j = s_g}| ) / |N|
                   N: up to `around` fresh items before and after g in the policy's order, none of them gold
    ceiling        ranks of g once the policy's first `first` fresh items are put in the judge's order; beyond them: a miss

A case is a (message, gold item) pair of a context in which nobody has named the item. A policy that maximises the judge alone
near where it stands ends with the judge's order: if that ranks worse than the policy's own, paying it can cost ranking.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from rlhf_jax.evaluation import bootstrap
from rlhf_jax.evaluation.ranking import metric_values
from rlhf_jax.evaluation.results import DIFFERENCE, Result, difference_name

PROTOCOL = "choice"
METRICS = ("hr@1", "hr@5", "ndcg@5", "ndcg@10")
JUDGE, POLICY = "reward", "policy"
"""Whose order of the same items it is."""
FIRST_CHOICE = "choice_"
"""Before either: whoever suggests its first choice to users."""
MISSED = 2**30
"""The rank of an item that is not among the first."""


class Candidates(NamedTuple):
    """The items of one context that a judge is asked about, in the policy's order."""

    columns: Int[np.ndarray, " C"]
    is_first: Bool[np.ndarray, " C"]
    """Among the policy's first."""
    is_near: Bool[np.ndarray, " C"]
    """A neighbour of the gold item that is not gold itself."""
    place: int
    """Of the gold item, among them."""
    rank: int
    """Of the gold item in the policy's order of fresh items, 1 is best."""


class Cases(NamedTuple):
    """What was found in every case. N entries each"""

    auc: Float[np.ndarray, " N"]
    """NaN where the item has no neighbour."""
    ranks: dict[str, Int[np.ndarray, " N"]]
    """By whose order it is, `JUDGE` and `POLICY`."""
    dialogues: tuple[str, ...]


def candidates_of(
    logits: Float[np.ndarray, " I"],
    gold: int,
    *,
    named: Sequence[int],
    others: Sequence[int] = (),
    first: int = 50,
    around: int = 5,
) -> Candidates:
    """Whom the judge is asked about: the policy's first fresh items, the gold one, and its neighbours.

    Args:
      logits: the policy's, of every item. [I]
      gold: column of the case's item; nobody has named it.
      named: columns of the items that the context names.
      others: columns of the message's other gold items; they are no neighbours.
    Examples:
      >>> found = candidates_of(np.array([5.0, 4.0, 3.0, 2.0, 1.0]), 3, named=[0], first=1, around=1)
      >>> found.columns.tolist(), found.is_near.tolist(), found.rank
      ([1, 2, 3, 4], [False, True, False, True], 3)
    """
    dropped = np.zeros(len(logits), bool)
    dropped[list(named)] = True
    order = np.argsort(-logits, kind="stable")
    order = order[~dropped[order]]
    rank = int(np.flatnonzero(order == gold)[0])
    plain = ~np.isin(order, [gold, *others])
    before = np.flatnonzero(plain[:rank])[-around:] if around else np.zeros(0, np.int64)
    after = rank + 1 + np.flatnonzero(plain[rank + 1 :])[:around]
    places = np.unique(np.concatenate([np.arange(min(first, len(order))), before, [rank], after]))
    return Candidates(
        columns=order[places],
        is_first=places < first,
        is_near=np.isin(places, np.concatenate([before, after])),
        place=int(np.flatnonzero(places == rank)[0]),
        rank=rank + 1,
    )


def cases_of(candidates: Sequence[Candidates], scores: Sequence[np.ndarray], dialogues: Sequence[str]) -> Cases:
    """What a judge's scores of the candidates say, case by case; ties count half in the AUC, and against a rank.

    Args:
      scores: of each case's candidates, in their order. N arrays
    """
    aucs, own, policy = [], [], []
    for one, score in zip(candidates, scores, strict=True):
        near, of_gold = score[one.is_near], score[one.place]
        aucs.append(float(np.mean((near < of_gold) + 0.5 * (near == of_gold))) if len(near) else np.nan)
        reached = bool(one.is_first[one.place])
        own.append(int(np.sum(score[one.is_first] >= of_gold)) if reached else MISSED)
        policy.append(one.rank if reached else MISSED)
    ranks = {JUDGE: np.array(own, np.int32), POLICY: np.array(policy, np.int32)}
    return Cases(np.array(aucs, np.float64), ranks, tuple(dialogues))


def choice_results(cases: Cases, *, split: str, seed: int, first: int = 50, around: int = 5) -> list[Result]:
    """Entries of `results.json`: the matched AUC, both orders, and their difference, paired; nothing without a case."""
    if not cases.dialogues:
        return []
    found = []
    known = np.isfinite(cases.auc)
    if known.any():
        named = [one for one, there in zip(cases.dialogues, known, strict=True) if there]
        estimate = bootstrap.mean(bootstrap.by_dialogue(cases.auc[known], named))
        text = (
            f"share of up to {2 * around} fresh items next to the gold one in the policy's order that the reward model scores "
            "below it, within a context, ties half; .5 knows nothing; mean over (message, gold item) cases"
        )
        found.append(_result(f"{JUDGE}/matched_auc", estimate, int(known.sum()), split, seed, text))
    for metric in METRICS:
        sums = {
            name: bootstrap.by_dialogue(metric_values(metric, ranks), cases.dialogues)
            for name, ranks in cases.ranks.items()
        }
        text = (
            f"{metric} of fresh gold items in this order of the policy's first {first} fresh items, a miss beyond them; mean "
            "over (message, gold item) cases"
        )
        n = len(cases.dialogues)
        found += [_result(f"{name}/{metric}", bootstrap.mean(one), n, split, seed, text) for name, one in sums.items()]
        estimate = bootstrap.difference(sums[JUDGE], sums[POLICY])
        name = f"{difference_name(JUDGE, POLICY)}/{metric}"
        found.append(_result(name, estimate, n, split, seed, f"{DIFFERENCE} means of: {text}"))
    return found


def _result(name: str, estimate: bootstrap.Estimate, n: int, split: str, seed: int, text: str) -> Result:
    return Result(name, estimate.value, n, PROTOCOL, split, estimate.interval, (seed,), text)


def falls_behind(results: Sequence[Result]) -> str:
    """Why whoever is paid by the judge can be expected to recommend worse than now; empty where nothing says so.

    Its order of the policy's first items ranks worse on the validation split (HR@5), or its first choice is worth less to the users
    of a simulated world, who are those of the evaluation; both with the whole interval of the paired difference below 0.
    """
    known = {one.name: one for one in results}
    sides = {JUDGE: f"{FIRST_CHOICE}{JUDGE}", POLICY: f"{FIRST_CHOICE}{POLICY}"}
    for name, words in (
        (
            f"{difference_name(JUDGE, POLICY)}/hr@5",
            "its order of the policy's first items ranks worse than the policy's own: HR@5",
        ),
        (
            f"{difference_name(sides[JUDGE], sides[POLICY])}/mean_utility",
            "its first choice is worth less to users than the policy's:",
        ),
    ):
        change = known.get(name)
        if change is not None and change.interval is not None and change.interval[1] < 0:
            low, high = change.interval
            return f"{words} {change.value:+.3f} [{low:+.3f}, {high:+.3f}]"
    return ""


def sentence(results: Sequence[Result]) -> str:
    """What the results say, for the terminal; empty where there are none.

    Examples:
      >>> sentence([])
      ''
    """
    known = {one.name: one for one in results if one.protocol == PROTOCOL}
    parts = []
    if f"{JUDGE}/matched_auc" in known:
        auc = known[f"{JUDGE}/matched_auc"]
        low, high = auc.interval or (np.nan, np.nan)
        parts.append(f"rank-matched AUC {auc.value:.3f} [{low:.3f}, {high:.3f}]")
    change = known.get(f"{difference_name(JUDGE, POLICY)}/hr@5")
    if change is not None and change.interval is not None:
        low, high = change.interval
        parts.append(
            f"its order of the policy's first items, HR@5 against the policy's: {change.value:+.3f} [{low:+.3f}, {high:+.3f}]"
        )
    if not parts:
        return ""
    return f"reward model, which item is right: {'; '.join(parts)}"

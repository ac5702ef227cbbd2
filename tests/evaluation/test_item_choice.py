"""What a judge of items knows: against plain loops, and with judges whose knowledge is known."""

import math

import numpy as np
import pytest
from numpy.random import default_rng

from rlhf_jax.evaluation import item_choice
from rlhf_jax.evaluation.item_choice import JUDGE, MISSED, POLICY, candidates_of, cases_of, choice_results

N_ITEMS, FIRST, AROUND = 40, 8, 3


def contexts(n: int) -> list[dict]:
    """Logits of a policy, a gold item, what was named, and another gold item."""
    drawn = default_rng(0)
    found = []
    for _ in range(n):
        gold, other, *named = drawn.permutation(N_ITEMS)[:5].tolist()
        found.append({"logits": drawn.normal(size=N_ITEMS), "gold": gold, "named": named, "others": [other]})
    return found


def by_hand(context: dict, score: np.ndarray) -> tuple[float, int, int]:
    """AUC, rank in the judge's order and rank in the policy's, one item after the other."""
    order = sorted((i for i in range(N_ITEMS) if i not in context["named"]), key=lambda i: -context["logits"][i])
    place, gold = order.index(context["gold"]), context["gold"]
    before = [i for i in order[:place] if i not in context["others"]][-AROUND:]
    after = [i for i in order[place + 1 :] if i not in context["others"]][:AROUND]
    won = [1.0 if score[i] < score[gold] else 0.5 if score[i] == score[gold] else 0.0 for i in before + after]
    if gold not in order[:FIRST]:
        return sum(won) / len(won), MISSED, MISSED
    return sum(won) / len(won), sum(score[i] >= score[gold] for i in order[:FIRST]), place + 1


def found_of(all_contexts: list[dict], scores: list[np.ndarray]) -> item_choice.Cases:
    asked = [
        candidates_of(one["logits"], one["gold"], named=one["named"], others=one["others"], first=FIRST, around=AROUND)
        for one in all_contexts
    ]
    columns = [one.columns for one in asked]
    assert all(len(set(each.tolist())) == len(each) <= FIRST + 2 * AROUND + 1 for each in columns)
    judged = [score[each] for score, each in zip(scores, columns, strict=True)]
    return cases_of(asked, judged, [str(number // 2) for number in range(len(asked))])


def test_cases_are_those_of_a_plain_loop() -> None:
    drawn, many = default_rng(1), contexts(200)
    # Whole numbers, so that there are ties.
    scores = [drawn.integers(0, 6, N_ITEMS).astype(float) for _ in many]
    found = found_of(many, scores)
    expected = [by_hand(context, score) for context, score in zip(many, scores, strict=True)]
    np.testing.assert_allclose(found.auc, [auc for auc, *_ in expected])
    assert found.ranks[JUDGE].tolist() == [own for _, own, _ in expected]
    assert found.ranks[POLICY].tolist() == [rank for *_, rank in expected]
    reached = sum(rank < MISSED for *_, rank in expected)
    assert 20 < reached < 180 and found.auc.std() > 0.1


@pytest.mark.parametrize(
    ("knows", "auc"), [("all", 1.0), ("nothing", 0.5), ("the policy", None), ("the opposite", 0.0)]
)
def test_judges_whose_knowledge_is_known(knows: str, auc: float | None) -> None:
    many = contexts(400)
    scores = {
        "all": [np.arange(N_ITEMS) == one["gold"] for one in many],
        "nothing": [np.zeros(N_ITEMS) for _ in many],
        "the policy": [one["logits"] for one in many],
        "the opposite": [np.arange(N_ITEMS) != one["gold"] for one in many],
    }[knows]
    found = found_of(many, [np.asarray(score, float) for score in scores])
    known = {one.name: one for one in choice_results(found, split="toy/validation", seed=0, first=FIRST, around=AROUND)}
    of_policy = known["policy/hr@1"].value
    if auc is not None:
        assert known["reward/matched_auc"].value == auc
    if knows == "all":
        # Every gold item within reach comes first.
        assert known["reward/hr@1"].value == np.mean(found.ranks[POLICY] < MISSED) > of_policy > 0
        assert not item_choice.falls_behind(list(known.values()))
    elif knows == "the policy":
        # Neighbours stand on both sides of an item, so its own order says nothing of it: the reason for matching.
        assert abs(known["reward/matched_auc"].value - 0.5) < 0.06
        assert found.ranks[JUDGE].tolist() == found.ranks[POLICY].tolist()
        assert known["reward-policy/hr@5"].value == 0.0
    else:
        assert known["reward/hr@1"].value == 0.0
        assert known["reward-policy/hr@5"].interval[1] < 0
        assert item_choice.falls_behind(list(known.values())).startswith(
            "its order of the policy's first items ranks worse"
        )
    assert known["reward/hr@1"].n == 400 and known["reward-policy/hr@1"].is_difference


def test_where_there_is_nothing_to_compare() -> None:
    assert choice_results(cases_of([], [], []), split="toy/validation", seed=0) == []
    # The only fresh item has no neighbour.
    alone = candidates_of(np.array([1.0, 2.0]), 0, named=[1], first=3, around=2)
    found = cases_of([alone], [np.array([0.3])], ["a"])
    assert math.isnan(found.auc[0]) and found.ranks[JUDGE].tolist() == found.ranks[POLICY].tolist() == [1]
    names = {one.name for one in choice_results(found, split="toy/validation", seed=0)}
    assert "reward/matched_auc" not in names and "reward-policy/hr@5" in names
    assert "AUC" not in item_choice.sentence(choice_results(found, split="toy/validation", seed=0))

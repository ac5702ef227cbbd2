"""SR and RDL by hand."""

import numpy as np
import pytest

from rlhf_jax.data.windows import RankingRow
from rlhf_jax.evaluation import user_centric
from rlhf_jax.evaluation.ranking import rank_rows
from rlhf_jax.interfaces import Dialogue, ItemLabel

IDS = (10, 20, 30)
LIKED, SEEN, DISLIKED = ItemLabel(1, 2, 1), ItemLabel(1, 1, 2), ItemLabel(1, 0, 0)


def outcome(rows: list[tuple[Dialogue, tuple[int, ...], tuple[int, ...], list[float]]]) -> user_centric.TopOne:
    ranked = [
        RankingRow(dialogue, index, gold, tuple(item for item in gold if item not in mentioned), mentioned)
        for index, (dialogue, gold, mentioned, _) in enumerate(rows)
    ]
    return rank_rows(ranked, [np.array([scores for *_, scores in rows])], IDS).top


def dialogue(name: str, labels: dict[int, ItemLabel]) -> Dialogue:
    return Dialogue(dialogue_id=name, messages=(), seeker_labels=labels, recommender_labels={})


def test_by_hand():
    a, b = dialogue("a", {10: LIKED, 20: SEEN}), dialogue("b", {10: DISLIKED, 30: LIKED})
    top = outcome(
        [
            (a, (10,), (), [3, 2, 1]),  # liked: 1
            (a, (20,), (), [1, 3, 2]),  # seen: .5
            (a, (30,), (), [1, 2, 3]),  # gold, but nothing said about it: 0
            (b, (10,), (), [3, 2, 1]),  # disliked: 0
            (b, (20,), (), [1, 2, 3]),  # liked, but not what was suggested here: 0
        ]
    )
    assert user_centric.rewards(top, "full").tolist() == [1.0, 0.5, 0.0, 0.0, 0.0]
    assert user_centric.success(top, "full").mean == 0.5
    assert user_centric.reward_per_length(top, "full").mean == pytest.approx((1.5 / 3 + 0) / 2)


def test_mentioned_items_count_only_in_full():
    top = outcome([(dialogue("a", {10: LIKED, 20: LIKED}), (10, 20), (10,), [3, 2, 1])])
    assert user_centric.rewards(top, "full").tolist() == [1.0]
    assert user_centric.rewards(top, "fresh").tolist() == [0.0]
    assert user_centric.rewards(top, "fresh-filtered").tolist() == [1.0]  # 20 is first once 10 is out.


def test_of_tied_items_the_worst_counts():
    labels = {10: LIKED, 20: SEEN}
    top = outcome([(dialogue("a", labels), (10, 20), (), [3, 3, 1]), (dialogue("b", labels), (10,), (), [3, 3, 1])])
    assert user_centric.rewards(top, "full").tolist() == [0.5, 0.0]


def test_results_and_bad_protocol():
    top = outcome([(dialogue("a", {10: LIKED}), (10,), (10, 20, 30), [3, 2, 1])])
    results = user_centric.user_centric_results("sft", {0: top, 1: top}, split="toy/test")
    assert [(r.name, r.protocol, r.value, r.n) for r in results[:2]] == [
        ("sft/sr", "full", 1.0, 1),
        ("sft/rdl", "full", 1.0, 1),
    ]
    assert results[-1].value == 0.0  # Everything was mentioned, so nothing is left to suggest.
    with pytest.raises(ValueError, match="sampled-99"):
        user_centric.rewards(top, "sampled-99")


def test_without_any_form_there_is_nothing_to_report():
    """A zero would read as a system that nobody likes."""
    top = outcome([(dialogue("a", {}), (10,), (), [3, 2, 1])])
    assert user_centric.user_centric_results("sft", top, split="toy/test") == []

"""Metrics of conversations by hand, and that only those over the same conversations are compared."""

import numpy as np
import pytest

from rlhf_jax.evaluation import episodes
from rlhf_jax.evaluation.episodes import Measured


def measured(ranks: list[list[int]]) -> Measured:
    """Three conversations of up to three turns; one ends with the first list that holds what is liked."""
    rank = np.array(ranks)
    hit = rank > 0
    before = np.cumsum(hit, axis=1) - hit
    running = before == 0
    rewards = np.zeros((*rank.shape, 3))
    rewards[..., 0] = 1.0
    rewards[..., 1] = np.where(hit, 1 / np.log2(np.maximum(rank, 1) + 1), 0)
    rewards[..., 2] = 0.5
    return Measured(
        conversations=tuple(f"d{row}" for row in range(len(rank))),
        rewards=np.where(running[..., None], rewards, 0.0),
        running=running,
        gold_rank=np.where(running, rank, 0),
        recalled=running,
        attributes=np.where(running, 2, 0),
        repeated=np.zeros(rank.shape, bool),
    )


ONE, OTHER = measured([[0, 2, 0], [1, 0, 0], [0, 0, 0]]), measured([[0, 0, 0], [6, 0, 0], [0, 0, 3]])


def test_success_by_hand() -> None:
    found = {name: one.mean for name, one in episodes.sums(ONE).items()}
    assert [found[f"success@{turn}"] for turn in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert found["gain@3"] == pytest.approx(1 / 3)
    assert found["average_turns"] == pytest.approx((2 + 1 + 4) / 3)
    assert found["hr@1"] == found["hr@5"] == pytest.approx(1 / 3)
    assert found["ndcg"] == pytest.approx(1 / 3)
    # Turn 2: the second conversation is over, and counts no more.
    assert found["ndcg@2"] == pytest.approx((1 / np.log2(3)) / 2)
    assert found["format@2"] == 1.0 and found["attributes"] == 2.0
    late = {name: one.mean for name, one in episodes.sums(OTHER).items()}
    assert (late["hr@1"], late["hr@5"], late["hr@10"]) == pytest.approx((0, 0, 1 / 3))


def test_leaks_and_echoes_are_results_where_they_were_measured() -> None:
    assert not {"leaks", "leaks_drawn", "echoed"} & episodes.sums(ONE).keys()
    echoed = np.zeros(ONE.running.shape, bool)
    echoed[2, 1:] = True
    # The second conversation is over after its first turn: what follows there counts nowhere.
    echoed[1, 1:] = True
    whole = ONE._replace(echoed=echoed, leaked=np.array([[1, 0, 0], [0, 0, 0], [2, 2, 1]]))
    found = {name: one.mean for name, one in episodes.sums(whole).items()}
    assert found["echoed"] == pytest.approx((2 / 3) / 3)
    assert (found["leaks_drawn"], found["leaks"]) == pytest.approx((2 / 3, 1 / 3))
    first = episodes.sums(episodes.first_turn(whole))
    assert first["echoed"].mean == 0 and "leaks" not in first


def test_differences_are_of_the_same_conversations() -> None:
    found = episodes.differences("a-b", {0: ONE}, {0: OTHER}, protocol="scoring-seeker", split="world/test")
    values = {one.metric: one.value for one in found}
    assert values["success@2"] == pytest.approx(1 / 3) and values["average_turns"] == pytest.approx((7 - 8) / 3)
    assert "ndcg@2" not in values, "in turn 2 other conversations still run"
    assert all(one.is_difference and one.definition.startswith("difference of") for one in found)
    alone = episodes.results("a", {0: ONE, 1: OTHER}, protocol="scoring-seeker", split="world/test")
    assert {one.name for one in alone} >= {"a/success@3", "a/ndcg@2", "a/average_turns"}
    assert all(one.seeds == (0, 1) and one.protocol == "scoring-seeker" for one in alone)
    with pytest.raises(ValueError, match="needs the same"):
        episodes.differences("a-b", {0: ONE}, {1: OTHER}, protocol="scoring-seeker", split="world/test")
    with pytest.raises(ValueError, match="no definition"):
        episodes.definition("luck")

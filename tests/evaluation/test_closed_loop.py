"""Closed-loop entries from arrays of one number per user."""

import numpy as np
import pytest

from rlhf_jax.evaluation import closed_loop


def runs(level: float, n_users: int = 50) -> dict[int, dict[str, np.ndarray]]:
    out = {}
    for seed in range(3):
        user = np.random.default_rng(seed).normal(size=n_users)
        out[seed] = {"mean_utility": level + user, "success@2": (user > 0).astype(float)}
    return out


def test_entries():
    results = closed_loop.closed_loop_results("ppo", runs(0.5), split="world/closed-loop")
    assert [r.name for r in results] == ["ppo/mean_utility", "ppo/success@2"]
    assert results[0].n == 50 and results[0].seeds == (0, 1, 2) and results[0].protocol == "closed-loop"
    assert "within 2 system turns" in results[1].definition


def test_difference_is_paired_by_user():
    gain = closed_loop.closed_loop_differences("ppo-sft", runs(0.6), runs(0.5), split="world")[0]
    assert gain.interval == pytest.approx((0.1, 0.1))
    assert gain.shows_difference
    with pytest.raises(ValueError, match=r"seeds \(0, 1, 2\) against \(0,\)"):
        closed_loop.closed_loop_differences("ppo-sft", runs(0.6), {0: runs(0.5)[0]}, split="world")


def test_users_met_in_every_seed_share_their_luck():
    luck = np.random.default_rng(0).normal(size=100)
    same = {seed: {"mean_utility": luck} for seed in range(4)}
    apart, shared = (
        closed_loop.closed_loop_results("ppo", same, split="world", same_users=flag)[0].interval
        for flag in (False, True)
    )
    assert shared[1] - shared[0] > 1.5 * (apart[1] - apart[0])


def test_metrics_need_a_definition():
    with pytest.raises(ValueError, match="'charm' has no definition"):
        closed_loop.definition("charm")

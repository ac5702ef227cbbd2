"""Intervals: against closed forms, and the two things that make them honest (pairing, dependence)."""

import numpy as np
import pytest

from rlhf_jax.evaluation import bootstrap


def gaussian_runs(n_seeds: int, *, shared_luck: float, seed: int = 0) -> list[bootstrap.DialogueSums]:
    generator = np.random.default_rng(seed)
    luck = shared_luck * generator.normal(size=300)
    dialogues = [f"d{i:03d}" for i in range(300)]
    return [bootstrap.by_dialogue(luck + 0.01 * generator.normal(size=300), dialogues) for _ in range(n_seeds)]


def test_gathers_cases_by_dialogue():
    sums = bootstrap.by_dialogue(np.array([1.0, 2.0, 4.0]), ["b", "a", "b"])
    assert sums.dialogues == ("a", "b")
    assert sums.sums.tolist() == [2.0, 5.0]
    assert sums.counts.tolist() == [1.0, 2.0]
    assert (sums.n, sums.mean) == (3, pytest.approx(7 / 3))


def test_interval_of_a_mean_agrees_with_the_normal_approximation():
    values = np.random.default_rng(1).normal(size=400)
    estimate = bootstrap.mean(bootstrap.by_dialogue(values, list(range(400))))
    half = 1.96 * values.std() / 20
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.015)


def test_cases_of_one_dialogue_are_not_counted_as_independent():
    values = np.repeat(np.random.default_rng(2).normal(size=50), 20)
    together = bootstrap.mean(bootstrap.by_dialogue(values, np.repeat(np.arange(50), 20).tolist())).interval
    apart = bootstrap.mean(bootstrap.by_dialogue(values, list(range(1000)))).interval
    assert together[1] - together[0] > 3 * (apart[1] - apart[0])


def test_pairing_removes_what_both_systems_share():
    generator = np.random.default_rng(3)
    hard = generator.normal(size=200)
    a = bootstrap.by_dialogue(hard + 0.1, list(range(200)))
    b = bootstrap.by_dialogue(hard, list(range(200)))
    estimate = bootstrap.difference(a, b)
    assert estimate.interval == pytest.approx((0.1, 0.1))
    assert estimate.n == 200


def test_seeds_judged_on_the_same_dialogues_share_their_luck():
    runs = gaussian_runs(5, shared_luck=1.0)
    one, five = bootstrap.mean(runs[0]).interval, bootstrap.mean_over_seeds(runs).interval
    # The test set is the same five times, so five seeds do not make the interval √5 narrower.
    assert five[1] - five[0] == pytest.approx(one[1] - one[0], rel=0.1)


def test_spread_between_seeds_widens_the_interval():
    dialogues = list(range(500))
    runs = [bootstrap.by_dialogue(np.full(500, level), dialogues) for level in (0.0, 0.5, 1.0)]
    estimate = bootstrap.mean_over_seeds(runs)
    assert (estimate.value, estimate.std) == (0.5, 0.5)
    assert estimate.interval[0] < 0.2 and estimate.interval[1] > 0.8


def test_same_seed_same_interval():
    run = gaussian_runs(1, shared_luck=1.0)[0]
    assert bootstrap.mean(run) == bootstrap.mean(run)
    assert bootstrap.mean(run, seed=1) != bootstrap.mean(run, seed=2)


def test_statistic_of_a_mean_agrees_with_the_matrix_form():
    generator = np.random.default_rng(4)
    values, dialogues = generator.normal(size=300), generator.integers(100, size=300).tolist()
    by_matrix = bootstrap.mean(bootstrap.by_dialogue(values, dialogues)).interval
    by_cases = bootstrap.statistic(dialogues, lambda cases, _: float(values[cases].mean()), replicates=1000)
    assert by_cases == pytest.approx(by_matrix, abs=0.025)


def test_refuses_what_is_not_paired():
    a = bootstrap.by_dialogue(np.ones(2), ["x", "y"])
    b = bootstrap.by_dialogue(np.ones(3), ["x", "y", "y"])
    with pytest.raises(ValueError, match="2 cases in 2 dialogues against 3 in 2"):
        bootstrap.difference(a, b)
    with pytest.raises(ValueError, match="1 runs against 2"):
        bootstrap.difference_over_seeds([a], [a, a])
    with pytest.raises(ValueError, match="nan of case 1"):
        bootstrap.by_dialogue(np.array([0.0, np.nan]), ["x", "y"])

"""Onset and fits against ways whose answer is known: over-optimised, not over-optimised, damaged, noise alone."""

import math

import numpy as np
import pytest

from rlhf_jax.evaluation import over_optimisation
from rlhf_jax.evaluation.over_optimisation import Form, Means, Walk, fit, onset, resample

DISTANCES = np.linspace(0.0, 3.0, 9)
UPDATES = tuple(range(0, 36, 4))


def walks(
    truth: np.ndarray,
    proxy: np.ndarray = DISTANCES,
    *,
    noise: float = 0.3,
    n_seeds: int = 3,
    n_users: int = 150,
    seed: int = 0,
) -> list[Walk]:
    """Users differ by their own level (which pairing removes) and by noise at every evaluation."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(n_seeds):
        level, noises = generator.normal(size=n_users), generator.normal(size=(3, len(truth), n_users))
        kl = np.maximum(DISTANCES[:, None] ** 2 + 0.05 * noises[0] * (DISTANCES[:, None] > 0), 0.0)
        values = [gain[:, None] + level + noise * one for gain, one in ((proxy, noises[1]), (truth, noises[2]))]
        units = tuple(f"seed {number}, user {user:03d}" for user in range(n_users))
        found.append(Walk(UPDATES, units, kl, *values))
    return found


def means(truth: np.ndarray, proxy: np.ndarray = DISTANCES, *, replicates: int = 200, **how: float) -> Means:
    return resample({"way": walks(truth, proxy, **how)}, replicates=replicates)["way"]  # type: ignore[arg-type]


QUADRATIC = DISTANCES * (0.8 - 0.25 * DISTANCES)  # Turns at 1.6.
LOGARITHMIC = DISTANCES * (0.3 - 0.45 * np.log(np.maximum(DISTANCES, 1e-9)))  # Turns at exp(−1/3).


@pytest.mark.parametrize(
    ("form", "truth", "alpha", "beta", "peak"),
    [("quadratic", QUADRATIC, 0.8, 0.25, 1.6), ("logarithmic", LOGARITHMIC, 0.3, 0.45, math.exp(-1 / 3))],
)
def test_a_known_curve_is_found_again(form: Form, truth: np.ndarray, alpha: float, beta: float, peak: float) -> None:
    found = fit([means(truth)], form)
    assert (found.alpha, found.beta) == pytest.approx((alpha, beta), abs=0.05)
    assert found.turns and found.interval[0] <= peak <= found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.4 and found.explained > 0.9
    assert found.reach == pytest.approx(3.0, abs=0.01) and found.n == 450
    np.testing.assert_allclose(found(DISTANCES), truth, atol=0.1)
    other = fit([means(truth)], "quadratic" if form == "logarithmic" else "logarithmic")
    assert other.explained < found.explained


def test_least_squares_is_numpys() -> None:
    way = means(QUADRATIC, replicates=2)
    d = way.distance[0].reshape(-1)
    gain = (way.truth[0] - way.truth[0, :, :1]).reshape(-1)
    expected = np.linalg.lstsq(np.stack([d, -(d**2)], axis=1), gain, rcond=None)[0]
    found = fit([way], "quadratic")
    assert (found.alpha, found.beta) == pytest.approx(tuple(expected), rel=1e-9)


def test_a_way_that_goes_on_rising_has_no_turn_and_no_onset() -> None:
    way = means(0.5 * DISTANCES)
    for form in over_optimisation.FORMS:
        assert not fit([way], form).turns
    assert fit([way], "quadratic").interval[0] > 2.0
    assert onset(way) is None


def test_a_way_that_falls_from_the_start() -> None:
    found = fit([means(-0.4 * DISTANCES)], "quadratic")
    assert found.peak == 0.0 and found.interval == (0.0, 0.0)


def test_onset_of_an_over_optimised_way() -> None:
    found = onset(means(QUADRATIC))
    assert found is not None and found.over_optimised
    assert abs(found.best_distance - 1.6) < 0.5 and found.best_update < found.shown_update
    # At d = 2.25 the truth is .11 below its best, at 2.625 .26; the noise of a mean is .014.
    assert 1.9 < found.shown_distance < 2.8
    assert found.fall < 0 and found.fall_interval[1] < 0
    assert found.proxy_change == pytest.approx(found.shown_distance - found.best_distance, abs=0.1)


def test_a_fall_of_the_proxy_too_is_damage() -> None:
    found = onset(means(-0.5 * DISTANCES, -0.3 * DISTANCES))
    assert found is not None and not found.over_optimised and found.best_update == 0


def test_a_rise_of_the_proxy_that_seeds_disagree_about_is_not_shown() -> None:
    """Every seed's proxy rises, one of them by fifty times as much: the interval over seeds lies above 0 all the same."""
    rises = (3.0, 0.05, 0.06)
    seeds = [walks(QUADRATIC, DISTANCES * share, n_seeds=3, noise=0.02)[n] for n, share in enumerate(rises)]
    found = onset(resample({"way": seeds}, replicates=300)["way"])
    assert found is not None and found.proxy_interval[0] > 0
    assert not found.seeds_agree and not found.over_optimised
    alike = onset(means(QUADRATIC))
    assert alike is not None and alike.seeds_agree
    alone = onset(resample({"way": seeds[:1]}, replicates=300)["way"])
    assert alone is not None and alone.over_optimised


def test_noise_alone_has_an_onset_in_one_of_twenty_ways_at_most() -> None:
    level = np.zeros(len(DISTANCES))
    found = [onset(means(level, noise=1.0, n_seeds=1, n_users=80, seed=seed, replicates=300)) for seed in range(60)]
    # 5 % of 60 is 3; more than 8 has a chance of four in a thousand.
    assert sum(one is not None for one in found) <= 8


def test_a_fall_that_is_common_to_all_users_is_seen_through_their_differences() -> None:
    """The users' own levels have deviation 1; the fall of .1 is paired."""
    fell = np.where(np.arange(len(DISTANCES)) >= 5, -0.1, 0.0)
    found = onset(means(fell, noise=0.1))
    assert found is not None and found.shown_update == UPDATES[5]
    assert found.fall == pytest.approx(-0.1, abs=0.03)


def test_a_fall_that_seeds_disagree_about_is_none() -> None:
    """One seed of three falls by 1, the others not at all: the mean falls far beyond the noise of users."""
    fell, level = (np.where(np.arange(len(DISTANCES)) >= 5, end, 0.0) for end in (-1.0, 0.0))
    seeds = [*walks(fell, n_seeds=1, noise=0.05), *walks(level, n_seeds=3, noise=0.05)[1:]]
    found = resample({"way": seeds}, replicates=200)["way"]
    truth = found.over_seeds(found.truth)[0]
    assert truth[-1] - truth[0] < -0.3
    assert onset(found) is None


def test_ways_are_pooled_on_the_same_draws() -> None:
    half = [
        walk._replace(kl=walk.kl / 4, truth=walk.truth) for walk in walks(DISTANCES / 2 * (0.8 - 0.125 * DISTANCES))
    ]
    found = resample({"far": walks(QUADRATIC), "near": half}, replicates=200)
    pooled = fit(list(found.values()), "quadratic")
    assert (pooled.alpha, pooled.beta) == pytest.approx((0.8, 0.25), abs=0.05)
    assert pooled.n == 900
    np.testing.assert_array_equal(found["far"].seeds, found["near"].seeds)


def test_replicates_draw_whole_users() -> None:
    """Two cases a user that agree are worth one."""
    walk = walks(QUADRATIC, n_seeds=1)[0]
    doubled = Walk(walk.updates, walk.units * 2, *(np.tile(values, 2) for values in walk[2:]))
    once, twice = (resample({"way": [one]}, replicates=200)["way"].truth for one in (walk, doubled))
    np.testing.assert_allclose(once, twice)


def test_what_cannot_be_compared_is_refused() -> None:
    three = walks(QUADRATIC)
    with pytest.raises(ValueError, match="need the same seeds"):
        resample({"a": three, "b": three[:2]})
    with pytest.raises(ValueError, match="way: seeds evaluated after different updates, or not at 0"):
        resample({"way": [three[0], three[1]._replace(updates=(0, *range(1, 9)))]})
    with pytest.raises(ValueError, match="1 of them not finite"):
        resample({"way": [three[0]._replace(truth=np.where(np.arange(1350).reshape(9, 150) == 7, np.nan, 0.0))]})


def test_a_policy_that_stays_where_it_was_has_no_curve() -> None:
    still = resample({"way": [walks(QUADRATIC)[0]._replace(kl=np.zeros((9, 150)))]}, replicates=2)["way"]
    found = fit([still], "quadratic")
    assert math.isnan(found.alpha) and not found.turns and found.reach == 0.0
    level = resample({"way": [walks(QUADRATIC)[0]._replace(truth=np.ones((9, 150)))]}, replicates=2)["way"]
    assert not fit([level], "quadratic").turns and not fit([level], "logarithmic").turns and onset(level) is None

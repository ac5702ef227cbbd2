"""Entries of results.json survive the round trip and refuse nonsense."""

import json
import math

import numpy as np
import pytest

from rlhf_jax.evaluation.bootstrap import by_dialogue, difference_over_seeds
from rlhf_jax.evaluation.results import Result


def entry(**changes) -> Result:
    fields = {
        "name": "ppo/hr@10", "value": 0.2, "n": 10, "protocol": "full", "split": "redial/test",
        "interval": (0.1, 0.3), "seeds": (0, 1, 2), "definition": "share",
    }  # fmt: skip
    return Result(**(fields | changes))


def test_round_trip():
    result = entry(std=0.01)
    assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert (result.system, result.metric) == ("ppo", "hr@10")
    assert set(entry().to_json()) == {
        "name", "value", "n", "protocol", "split", "interval", "seeds", "definition",
    }  # fmt: skip


def test_numbers_that_json_cannot_hold_become_null():
    assert entry(value=math.nan, interval=None).to_json()["value"] is None
    assert math.isnan(Result.from_json(entry(value=math.nan).to_json()).value)


def test_a_claim_needs_three_seeds_that_agree_and_an_interval_without_zero():
    assert entry(std=0.01).shows_difference
    assert not entry(std=0.01, seeds=(0, 1)).shows_difference
    assert not entry(std=0.01, interval=(-0.1, 0.3)).shows_difference
    assert not entry(std=0.01, interval=None).shows_difference
    assert not entry(std=None).shows_difference
    # t(.975, 2) = 4.303: of three seeds the mean must be 2.484 standard deviations from 0.
    assert entry(std=0.2 / 2.49).shows_difference and not entry(std=0.2 / 2.48).shows_difference
    assert entry(value=-0.2, interval=(-0.3, -0.1), std=0.2 / 2.49).shows_difference


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.2])
def test_few_seeds_that_differ_do_not_make_claims(spread: float):
    """No true difference, three seeds: the interval alone claims one in up to a quarter of all studies."""
    generator = np.random.default_rng(0)
    trials, claimed, excluded = 200, 0, 0
    for trial in range(trials):
        runs = [by_dialogue(generator.normal(generator.normal(0, spread), 0.3, 60), range(60)) for _ in range(3)]
        nothing = [by_dialogue(np.zeros(60), range(60))] * 3
        found = difference_over_seeds(runs, nothing, seed=trial, replicates=200)
        result = entry(value=found.value, interval=found.interval, std=found.std)
        claimed += result.shows_difference
        excluded += result.interval_excludes_zero
    assert claimed <= 0.08 * trials  # 5 %, and two standard deviations of 200 trials
    assert spread < 0.2 or excluded > 0.15 * trials


def test_refuses():
    with pytest.raises(ValueError, match="expected <system>/<metric>"):
        entry(name="hr@10")
    with pytest.raises(ValueError, match="not ordered"):
        entry(interval=(0.3, 0.1))
    with pytest.raises(ValueError, match="missing n, protocol"):
        Result.from_json({"name": "a/b", "value": 1.0, "split": "s", "definition": "d"})

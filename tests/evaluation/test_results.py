"""Entries of results.json survive the round trip and refuse nonsense."""

import json
import math

import pytest

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


def test_a_claim_needs_three_seeds_and_an_interval_without_zero():
    assert entry().shows_difference
    assert not entry(seeds=(0, 1)).shows_difference
    assert not entry(interval=(-0.1, 0.3)).shows_difference
    assert not entry(interval=None).shows_difference


def test_refuses():
    with pytest.raises(ValueError, match="expected <system>/<metric>"):
        entry(name="hr@10")
    with pytest.raises(ValueError, match="not ordered"):
        entry(interval=(0.3, 0.1))
    with pytest.raises(ValueError, match="missing n, protocol"):
        Result.from_json({"name": "a/b", "value": 1.0, "split": "s", "definition": "d"})

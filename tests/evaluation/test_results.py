"""Entries of results.json survive the round trip and refuse nonsense."""

import json
import math

import numpy as np
import pytest

from rlhf_jax.evaluation.bootstrap import by_dialogue, difference_over_seeds
from rlhf_jax.evaluation.results import Result, Sides, Split, difference_name, shown_system, sides_of


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


@pytest.mark.parametrize(
    ("left", "right"),
    [("ppo", "sft"), ("full", "best_of_8"), ("kl0.05+length", "sft"), ("transferred, shared, SFT", "copy")],
)
def test_a_difference_names_its_sides(left: str, right: str):
    name = difference_name(left, right)
    assert sides_of(name) == Sides(left, right) and Sides(left, right).name == name
    assert sides_of(left) is None and shown_system(name) == f"{left} − {right}"
    found = entry(name=f"{name}/hr@10", definition="difference of means of: share")
    assert found.is_difference and Result.from_json(found.to_json()).sides == Sides(left, right)


def test_a_minus_sign_alone_makes_no_difference():
    signal = entry(name="TF-IDF, titles/auc", definition="AUC of liked against disliked items")
    assert not signal.is_difference and signal.sides is None
    with pytest.raises(ValueError, match="system 'best-of-8' cannot be compared"):
        difference_name("best-of-8", "sft")


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("redial/test", Split("redial", "test")),
        ("redial/test-sampled", Split("redial", "test", "sampled")),
        ("world/test-users-sampled", Split("world", "test", "sampled", users=True)),
        ("plain: world/test-users-greedy", Split("plain: world", "test", "greedy", users=True)),
        ("opendialkg-book/test", Split("opendialkg-book", "test")),
        ("opendialkg-book/test, catalogue movie+book", Split("opendialkg-book", "test, catalogue movie+book")),
        ("redial/uss-held-out", Split("redial", "uss-held-out")),
        ("hackable/users", Split("hackable", "users")),
        ("crs-response-ratings", Split("crs-response-ratings")),
        ("debug, seed 0: world/validation", Split("debug, seed 0: world", "validation")),
    ],
)
def test_a_split_is_a_value(text: str, split: Split):
    assert Split.parse(text) == split and str(split) == text
    assert split.drawn(None) == Split(split.corpus, split.part)


def test_a_split_of_users_says_how_they_were_answered():
    with pytest.raises(ValueError, match="split world/test: decoding None, expected one of greedy, sampled"):
        Split("world", "test", users=True)
    with pytest.raises(ValueError, match="decoding 'beam'"):
        Split("world", "test").drawn("beam")


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": 5}, "split is '5', expected a text"),
        ({"n": "12"}, "n is '12', expected a whole number"),
        ({"n": 2**63}, "n is .*, expected a whole number"),
        ({"value": 10**400}, "value is .*, expected a finite number or null"),
        ({"std": "1"}, "std is '1', expected a finite number or null"),
        ({"interval": [0.1]}, "interval is .*, expected two numbers or null"),
        ({"seeds": 3}, "seeds is '3', expected whole numbers"),
    ],
)
def test_an_entry_of_another_kind_is_named(change, message):
    with pytest.raises(ValueError, match=f"result 'ppo/hr@10': {message}"):
        Result.from_json(entry().to_json() | change)

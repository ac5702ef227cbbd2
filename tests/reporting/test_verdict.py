"""The verdict says what the stored intervals allow, and no more."""

import dataclasses
import math

import pytest

from rlhf_jax.evaluation.results import DIFFERENCE, Result, Sides
from rlhf_jax.reporting import verdict
from rlhf_jax.reporting.result_tables import informative, left_out

SAMPLED, GREEDY, TEST = "world/test-users-sampled", "world/test-users-greedy", "world/test"


def difference(metric: str, value: float, *, half: float = 0.01, split: str = SAMPLED, **changes) -> Result:
    protocol = "closed-loop" if "users" in split else "text" if metric in ("bleu4", "response_length") else "fresh"
    fields = {"n": 300, "protocol": protocol, "interval": (value - half, value + half), "seeds": (0,)}
    return Result(f"ppo-sft/{metric}", value, split=split, definition=f"{DIFFERENCE} means", **{**fields, **changes})


def said(results: list[Result], corpus: str = "world") -> dict[str, tuple[str, str]]:
    return {line.label: (line.text, line.outcome) for line in verdict.findings(results, corpus, Sides("ppo", "sft"))}


THREE = {"seeds": (0, 1, 2), "std": 0.01}


@pytest.mark.parametrize(
    ("result", "good", "outcome", "text"),
    [
        (difference("m", 0.2), 1, "better", "better in this run: it +0.200 [+0.190, +0.210], from 300 users"),
        (difference("m", -0.2), 1, "worse", "worse in this run: it -0.200 [-0.210, -0.190], from 300 users"),
        (difference("m", -0.2), -1, "better", "better in this run: it -0.200"),
        (difference("m", 0.2), 0, "changed", "higher in this run: it +0.200"),
        (difference("m", -0.2), 0, "changed", "lower in this run: it -0.200"),
        (difference("m", 0.2, half=0.3), 1, "unclear", "no difference shown: it +0.200 [-0.100, +0.500], from 300"),
        (difference("m", 0.2, half=0.2), 1, "unclear", "no difference shown: it +0.200 [+0.000, +0.400]"),
        (difference("m", 0.2, seeds=(0, 1), std=0.01), 1, "better", "better in these 2 runs: it"),
        (difference("m", 0.2, **THREE), 1, "better", "better: it +0.200 [+0.190, +0.210], from 300 users a seed"),
        (
            difference("m", 0.2, seeds=(0, 1, 2), std=0.2),
            1,
            "unclear",
            "no difference shown, the seeds differ too much:",
        ),
        (difference("m", 0.2, interval=None), 1, "missing", "cannot be said: it has no interval"),
        (difference("m", math.nan, interval=(-1.0, 1.0)), 1, "missing", "cannot be said: it is no number"),
        (difference("m", 0.2, n=1), 1, "better", "better in this run: it +0.200 [+0.190, +0.210], from 1 user"),
    ],
)
def test_one_difference_in_words(result: Result, good: int, outcome: str, text: str) -> None:
    assert verdict.outcome(result, good) == outcome
    assert verdict.sentence("it", result, good).startswith(text)


def test_a_gain_as_sampled_is_told_apart_from_greedy_replies_and_from_its_cost() -> None:
    lines = said(
        [
            difference("mean_utility", 0.25),
            difference("mean_utility", 0.0, half=0.1, split=GREEDY),
            difference("proxy_score", 0.5),
            difference("hr@5", -0.02, split=TEST, n=46),
            difference("bleu4", -1.0, split=TEST, n=16),
            difference("response_length", 3.0, split=TEST, n=16),
        ]
    )
    assert {label: outcome for label, (_, outcome) in lines.items()} == {
        "Replies as sampled": "better",
        "As chosen greedily": "unclear",
        "Ranking of items": "worse",
        "What it was paid": "changed",
        "What it cost": "worse",
        "How far this reaches": "missing",
    }
    cost = lines["What it cost"][0]
    assert "HR@5 of items new to the dialogue -0.020 [-0.030, -0.010], from 46 cases" in cost
    assert "BLEU-4 of greedy replies -1.00" in cost and "higher in this run: tokens a greedy reply +3.00" in cost
    assert "over-optimised" not in lines["What it was paid"][0]
    assert lines["How far this reaches"][0] == "training seed 0 alone; a claim beyond it needs three seeds that agree"


def test_less_success_of_greedy_replies_is_a_cost_where_utility_shows_none() -> None:
    lines = said(
        [
            difference("mean_utility", 0.0, half=0.1, split=GREEDY),
            difference("success@4", -0.09, half=0.05, split=GREEDY),
        ]
    )
    assert lines["As chosen greedily"][1] == "unclear"
    assert lines["What it cost"] == (
        "worse in this run: success within four turns, greedy -0.090 [-0.140, -0.040], from 300 users",
        "worse",
    )


@pytest.mark.parametrize(("truth", "proxy", "over"), [(-0.2, 0.5, True), (-0.2, -0.5, False), (0.2, 0.5, False)])
def test_over_optimisation_is_a_reward_that_rose_while_the_truth_fell(truth: float, proxy: float, over: bool) -> None:
    lines = said([difference("mean_utility", truth), difference("proxy_score", proxy)])
    assert ("over-optimised" in lines["What it was paid"][0]) == over


def test_real_data_have_no_users_and_an_unmeasured_cost_is_no_saving() -> None:
    lines = said([difference("hr@5", 0.02, split="redial/test", **THREE)], "redial")
    assert lines["Replies as sampled"] == (
        "not judged: there are no users who could say what they are worth",
        "missing",
    )
    assert lines["As chosen greedily"] == ("not judged", "missing")
    assert lines["What it cost"] == ("no loss shown in HR@5 of items new to the dialogue", "unclear")
    assert lines["How far this reaches"][0].startswith("training seeds 0, 1, 2;")
    lines = said([difference("hr@5", 0.02, split="redial/test", interval=None)], "redial")
    assert lines["What it cost"] == ("not measured", "missing")


def test_every_corpus_has_a_verdict_of_its_own() -> None:
    other = difference("mean_utility", -0.1, split="hackable/test-users-sampled")
    text = verdict.spoken([difference("mean_utility", 0.1), other]).splitlines()
    assert text[0] == "PPO against imitation (SFT) on world" and "better in this run" in text[1]
    (second,) = (place for place, line in enumerate(text) if line.endswith("on hackable"))
    assert "  Replies as sampled: worse in this run: true utility -0.100" in text[second + 1]


def test_what_followed_the_learner_is_judged_first_and_the_paper_s_question_stays() -> None:
    def named(left: str, right: str, value: float) -> Result:
        return dataclasses.replace(difference("mean_utility", value, split=GREEDY), name=f"{left}-{right}/mean_utility")

    found = [named("reactions", "sft_filtered", 0.1), named("reactions", "sft", 0.2), named("ppo", "sft", -0.1)]
    assert verdict.compared(found) == [
        ("world", Sides("reactions", "sft_filtered")),
        ("world", Sides("ppo", "sft")),
    ]
    lines = verdict.spoken(found).splitlines()
    assert lines[0] == "GRPO on users' reactions against imitation without repeats on world"
    assert "better in this run: true utility +0.100" in verdict.spoken(found)
    second = lines.index("PPO against imitation (SFT) on world")
    assert any("As chosen greedily: worse in this run: true utility -0.100" in line for line in lines[second:])
    assert verdict.findings(found, "world", Sides("grpo", "sft")) == []
    # Nobody paid that policy by R_φ, so its score is no reward that could have been over-optimised.
    scored = [
        dataclasses.replace(difference("proxy_score", 0.5), name=f"{pair}/proxy_score")
        for pair in ("reactions-sft_filtered", "ppo-sft")
    ]
    labels = {
        sides.left: [line.label for line in verdict.findings([*found, *scored], "world", sides)]
        for _, sides in verdict.compared(found)
    }
    assert "What it was paid" in labels["ppo"] and "What it was paid" not in labels["reactions"]


def test_a_hit_rate_that_everybody_has_says_nothing() -> None:
    def hit(system: str, metric: str, value: float) -> Result:
        return Result(f"{system}/{metric}", value, 9, "fresh", TEST, (value, value), (0,), "share of cases")

    zero = difference("hr@50", 0.0, split=TEST)
    found = [
        hit("random", "hr@50", 1.0),
        hit("sft", "hr@50", 1.0),
        zero,
        hit("sft", "hr@5", 1.0),
        hit("ppo", "hr@5", 0.9),
    ]
    assert informative(found) == found[3:]
    assert left_out(found) == ["Left out, because they are 1 for every system: `hr@50` (fresh)."]
    assert left_out(found[3:]) == [] and informative([hit("sft", "mrr", 1.0)])


def test_learners_are_called_as_their_papers_call_them() -> None:
    assert [verdict.name_of(system) for system in ("ppo", "grpo", "sft", "copy")] == [
        "PPO",
        "GRPO",
        "imitation (SFT)",
        "copy",
    ]

"""What a run found, in words: better, worse, or no difference shown, from the stored differences and their intervals alone.

The words follow `result_tables.claim`: without an interval nothing is said, an interval with 0 shows nothing, and what
fewer than three seeds show is said of these runs and of no other (docs/decisions/0008).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from rlhf_jax.evaluation.results import Result, Sides, Split
from rlhf_jax.reporting.result_tables import informative, number

Outcome = Literal["better", "worse", "changed", "unclear", "missing"]
"""`changed`: a measure that is neither good nor bad went up or down. `unclear`: no difference shown."""


class Measure(NamedTuple):
    """A number that is compared, and where it stands in `results.json`."""

    label: str
    protocol: str
    metric: str
    good: int
    """1 where more is better, −1 where less is, 0 where neither is."""
    decoding: str | None = None
    """Of the replies to users; None: the cases of the test split."""


class Finding(NamedTuple):
    """One line of the verdict."""

    label: str
    text: str
    outcome: Outcome


class Comparison(NamedTuple):
    """One measure of two systems, and their difference."""

    measure: Measure
    left: Result | None
    right: Result | None
    difference: Result


UTILITY = {
    decoding: Measure(f"true utility, {decoding}", "closed-loop", "mean_utility", 1, decoding)
    for decoding in ("sampled", "greedy")
}
SUCCESS = Measure("success within four turns, greedy", "closed-loop", "success@4", 1, "greedy")
"""A user whom nothing satisfies within four turns may still have liked each reply a little: it can fall while utility does not."""
PAID = Measure("reward model's score, sampled", "closed-loop", "proxy_score", 0, "sampled")
"""What was optimised; that it rises is no merit by itself."""
RANKED = (
    Measure("HR@5 of items new to the dialogue", "fresh", "hr@5", 1),
    Measure("HR@5 of all items", "full", "hr@5", 1),
    Measure("MRR of items new to the dialogue", "fresh", "mrr", 1),
)
"""The first that was measured, and can say anything, stands for the ranking."""
LIKENESS = Measure("BLEU-4 of greedy replies", "text", "bleu4", 1)
LENGTH = Measure("tokens a greedy reply", "text", "response_length", 0)
TEXT = (
    LIKENESS,
    Measure("repetition in greedy replies", "text", "repetition", -1),
    Measure("ungrammatical greedy replies", "text", "ungrammatical", -1),
)
NAMES: Mapping[str, str] = {
    "ppo": "PPO",
    "grpo": "GRPO",
    "sft": "imitation (SFT)",
    "sft_filtered": "imitation without repeats",
    "reactions": "GRPO on users' reactions",
}
"""Systems as sentences call them; others keep their names."""
PAPERS_QUESTION = (Sides("ppo", "sft"), Sides("grpo", "sft"))
"""Asked of every run whose learner is followed by another."""
PAID_OTHERWISE = ("reactions",)
"""Systems that were not paid by the reward model whose score is measured."""


def compared(results: Sequence[Result]) -> list[tuple[str, Sides]]:
    """Which two systems each corpus compares, in order of appearance: those of the first difference, then the learner of
    the papers with imitation.

    Examples:
      >>> compared([Result("ppo-sft/hr@5", 0.1, 9, "full", "redial/test", None, (0,), "difference of means")])
      [('redial', Sides(left='ppo', right='sft'))]
    """
    found: dict[str, list[Sides]] = {}
    for result in results:
        if result.sides is not None:
            of_corpus = found.setdefault(Split.parse(result.split).corpus, [])
            if not of_corpus or (result.sides in PAPERS_QUESTION and result.sides not in of_corpus):
                of_corpus.append(result.sides)
    return [(corpus, sides) for corpus, pairs in found.items() for sides in pairs]


def headline(corpus: str, sides: Sides) -> str:
    """What the verdict is about."""
    return f"{name_of(sides.left)} against {name_of(sides.right)} on {corpus}"


def name_of(system: str) -> str:
    """A system as sentences call it."""
    return NAMES.get(system, system)


def comparisons(results: Sequence[Result], corpus: str, sides: Sides) -> list[Comparison]:
    """The few measures that answer whether the left system is worth more than the right one, as far as they are there."""
    results = informative(results)
    ranked = [found for measure in RANKED if (found := _comparison(results, corpus, sides, measure)) is not None]
    measures = (*UTILITY.values(), SUCCESS, PAID)
    others = [_comparison(results, corpus, sides, measure) for measure in (*measures, *TEXT, LENGTH)]
    kept = [found for found in others if found is not None]
    closed = sum(found.measure in measures for found in kept)
    return [*kept[:closed], *ranked[:1], *kept[closed:]]


def findings(results: Sequence[Result], corpus: str, sides: Sides) -> list[Finding]:
    """The verdict on two systems, line by line; no line where they were not compared on this corpus."""
    found = {each.measure: each.difference for each in comparisons(results, corpus, sides)}
    if not found:
        return []
    lines = [_as_sampled(found), _as_chosen(found), _ranking(found), _paid(found, sides), _cost(found)]
    return [*(line for line in lines if line is not None), _reach(list(found.values()))]


def spoken(results: Sequence[Result]) -> str:
    """The whole verdict as text for the terminal, a line a finding.

    Examples:
      >>> print(spoken([]))
      No two systems were compared.
    """
    lines = []
    for corpus, sides in compared(results):
        lines.append(headline(corpus, sides))
        lines += [f"  {finding.label}: {finding.text}" for finding in findings(results, corpus, sides)]
    return "\n".join(lines) or "No two systems were compared."


def outcome(difference: Result, good: int) -> Outcome:
    """What a difference shows of a measure of which more is good (1), bad (−1) or neither (0)."""
    if difference.interval is None or not math.isfinite(difference.value):
        return "missing"
    if not difference.interval_excludes_zero or (_seeds(difference) >= 3 and not difference.seeds_agree):
        return "unclear"
    if good == 0:
        return "changed"
    return "better" if difference.value * good > 0 else "worse"


def sentence(what: str, difference: Result, good: int) -> str:
    """One difference of `what` in words, with its number, its interval and how many cases it rests on.

    Examples:
      >>> told = Result("ppo-sft/mean_utility", 0.1, 300, "closed-loop", "w/test-users-sampled", (0.05, 0.15), (0,), "difference of")
      >>> sentence("true utility", told, 1)
      'better in this run: true utility +0.100 [+0.050, +0.150], from 300 users'
    """
    if difference.interval is None or outcome(difference, good) == "missing":
        return f"{shown_as(difference, good)}: {what} {'has no interval' if math.isfinite(difference.value) else 'is no number'}"
    low, high = (number(bound, difference) for bound in difference.interval)
    numbers = f"{what} {number(difference.value, difference)} [{low}, {high}], from {cases(difference)}"
    return f"{shown_as(difference, good)}: {numbers}"


def shown_as(difference: Result, good: int) -> str:
    """The outcome in words, with the runs it is said of where they are too few for a claim.

    Examples:
      >>> shown_as(Result("ppo-sft/bleu4", -1.0, 9, "text", "w/test", (-2.0, -0.5), (0, 1), "difference of"), 1)
      'worse in these 2 runs'
    """
    shown, seeds = outcome(difference, good), _seeds(difference)
    if shown == "missing":
        return "cannot be said"
    if shown == "unclear":
        return "no difference shown" + (", the seeds differ too much" if difference.interval_excludes_zero else "")
    word = shown if shown != "changed" else "higher" if difference.value > 0 else "lower"
    return word + ("" if seeds >= 3 else " in this run" if seeds <= 1 else f" in these {seeds} runs")


def cases(result: Result) -> str:
    """How many cases stand behind a number, and of what kind."""
    kind = {"closed-loop": "user", "text": "reply"}.get(result.protocol, "case")
    kinds = kind if result.n == 1 else "replies" if kind == "reply" else f"{kind}s"
    return f"{result.n:,} {kinds}" + (" a seed" if _seeds(result) > 1 else "")


def _comparison(results: Sequence[Result], corpus: str, sides: Sides, measure: Measure) -> Comparison | None:
    found: dict[str, Result] = {}
    for result in results:
        split = Split.parse(result.split)
        same = (split.corpus, split.decoding) == (corpus, measure.decoding)
        if same and (result.protocol, result.metric) == (measure.protocol, measure.metric):
            found.setdefault(result.system, result)
    if sides.name not in found:
        return None
    return Comparison(measure, found.get(sides.left), found.get(sides.right), found[sides.name])


def _as_sampled(found: Mapping[Measure, Result]) -> Finding:
    measure = UTILITY["sampled"]
    if measure in found:
        return _utility("Replies as sampled", found[measure])
    return Finding("Replies as sampled", "not judged: there are no users who could say what they are worth", "missing")


def _as_chosen(found: Mapping[Measure, Result]) -> Finding:
    if UTILITY["greedy"] in found:
        return _utility("As chosen greedily", found[UTILITY["greedy"]])
    if LIKENESS in found:
        text = sentence("likeness to what people said (BLEU-4)", found[LIKENESS], 1)
        return Finding("As chosen greedily", text, outcome(found[LIKENESS], 1))
    return Finding("As chosen greedily", "not judged", "missing")


def _utility(label: str, difference: Result) -> Finding:
    return Finding(label, sentence("true utility", difference, 1), outcome(difference, 1))


def _ranking(found: Mapping[Measure, Result]) -> Finding | None:
    for measure in RANKED:
        if measure in found:
            return Finding("Ranking of items", sentence(measure.label, found[measure], 1), outcome(found[measure], 1))
    return None


def _paid(found: Mapping[Measure, Result], sides: Sides) -> Finding | None:
    """What was optimised, beside what it stands for."""
    if PAID not in found or sides.left in PAID_OTHERWISE:
        return None
    paid = outcome(found[PAID], PAID.good)
    text = sentence("the reward model's score of sampled replies", found[PAID], PAID.good)
    truth = found.get(UTILITY["sampled"])
    if paid == "changed" and found[PAID].value > 0 and truth is not None and outcome(truth, 1) == "worse":
        text += "; the reward rose while the truth fell: over-optimised"
    return Finding("What it was paid", text, paid)


def _cost(found: Mapping[Measure, Result]) -> Finding:
    looked = [m for m in (SUCCESS, *RANKED, *TEXT) if m in found and outcome(found[m], m.good) != "missing"]
    lost = [measure for measure in looked if outcome(found[measure], measure.good) == "worse"]
    parts = [sentence(measure.label, found[measure], measure.good) for measure in lost]
    if not lost and looked:
        parts = [f"no loss shown in {', '.join(measure.label for measure in looked)}"]
    if LENGTH in found and outcome(found[LENGTH], 0) == "changed":
        parts.append(sentence(LENGTH.label, found[LENGTH], 0))
    if not parts:
        return Finding("What it cost", "not measured", "missing")
    return Finding("What it cost", "; ".join(parts), "worse" if lost else "unclear")


def _reach(differences: Sequence[Result]) -> Finding:
    seeds = sorted({seed for difference in differences for seed in difference.seeds})
    named = ", ".join(map(str, seeds))
    if len(seeds) >= 3:
        text = f"training seeds {named}; better or worse is said only where the seeds agree"
    elif seeds:
        plural = len(seeds) > 1
        text = f"training seed{'s' * plural} {named} alone; a claim beyond {'them' if plural else 'it'} needs three seeds that agree"
    else:
        text = "no training seed is stored with the differences, so nothing can be claimed beyond these cases"
    return Finding("How far this reaches", text, "missing")


def _seeds(result: Result) -> int:
    return len(set(result.seeds))

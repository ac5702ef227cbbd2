"""Results of sampled answers: what a system's replies earn and cost, alone and against another system's, over seeds.

protocol       cases
text           replies, as `evaluation.text` judges them
sampled        replies: proxy score, KL, entropy, ends, judge
listed         (turn, gold item) pairs, ranked by the reply's own list; an item that is not listed is no hit
listed-fresh   the same for gold items that were not mentioned before
"""

from collections.abc import Mapping, Sequence

import numpy as np

from rlhf_jax.assessment.sampled import Floats, SampledAnswers
from rlhf_jax.evaluation import bootstrap, text
from rlhf_jax.evaluation.bootstrap import DialogueSums, Estimate
from rlhf_jax.evaluation.ranking import metric_values
from rlhf_jax.evaluation.results import DIFFERENCE, Result, Split

LISTED = ("hr@1", "hr@5", "ndcg@5")
DEFINITIONS = {
    "proxy_score": "reward model's weighted score of a sampled reply, z-units, mean over replies",
    "kl": "Σ_t log π − log π_ref of a sampled reply, nats, mean over replies",
    "entropy": "entropy of the policy, mean over a reply's tokens and over replies, nats per token",
    "eos_share": "share of sampled replies that end within their budget",
    "judge": "held-out judge's satisfaction with a sampled reply, 1 to 5, mean over replies",
}
"""Metrics of the protocol `sampled`."""

Runs = Mapping[int, SampledAnswers]
"""By training seed."""


def sampled_results(system: str, runs: Runs, *, split: str, same_test: bool = True) -> list[Result]:
    """Entries of `results.json` for one system.

    Args:
      split: data set and split of the contexts, e.g. `redial/test`; the entries' own says that replies are sampled.
      same_test: every seed answered the same contexts; else each had its own (worlds that differ).
    """
    seeds, at = tuple(sorted(runs)), str(Split.parse(split).drawn("sampled"))
    own = [apart(runs[seed], seed, same_test) for seed in seeds]
    found = text.text_results(system, [answers.turns for answers in own], split=at, seeds=seeds, same_test=same_test)
    for protocol, metric, definition in measures(own):
        estimate = bootstrap.mean_over_seeds([cases(answers, protocol, metric) for answers in own])
        found.append(_result(f"{system}/{metric}", estimate, protocol, at, seeds, definition))
    return found


def sampled_differences(name: str, a: Runs, b: Runs, *, split: str, same_test: bool = True) -> list[Result]:
    """Entries for `a` − `b`, paired by training seed and dialogue (`name` is for example `full-sft`).

    Raises: ValueError if the seeds differ.
    """
    seeds, at = tuple(sorted(a)), str(Split.parse(split).drawn("sampled"))
    if seeds != tuple(sorted(b)):
        raise ValueError(f"{name}: seeds {seeds} against {tuple(sorted(b))}; a paired difference needs the same")
    left, right = ([apart(runs[seed], seed, same_test) for seed in seeds] for runs in (a, b))
    turns = [[answers.turns for answers in side] for side in (left, right)]
    found = text.text_differences(name, *turns, split=at, seeds=seeds, same_test=same_test)
    for protocol, metric, definition in measures([*left, *right]):
        sides = [[cases(answers, protocol, metric) for answers in side] for side in (left, right)]
        estimate = bootstrap.difference_over_seeds(*sides)
        found.append(_result(f"{name}/{metric}", estimate, protocol, at, seeds, f"{DIFFERENCE}: {definition}"))
    return found


def measures(answers: Sequence[SampledAnswers]) -> list[tuple[str, str, str]]:
    """(protocol, metric, definition) of everything that all of these have."""
    found = [("sampled", m, text) for m, text in DEFINITIONS.items() if all(_known(one, m) for one in answers)]
    for protocol, gold in (("listed", "all gold items"), ("listed-fresh", "gold items not mentioned before")):
        for metric in LISTED if all(_listed_cases(one, protocol).any() for one in answers) else ():
            kind, _, k = metric.partition("@")
            what = {
                "hr": f"share of (turn, gold item) cases among the first {k} of the sampled reply's own list",
                "ndcg": f"1/log2(place + 1) within the first {k} of the sampled reply's own list, else 0, mean over cases",
            }[kind]
            found.append((protocol, metric, f"{what}; {gold}"))
    return found


def cases(answers: SampledAnswers, protocol: str, metric: str) -> DialogueSums:
    """A metric of `measures`, gathered by dialogue, ready for `bootstrap`."""
    dialogues = [turn.dialogue for turn in answers.turns]
    if protocol != "sampled":
        chosen = _listed_cases(answers, protocol)
        values = metric_values(metric, answers.listed.ranks[chosen])
        return bootstrap.by_dialogue(values, [dialogues[turn] for turn in answers.listed.turns[chosen].tolist()])
    values = _values(answers, metric)
    if values is None:
        raise ValueError("these answers were not judged")
    return bootstrap.by_dialogue(values, dialogues)


def _values(answers: SampledAnswers, metric: str) -> Floats | None:
    return {
        "proxy_score": answers.proxy,
        "kl": answers.kl,
        "entropy": answers.entropy,
        "eos_share": answers.finished.astype(np.float64),
        "judge": answers.judge,
    }[metric]


def _known(answers: SampledAnswers, metric: str) -> bool:
    """Whether a metric of `DEFINITIONS` was measured: a judge may be missing, and chosen replies have no KL.

    A single NaN is a fault: it is refused with the case's number, not passed over.
    """
    values = _values(answers, metric)
    return values is not None and not np.isnan(values).all()


def apart(answers: SampledAnswers, seed: int, same_test: bool) -> SampledAnswers:
    """The answers with dialogue ids of their own, where each seed has its own dialogues under the same ids."""
    return answers if same_test else answers._replace(turns=text.of_seed(answers.turns, seed))


def _listed_cases(answers: SampledAnswers, protocol: str) -> np.ndarray:
    return answers.listed.fresh if protocol == "listed-fresh" else np.ones(len(answers.listed.ranks), bool)


def _result(name: str, estimate: Estimate, protocol: str, split: str, seeds: tuple[int, ...], text: str) -> Result:
    n = estimate.n // len(seeds)
    return Result(name, estimate.value, n, protocol, split, estimate.interval, seeds, text, estimate.std)

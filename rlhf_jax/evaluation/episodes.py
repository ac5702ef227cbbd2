"""Results of conversations over several turns with a simulated seeker, whose liking is known to the measurement alone.

N conversations, T turns at most. A conversation has succeeded once its list holds an item that the seeker likes.

    success@t          within t turns
    gain@t             success@t − success@1: what later turns add
    average_turns      turns until success, T + 1 without
    hr@k               a liked item among the first k places of the first list
    ndcg, preference_f1, format    rewards of the first turn; with @t, of turn t, over conversations that still run there
    recalled           a liked item among the first turn's candidates: the ceiling of success@1
    attributes         said in a turn, mean over the turns of a conversation

Knows nothing of policies or simulators; it gets arrays. Source: success by turn and average turns, Lei et al. 2020,
doi:10.1145/3336191.3371769 (EAR); intervals, `evaluation/bootstrap.py`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from rlhf_jax.evaluation import bootstrap
from rlhf_jax.evaluation.bootstrap import DialogueSums
from rlhf_jax.evaluation.results import DIFFERENCE, Result

PROTOCOLS = {
    "scoring-seeker": "answers come from a simulated seeker that learnt from other dialogues, with another seed, than the one that "
    "trained",
    "blind-seeker": "the same, but everyone hears the answer of somebody else's conversation",
    "silent-seeker": "conversations go on, and nobody says a word: what answers are worth is what is gained over it",
    "first-turn": "the first lists alone",
    "training-seeker": "answers come from the very simulated seeker that trained",
}
"""Who answers."""
DEFINITIONS = {
    "average_turns": "turns until a list holds a liked item, limit + 1 where none does, mean over conversations",
    "ndcg": "NDCG of the first list against what the seeker likes and nobody has named, mean over conversations",
    "preference_f1": "F1 of the attributes inferred in the first turn against those of what is liked",
    "format": "share of first turns in the whole reasoning form",
    "recalled": "share of conversations whose first turn has a liked item among its candidates",
    "attributes": "attributes said in a turn, mean over the turns of a conversation",
    "repeated": "share of turns that list an item named before",
    "echoed": "share of turns whose words are those of an earlier reply of the conversation",
    "leaks_drawn": "answers of a conversation that named what the seeker likes and nobody had named, as they were drawn",
    "leaks": "answers of a conversation that still did when they were heard",
}
BY_TURN = {
    "success": "share of conversations in which a list holds a liked item within {} turns",
    "gain": "success@{0} − success@1",
    "hr": "share of conversations with a liked item among the first {} places of the first list",
    "ndcg": "NDCG of turn {}'s list, mean over conversations that still run",
    "preference_f1": "F1 of the attributes inferred in turn {}, mean over conversations that still run",
    "format": "share of turns {} in the whole reasoning form, of conversations that still run",
}
"""Before an `@` and a number."""


class Measured(NamedTuple):
    """What a system did in N conversations, the same ones for every system."""

    conversations: tuple[str, ...]
    """Ids of the dialogues whose openings they are. [N]"""
    rewards: Float[np.ndarray, "N T 3"]
    """Format, recommendation, preference of every turn."""
    running: Bool[np.ndarray, "N T"]
    """Turns a conversation had, the first ones."""
    gold_rank: Int[np.ndarray, "N T"]
    """Place of the first liked item in a turn's list, from 1; 0 where there is none."""
    recalled: Bool[np.ndarray, "N T"]
    """A liked item is among a turn's candidates."""
    attributes: Int[np.ndarray, "N T"]
    """Attributes said."""
    repeated: Bool[np.ndarray, "N T"]
    """The list holds an item that was named before."""
    echoed: Bool[np.ndarray, "N T"] | None = None
    """The words are those of an earlier reply; None where nothing is said, or an older version measured."""
    leaked: Int[np.ndarray, "N 3"] | None = None
    """Answers; those that named something hidden as they were drawn; those that still did when they were heard. None as above."""


def first_turn(measured: Measured) -> Measured:
    """The same conversations, ended after their first turn."""
    own = {name: value for name, value in measured._asdict().items() if value is not None}
    own.pop("leaked", None)  # Nobody answers a first turn that is the last.
    return Measured(**{name: own[name] if name == "conversations" else own[name][:, :1] for name in own})


def definition(metric: str) -> str:
    """One sentence that says what a number is.

    Raises: ValueError for a metric without a definition.
    Examples:
      >>> definition("success@2")
      'share of conversations in which a list holds a liked item within 2 turns'
    """
    kind, _, number = metric.partition("@")
    if number.isdigit() and kind in BY_TURN:
        return BY_TURN[kind].format(number)
    if metric not in DEFINITIONS:
        raise ValueError(f"metric of conversations {metric!r} has no definition")
    return DEFINITIONS[metric]


def sums(measured: Measured, *, list_cutoffs: Sequence[int] = (1, 5, 10)) -> dict[str, DialogueSums]:
    """Every metric, gathered by conversation."""
    n_turns = measured.running.shape[1]
    hits = (measured.gold_rank > 0) & measured.running
    success = np.logical_or.accumulate(hits, axis=1)
    first = np.where(success.any(axis=1), success.argmax(axis=1) + 1, n_turns + 1)
    turns = np.maximum(measured.running.sum(axis=1), 1)
    whole: dict[str, np.ndarray] = {f"success@{t + 1}": success[:, t] for t in range(n_turns)}
    if n_turns > 1:
        whole[f"gain@{n_turns}"] = success[:, -1].astype(float) - success[:, 0]
    whole |= {
        "average_turns": first,
        **{f"hr@{k}": (measured.gold_rank[:, 0] > 0) & (measured.gold_rank[:, 0] <= k) for k in list_cutoffs},
        "format": measured.rewards[:, 0, 0],
        "ndcg": measured.rewards[:, 0, 1],
        "preference_f1": measured.rewards[:, 0, 2],
        "recalled": measured.recalled[:, 0],
        "attributes": np.where(measured.running, measured.attributes, 0).sum(axis=1) / turns,
        "repeated": (measured.repeated & measured.running).sum(axis=1) / turns,
    }
    if measured.echoed is not None:
        whole["echoed"] = (measured.echoed & measured.running).sum(axis=1) / turns
    if measured.leaked is not None:
        whole["leaks_drawn"], whole["leaks"] = measured.leaked[:, 1], measured.leaked[:, 2]
    found = {
        name: bootstrap.by_dialogue(values.astype(float), measured.conversations) for name, values in whole.items()
    }
    for turn in range(1, n_turns):
        rows = np.flatnonzero(measured.running[:, turn])
        if len(rows):
            ids = [measured.conversations[row] for row in rows]
            for place, name in enumerate(("format", "ndcg", "preference_f1")):
                found[f"{name}@{turn + 1}"] = bootstrap.by_dialogue(measured.rewards[rows, turn, place], ids)
    return found


def results(system: str, runs: Mapping[int, Measured], *, protocol: str, split: str) -> list[Result]:
    """Entries of `results.json` for one system, by training seed; metrics that not every seed has are left out."""
    seeds = tuple(sorted(runs))
    by_seed = [sums(runs[seed]) for seed in seeds]
    return [
        _result(
            f"{system}/{name}",
            bootstrap.mean_over_seeds([one[name] for one in by_seed]),
            (protocol, split),
            seeds,
            definition(name),
        )
        for name in by_seed[0]
        if all(name in one for one in by_seed)
    ]


def differences(
    name: str, a: Mapping[int, Measured], b: Mapping[int, Measured], *, protocol: str, split: str
) -> list[Result]:
    """`a` − `b`, paired by training seed and conversation, of all metrics that every conversation has.

    Raises: ValueError if seeds or conversations differ.
    """
    seeds = tuple(sorted(a))
    if seeds != tuple(sorted(b)):
        raise ValueError(f"{name}: seeds {seeds} against {tuple(sorted(b))}; a paired difference needs the same")
    left, right = ([sums(side[seed]) for seed in seeds] for side in (a, b))
    whole = [metric for metric in left[0] if not _of_a_turn(metric) and all(metric in one for one in right)]
    return [
        _result(
            f"{name}/{metric}",
            bootstrap.difference_over_seeds([one[metric] for one in left], [one[metric] for one in right]),
            (protocol, split),
            seeds,
            f"{DIFFERENCE}: {definition(metric)}",
        )
        for metric in whole
    ]


def _of_a_turn(metric: str) -> bool:
    """Whether only conversations that still run have it: two systems then differ in who is counted."""
    kind, _, number = metric.partition("@")
    return bool(number) and kind in ("format", "ndcg", "preference_f1")


def _result(
    name: str, estimate: bootstrap.Estimate, where: tuple[str, str], seeds: tuple[int, ...], text: str
) -> Result:
    protocol, split = where
    n = estimate.n // len(seeds)
    return Result(name, estimate.value, n, protocol, split, estimate.interval, seeds, text, estimate.std)

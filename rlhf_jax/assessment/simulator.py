"""A trained user simulator, judged on dialogues it has not seen; `evaluation.simulator_quality` defines the numbers.

Forms of these dialogues say what was liked. They are read here and never shown to the simulator.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rlhf_jax.data.attributes import Attributes
from rlhf_jax.evaluation import bootstrap, simulator_quality
from rlhf_jax.evaluation.bootstrap import DialogueSums, by_dialogue
from rlhf_jax.evaluation.results import Result
from rlhf_jax.interfaces import Dialogue, Message, Params
from rlhf_jax.models import gpt2
from rlhf_jax.recommenders import mixture
from rlhf_jax.recommenders.contexts import contexts_of
from rlhf_jax.recommenders.scorer import ItemScorer
from rlhf_jax.stages.smtpo.seeker import SeekerSimulator
from rlhf_jax.stages.smtpo.seeker_loss import language_nll
from rlhf_jax.stages.smtpo.seeker_texts import SeekerBatch, SeekerBatches, as_heard, asked_turns, named_in, seeker_texts

BATCH = 64
CUTOFFS = (1, 10, 50)
PROTOCOL = "held-out"
RIVALS = ("popularity", "closed_forms")
"""What a simulator is compared with: one row each, whatever seeker or seed stands beside it."""


class Asked(NamedTuple):
    """Moments before a recommender message at which something will still be liked."""

    histories: tuple[tuple[Message, ...], ...]
    gold: tuple[tuple[int, ...], ...]
    """Columns of what will be liked."""
    named: tuple[tuple[int, ...], ...]
    """Columns of what was named."""
    dialogues: tuple[str, ...]


class SimulatorCases(NamedTuple):
    """Everything measured, gathered by dialogue, by metric."""

    simulator: Mapping[str, DialogueSums]
    popularity: Mapping[str, DialogueSums]
    """Of who knows what is popular and nothing of the dialogue, on the same cases."""
    closed_forms: Mapping[str, DialogueSums]
    """Of the mixture of closed forms, which order items and know neither words nor attributes; empty without one."""


def asked_of(simulator: SeekerSimulator, dialogues: Sequence[Dialogue]) -> Asked:
    """All such moments of some dialogues.

    Raises: ValueError where there is none.
    """
    column = simulator.setup.vocab.item_index
    found = [(dialogue, index, gold) for dialogue in dialogues for index, gold in asked_turns(dialogue)]
    if not found:
        raise ValueError(f"{len(dialogues)} dialogues have no recommender message after which something is liked")
    histories = tuple(dialogue.messages[:index] for dialogue, index, _ in found)
    return Asked(
        histories=histories,
        gold=tuple(tuple(map(column, gold)) for _, _, gold in found),
        named=tuple(tuple(sorted(map(column, named_in(history)))) for history in histories),
        dialogues=tuple(dialogue.dialogue_id for dialogue, _, _ in found),
    )


def choose_threshold(simulator: SeekerSimulator, dialogues: Sequence[Dialogue], attributes: Attributes) -> float:
    """The probability from which on an attribute counts as said: that of the highest F1 on validation dialogues."""
    asked = asked_of(simulator, dialogues)
    return simulator_quality.best_threshold(_in_batches(simulator, asked)[1], _wanted(asked, attributes))


def cases(
    simulator: SeekerSimulator,
    dialogues: Sequence[Dialogue],
    *,
    counts: Mapping[int, int],
    attributes: Attributes,
    threshold: float,
    closed: ItemScorer | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
) -> SimulatorCases:
    """Every metric of the simulator and of popularity on some dialogues.

    Args:
      counts: how often training dialogues suggest each item (`seeker_texts.suggestion_counts`).
      attributes: those the simulator was trained with.
      threshold: from `choose_threshold`.
      closed: closed forms to stand beside it, mixed by the fixed weights: what can be known of items without learning.
    """
    asked = asked_of(simulator, dialogues)
    logprobs, probabilities = _in_batches(simulator, asked)
    wanted = _wanted(asked, attributes)
    popular = np.array([counts.get(item, 0) for item in simulator.setup.vocab.item_ids], np.float64)
    ranks = simulator_quality.popularity_ranks(popular)
    # What is popular, in the proportions of its popularity: the best guess at attributes that knows no dialogue.
    likely = (popular @ attributes.of_items) / max(popular.sum(), 1.0)

    def ordered(scores: np.ndarray) -> dict[str, DialogueSums]:
        places, aucs = [], []
        for row, gold, named in zip(scores, asked.gold, asked.named, strict=True):
            places.append(simulator_quality.target_ranks(row, gold, named))
            aucs.append(simulator_quality.acceptance_auc(row, gold, named, ranks))
        pairs = [key for key, gold in zip(asked.dialogues, asked.gold, strict=True) for _ in gold]
        found = np.concatenate(places)
        return {
            **{f"hr@{k}": by_dialogue((found <= k).astype(np.float64), pairs) for k in cutoffs},
            "auc": by_dialogue(np.concatenate(aucs), pairs),
        }

    def judged(scores: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, DialogueSums]:
        f1 = simulator_quality.attribute_f1(probabilities, wanted, threshold)
        return {"attribute_f1": by_dialogue(f1, asked.dialogues), **ordered(scores)}

    always = np.broadcast_to(likely, probabilities.shape)
    return SimulatorCases(
        simulator={**judged(logprobs, probabilities, threshold), "perplexity": spoken_nll(simulator, dialogues)},
        popularity=judged(
            np.broadcast_to(popular, logprobs.shape),
            always,
            # The threshold that suits it best on these very cases: what it is compared with must not win by a bad one.
            simulator_quality.best_threshold(always, wanted),
        ),
        closed_forms={} if closed is None else ordered(_mixed(closed, asked)),
    )


def measure(
    simulator: SeekerSimulator,
    dialogues: Sequence[Dialogue],
    *,
    counts: Mapping[int, int],
    attributes: Attributes,
    threshold: float,
    closed: ItemScorer | None = None,
    split: str = "test",
    seeds: tuple[int, ...] = (),
) -> list[Result]:
    """All numbers of one simulator and of what it is compared with, with intervals over dialogues; see `cases`."""
    found = cases(simulator, dialogues, counts=counts, attributes=attributes, threshold=threshold, closed=closed)
    results = []
    for system, metrics in found._asdict().items():
        for metric, sums in metrics.items():
            estimate = simulator_quality.perplexity(sums) if metric == "perplexity" else bootstrap.mean(sums)
            results.append(
                Result(
                    name=f"{system}/{metric}",
                    value=estimate.value,
                    n=estimate.n,
                    protocol=PROTOCOL,
                    split=split,
                    interval=estimate.interval,
                    seeds=seeds if system == "simulator" else (),
                    definition=definition(metric, threshold),
                )
            )
    return results


def definition(metric: str, threshold: float) -> str:
    """One sentence that says what a number is.

    Raises: ValueError for another name.
    """
    if metric.startswith("hr@"):
        return (
            f"share of (moment, liked item) cases in which it is among the {metric[3:]} best of the items not named yet"
        )
    known = {
        "attribute_f1": f"F1 of attributes of what will still be liked, said from probability {threshold} on (chosen on the "
        "validation split; popularity's on the judged cases), mean over moments before recommender messages",
        "auc": f"chance that a liked item scores above one of the {simulator_quality.MATCHED} items of nearest popularity, ties "
        "half; mean over (moment, liked item) cases",
        "perplexity": "exp of the mean negative log-likelihood per token of the seeker's messages that name no new item",
    }
    if metric not in known:
        raise ValueError(f"metric {metric!r}: expected hr@k, {', '.join(known)}")
    return known[metric]


def spoken_nll(simulator: SeekerSimulator, dialogues: Sequence[Dialogue]) -> DialogueSums:
    """Negative log-likelihood and number of the seekers' tokens by dialogue, given all that was said before them.

    Messages that name an item for the first time are left out: a simulator does not say them.
    """
    setup, config = simulator.setup, simulator.config
    keys: list[str] = []
    texts = []
    for dialogue in dialogues:
        own = seeker_texts(setup.vocab, [as_heard(dialogue)], max_tokens=config.max_tokens, telling={})
        texts += own
        keys += [dialogue.dialogue_id] * len(own)
    if not texts:
        return DialogueSums((), np.zeros(0), np.zeros(0))
    no_attributes = Attributes((), np.zeros((setup.vocab.n_items, 0), bool))
    batches = SeekerBatches.of(
        texts, no_attributes, setup.vocab, buckets=config.buckets, tokens_per_batch=config.tokens_per_batch, seed=0
    )

    @jax.jit
    def judged(trunk: Params, batch: SeekerBatch) -> Array:
        hidden = gpt2.hidden_states(setup.network, trunk, batch.tokens, batch.mask)
        return jnp.sum(language_nll(hidden, trunk["wte"], batch, setup.agent.grammar), axis=1)

    sums, counts = np.zeros(len(texts)), np.array([sum(text.learnt) for text in texts], np.float64)
    for step, (_, indices) in enumerate(batches.order.plan(0)):
        found = np.asarray(judged(simulator.params["trunk"], batches.batch(step)), np.float64)
        sums[list(indices)] = found[: len(indices)]
    names, place = np.unique(np.array(keys), return_inverse=True)
    return DialogueSums(
        tuple(names.tolist()),
        np.bincount(place, weights=sums, minlength=len(names)),
        np.bincount(place, weights=counts, minlength=len(names)),
    )


def _wanted(asked: Asked, attributes: Attributes) -> np.ndarray:
    return np.stack([attributes.of(gold) for gold in asked.gold])


def _mixed(closed: ItemScorer, asked: Asked) -> np.ndarray:
    """Scores of the mixture of closed forms at all moments. [N, I]"""
    fitted = mixture.mix({name: closed.parts[name] for name in mixture.WEIGHTS})
    parts = [asked.histories[start : start + BATCH] for start in range(0, len(asked.histories), BATCH)]
    return np.concatenate([mixture.scores(fitted, contexts_of(part, closed.catalogue)) for part in parts])


def _in_batches(simulator: SeekerSimulator, asked: Asked) -> tuple[np.ndarray, np.ndarray]:
    """Item log-probabilities and attribute probabilities of all moments."""
    parts = [asked.histories[start : start + BATCH] for start in range(0, len(asked.histories), BATCH)]
    found = [simulator.expects(part) for part in parts]
    return np.concatenate([one.items for one in found]), np.concatenate([one.attributes for one in found])

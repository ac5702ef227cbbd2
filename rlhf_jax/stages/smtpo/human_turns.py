"""Turns of human dialogues that SMTPO learns from, and where its conversations begin: what the seeker will still like is known there."""

from collections.abc import Sequence
from typing import NamedTuple

from rlhf_jax.data.windows import is_empty
from rlhf_jax.feedback.recommendation import liked_from
from rlhf_jax.interfaces import Corpus, Dialogue
from rlhf_jax.runtime.files import RunError


class ReasonedTurn(NamedTuple):
    """A recommender's message before which it is known what the seeker will still like."""

    dialogue: Dialogue
    index: int
    """Place of the message."""
    gold: tuple[int, ...]
    """Item ids that the seeker likes and nobody has named, in the order in which they come."""


def reasoned_turns(dialogues: Sequence[Dialogue]) -> list[ReasonedTurn]:
    """The recommender's messages with items, after a context, of seekers who will like something new."""
    found = []
    for dialogue in dialogues:
        has_context = False
        for index, message in enumerate(dialogue.messages):
            if has_context and message.role == "recommender" and message.items:
                gold = liked_from(dialogue, index)
                if gold:
                    found.append(ReasonedTurn(dialogue, index, gold))
            has_context = has_context or not is_empty(message)
    return found


def openings_of(dialogues: Sequence[Dialogue]) -> list[ReasonedTurn]:
    """Where conversations begin: of each dialogue the first of its `reasoned_turns`, if the recommender named nothing before."""
    first: dict[str, ReasonedTurn] = {}
    for turn in reasoned_turns(dialogues):
        before = turn.dialogue.messages[: turn.index]
        if not any(message.role == "recommender" and message.items for message in before):
            first.setdefault(turn.dialogue.dialogue_id, turn)
    return list(first.values())


def check_liked(corpus: Corpus, *, max_items: int, turns: int, source: str) -> None:
    """Whether conversations can be learnt and judged on a corpus; to be asked before anything is trained.

    Args:
      max_items: length of a list.
      turns: of a conversation at most, each of which names a list.
      source: the option that named the corpus, with its value.
    Raises: RunError naming the split of which no seeker is known to like what the recommender named first, or the numbers
      of a catalogue that cannot fill a list.
    """
    splits, named = {"training": corpus.train, "validation": corpus.validation, "test": corpus.test}, 0
    for name, dialogues in splits.items():
        # Of the validation split turns are read, of the others also where conversations begin.
        openings = openings_of(dialogues)
        if not (reasoned_turns(dialogues) if name == "validation" else openings):
            forms = sum(bool(dialogue.seeker_labels) for dialogue in dialogues)
            raise RunError(
                f"{source}: no seeker of the {len(dialogues)} {name} dialogues is known to like what the recommender named first "
                f"({forms} of them have a seeker's form, `initiatorQuestions`): SMTPO learns from `liked` in these forms"
            )
        before = ({item for said in one.dialogue.messages[: one.index] for item in said.items} for one in openings)
        named = max(named, max(map(len, before), default=0))
    if len(corpus.items) <= named + turns * max_items:
        raise RunError(
            f"--data.max-items {max_items}, --conversations.turns {turns}: openings have named up to {named} items, and a catalogue of "
            f"{len(corpus.items)} leaves nothing to choose from in the last turn ({source})"
        )

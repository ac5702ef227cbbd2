"""Exchanges that a person judged: a system message, the user's answer where there is one, and the judgement.

Three judgements, one function each:

    satisfaction   USS's score of the user turn that answers a system turn; one case an exchange
    liked          the seeker's form about an item the recommender named first; one case an item, at its first mention
    rating         a rater's 1–5 for a system's reply to a given context; one case a reply (no user turn follows)
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rlhf_jax.data.human_ratings import RatedReply, ScoredMessage
from rlhf_jax.data.turns import Turn, next_user_turn, turns
from rlhf_jax.interfaces import Dialogue, Message


class JudgedExchange(NamedTuple):
    """One exchange with what a person thought of it."""

    dialogue: Dialogue
    message_index: int
    """The system message: the last before the reply, or the one that names the item."""
    reply: Turn | None
    judgement: float


def satisfaction_cases(
    dialogues: Iterable[Dialogue], scored: Mapping[str, Sequence[ScoredMessage]]
) -> list[JudgedExchange]:
    """Exchanges of the dialogues that USS scored, with the mean score of the user's turn.

    Raises: ValueError naming a dialogue whose messages do not match USS's, one by one.
    """
    cases = []
    for dialogue in dialogues:
        messages = scored.get(dialogue.dialogue_id)
        if messages is None:
            continue
        if [one.role for one in messages] != [one.role for one in dialogue.messages]:
            raise ValueError(
                f"dialogue {dialogue.dialogue_id}: {len(dialogue.messages)} messages whose speakers are not those of USS's "
                f"{len(messages)}"
            )
        for index, reply in exchanges(dialogue):
            scores = [score for place in reply.message_indices if (score := messages[place].satisfaction) is not None]
            cases.append(JudgedExchange(dialogue, index, reply, sum(scores) / len(scores)))
    return cases


def liked_cases(dialogues: Iterable[Dialogue]) -> list[JudgedExchange]:
    """Items that the recommender named before the seeker did, with the seeker's 0 or 1 about them."""
    cases = []
    for dialogue in dialogues:
        named: set[int] = set()
        for index, message in enumerate(dialogue.messages):
            for item in dict.fromkeys(message.items):
                label = dialogue.seeker_labels.get(item)
                if item in named or message.role != "recommender" or label is None or label.liked not in (0, 1):
                    continue
                if (reply := next_user_turn(dialogue, index)) is not None:
                    cases.append(JudgedExchange(dialogue, index, reply, float(label.liked)))
            named.update(message.items)
    return cases


def rating_cases(replies: Sequence[RatedReply]) -> list[JudgedExchange]:
    """Replies as the last message of their context; the dialogue's id is the fragment's."""
    cases = []
    for reply in replies:
        said = [*reply.context, ("recommender", reply.text)]
        messages = tuple(Message(role, (text,), place) for place, (role, text) in enumerate(said))
        dialogue = Dialogue(reply.fragment, messages, {}, {})
        cases.append(JudgedExchange(dialogue, len(messages) - 1, None, float(reply.rating)))
    return cases


def exchanges(dialogue: Dialogue) -> list[tuple[int, Turn]]:
    """The last message of every system turn that is answered, with the answer."""
    found = turns(dialogue)
    return [
        (first.message_indices[-1], second)
        for first, second in itertools.pairwise(found)
        if first.role == "recommender"
    ]

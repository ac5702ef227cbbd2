"""Turns: consecutive messages of one speaker, joined where a reaction as a whole is meant."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlhf_jax.data.windows import is_empty
from rlhf_jax.interfaces import Dialogue, Message, Role


class Turn(NamedTuple):
    """Consecutive messages of one speaker; empty messages neither make nor break a turn."""

    role: Role
    messages: tuple[Message, ...]
    message_indices: tuple[int, ...]
    """Places of these messages in the dialogue."""

    @property
    def parts(self) -> tuple[str | int, ...]:
        """Words and items of all messages, a space between two messages."""
        parts: list[str | int] = []
        for message in self.messages:
            parts.extend([" ", *message.parts] if parts else message.parts)
        return tuple(parts)

    @property
    def items(self) -> tuple[int, ...]:
        """Item ids in order of mention, repeats included."""
        return tuple(item_id for message in self.messages for item_id in message.items)

    @property
    def time_offset(self) -> int | None:
        """When the turn's first message was sent, seconds since the dialogue began; None where not recorded."""
        return self.messages[0].time_offset


class AnsweredTurn(NamedTuple):
    """A system message that got an answer: what a weak label judges."""

    dialogue: Dialogue
    message_index: int
    """Place of the system message in its dialogue."""
    reply: Turn
    """The user's next turn."""
    dialogue_index: int = 0
    """Place of the dialogue among those that are looked at."""

    @property
    def message(self) -> Message:
        """The system message."""
        return self.dialogue.messages[self.message_index]

    @property
    def context(self) -> tuple[Message, ...]:
        """All messages before it."""
        return self.dialogue.messages[: self.message_index]


def turns(dialogue: Dialogue) -> tuple[Turn, ...]:
    """All turns of a dialogue in order; neighbouring turns have different speakers."""
    runs: list[list[int]] = []
    for index, message in enumerate(dialogue.messages):
        if is_empty(message):
            continue
        if runs and dialogue.messages[runs[-1][-1]].role == message.role:
            runs[-1].append(index)
        else:
            runs.append([index])
    return tuple(
        Turn(dialogue.messages[run[0]].role, tuple(dialogue.messages[index] for index in run), tuple(run))
        for run in runs
    )


def next_user_turn(dialogue: Dialogue, message_index: int) -> Turn | None:
    """The seeker's first turn after a message: the reaction to it.

    Further messages of the recommender in between belong to what is reacted to.

    Args:
      dialogue: the conversation.
      message_index: place of a recommender message.
    Returns: the turn, or None if the seeker says nothing more.
    Raises:
      ValueError: if there is no such message or it is the seeker's.
    """
    messages = dialogue.messages
    if not 0 <= message_index < len(messages):
        raise ValueError(f"dialogue {dialogue.dialogue_id} has {len(messages)} messages, none at {message_index}")
    if messages[message_index].role != "recommender":
        raise ValueError(f"dialogue {dialogue.dialogue_id}, message {message_index} is the seeker's")
    found: list[int] = []
    for index in range(message_index + 1, len(messages)):
        message = messages[index]
        if is_empty(message):
            continue
        if message.role == "seeker":
            found.append(index)
        elif found:
            break
    return Turn("seeker", tuple(messages[index] for index in found), tuple(found)) if found else None


def answered_turns(dialogues: Sequence[Dialogue]) -> list[AnsweredTurn]:
    """Every system message that got an answer, in order of dialogues and messages."""
    return [
        AnsweredTurn(dialogue, index, reply, number)
        for number, dialogue in enumerate(dialogues)
        for index, message in enumerate(dialogue.messages)
        if message.role == "recommender" and (reply := next_user_turn(dialogue, index)) is not None
    ]


def spell(parts: Sequence[str | int], titles: Mapping[int, str] | None = None, *, placeholder: str = "<movie>") -> str:
    """Words and items as one readable text with single spaces.

    Args:
      parts: of a message or turn.
      titles: what to write for an item; those without a title appear as `placeholder`.
      placeholder: as text metrics use it.
    """
    pieces = [part if isinstance(part, str) else f" {(titles or {}).get(part) or placeholder}" for part in parts]
    return " ".join("".join(pieces).split())

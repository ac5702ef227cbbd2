"""Live feedback: fresh training users of the world talk with a policy, and what was said is logged as the log is.

Users of the training population are numbered; those below `n_users` are behind the logged files, those above are fresh. The
evaluation meets another population (`closed-loop`), so that no user is ever in both. What is written has no form: people who
talk with a system fill in none, and what they thought is left to what they said and when.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax.interfaces import Dialogue, Message
from rlhf_jax.simulators.conversation import History, Reaction, WorldUsers
from rlhf_jax.simulators.world import Catalogue, WorldConfig, make_catalogue, make_taste, stream
from rlhf_jax.simulators.world_dialogues import LoggedDialogue, official_record
from rlhf_jax.simulators.world_user import WorldUser

SPLIT = "train"
FIRST_DIALOGUE_ID = 9_000_000
"""Above those of all logged dialogues and of the other populations."""
LAST_USER = 900_000
"""Users have ids of their own up to this number."""


class LiveUsers(WorldUsers):
    """Fresh users of the training population; they remember how long they stayed with each turn."""

    def __init__(self, config: WorldConfig, seed: int, numbers: range) -> None:
        """Users of these numbers.

        Raises: ValueError for no user, or a number that is behind the log or beyond the last one.
        """
        if not len(numbers) or numbers[0] < config.n_users or numbers[-1] >= LAST_USER:
            raise ValueError(
                f"live users {numbers.start} to {numbers.stop} of step {numbers.step}: at least one is needed, from "
                f"{config.n_users} (the users before are behind the log) to below {LAST_USER}"
            )
        self.catalogue: Catalogue = make_catalogue(config, seed)
        tastes = [make_taste(config, self.catalogue, seed, split=SPLIT, index=number) for number in numbers]
        self.numbers = numbers
        self.users = [WorldUser(config, self.catalogue, taste) for taste in tastes]
        self._streams = [stream(seed, "live/dialogue", number) for number in numbers]
        self._pauses = [stream(seed, "live/pause", number) for number in numbers]
        self.seen: list[list[Reaction]] = [[] for _ in numbers]
        """What each user did with each turn so far, the truth about it included."""

    def answer(
        self, numbers: Sequence[int], histories: Sequence[History], replies: Sequence[Message]
    ) -> list[Reaction]:
        """See `Users`."""
        reactions = super().answer(numbers, histories, replies)
        for number, reaction in zip(numbers, reactions, strict=True):
            self.seen[number].append(reaction)
        return reactions

    def logged(self, dialogues: Sequence[History]) -> tuple[LoggedDialogue, ...]:
        """What was said, with times as the log has them: the system takes 4 to 20 seconds to speak, the user his dwell.

        Args:
          dialogues: of `converse` with these users, in their order. [N]
        Raises: ValueError for dialogues of another crowd.
        """
        if [len(one) for one in dialogues] != [1 + 2 * len(seen) for seen in self.seen]:
            raise ValueError("these dialogues are not those that the users were in")
        return tuple(self._one(place, history) for place, history in enumerate(dialogues))

    def _one(self, place: int, history: History) -> LoggedDialogue:
        number = FIRST_DIALOGUE_ID + self.numbers[place]
        clock, messages = 0.0, []
        utilities: dict[int, float] = {}
        accepted: dict[int, int] = {}
        for index, message in enumerate(history):
            if message.role == "recommender":
                clock += self._pauses[place].uniform(4, 20)
            elif index:
                reaction = self.seen[place][index // 2 - 1]
                clock += reaction.dwell_seconds
                utilities[index - 1] = reaction.utility
                if reaction.accepted:
                    accepted[index - 1] = message.items[-1]
            messages.append(Message(message.role, message.parts, number * 100 + index, round(clock)))
        dialogue = Dialogue(str(number), tuple(messages), {}, {}, "world")
        return LoggedDialogue(dialogue, self.users[place].taste.user_id, utilities, accepted)


def write_live(path: Path, logged: Sequence[LoggedDialogue], catalogue: Catalogue) -> Path:
    """Writes dialogues as lines of the official schema, whole or not at all; returns the path."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(official_record(entry, catalogue)) + "\n" for entry in logged)
    partial.replace(path)
    return path

"""Human judgements that signals are measured against: satisfaction of user turns (USS) and ratings of replies.

USS: `ReDial.txt`, lines `role<TAB>text<TAB><TAB>scores`, dialogues divided by blank lines, the last line of each the overall
score; `ReDial_conversation_ids.tsv` says which ReDial dialogue each is, message by message.
Source: Sun et al. 2021, SIGIR, arXiv:2105.03748. Three to seven annotators scored every user turn from 1 to 5.

Response ratings: `ratings.jsonl`, three systems' replies to one context, each rated from 1 (meaningless) to 5.
Source: Manzoor and Jannach 2021, 2022.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.data.lines import json_of, malformed, number_of, raw_lines, read_table, text_lines
from rlhf_jax.data.typography import plain
from rlhf_jax.interfaces import Role

ROLES: dict[str, Role] = {"USER": "seeker", "SYSTEM": "recommender"}


class ScoredMessage(NamedTuple):
    """One message of a USS dialogue."""

    role: Role
    text: str
    satisfaction: float | None
    """Mean over annotators, 1 to 5; None for the recommender's messages."""


class RatedReply(NamedTuple):
    """One rater's rating of one system's reply."""

    fragment: str
    """Study and dialogue fragment: cases of one fragment belong together."""
    line: int
    """The three replies that one rater compared have the same number."""
    system: str
    context: tuple[tuple[Role, str], ...]
    text: str
    rating: int


def read_uss(folder: str | Path) -> dict[str, tuple[ScoredMessage, ...]]:
    """Satisfaction by ReDial conversation id, for the dialogues whose id is known.

    Raises:
      FileNotFoundError: naming the missing file.
      ValueError: naming file, line, field and value.
    """
    folder = Path(folder)
    path, ids_path = folder / "ReDial.txt", folder / "ReDial_conversation_ids.tsv"
    dialogues = list(_uss_dialogues(path))
    found: dict[str, tuple[ScoredMessage, ...]] = {}
    places: set[int] = set()
    for line, row in read_table(ids_path, ("dialogue", "conversationId"), delimiter="\t", quoted=False):
        conversation = row["conversationId"]
        try:
            place = number_of(row["dialogue"], "dialogue", "a number")
            number_of(conversation, "conversationId", "a number")
            if place >= len(dialogues) or place in places:
                raise malformed("dialogue", place, f"one of {len(dialogues)} dialogues, each once")
            if conversation in found:
                raise malformed("conversationId", conversation, "an id not seen before")
        except ValueError as error:
            raise ValueError(f"{ids_path}, line {line}: {error}") from None
        places.add(place)
        found[conversation] = dialogues[place]
    return found


def _uss_dialogues(path: Path) -> Iterator[tuple[ScoredMessage, ...]]:
    """Every dialogue in order, without its overall score."""
    messages: list[ScoredMessage] = []
    for number, line in (*text_lines(path), (0, "")):
        if not line.strip():
            if messages:
                yield tuple(messages)
            messages = []
            continue
        fields = line.split("\t")
        if len(fields) != 4 or fields[0] not in ROLES:
            raise ValueError(
                f"{path}, line {number}: {malformed('role', line, 'USER or SYSTEM and three more fields')}"
            )
        role, text, _, scores = fields
        if role == "USER" and text == "OVERALL":
            continue
        values = [score.strip() for score in scores.split(",")] if role == "USER" else []
        if any(value not in ("1", "2", "3", "4", "5") for value in values):
            raise ValueError(f"{path}, line {number}: {malformed('scores', scores, 'numbers from 1 to 5')}")
        mean = sum(map(int, values)) / len(values) if values else None
        messages.append(ScoredMessage(ROLES[role], plain(text), mean))


def read_response_ratings(path: str | Path, *, passed_check: bool = True) -> list[RatedReply]:
    """Every rating of every reply.

    Args:
      path: `ratings.jsonl`.
      passed_check: only raters who gave the attention item the answer it asked for; others do not count.
    Raises:
      FileNotFoundError: naming the missing file.
      ValueError: naming file, line, field and value.
    """
    path, found = Path(path), []
    for number, line in raw_lines(path):
        if not line.strip():
            continue
        try:
            record = json_of(line)
            if not isinstance(record, dict):
                raise malformed("(the whole line)", record, "an object")
            found += _replies(record, number) if record["rater_passed_check"] is True or not passed_check else []
        except (KeyError, TypeError, AttributeError) as error:
            start = line[:60].decode("utf-8", "replace")
            raise ValueError(f"{path}, line {number}: field {error} is missing or malformed: {start!r}") from error
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return found


def _replies(record: dict[str, Any], line: int) -> Iterator[RatedReply]:
    roles: dict[str, Role] = {"user": "seeker", "assistant": "recommender"}
    context = tuple(
        (roles[message["role"]], _text(message["text"], f"context[{place}].text"))
        for place, message in enumerate(record["context"])
    )
    for system, response in record["responses"].items():
        if type(response["rating"]) is not int or not 1 <= response["rating"] <= 5:
            raise malformed(f"responses.{system}.rating", response["rating"], "1 to 5")
        fragment = f"{record['study']}/{record['dialog_id']}"
        text = _text(response["text"], f"responses.{system}.text")
        yield RatedReply(fragment, line, system, context, text, response["rating"])


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise malformed(field, value, "a string")
    return plain(value)

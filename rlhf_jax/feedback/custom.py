"""Rewards from outside the package: `--reward.function package.module:name` joins the weak labels as one more component.

    def name(turns: Sequence[AnsweredTurn], items: Mapping[int, Item]) -> Sequence[float | None]

It is called with any number of system messages that got an answer, and the catalogue; it returns one number for each, or
None where the turn says nothing. `turn.context` are the messages before, `turn.message` the one that is judged and
`turn.reply` the user's answer; `rlhf_jax.data.turns.spell(turn.message.parts, titles)` writes a message as text. The number
may be in any unit: it is z-scored on the training split, the reward model learns it from context and message, and PPO is
paid by the reward model. A number may depend on its own turn alone, and the same turn must always get the same number.
"""

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from rlhf_jax.data.turns import AnsweredTurn
from rlhf_jax.feedback.labelling import Floats, Signal
from rlhf_jax.interfaces import Item

RewardFunction = Callable[[Sequence[AnsweredTurn], Mapping[int, Item]], Sequence[float | None]]
"""Turns and catalogue to one number, or None, for each turn."""
PROBED = 32
"""Turns of the training split that a function is tried on before anything is trained."""


class Reference(NamedTuple):
    """Where a function is: `package.module:name`."""

    module: str
    name: str
    """Of the function, and of the component it makes."""

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"


def parse(text: str) -> Reference:
    """Reads `package.module:name`.

    Raises: ValueError for another form.
    Examples:
      >>> parse("my_rewards:brevity").name
      'brevity'
    """
    module, colon, name = text.partition(":")
    if not colon or not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"--reward.function {text}: expected package.module:name")
    return Reference(module, name)


def load(text: str) -> RewardFunction:
    """Imports a function from the Python path or the current folder.

    Raises: ValueError in one line: not importable, no such name, not a function of two arguments.
    """
    module, name = found = parse(text)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # A script's own folder is there in its place.
    try:
        function = getattr(importlib.import_module(module), name, None)
    except Exception as error:
        raise _error(found, f"{module} cannot be imported: {_told(error)}") from error
    if function is None:
        raise _error(found, f"the module {module} has no {name}")
    if not callable(function):
        raise _error(found, f"{name} is of type {type(function).__name__}, not a function")
    try:
        inspect.signature(function).bind((), {})
    except (TypeError, ValueError) as error:
        raise _error(
            found,
            f"it must take two arguments, (turns, items), and labels turns of dialogues, not what is sampled: {error}",
        ) from error
    return cast(RewardFunction, function)


def as_signal(text: str, function: RewardFunction, items: Mapping[int, Item]) -> Signal:
    """The function as a signal, every value checked. The signal raises ValueError in one line, naming the turn."""
    reference = parse(text)

    def signal(turns: Sequence[AnsweredTurn]) -> Floats:
        try:
            returned = function(turns, items)
        except Exception as error:
            raise _error(reference, f"it raised {_told(error)} (for {len(turns)} turns)") from error
        return _checked(reference, returned, turns)

    return signal


def probe(text: str, turns: Sequence[AnsweredTurn], items: Mapping[int, Item]) -> None:
    """Tries a function on turns spread over the given ones, twice.

    Raises: ValueError in one line, also where the second answer is another one.
    """
    signal = as_signal(text, load(text), items)
    some = [turns[place] for place in sorted({place * len(turns) // PROBED for place in range(PROBED)})]
    first, second = signal(some), signal(some)
    if not np.array_equal(first, second, equal_nan=True):
        raise _error(parse(text), "it gave the same turns other numbers when it was asked again")


def _checked(reference: Reference, returned: Any, turns: Sequence[AnsweredTurn]) -> Floats:
    expected = f"one number or None for each of {len(turns)} turns is needed"
    if isinstance(returned, str | bytes | Mapping) or not hasattr(returned, "__len__"):
        raise _error(reference, f"it returned a {type(returned).__name__}; {expected}")
    shape = np.shape(returned) if hasattr(returned, "shape") else (len(returned),)
    if shape != (len(turns),):
        raise _error(reference, f"it returned the shape {shape}; {expected}")
    values = np.full(len(turns), np.nan)
    for place, (value, turn) in enumerate(zip(returned, turns, strict=True)):
        if value is None:
            continue
        where = f"for message {turn.message_index} of dialogue {turn.dialogue.dialogue_id}"
        try:
            values[place] = float(value)
        except (TypeError, ValueError) as error:
            raise _error(reference, f"it returned {value!r} {where}; {expected}") from error
        if not math.isfinite(values[place]):
            raise _error(reference, f"it returned {values[place]} {where}; None says that a turn has no value")
    return values


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _error(reference: Reference, text: str) -> ValueError:
    return ValueError(f"--reward.function {reference}: {text}")

"""Acceptance: the sentiment of the answer, where the system names an item that is new to the conversation."""

import numpy as np
import pytest

from rlhf_jax.data.turns import answered_turns
from rlhf_jax.feedback.acceptance import fresh_items
from rlhf_jax.feedback.labelling import LabelOptions
from rlhf_jax.feedback.weak_labels import fit_weak_labels
from rlhf_jax.interfaces import Dialogue, Item, ItemLabel, Message

ITEMS = {number: Item(number, f"Title {number}", 2000, (), ()) for number in range(5, 9)}
SCORES = {"great": 0.8, "awful": -0.6, "hm": 0.0, "hi": 0.4}


def dialogue(*lines: tuple[str, tuple[str | int, ...]], liked: int | None = None) -> Dialogue:
    messages = tuple(Message(role, parts, number) for number, (role, parts) in enumerate(lines))
    return Dialogue("1", messages, {} if liked is None else {6: ItemLabel(1, 2, liked)}, {})


def talk(liked: int | None = None) -> Dialogue:
    """Greets, suggests 6, repeats 5 and 6, suggests 7 beside 6; the answers are hi, great, hm, awful."""
    said = (("hello",), ("try ", 6), ("so ", 5, " or ", 6), ("then ", 7, " ", 7, " ", 6))
    lines = [("seeker", ("i like ", 5))]
    for words, answer in zip(said, ("hi", "great", "hm", "awful"), strict=True):
        lines += [("recommender", words), ("seeker", (answer,))]
    return dialogue(*lines, liked=liked)


def labelled(dialogues: list[Dialogue], form: str = "shift") -> np.ndarray:
    options = LabelOptions(signals=("acceptance",), sentiment=form)
    labeller = fit_weak_labels(dialogues, ITEMS, options, scorer=lambda text: SCORES.get(text, 0.1))
    return labeller(dialogues).raw[:, 0]


def test_fresh_items_are_those_nobody_named_each_once() -> None:
    assert [fresh_items(turn) for turn in answered_turns([talk()])] == [(), (6,), (), (7,)]


@pytest.mark.parametrize("form", ["shift", "level"])
def test_it_is_the_level_of_the_answer_to_a_fresh_suggestion_alone(form: str) -> None:
    np.testing.assert_array_equal(labelled([talk()], form), [np.nan, 0.8, np.nan, -0.6])


def test_the_form_is_not_read() -> None:
    np.testing.assert_array_equal(labelled([talk(liked=0)]), labelled([talk(liked=1)]))


def test_where_nobody_suggests_there_is_no_acceptance() -> None:
    with pytest.raises(ValueError, match="no training row has a value for acceptance"):
        labelled([dialogue(("seeker", ("hi",)), ("recommender", ("hello",)), ("seeker", ("hm",)))])

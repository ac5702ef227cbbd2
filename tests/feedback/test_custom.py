"""Rewards from outside: what joins the labels, and what each mistake is told, before anything is trained."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.data.turns import answered_turns
from rlhf_jax.feedback import custom
from rlhf_jax.feedback.components import COMPONENTS, check_names, weights_of
from rlhf_jax.feedback.labelling import LabelOptions, Signal, Training
from rlhf_jax.feedback.signals import SIGNALS
from rlhf_jax.feedback.weak_labels import LabelTable, fit_weak_labels
from rlhf_jax.interfaces import Dialogue, Item, Message

ITEMS = {5: Item(5, "Film", genres=("comedy",))}
MODULE = """
import itertools, math
import numpy as np
number = 3
calls = itertools.count()
def titles(turns, items): return [float(len(items[i].title)) for t in turns for i in t.message.items[:1]] if turns else []
def words(turns, items): return np.array([len(turn.reply.parts) for turn in turns])
def some(turns, items): return [None if place % 2 else 1.0 + place for place, _ in enumerate(turns)]
def one(turns): return [0.0 for _ in turns]
def short(turns, items): return [0.0]
def table(turns, items): return np.zeros((len(turns), 2))
def single(turns, items): return 1.0
def text(turns, items): return ["good" for _ in turns]
def nan(turns, items): return [math.nan for _ in turns]
def inf(turns, items): return np.full(len(turns), np.inf)
def fickle(turns, items): return [float(next(calls)) for _ in turns]
def broken(turns, items): return turns[0].nothing
"""


def dialogues(n: int = 12) -> list[Dialogue]:
    said = (("seeker", ("hello there film",)), ("recommender", ("try this film ", 5)), ("seeker", ("great film",)))
    messages = tuple(
        Message(role, parts, place, time_offset=7 * place) for place, (role, parts) in enumerate((*said, *said[1:]))
    )
    return [Dialogue(str(number), messages, {}, {}) for number in range(n)]


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`own_signals` in the current folder, as a user would have it."""
    (tmp_path / "own_signals.py").write_text(MODULE)
    (tmp_path / "half_written.py").write_text("def f(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("own_signals", None)


@pytest.mark.parametrize("name", ["titles", "words", "some"])
def test_what_answers_as_it_should_passes(name: str) -> None:
    custom.probe(f"own_signals:{name}", answered_turns(dialogues()), ITEMS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("own_signals", "expected package.module:name"),
        ("own_signals:", "expected package.module:name"),
        ("own signals:words", "expected package.module:name"),
        ("not_there:words", "not_there cannot be imported: ModuleNotFoundError: No module named 'not_there'"),
        ("half_written:f", "half_written cannot be imported: SyntaxError"),
        ("own_signals:wards", "the module own_signals has no wards"),
        ("own_signals:number", "number is of type int, not a function"),
        (
            "own_signals:one",
            r"it must take two arguments, \(turns, items\), and labels turns of dialogues, not what is sampled",
        ),
        ("own_signals:short", r"it returned the shape \(1,\); one number or None for each of 24 turns"),
        ("own_signals:table", r"it returned the shape \(24, 2\)"),
        ("own_signals:single", "it returned a float; one number or None for each of 24 turns"),
        ("own_signals:text", "it returned 'good' for message 1 of dialogue 0"),
        ("own_signals:nan", "it returned nan for message 1 of dialogue 0; None says"),
        ("own_signals:inf", "it returned inf for message 1"),
        ("own_signals:fickle", "it gave the same turns other numbers when it was asked again"),
        ("own_signals:broken", "it raised AttributeError: 'AnsweredTurn' object has no attribute 'nothing'"),
    ],
)
def test_each_mistake_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        custom.probe(text, answered_turns(dialogues()), ITEMS)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"--reward.function {text}: ")


def test_a_function_is_one_more_component(tmp_path: Path) -> None:
    labeller = fit_weak_labels(dialogues(), ITEMS, functions=("own_signals:some", "own_signals:words"))
    table = labeller(dialogues(3))
    assert table.names == labeller.standardiser.names == (*COMPONENTS, "some", "words")
    np.testing.assert_array_equal(table.raw[:, 3], [1.0, np.nan, 3.0, np.nan, 5.0, np.nan])
    np.testing.assert_array_equal(table.mask[:, 3], [True, False] * 3)
    np.savez(tmp_path / "labels.npz", **table.arrays())
    assert LabelTable.load(tmp_path / "labels.npz").names == table.names
    without = fit_weak_labels(dialogues(), ITEMS)(dialogues(3))
    np.testing.assert_array_equal(table.raw[:, :3], without.raw)
    assert list(without.arrays()) == ["dialogue_ids", "dialogue_indices", "message_indices", "raw", "z"]


def test_a_signal_of_the_package_is_a_line_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(training: Training) -> Signal:
        longest = max(len(turn.context) for turn in training.turns)
        return lambda turns: np.array([len(turn.context) / longest for turn in turns])

    monkeypatch.setitem(SIGNALS, "patience", fit)  # pyright: ignore[reportArgumentType] - read only for others
    options = LabelOptions(signals=("patience", "sentiment"))
    table = fit_weak_labels(dialogues(), ITEMS, options)(dialogues(2))
    assert table.names == ("patience", "sentiment")
    np.testing.assert_allclose(table.raw[:, 0], [1 / 3, 1, 1 / 3, 1])
    with pytest.raises(ValueError, match="there is no signal 'patients'; there are engagement, relevance, sentiment"):
        fit_weak_labels(dialogues(), ITEMS, dataclasses.replace(options, signals=("patients",)))


def test_weights_fit_the_names() -> None:
    assert weights_of(COMPONENTS, (0.5, 0.0, 2.0)) == (0.5, 0.0, 2.0)
    assert weights_of(("a", "b", "c", "d"), (1 / 3, 1 / 3, 1 / 3)) == (0.25,) * 4
    with pytest.raises(ValueError, match="has 3 numbers for 4 components: give one each, in the order a, b, c, d"):
        weights_of(("a", "b", "c", "d"), (1.0, 0.0, 0.0))


@pytest.mark.parametrize("names", [(), ("a", "a"), ("reward",), ("a b",)])
def test_names_that_cannot_be(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError):
        check_names(names)

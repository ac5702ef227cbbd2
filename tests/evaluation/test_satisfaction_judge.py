"""The satisfaction judge: its arithmetic against the formula, what it reads, and that it comes back from the disk."""

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.evaluation import satisfaction_judge
from rlhf_jax.evaluation.satisfaction_judge import JudgedTurn, SatisfactionJudge, choose_penalty, fit_judge, part_texts
from rlhf_jax.interfaces import Message, Role

TITLES = {5: "Scarface (1983)", 6: "Alien"}
PRAISE, SCORN = ("you will love this great western", "no idea sorry")


def said(role: Role, *parts: str | int) -> Message:
    return Message(role, parts, 0)


def turn(number: int, reply: str, satisfaction: float, *, user: str = "i like horses") -> JudgedTurn:
    history = (said("recommender", "hello"), said("seeker", user))
    return JudgedTurn(str(number), history, said("recommender", reply, 5), (said("seeker", "ok"),), satisfaction)


@pytest.fixture(scope="module")
def planted() -> list[JudgedTurn]:
    draw = np.random.default_rng(0)
    moods = draw.integers(0, 2, 60)
    return [
        turn(n // 2, (SCORN, PRAISE)[mood], float(2 + 2 * mood + draw.normal() / 10)) for n, mood in enumerate(moods)
    ]


@pytest.fixture(scope="module")
def judge(planted: list[JudgedTurn]) -> SatisfactionJudge:
    return fit_judge(planted, TITLES, penalty=0.3)


def test_parts_of_an_exchange() -> None:
    history = (
        said("seeker", "Hello!"),
        said("recommender", "what do you like?"),
        said("seeker", "crime"),
        said("seeker", "like ", 5),
        said("recommender", "Hm."),
    )
    texts = part_texts(
        [JudgedTurn("1", history, said("recommender", "See ", 6, 7), (said("seeker", "no"),), 3.0)], TITLES
    )
    assert texts["earlier"] == ["s:hello s:! r:what r:do r:you r:like r:?"]
    assert texts["user"] == ["crime like <movie> t:scarface t:1983"]
    # What the recommender said just before belongs to the same turn; an item without a title is a movie all the same.
    assert texts["reply"] == ["hm see <movie> t:alien <movie>"]
    assert texts["answer"] == ["no"]


def test_ridge_on_tf_idf_as_on_paper() -> None:
    words = ("good film", "good good plan", "bad film", "bad bad day", "film day good", "plan")
    turns = [
        JudgedTurn(str(n), (said("seeker", f"want {text}"),), said("recommender", text), (), score)
        for n, (text, score) in enumerate(zip(words, (4.5, 4.0, 2.0, 1.5, 3.5, 3.0), strict=True))
    ]
    model = satisfaction_judge.fit_regression(turns, {}, ("reply", "user"), penalty=0.7, min_df=1)
    columns = []
    for texts in (words, [f"want {text}" for text in words]):
        bags = [[*text.split(), *(" ".join(pair) for pair in itertools.pairwise(text.split()))] for text in texts]
        counts = [Counter(bag) for bag in bags]
        names = sorted({term for bag in bags for term in bag})
        rows = np.zeros((len(texts), len(names)))
        for row, count in enumerate(counts):
            for column, name in enumerate(names):
                if count[name]:
                    frequency = sum(name in other for other in counts)
                    weight = math.log((1 + len(texts)) / (1 + frequency)) + 1
                    rows[row, column] = (1 + math.log(count[name])) * weight
        columns.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    x, y = np.hstack(columns), np.array([one.satisfaction for one in turns])
    centred = x - x.mean(0)
    weights = np.linalg.solve(centred.T @ centred + 0.7 * np.eye(x.shape[1]), centred.T @ (y - y.mean()))
    expected = y.mean() + centred @ weights
    np.testing.assert_allclose(model(part_texts(turns, {})), expected, atol=1e-4)


def test_what_pleases_is_found_and_bounded(planted: list[JudgedTurn], judge: SatisfactionJudge) -> None:
    history = [planted[0].history] * 2
    praised, scorned = judge(history, [said("recommender", PRAISE, 5), said("recommender", SCORN, 5)], TITLES)
    assert praised > scorned + 1
    far = SatisfactionJudge(satisfaction_judge.TextRegression(judge.model.channels, 40.0), judge.fitted_on)
    low = SatisfactionJudge(satisfaction_judge.TextRegression(judge.model.channels, -40.0), judge.fitted_on)
    replies = [said("recommender", PRAISE), said("recommender")]
    assert far(history, replies, TITLES).tolist() == [5.0, 5.0] and low(history, replies, TITLES).tolist() == [1.0, 1.0]


def test_saying_it_twice_is_not_worth_more(planted: list[JudgedTurn], judge: SatisfactionJudge) -> None:
    once, often = judge(
        [planted[0].history] * 2, [said("recommender", "great"), said("recommender", "great. " * 30)], TITLES
    )
    # Only the pair "great great" is new, which no one said while it was fitted.
    assert often == pytest.approx(once, abs=1e-9)


def test_comes_back_from_the_disk(tmp_path: Path, planted: list[JudgedTurn], judge: SatisfactionJudge) -> None:
    np.savez(tmp_path / "judge.npz", **judge.arrays())
    found = SatisfactionJudge.load(tmp_path / "judge.npz")
    assert found.fitted_on == judge.fitted_on == {str(n) for n in range(30)}
    histories, replies = [one.history for one in planted], [one.reply for one in planted]
    np.testing.assert_array_equal(found(histories, replies, TITLES), judge(histories, replies, TITLES))
    np.savez(tmp_path / "other.npz", weights=np.zeros(2))
    with pytest.raises(ValueError, match="other.npz: no satisfaction judge, it holds weights"):
        SatisfactionJudge.load(tmp_path / "other.npz")


def test_a_damaged_file_is_named(tmp_path: Path, judge: SatisfactionJudge) -> None:
    path = tmp_path / "judge.npz"
    np.savez(path, **judge.arrays())
    whole = path.read_bytes()
    for content in (b"", b"no archive", whole[:-60], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"judge\.npz: no readable satisfaction judge"):
            SatisfactionJudge.load(path)
    with pytest.raises(FileNotFoundError):
        SatisfactionJudge.load(tmp_path / "none.npz")


def test_the_penalty_is_chosen_on_dialogues_left_out() -> None:
    # A dialogue's own word tells its score, and nothing about other dialogues; three turns each, so that it is learnt.
    draw = np.random.default_rng(3)
    turns = [turn(n, f"word{n}", score) for n, score in enumerate(draw.uniform(1, 5, 40)) for _ in range(3)]
    _, tried = choose_penalty(turns, {}, ("reply",), penalties=(0.1, 10.0), seed=1)
    inside = satisfaction_judge.fit_regression(turns, {}, ("reply",), penalty=0.1)(part_texts(turns, {}))
    truth = np.array([one.satisfaction for one in turns])
    assert satisfaction_judge.spearman(inside, truth) > 0.95
    assert all(abs(np.nan_to_num(value)) < 0.4 for value in tried.values())


def test_refusals(planted: list[JudgedTurn], judge: SatisfactionJudge) -> None:
    reader = satisfaction_judge.fit_regression(planted, TITLES, ("reply", "answer"), penalty=1.0)
    with pytest.raises(ValueError, match="reads the user's answer as well"):
        SatisfactionJudge(reader, frozenset())
    with pytest.raises(ValueError, match="2 histories for 1 replies"):
        judge([(), ()], [said("recommender", "hello")], TITLES)
    assert judge([], [], TITLES).shape == (0,)
    with pytest.raises(ValueError, match="no judged turn"):
        fit_judge([], TITLES, penalty=1.0)
    with pytest.raises(ValueError, match="no term occurs in at least 3 of the 1 judged turns"):
        fit_judge(planted[:1], TITLES, penalty=1.0)
    with pytest.raises(ValueError, match="1 dialogues cannot make 5 folds"):
        choose_penalty(planted[:2], TITLES, ("reply",))

"""The judge of real dialogues: no leak, made once per content, and its report says what it is worth."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

from rlhf_jax.assessment import satisfaction
from rlhf_jax.data.human_ratings import ScoredMessage, read_uss
from rlhf_jax.data.redial import read_redial
from rlhf_jax.evaluation.satisfaction_judge import JudgedTurn, SatisfactionJudge
from rlhf_jax.interfaces import Corpus, Dialogue
from rlhf_jax.runtime.files import RunError


@pytest.fixture(scope="module")
def unchecked() -> Iterator[None]:
    """Types of hundreds of thousands of messages are not checked one by one."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def corpus(data_dir: Path, unchecked: None) -> Corpus:
    return read_redial(data_dir / "redial")


@pytest.fixture(scope="module")
def scored(data_dir: Path, unchecked: None) -> dict[str, tuple[ScoredMessage, ...]]:
    return read_uss(data_dir / "uss")


@pytest.fixture(scope="module")
def turns(corpus: Corpus, scored: dict[str, tuple[ScoredMessage, ...]]) -> list[JudgedTurn]:
    return satisfaction.judged_turns(corpus, scored)


@pytest.mark.slow
def test_no_judged_dialogue_lies_in_the_test_split(
    corpus: Corpus, scored: dict[str, tuple[ScoredMessage, ...]], turns: list[JudgedTurn]
) -> None:
    test = {dialogue.dialogue_id for dialogue in corpus.test}
    assert len(test) == 1342 and not test & scored.keys() and not test & {turn.dialogue for turn in turns}
    assert len({turn.dialogue for turn in turns}) == 998
    leaky = dataclasses.replace(corpus, test=(*corpus.test, next(d for d in corpus.train if d.dialogue_id in scored)))
    with pytest.raises(RunError, match="1 USS dialogues lie in the test split"):
        satisfaction.judged_turns(leaky, scored)


def test_fitted_and_held_out_dialogues_are_disjoint(turns: list[JudgedTurn]) -> None:
    fitting, held_out = satisfaction.split_by_dialogue(turns)
    inside, outside = ({turn.dialogue for turn in side} for side in (fitting, held_out))
    assert not inside & outside and len(inside | outside) == 998 and len(outside) == 200
    assert len(fitting) + len(held_out) == len(turns)
    again = satisfaction.split_by_dialogue(turns)
    assert [turn.dialogue for turn in again[1]] == [turn.dialogue for turn in held_out]


def test_the_judge_of_a_few_dialogues(corpus: Corpus, turns: list[JudgedTurn]) -> None:
    few = sorted({turn.dialogue for turn in turns})[:150]
    fitting, held_out = satisfaction.split_by_dialogue([turn for turn in turns if turn.dialogue in few])
    judge, report = satisfaction.fit_and_measure(
        fitting, held_out, satisfaction.judge_titles(corpus.items), penalties=(3.0, 30.0), folds=2, replicates=50
    )
    assert judge.fitted_on == {turn.dialogue for turn in fitting}
    assert not judge.fitted_on & {turn.dialogue for turn in held_out}
    found = {result.name: result for result in satisfaction.results(report)}
    answered = found["with the answer/spearman"]
    # The user's own words tell more than anything said before them.
    assert answered.interval is not None and answered.interval[0] > 0
    assert answered.value > found["judge/spearman"].value
    assert 1 <= report["score"]["min"] < report["score"]["max"] <= 5
    assert "satisfaction/spearman_length" in found and found["judge/spearman_length"].n == len(held_out)


def write_uss(folder: Path, dialogues: int) -> None:
    """Scores for the first dialogues of a toy release, whose messages come from U, S, S, U, U."""
    folder.mkdir(exist_ok=True)
    lines = []
    for n in range(dialogues):
        for role in ("USER", "SYSTEM", "SYSTEM", "USER", "USER"):
            lines.append(f"{role}\twords\t\t{f'{n % 5 + 1},{n % 4 + 1}' if role == 'USER' else ''}")
        lines += ["USER\tOVERALL\t\t3,3", ""]
    (folder / "ReDial.txt").write_text("\n".join(lines))
    rows = "".join(f"{n}\t{n + 1}\t5\t5\n" for n in range(dialogues))
    (folder / "ReDial_conversation_ids.tsv").write_text(f"dialogue\tconversationId\ta\tb\n{rows}")


def test_made_once_per_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy(tmp_path / "data", 20)
    judge, report = satisfaction.uss_judge(tmp_path / "data", tmp_path / "cache", replicates=20)
    assert isinstance(judge, SatisfactionJudge) and report["fitting"]["dialogues"] == 16
    assert set(report["provenance"]) == {*satisfaction.FILES, "version", "replicates"}
    kept = {path.name for path in (tmp_path / "cache").iterdir()}
    assert len(kept) == 3 and "uss-judge.lock" in kept
    with monkeypatch.context() as refuse:
        refuse.setattr(satisfaction, "fit_and_measure", lambda *_, **__: pytest.fail("fitted again"))
        again, same = satisfaction.uss_judge(tmp_path / "data", tmp_path / "cache", replicates=20)
    assert same == report and again.fitted_on == judge.fitted_on
    np.testing.assert_array_equal(again.model.channels["reply"].weights, judge.model.channels["reply"].weights)
    known, unknown = (Dialogue(name, (), {}, {}) for name in (min(judge.fitted_on), "unheard of"))
    satisfaction.check_unread(judge, [unknown])
    with pytest.raises(
        RunError, match=f"fitted on 1 of the dialogues it is to judge replies in: .*'{known.dialogue_id}'"
    ):
        satisfaction.check_unread(judge, [unknown, known])
    # Other scores are another judge.
    write_uss(tmp_path / "data" / "uss", 15)
    other, _ = satisfaction.uss_judge(tmp_path / "data", tmp_path / "cache", replicates=20)
    assert len(other.fitted_on) == 12 and len(list((tmp_path / "cache").iterdir())) == 5


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"needs .*uss/ReDial\.txt"):
        satisfaction.uss_judge(tmp_path, tmp_path / "cache")


def write_toy(folder: Path, dialogues: int) -> None:
    """A release of so many training dialogues with scores for each."""
    (folder / "redial").mkdir(parents=True)
    replies = ("you will love the great @20", "sorry, no idea", "what about @30 then?", "hm")

    def record(number: int) -> str:
        texts = [(7, "hi there"), (8, "hello"), (8, replies[number % 4]), (7, "fine"), (7, "bye")]
        messages = [
            {"timeOffset": 0, "text": text, "senderWorkerId": sender, "messageId": place}
            for place, (sender, text) in enumerate(texts)
        ]
        return json.dumps(
            {
                "conversationId": str(number),
                "initiatorWorkerId": 7,
                "respondentWorkerId": 8,
                "messages": messages,
                "movieMentions": {"20": "The Godfather", "30": "Alien (1979)"},
                "initiatorQuestions": [],
                "respondentQuestions": [],
            }
        )

    for split, numbers in (("train", range(1, dialogues + 1)), ("test", range(900, 902))):
        (folder / "redial" / f"{split}_data.jsonl").write_text("".join(f"{record(number)}\n" for number in numbers))
    (folder / "redial" / "movies_with_mentions.csv").write_text(
        'movieId,movieName,nbMentions\r\n20,"The Godfather",1\r\n30,"Alien (1979)",1\r\n'
    )
    write_uss(folder / "uss", dialogues)

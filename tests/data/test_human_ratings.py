"""USS satisfaction and response ratings: joined, checked, and counted on the real files."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_jax.data.human_ratings import read_response_ratings, read_uss
from rlhf_jax.interfaces import Corpus

USS = "\nUSER\thi\t\t3,4\nSYSTEM\thello\t\t\nUSER\tgood\t\t5,5,4\nUSER\tOVERALL\t\t4,4\n\nSYSTEM\tyes\t\t\nUSER\tno\t\t1\n"
IDS = "dialogue\tconversationId\tmatched\tlong\n0\t77\t3\t3\n1\t12\t2\t2\n"


def write_uss(folder: Path, text: str = USS, ids: str = IDS) -> Path:
    (folder / "ReDial.txt").write_text(text, encoding="utf-8")
    (folder / "ReDial_conversation_ids.tsv").write_text(ids, encoding="utf-8")
    return folder


def test_satisfaction_by_conversation_and_message(tmp_path: Path) -> None:
    found = read_uss(write_uss(tmp_path))
    assert set(found) == {"77", "12"}
    assert [(one.role, one.satisfaction) for one in found["77"]] == [
        ("seeker", 3.5),
        ("recommender", None),
        ("seeker", pytest.approx(14 / 3)),
    ]
    assert [one.text for one in found["12"]] == ["yes", "no"]


@pytest.mark.parametrize(
    ("text", "ids", "message"),
    [
        (USS.replace("3,4", "3,9"), IDS, r"ReDial\.txt, line 2: field 'scores' is '3,9'"),
        (USS.replace("USER\tgood", "JUDGE\tgood"), IDS, r"ReDial\.txt, line 4: field 'role'"),
        (USS.replace("\t\t5,5,4", ""), IDS, r"ReDial\.txt, line 4: .*three more fields"),
        (USS, IDS + "9\t5\t1\t1\n", r"conversation_ids\.tsv, line 4: field 'dialogue' is '9' .*one of 2 dialogues"),
        (USS, IDS + "1\t5\t1\t1\n", r"conversation_ids\.tsv, line 4: field 'dialogue' is '1' .*each once"),
        (USS + "\nUSER\ta\t\t1\n", IDS + "2\t77\t1\t1\n", r"line 4: field 'conversationId' is '77'"),
        (USS, IDS + "1\t5\t1\n", r"conversation_ids\.tsv, line 4: 3 fields for the 4 columns"),
        (USS, IDS + "\N{SUPERSCRIPT TWO}\t5\t1\t1\n", r"line 4: field 'dialogue'"),
        (USS, IDS.replace("dialogue", "place"), r"line 1: columns \['dialogue'\] are missing"),
        (USS, IDS + "x\t5\t1\t1\n", r"conversation_ids\.tsv, line 4"),
    ],
)
def test_malformed_uss_is_named(tmp_path: Path, text: str, ids: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_uss(write_uss(tmp_path, text, ids))


def record(**changes: Any) -> dict[str, Any]:
    responses = {system: {"text": system, "rating": rating} for system, rating in (("kbrd", 2), ("retrieval", 5))}
    context = [{"role": "assistant", "text": "hello"}, {"role": "user", "text": "hi"}]
    plain = {"study": "s", "dialog_id": 4, "rater_passed_check": True, "context": context, "responses": responses}
    return plain | changes


def test_ratings_of_raters_who_passed(tmp_path: Path) -> None:
    path = tmp_path / "ratings.jsonl"
    lines = [record(), record(rater_passed_check=None), record(rater_passed_check=False)]
    path.write_text("\n".join(map(json.dumps, lines)))
    found = read_response_ratings(path)
    assert [(one.fragment, one.line, one.system, one.rating) for one in found] == [
        ("s/4", 1, "kbrd", 2),
        ("s/4", 1, "retrieval", 5),
    ]
    assert found[0].context == (("recommender", "hello"), ("seeker", "hi"))
    assert len(read_response_ratings(path, passed_check=False)) == 6


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1"),
        (json.dumps({"study": "s"}), "line 1: field 'rater_passed_check' is missing"),
        (json.dumps(record(responses={"kbrd": {"text": "a", "rating": 7}})), "field 'responses.kbrd.rating' is '7'"),
        (json.dumps(record(context=[{"role": "bot", "text": ""}])), "line 1: field 'bot'"),
        (json.dumps(record(context=[{"role": "user", "text": None}])), r"line 1: field 'context\[0\].text' is 'None'"),
        (
            json.dumps(record(responses={"kbrd": {"text": "a", "rating": True}})),
            "line 1: field 'responses.kbrd.rating'",
        ),
        (
            json.dumps(record(responses={"kbrd": {"text": 3, "rating": 1}})),
            "line 1: field 'responses.kbrd.text' is '3'",
        ),
        (json.dumps(record(responses=[])), "line 1: field"),
        (json.dumps([1]), r"line 1: field '\(the whole line\)'"),
        (json.dumps(record(study="\ud83d")), "line 1: half of a surrogate pair"),
        ("[" * 100_000, "line 1: .*nested too deep"),
    ],
)
def test_malformed_ratings_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "ratings.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=message) as caught:
        read_response_ratings(path)
    assert str(path) in str(caught.value)


def test_lines_in_every_dress_and_punctuation(tmp_path: Path) -> None:
    path = tmp_path / "ratings.jsonl"
    context = [{"role": "user", "text": "I don\u2019t\u2028know\x85"}]
    line = json.dumps(record(context=context), ensure_ascii=False)
    path.write_bytes(f"\ufeff{line}\r\n{line}\r\n\r\n".encode())
    found = read_response_ratings(path)
    assert [one.line for one in found] == [1, 1, 2, 2]
    assert found[0].context == (("seeker", "I don't know "),)
    folder = write_uss(
        tmp_path, "\ufeff" + USS.replace("hi", "it\u2019s\u2028") + "\n", "\ufeff" + IDS.replace("\n", "\r\n") + "\r\n"
    )
    assert read_uss(folder)["77"][0].text == "it's "
    path.write_bytes(line.encode() + b'\n{"study": "\xe9"}\n')
    with pytest.raises(ValueError, match=r"ratings\.jsonl, line 2: not a JSON object .*utf-8"):
        read_response_ratings(path)
    (tmp_path / "ReDial.txt").write_bytes(USS.encode() + b"USER\tcaf\xe9\t\t1\n")
    with pytest.raises(ValueError, match=r"ReDial\.txt, line 9: not UTF-8"):
        read_uss(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_real_judgements_join_message_by_message(redial: Corpus, data_dir: Path) -> None:
    scored = read_uss(data_dir / "uss")
    train = {found.dialogue_id: found for found in (*redial.train, *redial.validation)}
    assert len(scored) == 998 and set(scored) <= set(train)
    for number, messages in scored.items():
        assert [one.role for one in messages] == [said.role for said in train[number].messages], number
    ratings = read_response_ratings(data_dir / "crs-response-ratings" / "ratings.jsonl")
    assert len(ratings) == 3 * 983 and len({one.fragment for one in ratings}) == 140

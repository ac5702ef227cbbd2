"""The reader against every irregularity of the release, on a toy release and on the real files."""

import collections
import gzip
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_release import LIKED, RECOMMENDER, SEEKER, dialogue, message, write_release

from rlhf_jax.data.redial import read_redial
from rlhf_jax.data.windows import is_empty, ranking_rows
from rlhf_jax.interfaces import Corpus, ItemLabel


def read_one(tmp_path: Path, record: Any) -> Corpus:
    """The corpus of a release whose only test dialogue is `record`."""
    return read_redial(write_release(tmp_path, test=[record]))


def parts_of(tmp_path: Path, text: str, **changes: Any) -> tuple[str | int, ...]:
    corpus = read_one(tmp_path, dialogue(100, [(SEEKER, text)], **changes))
    return corpus.test[0].messages[0].parts


def test_roles_forms_items_and_times_are_read(toy_corpus: Corpus) -> None:
    first = toy_corpus.train[0]
    assert first.dialogue_id == "1"
    assert [said.role for said in first.messages] == ["seeker", "recommender", "recommender", "seeker", "seeker"]
    assert first.messages[2].parts == ("Or ", 30, " and ", 10)
    assert first.messages[2].items == (30, 10)
    assert [said.time_offset for said in first.messages] == [0, 5, 10, 15, 20]
    assert first.seeker_labels == {10: ItemLabel(0, 1, 1), 20: ItemLabel(1, 0, 2)}
    assert first.recommender_labels == {10: ItemLabel(0, 1, 0)}


def test_validation_is_the_end_of_train_by_id(tmp_path: Path) -> None:
    folder = write_release(tmp_path, train=[dialogue(number) for number in (9, 90, 2, 31, 5)])
    corpus = read_redial(folder, validation_fraction=0.4)
    assert [found.dialogue_id for found in corpus.train] == ["2", "5", "9"]
    assert [found.dialogue_id for found in corpus.validation] == ["31", "90"]
    assert read_redial(folder, validation_fraction=0.0).validation == ()


def test_compressed_and_plain_files_read_the_same(tmp_path: Path, toy_corpus: Corpus) -> None:
    zipped = read_redial(write_release(tmp_path, zipped=True))
    assert (zipped.train, zipped.validation, zipped.test) == (
        toy_corpus.train,
        toy_corpus.validation,
        toy_corpus.test,
    )
    assert zipped.items == toy_corpus.items


def test_a_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    path = write_release(tmp_path, zipped=True) / "train_data.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train_data\.jsonl\.gz, after line \d+: .*damaged or cut short"):
        read_redial(tmp_path)


@pytest.mark.parametrize("name", ["train_data.jsonl", "movies_with_mentions.csv"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (write_release(tmp_path) / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        read_redial(tmp_path)


def test_a_missing_form_is_an_empty_list(tmp_path: Path) -> None:
    found = read_one(tmp_path, dialogue(100, initiatorQuestions=[], respondentQuestions=[], movieMentions=[])).test[0]
    assert found.seeker_labels == {} and found.recommender_labels == {}
    assert found.messages[0].items == (10,)


def test_null_names_and_items_without_csv_row(tmp_path: Path) -> None:
    corpus = read_one(
        tmp_path, dialogue(100, [(SEEKER, "@50 and @70")], movieMentions={"50": None, "70": "Home (2009)"})
    )
    assert corpus.test[0].messages[0].items == (50, 70)
    assert corpus.items[50].title == "" and corpus.items[50].year is None
    assert corpus.items[70].title == "Home (2009)" and corpus.items[70].year == 2009


def test_the_catalogue_is_what_is_mentioned_in_ascending_order(tmp_path: Path) -> None:
    """Mentioned in a text or in the list of mentions; a csv row alone does not count."""
    record = dialogue(100, [(SEEKER, "@31")], movieMentions={"40": "What About Bob%3F (1991)"})
    assert list(read_one(tmp_path, record).items) == [10, 20, 30, 31, 40]


def test_shared_titles_stay_two_items(tmp_path: Path) -> None:
    items = read_one(tmp_path, dialogue(100, [(SEEKER, "@30 @31")])).items
    assert items[30].title == items[31].title and items[30] != items[31]


def test_titles_years_and_metadata(toy_corpus: Corpus) -> None:
    scarface, godfather = toy_corpus.items[10], toy_corpus.items[20]
    assert (scarface.title, scarface.year) == ("Scarface (1983)", 1983)
    # Directors, then stars, then writers.
    assert scarface.people == ("Brian De Palma", "Al Pacino", "Michelle Pfeiffer", "Oliver Stone")
    assert scarface.genres == ("crime", "drama") and scarface.plot.startswith("A refugee")
    # The csv has no year, the metadata has.
    assert (godfather.title, godfather.year) == ("The Godfather", 1972)
    assert toy_corpus.items[30].genres == ()


def test_metadata_is_optional(tmp_path: Path) -> None:
    assert read_redial(write_release(tmp_path, metadata=False)).items[10].genres == ()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ()),
        ("I &quot;like&quot; R&amp;B &gt; jazz &#128512;", ('I "like" R&B > jazz \N{GRINNING FACE}',)),
        ("one\r\ntwo\nthree", ("one two three",)),
        ("mail me @ home, @you, @999999 or @", ("mail me @ home, @you, @999999 or @",)),
        ("@10", (10,)),
        ("@10@20's", (10, 20, "'s")),
        ("see @999999 and @60.", ("see @999999 and ", 60, ".")),
        ("\u201csmart\u201d \N{PILE OF POO}", ('"smart" \N{PILE OF POO}',)),
        ("I don\u2019t, it&rsquo;s @10\u2019s caf\u00e9", ("I don't, it's ", 10, "'s caf\u00e9")),
        ("bob@10.com or b.o+b@mail10.co.uk; @10.", ("bob@10.com or b.o+b@mail10.co.uk; ", 10, ".")),
        ("seen@10 and @20.I liked", ("seen", 10, " and ", 20, ".I liked")),
        (f"@{10**19 + 10} @{'1' * 5000} @\u0661\u0660", (f"@{10**19 + 10} @{'1' * 5000} @\u0661\u0660",)),
        ("<eos> <rec>", ("<eos> <rec>",)),
    ],
)
def test_text(tmp_path: Path, text: str, parts: tuple[str | int, ...]) -> None:
    assert parts_of(tmp_path, text) == parts


@pytest.mark.parametrize("time", [None, -1, "absent"])
def test_a_time_that_is_not_known(tmp_path: Path, time: Any) -> None:
    entry = message(SEEKER, "hi", timeOffset=time)
    if time == "absent":
        del entry["timeOffset"]
    assert read_one(tmp_path, dialogue(100, messages=[entry])).test[0].messages[0].time_offset is None


def test_placeholder_workers_are_workers(tmp_path: Path) -> None:
    messages = [message(-1, "hi"), message(-2, "hello")]
    found = read_one(tmp_path, dialogue(100, messages=messages, initiatorWorkerId=-1, respondentWorkerId=-2)).test[0]
    assert [said.role for said in found.messages] == ["seeker", "recommender"]


def test_provenance_of_dialogues_and_files(tmp_path: Path) -> None:
    corpus = read_redial(write_release(tmp_path, provenance={"1": "rebuilt", "2": "verbatim"}))
    assert [found.provenance for found in corpus.train[:3]] == ["rebuilt", "verbatim", "official"]
    files = corpus.provenance["files"]
    assert set(files) == {
        "train_data.jsonl",
        "test_data.jsonl",
        "movies_with_mentions.csv",
        "train_provenance.tsv",
        "kg/id2info.json",
    }
    assert files["test_data.jsonl"] == hashlib.sha256((tmp_path / "test_data.jsonl").read_bytes()).hexdigest()
    assert corpus.provenance["n_train"] == 9 and corpus.provenance["n_items"] == 3


def test_max_dialogues(toy_folder: Path) -> None:
    corpus = read_redial(toy_folder, max_dialogues=1)
    assert len(corpus.train) + len(corpus.validation) == 1 and len(corpus.test) == 1


def without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


BAD_LINES = [
    ('{"conversationId": "100", ', "not a JSON object", '\'{"conversationId"'),
    ("[1, 2]", "(the whole line)", "[1, 2]"),
    (without(dialogue(100), "messages"), "field 'messages' is missing", ""),
    (dialogue(100, conversationId="x1"), "field 'conversationId'", "'x1'"),
    (dialogue(100, conversationId=None), "field 'conversationId'", "'None'"),
    (dialogue(100, initiatorWorkerId="7"), "field 'initiatorWorkerId'", "'7' (str)"),
    (dialogue(100, respondentWorkerId=SEEKER), "field 'respondentWorkerId'", "7"),
    (dialogue(100, messages=[]), "field 'messages'", "[]"),
    (dialogue(100, messages=["hi"]), "field 'messages[0]'", "'hi'"),
    (dialogue(100, messages=[message(SEEKER, "a"), message(99, "b")]), "field 'messages[1].senderWorkerId'", "'99'"),
    (dialogue(100, messages=[message(SEEKER, "a") | {"text": None}]), "field 'messages[0].text'", "'None'"),
    (dialogue(100, messages=[message(SEEKER, "a", timeOffset="5")]), "field 'messages[0].timeOffset'", "'5'"),
    (dialogue(100, messages=[without(message(SEEKER, "a"), "messageId")]), "field 'messages[0].messageId'", "missing"),
    (dialogue(100, movieMentions={"ten": "x"}), "field 'movieMentions'", "'ten'"),
    (dialogue(100, movieMentions={"10": 3}), "field 'movieMentions.10'", "'3'"),
    (dialogue(100, initiatorQuestions=[1]), "field 'initiatorQuestions'", "[1]"),
    (dialogue(100, initiatorQuestions={"10": 1}), "field 'initiatorQuestions.10'", "'1'"),
    (dialogue(100, respondentQuestions={"10": {**LIKED, "liked": 3}}), "field 'respondentQuestions.10.liked'", "'3'"),
    (dialogue(100, initiatorQuestions={"10": {"seen": 1}}), "field 'initiatorQuestions.10.suggested'", "'None'"),
    (dialogue(1), "field 'conversationId'", "'1', seen before in train_data.jsonl line 1"),
    (dialogue(2**63), "field 'conversationId'", f"'{2**63}'"),
    (dialogue(100, conversationId="1" * 5000), "field 'conversationId'", "'111"),
    (dialogue(100, movieMentions={str(2**63): "x"}), "field 'movieMentions'", f"'{2**63}'"),
    (dialogue(100, initiatorQuestions={"-1": LIKED}), "field 'initiatorQuestions'", "'-1'"),
    (dialogue(100, messages=[message(SEEKER, "a", timeOffset=2**63)]), "field 'messages[0].timeOffset'", f"'{2**63}'"),
    (dialogue(100, [(SEEKER, "half \ud83d an emoji")]), "half of a surrogate pair", "'half \\ud83d an emoji'"),
    (dialogue(100, movieMentions={"10": "\udfff"}), "half of a surrogate pair", "'\\udfff'"),
    ('{"conversationId": ' + "[" * 100_000, "nested too deep", "conversationId"),
    ('{"conversationId": 1, "conversationId": 2}', "not a JSON object", "the key 'conversationId' is there twice"),
    ('{"conversationId": NaN}', "not a JSON object", "NaN is no number"),
    ('{"conversationId": ' + "1" * 5000 + "}", "not a JSON object", "conversationId"),
]


@pytest.mark.parametrize(("record", "field", "value"), BAD_LINES)
def test_a_malformed_line_is_an_error_naming_file_line_field_and_value(
    tmp_path: Path, record: Any, field: str, value: str
) -> None:
    write_release(tmp_path, test=[dialogue(200), record])
    with pytest.raises(ValueError) as caught:
        read_redial(tmp_path)
    text = str(caught.value)
    assert str(tmp_path / "test_data.jsonl, line 2: ") in text
    assert field in text and value in text


def test_bytes_that_are_no_text_are_an_error_too(tmp_path: Path) -> None:
    path = write_release(tmp_path) / "test_data.jsonl"
    path.write_bytes(path.read_bytes() + b'{"conversationId": "\xff"}\n')
    with pytest.raises(ValueError, match=r"test_data\.jsonl, line 3: not a JSON object"):
        read_redial(tmp_path)


def test_skipping_counts_and_reports(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_release(tmp_path, test=[dialogue(200), "{", dialogue(201), dialogue(202, messages=[])])
    with caplog.at_level(logging.WARNING):
        corpus = read_redial(tmp_path, on_bad_line="skip")
    assert [found.dialogue_id for found in corpus.test] == ["200", "201"]
    assert corpus.provenance["n_skipped"] == 2
    assert [line.split(":")[0] for line in corpus.provenance["skipped"]] == [
        "test_data.jsonl line 2",
        "test_data.jsonl line 4",
    ]
    assert "skipped 2 malformed lines" in caplog.text


def test_nothing_left_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    write_release(tmp_path, test=["{"])
    with pytest.raises(ValueError, match=r"test_data\.jsonl: no dialogue could be read \(1 malformed"):
        read_redial(tmp_path, on_bad_line="skip")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("movies_with_mentions.csv", "id,movieName\r\n1,a\r\n", "line 1: columns ['movieId'] are missing"),
        ("movies_with_mentions.csv", "movieId,movieName\r\n1,a\r\nx,b\r\n", "line 3: field 'movieId' is 'x'"),
        ("movies_with_mentions.csv", "movieId,movieName\r\n1\r\n", "line 2: 1 fields for the 2 columns"),
        ("movies_with_mentions.csv", "movieId,movieName\n1,a\n2,b,c\n", "line 3: 3 fields for the 2 columns"),
        ("movies_with_mentions.csv", 'movieId,movieName\n1,"a\n2,b\n3,c\n', "line 2: no row of a table"),
        ("movies_with_mentions.csv", 'movieId,movieName\n1,"a\n2,b",c\n', "line 2: no row of a table"),
        ("movies_with_mentions.csv", 'movieId,movieName\n1,a"\n', "line 2: a double quote without its other one"),
        (
            "movies_with_mentions.csv",
            f"movieId,movieName\n1,{'a' * 200_000}\n",
            "line 2: no row of a table (field larger",
        ),
        ("movies_with_mentions.csv", "movieId,movieName\n1,a\n2,b\n1,c\n", "line 4: field 'movieId' is '1'"),
        ("movies_with_mentions.csv", "movieId,movieName\n1,a\n01,b\n", "line 3: field 'movieId' is '01'"),
        ("movies_with_mentions.csv", f"movieId,movieName\n{2**63},a\n", f"line 2: field 'movieId' is '{2**63}'"),
        ("movies_with_mentions.csv", f"movieId,movieName\n{'1' * 5000},a\n", "line 2: field 'movieId' is '11"),
        ("movies_with_mentions.csv", "movieId,movieName,nbMentions\n1,a,-3\n", "line 2: field 'nbMentions' is '-3'"),
        ("movies_with_mentions.csv", "movieId,movieName,movieId\n1,a,2\n", "line 1: a column is there twice"),
        ("movies_with_mentions.csv", "", "line 1: columns ['movieId', 'movieName'] are missing"),
        ("train_provenance.tsv", "conversationId\tprovenance\n1\tworld\tx\n", "line 2: 3 fields for the 2 columns"),
        ("train_provenance.tsv", "conversationId\tprovenance\n1\tworld\n1\tforms\n", "line 3: field 'conversationId'"),
        ("train_provenance.tsv", "1\tworld\n", "line 1: columns ['conversationId', 'provenance'] are missing"),
        ("kg/id2info.json", '{"10": {}, "10": {}}', "the key '10' is there twice"),
        ("kg/id2info.json", "[" * 100_000, "nested too deep"),
        ("kg/id2info.json", '{"10": {"plot": "\\ud83d"}}', "half of a surrogate pair"),
        ("train_provenance.tsv", "conversationId\tprovenance\n1\tguess\n", "line 2: field 'provenance' is 'guess'"),
        ("kg/id2info.json", "{", "not a JSON object"),
        ("kg/id2info.json", "[]", "expected one object"),
        ("kg/id2info.json", '{"10": {"genre": "drama"}}', "field '10.genre' is 'drama'"),
        ("kg/id2info.json", '{"ten": {}}', "field 'ten'"),
        ("kg/id2info.json", '{"10": {"plot": 3}}', "field '10.plot' is '3'"),
        ("kg/id2info.json", '{"10": 3}', "field '10' is '3'"),
    ],
)
def test_malformed_side_files_are_named(tmp_path: Path, name: str, content: str, expected: str) -> None:
    path = write_release(tmp_path) / name
    path.write_text(content)
    with pytest.raises(ValueError) as caught:
        read_redial(tmp_path)
    assert str(path) in str(caught.value) and expected in str(caught.value)


def test_one_set_of_lines_is_read_in_every_dress(tmp_path: Path, toy_corpus: Corpus) -> None:
    """A byte-order mark, CRLF, no line end or blank lines at the end of any file change nothing."""
    write_release(tmp_path, provenance={"1": "rebuilt"})
    plain_read = read_redial(tmp_path)
    assert plain_read.items == toy_corpus.items
    dresses: list[Callable[[bytes], bytes]] = [
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"),
        lambda data: data.rstrip(b"\r\n"),
        lambda data: data + b"\n\r\n\n",
    ]
    names = [*plain_read.provenance["files"]]
    contents = {name: (tmp_path / name).read_bytes() for name in names}
    for dress in dresses:
        for name in names:
            (tmp_path / name).write_bytes(dress(contents[name]))
        found = read_redial(tmp_path)
        assert (found.train, found.test, found.items) == (plain_read.train, plain_read.test, plain_read.items)


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, character: str) -> None:
    escaped = json.dumps(dialogue(100, [(SEEKER, "one@two")]), ensure_ascii=False).replace("@", character)
    if (
        ord(character) < 0x20
    ):  # JSON wants these escaped inside a string; between two values they are no line end either.
        with pytest.raises(ValueError, match=r"test_data\.jsonl, line 1: not a JSON object"):
            read_one(tmp_path, escaped)
        return
    assert read_one(tmp_path, escaped).test[0].messages[0].parts == ("one two",)


@pytest.mark.parametrize(
    ("name", "line"), [("train_provenance.tsv", 2), ("movies_with_mentions.csv", 7), ("test_data.jsonl", 3)]
)
def test_another_encoding_is_named_with_its_line(tmp_path: Path, name: str, line: int) -> None:
    path = write_release(tmp_path, provenance={}) / name
    path.write_bytes(path.read_bytes() + "80,caf\u00e9,1\n".encode("latin-1"))
    if name.endswith(".csv"):
        line = path.read_bytes().count(b"\n")
    with pytest.raises(ValueError, match=rf"{name}, line {line}: not (UTF-8|a JSON object) .*utf-8"):
        read_redial(tmp_path)


def test_a_percent_sign_of_a_title_stays(tmp_path: Path) -> None:
    names = {"50": "Caf%E9 100%25 (2009)", "70": "%22Crocodile%22 \u2013 What\u2019s Up%3F  (1986)"}
    items = read_one(tmp_path, dialogue(100, [(SEEKER, "@50 @70")], movieMentions=names)).items
    assert items[50].title == "Caf%E9 100%25 (2009)"
    assert items[70].title == '"Crocodile" - What\'s Up? (1986)'


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on_bad_line": "ignore"}, "on_bad_line is 'ignore'"),
        ({"validation_fraction": 1.0}, r"validation_fraction is 1\.0"),
        ({"max_dialogues": 0}, "max_dialogues is 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments(toy_folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_redial(toy_folder, **changes)


def test_ranking_rows_are_messages_with_items_and_context(tmp_path: Path) -> None:
    texts = [
        (SEEKER, ""),
        (RECOMMENDER, "@10 first, without a context"),
        (SEEKER, "I know @20"),
        (RECOMMENDER, "@20 @30 @30"),
        (RECOMMENDER, "and @10"),
        (RECOMMENDER, "no item"),
    ]
    rows = list(ranking_rows(read_one(tmp_path, dialogue(100, texts)).test))
    assert [(row.message_index, row.gold, row.fresh_gold, row.mentioned) for row in rows] == [
        (3, (20, 30), (30,), (10, 20)),
        (4, (10,), (), (10, 20, 20, 30, 30)),
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_real_counts(redial: Corpus) -> None:
    """The numbers of the standardised protocol and of the data's own description."""
    rows = list(ranking_rows(redial.test))
    fresh = [row for row in rows if row.fresh_gold]
    assert (len(rows), sum(len(row.gold) for row in rows)) == (4198, 4975)
    assert (len(fresh), sum(len(row.fresh_gold) for row in fresh)) == (3838, 4472)
    train = [*redial.train, *redial.validation]
    assert (len(redial.train), len(redial.validation), len(redial.test)) == (9005, 1000, 1342)
    assert sum(len(found.messages) for found in train) == 182_146
    assert sum(len(found.messages) for found in redial.test) == 23_952
    assert sum(len(said.items) for found in train for said in found.messages) == 64_551
    assert sum(len(said.items) for found in redial.test for said in found.messages) == 8_521
    assert len(redial.items) == 6_636 and list(redial.items) == sorted(redial.items)


@pytest.mark.usefixtures("unchecked")
def test_real_quirks(redial: Corpus) -> None:
    train = [*redial.train, *redial.validation]
    provenance = collections.Counter(found.provenance for found in train)
    assert provenance == {"verbatim": 1401, "forms": 869, "rebuilt": 7735}
    assert sum(is_empty(said) for found in train for said in found.messages) == 163
    assert sum(not found.seeker_labels for found in redial.test) == 11
    assert sum(not found.recommender_labels for found in redial.test) == 20
    assert all(said.time_offset is None for found in train if found.provenance != "verbatim" for said in found.messages)
    assert redial.items[50].title == ""
    assert redial.items[77521].title == redial.items[81475].title
    words = [part for found in train for said in found.messages for part in said.parts if isinstance(part, str)]
    assert not any("&quot;" in part or "\n" in part or "\r" in part for part in words)
    assert sum(bool(item.genres) for item in redial.items.values()) > 6_500


@pytest.mark.usefixtures("unchecked")
def test_real_forms_agree_with_the_raw_files(redial: Corpus, data_dir: Path) -> None:
    """Counted from the JSON itself, without the reader."""
    liked = collections.Counter()
    with gzip.open(data_dir / "redial" / "train_data.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            for name in ("initiatorQuestions", "respondentQuestions"):
                liked.update((name, answers["liked"]) for answers in dict(record[name]).values())
    found = collections.Counter()
    for part in (*redial.train, *redial.validation):
        found.update(("initiatorQuestions", label.liked) for label in part.seeker_labels.values())
        found.update(("respondentQuestions", label.liked) for label in part.recommender_labels.values())
    assert found == liked

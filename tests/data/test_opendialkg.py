"""OpenDialKG: both forms of the data against their irregularities, and a split that does not leak."""

import collections
import csv
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from rlhf_jax.data.opendialkg import read_opendialkg, split_of
from rlhf_jax.interfaces import Corpus, Dialogue

INFO = {
    "0": {"name": "Turbo", "year": "2013", "actor": ["Snoop Dogg", "Snoop Dogg"], "director": ["David Soren"]},
    "1": {"name": "Zodiac", "year": "1986", "writer": ["Robert Graysmith"], "genre": ["Family (Film genre) #395"]},
    "2": {"name": "It", "year": "-500"},
    "3": {"name": "The Ring"},
    "4": {"name": "The Ring Two", "year": ""},
    "5": {"name": "Ocean\u2019s"},
}
N = 40


def said(role: str, text: str, *titles: str) -> dict[str, Any]:
    return {"role": role, "text": text, "item": list(titles)}


def dialogue(number: int, *messages: dict[str, Any], **changes: Any) -> dict[str, Any]:
    default = (said("user", "I liked Zodiac", "Zodiac"), said("assistant", "then turbo!", "Turbo"))
    domain = "book" if number % 2 else "movie"
    return {"dialog_id": number, "domain": domain, "messages": list(messages or default)} | changes


def write(folder: Path, records: Iterable[Any], info: Any = INFO) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "dialogues.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / "id2info.json").write_text(info if isinstance(info, str) else json.dumps(info), encoding="utf-8")
    return folder


@pytest.fixture
def corpus_of(tmp_path: Path) -> Callable[..., Corpus]:
    """A corpus of forty plain dialogues with some replaced."""

    def read(*replaced: dict[str, Any], **options: Any) -> Corpus:
        by_number = {record["dialog_id"]: record for record in replaced}
        return read_opendialkg(write(tmp_path, [by_number.get(n, dialogue(n)) for n in range(N)]), **options)

    return read


def everything(corpus: Corpus) -> dict[str, Dialogue]:
    return {found.dialogue_id: found for split in (corpus.train, corpus.validation, corpus.test) for found in split}


def test_roles_items_and_domains(corpus_of: Callable[..., Corpus]) -> None:
    corpus = corpus_of()
    movie, book = everything(corpus)["0"], everything(corpus)["1"]
    assert [message.role for message in movie.messages] == ["seeker", "recommender"]
    # A film and the book of the same name are two items: 2·number + [book].
    assert movie.messages[0].parts == ("I liked ", 2) and book.messages[0].parts == ("I liked ", 3)
    assert movie.messages[1].parts == ("then ", 0, "!") and movie.messages[1].time_offset is None
    assert (movie.domain, book.domain) == ("movie", "book") and movie.seeker_labels == {}
    assert list(corpus.items) == [0, 1, 2, 3]
    turbo, zodiac = corpus.items[0], corpus.items[3]
    assert (turbo.title, turbo.year, turbo.people, turbo.domain) == (
        "Turbo",
        2013,
        ("David Soren", "Snoop Dogg"),
        "movie",
    )
    assert (zodiac.year, zodiac.genres, zodiac.domain) == (1986, ("Family",), "book")


@pytest.mark.parametrize(
    ("text", "titles", "parts"),
    [
        ("It is good, but It? it.", ["It"], (4, " is good, but ", 4, "? it.")),
        ("i mean it", ["It"], ("i mean ", 4)),
        ("ZodiacTurbo", ["Turbo"], ("Zodiac", 0)),
        ("The Ring Two, after The Ring", ["The Ring", "The Ring Two"], (8, ", after ", 6)),
        ("The Ring Two", ["The Ring", "The Ring Two"], (8,)),
        ("R&amp;B in\nTurbo", ["Turbo"], ("R&B in ", 0)),
        ("don\u2019t \u201cTurbo\u201d", ["Turbo"], ("don't \"", 0, '"')),
        ("Ocean's then Ocean\u2019s", ["Ocean\u2019s"], (10, " then ", 10)),
        ("no titles", [], ("no titles",)),
        ("", [], ()),
    ],
)
def test_titles_become_items(
    corpus_of: Callable[..., Corpus], text: str, titles: list[str], parts: tuple[str | int, ...]
) -> None:
    corpus = corpus_of(dialogue(0, said("assistant", text, *titles)))
    assert everything(corpus)["0"].messages[0].parts == parts


def test_a_title_inside_a_longer_one_is_counted(corpus_of: Callable[..., Corpus]) -> None:
    corpus = corpus_of(dialogue(0, said("assistant", "The Ring Two", "The Ring", "The Ring Two")))
    assert corpus.provenance["n_titles_inside_longer_ones"] == 1
    assert 6 not in corpus.items and corpus.items[8].year is None


def test_no_dialogue_is_in_two_splits_and_a_split_does_not_move(corpus_of: Callable[..., Corpus]) -> None:
    corpus = corpus_of()
    ids = [{found.dialogue_id for found in split} for split in (corpus.train, corpus.validation, corpus.test)]
    assert sum(map(len, ids)) == len(set.union(*ids)) == N and all(ids)
    books = corpus_of(domain="book")
    assert [found for found in corpus.test if found.domain == "book"] == list(books.test)
    assert {found.domain for found in everything(books).values()} == {"book"}
    assert {item.domain for item in books.items.values()} == {"book"}
    some = corpus_of(max_dialogues=15)
    assert set(everything(some)) == {str(n) for n in range(30)}
    assert {found.dialogue_id for found in some.test} <= ids[2]
    assert {found.dialogue_id for found in corpus_of(split_seed=1).test} != ids[2]


def test_shares_of_the_split() -> None:
    counts = collections.Counter(split_of(str(number), 0, 0.15) for number in range(4000))
    assert abs(counts["test"] - 600) < 80 and abs(counts["validation"] - 600) < 80
    assert split_of("12", 0, 0.0) in ("train", "test")


BAD_LINES = [
    ('{"dialog_id": ', "not a JSON object", '\'{"dialog_id":'),
    ("[1]", "(the whole line)", "[1]"),
    (dialogue(1, dialog_id="x"), "field 'dialog_id'", "'x' (str)"),
    (dialogue(0), "field 'dialog_id'", "'0'"),
    (dialogue(1, domain="sports"), "field 'domain'", "'sports'"),
    (dialogue(2**63), "field 'dialog_id'", f"'{2**63}'"),
    (dialogue(1, said("user", "half \ud83d")), "half of a surrogate pair", "'half \\ud83d'"),
    ('{"dialog_id": ' + "[" * 100_000, "nested too deep", "dialog_id"),
    (dialogue(1, messages=[]), "field 'messages'", "'[]'"),
    (dialogue(1, messages=["hi"]), "field 'messages[0]'", "'hi'"),
    (dialogue(1, said("user", "hi"), said("system", "hi")), "field 'messages[1].role'", "'system'"),
    (dialogue(1, {"role": "user", "item": []}), "field 'messages[0].text'", "'None'"),
    (dialogue(1, {"role": "user", "text": "hi"}), "field 'messages[0].item'", "'None'"),
    (dialogue(1, said("user", "Up", "Up")), "field 'messages[0].item'", "'Up' (str), expected a title of id2info.json"),
    (
        dialogue(1, said("user", "hi", "Turbo")),
        "field 'messages[0].item'",
        "'Turbo' (str), expected a title in the text",
    ),
]


@pytest.mark.parametrize(("record", "field", "value"), BAD_LINES)
def test_a_malformed_line_is_an_error_naming_file_line_field_and_value(
    tmp_path: Path, record: Any, field: str, value: str
) -> None:
    write(tmp_path, [dialogue(0), record])
    with pytest.raises(ValueError) as caught:
        read_opendialkg(tmp_path)
    assert str(tmp_path / "dialogues.jsonl, line 2: ") in str(caught.value)
    assert field in str(caught.value) and value in str(caught.value)


def test_skipping_counts_and_reports(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, ["{", *[dialogue(n) for n in range(N)], dialogue(99, messages=[])])
    with caplog.at_level(logging.WARNING):
        corpus = read_opendialkg(tmp_path, on_bad_line="skip")
    assert len(everything(corpus)) == N and corpus.provenance["n_skipped"] == 2
    assert [line.split(":")[0] for line in corpus.provenance["skipped"]] == [
        "dialogues.jsonl line 1",
        "dialogues.jsonl line 42",
    ]
    assert "skipped 2 malformed lines" in caplog.text


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ("{", "not a JSON object"),
        ("[]", "one object keyed by item id"),
        ({"x": {}}, "field 'x'"),
        ({"0": {}}, "field '0.name'"),
        ({"00": {"name": "a"}}, "field '00'"),
        ({str(2**62): {"name": "a"}}, f"field '{2**62}'"),
        ('{"0": {"name": "a"}, "0": {"name": "b"}}', "the key '0' is there twice"),
        ("[" * 100_000, "nested too deep"),
        ({"0": {"name": "a", "year": 3}}, "field '0.year' is '3' (int)"),
        ({"0": {"name": "a", "genre": "drama"}}, "field '0.genre' is 'drama'"),
    ],
)
def test_a_malformed_table_of_items_is_named(tmp_path: Path, info: Any, expected: str) -> None:
    write(tmp_path, [dialogue(0)], info)
    with pytest.raises(ValueError) as caught:
        read_opendialkg(tmp_path)
    assert str(tmp_path / "id2info.json") in str(caught.value) and expected in str(caught.value)


def test_missing_files_and_too_few_dialogues(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"dialogues\.jsonl: neither this file nor opendialkg\.csv"):
        read_opendialkg(tmp_path)
    write(tmp_path, [dialogue(0)])
    with pytest.raises(ValueError, match="1 dialogues are too few, the split"):
        read_opendialkg(tmp_path)
    with pytest.raises(
        ValueError, match="no dialogue could be read .*; none of the others is about a book of id2info.json"
    ):
        read_opendialkg(tmp_path, domain="book")
    (tmp_path / "id2info.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"id2info\.json"):
        read_opendialkg(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domain": "music"}, "domain is 'music'"),
        ({"on_bad_line": "ignore"}, "on_bad_line is 'ignore'"),
        ({"validation_fraction": 0.9}, "validation_fraction is 0.9"),
        ({"max_dialogues": 0}, "max_dialogues is 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_opendialkg(write(tmp_path, [dialogue(0)]), **options)


# The official csv.
PATH = {"path": [0.0, [["Iron Man", "starred_actors", "Robert Downey Jr."]], "Iron Man is starring Robert Downey Jr."]}
BACK = {"path": [-0.5, [["Robert Downey Jr.", "~starred_actors", "Zodiac (Crime Fiction Film)"]], "…"]}
MOVIE = [
    {"type": "chat", "sender": "user", "message": "Do you like Iron Man"},
    {"type": "action", "sender": "assistant", "action_id": "kgwalk/choose_path", "metadata": PATH},
    {"type": "chat", "sender": "assistant", "message": "Sure! Robert Downey Jr. is a favorite."},
    {"type": "action", "sender": "user", "action_id": "kgwalk/choose_path", "metadata": BACK},
    {"type": "chat", "sender": "user", "message": "He is in zodiac and in Zodiac"},
    {"type": "action", "sender": "user", "action_id": "meta_thread/send_meta_message"},
]
BOOK = [
    {"type": "action", "sender": "user", "metadata": {"path": [1, [["It", "written_by", "Stephen King"]], "…"]}},
    {"type": "chat", "sender": "user", "message": "I read It, it was long"},
]
SPORT = [
    {"type": "action", "sender": "user", "metadata": {"path": [1, [["Messi", "Team", "Barcelona"]], "…"]}},
    {"type": "chat", "sender": "user", "message": "Messi!"},
]
ENTITIES = ["Batarang", "Iron Man", "Robert Downey Jr.", "Zodiac (Crime Fiction Film)", "It", "Stephen King", "Messi"]


def write_csv(folder: Path, rows: list[Any], triples: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "opendialkg.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Messages", "User Rating", "Assistant Rating"])
        writer.writerows([row if isinstance(row, str) else json.dumps(row), "5", "4"] for row in rows)
    (folder / "opendialkg_entities.txt").write_text("\n".join(ENTITIES) + "\n", encoding="utf-8")
    if triples is not None:
        (folder / "opendialkg_triples.txt").write_text(triples, encoding="utf-8")
    return folder


def test_the_official_csv_gives_the_same_records(tmp_path: Path) -> None:
    corpus = read_opendialkg(write_csv(tmp_path, [MOVIE, BOOK, SPORT] * 15))
    found = everything(corpus)
    assert len(found) == 30 and "2" not in found  # Sessions without items are left out.
    assert [message.role for message in found["0"].messages] == ["seeker", "recommender", "seeker"]
    assert found["0"].messages[0].parts == ("Do you like ", 2)
    # Its own capitals win; the remark in brackets is not what people write.
    assert found["0"].messages[2].parts == ("He is in zodiac and in ", 6)
    assert found["1"].messages[0].parts == ("I read ", 9, ", it was long")
    assert (found["0"].domain, found["1"].domain) == ("movie", "book")
    assert (corpus.items[6].title, corpus.items[6].people) == ("Zodiac", ("Robert Downey Jr.",))
    assert set(corpus.provenance["files"]) == {"opendialkg.csv", "opendialkg_entities.txt"}


def test_triples_beside_the_csv_say_more(tmp_path: Path) -> None:
    triples = "Iron Man\tdirected_by\tJon Favreau\nIron Man\trelease_year\t2008\nAction Film\t~has_genre\tIron Man\n"
    triples += "Iron Man\trelease_year\t2010\nIt\twritten_by\tStephen King\n"
    corpus = read_opendialkg(write_csv(tmp_path, [MOVIE, BOOK] * 15, triples))
    item = corpus.items[2]
    assert (item.title, item.year, item.genres, item.people) == ("Iron Man", 2008, ("Action Film",), ("Jon Favreau",))
    assert 6 not in corpus.items  # Without a fact it is no movie.
    write_csv(tmp_path, [MOVIE] * 20, "Iron Man\tdirected_by\n")
    with pytest.raises(ValueError, match=r"opendialkg_triples\.txt, line 1: .*three fields"):
        read_opendialkg(tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "no JSON"),
        ({}, "field 'Messages' is '{}'"),
        ([3], r"field 'Messages[0]' is '3'"),
        ([{"type": "vote"}], r"field 'Messages[0].type' is 'vote'"),
        ([{"type": "chat", "sender": "judge"}], r"field 'Messages[0].sender' is 'judge'"),
        ([{"type": "chat", "sender": "user"}], r"field 'Messages[0].message' is 'None'"),
        ([], "holds no chat"),
        ([{"type": "action", "metadata": [1]}], r"field 'Messages[0].metadata' is '[1]'"),
        ([{"type": "action", "metadata": {"path": 1}}], r"field 'Messages[0].metadata.path' is '1'"),
        ([{"type": "action", "metadata": {"path": [0, [["a"]]]}}], "expected a triple of strings"),
        (
            [*MOVIE, {**BOOK[0], "metadata": {"path": [0, [["Up", "directed_by", "x"]]]}}],
            "'Up' (str), expected an entity",
        ),
    ],
)
def test_malformed_rows_of_the_csv_are_named(tmp_path: Path, row: Any, message: str) -> None:
    write_csv(tmp_path, [MOVIE, row, *[BOOK] * 20])
    with pytest.raises(ValueError) as caught:
        read_opendialkg(tmp_path)
    assert f"{tmp_path / 'opendialkg.csv'}, line 3: " in str(caught.value) and message in str(caught.value)
    assert read_opendialkg(tmp_path, on_bad_line="skip").provenance["n_skipped"] == 1


def test_faults_of_the_csv_s_tables_are_named(tmp_path: Path) -> None:
    folder = write_csv(tmp_path, [MOVIE, BOOK] * 15)
    good = read_opendialkg(folder)
    table, names = folder / "opendialkg.csv", folder / "opendialkg_entities.txt"
    rows = table.read_bytes()
    table.write_bytes(b"\xef\xbb\xbf" + rows + b"\r\n\r\n")
    assert read_opendialkg(folder).train == good.train
    for changed, message in (
        (rows + b'"[]",5\r\n', "line 32: 2 fields for the 3 columns"),
        (rows.replace(b'"', b"", 1), "line 2: "),
        (rows[: rows.rindex(b'"')], "line 31: no row of a table"),
        (rows + b'"\xff",5,4\r\n', "line 32: not UTF-8"),
    ):
        table.write_bytes(changed)
        with pytest.raises(ValueError, match=rf"opendialkg\.csv, {message}"):
            read_opendialkg(folder)
    # A quoted field may go on on the next line; the row is named by the line it begins on.
    table.write_bytes(rows.replace(b"[{", b"[\r\n{", 1) + b'"{\n}",5,4\r\n')
    with pytest.raises(ValueError, match=r"opendialkg\.csv, line 33: field 'Messages'"):
        read_opendialkg(folder)
    table.write_bytes(rows)
    names.write_text(names.read_text() + "It\n")
    with pytest.raises(ValueError, match=r"opendialkg_entities\.txt, line 8: 'It' is there twice, first in line 5"):
        read_opendialkg(folder)


def test_a_csv_without_its_column_or_entities(tmp_path: Path) -> None:
    write_csv(tmp_path, [MOVIE])
    (tmp_path / "opendialkg.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"line 1: columns \['Messages'\] are missing, found \['a', 'b'\]"):
        read_opendialkg(tmp_path)
    (tmp_path / "opendialkg_entities.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"opendialkg_entities\.txt"):
        read_opendialkg(tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_real_counts_and_no_leak(data_dir: Path) -> None:
    """Counted from the JSON itself; no text of a test dialogue begins a dialogue that is trained on."""
    corpus = read_opendialkg(data_dir / "opendialkg")
    records = [json.loads(line) for line in (data_dir / "opendialkg" / "dialogues.jsonl").read_text().splitlines()]
    assert collections.Counter(found.domain for found in everything(corpus).values()) == {"movie": 3269, "book": 1901}
    tagged = sum(len(message["item"]) for record in records for message in record["messages"])
    mentioned = sum(len(set(message.items)) for found in everything(corpus).values() for message in found.messages)
    assert tagged == 10_277 and mentioned == tagged - corpus.provenance["n_titles_inside_longer_ones"] == 10_241
    assert collections.Counter(item.domain for item in corpus.items.values()) == {"movie": 1730, "book": 1146}
    splits = [{found.dialogue_id for found in split} for split in (corpus.train, corpus.validation, corpus.test)]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 5170
    texts = {str(record["dialog_id"]): tuple(said["text"] for said in record["messages"]) for record in records}
    trained = {texts[number][:length] for number in splits[0] for length in range(2, len(texts[number]) + 1)}
    held_out = {texts[number][:length] for number in splits[2] for length in range(2, len(texts[number]) + 1)}
    assert not trained & held_out
    # The processed files are split by turn, and do leak.
    in_split = [
        {name.split("_")[0] for name in json.loads((data_dir / "opendialkg" / f"{split}_data_id.json").read_text())}
        for split in ("train", "test")
    ]
    assert len(in_split[0] & in_split[1]) > 500

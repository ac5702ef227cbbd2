"""MovieLens in both layouts: made-up folders, one mistake at a time, and counts of the real one."""

from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.data.movielens import article_first, read_movielens
from rlhf_jax.data.ratings import RatingCorpus

GENRES = [
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
]


def item_line(identity: int, title: str, released: str, genres: tuple[str, ...]) -> str:
    return "|".join([str(identity), title, released, "", "http://x", *(str(int(g in genres)) for g in GENRES)])


ITEMS_100K = [
    item_line(1, "Usual Suspects, The (1995)", "14-Aug-1995", ("Crime", "Thriller")),
    item_line(2, "Cit\xe9 des enfants perdus, La (1995)", "01-Jan-1996", ("Sci-Fi",)),
    item_line(4, "unknown", "", ("unknown",)),
    item_line(7, "Land &amp; Freedom", "01-Jan-1996", ()),
]
RATINGS = [(5, 7, 3, 20), (9, 1, 5, 30), (5, 1, 4, 10), (5, 2, 1, 20), (5, 4, 5, 20), (9, 2, 2, 29)]


def write_100k(folder: Path, **changed: str) -> Path:
    """A whole folder; `changed` replaces a file's text by its name without the dot."""
    files = {
        "udata": "".join("\t".join(map(str, line)) + "\n" for line in RATINGS),
        "uitem": "".join(line + "\n" for line in ITEMS_100K),
        "ugenre": "".join(f"{genre}|{place}\n" for place, genre in enumerate(GENRES)) + "\n",
    }
    for name, text in {**files, **changed}.items():
        (folder / f"u.{name[1:]}").write_bytes(text.encode("latin-1"))
    return folder


def write_1m(folder: Path, **changed: str) -> Path:
    files = {
        "ratings": "".join("::".join(map(str, line)) + "\n" for line in RATINGS),
        "movies": (
            "1::Usual Suspects, The (1995)::Crime|Thriller\n2::Cit\xe9 des enfants perdus, La (1995)::Sci-Fi\n"
            "4::L\xe9on: a, b::Children's\n7::Land (1996)::(no genres listed)\n"
        ),
    }
    for name, text in {**files, **changed}.items():
        (folder / f"{name}.dat").write_bytes(text.encode("latin-1"))
    return folder


def test_histories_are_in_order_of_time_and_ties_in_that_of_the_file(tmp_path: Path) -> None:
    corpus = read_movielens(write_100k(tmp_path))
    assert (corpus.name, corpus.users) == ("movielens-100k", ("5", "9"))
    assert (corpus.liked_above, corpus.scale) == (3.0, (1.0, 5.0))
    columns = {item.item_id: column for column, item in enumerate(corpus.items)}
    first, second = corpus.histories
    assert first.items.tolist() == [columns[item] for item in (1, 7, 2, 4)]
    assert first.ratings.tolist() == [4, 3, 1, 5]
    assert second.items.tolist() == [columns[2], columns[1]]
    assert first.items.dtype == np.int32 and first.ratings.dtype == np.float32
    assert corpus.provenance["counts"] == {"users": 2, "items": 4, "ratings": 6}
    assert set(corpus.provenance["sha256"]) == {"u.data", "u.item", "u.genre"}


def test_items_of_100k(tmp_path: Path) -> None:
    items = {item.item_id: item for item in read_movielens(write_100k(tmp_path)).items}
    assert [item.title for item in items.values()] == [
        "The Usual Suspects (1995)",
        "La Cit\xe9 des enfants perdus (1995)",
        "unknown",
        "Land & Freedom",
    ]
    # The year of the title, where it has one; the date of the release is often a year off.
    assert [item.year for item in items.values()] == [1995, 1995, None, 1996]
    assert [item.genres for item in items.values()] == [("crime", "thriller"), ("sci-fi",), (), ()]


def test_1m(tmp_path: Path) -> None:
    corpus = read_movielens(write_1m(tmp_path))
    assert corpus.name == "movielens-1m" and corpus.users == ("5", "9")
    assert [item.title for item in corpus.items] == [
        "The Usual Suspects (1995)",
        "La Cit\xe9 des enfants perdus (1995)",
        "L\xe9on: a, b",
        "Land (1996)",
    ]
    assert [item.genres for item in corpus.items] == [("crime", "thriller"), ("sci-fi",), ("children's",), ()]
    assert [item.year for item in corpus.items] == [1995, 1995, None, 1996]
    (tmp_path / "old").mkdir()
    old = read_movielens(write_100k(tmp_path / "old"))
    for one, other in zip(corpus.histories, old.histories, strict=True):
        np.testing.assert_array_equal(one.items, other.items)
        np.testing.assert_array_equal(one.ratings, other.ratings)


def test_a_copy_in_utf8_has_the_same_titles(tmp_path: Path) -> None:
    latin = read_movielens(write_1m(tmp_path))
    movies = tmp_path / "movies.dat"
    movies.write_bytes(movies.read_bytes().decode("latin-1").encode("utf-8"))
    assert read_movielens(tmp_path).items == latin.items


def test_first_users(tmp_path: Path) -> None:
    corpus = read_movielens(write_100k(tmp_path), max_users=1)
    assert corpus.users == ("5",) and len(corpus.histories[0].items) == 4 and len(corpus.items) == 4


@pytest.mark.parametrize(
    ("title", "said"),
    [
        ("Postino, Il (1994)", "Il Postino (1994)"),
        ("Affair, L' (1999)", "L'Affair (1999)"),
        ("American in Paris, An", "An American in Paris"),
        ("Good, The Bad and The Ugly, The (1966)", "The Good, The Bad and The Ugly (1966)"),
        ("Me, Myself, I (1992)", "Me, Myself, I (1992)"),
        ("The, The", "The The"),
        (", The", ", The"),
        ("Star Maker, The (Uomo delle stelle, L') (1995)", "The Star Maker (L'Uomo delle stelle) (1995)"),
        ("Killers (Killer, The) (1989)", "Killers (The Killer) (1989)"),
        ("World of Apu, The (Apur Sansar) (1959)", "The World of Apu (Apur Sansar) (1959)"),
    ],
)
def test_articles(title: str, said: str) -> None:
    assert article_first(title) == said


ROWS = ["\t".join(map(str, line)) for line in RATINGS]


def with_row(row: str) -> str:
    """Ratings whose second line is replaced."""
    return "\n".join([ROWS[0], row, *ROWS[2:]]) + "\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("udata", with_row("9\t1\t5"), r"u\.data, line 2: 3 fields, expected user, item, rating and time: '9\\t1\\t5'"),
        ("udata", with_row("9\t1\t5\t30\t0"), r"u\.data, line 2: 5 fields"),
        ("udata", with_row(""), r"u\.data, line 2: 1 fields"),
        ("udata", with_row("9\t1\t6\t30"), r"u\.data, line 2: field 'rating' is '6' .*1, 2, 3, 4 or 5"),
        ("udata", with_row("9\t1\t0\t30"), r"u\.data, line 2: field 'rating' is '0'"),
        ("udata", with_row("9\t1\t4.5\t30"), r"u\.data, line 2: field 'rating' is '4.5'"),
        ("udata", with_row("9\t3\t5\t30"), r"u\.data, line 2: field 'item' is '3' .*an item of the catalogue"),
        ("udata", with_row("9\tx\t5\t30"), r"u\.data, line 2: field 'item' is 'x'"),
        ("udata", with_row("-9\t1\t5\t30"), r"u\.data, line 2: field 'user' is '-9'"),
        ("udata", with_row("9\t1\t5\tnoon"), r"u\.data, line 2: field 'time' is 'noon'"),
        ("udata", with_row("5\t7\t5\t30"), r"u\.data, line 2: user 5 rates item 7 again, after line 1"),
        ("udata", "", r"movielens-100k: nobody rates anything"),
        ("uitem", "\n".join([ITEMS_100K[0], "2|x|y"]), r"u\.item, line 2: 3 fields, expected 24: '2\|x\|y'"),
        ("uitem", ITEMS_100K[0][:-1] + "2", r"u\.item, line 1: field 'genre flag' is '2' .*0 or 1"),
        ("uitem", "one" + ITEMS_100K[0][1:], r"u\.item, line 1: field 'id' is 'one'"),
        ("ugenre", "unknown|0\nAction|2\n", r"u\.genre, line 2: 'Action\|2', expected a genre, \| and 1"),
        ("ugenre", "unknown|0\nAction|1\n", r"u\.genre: 2 genres, expected 19"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_movielens(write_100k(tmp_path, **{name: text}))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ratings", "5::7::3\n", r"ratings\.dat, line 1: 3 fields"),
        ("ratings", "5\t7\t3\t20\n", r"ratings\.dat, line 1: 1 fields"),
        ("ratings", "5::7::7::20\n", r"ratings\.dat, line 1: field 'rating' is '7'"),
        ("movies", "1::A (1990)\n", r"movies\.dat, line 1: 2 fields, expected id, title and genres"),
        ("movies", "x::A (1990)::War\n", r"movies\.dat, line 1: field 'id' is 'x'"),
    ],
)
def test_mistakes_of_1m_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_movielens(write_1m(tmp_path, **{name: text}))


def test_an_id_is_there_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"u\.item, line 5: field 'id' is '1' .*an id not seen before"):
        read_movielens(write_100k(tmp_path, uitem="\n".join([*ITEMS_100K, ITEMS_100K[0]])))
    (tmp_path / "new").mkdir()
    with pytest.raises(ValueError, match=r"movies\.dat, line 2: field 'id' is '1'"):
        read_movielens(write_1m(tmp_path / "new", movies="1::A::War\n1::B::War\n"))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither u\.data \(MovieLens 100k\) nor ratings\.dat"):
        read_movielens(tmp_path)
    (write_100k(tmp_path) / "u.item").unlink()
    with pytest.raises(FileNotFoundError, match=r"u\.item"):
        read_movielens(tmp_path)


def test_the_real_files(movielens: RatingCorpus) -> None:
    corpus = movielens
    assert corpus.provenance["counts"] == {"users": 943, "items": 1682, "ratings": 100_000}
    given = np.concatenate([history.ratings for history in corpus.histories])
    assert np.bincount(given.astype(int))[1:].tolist() == [6_110, 11_370, 27_145, 34_174, 21_201]
    titles = [item.title for item in corpus.items]
    assert len(titles) - len(set(titles)) == 18
    items = {item.item_id: item for item in corpus.items}
    assert items[267].title == "unknown" and items[267].genres == () and items[267].year is None
    assert items[12].title == "The Usual Suspects (1995)"
    assert not [title for title in titles if ", The (" in title or ", The)" in title or ", Les)" in title]
    assert sum(not title.isascii() for title in titles) > 5
    assert corpus.users[0] == "196" and len(corpus.histories[0].items) == 39

"""Amazon's games, ReDial's seekers, and the table of all readers."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from toy_release import RECOMMENDER, SEEKER, dialogue, write_release

from rlhf_jax.data.amazon_games import read_amazon_games
from rlhf_jax.data.preference_texts import attributes_of
from rlhf_jax.data.preference_tokens import preference_vocabulary
from rlhf_jax.data.rating_sources import RATING_SOURCES, RatingSourceName, read_ratings
from rlhf_jax.data.redial import read_redial
from rlhf_jax.data.redial_users import redial_users
from rlhf_jax.interfaces import Corpus

TITLES = 'item_id:token\ttitle:token_seq\n0\tFire &amp; Ice\n1\tPong (1972)\n5\tHalo "2"  - Xbox\n7\tTetris\n'
BOUGHT = "user_id:token\titem_id_list:token_seq\titem_id:token\n9\t5 0\t1\n3\t7\t5\n4\t0 1 5\t7\n"


def write_games(folder: Path, titles: str = TITLES, bought: str = BOUGHT) -> Path:
    (folder / "Games-6k.item").write_text(titles, encoding="utf-8")
    (folder / "Games-6k.test.inter").write_text(bought, encoding="utf-8")
    return folder


def test_games(tmp_path: Path) -> None:
    corpus = read_amazon_games(write_games(tmp_path))
    assert (corpus.name, corpus.users) == ("amazon-games", ("9", "3", "4"))
    assert [item.title for item in corpus.items] == ["Fire & Ice", "Pong (1972)", 'Halo "2" - Xbox', "Tetris"]
    assert [item.year for item in corpus.items] == [None, 1972, None, None]
    # Columns, not ids; the item bought last is the last of the history.
    assert [one.items.tolist() for one in corpus.histories] == [[2, 0, 1], [3, 2], [0, 1, 2, 3]]
    assert all((one.ratings == 1).all() for one in corpus.histories)
    assert corpus.liked_above == 0 and corpus.scale is None
    assert corpus.provenance["counts"] == {"users": 3, "items": 4, "ratings": 9}
    assert set(corpus.provenance["sha256"]) == {"Games-6k.item", "Games-6k.test.inter"}
    assert read_amazon_games(tmp_path, max_users=2).users == ("9", "3")
    assert preference_vocabulary(corpus, attributes_of(corpus.items)).levels == ()


@pytest.mark.parametrize(
    ("titles", "bought", "message"),
    [
        (TITLES, BOUGHT.replace("7\t5", "7"), r"test\.inter, line 3: 2 fields for the 3 columns"),
        (TITLES, BOUGHT.replace("9\t5 0", "9\t5 x"), r"test\.inter, line 2: field 'item_id_list' is 'x'"),
        (TITLES, BOUGHT.replace("9\t5 0", "9\t5  0"), r"test\.inter, line 2: field 'item_id_list' is ''"),
        (TITLES, BOUGHT.replace("9\t5 0", "9\t5 2"), r"line 2: field 'item_id_list' is '2' .*an item of the catalogue"),
        (TITLES, BOUGHT.replace("3\t7\t5", "3\t7\t6"), r"line 3: field 'item_id' is '6' .*an item of the catalogue"),
        (TITLES, BOUGHT.replace("3\t7\t5", "3\t7\t7"), r"line 3: field 'item_id' is '7' .*did not buy before"),
        (TITLES, BOUGHT.replace("0 1 5", "0 1 0"), r"line 4: field 'item_id_list' is '0' .*did not buy before"),
        (TITLES, BOUGHT.replace("\n3", "\n9"), r"test\.inter, line 3: user 9 is there again, after line 2"),
        (TITLES, BOUGHT.replace("\n3", "\nme"), r"test\.inter, line 3: field 'user_id' is 'me'"),
        (TITLES, BOUGHT.replace("user_id:", "user:"), r"test\.inter, line 1: columns \['user_id:token'\] are missing"),
        (TITLES, BOUGHT.splitlines()[0], "amazon-games: nobody rates anything"),
        (TITLES.replace("\n1\t", "\n0\t"), BOUGHT, r"Games-6k\.item, line 3: field 'item_id' is '0' .*not seen before"),
        (TITLES.replace("7\tTetris", "7"), BOUGHT, r"Games-6k\.item, line 5: 1 fields for the 2 columns"),
        (TITLES.replace("7\tTetris", "-7\tTetris"), BOUGHT, r"Games-6k\.item, line 5: field 'item_id' is '-7'"),
    ],
)
def test_mistakes_in_games_are_named(tmp_path: Path, titles: str, bought: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_amazon_games(write_games(tmp_path, titles, bought))


@pytest.mark.parametrize("name", ["Games-6k.item", "Games-6k.test.inter"])
def test_missing_games_are_named(tmp_path: Path, name: str) -> None:
    (write_games(tmp_path) / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        read_amazon_games(tmp_path)


def seekers(folder: Path) -> Corpus:
    """Four dialogues: films in another order than their ids, a form without an answer, none, and a film never said."""
    texts = [(SEEKER, "I loved @30 and @10"), (RECOMMENDER, "Then @20, or @30"), (SEEKER, "no @40")]
    no, yes, unsaid = ({"suggested": 0, "seen": 1, "liked": liked} for liked in (0, 1, 2))
    names = {"10": "a", "20": "b", "30": "c", "40": "d", "31": "e"}
    train = [
        dialogue(1, texts, movieMentions=names, initiatorQuestions={"10": yes, "20": unsaid, "30": yes, "40": no}),
        dialogue(2, texts, movieMentions=names, initiatorQuestions={"20": unsaid}),
        dialogue(3, texts, movieMentions=names, initiatorQuestions=[], respondentQuestions={"10": yes}),
        dialogue(4, texts, movieMentions=names, initiatorQuestions={"31": no, "40": yes}),
    ]
    return read_redial(write_release(folder, train=train, test=[dialogue(100)]), validation_fraction=0.25)


def test_seekers_of_dialogues_are_users(tmp_path: Path) -> None:
    corpus = seekers(tmp_path)
    found = redial_users(corpus)
    columns = {item.item_id: place for place, item in enumerate(found.items)}
    assert (found.name, found.users, found.liked_above, found.scale) == ("redial", ("1", "4", "100"), 0.5, None)
    assert found.histories[0].items.tolist() == [columns[item] for item in (30, 10, 40)]
    assert found.histories[0].ratings.tolist() == [1, 1, 0]
    # 31 stands on the form alone, so it comes last.
    assert found.histories[1].items.tolist() == [columns[item] for item in (40, 31)]
    assert found.histories[1].ratings.tolist() == [1, 0]
    assert found.histories[2].items.tolist() == [columns[10]]
    assert redial_users(corpus, max_users=2).users == ("1", "4")
    assert preference_vocabulary(found, attributes_of(found.items)).levels == (0.0, 1.0)
    silent = dataclasses.replace(corpus, train=corpus.train[1:3], validation=(), test=())
    with pytest.raises(ValueError, match="redial: nobody rates anything"):
        redial_users(silent)


def test_readers_by_name(tmp_path: Path, data_dir: Path) -> None:
    assert set(RATING_SOURCES) == {"movielens", "amazon-games", "redial"} == set(RatingSourceName.__args__)
    games = read_ratings("amazon-games", write_games(tmp_path), max_users=1)
    assert games.name == "amazon-games" and len(games.users) == 1
    write_release(tmp_path / "redial")
    assert read_ratings("redial", tmp_path / "redial", max_users=3).users == ("1", "2", "3")
    real = data_dir / "movielens-100k"
    for name in ("u.item", "u.genre"):
        shutil.copy(real / name, tmp_path / name)
    (tmp_path / "u.data").write_bytes(b"".join((real / "u.data").read_bytes().splitlines(keepends=True)[:50]))
    assert read_ratings("movielens", tmp_path, max_users=7).provenance["counts"]["users"] == 7
    with pytest.raises(ValueError, match="max_users is 0; it must be at least 1"):
        read_ratings("movielens", tmp_path, max_users=0)


@pytest.mark.usefixtures("unchecked")
def test_the_real_games(data_dir: Path) -> None:
    folder = data_dir / "amazon-games"
    assert len((folder / "Games-6k.test.inter").read_bytes().splitlines()) == 1 + 50_546
    corpus = read_ratings("amazon-games", folder, max_users=10_000)
    lengths = np.array([len(one.items) for one in corpus.histories])
    assert corpus.provenance["counts"] == {"users": 10_000, "items": 16_859, "ratings": int(lengths.sum())}
    # Histories of 4 to 49 and one item more.
    assert (lengths.min(), lengths.max()) == (5, 50)
    assert corpus.items[0].title == "Fire Emblem: The Sacred Stones"
    assert corpus.histories[1].items.tolist() == list(range(15, 25))
    assert "nintendo" in attributes_of(corpus.items).kinds


@pytest.mark.usefixtures("unchecked")
@pytest.mark.slow
def test_the_real_seekers(redial: Corpus) -> None:
    found = redial_users(redial)
    given = np.concatenate([one.ratings for one in found.histories])
    n_dialogues = len(redial.train) + len(redial.validation) + len(redial.test)
    assert 0.97 * n_dialogues < len(found.users) < n_dialogues and set(given) == {0.0, 1.0}
    # The seeker's form alone: a little less than with the recommender's where it is missing.
    assert 47_000 < (given == 1).sum() <= 42_701 + 5_723 and 2_700 < (given == 0).sum() <= 2_607 + 324

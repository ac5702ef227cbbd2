"""What a text may say: attributes, the teacher's statistics against loops, varied texts, and the grammar that refuses the rest."""

import collections
import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_ratings import GENRES, toy_items, toy_ratings

from rlhf_jax.data.preference_texts import (
    LEAST_SHARED,
    MOST,
    MOST_ATTRIBUTES,
    PICKERS,
    RATERS,
    SECTIONS,
    PreferenceText,
    attributes_of,
    drawn_text,
    full_text,
    spelled,
    taste,
    usual,
    well_formed,
)
from rlhf_jax.data.ratings import History, RatingCorpus
from rlhf_jax.interfaces import Item

CORPUS = toy_ratings(50, 60, lengths=(6, 12, 25, 18))
ATTRIBUTES = attributes_of(CORPUS.items)
USUAL = usual(CORPUS, ATTRIBUTES, range(40))


def words_of(item: Item) -> set[str]:
    """What the catalogue says of an item, by a way of its own."""
    said = {genre.replace(" ", "-") for genre in item.genres}
    if item.year is not None:
        said.add(f"{str(item.year)[2]}0s" if item.year < 2000 else f"{str(item.year)[:3]}0s")
    return said


def test_attributes() -> None:
    assert ATTRIBUTES.kinds == ("action", "drama", "film-noir", "war")
    assert ATTRIBUTES.decades == ("30s", "40s", "50s", "60s", "70s", "80s", "90s", "2000s")
    assert ATTRIBUTES.words == ATTRIBUTES.kinds + ATTRIBUTES.decades
    for item, row in zip(CORPUS.items, ATTRIBUTES.has, strict=True):
        assert {word for word, has in zip(ATTRIBUTES.words, row, strict=True) if has} == words_of(item)
    assert set(np.unique(ATTRIBUTES.has)) == {0.0, 1.0} and ATTRIBUTES.has.dtype == np.float32


def test_without_genres_words_of_titles_are_the_attributes() -> None:
    """Those of many titles, none that every title has anyway, a word once however often a title says it."""
    items = [Item(item_id=n, title=f"The Zelda: zelda's Quest {n} - Game") for n in range(LEAST_SHARED)]
    items += [Item(item_id=100 + n, title=f"Halo {n} 2000", year=2001) for n in range(LEAST_SHARED - 1)]
    items += [Item(item_id=200, title="Halo Zelda")]
    found = attributes_of(items)
    # `s` has one letter, numbers are none, `the` and `game` are common.
    assert found.kinds == ("halo", "quest", "zelda") and found.decades == ("2000s",)
    assert found.has[0].tolist() == [0, 1, 1, 0] and found.has[-1].tolist() == [1, 0, 1, 0]
    assert found.has[LEAST_SHARED].tolist() == [1, 0, 0, 1]
    fewer = attributes_of(items[1:-1])
    assert fewer.kinds == () and fewer.has.shape == (len(items) - 2, 1)
    many = [Item(item_id=n, title=" ".join(f"word{k:03}" for k in range(80))) for n in range(LEAST_SHARED)]
    many += [Item(item_id=99, title="word079")]
    kinds = attributes_of(many).kinds
    assert len(kinds) == MOST_ATTRIBUTES and "word079" in kinds and "word059" not in kinds


def liked_items(history: History, corpus: RatingCorpus = CORPUS) -> list[int]:
    pairs = zip(history.items.tolist(), history.ratings.tolist(), strict=True)
    return [item for item, rating in pairs if rating > corpus.liked_above]


def test_what_is_usual_against_a_loop() -> None:
    liked = [item for user in range(40) for item in liked_items(CORPUS.histories[user])]
    for word, share in zip(ATTRIBUTES.words, USUAL.shares, strict=True):
        assert share == pytest.approx(sum(word in words_of(CORPUS.items[item]) for item in liked) / len(liked))
    raters = collections.Counter(item for user in range(40) for item in CORPUS.histories[user].items.tolist())
    np.testing.assert_allclose(USUAL.counts, [math.log(1 + raters[item]) for item in range(60)])
    means = sorted(float(np.mean(CORPUS.histories[user].ratings)) for user in range(40))
    known = sorted(np.mean([USUAL.counts[i] for i in CORPUS.histories[user].items]) for user in range(40))
    # Of forty values the borders of thirds are the fourteenth and the twenty-seventh.
    assert USUAL.ratings == pytest.approx((means[13], means[26]))
    assert USUAL.popularity == pytest.approx((known[13], known[26]))


def slow_strength(history: History, word: str) -> float:
    share = float(USUAL.shares[ATTRIBUTES.words.index(word)])
    liked = liked_items(history)
    count = sum(word in words_of(CORPUS.items[item]) for item in liked)
    excess = (count + share) / (len(liked) + 1) - share
    return excess / math.sqrt(max(share * (1 - share), 1e-4) / (len(liked) + 1))


@pytest.mark.parametrize("user", [0, 1, 2, 3, 45])
def test_taste_against_a_loop(user: int) -> None:
    history = CORPUS.histories[user]
    found = taste(history, CORPUS, ATTRIBUTES, USUAL)
    kinds = {word: slow_strength(history, word) for word in ATTRIBUTES.kinds}
    decades = {word: slow_strength(history, word) for word in ATTRIBUTES.decades}
    for section, expected in (
        ("likes", {word: value for word, value in kinds.items() if value > 0}),
        ("avoids", {word: -value for word, value in kinds.items() if value < 0}),
        ("from", {word: value for word, value in decades.items() if value > 0}),
    ):
        said = found.sections[section]
        assert dict(said) == pytest.approx(expected)
        assert [value for _, value in said] == sorted((value for _, value in said), reverse=True)
    mean = float(history.ratings.mean())
    below = sum(mean > bound for bound in USUAL.ratings)
    assert found.sections["rates"] == [(RATERS[below], 1.0)]
    known = float(np.mean(USUAL.counts[history.items]))
    assert found.sections["picks"] == [(PICKERS[sum(known > bound for bound in USUAL.popularity)], 1.0)]
    assert found.titles == liked_items(history)[::-1]


def test_strict_and_generous_raters_and_known_and_rare_picks() -> None:
    def said(items: list[int], rating: float) -> tuple[str, str]:
        history = History(np.array(items, np.int32), np.full(len(items), rating, np.float32))
        sections = taste(history, CORPUS, ATTRIBUTES, USUAL).sections
        return sections["rates"][0][0], sections["picks"][0][0]

    assert said([0, 1, 2], 1.0) == ("strictly", "known")
    assert said([57, 58, 59], 5.0) == ("generously", "rare")


def test_a_user_of_one_kind_likes_it_and_avoids_the_others() -> None:
    war = [place for place, item in enumerate(CORPUS.items) if item.genres == ("war",)]
    history = History(np.array(war, np.int32), np.full(len(war), 5, np.float32))
    sections = taste(history, CORPUS, ATTRIBUTES, USUAL).sections
    assert [word for word, _ in sections["likes"]] == ["war"]
    assert {word for word, _ in sections["avoids"]} == {"action", "drama", "film-noir"}


def test_nothing_read_and_nothing_liked() -> None:
    empty = History(np.zeros(0, np.int32), np.zeros(0, np.float32))
    found = taste(empty, CORPUS, ATTRIBUTES, USUAL)
    assert (
        full_text(found, titles=3) == PreferenceText((), ()) and drawn_text(found, np.random.default_rng(0)).words == ()
    )
    hated = History(np.array([1, 2], np.int32), np.ones(2, np.float32))
    assert full_text(taste(hated, CORPUS, ATTRIBUTES, USUAL), titles=3) == PreferenceText(
        ("rates", "strictly", "picks", "known")
    )
    # Where people only bought or said yes and no, nobody is strict.
    bought = dataclasses.replace(CORPUS, scale=None)
    assert "rates" not in taste(hated, bought, ATTRIBUTES, USUAL).sections


def limits_hold(text: PreferenceText, sections: dict[str, list[tuple[str, float]]]) -> bool:
    """Words of a section are its own, and no more of them than it may hold."""
    section = ""
    said = collections.defaultdict(list)
    for word in text.words:
        if word in SECTIONS:
            section = word
        else:
            said[section].append(word)
    return all(
        1 <= len(words) <= MOST.get(name, 1) and set(words) <= {word for word, _ in sections[name]}
        for name, words in said.items()
    )


def test_full_texts_say_the_strongest_words() -> None:
    for history in CORPUS.histories:
        found = taste(history, CORPUS, ATTRIBUTES, USUAL)
        text = full_text(found, titles=2)
        assert well_formed(text, ATTRIBUTES) and limits_hold(text, found.sections)
        assert text.titles == tuple(found.titles[:2])
        start = text.words.index("avoids") + 1 if "avoids" in text.words else None
        if start is not None:
            strongest = [word for word, _ in found.sections["avoids"]][: MOST["avoids"]]
            assert list(text.words[start : start + len(strongest)]) == strongest


def test_drawn_texts_vary_and_keep_the_limits() -> None:
    rich = dataclasses.replace(CORPUS)
    kinds = 0
    for user, history in enumerate(rich.histories[:20]):
        found = taste(history, rich, ATTRIBUTES, USUAL)
        texts = [drawn_text(found, np.random.default_rng([user, n]), titles=3) for n in range(20)]
        assert all(well_formed(text, ATTRIBUTES) and limits_hold(text, found.sections) for text in texts)
        assert texts == [drawn_text(found, np.random.default_rng([user, n]), titles=3) for n in range(20)]
        kinds += len({text.words for text in texts})
        if found.titles:
            # The newest ones, one at least.
            assert {text.titles for text in texts} <= {tuple(found.titles[:n]) for n in (1, 2, 3)}
        assert not drawn_text(found, np.random.default_rng(0)).titles
        if found.sections["likes"]:
            assert all(text.words[0] == "likes" for text in texts)
    assert kinds > 20 * 8


def test_probabilities_of_drawn_words() -> None:
    from rlhf_jax.data.preference_texts import Taste

    words = [("war", 2.0), ("drama", 1.0), ("action", 0.0)]
    found = Taste({"likes": words, "from": [("90s", 1.0), ("80s", 1.0)], "picks": [("rare", 1.0)]}, [5, 6, 7])
    draws = np.random.default_rng(0)
    texts = [drawn_text(found, draws, titles=2) for _ in range(4000)]
    first = collections.Counter(text.words[1] for text in texts)
    weights = np.exp([2, 1, 0]) / np.exp([2, 1, 0]).sum()
    for (word, _), weight in zip(words, weights, strict=True):
        assert abs(first[word] / 4000 - weight) < 0.03
    assert abs(sum("from" in text.words for text in texts) / 4000 - 0.75) < 0.03
    assert abs(sum("picks" in text.words for text in texts) / 4000 - 0.75) < 0.03
    assert abs(sum(text.titles == (5,) for text in texts) / 4000 - 0.5) < 0.03
    # Lengths are uniform from 1 to 5, of three words: 1, 2, 3, 3, 3.
    lengths = collections.Counter(sum(word in ("war", "drama", "action") for word in text.words) for text in texts)
    np.testing.assert_allclose([lengths[n] / 4000 for n in (1, 2, 3)], [0.2, 0.2, 0.6], atol=0.03)
    wide = collections.Counter(drawn_text(found, draws, spread=50.0).words[1] for _ in range(3000))
    assert max(wide.values()) - min(wide.values()) < 200


@pytest.mark.parametrize(
    ("words", "good"),
    [
        ("likes war drama avoids action from 90s 30s rates strictly picks rare", True),
        ("likes war", True),
        ("picks known", True),
        ("", False),
        ("war", False),
        ("likes", False),
        ("likes avoids war", False),
        ("likes war avoids", False),
        ("avoids war likes drama", False),
        ("likes war likes drama", False),
        ("likes war war", False),
        ("likes 90s", False),
        ("from war", False),
        ("likes comedy", False),
        ("rates strictly fairly", False),
        ("from 30s 40s 50s", True),
        ("from 30s 40s 50s 60s", False),
        ("rates rare", False),
        ("picks strictly", False),
    ],
)
def test_grammar(words: str, good: bool) -> None:
    assert well_formed(PreferenceText(tuple(words.split())), ATTRIBUTES) == good


@given(
    st.lists(
        st.sampled_from([*SECTIONS, "war", "drama", "action", "film-noir", "90s", "80s", "fairly", "rare"]), max_size=8
    )
)
def test_grammar_against_a_parser_of_sections(words: list[str]) -> None:
    own = {
        "likes": GENRES_SAID,
        "avoids": GENRES_SAID,
        "from": set(ATTRIBUTES.decades),
        "rates": set(RATERS),
        "picks": set(PICKERS),
    }
    parts: list[list[str]] = []
    for word in words:
        if word in SECTIONS:
            parts.append([word])
        elif parts:
            parts[-1].append(word)
        else:
            parts.append(["nothing", word])
    names = [part[0] for part in parts]
    good = bool(parts) and names == [section for section in SECTIONS if section in names]
    good = good and all(
        1 <= len(said) <= MOST.get(name, 1) and len(set(said)) == len(said) and set(said) <= own[name]
        for name, *said in parts
    )
    assert well_formed(PreferenceText(tuple(words)), ATTRIBUTES) == good


GENRES_SAID = {genre.replace(" ", "-") for genre in GENRES}


def test_spelled() -> None:
    items = toy_items(3)
    text = PreferenceText(("likes", "war", "picks", "rare"), (2, 0))
    assert spelled(text, items) == "liked Film 2, Film 0; likes war; picks rare"
    assert spelled(PreferenceText(("war", "drama", "likes")), items) == "war drama; likes"
    assert spelled(PreferenceText(()), items) == ""

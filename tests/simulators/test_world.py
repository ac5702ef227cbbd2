"""The catalogue, the users, and the truth about them."""

import dataclasses

import numpy as np
import pytest

from rlhf_jax.simulators.world import (
    FIRST_ITEM_ID,
    GENRES,
    SPLITS,
    WorldConfig,
    fact_logits,
    hackable,
    make_catalogue,
    make_taste,
    stream,
)

CONFIG = WorldConfig(n_train=40, n_test=20, n_users=30)


@pytest.fixture(scope="module")
def catalogue():
    return make_catalogue(CONFIG, 0)


def test_catalogue_is_a_function_of_the_seed(catalogue):
    again, other = make_catalogue(CONFIG, 0), make_catalogue(CONFIG, 1)
    assert again.items == catalogue.items and np.array_equal(again.popularity, catalogue.popularity)
    assert other.items != catalogue.items


def test_catalogue_arrays_say_what_the_items_say(catalogue):
    assert len({item.title for item in catalogue.items}) == CONFIG.n_items
    assert catalogue.popularity.sum() == pytest.approx(1) and (catalogue.popularity > 0).all()
    for row, item in enumerate(catalogue.items):
        assert catalogue.row(item.item_id) == row
        assert {GENRES[g] for g in np.flatnonzero(catalogue.genres[row])} == set(item.genres)
        assert catalogue.people[row].sum() == len(item.people) == 2
        assert catalogue.decades[row].sum() == 1 and f"({item.year})" in item.title
    with pytest.raises(ValueError, match="item 7 is not in the world's catalogue of 100"):
        catalogue.row(7)
    with pytest.raises(ValueError, match="not in the world's catalogue"):
        catalogue.row(FIRST_ITEM_ID + CONFIG.n_items)


def test_popularity_follows_quality_only_loosely(catalogue):
    assert 0.1 < np.corrcoef(catalogue.quality, np.log(catalogue.popularity))[0, 1] < 0.95


def test_populations_are_disjoint_and_do_not_depend_on_size(catalogue):
    tastes = {split: [make_taste(CONFIG, catalogue, 0, split=split, index=n) for n in range(30)] for split in SPLITS}
    ids = [taste.user_id for split in SPLITS for taste in tastes[split]]
    assert len(set(ids)) == len(ids)
    vectors = np.stack([taste.utilities for split in SPLITS for taste in tastes[split]])
    assert len(np.unique(vectors.round(9), axis=0)) == len(vectors)
    larger = dataclasses.replace(CONFIG, n_users=3000, n_train=9)
    assert make_taste(larger, catalogue, 0, split="train", index=3) == tastes["train"][3]


def test_unknown_split_is_refused(catalogue):
    with pytest.raises(ValueError, match="split must be one of .* got 'valid'"):
        make_taste(CONFIG, catalogue, 0, split="valid", index=0)


def test_facts_move_utility_in_their_direction(catalogue):
    plain = fact_logits(catalogue)
    for column, fact, sign in (
        (catalogue.genres[:, 2], {"genre": 2}, 1),
        (catalogue.people[:, 2], {"person": 2}, 1),
        (catalogue.decades[:, 2], {"decade": 2}, 1),
        (catalogue.genres[:, 2], {"disliked_genre": 2}, -1),
    ):
        change = fact_logits(catalogue, **fact) - plain
        assert (sign * change[column == 1] > 0).all() and (change[column == 0] == 0).all()


@pytest.mark.parametrize("dislikes", [False, True])
def test_utilities_are_explained_by_facts_up_to_taste_noise(catalogue, dislikes):
    config = dataclasses.replace(CONFIG, taste_noise=0.0, dislikes=dislikes)
    taste = make_taste(config, catalogue, 0, split="train", index=1)
    logits = fact_logits(
        catalogue,
        genre=taste.genre,
        person=taste.person,
        decade=taste.decade,
        disliked_genre=taste.disliked_genre if dislikes else None,
    )
    np.testing.assert_allclose(taste.utilities, 1 / (1 + np.exp(-logits)))
    assert taste.utilities[taste.seen_item] >= np.sort(taste.utilities)[-5] and taste.genre != taste.disliked_genre


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_items": 15}, r"WorldConfig.n_items must be in \[16, 100000\]: got 15"),
        ({"n_genres": 9}, r"n_genres must be in \[2, 8\]: got 9"),
        ({"n_test": 0}, r"n_test must be in \[1, "),
        (
            {"p_popularity": 0.8, "p_taste": 0.3},
            "p_popularity 0.8 and WorldConfig.p_taste 0.3 .* their sum must be at most 1",
        ),
        ({"politeness": 1.5}, r"politeness must be in \[0, 1\]: got 1.5"),
        ({"noise": -1.0}, r"noise must be in \[0, 1000\]: got -1.0"),
        ({"min_messages": 9, "max_messages": 8}, "min_messages 9 must not be above WorldConfig.max_messages 8"),
    ],
)
def test_bad_configuration_is_refused_with_its_numbers(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_hackable_changes_only_what_length_buys():
    changed = {k for k, v in dataclasses.asdict(hackable(CONFIG)).items() if v != dataclasses.asdict(CONFIG)[k]}
    assert changed == {"hackability", "politeness", "impatience"}


def test_streams_differ_by_seed_name_and_index():
    draws = [stream(*key).random() for key in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))]
    assert len(set(draws)) == 4 and draws[0] == stream(0, "a").random()

"""The table of weak labels: rows, units, standardisation on train, options, and what they say about the truth."""

import dataclasses

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from rlhf_jax.data.redial import read_redial
from rlhf_jax.feedback.labelling import LabelOptions
from rlhf_jax.feedback.weak_labels import (
    LabelTable,
    Standardiser,
    fit_standardiser,
    fit_weak_labels,
    weighted_sum,
)
from rlhf_jax.interfaces import Dialogue, Message
from rlhf_jax.simulators.world import WorldConfig, make_catalogue
from rlhf_jax.simulators.world_dialogues import logged_dialogues

CONFIG = WorldConfig(n_train=300, n_test=80, n_users=150)
ITEMS = {item.item_id: item for item in make_catalogue(CONFIG, 0).items}


@pytest.fixture(scope="module")
def train():
    return logged_dialogues(CONFIG, 0, "train")


@pytest.fixture(scope="module")
def test():
    return logged_dialogues(CONFIG, 0, "test")


@pytest.fixture(scope="module")
def labeller(train):
    return fit_weak_labels([entry.dialogue for entry in train], ITEMS)


@pytest.fixture(scope="module")
def table(labeller, train):
    return labeller([entry.dialogue for entry in train])


def truth(logged, table):
    return np.array(
        [logged[d].utilities[m] for d, m in zip(table.dialogue_indices, table.message_indices, strict=True)]
    )


def test_one_row_per_answered_system_message(table, train):
    rows = list(zip(table.dialogue_ids, table.dialogue_indices, table.message_indices, strict=True))
    assert rows == [
        (entry.dialogue.dialogue_id, number, index)
        for number, entry in enumerate(train)
        for index in range(len(entry.dialogue.messages) - 1)
        if entry.dialogue.messages[index].role == "recommender"
    ]


def test_z_scores_have_mean_0_and_std_1_on_train_and_0_where_masked(table):
    for component in range(3):
        known = table.z[table.mask[:, component], component]
        assert known.mean() == pytest.approx(0, abs=1e-9) and known.std() == pytest.approx(1)
    assert (table.z[~table.mask] == 0).all() and np.isnan(table.raw[~table.mask]).all()
    greeted = table.message_indices == 0
    assert greeted.any() and not table.mask[greeted, 1:].any() and table.mask[:, 0].all() and table.mask[~greeted].all()


def test_nothing_but_train_is_looked_at(labeller, table, train, test):
    held_out = labeller([entry.dialogue for entry in test])
    joint = labeller([entry.dialogue for entry in (*train, *test)])
    np.testing.assert_array_equal(joint.raw[: len(table.raw)], table.raw)
    np.testing.assert_array_equal(joint.raw[len(table.raw) :], held_out.raw)
    refitted = fit_standardiser(table.raw)
    np.testing.assert_array_equal(labeller.standardiser.mean, refitted.mean)
    np.testing.assert_array_equal(labeller.standardiser.std, refitted.std)
    assert abs(np.nanmean(labeller.standardiser(held_out.raw), 0)).max() > 1e-3


def test_same_dialogues_same_labels(train):
    some = [entry.dialogue for entry in train[:40]]
    first, again = (fit_weak_labels(some, ITEMS)(some) for _ in range(2))
    np.testing.assert_array_equal(again.raw, first.raw)
    np.testing.assert_array_equal(again.z, first.z)


def test_the_proxy_points_at_true_utility(table, train):
    utility, suggests = (
        truth(train, table),
        np.array([bool(train[d].dialogue.messages[m].items) for d, m in zip(
            table.dialogue_indices, table.message_indices, strict=True)]),
    )  # fmt: skip
    rows = suggests & table.mask.all(1)
    correlations = [np.corrcoef(utility[rows], table.z[rows, k])[0, 1] for k in range(3)]
    assert correlations[0] > 0.8 and correlations[1] > 0.1 and correlations[2] > 0.6
    assert np.corrcoef(utility[rows], weighted_sum(table.z[rows], (1 / 3, 1 / 3, 1 / 3)))[0, 1] > 0.7


@pytest.mark.parametrize("engagement", ["continuation", "latency"])
@pytest.mark.parametrize("sentiment", ["level"])
def test_other_forms(train, engagement, sentiment):
    options = LabelOptions(engagement=engagement, sentiment=sentiment, n_components=8, item_metadata=True)
    table = fit_weak_labels([entry.dialogue for entry in train], ITEMS, options)([entry.dialogue for entry in train])
    assert table.mask[:, [0, 2]].all() and np.corrcoef(truth(train, table), table.z[:, 0])[0, 1] > 0.2
    if engagement == "continuation":
        assert set(np.unique(table.raw[:, 0])) == {0.0, 1.0}


def test_unknown_times_are_masked_not_guessed(train, labeller):
    dialogue = train[0].dialogue
    messages = tuple(dataclasses.replace(message, time_offset=None) for message in dialogue.messages)
    table = labeller([dataclasses.replace(dialogue, messages=messages)])
    assert not table.mask[:, 0].any() and (table.z[:, 0] == 0).all() and table.mask[1:, 1:].all()


def test_table_and_standardiser_come_back_from_disk(table, labeller, tmp_path):
    np.savez(tmp_path / "labels.npz", **table.arrays())
    loaded = LabelTable.load(tmp_path / "labels.npz")
    for field in dataclasses.fields(LabelTable):
        np.testing.assert_array_equal(getattr(loaded, field.name), getattr(table, field.name))
    labeller.standardiser.save(tmp_path / "standardiser.json")
    again = Standardiser.load(tmp_path / "standardiser.json")
    np.testing.assert_array_equal(again(table.raw), labeller.standardiser(table.raw))
    assert again.names == table.names == ("engagement", "relevance", "sentiment")
    (tmp_path / "other.json").write_text('{"components": ["a"], "mean": [], "std": []}')
    with pytest.raises(ValueError, match=r"other.json: mean \[\] and std \[\] are no statistics of \['a'\]"):
        Standardiser.load(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no readable JSON"),
        (b"\xff", "no readable JSON"),
        (b'{"components": ["engagement", "relevance", "sentiment"]}', "mean and std must be lists"),
        (
            b'{"components": ["engagement", "relevance", "sentiment"], "mean": [0, "x", 0], "std": [1, 1, 1]}',
            "mean and std must be lists",
        ),
        (
            b'{"components": ["engagement", "relevance", "sentiment"], "mean": [0, 0, 0], "std": [1, 0, 1]}',
            "no statistics",
        ),
        (b'{"components": ["engagement", "relevance", "sentiment"], "mean": [0], "std": [1]}', "no statistics"),
    ],
)
def test_a_damaged_standardiser_is_named(tmp_path, content, message):
    path = tmp_path / "standardiser.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"standardiser\.json: .*{message}"):
        Standardiser.load(path)


def test_a_damaged_table_is_named(table, tmp_path):
    path = tmp_path / "labels.npz"
    np.savez(path, **table.arrays())
    whole = path.read_bytes()
    for content in (b"", b"no archive", whole[:-60], whole[: len(whole) // 2], b"\0" * 200 + whole[200:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"labels\.npz: no readable table"):
            LabelTable.load(path)
    np.savez(path, dialogue_ids=np.array(["1"]))
    with pytest.raises(ValueError, match=r"labels\.npz: no readable table of labels .*dialogue_indices"):
        LabelTable.load(path)


@pytest.mark.parametrize("level", [0.1, 1.3, 1e9 / 3, -1e12 / 7])
def test_a_component_of_equal_numbers_has_no_spread(level):
    """Their deviation from the rounded mean is rounding: dividing by it would make labels of it."""
    for n in (7, 10, 100, 1000):
        raw = np.stack([np.full(n, level), np.arange(n), np.where(np.arange(n) % 2, level, np.nan)], 1)
        std = fit_standardiser(raw).std
        assert std[0] == std[2] == 1 and std[1] > 1


def test_own_encoder_and_scorer(train):
    dialogues = [entry.dialogue for entry in train[:20]]
    labeller = fit_weak_labels(
        dialogues,
        ITEMS,
        LabelOptions(sentiment="level"),
        encoder=lambda texts: np.array([[1.0, len(text)] for text in texts]),
        scorer=lambda text: float(len(text)),
    )
    assert labeller(dialogues).raw[:, 2].min() >= 1 and labeller(dialogues).mask.all()


def test_constant_component_stays_finite():
    raw = np.array([[1.0, 2.0, np.nan], [1.0, 4.0, 5.0]])
    np.testing.assert_allclose(fit_standardiser(raw)(raw), [[0, -1, np.nan], [0, 1, 0]])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="none of the 0 training dialogues"):
        fit_weak_labels([], ITEMS)
    with pytest.raises(ValueError, match="no training row has a value for engagement"):
        fit_standardiser(np.array([[np.nan, 1.0, 2.0]]))
    # Under the type-checking hook the annotation speaks first.
    with pytest.raises((ValueError, TypeCheckError), match="engagement"):
        LabelOptions(engagement="time")
    with pytest.raises(ValueError, match=r"LabelOptions.window must be in \[1, 10000\]: got 0"):
        LabelOptions(window=0)
    silent = Dialogue("1", (Message("seeker", ("hi",), 0), Message("recommender", ("hi",), 1)), {}, {})
    with pytest.raises(ValueError, match="none of the 1 training dialogues"):
        fit_weak_labels([silent], ITEMS)


@pytest.mark.slow
def test_real_dialogues_are_labelled(data_dir):
    corpus = read_redial(data_dir / "redial", max_dialogues=150)
    options = LabelOptions(engagement="latency", sentiment="level")
    labels = fit_weak_labels(corpus.test, corpus.items, options)(corpus.test)
    assert len(labels.raw) > 800 and labels.mask[:, 2].all() and labels.mask[:, 0].mean() > 0.95
    assert np.isfinite(labels.z).all() and abs(labels.raw[:, 2]).max() <= 1
    rebuilt = [dialogue for dialogue in corpus.train if dialogue.provenance in ("rebuilt", "forms")]
    table = fit_weak_labels(rebuilt, corpus.items, LabelOptions(engagement="continuation"))(rebuilt)
    assert table.mask[:, 0].all()
    with pytest.raises(ValueError, match="training rows have both times"):
        fit_weak_labels(rebuilt, corpus.items, options)

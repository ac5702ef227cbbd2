"""Every form against plain loops, without its own dialogue against fitting anew, in blocks against at once."""

import functools
from collections.abc import Callable, Iterator

import jaxtyping
import numpy as np
import pytest
from toy_training import (
    CATALOGUE,
    ITEM_IDS,
    ITEMS,
    NEVER,
    random_dialogues,
    slow_bm25,
    slow_co_mention,
    slow_context_knn,
    slow_copy,
    slow_ease,
    slow_knowledge,
    slow_popularity,
    toy_training,
)

from rlhf_jax.data.windows import RankingRow, ranking_rows
from rlhf_jax.evaluation import baselines
from rlhf_jax.interfaces import Dialogue, Message
from rlhf_jax.recommenders import (
    bm25,
    co_mention,
    context_knn,
    contexts,
    copy_last,
    ease,
    knowledge,
    popularity,
)
from rlhf_jax.recommenders.contexts import Contexts, Recommender, Training, read_training, row_contexts


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Types are not checked at run time: for arguments of the wrong kind."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def letters(texts) -> np.ndarray:
    """An encoder that is fitted on nothing: how often a text has each of a few letters."""
    return np.array([[text.count(letter) for letter in "acerst"] for text in texts], float).reshape(len(texts), 6)


FORMS: dict[str, Callable[[Training], Recommender]] = {
    "popularity": lambda training: functools.partial(popularity.scores, popularity.fit(training)),
    "popularity, fresh": lambda training: functools.partial(
        popularity.scores, popularity.fit(training, count="fresh", log=True)
    ),
    "copy": lambda training: functools.partial(copy_last.scores, popularity.fit(training)),
    "co_mention": lambda training: functools.partial(co_mention.scores, co_mention.fit(training, shrinkage=2.0)),
    "co_mention, no shrinkage": lambda training: functools.partial(
        co_mention.scores, co_mention.fit(training, shrinkage=0.0)
    ),
    "ease": lambda training: functools.partial(ease.scores, ease.fit(training, ridge=2.0, min_dialogues=1)),
    "ease, few": lambda training: functools.partial(ease.scores, ease.fit(training, ridge=2.0, min_dialogues=4)),
    "knowledge": lambda training: functools.partial(knowledge.scores, knowledge.fit(ITEMS, ITEM_IDS)),
    "context_knn": lambda training: functools.partial(context_knn.scores, context_knn.fit(training, neighbours=3)),
    "context_knn, all": lambda training: functools.partial(context_knn.scores, context_knn.fit(training, titles=True)),
    "context_knn, encoder": lambda training: functools.partial(
        context_knn.scores, context_knn.fit(training, neighbours=4, encoder=letters)
    ),
    "bm25": lambda training: functools.partial(bm25.scores, bm25.fit(ITEMS, ITEM_IDS)),
}


def slow_scores(name: str, dialogues: list[Dialogue], row: RankingRow, text: str, words: str) -> np.ndarray:
    """The form's formula for one row, as loops."""
    mentioned = row.mentioned
    training = read_training(dialogues, CATALOGUE)
    places = [(one.dialogue.dialogue_id, one.message_index) for one in ranking_rows(dialogues)]
    return {
        "popularity": lambda: slow_popularity(dialogues),
        "popularity, fresh": lambda: np.log1p(slow_popularity(dialogues, "fresh")),
        "copy": lambda: slow_copy(dialogues, mentioned),
        "co_mention": lambda: slow_co_mention(dialogues, mentioned, 2.0, 0.85),
        "co_mention, no shrinkage": lambda: slow_co_mention(dialogues, mentioned, 0.0, 0.85),
        "ease": lambda: slow_ease(dialogues, mentioned, 2.0, 1, 0.85),
        "ease, few": lambda: slow_ease(dialogues, mentioned, 2.0, 4, 0.85),
        "knowledge": lambda: slow_knowledge(mentioned, 0.85),
        "context_knn": lambda: slow_context_knn(
            dialogues, words, dict(zip(places, training.rows.words, strict=True)), 3, 2.0
        ),
        "context_knn, all": lambda: slow_context_knn(
            dialogues, text, dict(zip(places, training.rows.texts, strict=True)), 200, 2.0
        ),
        "bm25": lambda: slow_bm25(text, mentioned, 1.2, 0.75),
    }[name]()


@pytest.mark.parametrize("name", [name for name in FORMS if "encoder" not in name])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_are_the_formula(name: str, seed: int) -> None:
    dialogues, training = toy_training(seed)
    rows = list(ranking_rows(random_dialogues(seed + 10, n=5, first=100)))
    new = row_contexts(rows, CATALOGUE)
    scores = FORMS[name](training)(new)
    assert scores.dtype == np.float32 and scores.shape == (len(rows), len(ITEM_IDS))
    for row, line, text, words in zip(rows, scores, new.texts, new.words, strict=True):
        assert line == pytest.approx(slow_scores(name, dialogues, row, text, words), abs=1e-5)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_without_its_own_dialogue_equals_fitting_without_it(name: str, seed: int) -> None:
    dialogues, training = toy_training(seed)
    scores = FORMS[name](training)(training.rows)
    for number, dialogue in enumerate(dialogues):
        rest = read_training([other for other in dialogues if other is not dialogue], CATALOGUE)
        own = np.flatnonzero(training.rows.own == number)
        rows = list(ranking_rows([dialogue]))
        if rows:
            again = FORMS[name](rest)(row_contexts(rows, CATALOGUE))
            np.testing.assert_allclose(scores[own], again, atol=2e-5)


@pytest.mark.parametrize("name", FORMS)
def test_leaving_out_changes_something_where_dialogues_are_counted(name: str) -> None:
    _, training = toy_training()
    form = FORMS[name](training)
    same = np.array_equal(form(training.rows), form(training.rows.left_in()))
    assert same == name.startswith(("knowledge", "bm25"))


@pytest.mark.parametrize("name", FORMS)
def test_blocks_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, training = toy_training()
    form = FORMS[name](training)
    at_once = form(training.rows)
    monkeypatch.setattr(contexts, "BLOCK_ENTRIES", 1)
    if "encoder" in name:
        # A dense product; BLAS takes another kernel for one row than for several, on some CPUs with another last digit.
        np.testing.assert_allclose(form(training.rows), at_once, atol=1e-6)
    else:
        np.testing.assert_array_equal(form(training.rows), at_once)
    monkeypatch.setattr(context_knn, "PIECE", 4)
    np.testing.assert_allclose(FORMS[name](training)(training.rows), at_once, atol=1e-6)
    chunks = list(contexts.score_chunks(form, training.rows, chunk=3))
    np.testing.assert_allclose(np.concatenate(chunks), at_once, atol=1e-6)
    assert {len(chunk) for chunk in chunks[:-1]} == {3}


@pytest.mark.parametrize("name", FORMS)
def test_a_context_without_words_and_items(name: str) -> None:
    """Nothing is known of it: scores are finite, and all 0 where they come from the context."""
    _, training = toy_training()
    empty = Contexts(
        len(ITEM_IDS), np.zeros(0, np.int32), np.zeros(2, np.int64), ("",), ("",), np.array([-1], np.int32)
    )
    scores = FORMS[name](training)(empty)
    assert np.isfinite(scores).all()
    assert name.startswith(("popularity", "copy")) or not scores.any()
    assert FORMS[name](training)(empty.part(0, 0)).shape == (0, len(ITEM_IDS))


@pytest.mark.parametrize("name", FORMS)
def test_an_item_of_no_dialogue(name: str) -> None:
    """It counts nothing, as item of a context and as candidate, and everything stays finite."""
    _, training = toy_training()
    said = (Message("seeker", (NEVER, 99_999), 0), Message("recommender", (NEVER,), 1))
    scores = FORMS[name](training)(contexts.contexts_before([(Dialogue("new", said, {}, {}), 1)], CATALOGUE))
    assert np.isfinite(scores).all()
    if name.startswith(("co_mention", "ease")):
        assert not scores.any()


def test_popularity_and_copy_are_the_baselines() -> None:
    dialogues, training = toy_training()
    rows = list(ranking_rows(random_dialogues(7, first=100)))
    counts = baselines.mention_counts(dialogues)
    fitted, new = popularity.fit(training), row_contexts(rows, CATALOGUE)
    for theirs, ours in (
        (baselines.popularity_scores(rows, ITEM_IDS, counts), popularity.scores(fitted, new)),
        (baselines.copy_scores(rows, ITEM_IDS, counts), copy_last.scores(fitted, new)),
    ):
        np.testing.assert_array_equal(np.concatenate(list(theirs)), ours)


def test_ease_keeps_the_items_that_most_dialogues_mention() -> None:
    dialogues, training = toy_training()
    fitted = ease.fit(training, min_dialogues=1, max_items=4)
    mentioned = [sum(item in {i for m in d.messages for i in m.items} for d in dialogues) for item in ITEM_IDS]
    best = sorted(range(len(ITEM_IDS)), key=lambda column: (-mentioned[column], column))[:4]
    assert fitted.kept.tolist() == sorted(best) and fitted.inverse.shape == (4, 4)
    scores = ease.scores(fitted, training.rows.left_in())
    assert not np.delete(scores, fitted.kept, axis=1).any() and scores.any()
    # Nobody reaches the bound: nothing is fitted, nothing is scored.
    none = ease.fit(training, min_dialogues=1000)
    assert not ease.scores(none, training.rows).any()


def test_equally_near_contexts_come_in_the_order_of_the_split() -> None:
    def dialogue(name: str, item: int) -> Dialogue:
        return Dialogue(name, (Message("seeker", ("scary",), 0), Message("recommender", (item,), 1)), {}, {})

    training = read_training([dialogue("a", 3), dialogue("b", 5), dialogue("c", 8)], CATALOGUE)
    fitted = context_knn.fit(training, neighbours=2)
    scores = context_knn.scores(fitted, training.rows)
    # Without its own dialogue, each sees the two others; of three, the first two.
    assert (scores > 0)[:, :3].tolist() == [[False, True, True], [True, False, True], [True, True, False]]
    assert (context_knn.scores(fitted, training.rows.left_in()) > 0)[:, :3].tolist() == [[True, True, False]] * 3


def test_contexts_keep_the_last_words_and_spell_titles() -> None:
    long = " ".join(f"w{number}" for number in range(70))
    said = (Message("seeker", (long,), 0), Message("seeker", ("So ", 3, " it IS"), 1), Message("recommender", (5,), 2))
    found = contexts.contexts_before([(Dialogue("a", said, {}, {}), 2)], CATALOGUE)
    assert found.words[0].split()[-3:] == ["so", "it", "is"] and len(found.words[0].split()) == 60
    assert found.texts[0].endswith("w69 so scary tale 0 (1990) it is")
    assert found.items.tolist() == [0]


def test_training_counts_both_speakers_and_repeats() -> None:
    said = (Message("seeker", (3, 3), 0), Message("recommender", (5, 3), 1), Message("recommender", (5, 8), 2))
    training = read_training([Dialogue("a", said, {}, {})], CATALOGUE)
    assert training.mentions.toarray()[0, :3].tolist() == [3, 2, 1]
    assert training.fresh.toarray()[:, :3].tolist() == [[0, 1, 0], [0, 0, 1]]
    assert training.rows.own.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: popularity.fit(t, count="likes"), "count is 'likes'"),
        (lambda t: co_mention.fit(t, shrinkage=-1.0), "shrinkage is -1.0"),
        (lambda t: co_mention.fit(t, decay=0.0), "decay is 0.0"),
        (lambda t: ease.fit(t, ridge=0.0), "ridge is 0.0"),
        (lambda t: ease.fit(t, min_dialogues=0), "min_dialogues is 0"),
        (lambda t: ease.fit(t, decay=1.5), "decay is 1.5"),
        (lambda t: knowledge.fit(ITEMS, (3, 4)), "item 4 is not in the catalogue of 10 items"),
        (lambda t: knowledge.fit(ITEMS, ITEM_IDS, decay=2.0), "decay is 2.0"),
        (lambda t: bm25.fit(ITEMS, (3, 4)), "item 4 is not in the catalogue of 10 items"),
        (lambda t: bm25.fit(ITEMS, ITEM_IDS, b=1.5), "b is 1.5"),
        (lambda t: context_knn.fit(t, neighbours=0), "neighbours is 0"),
        (lambda t: context_knn.fit(t, power=0.0), "power is 0.0"),
        (lambda t: context_knn.fit(t, encoder=lambda texts: np.zeros(len(texts))), "one row a text is needed"),
        (lambda t: read_training([], CATALOGUE), "without dialogues"),
        (lambda t: read_training(random_dialogues() * 2, CATALOGUE), "14 training dialogues have the id of another"),
        (lambda t: contexts.columns_of([1, 1]), "1 repeated ids"),
        (lambda t: contexts.columns_of([]), "without items"),
        (
            lambda t: row_contexts(list(ranking_rows(random_dialogues(1, first=50))), CATALOGUE, numbers=t.numbers),
            "is not among the 14 training dialogues",
        ),
        (lambda t: contexts.contexts_of([()], CATALOGUE, own=[0, 1]), "2 numbers of dialogues for 1 histories"),
        (lambda t: contexts.contexts_before([(random_dialogues()[0], 99)], CATALOGUE), "none at 99"),
    ],
)
def test_bad_input_is_named(call, message: str, unchecked: None) -> None:
    with pytest.raises(ValueError, match=message):
        call(toy_training()[1])

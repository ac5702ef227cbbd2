"""Rewards of lists and of inferred attributes: against the learner's sums, scikit-learn, and cases worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import f1_score, ndcg_score

from rlhf_jax.data.attributes import attributes
from rlhf_jax.evaluation.ranking import metric_values
from rlhf_jax.feedback.recommendation import liked_from, preference_reward, recommendation_reward
from rlhf_jax.interfaces import Dialogue, Item, ItemLabel, Message

reward, preference = jax.jit(recommendation_reward), jax.jit(preference_reward)
flags = hnp.arrays(np.bool_, 6)


@given(st.permutations(range(6)), flags)
def test_a_lists_reward_is_the_ndcg_of_its_order(order: list[int], gold: np.ndarray) -> None:
    listed = np.array(order[:4], np.int32)
    # scikit-learn takes scores: the listed items in their order, and nothing of the others, which are cut off.
    scores = np.zeros(6)
    scores[listed] = [4.0, 3.0, 2.0, 1.0]
    expected = ndcg_score(gold[None].astype(float), scores[None], k=4) if gold.any() else 0.0
    assert reward(listed, gold) == pytest.approx(expected, abs=1e-6)


def test_with_one_gold_item_it_is_that_of_the_tables() -> None:
    gold = np.arange(12) == 5
    expected = metric_values("ndcg@10", np.arange(1, 12))
    for place in range(11):
        listed = np.full(11, 11, np.int32)  # Some item that is not gold.
        listed[place] = 5
        assert reward(listed[:10], gold) == pytest.approx(float(expected[place]), abs=1e-6)


def test_an_item_pays_once_and_padding_never() -> None:
    gold = np.array([True, False, True, True])
    once = reward(np.array([0, 1, -1], np.int32), gold)
    assert once == reward(np.array([0, 0, 0], np.int32), gold) == reward(np.array([0, -1, -1], np.int32), gold)
    assert once == pytest.approx(1 / (1 + 1 / np.log2(3) + 0.5))
    assert reward(np.full(3, -1, np.int32), gold) == 0
    assert reward(np.array([0, 1, 2], np.int32), np.zeros(4, bool)) == 0
    assert reward(np.array([2, 0], np.int32), gold) == 1, "a list is as short as it is"


@given(flags, flags)
def test_inferred_attributes_have_their_f1(said: np.ndarray, wanted: np.ndarray) -> None:
    assert preference(said, wanted) == pytest.approx(f1_score(wanted, said, zero_division=0.0), abs=1e-6)


def test_saying_everything_does_not_pay() -> None:
    wanted = np.arange(100) < 2
    assert preference(np.ones(100, bool), wanted) < 0.05 < preference(wanted, wanted) == 1


def test_rewards_go_by_rows() -> None:
    gold = jnp.asarray(np.random.default_rng(0).random((5, 7)) < 0.4)
    listed = jnp.asarray(np.random.default_rng(1).permuted(np.tile(np.arange(7), (5, 1)), axis=1)[:, :3])
    rows = [float(recommendation_reward(one, which)) for one, which in zip(listed, gold, strict=True)]
    np.testing.assert_allclose(jax.jit(jax.vmap(recommendation_reward))(listed, gold), rows, rtol=1e-6)


def test_attributes_are_those_that_items_share() -> None:
    items = {
        1: Item(item_id=1, title="A", year=1994, genres=("crime", "drama"), people=("Ann",)),
        2: Item(item_id=2, title="B", year=1999, genres=("drama",), people=("Bo",)),
        3: Item(item_id=3, title="C"),
    }
    found = attributes(items, (3, 1, 2))
    assert (
        len(found.names) == 2
        and any("drama" in name for name in found.names)
        and any("199" in name for name in found.names)
    )
    assert found.of_items.tolist() == [[False, False], [True, True], [True, True]]
    assert found.of([0, 2]).tolist() == [True, True] and not found.of([]).any() and not found.of([0]).any()
    alone = attributes(items, (1, 2, 3), min_count=1)
    assert len(alone.names) == 5 and alone.of_items.sum(axis=1).tolist() == [4, 3, 0]


def test_gold_is_liked_new_and_suggested_from_here_on() -> None:
    said = (
        Message("seeker", ("I like ", 1), 0),
        Message("recommender", (2, 1, 2), 1),
        Message("seeker", ("or ", 5), 2),
        Message("recommender", (5, 3, 4, 6), 3),
    )
    liked = {1: 1, 2: 1, 3: 0, 4: 1, 5: 1}
    forms = {item: ItemLabel(suggested=1, seen=0, liked=value) for item, value in liked.items()}
    dialogue = Dialogue("d", said, forms, {})
    # 1 and 5 the seeker named first, 3 is disliked, 6 is in no form.
    assert [liked_from(dialogue, index) for index in range(4)] == [(2, 4), (2, 4), (4,), (4,)]
    assert liked_from(Dialogue("d", said, {}, forms), 0) == (), "the recommender's form is not the seeker's"
    with pytest.raises(ValueError, match="dialogue d has 4 messages, none at 4"):
        liked_from(dialogue, 4)

"""GRPO on lists: against loops and closed forms, and on a probe whose best weights are known."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.evaluation import ranking
from rlhf_jax.learners import list_grpo, sft
from rlhf_jax.learners.list_grpo import ListBatch, Lists
from rlhf_jax.learners.optimizer import make_optimizer


def loop_logprobs(logits: np.ndarray, chosen: list[int]) -> list[float]:
    """Plackett–Luce, one place after the other, in float64."""
    left, found = list(range(len(logits))), []
    for item in chosen:
        found.append(float(logits[item]) - float(np.log(np.exp(np.float64(logits[left])).sum())))
        left.remove(item)
    return found


def test_every_place_by_a_loop() -> None:
    draw = np.random.default_rng(0)
    for length in (1, 3, 6):
        logits = (draw.normal(size=6) * 4).astype(np.float32)
        chosen = draw.permutation(6)[:length].tolist()
        found = list_grpo.list_logprobs(jnp.asarray(logits), jnp.asarray([chosen]))
        np.testing.assert_allclose(found[0], loop_logprobs(logits, chosen), atol=1e-5)


def test_a_group_is_its_lists_one_by_one() -> None:
    draw = np.random.default_rng(1)
    logits = jnp.asarray(draw.normal(size=9) * 3, jnp.float32)
    chosen = np.stack([draw.permutation(9)[:4] for _ in range(5)])
    found = list_grpo.list_logprobs(logits, jnp.asarray(chosen))
    for row, own in zip(found, chosen, strict=True):
        np.testing.assert_allclose(row, loop_logprobs(np.asarray(logits), own.tolist()), atol=1e-5)


def test_one_item_that_has_nearly_all_leaves_the_others_exact() -> None:
    """1 − p would be 0 in float32: the second place still has its probability."""
    logits = jnp.array([30.0, 1.0, 0.0])
    found = list_grpo.list_logprobs(logits, jnp.array([[0, 1]]))
    assert float(found[0, 1]) == pytest.approx(-np.log(1 + np.exp(-1)), abs=1e-5)


def test_a_list_of_everything_has_a_gradient() -> None:
    gradient = jax.grad(lambda logits: list_grpo.list_logprobs(logits, jnp.array([[2, 0, 1]]))[0, :2].sum())(
        jnp.arange(3.0)
    )
    assert np.all(np.isfinite(gradient)) and float(jnp.abs(gradient).max()) > 0.1


def test_lists_are_drawn_as_often_as_their_probability_says() -> None:
    logits = jnp.array([0.5, 0.0, -1.0])
    n = 20_000
    drawn = np.asarray(list_grpo.draw_lists(jax.random.key(0), logits, Lists(group_size=n, length=2)))
    for pair in itertools.permutations(range(3), 2):
        share = float((drawn == np.array(pair)).all(axis=1).mean())
        expected = float(np.exp(sum(loop_logprobs(np.asarray(logits), list(pair)))))
        assert share == pytest.approx(expected, abs=4 * np.sqrt(expected / n))


def test_lists_of_a_policy_that_is_nearly_certain_are_drawn_as_their_probability_says() -> None:
    """The first item has 1 − 1e-7: what follows it is still drawn by its own share."""
    logits = jnp.array([1.0, 16.0, 0.0, 1.5])
    n = 20_000
    drawn = np.asarray(list_grpo.draw_lists(jax.random.key(3), logits, Lists(group_size=n, length=4)))
    assert (np.sort(drawn, axis=1) == np.arange(4)).all() and (drawn[:, 0] == 1).mean() > 0.999
    rest = np.exp(np.array([1.0, 0.0, 1.5]))
    for item, share in zip((0, 2, 3), rest / rest.sum(), strict=True):
        assert float((drawn[:, 1] == item).mean()) == pytest.approx(share, abs=4 * np.sqrt(share / n))


def test_no_item_is_drawn_twice_in_a_list() -> None:
    logits = jnp.asarray(np.random.default_rng(5).normal(size=400) * 5, jnp.float32)
    drawn = np.asarray(list_grpo.draw_lists(jax.random.key(4), logits, Lists(group_size=5_000, length=10)))
    assert all(len(set(one)) == 10 for one in drawn.tolist())


def test_the_first_place_is_credited_with_ndcg() -> None:
    """Against the ranks' own NDCG where there is one gold item, and a loop where there are several."""
    chosen = jnp.array([[4, 0, 2], [1, 2, 4], [0, 1, 3]])
    gold = jnp.zeros(5, bool).at[4].set(True)
    found = list_grpo.rewards_to_go(chosen, gold)
    np.testing.assert_allclose(found[:, 0], ranking.metric_values("ndcg@3", np.array([1, 3, 9])), atol=1e-6)
    several = np.array([True, False, True, False, True])
    found = list_grpo.rewards_to_go(chosen, jnp.asarray(several))
    ideal = sum(1 / np.log2(place + 2) for place in range(3))
    for row, place in np.ndindex(3, 3):
        rest = sum(several[int(chosen[row, at])] / np.log2(at + 2) for at in range(place, 3))
        assert float(found[row, place]) == pytest.approx(rest / ideal, abs=1e-6)


def test_no_gold_is_paid_nothing() -> None:
    found = list_grpo.rewards_to_go(jnp.array([[0, 1]]), jnp.zeros(3, bool))
    assert found.tolist() == [[0.0, 0.0]]


@pytest.mark.slow
def test_the_gradient_is_that_of_the_expected_ndcg() -> None:
    """One place, so that the baseline drops out of the mean: ∇ Σ_i π(i)·[i is gold] in closed form."""
    known, gold = jnp.array([[1.0, -0.5, 0.2, 0.0]]), jnp.array([[False, True, False, True]])
    lists = Lists(group_size=4096, length=1)

    def judge(params: jax.Array, known: jax.Array) -> jax.Array:
        return params * known

    batch, weight = ListBatch(known=known, gold=gold), jnp.array(0.7)
    drawn = list_grpo.draw(weight, batch, jax.random.key(1), judge, lists)
    slope = jax.grad(lambda w: list_grpo.loss_and_metrics(w, batch, drawn, judge)[0])
    expected = jax.grad(lambda w: -jnp.sum(jax.nn.softmax(w * known) * gold))
    assert (
        float(slope(weight)) == pytest.approx(float(expected(weight)), abs=0.02) and abs(float(expected(weight))) > 0.1
    )


def learn(steps: int) -> np.ndarray:
    """Two scores, of which the second says which items are gold and the first is noise."""
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(32, 2, 20)).astype(np.float32)
    gold = scores[:, 1] > np.sort(scores[:, 1], axis=1)[:, -3:-2]

    def judge(params: jax.Array, known: jax.Array) -> jax.Array:
        return jnp.einsum("k,bki->bi", params, known)

    optimizer = make_optimizer(learning_rate=0.05, total_steps=200)
    state = sft.init(jnp.zeros(2), optimizer, averaged=False)
    step = jax.jit(functools.partial(list_grpo.update, judge=judge, lists=Lists(8, 5), optimizer=optimizer))
    batch = ListBatch(known=jnp.asarray(scores), gold=jnp.asarray(gold))
    for _ in range(steps):
        state, metrics = step(state, batch, jax.random.key(0))
    assert int(state.skipped) == 0 and set(metrics) >= {"objective/ndcg", "objective/flat_group_share"}
    return np.asarray(state.params)


def test_it_learns_which_score_knows() -> None:
    weights = learn(120)
    assert weights[1] > 2.0 and abs(weights[0]) < weights[1] / 5


def test_flat_groups_teach_nothing() -> None:
    known = jnp.zeros((4, 6))
    batch = ListBatch(known=known, gold=jnp.zeros((4, 6), bool))

    def judge(params: jax.Array, known: jax.Array) -> jax.Array:
        return known + params * jnp.arange(6.0)[None, :]

    drawn = list_grpo.draw(jnp.array(0.1), batch, jax.random.key(0), judge, Lists(4, 3))
    loss, metrics = list_grpo.loss_and_metrics(jnp.array(0.1), batch, drawn, judge)
    assert float(loss) == 0.0 and float(metrics["objective/flat_group_share"]) == 1.0


def test_worth_is_paid_by_the_discounts_of_ndcg() -> None:
    """Gold as worth, where all places can be gold, is NDCG; and by a loop."""
    chosen = jnp.array([[2, 0, 1], [1, 3, 0]])
    gold = jnp.array([True, True, True, True])
    np.testing.assert_allclose(
        list_grpo.worth_to_go(chosen, gold.astype(jnp.float32)), list_grpo.rewards_to_go(chosen, gold), atol=1e-6
    )
    worth = np.array([0.5, -1.0, 2.0, 0.25], np.float32)
    found = list_grpo.worth_to_go(chosen, jnp.asarray(worth))
    ideal = sum(1 / np.log2(place + 2) for place in range(3))
    for row, place in np.ndindex(2, 3):
        rest = sum(worth[int(chosen[row, at])] / np.log2(at + 2) for at in range(place, 3))
        assert float(found[row, place]) == pytest.approx(rest / ideal, abs=1e-6)


def known_judge(weight: jax.Array, known: tuple[jax.Array, jax.Array]) -> jax.Array:
    return known[0] + weight * known[1]


def test_it_rests_where_worth_and_distance_balance() -> None:
    """π ∝ π_ref exp(r/β) is the best there is; in a policy log π_ref + w·r it is w = 1/β, wherever w begins."""
    draw = np.random.default_rng(0)
    reference = np.asarray(jax.nn.log_softmax(jnp.asarray(draw.normal(size=(32, 6)), jnp.float32)))
    worth = jnp.asarray(draw.normal(size=(32, 6)), jnp.float32)
    batch = ListBatch(known=(jnp.asarray(reference), worth), worth=worth, reference=jnp.asarray(reference))
    optimizer = make_optimizer(learning_rate=0.1, warmup_steps=0, total_steps=150, schedule="linear")
    lists = Lists(group_size=32, length=1, kl_coef=0.5)
    step = jax.jit(functools.partial(list_grpo.update, judge=known_judge, lists=lists, optimizer=optimizer))
    for start in (0.0, 4.0):
        state = sft.init(jnp.array(start), optimizer, averaged=False)
        for _ in range(150):
            state, metrics = step(state, batch, jax.random.key(1))
        assert float(state.params) == pytest.approx(2.0, abs=0.35)
        logits = known_judge(state.params, batch.known)
        share = np.asarray(jax.nn.softmax(logits), np.float64)
        expected = (share * (np.log(share) - reference)).sum(1).mean()
        assert float(metrics["objective/kl_items"]) == pytest.approx(expected, abs=0.05)


def test_a_batch_is_paid_one_way_and_distance_needs_a_reference() -> None:
    known = (jnp.zeros((1, 3)), jnp.ones((1, 3)))
    gold, worth = jnp.array([[True, False, False]]), jnp.ones((1, 3))
    for batch in (ListBatch(known=known), ListBatch(known=known, gold=gold, worth=worth)):
        with pytest.raises(ValueError, match="by gold or by worth"):
            list_grpo.draw(jnp.array(1.0), batch, jax.random.key(0), known_judge, Lists(2, 1))
    batch = ListBatch(known=known, worth=worth)
    drawn = list_grpo.draw(jnp.array(1.0), batch, jax.random.key(0), known_judge, Lists(2, 1))
    with pytest.raises(ValueError, match=r"kl_coef is 0.5, and the batch has no reference"):
        list_grpo.loss_and_metrics(jnp.array(1.0), batch, drawn, known_judge, 0.5)

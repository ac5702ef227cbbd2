"""A prior over items: against a loop, and the same policy wherever it is asked."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.decoding import prior
from rlhf_jax.decoding.grammar import allowed_along
from rlhf_jax.interfaces import Params, PromptBatch
from rlhf_jax.models import gpt2
from rlhf_jax.stages.agent import Agent, make_agent, policy_params

ROWS, N_SCORES = 12, 3


@pytest.fixture(scope="module")
def vocab() -> Vocabulary:
    return Vocabulary.train(["hello there", "try this one"], tuple(range(11, 18)), 266, multiple=8)


def agent_of(vocab: Vocabulary, head_chunk: int | None = None) -> Agent:
    network = gpt2.GPT2Config(
        vocab_size=vocab.size, n_positions=24, n_embd=16, n_layer=1, n_head=2, head_chunk=head_chunk
    )
    return make_agent(vocab, network, max_items=3, response_tokens=9)


@pytest.fixture(scope="module")
def agent(vocab: Vocabulary) -> Agent:
    return agent_of(vocab)


@pytest.fixture(scope="module")
def params(agent: Agent) -> Params:
    trunk = gpt2.init(agent.network, jax.random.key(0))
    trunk = jax.tree.map(lambda leaf: leaf * 6.0 if leaf.ndim == 2 else leaf, trunk)
    own = {"policy": jnp.array(0.7), "scores": jnp.array([1.0, -0.5, 2.0])}
    return policy_params(trunk, agent.network.n_embd) | {prior.NAME: own}


@pytest.fixture(scope="module")
def prompts(agent: Agent, vocab: Vocabulary) -> PromptBatch:
    draw = np.random.default_rng(0)
    tokens = jnp.asarray(draw.integers(0, vocab.n_words, (ROWS, 6)), jnp.int32).at[:, -1].set(vocab.recommender)
    scores = jnp.asarray(draw.normal(size=(ROWS, N_SCORES, agent.grammar.n_items)), jnp.float32)
    return PromptBatch(tokens=tokens, mask=jnp.ones(tokens.shape, bool), item_scores=scores)


@pytest.fixture(scope="module")
def rollout(agent: Agent, params: Params, prompts: PromptBatch) -> Any:
    return jax.jit(agent.sample)(params, prompts, jax.random.key(1))


def test_the_judge_says_what_the_sampler_did(agent: Agent, vocab: Vocabulary, params: Params, rollout: Any) -> None:
    lists = (rollout.response_tokens >= agent.grammar.first_item).sum(1)
    assert lists.max() >= 3
    for one in (agent, agent_of(vocab, head_chunk=4)):
        judged = jax.jit(one.policy)(params, rollout).logprobs
        np.testing.assert_allclose(judged, rollout.logprobs, atol=1e-5)
    # Which is not what the policy says without the prior.
    without = jax.jit(agent.policy)({"trunk": params["trunk"]}, rollout).logprobs
    assert float(jnp.abs(without - rollout.logprobs).max()) > 0.5


def test_every_place_of_a_list_by_a_loop(agent: Agent, params: Params, rollout: Any) -> None:
    grammar, own = agent.grammar, params[prior.NAME]
    draw = np.random.default_rng(1)
    logits = draw.normal(size=(*rollout.response_tokens.shape, grammar.vocab_size)).astype(np.float32) * 3
    allowed = np.asarray(allowed_along(grammar, rollout.response_tokens))
    bonus = prior.bonus(own, rollout.item_scores)
    found = jax.vmap(lambda one, may: prior.with_prior(grammar, own["policy"], bonus, one, may), (1, 1), 1)(
        jnp.asarray(logits), jnp.asarray(allowed)
    )
    items = range(grammar.first_item, grammar.first_item + grammar.n_items)
    places = 0
    for row, place in np.ndindex(*rollout.response_tokens.shape):
        may, before, after = allowed[row, place], logits[row, place], np.asarray(found)[row, place]
        chosen = [item for item in items if may[item]]
        if not chosen or may[grammar.eos]:
            np.testing.assert_array_equal(after, before)
            continue
        places += 1
        mass = sum(np.exp(np.float64(before[item])) for item in chosen)
        weight = {}
        for item in chosen:
            scores = np.asarray(rollout.item_scores, np.float64)[row, :, item - grammar.first_item]
            share = np.exp(np.float64(before[item])) / mass
            weight[item] = share ** float(own["policy"]) * np.exp(scores @ np.asarray(own["scores"], np.float64))
        for item in chosen:
            expected = mass * weight[item] / sum(weight.values())
            assert np.exp(np.float64(after[item])) == pytest.approx(expected, rel=1e-4)
        # Whether the list ends here is the trunk's word.
        assert after[grammar.say] == before[grammar.say]
    assert places >= 2 * ROWS


def test_ranking_orders_by_the_first_place_of_the_list(
    agent: Agent, params: Params, prompts: PromptBatch, rollout: Any
) -> None:
    scores = jax.nn.log_softmax(jax.jit(agent.score_items)(params, prompts))
    grammar = agent.grammar
    for item in range(grammar.n_items):
        response = jnp.array([[grammar.rec, grammar.first_item + item, grammar.say, grammar.eos]] * ROWS)
        given = dataclasses.replace(
            rollout,
            response_tokens=response,
            response_mask=jnp.ones_like(response, bool),
            logprobs=jnp.zeros(response.shape),
            values=None,
        )
        np.testing.assert_allclose(agent.policy(params, given).logprobs[:, 1], scores[:, item], atol=1e-5)


def test_a_prior_that_says_nothing_changes_nothing(agent: Agent, params: Params, prompts: PromptBatch) -> None:
    bare = {name: params[name] for name in ("trunk", "value")}
    draw, key = jax.jit(agent.sample), jax.random.key(2)
    with_nothing = draw(bare | {prior.NAME: prior.init(N_SCORES)}, prompts, key)
    without = draw(bare, prompts, key)
    np.testing.assert_array_equal(with_nothing.response_tokens, without.response_tokens)
    np.testing.assert_allclose(with_nothing.logprobs, without.logprobs, atol=1e-5)
    # They go along for whoever judges: a reward model may read a policy with a prior.
    for one in (with_nothing, without):
        np.testing.assert_array_equal(one.item_scores, prompts.item_scores)


def test_gradients_reach_the_weights_and_are_those_of_the_loop(agent: Agent, params: Params, rollout: Any) -> None:
    weights = jnp.cos(jnp.arange(rollout.logprobs.size, dtype=jnp.float32)).reshape(rollout.logprobs.shape)

    @jax.jit
    def loss(own: Params) -> jax.Array:
        return (agent.policy(params | {prior.NAME: own}, rollout).logprobs * weights).sum()

    own = params[prior.NAME]
    gradient = jax.grad(loss)(own)
    for name, place in (("policy", ()), ("scores", (0,)), ("scores", (2,))):
        step = own | {name: own[name].at[place].add(1e-2)}, own | {name: own[name].at[place].add(-1e-2)}
        numeric = float(loss(step[0]) - loss(step[1])) / 2e-2
        assert float(gradient[name][place]) == pytest.approx(numeric, rel=2e-2, abs=2e-2) and abs(numeric) > 0.05
    for leaf in jax.tree.leaves(jax.grad(lambda tree: (agent.policy(tree, rollout).logprobs * weights).sum())(params)):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize(
    ("scores", "message"),
    [(None, "its prompts bring no item_scores"), (2, "the prior has 3 weights, the prompts 2 scores an item")],
)
def test_prompts_without_the_scores_are_refused(
    agent: Agent, params: Params, prompts: PromptBatch, scores: int | None, message: str
) -> None:
    item_scores = None if scores is None else prompts.item_scores[:, :scores]
    with pytest.raises(ValueError, match=message):
        agent.sample(params, dataclasses.replace(prompts, item_scores=item_scores), jax.random.key(0))


def test_manners_by_a_loop(agent: Agent, rollout: Any) -> None:
    """Each number moves one decision, and no other token's odds among themselves."""
    grammar = agent.grammar
    draw = np.random.default_rng(2)
    logits = draw.normal(size=(*rollout.response_tokens.shape, grammar.vocab_size)).astype(np.float32)
    allowed = np.asarray(allowed_along(grammar, rollout.response_tokens))
    manners = np.array([0.5, -1.0, 2.0], np.float32)
    found = np.asarray(
        jax.vmap(lambda one, may: prior.with_manners(grammar, jnp.asarray(manners), one, may), (1, 1), 1)(
            jnp.asarray(logits), jnp.asarray(allowed)
        )
    )
    items = range(grammar.first_item, grammar.first_item + grammar.n_items)
    moved = {name: 0 for name in prior.MANNERS}
    for row, place in np.ndindex(*rollout.response_tokens.shape):
        may = allowed[row, place]
        expected = logits[row, place].copy()
        if may[grammar.rec]:
            expected[grammar.rec] += manners[0]
            moved["suggest"] += 1
        elif any(may[item] for item in items) and not may[grammar.eos]:
            expected[grammar.say] += manners[1]
            moved["end_list"] += 1
        elif may[grammar.eos]:
            expected[grammar.eos] += manners[2]
            moved["end_words"] += 1
        np.testing.assert_allclose(found[row, place][may], expected[may], atol=1e-6)
    assert all(moved.values())


def test_the_judge_says_what_a_sampler_with_manners_did(agent: Agent, params: Params, prompts: PromptBatch) -> None:
    own = params[prior.NAME] | {"manners": jnp.array([1.0, -0.5, 0.8])}
    polite = params | {prior.NAME: own}
    said = jax.jit(agent.sample)(polite, prompts, jax.random.key(1))
    judged = jax.jit(agent.policy)(polite, said).logprobs
    np.testing.assert_allclose(judged, said.logprobs, atol=1e-5)
    without = jax.jit(agent.policy)(params, said).logprobs
    assert float(jnp.abs(without - said.logprobs).max()) > 0.3


def test_manners_of_nothing_change_nothing(agent: Agent, params: Params, prompts: PromptBatch, rollout: Any) -> None:
    own = params[prior.NAME] | {"manners": jnp.zeros(3)}
    said = jax.jit(agent.sample)(params | {prior.NAME: own}, prompts, jax.random.key(1))
    np.testing.assert_array_equal(said.response_tokens, rollout.response_tokens)


def test_who_must_suggest_suggests(agent: Agent, params: Params, prompts: PromptBatch) -> None:
    own = params[prior.NAME] | {"manners": jnp.array([30.0, 30.0, 30.0])}
    said = np.asarray(jax.jit(agent.sample)(params | {prior.NAME: own}, prompts, jax.random.key(1)).response_tokens)
    grammar = agent.grammar
    for row in said:
        kept = [token for token in row.tolist() if token != grammar.pad]
        assert kept[0] == grammar.rec and kept[1] >= grammar.first_item
        assert kept[2:] == [grammar.say, grammar.eos]

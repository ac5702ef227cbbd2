"""What a policy says of the items that responses list, against loops over tokens; and rewards that read it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.decoding import policy, suggested
from rlhf_jax.decoding.grammar import Grammar
from rlhf_jax.interfaces import Params, PromptBatch, ResponseGroups, Rollout
from rlhf_jax.models import gpt2, heads

CONFIG = gpt2.GPT2Config(vocab_size=20, n_positions=24, n_embd=16, n_layer=1, n_head=2, attention_dropout=False)
GRAMMAR = Grammar(n_words=6, pad=6, eos=7, rec=8, say=9, first_item=10, n_items=9, max_items=3, vocab_size=20)
REC, SAY, EOS, PAD = GRAMMAR.rec, GRAMMAR.say, GRAMMAR.eos, GRAMMAR.pad
# No list; a list of two; of one that the prompt names; words that name an item again; a list that was cut off.
RESPONSES = [
    [SAY, 1, 2, EOS],
    [REC, 10, 12, SAY, 3, EOS],
    [REC, 15, SAY, EOS],
    [REC, 11, SAY, 11, EOS],
    [REC, 13, 14, 15],
]
PROMPTS = [[1, 2], [12, 3], [4, 15, 5], [2], [14, 13]]
LISTED = [[], [10, 12], [15], [11], [13, 14, 15]]
NAMED = [0.0, 0.5, 1.0, 0.0, 2 / 3]


def trunk(seed: int) -> Params:
    return jax.tree.map(lambda leaf: 4 * leaf, gpt2.init(CONFIG, jax.random.key(seed)))


@pytest.fixture(scope="module")
def read() -> Params:
    """A policy with a prior over items."""
    return {"trunk": trunk(1), "prior": {"policy": jnp.array(0.7), "scores": jnp.array([0.5, -1.0])}}


@pytest.fixture(scope="module")
def rollout() -> Rollout:
    n, length = len(RESPONSES), max(map(len, RESPONSES))
    tokens, mask = np.full((n, length), PAD), np.zeros((n, length), bool)
    # Under the padding of prompts stands what nobody said.
    prompts, prompt_mask = np.full((n, 4), 12), np.zeros((n, 4), bool)
    for row, (response, prompt) in enumerate(zip(RESPONSES, PROMPTS, strict=True)):
        tokens[row, : len(response)], mask[row, : len(response)] = response, True
        prompts[row, 4 - len(prompt) :], prompt_mask[row, 4 - len(prompt) :] = prompt, True
    return Rollout(
        prompt_tokens=jnp.asarray(prompts),
        prompt_mask=jnp.asarray(prompt_mask),
        response_tokens=jnp.asarray(tokens),
        response_mask=jnp.asarray(mask),
        logprobs=jnp.zeros((n, length)),
        finished=jnp.ones(n, bool),
        item_scores=jax.random.normal(jax.random.key(5), (n, 2, GRAMMAR.n_items)),
    )


score_items = policy.make_score_items(CONFIG, GRAMMAR)


def test_numbers_are_those_of_a_loop_over_tokens(read: Params, rollout: Rollout) -> None:
    found = np.asarray(jax.jit(suggested.make_suggested(GRAMMAR, score_items))(read, rollout))
    for row, (response, items, share) in enumerate(zip(RESPONSES, LISTED, NAMED, strict=True)):
        # A list is what stands behind <rec>, up to <say>.
        assert response[1 : 1 + len(items)] == items
        # From the definition: softmax over items alone of w₀·logits + Σ w·z, after the prompt and <rec>, no padding.
        prompt = jnp.array([[*PROMPTS[row], REC]])
        hidden = gpt2.hidden_states(CONFIG, read["trunk"], prompt, jnp.ones_like(prompt, bool))[0, -1]
        z = rollout.item_scores[row]  # type: ignore[index]
        logprobs = jax.nn.log_softmax(read["trunk"]["wte"][10:19] @ hidden)
        chances = jax.nn.log_softmax(0.7 * logprobs + 0.5 * z[0] - z[1])
        above = [float(chances[item - GRAMMAR.first_item]) + math.log(9) for item in items]
        expected = [float(bool(items)), sum(above) / len(above) if above else 0.0, share]
        np.testing.assert_allclose(found[row], expected, atol=1e-4)
    assert len({round(float(number), 3) for number in found[:, 1]}) == 5


def test_what_is_thought_impossible_is_held_and_what_is_certain_is_not(rollout: Rollout) -> None:
    """Item 12 is as good as certain; then 10 is held, and what stands beside it counts as it is."""
    logits = jnp.zeros((len(RESPONSES), 9)).at[:, 2].set(1e4)
    prompts = PromptBatch(tokens=rollout.prompt_tokens, mask=rollout.prompt_mask)
    found = suggested.of_lists(GRAMMAR, logits, prompts, rollout.response_tokens, rollout.response_mask)
    np.testing.assert_allclose(found[:, 1], [0, (-10 + math.log(9)) / 2, -10, -10, -10], atol=1e-6)


@pytest.mark.parametrize("attention", ["masked", "xla"])
def test_scores_read_a_policy_and_a_group_reads_it_as_its_rows_do(
    read: Params, rollout: Rollout, attention: gpt2.Attention
) -> None:
    base = {"trunk": trunk(2), "reward": heads.init_reward_heads(jax.random.key(1), 16, 2)}
    weights = jnp.array([[0.1, 1.0], [0.5, -0.2], [-2.0, 0.0]])
    model = {**base, "policy": read, "reward": {**base["reward"], "read": weights}}
    config = dataclasses.replace(CONFIG, attention=attention)
    score = jax.jit(policy.make_score(config, GRAMMAR))
    numbers = jax.jit(suggested.make_suggested(GRAMMAR, score_items))(read, rollout)
    found = score(model, rollout)
    np.testing.assert_allclose(found, score(base, rollout) + numbers @ weights, atol=1e-5)
    # Every response after every prompt: once as rows, once with each prompt read once.
    n, length = rollout.response_tokens.shape
    prompts = PromptBatch(tokens=rollout.prompt_tokens, mask=rollout.prompt_mask, item_scores=rollout.item_scores)
    groups = ResponseGroups(
        prompts=prompts,
        response_tokens=jnp.tile(rollout.response_tokens[None], (n, 1, 1)),
        response_mask=jnp.tile(rollout.response_mask[None], (n, 1, 1)),
    )
    rows = Rollout(
        prompt_tokens=jnp.repeat(rollout.prompt_tokens, n, axis=0),
        prompt_mask=jnp.repeat(rollout.prompt_mask, n, axis=0),
        response_tokens=jnp.tile(rollout.response_tokens, (n, 1)),
        response_mask=jnp.tile(rollout.response_mask, (n, 1)),
        logprobs=jnp.zeros((n * n, length)),
        finished=jnp.ones(n * n, bool),
        item_scores=jnp.repeat(rollout.item_scores, n, axis=0),
    )
    together = jax.jit(policy.make_score_replies(config, GRAMMAR))(model, groups)
    np.testing.assert_allclose(together, score(model, rows).reshape(n, n, 2), atol=1e-5)


def test_heads_and_numbers_come_together() -> None:
    plain, reading = (heads.init_reward_heads(jax.random.key(0), 4, 2, n_read=n) for n in (0, 3))
    hidden, numbers = jnp.ones((1, 4)), jnp.ones((1, 3))
    # Weights start at 0, so that the first scores are those of the plain heads.
    np.testing.assert_array_equal(
        heads.reward_components(reading, hidden, numbers), heads.reward_components(plain, hidden)
    )
    for head, read_ in ((plain, numbers), (reading, None)):
        with pytest.raises(ValueError, match="weights for further numbers"):
            heads.reward_components(head, hidden, read_)

"""The sampler on a policy that is a table: frequencies, log-probabilities, streams, early stop, refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlhf_jax.decoding import sampler
from rlhf_jax.decoding.grammar import Grammar, allowed_along
from rlhf_jax.interfaces import PromptBatch, Rollout

GRAMMAR = Grammar(n_words=4, pad=4, eos=5, rec=6, say=7, first_item=8, n_items=4, max_items=2, vocab_size=13)
TABLE = jax.random.normal(jax.random.key(7), (13, 13)) * 1.5
"""Logits of the next token, given the last one."""
MAX_TOKENS = 9
masks = jax.jit(partial(allowed_along, GRAMMAR))


def prompts(batch: int) -> PromptBatch:
    """One-token prompts 0, 1, 2, 3, 0 …"""
    return PromptBatch(tokens=jnp.arange(batch)[:, None] % 4, mask=jnp.ones((batch, 1), bool))


def sample(
    batch: PromptBatch, key: jax.Array, table: jax.Array = TABLE, row_ids: jax.Array | None = None, **options: object
) -> Rollout:
    """The sampler over the table; the cache is unused. `options` are those of `Decoding`."""
    return sampler.sample(
        batch,
        key,
        start=lambda tokens, mask: (table[tokens[:, -1]], jnp.zeros(())),
        step=lambda cache, token: (table[token], cache),
        grammar=GRAMMAR,
        decoding=sampler.Decoding(MAX_TOKENS, **options),
        row_ids=row_ids,
    )


@pytest.fixture(scope="module")
def rollout() -> Rollout:
    return jax.jit(lambda key: sample(prompts(4096), key, temperature=0.7))(jax.random.key(0))


def test_no_sample_is_ungrammatical_and_masks_end_with_eos(rollout: Rollout) -> None:
    allowed = masks(rollout.response_tokens)
    assert jnp.take_along_axis(allowed, rollout.response_tokens[..., None], axis=-1).all()
    tokens, mask = np.asarray(rollout.response_tokens), np.asarray(rollout.response_mask)
    is_eos = tokens == GRAMMAR.eos
    np.testing.assert_array_equal(mask, np.cumsum(is_eos, axis=1) - is_eos == 0)
    np.testing.assert_array_equal(rollout.finished, is_eos.any(axis=1))
    assert 0.05 < rollout.finished.mean() < 0.95
    assert (tokens[~mask] == GRAMMAR.pad).all()


def test_log_probabilities_are_those_of_the_masked_tempered_table(rollout: Rollout) -> None:
    tokens = np.asarray(rollout.response_tokens)
    before = np.concatenate([np.asarray(rollout.prompt_tokens), tokens[:, :-1]], axis=1)
    logits = np.asarray(TABLE, np.float64)[before] / 0.7
    logits[~np.asarray(masks(rollout.response_tokens))] = -np.inf
    expected = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = np.take_along_axis(expected, tokens[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(rollout.logprobs, np.where(rollout.response_mask, expected, 0), atol=1e-5)


def test_frequencies_are_the_probabilities(rollout: Rollout) -> None:
    logits = np.asarray(TABLE, np.float64)[:4] / 0.7
    probability = 1 / (1 + np.exp(logits[:, GRAMMAR.say] - logits[:, GRAMMAR.rec]))
    for prompt in range(4):
        share = float(jnp.mean(rollout.response_tokens[prompt::4, 0] == GRAMMAR.rec))
        assert abs(share - probability[prompt]) < 4 * np.sqrt(0.25 / 1024)


def test_a_row_keeps_its_draws_in_another_batch_and_other_keys_differ(rollout: Rollout) -> None:
    chosen = jnp.array([3, 17, 1026])
    batch = PromptBatch(tokens=prompts(4096).tokens[chosen], mask=jnp.ones((3, 1), bool))
    draw = jax.jit(lambda key: sample(batch, key, temperature=0.7, row_ids=chosen))
    np.testing.assert_array_equal(draw(jax.random.key(0)).response_tokens, rollout.response_tokens[chosen])
    assert (draw(jax.random.key(1)).response_tokens != rollout.response_tokens[chosen]).any()


def test_the_loop_ends_when_every_row_has_ended() -> None:
    steps: list[int] = []
    # <say>, one word, <eos>: three tokens, hence two steps.
    certain = jnp.full((13, 13), -50.0).at[:4, 7].set(50.0).at[7, 2].set(50.0).at[2, 5].set(50.0)

    def step(cache: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
        jax.debug.callback(lambda: steps.append(1))
        return certain[token], cache

    def start(tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        return certain[jnp.zeros_like(tokens[:, -1])], jnp.zeros(())

    batch = PromptBatch(tokens=jnp.zeros((3, 1), jnp.int32), mask=jnp.ones((3, 1), bool))
    draw = partial(sampler.sample, start=start, step=step, grammar=GRAMMAR, decoding=sampler.Decoding(MAX_TOKENS))
    rollout = jax.jit(draw)(batch, jax.random.key(0))
    jax.effects_barrier()
    np.testing.assert_array_equal(rollout.response_tokens, [[7, 2, 5] + [4] * 6] * 3)
    assert len(steps) == 2


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}])
def test_greedy_and_the_narrowest_truncations_follow_the_best_allowed_token(options: dict) -> None:
    rollout = jax.jit(partial(sample, rollout_for_learning=False, **options))(prompts(4), jax.random.key(0))
    tokens = np.asarray(rollout.response_tokens)
    allowed = np.asarray(masks(rollout.response_tokens))
    before = np.concatenate([np.asarray(rollout.prompt_tokens), tokens[:, :-1]], axis=1)
    best = np.where(allowed, np.asarray(TABLE)[before], -np.inf).argmax(axis=-1)
    np.testing.assert_array_equal(tokens, np.where(rollout.response_mask, best, GRAMMAR.pad))


def test_truncation_keeps_the_stated_sets() -> None:
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]))
    for top_k, top_p, kept in [(3, None, 3), (None, 0.79, 2), (None, 0.81, 3), (9, 1.0, 4)]:
        left = sampler.truncate(logits, top_k=top_k, top_p=top_p)
        np.testing.assert_array_equal(np.isfinite(left).sum(axis=1), [kept, kept])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 5}, "top_k 5"),
        ({"top_p": 0.9}, "top_p 0.9"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"top_p": 1.5, "rollout_for_learning": False}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"top_k": 0, "rollout_for_learning": False}, "top_k must be at least 1, got 0"),
    ],
)
def test_options_that_change_the_policy_are_refused_in_rollouts(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sample(prompts(4), jax.random.key(0), **options)


inverse_cdf = jax.jit(sampler.inverse_cdf)


@given(
    hnp.arrays(np.float32, (3, 150), elements=st.sampled_from([0.0, 0.0, 1e-30, 1e-6, 0.3, 1.0, 7.0])),
    st.sampled_from([0.0, 1e-7, 0.25, 0.5, 0.999, float(np.nextafter(np.float32(1), np.float32(0)))]),
)
def test_two_level_search_finds_the_quantile_and_never_an_impossible_token(weights: np.ndarray, uniform: float) -> None:
    weights[:, 70] = 1.0
    tokens = np.asarray(inverse_cdf(jnp.asarray(weights), jnp.full(3, uniform, jnp.float32)))
    for row, token in zip(weights.astype(np.float64), tokens, strict=True):
        assert row[token] > 0
        share = np.concatenate([[0], np.cumsum(row)]) / row.sum()
        assert share[token] - 1e-6 <= uniform <= share[token + 1] + 1e-6

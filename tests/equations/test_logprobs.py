"""Log-probabilities and entropy: identities, masks, extremes, gradients, and the chunked form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlhf_jax.equations.logprobs import (
    chunked_token_logprobs,
    entropy,
    log_softmax,
    sequence_logprob,
    token_logprobs,
)

T, V = 3, 5
logit_arrays = hnp.arrays(np.float32, (T, V), elements=st.floats(-30, 30, width=16))
TOKENS = jnp.array([4, 0, 2])
LOGITS = jnp.array([[0.5, -1.0, 2.0, 0.0, 0.1], [3.0, 0.2, -2.0, 1.0, 0.4], [0.0, 0.3, 0.9, -0.7, 1.1]])
ALLOWED = jnp.array(
    [[True, False, True, False, True], [True, True, True, True, True], [False, False, True, False, False]]
)
normalised, logprobs_of, entropy_of = jax.jit(log_softmax), jax.jit(token_logprobs), jax.jit(entropy)
both = jax.jit(lambda x, tau: (token_logprobs(x, TOKENS, temperature=tau), entropy(x, temperature=tau)))


@given(logit_arrays, st.floats(-50, 50), st.floats(0.25, 4))
def test_shift_temperature_and_bounds(logits: np.ndarray, shift: float, tau: float) -> None:
    logprobs, nats = both(jnp.asarray(logits), jnp.float32(tau))
    moved = both(jnp.asarray(logits + np.float32(shift)), jnp.float32(tau))
    np.testing.assert_allclose(moved[0], logprobs, atol=2e-4)
    np.testing.assert_allclose(moved[1], nats, atol=2e-4)
    scaled = both(jnp.asarray(logits / np.float32(tau)), jnp.float32(1))
    np.testing.assert_allclose(scaled[0], logprobs, atol=1e-4)
    np.testing.assert_allclose(scaled[1], nats, atol=1e-4)
    assert np.all(np.asarray(logprobs) <= 0)
    assert np.all(np.asarray(nats) >= 0) and np.all(np.asarray(nats) <= np.log(V) + 1e-5)


@given(logit_arrays, hnp.arrays(np.bool_, (T, V)))
def test_a_mask_is_a_smaller_vocabulary(logits: np.ndarray, allowed: np.ndarray) -> None:
    allowed[:, 1] = True
    logprobs = np.asarray(normalised(jnp.asarray(logits), allowed=jnp.asarray(allowed)))
    nats = entropy_of(jnp.asarray(logits), allowed=jnp.asarray(allowed))
    for t in range(T):
        kept = logits[t, allowed[t]].astype(np.float64)
        expected = kept - np.log(np.exp(kept - kept.max()).sum()) - kept.max()
        np.testing.assert_allclose(logprobs[t, allowed[t]], expected, atol=1e-4)
        assert np.all(logprobs[t, ~allowed[t]] == -np.inf)
        assert float(nats[t]) == pytest.approx(-(np.exp(expected) * expected).sum(), abs=1e-4)


def test_extremes_of_entropy() -> None:
    np.testing.assert_allclose(entropy_of(jnp.zeros((1, V))), [np.log(V)], rtol=1e-6)
    certain = jnp.array([[1e4, 0.0, -1e4], [50.0, 0.0, 0.0], [3e38, -3e38, 0.0]])
    nats, gradient = jax.jit(jax.value_and_grad(lambda x: entropy(x).sum()))(certain)
    assert nats >= 0 and nats < 1e-6
    assert np.all(np.isfinite(gradient))
    impossible = jnp.array([[0.0, 0.0, -jnp.inf]])
    np.testing.assert_allclose(entropy_of(impossible), [np.log(2)], rtol=1e-6)
    assert np.all(np.isfinite(jax.jit(jax.grad(lambda x: entropy(x).sum()))(impossible)))


def test_forbidden_tokens_are_unread() -> None:
    def objective(logits: jax.Array) -> jax.Array:
        logprobs = token_logprobs(logits, TOKENS, temperature=0.7, allowed=ALLOWED)
        return logprobs @ jnp.array([1.0, 2.0, 3.0]) + entropy(logits, temperature=0.7, allowed=ALLOWED).sum()

    value_and_grad = jax.jit(jax.value_and_grad(objective))
    clean = value_and_grad(jnp.where(ALLOWED, LOGITS, 0))
    for junk in (jnp.nan, jnp.inf, -jnp.inf):
        dirty = value_and_grad(jnp.where(ALLOWED, LOGITS, junk))
        jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    assert np.all(np.isfinite(clean[1])) and not np.any(np.asarray(clean[1])[~np.asarray(ALLOWED)])
    # One choice left: log-probability and entropy 0, whatever its logit.
    assert logprobs_of(LOGITS, TOKENS, allowed=ALLOWED)[2] == 0
    assert entropy_of(LOGITS, allowed=ALLOWED)[2] == 0
    np.testing.assert_array_equal(clean[1][2], 0)


def test_a_row_that_allows_nothing_stays_finite() -> None:
    none = ALLOWED.at[1].set(False)
    np.testing.assert_array_equal(
        logprobs_of(LOGITS, TOKENS, allowed=none), logprobs_of(LOGITS, TOKENS, allowed=ALLOWED)
    )
    gradient = jax.jit(jax.grad(lambda x: entropy(x, allowed=none).sum()))(LOGITS)
    assert np.all(np.isfinite(gradient))


def test_gradients(assert_gradients) -> None:
    tau = 0.7
    probabilities = jnp.exp(log_softmax(LOGITS, temperature=tau))
    gradient = jax.jit(jax.grad(lambda x: token_logprobs(x, TOKENS, temperature=tau).sum()))(LOGITS)
    np.testing.assert_allclose(gradient, (jax.nn.one_hot(TOKENS, V) - probabilities) / tau, atol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: entropy(x, temperature=tau).sum()))(LOGITS)
    nats = entropy_of(LOGITS, temperature=tau)
    np.testing.assert_allclose(gradient, -probabilities * (jnp.log(probabilities) + nats[:, None]) / tau, atol=1e-6)

    def outputs(logits: jax.Array) -> list[jax.Array]:
        options = {"temperature": tau, "allowed": ALLOWED}
        return [token_logprobs(logits, TOKENS, **options), entropy(logits, **options)]

    assert_gradients(outputs, np.asarray(LOGITS))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_chunks_change_nothing(chunk: int) -> None:
    rng = np.random.default_rng(0)
    hidden, head = jnp.asarray(rng.normal(size=(T, 4)), jnp.float32), jnp.asarray(rng.normal(size=(V, 4)), jnp.float32)
    weights = jnp.array([1.0, -2.0, 0.5])

    def full(hidden: jax.Array, head: jax.Array) -> jax.Array:
        return token_logprobs(hidden @ head.T, TOKENS, temperature=0.7, allowed=ALLOWED) @ weights

    def chunked(hidden: jax.Array, head: jax.Array) -> jax.Array:
        return chunked_token_logprobs(hidden, head, TOKENS, chunk=chunk, temperature=0.7, allowed=ALLOWED) @ weights

    expected = jax.jit(jax.value_and_grad(full, argnums=(0, 1)))(hidden, head)
    got = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1)))(hidden, head)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), got, expected)


def test_chunks_save_memory() -> None:
    hidden, head, tokens = jnp.zeros((128, 4)), jnp.zeros((4096, 4)), jnp.zeros(128, int)

    def temporary_bytes(function) -> int:
        compiled = jax.jit(jax.grad(function, argnums=(0, 1))).lower(hidden, head).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    full = temporary_bytes(lambda h, w: token_logprobs(h @ w.T, tokens).sum())
    chunked = temporary_bytes(lambda h, w: chunked_token_logprobs(h, w, tokens, chunk=8).sum())
    assert chunked < full / 4, f"chunked {chunked} bytes, full {full} bytes"


def test_sequence_logprob(assert_padding_unread) -> None:
    logprobs, mask = jnp.array([-1.0, -2.0, -4.0]), jnp.array([True, False, True])
    assert sequence_logprob(logprobs, mask) == -5
    assert_padding_unread(lambda x: sequence_logprob(x, mask), mask, logprobs)


def test_float32_and_vmap(assert_float32, assert_vmap) -> None:
    mask, head = jnp.array([True, True, False]), LOGITS.at[:, 0].set(0.3).T
    assert_float32(lambda x: token_logprobs(x, TOKENS), LOGITS)
    assert_float32(lambda x: entropy(x), LOGITS)
    assert_float32(lambda x: sequence_logprob(x, mask), LOGITS[:, 0])
    narrow = [x.astype(jnp.bfloat16) for x in (LOGITS[:, :3], head)]
    chunked = jax.jit(lambda h, w: chunked_token_logprobs(h, w, TOKENS, chunk=2))
    got, wide = chunked(*narrow), chunked(*[x.astype(jnp.float32) for x in narrow])
    assert got.dtype == jnp.float32  # products of bfloat16 are exact in float32: the sums agree to rounding
    np.testing.assert_allclose(got, wide, rtol=1e-5)
    # The compiler may widen on its own, so the program is read: it must ask for float32.
    assert "preferred_element_type=float32" in str(jax.make_jaxpr(chunked)(*narrow))
    batch = jnp.stack([LOGITS, -LOGITS])
    assert_vmap(token_logprobs, batch, jnp.stack([TOKENS, TOKENS[::-1]]))
    assert_vmap(lambda x: entropy(x), batch)
    assert_vmap(lambda h: chunked_token_logprobs(h, head, TOKENS, chunk=2), batch[..., :3])


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        chunked_token_logprobs(LOGITS, LOGITS, TOKENS, chunk=0)
    with pytest.raises((AssertionError, TypeError)):
        token_logprobs(LOGITS, TOKENS[:2])
    with pytest.raises((AssertionError, TypeError)):
        entropy(LOGITS, allowed=ALLOWED[:1])


@pytest.mark.parametrize("allowed", [None, ALLOWED], ids=["free", "masked"])
def test_the_gradient_written_out_is_the_one_derived(allowed: jax.Array | None) -> None:
    """Of the tokens picked, with weights of either sign, and for the temperature too; a token that is not allowed gets none."""
    weights = jnp.array([0.7, -2.0, 1.5])

    def picked(logits: jax.Array, tau: jax.Array) -> jax.Array:
        said = token_logprobs(logits, TOKENS, temperature=tau, allowed=allowed)
        return (weights * jnp.where(jnp.isfinite(said), said, 0.0)).sum()

    def derived(logits: jax.Array, tau: jax.Array) -> jax.Array:
        logprobs = log_softmax(logits, temperature=tau, allowed=allowed)
        said = jnp.take_along_axis(logprobs, TOKENS[:, None], axis=-1)[:, 0]
        return (weights * jnp.where(jnp.isfinite(said), said, 0.0)).sum()

    at = LOGITS, jnp.float32(0.7)
    for ours, theirs in zip(*(jax.grad(form, argnums=(0, 1))(*at) for form in (picked, derived)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    forbidden = jnp.array([1, 0, 0])
    flows = jax.grad(lambda x: token_logprobs(x, forbidden, allowed=ALLOWED)[0])(LOGITS)
    assert flows[0, 1] == 0 and flows[0, 3] == 0

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.interfaces import Params
from rlhf_jax.learners import sft
from rlhf_jax.learners.microbatch import LossSums, loss_and_gradient
from rlhf_jax.learners.optimizer import make_optimizer

OPTIMIZER = make_optimizer(learning_rate=0.1, total_steps=1000, schedule="constant", max_grad_norm=100.0)


def token_loss(logprobs: jax.Array, weights: jax.Array) -> LossSums:
    """Σ −w·log p over Σ w, as a learner's loss hands it over; what has no weight may be anything."""
    learnt = weights > 0
    nll = -jnp.where(learnt, logprobs, 0.0)
    parts = {"token_nll": sft.sum_and_count(nll, learnt)}
    return LossSums(loss=jnp.sum(weights * nll), count=jnp.sum(weights), parts=parts, maxima={})


def bigram_loss(params: Params, batch: dict[str, jax.Array], key: jax.Array) -> LossSums:
    """Next token from the last one by a table [V, V]; the weights say which tokens are learnt."""
    del key
    logprobs = jax.nn.log_softmax(params["table"][batch["tokens"][:, :-1]])
    logprobs = jnp.take_along_axis(logprobs, batch["tokens"][:, 1:, None], axis=2)[..., 0]
    return token_loss(logprobs, batch["weights"][:, 1:])


@pytest.fixture
def params() -> Params:
    return {"table": jax.random.normal(jax.random.key(0), (5, 5))}


@pytest.fixture
def batch() -> dict[str, jax.Array]:
    """Rows with very different numbers of learnt tokens, one of them with none."""
    lengths = jnp.array([7, 1, 3, 0, 5, 2])[:, None]
    return {
        "tokens": jax.random.randint(jax.random.key(1), (6, 8), 0, 5),
        "weights": (jnp.arange(8)[None] <= lengths).astype(jnp.float32),
    }


@pytest.mark.parametrize("microbatches", [2, 6])
def test_micro_batches_equal_one_batch(params: Params, batch: dict[str, jax.Array], microbatches: int) -> None:
    one = loss_and_gradient(bigram_loss, params, batch, jax.random.key(0))
    many = loss_and_gradient(bigram_loss, params, batch, jax.random.key(0), microbatches=microbatches)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), one, many)
    per_row = [
        loss_and_gradient(
            bigram_loss, params, jax.tree.map(lambda leaf, r=r: leaf[r : r + 1], batch), jax.random.key(0)
        )
        for r in (0, 1)
    ]
    mean_of_means = (per_row[0][0] + per_row[1][0]) / 2
    assert abs(mean_of_means - one[0]) > 1e-3


def test_rows_must_divide(params: Params, batch: dict[str, jax.Array]) -> None:
    with pytest.raises(ValueError, match="6 rows cannot be divided into 4 micro-batches"):
        loss_and_gradient(bigram_loss, params, batch, jax.random.key(0), microbatches=4)


def test_nothing_learnt_from_nothing_and_nan_in_padding_is_not_seen(
    params: Params, batch: dict[str, jax.Array]
) -> None:
    def poisoned(params: Params, batch: dict[str, jax.Array], key: jax.Array) -> LossSums:
        logprobs = jax.nn.log_softmax(params["table"][batch["tokens"][:, :-1]])
        logprobs = jnp.take_along_axis(logprobs, batch["tokens"][:, 1:, None], axis=2)[..., 0]
        weights = batch["weights"][:, 1:]
        return token_loss(jnp.where(weights > 0, logprobs, jnp.nan), weights)

    key = jax.random.key(0)
    clean = loss_and_gradient(bigram_loss, params, batch, key)
    jax.tree.map(np.testing.assert_array_equal, loss_and_gradient(poisoned, params, batch, key), clean)
    loss, gradient, _ = loss_and_gradient(
        bigram_loss, params, batch | {"weights": jnp.zeros_like(batch["weights"])}, key
    )
    assert loss == 0.0
    np.testing.assert_array_equal(gradient["table"], 0.0)


def test_learns_the_successor_of_every_token_and_averages(params: Params) -> None:
    tokens = (jnp.arange(5)[:, None] + jnp.arange(8)[None]) % 5
    batch = {"tokens": tokens, "weights": jnp.ones((5, 8))}
    step = jax.jit(
        functools.partial(sft.update, loss_fn=bigram_loss, optimizer=OPTIMIZER, average_decay=0.9), donate_argnums=0
    )
    state = sft.init(params, OPTIMIZER, averaged=True)
    for n in range(60):
        state, metrics = step(state, batch, jax.random.fold_in(jax.random.key(2), n))
    assert metrics["token_nll"] < 0.05
    assert int(state.step) == 60
    assert int(state.skipped) == int(metrics["skipped"]) == 0
    # The average lags behind, and is a better start than the first parameters.
    nll = [
        float(loss_and_gradient(bigram_loss, p, batch, jax.random.key(0))[0])
        for p in (params, state.average, state.params)
    ]
    assert nll[0] > nll[1] > nll[2]
    # `init` copied: donating the state has not taken the caller's arrays.
    assert not params["table"].is_deleted()


def test_first_average_is_dominated_by_the_new_parameters(params: Params, batch: dict[str, jax.Array]) -> None:
    state = sft.init(params, OPTIMIZER, averaged=True)
    new, _ = sft.update(state, batch, jax.random.key(0), loss_fn=bigram_loss, optimizer=OPTIMIZER)
    np.testing.assert_allclose(
        new.average["table"], 0.1 * params["table"] + 0.9 * new.params["table"], rtol=1e-5, atol=1e-6
    )


def test_non_finite_step_is_counted_and_changes_nothing(params: Params, batch: dict[str, jax.Array]) -> None:
    state = sft.init(params, OPTIMIZER)
    batch = batch | {"weights": batch["weights"] * jnp.inf}
    new, metrics = sft.update(state, batch, jax.random.key(0), loss_fn=bigram_loss, optimizer=OPTIMIZER)
    assert int(new.skipped) == int(metrics["skipped"]) == 1
    jax.tree.map(np.testing.assert_array_equal, (new.params, new.opt_state), (state.params, state.opt_state))
    assert new.average is None

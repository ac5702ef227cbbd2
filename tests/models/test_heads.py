"""Heads: starting values, the last real token, and items that share features."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import gpt2, heads


def test_values_start_at_zero_and_are_affine() -> None:
    head = heads.init_value_head(4)
    hidden = jnp.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(heads.value(head, hidden), np.zeros((2, 3)))
    head = {"kernel": jnp.array([1.0, 0.0, 0.0, 2.0]), "bias": jnp.array(0.5)}
    np.testing.assert_allclose(heads.value(head, hidden[0, 1]), 4 + 14 + 0.5)


def test_reward_heads_start_at_the_stated_scale() -> None:
    head = heads.init_reward_heads(jax.random.key(0), 399, 3)
    assert head["kernel"].shape == (399, 3)
    assert abs(float(jnp.std(head["kernel"])) * 20 - 1) < 0.06
    np.testing.assert_array_equal(head["bias"], np.zeros(3))
    scores = heads.reward_components({**head, "bias": jnp.arange(3.0)}, jnp.zeros((2, 399)))
    np.testing.assert_array_equal(scores, [[0, 1, 2], [0, 1, 2]])


def test_last_token_is_found_on_either_side() -> None:
    hidden = jnp.arange(12.0).reshape(3, 4, 1)
    mask = jnp.array([[True, True, False, False], [False, False, True, True], [True, True, True, True]])
    np.testing.assert_array_equal(heads.last_token_hidden(hidden, mask)[:, 0], [1, 7, 11])


def test_item_logits_are_the_item_columns_of_the_head() -> None:
    params = gpt2.init(gpt2.GPT2Config(vocab_size=20, n_positions=4, n_embd=8, n_layer=1, n_head=1), jax.random.key(0))
    hidden = jax.random.normal(jax.random.key(1), (3, 8))
    items = heads.item_logits(params, hidden, first_item=12, n_items=5)
    np.testing.assert_allclose(items, gpt2.lm_logits(params, hidden)[:, 12:17], atol=1e-6)


@pytest.mark.parametrize(
    ("head", "read"),
    [
        (heads.init_value_head(8), heads.value),
        (heads.init_reward_heads(jax.random.key(0), 8, 3), heads.reward_components),
    ],
    ids=["value", "reward"],
)
def test_no_product_of_a_head_is_rounded_on_any_device(head: Any, read: Callable[[Any, Any], jax.Array]) -> None:
    def loss(head: Any, hidden: jax.Array) -> jax.Array:
        return jnp.sum(read(head, hidden) ** 2)

    # Forward and both gradients; hidden states of a bfloat16 network enter as float32.
    program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(head, jnp.ones((4, 8), jnp.bfloat16)).as_text()
    products = re.findall(r"stablehlo\.dot_general.*", program)
    assert len(products) >= 2
    for product in products:
        assert "precision = [HIGHEST, HIGHEST]" in product
        assert "bf16" not in product

"""GPT-2: padding changes nothing, cached decoding is the full forward pass, and mistakes are said at the boundary."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import dense, gpt2

CONFIG = gpt2.GPT2Config(vocab_size=40, n_positions=24, n_embd=16, n_layer=2, n_head=2)
PAD = 39
REAL = 7
LENGTH = 12


@pytest.fixture(scope="module")
def params() -> dict:
    # Five times the usual scale, so that attention is far from uniform.
    return jax.tree.map(lambda leaf: 5 * leaf, gpt2.init(CONFIG, jax.random.key(0)))


@pytest.fixture(scope="module")
def forward() -> Callable:
    return jax.jit(partial(gpt2.forward, CONFIG))


@pytest.fixture(scope="module")
def step() -> Callable:
    return jax.jit(partial(gpt2.decode_step, CONFIG))


def sentence(offset: int, *, filler: int = PAD) -> tuple[jax.Array, jax.Array]:
    """The same seven tokens with `offset` fillers on the left, to 12 columns."""
    words = np.random.default_rng(1).integers(0, PAD, REAL)
    tokens = np.full((1, LENGTH), filler)
    tokens[0, offset : offset + REAL] = words
    mask = np.zeros((1, LENGTH), bool)
    mask[0, offset : offset + REAL] = True
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)


def test_tree_has_the_documented_names_and_shapes(params: dict) -> None:
    assert set(params) == {"wte", "wpe", "h_0", "h_1", "ln_f"}
    assert params["wte"].shape == (40, 16)
    assert params["wpe"].shape == (24, 16)
    assert set(params["h_0"]) == {"ln_1", "attn", "ln_2", "mlp"}
    assert params["h_1"]["attn"]["c_attn"]["kernel"].shape == (16, 48)
    assert params["h_1"]["mlp"]["c_fc"]["kernel"].shape == (16, 64)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_padding_side_and_amount_change_no_logits(params: dict, forward: Callable) -> None:
    reference = forward(params, *(x[:, :REAL] for x in sentence(0)))
    for offset in (0, 2, LENGTH - REAL):
        logits = forward(params, *sentence(offset))[:, offset : offset + REAL]
        np.testing.assert_allclose(logits, reference, atol=1e-5)


def test_nan_in_padding_changes_no_value_and_no_gradient(params: dict) -> None:
    tokens, mask = (jnp.concatenate(pair) for pair in zip(sentence(0), sentence(4), strict=True))

    @jax.jit
    def loss_and_gradient(params: dict) -> tuple[jax.Array, dict]:
        def loss(params: dict) -> jax.Array:
            hidden = gpt2.hidden_states(CONFIG, params, tokens, mask)
            return jnp.sum(jnp.where(mask[..., None], jnp.sin(hidden), 0))

        return jax.value_and_grad(loss)(params)

    poisoned = {**params, "wte": params["wte"].at[PAD].set(jnp.nan)}
    value, gradient = loss_and_gradient(params)
    poisoned_value, poisoned_gradient = loss_and_gradient(poisoned)
    assert value == poisoned_value
    jax.tree.map(np.testing.assert_array_equal, gradient, poisoned_gradient)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_cached_decoding_is_the_full_forward_pass(params: dict, forward: Callable, step: Callable) -> None:
    tokens = jax.random.randint(jax.random.key(1), (2, LENGTH), 0, PAD)
    mask = jnp.ones((2, LENGTH), bool).at[0, :3].set(False)
    full = forward(params, tokens, mask)
    prompt = 5
    prefill = jax.jit(partial(gpt2.prefill, CONFIG, cache_length=LENGTH))
    hidden, cache = prefill(params, tokens[:, :prompt], mask[:, :prompt])
    for column in range(prompt, LENGTH):
        np.testing.assert_allclose(gpt2.lm_logits(params, hidden), full[:, column - 1], atol=1e-5)
        hidden, cache = step(params, cache, tokens[:, column])
    np.testing.assert_allclose(gpt2.lm_logits(params, hidden), full[:, -1], atol=1e-5)
    assert int(cache.index) == LENGTH


def test_an_empty_cache_decodes_from_the_first_token(params: dict, forward: Callable, step: Callable) -> None:
    tokens = jax.random.randint(jax.random.key(1), (2, LENGTH), 0, PAD)
    cache = gpt2.init_cache(CONFIG, 2, LENGTH)
    _, cache = step(params, cache, tokens[:, 0])
    hidden, _ = step(params, cache, tokens[:, 1])
    full = forward(params, tokens, jnp.ones((2, LENGTH), bool))
    np.testing.assert_allclose(gpt2.lm_logits(params, hidden), full[:, 1], atol=1e-5)


def mean_cosine(params: dict, config: gpt2.GPT2Config, from_position: int, key: jax.Array | None = None) -> jax.Array:
    """A number that hangs on the last four positions of a padded sentence."""
    tokens, mask = sentence(2)
    hidden = gpt2.hidden_states(config, params, tokens, mask, from_position=from_position, dropout_key=key)
    return jnp.mean(jnp.cos(hidden[:, -4:]))


def test_from_position_changes_no_value_and_no_gradient(params: dict) -> None:
    gradient = jax.jit(jax.value_and_grad(mean_cosine), static_argnums=(1, 2))
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5),
        gradient(params, CONFIG, 0),
        gradient(params, CONFIG, LENGTH - 4),
    )


def learning(n_layer: int = 3, **options: str) -> jax.stages.Lowered:
    """Value and gradient with dropout on, of so many layers."""
    config = dataclasses.replace(CONFIG, n_layer=n_layer, **options)
    params = jax.eval_shape(partial(gpt2.init, config), jax.random.key(0))
    gradient = jax.jit(jax.value_and_grad(mean_cosine), static_argnums=(1, 2))
    return gradient.lower(params, config, LENGTH - 4, jax.random.key(2))


@pytest.fixture(scope="module")
def deep() -> dict:
    """Three layers of weights unlike each other."""
    return jax.tree.map(lambda leaf: 5 * leaf, gpt2.init(dataclasses.replace(CONFIG, n_layer=3), jax.random.key(0)))


def learnt(deep: dict, **options: str) -> tuple:
    # What is compared does not depend on how well the machine code is optimised.
    cheap = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return learning(**options).compile(compiler_options=cheap)(deep, jax.random.key(2))


@pytest.fixture(scope="module")
def unrolled(deep: dict) -> tuple:
    return learnt(deep)


@pytest.mark.parametrize(("layers", "remat"), [("scan", "none"), ("scan", "dots"), ("unrolled", "full")])
def test_layers_and_remat_change_no_value_and_no_gradient(deep: dict, unrolled: tuple, layers: str, remat: str) -> None:
    found = learnt(deep, layers=layers, remat=remat)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), found, unrolled)


@pytest.mark.slow
def test_a_scan_is_as_long_a_program_for_many_layers_as_for_few() -> None:
    def matmuls(**options: Any) -> int:
        return learning(**options).as_text().count("stablehlo.dot_general")

    assert matmuls(layers="scan", n_layer=6) == matmuls(layers="scan") < matmuls() < matmuls(n_layer=6)


def test_remat_computes_matmuls_again_all_or_only_those_of_attention() -> None:
    none, dots, full = (
        learning(remat=remat).as_text().count("stablehlo.dot_general") for remat in ("none", "dots", "full")
    )
    assert dots == none + 2 * 3
    # Of three layers' matmuls with weights all but the last of each, whose result nothing needs; the last layer has one
    # more, because its queries are of fewer rows than its keys and values.
    assert full == dots + 3 * 3 + 1


def test_fused_attention_is_the_masked_one_whatever_side_the_padding_is_on(params: dict) -> None:
    tokens = jax.random.randint(jax.random.key(1), (3, LENGTH), 0, PAD)
    column = jnp.arange(LENGTH)[None, :]
    # No padding; on the left; on both sides, as prompts and responses of unequal length have it.
    mask = (column >= jnp.array([0, 5, 3])[:, None]) & (column < jnp.array([LENGTH, LENGTH, LENGTH - 2])[:, None])

    def loss(params: dict, config: gpt2.GPT2Config) -> jax.Array:
        hidden = gpt2.hidden_states(config, params, tokens, mask, from_position=4)
        return jnp.mean(jnp.cos(jnp.where(mask[:, 4:, None], hidden, 0.0)))

    fused = dataclasses.replace(CONFIG, attention="xla", attention_dropout=False)
    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), gradient(params, CONFIG), gradient(params, fused)
    )


def test_dropout_is_a_function_of_its_key(params: dict) -> None:
    tokens, mask = sentence(2)
    dropped = jax.jit(lambda key: gpt2.hidden_states(CONFIG, params, tokens, mask, dropout_key=key))
    one, other = dropped(jax.random.key(3)), dropped(jax.random.key(4))
    np.testing.assert_array_equal(one, dropped(jax.random.key(3)))
    assert np.abs(one - other).max() > 0.1


def test_drop_keeps_the_mean_and_the_stated_share() -> None:
    thinned = dense.drop(jnp.ones((101, 301)), 0.1, jax.random.key(0))
    share = round(0.1 * 256) / 256
    assert abs(float(jnp.mean(thinned == 0)) - share) < 0.006
    assert abs(float(jnp.mean(thinned)) - 1) < 0.007


def test_bfloat16_stays_near_float32(params: dict, forward: Callable) -> None:
    tokens, mask = sentence(1)
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    low = jax.jit(partial(gpt2.forward, config))(params, tokens, mask)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low[:, 1:8], forward(params, tokens, mask)[:, 1:8], atol=0.25)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_head": 3}, "n_embd 16 is not a multiple of n_head 3"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"compute_dtype": "float16"}, "float16"),
        ({"n_layer": 0}, "'n_layer': 0"),
        ({"layers": "looped"}, "looped"),
        ({"remat": "some"}, "some"),
        ({"head_chunk": 0}, "head_chunk must be at least 1, got 0"),
        ({"attention": "flash"}, "flash"),
        ({"attention": "cudnn", "attention_dropout": False}, "float32"),
        ({"attention": "xla"}, "attention_dropout=False"),
    ],
)
def test_impossible_configurations_are_refused_with_the_numbers(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(CONFIG, **change)


def test_sequences_that_do_not_fit_are_refused_with_the_numbers(params: dict) -> None:
    tokens, mask = jnp.zeros((1, 25), jnp.int32), jnp.ones((1, 25), bool)
    with pytest.raises(ValueError, match="25 tokens exceed n_positions 24"):
        gpt2.hidden_states(CONFIG, params, tokens, mask)
    with pytest.raises(ValueError, match=r"from_position 5 is outside \[0, 5\)"):
        gpt2.hidden_states(CONFIG, params, tokens[:, :5], mask[:, :5], from_position=5)
    with pytest.raises(ValueError, match="cache_length 30 <= n_positions 24"):
        gpt2.prefill(CONFIG, params, tokens[:, :5], mask[:, :5], cache_length=30)

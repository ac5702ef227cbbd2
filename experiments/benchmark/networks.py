"""The four networks every implementation starts from: the same numbers, as trees of GPT-2 and as calls with a clock."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from benchmark.workload import Workload
from rlhf_jax.decoding.grammar import Grammar
from rlhf_jax.interfaces import Params
from rlhf_jax.models import gpt2, heads

ITEMS = 1024
"""Tokens of the vocabulary that are items."""
LEARNING_RATE = 1e-6
"""Small: thousands of steps must not drive the policy out of the ordinary."""
MAX_GRAD_NORM = 1.0


@dataclasses.dataclass(frozen=True)
class Networks:
    """Float32 trees. The reference is the policy's trunk before any update; the critic its own network."""

    policy: Params
    critic: Params
    reward: Params
    reward_heads: Params
    prompts: Int[Array, "B P"]


def network_config(workload: Workload, compute_dtype: str = "float32", **options: Any) -> gpt2.GPT2Config:
    """Our GPT-2 of the workload's size; exactly as many positions as it needs."""
    return gpt2.GPT2Config(
        vocab_size=workload.vocab_size,
        n_positions=workload.length,
        n_embd=workload.n_embd,
        n_layer=workload.n_layer,
        n_head=workload.n_head,
        compute_dtype=compute_dtype,
        **options,
    )


def grammar(workload: Workload) -> Grammar:
    """Words, four special tokens and items, as a conversational recommender has them."""
    first_item = workload.vocab_size - ITEMS
    return Grammar(
        n_words=first_item - 4,
        pad=first_item - 4,
        eos=first_item - 3,
        rec=first_item - 2,
        say=first_item - 1,
        first_item=first_item,
        n_items=ITEMS,
        max_items=5,
        vocab_size=workload.vocab_size,
    )


def draw_networks(workload: Workload, seed: int = 0) -> Networks:
    """Fresh networks and prompts of words alone."""
    draw = np.random.default_rng(seed)
    return Networks(
        policy=draw_trunk(workload, draw),
        critic=draw_trunk(workload, draw),
        reward=draw_trunk(workload, draw),
        reward_heads=heads.init_reward_heads(jax.random.key(seed), workload.n_embd, 1),
        prompts=jnp.asarray(draw.integers(0, grammar(workload).n_words, (workload.batch, workload.prompt)), jnp.int32),
    )


def draw_trunk(workload: Workload, draw: np.random.Generator) -> Params:
    """Distributed as `gpt2.init` has it, without compiling a program for it."""
    config = network_config(workload)
    shapes = jax.eval_shape(lambda key: gpt2.init(config, key), jax.random.key(0))

    def leaf(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> Array:
        name, layer = path[-1].key, path[-2].key if len(path) > 1 else ""
        if name in ("scale", "bias"):
            return jnp.full(shape.shape, float(name == "scale"), jnp.float32)
        deviation = gpt2.residual_scale(config) if layer == "c_proj" else 0.02
        return jnp.asarray(deviation * draw.standard_normal(shape.shape, np.float32))

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def as_numpy(tree: Params) -> Any:
    """The tree with NumPy leaves, for other frameworks."""
    return jax.tree.map(np.asarray, tree)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds until the device has finished."""
    started = time.perf_counter()
    result = jax.block_until_ready(call())
    return result, time.perf_counter() - started

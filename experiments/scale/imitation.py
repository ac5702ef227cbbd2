"""What one step of imitation costs: operations and bytes of the compiled program, seconds and peak memory of a process.

    python -m scale.imitation count JSON...   # of one or several `Imitation`s: what the compiler says, one line each
    python -m scale.imitation run JSON        # of one with `"repeats"`: seconds of a step, peak memory (`scale.cost`)

The step is that of `stages.supervised` with its defaults: AdamW, the moving average, items composed of title words and
features. float32, no dropout, nothing computed again.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.decoding.grammar_loss import FREE_ITEM, FREE_WORD, GrammarTargets
from rlhf_jax.learners import sft
from rlhf_jax.learners.optimizer import TrainState, falling_by_cosine
from rlhf_jax.models import gpt2
from rlhf_jax.parallel.partition import OneDevice
from rlhf_jax.runtime.allocator import keep_memory
from rlhf_jax.stages.agent import make_agent
from rlhf_jax.stages.items import ItemKnowledge
from rlhf_jax.stages.setup import ModelConfig, size_network
from rlhf_jax.stages.supervised import SupervisedConfig, TextBatch, make_loss, make_step
from rlhf_jax.stages.texts import ITEM_POSITIONS_PER_TOKEN
from scale import cost
from scale.plan import matmul_flops
from scale.program import numbered_vocabulary

TITLE_WORDS = 8
"""Of every item, as many as `stages.items` takes at most."""


@dataclasses.dataclass(frozen=True)
class Imitation:
    """One step: everything it depends on besides the code."""

    layers: int
    width: int
    heads: int
    texts: int
    tokens: int
    """Of a text."""
    words: int
    items: int
    positions: int


class Step(NamedTuple):
    """A step and what it takes but for the state."""

    update: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    """Jitted, `(state, batch, knowledge, key)`; the state is given away."""
    state: Callable[[], TrainState]
    """Fresh weights and moments."""
    batch: TextBatch
    knowledge: ItemKnowledge


def make(size: Imitation) -> Step:
    """The step of `stages.supervised.train` at one size, on texts of random words and items."""
    vocab = numbered_vocabulary(size.words, size.items)
    model = ModelConfig(
        n_layer=size.layers, n_embd=size.width, n_head=size.heads, n_positions=size.positions, dropout=0.0
    )
    network, config = size_network(model, vocab), SupervisedConfig()
    agent = make_agent(vocab, network, max_items=5, response_tokens=16)
    rate, optimizer = falling_by_cosine(1e-6, warmup_steps=10, total_steps=10**4, weight_decay=config.weight_decay)
    layout = OneDevice()
    step = make_step(make_loss(agent, config, layout), optimizer, rate, average_decay=config.average_decay)
    generator = np.random.default_rng(0)
    n_features = max(1, size.items // 4)
    knowledge = ItemKnowledge(
        titles=jnp.asarray(generator.integers(0, size.words, (size.items, TITLE_WORDS)), jnp.int32),
        metadata=jnp.zeros((size.items, 0), jnp.int32),
        features=jnp.asarray(generator.integers(0, n_features, (size.items, config.features_per_item)), jnp.int32),
    )

    def fresh() -> TrainState:
        trunk = gpt2.init(network, jax.random.key(0))
        return sft.init(
            {"trunk": trunk, "item_features": jnp.zeros((n_features, size.width))}, optimizer, averaged=True
        )

    return Step(jax.jit(step, donate_argnums=0), jax.jit(fresh), _texts(size, vocab, generator), knowledge)


def _texts(size: Imitation, vocab: Vocabulary, generator: np.random.Generator) -> TextBatch:
    """Words, and an item in the last places that a bucket has room for."""
    room = max(4, int(size.tokens * ITEM_POSITIONS_PER_TOKEN))
    shape, listed = (size.texts, size.tokens), 5
    tokens = generator.integers(0, size.words, shape)
    targets = np.roll(tokens, -1, axis=1)
    positions = np.tile(np.arange(size.tokens - room, size.tokens), (size.texts, 1))
    targets[:, -room:] = vocab.first_item + generator.integers(0, size.items, positions.shape)
    kinds = np.full(shape, FREE_WORD)
    kinds[:, -room:] = 0
    targets_by_head = GrammarTargets(
        targets=jnp.asarray(targets, jnp.int32),
        kinds=jnp.asarray(kinds, jnp.int32),
        listed=jnp.full((*shape, listed), -1, jnp.int32),
        item_positions=jnp.asarray(positions, jnp.int32),
        item_kinds=jnp.full(positions.shape, FREE_ITEM, jnp.int32),
        item_listed=jnp.full((*positions.shape, listed), -1, jnp.int32),
    )
    return TextBatch(tokens=jnp.asarray(tokens, jnp.int32), mask=jnp.ones(shape, bool), targets=targets_by_head)


def counted(size: Imitation) -> dict[str, float]:
    """What the compiler says of the step: `operations` of its matmuls, bytes of `temporaries` and of `arguments`."""
    step = make(size)
    state = jax.eval_shape(step.state)
    made = step.update.lower(state, step.batch, step.knowledge, jax.random.key(0)).compile()  # type: ignore[attr-defined]
    memory = made.memory_analysis()
    return {
        "operations": matmul_flops(made.as_text()),
        "temporaries": float(memory.temp_size_in_bytes),
        "arguments": float(memory.argument_size_in_bytes),
    }


def run(size: Imitation, repeats: int) -> dict[str, float]:
    """Seconds of a step, the least of `repeats`, tokens a second, and peak memory; see `scale.cost`."""
    step = make(size)
    state = step.state()

    def once() -> Any:
        nonlocal state
        state, metrics = step.update(state, step.batch, step.knowledge, jax.random.key(0))
        return metrics

    seconds = cost.least(once, repeats)
    return {
        "step_seconds": seconds,
        "tokens_per_second": size.texts * size.tokens / seconds,
        "peak_mb": cost.peak_mb(),
    }


def apart(kind: str, sizes: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """`count` or `run` in a process of its own. Raises ValueError with the end of its words where it failed."""
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    changed = {"PYTHONPATH": path}
    if kind == "count":
        changed["JAX_PLATFORMS"] = "cpu"
        # What is read off a program does not depend on how well its machine code is optimised.
        changed["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    command = [sys.executable, "-m", "scale.imitation", kind, *(json.dumps(size) for size in sizes)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | changed, check=False)
    if done.returncode:
        raise ValueError(f"{kind} of {sizes} failed:\n{done.stderr.strip()[-1500:]}")
    return [json.loads(line) for line in done.stdout.splitlines()[-len(sizes) :]]


def _main(kind: str, texts: Sequence[str]) -> None:
    keep_memory()
    for text in texts:
        given = json.loads(text)
        repeats = given.pop("repeats", 1)
        print(
            json.dumps(run(Imitation(**given), repeats) if kind == "run" else counted(Imitation(**given))), flush=True
        )


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:])

"""A network's size on a mesh, and the PPO iteration that training runs on it. Everything is shapes; no array is made.

The steps of other learners are in `steps`; `compiling` asks the compiler about all of them.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer, models

from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.interfaces import Params, PromptBatch
from rlhf_jax.learners import ppo
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.models import gpt2
from rlhf_jax.parallel.mesh import MeshConfig
from rlhf_jax.parallel.partition import Partition
from rlhf_jax.stages.agent import Agent, make_agent, on_mesh, policy_params, reward_params
from rlhf_jax.stages.setup import ModelConfig, size_network

Steps = Literal["ppo", "grpo", "multi-turn", "dpo"]
"""Whose step a plan is of."""


@dataclasses.dataclass(frozen=True)
class Program:
    """One step of training: everything its compilation depends on besides the code."""

    name: str
    layers: int
    width: int
    heads: int
    mesh: MeshConfig
    batch: int
    """Responses of one step, over all devices; of pairs both, of conversations all turns."""
    prompt: int
    response: int
    epochs: int
    minibatches: int
    microbatches: int
    words: int
    items: int
    """Tokens of the vocabulary that are words, and items."""
    positions: int = 1024
    topology: str = ""
    """Of the TPU to compile for (`v5e:16x16`); empty is pretended CPU devices."""
    steps: Steps = "ppo"
    group: int = 8
    """Responses to a prompt, or conversations from an opening; read by `grpo` and `multi-turn`."""
    turns: int = 4
    """Of a conversation; read by `multi-turn`."""

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """So many words, special tokens and items; what they spell does not matter."""
        return numbered_vocabulary(self.words, self.items)


def numbered_vocabulary(words: int, items: int) -> Vocabulary:
    """So many words, special tokens and items."""
    spelled = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    return Vocabulary(spelled.to_str(), tuple(range(items)), lower_case=False)


class Abstract(NamedTuple):
    """A program and what it takes, as shapes."""

    iteration: Any
    """Jitted, as `stages.alignment` makes it: bfloat16, every block computed again in the backward pass."""
    state: ppo.PPOState
    prompts: PromptBatch
    reference: Params
    reward_model: Params
    cache: gpt2.Cache
    """What decoding remembers, all rows; lives inside the program."""


def agent_of(program: Program, layout: Partition) -> Agent:
    """The network and its callables on the mesh: bfloat16, every block computed again in the backward pass."""
    vocab = program.vocabulary
    model = ModelConfig(
        n_layer=program.layers,
        n_embd=program.width,
        n_head=program.heads,
        n_positions=program.positions,
        compute_dtype="bfloat16",
        remat=True,
    )
    agent = make_agent(vocab, size_network(model, vocab), max_items=5, response_tokens=program.response)
    return on_mesh(agent, layout)


def abstract(program: Program, layout: Partition) -> Abstract:
    """The program of PPO and shapes that know where they lie; the layout's mesh may be abstract."""
    agent = agent_of(program, layout)
    network = agent.network
    config = PPOConfig(epochs=program.epochs, minibatches=program.minibatches, microbatches=program.microbatches)
    optimizer = make_optimizer(learning_rate=3e-6, total_steps=10**4)
    key = jax.random.key(0)
    trunk = jax.eval_shape(lambda key: gpt2.init(network, key), key)
    policy = policy_params(trunk, network.n_embd)
    state = jax.eval_shape(lambda params: ppo.init(params, optimizer, config, key), policy)
    trees = state, {"trunk": trunk}, reward_params(trunk, network.n_embd, key)
    state, reference, reward_model = stored(layout, trees)
    iteration = ppo.make_ppo_iteration(
        sample=agent.sample,
        policy=agent.policy,
        score=agent.score,
        optimizer=optimizer,
        config=config,
        out_shardings=layout.outputs(state),
    )
    # The last token drawn is never read.
    slots = program.prompt + program.response - 1
    cache = jax.eval_shape(lambda: gpt2.init_cache(network, program.batch, slots))
    return Abstract(iteration, state, prompts_of(program, layout, program.batch), reference, reward_model, cache)


def prompts_of(program: Program, layout: Partition, n_rows: int) -> PromptBatch:
    """Shapes of so many prompts, cut over the devices."""
    size = n_rows, program.prompt
    shapes = jax.eval_shape(lambda: PromptBatch(tokens=jnp.zeros(size, jnp.int32), mask=jnp.zeros(size, bool)))
    return by_rows(layout, shapes)


def stored(layout: Partition, trees: Any) -> Any:
    """Shapes of parameters and states, where they lie between steps."""
    return jax.tree.map(_at, trees, layout.stored(trees))


def by_rows(layout: Partition, batch: Any) -> Any:
    """Shapes of a batch, its rows cut over the devices."""
    return jax.tree.map(lambda leaf: _at(leaf, layout.rows), batch)


def _at(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

"""What one size costs: a PPO update and a ranking pass, or a corpus from its files to prompts. Each in a process of its own.

    python -m scale.growth update JSON      # of a `Program` with `"repeats"`
    python -m scale.growth corpus JSON      # of a `CorpusSize`

How seconds and peak memory of an update are counted is said in `scale.cost`; those of a corpus are the processor's.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.lines import json_of, text_lines
from rlhf_jax.data.redial import read_redial
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import training_texts
from rlhf_jax.interfaces import Params, PromptBatch
from rlhf_jax.learners import ppo
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.models import gpt2, heads
from rlhf_jax.parallel.mesh import MeshConfig
from rlhf_jax.runtime.allocator import keep_memory
from rlhf_jax.stages.agent import make_agent, reward_params
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.setup import DataConfig, ModelConfig, size_network
from scale.cost import least, peak_mb, process_peak_mb
from scale.program import Program

FILES = ("train_data.jsonl", "test_data.jsonl", "movies_with_mentions.csv")


@dataclasses.dataclass(frozen=True)
class CorpusSize:
    """Dialogues to read, on disk."""

    folder: str
    n_words: int
    window: int
    context_tokens: int


class Update(NamedTuple):
    """The compiled programs of one size, and what they take."""

    sample: Callable[..., Any]
    """`(reference, prompts, key)`"""
    iteration: Callable[..., Any]
    """`(state, prompts, reference, reward)`; the state is given away."""
    rank: Callable[..., Any]
    """`(reference, prompts)`"""
    networks: Callable[[jax.Array], tuple[Any, Params, Params]]
    """State, reference and reward model with fresh weights in float32, by key."""
    prompts: PromptBatch


def make(program: Program) -> Update:
    """A PPO update and a ranking pass at one size, on prompts of random words."""
    vocab = program.vocabulary
    model = ModelConfig(
        n_layer=program.layers, n_embd=program.width, n_head=program.heads, n_positions=program.positions, dropout=0.0
    )
    network = size_network(model, vocab)
    agent = make_agent(vocab, network, max_items=5, response_tokens=program.response)
    config = PPOConfig(epochs=program.epochs, minibatches=program.minibatches, microbatches=program.microbatches)
    optimizer = make_optimizer(learning_rate=1e-6, total_steps=10**4)

    def networks(key: jax.Array) -> tuple[Any, Params, Params]:
        trunk = gpt2.init(network, key)
        # The state is given away at every update, and with it the policy's own copy of the trunk.
        policy = {"trunk": jax.tree.map(jnp.copy, trunk), "value": heads.init_value_head(network.n_embd)}
        state = ppo.init(policy, optimizer, config, key)
        return state, {"trunk": trunk}, reward_params(trunk, network.n_embd, key)

    words = np.random.default_rng(0).integers(0, program.words, (program.batch, program.prompt))
    prompts = PromptBatch(tokens=jnp.asarray(words, jnp.int32), mask=jnp.ones(words.shape, bool))
    iteration = ppo.make_ppo_iteration(
        sample=agent.sample, policy=agent.policy, score=agent.score, optimizer=optimizer, config=config
    )
    return Update(jax.jit(agent.sample), iteration, jax.jit(agent.score_items), networks, prompts)


def update(program: Program, repeats: int) -> dict[str, float]:
    """Seconds of sampling, of a whole update and of ranking one batch of prompts; the least of `repeats`, compiled before.

    The network has fresh weights in float32, so that hardly a response ends early: every row is sampled to its last token.
    """
    made, key = make(program), jax.random.key(0)
    state, reference, reward = jax.jit(made.networks)(key)

    def whole() -> Any:
        nonlocal state
        state, *rest = made.iteration(state, made.prompts, reference, reward)
        return rest

    return {
        "rollout_seconds": least(lambda: made.sample(reference, made.prompts, key), repeats),
        "update_seconds": least(whole, repeats),
        "ranking_seconds": least(lambda: made.rank(reference, made.prompts), repeats),
        "peak_mb": peak_mb(),
    }


def corpus(size: CorpusSize) -> dict[str, float]:
    """CPU seconds of reading, training the BPE, and making every prompt of the training split; and how much there was."""
    clock = Clock()
    found = read_redial(Path(size.folder))
    seconds = {"read_seconds": clock.lap()}
    vocab = Vocabulary.train(training_texts(found.train), found.items, size.n_words)
    seconds["vocabulary_seconds"] = clock.lap()
    data = DataConfig(window=size.window, context_tokens=size.context_tokens)
    windows = Windows(vocab, found.train, data)
    turns = windows.turns()
    windows.prompts(turns)
    seconds["windows_seconds"] = clock.lap()
    return {**seconds, "peak_mb": process_peak_mb(), "dialogues": float(len(found.train)), "prompts": float(len(turns))}


def enlarge(source: Path, target: Path, times: int) -> None:
    """A corpus of `times` as many training dialogues: the same ones, under ids of their own."""
    target.mkdir(parents=True)
    for name in FILES[1:]:
        (target / name).write_bytes((source / name).read_bytes())
    lines = [json_of(line) for _, line in text_lines(source / FILES[0])]
    with (target / FILES[0]).open("w", encoding="utf-8") as file:
        for copy in range(times):
            for line in lines:
                # In the order of ids a copy follows the one before as a whole: neighbours are different dialogues.
                identity = f"{copy + 1}{int(line['conversationId']):09d}"
                file.write(json.dumps({**line, "conversationId": identity}) + "\n")


class Clock:
    """Laps of this process's CPU time."""

    def __init__(self) -> None:
        self._last = time.process_time()

    def lap(self) -> float:
        """Seconds since the last call."""
        before, self._last = self._last, time.process_time()
        return self._last - before


def apart(kind: str, given: dict[str, Any]) -> dict[str, float]:
    """`update` or `corpus` in a process of its own. Raises ValueError with the end of its words where it failed."""
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "scale.growth", kind, json.dumps(given)]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise ValueError(f"{kind} of {given} failed:\n{done.stderr.strip()[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def device_kind() -> str:
    """What a process of its own would be measured on. Raises ValueError where JAX finds nothing to run on."""
    question = "import jax; print(jax.devices()[0].device_kind)"
    done = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"JAX found no device:\n{done.stderr.strip()[-1500:]}")
    return done.stdout.splitlines()[-1]


def slopes(sizes: list[float], costs: list[float]) -> Iterator[float]:
    """Power with which a cost grows between neighbouring sizes: log(c₂/c₁) / log(s₂/s₁); 1 is linear."""
    for place in range(len(sizes) - 1):
        yield float(np.log(costs[place + 1] / costs[place]) / np.log(sizes[place + 1] / sizes[place]))


def _main(kind: str, text: str) -> None:
    keep_memory()
    given = json.loads(text)
    if kind == "corpus":
        found = corpus(CorpusSize(**given))
    else:
        repeats = given.pop("repeats")
        found = update(Program(**given | {"mesh": MeshConfig(**given["mesh"])}), repeats)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2])

"""The PPO iteration of a network's size on a mesh, compiled for devices that are not there.

Everything is shapes; no array is made. Compilations have a process of their own, because the number of pretended
devices is fixed when JAX starts.

    python -m scale.program JSON FOLDER    # of a list of `Program`s: what the compiler says of each
"""

import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from tokenizers import Tokenizer, models

import rlhf_jax
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.interfaces import Params, PromptBatch
from rlhf_jax.learners import ppo
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.models import gpt2
from rlhf_jax.parallel.mesh import MeshConfig, make_mesh
from rlhf_jax.parallel.partition import Partition
from rlhf_jax.runtime.files import write_text
from rlhf_jax.stages.agent import make_agent, on_mesh, policy_params, reward_params
from rlhf_jax.stages.setup import ModelConfig, size_network
from scale import plan as scale_plan


@dataclasses.dataclass(frozen=True)
class Program:
    """One compilation: everything it depends on besides the code."""

    name: str
    layers: int
    width: int
    heads: int
    mesh: MeshConfig
    batch: int
    """Responses of one iteration, over all devices."""
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


def abstract(program: Program, layout: Partition) -> Abstract:
    """The program and shapes that know where they lie; the layout's mesh may be abstract."""
    vocab = program.vocabulary
    model = ModelConfig(
        n_layer=program.layers,
        n_embd=program.width,
        n_head=program.heads,
        n_positions=program.positions,
        compute_dtype="bfloat16",
        remat=True,
    )
    network = size_network(model, vocab)
    config = PPOConfig(epochs=program.epochs, minibatches=program.minibatches, microbatches=program.microbatches)
    agent = on_mesh(make_agent(vocab, network, max_items=5, response_tokens=program.response), layout)
    optimizer = make_optimizer(learning_rate=3e-6, total_steps=10**4)
    key = jax.random.key(0)
    trunk = jax.eval_shape(lambda key: gpt2.init(network, key), key)
    policy = policy_params(trunk, network.n_embd)
    state = jax.eval_shape(lambda params: ppo.init(params, optimizer, config, key), policy)
    trees = state, {"trunk": trunk}, reward_params(trunk, network.n_embd, key)
    state, reference, reward_model = jax.tree.map(_at, trees, layout.stored(trees))
    size = program.batch, program.prompt
    prompts = jax.eval_shape(lambda: PromptBatch(tokens=jnp.zeros(size, jnp.int32), mask=jnp.zeros(size, bool)))
    prompts = jax.tree.map(lambda leaf: _at(leaf, layout.rows), prompts)
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
    return Abstract(iteration, state, prompts, reference, reward_model, cache)


def compiled(program: Program) -> dict[str, Any]:
    """What the compiler says of one program, in a process that has the devices.

    Returns: `temporaries` and `arguments`, bytes of one device; `seconds` of compilation; and, on pretended CPU devices,
      `work` of every phase (`scale_plan.Work`) and `matmul_share`, the matmuls' part of the operations that the compiler
      itself counts (every loop's body once).
    """
    devices = topologies.get_topology_desc(program.topology, "tpu").devices if program.topology else None
    layout = Partition(make_mesh(program.mesh, devices))
    parts = abstract(program, layout)
    begin = time.perf_counter()
    made = parts.iteration.lower(parts.state, parts.prompts, parts.reference, parts.reward_model).compile()
    memory = made.memory_analysis()
    said: dict[str, Any] = {
        "temporaries": float(memory.temp_size_in_bytes),
        "arguments": float(memory.argument_size_in_bytes),
        "seconds": time.perf_counter() - begin,
    }
    if not program.topology:
        text, steps = made.as_text(), program.response - 1
        work = scale_plan.work_by_phase(text, layout.mesh.shape, decode_steps=steps)
        once = scale_plan.work_by_phase(text, layout.mesh.shape, decode_steps=steps, once=True)
        said["work"] = {phase: one._asdict() for phase, one in work.items()}
        said["matmul_share"] = sum(one.flops for one in once.values()) / made.cost_analysis()["flops"]
    return said


def compiled_apart(programs: Sequence[Program], folder: Path) -> list[dict[str, Any]]:
    """`compiled` of programs on one mesh, in a process of its own with as many devices; or what it said last time.

    Args:
      folder: keeps what was said, by the program, the version of JAX and this project's code.
    Raises: ValueError with the end of what that process wrote, where it failed.
    """
    paths = [folder / f"{_name(program)}.json" for program in programs]
    missing = [program for program, path in zip(programs, paths, strict=True) if not path.exists()]
    if missing:
        # What is read off a program does not depend on how well its machine code is optimised.
        flags = f"--xla_force_host_platform_device_count={max(program.mesh.size for program in missing)}"
        flags += " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
        changed = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "TPU_SKIP_MDS_QUERY": "1", "PYTHONPATH": path}
        text = json.dumps([dataclasses.asdict(program) for program in missing])
        command = [sys.executable, "-m", "scale.program", text, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | changed, check=False)
        if done.returncode:
            raise ValueError(f"{missing} were not compiled:\n{done.stderr.strip()[-1500:]}")
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


@functools.cache
def _code() -> str:
    parts = Path(rlhf_jax.__file__).parent, Path(__file__).parent
    files = [file for part in parts for file in sorted(part.rglob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _name(program: Program) -> str:
    key = hashlib.sha256(f"{dataclasses.asdict(program)} {jax.__version__} {_code()}".encode()).hexdigest()[:8]
    return f"{program.name}_{program.layers}_{program.mesh.size}_{'tpu' if program.topology else 'cpu'}_{key}"


def _at(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _main(programs: str, folder: Path) -> None:
    """What each of the programs (JSON) says, into a file of its own as soon as it is known."""
    folder.mkdir(parents=True, exist_ok=True)
    for given in json.loads(programs):
        program = Program(**given | {"mesh": MeshConfig(**given["mesh"])})
        write_text(folder / f"{_name(program)}.json", json.dumps(compiled(program)))


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))

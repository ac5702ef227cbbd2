"""One of several processes of a run in miniature: `several_processes.py FOLDER COUNT INDEX PORT TASK`; started by a test.

`train` runs every learner as a stage of one run and then reads the checkpoints back onto another mesh; `restore` only
reads them; `lose-0` and `lose-1` are a small stage in which that process is killed while all save a checkpoint. What was found
is printed as JSON.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

FOLDER, COUNT, INDEX, PORT, TASK = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    f" --xla_force_host_platform_device_count={8 // COUNT} --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)

import jax
import numpy as np
from small_learners import LEARNERS, ROWS

from fingerprint import fingerprint
from rlhf_jax.parallel import processes
from rlhf_jax.parallel.mesh import MeshConfig, make_mesh
from rlhf_jax.parallel.partition import Partition
from rlhf_jax.parallel.processes import ProcessConfig
from rlhf_jax.runtime import checkpoint
from rlhf_jax.runtime.checkpoint import Checkpoints
from rlhf_jax.runtime.interrupts import ends_without_the_others
from rlhf_jax.runtime.run import open_run
from rlhf_jax.runtime.stage import StagePlan, run_stage

STEPS = 2
SPREAD = jax.sharding.PartitionSpec("data")


def here(tree: Any) -> Any:
    """Every array as this process holds it, put together from its own devices alone."""

    def whole(leaf: Any) -> Any:
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array, known = np.zeros(leaf.shape, leaf.dtype), np.zeros(leaf.shape, bool)
        for shard in leaf.addressable_shards:
            array[shard.index], known[shard.index] = shard.data, True
        assert known.all(), "this process does not hold all of it"
        return array

    return jax.tree.map(whole, tree)


def train() -> dict[str, Any]:
    """Two updates of every learner as stages of one run; on 2 processes each holds all parameters (data spans them)."""
    layout = Partition(make_mesh(MeshConfig(data=4, fsdp=2)))
    asked: list[slice] = []
    layout.batch(ROWS, lambda own: (asked.append(own), np.zeros(own.stop - own.start))[1])
    found: dict[str, Any] = {"rows": [asked[0].start, asked[0].stop], "stages": {}}
    with open_run(FOLDER / "run", {"seed": 0}, trackers=()) as run:
        for name, make in LEARNERS.items():
            learner = make(layout)
            step = layout.together(learner.step, name)

            def update(state: Any, index: int, learner: Any = learner, step: Any = step) -> tuple[Any, dict[str, Any]]:
                state, metrics, *_ = step(state, *learner.inputs(index))
                return state, metrics

            state = run_stage(run, learner.state, update, StagePlan(name, STEPS, save_every=STEPS))
            other = Partition(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
            found["stages"][name] = {
                "held": fingerprint(here(state)),
                "fetched": fingerprint(processes.fetch(state)),
                "restored": restored(make(other).state, name),
            }
    return found


def restored(like: Any, name: str) -> str:
    """Fingerprint of a stage's newest checkpoint, read onto the mesh of `like`."""
    read = Checkpoints(FOLDER / "run" / "checkpoints" / name).restore(like)
    assert read is not None and read.step == STEPS
    for leaf, expected in zip(jax.tree.leaves(read.state), jax.tree.leaves(like), strict=True):
        assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim)
    return fingerprint(processes.fetch(read.state))


def lose(victim: int) -> dict[str, Any]:
    """A stage that saves after every step; `victim` is killed in the second save, and the others wait for it there."""
    write = checkpoint._write

    def write_or_die(folder: Path, state: Any) -> None:
        if INDEX == victim and "2" in folder.name:
            os.kill(os.getpid(), signal.SIGKILL)
        write(folder, state)

    checkpoint._write = write_or_die
    state = {"w": jax.device_put(np.zeros(8), jax.sharding.NamedSharding(jax.make_mesh((8,), ("data",)), SPREAD))}
    with ends_without_the_others(), open_run(FOLDER / "run", {"seed": 0}, trackers=()) as run:
        run_stage(run, state, lambda state, step: (state, {}), StagePlan("sft", 9, save_every=1, log_every=9))
    return {}


def main() -> None:
    """Joins the others, does the task, prints."""
    processes.join(ProcessConfig(coordinator=f"localhost:{PORT}", count=COUNT, index=INDEX))
    assert (jax.process_count(), jax.device_count()) == (COUNT, 8)
    if TASK == "train":
        found = train()
    elif TASK.startswith("lose-"):
        found = lose(int(TASK.removeprefix("lose-")))
    else:
        layout = Partition(make_mesh(MeshConfig(fsdp=4, tensor=2)))
        found = {name: restored(make(layout).state, name) for name, make in LEARNERS.items()}
    print("found " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

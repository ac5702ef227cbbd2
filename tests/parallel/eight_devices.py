"""Runs every learner on one device and on meshes of eight, and prints what was found as JSON; started by a test."""

import json
import os
import re
import sys
import time

# Compilation is most of the time, and what is compared does not depend on how well the machine code is optimised.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)

import jax
import numpy as np
from small_learners import DEEP, FEW_MESHES, HEAD_WIDTH, LEARNERS, PROMPT, RESPONSE, largest_difference

from rlhf_jax.parallel import rules
from rlhf_jax.parallel.mesh import MeshConfig, make_mesh
from rlhf_jax.parallel.partition import ONE_DEVICE, Layout, Partition
from scale.collectives import collectives, table

MESHES = {"8x1x1": (8, 1, 1), "4x2x1": (4, 2, 1), "2x2x2": (2, 2, 2), "1x1x8": (1, 1, 8)}
STEPS = 2


def steps(name: str, layout: Layout) -> dict:
    """Two updates: metrics of each, last state, what else came out, the program's text."""
    learner = (LEARNERS | DEEP)[name](layout)
    compiled = learner.step.lower(learner.state, *learner.inputs(0)).compile()
    state, metrics, others = learner.state, [], []
    for index in range(STEPS):
        state, logged, *other = compiled(state, *learner.inputs(index))
        metrics.append(jax.device_get(logged))
        others += jax.device_get(other)
    return {"state": state, "metrics": metrics, "others": others, "program": compiled.as_text()}


def main(names: list[str], meshes: list[str]) -> None:
    """Prints one JSON object: learner → mesh → facts."""
    found: dict = {}
    for name in names:
        alone = steps(name, ONE_DEVICE)
        found[name] = {}
        for mesh_name in (mesh for mesh in meshes if mesh in FEW_MESHES.get(name, MESHES)):
            begin = time.process_time()
            layout = Partition(make_mesh(MeshConfig(*MESHES[mesh_name])))
            spread = steps(name, layout)
            state = spread["state"]
            on_device = jax.devices()[3]
            held = [
                shard.data.nbytes
                for leaf in jax.tree.leaves((state.params, state.opt_state))
                for shard in leaf.addressable_shards
                if shard.device == on_device
            ]
            arrays = collectives(spread["program"], layout.mesh.shape)
            found[name][mesh_name] = {
                "parameters": largest_difference(alone["state"].params, state.params),
                "state": largest_difference(alone["state"], state),
                "metrics": [
                    largest_difference(one, other)
                    for one, other in zip(alone["metrics"], spread["metrics"], strict=True)
                ],
                "losses": [
                    [float(one["loss"]), float(other["loss"])]
                    for one, other in zip(alone["metrics"], spread["metrics"], strict=True)
                ],
                "alone": [{key: float(value) for key, value in logged.items()} for logged in alone["metrics"]],
                "tokens_equal": name not in ("ppo", "grpo")
                or all(
                    np.array_equal(one.response_tokens, other.response_tokens)
                    for one, other in zip(alone["others"], spread["others"], strict=True)
                ),
                "bytes": sum(held),
                "rules_bytes": rules.bytes_per_device(
                    (state.params, state.opt_state), layout.stored((state.params, state.opt_state))
                ),
                "collectives": [[kind, "+".join(axes), *rest] for (kind, axes), rest in table(arrays).items()],
                # What the loop over tokens carries: keys and values [B, H, T, D/H] on one device.
                "caches": sorted(
                    {
                        shape
                        for line in spread["program"].splitlines()
                        if " while(" in line
                        for shape in re.findall(rf"f32\[(\d+,\d+),{PROMPT + RESPONSE - 1},{HEAD_WIDTH}\]", line)
                    }
                ),
                "arrays": [[one.kind, "+".join(one.axes), list(one.shape), one.size] for one in arrays],
                "seconds": time.process_time() - begin,
            }
    if "reward_model" in names and "2x2x2" in meshes:
        layout = Partition(make_mesh(MeshConfig(*MESHES["2x2x2"])))
        alone, spread = steps("unrolled", ONE_DEVICE), steps("scan", layout)
        found["scan"] = {
            "2x2x2": {
                "parameters": largest_difference(alone["state"].params, spread["state"].params),
                "losses": [
                    [float(one["loss"]), float(other["loss"])]
                    for one, other in zip(alone["metrics"], spread["metrics"], strict=True)
                ],
                "loops": [one["program"].count(" while(") for one in (alone, spread)],
            }
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main((sys.argv[1:2] or [",".join(LEARNERS)])[0].split(","), (sys.argv[2:3] or [",".join(MESHES)])[0].split(","))

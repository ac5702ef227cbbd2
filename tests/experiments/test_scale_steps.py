"""Steps of every learner on paper: their matmuls counted in the compiled programs are those of closed forms, to the operation."""

import dataclasses

import pytest
from jax.sharding import AbstractMesh, AxisType

import plan_scale
from rlhf_jax.parallel.mesh import AXES, MeshConfig
from rlhf_jax.parallel.partition import Partition
from scale import plan as scale_plan
from scale.compiling import compiled
from scale.program import Program, Steps
from scale.steps import parts_of

B, P, T, L, D, V, G, TURNS, EPOCHS = 16, 6, 5, 2, 32, 128, 4, 2, 2
TINY = Program(
    name="tiny",
    layers=L,
    width=D,
    heads=4,
    mesh=MeshConfig(),
    batch=B,
    prompt=P,
    response=T,
    epochs=EPOCHS,
    minibatches=2,
    microbatches=1,
    words=100,
    items=20,
    positions=64,
    group=G,
    turns=TURNS,
)
HEAD = 2 * V * D


def trunk(rows: int, length: int, wanted: int) -> int:
    """One pass: of the last block keys and values alone for all positions, the rest for those that are wanted."""
    attention = 4 * length * D
    whole = rows * length * (24 * D * D + attention) * (L - 1)
    return whole + rows * (length * 4 * D * D + wanted * (20 * D * D + attention))


def learnt(rows: int, length: int, wanted: int, said: int) -> int:
    """Forward, twice as much backward, and every block again: but for its last matmul, 4D → D, which nobody reads, and the
    first block's first, D → 3D, whose input is what it was."""
    again = trunk(rows, length, wanted) - 8 * D * D * rows * (length * (L - 1) + wanted) - 6 * D * D * rows * length
    return 3 * (trunk(rows, length, wanted) + said * HEAD) + again


def drawn(rows: int) -> int:
    """All tokens but the first, each with as many slots of the cache as there are."""
    return (T - 1) * rows * (L * (24 * D * D + 4 * (P + T - 1) * D) + HEAD)


JUDGED = trunk(B, P + T - 1, T) + B * T * HEAD
SCORED = trunk(B, P + T, T) + B * 3 * 2 * D
UPDATE = EPOCHS * learnt(B, P + T - 1, T, B * T)
BRANCHES = P + 2 * (T - 1)
EXPECTED: dict[Steps, dict[str, int]] = {
    # Values: one number a hidden state; backward, only the head's own gradient is a matmul.
    "ppo": {
        "decode": drawn(B) + (T - 1) * B * 2 * D,
        "passes": trunk(B, P, 1) + B * (HEAD + 2 * D) + SCORED + 2 * JUDGED + B * T * 2 * D,
        "update": UPDATE + EPOCHS * 2 * B * T * 2 * D,
    },
    # A prompt is read once for its group.
    "grpo": {
        "decode": drawn(B),
        "passes": trunk(B // G, P, 1) + B * HEAD + SCORED + 2 * JUDGED,
        "update": UPDATE,
    },
    # Every turn of all conversations is drawn by itself; nothing is scored by a network.
    "multi-turn": {
        "decode": TURNS * drawn(B // TURNS),
        "passes": TURNS * (trunk(B // TURNS, P, 1) + B // TURNS * HEAD) + 2 * JUDGED,
        "update": UPDATE,
    },
    # Half as many prompts, each followed by both responses.
    "dpo": {
        "decode": 0,
        "passes": 0,
        "update": learnt(B // 2, BRANCHES, 2 * (T - 1) + 1, B * T),
    },
}


FIRST: dict[Steps, int] = {steps: EPOCHS * 6 * D * D * B * (P + T - 1) for steps in EXPECTED} | {
    "dpo": 6 * D * D * B // 2 * BRANCHES
}
"""The first block's first matmul, which XLA computes again at some sizes (0.10.2: docs/growth.md), and in JAX 0.11 at these too: it no longer sees that its input is what it was."""


@pytest.mark.parametrize(
    "steps", ["dpo", *(pytest.param(steps, marks=pytest.mark.slow) for steps in ("ppo", "grpo", "multi-turn"))]
)
def test_operations_are_those_of_the_closed_form(steps: Steps) -> None:
    said = compiled(dataclasses.replace(TINY, steps=steps))
    found = {phase: work["flops"] for phase, work in said["work"].items()}
    again = {**EXPECTED[steps], "update": EXPECTED[steps]["update"] + FIRST[steps]}
    assert found in (EXPECTED[steps], again)


def layout_of(mesh: MeshConfig) -> Partition:
    shape = (mesh.data, mesh.fsdp, mesh.tensor)
    return Partition(AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * 3))


def test_what_stays_between_steps_and_how_often_programs_run() -> None:
    mesh = MeshConfig(2, 1, 1)
    held, runs = {}, {}
    for steps in EXPECTED:
        parts = parts_of(dataclasses.replace(TINY, steps=steps, mesh=mesh), layout_of(mesh))
        held[steps] = scale_plan.resident_bytes(layout_of(mesh), parts.held, parts.cache)
        runs[steps] = [(run.times, run.outside, run.loops) for run in parts.runs]
    trunk_bytes = held["grpo"]["parameters"]
    assert held["ppo"]["parameters"] == trunk_bytes + 4 * (D + 1)
    # A conversation's turn is drawn for half as many rows as there are responses.
    assert {name: size for name, size in held["multi-turn"].items() if name != "cache"} == {
        name: size for name, size in held["grpo"].items() if name not in ("reward model", "cache")
    }
    slots, rows = P + T - 1, B // 2 // TURNS
    assert held["multi-turn"]["cache"] == 4 * rows * L * D * slots + rows * slots + 4 * rows + 4
    # Two moments and two counters, as with every other learner; no reference.
    assert held["dpo"] == {"parameters": trunk_bytes, "moments": held["grpo"]["moments"]}
    assert runs == {
        "ppo": [(1, "passes", ("decode", "update"))],
        "grpo": [(1, "passes", ("decode", "update"))],
        "multi-turn": [(TURNS, "passes", ("decode",)), (1, "passes", ("update",))],
        "dpo": [(1, "update", ("update",))],
    }


def test_bytes_of_memory_count_what_each_learner_reads() -> None:
    programs = {steps: dataclasses.replace(TINY, steps=steps) for steps in EXPECTED}
    moved = {steps: plan_scale.moved(program, 1000.0) for steps, program in programs.items()}
    assert moved["grpo"] == moved["ppo"]
    weights, cache = 12 * D * D * L + V * D, 2 * D * L * (P + T - 1)
    assert moved["ppo"]["decode"] == 2 * (T - 1) * (weights + B * cache)
    # Weights are read in every turn, caches of half as many rows.
    assert moved["multi-turn"]["decode"] == 2 * TURNS * (T - 1) * (weights + B // TURNS * cache)
    assert moved["multi-turn"]["passes"] == moved["ppo"]["passes"] * (TURNS + 2) / 4
    assert moved["multi-turn"]["update"] == moved["ppo"]["update"] == 4 * moved["dpo"]["update"]
    assert moved["dpo"]["decode"] == moved["dpo"]["passes"] == 0


def test_what_belongs_together_is_not_cut() -> None:
    fleet, config = plan_scale.FLEETS["64xh200"], plan_scale.Config(steps=("grpo", "multi-turn", "dpo"))
    batches = {steps: plan_scale.program_of(config, "gpt2-medium", fleet, steps).batch for steps in config.steps}
    # 64 devices share out rows: each has a whole opening of 8 conversations of 4 turns.
    assert batches == {"grpo": 1024, "multi-turn": 2048, "dpo": 1024}
    with pytest.raises(ValueError, match="groups of 32 responses 32 by data × fsdp = 64"):
        plan_scale.program_of(dataclasses.replace(config, batch=1024), "gpt2-medium", fleet, "multi-turn")
    with pytest.raises(ValueError, match="1028 responses are no whole groups of 8, as grpo needs them"):
        plan_scale.program_of(dataclasses.replace(config, batch=1028), "gpt2-medium", fleet, "grpo")
    with pytest.raises(ValueError, match="--group 1 has nothing to be compared with"):
        plan_scale.Config(steps=("grpo",), group=1)

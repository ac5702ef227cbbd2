"""Scale on paper: bytes against a hand count, operations and bytes sent against known programs, lines, refusals."""

import dataclasses
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from rlhf_jax.parallel.mesh import AXES, MeshConfig
from rlhf_jax.parallel.partition import Partition
from scale import plan as scale_plan
from scale.compiling import compiled_apart
from scale.plan import Fleet, Seconds, Work
from scale.program import Program, abstract

TINY = Program(
    name="tiny",
    layers=2,
    width=32,
    heads=4,
    mesh=MeshConfig(1, 2, 2),
    batch=8,
    prompt=6,
    response=5,
    epochs=2,
    minibatches=2,
    microbatches=1,
    words=100,
    items=20,
    positions=64,
)
FLEET = Fleet("two boxes", 16, 8, 1000.0, 100.0, 10.0, 4.0, 0.5, "made up")


def parts_of(mesh: MeshConfig) -> tuple[Partition, Any]:
    shape = (mesh.data, mesh.fsdp, mesh.tensor)
    layout = Partition(AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * 3))
    return layout, abstract(dataclasses.replace(TINY, mesh=mesh), layout)


def hand_count(fsdp: int, tensor: int) -> tuple[int, int]:
    """Numbers of the trunk on one device, and the same without any cut."""
    d, v, layers = 32, 128, 2
    matrices = layers * (3 * d * d + d * d + 4 * d * d + 4 * d * d) + v * d
    positions, hidden_bias = 64 * d, layers * 4 * d
    # Two norms, biases of queries to values, of both projections out; the last norm.
    vectors = layers * (4 * d + 3 * d + d + d) + 2 * d
    cut = matrices // (fsdp * tensor) + positions // fsdp + hidden_bias // tensor + vectors
    return cut, matrices + positions + hidden_bias + vectors


@pytest.mark.parametrize("mesh", [MeshConfig(1, 1, 1), MeshConfig(2, 2, 2), MeshConfig(1, 4, 1), MeshConfig(1, 1, 4)])
def test_bytes_are_those_of_a_hand_count(mesh: MeshConfig) -> None:
    layout, parts = parts_of(mesh)
    trees = {
        "parameters": parts.state.params,
        "moments": parts.state.opt_state,
        "reference": parts.reference,
        "reward model": parts.reward_model,
    }
    held = scale_plan.resident_bytes(layout, trees, parts.cache)
    trunk, whole = hand_count(mesh.fsdp, mesh.tensor)
    rows, slots, heads = 8 // mesh.row_parts, 6 + 5 - 1, 4 // mesh.tensor
    keys_and_values = 2 * 2 * rows * heads * slots * 8
    assert held == {
        "parameters": 4 * (trunk + 32 + 1),
        # Two moments each, and two counters.
        "moments": 2 * 4 * (trunk + 32 + 1) + 2 * 4,
        "reference": 4 * trunk,
        "reward model": 4 * (trunk + 3 * 32 + 3),
        "cache": 2 * keys_and_values + rows * slots + 4 * rows + 4,
    }
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parts.reference)) == whole


def known_program(layers: int) -> str:
    """A loop over tokens of unknown length, then 3 × 2 steps down a gradient; matrices [16, 16], 8 rows."""

    def forward(weights: tuple[jax.Array, ...], x: jax.Array) -> jax.Array:
        for weight in weights:
            x = jnp.tanh(x @ weight)
        return x

    def program(weights: tuple[jax.Array, ...], x: jax.Array) -> Any:
        _, x = jax.lax.while_loop(
            lambda carry: (carry[0] < 9) & (jnp.max(carry[1]) > 0),
            lambda carry: (carry[0] + 1, forward(weights, carry[1])),
            (jnp.zeros((), jnp.int32), x),
        )

        def step(weights: tuple[jax.Array, ...], _: None) -> tuple[tuple[jax.Array, ...], None]:
            gradient = jax.grad(lambda weights: jnp.sum(forward(weights, x)))(weights)
            return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradient), None

        def epoch(weights: tuple[jax.Array, ...], _: None) -> tuple[tuple[jax.Array, ...], None]:
            return jax.lax.scan(step, weights, None, 2)

        return jax.lax.scan(epoch, weights, None, 3)[0]

    shapes = (jax.ShapeDtypeStruct((16, 16), jnp.float32),) * layers
    return jax.jit(program).lower(shapes, jax.ShapeDtypeStruct((8, 16), jnp.float32)).compile().as_text()


def known_flops(layers: int) -> dict[str, float]:
    one = 2 * 8 * 16 * 16
    # Backward: every weight's gradient, and every layer's input but the first.
    return {"decode": 9 * layers * one, "passes": 0, "update": 3 * 2 * (3 * layers - 1) * one}


ONE = {"data": 1, "fsdp": 1, "tensor": 1}


def test_operations_of_a_known_program_and_of_a_deeper_one_on_the_line() -> None:
    counted = {
        layers: {
            phase: work.flops
            for phase, work in scale_plan.work_by_phase(known_program(layers), ONE, decode_steps=9).items()
        }
        for layers in (2, 3, 6)
    }
    assert counted == {layers: known_flops(layers) for layers in (2, 3, 6)}
    assert scale_plan.along_depth(counted[2], counted[3], (2, 3), 6) == counted[6]
    once = scale_plan.work_by_phase(known_program(2), ONE, decode_steps=9, once=True)
    assert once["decode"].flops * 9 == counted[2]["decode"]
    assert once["update"].flops * 6 == counted[2]["update"]


WRITTEN = """HloModule known

%tokens (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %w = f32[8,8]{1,0} constant(0)
  %gathered = f32[8,8]{1,0} all-gather(%w), replica_groups={{0,1},{2,3}}, dimensions={0}
  ROOT %dot.1 = f32[4,8]{1,0} dot(%p, %gathered), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%step (q: f32[4,8]) -> f32[4,8] {
  %q = f32[4,8]{1,0} parameter(0)
  %g = f32[8,8]{1,0} dot(%q, %q), lhs_contracting_dims={0}, rhs_contracting_dims={0}, metadata={op_name="transpose(jvp(f))/dot"}
  %sum = (f32[8,8]{1,0}, f32[2]{0}) all-reduce(%g, %q), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %out = f32[4,8]{1,0} copy(%q)
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %turned = f32[4,8]{1,0} all-to-all(%a), replica_groups={{0,2},{1,3}}, dimensions={0}
  %while.1 = f32[4,8]{1,0} while(%turned), condition=%c, body=%tokens
  ROOT %while.2 = f32[4,8]{1,0} while(%while.1), condition=%c, body=%step, backend_config={"known_trip_count":{"n":"5"}}
}
"""


def test_bytes_sent_are_multiplied_by_trips() -> None:
    work = scale_plan.work_by_phase(WRITTEN, {"data": 2, "fsdp": 2, "tensor": 1}, decode_steps=7)
    assert work == {
        "decode": Work(7 * 2 * 4 * 8 * 8, {"fsdp": 7 * 256 / 2}),
        "passes": Work(0, {"data": 128 / 2}),
        "update": Work(5 * 2 * 4 * 8 * 8, {"data+fsdp": 5 * 2 * 3 / 4 * (256 + 8)}),
    }


def test_programs_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        scale_plan.work_by_phase("nothing", ONE, decode_steps=1)
    with pytest.raises(ValueError, match="no loop of phase 'update': epochs × minibatches and tokens must be > 1"):
        scale_plan.work_by_phase(WRITTEN.replace("transpose(jvp(f))", "f"), {"data": 2, "fsdp": 2}, decode_steps=1)
    nested = WRITTEN.replace("ROOT %out = f32[4,8]{1,0} copy(%q)", "ROOT %w = f32[4,8] while(%q), body=%tokens")
    with pytest.raises(ValueError, match="a loop of unknown length inside 'update'"):
        scale_plan.work_by_phase(nested, {"data": 2, "fsdp": 2}, decode_steps=1)
    with pytest.raises(ValueError, match="'all-broadcast' is none of"):
        scale_plan.ring_bytes("all-broadcast", 1.0, 2)
    with pytest.raises(ValueError, match=r"two depths are needed to draw a line, got \(2, 2\)"):
        scale_plan.along_depth(1.0, 2.0, (2, 2), 3)


def test_the_slowest_link_and_the_longest_term_decide() -> None:
    mesh = {"data": 2, "fsdp": 4, "tensor": 2}
    assert [FLEET.link(axes, mesh) for axes in (("tensor",), ("fsdp",), ("fsdp", "tensor"))] == [4, 4, 4]
    # Between two machines: one, four and eight of a group's devices in each.
    assert [FLEET.link(axes, mesh) for axes in (("data",), ("data", "fsdp"), ("data", "fsdp", "tensor"))] == [0.5, 2, 4]
    assert FLEET.link(("fsdp",), {"data": 1, "fsdp": 16, "tensor": 1}) == 4
    assert FLEET.link(("fsdp",), {"data": 1, "fsdp": 8, "tensor": 2}) == 2
    work = Work(200.0, {"fsdp": 8.0, "data": 6.0})
    seconds = scale_plan.phase_seconds(work, 50.0, FLEET, mesh, shares=(0.5, 0.5, 0.8))
    assert seconds == pytest.approx(Seconds(200 / 50, 50 / 5, (8 / 4 + 6 / 0.5) / 0.8))
    assert seconds.binds == "collective" and seconds.span == pytest.approx((17.5, 31.5))


def test_what_does_not_fit_is_refused_with_all_parts() -> None:
    scale_plan.check_memory({"parameters": 600.0, "moments": 400.0}, FLEET)
    big = dataclasses.replace(FLEET, memory=16e9)
    with pytest.raises(
        ValueError, match=r"17.50 GB do not fit the 16.0 GB of one device of two boxes: parameters 6.00, mo"
    ):
        scale_plan.check_memory({"parameters": 6e9, "moments": 11.5e9}, big)


def words_of_a_key(leaf: Any) -> Any:
    typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.eval_shape(jax.random.key_data, leaf) if typed else leaf


@pytest.mark.slow
def test_the_compiled_iteration_takes_what_the_rules_say(tmp_path: Path) -> None:
    (said,) = compiled_apart([TINY], tmp_path)
    layout, parts = parts_of(TINY.mesh)
    trees = {"state": parts.state, "reference": parts.reference, "reward model": parts.reward_model}
    trees["state"] = jax.tree.map(words_of_a_key, parts.state)
    prompts = 8 // 2 * 6 * (4 + 1)
    assert said["arguments"] == sum(scale_plan.resident_bytes(layout, trees).values()) + prompts
    assert 0.3 < said["matmul_share"] < 1
    # Parameters are gathered over `fsdp`, heads summed over `tensor`.
    assert {"fsdp", "tensor"} <= set(said["work"]["update"]["sent"])
    (kept,) = tmp_path.iterdir()
    kept.write_text('{"kept": 1}', encoding="utf-8")
    assert compiled_apart([TINY], tmp_path) == [{"kept": 1}]


@pytest.fixture
def script(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repository / "experiments"))
    monkeypatch.delitem(sys.modules, "plan_scale", raising=False)
    import plan_scale

    return plan_scale


def test_the_script_draws_the_line_and_names_what_binds(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(program: Program) -> dict[str, Any]:
        work = {"flops": 1e13 * program.layers, "sent": {"fsdp": 1e6}}
        phases = dict.fromkeys(("decode", "passes", "update"), work)
        return {"temporaries": 1e9 * program.layers, "seconds": 0.0, "work": phases, "matmul_share": 0.95}

    monkeypatch.setattr(script, "compiled_apart", lambda programs, folder: [said(one) for one in programs])
    config = script.Config(sizes=("gpt2-xl",), fleets=("8xh200", "v5e-256"), out=tmp_path)
    script.main(config)
    large, small = (script.plan(config, "gpt2-xl", script.FLEETS[name]) for name in config.fleets)
    assert large["temporaries"] == {"CPU": 48e9} and large["refusal"] == ""
    assert large["work"]["update"]["flops"] == 48e13
    assert large["seconds"]["update"]["compute"] == pytest.approx(48e13 / (0.5 * 790e12))
    assert large["seconds"]["update"]["binds"] == "compute" and large["seconds"]["decode"]["binds"] == "compute"
    assert large["error_at_check_depth"] == pytest.approx({"flops": 0, "sent": 0, "temporaries": 0})
    assert "GB do not fit the 16.0 GB of one device of v5e-256" in small["refusal"]
    written = (tmp_path / "scale.md").read_text(encoding="utf-8")
    assert "| gpt2-xl | 8xh200 | 1 × 8 × 1 | 256 |" in written and "**no** (16)" in written
    assert f"- ppo, gpt2-xl on v5e-256: {small['refusal']}" in written


def test_bytes_of_memory_by_hand(script: ModuleType) -> None:
    program = Program("toy", 2, 8, 2, MeshConfig(tensor=2), 12, 5, 3, 2, 3, 1, words=50, items=14)
    vocabulary = program.vocabulary.size
    matrices, table, positions = 12 * 64, vocabulary * 8, (5 + 3) * 8
    trunk = 2 * (matrices + 13 * 8) + table + positions + 16
    moved = script.moved(program, parameters=1000.0)
    # Two more tokens read all bfloat16 matrices, the table, and seven slots of keys and values of twelve rows in two layers.
    assert moved["decode"] == 2 * 2 * (2 * matrices + table + 2 * 2 * 12 * 7 * 8) / 2
    assert moved["passes"] == 4 * (trunk / 2) * 8
    assert moved["update"] == 6 * ((trunk / 2) * (4 + 2 + 3 * 2 + 4) + 7000)
    two = dataclasses.replace(program, mesh=MeshConfig(fsdp=2), microbatches=2)
    moved = script.moved(two, parameters=1000.0)
    assert moved["passes"] == 4 * trunk * 12
    assert moved["update"] == 6 * (2 * trunk * (4 + 4 + 2 + 3 * 2 + 12) + 7000)


def test_temporaries_lie_on_the_line_through_the_largest_depths(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = {phase: {"flops": 1.0, "sent": {"data": 1.0}} for phase in ("decode", "passes", "update")}
    bent = {6: 10e9, 10: 12e9, 14: 20e9}

    def said(programs: list[Program], folder: Path) -> list[dict[str, Any]]:
        return [
            {"temporaries": bent[one.layers], "seconds": 0.0, "work": work, "matmul_share": 0.95} for one in programs
        ]

    monkeypatch.setattr(script, "compiled_apart", said)
    config = script.Config(sizes=("gpt2-medium",), fleets=("8xh200",), out=tmp_path)
    reached, errors, _ = script.line(config, script.program_of(config, "gpt2-medium", script.FLEETS["8xh200"]))
    assert reached["temporaries"] == pytest.approx(20e9 + 10 * 2e9)  # 24 layers, 2 GB each from 14 on.
    assert errors["temporaries"] == pytest.approx(14 / 20 - 1)


def test_the_script_refuses_what_cannot_be_cut(script: ModuleType) -> None:
    fleet = script.FLEETS["8xh200"]
    with pytest.raises(ValueError, match="cannot divide heads 25 by tensor = 8"):
        script.program_of(script.Config(mesh=MeshConfig(tensor=8)), "gpt2-xl", fleet)
    with pytest.raises(ValueError, match="mesh data 1 × fsdp 4 × tensor 1 has 4 devices, 8xh200 8"):
        script.program_of(script.Config(mesh=MeshConfig(fsdp=4)), "7b", fleet)
    with pytest.raises(ValueError, match="responses of a microbatch 4 by data × fsdp = 8"):
        script.program_of(script.Config(batch=16), "7b", fleet)
    with pytest.raises(ValueError, match="vocabulary rows 57216 by fsdp × tensor = 256"):
        script.program_of(script.Config(mesh=MeshConfig(fsdp=256)), "7b", script.FLEETS["v5e-256"])
    with pytest.raises(ValueError, match=r"sizes must be of .*got \['8b'\]"):
        script.Config(sizes=("8b",))
    with pytest.raises(ValueError, match="--depths and --check-depth must rise"):
        script.Config(check_depth=10)
    with pytest.raises(ValueError, match="a loop of one trip is no loop: got 1 × 1"):
        script.Config(epochs=1, minibatches=1)
    with pytest.raises(ValueError, match="--tpu asks about"):
        script.Config(tpu=True, fleets=("8xh200",))


def test_what_cannot_be_cut_is_refused_before_anything_is_compiled(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "compiled_apart", lambda *_: pytest.fail("compiled"))
    with pytest.raises(ValueError, match="has 8 devices, 64xh200 64"):
        script.main(script.Config(sizes=("7b",), fleets=("8xh200", "64xh200"), mesh=MeshConfig(fsdp=8), out=tmp_path))

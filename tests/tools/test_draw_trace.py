"""The picture of a trace: what is read from the profiler's file, and how time is added up."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.runtime import run
from rlhf_jax.runtime.stage import StagePlan, run_stage


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_trace", repository / "tools" / "draw_trace.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["draw_trace"] = module
    spec.loader.exec_module(module)
    return module


@jax.jit
def iteration(x: jax.Array) -> jax.Array:
    """Two phases: a loop of products, and the gradient of one."""
    with jax.named_scope("rollout"), jax.named_scope("prefill"):
        y = jnp.sin(x @ x)
    with jax.named_scope("rollout"):
        y = jax.lax.while_loop(
            lambda c: c[0] < 4, jax.named_scope("decode")(lambda c: (c[0] + 1, jnp.cos(c[1] @ x))), (0, y)
        )[1]
    with jax.named_scope("update"):
        return x - 1e-3 * jax.grad(lambda x: jnp.sum(jnp.tanh(x @ y)))(x)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of steps 3 to 5, with a checkpoint after step 4."""
    path = tmp_path_factory.mktemp("traced")

    def update(state: dict, step: int) -> tuple[dict, dict]:
        # Waits, as PPO does by looking at its responses: else the host may be steps ahead of the program.
        return {"x": jax.block_until_ready(iteration(state["x"]))}, {}

    with run.open_run(path, {"seed": 0}, trackers=(), profile=("ppo",)) as opened:
        run_stage(opened, {"x": jnp.full((300, 300), 0.01)}, update, StagePlan("ppo", 6, save_every=4))
    return path / "profile" / "ppo"


def test_a_message_is_read_field_by_field(tool: ModuleType) -> None:
    # The examples of the protocol buffers' own description of the encoding, and one field of each fixed width.
    message = bytes.fromhex("089601 120774657374696e67 1a03089601 210000000000000000 2d00000000")
    assert [number for number, _ in tool.fields(message)] == [1, 2, 3, 4, 5]
    assert dict(tool.fields(message))[1] == 150 and tool.text(message, 2) == "testing"
    assert [list(tool.fields(inner)) for inner in tool.every(message, 3)] == [[(1, 150)]]
    assert tool.text(message, 9) == ""


def test_time_is_counted_once(tool: ModuleType) -> None:
    spans = [tool.Span("", *pair) for pair in ((5.0, 6.0), (0.0, 2.0), (1.0, 3.0))]
    assert tool.total(spans) == 4.0
    assert [tuple(span)[1:] for span in tool.merged(spans)] == [(0.0, 3.0), (5.0, 6.0)]
    assert [tuple(span)[1:] for span in tool.merged(spans, 2.0)] == [(0.0, 6.0)]
    assert [tuple(span)[1:] for span in tool.gaps(spans, 7.0)] == [(3.0, 5.0), (6.0, 7.0)]


def test_phases_and_their_parts_are_found(tool: ModuleType, folder: Path) -> None:
    step = tool.read_step(tool.newest(folder), 4)
    assert (step.stage, step.number) == ("ppo", 4)
    assert {span.name for span in step.host} == {"update", "wait for metrics", "save checkpoint"}
    phases = tool.by_name(step.ops, tool.phase)
    assert set(phases) == {"rollout", "update"}
    # The update needs what the rollout made.
    assert max(span.end for span in phases["rollout"]) <= max(span.end for span in phases["update"]) <= step.length
    leaves = [op for op in step.ops if not op.container]
    assert any(op.container for op in step.ops)
    assert {"prefill", "decode"} <= set(tool.by_name(leaves, tool.part)) <= {"prefill", "decode", "forward", "backward"}
    for spans in phases.values():
        assert 0 < tool.total(spans) < step.length
    assert {op.program for op in step.ops if tool.phase(op)} == {"iteration"}


@pytest.mark.parametrize(
    ("scope", "name"),
    [
        ("update/while/body/jvp(GPT2)/h_0/mlp/dot", "forward"),
        ("update/while/body/transpose(jvp(GPT2))/h_0/dot", "backward"),
        ("update/while/body/optimizer/mul", "optimizer"),
        ("rollout/decode/while/body/h_0/dot", "decode"),
        ("scoring/GPT2/h_0/dot", None),
    ],
)
def test_parts_are_told_by_their_names(tool: ModuleType, scope: str, name: str | None) -> None:
    assert tool.part(tool.Op("", "", scope, False, 0.0, 1.0)) == name


def test_it_draws_and_prints(
    tool: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([str(folder), "--output", str(tmp_path / "picture.png")]) == 0
    said = capsys.readouterr().out
    assert "ppo, step 3" in said and "program: rollout" in said and "host: update" in said
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "rollout" in (tmp_path / "picture.svg").read_text()


def test_what_is_not_there_is_named(tool: ModuleType, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no step 9; it has \[3, 4, 5\]"):
        tool.main([str(folder), "--step", "9"])
    with pytest.raises(FileNotFoundError, match=r"holds no \*.xplane.pb"):
        tool.main([str(tmp_path)])

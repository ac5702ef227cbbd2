"""The picture of a trace: what is read from the profiler's file, and how time is added up."""

from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

import draw_trace
from rlhf_jax.runtime import run
from rlhf_jax.runtime.stage import StagePlan, run_stage


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


def test_a_message_is_read_field_by_field() -> None:
    # The examples of the protocol buffers' own description of the encoding, and one field of each fixed width.
    message = bytes.fromhex("089601 120774657374696e67 1a03089601 210000000000000000 2d00000000")
    assert [number for number, _ in draw_trace.fields(message)] == [1, 2, 3, 4, 5]
    assert dict(draw_trace.fields(message))[1] == 150 and draw_trace.text(message, 2) == "testing"
    assert [list(draw_trace.fields(inner)) for inner in draw_trace.every(message, 3)] == [[(1, 150)]]
    assert draw_trace.text(message, 9) == ""


def test_time_is_counted_once() -> None:
    spans = [draw_trace.Span("", *pair) for pair in ((5.0, 6.0), (0.0, 2.0), (1.0, 3.0))]
    assert draw_trace.total(spans) == 4.0
    assert [tuple(span)[1:] for span in draw_trace.merged(spans)] == [(0.0, 3.0), (5.0, 6.0)]
    assert [tuple(span)[1:] for span in draw_trace.merged(spans, 2.0)] == [(0.0, 6.0)]
    assert [tuple(span)[1:] for span in draw_trace.gaps(spans, 7.0)] == [(3.0, 5.0), (6.0, 7.0)]


def test_phases_and_their_parts_are_found(folder: Path) -> None:
    step = draw_trace.read_step(draw_trace.newest(folder), 4)
    assert (step.stage, step.number) == ("ppo", 4)
    assert {span.name for span in step.host} == {"update", "wait for metrics", "save checkpoint"}
    phases = draw_trace.by_name(step.ops, draw_trace.phase)
    assert set(phases) == {"rollout", "update"}
    # The update needs what the rollout made.
    assert max(span.end for span in phases["rollout"]) <= max(span.end for span in phases["update"]) <= step.length
    leaves = [op for op in step.ops if not op.container]
    assert any(op.container for op in step.ops)
    assert (
        {"prefill", "decode"}
        <= set(draw_trace.by_name(leaves, draw_trace.part))
        <= {"prefill", "decode", "forward", "backward"}
    )
    for spans in phases.values():
        assert 0 < draw_trace.total(spans) < step.length
    assert {op.program for op in step.ops if draw_trace.phase(op)} == {"iteration"}


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
def test_parts_are_told_by_their_names(scope: str, name: str | None) -> None:
    assert draw_trace.part(draw_trace.Op("", "", scope, False, 0.0, 1.0)) == name


def test_it_draws_and_prints(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw_trace.main([str(folder), "--output", str(tmp_path / "picture.png")]) == 0
    said = capsys.readouterr().out
    assert "ppo, step 3" in said and "program: rollout" in said and "host: update" in said
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "rollout" in (tmp_path / "picture.svg").read_text()


def test_what_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no step 9; it has \[3, 4, 5\]"):
        draw_trace.main([str(folder), "--step", "9"])
    with pytest.raises(FileNotFoundError, match=r"holds no \*.xplane.pb"):
        draw_trace.main([str(tmp_path)])


@pytest.mark.skipif(version("jaxlib") >= "0.11", reason="jaxlib's reader ends the process from 0.11 on")
def test_events_are_those_of_jaxlibs_reader(tmp_path: Path) -> None:
    with jax.profiler.trace(tmp_path), jax.profiler.StepTraceAnnotation("ppo", step_num=3):
        jax.jit(lambda x: x * 2 - 1)(jnp.ones(3)).block_until_ready()
    (file,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    found = [(name, event) for name, events in draw_trace.threads(file) for event in events]
    lines = [line for plane in ProfileData.from_file(str(file)).planes for line in plane.lines]
    expected = [(line.name, event) for line in lines for event in line.events]
    assert [(name, event.name) for name, event in found] == [(name, event.name) for name, event in expected]
    for (_, ours), (_, theirs) in zip(found, expected, strict=True):
        assert ours.stats == {name: value for name, value in theirs.stats if not isinstance(value, float)}
        # ProfileData gives whole nanoseconds.
        assert abs(ours.start_ns - theirs.start_ns) < 1 and abs(ours.end_ns - theirs.end_ns) < 2

"""The clock of a first result: stages by what a script says, compiling by what JAX says."""

import io
import sys

import jax
import jax.numpy as jnp
import pytest

from scale import first_result
from scale.first_result import Clock

TRACE, LOWER, COMPILE = first_result.EVENTS


def test_a_stage_begins_with_its_line_and_the_first_progress_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([2.0, 5.0, 9.0, 20.0, 20.0])
    monkeypatch.setattr(first_result.time, "process_time", lambda: next(now))
    clock = Clock()
    for line in (
        "[rlhf_jax] 27 training, 3 validation dialogues",
        "[rlhf_jax] sft: starts, 26 steps",
        "sft: 13/26, 11 s left, loss 5.318",
        "sft: 26/26, loss 5.177",
        "[rlhf_jax] dpo-round_1: starts, 10 steps",
        "ppo:  40%|####      | 4/10",
    ):
        clock.heard(line)
    found = clock.report()
    assert {stage: part["cpu_seconds"] for stage, part in found["stages"].items()} == {
        "imports": 2.0,
        "sft": 7.0,
        "dpo-round_1": 11.0,
    }
    assert found["first_progress"] == 5.0 and found["cpu_seconds"] == 20.0


def test_what_is_traced_inside_of_another_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, now = Clock(), [0.0]
    monkeypatch.setattr(first_result.time, "process_time", lambda: now[0])
    for moment, call, event in (
        (1.0, clock.begin, TRACE),
        (2.0, clock.begin, TRACE),
        (5.0, clock.end, TRACE),
        (6.0, clock.end, TRACE),
        (6.0, clock.begin, COMPILE),
        (9.0, clock.end, COMPILE),
    ):
        now[0] = moment
        call(event, 0.0)
    assert clock.making["imports"] == {"tracing": 5.0, "compiling": 3.0, "programs": 1}


def test_jax_is_heard_while_it_is_timed_and_not_after(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    with first_result.timed() as clock:
        jax.jit(lambda x: 7 * x + 1)(jnp.zeros(3))
        print("[rlhf_jax] ppo: starts, 3 steps", file=sys.stderr)
    heard = dict(clock.making["imports"])
    assert heard["programs"] >= 1 and heard["compiling"] > 0 and heard["tracing"] > 0 and heard["lowering"] > 0
    assert clock.stage == "ppo" and sys.stderr is said and "ppo: starts" in said.getvalue()
    jax.jit(lambda x: 9 * x + 1)(jnp.zeros(3))
    assert not clock.making["ppo"]

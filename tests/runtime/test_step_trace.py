"""`--profile`: which updates are traced, what is written where, and that nothing else changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from draw_trace import threads
from rlhf_jax.runtime import files, run
from rlhf_jax.runtime.stage import StagePlan, run_stage


def add_one(state: dict, step: int) -> tuple[dict, dict]:
    return {"w": state["w"] + 1}, {"loss": state["w"][0]}


def train(
    folder: Path,
    n_steps: int,
    *,
    profile: tuple[str, ...] = ("ppo",),
    stage: str = "ppo",
    update: Callable[..., Any] = add_one,
) -> list[float]:
    """One stage of one run, as a process of its own would do it."""
    with run.open_run(folder, {"seed": 0, "profile": list(profile)}, trackers=(), profile=profile) as opened:
        return run_stage(opened, {"w": jnp.zeros(2)}, update, StagePlan(stage, n_steps, save_every=2))["w"].tolist()


def traced(folder: Path, stage: str = "ppo") -> list[list[int]]:
    """The numbers of the updates in every trace of a stage, in order of time."""
    files = sorted((folder / "profile" / stage).glob("plugins/profile/*/*.xplane.pb"))
    found = []
    for file in files:
        events = [event for _, of_thread in threads(file) for event in of_thread]
        steps = sorted((event for event in events if event.name == stage), key=lambda event: event.start_ns)
        updates = [event for event in events if event.name == "update"]
        assert len(updates) == len(steps)
        for step, update in zip(steps, sorted(updates, key=lambda event: event.start_ns), strict=True):
            assert step.start_ns <= update.start_ns and update.end_ns <= step.end_ns
        found.append([int(event.stats["step_num"]) for event in steps])
    return found


def test_the_third_to_fifth_step_are_traced_and_no_number_changes(tmp_path: Path) -> None:
    assert train(tmp_path, 7, stage="sft") == [7.0, 7.0]
    assert not (tmp_path / "profile").exists()
    assert train(tmp_path, 7) == [7.0, 7.0]
    assert traced(tmp_path) == [[3, 4, 5]]
    (folder,) = (tmp_path / "profile" / "ppo" / "plugins" / "profile").iterdir()
    kinds = {file.name.partition(".")[2] for file in folder.iterdir() if not file.name.startswith("perfetto")}
    assert kinds == {"xplane.pb", "trace.json.gz"} and (folder / "perfetto_trace.json.gz").exists()


def test_nothing_is_traced_unless_asked_for(tmp_path: Path) -> None:
    train(tmp_path, 7, profile=())
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize(
    ("n_steps", "said", "steps"), [(4, "only 3 to 4 are traced", [[3, 4]]), (2, "none is traced", [])]
)
def test_a_short_stage_says_what_it_traces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], n_steps: int, said: str, steps: list[list[int]]
) -> None:
    train(tmp_path, n_steps)
    assert f"ppo: --profile traces steps 3 to 5, the stage ends with {n_steps}: {said}" in capsys.readouterr().err
    assert traced(tmp_path) == steps
    train(tmp_path, n_steps)
    assert "done before, using its state of step" in (said := capsys.readouterr().err) and "nothing to trace" in said


def test_a_run_that_broke_while_tracing_goes_on_and_traces_again(tmp_path: Path) -> None:
    def broken_once(state: dict, step: int) -> tuple[dict, dict]:
        if step == 4 and not (tmp_path / "failed").exists():
            (tmp_path / "failed").touch()
            raise OSError("a cable")
        return add_one(state, step)

    with pytest.raises(OSError, match="a cable"):
        train(tmp_path, 9, update=broken_once)
    # The trace that was running has ended with the run.
    with pytest.raises(RuntimeError):
        jax.profiler.stop_trace()
    assert train(tmp_path, 9, update=broken_once) == [9.0, 9.0]
    assert traced(tmp_path) == [[3, 4, 5], [7, 8, 9]]


def test_a_run_may_be_continued_with_and_without_it(tmp_path: Path) -> None:
    def broken(state: dict, step: int) -> tuple[dict, dict]:
        raise OSError("a cable")

    with pytest.raises(OSError, match="a cable"):
        train(tmp_path, 6, profile=(), update=broken)
    (tmp_path / "something").touch()
    assert train(tmp_path, 6) == [6.0, 6.0]
    assert train(tmp_path, 6, profile=()) == [6.0, 6.0]


def test_a_trace_that_runs_already_is_named(tmp_path: Path) -> None:
    with jax.profiler.trace(tmp_path / "own"), pytest.raises(files.RunError, match="--profile cannot start a trace"):
        train(tmp_path / "run", 7)

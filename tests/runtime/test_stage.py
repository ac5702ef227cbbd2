"""The stage loop: what is logged, which state comes out, and how it gives up."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.runtime import files, run
from rlhf_jax.runtime.metrics import MetricsLog, Window, read_metrics
from rlhf_jax.runtime.stage import Best, NonFiniteError, StagePlan, run_stage, stage_arrays

QUIET: dict[str, Any] = {"save_every": 2}


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[run.RunDirectory]:
    with run.open_run(tmp_path / "run", {"seed": 0}, trackers=()) as opened:
        yield opened


def add_one(state: dict, step: int) -> tuple[dict, dict]:
    return {"w": state["w"] + 1}, {"loss": np.float32(step)}


def start() -> dict[str, jax.Array]:
    return {"w": jnp.zeros(2)}


def lines(directory: run.RunDirectory) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if name != "seconds_per_update"}
        for line in read_metrics(directory.path / "metrics.jsonl")
    ]


def test_lines_hold_means_and_the_end_is_saved(directory: run.RunDirectory) -> None:
    state = run_stage(directory, start(), add_one, StagePlan("sft", 5, log_every=2, **QUIET))
    assert state["w"].tolist() == [5.0, 5.0]
    assert lines(directory) == [
        {"stage": "sft", "step": 2, "loss": 0.5, "skipped": 0},
        {"stage": "sft", "step": 4, "loss": 2.5, "skipped": 0},
        {"stage": "sft", "step": 5, "loss": 4.0, "skipped": 0},
    ]
    assert stage_arrays(directory.path, "sft")["w"].tolist() == [5.0, 5.0]
    again = run_stage(directory, start(), add_one, StagePlan("sft", 5, log_every=2, **QUIET))
    assert again["w"].tolist() == [5.0, 5.0]
    assert len(lines(directory)) == 3


def test_the_time_of_every_update_counts(directory: run.RunDirectory) -> None:
    def slow(state: dict, step: int) -> tuple[dict, dict]:
        time.sleep(0.02)
        return state, {}

    run_stage(directory, start(), slow, StagePlan("sft", 4, log_every=4, **QUIET))
    (line,) = read_metrics(directory.path / "metrics.jsonl")
    assert line["seconds_per_update"] >= 0.02


def test_a_stage_of_no_steps_returns_its_start(directory: run.RunDirectory) -> None:
    assert run_stage(directory, start(), add_one, StagePlan("sft", 0, **QUIET))["w"].tolist() == [0.0, 0.0]
    assert run_stage(directory, {"w": jnp.ones(2)}, add_one, StagePlan("sft", 0, **QUIET))["w"].tolist() == [0.0, 0.0]


def test_donated_states_leave_the_callers_arrays_alive(directory: run.RunDirectory) -> None:
    donate = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    state = start()
    run_stage(directory, state, lambda state, step: (donate(state), {}), StagePlan("sft", 3, **QUIET))
    assert state["w"].tolist() == [0.0, 0.0]


def test_the_best_state_comes_out_and_patience_stops(directory: run.RunDirectory) -> None:
    losses = {2: 3.0, 4: 1.0, 6: float("nan"), 8: 2.0, 10: 0.5}
    arguments = {"eval_every": 2, "best": Best("validation/loss", patience=2), "keep": 1, "log_every": 3}

    def on_eval(state: dict, step: int) -> dict:
        return {"validation/loss": losses[step]}

    for _ in range(2):
        state = run_stage(directory, start(), add_one, StagePlan("sft", 10, on_eval=on_eval, **arguments, **QUIET))
        assert state["w"].tolist() == [4.0, 4.0]
    done = json.loads((directory.checkpoints / "sft" / "done.json").read_text())
    assert (done["step"], done["last_step"], done["best_value"], done["stopped_early"]) == (4, 8, 1.0, True)
    assert [line["validation/loss"] for line in lines(directory) if "validation/loss" in line] == [3.0, 1.0, None, 2.0]
    assert [line["step"] for line in lines(directory) if "loss" in line] == [3, 6, 8]


def test_an_interrupted_window_and_a_broken_checkpoint_change_no_line(directory: run.RunDirectory) -> None:
    def broken_once(state: dict, step: int) -> tuple[dict, dict]:
        if step == 5 and not (directory.path / "failed").exists():
            (directory.path / "failed").touch()
            raise OSError("a cable")
        return add_one(state, step)

    arguments: dict[str, Any] = {"log_every": 3, **QUIET}
    with pytest.raises(OSError, match="a cable"):
        run_stage(directory, start(), broken_once, StagePlan("sft", 7, **arguments))
    with MetricsLog(directory, "sft", 5) as log:
        log.write(5, {"loss": 9.0})
    with open(directory.path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "sf')
    newest = max(
        (directory.checkpoints / "sft" / "4").rglob("*"), key=lambda entry: entry.stat().st_size * entry.is_file()
    )
    os.truncate(newest, 1)
    state = run_stage(directory, start(), broken_once, StagePlan("sft", 7, **arguments))
    assert state["w"].tolist() == [7.0, 7.0]
    assert [(line["step"], line["loss"]) for line in lines(directory)] == [(3, 1.0), (6, 4.0), (7, 6.0)]


def test_skipped_updates_are_counted_and_limited(directory: run.RunDirectory) -> None:
    def sometimes(state: dict, step: int) -> tuple[dict, dict]:
        bad = step % 2
        return state, {"loss": jnp.float32(np.nan if bad else step), "skipped": jnp.int32(bad)}

    with pytest.raises(NonFiniteError, match="stage ppo, step 8: 4 optimiser steps .* 3 are accepted"):
        run_stage(directory, start(), sometimes, StagePlan("ppo", 20, log_every=4, skip_limit=3, **QUIET))
    assert lines(directory) == [{"stage": "ppo", "step": 4, "loss": 1.0, "skipped": 2}]


@pytest.mark.parametrize(
    ("per_update", "skips", "stops"),
    [(1, 1, "step 2: 2 .* 1 are accepted .*half of 3"), (4, 2, None), (4, 3, "step 3: 9")],
)
def test_a_stage_most_of_whose_steps_were_refused_stops(
    directory: run.RunDirectory, per_update: int, skips: int, stops: str | None
) -> None:
    plan = StagePlan("ppo", 3, steps_per_update=per_update, advice="a lower --align.learning-rate", **QUIET)

    def learn() -> Any:
        return run_stage(directory, start(), lambda state, step: (state, {"skipped": skips}), plan)

    if stops is None:
        assert learn()["w"].tolist() == [0.0, 0.0]
        return
    with pytest.raises(NonFiniteError, match=f"stage ppo, {stops}.*a lower --align.learning-rate usually helps"):
        learn()
    assert not (directory.checkpoints / "ppo" / "done.json").exists()


def test_a_stage_that_stops_early_is_judged_by_the_steps_it_made(directory: run.RunDirectory) -> None:
    plan = StagePlan("sft", 9, on_eval=lambda state, step: {"validation/loss": step}, eval_every=1, **QUIET)
    plan = dataclasses.replace(plan, best=Best("validation/loss", patience=1))
    with pytest.raises(NonFiniteError, match="step 2: 2 .* 1 are accepted"):
        run_stage(directory, start(), lambda state, step: (state, {"skipped": 1}), plan)


@pytest.mark.parametrize("leaf", [np.array([1.0, np.nan]), jnp.array([np.inf, 1.0])])
def test_a_stage_hands_on_finite_numbers_or_stops(directory: run.RunDirectory, leaf: Any) -> None:
    with pytest.raises(NonFiniteError, match=r"stage sft ends with numbers that are not finite in \['w'\]"):
        run_stage(directory, {"w": leaf}, lambda state, step: (state, {}), StagePlan("sft", 2, **QUIET))
    assert not (directory.checkpoints / "sft" / "done.json").exists()


def damage(kind: str, lines: list[str]) -> list[str]:
    """The lines of `metrics.jsonl` with one fault in or before the third."""
    if kind == "digit":
        return [*lines[:2], lines[2].replace('"loss": 2.0', '"loss": 3.0'), *lines[3:]]
    if kind == "not JSON":
        return [*lines[:2], lines[2][1:], *lines[3:]]
    if kind == "no checksum":
        return [*lines[:2], lines[2].replace("crc32", "crc33"), *lines[3:]]
    return {"removed": lines[:1] + lines[2:], "doubled": lines[:2] + lines[1:], "moved": lines[:1] + lines[2:0:-1]}[
        kind
    ]


@pytest.mark.parametrize(
    ("kind", "number"),
    [("digit", 3), ("not JSON", 3), ("no checksum", 3), ("removed", 2), ("doubled", 3), ("moved", 2)],
)
def test_a_damaged_line_of_the_metrics_is_named(directory: run.RunDirectory, kind: str, number: int) -> None:
    run_stage(directory, start(), add_one, StagePlan("sft", 3, **QUIET))
    file = directory.path / "metrics.jsonl"
    file.write_text("\n".join(damage(kind, file.read_text().split("\n"))))
    with pytest.raises(files.DamagedFileError, match=rf"metrics\.jsonl, line {number} "):
        read_metrics(file)


@pytest.mark.parametrize("value", ["1e999", "-1e400", str(2**63), "9" * 5000, '"\\ud800"', "NaN", "[" * 100_000])
def test_a_line_that_says_what_cannot_be_stored_is_named(directory: run.RunDirectory, value: str) -> None:
    # Lines of older versions have no checksum that would find it.
    file = directory.path / "metrics.jsonl"
    file.write_text(f'{{"stage": "sft", "step": 1}}\n{{"stage": "sft", "step": 2, "loss": {value}}}\n')
    with pytest.raises(files.DamagedFileError, match=r"metrics\.jsonl, line 2 cannot be read"):
        read_metrics(file)


def test_lost_last_lines_of_the_metrics_are_told(
    directory: run.RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    run_stage(directory, start(), add_one, StagePlan("sft", 3, **QUIET))
    file = directory.path / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    run_stage(directory, start(), add_one, StagePlan("sft", 3, **QUIET))
    assert "has lost 1 of the lines of sft, the first that of step 3" in capsys.readouterr().err


def test_the_count_of_skipped_updates_survives_a_restart(directory: run.RunDirectory) -> None:
    def failing(state: dict, step: int) -> tuple[dict, dict]:
        if step == 4 and not (directory.path / "failed").exists():
            (directory.path / "failed").touch()
            raise OSError("a cable")
        return state, {"skipped": 1}

    with pytest.raises(OSError, match="a cable"):
        run_stage(directory, start(), failing, StagePlan("ppo", 20, skip_limit=6, **QUIET))
    with pytest.raises(NonFiniteError, match="stage ppo, step 7: 7 optimiser steps"):
        run_stage(directory, start(), failing, StagePlan("ppo", 20, skip_limit=6, **QUIET))


def test_an_unexplained_nan_reaches_the_log(directory: run.RunDirectory) -> None:
    run_stage(
        directory,
        start(),
        lambda state, step: (state, {"loss": float("nan")}),
        StagePlan("sft", 2, log_every=2, **QUIET),
    )
    assert lines(directory)[0]["loss"] is None


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (
            lambda state, step: ({"w": state["w"].astype(jnp.bfloat16)}, {}),
            r"\['w'\] was float32\[2\], now bfloat16\[2\]",
        ),
        (lambda state, step: ({**state, "x": 1}, {}), r"\['x'\] was absent, now int"),
        (lambda state, step: (state, {"loss": jnp.zeros(3)}), r"metric 'loss' has shape \(3,\)"),
    ],
)
def test_updates_that_could_not_be_continued_are_refused(
    directory: run.RunDirectory, update: Callable[..., Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run_stage(directory, start(), update, StagePlan("sft", 2, **QUIET))


@pytest.mark.parametrize("evaluates", [False, True])
def test_an_unknown_metric_stops_the_run_at_its_first_line(directory: run.RunDirectory, evaluates: bool) -> None:
    def update(state: dict, step: int) -> tuple[dict, dict]:
        return state, {"loss": 1.0} if evaluates else {"loss": 1.0, "objective/kl_k2": 1.0}

    on_eval = (lambda state, step: {"validation/score": 1.0}) if evaluates else None
    name, close = ("validation/score", "validation/score_raw") if evaluates else ("objective/kl_k2", "")
    with pytest.raises(ValueError, match=f"stage 'ppo-full' logs '{name}', which is not in the table.*{close}"):
        every = 1 if evaluates else None
        run_stage(directory, start(), update, StagePlan("ppo-full", 3, on_eval=on_eval, eval_every=every, **QUIET))
    assert lines(directory) == []


def test_what_an_older_version_logged_is_read_by_bare_names(directory: run.RunDirectory) -> None:
    old = {"stage": "ppo-full", "step": 1, "ppo/objective/kl_k1": 2.0, "skipped": 0}
    file = directory.path / "metrics.jsonl"
    file.write_text(json.dumps(old) + "\n")
    run_stage(
        directory, start(), lambda state, step: (state, {"objective/kl_k1": 3.0}), StagePlan("ppo-full", 2, **QUIET)
    )
    # The stage began anew, so that its old lines are gone; those of another stage stay as they were written.
    assert [(line["step"], line["objective/kl_k1"]) for line in lines(directory)] == [(1, 3.0), (2, 3.0)]
    other = json.dumps(old | {"stage": "ppo-other"}) + "\n"
    file.write_text(other)
    run_stage(directory, start(), add_one, StagePlan("sft", 1, **QUIET))
    assert file.read_text().startswith(other)
    assert lines(directory)[0] == {"stage": "ppo-other", "step": 1, "objective/kl_k1": 2.0, "skipped": 0}


def test_a_window_that_an_older_version_began_goes_on(
    directory: run.RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def update(state: dict, step: int) -> tuple[dict, dict]:
        if step == 2 and not (directory.path / "failed").exists():
            (directory.path / "failed").touch()
            raise OSError("a cable")
        return state, {"objective/kl_k1": float(step)}

    stored = Window.stored

    def old_names(window: Window) -> dict[str, Any]:
        found = stored(window)
        return found | {"sums": {f"ppo/{name}": pair for name, pair in found["sums"].items()}}

    with monkeypatch.context() as patch:
        patch.setattr(Window, "stored", old_names)
        with pytest.raises(OSError, match="a cable"):
            run_stage(directory, start(), update, StagePlan("ppo-full", 4, log_every=4, **QUIET))
    run_stage(directory, start(), update, StagePlan("ppo-full", 4, log_every=4, **QUIET))
    assert lines(directory) == [{"stage": "ppo-full", "step": 4, "objective/kl_k1": 1.5, "skipped": 0}]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"save_every": 0}, "save_every = 0, at least 1"),
        ({"eval_every": 2}, "eval_every needs on_eval or draw_samples"),
        ({"eval_every": 0, "on_eval": lambda state, step: {}}, "eval_every = 0"),
        ({"name": "a/b"}, "stage name 'a/b'"),
        ({"best": Best("hits"), "on_eval": lambda state, step: {"loss": 1.0}}, r"no metric 'hits' in .*\['loss'\]"),
    ],
)
def test_bad_arguments_are_named(directory: run.RunDirectory, changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"name": "sft", "n_steps": 2, **QUIET, **changed}
    with pytest.raises(ValueError, match=message):
        run_stage(directory, start(), add_one, StagePlan(**arguments))


def test_a_stage_that_is_not_there_is_named(directory: run.RunDirectory) -> None:
    run_stage(directory, start(), add_one, StagePlan("sft", 1, **QUIET))
    with pytest.raises(files.RunError, match="no checkpoint of stage 'ppo'; there are sft"):
        stage_arrays(directory.path, "ppo")


def test_tensorboard_gets_the_numbers(directory: run.RunDirectory) -> None:
    directory = dataclasses.replace(directory, trackers=("tensorboard",))
    run_stage(directory, start(), add_one, StagePlan("sft", 2, save_every=2))
    (events,) = (directory.path / "tensorboard" / "sft").iterdir()
    assert b"sft/loss" in events.read_bytes()

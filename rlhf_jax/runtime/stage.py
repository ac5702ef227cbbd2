"""The loop of one training stage: progress, metrics, evaluation, checkpoints, and an end that loses nothing.

A stage that was killed continues from its newest checkpoint and ends, bit for bit, where it would have ended; one that
is done returns its final state again. This holds because the data position is the step, keys live in the state or are
functions of the step, and every number the loop itself carries is saved with the state.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.profiler import TraceAnnotation

from rlhf_jax.parallel import processes
from rlhf_jax.runtime import files, metric_names, run
from rlhf_jax.runtime.checkpoint import Checkpoints
from rlhf_jax.runtime.interrupts import INTERRUPTED, stop_signals
from rlhf_jax.runtime.metrics import MetricsLog, Sample, Window, check_logged
from rlhf_jax.runtime.progress import Progress
from rlhf_jax.runtime.step_trace import StepTrace

State = TypeVar("State")


class NonFiniteError(files.RunError):
    """A stage that did not learn: too many optimiser steps were skipped as non-finite, or its state is not finite."""


@dataclasses.dataclass(frozen=True)
class Best:
    """Which evaluation is the best, so that the stage ends with that state and may stop early."""

    metric: str
    """Bare name of a metric that `on_eval` returns."""
    mode: Literal["min", "max"] = "min"
    patience: int | None = None
    """Evaluations without a gain after which the stage stops; None never stops early."""

    def gains(self, value: float, record: float | None) -> bool:
        """True where `value` beats the record; a value that is not finite never does."""
        if not math.isfinite(value):
            return False
        return record is None or (value < record if self.mode == "min" else value > record)


@dataclasses.dataclass
class Loop:
    """What a continuation needs besides the state; saved with it as JSON."""

    step: int = 0
    skipped: int = 0
    best_step: int | None = None
    best_value: float | None = None
    evaluations_without_gain: int = 0
    stopped_early: bool = False


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """How long a stage is, and what is saved, logged and evaluated when."""

    name: str
    """Its kind first (`metric_names.kind`); its checkpoints are in `checkpoints/NAME`."""
    n_steps: int
    """Updates."""
    save_every: int
    """Updates between checkpoints."""
    log_every: int = 1
    """Updates between lines of `metrics.jsonl`, which hold means over these updates (the sum of `skipped`)."""
    on_eval: Callable[[Any, int], Mapping[str, Any]] | None = None
    """(state, step) -> metrics, called after every `eval_every`-th update and after the last one."""
    eval_every: int | None = None
    """Updates between evaluations."""
    draw_samples: Callable[[Any], Sequence[Sample]] | None = None
    """state -> replies to fixed prompts, drawn at every evaluation; it draws from no stream that training draws from."""
    best: Best | None = None
    """Ends the stage with the best evaluated state instead of the last."""
    skip_limit: int = 20
    """Skipped optimiser steps that are still accepted in the whole stage, and never more than half of all its steps: what
    most of its steps were refused for is not what its options asked for, however short the stage."""
    steps_per_update: int = 1
    """Optimiser steps of one update."""
    advice: str = "a lower learning rate or a longer warm-up"
    """What usually helps where steps are skipped; options by their names."""
    keep: int = 2
    """Checkpoints kept, besides that of the best state."""

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("-", "_").isidentifier():
            raise ValueError(f"stage name {self.name!r} must be letters, digits, '_' and '-': it names a folder")
        least_of = {"n_steps": 0, "save_every": 1, "log_every": 1, "skip_limit": 0, "steps_per_update": 1}
        for field, least in least_of.items():
            if getattr(self, field) < least:
                raise ValueError(f"stage {self.name}: {field} = {getattr(self, field)}, at least {least} is needed")
        if self.eval_every is not None and self.eval_every < 1:
            raise ValueError(f"stage {self.name}: eval_every = {self.eval_every}, at least 1 is needed")
        if self.on_eval is None and self.best is not None:
            raise ValueError(f"stage {self.name}: best needs on_eval")
        if self.eval_every is not None and not self.evaluates:
            raise ValueError(f"stage {self.name}: eval_every needs on_eval or draw_samples")

    @property
    def evaluates(self) -> bool:
        """Whether there is anything to do at an evaluation."""
        return self.on_eval is not None or self.draw_samples is not None

    def due(self, every: int | None, step: int) -> bool:
        """True after every `every`-th update and after the last one."""
        return step == self.n_steps or (every is not None and step % every == 0)

    def logged(self, step: int) -> list[int]:
        """Steps up to this one whose lines are in `metrics.jsonl`."""
        return [one for one in range(1, step + 1) if self.due(self.log_every, one)]

    def accepted(self, updates: int) -> int:
        """Skipped optimiser steps that a stage of so many updates may have."""
        return min(self.skip_limit, updates * self.steps_per_update // 2)


def run_stage(
    directory: run.RunDirectory,
    state: State,
    update: Callable[[State, int], tuple[State, Mapping[str, Any]]],
    plan: StagePlan,
) -> State:
    """Runs `update` `plan.n_steps` times, continuing an earlier attempt of the same run.

    Args:
      directory: the run; a stage named in its `profile` writes a trace of its third to fifth update.
      state: where the stage starts; copied, so that an `update` that donates its argument leaves the caller's alive.
      update: (state, step) -> (state, metrics); step counts from 0 and is the position in the data. `metrics` are
        scalars by the bare names of `metric_names`; `skipped` says how many optimiser steps of this update were skipped
        as non-finite.
      plan: its name, how long it is, and what is saved, logged and evaluated when.
    Returns: the final (or best) state.
    Raises: ValueError at the first log line with a name that `metric_names` does not have for this kind of stage;
      NonFiniteError naming stage and step, as soon as more steps were skipped than the whole stage may have, or at the
      end where the state is not finite; RunError for storage problems; SystemExit(75) after SIGTERM or SIGINT
      once the running update is done and saved (a second signal does not wait).
    """
    name, n_steps = plan.name, plan.n_steps
    checkpoints = Checkpoints(directory.checkpoints / name, keep=plan.keep)
    done = _done(checkpoints)
    if done is not None:
        untraced = "; --profile has nothing to trace" if name in directory.profile else ""
        files.notice(f"{name}: done before, using its state of step {done}{untraced}")
        check_logged(directory.path / "metrics.jsonl", name, plan.logged(done))
        return _restored(checkpoints, state, done)
    state, loop, window = _start(plan, checkpoints, state)
    if loop.step:
        check_logged(directory.path / "metrics.jsonl", name, plan.logged(loop.step))
    with (
        stop_signals() as stop,
        MetricsLog(directory, name, loop.step) as log,
        Progress(name, loop.step, n_steps) as progress,
        StepTrace(directory, name, loop.step, n_steps) as trace,
    ):
        checked, stopping = False, False
        while loop.step < n_steps and not loop.stopped_early:
            if trace.turns(loop.step + 1):
                # What starting and writing a trace takes is no update's time.
                _count_skipped(plan, loop, window)
                trace.turn(loop.step + 1, state)
                window.restart_clock()
            trace.mark(loop.step + 1)
            form = None if checked else _form(state)
            with TraceAnnotation("update"):
                state, metrics = update(state, loop.step)
            if processes.several():
                # Queued programs whose collectives overtake each other on different processes would wait for ever.
                jax.block_until_ready((state, metrics))
            stopping = processes.any_of(stop.is_set())
            if form is not None:
                _check_form(plan, form, _form(state))
                checked = True
            loop.step += 1
            window.add(metrics)
            progress.advance(loop.step)
            evaluates = plan.evaluates and plan.due(plan.eval_every, loop.step)
            if evaluates or stopping or plan.due(plan.log_every, loop.step) or plan.due(plan.save_every, loop.step):
                _count_skipped(plan, loop, window)
            gained = False
            if evaluates:
                gained = _evaluate(plan, loop, state, log)
                window.restart_clock()
            if loop.stopped_early or plan.due(plan.log_every, loop.step):
                line = window.summary()
                log.write(loop.step, line)
                progress.show(loop.step, line)
            if gained or loop.stopped_early or stopping or plan.due(plan.save_every, loop.step):
                _count_skipped(plan, loop, window)
                _save(checkpoints, state, loop, window)
                window.restart_clock()
            if stopping:
                break
        trace.close(state)
        if stopping and loop.step < n_steps and not loop.stopped_early:
            files.notice(f"{name}: stopped and saved at step {loop.step} of {n_steps}; the same command continues")
            raise SystemExit(INTERRUPTED)
        _check_skipped(plan, loop, loop.step)
        state = _finish(plan, checkpoints, state, loop, window)
        if processes.any_of(stop.is_set()):
            files.notice(f"{name}: done and saved; the same command continues with what follows")
            raise SystemExit(INTERRUPTED)
        return state


def stage_arrays(directory: Path, name: str) -> Any:
    """The state a stage ended with, or has reached so far, as nested dicts and lists; the run need not be open.

    Raises: RunError where the stage has no checkpoint, naming the stages that have.
    """
    checkpoints, step = _reached(directory, name)
    return checkpoints.arrays(step)


def _reached(directory: Path, name: str) -> tuple[Checkpoints, int]:
    checkpoints = Checkpoints(directory / "checkpoints" / name)
    if not checkpoints.steps():
        found = sorted(entry.parent.name for entry in directory.glob("checkpoints/*/[0-9]*"))
        raise files.RunError(
            f"{directory} has no checkpoint of stage {name!r}; there are {', '.join(sorted(set(found))) or 'none'}"
        )
    done = _done(checkpoints)
    return checkpoints, checkpoints.steps()[-1] if done is None else done


def _done(checkpoints: Checkpoints) -> int | None:
    file = checkpoints.folder / "done.json"
    if not file.exists():
        return None
    step = files.read_object(file, "step")["step"]
    if type(step) is not int:
        raise files.RunError(f"{file}: 'step' is {step!r}, a number is needed: restore the file")
    return step


def _restored(checkpoints: Checkpoints, like: State, step: int) -> State:
    restored = checkpoints.restore(like, step)
    assert restored is not None  # `restore` of a named step returns it or raises.
    return restored.state


def _start(plan: StagePlan, checkpoints: Checkpoints, state: State) -> tuple[State, Loop, Window]:
    found = checkpoints.restore(state)
    if found is None:
        files.notice(f"{plan.name}: starts, {plan.n_steps} steps")
        return jax.tree.map(_own_copy, state), Loop(), Window()
    files.notice(f"{plan.name}: continues at step {found.step} of {plan.n_steps}")
    window = found.extra["window"]
    sums = metric_names.bare(plan.name, window["sums"])  # An older version may have begun the window.
    return found.state, Loop(**found.extra["loop"]), Window({**window, "sums": sums})


def _own_copy(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return leaf.copy()
    if not isinstance(leaf, jax.Array):
        return leaf
    if not leaf.is_fully_addressable and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        # `device_put` takes typed keys of one process only.
        return jax.random.wrap_key_data(_own_copy(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
    # A restored array is never weakly typed; neither is the first one, or the two could promote differently.
    strong = jnp.asarray(leaf, dtype=leaf.dtype) if getattr(leaf, "weak_type", False) else leaf
    return jax.device_put(strong, strong.sharding, may_alias=False)


def _form(state: Any) -> dict[str, str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else type(leaf).__name__
        for path, leaf in leaves
    }


def _check_form(plan: StagePlan, before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """A state that changes its form could not be restored into the form it began with."""
    changes = [
        f"{leaf} was {before.get(leaf, 'absent')}, now {after.get(leaf, 'absent')}"
        for leaf in dict.fromkeys([*before, *after])
        if before.get(leaf) != after.get(leaf)
    ]
    if changes:
        raise ValueError(f"stage {plan.name}: update changed the form of the state: {'; '.join(changes[:5])}")


def _count_skipped(plan: StagePlan, loop: Loop, window: Window) -> None:
    with TraceAnnotation("wait for metrics"):
        loop.skipped += window.collect()
    _check_skipped(plan, loop, plan.n_steps)


def _check_skipped(plan: StagePlan, loop: Loop, updates: int) -> None:
    """Raises NonFiniteError where more steps were skipped than a stage of so many updates may have."""
    if loop.skipped > plan.accepted(updates):
        raise NonFiniteError(
            f"stage {plan.name}, step {loop.step}: {loop.skipped} optimiser steps had a non-finite loss or gradient, "
            f"{plan.accepted(updates)} are accepted (at most {plan.skip_limit}, and half of {updates * plan.steps_per_update}). "
            f"Look at metrics.jsonl from the first skipped step on; {plan.advice} usually helps (in another run directory)"
        )


def _check_finite(plan: StagePlan, state: Any) -> None:
    """What a stage hands on must be finite: a NaN would only be seen stages later.

    Raises: NonFiniteError naming the stage and the first array.
    """
    leaves = [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    on_devices = [isinstance(leaf, jax.Array) for _, leaf in leaves]
    judge = jax.jit(lambda arrays: [jnp.isfinite(array).all() for array in arrays])
    judged = iter(judge([leaf for (_, leaf), there in zip(leaves, on_devices, strict=True) if there]))
    for (path, leaf), there in zip(leaves, on_devices, strict=True):
        if not (bool(next(judged)) if there else bool(np.isfinite(leaf).all())):
            raise NonFiniteError(
                f"stage {plan.name} ends with numbers that are not finite in {jax.tree_util.keystr(path)}: nothing may be "
                f"built on it. Look at metrics.jsonl; {plan.advice} usually helps (in another run directory)"
            )


def _evaluate(plan: StagePlan, loop: Loop, state: Any, log: MetricsLog) -> bool:
    """Evaluates and logs; True where the result is the best so far."""
    if plan.draw_samples is not None:
        with TraceAnnotation("draw samples"):
            log.write_samples(loop.step, plan.draw_samples(state))
    if plan.on_eval is None:
        return False
    with TraceAnnotation("evaluate"):
        results = processes.from_lead({name: float(value) for name, value in plan.on_eval(state, loop.step).items()})
    log.write(loop.step, results)
    if plan.best is None:
        return False
    if plan.best.metric not in results:
        raise ValueError(f"stage {plan.name}: no metric {plan.best.metric!r} in the evaluation's {sorted(results)}")
    value = results[plan.best.metric]
    if plan.best.gains(value, loop.best_value):
        loop.best_step, loop.best_value, loop.evaluations_without_gain = loop.step, value, 0
        return True
    loop.evaluations_without_gain += 1
    loop.stopped_early = plan.best.patience is not None and loop.evaluations_without_gain >= plan.best.patience
    return False


def _save(checkpoints: Checkpoints, state: Any, loop: Loop, window: Window) -> None:
    pinned = [] if loop.best_step is None else [loop.best_step]
    extra = {"loop": dataclasses.asdict(loop), "window": window.stored()}
    with TraceAnnotation("save checkpoint"):
        checkpoints.save(loop.step, state, extra, pinned=pinned)


def _finish(plan: StagePlan, checkpoints: Checkpoints, state: State, loop: Loop, window: Window) -> State:
    _save(checkpoints, state, loop, window)  # Only a stage of no steps has not been saved yet.
    step = loop.best_step if plan.best is not None and loop.best_step is not None else loop.step
    chosen = state if step == loop.step else _restored(checkpoints, state, step)
    _check_finite(plan, chosen)
    outcome = {**dataclasses.asdict(loop), "step": step, "last_step": loop.step}
    processes.lead_does(lambda: files.write_json(checkpoints.folder / "done.json", outcome))
    return chosen

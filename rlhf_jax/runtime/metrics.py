"""Where a stage's numbers and replies go: `metrics.jsonl`, `samples.jsonl`, TensorBoard, and W&B where its extra is installed."""

import contextlib
import html
import json
import math
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from rlhf_jax.runtime import files, metric_names, run


class Sample(NamedTuple):
    """What a policy said while it was trained."""

    prompt: str
    reply: str
    scores: Mapping[str, float]
    """Reward model's components and `score`, their weighted sum, z; empty where there is no reward model yet."""


class Writer(Protocol):
    """A place for scalars besides `metrics.jsonl`, and for replies besides `samples.jsonl`; names come as `stage/name`."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def write_samples(self, step: int, name: str, samples: Sequence[Sample]) -> None: ...

    def close(self) -> None: ...


class Window:
    """The updates since the last log line: means of their metrics, sum of `skipped`, time.

    Values stay on the device until they are needed, so that updates queue without waiting for each other.
    """

    def __init__(self, stored: Mapping[str, Any] | None = None) -> None:
        stored = stored or {"sums": {}, "updates": 0, "skipped": 0, "seconds": 0.0}
        self._sums: dict[str, list[float]] = {
            name: [math.nan if total is None else total, count] for name, (total, count) in stored["sums"].items()
        }
        self._updates, self._skipped, self._seconds = stored["updates"], stored["skipped"], stored["seconds"]
        self._pending: list[Mapping[str, Any]] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves the time since the last call out of the account: evaluations, checkpoints."""
        self._mark = time.monotonic()

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of one update."""
        self._pending.append(metrics)

    def collect(self) -> int:
        """Waits for all added metrics and sums them up.

        Returns: how many optimiser steps were skipped in the updates collected by this call.
        Raises: ValueError naming a metric that is not a number.
        """
        skipped = 0
        for metrics in jax.device_get(self._pending):
            skips = int(metrics.get("skipped", 0))
            skipped += skips
            for name, value in metrics.items():
                if np.ndim(value) != 0:
                    raise ValueError(f"metric {name!r} has shape {np.shape(value)}, a number is needed")
                # A skipped step explains its own NaN; any other NaN must reach the log.
                if name != "skipped" and (math.isfinite(value) or not skips):
                    pair = self._sums.setdefault(name, [0.0, 0])
                    pair[0] += float(value)
                    pair[1] += 1
        self._updates += len(self._pending)
        self._skipped += skipped
        self._pending.clear()
        now = time.monotonic()
        self._seconds += now - self._mark
        self._mark = now
        return skipped

    def summary(self) -> dict[str, float]:
        """The collected line; the window is empty afterwards."""
        line = {name: total / count for name, (total, count) in self._sums.items()}
        line |= {"skipped": float(self._skipped), "seconds_per_update": self._seconds / max(self._updates, 1)}
        self._sums, self._updates, self._skipped, self._seconds = {}, 0, 0, 0.0
        return line

    def stored(self) -> dict[str, Any]:
        """What a continuation needs, as JSON; exact, because JSON keeps every bit of a finite float."""
        # JSON has no NaN: a sum that is lost is null there and NaN again when read.
        sums = {name: [total if math.isfinite(total) else None, count] for name, (total, count) in self._sums.items()}
        return {"sums": sums, "updates": self._updates, "skipped": self._skipped, "seconds": self._seconds}


class MetricsLog:
    """Appends one stage's lines; opening it at a step removes what an interrupted attempt logged after that step."""

    def __init__(self, directory: run.RunDirectory, stage: str, step: int) -> None:
        self._file = directory.path / "metrics.jsonl"
        self._samples_file = directory.path / "samples.jsonl"
        self._stage = stage
        self._known: set[str] = set()
        drop_after(self._file, stage, step)
        drop_after(self._samples_file, stage, step)
        self._writers: list[Writer] = [_WRITERS[tracker](directory, stage, step) for tracker in directory.trackers]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one line `{"stage", "step", name: value ...}`; a value that is not finite is written as null.

        Raises: ValueError for a name that `metric_names` does not have for this kind of stage.
        """
        for name in values.keys() - self._known:
            metric_names.check(self._stage, name)
        self._known |= values.keys()
        line = json.dumps(
            files.as_json({"stage": self._stage, "step": step, **values}, "metrics.jsonl"), allow_nan=False
        )
        named = {f"{self._stage}/{name}": value for name, value in values.items()}
        with files.storage_errors(self._file):
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(line + "\n")
            for writer in self._writers:
                writer.write(step, named)

    def write_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Adds one line `{"stage", "step", "prompt", "reply", "scores"}` a sample to `samples.jsonl`, and a table to the trackers."""
        place = {"stage": self._stage, "step": step}
        entries = [files.as_json({**place, **sample._asdict()}, "samples.jsonl") for sample in samples]
        lines = [json.dumps(entry, allow_nan=False) + "\n" for entry in entries]
        with files.storage_errors(self._samples_file):
            with open(self._samples_file, "a", encoding="utf-8") as file:
                file.write("".join(lines))
            for writer in self._writers:
                writer.write_samples(step, f"{self._stage}/samples", samples)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers:
            with contextlib.suppress(OSError):
                writer.close()


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """All lines of a `metrics.jsonl`, names bare whatever version wrote them; a last line cut by a kill is left out."""
    return [metric_names.bare(entry["stage"], entry) for entry in _stored(file)]


def read_stage_samples(file: Path) -> list[dict[str, Any]]:
    """All lines of a `samples.jsonl`; a last line cut by a kill is left out.

    Raises: RunError naming file and line that is not JSON.
    """
    return _stored(file)


def _stored(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    *lines, _cut = file.read_text(encoding="utf-8").split("\n")
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise files.RunError(f"{file}, line {number} is not JSON ({error}): {line[:80]!r}") from error
    return entries


def drop_after(file: Path, stage: str, step: int) -> None:
    """Removes the lines of `stage` after `step`, and a cut last line."""
    if not file.exists():
        return
    text = file.read_text(encoding="utf-8")
    kept = [entry for entry in _stored(file) if entry["stage"] != stage or entry["step"] <= step]
    new = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in kept)
    if new != text:
        files.write_text(file, new)


class _TensorBoard:
    def __init__(self, directory: run.RunDirectory, stage: str, step: int) -> None:
        # Imported where used: starting protobuf costs every importer a third of a second.
        from tensorboardX import SummaryWriter

        folder = directory.path / "tensorboard" / stage
        with files.storage_errors(folder):
            self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def write_samples(self, step: int, name: str, samples: Sequence[Sample]) -> None:
        self._writer.add_text(name, _markdown(samples), step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, directory: run.RunDirectory, stage: str, step: int) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports] - an extra
        except ImportError as error:
            raise files.RunError("tracking with wandb needs the extra: pip install 'rlhf-jax[tracking]'") from error
        # The same id when the stage is continued, another one for another run in a folder of the same name.
        birth = files.read_json(directory.path / "config.json")["started"]
        identity = f"{directory.path.name}-{stage}-{zlib.crc32(f'{directory.path.absolute()} {birth}'.encode()):08x}"
        self._new_table = wandb.Table
        self._run = wandb.init(
            project="rlhf_jax", id=identity, resume="allow", dir=directory.path, config=dict(directory.config)
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def write_samples(self, step: int, name: str, samples: Sequence[Sample]) -> None:
        header, rows = _table(samples)
        self._run.log({name: self._new_table(columns=header, data=rows)}, step=step)

    def close(self) -> None:
        self._run.finish()


def _table(samples: Sequence[Sample]) -> tuple[list[str], list[list[str | float]]]:
    """Column names, and a row a sample."""
    scores = list(dict.fromkeys(name for sample in samples for name in sample.scores))
    rows: list[list[str | float]] = [
        [sample.prompt, sample.reply, *(sample.scores.get(name, math.nan) for name in scores)] for sample in samples
    ]
    return ["prompt", "reply", *scores], rows


def _markdown(samples: Sequence[Sample]) -> str:
    """The table as TensorBoard shows it; what a policy says is no markup."""

    def cell(value: str | float) -> str:
        text = value if isinstance(value, str) else f"{value:.3f}"
        return html.escape(" ".join(text.split())).replace("|", "&#124;")

    header, rows = _table(samples)
    lines = [header, ["---"] * len(header), *([cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_WRITERS = {"tensorboard": _TensorBoard, "wandb": _WandB}

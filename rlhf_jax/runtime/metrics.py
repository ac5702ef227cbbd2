"""Where a stage's numbers and replies go: `metrics.jsonl`, `samples.jsonl`, TensorBoard, and W&B where its extra is installed.

Every line of the two files ends with `crc32`, the checksum of itself and of all lines before it: a changed bit, a line that
was removed, doubled or moved is found by its number. Lines that older versions wrote have none.
"""

import contextlib
import html
import json
import math
import re
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from rlhf_jax.data.lines import json_of
from rlhf_jax.runtime import files, metric_names, run

_CHECKED = re.compile(r', "crc32": "([0-9a-f]{8})"\}$')


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
        self._crc = drop_after(self._file, stage, step)
        self._samples_crc = drop_after(self._samples_file, stage, step)
        self._writers: list[Writer] = [_WRITERS[tracker](directory, stage, step) for tracker in directory.trackers]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one line `{"stage", "step", name: value ...}`; a value that is not finite is written as null.

        Raises: ValueError for a name that `metric_names` does not have for this kind of stage.
        """
        for name in values.keys() - self._known:
            metric_names.check(self._stage, name)
        self._known |= values.keys()
        entry = files.as_json({"stage": self._stage, "step": step, **values}, "metrics.jsonl")
        line, self._crc = _with_checksum(entry, self._crc)
        named = {f"{self._stage}/{name}": value for name, value in values.items()}
        with files.storage_errors(self._file):
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(line + "\n")
            for writer in self._writers:
                writer.write(step, named)

    def write_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Adds one line `{"stage", "step", "prompt", "reply", "scores"}` a sample to `samples.jsonl`, and a table to the trackers."""
        place = {"stage": self._stage, "step": step}
        lines = []
        for sample in samples:
            entry = files.as_json({**place, **sample._asdict()}, "samples.jsonl")
            line, self._samples_crc = _with_checksum(entry, self._samples_crc)
            lines.append(line + "\n")
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
    """All lines of a `metrics.jsonl`, names bare whatever version wrote them; a last line cut by a kill is left out.

    Raises: RunError naming file and line where a line is not what was written, or one is missing before it.
    """
    return [metric_names.bare(entry["stage"], entry) for entry in _stored(file)[0]]


def read_stage_samples(file: Path) -> list[dict[str, Any]]:
    """All lines of a `samples.jsonl`; a last line cut by a kill is left out.

    Raises: RunError naming file and line where a line is not what was written, or one is missing before it.
    """
    return _stored(file)[0]


def _stored(file: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines without their checksums, and the last checksum."""
    if not file.exists():
        return [], 0
    try:
        *lines, cut = file.read_text(encoding="utf-8").split("\n")
    except (UnicodeDecodeError, OSError) as error:
        raise _damaged(file, _line_of(file, error), f"cannot be read ({error})") from error
    if cut:
        files.notice(f"{file}, line {len(lines) + 1} has no end and is left out: {cut[:40]!r}")
    entries, crc = [], 0
    for number, line in enumerate(lines, start=1):
        try:
            entry = json_of(line, bounded=True)
        except ValueError as error:
            raise _damaged(file, number, f"cannot be read: {error}") from error
        if not (isinstance(entry, dict) and isinstance(entry.get("stage"), str) and type(entry.get("step")) is int):
            raise _damaged(file, number, f"has no 'stage' and 'step': {line[:80]!r}")
        checked = _CHECKED.search(line)
        if checked is None and crc:
            raise _damaged(file, number, f"lacks its checksum: {line[-40:]!r}")
        if checked is not None:
            del entry["crc32"]
            crc = zlib.crc32(line[: checked.start()].encode(), crc)
            if f"{crc:08x}" != checked[1]:
                raise _damaged(file, number, "was changed after it was written, or does not follow the one before it")
        entries.append(entry)
    return entries, crc


def _with_checksum(entry: Mapping[str, Any], before: int) -> tuple[str, int]:
    """A line, and its checksum, which goes on from that of the line before."""
    text = json.dumps(entry, allow_nan=False)[:-1]
    crc = zlib.crc32(text.encode(), before)
    return f'{text}, "crc32": "{crc:08x}"}}', crc


def _damaged(file: Path, number: int, what: str) -> files.DamagedFileError:
    return files.DamagedFileError(
        f"{file}, line {number} {what}: restore the file; moved away, only what it logged is lost: a run starts a new one"
    )


def _line_of(file: Path, error: Exception) -> int:
    """Where the text stops being UTF-8."""
    if not isinstance(error, UnicodeDecodeError):
        return 1
    return file.read_bytes()[: error.start].count(b"\n") + 1


def drop_after(file: Path, stage: str, step: int) -> int:
    """Removes the lines of `stage` after `step`, and a cut last line; returns the checksum of what stays."""
    if not file.exists():
        return 0
    entries, crc = _stored(file)
    kept = [entry for entry in entries if entry["stage"] != stage or entry["step"] <= step]
    text = file.read_text(encoding="utf-8")
    if len(kept) == len(entries) and text.endswith("\n"):
        return crc
    lines, crc = text.split("\n")[: len(entries)], 0
    new = []
    for line, entry in zip(lines, entries, strict=True):
        if entry["stage"] == stage and entry["step"] > step:
            continue
        if _CHECKED.search(line):
            line, crc = _with_checksum(entry, crc)
        new.append(line + "\n")
    files.write_text(file, "".join(new))
    return crc


def check_logged(file: Path, stage: str, steps: Iterable[int]) -> None:
    """Tells where lines of a stage that were written are no longer in the file; the run goes on without them."""
    found = {entry["step"] for entry in _stored(file)[0] if entry["stage"] == stage}
    if missing := [step for step in steps if step not in found]:
        files.notice(
            f"{file} has lost {len(missing)} of the lines of {stage}, the first that of step {missing[0]}: "
            "its figures will lack them"
        )


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
        birth = files.read_object(directory.path / "config.json", "started")["started"]
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

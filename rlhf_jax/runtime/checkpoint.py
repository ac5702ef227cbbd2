"""Checkpoints of one stage: any pytree of arrays, typed random keys included, saved by Orbax.

A checkpoint is a folder named by its step. It is written under another name and renamed when complete, so a process
killed at any moment leaves either the whole checkpoint or none.

Several processes write one checkpoint together, each the parts it holds; the first of them does all that is done to
folders. The arrays are stored whole, whatever mesh they lay on: any mesh, of any number of processes, can read them.

`files.json` of a checkpoint holds size and CRC-32 of every other file of it, checked before anything is restored: 0.2 s
for 500 MB on one core. Checkpoints of older versions hold sizes alone.
"""

import contextlib
import dataclasses
import shutil
import uuid
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from rlhf_jax.parallel import processes
from rlhf_jax.runtime import files

_UNFINISHED = "unfinished-"
_UNREADABLE = "unreadable-"
_SPARE_BYTES = 2**20


class Restored(NamedTuple):
    """What a checkpoint held."""

    step: int
    state: Any
    extra: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in one folder; the newest `keep` are kept, and those they name as pinned."""

    folder: Path
    keep: int = 2

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep = {self.keep}, at least one checkpoint must be kept")

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.folder.iterdir() if entry.name.isdecimal())

    def save(self, step: int, state: Any, extra: Mapping[str, Any], *, pinned: Sequence[int] = ()) -> None:
        """Saves `state` and returns when it is on disk; a complete checkpoint of the same step is left as it is.

        Args:
          step: updates done so far; names the checkpoint.
          state: pytree of arrays and numbers.
          extra: what else must be continued, as JSON.
          pinned: steps to keep for as long as this checkpoint is kept, e.g. that of the best state.
        Raises: RunError for a full disk or missing permission; older checkpoints are untouched.
        """
        if step in self.steps():
            return
        target = self.folder / str(step)
        # Processes must write to one place, so the name is then the step's alone.
        nonce = str(step) if processes.several() else uuid.uuid4().hex
        unfinished = self.folder / f"{_UNFINISHED}{nonce}"

        def prepare() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
            self._check_space(state, target)

        def complete() -> None:
            _describe(unfinished, {"extra": extra, "pinned": list(pinned)})
            unfinished.rename(target)

        with files.storage_errors(target):
            processes.lead_does(prepare)
            try:
                _write(unfinished, state)
                processes.lead_does(complete)
            except BaseException:
                if processes.leads():
                    shutil.rmtree(unfinished, ignore_errors=True)
                raise
        processes.lead_does(self._prune)

    def restore(self, like: Any, step: int | None = None) -> Restored | None:
        """Reads the newest readable checkpoint, or the one of `step`.

        An unreadable one is put aside (renamed, not deleted) with a printed notice, once an older one has been read.

        Args:
          like: a state of the same structure; gives types, shapes and shardings.
          step: which checkpoint; None takes the newest that can be read.
        Returns: None where there is no checkpoint.
        Raises: RunError where there are checkpoints and none can be read, with the reason for each.
        """
        problems: dict[int, str] = {}
        for candidate in reversed(self.steps()) if step is None else [step]:
            try:
                restored = _read(self.folder / str(candidate), candidate, like)
            except Exception as error:  # noqa: BLE001 - Orbax and tensorstore raise many kinds, all mean "not this one"
                problems[candidate] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
                continue
            for broken, problem in problems.items():
                files.notice(
                    f"checkpoint {self.folder / str(broken)} cannot be read ({problem}): continuing from {candidate}"
                )
                if processes.leads():
                    aside = self.folder / f"{_UNREADABLE}{broken}-{uuid.uuid4().hex[:8]}"
                    (self.folder / str(broken)).rename(aside)
            return restored
        if problems:
            reasons = "; ".join(f"{number}: {problem}" for number, problem in problems.items())
            raise files.RunError(
                f"no checkpoint in {self.folder} can be read ({reasons}): bring one back from a copy, or remove the "
                "folder to do this stage again; nothing was overwritten"
            )
        return None

    def arrays(self, step: int) -> Any:
        """The state of a checkpoint as nested dicts and lists, for readers that do not know what made it.

        Raises: RunError where it cannot be read.
        """
        folder = self.folder / str(step)
        try:
            _check_files(folder)
            # The mesh that wrote it need not exist here: everything onto one device.
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
                restore = ocp.args.StandardRestore(fallback_sharding=here)
                return checkpointer.restore((folder / "state").absolute(), args=restore)
        except Exception as error:
            raise files.RunError(f"checkpoint {folder} cannot be read: {error}") from error

    def _check_space(self, state: Any, target: Path) -> None:
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if hasattr(leaf, "nbytes")) + _SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise files.RunError(
                f"disk full: the checkpoint {target} needs {needed / 2**20:,.1f} MiB and {free / 2**20:,.1f} MiB are "
                "free: make room and start the same command again; the run continues from its last checkpoint"
            )

    def _remove_unfinished(self) -> None:
        for entry in self.folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(entry, ignore_errors=True)

    def _prune(self) -> None:
        steps = self.steps()
        kept = set(steps[-self.keep :])
        for step in tuple(kept):
            # What cannot be read names nothing to keep; that it cannot is found when it is restored.
            with contextlib.suppress(OSError, files.RunError):
                kept.update(files.read_object(self.folder / str(step) / "stage.json", "pinned")["pinned"])
        for step in set(steps) - kept:
            # Renamed first: a kill while deleting must not leave half a checkpoint under a step's name.
            doomed = self.folder / f"{_UNFINISHED}{uuid.uuid4().hex}"
            (self.folder / str(step)).rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _write(folder: Path, state: Any) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / "state").absolute(), state)
        checkpointer.wait_until_finished()


def _describe(folder: Path, stage: Mapping[str, Any]) -> None:
    files.write_json(folder / "stage.json", stage)
    written = {
        name: {"bytes": (folder / name).stat().st_size, "crc32": _crc32(folder / name)} for name in _names(folder)
    }
    files.write_json(folder / "files.json", written)


def _names(folder: Path) -> list[str]:
    found = (file for file in folder.rglob("*") if file.is_file() and file.name != "files.json")
    return sorted(str(file.relative_to(folder)) for file in found)


def _crc32(file: Path) -> int:
    crc = 0
    with open(file, "rb") as opened:
        while part := opened.read(2**20):
            crc = zlib.crc32(part, crc)
    return crc


def _check_files(folder: Path) -> None:
    if not folder.is_dir():
        raise files.RunError(f"{folder} is not there")
    for name, written in files.read_object(folder / "files.json").items():
        file = folder / name
        # A number alone is the size, as older versions stored it.
        size, crc = (written, None) if isinstance(written, int) else (written["bytes"], written["crc32"])
        found = file.stat().st_size if file.is_file() else "no"
        if found != size:
            raise files.RunError(f"{file} has {found} bytes, {size} were written")
        if crc is not None and _crc32(file) != crc:
            raise files.RunError(f"{file} was changed after it was written")


def _read(folder: Path, step: int, like: Any) -> Restored:
    _check_files(folder)
    stage = files.read_object(folder / "stage.json", "extra")
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore((folder / "state").absolute(), abstract)
    return Restored(step, state, stage["extra"])

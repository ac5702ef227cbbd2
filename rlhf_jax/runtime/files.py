"""Files of a run, written whole or not at all, and what a person is told: notices, errors in one line."""

import contextlib
import dataclasses
import enum
import errno
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


class RunError(ValueError):
    """The run cannot go on, for a reason outside the program; the text says what to do."""


def notice(text: str) -> None:
    """One line for the person who watches the run."""
    print(f"[rlhf_jax] {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """For scripts: what the user can mend ends the program with one line and code 1; `python -X dev` shows where it arose."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if sys.flags.dev_mode:
            raise
        notice(f"error: {error}")
        sys.exit(1)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns a full disk or a missing permission while writing `path` into a `RunError` that says what to do.

    Orbax reports some of them as text from its C++ side, hence the look at the message.
    """
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        number, text = getattr(error, "errno", None), str(error)
        if number in _NO_SPACE or "No space left on device" in text or "Disk quota exceeded" in text:
            raise RunError(
                f"disk full while writing {path} ({_free_space(path)}): make room and start the same command again; "
                "the run continues from its last checkpoint"
            ) from error
        if number in _NO_PERMISSION or "Permission denied" in text or "Read-only file system" in text:
            raise RunError(
                f"no permission to write {path}: choose another run directory or change its owner"
            ) from error
        if number in (errno.ENOTDIR, errno.EEXIST):
            raise RunError(f"{path} cannot be a folder: a file of that name is in the way") from error
        raise


def _free_space(path: Path) -> str:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    return f"{shutil.disk_usage(existing).free / 2**20:,.0f} MiB free"


def as_json(value: Any, name: str = "config") -> Any:
    """Dataclasses, paths, enums, tuples and array scalars as what JSON can hold.

    A number that is not finite becomes null, because JSON has no word for it.

    Raises: ValueError naming the field that cannot be written.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_json(getattr(value, f.name), f"{name}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(entry, f"{name}.{key}") for key, entry in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        entries = sorted(value) if isinstance(value, set | frozenset) else value
        return [as_json(entry, f"{name}[{index}]") for index, entry in enumerate(entries)]
    if isinstance(value, enum.Enum):
        return as_json(value.value, name)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return as_json(np.asarray(value).tolist(), name)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{name} = {value!r} of type {type(value).__name__} cannot be written to JSON")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` so that the file is at every moment either the old one or the new one, whole."""
    text = json.dumps(as_json(value, path.name), indent=2, allow_nan=False) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Replaces a text file in one step."""
    with _replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_npz(path: Path, arrays: Mapping[str, Any], *, compressed: bool = False) -> None:
    """Replaces a file of named arrays in one step; `np.load` reads it."""
    save = np.savez_compressed if compressed else np.savez
    with _replacing(path) as file:
        save(file, **arrays)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """The file to be: written beside the old one, flushed to the disk, renamed; left out where the disk refuses it."""
    partial = path.with_name(path.name + ".partial")
    with storage_errors(path):
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def read_json(path: Path) -> Any:
    """Reads a JSON file of a run.

    Raises: RunError naming file and position where it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not readable JSON ({error}): restore it or choose another run directory") from error

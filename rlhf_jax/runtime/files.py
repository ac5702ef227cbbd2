"""Files of a run, written whole or not at all, and what a person is told: notices, errors in one line.

What is stored carries its checksum, so that a changed bit is found when it is read: JSON objects have a last field
`crc32`, JSON lists an entry in `checksums.json` beside them, npz files those of their members and their own name. Files of
older versions have none and are read all the same.
"""

import contextlib
import dataclasses
import enum
import errno
import json
import math
import os
import shutil
import signal
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

CHECKSUM = "crc32"
"""Field of a stored JSON object with the checksum of all others."""
CHECKSUMS = "checksums.json"
"""Of the JSON lists in its folder: name to the checksums that the file may have; two while it is being replaced."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


class RunError(ValueError):
    """The run cannot go on, for a reason outside the program; the text says what to do."""


class DamagedFileError(RunError):
    """A stored file is not what was written; what can be made again from other files may be."""


def notice(text: str) -> None:
    """One line for the person who watches the run."""
    print(f"[rlhf_jax] {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """For scripts: what the user can mend ends the program with one line and code 1; `python -X dev` shows where it arose."""
    try:
        yield
    except (ValueError, OSError) as error:
        if sys.flags.dev_mode:
            raise
        notice(f"error: {in_one_line(error)}")
        sys.exit(1)
    except KeyboardInterrupt:
        if sys.flags.dev_mode:
            raise
        notice("stopped by Ctrl-C")
        sys.exit(128 + signal.SIGINT)


def in_one_line(error: BaseException) -> str:
    """The error's own text; for one of the system, the file and what to do."""
    text = None
    if isinstance(error, OSError) and error.filename is not None:
        path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else Path()
        text = _storage_problem(error, path) or f"{path}: {error.strerror}"
    return " ".join((text or _storage_problem(error, Path()) or str(error) or type(error).__name__).splitlines())


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns a full disk, a missing permission or an impossible name while writing `path` into a `RunError` that says what to do."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        problem = _storage_problem(error, path)
        if problem is None:
            raise
        raise RunError(problem) from error


def _storage_problem(error: BaseException, path: Path) -> str | None:
    """What the disk refused, and what to do; None for any other error.

    Orbax reports some of them as text from its C++ side, hence the look at the message.
    """
    number, text = getattr(error, "errno", None), str(error)
    if number in _NO_SPACE or "No space left on device" in text or "Disk quota exceeded" in text:
        return (
            f"disk full while writing {path} ({_free_space(path)}): make room and start the same command again; "
            "the run continues from its last checkpoint"
        )
    if number in _NO_PERMISSION or "Permission denied" in text or "Read-only file system" in text:
        return f"no permission to write {path}: choose another run directory or change its owner"
    if number in (errno.ENOTDIR, errno.EEXIST):
        return f"{path} cannot be a folder: a file of that name is in the way"
    if number == errno.EISDIR:
        return f"{path} cannot be a file: a folder of that name is in the way"
    if number == errno.ENAMETOOLONG:
        longest = max(path.parts, key=len, default="")
        return f"{str(path)[:80]}…: a name of {len(longest)} characters is too long for the disk: choose a shorter one"
    return None


def _free_space(path: Path) -> str:
    existing = next((parent for parent in (path, *path.parents) if parent.exists()), Path())
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
    """Writes `value` so that the file is at every moment either the old one or the new one, whole.

    An object gets a last field `crc32`, which `read_json` checks and leaves out; for a list it is stored beside it.
    """
    stored = as_json(value, path.name)
    if isinstance(stored, list):
        new, known = _checksum(stored), _list_checksums(path)
        old = known.get(path.name, [])
        write_json(path.with_name(CHECKSUMS), {**known, path.name: [*old, new]})
        write_text(path, json.dumps(stored, indent=2, allow_nan=False) + "\n")
        write_json(path.with_name(CHECKSUMS), {**known, path.name: [new]})
        return
    if isinstance(stored, dict):
        stored = {name: entry for name, entry in stored.items() if name != CHECKSUM}
        stored[CHECKSUM] = _checksum(stored)
    write_text(path, json.dumps(stored, indent=2, allow_nan=False) + "\n")


def _list_checksums(path: Path) -> dict[str, Any]:
    """Of the JSON lists in the folder of `path`; a damaged file of them counts as none, with a notice."""
    file = path.with_name(CHECKSUMS)
    try:
        stored = read_object(file) if file.exists() else {}
        # An older version, or another hand, may have left something that is no list.
        return {name: sums for name, sums in stored.items() if isinstance(sums, list)}
    except DamagedFileError as error:
        notice(f"{error}; it says nothing about {path.name} any more")
        return {}


def _checksum(value: Any) -> str:
    """Of what the object says, however it is laid out; JSON keeps every bit of a finite float."""
    return f"{zlib.crc32(json.dumps(value, separators=(',', ':')).encode()):08x}"


def write_text(path: Path, text: str) -> None:
    """Replaces a text file in one step."""
    with _replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_npz(path: Path, arrays: Mapping[str, Any], *, compressed: bool = False) -> None:
    """Replaces a file of named arrays in one step; `np.load` reads it, `read_npz` checks it too.

    The archive's comment is the file's name and a checksum of the arrays' names: a file that was exchanged for its neighbour,
    and an array that the archive's directory has lost, are found.
    """
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with _replacing(path) as file, zipfile.ZipFile(file, "w", kind) as archive:
        archive.comment = _signed(path.name, [f"{name}.npy" for name in arrays])
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _signed(file: str, members: Sequence[str]) -> bytes:
    return f"{file} {zlib.crc32('/'.join(members).encode()):08x}".encode()


def check_npz(path: Path) -> None:
    """Reads every byte of a file of arrays.

    Raises: DamagedFileError where one was changed, a part is missing, or the file was written under another name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken, comment, members = archive.testzip(), archive.comment, archive.namelist()
    except FileNotFoundError:
        raise
    # A flipped bit can also ask for an unknown compression or a password, or point outside the file.
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged ({error}): restore it or remove it") from error
    if broken is not None:
        raise DamagedFileError(f"{path} is damaged ({broken} is not what was written): restore it or remove it")
    if comment and comment != _signed(path.name, members):
        name = comment.decode(errors="replace").rpartition(" ")[0]
        what = (
            f"was written as {name[:80]!r}" if name != path.name else f"has lost arrays, it holds {', '.join(members)}"
        )
        raise DamagedFileError(f"{path} {what}: restore it or remove it")


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file that `write_npz` wrote, checked.

    Raises: DamagedFileError naming the file.
    """
    check_npz(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (KeyError, OSError, ValueError, EOFError) as error:
        raise DamagedFileError(f"{path} holds no arrays ({error}): restore it or remove it") from error


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
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def read_json(path: Path) -> Any:
    """Reads a JSON file of a run; of an object, without its checksum.

    Raises: DamagedFileError naming file and position where it is not JSON, or not what was written.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (ValueError, RecursionError, OSError) as error:
        raise DamagedFileError(
            f"{path} is not readable JSON ({error}): restore it or choose another run directory"
        ) from error
    if isinstance(value, list) and path.name != CHECKSUMS:  # Which holds an object, and lists nothing of itself.
        known = _list_checksums(path).get(path.name)
        if known is not None and _checksum(value) not in known:
            raise DamagedFileError(
                f"{path} was changed after it was written: make it again with the command that wrote it; where the change is "
                f"yours, remove {path.with_name(CHECKSUMS)}"
            )
        return value
    if not isinstance(value, dict) or CHECKSUM not in value:
        return value
    stored = value.pop(CHECKSUM)
    if stored != _checksum(value):
        raise DamagedFileError(
            f"{path} was changed after it was written: restore it; where the change is yours, remove its field {CHECKSUM}"
        )
    return value


def read_object(path: Path, *fields: str) -> dict[str, Any]:
    """Reads a JSON file of a run that must be an object with these fields.

    Raises: DamagedFileError naming the file, and what it holds or lacks.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise DamagedFileError(
            f"{path} must hold an object, it holds {str(value)[:60]!r}: restore it or choose another run directory"
        )
    if missing := [field for field in fields if field not in value]:
        raise DamagedFileError(f"{path} has no field {', '.join(missing)}: restore it or choose another run directory")
    return value


def read_list(path: Path) -> list[Any]:
    """Reads a JSON file of a run that must be a list.

    Raises: DamagedFileError naming the file, and what it holds.
    """
    value = read_json(path)
    if not isinstance(value, list):
        raise DamagedFileError(
            f"{path} must hold a list, it holds {str(value)[:60]!r}: restore it or choose another run directory"
        )
    return value

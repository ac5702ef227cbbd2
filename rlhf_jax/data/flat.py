"""Rows of numbers on disk: one file of values, one of where each row begins, read where they lie.

    NAME.values   v₀₀ v₀₁ … v₁₀ …      little-endian numbers of one type
    NAME.starts   0 n₀ n₀+n₁ …         int64, rows + 1 of them

A folder of such files is sealed by `sealed.json`: size and CRC-32 of every file, and facts of the caller's. It is written under
another name and renamed when whole, so what has the name is whole or damaged later, and that is found out when it is opened.
Why not array_record: docs/decisions/0019.
"""

import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

SEAL = "sealed.json"
_BLOCK = 2**22


class DamagedStoreError(ValueError):
    """A sealed folder that is not what was sealed."""


class Flat(NamedTuple):
    """Rows of numbers; in memory, or mapped from a file."""

    values: np.ndarray
    """[Σ n]"""
    starts: Int64[np.ndarray, " N1"]
    """Where each row begins, and the end of the last. [N + 1]"""

    @property
    def lengths(self) -> Int64[np.ndarray, " N"]:
        """Numbers of every row. [N]"""
        return np.diff(self.starts)

    def row(self, number: int) -> np.ndarray:
        """One row. [n]"""
        return self.values[self.starts[number] : self.starts[number + 1]]

    def chosen(self, numbers: Int64[np.ndarray, " K"]) -> "Flat":
        """Some of the rows, in the order given, in memory.

        Examples:
          >>> flat([[5, 6], [], [7]]).chosen(np.array([2, 0])).values.tolist()
          [7, 5, 6]
        """
        lengths = self.lengths[numbers]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        # Place in the row, and where the row begins.
        places = np.arange(starts[-1]) - np.repeat(starts[:-1] - self.starts[numbers], lengths)
        return Flat(np.asarray(self.values[places]), starts)


def flat(rows: Iterable[Sequence[int]], dtype: str = "<i4") -> Flat:
    """The same in memory.

    Examples:
      >>> flat([[5, 6], [], [7]]).lengths.tolist()
      [2, 0, 1]
    """
    kept = [np.asarray(row, dtype) for row in rows]
    starts = np.cumsum([0, *map(len, kept)], dtype=np.int64)
    return Flat(np.concatenate(kept) if kept else np.zeros(0, dtype), starts)


class FlatWriter:
    """Writes rows as they come; nothing but one number a row stays in memory."""

    def __init__(self, folder: Path, name: str, dtype: str) -> None:
        self._starts_path, self._dtype = folder / f"{name}.starts", dtype
        self._file = (folder / f"{name}.values").open("wb")
        self._lengths: list[int] = []

    def add(self, row: Sequence[int] | bytes) -> None:
        """One row more."""
        values = row if isinstance(row, bytes) else np.asarray(row, self._dtype).tobytes()
        self._file.write(values)
        self._lengths.append(len(row))

    def __enter__(self) -> "FlatWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            np.cumsum([0, *self._lengths], dtype="<i8").tofile(self._starts_path)


def read_flat(folder: Path, name: str, dtype: str) -> Flat:
    """Rows of a sealed folder, mapped: a page is read when it is looked at."""
    return Flat(mapped(folder / f"{name}.values", dtype), np.fromfile(folder / f"{name}.starts", "<i8"))


def mapped(path: Path, dtype: str) -> np.ndarray:
    """The numbers of a file, mapped; an empty file, which cannot be, is an empty array."""
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)


def kept(folder: Path, make: Callable[[Path], dict[str, Any]], tell: Callable[[str], None]) -> dict[str, Any]:
    """Facts of a sealed folder, which is made where it is absent and made again where it is damaged.

    Args:
      make: writes the files into an empty folder and returns the facts, which must be JSON.
      tell: hears what was damaged.
    """
    if folder.exists():
        try:
            return check_seal(folder)
        except DamagedStoreError as error:
            tell(f"{error}; it is made again")
            shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        facts = make(partial)
        _seal(partial, facts)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            # Another process of the run was faster; both made the same.
            return check_seal(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return facts


def check_seal(folder: Path) -> dict[str, Any]:
    """The facts of a sealed folder.

    Raises: DamagedStoreError naming the file that is missing, or is not what was sealed.
    """
    path = folder / SEAL
    try:
        content, sealed = json.loads(path.read_text(encoding="utf-8"))
        if zlib.crc32(content.encode()) != sealed:
            raise ValueError("its checksum is another")
        said = json.loads(content)
        files, facts = said["files"], said["facts"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedStoreError(f"{path}: damaged ({error})") from error
    for name, checksum in files.items():
        try:
            found = _checksum(folder / name)
        except OSError as error:
            raise DamagedStoreError(f"{folder / name}: {error}") from error
        if found != checksum:
            raise DamagedStoreError(f"{folder / name}: damaged, bytes and CRC-32 are {found}, sealed were {checksum}")
    return facts


def _seal(folder: Path, facts: dict[str, Any]) -> None:
    files = {path.name: _checksum(path) for path in sorted(folder.iterdir())}
    content = json.dumps({"files": files, "facts": facts})
    (folder / SEAL).write_text(json.dumps([content, zlib.crc32(content.encode())]), encoding="utf-8")


def _checksum(path: Path) -> list[int]:
    size = checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return [size, checksum]

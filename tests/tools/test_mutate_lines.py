"""Damaged lines: every reader answers a few of them as it should, and the count finds a reader that does not."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mutate_lines
from mutate_lines import CASES, WRONG, Case


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("valid")
    mutate_lines.write_valid(folder)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_no_reader_stumbles(name: str, valid: Path) -> None:
    before = (valid / CASES[name].file).read_bytes()
    found = mutate_lines.count(name, 60, 1, valid)
    assert sum(found.values()) == 60 and not any(found[wrong] for wrong in WRONG)
    assert found["refused"] > 0
    assert (valid / CASES[name].file).read_bytes() == before


def rises(folder: Path) -> Any:
    return {}["no such key"] if (folder / "file").read_bytes() != b"1\n2\n" else 0


def says_nothing(folder: Path) -> Any:
    return int((folder / "file").read_bytes().split()[1])


def takes_everything(folder: Path) -> Any:
    return (folder / "file").read_text(encoding="utf-8", errors="surrogateescape")


@pytest.mark.parametrize(
    ("read", "outcome"), [(rises, "traceback"), (says_nothing, "unclear"), (takes_everything, "unstorable")]
)
def test_a_reader_that_stumbles_is_found(
    read: Callable[[Path], Any], outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"1\n2\n")
    monkeypatch.setattr(mutate_lines, "CASES", {"own": Case("file", read)})
    found: Counter[str] = mutate_lines.count("own", 200, 0, tmp_path)
    assert found[outcome] > 0

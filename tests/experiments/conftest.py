"""Scripts are run by path, so their folder is the first place they import from; tests of their parts do the same."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

EXPERIMENTS = str(Path(__file__).resolve().parents[2] / "experiments")
sys.path.insert(0, EXPERIMENTS)


@pytest.fixture(scope="session", autouse=True)
def experiments_importable() -> Iterator[None]:
    """Takes the folder away again, so that no other test can import from it by accident."""
    yield
    sys.path.remove(EXPERIMENTS)

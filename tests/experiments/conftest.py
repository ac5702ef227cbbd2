"""Where the studies that tests run keep what they share."""

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from tiny_policy import dialogues, tiny, vocab

__all__ = ["dialogues", "tiny", "vocab"]


@pytest.fixture(scope="session")
def study_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the foundation of the debug presets lies: one folder for all files and all workers."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "study-runs"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def study_cache(program_cache: Path) -> Iterator[Path]:
    """Keeps programs compiled in this process in the common folder, while the module's tests run."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    jax.config.update("jax_compilation_cache_dir", str(program_cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield program_cache
    for name, value in before.items():
        jax.config.update(name, value)

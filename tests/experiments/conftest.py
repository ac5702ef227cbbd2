"""Scripts are run by path, so their folder is the first place they import from; tests of their parts do the same."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

EXPERIMENTS = str(Path(__file__).resolve().parents[2] / "experiments")
sys.path.insert(0, EXPERIMENTS)


@pytest.fixture(scope="session", autouse=True)
def experiments_importable() -> Iterator[None]:
    """Takes the folder away again, so that no other test can import from it by accident."""
    yield
    sys.path.remove(EXPERIMENTS)


@pytest.fixture(scope="session")
def study_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the foundation of the debug presets lies, and compiled programs: one folder for all files and all workers."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "study-runs"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def study_cache(study_runs: Path) -> Iterator[Path]:
    """Keeps programs compiled in this process in the common folder, while the module's tests run.

    Every program runs a few times on a tiny network: what XLA can leave out in compiling, it leaves out.
    """
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_disable_most_optimizations",
    )
    before = {name: jax.config.values[name] for name in names}
    jax.config.update("jax_compilation_cache_dir", str(study_runs / "jax_cache"))
    jax.config.update("jax_disable_most_optimizations", True)
    yield study_runs / "jax_cache"
    for name, value in before.items():
        jax.config.update(name, value)

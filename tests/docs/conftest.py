"""The site, built once for all tests of its pages."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
RUN = ("03_rewards", "05_ppo_clip")
"""Lessons that are executed here, figures and all; the others are shown without outputs. `make docs` runs every one."""


@pytest.fixture(scope="session")
def builder() -> ModuleType:
    pytest.importorskip("markdown_it", reason="pip install -e '.[docs]' -c constraints.txt")
    sys.path.insert(0, str(REPOSITORY / "tools"))
    return importlib.import_module("build_site")


@pytest.fixture(scope="session")
def site(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import jupytext

    folder = tmp_path_factory.mktemp("site")
    builder.build(folder, lambda source: builder.execute(source) if source.stem in RUN else jupytext.read(source))
    return folder

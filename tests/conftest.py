"""Strict settings for every test, and the fixtures more than one package needs.

The package itself is not imported here: the jaxtyping hook must be in place first.
"""

import contextlib
import importlib.metadata
import io
import os
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before jax starts: tests are defined on the CPU; sharded tests force more devices in processes of their own.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# The suite spends most of its time in XLA's CPU compiler, whose older emitters need half as long for programs that run as
# fast. jaxlib 0.11 stops at that switch and has an option of its backend instead. With XLA's defaults: XLA_FLAGS= python -m pytest
QUICK_FLAGS = (
    "--xla_cpu_use_fusion_emitters=false"
    if importlib.metadata.version("jaxlib").startswith("0.10.")
    else "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
)
os.environ.setdefault("XLA_FLAGS", QUICK_FLAGS)
# Nor do tests ask how good LLVM's machine code is; XLA's own passes, which decide what a program is, all run. To test the
# optimised code: JAX_DISABLE_MOST_OPTIMIZATIONS=0 python -m pytest
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import jax
import jaxtyping
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# Doctest collection imports every file: scripts that need torch, which the tests do not, and those that tests start as
# processes with arguments of their own.
# This file itself is no test: once another folder has a `conftest`, it could not be imported a second time under its name.
collect_ignore_glob = ["conftest.py", "*/conftest.py", "golden_*/generate_*.py", "parallel/several_processes.py"]

jax.config.update("jax_numpy_rank_promotion", "raise")
# Compilation makes first calls slow, and a random seed would make a red run hard to repeat.
hypothesis.settings.register_profile("fast", deadline=None, derandomize=True, max_examples=25, print_blob=True)
hypothesis.settings.load_profile("fast")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest first, so that no worker is left alone with the end-to-end runs."""
    items.sort(key=lambda item: "end_to_end" not in item.path.parts)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session", autouse=True)
def program_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder of compiled programs for all processes that the tests of all workers start."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "programs"
    changed = {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changed.items():
            patch.setenv(name, value)
        yield folder


@pytest.fixture
def run_here(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program_cache: Path
) -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs a script of `experiments/` in this process: (exit code, everything printed). Imports are paid for once.

    As when a person starts it, types are not checked and compiled programs are kept, here in the folder of all tests.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    settings = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in zip(settings, (str(program_cache), 0), strict=True):
        jax.config.update(name, value)
    unchecked = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)

    def run(script: str, *arguments: str, stdin: str = "") -> tuple[int, str]:
        path, printed, code = str(repository / "experiments" / script), io.StringIO(), 0
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                runpy.run_path(path, run_name="__main__")
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        return code, printed.getvalue()

    yield run
    jaxtyping.config.update("jaxtyping_disable", unchecked)
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the real data sets: RLHF_JAX_DATA, or `../shared/data` beside the repository.

    Absent data fails the tests where `CI=true`, and elsewhere skips them with the reason in the summary.
    """
    folder = Path(os.environ.get("RLHF_JAX_DATA", REPOSITORY.parent / "shared" / "data"))
    if folder.is_dir():
        return folder
    message = f"no real data at {folder}: set RLHF_JAX_DATA to the folder that holds redial/, uss/ ..."
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(message)
    pytest.skip(message)


# No sandbox: tests may be run by root. The rest keeps Chromium from asking the network for things of its own.
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Any]:
    """Selenium's driver of a headless Chromium that logs its console and its requests.

    Where selenium or Chromium is absent the test is skipped, saying what is missing; with CI=true it fails, unless BROWSER=none
    says that there can be none.
    """
    must = os.environ.get("CI", "").lower() == "true" and os.environ.get("BROWSER") != "none"
    refuse: Callable[[str], Any] = pytest.fail if must else pytest.skip
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        refuse("no browser to test pages in: install chromium and chromedriver (Debian: chromium, chromium-driver)")
    try:
        from selenium import webdriver
    except ModuleNotFoundError:
        refuse("no selenium to drive the browser: pip install -e '.[test,browser]' -c constraints.txt")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'chromium'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield running
    running.quit()

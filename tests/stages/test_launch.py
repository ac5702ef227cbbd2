"""The options every experiment of all stages has: one set of flags, none of which decides whether a run may go on."""

import dataclasses
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import pytest

from rlhf_jax.parallel.mesh import MeshConfig
from rlhf_jax.parallel.processes import ProcessConfig
from rlhf_jax.stages.item_prior import PriorConfig
from rlhf_jax.stages.launch import StartConfig, started


@pytest.fixture(params=["ppo_redial", "ppo_opendialkg"])
def script(repository: Path, request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """An experiment, imported as a module."""
    spec = importlib.util.spec_from_file_location(request.param, repository / "experiments" / f"{request.param}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(request.param)
    sys.modules[request.param] = module
    spec.loader.exec_module(module)
    yield module
    # Another test may have imported the script as such, and still hold its classes.
    del sys.modules[request.param]
    if before is not None:
        sys.modules[request.param] = before


def test_both_experiments_have_the_same_flags(script: ModuleType) -> None:
    flags = [
        "--mesh.data",
        "2",
        "--mesh.tensor",
        "2",
        "--processes.coordinator",
        "localhost:1",
        "--processes.count",
        "2",
    ]
    config = script.command_line(["debug", *flags, "--processes.index", "1", "--profile", "sft", "ppo"])
    assert isinstance(config, StartConfig)
    assert config.mesh == MeshConfig(data=2, tensor=2)
    assert config.processes == ProcessConfig(coordinator="localhost:1", count=2, index=1)
    assert config.profile == ("sft", "ppo")
    assert script.command_line(["debug"]).profile == ()


def test_a_prior_is_learnt_in_one_process(script: ModuleType) -> None:
    debug = script.command_line(["debug"])
    several = ProcessConfig(coordinator="localhost:1", count=2)
    with pytest.raises(ValueError, match=r"--prior.learner grpo learns in one process: choose likelihood"):
        dataclasses.replace(debug, prior=PriorConfig(learner="grpo"), processes=several)
    assert dataclasses.replace(debug, prior=PriorConfig(learner="likelihood"), processes=several).processes.count == 2


def test_a_stage_that_does_not_exist_is_refused(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.command_line(["debug", "--profile", "pppo"])
    assert "pppo" in (said := "".join(capsys.readouterr())) and "reward_model" in said


@pytest.mark.parametrize("count", [-1, 65])
def test_samples_are_few(script: ModuleType, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.command_line(["debug", "--samples", str(count)])
    assert f"--samples must be in [0, 64]: got {count}" in "".join(capsys.readouterr())
    assert script.command_line(["debug", "--samples", "0"]).samples == 0


def test_a_run_goes_on_with_another_mesh_profile_and_number_of_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: dict[str, object] = {}  # Instead of changing the settings of all other tests.
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    # The folder of a test before this one would be taken instead of the run's own.
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", None)
    with started(StartConfig(run_dir=tmp_path / "run")) as run:
        assert run.profile == () and not run.resumed
        (run.path / "something").touch()
    assert "jax_compilation_cache_include_metadata_in_key" not in changed
    with started(StartConfig(run_dir=tmp_path / "run", profile=("ppo",), mesh=MeshConfig(data=2), samples=9)) as run:
        assert run.profile == ("ppo",) and run.samples == 9 and run.resumed
    # Else a trace would show the names of whoever compiled the program first.
    assert changed["jax_compilation_cache_include_metadata_in_key"] is True
    assert (tmp_path / "jax_cache").is_dir()


def test_a_script_starts_without_what_few_of_its_lines_need(repository: Path) -> None:
    """They take two of the seconds before a mistake is named, or a conversation begins."""
    slow = "import sys, ppo_redial, chat; print([name for name in ('scipy.stats', 'sklearn') if name in sys.modules])"
    started = subprocess.run(
        [sys.executable, "-c", slow], capture_output=True, text=True, check=True, cwd=repository / "experiments"
    )
    assert started.stdout.strip() == "[]"

"""What lessons share: exercises that say what became of them, and stored runs that are found from anywhere."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from rlhf_jax import lessons


def test_a_function_is_not_done_right_or_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    def asserts(double) -> None:
        assert double(3) == 6, "twice three is six"

    def double(x: int) -> int:
        raise NotImplementedError("your turn")

    assert lessons.check(double, asserts) is False
    assert capsys.readouterr().out == "double: not done yet\n"
    with pytest.raises(AssertionError, match="twice three is six"):
        lessons.check(lambda x: x * x, asserts)
    assert capsys.readouterr().out == ""
    assert lessons.check(lambda x: x + x, asserts) is True
    # A mistake of another kind is not taken for an empty function.
    with pytest.raises(ZeroDivisionError):
        lessons.check(lambda x: x / 0, asserts)


def test_stored_runs_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"notebooks/stored/lesson_99\.json: stored runs lie in a checkout"):
        lessons.stored_runs(99)
    (tmp_path / "lesson_3.json").write_text('{"demo": {"truth": [0.5]}}')
    monkeypatch.setattr(lessons, "STORED", tmp_path)
    assert lessons.stored_runs(3) == {"demo": {"truth": [0.5]}}


@pytest.mark.parametrize("set_before", [None, "--xla_force_host_platform_device_count=1"])
def test_compiling_quickly_keeps_what_somebody_has_set(set_before: str | None) -> None:
    asked = (
        "import os, jax; from rlhf_jax.lessons import compile_quickly; compile_quickly();"
        "print(os.environ.get('XLA_FLAGS'), jax.config.read('jax_disable_most_optimizations'), jax.numpy.ones(3).sum())"
    )
    hidden = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"JAX_PLATFORMS": "cpu"} | ({"XLA_FLAGS": set_before} if set_before else {})
    done = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True)
    later = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
    ours = "--xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else later
    assert done.stdout.split() == [str(set_before or ours), "True", "3.0"]

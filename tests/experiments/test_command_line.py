"""Help texts say in words what may be left empty, and what is required."""

import subprocess
import sys
from pathlib import Path

import pytest

import command_line
import gather_seeds
import ppo_redial


def printed_help(capsys: pytest.CaptureFixture[str], parse, arguments: list[str]) -> str:
    with pytest.raises(SystemExit):
        parse(arguments)
    return capsys.readouterr().out


def test_no_braces_around_none(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed_help(capsys, ppo_redial.command_line, ["debug", "--help"])
    assert "--data.dir PATH|None" in text
    assert "{None}" not in text
    assert "(default: )" not in text


def test_the_settings_of_gathered_runs_look_required(capsys: pytest.CaptureFixture[str]) -> None:
    parse = command_line.options(gather_seeds.Config, gather_seeds.__doc__)
    text = printed_help(capsys, parse, ["-h"])
    assert "at least one is required" in text
    assert "[[" not in text.split("options")[0].split("positional arguments")[-1]
    with pytest.raises(SystemExit):
        parse(["out"])


def test_the_width_stays() -> None:
    assert command_line.words_for_types("--a {None}|STR  │\n--b INT  │") == "--a STR|None    │\n--b INT  │"


def test_a_python_without_the_packages_says_which_has_them(repository: Path) -> None:
    # -S leaves out what is installed: as the system's Python beside an environment that `make` made.
    script = repository / "experiments" / "chat.py"
    done = subprocess.run(
        [sys.executable, "-S", "-E", script, "runs/demo"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "source .venv/bin/activate" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("active", [True, False])
def test_a_command_that_is_told_can_be_typed(active: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "env" / "bin" / "python"
    own.parent.mkdir(parents=True)
    for file in (own, tmp_path / "python"):
        file.write_text("#!/bin/sh\n")
        file.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(own))
    monkeypatch.setenv("PATH", str(own.parent if active else tmp_path))
    assert command_line.python() == ("python" if active else "env/bin/python")

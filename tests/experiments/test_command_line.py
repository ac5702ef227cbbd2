"""Help texts say in words what may be left empty, and what is required."""

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

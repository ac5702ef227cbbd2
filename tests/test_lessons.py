"""What lessons share: exercises that say what became of them, and stored runs that are found from anywhere."""

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

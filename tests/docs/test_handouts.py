"""Notebooks to hand out: every lesson as it is, without outputs and without the solutions of its exercises."""

from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LESSONS = sorted((REPOSITORY / "notebooks").glob("*.py"))


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_handout_has_the_exercises_and_not_their_solutions(builder: ModuleType, lesson: Path, tmp_path: Path) -> None:
    import jupytext
    import nbformat

    whole = jupytext.read(lesson)
    whole.cells[1].outputs = [nbformat.v4.new_output("stream", text="printed")]
    builder.write_handout(whole, tmp_path / "handout.ipynb")
    handout = nbformat.read(tmp_path / "handout.ipynb", as_version=4)
    nbformat.validate(handout)
    text = "\n".join(cell.source for cell in handout.cells)
    assert "## Exercises" in text and "**1.**" not in text and "Solutions follow" not in text
    assert all(cell.cell_type != "code" or cell.outputs == [] for cell in handout.cells)
    # Nothing but the end is missing, and the notebook it is made from is left as it was.
    assert [cell.id for cell in handout.cells] == [cell.id for cell in whole.cells[: len(handout.cells)]]
    assert whole.cells[1].outputs
    # A function to fill in is there, and the asserts it has to pass; its solution is not.
    for name in (line[4:].split("(")[0] for line in text.splitlines() if line.startswith("def ")):
        assert text.count(f"\ndef {name}(") == 1
    assert text.count('raise NotImplementedError("your turn")') == text.count("\ndef asserts_")
    assert "assert check(" not in text.split("## Exercises")[1]

"""Every notebook runs from its first cell to its last; their asserts are the tests.

As plain Python here, which is fast; `make notebooks` runs them in a Jupyter kernel each.
"""

import ast
import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Those that train, ten seconds or more each.
LONG = ("07", "08", "09", "10", "11", "13", "14")
NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.py"))


@pytest.mark.parametrize(
    "notebook",
    [
        pytest.param(path, marks=pytest.mark.slow if path.stem.startswith(LONG) else (), id=path.stem)
        for path in NOTEBOOKS
    ],
)
def test_runs_from_the_first_cell_to_the_last(notebook: Path, tmp_path: Path) -> None:
    environment = os.environ | {"MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(notebook.parents[1])}
    # Elsewhere than in the checkout: a notebook must not depend on where it is started, nor leave anything behind.
    done = subprocess.run(
        [sys.executable, str(notebook)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_has_the_parts_of_a_lesson(notebook: Path) -> None:
    cells = notebook.read_text(encoding="utf-8").split("\n# %%")
    headings = [line for cell in cells for line in cell.splitlines() if line.startswith("# #")]
    number = int(notebook.stem[:2])
    assert headings[0].startswith(f"# # {number} · ")
    for part in ("# ## Checks", "# ## Exercises"):
        assert any(heading.startswith(part) for heading in headings), f"{notebook.name} has no {part[5:]!r}"
    solutions = "\n".join(cells).split("# ## Exercises", 1)[1]
    assert [n for n in (1, 2, 3) if f"# **{n}.**" in solutions] == [1, 2, 3]
    assert "plt.show()" in "\n".join(cells)


def test_the_course_is_complete_and_stored_without_outputs(repository: Path) -> None:
    assert [int(path.stem[:2]) for path in NOTEBOOKS] == list(range(1, 15))
    assert list((repository / "notebooks").glob("*.ipynb")) == []
    for notebook in NOTEBOOKS:
        assert "format_name: percent" in notebook.read_text(encoding="utf-8")[:300]


def test_the_stored_runs_of_a_lesson_are_those_of_the_table(repository: Path) -> None:
    lesson = ast.parse((repository / "notebooks" / "14_reward_hacking.py").read_text(encoding="utf-8"))
    stored = next(
        ast.literal_eval(node.value)
        for node in ast.walk(lesson)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "STORED"
    )
    with (repository / "docs" / "results" / "full_hacking_hackable.csv").open(encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert len(stored) == sum(name.endswith("/sqrt_kl") for name in rows) == 6
    for (price, length_priced), numbers in stored.items():
        way = f"kl{price:g}{'+length' if length_priced else ''}"
        utility = rows[f"{way}-sft/mean_utility"]
        written = [rows[f"{way}/sqrt_kl"]["value"], rows[f"{way}-sft/proxy_score"]["value"]]
        written += [utility["value"], utility["low"], utility["high"]]
        assert numbers == tuple(map(float, written)), way


def test_the_faults_of_the_laboratory_are_mutants_that_the_suite_kills(repository: Path) -> None:
    lab = (repository / "notebooks" / "13_break_it.py").read_text(encoding="utf-8")
    faults = next(
        [[part.value for part in value.elts if isinstance(part, ast.Constant)] for value in node.value.values]
        for node in ast.walk(ast.parse(lab))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FAULTS"
    )
    killed = (repository / "docs" / "mutation_table.md").read_text(encoding="utf-8")
    assert len(faults) == 5
    for _, original, replacement in faults:
        assert f"`{original}` → `{replacement}`" in killed

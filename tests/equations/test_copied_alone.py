"""Every file of `equations` can be copied alone into a lecture: its examples run there, nothing of ours is imported."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).resolve().parents[2].joinpath("rlhf_jax", "equations").glob("[a-z]*.py"))
ALLOWED = {"jax", "chex", "jaxtyping", "typing"}


def test_doctests_pass_in_empty_folders(tmp_path: Path) -> None:
    copies = []
    for source in FILES:
        folder = tmp_path / source.stem
        folder.mkdir()
        copies.append(shutil.copy(source, folder))
    # One interpreter for all: each file is imported from its own folder, and starting jax eleven times is slow.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ""}
    command = [sys.executable, "-m", "doctest", *copies]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("source", FILES, ids=lambda path: path.stem)
def test_imports_and_examples(source: Path) -> None:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported <= ALLOWED
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            docstring = ast.get_docstring(node) or ""
            for section in ("Args:", "Returns:", "Raises:", "Examples:", ">>> "):
                assert section in docstring, f"{source.name}: {node.name} has no {section!r}"

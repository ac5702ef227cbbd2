"""Runs every notebook in a fresh Jupyter kernel and writes it with its outputs.

    python tools/run_notebooks.py [OUTPUT_FOLDER]      # default: build/notebooks

The sources in notebooks/ hold no outputs (jupytext percent format); what is written can be opened in Jupyter.
"""

import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

REPOSITORY = Path(__file__).resolve().parent.parent
NOTEBOOKS = REPOSITORY / "notebooks"


def execute(source: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs.

    Raises: nbclient.exceptions.CellExecutionError with the cell and its traceback.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # tqdm asks for Jupyter widgets, which a page without JavaScript could not show.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
    notebook = jupytext.read(source)
    NotebookClient(
        notebook,
        timeout=600,
        coalesce_streams=True,
        resources={"metadata": {"path": str(source.parent)}},
        # Pictures twice: PNG for Jupyter, SVG for pages that are read in a light and in a dark scheme.
        extra_arguments=["--InlineBackend.figure_formats=png", "--InlineBackend.figure_formats=svg"],
    ).execute()
    return notebook


def main(folder: Path) -> None:
    """Executes all notebooks in order; stops at the first that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(NOTEBOOKS.glob("*.py")):
        start = time.monotonic()
        nbformat.write(execute(source), folder / f"{source.stem}.ipynb")
        print(f"{source.stem}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "build" / "notebooks")

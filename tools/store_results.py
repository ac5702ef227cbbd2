"""Keeps every number of a finished run or study as a table in `docs/results/`, beside the figures and the pages that show them.

    python tools/store_results.py NAME RUN_DIR            # RUN_DIR/results.json → docs/results/NAME.csv
    python tools/store_results.py tables                  # docs/**/*.md: their tables made anew from the CSVs
    python tools/store_results.py tables --check          # only says which pages differ

Pages show a choice of numbers (`page_tables.py` says how a page asks for them); the CSVs have all that the reports are made of,
so that any cell can be looked up, and compared after a repetition. One line an entry of `results.json`, definitions left out (every `report.md` has them):

    name, protocol, split, value, low, high, std, n, seeds

`low` and `high` bound the 95 % interval, `std` is the deviation over seeds; empty where there is none. Numbers have seven
significant digits, so that what is rounded from them is what is rounded from the entries.
"""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from page_tables import write_tables
from rlhf_jax.evaluation.results import Result
from rlhf_jax.reporting.run_report import read_results
from rlhf_jax.runtime.files import write_text

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results"
COLUMNS = ("name", "protocol", "split", "value", "low", "high", "std", "n", "seeds")


def as_csv(results: Sequence[Result]) -> str:
    """The table, in the order of the entries."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for r in results:
        low, high = r.interval or (None, None)
        numbers = ("" if number is None else f"{number:.7g}" for number in (r.value, low, high, r.std))
        writer.writerow([r.name, r.protocol, r.split, *numbers, r.n, " ".join(map(str, r.seeds))])
    return text.getvalue()


def tables(*, check: bool) -> str:
    """Makes the pages' tables anew. Raises: SystemExit for a table that cannot be made; with `check` if a page differs."""
    try:
        changed = "\n".join(map(str, write_tables(FOLDER.parent, check=check)))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    if check and changed:
        raise SystemExit(f"error: tables differ from their CSVs (python tools/store_results.py tables):\n{changed}")
    return changed


def main(arguments: Sequence[str]) -> Path | str:
    """Writes a CSV, or the pages' tables. Raises: SystemExit for wrong arguments, or a folder without results."""
    if list(arguments) in (["tables"], ["tables", "--check"]):
        return tables(check="--check" in arguments)
    if len(arguments) != 2 or "/" in arguments[0]:
        raise SystemExit(__doc__)
    name, run_dir = arguments
    results = read_results(Path(run_dir))
    if not results:
        raise SystemExit(f"error: {run_dir} has no results.json with entries")
    file = FOLDER / f"{name}.csv"
    write_text(file, as_csv(results))
    return file


if __name__ == "__main__":
    print(main(sys.argv[1:]))

"""`docs/recommenders.md` says what its stored table says."""

import csv
import re
from pathlib import Path

NUMBER = r"[+\-−]?\d*\.?\d+"


def test_every_interval_stands_in_the_table(repository: Path) -> None:
    text = (repository / "docs" / "recommenders.md").read_text(encoding="utf-8")
    with (repository / "docs" / "results" / "closed_forms_redial.csv").open(encoding="utf-8") as file:
        stored = {
            (row["name"], row["protocol"]): [float(row[column]) for column in ("value", "low", "high")]
            for row in csv.DictReader(file)
        }
    metrics = ("hr@1", "hr@5", "hr@10", "hr@50", "ndcg@10", "mrr")
    lines = re.findall(r"(?m)^\| ([\w −]+) \|((?: [^|]* \[[^|]*\] \|){6})$", text)
    assert len(lines) == 17
    for system, cells in lines:
        name = system.replace(" − ", "-")
        for metric, cell in zip(metrics, cells.strip(" |").split("|"), strict=True):
            shown = [float(number.replace("−", "-")) for number in re.findall(NUMBER, cell)]
            expected = stored[f"{name}/{metric}", "fresh"]
            assert all(abs(a - b) <= 0.000501 for a, b in zip(shown, expected, strict=True)), (name, metric)

"""The page on details: its numbers are those of the stored file, and leaving a detail out does what it says."""

import csv
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

import details_that_matter as details

COURSE = Path(__file__).resolve().parents[2] / "docs" / "course"


@pytest.fixture(scope="module")
def stored() -> dict[tuple[str, str], list[float]]:
    """(detail, curve) → last values by seed."""
    found = defaultdict(list)
    with (COURSE / "details.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found[row["detail"], row["curve"]].append(float(row["last"]))
    return found


def test_the_stored_file_has_every_curve_and_three_seeds(stored) -> None:
    assert list(stored) == [(panel.title, label) for panel in details.PANELS for label in panel.curves]
    assert all(len(values) == 3 for values in stored.values())


def test_the_pages_table_is_the_stored_file(stored) -> None:
    page = (COURSE / "details.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\d)\. ", page, re.MULTILINE)
    assert headings == [panel.title[0] for panel in details.PANELS]
    rows = re.findall(r"^\| (\d) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5", "6", "6", "7", "8"]
    for number, what, *cells in rows:
        panel = details.PANELS[int(number) - 1]
        labels = list(panel.curves)
        pair = [labels[0], labels[-1]]
        if "unit" in what and number == "6":
            unit = "unit 10" if "unit 10" in what else "unit 0.1"
            pair = [f"on, {unit}", f"off, {unit}"]
        for label, cell in zip(pair, cells, strict=True):
            values = stored[panel.title, label]
            assert [float(x) for x in cell.split(" … ")] == [min(values), max(values)], f"row {number}, {label}"


def test_leaving_a_detail_out_does_what_the_page_says() -> None:
    """Forty updates, the same three seeds: every seed with the detail is on the right side of every seed without."""
    found = {
        panel.title[0]: curves[..., -1] for panel, curves in zip(details.PANELS, details.run(updates=40), strict=True)
    }
    for number, factor in (("1", 10), ("4", 50), ("5", 20), ("7", 20)):  # distances to π*
        on, *off = found[number]
        assert on.max() * factor < np.min(off), f"{number}: {found[number]}"
    on, off = found["3"]
    assert on.min() > 0.7 and off.max() < 0.25
    on_large, on_small, off_large, off_small = found["6"]
    np.testing.assert_allclose(on_large, on_small, rtol=1e-2)
    assert off_small.max() < 0.5 * on_small.min() and off_large.min() > 1.3 * on_large.max()
    on, off = found["8"]
    assert on.min() > -4.2 and off.max() < -7
    # The value clip only holds the critic back at first.
    early = details.run([details.PANELS[1]], updates=5)[0][..., -1]
    assert early[0].min() > 2 * early[1].max()
    assert np.abs(found["2"]).max() < 0.01

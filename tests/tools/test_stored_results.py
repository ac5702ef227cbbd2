"""`docs/RESULTS.md` says what the stored tables say: every value with an interval is looked up in its section's tables."""

import csv
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rlhf_jax.evaluation.results import Result
from rlhf_jax.reporting.run_report import write_results

NUMBER = r"[+\-−]?\d*\.?\d+"
CELL = re.compile(rf"({NUMBER})\*{{0,2}} \[({NUMBER}), ({NUMBER})\]")
"""A value with its interval, as `.052 [.045, .059]` or `**−.017** [−.026, −.010]`."""


@pytest.fixture(scope="module")
def docs(repository: Path) -> Path:
    return repository / "docs"


@pytest.fixture(scope="module")
def sections(docs: Path) -> dict[str, str]:
    """Heading to text, of the second level."""
    parts = re.split(r"(?m)^## ", (docs / "RESULTS.md").read_text(encoding="utf-8"))[1:]
    return {part.partition("\n")[0]: part for part in parts}


def read(files: list[Path]) -> list[tuple[float, float, float]]:
    rows = [row for file in files for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines())]
    return [(float(row["value"]), float(row["low"]), float(row["high"])) for row in rows if row["low"]]


def printed(text: str) -> tuple[float, float]:
    """A number and half a unit of its last digit, with a little for what lies on the edge."""
    text = text.replace("−", "-")
    return float(text), 0.501 * 10.0 ** -len(text.partition(".")[2])


def not_in(text: str, stored: list[tuple[float, float, float]]) -> list[str]:
    """Cells of a text that round no stored value; a difference may be told from its other end."""
    missing = []
    for cell in CELL.finditer(text):
        shown = [printed(number) for number in cell.groups()]
        turned = [(-value, near) for value, near in (shown[0], shown[2], shown[1])]
        if not any(
            all(abs(number - value) <= near for number, (value, near) in zip(row, wanted, strict=True))
            for row in stored
            for wanted in (shown, turned)
        ):
            missing.append(cell[0])
    return missing


def test_every_interval_stands_in_a_table(docs: Path, sections: dict[str, str]) -> None:
    everything = sorted((docs / "results").glob("*.csv"))
    checked = 0
    for title, text in sections.items():
        own = [docs / link for link in re.findall(r"\]\((results/\w+\.csv)\)", text)]
        assert own or title.startswith("The paper's claims"), f"{title}: no table is named"
        assert not_in(text, read(own or everything)) == [], title
        checked += len(CELL.findall(text))
    assert checked > 500


def test_the_check_finds_a_wrong_digit() -> None:
    stored = [(-0.01696, -0.0256, -0.0096)]
    assert not_in("**−.017** [−.026, −.010] ▼ or +.017 [.010, .026]", stored) == []
    assert not_in("−.017 [−.025, −.010]", stored) == ["−.017 [−.025, −.010]"]
    assert not_in("−.018 [−.026, −.010]", stored) == ["−.018 [−.026, −.010]"]
    assert not_in(".017 [−.026, −.010]", stored) == [".017 [−.026, −.010]"]


def test_figures_and_tables_are_all_there_and_all_used(docs: Path) -> None:
    text = "".join(file.read_text(encoding="utf-8") for file in docs.glob("*.md"))
    linked = set(re.findall(r"\]\(results/([\w.]+)\)", text))
    there = {file.name for file in (docs / "results").iterdir()}
    assert linked <= there
    # Every figure is there as PNG, which pages show, and as SVG.
    assert {name for name in there if not name.endswith(".svg")} <= linked
    assert {Path(name).stem for name in there if name.endswith(".svg")} == {
        Path(name).stem for name in there if name.endswith(".png")
    }


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("store_results", repository / "tools" / "store_results.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["store_results"] = module
    spec.loader.exec_module(module)
    return module


def test_a_run_becomes_a_table(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(tool, "FOLDER", tmp_path)
    entries = [
        Result("ppo-sft/hr@5", -0.0169563, 1230, "full", "a/test", (-0.0256, -0.0096), (0, 1, 2), "a", 0.0023),
        Result("copy/hr@5", 1 / 3, 3, "full", "a/test, b", None, (), "b"),
    ]
    write_results(tmp_path / "run", entries)
    assert tool.main(["name", str(tmp_path / "run")]) == tmp_path / "name.csv"
    assert (tmp_path / "name.csv").read_text().splitlines() == [
        "name,protocol,split,value,low,high,std,n,seeds",
        "ppo-sft/hr@5,full,a/test,-0.0169563,-0.0256,-0.0096,0.0023,1230,0 1 2",
        'copy/hr@5,full,"a/test, b",0.3333333,,,,3,',
    ]
    for wrong in (["name"], ["a/b", str(tmp_path / "run")], ["name", str(tmp_path / "nowhere")]):
        with pytest.raises(SystemExit):
            tool.main(wrong)

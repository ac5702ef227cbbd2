"""`docs/RESULTS.md` and `docs/results/*.md` say what the stored CSVs say, on pages of one form, and not more than fits a screen."""

import csv
import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

from rlhf_jax.evaluation.results import Result
from rlhf_jax.reporting.run_report import write_results

FRAME = ["Question", "Command", "Setup", "Result", "What it means", "What it does not mean"]
NUMBER = r"[+\-−]?\d*\.?\d+"
CELL = re.compile(rf"({NUMBER})\*{{0,2}} \[({NUMBER}), ({NUMBER})\]")
"""A value with its interval, as `.052 [.045, .059]` or `**−.017** [−.026, −.010]`."""


@pytest.fixture(scope="module")
def docs(repository: Path) -> Path:
    return repository / "docs"


@pytest.fixture(scope="module")
def questions(docs: Path) -> dict[str, str]:
    """The page of every question, by name."""
    return {page.name: page.read_text(encoding="utf-8") for page in sorted((docs / "results").glob("*.md"))}


@pytest.fixture
def tool(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repository / "tools"))
    return importlib.import_module("store_results")


@pytest.fixture
def tables(tool: ModuleType) -> ModuleType:
    return importlib.import_module("page_tables")


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


def prose(page: str, tables: ModuleType) -> str:
    """A page without the tables that are made from CSVs, which may break a line anywhere."""
    return re.sub(r"\s+", " ", tables.BLOCK.sub("", page))


def test_tables_are_what_the_csvs_say(docs: Path, tables: ModuleType) -> None:
    assert tables.write_tables(docs, check=True) == [], "python tools/store_results.py tables"
    assert sum(len(tables.BLOCK.findall(page.read_text(encoding="utf-8"))) for page in tables.pages(docs)) > 30


def test_every_interval_of_the_prose_stands_in_a_csv(
    docs: Path, repository: Path, questions: dict[str, str], tables: ModuleType
) -> None:
    checked = 0
    for name, page in questions.items():
        linked = re.findall(r"\]\((\w+\.csv)\)", page)
        own = {docs / "results" / file for file in linked}
        assert own, f"{name}: no CSV is named"
        assert set(re.findall(r"(?:from:|\| from) (\S+\.csv)", page)) <= set(linked), f"{name}: not all CSVs are linked"
        # What a page cites of another question is in that question's.
        cited = {
            file
            for other in re.findall(r"\]\((\w+\.md)", page)
            for file in re.findall(r"\]\((\w+\.csv)\)", questions[other])
        }
        text = prose(page, tables)
        assert not_in(text, read(sorted(own | {docs / "results" / file for file in cited}))) == [], name
        checked += len(CELL.findall(text))
    everything = read(sorted((docs / "results").glob("*.csv")))
    for page in (docs / "RESULTS.md", repository / "README.md"):
        assert not_in(prose(page.read_text(encoding="utf-8"), tables), everything) == [], page.name
    assert checked > 15


def test_the_check_finds_a_wrong_digit() -> None:
    stored = [(-0.01696, -0.0256, -0.0096)]
    assert not_in("**−.017** [−.026, −.010] ▼ or +.017 [.010, .026]", stored) == []
    assert not_in("−.017 [−.025, −.010]", stored) == ["−.017 [−.025, −.010]"]
    assert not_in("−.018 [−.026, −.010]", stored) == ["−.018 [−.026, −.010]"]
    assert not_in(".017 [−.026, −.010]", stored) == [".017 [−.026, −.010]"]


def test_every_page_has_the_frame(docs: Path, questions: dict[str, str], tables: ModuleType) -> None:
    for name, page in questions.items():
        headings = re.findall(r"(?m)^## (.+)$", page)
        assert headings in (FRAME, [*FRAME, "Earlier"]), name
        # Only tables that say what was run are typed; they have no heads.
        typed = [table.partition("\n")[0] for table in re.findall(r"(?m)(?:^\|.*\n)+", tables.BLOCK.sub("", page))]
        assert set(typed) == {"| | |"}, f"{name}: a table that is not made from a CSV"
        assert f"](results/{name})" in (docs / "RESULTS.md").read_text(encoding="utf-8"), f"{name} is not in RESULTS.md"


def test_answers_fit_a_screen(docs: Path, repository: Path) -> None:
    assert len((docs / "RESULTS.md").read_text(encoding="utf-8").splitlines()) <= 80
    assert len((repository / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_figures_and_csvs_are_all_there_and_all_used(docs: Path, repository: Path) -> None:
    linked = set[Path]()
    for page in (repository / "README.md", *docs.rglob("*.md")):
        for link in re.findall(r"\]\(([\w./]+\.(?:png|svg|csv))\)", page.read_text(encoding="utf-8")):
            if (file := (page.parent / link).resolve()).parent == docs / "results":
                linked.add(file)
    there = {file for file in (docs / "results").iterdir() if file.suffix != ".md"}
    assert linked <= there
    # Every figure is there as PNG, which pages show, and as SVG.
    assert {file for file in there if file.suffix != ".svg"} <= linked
    assert {file.stem for file in there if file.suffix == ".svg"} == {
        file.stem for file in there if file.suffix == ".png"
    }


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


CSV = """name,protocol,split,value,low,high,std,n,seeds
sft/hr@5,full,a/test,0.1171,0.107,0.127,0.01,4975,0 1 2
sft/hr@5,fresh,a/test,0.0991,0.09,0.109,0.01,4472,0 1 2
ppo-sft/hr@5,full,a/test,-0.0138,-0.019,-0.008,0.002,4975,0 1 2
ppo-sft/hr@5,fresh,a/test,-0.01,-0.015,-0.004,0.009,4472,0 1 2
copy/hr@5,full,a/test,nan,,,,4975,
"""
TABLE = """from: a.csv
measure: hr@5
corner: HR@5
column: `full` | protocol full
column: `fresh` | protocol fresh
column: what | is what
row: SFT | system sft | what imitation
row: PPO − SFT | system ppo-sft | show difference | what both
row: copy | system copy | what last mention | otherwise none
"""


def test_a_page_gets_its_tables(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "FOLDER", tmp_path / "results")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.csv").write_text(CSV)
    page = tmp_path / "page.md"
    page.write_text(f"before\n<!-- table\n{TABLE}-->\n| an old one |\n<!-- end of table -->\nafter\n")
    with pytest.raises(SystemExit, match="page.md"):
        tool.main(["tables", "--check"])
    assert "an old one" in page.read_text()
    assert tool.main(["tables"]) == str(page)
    assert page.read_text().partition("-->\n")[2] == (
        "| HR@5 | `full` | `fresh` | what |\n"
        "| --- | --- | --- | --- |\n"
        "| SFT | .117 [.107, .127] | .099 [.090, .109] | imitation |\n"
        "| PPO − SFT | **−.014** [−.019, −.008] ▼ | −.010 [−.015, −.004] ▽ | both |\n"
        "| copy | none | none | last mention |\n"
        "<!-- end of table -->\nafter\n"
    )
    assert tool.main(["tables", "--check"]) == ""


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("from: a.csv", "from: b.csv", "no file b.csv"),
        ("system ppo-sft", "system ppo-stf", "PPO − SFT × `full`: a.csv has no system 'ppo-stf'"),
        ("protocol fresh", "protocol frehs", "no protocol 'frehs'"),
        ("measure: hr@5", "measure: hr@6", "no measure 'hr@6'"),
        ("| protocol fresh", "", "2 such lines: sft/hr@5, fresh, a/test; sft/hr@5, full, a/test"),
        ("| protocol fresh", "| protocol fresh | digit 2", "`fresh`: no field is called digit"),
        ("show difference", "show mark interwal", "nothing can be shown as interwal"),
        (" | what both", "", "PPO − SFT: no field what"),
        ("corner: HR@5", "corner", "'corner': expected"),
    ],
)
def test_what_a_table_cannot_show_is_named(
    tables: ModuleType, tmp_path: Path, before: str, after: str, says: str
) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    assert before in TABLE
    with pytest.raises(ValueError, match=re.escape(says)):
        tables.render(TABLE.replace(before, after), tmp_path)


def test_a_row_without_a_number_and_a_table_without_an_end_are_errors(tables: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    with pytest.raises(ValueError, match="no number at all: row copy"):
        tables.render(TABLE.replace("column: `full` | protocol full\n", ""), tmp_path)
    with pytest.raises(ValueError, match="beginning or its end"):
        tables.rewrite(f"<!-- table\n{TABLE}-->\n", tmp_path)


@pytest.mark.parametrize(
    ("values", "against", "mark"),
    [
        ("0.1,0.05,0.2,0.01,9,0 1 2", 0, "▲"),
        ("0.1,0.05,0.2,0.08,9,0 1 2", 0, "△"),
        ("-0.1,-0.2,-0.05,0.01,9,0 1 2", 0, "▼"),
        ("0.1,0.05,0.2,0.01,9,0 1", 0, ""),
        ("0.1,-0.05,0.2,0.01,9,0 1 2", 0, ""),
        ("0.1,0.05,0.2,,9,0 1 2", 0, "△"),
        ("0.66,0.62,0.7,0.01,9,0 1 2", 0.6, "▲"),
        ("0.56,0.52,0.58,0.01,9,0 1 2", 0.6, "▼"),
    ],
)
def test_marks_are_those_of_the_decision(tables: ModuleType, values: str, against: float, mark: str) -> None:
    line = dict(zip(("value", "low", "high", "std", "n", "seeds"), values.split(","), strict=True))
    assert tables.marked(line, against) == mark

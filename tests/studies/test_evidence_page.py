"""Several studies on one page: verdicts, figures, what is missing."""

from pathlib import Path

from studies.evidence_page import Chapter, verdict_lines, write_evidence

REPORT = """# Reward

Some text.

- Verdict, world: higher, +0.1 [+0.05, +0.2].
> **Verdict:** no difference shown.
The verdict of others is not repeated.

## Numbers

| a | b |
|---|---|
| 1 | 2 |

![Curve](plots/curve.png) ([SVG](plots/curve.svg), [paper](https://arxiv.org/abs/2508.05289), [note](notes.md))

```
# a comment, no heading
```

## Provenance

secret

### Configuration

secret too

## After
"""


def test_verdicts_figures_and_tables_are_gathered(tmp_path: Path) -> None:
    study = tmp_path / "runs" / "reward"
    (study / "plots").mkdir(parents=True)
    (study / "report.md").write_text(REPORT)
    for name in ("curve.png", "curve.svg", "raw.csv"):
        (study / "plots" / name).write_text(name)
    chapters = [
        Chapter("reward-world", "python reward.py world", study, "done"),
        Chapter("hacking", "python hacking.py", tmp_path / "none", "failed, see its log"),
    ]
    folder = tmp_path / "evidence"
    folder.mkdir()
    page = write_evidence(folder, chapters, notes=["**redial is LEFT OUT.**"])
    text = page.read_text()
    assert "**redial is LEFT OUT.**" in text
    assert "| [reward-world](#reward-world) | done | `python reward.py world` |" in text
    top, _, rest = text.partition("## reward-world\n")
    assert "- Verdict, world: higher, +0.1 [+0.05, +0.2].\n- **Verdict:** no difference shown.\n" in top
    assert "The verdict of others" not in top and "**hacking** (failed, see its log)\n- no report yet" in top
    assert "### Numbers" in rest and "| 1 | 2 |" in rest and "# a comment, no heading" in rest and "### After" in rest
    assert "![Curve](figures/reward-world/curve.png) ([SVG](figures/reward-world/curve.svg)" in rest
    assert "(https://arxiv.org/abs/2508.05289)" in rest and "(notes.md)" in rest
    assert "secret" not in text and "# Reward\n" not in text
    assert "## hacking\n\nNo report: failed, see its log." in rest
    copied = sorted(path.name for path in (folder / "figures" / "reward-world").iterdir())
    assert copied == ["curve.png", "curve.svg"]


def test_a_report_without_verdict_says_so(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("# A\n\nNothing.\n")
    (tmp_path / "all").mkdir()
    page = write_evidence(tmp_path / "all", [Chapter("a", "python a.py", tmp_path, "done")])
    assert "**a** (done)\n- its report states no verdict" in page.read_text()
    assert verdict_lines("# A\n\nNothing.\n") == []

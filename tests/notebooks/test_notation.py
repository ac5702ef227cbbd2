"""One meaning each: letters that once had two are written in one way in lessons, derivations and box."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted((REPOSITORY / "notebooks").glob("*.py")),
    *sorted((REPOSITORY / "docs" / "course").glob("*.md")),
    *sorted((REPOSITORY / "docs" / "algorithms").glob("*.md")),
    *sorted((REPOSITORY / "rlhf_jax" / "equations").glob("[a-z]*.py")),
]
WRONG = {
    "the vocabulary's size is |𝒱|; V is a value": r"log V\b|size \$V\$",
    "the return is G; R is the reward model": r"R_\{|R_t\b|R_b\b|R = [Ar]\b|V\)? ?[−-] R\b|\) ?[−-] R\)",
    "chosen and rejected are + and −; w weighs components, l is a logit": r"(?:y|s|r)_(?:w|l)\b|w \\succ l",
    "a sum over later tokens has another index; l is a logit": r"_\{l=|\\sum_\{l\b|gamma\^l\b",
}


def prose(page: Path) -> str:
    """Markdown cells of a notebook, docstrings of equations, or the whole page."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        return text
    if page.parent.name == "equations":
        return "\n".join(
            ast.get_docstring(node) or ""
            for node in ast.walk(ast.parse(text))
            if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
        )
    return "\n".join(cell for cell in text.split("\n# %%") if cell.startswith(" [markdown]"))


@pytest.mark.parametrize("reason", WRONG)
def test_no_second_meaning(reason: str) -> None:
    assert len(PAGES) > 10
    found = [
        f"{page.name}: {line.strip()}"
        for page in PAGES
        for line in prose(page).splitlines()
        if re.search(WRONG[reason], line)
    ]
    assert not found, f"{reason}: {found}"


@pytest.mark.parametrize(
    ("page", "written"),
    [
        ("01_logprobs.py", r"|\mathcal{V}|"),
        ("04_gae.py", "$G_t = A_t + V_t$"),
        ("05_ppo_clip.py", r"G = A + V_\text{old}"),
        ("06_reward_model.py", r"\sigma(s_+ - s_-)"),
        ("derivations.md", r"\sigma(s_+ - s_-)"),
        ("ppo.md", "G_t = A_t + V_t"),
    ],
)
def test_the_one_meaning_is_where_it_is_introduced_and_in_the_table(page: str, written: str) -> None:
    assert written in next(prose(path) for path in PAGES if path.name == page)


def test_the_table_names_them() -> None:
    table = (REPOSITORY / "docs" / "index.md").read_text(encoding="utf-8").split("### Notation")[1].split("\n## ")[0]
    for symbol in (r"\|𝒱\|", "G_t = A_t + V_t", "y₊, y₋", "| s, w |", "| l, "):
        assert symbol in table

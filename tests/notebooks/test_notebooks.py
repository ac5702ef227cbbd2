"""Every notebook runs from its first cell to its last; their asserts are the tests.

As plain Python here, which is fast; `make notebooks` runs them in a Jupyter kernel each. Exercises that are filled in are tried
with their solutions and with wrong ones (`run_lesson.py`).
"""

import ast
import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ppo_redial
import store_lesson
from rlhf_jax import lessons

# Those that train, ten seconds or more each.
LONG = ("07", "08", "09", "10", "11", "13", "14")
NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.py"))
DRIVER = Path(__file__).resolve().parent / "run_lesson.py"
MISTAKES = {
    "01": [
        ("logprob_under_rule", "row, -np.inf)", "row, 0.0)"),
        ("logprob_under_rule", "np.exp(possible)", "np.exp(row)"),
    ],
    "02": [("best_c", "-(pi @", "(pi @"), ("best_c", "d * z", "z * z")],
    "03": [("updates_needed", "error, -0.2, 0.2", "error, -1.0, 1.0"), ("updates_needed", "* n_responses", "* 512")],
    "04": [("mean_of_steps", "    weights[-1] = gae_lambda ** (n - 1)\n", ""), ("mean_of_steps", "+ values[k]", "")],
    "05": [
        ("slope", "if advantage > 0 else ratio < 1 - clip_eps", "or ratio < 1 - clip_eps"),
        ("slope", "-advantage * ratio", "-advantage"),
        ("dual_clipped", "if advantage < 0 else loss", ""),
        ("dual_clipped", "loss = max(", "loss = min("),
    ],
    "06": [
        ("error_of_known", "known.sum()", "known.size"),
        ("error_of_known", "np.where(known, predicted - labels, 0.0)", "(predicted - labels) * known"),
    ],
    "07": [("above_the_others", "(scores.sum() - scores) / (len(scores) - 1)", "scores.mean()")],
    "08": [("best_objective", "-PENALTY", "0.0"), ("best_objective", "kl_coef * np.log", "np.log")],
    "09": [
        ("warns_at", "1.25", "9.0"),
        ("warns_at", "1.25", "0.5"),
        ("advantages_at", "values[1:], 0.0", "values[1:], 1.0"),
    ],
    "10": [("rloo_from_mean", "len(paid) / (len(paid) - 1) * ", "")],
    "11": [("resting_margin", " / beta", ""), ("resting_margin", "(1 - wrong) / wrong", "wrong / (1 - wrong)")],
    "12": [("tipping_gamma", "told / q", "told"), ("tipping_gamma", "told / q", "told * q")],
    "14": [("enough", "max(0.0, *(rate - gap / more))", "min(rate - gap / more)"), ("enough", "rate - gap", "gap")],
}
"""Lesson → mistakes in what an exercise asks for: function, place in its solution, what is written there instead."""


@pytest.mark.parametrize(
    "notebook",
    [
        pytest.param(path, marks=pytest.mark.slow if path.stem.startswith(LONG) else (), id=path.stem)
        for path in NOTEBOOKS
    ],
)
def test_runs_from_the_first_cell_to_the_last(notebook: Path, tmp_path: Path) -> None:
    environment = os.environ | {"MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(notebook.parents[1])}
    mistakes = MISTAKES.get(notebook.stem[:2], [])
    # Elsewhere than in the checkout: a notebook must not depend on where it is started, nor leave anything behind.
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(notebook), json.dumps(mistakes)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    # Every function that is to be filled in was there, unsolved and solved, and its asserts saw every wrong answer.
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told) == {name for name, *_ in mistakes}
    assert sum(told.values()) == len(mistakes) + len(told)
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


@pytest.mark.parametrize("lesson", ["07_ppo_on_a_bandit", "08_three_token_language"])
def test_shapes_stand_in_a_table_before_they_are_used(repository: Path, lesson: str) -> None:
    text = (repository / "notebooks" / f"{lesson}.py").read_text(encoding="utf-8")
    table = text.index("# | array | shape | what it holds |")
    assert table < text.index("def sample(")
    rows = text[table:].split("\n#\n")[0]
    for name in ("logprobs", "entropy", "values", "advantages", "returns", "finished", "mask"):
        assert f"`{name}`" in rows or f"_{name}`" in rows or name in rows, name
    assert rows.count("[B, T]") >= 3


def test_the_stored_runs_of_the_finale_are_those_of_the_presets(repository: Path) -> None:
    """Made by the command that stands in the lesson, of presets as they are now; small, and all that the lesson asks for."""
    stored = lessons.stored_runs(9)
    file = lessons.STORED / "lesson_9.json"
    assert file.stat().st_size < 400_000
    text = (repository / "notebooks" / "09_the_real_thing.py").read_text(encoding="utf-8")
    assert list(stored) == ["demo", "hackable"]
    for name, run in stored.items():
        assert f"#     python experiments/ppo_redial.py {name}\n" in text
        preset = ppo_redial.PRESETS[name][1]
        for part, fields in run["setup"].items():
            if part == "seed":
                assert fields == preset.seed
                continue
            now = json.loads(json.dumps(dataclasses.asdict(getattr(preset, part))))
            assert fields == {field: now[field] for field in fields}, (
                "python tools/store_lesson.py: the preset has changed"
            )
        updates = preset.align.updates
        assert {len(values) for values in run["updates"].values()} == {updates}
        seen = run["evaluations"]
        assert seen["update"][0] == 0 and seen["update"][-1] == updates == 8 * (len(seen["truth"]) - 1)
        assert set(run["difference"]) == {"mean_utility", "proxy_score"}
        assert len(run["replies"]) == store_lesson.PROMPTS == 24
        for asked in run["replies"]:
            assert asked["prompt"][-1][0] == "seeker" and asked["person"]
            for when in ("before", "after"):
                check_reply(asked[when], run["setup"])
    assert "python tools/store_lesson.py runs/demo runs/hackable\n" in text


def check_reply(reply: dict, setup: dict) -> None:
    """Lines 5 and 6 in a NumPy loop give the stored rewards and advantages."""
    columns = ("logprob", "ref_logprob", "reward", "value", "advantage")
    logprob, ref_logprob, reward, value, advantage = (np.array(reply[name]) for name in columns)
    n = len(reply["tokens"])
    assert 0 < n <= setup["data"]["response_tokens"] and all(len(reply[name]) == n for name in columns)
    assert (reply["tokens"][-1] == " <eos>") == reply["finished"]
    weights = setup["ppo"]["component_weights"]
    assert reply["proxy"] == pytest.approx(float(np.dot(weights, reply["components"])), abs=1e-4)
    np.testing.assert_allclose(reward[:-1], -setup["ppo"]["kl_coef"] * (logprob - ref_logprob)[:-1], atol=1e-5)
    later, next_value = 0.0, 0.0
    for t in reversed(range(n)):
        later = reward[t] + next_value - value[t] + setup["ppo"]["gae_lambda"] * later
        next_value = value[t]
        assert advantage[t] == pytest.approx(later, abs=1e-4)

"""The preset `debug` on a small folder in OpenDialKG's processed format, from data to report."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_jax.reporting.run_report import read_results
from rlhf_jax.runtime.files import write_json

TITLES = [
    f"{colour} {thing}" for colour in ("Red", "Blue", "Green", "Silver") for thing in ("Harbour", "Comet", "Song")
]
MOODS = ("great, thanks!", "I hated that one", "maybe, what else?", "perfect, I will take it")


def write_folder(folder: Path, n: int = 60) -> Path:
    """Movie and book dialogues in turn; everyone asks for something like a title and gets two suggestions."""
    folder.mkdir()
    lines = []
    for number in range(n):
        liked, first, second = (TITLES[(number * step + number // 3) % len(TITLES)] for step in (1, 5, 7))
        said = [
            ("user", f"I liked {liked}, anything like it?", [liked]),
            ("assistant", f"You may like {first}", [first]),
            ("user", MOODS[number % 4], []),
            ("assistant", f"There is also {second}", [second]),
            ("user", MOODS[(number + 1) % 4], []),
        ]
        messages = [{"role": role, "text": text, "item": items} for role, text, items in said]
        lines.append(json.dumps({"dialog_id": number, "domain": ("movie", "book")[number % 2], "messages": messages}))
    (folder / "dialogues.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    info = {str(number): {"name": title, "genre": ["drama"]} for number, title in enumerate(TITLES)}
    (folder / "id2info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_debug_runs_from_data_to_report(run_here: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    folder, run = write_folder(tmp_path / "data"), tmp_path / "run"
    code, output = run_here("ppo_opendialkg.py", "debug", "--data.dir", str(folder), "--run-dir", str(run))
    assert code == 0, output
    assert f"report: {run / 'report.md'}" in output
    results = read_results(run)
    assert {"popularity", "copy", "mixture", "sft", "ppo", "ppo-sft", "reward_model"} <= {
        result.system for result in results
    }
    assert all(math.isfinite(result.value) and result.split.startswith("opendialkg/") for result in results)
    # Everyone names a title and gets others: most suggestions are new words to the context, some repeat its title.
    cases = {result.protocol: result.n for result in results if result.system == "ppo" and result.metric == "hr@5"}
    named = {protocol: n for protocol, n in cases.items() if protocol.startswith("fresh, ")}
    assert "fresh, nothing named" in named and sum(named.values()) == cases["fresh"]
    stored = json.loads((run / "config.json").read_text())["data"]
    assert (stored["n_movie_dialogues"], stored["n_book_dialogues"]) == (30, 30)
    assert "split by dialogue" in (run / "report.md").read_text()

    gathered = tmp_path / "summary"
    shutil.copytree(run, tmp_path / "other")
    config = json.loads((run / "config.json").read_text())
    config["config"]["seed"] = 1
    write_json(tmp_path / "other" / "config.json", config)
    code, output = run_here("gather_seeds.py", str(gathered), f"both={run},{tmp_path / 'other'}")
    assert code == 0, output
    over_seeds = {r.protocol: r for r in read_results(gathered) if r.system == "ppo" and r.metric == "hr@5"}
    assert {p: r.n for p, r in over_seeds.items() if p.startswith("fresh, ")} == named


def test_mistakes_are_one_line(run_here: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    script = "ppo_opendialkg.py"
    code, output = run_here(script, "--data.dir", str(tmp_path / "nowhere"), "--run-dir", str(tmp_path / "run"))
    assert code == 1 and f"--data.dir {tmp_path / 'nowhere'}: " in output and "Traceback" not in output
    folder = write_folder(tmp_path / "data")
    lines = (folder / "dialogues.jsonl").read_text().splitlines()
    lines[4] = lines[4].replace('"role": "user"', '"role": "judge"', 1)
    (folder / "dialogues.jsonl").write_text("\n".join(lines))
    code, output = run_here(script, "--data.dir", str(folder), "--run-dir", str(tmp_path / "run"))
    assert code == 1 and "line 5: field 'messages[0].role' is 'judge'" in output and "Traceback" not in output

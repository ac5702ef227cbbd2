"""Is a run that is killed at random moments, and started again until it is done, bit for bit the run nobody disturbed?

    python tools/kill_and_resume.py --kills 20
    python tools/kill_and_resume.py --kills 10 --script dpo4rec_movielens.py

Runs the preset `debug` of a script of `experiments/` once undisturbed, then once with SIGKILLs at random moments over
all its stages. A kill that comes too late, after the end, costs another run from the beginning, so that as many kills
as asked for hit a run at work. Compares, for every stage, all arrays of its final checkpoint (parameters, optimiser,
keys, normalisers), and results, samples and texts byte by byte. Exit code 1 where anything differs.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from fingerprint import fingerprint
from rlhf_jax.runtime.metrics import read_metrics
from rlhf_jax.runtime.stage import stage_arrays

FILES = ("results.json", "samples.json", "samples.jsonl", "texts-*.json")
"""Compared byte by byte, wherever in a run they are."""
EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"


class Kill(NamedTuple):
    """One row of the table."""

    run: int
    seconds: float
    found: str


def start(folder: Path, options: list[str]) -> "subprocess.Popen[bytes]":
    """The run as a process; its output goes to a file beside the directory. `options`: the script's name first."""
    script, *rest = options
    command = [sys.executable, str(EXPERIMENTS / script), "debug", "--run-dir", str(folder), *rest]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(EXPERIMENTS.parent), os.environ.get("PYTHONPATH", "")])
    }
    with open(folder.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def finish(folder: Path, options: list[str]) -> float:
    """Runs to the end; returns the seconds it took."""
    begun = time.monotonic()
    code = start(folder, options).wait()
    if code != 0:
        sys.exit(f"{folder} ended with exit code {code}; its output is in {folder.with_suffix('.log')}")
    return time.monotonic() - begun


def stages(folder: Path) -> list[tuple[Path, str]]:
    """Folder and name of every stage of a run, in the order in which they began; seeds may have folders of their own."""
    found = [(path.parent.parent, path.name) for path in folder.glob("**/checkpoints/*") if path.is_dir()]
    order = {
        parent: list(dict.fromkeys(entry["stage"] for entry in read_metrics(parent / "metrics.jsonl")))
        for parent in {parent for parent, _ in found}
    }
    # A stage that was killed before its first line is the newest.
    return sorted(found, key=lambda one: (one[0], [*order[one[0]], one[1]].index(one[1])))


def reached(folder: Path) -> str:
    """How far a killed run had come."""
    if (folder / "assessments").is_dir():
        return "evaluation"
    found = stages(folder)
    if not found:
        return "data" if folder.is_dir() else "start"
    own, stage = found[-1]
    done = (own / "checkpoints" / stage / "done.json").exists()
    steps = [entry["step"] for entry in read_metrics(own / "metrics.jsonl") if entry["stage"] == stage]
    return f"after {stage}" if done else f"{stage}, step {max(steps, default=0)}"


def disturb(folder: Path, options: list[str], n_kills: int, longest: float, draw: random.Random) -> list[Kill]:
    """Kills until `n_kills` have hit; a run that ends before its kill is compared by the caller's next one."""
    kills: list[Kill] = []
    attempt = 1
    while len(kills) < n_kills:
        path = folder / f"killed-{attempt}"
        # Each start gets a moment of its own; whole runs' lengths let kills fall into every stage.
        process, moment, begun = start(path, options), draw.uniform(0.0, longest), time.monotonic()
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills.append(Kill(attempt, moment, reached(path)))
            print(f"kill {len(kills):3}  run {attempt}  after {moment:6.1f} s  in {kills[-1].found}", flush=True)
            continue
        if process.returncode != 0:
            sys.exit(f"{path} ended with exit code {process.returncode}; see {path.with_suffix('.log')}")
        # Compiled programs are kept, and the machine may be less busy now: later moments would be missed for ever.
        longest = min(longest, time.monotonic() - begun)
        attempt += 1
    if (folder / f"killed-{attempt}").exists():
        finish(folder / f"killed-{attempt}", options)
    return kills


def compare(undisturbed: Path, killed: Path) -> list[tuple[str, str, str, bool]]:
    """(what, fingerprint of the one, of the other, equal)."""
    rows = []
    for own, stage in stages(undisturbed):
        other = killed / own.relative_to(undisturbed)
        pair = [fingerprint(stage_arrays(parent, stage))[:16] for parent in (own, other)]
        rows.append((f"checkpoint of {stage}", *pair, pair[0] == pair[1]))
    for path in sorted(path for name in FILES for path in undisturbed.rglob(name)):
        name = path.relative_to(undisturbed)
        pair = [file.read_bytes() if file.exists() else b"" for file in (path, killed / name)]
        rows.append((str(name), *(fingerprint({"bytes": bytes_})[:16] for bytes_ in pair), pair[0] == pair[1]))
    return rows


def main() -> int:
    """The whole comparison; returns how many differences there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many kills must hit")
    parser.add_argument("--folder", type=Path, help="where runs go, new or empty; default is a temporary folder")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--script", default="ppo_redial.py", help="a script of experiments/ with the preset debug")
    parser.add_argument("options", nargs="*", help="further options of the experiment, after --")
    arguments = parser.parse_args()
    if arguments.folder is not None and arguments.folder.exists() and any(arguments.folder.iterdir()):
        parser.error(f"--folder {arguments.folder} is not empty")
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="kill_and_resume-"))
    folder.mkdir(parents=True, exist_ok=True)
    options = [arguments.script, *arguments.options]
    seconds = finish(folder / "undisturbed", options)
    print(f"undisturbed: {seconds:.0f} s", flush=True)
    disturb(folder, options, arguments.kills, seconds, random.Random(arguments.seed))
    differences = 0
    for killed in sorted(path for path in folder.glob("killed-*") if path.is_dir()):
        print(f"\n{killed.name} against undisturbed")
        for what, one, other, equal in compare(folder / "undisturbed", killed):
            print(f"  {what:45} {one}  {other}  {'equal' if equal else 'DIFFERENT'}")
            differences += not equal
    print(f"\n{arguments.kills} kills, {differences} differences")
    if arguments.folder is None and differences == 0:
        shutil.rmtree(folder)
    return differences


if __name__ == "__main__":
    sys.exit(1 if main() else 0)

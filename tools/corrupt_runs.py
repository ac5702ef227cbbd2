"""Is a damaged run directory ever read as if nothing had happened?

    python tools/corrupt_runs.py --mutations 500

Makes the preset `debug` of `experiments/ppo_redial.py` once (or takes `--run`, one of these that is finished), damages one
file in each of many copies, and lets everything that reads a run read the copy: what a report is made of, `chat.py`,
`gather_seeds.py`, and the same command again, which continues it. In every second copy the last stage and the evaluation
are open, so that checkpoints are continued. What was damaged is drawn with the seed: a flipped bit, a cut end, a deleted
file, two files exchanged, a folder in its place; in text a line removed or doubled; in JSON a value replaced, with the
file's checksum taken out, as an older version would have written it.

Outcomes, the worst of all readers counts: `same` (all numbers are those of the undamaged run, bit for bit), `told` (a notice
said what was lost or made again), `refused` (an error in one line), and the three that must not be: `SILENT` (other numbers
without a word), `TRACEBACK`, `HANG`. A value that was replaced on purpose may give other numbers: `edited`. Pictures are not
drawn. The table goes to `docs/corrupted_runs.md` with `--table`. Exit code 1 where one of the three occurred.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "experiments")]

import gather_seeds
import ppo_redial
from fingerprint import fingerprint
from page_parts import replace_part
from rlhf_jax.assessment.finished_run import open_finished, stage_policy
from rlhf_jax.reporting import plots
from rlhf_jax.reporting.run_report import read_results, read_samples
from rlhf_jax.runtime.metrics import read_metrics
from rlhf_jax.runtime.stage import stage_arrays

STAGES = ("sft", "reward_model", "ppo")
TABLE = REPOSITORY / "docs" / "corrupted_runs.md"
LIMIT_SECONDS = 240
KINDS: Mapping[str, tuple[str, ...]] = {
    "config.json": ("config.json",),
    "metrics.jsonl": ("metrics.jsonl",),
    "results, samples": ("results.json", "samples.json", "checksums.json"),
    "checkpoint: arrays": ("checkpoints/*/*/state/**/*",),
    "checkpoint: description": (
        "checkpoints/*/*.json",
        "checkpoints/*/*/*.json",
        "reward_model.json",
        "reward_choice.json",
    ),
    "labels": ("labels/*",),
    "assessments": ("assessments/*",),
    "vocabulary": ("vocabulary/*",),
    "data": ("data/**/*",),
    "for people": ("report.md", "plots/*", "tensorboard/**/*", "lock"),
}
"""Kind of file to the patterns of its files."""
ORDER = ("same", "told", "edited", "refused", "SILENT", "TRACEBACK", "HANG")
"""Outcomes from the best to the worst."""
GARBAGE: tuple[Any, ...] = (None, -1, 10**30, 0.5, "x", "", True, [], {}, [None])


class Mutation(NamedTuple):
    """What was done to one copy."""

    kind: str
    what: str
    file: str
    open_end: bool


class Hang(BaseException):
    """A reader took too long."""


def files_of(run: Path, kind: str) -> list[Path]:
    """The files of a kind, in a fixed order."""
    return sorted({file for pattern in KINDS[kind] for file in run.glob(pattern) if file.is_file()})


def mutate(run: Path, kind: str, draw: random.Random, open_end: bool) -> Mutation:
    """Damages one file of a kind."""
    found = files_of(run, kind)
    file = draw.choice(found)
    ways: list[Callable[[Path, random.Random], bool]] = [flip_bit, flip_bit, truncate, delete, put_folder]
    if file.suffix in (".json", ".jsonl", ".tsv", ".csv", ".md"):
        ways += [remove_line, double_line]
    if file.suffix == ".json":
        ways += [replace_value, replace_value]
    alike = [other for other in found if other != file and other.suffix == file.suffix]
    while True:
        way = draw.choice([*ways, exchange] if alike else ways)
        done = exchange(file, draw.choice(alike)) if way is exchange else way(file, draw)
        if done:
            return Mutation(kind, way.__name__.replace("_", " "), str(file.relative_to(run)), open_end)


def flip_bit(file: Path, draw: random.Random) -> bool:
    """One bit anywhere."""
    content = bytearray(file.read_bytes())
    if not content:
        return False
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    return True


def truncate(file: Path, draw: random.Random) -> bool:
    """Keeps a beginning."""
    size = file.stat().st_size
    if size:
        os.truncate(file, draw.randrange(size))
    return size > 0


def delete(file: Path, draw: random.Random) -> bool:
    """The file is gone."""
    del draw
    file.unlink()
    return True


def put_folder(file: Path, draw: random.Random) -> bool:
    """A folder of the file's name."""
    del draw
    file.unlink()
    file.mkdir()
    return True


def exchange(file: Path, other: Path) -> bool:
    """Two files of a kind change places."""
    mine, theirs = file.read_bytes(), other.read_bytes()
    file.write_bytes(theirs)
    other.write_bytes(mine)
    return mine != theirs


def remove_line(file: Path, draw: random.Random) -> bool:
    """One line less."""
    lines = file.read_bytes().splitlines(keepends=True)
    if lines:
        del lines[draw.randrange(len(lines))]
        file.write_bytes(b"".join(lines))
    return bool(lines)


def double_line(file: Path, draw: random.Random) -> bool:
    """One line twice."""
    lines = file.read_bytes().splitlines(keepends=True)
    if lines:
        at = draw.randrange(len(lines))
        file.write_bytes(b"".join([*lines[: at + 1], *lines[at:]]))
    return bool(lines)


def replace_value(file: Path, draw: random.Random) -> bool:
    """One value of a JSON file is garbage, and no checksum says so."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False
    if isinstance(value, dict):
        value.pop("crc32", None)
    else:
        (file.parent / "checksums.json").unlink(missing_ok=True)
    places: list[tuple[Any, Any]] = []

    def visit(inside: Any) -> None:
        for key in inside if isinstance(inside, dict) else range(len(inside)):
            places.append((inside, key))
            if isinstance(inside[key], dict | list):
                visit(inside[key])

    visit(value)
    if not places:
        return False
    inside, key = draw.choice(places)
    inside[key] = draw.choice(GARBAGE)
    file.write_text(json.dumps(value), encoding="utf-8")
    return True


def leave_open(run: Path) -> None:
    """As if the run had been killed before its last stage was done."""
    (run / "checkpoints" / "ppo" / "done.json").unlink()
    for name in ("results.json", "samples.json", "checksums.json", "report.md", "assessments/ppo.npz"):
        (run / name).unlink(missing_ok=True)


def of_report(run: Path, scratch: Path) -> Any:
    """What a report is made of; without one of the files `gather_seeds.py` refuses, and `resume` makes them again."""
    del scratch
    for name in ("results.json", "samples.json", "metrics.jsonl"):
        (run / name).stat()
    lines = [{name: v for name, v in line.items() if name != "seconds_per_update"} for line in logged(run)]
    return [result.to_json() for result in read_results(run)], [str(one) for one in read_samples(run)], lines


def logged(run: Path) -> list[dict[str, Any]]:
    """The metrics, whatever is there."""
    return read_metrics(run / "metrics.jsonl")


def of_chat(run: Path, scratch: Path) -> Any:
    """What `chat.py` loads before the first word."""
    del scratch
    finished = open_finished(run)
    policies = {stage: fingerprint(stage_policy(finished, stage)) for stage in finished.stages}
    agent = finished.agent
    return policies, finished.vocab.item_ids, finished.vocab.tokenizer_json, str(agent.network), repr(finished.data)


def of_gather(run: Path, scratch: Path) -> Any:
    """The results that `gather_seeds.py` makes."""
    out = scratch / "gathered"
    shutil.rmtree(out, ignore_errors=True)
    gather_seeds.main(gather_seeds.Config(out, (f"one={run}",)))
    return (out / "results.json").read_bytes()


def of_resume(run: Path, scratch: Path) -> Any:
    """What the same command makes of the run in the end."""
    del scratch
    ppo_redial.main(ppo_redial.command_line(["debug", "--run-dir", str(run)]))
    stages = {stage: fingerprint(stage_arrays(run, stage)) for stage in STAGES}
    lines = [{name: v for name, v in line.items() if name != "seconds_per_update"} for line in logged(run)]
    return stages, (run / "results.json").read_bytes(), (run / "samples.json").read_bytes(), lines


READERS: Mapping[str, Callable[[Path, Path], Any]] = {
    "report": of_report,
    "chat": of_chat,
    "gather": of_gather,
    "resume": of_resume,
}
"""In this order, because the last one writes."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raises Hang after LIMIT_SECONDS."""

    def ring(number: int, frame: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def outcome(
    read: Callable[[Path, Path], Any], run: Path, scratch: Path, expected: Any, edited: bool
) -> tuple[str, str]:
    """One reader's outcome, and what it said."""
    said = io.StringIO()
    try:
        with limited(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            found = read(run, scratch)
    except Hang:
        return "HANG", said.getvalue()[-500:]
    except (ValueError, OSError) as error:  # What `command_line.start` shows in one line.
        return "refused", str(error)
    except SystemExit as error:
        return "refused", str(error)
    except Exception:  # noqa: BLE001 - whatever it is, the user would see a traceback
        return "TRACEBACK", traceback.format_exc()[-1500:]
    if found == expected:
        return "same", ""
    words = ("again", "cannot be read", "has lost", "is left out", "differs", "any more")
    notices = [line for line in said.getvalue().splitlines() if any(word in line for word in words)]
    if notices:
        return "told", notices[-1]
    return ("edited" if edited else "SILENT"), "other numbers"


def examine(
    base: Path, number: int, seed: int, expected: Mapping[str, Any], scratch: Path
) -> tuple[Mutation, str, str]:
    """One damaged copy read by all; the mutation, the worst outcome, and its words."""
    draw = random.Random(f"{seed}/{number}")
    copy = scratch / base.name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(base, copy)
    open_end = number % 2 == 1
    if open_end:
        leave_open(copy)
    kinds = [kind for kind in KINDS if files_of(copy, kind)]
    mutation = mutate(copy, kinds[number // 2 % len(kinds)], draw, open_end)
    readers = ["resume"] if open_end else list(READERS)
    edited = mutation.what == "replace value"
    found = [(*outcome(READERS[name], copy, scratch, expected[name], edited), name) for name in readers]
    worst, words, name = max(found, key=lambda one: ORDER.index(one[0]))
    return mutation, worst, f"{name}: {words}"


def table(counted: Mapping[tuple[str, str], int], seed: int) -> str:
    """What was asked, and outcomes by kind of file."""
    total = sum(counted.values())
    return "\n".join(
        [
            f"`python tools/corrupt_runs.py --mutations {total} --seed {seed} --table`",
            "",
            f"| file | {' | '.join(ORDER)} |",
            "|---|" + "--:|" * len(ORDER),
            *(
                f"| {kind} | " + " | ".join(str(counted.get((kind, name), 0)) for name in ORDER) + " |"
                for kind in KINDS
            ),
            "| **all** | "
            + " | ".join(str(sum(n for (_, found), n in counted.items() if found == name)) for name in ORDER)
            + " |",
        ]
    )


def main() -> int:
    """The whole examination; 1 where a traceback, a silent difference or a hang occurred."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=500, help="how many copies are damaged")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them, to repeat one")
    parser.add_argument("--seed", type=int, default=0, help="of what is damaged")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further copy after this time")
    parser.add_argument("--run", type=Path, help="a finished run of the preset `debug`; default makes one")
    parser.add_argument("--table", action="store_true", help=f"write {TABLE.relative_to(REPOSITORY)}")
    arguments = parser.parse_args()
    plots.save = lambda figure, folder, name: folder / f"{name}.png"
    bad, counted, begun = 0, Counter[tuple[str, str]](), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="corrupt_runs-") as folder:
        scratch = Path(folder)
        base = scratch / "base" / "run"
        if arguments.run is not None:
            shutil.copytree(arguments.run, base)
        ppo_redial.main(ppo_redial.command_line(["debug", "--run-dir", str(base)]))
        expected = {name: read(base, scratch) for name, read in READERS.items()}
        for number in range(arguments.first, arguments.first + arguments.mutations):
            if time.monotonic() - begun > arguments.seconds:
                break
            mutation, worst, words = examine(base, number, arguments.seed, expected, scratch)
            counted[mutation.kind, worst] += 1
            bad += worst in ("SILENT", "TRACEBACK", "HANG")
            print(
                f"{number:4} {worst:9} {mutation.what}, {mutation.file}{', open' * mutation.open_end} | {words}",
                flush=True,
            )
    text = table(counted, arguments.seed)
    print(text)
    if arguments.table:
        replace_part(TABLE, "runs", text)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())

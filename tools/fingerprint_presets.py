"""Does a change of the code leave every number as it was? One fingerprint of what all `debug` presets make.

    python tools/fingerprint_presets.py before.json --data-dir DIR            # in the tree before the change
    python tools/fingerprint_presets.py after.json --against before.json --data-dir DIR   # in the tree after it

Runs the preset `debug` of every experiment, and `--help` of every script, and writes one line per thing to a JSON file:
every array of every checkpoint, every array of every `.npz`, the bytes of every `.csv` and of `results.json`, every
value of other JSON files that is not a time, a path or a version, the names of all files, exit codes and help texts.
`--against` prints what differs and exits with 1 where anything does. DIR holds `redial/`, `opendialkg/`, `uss/` and
`crs-response-ratings/`.
Both must be made with the same number of cores: it decides how BLAS and XLA cut their sums.

It imports nothing of `rlhf_jax`, so that it can look at an older tree: `--tree DIR` names it.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from fingerprint import fingerprint

HERE = Path(__file__).resolve().parent.parent
# Things that differ between two runs of one program. `commit` and `versions` say where a run was made, not what it is.
VOLATILE = re.compile(
    r"(^|[/_ ])(seconds?|times?|path|dir|commit|versions?|folder|host|platform|devices?|command|runs|started|finished|"
    r"memory|cpu)($|[/_ ])"
)


def jobs(out: Path, data: Path) -> dict[str, list[str]]:
    """Every command, by a name; later ones read what earlier ones made."""
    runs = ["--runs", str(out)]
    studies = ("ablate_reward", "sweep_window", "reward_hacking", "validate_reward")
    commands = {name: ["debug", *runs, "--run-dir", str(out / name)] for name in studies}
    return {
        "ppo_redial": ["debug", "--run-dir", str(out / "ppo_redial")],
        "ppo_redial-seed-1": ["debug", "--seed", "1", "--run-dir", str(out / "ppo_redial-seed-1")],
        "ppo_opendialkg": ["debug", "--data.dir", str(data / "opendialkg"), "--run-dir", str(out / "ppo_opendialkg")],
        **commands,
        "cross_domain": ["debug", "--data-dir", str(data), "--run-dir", str(out / "cross_domain")],
        "validate_signals": ["debug", "--data.dir", str(data), "--run-dir", str(out / "validate_signals")],
        "gather_seeds": [str(out / "gathered"), f"debug={out / 'ppo_redial'},{out / 'ppo_redial-seed-1'}"],
    }


def run(tree: Path, script: str, arguments: list[str], out: Path) -> tuple[int, str]:
    """Exit code and standard output of a script of `tree`."""
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(out / "jax_cache")),
        "COLUMNS": "120",
    }
    done = subprocess.run(
        [sys.executable, str(tree / "experiments" / f"{script}.py"), *arguments],
        cwd=tree, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        print(f"{script} {' '.join(arguments)}: exit code {done.returncode}\n{done.stderr[-2000:]}", file=sys.stderr)
    return done.returncode, done.stdout


def digest(*pieces: bytes) -> str:
    """A short SHA-256."""
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()[:16]


def of_arrays(tree: Any) -> str:
    """`fingerprint` of the tree, shortened."""
    return fingerprint(tree)[:16]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of a JSON value by its path."""
    if isinstance(value, dict):
        return {key: leaf for part, inner in value.items() for key, leaf in flat(inner, f"{name}/{part}").items()}
    if isinstance(value, list):
        return {key: leaf for part, inner in enumerate(value) for key, leaf in flat(inner, f"{name}/{part}").items()}
    return {name: value}


def of_json(file: Path, out: Path) -> dict[str, str]:
    """Every leaf but times, paths and versions, whose names count all the same."""
    leaves = flat(json.loads(file.read_text().replace(str(out), "RUNS")))
    return {name: "" if VOLATILE.search(name.lower()) else json.dumps(leaf) for name, leaf in leaves.items()}


def of_folder(out: Path) -> dict[str, str]:
    """Every file that the jobs made."""
    lines = {}
    for file in sorted(out.rglob("*")):
        name = str(file.relative_to(out))
        if "jax_cache" in name or "tfevents" in name or not file.is_file():
            continue
        inside = re.match(r"(.*checkpoints/.*/\d+)/", name)
        if inside:
            step = inside[1]
            if f"{step} (arrays)" not in lines:
                with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
                    state = checkpointer.restore((out / step / "state").absolute(), args=ocp.args.StandardRestore())
                lines[f"{step} (arrays)"] = of_arrays(state)
            continue
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                lines[name] = of_arrays(dict(arrays))
        elif file.name in ("results.json", "samples.json", "samples.jsonl") or file.suffix == ".csv":
            lines[name] = digest(file.read_bytes().replace(str(out).encode(), b"RUNS"))
        elif file.name == "config.json":  # Leaf by leaf, so that a new option shows as one line.
            lines |= {f"{name}{leaf}": value for leaf, value in of_json(file, out).items()}
        elif file.suffix == ".json":
            lines[name] = digest(json.dumps(of_json(file, out), sort_keys=True).encode())
        else:
            lines[name] = "exists"
    return lines


def main() -> int:
    """Runs, writes, compares; 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="where the fingerprint goes")
    parser.add_argument("--against", type=Path, help="an earlier one to compare with")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of the real data sets")
    parser.add_argument("--tree", type=Path, default=HERE, help="the tree whose experiments are run")
    parser.add_argument("--out", type=Path, help="where runs go, and stay; a temporary folder otherwise")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these jobs alone, and no help texts")
    options = parser.parse_args()
    lines: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        out = (options.out or Path(temporary)).resolve()
        out.mkdir(parents=True, exist_ok=True)
        wanted = jobs(out, options.data_dir.resolve())
        if unknown := set(options.only or ()) - set(wanted):
            parser.error(f"--only {min(unknown)}: jobs are {', '.join(wanted)}")
        for name, arguments in wanted.items():
            if options.only and name not in options.only:
                continue
            code, _ = run(options.tree.resolve(), name.partition("-seed")[0], arguments, out)
            lines[f"exit code of {name}"] = str(code)
            print(f"{name}: exit code {code}", flush=True)
        lines |= of_folder(out)
        for script in () if options.only else sorted((options.tree / "experiments").glob("*.py")):
            text = script.read_text()
            reads = any(word in text for word in ("tyro.cli", "overridable", "command_line"))
            if not reads or "__main__" not in text:
                continue
            for arguments in (["--help"], ["debug", "--help"]):
                _, said = run(options.tree.resolve(), script.stem, arguments, out)
                said = said.replace(str(options.tree.resolve()), "TREE")
                lines[f"{script.stem} {' '.join(arguments)}"] = said
    options.file.write_text(json.dumps(lines, indent=1, sort_keys=True))
    print(f"{len(lines)} lines: {options.file}")
    if options.against is None:
        return 0
    before = json.loads(options.against.read_text())
    differing = [name for name in sorted({*before, *lines}) if before.get(name) != lines.get(name)]
    for name in differing:
        print(f"DIFFERS {name}" + ("" if name in before and name in lines else " (only in one)"))
    print(f"{len(differing)} of {len({*before, *lines})} differ")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())

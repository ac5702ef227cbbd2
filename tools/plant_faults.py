"""Do the tests of speed and scale bite? Plants one fault at a time and shows which test says so.

    python tools/plant_faults.py                    # about twenty minutes of one core; writes docs/planted_faults.md
    python tools/plant_faults.py --only donated     # faults whose description holds the word; writes nothing

Each fault is one a person could make (a shape that varies, a head not grouped, a rule forgotten), planted in a temporary copy
of the repository. The tests named for it run on the copy and must fail; on a copy without a fault they must pass.
Exit code 1: a fault was not found, or the copy fails without one.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
TABLE = REPOSITORY / "docs" / "planted_faults.md"
COPIED = ("pyproject.toml", "setup.cfg", "rlhf_jax", "experiments", "tools", "tests")
ONE_PROGRAM = "tests/parallel/test_one_program.py"
DEVICES = "tests/parallel/test_many_devices.py"
PROCESSES = "both_hold_the_same_bits or own_rows_only or metrics_and_whitening or four_processes"
LIMIT_SECONDS = 1800
NO_TESTS = 5
"""Pytest's exit code where nothing was selected."""


class Fault(NamedTuple):
    """One change: `original` must occur exactly once in the file."""

    breaks: str
    path: str
    original: str
    replacement: str
    tests: str
    """The file whose tests must notice."""
    chosen: str = ""
    """Pytest's `-k`; empty: all of the file."""


FAULTS = (
    Fault(
        "the old state is not donated: parameters and moments exist twice",
        "rlhf_jax/learners/ppo.py",
        "return jax.jit(bound, donate_argnums=0, out_shardings=out_shardings)",
        "return jax.jit(bound, out_shardings=out_shardings)",
        ONE_PROGRAM,
        "donated and not planted",
    ),
    Fault(
        "the same, as the peak memory sees it",
        "rlhf_jax/learners/ppo.py",
        "return jax.jit(bound, donate_argnums=0, out_shardings=out_shardings)",
        "return jax.jit(bound, out_shardings=out_shardings)",
        ONE_PROGRAM,
        "peak_memory",
    ),
    Fault(
        "a call to the host between advantages and losses",
        "rlhf_jax/learners/ppo.py",
        "    returns = advantages + values\n",
        "    jax.debug.callback(lambda mean: None, advantages.mean())\n    returns = advantages + values\n",
        ONE_PROGRAM,
        "leaves_the_device",
    ),
    Fault(
        "the supervised parameters are captured by a closure and written into the program",
        "rlhf_jax/stages/alignment.py",
        '        "policy": held(spread.policy, config.trainable),\n',
        '        "policy": lambda params, rollout: spread.policy(\n'
        "            jax.tree.map(lambda own, start: own + 0 * start, params, policy) if 'value' in params else params, rollout\n"
        "        ),\n",
        ONE_PROGRAM,
        "baked_in",
    ),
    Fault(
        "every other batch is smaller: a program a shape",
        "rlhf_jax/stages/alignment.py",
        "layout.batch(n_prompts, own_prompts)",
        "layout.batch(n_prompts - 4 * (index % 2), own_prompts)",
        ONE_PROGRAM,
        "after_the_first_update",
    ),
    Fault(
        "the trunk is run twice where responses are judged",
        "rlhf_jax/decoding/policy.py",
        '        hidden = response_hidden(config, params["trunk"], rollout)\n        logprobs, entropies',
        '        hidden = response_hidden(config, params["trunk"], rollout)\n'
        '        again = jax.tree.map(lambda leaf: leaf * (1 + hidden[0, 0, 0] * 1e-30), params["trunk"])\n'
        "        hidden = (hidden + response_hidden(config, again, rollout)) / 2\n        logprobs, entropies",
        ONE_PROGRAM,
        "flops",
    ),
    Fault(
        "epochs are unrolled: the program grows with them",
        "rlhf_jax/learners/minibatch.py",
        "    carry, logged = jax.lax.scan(one_epoch, carry, jax.random.split(key, epochs))\n",
        "    runs = []\n"
        "    for one in jax.random.split(key, epochs):\n"
        "        carry, run = one_epoch(carry, one)\n"
        "        runs.append(run)\n"
        "    logged = jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *runs)\n",
        ONE_PROGRAM,
        "does_not_grow",
    ),
    Fault(
        "heads are not grouped for `tensor`: queries meet other heads' keys",
        "rlhf_jax/stages/agent.py",
        "network = dataclasses.replace(agent.network, qkv_groups=layout.tensor)",
        "network = agent.network",
        DEVICES,
        "those_of_one_device",
    ),
    Fault(
        "a matrix has no `fsdp` in its rule: every device keeps all of it",
        "rlhf_jax/parallel/rules.py",
        '(r"mlp/c_fc/kernel$", P("fsdp", "tensor")),',
        '(r"mlp/c_fc/kernel$", P(None, "tensor")),',
        DEVICES,
        "holds_its_part",
    ),
    Fault(
        "parameters are not gathered before a pass: activations are exchanged instead",
        "rlhf_jax/parallel/partition.py",
        "return loss(self.in_use(params, whole_table=whole_table), self.cut_rows(batch), *rest, **named)",
        "return loss(params, self.cut_rows(batch), *rest, **named)",
        DEVICES,
        "textbook",
    ),
    Fault(
        "keys and values are kept whole on `tensor`",
        "rlhf_jax/parallel/rules.py",
        '(r"layers/", P(ROWS, "tensor", None, None)),',
        '(r"layers/", P(ROWS, None, None, None)),',
        "tests/parallel/test_mesh_and_rules.py",
    ),
    Fault(
        "every process makes the whole batch",
        "rlhf_jax/parallel/partition.py",
        "        last = max(n_rows if place.stop is None else place.stop for place in places)\n",
        "        first, last = 0, n_rows\n",
        DEVICES,
        PROCESSES,
    ),
    Fault(
        "each process draws and shuffles with a key of its own",
        "rlhf_jax/learners/ppo.py",
        'stream_key(state.key, "ppo/minibatches", state.update)',
        'stream_key(state.key, "ppo/minibatches", state.update + jax.process_index())',
        DEVICES,
        PROCESSES,
    ),
    Fault(
        "a checkpoint is complete before all processes have written",
        "rlhf_jax/runtime/checkpoint.py",
        "                _write(unfinished, state)\n                processes.lead_does(complete)\n",
        "                processes.lead_does(complete)\n                _write(unfinished, state)\n",
        DEVICES,
        PROCESSES,
    ),
)


def outcome(folder: Path, tests: str, chosen: str) -> tuple[bool, str]:
    """Whether the tests pass, and the first that does not (or pytest's last line); `slow` ones only if the others pass."""
    passed, said = outcome_of(folder, tests, chosen, "not slow")
    return outcome_of(folder, tests, chosen, "slow") if passed else (passed, said)


def outcome_of(folder: Path, tests: str, chosen: str, marked: str) -> tuple[bool, str]:
    """The same of the tests with a mark; where there is none, they pass."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        tests,
        "-m",
        marked,
    ]
    if chosen:
        command += ["-k", chosen]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return False, f"(no end within {LIMIT_SECONDS} s)"
    if done.returncode == NO_TESTS:
        return True, f"no test is {marked}"
    if done.returncode not in (0, 1):  # 1 is "tests failed"; a fault must not merely break the collection.
        raise SystemExit(f"pytest ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    failed = re.search(r"^(FAILED|ERROR) \S+?::(\S+)", done.stdout, re.MULTILINE)
    if failed is None:
        return done.returncode == 0, done.stdout.strip().splitlines()[-1]
    if failed[1] == "FAILED":
        return False, f"`{failed[2]}`"
    # Tests that share one run of several devices or processes fail together where that run does: then with its own words.
    said = re.findall(r"\b(?!Assertion)(\w*(?:Error|Exception)\b: [^\\\n]+)", done.stdout)
    return False, f"`{failed[2]}`, whose run ends with: {said[-1][:160] if said else 'no message'}"


def copy_of_the_repository(folder: Path) -> None:
    """What the tests need."""
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)


def planted(folder: Path, fault: Fault) -> str:
    """Plants a fault; the file's text before."""
    path = folder / fault.path
    text = path.read_text()
    path.write_text(text.replace(fault.original, fault.replacement))
    return text


def main() -> int:
    """Control, faults, table. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="faults whose description holds this; nothing is written")
    only = parser.parse_args().only
    faults = [fault for fault in FAULTS if only in fault.breaks]
    if not faults:
        raise SystemExit(f"no fault's description holds {only!r}: {[fault.breaks for fault in FAULTS]}")
    for fault in faults:
        occurs = (REPOSITORY / fault.path).read_text().count(fault.original)
        if occurs != 1:
            raise SystemExit(f"{fault.path} holds {fault.original!r} {occurs} times; once is needed")
    rows, missed = [], 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_of_the_repository(folder)
        for tests in dict.fromkeys(fault.tests for fault in faults):
            asked = list(dict.fromkeys(fault.chosen for fault in faults if fault.tests == tests))
            # One start for all: what they share, a run of eight devices, is made once.
            passed, said = outcome(folder, tests, "" if "" in asked else " or ".join(f"({one})" for one in asked))
            if not passed:
                print(f"without any fault {tests} fails: {said}")
                return 1
        for number, fault in enumerate(faults, 1):
            before = planted(folder, fault)
            passed, said = outcome(folder, fault.tests, fault.chosen)
            (folder / fault.path).write_text(before)
            missed += passed
            rows.append(f"| {fault.breaks} | `{fault.path}` | {'**not found**' if passed else said} |")
            print(f"{number}/{len(faults)} {'NOT FOUND' if passed else 'found by ' + said}: {fault.breaks}", flush=True)
    if not only:
        TABLE.write_text(
            "# Planted faults\n\nWritten by `python tools/plant_faults.py`: faults of speed and scale, one at a time, and the "
            f"first test that fails. Without a fault all of these tests pass. {len(rows) - missed} of {len(rows)} found.\n\n"
            "| fault | planted in | first test that fails |\n|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

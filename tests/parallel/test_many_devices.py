"""Eight devices, and two processes of four, give what one device gives, and talk no more than they must.

`make test` looks at three learners on the mesh that cuts along all three axes; the other learners, the other meshes and
the runs of several processes are `slow`.
"""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import pytest
from small_learners import FEW_MESHES, HEADS, LEARNERS, PROMPT, RESPONSE, ROWS, WIDTH

from fingerprint import fingerprint
from rlhf_jax.parallel.partition import ONE_DEVICE
from rlhf_jax.runtime.checkpoint import Checkpoints
from rlhf_jax.runtime.metrics import read_metrics
from rlhf_jax.runtime.stage import stage_arrays

MESHES = {"8x1x1": (8, 1, 1), "4x2x1": (4, 2, 1), "2x2x2": (2, 2, 2), "1x1x8": (1, 1, 8)}
QUICK = {"sft": "2x2x2", "reward_model": "2x2x2", "ppo": "2x2x2"}
LIMIT_SECONDS = 900
Facts = dict[str, dict[str, dict[str, Any]]]


def search_path(repository: Path) -> str:
    """Where the processes that these tests start import from: the package, parts of scripts, tools."""
    return os.pathsep.join(str(folder) for folder in (repository, repository / "experiments", repository / "tools"))


def cases(learners: Iterable[str] = tuple(LEARNERS)) -> list[Any]:
    """Parameters (learner, mesh) of a test; those that `make test` leaves out are marked."""
    return [
        pytest.param(learner, mesh, marks=() if QUICK.get(learner) == mesh else pytest.mark.slow)
        for learner in learners
        for mesh in FEW_MESHES.get(learner, MESHES)
    ]


@pytest.fixture(scope="session")
def eight_devices(repository: Path, request: pytest.FixtureRequest) -> Facts:
    """What `eight_devices.py` found, learner → mesh → facts; the quick cases alone where no slow test is asked for."""
    asking = (item for item in request.session.items if "eight_devices" in getattr(item, "fixturenames", ()))
    everything = any(item.get_closest_marker("slow") for item in asking)
    chosen = (LEARNERS, MESHES) if everything else (QUICK, set(QUICK.values()))
    script = Path(__file__).parent / "eight_devices.py"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": search_path(repository),
    }
    command = [sys.executable, str(script), *(",".join(names) for names in chosen)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("learner", "mesh"), cases())
def test_losses_metrics_and_states_are_those_of_one_device(eight_devices: Facts, learner: str, mesh: str) -> None:
    facts = eight_devices[learner][mesh]
    assert len(facts["losses"]) == 2
    for alone, spread in facts["losses"]:
        assert spread == pytest.approx(alone, abs=1e-5)
    for difference, name in facts["metrics"]:
        assert difference < 5e-5, name
    difference, name = facts["parameters"]
    assert difference < 5e-5, name


def test_a_loop_over_layers_on_a_mesh_is_the_written_out_network_on_one_device(eight_devices: Facts) -> None:
    facts = eight_devices["scan"]["2x2x2"]
    written_out, scanned = facts["loops"]
    assert scanned > written_out
    for alone, spread in facts["losses"]:
        assert spread == pytest.approx(alone, abs=1e-5)
    difference, name = facts["parameters"]
    assert difference < 5e-5, name


@pytest.mark.parametrize(("learner", "mesh"), cases(("ppo", "grpo")))
def test_sampled_tokens_are_identical(eight_devices: Facts, learner: str, mesh: str) -> None:
    assert eight_devices[learner][mesh]["tokens_equal"]


@pytest.mark.parametrize(("learner", "mesh"), cases())
def test_a_device_holds_its_part_of_parameters_and_moments(eight_devices: Facts, learner: str, mesh: str) -> None:
    state = LEARNERS[learner](ONE_DEVICE).state
    _, fsdp, tensor = MESHES[mesh]
    trees = (state.params, state.opt_state)
    leaves = jax.tree.leaves(trees)
    cut = sum(leaf.nbytes for leaf in leaves if leaf.ndim > 1 and 3 not in leaf.shape)
    vectors = sum(leaf.nbytes for leaf in leaves) - cut
    held = eight_devices[learner][mesh]["bytes"]
    if tensor == 1:
        assert held == cut / fsdp + vectors
    else:
        # `tensor` cuts most matrices too, and the hidden layer's bias.
        assert cut / (fsdp * tensor) < held < cut / fsdp + vectors


def arrays(facts: dict[str, Any], kind: str, axes: str, least: int = 0) -> list[list[int]]:
    """Shapes of the arrays that one kind of collective moves along the axes, those of at least `least` numbers."""
    found = []
    for one_kind, one_axes, shape, size in facts["arrays"]:
        if (one_kind, one_axes) == (kind, axes) and size >= 4 * least:
            found.append(shape)
    return found


@pytest.mark.parametrize(("learner", "mesh"), cases(("reward_model",)))
def test_a_step_talks_no_more_than_the_textbook(eight_devices: Facts, learner: str, mesh: str) -> None:
    """L = 1; the table in docs/scaling.md."""
    facts, (data, fsdp, tensor) = eight_devices[learner][mesh], MESHES[mesh]
    params = LEARNERS[learner](ONE_DEVICE).state.params
    row_axes = "+".join(axis for axis, size in (("data", data), ("fsdp", fsdp)) if size > 1)
    rows = ROWS // (data * fsdp)
    # Every gradient is summed over the rows once.
    assert len(arrays(facts, "all-reduce", row_axes, least=2)) == (len(jax.tree.leaves(params)) if row_axes else 0)
    # Every matrix of the trunk is gathered once: table, positions, four of the block.
    assert len(arrays(facts, "all-gather", "fsdp")) == (6 if fsdp > 1 else 0)
    # Two sums of activations forward and two backward, and one for the table's rows that are elsewhere.
    activations = rows * (PROMPT + RESPONSE) * WIDTH
    assert len(arrays(facts, "all-reduce", "tensor", least=activations)) == (5 if tensor > 1 else 0)
    # c_attn from rows to heads and back.
    assert len(arrays(facts, "all-to-all", "tensor")) == (2 if tensor > 1 else 0)
    # Nothing else of any size: not an activation, not a parameter.
    expected = {
        ("all-reduce", row_axes),
        ("all-gather", "fsdp"),
        ("all-reduce", "tensor"),
        ("all-to-all", "tensor"),
    }
    others = [one for one in facts["arrays"] if (one[0], one[1]) not in expected and one[3] > 4 * 3 * WIDTH]
    assert others == []


@pytest.mark.parametrize(("learner", "mesh"), cases(("ppo",)))
def test_the_cache_is_cut_by_rows_and_heads(eight_devices: Facts, learner: str, mesh: str) -> None:
    data, fsdp, tensor = MESHES[mesh]
    # Keys and values of the one layer, in the loop over tokens.
    assert eight_devices[learner][mesh]["caches"] == [f"{ROWS // (data * fsdp)},{HEADS // tensor}"]


@pytest.mark.parametrize(("learner", "mesh"), cases(("ppo",)))
def test_ppo_moves_no_activation_over_rows(eight_devices: Facts, learner: str, mesh: str) -> None:
    """Over `data` and `fsdp` go parameters, gradients, and a few numbers a token; never hidden states."""
    facts, (data, fsdp, _) = eight_devices[learner][mesh], MESHES[mesh]
    hidden = ROWS // (data * fsdp) // 2 * RESPONSE * WIDTH
    shapes = {tuple(shape) for kind, axes, shape, _ in facts["arrays"] if axes != "tensor" and kind != "all-to-all"}
    assert [shape for shape in shapes if len(shape) == 3 and shape[-1] == WIDTH and math.prod(shape) >= hidden] == []


# Two processes.


def ends(repository: Path, folder: Path, count: int, task: str) -> tuple[list[int], list[str]]:
    """Runs `several_processes.py` as `count` processes; exit codes and outputs."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).parent / "several_processes.py"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": search_path(repository)}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), str(count), str(index), str(port), task],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for index in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=LIMIT_SECONDS)[0] for process in started]
    finally:
        # One that hangs in a collective does not hear SIGTERM.
        for process in started:
            process.kill()
    return [process.returncode for process in started], outputs


def together(repository: Path, folder: Path, count: int, task: str) -> list[dict[str, Any]]:
    """Runs `several_processes.py` as `count` processes; what each found."""
    codes, outputs = ends(repository, folder, count, task)
    assert codes == [0] * count, "\n\n".join(text[-3000:] for text in outputs)
    lines = [next(line for line in text.splitlines() if line.startswith("found ")) for text in outputs]
    return [json.loads(line.removeprefix("found ")) for line in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def two(repository: Path, folder: Path) -> list[dict[str, Any]]:
    """Every learner trained by two processes of four devices."""
    return together(repository, folder, 2, "train")


@pytest.mark.slow
def test_each_process_makes_its_own_rows_only(two: list[dict[str, Any]]) -> None:
    assert [found["rows"] for found in two] == [[0, ROWS // 2], [ROWS // 2, ROWS]]


@pytest.mark.slow
@pytest.mark.parametrize("stage", LEARNERS)
def test_both_hold_the_same_bits(two: list[dict[str, Any]], stage: str) -> None:
    one, other = (found["stages"][stage] for found in two)
    assert one == other
    assert one["held"] != ""


@pytest.mark.slow
@pytest.mark.parametrize("stage", LEARNERS)
def test_another_mesh_reads_the_checkpoint(two: list[dict[str, Any]], stage: str) -> None:
    assert two[0]["stages"][stage]["restored"] == two[0]["stages"][stage]["fetched"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", LEARNERS)
def test_one_process_reads_the_checkpoint(two: list[dict[str, Any]], folder: Path, stage: str) -> None:
    restored = Checkpoints(folder / "run" / "checkpoints" / stage).restore(LEARNERS[stage](ONE_DEVICE).state)
    assert restored is not None
    assert fingerprint(restored.state) == two[0]["stages"][stage]["fetched"]
    # Readers that do not know what made it, chat for one, get it on their device too.
    assert stage_arrays(folder / "run", stage)["params"]["trunk"]["wte"].devices() == {
        restored.state.params["trunk"]["wte"].device
    }


@pytest.mark.slow
def test_four_processes_read_the_checkpoints(two: list[dict[str, Any]], repository: Path, folder: Path) -> None:
    expected = {stage: two[0]["stages"][stage]["fetched"] for stage in LEARNERS}
    assert together(repository, folder, 4, "restore") == [expected] * 4


@pytest.mark.slow
@pytest.mark.parametrize("stage", LEARNERS)
def test_metrics_and_whitening_are_global(two: list[Any], eight_devices: Facts, folder: Path, stage: str) -> None:
    """Both log the same, and what one device computes on the whole batch."""
    del two
    ours, theirs = (
        [entry for entry in read_metrics(file / "metrics.jsonl") if entry["stage"] == stage]
        for file in (folder / "run", folder / "run" / "processes" / "1")
    )
    alone = eight_devices[stage]["4x2x1"]["alone"]
    assert len(ours) == len(theirs) == len(alone) == 2
    for one, other, expected in zip(ours, theirs, alone, strict=True):
        assert one | {"seconds_per_update": 0} == other | {"seconds_per_update": 0}
        for name, value in expected.items():
            assert one[name] == pytest.approx(value, abs=5e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
def test_who_waits_in_a_save_for_one_that_was_killed_says_so_and_ends(
    repository: Path, tmp_path: Path, victim: int
) -> None:
    begun = time.monotonic()
    codes, outputs = ends(repository, tmp_path, 2, f"lose-{victim}")
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 1, outputs[1 - victim][-3000:]
    assert "another process of this run has gone" in outputs[1 - victim]
    assert time.monotonic() - begun < 120  # Asked: a minute after the kill; starting takes its time too.
    assert Checkpoints(tmp_path / "run" / "checkpoints" / "sft").steps() == [1]

"""What the compiler says of the steps of training, for devices that are not there.

Compilations have a process of their own, because the number of pretended devices is fixed when JAX starts.

    python -m scale.compiling JSON FOLDER    # of a list of `Program`s: what the compiler says of each
"""

import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

import rlhf_jax
from rlhf_jax.parallel.mesh import MeshConfig, make_mesh
from rlhf_jax.parallel.partition import Partition
from rlhf_jax.runtime.files import write_text
from scale import plan as scale_plan
from scale import steps
from scale.program import Program


def compiled(program: Program) -> dict[str, Any]:
    """What the compiler says of one step's programs, in a process that has the devices.

    Returns: `temporaries` and `arguments`, bytes of one device, of the program that has the most; `seconds` of compilation;
      and, on pretended CPU devices, `work` of every phase of the step (`scale_plan.Work`), a program that runs several times
      counted as often, and `matmul_share`, the matmuls' part of the operations that the compiler itself counts (every loop's
      body once).
    """
    devices = topologies.get_topology_desc(program.topology, "tpu").devices if program.topology else None
    layout = Partition(make_mesh(program.mesh, devices))
    begin = time.perf_counter()
    runs = steps.parts_of(program, layout).runs
    made = [run.program.lower(*run.arguments).compile() for run in runs]
    memory = [one.memory_analysis() for one in made]
    said: dict[str, Any] = {
        "temporaries": float(max(one.temp_size_in_bytes for one in memory)),
        "arguments": float(max(one.argument_size_in_bytes for one in memory)),
        "seconds": time.perf_counter() - begin,
    }
    if not program.topology:
        work, once, counted = [], 0.0, 0.0
        for run, one in zip(runs, made, strict=True):
            read = functools.partial(
                scale_plan.work_by_phase,
                one.as_text(),
                layout.mesh.shape,
                decode_steps=program.response - 1,
                outside=run.outside,
                loops=run.loops,
            )
            work.append(scale_plan.repeated(read(), run.times))
            once += sum(phase.flops for phase in read(once=True).values())
            counted += one.cost_analysis()["flops"]
        said["work"] = {phase: one._asdict() for phase, one in scale_plan.together(work).items()}
        said["matmul_share"] = once / counted
    return said


def compiled_apart(programs: Sequence[Program], folder: Path) -> list[dict[str, Any]]:
    """`compiled` of programs on one mesh, in a process of its own with as many devices; or what it said last time.

    Args:
      folder: keeps what was said, by the program, the version of JAX and this project's code.
    Raises: ValueError with the end of what that process wrote, where it failed.
    """
    paths = [folder / f"{_name(program)}.json" for program in programs]
    missing = [program for program, path in zip(programs, paths, strict=True) if not path.exists()]
    if missing:
        # What is read off a program does not depend on how well its machine code is optimised.
        flags = f"--xla_force_host_platform_device_count={max(program.mesh.size for program in missing)}"
        flags += " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
        changed = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "TPU_SKIP_MDS_QUERY": "1", "PYTHONPATH": path}
        text = json.dumps([dataclasses.asdict(program) for program in missing])
        command = [sys.executable, "-m", "scale.compiling", text, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | changed, check=False)
        if done.returncode:
            raise ValueError(f"{missing} were not compiled:\n{done.stderr.strip()[-1500:]}")
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


@functools.cache
def _code() -> str:
    parts = Path(rlhf_jax.__file__).parent, Path(__file__).parent
    files = [file for part in parts for file in sorted(part.rglob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _name(program: Program) -> str:
    key = hashlib.sha256(f"{dataclasses.asdict(program)} {jax.__version__} {_code()}".encode()).hexdigest()[:8]
    return f"{program.steps}_{program.name}_{program.layers}_{program.mesh.size}_{'tpu' if program.topology else 'cpu'}_{key}"


def _main(programs: str, folder: Path) -> None:
    """What each of the programs (JSON) says, into a file of its own as soon as it is known."""
    folder.mkdir(parents=True, exist_ok=True)
    for given in json.loads(programs):
        program = Program(**given | {"mesh": MeshConfig(**given["mesh"])})
        write_text(folder / f"{_name(program)}.json", json.dumps(compiled(program)))


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))

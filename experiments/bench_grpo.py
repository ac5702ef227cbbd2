"""How fast is one step of GRPO, against TRL's trainer?

    python experiments/bench_grpo.py                      # tiny and GPT-2 124M (with an accelerator: 345M too)
    python experiments/bench_grpo.py tiny --repeats 9     # one size
    OMP_NUM_THREADS=1 taskset -c 0 python experiments/bench_grpo.py --clock cpu      # on a machine that others use

A step is rollout, reward, the reference's pass and one optimiser step. `make bench` installs what is needed and runs this
last; without torch it reports our own step alone. Both take turns in one process, from the same weights and prompts, in
float32 on a CPU and bfloat16 on an accelerator. `--clock cpu` counts the seconds the process computes, which others
disturb less; hold it on one core then, because PyTorch's threads compute while they wait. Time on two CPU cores: tiny one
minute, GPT-2 124M five. Writes `bench_grpo.json` and `bench_grpo.md` into `--out`. How to read them: docs/benchmarks.md.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
import importlib.util
import os
from pathlib import Path
from typing import Any

# Two frameworks share an accelerator here; the first must not take all of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

from benchmark import grpo_step, networks, one_step
from benchmark.interleaving import Implementation
from benchmark.one_step import Clock, StepConfig
from benchmark.workload import Workload
from command_line import options, start
from rlhf_jax.ranges import Batch


@dataclasses.dataclass(frozen=True)
class Config(StepConfig):
    """What to measure, and how often."""

    out: Path = Path("runs/bench_grpo")
    """Folder of the results."""
    batch: Batch | None = None
    """Responses of a step, in groups of eight."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for workload in one_step.workloads(self):
            grpo_step.check_groups(workload)


def implementations_of(workload: Workload, clock: Clock) -> list[Implementation]:
    """Ours, and TRL's where it is installed; each holds its own parameters and moments."""
    drawn, rate = networks.draw_networks(workload), networks.LEARNING_RATE
    made: list[Implementation] = [
        grpo_step.OurStep(workload, drawn, learning_rate=rate, compute_dtype=one_step.compute_type(), clock=clock)
    ]
    if importlib.util.find_spec("trl") is not None:
        from benchmark import trl_grpo

        bf16 = jax.default_backend() != "cpu"
        made.append(trl_grpo.TrlStep(workload, drawn, learning_rate=rate, bf16=bf16, clock=clock))
    return made


def bench(config: Config, workload: Workload) -> tuple[str, dict[str, Any]]:
    """The table of one size, and what it was made of."""
    return one_step.bench(
        config,
        workload,
        lambda: implementations_of(workload, one_step.clock_of(config)),
        lambda rounds, quiet, matmul: grpo_step.markdown(workload, rounds, quiet=quiet, matmul=matmul),
    )


def main(config: Config) -> Path:
    """Measures, prints and writes."""
    return one_step.measure(config, Path(__file__), bench)


if __name__ == "__main__":
    print(start(main, options(Config, __doc__)))

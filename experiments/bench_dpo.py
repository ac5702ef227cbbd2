"""How fast is one step of DPO, against TRL's trainer?

    python experiments/bench_dpo.py                      # tiny and GPT-2 124M (with an accelerator: 345M too)
    python experiments/bench_dpo.py tiny --repeats 9     # one size
    OMP_NUM_THREADS=1 taskset -c 0 python experiments/bench_dpo.py --clock cpu      # on a machine that others use

`make bench` installs what is needed and runs this after `bench_ppo.py`; without torch it reports our own step alone. Both
take turns in one process, from the same weights, pairs and cached reference, in float32 on a CPU and bfloat16 on an
accelerator. `--clock cpu` counts the seconds the process computes, which others disturb less; hold it on one core then,
because PyTorch's threads compute while they wait. Time on two CPU cores: tiny one minute, GPT-2 124M five. Writes `bench_dpo.json` and `bench_dpo.md` into
`--out`. How to read them: docs/benchmarks.md.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Annotated, Any, Literal

# Two frameworks share an accelerator here; the first must not take all of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import tyro

from benchmark import ceilings, dpo_step, interleaving, networks
from benchmark.interleaving import Implementation, Round
from benchmark.workload import ACCELERATOR_WORKLOADS, CPU_WORKLOADS, Workload
from command_line import options, start
from rlhf_jax.ranges import Batch, Range, check_numbers
from rlhf_jax.runtime.machine import environment
from rlhf_jax.runtime.run import claim


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and how often."""

    sizes: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Of tiny, gpt2-124m, gpt2-345m; without any, those this device is fit for."""
    out: Path = Path("runs/bench_dpo")
    """Folder of the results."""
    repeats: Annotated[int, Range("[1, 1_000]")] = 9
    """Undisturbed rounds that are wanted; medians are over these."""
    foreign_limit: Annotated[float, Range("(0, 1]")] = 0.05
    """A round in which other processes had more than this share of the cores is measured again."""
    most_rounds: Annotated[int, Range("[0, 10_000]")] = 0
    """Rounds at most; 0 is twice `repeats`."""
    clock: Literal["wall", "cpu"] = "wall"
    """What a step's seconds are: the wall's, or those the process computes."""
    batch: Batch | None = None
    """Responses of a step, half of them chosen."""

    def __post_init__(self) -> None:
        check_numbers(self)
        unknown = [size for size in self.sizes if size not in CPU_WORKLOADS]
        if unknown:
            raise ValueError(f"sizes must be of {list(CPU_WORKLOADS)}; got {unknown}")
        if self.most_rounds and self.most_rounds < self.repeats:
            raise ValueError(
                f"--most-rounds {self.most_rounds} cannot hold --repeats {self.repeats}; 0 is twice as many"
            )


def workloads(config: Config) -> list[Workload]:
    """The sizes asked for, in the shape that suits this device."""
    on_cpu = jax.default_backend() == "cpu"
    table = CPU_WORKLOADS if on_cpu else ACCELERATOR_WORKLOADS
    names = config.sizes or (("tiny", "gpt2-124m") if on_cpu else tuple(table))
    return [dataclasses.replace(table[name], batch=config.batch or table[name].batch) for name in names]


def implementations_of(workload: Workload, clock: dpo_step.Clock) -> list[Implementation]:
    """Ours, and TRL's where it is installed; each holds its own parameters and moments."""
    on_cpu = jax.default_backend() == "cpu"
    drawn, rate = networks.draw_networks(workload), networks.LEARNING_RATE
    dtype = "float32" if on_cpu else "bfloat16"
    made: list[Implementation] = [
        dpo_step.OurStep(workload, drawn, learning_rate=rate, compute_dtype=dtype, clock=clock)
    ]
    if importlib.util.find_spec("trl") is not None:
        from benchmark import trl_dpo

        made.append(trl_dpo.TrlStep(workload, drawn, learning_rate=rate, bf16=not on_cpu, clock=clock))
    return made


def bench(config: Config, workload: Workload) -> tuple[str, dict[str, Any]]:
    """The table of one size, and what it was made of."""
    kind = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    # 1. The ceiling of the chip.
    ceiling = ceilings.measure(workload, kind) if config.clock == "wall" else None
    # 2. First calls, compilation included.
    clock = time.perf_counter if config.clock == "wall" else time.process_time
    implementations = implementations_of(workload, clock)
    for one in implementations:
        one.warm_up()
        print(f"{workload.name} {one.name}: first call {one.first_call['whole']:.1f} s", flush=True)

    # 3. Rounds.
    def tell(one: Round) -> None:
        wholes = ", ".join(f"{name} {seconds['whole']:.3g}" for name, seconds in one.seconds.items())
        print(f"{workload.name}: {wholes} s; others had {max(one.foreign.values()):.0%} of the cores", flush=True)

    most = config.most_rounds or 2 * config.repeats
    rounds = interleaving.interleave(
        implementations, repeats=config.repeats, foreign_limit=config.foreign_limit, most_rounds=most, report=tell
    )
    kept, quiet = interleaving.kept_rounds(rounds, repeats=config.repeats, foreign_limit=config.foreign_limit)
    matmul = {kind: ceiling.matmul} if ceiling is not None else None
    return dpo_step.markdown(workload, kept, quiet=quiet, matmul=matmul), {
        "clock": config.clock,
        "workload": dataclasses.asdict(workload),
        "seconds": {one.name: interleaving.seconds_of(kept, one.name, "whole") for one in implementations},
        "ratios": {name: list(found.pairs) for name, found in dpo_step.ratios(kept).items()},
        "first_call_seconds": {one.name: one.first_call["whole"] for one in implementations},
        "foreign_cpu_share": [dict(one.foreign) for one in kept],
        "quiet": quiet,
        "ceiling": dataclasses.asdict(ceiling) if ceiling is not None else None,
        "environment": environment(),
    }


def main(config: Config) -> Path:
    """Measures, prints and writes."""
    claim(config.out, Path(__file__).name, known_by="bench_dpo.json")
    tables, found = [], {}
    for workload in workloads(config):
        table, found[workload.name] = bench(config, workload)
        tables.append(table)
        (config.out / "bench_dpo.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = "\n\n".join(tables) + "\n"
    (config.out / "bench_dpo.md").write_text(text, encoding="utf-8")
    print(text)
    return config.out / "bench_dpo.json"


if __name__ == "__main__":
    print(start(main, options(Config, __doc__)))

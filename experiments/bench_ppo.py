"""How fast is one PPO iteration, against TRL's trainer and a hand-tuned PyTorch loop, and against the hardware?

    python experiments/bench_ppo.py                              # tiny and GPT-2 124M (with an accelerator: 345M too)
    python experiments/bench_ppo.py tiny --repeats 3             # one size
    python experiments/bench_ppo.py gpt2-345m --implementations ours_shared trl

`make bench` installs what is needed (torch and the last TRL with a PPO trainer are the extra `bench`) and runs this.
Without torch it reports our own implementation alone. All implementations take turns in one process, in float32 on a
CPU and bfloat16 on an accelerator, from the same weights and prompts. Time on two CPU cores: tiny 6 minutes, GPT-2 124M
22. Writes `bench.json`, `bench.md` and `bench.png` into `--out`. How to read them: docs/benchmarks.md.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

# Two frameworks share an accelerator here; the first must not take all of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import tyro

from benchmark import ceilings, interleaving, memory, networks, ours, report
from benchmark.interleaving import Implementation, Round
from benchmark.workload import ACCELERATOR_WORKLOADS, CPU_WORKLOADS, FORMS, Workload
from command_line import options, start
from rlhf_jax.ranges import Batch, Range, Tokens, check_numbers
from rlhf_jax.reporting import plots
from rlhf_jax.runtime.machine import environment
from rlhf_jax.runtime.run import claim

PACKAGES = ("torch", "trl", "transformers", "accelerate")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and how often."""

    sizes: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Of tiny, gpt2-124m, gpt2-345m; without any, those this device is fit for."""
    out: Path = Path("runs/bench")
    """Folder of the results."""
    repeats: Annotated[int, Range("[1, 1_000]")] = 5
    """Undisturbed rounds that are wanted; medians are over these."""
    implementations: tuple[str, ...] = ()
    """Names to measure; without any, all that are installed."""
    bf16_too: bool = False
    """On a CPU whose torch has bfloat16 instructions: their bfloat16 as well, beside float32."""
    torch_compile: bool = True
    """Let the hand-tuned loop try `torch.compile`."""
    peak_memory: bool = True
    """Measure the others' memory first, each in a process of its own."""
    memory_only: bool = False
    """Only print what one implementation of one size needs in memory; for the process just named."""
    foreign_limit: Annotated[float, Range("(0, 1]")] = 0.05
    """A round in which other processes had more than this share of the cores is measured again."""
    most_rounds: Annotated[int, Range("[0, 10_000]")] = 0
    """Rounds at most; 0 is twice `repeats`."""
    batch: Batch | None = None
    prompt: Tokens | None = None
    response: Tokens | None = None

    def __post_init__(self) -> None:
        check_numbers(self)
        unknown = [size for size in self.sizes if size not in CPU_WORKLOADS]
        if unknown:
            raise ValueError(f"sizes must be of {list(CPU_WORKLOADS)}; got {unknown}")
        if self.most_rounds and self.most_rounds < self.repeats:
            raise ValueError(
                f"--most-rounds {self.most_rounds} cannot hold --repeats {self.repeats}; 0 is twice as many"
            )


def version(package: str) -> str | None:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def workloads(config: Config) -> list[Workload]:
    """The sizes asked for, in the shape that suits this device."""
    on_cpu = jax.default_backend() == "cpu"
    table = CPU_WORKLOADS if on_cpu else ACCELERATOR_WORKLOADS
    names = config.sizes or (("tiny", "gpt2-124m") if on_cpu else tuple(table))
    changes = {name: getattr(config, name) for name in ("batch", "prompt", "response") if getattr(config, name)}
    return [dataclasses.replace(table[name], **changes) for name in names]


def have_torch() -> bool:
    """Whether the extra `bench` is installed."""
    return importlib.util.find_spec("torch") is not None


def makers_of(config: Config, workload: Workload, drawn: networks.Networks) -> dict[str, Callable[[], Implementation]]:
    """What builds every implementation that is installed and asked for; each holds its own parameters and moments."""
    on_cpu = jax.default_backend() == "cpu"
    makers: dict[str, Callable[[], Implementation]] = {}
    dtype, suffix = ("float32", "") if on_cpu else ("bfloat16", "_bf16")
    # Forms of one framework share networks and moments: memory for one.
    states = functools.cache(lambda: ours.States(workload, drawn))
    for form in FORMS:
        makers[f"ours_{form}{suffix}"] = lambda form=form: ours.Ours(workload, drawn, form, dtype, states())
    if have_torch():
        from benchmark import torch_loop

        nets = functools.cache(lambda: torch_loop.TorchNetworks(workload, drawn))
        kinds = [not on_cpu] + ([True] if on_cpu and config.bf16_too and torch_loop.chip_has_bf16() else [])
        for bf16 in kinds:
            suffix = "_bf16" if bf16 else ""
            for form in FORMS:
                makers[f"torch_{form}{suffix}"] = lambda form=form, bf16=bf16: torch_loop.TorchLoop(
                    workload, drawn, form, bf16=bf16, compile_blocks=config.torch_compile, shared=nets()
                )
            if importlib.util.find_spec("trl") is not None:
                from benchmark import trl_trainer

                makers[f"trl{suffix}"] = lambda bf16=bf16: trl_trainer.TrlTrainer(workload, drawn, bf16=bf16)
    wanted = config.implementations or tuple(makers)
    unknown = [name for name in wanted if name not in makers]
    if unknown:
        raise ValueError(f"implementations {unknown} are not installed or not known; here: {list(makers)}")
    memory.check(workload, wanted)
    return {name: makers[name] for name in wanted}


def bench(config: Config, workload: Workload) -> report.Measurement:
    """Ceilings, then everything in turns."""
    drawn = networks.draw_networks(workload)
    makers = makers_of(config, workload, drawn)
    # 1. Ceilings of the chip, for each type of number in use.
    others = ()
    if have_torch():
        from benchmark import torch_loop

        others = (torch_loop.ceilings,)
    kinds = sorted({report.dtype_of(name) for name in makers})
    limits = {kind: ceilings.measure(workload, kind, others=others) for kind in kinds}
    # 2. First calls, compilation included; the memory of each from a process of its own.
    peak: dict[str, int] = {}
    implementations: list[Implementation] = []
    for name, make in makers.items():
        from_child = config.peak_memory and not name.startswith("ours")
        peak_bytes = memory.peak_bytes_of_child(child(config, workload, name)) if from_child else None
        one = make()
        one.warm_up()
        implementations.append(one)
        if isinstance(one, ours.Ours):
            peak_bytes = one.peak_bytes()
        if peak_bytes is not None:
            peak[name] = peak_bytes
        print(f"{workload.name} {name}: first calls {sum(one.first_call.values()):.1f} s", flush=True)
    # 3. Rounds.
    most = config.most_rounds or 2 * config.repeats

    def tell(one: Round) -> None:
        wholes = ", ".join(f"{name} {seconds['whole']:.3g}" for name, seconds in one.seconds.items())
        print(f"{workload.name}: {wholes} s; others had {max(one.foreign.values()):.0%} of the cores", flush=True)

    rounds = interleaving.interleave(
        implementations, repeats=config.repeats, foreign_limit=config.foreign_limit, most_rounds=most, report=tell
    )
    kept, quiet = interleaving.kept_rounds(rounds, repeats=config.repeats, foreign_limit=config.foreign_limit)
    return report.Measurement(
        workload=workload,
        rounds=kept,
        quiet=quiet,
        forms={one.name: one.form for one in implementations},
        first_call={one.name: one.first_call for one in implementations},
        peak_bytes=peak,
        ceilings=limits,
        environment=environment() | {"others": {name: version(name) for name in PACKAGES}},
    )


def child(config: Config, workload: Workload, name: str) -> list[str]:
    """The command that prints what one implementation needs in memory."""
    shape = [f"--{size}={getattr(workload, size)}" for size in ("batch", "prompt", "response")]
    flags = ["--memory-only", "--no-torch-compile"] + (["--bf16-too"] if config.bf16_too else [])
    return [__file__, workload.name, "--implementations", name, *shape, *flags]


def main(config: Config) -> Path | str:
    """Measures, prints and writes."""
    if config.memory_only:
        (workload,) = workloads(config)
        (make,) = makers_of(config, workload, networks.draw_networks(workload)).values()
        return f"peak_bytes {memory.peak_bytes(make)}"
    claim(config.out, Path(__file__).name, known_by="bench.json")
    if not have_torch():
        print("torch is not installed: ours alone (pip install -e '.[bench]' -c constraints.txt for the others)")
    measured = []
    for workload in workloads(config):
        measured.append(bench(config, workload))
        report.write_json(config.out / "bench.json", measured)
    text = report.markdown(measured)
    (config.out / "bench.md").write_text(text, encoding="utf-8")
    plots.save(report.picture(measured), config.out, "bench")
    print(text)
    return config.out / "bench.json"


if __name__ == "__main__":
    print(start(main, options(Config, __doc__)))

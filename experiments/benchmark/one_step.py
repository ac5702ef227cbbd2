"""What `bench_dpo.py` and `bench_grpo.py` share: options, the rounds of one size, the table of a step that is timed as a whole."""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from benchmark import ceilings, interleaving
from benchmark.interleaving import Implementation, Ratio, Round, ratio, seconds_of
from benchmark.workload import ACCELERATOR_WORKLOADS, CPU_WORKLOADS, Workload
from rlhf_jax.ranges import Batch, Range, check_numbers
from rlhf_jax.runtime.machine import environment
from rlhf_jax.runtime.run import claim

Clock = Callable[[], float]
"""Seconds since some moment: the wall's, or those the process has computed on all cores."""
Table = Callable[[Sequence[Round], bool, Mapping[str, float] | None], str]
"""(rounds, whether they were undisturbed, ceilings as `markdown` takes them) to the table of one size."""


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What to measure, and how often."""

    sizes: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Of tiny, gpt2-124m, gpt2-345m; without any, those this device is fit for."""
    out: Path = Path("runs/bench_step")
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
    """Responses of a step."""

    def __post_init__(self) -> None:
        check_numbers(self)
        unknown = [size for size in self.sizes if size not in CPU_WORKLOADS]
        if unknown:
            raise ValueError(f"sizes must be of {list(CPU_WORKLOADS)}; got {unknown}")
        if self.most_rounds and self.most_rounds < self.repeats:
            raise ValueError(
                f"--most-rounds {self.most_rounds} cannot hold --repeats {self.repeats}; 0 is twice as many"
            )


def workloads(config: StepConfig) -> list[Workload]:
    """The sizes asked for, in the shape that suits this device."""
    on_cpu = jax.default_backend() == "cpu"
    table = CPU_WORKLOADS if on_cpu else ACCELERATOR_WORKLOADS
    names = config.sizes or (("tiny", "gpt2-124m") if on_cpu else tuple(table))
    return [dataclasses.replace(table[name], batch=config.batch or table[name].batch) for name in names]


def clock_of(config: StepConfig) -> Clock:
    """The clock that was asked for."""
    return time.perf_counter if config.clock == "wall" else time.process_time


def compute_type() -> Literal["float32", "bfloat16"]:
    """The type of numbers that every implementation multiplies in on this device."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def bench(
    config: StepConfig, workload: Workload, implementations_of: Callable[[], list[Implementation]], table: Table
) -> tuple[str, dict[str, Any]]:
    """The table of one size, and what it was made of."""
    kind = compute_type()
    # 1. The ceiling of the chip.
    ceiling = ceilings.measure(workload, kind) if config.clock == "wall" else None
    # 2. First calls, compilation included.
    implementations = implementations_of()
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
    return table(kept, quiet, {kind: ceiling.matmul} if ceiling is not None else None), {
        "clock": config.clock,
        "workload": dataclasses.asdict(workload),
        "seconds": {one.name: seconds_of(kept, one.name, "whole") for one in implementations},
        "ratios": {name: list(found.pairs) for name, found in ratios(kept).items()},
        "first_call_seconds": {one.name: one.first_call["whole"] for one in implementations},
        "foreign_cpu_share": [dict(one.foreign) for one in kept],
        "quiet": quiet,
        "ceiling": dataclasses.asdict(ceiling) if ceiling is not None else None,
        "environment": environment(),
    }


def measure(
    config: StepConfig, script: Path, bench_size: Callable[[Any, Workload], tuple[str, dict[str, Any]]]
) -> Path:
    """Measures every size, prints the tables and writes `<script>.json` and `<script>.md`. Returns the former's path."""
    result = config.out / f"{script.stem}.json"
    claim(config.out, script.name, known_by=result.name)
    tables, found = [], {}
    for workload in workloads(config):
        table, found[workload.name] = bench_size(config, workload)
        tables.append(table)
        result.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = "\n\n".join(tables) + "\n"
    result.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return result


def ratios(rounds: Sequence[Round]) -> dict[str, Ratio]:
    """How many times faster our step is than each other one of the same type of numbers."""
    names = list(rounds[0].seconds)
    found = {}
    for theirs in names:
        ours = "ours_bf16" if theirs.endswith("_bf16") else "ours"
        if not theirs.startswith("ours") and ours in names:
            found[theirs] = ratio(rounds, ours=ours, theirs=theirs, phase="whole")
    return found


def markdown(
    heading: str,
    what: str,
    rounds: Sequence[Round],
    *,
    quiet: bool,
    floor_flops: float,
    matmul: Mapping[str, float] | None,
) -> str:
    """The table of one size.

    Args:
      what: the workload in a sentence, without its full stop.
      quiet: False where other processes disturbed what was measured.
      floor_flops: useful operations of a step.
      matmul: ceiling of each type of number, floating-point operations per second; None where the seconds are not the wall's.
    """
    unit = "step, CPU s" if matmul is None else "step, s"
    lines = [
        f"## {heading}",
        f"{what}. {len(rounds)} interleaved rounds"
        + ("." if quiet else "; **other processes were running: ratios hold better than seconds.**"),
        "",
        f"| implementation | {unit} | of the ceiling | ours is faster by |",
        "|---|---|---|---|",
    ]
    found = ratios(rounds)
    for name in sorted(rounds[0].seconds):  # Turns rotate; ours comes first here.
        seconds = seconds_of(rounds, name, "whole")
        median = statistics.median(seconds)
        share = "–"
        if matmul is not None:
            ceiling = matmul["bfloat16" if name.endswith("_bf16") else "float32"]
            share = f"{100 * floor_flops / ceiling / median:.0f} %"
        faster = "–"
        if name in found:
            least, most = found[name].spread
            faster = f"{found[name].median:.2f}× ({least:.2f}–{most:.2f})"
        spread = f"{min(seconds):.3g}–{max(seconds):.3g}"
        lines.append(f"| {name} | {median:.3g} ({spread}) | {share} | {faster} |")
    return "\n".join([*lines, "", "Median (least–most)."])

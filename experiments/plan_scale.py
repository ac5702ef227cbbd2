"""Does one step of training fit a fleet of devices, how long would it take, what would it wait for? No device is needed.

    python experiments/plan_scale.py                                     # PPO: three sizes × three fleets
    python experiments/plan_scale.py --steps grpo multi-turn dpo         # of the other learners
    python experiments/plan_scale.py --sizes 7b --fleets 8xh200 --mesh.fsdp 8 --batch 512
    python experiments/plan_scale.py --sizes 7b --fleets v5e-256 --tpu   # the TPU's compiler too (pip install libtpu)

The programs that training runs are compiled for all devices of the fleet, at the real width and vocabulary and a few
depths, on as many pretended CPU devices; no array is ever made. Numbers at the real depth lie on the line through two
depths, a third one says how well. Bytes of parameters and states are exact. Seconds are arithmetic, not measurements:
counts over ceilings times assumed shares. Writes `scale.json` and `scale.md` into `--out`, and keeps what was compiled
in its folder `programs`. How to read the table: docs/scaling.md.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Annotated, Any

from jax.sharding import AbstractMesh, AxisType

from benchmark import dpo_step
from benchmark.workload import Workload
from command_line import options, start
from rlhf_jax.parallel.mesh import AXES, MeshConfig, check_sizes
from rlhf_jax.parallel.partition import Partition
from rlhf_jax.ranges import Batch, Epochs, Group, Range, Tokens, check_numbers
from rlhf_jax.runtime.machine import environment
from rlhf_jax.runtime.run import claim
from scale import plan as scale_plan
from scale.compiling import compiled_apart
from scale.plan import PHASES, Fleet, Seconds, Work
from scale.program import Program, Steps
from scale.steps import parts_of

SIZES = {"gpt2-medium": (24, 1024, 16), "gpt2-xl": (48, 1600, 25), "7b": (32, 4096, 32)}
"""Layers, width, heads."""
GPT2_WORDS, REDIAL_ITEMS = 50_257, 6_924
H200 = (
    "matmul and bandwidth as seen on one H200 with other programs (790 of 989 TFLOP/s bfloat16, copy 4.3 of 4.8 TB/s), not "
    "measured again with ours; datasheets: 141 GB, NVLink 900 GB/s both ways together, one 400 Gb/s adapter a GPU (DGX H200)"
)
FLEETS = {
    fleet.name: fleet
    for fleet in (
        Fleet("8xh200", 8, 8, 141e9, 790e12, 4.3e12, 450e9, 50e9, H200),
        Fleet("64xh200", 64, 8, 141e9, 790e12, 4.3e12, 450e9, 50e9, H200),
        Fleet(
            "v5e-256",
            256,
            256,
            16e9,
            0.8 * 197e12,
            0.9 * 819e9,
            100e9,
            100e9,
            "nothing measured; cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 819 GB/s, 16 GB, links 400 GB/s both ways over "
            "four ports; of the first two the fractions .8 and .9 that an H200 reaches; two ports, one way, for a ring",
        ),
    )
}
TOPOLOGIES = {"v5e-256": "v5e:16x16"}
COUNTED = ("temporaries", "work")
"""What the compiler says and depth changes."""
# gpt2-xl's 25 heads divide by 1, 5 and 25, and 8, 64 and 256 devices by neither of the last two: its `tensor` is 1. The
# vocabulary's 57,216 rows divide by 128, not by 256: `fsdp × tensor` is at most 128.
MESHES = {
    ("gpt2-medium", "8xh200"): MeshConfig(8, 1, 1),
    ("gpt2-medium", "64xh200"): MeshConfig(64, 1, 1),
    ("gpt2-medium", "v5e-256"): MeshConfig(256, 1, 1),
    ("gpt2-xl", "8xh200"): MeshConfig(1, 8, 1),
    ("gpt2-xl", "64xh200"): MeshConfig(8, 8, 1),
    ("gpt2-xl", "v5e-256"): MeshConfig(4, 64, 1),
    ("7b", "8xh200"): MeshConfig(1, 8, 1),
    ("7b", "64xh200"): MeshConfig(8, 8, 1),
    ("7b", "v5e-256"): MeshConfig(2, 16, 8),
}
BATCHES = {"8xh200": 256, "64xh200": 1024, "v5e-256": 1024}
STEPS: tuple[Steps, ...] = ("ppo", "grpo", "multi-turn", "dpo")


Depth = Annotated[int, Range("[2, 1_000]")]
Reached = Annotated[float, Range("(0, 1]")]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to plan."""

    steps: tuple[Steps, ...] = ("ppo",)
    """Of which learners: PPO, GRPO, GRPO on conversations, DPO."""
    sizes: tuple[str, ...] = tuple(SIZES)
    fleets: tuple[str, ...] = tuple(FLEETS)
    mesh: MeshConfig = MeshConfig()
    """Of all plans; 1 × 1 × 1 takes the one chosen for each size and fleet."""
    batch: Annotated[int, Range("[0, 1_000_000]")] = 0
    """Responses of a step over all devices (of pairs both, of conversations all turns); 0 is 256 on 8 devices, 1,024 on more, and
    as many as give every device that shares out rows a whole group."""
    prompt: Tokens = 256
    response: Annotated[int, Range("[2, 65_536]")] = 64
    epochs: Epochs = 4
    minibatches: Batch = 4
    microbatches: Batch = 1
    group: Group = 8
    """Responses to a prompt in GRPO, conversations from an opening in multi-turn steps."""
    turns: Annotated[int, Range("[1, 1_000]")] = 4
    """Of a conversation in multi-turn steps."""
    items: Annotated[int, Range("[1, 10_000_000]")] = REDIAL_ITEMS
    """Tokens of the vocabulary that are items."""
    depths: tuple[Depth, Depth] = (6, 10)
    """Layers of the two programs that the line goes through; with fewer, other moments need the most memory."""
    check_depth: Depth = 14
    """Layers of the third one, which says how straight the line is."""
    shares: tuple[Reached, Reached, Reached] = (0.5, 0.6, 0.8)
    """What is assumed to be reached of the ceilings: matmul, memory, links."""
    tpu: bool = False
    """Let the TPU's compiler say the memory of its fleets at the two largest depths; minutes a program."""
    out: Path = Path("runs/scale")

    def __post_init__(self) -> None:
        check_numbers(self)
        for name, known in (("sizes", SIZES), ("fleets", FLEETS)):
            if unknown := [one for one in getattr(self, name) if one not in known]:
                raise ValueError(f"--{name} must be of {list(known)}; got {unknown}")
        if not self.depths[0] < self.depths[1] < self.check_depth:
            raise ValueError(f"--depths and --check-depth must rise: got {self.depths} and {self.check_depth}")
        if not self.steps:
            raise ValueError(f"--steps must name at least one of {list(STEPS)}")
        if self.group < 2 and {"grpo", "multi-turn"} & set(self.steps):
            raise ValueError(f"--group {self.group} has nothing to be compared with: at least 2")
        if self.epochs * self.minibatches < 2:
            raise ValueError(
                "--epochs times --minibatches must be above 1, because a loop of one trip is no loop: got "
                f"{self.epochs} × {self.minibatches}"
            )
        if self.tpu and not set(self.fleets) & set(TOPOLOGIES):
            raise ValueError(f"--tpu asks about {list(TOPOLOGIES)} alone, got fleets {list(self.fleets)}")


def program_of(config: Config, size: str, fleet: Fleet, steps: Steps = "ppo") -> Program:
    """The step at the real depth.

    Raises: ValueError, naming the numbers, where the mesh is not the fleet's or does not divide what it cuts.
    """
    layers, width, heads = SIZES[size]
    mesh = MESHES[size, fleet.name] if config.mesh.size == 1 else config.mesh
    if mesh.size != fleet.devices:
        raise ValueError(f"mesh {mesh} has {mesh.size} devices, {fleet.name} {fleet.devices}")
    # Responses that belong together: of one prompt, of one opening, of one comparison.
    of_one = {"ppo": 1, "grpo": config.group, "multi-turn": config.group * config.turns, "dpo": 2}[steps]
    program = Program(
        name=size,
        layers=layers,
        width=width,
        heads=heads,
        mesh=mesh,
        batch=config.batch or max(BATCHES[fleet.name], of_one * mesh.row_parts),
        prompt=config.prompt,
        response=config.response,
        epochs=config.epochs,
        minibatches=config.minibatches,
        microbatches=config.microbatches,
        words=GPT2_WORDS,
        items=config.items,
        steps=steps,
        group=config.group,
        turns=config.turns,
    )
    slices = config.microbatches if steps == "dpo" else config.minibatches * config.microbatches
    if program.batch % slices:
        raise ValueError(f"{program.batch} responses cannot be cut into minibatches × microbatches = {slices}")
    if program.batch % of_one:
        raise ValueError(f"{program.batch} responses are no whole groups of {of_one}, as {steps} needs them")
    rows = {"responses": program.batch, "responses of a microbatch": program.batch // slices}
    if of_one > 1:
        rows[f"groups of {of_one} responses"] = program.batch // of_one
    check_sizes(mesh, width=width, heads=heads, vocabulary=program.vocabulary.size, rows=rows)
    return program


def resident(program: Program) -> dict[str, float]:
    """Exact bytes of one device at the real depth, and the cache, which is one of the compiler's temporaries."""
    mesh = program.mesh
    layout = Partition(AbstractMesh((mesh.data, mesh.fsdp, mesh.tensor), AXES, axis_types=(AxisType.Auto,) * 3))
    parts = parts_of(program, layout)
    return {name: float(size) for name, size in scale_plan.resident_bytes(layout, parts.held, parts.cache).items()}


def line(config: Config, program: Program, topology: str = "") -> tuple[dict[str, Any], dict[str, float], float]:
    """What the compiler says, carried to the real depth; the line's relative errors at the third; matmuls' share.

    Operations and bytes sent lie on the line through the first two depths. The peak of memory is the largest of several
    lines, so it bends upwards: the line through the two largest depths is the nearest below it.
    """
    deepest = config.depths[1], config.check_depth
    depths = deepest if topology else (*config.depths, config.check_depth)
    programs = [dataclasses.replace(program, layers=depth, topology=topology) for depth in depths]
    said = dict(zip(depths, compiled_apart(programs, config.out / "programs"), strict=True))
    spent = ", ".join(f"{one['seconds']:.0f}" for one in said.values())
    print(
        f"{program.steps}, {program.name}, {program.mesh}, {depths} layers{topology and ', TPU'}: compiled in {spent} s",
        flush=True,
    )
    near, far = (said[depth]["temporaries"] for depth in deepest)
    temporaries = scale_plan.along_depth(near, far, deepest, program.layers)
    if topology:
        return {"temporaries": temporaries}, {}, 1.0
    shallow, deep = ({key: said[depth][key] for key in said[depth] if key in COUNTED} for depth in config.depths)
    reached = scale_plan.along_depth(shallow, deep, config.depths, program.layers) | {"temporaries": temporaries}
    known, drawn = said[config.check_depth], scale_plan.along_depth(shallow, deep, config.depths, config.check_depth)
    errors = {name: total(drawn, name) / total(known, name) - 1 for name in ("flops", "sent", "temporaries")}
    share = min(one["matmul_share"] for one in said.values())
    if not 0.9 < share <= 1:
        raise ValueError(f"the matmuls found in {program} are {share:.2f} of the operations its compiler counts")
    return reached, errors, share


def total(said: dict[str, Any], name: str) -> float:
    """Over phases and axes."""
    if name in said:
        return said[name]
    numbers = [one[name] for one in said["work"].values()]
    return sum(sum(one.values()) if isinstance(one, dict) else one for one in numbers)


def moved(program: Program, parameters: float) -> dict[str, float]:
    """Bytes between a device and its memory: weights, cache and Adam; activations are not counted.

    A pass reads the float32 weights (cut on `fsdp`, it writes them first, gathered), writes them as bfloat16 and reads
    those: forward, again under remat, once backward. The gradient is written in float32, and added to the sum of the
    microbatches where there are several. A step of Adam reads and writes parameters and both moments and reads the
    gradient: 7 numbers a parameter. A token reads all bfloat16 weights and the whole cache, filled or not.

    Args:
      parameters: bytes of them stored on a device.
    """
    mesh = program.mesh
    # Loops over tokens, rows in each, passes that learn nothing, optimiser steps.
    drawn, rows, passes, steps = {
        # Prompts, reward model, old and reference policy.
        "ppo": (1, program.batch, 4, program.epochs * program.minibatches),
        "grpo": (1, program.batch, 4, program.epochs * program.minibatches),
        # Prompts of every turn, old and reference policy.
        "multi-turn": (
            program.turns,
            program.batch // program.turns,
            program.turns + 2,
            program.epochs * program.minibatches,
        ),
        "dpo": (0, program.batch, 0, 1),
    }[program.steps]
    local = workload(program, rows // mesh.row_parts)
    weights = local.trunk_parameters / mesh.tensor
    slots = program.prompt + program.response - 1
    read = program.layers * (12 * program.width**2 + 2 * local.batch * slots * program.width)
    read += program.vocabulary.size * program.width
    gathered = 4 if mesh.fsdp > 1 else 0
    gradient = 4 if program.microbatches == 1 else 4 + 8
    return {
        "decode": 2 * drawn * (program.response - 1) * read / mesh.tensor,
        "passes": passes * weights * (gathered + 4 + 2 + 2),
        "update": steps * (program.microbatches * weights * (gathered + 4 + 2 + 3 * 2 + gradient) + 7 * parameters),
    }


def paper_flops(program: Program) -> float:
    """Useful operations of the update, over all devices: three times a forward pass for every response and epoch; of a pair one
    pass that reads its prompt once."""
    if program.steps == "dpo":
        return dpo_step.floor_flops(workload(program, program.batch))
    return workload(program, program.batch).phase_flops("update", "shared")


def workload(program: Program, rows: int) -> Workload:
    """For the benchmark's counts of work, with so many responses."""
    sizes = program.layers, program.width, program.heads, program.vocabulary.size
    # Rows that one device reads may be fewer than it has minibatches; its counts do not depend on them.
    loops = program.epochs, 1, 1
    return Workload(program.name, *sizes, rows, program.prompt, program.response, *loops)


def plan(config: Config, size: str, fleet: Fleet, steps: Steps = "ppo") -> dict[str, Any]:
    """One line of the tables."""
    program = program_of(config, size, fleet, steps)
    # 1. Exact bytes at the real depth.
    held = resident(program)
    # 2. The compiler at three depths, and lines through two of them.
    reached, errors, matmul_share = line(config, program)
    temporaries = {"CPU": reached["temporaries"]}
    if config.tpu and fleet.name in TOPOLOGIES:
        temporaries["TPU"] = line(config, program, TOPOLOGIES[fleet.name])[0]["temporaries"]
    stays = {name: size for name, size in held.items() if name != "cache"}
    needed = stays | {"temporaries": temporaries.get("TPU", temporaries["CPU"])}
    try:
        scale_plan.check_memory(needed, fleet)
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    # 3. Seconds.
    mesh = {axis: getattr(program.mesh, axis) for axis in AXES}
    traffic = moved(program, held["parameters"])
    work = {phase: Work(**one) for phase, one in reached["work"].items()}
    seconds = {
        phase: scale_plan.phase_seconds(work[phase], traffic[phase], fleet, mesh, shares=config.shares)
        for phase in PHASES
    }
    return {
        "steps": steps,
        "size": size,
        "fleet": fleet.name,
        "mesh": mesh,
        "batch": program.batch,
        "bytes": held,
        "temporaries": temporaries,
        "sum": sum(needed.values()),
        "refusal": refusal,
        "work": reached["work"],
        "moved": traffic,
        "seconds": {phase: one._asdict() | {"binds": one.binds} for phase, one in seconds.items()},
        "update_flops_of_paper_count": work["update"].flops * program.mesh.size / paper_flops(program),
        "error_at_check_depth": errors,
        "matmul_share_of_counted_flops": matmul_share,
    }


def markdown(config: Config, plans: list[dict[str, Any]]) -> str:
    """Two tables, bytes and seconds, and what they rest on."""
    parts = ("parameters", "moments", "reference", "reward model", "cache")
    matmul, memory, links = config.shares
    said = (
        f"Prompt {config.prompt}, response {config.response}, {config.epochs} epochs of {config.minibatches} minibatches, "
        f"{config.microbatches} microbatches each (of DPO one step); groups of {config.group}, conversations of {config.turns} turns; "
        f"shares assumed: matmul {matmul}, memory {memory}, links {links}."
    )
    lines = [
        said,
        "\nGB on one device (the cache is one of the temporaries):\n",
        f"| step | size | fleet | mesh | responses | {' | '.join(parts)} | temporaries, at least | sum | fits |",
        "|" + "---|" * 13,
    ]
    for one in plans:
        cells = [
            one["steps"],
            one["size"],
            one["fleet"],
            " × ".join(map(str, one["mesh"].values())),
            f"{one['batch']:,}",
        ]
        cells += [f"{one['bytes'][name] / 1e9:.2f}" if name in one["bytes"] else "–" for name in parts]
        cells += [", ".join(f"{size / 1e9:.1f} {by}" for by, size in one["temporaries"].items())]
        has = f"{FLEETS[one['fleet']].memory / 1e9:.0f}"
        cells += [f"{one['sum'] / 1e9:.1f}", f"**no** ({has})" if one["refusal"] else f"yes ({has})"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "\nOne step on one device: seconds of matmuls / memory / links, each alone, and the one that binds.",
        "Last: how far the line through the first two depths is off at the third, in operations, bytes sent, temporaries (CPU).\n",
        "| step | size | fleet | TFLOP | GB sent | decode | prompts, scores, judging | update | step, s | line off by |",
        "|" + "---|" * 10,
    ]
    for one in plans:
        cells = [one["steps"], one["size"], one["fleet"]]
        operations = total(one, "flops") / 1e12
        cells += [f"{operations:{',.0f' if operations >= 10 else '.2g'}}", f"{total(one, 'sent') / 1e9:.1f}"]
        seconds = [Seconds(*(one["seconds"][phase][name] for name in Seconds._fields)) for phase in PHASES]
        cells += [
            f"{' / '.join(f'{number:.2g}' for number in each)}: {each.binds}" if any(each) else "–" for each in seconds
        ]
        cells += ["–".join(f"{sum(ends):.2g}" for ends in zip(*(each.span for each in seconds), strict=True))]
        cells += [", ".join(f"{100 * off:+.1f} %" for off in one["error_at_check_depth"].values())]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        *(f"- {one['steps']}, {one['size']} on {one['fleet']}: {one['refusal']}" for one in plans if one["refusal"]),
    ]
    lines += ["", "Ceilings:", *(f"- {name}: {FLEETS[name].source}." for name in config.fleets), ""]
    return "\n".join(lines)


def main(config: Config) -> Path:
    """Plans, prints and writes."""
    plans = []
    claim(config.out, Path(__file__).name, known_by="scale.json")
    wanted = list(itertools.product(config.steps, config.sizes, config.fleets))
    for steps, size, name in wanted:
        program_of(config, size, FLEETS[name], steps)  # What cannot be cut is refused before anything is compiled.
    for steps, size, name in wanted:
        plans.append(plan(config, size, FLEETS[name], steps))
        whole = {"plans": plans, "config": dataclasses.asdict(config) | {"out": str(config.out)}}
        fleets = {name: dataclasses.asdict(FLEETS[name]) for name in config.fleets}
        text = json.dumps(whole | {"fleets": fleets, "environment": environment()}, indent=1)
        (config.out / "scale.json").write_text(text, encoding="utf-8")
        (config.out / "scale.md").write_text(markdown(config, plans), encoding="utf-8")
    print(markdown(config, plans))
    return config.out / "scale.json"


if __name__ == "__main__":
    print(start(main, options(Config, __doc__)))

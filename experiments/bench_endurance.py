"""Does a long run grow, recompile or slow down? Imitation, reward model and PPO at a small size, for as long as one likes.

    python experiments/bench_endurance.py              # 1,000,000 tokens of imitation, 500 updates of PPO
    python experiments/bench_endurance.py debug        # 20 updates, for tests

The stages are those of `ppo_redial.py`, in the simulated world, with metrics, checkpoints, evaluations, samples and the
progress bar. Before every update the process is looked at: its memory, the bytes of all arrays that are alive, how many
programs were compiled, and its CPU seconds (of all threads; on an accelerator by the clock), because other processes disturb
the wall's clock. Those that share a core disturb CPU seconds too; so a fixed piece of work, the yardstick, is timed beside
every update. The last tenth of the updates is compared with the second; the first one compiles.

Writes `endurance.json`, `report.md` and `plots/endurance.{svg,png}`.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import miniature
from command_line import preset_and_options, start
from rlhf_jax.assessment import users
from rlhf_jax.learners.grpo_config import GRPOConfig
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.ranges import Cases, Range
from rlhf_jax.reporting import plots
from rlhf_jax.reporting.result_tables import markdown_table
from rlhf_jax.runtime.files import notice, write_json, write_text
from rlhf_jax.runtime.machine import environment
from rlhf_jax.simulators.world import WorldConfig
from rlhf_jax.stages import alignment, reward, supervised
from rlhf_jax.stages.alignment import AlignmentConfig
from rlhf_jax.stages.item_prior import PriorConfig
from rlhf_jax.stages.launch import Pipeline, StartConfig, check_stages, prepare, started
from rlhf_jax.stages.reward import RewardConfig
from rlhf_jax.stages.setup import DataConfig, ModelConfig, Setup
from rlhf_jax.stages.supervised import SupervisedConfig
from scale import endurance


@dataclasses.dataclass(frozen=True)
class Config(StartConfig, Pipeline):
    """The stages of `ppo_redial.py`, and how long they go."""

    run_dir: Path = Path("runs/bench-endurance")
    """Where everything goes; begin each measurement in a folder of its own."""
    tokens: Annotated[int, Range("[1, 1_000_000_000]")] = 1_000_000
    """Imitation makes as many passes as read so many tokens, padding not counted; a multiple of `--sft.epochs`, ten in the
    preset, so that every tenth of the updates evaluates as often."""
    data: DataConfig = DataConfig(
        world=WorldConfig(n_items=48, n_train=300, n_test=40, n_users=120), n_words=500, context_tokens=64
    )
    model: ModelConfig = ModelConfig(n_layer=2, n_embd=64, n_head=4, n_positions=256)
    sft: SupervisedConfig = SupervisedConfig(
        epochs=10, max_tokens=160, buckets=(64, 160), tokens_per_batch=1920, patience=None, saves_per_epoch=1
    )
    prior: PriorConfig = PriorConfig()
    reward: RewardConfig = RewardConfig(epochs=1, validation_turns=64, gate="warn")
    align: AlignmentConfig = AlignmentConfig(updates=500, batch_size=32, evaluations=20, save_every=25)
    algorithm: Literal["ppo", "grpo"] = "ppo"
    """Which learner goes on for long, and whose numbers it reads."""
    ppo: PPOConfig = PPOConfig(epochs=2, minibatches=2)
    grpo: GRPOConfig = GRPOConfig(epochs=2, minibatches=2)
    users: Cases = 32
    """Users of the world that an evaluation meets, for two turns each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stages(self)


PRESETS = {
    "endurance": ("a million tokens, 500 updates; minutes on a CPU core", Config()),
    "debug": (
        "20 updates, for tests",
        Config(
            run_dir=Path("runs/debug-bench-endurance"),
            tokens=6000,
            data=dataclasses.replace(miniature.DATA, world=WorldConfig(n_items=40, n_train=30, n_test=8, n_users=16)),
            model=miniature.MODEL,
            sft=dataclasses.replace(miniature.SFT, epochs=1, patience=None, tokens_per_batch=512),
            reward=miniature.REWARD,
            align=dataclasses.replace(miniature.ALIGN, updates=20, evaluations=10),
            ppo=miniature.PPO,
            users=8,
        ),
    ),
}
SHOWN = {"sft": "imitation", "ppo": "PPO", "grpo": "GRPO"}


def passes(setup: Setup, config: Config) -> int:
    """Of imitation over its texts, so that `config.tokens` are read. Descriptions are in the first passes alone, and not counted."""
    batches = supervised.training_batches(setup.corpus, setup.vocab, setup.agent.grammar, config.sft, config.seed)
    in_a_pass = int(batches.encoded.lengths()[~batches.encoded.description].sum())
    return config.sft.epochs * math.ceil(config.tokens / (config.sft.epochs * in_a_pass))


def tables(found: Mapping[str, Sequence[endurance.Span]]) -> str:
    """A line a stage with its verdict, and every tenth of each."""
    lines = []
    for stage, spans in found.items():
        said = endurance.verdict(spans)
        lines.append(
            [
                SHOWN[stage],
                f"{1 + sum(span.updates for span in spans):,}",
                f"{100 * said['throughput']:.1f} %",
                f"{100 * said['quick']:.1f} %",
                f"{100 * said['yardstick']:.1f} %",
                f"{100 * said['resident']:.1f} %",
                f"{100 * said['live']:.2f} %",
                f"{said['compiled']:.0f}",
            ]
        )
    heads = [
        "stage",
        "updates",
        "updates a second",
        "of updates alone",
        "yardstick",
        "process",
        "live arrays",
        "compiled after the second tenth",
    ]
    parts = [
        "The last tenth of the updates over the second; CPU seconds of all threads, on an accelerator by the clock:",
        markdown_table(heads, lines),
    ]
    heads = ["tenth", "process, MB", "live, MB", "s an update", "alone", "yardstick, ms", "compiled"]
    for stage, spans in found.items():
        rows = [
            [
                str(number),
                f"{span.resident_mb:.0f}",
                f"{span.live_bytes / 2**20:.3f}",
                f"{span.seconds:.4f}",
                f"{span.quick_seconds:.4f}",
                f"{1000 * span.yardstick_seconds:.2f}",
                str(span.programs),
            ]
            for number, span in enumerate(spans, start=1)
        ]
        parts += [f"## {SHOWN[stage]}", markdown_table(heads, rows)]
    return "\n\n".join(parts)


def draw(looks: Mapping[str, Sequence[endurance.Look]], folder: Path) -> Path:
    """Memory, arrays and seconds of every stage, update by update."""
    panels = []
    for stage, own in looks.items():
        updates = [look.update for look in own[1:]]
        seconds = [after.seconds - before.seconds for before, after in itertools.pairwise(own)]
        series: list[tuple[str, list[float], str]] = [
            ("process", [look.resident_mb for look in own[1:]], "MB"),
            ("live arrays", [look.live_bytes / 2**20 for look in own[1:]], "MB"),
            ("an update", seconds, "s"),
        ]
        panels += [
            plots.Panel(f"{SHOWN[stage]}: {name}", [plots.Line(name, updates, values)], unit, bottom=0.0)
            for name, values, unit in series
        ]
    return plots.save(plots.small_multiples(panels, columns=3), folder, "endurance")


def main(config: Config) -> Path:
    """1 imitation, 2 reward model, 3 PPO, all of them watched; 4 table and figure."""
    with started(config) as run, endurance.watching() as watch:
        setup = prepare(run, config)._replace(layout=watch)
        # 1. Imitation.
        sft = dataclasses.replace(config.sft, epochs=passes(setup, config))
        trunk = supervised.train(run, setup, sft)
        # 2. The reward model that the next stage needs.
        proxy, _ = reward.train(run, setup, trunk, config.reward, weights=config.learner.component_weights)
        # 3. Reinforcement learning.
        truth = users.closed_loop_probe(setup, proxy, n_users=config.users, n_turns=2)
        alignment.align(run, setup, trunk, proxy, config.align, config.learner, truth=truth)
        # 4. Table and figure.
        looks = {
            name: [look for look in watch.looks if look.stage == stage]
            for name, stage in ((supervised.STAGE, supervised.STAGE), (config.algorithm, alignment.STAGE))
        }
        found = {stage: endurance.spans(own) for stage, own in looks.items()}
        entries: dict[str, Any] = {
            stage: {
                "verdict": endurance.verdict(spans),
                "tenths": [dataclasses.asdict(span) for span in spans],
                "compiled": watch.compiled_at(looks[stage][0].stage),
                "looks": [look[1:] for look in looks[stage]],
            }
            for stage, spans in found.items()
        }
        fields = list(endurance.Look._fields[1:])
        write_json(run.path / "endurance.json", {"fields": fields, **entries, "environment": environment()})
        picture = draw(looks, run.path / "plots")
        caption = "Memory of the process, bytes of live arrays and seconds of an update"
        text = f"# Long runs\n\n{plots.image(picture.relative_to(run.path), caption)}\n\n{tables(found)}\n"
        report = run.path / "report.md"
        write_text(report, text)
        notice(text)
        return report


def command_line(arguments: list[str]) -> Config:
    """A preset (none means `endurance`) with options on top."""
    return preset_and_options(PRESETS, arguments, __doc__)


if __name__ == "__main__":
    start(main, command_line)

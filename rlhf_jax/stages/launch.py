"""How an experiment of all stages starts: the options that each of them has, and the run directory they open."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import jax

from rlhf_jax.data.sources import WORLD
from rlhf_jax.feedback.components import weights_of
from rlhf_jax.interfaces import Corpus
from rlhf_jax.learners.grpo_config import GRPOConfig
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.models.gpt2 import GPT2Config
from rlhf_jax.parallel.mesh import MeshConfig, check_sizes, make_mesh
from rlhf_jax.parallel.partition import ONE_DEVICE, Layout, Partition
from rlhf_jax.parallel.processes import ProcessConfig, join, several
from rlhf_jax.ranges import Range, Seed, check_numbers
from rlhf_jax.runtime.interrupts import ends_without_the_others, exits_on_signals
from rlhf_jax.runtime.run import RunDirectory, Tracker, enable_compilation_cache, open_run
from rlhf_jax.stages.alignment import AlignmentConfig, prompts_of
from rlhf_jax.stages.item_prior import PriorConfig
from rlhf_jax.stages.reward import RewardConfig, check_functions
from rlhf_jax.stages.setup import DataConfig, ModelConfig, Setup, set_up
from rlhf_jax.stages.supervised import SupervisedConfig

Stage = Literal["sft", "reward_model", "ppo", "grpo"]
"""The training stages of the paper, as checkpoints and metrics name them."""


@dataclasses.dataclass(frozen=True)
class StartConfig:
    """Where a run is and where its numbers go, the seed, and what trains; only the seed must be the same to continue a run."""

    run_dir: Path
    """Where everything goes; an interrupted run is continued from here."""
    seed: Seed = 0
    """Of parameters, batches and sampling."""
    trackers: tuple[Tracker, ...] = ("tensorboard",)
    """Where metrics go besides `metrics.jsonl`; wandb needs the extra `tracking`."""
    mesh: MeshConfig = MeshConfig()
    """Devices that train; changes speed and memory, and numbers only by rounding."""
    processes: ProcessConfig = ProcessConfig()
    """Processes that share the mesh; see docs/scaling.md."""
    profile: tuple[Stage, ...] = ()
    """Stages whose third to fifth step are traced into `profile/STAGE` of the run directory; see docs/profiling.md."""
    samples: Annotated[int, Range("[0, 64]")] = 4
    """Validation contexts that the policy answers at every evaluation of `sft` and `ppo`; prompts, replies and scores go to
    `samples.jsonl` and the trackers. 0 is none. It changes no other number."""

    def __post_init__(self) -> None:
        check_numbers(self)


@contextlib.contextmanager
def started(config: StartConfig) -> Iterator[RunDirectory]:
    """The run directory of `config`, opened by all processes of the run; a signal between stages ends it with code 75.

    Raises: RunError for a directory that cannot be used; ValueError for processes that cannot join.
    """
    enable_compilation_cache(beside=config.run_dir)
    if config.profile:
        # A cached program has the names of its first compilation, which may be older than those in the code.
        jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
    join(config.processes)
    with (
        ends_without_the_others(),
        exits_on_signals(),
        open_run(
            config.run_dir, config, trackers=config.trackers, profile=config.profile, samples=config.samples
        ) as run,
    ):
        yield run


class Pipeline:
    """An experiment of all stages: its configuration inherits this beside `StartConfig`, and gives the fields their values."""

    seed: int
    mesh: MeshConfig
    processes: ProcessConfig
    profile: tuple[Stage, ...]
    data: DataConfig
    model: ModelConfig
    sft: SupervisedConfig
    prior: PriorConfig
    reward: RewardConfig
    align: AlignmentConfig
    algorithm: Literal["ppo", "grpo"]
    ppo: PPOConfig
    grpo: GRPOConfig

    @property
    def learner(self) -> PPOConfig | GRPOConfig:
        """The numbers of the learner that stage 3 runs."""
        return self.grpo if self.algorithm == "grpo" else self.ppo

    @property
    def unread(self) -> dict[str, str]:
        """Groups of options that this configuration does not read, with the reason: an option of theirs would do nothing."""
        idle = {"ppo" if self.algorithm == "grpo" else "grpo": f"--algorithm is {self.algorithm}"}
        if self.prior.learner == "none":
            idle["prior"] = "--prior.learner is none"
        if self.data.source != WORLD:
            idle["data.world"] = f"--data.source is {self.data.source}"
        return idle


def check_stages(config: Pipeline) -> None:
    """What stages ask of one another, as far as no data are needed to know it; for an experiment's `__post_init__`.

    Raises: ValueError naming the options that do not fit together.
    """
    learner, name, align, model = config.learner, config.algorithm, config.align, config.model
    weights_of(config.reward.components, learner.component_weights)
    slices = learner.minibatches * learner.microbatches
    if align.batch_size % slices:
        raise ValueError(
            f"--align.batch-size {align.batch_size} cannot be cut into --{name}.minibatches {learner.minibatches} × "
            f"--{name}.microbatches {learner.microbatches} = {slices} equal parts"
        )
    steps = align.updates * learner.epochs * learner.minibatches
    if align.warmup_steps >= steps:
        raise ValueError(
            f"--align.warmup-steps {align.warmup_steps} leaves no step after it: --align.updates × --{name}.epochs × "
            f"--{name}.minibatches are {steps} optimiser steps"
        )
    if align.prompt_buckets and align.prompt_buckets[-1] >= config.data.context_tokens:
        raise ValueError(
            f"--align.prompt-buckets {' '.join(map(str, align.prompt_buckets))} must be below --data.context-tokens "
            f"{config.data.context_tokens}"
        )
    if model.weights is None:
        check_lengths(config, model.n_positions, f"--model.n-positions {model.n_positions}")
    check_teacher(config.sft, config.data)
    prompts_of(align.batch_size, learner.group_size)
    if isinstance(learner, GRPOConfig):
        learner.check_parts(align.batch_size, "--align.batch-size")
    if config.prior.learner == "grpo" and (config.processes.count > 1 or config.processes.detect):
        raise ValueError("--prior.learner grpo learns in one process: choose likelihood, or leave out --processes")
    if align.trainable == "prior" and config.prior.learner == "none":
        raise ValueError("--align.trainable prior moves nothing: --prior.learner is none, the policy has no prior")
    idle = "ppo" if name == "grpo" else "grpo"
    if idle in config.profile:
        raise ValueError(f"--profile {idle} traces nothing: --algorithm is {name}")


def check_teacher(sft: SupervisedConfig, data: DataConfig) -> None:
    """Raises ValueError where a teacher is asked for of dialogues that lie on disk."""
    if sft.teacher_weight and data.store is not None:
        raise ValueError(
            f"--sft.teacher-weight {sft.teacher_weight:g} reads all training dialogues at once: leave it out, or --data.store"
        )


def check_lengths(config: Pipeline, n_positions: int, named: str) -> None:
    """Raises ValueError where a text of some stage is longer than the network's positions; `named` says what those are."""
    data, sft = config.data, config.sft
    if data.context_tokens + data.response_tokens > n_positions:
        raise ValueError(
            f"--data.context-tokens {data.context_tokens} + --data.response-tokens {data.response_tokens} exceed {named}"
        )
    if sft.buckets[-1] > n_positions:
        raise ValueError(f"--sft.buckets {' '.join(map(str, sft.buckets))}: the last exceeds {named}")


def check_data(corpus: Corpus) -> None:
    """Whether there are dialogues enough in every split.

    Raises: ValueError naming the split, the number and the options.
    """
    splits = (("training", corpus.train, 1), ("validation", corpus.validation, 1), ("test", corpus.test, 2))
    for split, dialogues, least in splits:
        if len(dialogues) < least:
            raise ValueError(
                f"--data: {len(dialogues)} {split} dialogues, at least {least} are needed (an interval over one test dialogue has no "
                "width); --data.max-dialogues, --data.world.n-train and --data.world.n-test say how many are read"
            )


def prepare(run: RunDirectory, config: Pipeline) -> Setup:
    """Dialogues, vocabulary, network and the devices that train, checked against the sizes of every stage.

    Functions of the reward from outside are tried here. Raises: ValueError in one line, before anything is trained.
    """
    setup = set_up(run, config.data, config.model, seed=config.seed, temperature=config.align.temperature)
    check_data(setup.corpus)
    if config.model.weights is not None:
        check_lengths(
            config, setup.network.n_positions, f"the {setup.network.n_positions} positions of {config.model.weights}"
        )
    check_functions(setup.corpus, config.reward)
    layout = lay_out(config.mesh, setup.network, config.sft, config.reward, config.align, config.learner)
    return setup._replace(layout=layout)


def lay_out(
    mesh: MeshConfig,
    network: GPT2Config,
    sft: SupervisedConfig,
    reward: RewardConfig,
    align: AlignmentConfig,
    learner: PPOConfig | GRPOConfig,
) -> Layout:
    """The devices that train; a mesh of one leaves everything on one device.

    Raises: ValueError naming the numbers, where there are too few devices or something cannot be cut evenly.
    """
    rows = sft_rows(sft)
    rows["reward model rows (--reward.batch-size)"] = reward.batch_size
    rows["responses (--align.batch-size)"] = align.batch_size
    name = "grpo" if isinstance(learner, GRPOConfig) else "ppo"
    if learner.group_size > 1:
        rows[f"prompts (--align.batch-size // --{name}.group-size)"] = align.batch_size // learner.group_size
    if align.batch_size % (learner.minibatches * learner.microbatches) == 0:
        named = f"responses of a microbatch (--align.batch-size // --{name}.minibatches // --{name}.microbatches)"
        rows[named] = align.batch_size // learner.minibatches // learner.microbatches
    return devices(mesh, network, rows)


def devices(mesh: MeshConfig, network: GPT2Config, rows: Mapping[str, int]) -> Layout:
    """The devices that train, where what they share out is so many rows, by what they are; one device where the mesh is one.

    Raises: as `lay_out`.
    """
    if mesh.size == 1 and not several():
        return ONE_DEVICE
    check_sizes(mesh, width=network.n_embd, heads=network.n_head, vocabulary=network.vocab_size, rows=rows)
    return Partition(make_mesh(mesh))


def sft_rows(sft: SupervisedConfig) -> dict[str, int]:
    """Rows of imitation's batches, by what they are."""
    return {
        f"sft rows (--sft.tokens-per-batch {sft.tokens_per_batch} // bucket {bucket})": max(
            2, sft.tokens_per_batch // bucket
        )
        for bucket in sft.buckets
    }

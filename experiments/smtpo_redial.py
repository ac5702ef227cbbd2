"""Does a recommender that reasons and learns from several turns with a simulated user recommend better?

Paper: SMTPO, arXiv:2604.03671 (user simulator, dual-view retriever, reasoning recommender, multi-turn reinforcement learning).
No code or formula of it is public: what was decided here stands in docs/algorithms/smtpo.md, whose numbers are those of `one_seed`.

    python experiments/smtpo_redial.py                               # world: the simulated world, CPU
    python experiments/smtpo_redial.py redial --data.dir DIR         # real ReDial, small GPT-2 from scratch
    python experiments/smtpo_redial.py paper --data.dir DIR --model.weights DIR    # gpt2-medium; GPU or TPU
    python experiments/smtpo_redial.py debug                         # in miniature, a minute or two

Systems: `sft` (the reasoning form by imitation), `single_turn` (reinforcement learning on first turns alone), `smtpo` (on
conversations of `--conversations.turns` turns with the simulated seeker). All are judged by greedy replies, from openings of the
test split, in conversation with a *scoring* seeker that learnt from other dialogues with another seed; `…_blind` hears the
answers of somebody else's seeker, `…_silent` none. `first_list` goes down the retriever's order of the opening and listens to
nobody. In the world, its true users answer as well: nobody trained on them.

`--transfer.dir DIR` measures everything on another corpus as well (docs/howto/your_own_dialogues.md has the format; OpenDialKG
with `--transfer.source opendialkg`), whose items are joined by title; `--single-tasks language target` measures seekers that learn one task alone beside the one that
learns all. Both can be added to a finished run.

The same command continues a run that was interrupted (exit code 75). Writes `report.md`, `results.json`, `metrics.jsonl`,
checkpoints, and each system's conversations in `conversations/`. Measured: `world` (docs/results/smtpo.md) and `redial`
(docs/results/smtpo_redial.md); `paper` was not run.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
from pathlib import Path

from command_line import preset_and_options, start
from rlhf_jax.assessment import episodes_report, other_corpus
from rlhf_jax.assessment.other_corpus import OtherCorpus, TransferConfig, join, read_other
from rlhf_jax.assessment.scoring_seeker import scoring_seeker, training_half
from rlhf_jax.data.sources import WORLD
from rlhf_jax.learners.multi_turn_config import MultiTurnConfig
from rlhf_jax.parallel import processes
from rlhf_jax.parallel.mesh import MeshConfig
from rlhf_jax.parallel.processes import ProcessConfig
from rlhf_jax.ranges import Seed, check_numbers
from rlhf_jax.runtime.interrupts import ends_without_the_others, exits_on_signals
from rlhf_jax.runtime.run import RunDirectory, Tracker, enable_compilation_cache, open_run
from rlhf_jax.stages import item_prior, supervised
from rlhf_jax.stages.item_prior import PriorConfig
from rlhf_jax.stages.launch import check_data, check_teacher, devices, sft_rows
from rlhf_jax.stages.setup import DataConfig, ModelConfig, set_up
from rlhf_jax.stages.smtpo import human_turns, multi_turn, reasoning, simulator
from rlhf_jax.stages.smtpo.episodes import COMPONENTS
from rlhf_jax.stages.smtpo.multi_turn import ConversationsConfig
from rlhf_jax.stages.smtpo.reasoning import ReasoningConfig
from rlhf_jax.stages.smtpo.recommender import ListsBefore, add_retriever, make_recommender
from rlhf_jax.stages.smtpo.retriever import RetrieverConfig
from rlhf_jax.stages.smtpo.seeker import SeekerSimulator
from rlhf_jax.stages.smtpo.simulator import SimulatorConfig, Task
from rlhf_jax.stages.supervised import SupervisedConfig
from studies.smtpo_settings import SETTINGS, AssessConfig

VOLATILE = ("run_dir", "seeds", "trackers", "mesh", "processes", "transfer", "single_tasks")
"""What may change while a run is continued: more seeds, another corpus to measure on and more seekers can be added later."""


@dataclasses.dataclass(frozen=True)
class Config:
    """SMTPO from data to report."""

    run_dir: Path = Path("runs/smtpo")
    """Where everything goes; an interrupted run is continued from here."""
    seeds: tuple[Seed, ...] = (0,)
    """Of parameters, batches and sampling: everything is trained once with each."""
    world_seed: Seed = 0
    """Of the simulated world, the same for all seeds."""
    trackers: tuple[Tracker, ...] = ("tensorboard",)
    """Where metrics go besides `metrics.jsonl`; wandb needs the extra `tracking`."""
    mesh: MeshConfig = MeshConfig()
    """Devices that train; changes speed and memory, and numbers only by rounding."""
    processes: ProcessConfig = ProcessConfig()
    """Processes that share the mesh; see docs/scaling.md."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    sft: SupervisedConfig = SupervisedConfig()
    prior: PriorConfig = PriorConfig(learner="likelihood")
    retriever: RetrieverConfig = RetrieverConfig()
    reasoning: ReasoningConfig = ReasoningConfig()
    simulator: SimulatorConfig = SimulatorConfig()
    conversations: ConversationsConfig = ConversationsConfig()
    learner: MultiTurnConfig = MultiTurnConfig()
    assess: AssessConfig = AssessConfig()
    transfer: TransferConfig = TransferConfig()
    single_tasks: tuple[Task, ...] = ()
    """Seekers that learn one task alone, after the same start, measured beside those that learn all three; no policy meets
    them. Can be added to a finished run."""

    def __post_init__(self) -> None:
        check_numbers(self)
        check_stages(self)

    @property
    def unread(self) -> dict[str, str]:
        """Groups of options that this configuration does not read, with the reason."""
        idle = {} if self.prior.learner != "none" else {"prior": "--prior.learner is none"}
        return idle if self.data.source == WORLD else idle | {"data.world": f"--data.source is {self.data.source}"}


def check_stages(config: Config) -> None:
    """Raises ValueError naming the options that do not fit together."""
    if not config.seeds or len(set(config.seeds)) != len(config.seeds):
        raise ValueError(f"--seeds must name different seeds: got {config.seeds}")
    if len(set(config.single_tasks)) != len(config.single_tasks):
        raise ValueError(f"--single-tasks must name each task once: got {config.single_tasks}")
    talk, learner = config.conversations, config.learner
    n_rows = talk.openings * talk.group_size * talk.turns
    if n_rows % (learner.minibatches * learner.microbatches):
        raise ValueError(
            f"--conversations.openings × --conversations.group-size × --conversations.turns = {n_rows} rows cannot be cut into "
            f"--learner.minibatches {learner.minibatches} × --learner.microbatches {learner.microbatches} equal parts"
        )
    if config.prior.learner == "grpo" and (config.processes.count > 1 or config.processes.detect):
        raise ValueError("--prior.learner grpo learns in one process: choose likelihood, or leave out --processes")
    if talk.trainable == "prior" and config.prior.learner == "none":
        raise ValueError(
            "--conversations.trainable prior moves nothing: --prior.learner is none, the policy has no prior"
        )
    if talk.prior_rate != 1.0 and config.prior.learner == "none":
        raise ValueError(
            f"--conversations.prior-rate {talk.prior_rate:g} is not read: --prior.learner is none, the policy has no prior"
        )
    check_learning(config)
    check_lengths(config)
    check_teacher(config.sft, config.data)
    if config.data.rl_share:
        raise ValueError(
            f"--data.rl-share {config.data.rl_share} is not read: SMTPO imitates, and converses over, all training dialogues"
        )
    if config.retriever.candidates < config.data.max_items:
        raise ValueError(
            f"--retriever.candidates {config.retriever.candidates} cannot fill a list of --data.max-items {config.data.max_items}"
        )
    if config.prior.parts != PriorConfig().parts:
        raise ValueError(
            f"--prior.parts {' '.join(config.prior.parts)}: the prior reads what the retriever reads, all six closed forms"
        )
    if config.retriever.in_prior and config.prior.learner == "none":
        raise ValueError("--retriever.in-prior is not read: --prior.learner is none, the policy has no prior")


def check_learning(config: Config) -> None:
    """Raises ValueError for numbers of line 5 with which nothing, or not what is said, would be learnt."""
    talk, learner = config.conversations, config.learner
    if talk.turns == 1:
        raise ValueError(
            "--conversations.turns 1: `smtpo` would be `single_turn`, which is trained beside it; give at least 2"
        )
    try:
        talk.first_turns()
    except ValueError as error:
        raise ValueError(
            f"--conversations.openings {talk.openings} × --conversations.turns {talk.turns} openings of the single-turn control: {error}"
        ) from None
    steps = talk.updates * learner.epochs * learner.minibatches
    if talk.warmup_steps >= steps:
        raise ValueError(
            f"--conversations.warmup-steps {talk.warmup_steps} leaves no step after it: --conversations.updates × --learner.epochs × "
            f"--learner.minibatches are {steps} optimiser steps"
        )
    if learner.component_names != COMPONENTS:
        raise ValueError(
            f"--learner.component-names must be {' '.join(COMPONENTS)}: got {' '.join(learner.component_names)}"
        )
    if not any(learner.component_weights):
        raise ValueError(f"--learner.component-weights {' '.join(map(str, learner.component_weights))} pay for nothing")


def check_lengths(config: Config) -> None:
    """Raises ValueError where texts of a stage are longer than the network's positions, as far as these are known."""
    if config.model.weights is not None:
        return
    data, positions = config.data, config.model.n_positions
    for named, longest in (
        (
            f"--data.context-tokens {data.context_tokens} + --data.response-tokens {data.response_tokens}",
            data.context_tokens + data.response_tokens,
        ),
        (
            f"--data.context-tokens {data.context_tokens} + --simulator.response-tokens {config.simulator.response_tokens}",
            data.context_tokens + config.simulator.response_tokens - 1,
        ),
        (f"--sft.buckets {' '.join(map(str, config.sft.buckets))}: the last", config.sft.buckets[-1]),
        (f"--simulator.buckets {' '.join(map(str, config.simulator.buckets))}: the last", config.simulator.buckets[-1]),
    ):
        if longest > positions:
            raise ValueError(f"{named} exceeds --model.n-positions {positions}")


PRESETS = {
    "world": (
        "simulated world, small GPT-2; some twenty minutes a seed on two CPU cores",
        Config(**SETTINGS["world"].fields),
    ),
    "debug": (
        "the same in miniature; a minute or two, for tests",
        Config(run_dir=Path("runs/debug-smtpo"), **SETTINGS["debug"].fields),
    ),
    "redial": (
        "real ReDial (--data.dir), small GPT-2 from scratch; an hour and a half a seed on one CPU core",
        Config(run_dir=Path("runs/smtpo-redial"), **SETTINGS["redial"].fields),
    ),
    "paper": (
        "gpt2-medium weights (--model.weights, --data.tokenizer) on ReDial (--data.dir); GPU or TPU",
        Config(run_dir=Path("runs/smtpo-paper"), **SETTINGS["paper"].fields),
    ),
}


def main(config: Config) -> Path:
    """All seeds, then one report, which the first process writes."""
    enable_compilation_cache(beside=config.run_dir)
    processes.join(config.processes)
    with (
        ends_without_the_others(),
        exits_on_signals(),
        open_run(config.run_dir, config, trackers=(), volatile=VOLATILE) as run,
    ):
        other, found = read_other(config.transfer, own_name=config.data.corpus_name), {}
        for seed in config.seeds:
            of_seed, folder = dataclasses.replace(config, seeds=(seed,)), config.run_dir / f"seed-{seed}"
            with open_run(folder, of_seed, trackers=config.trackers, volatile=VOLATILE) as own:
                found[seed] = one_seed(own, of_seed, seed, other)
            # Each measures by itself, one perhaps minutes longer than another: longer than a collective of devices waits.
            processes.wait(f"rlhf_jax/measured/{seed}")
        if processes.leads():
            corpus, n_turns = config.data.corpus_name, config.conversations.turns
            episodes_report.write(run, found, corpus=corpus, n_turns=n_turns)
        processes.wait("rlhf_jax/report")
        return config.run_dir / episodes_report.REPORT


def one_seed(run: RunDirectory, config: Config, seed: int, other: OtherCorpus | None = None) -> episodes_report.Found:
    """The paper's algorithm: 0 data, 1 imitation, 2 retriever, 3 reasoning form, 4 seeker, 5 conversations, 6 evaluation."""
    # 0. Dialogues, vocabulary, network, devices.
    talk = config.conversations
    setup = set_up(
        run, config.data, config.model, seed=seed, world_seed=config.world_seed, temperature=talk.temperature
    )
    check_data(setup.corpus)
    source = f"--data.source {config.data.source}" if config.data.dir is None else f"--data.dir {config.data.dir}"
    human_turns.check_liked(setup.corpus, max_items=config.data.max_items, turns=talk.turns, source=source)
    joined = None if other is None else join(other, setup.corpus.items)
    rows = sft_rows(config.sft) | {
        "openings (--conversations.openings)": talk.openings,
        "replies drawn at once (openings × --conversations.group-size // --conversations.draws)": talk.openings
        * talk.group_size
        // talk.draws,
        "turns (--reasoning.batch-size)": config.reasoning.batch_size,
    }
    for bucket in config.simulator.buckets:
        name = f"texts of {bucket} tokens (--simulator.tokens-per-batch // {bucket})"
        rows[name] = config.simulator.tokens_per_batch // bucket
    setup = setup._replace(layout=devices(config.mesh, setup.network, rows))
    attributes = reasoning.attributes_of(setup, config.reasoning)
    # 1. Imitation of whole dialogues.
    trunk = supervised.train(run, setup, config.sft)
    # 2. The retriever; and the prior of line 3, whose first weights are fitted here.
    setup, retrieval = add_retriever(run, setup, config.retriever)
    setup = item_prior.add(run, setup, trunk, config.prior)
    # 3. The reasoning recommender, by imitation.
    recommender = make_recommender(
        setup,
        attributes,
        retrieval,
        said=config.reasoning.attributes,
        lists_before=ListsBefore(config.reasoning.listed_before, talk.turns - 1),
        temperature=talk.temperature,
    )
    sft = reasoning.train(run, recommender, trunk, config.reasoning)
    # 4. The simulated seeker that trains, from one half of the training dialogues.
    dialogues = training_half(setup.corpus.train)
    begun = simulator.begin(run, setup, dialogues, config.simulator, config.sft, seed=seed)
    taught = simulator.train(run, setup, dialogues, config.simulator, attributes=attributes, seed=seed, begun=begun)
    seeker = SeekerSimulator(setup, taught, config.simulator)
    # 5. Reinforcement learning: on first turns alone, and on whole conversations.
    single = talk.first_turns()
    policies = {"sft": sft} | {
        name: multi_turn.train(run, recommender, seeker, sft, talks, config.learner, stage=f"multi_turn-{name}")
        for name, talks in {"single_turn": single, "smtpo": talk}.items()
    }
    # 6. Conversations with a seeker that no stage has met, and in the world with its users; seekers of one task beside it.
    seekers = {"training": seeker, "scoring": scoring_seeker(run, recommender, config.simulator, config.sft)}
    for task in config.single_tasks:
        alone = simulator.single_task(config.simulator, task)
        stage = f"{simulator.STAGE}-{task}"
        learnt = simulator.train(
            run, setup, dialogues, alone, attributes=attributes, seed=seed, begun=begun, stage=stage
        )
        seekers[f"{task}_only"] = SeekerSimulator(setup, learnt, alone)
    found = episodes_report.measure_all(
        run,
        recommender,
        policies,
        seekers,
        n_openings=config.assess.openings,
        n_users=config.assess.users,
        n_turns=talk.turns,
    )
    if joined is None:
        return found
    return found._replace(transfer=other_corpus.measure(run, joined, recommender, policies, seekers))


def command_line(arguments: list[str]) -> Config:
    """A preset (none means `world`) with options on top."""
    return preset_and_options(PRESETS, arguments, __doc__)


if __name__ == "__main__":
    start(main, command_line)

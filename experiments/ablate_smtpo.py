"""What is each part of SMTPO good for: its rewards, its turns, its views of items, and the seeker it learns from?

Paper: SMTPO, arXiv:2604.03671; the parts are those of docs/algorithms/smtpo.md, whose numbers stand in `one_seed`.

    python experiments/ablate_smtpo.py                               # world: the simulated world, CPU
    python experiments/ablate_smtpo.py redial --data-dir DIR         # ReDial, as `smtpo_redial.py redial`
    python experiments/ablate_smtpo.py debug                         # everything in miniature, for tests

DIR holds `redial/`. Imitation, retriever and seekers are trained once a seed; the two variants of the towers' views train
retriever and form of their own. Every variant learns with the same budget and random numbers as `smtpo`; `single_turn` has T
times the openings, one turn each, and `iterated` logs and replies of its own (`--iterated`), about as many in all. All (`studies/smtpo_ablation.py` names them) talk with the seeker that scores, in the world
also with its users. `scored_by_trainer` learns from the very seeker that scores: it is no fair system, but says what
knowing it is worth. The same command continues what was interrupted.

Hardware: one CPU core; world: some forty minutes a seed for what the main job has too, and an hour for ten variants. Measured
in the world (docs/results/ablation_smtpo.md); not on ReDial.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

from command_line import preset_and_options, start
from rlhf_jax.assessment import episodes, episodes_report
from rlhf_jax.assessment.scoring_seeker import scoring_seeker, training_half
from rlhf_jax.interfaces import Params
from rlhf_jax.models.retriever import View
from rlhf_jax.ranges import Seed, check_numbers
from rlhf_jax.runtime.files import as_json
from rlhf_jax.runtime.interrupts import exits_on_signals
from rlhf_jax.runtime.run import RunDirectory, claim, enable_compilation_cache, open_run
from rlhf_jax.stages import item_prior, supervised
from rlhf_jax.stages.launch import check_data
from rlhf_jax.stages.setup import Setup, set_up
from rlhf_jax.stages.smtpo import human_turns, iterated, multi_turn, reasoning, simulator
from rlhf_jax.stages.smtpo.human_turns import openings_of
from rlhf_jax.stages.smtpo.iterated import IteratedConfig
from rlhf_jax.stages.smtpo.recommender import ListsBefore, Recommender, add_retriever, make_recommender
from rlhf_jax.stages.smtpo.seeker import SeekerSimulator
from studies import common, smtpo_ablation
from studies.smtpo_ablation import SMTPO, VARIANTS, Change, Seeker, Variant
from studies.smtpo_settings import SETTINGS, Stages


@dataclasses.dataclass(frozen=True)
class Config:
    """Variants of SMTPO in one setting."""

    run_dir: Path = Path("runs/ablation-smtpo")
    """Where everything goes: a run directory a seed, and the summary."""
    setting: Literal["world", "redial", "debug"] = "world"
    """Which data, and how large everything is: as the preset of this name of `smtpo_redial.py`."""
    data_dir: Path = Path("data")
    """Holds `redial/`; not read for the world."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Training seeds; a claim needs three."""
    only_seed: Seed | None = None
    """Does this seed alone and writes no summary."""
    world_seed: Seed = 0
    """Of the simulated world, the same for all seeds."""
    variants: tuple[Variant, ...] = tuple(VARIANTS)
    """What stands beside `smtpo`."""
    iterated: IteratedConfig = IteratedConfig()
    """Numbers of the variant `iterated`; `--setting` gives all others."""

    def __post_init__(self) -> None:
        check_numbers(self)
        common.check_seeds(self.seeds, self.only_seed)
        if not self.variants or len(set(self.variants)) < len(self.variants):
            raise ValueError(f"--variants must name at least one variant, each once: got {self.variants}")

    @property
    def stages(self) -> Stages:
        """The numbers of all stages."""
        stages = SETTINGS[self.setting]
        return stages.reading(self.data_dir / "redial") if self.setting == "redial" else stages


SMALLEST = IteratedConfig(rounds=2, logged=4, held_out=0.25, steps=4, batch_size=4, evaluations=2, updates=2, states=4)
PRESETS = {
    "world": ("simulated world, all variants", Config()),
    "redial": (
        "ReDial (--data-dir), all variants",
        Config(run_dir=Path("runs/ablation-smtpo-redial"), setting="redial"),
    ),
    "debug": (
        "all variants in a tiny world; minutes, for tests",
        Config(run_dir=Path("runs/debug-ablation-smtpo"), setting="debug", seeds=(0,), iterated=SMALLEST),
    ),
}


class Imitating(NamedTuple):
    """What reinforcement learning starts from."""

    run: RunDirectory
    """Where what is learnt from here is kept."""
    recommender: Recommender
    sft: Params


def one_seed(config: Config, run: RunDirectory, seed: int) -> None:
    """Every system of one seed, in conversation with the same seeker and the same users."""
    stages = config.stages
    talk = stages.conversations
    # 0. Dialogues, vocabulary, network.
    setup = set_up(
        run, stages.data, stages.model, seed=seed, world_seed=config.world_seed, temperature=talk.temperature
    )
    check_data(setup.corpus)
    source = f"--data-dir {config.data_dir}" if config.setting == "redial" else f"--setting {config.setting}"
    turns = stages.conversations.turns
    human_turns.check_liked(setup.corpus, max_items=stages.data.max_items, turns=turns, source=source)
    # 1.–3. Imitation, retriever and reasoning form, shared; a retriever of one view has candidates and a form of its own.
    trunk = supervised.train(run, setup, stages.sft)
    both, setup = imitate(run, setup, trunk, stages, view="both")
    # 4. Seekers that train, and the one that scores: trained in `assessment`, handed to a stage here and nowhere else.
    dialogues, attributes = training_half(setup.corpus.train), both.recommender.attributes
    scoring = scoring_seeker(run, both.recommender, stages.simulator, stages.sft)
    seekers: dict[Seeker, SeekerSimulator] = {"scoring": scoring}
    started = simulator.begin(run, setup, dialogues, stages.simulator, stages.sft, seed=seed)
    changes = {SMTPO: Change("all parts"), **{name: VARIANTS[name] for name in config.variants}}
    for name, learnt in (
        ("training", stages.simulator),
        ("language", simulator.single_task(stages.simulator, "language")),
    ):
        if any(change.learns and change.seeker == name for change in changes.values()):
            stage = f"{simulator.STAGE}-{name}"
            params = simulator.train(
                run, setup, dialogues, learnt, attributes=attributes, seed=seed, begun=started, stage=stage
            )
            seekers[name] = SeekerSimulator(setup, params, learnt)
    openings = openings_of(setup.corpus.test)[: stages.assess.openings]
    for name, change in changes.items():
        begun = both
        if change.view != "both":
            with open_run(run.path / change.view, {"views": change.view, "seed": seed}, trackers=(), wait=True) as own:
                begun, _ = imitate(own, setup, trunk, stages, view=change.view)
                params = learn(begun, change, seekers, config, name)
        else:
            params = learn(begun, change, seekers, config, name)
        # 6. Conversations with the seeker that scores, and in the world with its users.
        episodes.measure(
            run,
            f"{name}-{smtpo_ablation.PROTOCOL}",
            begun.recommender,
            params,
            seekers["scoring"],
            openings,
            n_turns=talk.turns,
        )
        if setup.world_seed is not None:
            episodes_report.world_users(
                run, name, begun.recommender, params, n_users=stages.assess.users, n_turns=talk.turns
            )


def imitate(run: RunDirectory, setup: Setup, trunk: Params, stages: Stages, *, view: View) -> tuple[Imitating, Setup]:
    """2 retriever, prior, 3 reasoning form; and the setup that has the prior."""
    attributes = reasoning.attributes_of(setup, stages.reasoning)
    setup, retrieval = add_retriever(run, setup, stages.retriever, view=view)
    if not setup.prior or stages.retriever.in_prior:
        # Told another retriever's order, it has other weights.
        setup = item_prior.add(run, setup._replace(prior={}), trunk, stages.prior)
    recommender = make_recommender(
        setup,
        attributes,
        retrieval,
        said=stages.reasoning.attributes,
        lists_before=ListsBefore(stages.reasoning.listed_before, stages.conversations.turns - 1),
        temperature=stages.conversations.temperature,
    )
    return Imitating(run, recommender, reasoning.train(run, recommender, trunk, stages.reasoning)), setup


def learn(
    begun: Imitating, change: Change, seekers: dict[Seeker, SeekerSimulator], config: Config, name: str
) -> Params:
    """5. What a variant learns from conversations; imitation where it learns from none."""
    if not change.learns:
        return begun.sft
    talk, learner = config.stages.conversations, config.stages.learner
    if change.single_turn:
        talk = talk.first_turns()
    weights = smtpo_ablation.without(learner.component_weights, learner.component_names, change.unpaid)
    learner = dataclasses.replace(learner, component_weights=weights)
    seeker = seekers[change.seeker]
    if change.iterated:
        return iterated.train(begun.run, begun.recommender, seeker, begun.sft, talk, learner, config.iterated)
    return multi_turn.train(
        begun.run, begun.recommender, seeker, begun.sft, talk, learner, stage=f"{multi_turn.STAGE}-{name}"
    )


def main(config: Config) -> Path | None:
    """Every seed, then the summary; None where one seed alone was asked for."""
    claim(config.run_dir, Path(__file__).name)
    enable_compilation_cache(beside=config.run_dir)
    stages = config.stages

    def facts(seed: int) -> dict[str, Any]:
        del seed
        rests_on = as_json(stages)
        # Where the data lie changes no number; what they are is recorded beside it.
        del rests_on["data"]["dir"]
        return {"stages": rests_on}

    with exits_on_signals():
        common.run_seeds(config, lambda run, seed: one_seed(config, run, seed), facts)
    if config.only_seed is not None:
        return None
    talk = stages.conversations
    report = smtpo_ablation.write_report(
        config.run_dir,
        config.seeds,
        config.variants,
        smtpo_ablation.Setting(
            stages.data.corpus_name,
            f"Every variant: {talk.updates} updates of {talk.openings} openings × {talk.group_size} conversations of at most "
            f"{talk.turns} turns (`single_turn`: {talk.openings * talk.turns} openings, one turn each{of_iterated(config)}), from the same "
            "imitation.",
            talk.turns,
            users=stages.data.source == "world",
        ),
        ["python", *sys.argv],
    )
    print(f"report: {report}")
    return report


def of_iterated(config: Config) -> str:
    """What the variant `iterated` was given, where it is asked for."""
    if "iterated" not in config.variants:
        return ""
    own, size = config.iterated, config.stages.conversations.group_size
    return (
        f"; `iterated`: {own.rounds} rounds of {own.logged} × {size} conversations, {own.steps} steps of the forecast and {own.updates} "
        f"updates of {own.states} × {size} replies"
    )


def command_line(arguments: list[str]) -> Config:
    """A preset (none means `world`) with options on top."""
    return preset_and_options(PRESETS, arguments, __doc__)


if __name__ == "__main__":
    start(main, command_line)

"""Does PPO on implicit user feedback beat imitation on OpenDialKG, where movies and books are recommended?

Paper: IUF-RLHF, arXiv:2508.05289 (its second data set). The stages are those of `ppo_redial.py`.

    python experiments/ppo_opendialkg.py --data.dir DIR                      # both domains, small GPT-2 from scratch
    python experiments/ppo_opendialkg.py --data.dir DIR --data.domain book   # books alone (the same split)
    python experiments/ppo_opendialkg.py debug --data.dir DIR                # everything in miniature, under a minute

DIR holds `dialogues.jsonl` and `id2info.json`, or the official `opendialkg.csv` and `opendialkg_entities.txt`.
Hardware: one CPU core, 38 minutes. The same command continues an interrupted run; `gather_seeds.py` joins seeds.

Expected: docs/results/ranking_opendialkg.md: imitation far above popularity and copying, PPO below imitation.

Deviations, beside those of docs/deviations.md: split by dialogue, 70/15/15 (the processed files that circulate split by turn, and
leak); sentiment is its level after the turn; no reply times, so engagement is `continuation`, which the movie dialogues cut
short: they end at their last recommending turn, whose answer is not in the data.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
from pathlib import Path
from typing import Any, Literal

import miniature
from command_line import preset_and_options, start
from rlhf_jax.assessment import reward_choice
from rlhf_jax.assessment.assess import AssessmentConfig, assess_all
from rlhf_jax.assessment.report import main_report
from rlhf_jax.feedback.labelling import LabelOptions
from rlhf_jax.learners.grpo_config import GRPOConfig
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.ranges import Seed
from rlhf_jax.stages import alignment, item_prior, reward, supervised
from rlhf_jax.stages.agent import policy_params
from rlhf_jax.stages.alignment import AlignmentConfig
from rlhf_jax.stages.item_prior import PriorConfig
from rlhf_jax.stages.launch import Pipeline, StartConfig, check_stages, prepare, started
from rlhf_jax.stages.reward import RewardConfig
from rlhf_jax.stages.setup import DataConfig, ModelConfig
from rlhf_jax.stages.supervised import SupervisedConfig

LABELS = LabelOptions(engagement="continuation", sentiment="level")
NOTE = (
    "OpenDialKG is split by dialogue (70/15/15); published numbers on the split by turn, where half of the test turns "
    "continue dialogues of the training split, are not comparable. Items are what the data tag; in movie dialogues the "
    "user's own titles mostly stand as words."
)


@dataclasses.dataclass(frozen=True)
class Config(StartConfig, Pipeline):
    """IUF-RLHF on OpenDialKG, from data to report."""

    run_dir: Path = Path("runs/opendialkg")
    """Where everything goes; an interrupted run is continued from here."""
    seed: Seed = 0
    """Of parameters, batches and sampling; the split has its own fixed seed."""
    data: DataConfig = DataConfig(
        source="opendialkg", dir=Path("data/opendialkg"), n_words=5000, window=10, context_tokens=192
    )
    model: ModelConfig = ModelConfig(n_layer=3, n_embd=192, n_head=6, n_positions=512, attention_dropout=False)
    sft: SupervisedConfig = SupervisedConfig(
        epochs=8,
        description_epochs=2,
        metadata_words=True,
        max_tokens=256,
        buckets=(32, 64, 96, 128, 192, 256),
        tokens_per_batch=3072,
    )
    prior: PriorConfig = PriorConfig()
    # Context and response do not determine a real user's reaction: warn at the gate, and report it.
    reward: RewardConfig = RewardConfig(labels=LABELS, epochs=2, gate="warn")
    align: AlignmentConfig = AlignmentConfig(updates=40, save_every=5)
    # Relevance pays for saying more of the same: an endless reply scores as a bad one, and length has a price.
    algorithm: Literal["ppo", "grpo"] = "ppo"
    """Which learner stage 3 runs, and whose numbers it reads. DPO is none of them, since it learns from pairs:
    docs/algorithms/dpo.md."""
    grpo: GRPOConfig = GRPOConfig(missing_eos_mode="replace", length_coef=0.05, length_free=12)
    ppo: PPOConfig = PPOConfig(kl_coef=0.1, missing_eos_mode="replace", length_coef=0.05, length_free=12)
    assess: AssessmentConfig = AssessmentConfig(text_turns=1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stages(self)


PRESETS = {
    "opendialkg": ("OpenDialKG (--data.dir), small GPT-2 from scratch; 38 minutes on one CPU core", Config()),
    "debug": (
        "60 dialogues of each domain and a tiny model; under a minute, for tests",
        Config(
            run_dir=Path("runs/debug-opendialkg"),
            data=dataclasses.replace(
                miniature.DATA,
                source="opendialkg",
                dir=Path("data/opendialkg"),
                max_dialogues=miniature.DIALOGUES,
            ),
            model=miniature.MODEL,
            sft=miniature.SFT,
            reward=dataclasses.replace(miniature.REWARD, labels=LABELS),
            align=dataclasses.replace(miniature.ALIGN, evaluations=1),
            ppo=miniature.PPO,
            assess=AssessmentConfig(text_turns=16, batch_size=16, conversations=2),
        ),
    ),
}


def main(config: Config) -> Path:
    """The paper's algorithm: 0 data, 1 supervised policy, 2 reward model, 3 PPO, 4 evaluation, report."""
    with started(config) as run:
        # 0. Dialogues, vocabulary, network, devices.
        setup = prepare(run, config)
        # 1. Imitation: the supervised policy, which is also the reference.
        trunk = supervised.train(run, setup, config.sft)
        # What recommenders know of items, in the policy's item head (--prior.learner; none by default).
        setup = item_prior.add(run, setup, trunk, config.prior)
        # 2. Implicit feedback: weak labels of users' reactions, and the reward model that predicts them.
        proxy, gate = reward.train(run, setup, trunk, config.reward, weights=config.learner.component_weights)
        # What that knows of items: whoever maximises it ends with its order.
        imitation = policy_params(trunk, setup.network.n_embd)
        size: Any = {"n_users": config.assess.users, "n_turns": config.assess.user_turns}
        of_reward = reward.results(gate, split=f"{setup.data.corpus_name}/validation", seed=config.seed)
        of_reward += reward_choice.measure(
            run, setup, imitation | setup.prior, proxy, **size, gate=config.reward.choice_gate
        )
        # 3. PPO (or GRPO) against the reward model, in sight of the reference.
        policy = alignment.align(run, setup, trunk, proxy, config.align, config.learner)
        # 4. Evaluation and report.
        policies = {
            "sft": imitation,
            **({"prior": imitation | setup.prior} if setup.prior else {}),
            config.algorithm: policy,
        }
        systems = assess_all(run, setup, policies, config.assess, proxy)
        # Users name titles and people in plain words: how much of the ranking is reading?
        pairs = item_prior.compared(config.algorithm) if setup.prior else ()
        return main_report(run, setup, systems, config.assess, of_reward, pairs=pairs, by_naming=True, notes=[NOTE])


def command_line(arguments: list[str]) -> Config:
    """A preset (none means `opendialkg`) with options on top."""
    return preset_and_options(PRESETS, arguments, __doc__)


if __name__ == "__main__":
    start(main, command_line)

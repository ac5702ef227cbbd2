"""Does PPO on implicit user feedback make a conversational recommender better than imitation does?

Paper: IUF-RLHF, arXiv:2508.05289 (supervised GPT-2 → reward model on engagement, relevance, sentiment → PPO).

    python experiments/ppo_redial.py                                           # demo: simulated world, CPU, minutes
    python experiments/ppo_redial.py redial --data.dir DIR                     # real ReDial, small GPT-2 from scratch
    python experiments/ppo_redial.py paper --data.dir DIR --model.weights DIR  # gpt2-medium weights; GPU or TPU
    python experiments/ppo_redial.py PRESET --algorithm grpo                   # groups instead of a value function
    python experiments/ppo_redial.py PRESET --help                             # every field

The same command continues a run that was interrupted (exit code 75: asked to stop, saved). One run directory holds
`report.md` and `report.html`, `results.json`, `metrics.jsonl`, `samples.jsonl`, `config.json` and checkpoints.

Expected: PPO raises the proxy reward and the true utility over the supervised policy as it samples, not of its greedy
choice (three seeds). In `demo` users' reactions then pay for items (`--reactions`), and greedy replies become better than
imitation's without repeats. `demo` and `hackable` pay for the level of sentiment after a turn, the others for the paper's
shift. What was measured stands in docs/RESULTS.md, deviations from the paper in docs/deviations.md.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
from pathlib import Path
from typing import Any, Literal

import miniature
from command_line import preset_and_options, python, start
from rlhf_jax.assessment import live, reward_choice, users
from rlhf_jax.assessment.assess import AssessmentConfig, Systems, assess_all
from rlhf_jax.assessment.report import main_report
from rlhf_jax.data.sources import WORLD
from rlhf_jax.evaluation.results import Sides
from rlhf_jax.feedback.labelling import LabelOptions
from rlhf_jax.interfaces import Params
from rlhf_jax.learners.grpo_config import GRPOConfig
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.ranges import Seed
from rlhf_jax.runtime.files import notice
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.simulators.world import WorldConfig, hackable
from rlhf_jax.stages import alignment, item_prior, live_feedback, live_rounds, reward, supervised
from rlhf_jax.stages.agent import policy_params
from rlhf_jax.stages.alignment import AlignmentConfig
from rlhf_jax.stages.item_prior import PriorConfig
from rlhf_jax.stages.launch import Pipeline, StartConfig, check_stages, prepare, started
from rlhf_jax.stages.live_feedback import LiveConfig
from rlhf_jax.stages.reward import Proxy, RewardConfig
from rlhf_jax.stages.setup import DataConfig, ModelConfig, Setup
from rlhf_jax.stages.supervised import SupervisedConfig


@dataclasses.dataclass(frozen=True)
class Config(StartConfig, Pipeline):
    """IUF-RLHF from data to report."""

    run_dir: Path = Path("runs/demo")
    """Where everything goes; an interrupted run is continued from here."""
    seed: Seed = 0
    """Of parameters, batches, sampling, and of the simulated world."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    sft: SupervisedConfig = SupervisedConfig()
    prior: PriorConfig = PriorConfig()
    reward: RewardConfig = RewardConfig()
    align: AlignmentConfig = AlignmentConfig()
    algorithm: Literal["ppo", "grpo"] = "ppo"
    """Which learner stage 3 runs, and whose numbers it reads. DPO is none of them, since it learns from pairs:
    docs/algorithms/dpo.md."""
    ppo: PPOConfig = PPOConfig()
    grpo: GRPOConfig = GRPOConfig()
    reactions: bool = False
    """Whether users' reactions to items then pay a policy of their own, which starts from imitation: a reward model of items
    fitted in closed form, GRPO of a few weights over recommenders and of manners (docs/results/world_rounds.md)."""
    live: LiveConfig = LiveConfig(rounds=0)
    """Of `--reactions`; without rounds the log's reactions alone."""
    assess: AssessmentConfig = AssessmentConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stages(self)
        if self.reactions and self.prior.learner != "none":
            raise ValueError(
                f"--reactions learns a prior of its own: leave out --prior.learner {self.prior.learner}, or --reactions"
            )
        if self.reactions and self.data.store is not None:
            raise ValueError("--reactions reads the whole log: leave it out, or --data.store")
        if self.reactions and (self.processes.count > 1 or self.processes.detect):
            raise ValueError("--reactions learns in one process: add --no-reactions, or leave out --processes")
        if self.reactions and self.live.rounds and self.data.source != WORLD:
            raise ValueError(
                f"--live.rounds {self.live.rounds}: users who answer live are in the simulated world alone; 0 reads the log"
            )

    @property
    def unread(self) -> dict[str, str]:
        """Groups of options that this configuration does not read, with the reason."""
        groups = ("live.replies", "live.labels", "live")
        return super().unread | ({} if self.reactions else dict.fromkeys(groups, "there are no --reactions"))


LEARNS = 1000
"""Responses below which PPO cannot have learnt anything, whatever the table says."""

DEMO = Config(
    data=DataConfig(
        world=WorldConfig(n_items=48, n_genres=4, n_people=6, p_taste=0.6, p_popularity=0.25, hackability=0.3)
    ),
    model=ModelConfig(attention_dropout=False),
    sft=SupervisedConfig(
        epochs=6,
        description_epochs=6,
        metadata_words=True,
        item_weight=5.0,
        max_tokens=256,
        buckets=(32, 96, 160, 256),
        tokens_per_batch=2560,
    ),
    # The level of the user's next words, not their change: what was said before the turn is no merit of the turn.
    reward=RewardConfig(labels=LabelOptions(sentiment="level"), epochs=6, learning_rate=1e-3),
    align=AlignmentConfig(updates=40, batch_size=128, learning_rate=3e-4, evaluations=5),
    ppo=PPOConfig(minibatches=2),
    reactions=True,
)
PRESETS = {
    "demo": ("simulated world, small GPT-2; minutes on 2 CPU cores", DEMO),
    "hackable": (
        "the demo in a world where long replies buy the signals and cost the truth: the proxy should rise alone",
        dataclasses.replace(
            DEMO,
            run_dir=Path("runs/hackable"),
            reactions=False,
            data=dataclasses.replace(DEMO.data, world=hackable(DEMO.data.world)),
        ),
    ),
    "debug": (
        "the same in miniature; under a minute, for tests",
        Config(
            run_dir=Path("runs/debug"),
            data=dataclasses.replace(miniature.DATA, world=WorldConfig(n_items=40, n_train=60, n_test=12, n_users=40)),
            model=miniature.MODEL,
            sft=miniature.SFT,
            reward=miniature.REWARD,
            align=dataclasses.replace(miniature.ALIGN, updates=4),
            ppo=miniature.PPO,
            live=miniature.LIVE,
            assess=miniature.ASSESS,
        ),
    ),
    "redial": (
        "real ReDial (--data.dir), small GPT-2 from scratch; some 40 minutes on one CPU core",
        Config(
            run_dir=Path("runs/redial"),
            data=DataConfig(source="redial", dir=Path("data/redial"), n_words=5000, window=20, context_tokens=256),
            model=ModelConfig(n_layer=2, n_embd=128, n_head=4, n_positions=512, attention_dropout=False),
            # Suggestions are learnt from items that are new to the dialogue: nobody needs to be told what he just named.
            sft=SupervisedConfig(
                epochs=4,
                description_tokens=32,
                metadata_words=True,
                repeated_item_weight=0.0,
                buckets=(32, 128, 192, 256, 384, 512),
                warmup_steps=200,
            ),
            # The gate's 0.6 is not reachable from context and response alone on real reactions: warn, and report it.
            reward=RewardConfig(labels=LabelOptions(engagement="continuation"), max_turns=4000, epochs=2, gate="warn"),
            align=AlignmentConfig(updates=40, save_every=5),
            # Relevance pays for saying more of the same: an endless reply scores as a bad one, and length has a price.
            ppo=PPOConfig(kl_coef=0.1, missing_eos_mode="replace", length_coef=0.05, length_free=12),
            grpo=GRPOConfig(missing_eos_mode="replace", length_coef=0.05, length_free=12),
            assess=AssessmentConfig(text_turns=1000),
        ),
    ),
    "paper": (
        "gpt2-medium weights (--model.weights, --data.tokenizer) on ReDial (--data.dir); GPU or TPU",
        Config(
            run_dir=Path("runs/paper"),
            data=DataConfig(
                source="redial",
                dir=Path("data/redial"),
                tokenizer="gpt2-medium",
                window=6,
                context_tokens=256,
                response_tokens=64,
            ),
            model=ModelConfig(weights="gpt2-medium", compute_dtype="bfloat16", remat=True),
            sft=SupervisedConfig(
                epochs=5, learning_rate=5e-5, tokens_per_batch=16_384, max_tokens=512, warmup_steps=500
            ),
            reward=RewardConfig(labels=LabelOptions(engagement="continuation"), learning_rate=1e-5, gate="warn"),
            align=AlignmentConfig(updates=500, batch_size=256, learning_rate=3e-6, save_every=25, evaluations=10),
            ppo=PPOConfig(minibatches=4),
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
        truth = users.closed_loop_probe(setup, proxy, **size)
        policy = alignment.align(run, setup, trunk, proxy, config.align, config.learner, truth=truth)
        # 4. Evaluation and report.
        policies = {
            "sft": imitation,
            **({"prior": imitation | setup.prior} if setup.prior else {}),
            config.algorithm: policy,
        }
        systems = assess_all(run, setup, policies, config.assess, proxy)
        pairs = item_prior.compared(config.algorithm) if setup.prior else ()
        if config.reactions:
            setup, systems = paid_by_reactions(run, setup, trunk, config, proxy, systems)
            last = live_rounds.STAGE
            pairs = Sides(last, "sft_filtered"), Sides(last, "sft"), Sides(config.algorithm, "sft")
        report = main_report(run, setup, systems, config.assess, of_reward, pairs=pairs)
    if config.align.updates * config.align.batch_size < LEARNS:
        notice("too small to learn: this run shows that every part works. Next: make run, then chat with")
        notice(f"  {python()} experiments/chat.py runs/demo")
    return report


def paid_by_reactions(
    run: RunDirectory, setup: Setup, trunk: Params, config: Config, proxy: Proxy, before: Systems
) -> tuple[Setup, Systems]:
    """Users' reactions pay for items: the setup that policy reads, and it beside the others and imitation without repeats."""
    talk = live.talker(run.path / f"seed-{config.seed}", config.live)
    setup, policy = live_feedback.align(run, setup, trunk, config.live, talk)
    told = {"trunk": trunk, **item_prior.told_not_to_repeat(setup)}
    own = assess_all(run, setup, {"sft_filtered": told, live_rounds.STAGE: policy}, config.assess, proxy)
    return setup, Systems({**before.policies, **own.policies}, {**before.cases, **own.cases})


def command_line(arguments: list[str]) -> Config:
    """A preset (none means `demo`) with options on top."""
    return preset_and_options(PRESETS, arguments, __doc__)


if __name__ == "__main__":
    start(main, command_line)

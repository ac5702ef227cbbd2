"""The foundations that studies start from, by name and size: one table, so that studies of one setting share one foundation.

A `quick` setting is the same experiment with fewer dialogues and less training; its numbers are its own. `debug` is for
tests. Real data are under `dir`, which holds `redial/`, `opendialkg/` and `uss/`.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import miniature
from rlhf_jax.assessment.assess import AssessmentConfig
from rlhf_jax.feedback.labelling import LabelOptions
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.simulators.world import WorldConfig, hackable
from rlhf_jax.stages.alignment import AlignmentConfig
from rlhf_jax.stages.reward import RewardConfig
from rlhf_jax.stages.setup import DataConfig, ModelConfig
from rlhf_jax.stages.supervised import SupervisedConfig
from studies.foundation import FoundationConfig, facts

Setting = Literal["world", "hackable", "redial", "opendialkg"]
Size = Literal["full", "quick", "debug"]


@dataclasses.dataclass(frozen=True)
class StudySetting:
    """Everything but what a study varies."""

    foundation: FoundationConfig
    align: AlignmentConfig
    ppo: PPOConfig
    assess: AssessmentConfig

    def __post_init__(self) -> None:
        # Policy and reference are made with the foundation, once for all of its studies; another value here would do nothing.
        if self.align.temperature != self.foundation.temperature:
            raise ValueError(
                f"align.temperature {self.align.temperature} is not that of the foundation, {self.foundation.temperature}, "
                "which policies are sampled and learn with"
            )


def foundation_folder(runs: Path, setting: Setting, size: Size, seed: int) -> Path:
    """Where the foundation of a setting lies, so that every study finds the same one."""
    return runs / "foundations" / f"{setting}-{size}" / f"seed-{seed}"


def rests_on(setting: StudySetting, folder: Path) -> dict[str, Any]:
    """What the numbers of a study's seed depend on besides its configuration; for `RunDirectory.record`.

    Args:
      folder: where its foundation lies, or will.
    """
    own = {"align": setting.align, "ppo": setting.ppo, "assess": setting.assess}
    return own | facts(folder, setting.foundation)


def study_setting(setting: Setting, size: Size, data_dir: Path) -> StudySetting:
    """The numbers of a setting at a size.

    Args:
      data_dir: holds `redial/` and `opendialkg/`; not read for the worlds.
    """
    if setting in ("world", "hackable"):
        return _world(setting == "hackable", size)
    return _real(setting, size, data_dir / setting)


def _world(is_hackable: bool, size: Size) -> StudySetting:
    world = WorldConfig(n_items=48, n_genres=4, n_people=6, p_taste=0.6, p_popularity=0.25, hackability=0.3)
    if size == "debug":
        world = dataclasses.replace(world, n_items=40, n_train=60, n_test=12, n_users=40)
        data = dataclasses.replace(miniature.DATA, world=world)
    else:
        data = DataConfig(world=dataclasses.replace(world, n_train=2500 if size == "full" else 800))
    if is_hackable:
        data = dataclasses.replace(data, world=hackable(data.world))
    if size == "debug":
        return _debug(data, LabelOptions())
    sft = SupervisedConfig(
        epochs=6,
        description_epochs=6,
        metadata_words=True,
        item_weight=5.0,
        max_tokens=256,
        buckets=(32, 96, 160, 256),
        tokens_per_batch=2560,
    )
    full = size == "full"
    return StudySetting(
        foundation=FoundationConfig(
            data=data,
            model=ModelConfig(attention_dropout=False),
            sft=sft,
            reward=RewardConfig(epochs=6 if full else 3, learning_rate=1e-3, gate="warn"),
            # What the hackable world is asked needs one form of the signal.
            sentiments=("shift", "level") if full or not is_hackable else ("shift",),
        ),
        align=AlignmentConfig(
            updates=40 if full else 12,
            batch_size=128 if full else 96,
            learning_rate=3e-4,
            evaluations=5 if full else 4,
        ),
        ppo=PPOConfig(minibatches=2),
        assess=AssessmentConfig(text_turns=500 if full else 200, users=300 if full else 200),
    )


def _real(setting: Literal["redial", "opendialkg"], size: Size, folder: Path) -> StudySetting:
    labels = LabelOptions(engagement="continuation")
    if size == "debug":
        data = dataclasses.replace(miniature.DATA, source=setting, dir=folder, max_dialogues=miniature.DIALOGUES)
        return _debug(data, labels)
    # Relevance pays for saying more of the same: an endless reply scores as a bad one, and length has a price.
    ppo = PPOConfig(kl_coef=0.1, missing_eos_mode="replace", length_coef=0.05, length_free=12)
    redial, full = setting == "redial", size == "full"
    # Both sizes have one network, half as dear as that of `ppo_redial.py`: what a study needs is many trainings of it. The full
    # size has all dialogues, contexts nearly as long as they come, and more of everything that is learnt and measured.
    if full:
        data = DataConfig(
            source=setting, dir=folder, n_words=5000, window=20 if redial else 10, context_tokens=256 if redial else 192
        )
    else:
        data = DataConfig(source=setting, dir=folder, max_dialogues=2000, n_words=3000, window=6, context_tokens=128)
    return StudySetting(
        foundation=FoundationConfig(
            data=data,
            model=ModelConfig(
                n_layer=2, n_embd=128, n_head=4, n_positions=512 if full else 256, attention_dropout=False
            ),
            # Enough of it to tell items better than their frequency does, which two passes with less weight on items did not.
            sft=SupervisedConfig(
                epochs=4 if redial else 6,
                item_weight=5.0,
                description_tokens=32,
                metadata_words=True,
                repeated_item_weight=0.0,
                max_tokens=512 if full else 256,
                buckets=(32, 128, 192, 256, 384, 512) if full else (32, 128, 192, 256),
                # OpenDialKG's dialogues are short: smaller batches make as many steps of them.
                tokens_per_batch=4096 if redial else 2048 if full else 1024,
                warmup_steps=200 if full else 100,
            ),
            reward=RewardConfig(
                labels=labels,
                max_turns=4000 if full else 2000,
                validation_turns=2000 if full else 1000,
                epochs=2,
                gate="warn",
            ),
            sentiments=("shift", "level"),
        ),
        align=AlignmentConfig(updates=20 if full else 12, learning_rate=3e-4, save_every=5 if full else 4),
        ppo=ppo,
        assess=AssessmentConfig(text_turns=1000 if full else 300),
    )


def _debug(data: DataConfig, labels: LabelOptions) -> StudySetting:
    return StudySetting(
        foundation=FoundationConfig(
            data=data,
            model=miniature.MODEL,
            sft=miniature.SFT,
            reward=dataclasses.replace(miniature.REWARD, labels=labels),
            sentiments=("shift", "level"),
        ),
        align=miniature.ALIGN,
        ppo=miniature.PPO,
        assess=miniature.ASSESS,
    )

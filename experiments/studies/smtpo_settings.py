"""The numbers of SMTPO's stages by setting: one table for the main job, whose options stand on top of it, and for its ablation."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import miniature
from rlhf_jax.learners.multi_turn_config import MultiTurnConfig
from rlhf_jax.ranges import Cases, check_numbers
from rlhf_jax.simulators.world import WorldConfig
from rlhf_jax.stages.item_prior import PriorConfig
from rlhf_jax.stages.setup import DataConfig, ModelConfig
from rlhf_jax.stages.smtpo.multi_turn import ConversationsConfig
from rlhf_jax.stages.smtpo.reasoning import ReasoningConfig
from rlhf_jax.stages.smtpo.retriever import RetrieverConfig
from rlhf_jax.stages.smtpo.simulator import SimulatorConfig
from rlhf_jax.stages.supervised import SupervisedConfig


@dataclasses.dataclass(frozen=True)
class AssessConfig:
    """How much is measured."""

    openings: Cases = 1_000
    """Openings of the test split at most."""
    users: Cases = 200
    """Users of the simulated world who talk with each system."""

    def __post_init__(self) -> None:
        check_numbers(self)


@dataclasses.dataclass(frozen=True)
class Stages:
    """Everything that is learnt and measured, by the numbers of docs/algorithms/smtpo.md."""

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

    @property
    def fields(self) -> dict[str, Any]:
        """By name, for a configuration that has them among others."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def reading(self, folder: Path) -> "Stages":
        """The same with real data from a folder."""
        return dataclasses.replace(self, data=dataclasses.replace(self.data, dir=folder))


WORLD = Stages(
    data=DataConfig(
        # Many test dialogues: what several turns add is a few of a hundred conversations.
        world=WorldConfig(n_items=120, n_genres=6, n_people=8, p_taste=0.6, p_popularity=0.25, n_test=1_000),
        context_tokens=160,
        response_tokens=40,
        max_items=2,
        # Else greedy words may name one item again and again, until the reply is cut off.
        items_once=True,
    ),
    model=ModelConfig(attention_dropout=False),
    sft=SupervisedConfig(
        epochs=4,
        description_epochs=4,
        metadata_words=True,
        item_weight=5.0,
        max_tokens=256,
        buckets=(32, 96, 160, 256),
        tokens_per_batch=2560,
    ),
    # A small catalogue: few candidates, few hard negatives, and words of a few templates.
    retriever=RetrieverConfig(
        semantic=64,
        collaborative=32,
        width=64,
        batch_size=64,
        hard_negatives=16,
        uniform_negatives=32,
        candidates=20,
    ),
    # After 400 steps the validation loss is .78, after 1,200 .69: what is left would look like a gain of what comes next.
    reasoning=ReasoningConfig(steps=1_200),
    simulator=SimulatorConfig(max_tokens=256, buckets=(96, 160, 256), tokens_per_batch=2560, composed_share=0.2),
    # What pays is sparse: larger batches, credit by place and the moving average make the gradient less noisy.
    conversations=ConversationsConfig(openings=16, learning_rate=1e-4, warmup_steps=5),
    learner=MultiTurnConfig(credit="place", average_decay=0.9),
    assess=AssessConfig(users=500),
)
DEBUG = Stages(
    data=dataclasses.replace(
        miniature.DATA,
        world=WorldConfig(n_items=40, n_train=60, n_test=24, n_users=40),
        max_items=2,
        response_tokens=40,
    ),
    model=miniature.MODEL,
    sft=miniature.SFT,
    retriever=RetrieverConfig(
        semantic=8,
        collaborative=4,
        n_recent=3,
        width=8,
        n_head=2,
        epochs=1,
        batch_size=16,
        hard_negatives=4,
        uniform_negatives=8,
        warmup_steps=2,
        candidates=8,
    ),
    reasoning=ReasoningConfig(
        steps=6, batch_size=8, listed_before=0.5, warmup_steps=2, evaluations=2, validation_turns=16
    ),
    simulator=SimulatorConfig(
        start="imitation",
        epochs=1,
        description_epochs=0,
        max_tokens=128,
        buckets=(128,),
        tokens_per_batch=1024,
        warmup_steps=2,
        composed_share=0.2,
        response_tokens=12,
    ),
    conversations=ConversationsConfig(
        updates=2, openings=2, group_size=4, turns=2, save_every=1, evaluations=2, validation_openings=8
    ),
    learner=MultiTurnConfig(credit="place", average_decay=0.9),
    assess=AssessConfig(openings=8, users=16),
)
REDIAL = Stages(
    data=DataConfig(
        source="redial",
        dir=Path("data/redial"),
        n_words=5000,
        window=20,
        context_tokens=192,
        response_tokens=56,
        max_items=10,
    ),
    model=ModelConfig(attention_dropout=False),
    sft=SupervisedConfig(
        epochs=2,
        description_tokens=32,
        metadata_words=True,
        repeated_item_weight=0.0,
        buckets=(32, 128, 192, 256, 384, 512),
        warmup_steps=200,
    ),
    # Words that thousands of items share are said; rarer ones would be people whom no seeker names.
    # Humans name one item a message: without such lists before it nobody has seen a second turn.
    reasoning=ReasoningConfig(min_items=60, listed_before=0.7),
    simulator=SimulatorConfig(start="imitation", epochs=1, buckets=(32, 128, 192, 256, 384, 512)),
    conversations=ConversationsConfig(warmup_steps=5),
    learner=MultiTurnConfig(credit="place", average_decay=0.9),
)
PAPER = Stages(
    data=DataConfig(
        source="redial",
        dir=Path("data/redial"),
        tokenizer="gpt2-medium",
        window=20,
        context_tokens=384,
        response_tokens=96,
        max_items=10,
    ),
    model=ModelConfig(weights="gpt2-medium", compute_dtype="bfloat16", remat=True),
    sft=SupervisedConfig(epochs=5, learning_rate=5e-5, tokens_per_batch=16_384, warmup_steps=500),
    reasoning=ReasoningConfig(steps=2_000, batch_size=64, listed_before=0.7, learning_rate=5e-5, min_items=60),
    simulator=SimulatorConfig(start="imitation", learning_rate=5e-5, tokens_per_batch=16_384, warmup_steps=500),
    conversations=ConversationsConfig(
        updates=300, openings=32, group_size=8, turns=5, learning_rate=3e-6, save_every=10
    ),
    learner=MultiTurnConfig(minibatches=4),
)
SETTINGS: Mapping[str, Stages] = {"world": WORLD, "debug": DEBUG, "redial": REDIAL, "paper": PAPER}

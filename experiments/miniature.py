"""The sizes of every preset `debug`: all stages in miniature, so that a test runs them in under a minute."""

from rlhf_jax.assessment.assess import AssessmentConfig
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.stages.alignment import AlignmentConfig
from rlhf_jax.stages.live_feedback import LiveConfig
from rlhf_jax.stages.reward import RewardConfig
from rlhf_jax.stages.setup import DataConfig, ModelConfig
from rlhf_jax.stages.supervised import SupervisedConfig

DIALOGUES = 60
"""Of real data, of each domain."""
DATA = DataConfig(n_words=400, context_tokens=64, response_tokens=24)
MODEL = ModelConfig(n_layer=1, n_embd=32, n_head=2, n_positions=128)
SFT = SupervisedConfig(
    epochs=2, max_tokens=128, buckets=(128,), tokens_per_batch=1024, description_epochs=0, warmup_steps=5
)
REWARD = RewardConfig(epochs=1, validation_turns=64, gate="warn")
ALIGN = AlignmentConfig(updates=2, batch_size=16, evaluations=2, save_every=1)
PPO = PPOConfig(epochs=2)
LIVE = LiveConfig(
    rounds=0, users=8, turns=2, logged_turns=64, updates=4, contexts=8, group_size=4, manners_updates=2, batch_size=16
)
ASSESS = AssessmentConfig(text_turns=16, batch_size=16, users=16, user_turns=2, conversations=2)

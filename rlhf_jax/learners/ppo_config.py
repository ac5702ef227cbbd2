"""The numbers of PPO, checked when they are set."""

import dataclasses
from typing import Annotated, Literal

from rlhf_jax.feedback.components import COMPONENTS, equal_weights
from rlhf_jax.learners.minibatch import PPOLossConfig
from rlhf_jax.learners.rl_config import RLConfig
from rlhf_jax.learners.shaping import MissingEosMode
from rlhf_jax.ranges import Decay, Epochs, Group, Norm, Range, Share, Weight


@dataclasses.dataclass(frozen=True)
class PPOConfig(RLConfig):
    """Every number of an update; the defaults are those of the reference implementations."""

    clip_eps: Annotated[float, Range("(0, 1e6]")] = 0.2
    """Bound of the importance ratio, 1 ± ε."""
    value_clip_eps: Norm = 0.2
    """Bound of a value's move within one update, reward units."""
    value_coef: Weight = 0.1
    """Weight of the value loss."""
    entropy_coef: Weight = 0.0
    """Weight of the entropy bonus."""
    dual_clip: Annotated[float, Range("(1, 1e6]")] | None = None
    """Second bound, > 1, for tokens of negative advantage; None is off."""
    gamma: Share = 1.0
    """Discount per token."""
    gae_lambda: Share = 0.95
    """0 is one-step TD, 1 is return minus value."""
    kl_coef: Weight = 0.05
    """Price of leaving the reference, reward per nat; the start value under adaptive control."""
    kl_control: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive` steers the coefficient so that the KL per response meets `kl_target` (start it at 0.15)."""
    kl_target: Norm = 6.0
    """Nats per response."""
    kl_horizon: Annotated[float, Range("(0, 1e9]")] = 10_000.0
    """Responses over which the coefficient may change by a fifth: at most by 1 ± 0.2·n/horizon in an update of n."""
    component_weights: tuple[Weight, ...] = equal_weights(COMPONENTS)
    """α, β, γ of the reward components."""
    component_names: tuple[str, ...] = COMPONENTS
    """Names the components are logged under."""
    normalise_components: bool = True
    """Running mean 0 and deviation 1 for each component before it is weighted."""
    normalise_score: bool = True
    """The same for their weighted sum."""
    score_clip: Norm | None = 5.0
    """Bound of the normalised score, in deviations; None is off."""
    missing_eos_penalty: Weight = 1.0
    """Taken from the score of a response that did not end within its budget."""
    missing_eos_mode: MissingEosMode = "subtract"
    """`replace` pays such a response −penalty whatever it scored."""
    length_coef: Weight = 0.0
    """Score taken per response token beyond `length_free`; 0 is off."""
    length_free: Annotated[int, Range("[0, 65_536]")] = 0
    """Tokens that cost nothing."""
    reward_whitening: bool = False
    """Scale token rewards to deviation 1 over the batch, keeping their mean."""
    whiten_advantages: bool = True
    """Mean 0 and deviation 1 over all valid tokens of the rollout batch."""
    old_logprobs: Literal["recompute", "sampler"] = "recompute"
    """Which log-probabilities stand below the ratio: the learner's own (one pass, which also gives the values),
    or those the sampler stored; where it stored its values too, that pass is saved."""
    epochs: Epochs = 4
    """Passes over a rollout batch."""
    minibatches: Annotated[int, Range("[1, 65_536]")] = 1
    """Optimiser steps per epoch."""
    microbatches: Annotated[int, Range("[1, 65_536]")] = 1
    """Slices a minibatch's gradient is accumulated over; the same result in less memory."""
    group_size: Group = 1
    """Responses to one prompt. Above 1 each is paid what it scores above its group's mean, a baseline beside the value
    function, and the prompt is read once for all of them; 1 is off."""
    ptx_coef: Weight = 0.0
    """Weight of the supervised loss on human responses that is added to PPO's; 0 is off."""
    average_decay: Decay | None = None
    """Of a moving average of the parameters over updates, which is then what is measured and kept; None is off."""
    target_kl: Norm | None = None
    """Stop this update's remaining steps once a minibatch's approximate KL (nats per token) passes this; None is off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("kl_control", ("fixed", "adaptive"))

    @property
    def loss(self) -> PPOLossConfig:
        """The part that lines 7a–7c read."""
        return PPOLossConfig(self.clip_eps, self.value_clip_eps, self.value_coef, self.entropy_coef, self.dual_clip)

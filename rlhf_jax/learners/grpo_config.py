"""The numbers of GRPO, checked when they are set."""

import dataclasses
from typing import Annotated, Literal

from rlhf_jax.feedback.components import COMPONENTS, equal_weights
from rlhf_jax.learners.minibatch import Descent
from rlhf_jax.learners.rl_config import RLConfig
from rlhf_jax.learners.shaping import MissingEosMode
from rlhf_jax.ranges import Decay, Epochs, Norm, Range, Share, Weight, option


@dataclasses.dataclass(frozen=True)
class GRPOConfig(RLConfig):
    """Every number of an update; what PPO has too means the same here."""

    group_size: Annotated[int, Range("[2, 1_024]")] = 8
    """Responses to one prompt, which is read once for all of them."""
    scale_by_deviation: bool = True
    """Divide by the deviation of the group (GRPO); off, an advantage is in score units."""
    clip_eps: Norm = 0.2
    """Bound of the importance ratio, 1 ± ε."""
    gamma: Share = 1.0
    """Discount per token of what is paid later."""
    kl_coef: Weight = 0.04
    """Weight of the k3 penalty in the loss, per nat; 0 is off."""
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
    old_logprobs: Literal["recompute", "sampler"] = "recompute"
    """Which log-probabilities stand below the ratio: the learner's own, or those the sampler stored, without a pass."""
    epochs: Epochs = 1
    """Passes over a rollout batch."""
    minibatches: Annotated[int, Range("[1, 65_536]")] = 1
    """Optimiser steps per epoch."""
    microbatches: Annotated[int, Range("[1, 65_536]")] = 1
    """Slices a minibatch's gradient is accumulated over; the same result in less memory."""
    ptx_coef: Weight = 0.0
    """Weight of the supervised loss on human responses that is added; 0 is off."""
    average_decay: Decay | None = None
    """Of a moving average of the parameters over updates, which is then what is measured and kept; None is off."""
    target_kl: Norm | None = None
    """Stop this update's remaining steps once a minibatch's approximate KL (nats per token) passes this; None is off."""
    whole_groups: bool = False
    """Keep a group in one minibatch and microbatch, and read its prompt once while judging and learning too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.whole_groups and self.ptx_coef > 0:
            raise ValueError(
                f"{option(self, 'whole_groups')} reads one prompt for {self.group_size} responses, but human responses have "
                f"a prompt each: set {option(self, 'ptx_coef')} 0 (got {self.ptx_coef:g})"
            )

    @property
    def rows_together(self) -> int:
        """Rows that share one reading of their prompt: what the policy is made for."""
        return self.group_size if self.whole_groups else 1

    def check_parts(self, batch_size: int, named: str) -> None:
        """Raises ValueError where `batch_size` responses, an option `named` so, have parts that hold no whole groups."""
        slices = self.minibatches * self.microbatches
        if self.whole_groups and batch_size % (self.group_size * slices):
            raise ValueError(
                f"{named} {batch_size} in {option(self, 'minibatches')} {self.minibatches} × "
                f"{option(self, 'microbatches')} {self.microbatches} parts are no whole groups of {self.group_size} each: "
                f"leave out {option(self, 'whole_groups')}, or take fewer parts"
            )

    @property
    def descent(self) -> Descent:
        """As every clipped learner's, with whole groups where they are wanted."""
        return super().descent._replace(together=self.rows_together)

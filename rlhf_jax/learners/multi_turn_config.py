"""The numbers of learning from turns, checked when they are set."""

import dataclasses
from typing import Annotated, Literal

from rlhf_jax.learners.rl_config import ClippedConfig
from rlhf_jax.ranges import Decay, Epochs, Norm, Range, Share, Weight


@dataclasses.dataclass(frozen=True)
class MultiTurnConfig(ClippedConfig):
    """Every number of an update; what GRPO has too means the same here. Openings, episodes and turns are the data's."""

    component_names: tuple[str, ...] = ("format", "recommendation", "preference")
    """Names of a turn's reward components, as they are logged."""
    component_weights: tuple[Weight, ...] = (1.0, 1.0, 1.0)
    """What each counts; 0 leaves it out."""
    decoupled: bool = True
    """Normalise each component among the episodes of a group at the same turn (GDPO); off, components are summed as they
    are. On: a turn is not credited with the average pay
    of later turns, only with what lies above or below it: see lesson 12 (`notebooks/12_turns_on_a_bandit.py`)."""
    credit: Literal["turn", "place"] = "turn"
    """What a token answers for: its whole `turn` and what follows; or, from its `place` in the turn on, only what was not
    settled before it: what is said after the list did not choose the list. The expected gradient is the same without
    `decoupled`, else nearly."""
    gamma: Share = 1.0
    """Discount per turn of what is paid later; 0 credits a turn with its own reward alone."""
    clip_eps: Norm = 0.2
    """Bound of the importance ratio, 1 ± ε."""
    kl_coef: Weight = 0.04
    """Weight of the k3 penalty in the loss, per nat; 0 is off."""
    old_logprobs: Literal["recompute", "sampler"] = "recompute"
    """Which log-probabilities stand below the ratio: the learner's own, or those the sampler stored, without a pass."""
    epochs: Epochs = 1
    """Passes over an update's turns."""
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

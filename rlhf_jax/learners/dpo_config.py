"""The numbers of DPO, checked when they are set."""

import dataclasses
from typing import Annotated, Any, Literal, get_args

from rlhf_jax.learners.optimizer import Schedule
from rlhf_jax.ranges import Batch, Decay, Epochs, Norm, Range, Rate, Share, check_numbers, option

PreferenceLoss = Literal["sigmoid", "ipo", "softmax", "rft"]


@dataclasses.dataclass(frozen=True)
class DPOConfig:
    """Every number of a stage of DPO; β, rate and epochs are DPO4Rec's (arXiv:2410.05939)."""

    loss: PreferenceLoss = "sigmoid"
    """`sigmoid` is DPO, `ipo` aims at a finite margin; both compare two responses. `softmax` compares the chosen with all
    others at once. `rft` imitates the chosen alone: rejection-sampling fine-tuning, without a reference."""
    beta: Annotated[float, Range("(0, 1_000]")] = 0.01
    """β: what a nat of moving from the reference is worth, so small values move far; `ipo` aims at 1/(2β) nats."""
    label_smoothing: Annotated[float, Range("[0, 0.5)")] = 0.0
    """Share of pairs assumed to be the wrong way round; `sigmoid` alone reads it."""
    learning_rate: Rate = 5e-5
    """Peak."""
    schedule: Schedule = "linear"
    """From the peak to 0, or `constant`."""
    warmup_steps: Annotated[int, Range("[0, 1_000_000]")] = 0
    """Optimiser steps until the peak; at most half of all."""
    epochs: Epochs = 3
    """Passes over the preferences."""
    batch_size: Batch = 32
    """Prompts of one optimiser step, each with all its responses."""
    microbatches: Annotated[int, Range("[1, 65_536]")] = 1
    """Slices a step's gradient is accumulated over; the same result in less memory."""
    weight_decay: Share = 0.01
    """AdamW's, on matrices."""
    max_grad_norm: Norm = 1.0
    """Limit of the gradient's global norm."""
    adam_eps: Annotated[float, Range("(0, 1]")] = 1e-8
    """Adam's ε. Gradients are proportional to β: PPO's 1e-5 would be larger than most of them."""
    average_decay: Decay | None = None
    """Of a moving average of the parameters over steps, which is then what is measured and kept; None is off."""

    def __post_init__(self) -> None:
        check_numbers(self)
        for name, allowed in (("loss", get_args(PreferenceLoss)), ("schedule", get_args(Schedule))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{option(self, name)} must be one of {allowed}: got {getattr(self, name)!r}")
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(
                f"{option(self, 'label_smoothing')} {self.label_smoothing} changes nothing with the loss {self.loss!r}: "
                "only 'sigmoid' reads it"
            )
        if self.batch_size % self.microbatches:
            raise ValueError(
                f"{option(self, 'batch_size')} {self.batch_size} cannot be divided into "
                f"{self.microbatches} {option(self, 'microbatches')}"
            )

    def steps(self, n_prompts: int) -> int:
        """Optimiser steps of the stage; batches may span two epochs, so that every prompt is seen `epochs` times.

        Raises: ValueError where there is nothing to learn from.
        Examples:
          >>> DPOConfig(epochs=3, batch_size=32).steps(100)
          10
        """
        if n_prompts < 1:
            raise ValueError(f"{n_prompts} prompts with preferences: at least one is needed")
        return -(-n_prompts * self.epochs // self.batch_size)

    def rate(self, n_prompts: int) -> dict[str, Any]:
        """What `learning_rate_schedule` and `make_optimizer` are given."""
        steps = self.steps(n_prompts)
        return {
            "learning_rate": self.learning_rate,
            "warmup_steps": min(self.warmup_steps, steps // 2),
            "total_steps": steps,
            "schedule": self.schedule,
        }

"""What the configurations of clipped learners do alike. Each spells its numbers itself: see docs/decisions/0014."""

from typing import Literal

from rlhf_jax.feedback.components import COMPONENTS
from rlhf_jax.learners.minibatch import Descent
from rlhf_jax.learners.shaping import MissingEosMode
from rlhf_jax.ranges import check_numbers, option


class ClippedConfig:
    """Checks, and views of a part, for a dataclass with these fields among its own."""

    component_weights: tuple[float, ...]
    component_names: tuple[str, ...]
    old_logprobs: Literal["recompute", "sampler"]
    epochs: int
    minibatches: int
    microbatches: int
    ptx_coef: float
    target_kl: float | None

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.component_names != COMPONENTS:  # The default gives way to the names of a run's reward model.
            self.check_components()
        self.check_choice("old_logprobs", ("recompute", "sampler"))

    def check_choice(self, name: str, allowed: tuple[str, ...]) -> None:
        """Raises ValueError where a field holds none of the words allowed."""
        if getattr(self, name) not in allowed:
            raise ValueError(f"{option(self, name)} must be one of {allowed}: got {getattr(self, name)!r}")

    def check_components(self) -> None:
        """Raises ValueError where a component has no name or no weight."""
        if len(self.component_weights) != len(self.component_names):
            raise ValueError(
                f"{option(self, 'component_weights')} has {len(self.component_weights)} numbers for "
                f"{len(self.component_names)} components: give one each, in the order {', '.join(self.component_names)}"
            )

    @property
    def descent(self) -> Descent:
        """The part that says how many steps are taken on a batch."""
        return Descent(self.epochs, self.minibatches, self.microbatches, self.target_kl, self.ptx_coef)


class RLConfig(ClippedConfig):
    """The same, where a response that does not end has its price: PPO and GRPO."""

    missing_eos_mode: MissingEosMode

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("missing_eos_mode", ("subtract", "replace"))

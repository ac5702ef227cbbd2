"""Which parameters reinforcement learning moves, and the prior at which rate. The others get no gradient, no moments, no step."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import optax

from rlhf_jax.interfaces import Params, PolicyApply, PolicyOutput, Rollout
from rlhf_jax.learners.optimizer import Adam, learning_rate_schedule, make_optimizer, steps_taken

Trainable = Literal["all", "heads", "prior", "manners"]

MOVING: Mapping[Trainable, str] = {
    "all": "",
    # The table is the head of words and items and the input embedding at once: the two are tied.
    "heads": r"(^|/)(wte|ln_f/\w+|value/\w+|prior/\w+)$",
    "prior": r"(^|/)(prior|value)/\w+$",
    "manners": r"(^|/)prior/manners$",
}
"""A pattern found in the paths of the parameters that move."""


def moves(params: Params, trainable: Trainable) -> Params:
    """True for every leaf that is trained.

    Examples:
      >>> moves({"trunk": {"wte": 0, "h_0": {"mlp": 0}}, "value": {"bias": 0}}, "heads")
      {'trunk': {'h_0': {'mlp': False}, 'wte': True}, 'value': {'bias': True}}
    """
    return jax.tree.map_with_path(
        lambda path, _: bool(re.search(MOVING[trainable], jax.tree_util.keystr(path, simple=True, separator="/"))),
        params,
    )


def held(policy: PolicyApply, trainable: Trainable) -> PolicyApply:
    """`policy` through which no gradient reaches a parameter that is not trained; itself where all are."""
    if trainable == "all":
        return policy

    def apply(params: Params, rollout: Rollout) -> PolicyOutput:
        fixed = jax.tree.map(
            lambda leaf, moving: leaf if moving else jax.lax.stop_gradient(leaf), params, moves(params, trainable)
        )
        return policy(fixed, rollout)

    return apply


def without_moments(optimizer: optax.GradientTransformation, trainable: Trainable) -> optax.GradientTransformation:
    """`optimizer` that keeps moments of trained parameters alone; itself where all are.

    It adds the gradient of every other parameter as it is, which behind a `held` policy is 0.
    """
    if trainable == "all":
        return optimizer
    return optax.masked(optimizer, lambda params: moves(params, trainable))


@runtime_checkable
class Descent(Protocol):
    """What a stage's configuration says of its optimiser."""

    @property
    def learning_rate(self) -> float:
        """Start of the linear schedule to 0."""
        ...

    @property
    def warmup_steps(self) -> int:
        """Optimiser steps until the start of the schedule."""
        ...

    @property
    def max_grad_norm(self) -> float:
        """Limit of the gradient's global norm."""
        ...

    @property
    def adam_eps(self) -> float:
        """ε of Adam."""
        ...

    @property
    def trainable(self) -> Trainable:
        """What moves."""
        ...


def policy_optimizer(
    config: Descent, steps: int
) -> tuple[optax.GradientTransformation, Callable[[optax.OptState], jax.Array]]:
    """Adam of so many steps over what moves; and the learning rate of the next step by the optimiser's state, to be logged."""
    schedule: Any = {
        "learning_rate": config.learning_rate,
        "warmup_steps": config.warmup_steps,
        "total_steps": steps,
        "schedule": "linear",
    }
    rate = learning_rate_schedule(**schedule)
    optimizer = make_optimizer(**schedule, max_grad_norm=config.max_grad_norm, adam=Adam(eps=config.adam_eps))
    return without_moments(optimizer, config.trainable), jax.jit(lambda opt_state: rate(steps_taken(opt_state)))


def with_prior_rate(optimizer: optax.GradientTransformation, factor: float) -> optax.GradientTransformation:
    """`optimizer` whose steps of the prior over items are `factor` times as long; itself where the factor is 1.

    Adam moves a number by about its learning rate a step, whatever the gradient. A rate that is right for a network's
    millions of small weights leaves the prior's few, which are of size 1, where they were.
    """
    if factor == 1.0:
        return optimizer
    return optax.chain(optimizer, optax.masked(optax.scale(factor), _of_the_prior))


def _of_the_prior(params: Params) -> Params:
    return jax.tree.map_with_path(
        lambda path, _: "prior" in jax.tree_util.keystr(path, simple=True, separator="/").split("/"), params
    )

"""Which parameters reinforcement learning moves, and the prior at which rate. The others get no gradient, no moments, no step."""

import re
from collections.abc import Mapping
from typing import Literal

import jax
import optax

from rlhf_jax.interfaces import Params, PolicyApply, PolicyOutput, Rollout

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

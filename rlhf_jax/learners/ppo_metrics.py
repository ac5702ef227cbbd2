"""What PPO logs every update; names without the stage's prefix."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rlhf_jax.equations.masked import masked_mean
from rlhf_jax.interfaces import PolicyOutput, Rollout
from rlhf_jax.learners.shaping import CombinedScores

Metrics = dict[str, Float[Array, ""] | Int[Array, ""]]


def summarise_steps(logged: dict[str, Array]) -> Metrics:
    """Means over the steps that were taken, extremes over those, and the ratio's deviation in the very first step."""
    taken = logged.pop("taken")
    stopped = logged.pop("stopped")
    skipped = jnp.sum(logged.pop("skipped").astype(jnp.int32))
    ratio_max, ratio_min = logged.pop("policy/ratio_max"), -logged.pop("negative_ratio_min")
    means = {name: masked_mean(x, taken) for name, x in logged.items()}
    any_taken = jnp.any(taken)
    return means | {
        "policy/ratio_max": jnp.where(any_taken, jnp.max(jnp.where(taken, ratio_max, -jnp.inf)), 0.0),
        "policy/ratio_min": jnp.where(any_taken, jnp.min(jnp.where(taken, ratio_min, jnp.inf)), 0.0),
        "policy/first_ratio_max_deviation": jnp.maximum(ratio_max[0] - 1, 1 - ratio_min[0]),
        "policy/stopped_early": jnp.mean(stopped.astype(jnp.float32)),
        "skipped": skipped,
    }


class ShapedRewards(NamedTuple):
    """Lines 4 and 5 of the box: what a response is paid, and what each of its tokens."""

    components: Float[Array, "B C"]
    """As the reward model gives them."""
    scores: CombinedScores
    paid: Float[Array, " B"]
    """The combined score with the prices of a missing end and of length."""
    k1: Float[Array, "B T"]
    k3: Float[Array, "B T"]
    rewards: Float[Array, "B T"]


def objective_metrics(
    shaped: ShapedRewards,
    old: PolicyOutput,
    rollout: Rollout,
    *,
    names: tuple[str, ...],
    kl_coef: Float[Array, ""],
) -> Metrics:
    """Score by component and as paid, KL to the reference, and the shape of the sampled text."""
    mask, components, combined, paid = rollout.response_mask, shaped.components, shaped.scores, shaped.paid
    per_response_k1 = jnp.sum(shaped.k1, axis=1)
    by_component = {}
    for c, name in enumerate(names):
        by_component[f"objective/{name}_raw"] = jnp.mean(components[:, c])
        by_component[f"objective/{name}_normalised"] = jnp.mean(combined.components[:, c])
        by_component[f"objective/{name}_reward_correlation"] = correlation(components[:, c], paid)
    return by_component | {
        "objective/score_raw": jnp.mean(combined.raw),
        "objective/score_normalised": jnp.mean(paid),
        "objective/kl_k1": jnp.mean(per_response_k1),
        "objective/kl_k3": jnp.mean(jnp.sum(shaped.k3, axis=1)),
        "objective/non_score_reward": -kl_coef * jnp.mean(per_response_k1),
        "objective/kl_coef": kl_coef,
        "objective/entropy": masked_mean(old.entropy, mask),
        "policy/sampler_mismatch": jnp.max(jnp.where(mask, jnp.abs(rollout.logprobs - old.logprobs), 0.0)),
        "text/response_length": jnp.mean(jnp.sum(mask, axis=1).astype(jnp.float32)),
        "text/eos_fraction": jnp.mean(rollout.finished.astype(jnp.float32)),
    }


def correlation(x: Float[Array, " B"], y: Float[Array, " B"]) -> Float[Array, ""]:
    """Pearson correlation over a batch; 0 where a side does not vary, so that a constant reward logs no NaN.

    Source: Pearson 1895. No gradients are meant to flow through it.
    """
    x, y = x.astype(jnp.float32) - jnp.mean(x), y.astype(jnp.float32) - jnp.mean(y)
    scale = jnp.sqrt(jnp.sum(x * x) * jnp.sum(y * y))
    return jnp.where(scale > 0, jnp.sum(x * y) / jnp.where(scale > 0, scale, 1.0), 0.0)

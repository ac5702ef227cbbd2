"""From raw reward components to the one number a response is paid."""

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.equations.rewards import missing_eos_score
from rlhf_jax.equations.running import RunningMoments, normalise, update_moments
from rlhf_jax.interfaces import Rollout

MissingEosMode = Literal["subtract", "replace"]


@runtime_checkable
class Pricing(Protocol):
    """The part of a learner's configuration that says what a response is paid; `PPOConfig` says what each means."""

    @property
    def normalise_components(self) -> bool: ...
    @property
    def normalise_score(self) -> bool: ...
    @property
    def score_clip(self) -> float | None: ...
    @property
    def missing_eos_penalty(self) -> float: ...
    @property
    def missing_eos_mode(self) -> MissingEosMode: ...
    @property
    def length_coef(self) -> float: ...
    @property
    def length_free(self) -> int: ...


class CombinedScores(NamedTuple):
    """One score per response, and the moments after having seen this batch."""

    raw: Float[Array, " B"]
    """Σ_c w_c · raw component c, reward-model units."""
    normalised: Float[Array, " B"]
    """The same sum of normalised components, itself normalised and clipped; dimensionless."""
    components: Float[Array, "B C"]
    """Components as they were weighted: normalised where that is on."""
    component_moments: RunningMoments
    score_moments: RunningMoments


def score_responses(
    components: Float[Array, "B C"],
    rollout: Rollout,
    component_moments: RunningMoments,
    score_moments: RunningMoments,
    weights: tuple[float, ...] | Float[Array, " C"],
    config: Pricing,
    *,
    frozen: bool = False,
) -> tuple[CombinedScores, Float[Array, " B"]]:
    """Line 4 of PPO's box: what a response is paid, from its raw components to the price of its length.

    Args:
      components: what the reward model says of the responses. [B, C]
      weights: α, β, γ.
      config: what is normalised, where scores are clipped, and what a missing `<eos>` and length cost.
      frozen: the moments stay as they are.
    Returns: the combination with its moments, and what each response is paid. [B]
    """
    combined = combine_components(
        components,
        component_moments,
        score_moments,
        weights=weights,
        normalise_components=config.normalise_components,
        normalise_score=config.normalise_score,
        score_clip=config.score_clip,
        frozen=frozen,
    )
    scores = penalise(
        combined.normalised,
        rollout.finished,
        jnp.sum(rollout.response_mask, axis=1),
        missing_eos_penalty=config.missing_eos_penalty,
        missing_eos_mode=config.missing_eos_mode,
        length_coef=config.length_coef,
        length_free=config.length_free,
    )
    return combined, scores


def combine_components(
    components: Float[Array, "B C"],
    component_moments: RunningMoments,
    score_moments: RunningMoments,
    *,
    weights: tuple[float, ...] | Float[Array, " C"],
    normalise_components: bool,
    normalise_score: bool,
    score_clip: float | None,
    frozen: bool = False,
) -> CombinedScores:
    """Running normalisation of each component → weighted sum → running normalisation of the sum → clip.

    The moments include the batch at hand. A batch with a non-finite component leaves them as they were, so that one
    broken reward does not poison every later update (the update itself is then refused by the optimiser). With `frozen`
    they stay as they are, whatever the batch.
    """
    weight = jnp.asarray(weights, jnp.float32)[None, :]
    components = components.astype(jnp.float32)
    finite = jnp.all(jnp.isfinite(components))
    if not frozen:
        component_moments = _if_finite(finite, update_moments(component_moments, components), component_moments)
    weighed = normalise(component_moments, components) if normalise_components else components
    # A sum of products, not a matmul: accelerators would round its inputs to bfloat16 or tf32.
    scores = jnp.sum(weighed * weight, axis=1)
    if not frozen:
        score_moments = _if_finite(finite, update_moments(score_moments, scores), score_moments)
    normalised = normalise(score_moments, scores) if normalise_score else scores
    if score_clip is not None:
        normalised = jnp.clip(normalised, -score_clip, score_clip)
    return CombinedScores(
        raw=jnp.sum(components * weight, axis=1),
        normalised=normalised,
        components=weighed,
        component_moments=component_moments,
        score_moments=score_moments,
    )


def penalise(
    scores: Float[Array, " B"],
    finished: Bool[Array, " B"],
    lengths: Int[Array, " B"],
    *,
    missing_eos_penalty: float,
    missing_eos_mode: MissingEosMode,
    length_coef: float,
    length_free: int,
) -> Float[Array, " B"]:
    """Prices what the reward model does not see: no `<eos>` within the budget, and length.

        s ← missing_eos(s) − length_coef · max(length − length_free, 0)

    Both come after normalisation, so that their size stays what the configuration says.

    Args:
      scores: normalised and clipped. [B]
      lengths: sampled tokens of each response, `<eos>` included. [B]
      length_coef: score per token beyond `length_free`; 0 is off.
    """
    scores = missing_eos_score(scores, finished, penalty=missing_eos_penalty, mode=missing_eos_mode)
    return scores - length_coef * jnp.maximum(lengths - length_free, 0).astype(jnp.float32)


def _if_finite(finite: Bool[Array, ""], new: RunningMoments, old: RunningMoments) -> RunningMoments:
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

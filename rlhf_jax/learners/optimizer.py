"""Adam with its schedule, the state of a supervised learner, and the step that refuses non-finite numbers."""

from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.interfaces import Params

Schedule = Literal["linear", "cosine", "constant"]
AdamForm = Literal["optax", "tf"]


@chex.dataclass(frozen=True)
class TrainState:
    """What a supervised learner carries from step to step; everything a restart needs besides the data position."""

    step: Int[Array, ""]
    """Optimiser steps asked for so far, skipped ones included."""
    params: Params
    opt_state: optax.OptState
    skipped: Int[Array, ""]
    """Steps refused because the loss or the gradient was not finite."""
    average: Params
    """Exponential moving average of `params`; None where it is off."""


class StepResult(NamedTuple):
    """One optimiser step, taken or refused."""

    params: Params
    opt_state: optax.OptState
    finite: Bool[Array, ""]
    """False where the loss or the gradient norm was infinite or NaN; parameters and moments are then unchanged."""
    gradient_norm: Float[Array, ""]
    """Global L2 norm before clipping."""
    update_norm: Float[Array, ""]
    """Global L2 norm of the change of the parameters; 0 where nothing was changed."""


def learning_rate_schedule(
    *, learning_rate: float, warmup_steps: int, total_steps: int, schedule: Schedule
) -> optax.Schedule:
    """Learning rate against the step: linear warm-up from 0, then `linear` or `cosine` to 0, or `constant`.

    Raises: ValueError if the lengths leave no step after the warm-up, or on an unknown name.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warmup_steps must be in [0, total_steps): got {warmup_steps} of {total_steps} steps")
    decay_steps = total_steps - warmup_steps
    if schedule == "linear":
        after = optax.linear_schedule(learning_rate, 0.0, decay_steps)
    elif schedule == "cosine":
        after = optax.cosine_decay_schedule(learning_rate, decay_steps)
    elif schedule == "constant":
        after = optax.constant_schedule(learning_rate)
    else:
        raise ValueError(f"schedule must be 'linear', 'cosine' or 'constant': got {schedule!r}")
    if warmup_steps == 0:
        return after
    # The first step already moves: rates 1/(w+1), ..., w/(w+1), then the full one.
    ramp = optax.linear_schedule(learning_rate / (warmup_steps + 1), learning_rate, warmup_steps)
    return optax.join_schedules([ramp, after], [warmup_steps])


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """The gradient times one number, so that its global L2 norm is at most `max_norm`:  g ← g · min(1, limit / ‖g‖).

    As optax's, but for rounding: that divides and multiplies every leaf and then chooses, four passes over memory where a
    factor inside Adam's own passes costs none. A norm that is known already may be given (`gradient_norm`).
    """

    def update(
        gradient: Params, state: Any, params: Params | None = None, *, gradient_norm: Array | None = None, **others: Any
    ) -> tuple[Params, Any]:
        del params, others
        norm = optax.tree.norm(gradient) if gradient_norm is None else gradient_norm
        factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), gradient), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def scale_by_adam_tf(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-5) -> optax.GradientTransformation:
    """Adam as TensorFlow 1 writes it: ε is added before the second moment's bias is corrected.

        u = √(1 − β₂ᵗ)/(1 − β₁ᵗ) · m / (√v + ε)        (Adam: m̂ / (√v̂ + ε))

    Source: Kingma & Ba 2015, arXiv:1412.6980, end of section 2; used by Ziegler et al. 2019. It damps small gradients
    early: the first step at g = 1e-5, ε = 1e-5 is .031 of the learning rate, against .5 in the other form.
    """
    moments = optax.scale_by_adam(b1=b1, b2=b2)

    def update(gradient: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        _, state = moments.update(gradient, state, params)
        t = state.count.astype(jnp.float32)
        correction = jnp.sqrt(1 - b2**t) / (1 - b1**t)
        return jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + eps), state.mu, state.nu), state

    return optax.GradientTransformation(moments.init, update)


def steps_taken(opt_state: optax.OptState) -> Int[Array, ""]:
    """The count that the schedule of a `make_optimizer` state reads: steps taken, without those refused or stopped.

    The next step's learning rate is the schedule at this count.

    Raises: ValueError if the state is of another optimiser, one without exactly one schedule.
    """

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_schedule) if is_schedule(node)]
    if len(found) != 1:
        raise ValueError(
            f"the optimiser's state holds {len(found)} schedules: expected one, as make_optimizer gives it"
        )
    return found[0].count


class Adam(NamedTuple):
    """Adam's own numbers."""

    eps: float = 1e-5
    """ε."""
    form: AdamForm = "optax"
    """Whether ε stands outside ("optax") or inside ("tf") the bias correction."""
    b1: float = 0.9
    b2: float = 0.999


ADAM = Adam()


def make_optimizer(
    *,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    schedule: Schedule = "linear",
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    adam: Adam = ADAM,
) -> optax.GradientTransformation:
    """Global-norm clip → Adam → decoupled weight decay → scheduled learning rate.

    Args:
      learning_rate: peak, per step.
      total_steps: optimiser steps until the schedule reaches 0 (PPO: updates × epochs × minibatches).
      weight_decay: AdamW's, on matrices only (not on biases, gains and other vectors).
      max_grad_norm: limit of the gradient's global L2 norm: [3, 4] with limit 0.5 becomes [.3, .4].
    Raises: ValueError on a rate or limit that is not positive, or an unknown name.
    """
    for name, number in (("learning_rate", learning_rate), ("max_grad_norm", max_grad_norm), ("adam.eps", adam.eps)):
        if not number > 0:
            raise ValueError(f"{name} must be positive: got {number}")
    if weight_decay < 0:
        raise ValueError(f"weight_decay must not be negative: got {weight_decay}")
    if adam.form not in ("optax", "tf"):
        raise ValueError(f"adam.form must be 'optax' or 'tf': got {adam.form!r}")
    rate = learning_rate_schedule(
        learning_rate=learning_rate, warmup_steps=warmup_steps, total_steps=total_steps, schedule=schedule
    )
    scale = optax.scale_by_adam if adam.form == "optax" else scale_by_adam_tf
    parts = [clip_by_global_norm(max_grad_norm), scale(b1=adam.b1, b2=adam.b2, eps=adam.eps)]
    if weight_decay > 0:
        parts.append(optax.add_decayed_weights(weight_decay, mask=_matrices))
    return optax.chain(*parts, optax.scale_by_learning_rate(rate))


def apply_or_skip(
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: optax.OptState,
    gradient: Params,
    loss: Float[Array, ""],
    *,
    wanted: Bool[Array, ""] | bool = True,
) -> StepResult:
    """One optimiser step, unless the loss or the gradient is not finite, or the step is not `wanted`.

    A refused step leaves parameters, moments and the schedule's count exactly as they were.
    """
    gradient_norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)

    def take() -> tuple[Params, optax.OptState, Float[Array, ""]]:
        step = optax.with_extra_args_support(optimizer).update
        updates, new_opt_state = step(gradient, opt_state, params, gradient_norm=gradient_norm)
        return optax.apply_updates(params, updates), new_opt_state, optax.tree.norm(updates)

    def refuse() -> tuple[Params, optax.OptState, Float[Array, ""]]:
        return params, opt_state, jnp.zeros(())

    # A branch rather than a select on every leaf: a select reads parameters and both moments once more each step.
    with jax.named_scope("optimizer"):
        new_params, new_opt_state, update_norm = jax.lax.cond(finite & wanted, take, refuse)
    return StepResult(new_params, new_opt_state, finite, gradient_norm, update_norm)


def after_step(
    state: TrainState, result: StepResult, *, average_decay: float | None
) -> tuple[TrainState, dict[str, Array]]:
    """The state after a step, taken or refused, and what every learner logs of it: `skipped` and `norms/*`."""
    refused = (~result.finite).astype(jnp.int32)
    after = TrainState(
        step=state.step + 1,
        params=result.params,
        opt_state=result.opt_state,
        skipped=state.skipped + refused,
        average=moving_average(state.average, result.params, state.step, average_decay),
    )
    return after, {
        "skipped": refused,
        "norms/gradient": result.gradient_norm,
        "norms/update": result.update_norm,
        "norms/parameter": optax.tree.norm(result.params),
    }


def moving_average(average: Params, params: Params, step: Int[Array, ""], decay: float | None) -> Params:
    """The exponential moving average after one more step; None stays None.

        average ← d · average + (1 − d) · params,   d = min(decay, (1 + step)/(10 + step))

    Args:
      step: steps done before this one. A fixed decay would remember the start for 1/(1 − decay) steps.
    """
    if average is None or decay is None:
        return None
    done = step.astype(jnp.float32)
    shortened = jnp.minimum(decay, (1 + done) / (10 + done))
    return jax.tree.map(lambda old, new: shortened * old + (1 - shortened) * new, average, params)


def _matrices(params: Params) -> Params:
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def falling_to_zero(learning_rate: float, total_steps: int) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The linear schedule from `learning_rate` to 0 without a warm-up, to be logged, and the optimiser that follows it."""
    form: Schedule = "linear"
    rate = learning_rate_schedule(learning_rate=learning_rate, warmup_steps=0, total_steps=total_steps, schedule=form)
    return rate, make_optimizer(learning_rate=learning_rate, total_steps=total_steps, schedule=form)


def falling_by_cosine(
    learning_rate: float,
    *,
    warmup_steps: int,
    total_steps: int,
    weight_decay: float,
    max_grad_norm: float = 1.0,
    adam: Adam = ADAM,
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The schedule that rises to `learning_rate` and falls by a cosine to 0, to be logged, and the AdamW that follows it.

    Args: as `make_optimizer`; a warm-up longer than half of all steps is cut to that.
    """
    warmup, form = min(warmup_steps, total_steps // 2), "cosine"
    rate = learning_rate_schedule(
        learning_rate=learning_rate, warmup_steps=warmup, total_steps=total_steps, schedule=form
    )
    optimizer = make_optimizer(
        learning_rate=learning_rate,
        warmup_steps=warmup,
        total_steps=total_steps,
        schedule=form,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        adam=adam,
    )
    return rate, optimizer

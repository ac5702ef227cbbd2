"""DPO on language: one step on responses to the same prompt, of which the first is the chosen one.

The numbers 1–4 are the lines of the box in `docs/algorithms/dpo.md`. Source: Rafailov et al. 2023 (arXiv:2305.18290); the
other losses are named beside their equations. No reward model and no sampling: who mines the pairs is outside. The
reference is read once, before learning, since its log-probabilities never change.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.equations.dpo import dpo_loss, implicit_reward, ipo_loss, softmax_dpo_loss
from rlhf_jax.equations.masked import zero_padding
from rlhf_jax.interfaces import GroupPolicy, Params, PolicyApply, PromptBatch, ResponseGroups, Rollout
from rlhf_jax.learners import sft
from rlhf_jax.learners.dpo_config import DPOConfig
from rlhf_jax.learners.microbatch import LossSums
from rlhf_jax.learners.minibatch import judge
from rlhf_jax.learners.optimizer import Adam, TrainState, make_optimizer

Metrics = dict[str, Float[Array, ""]]


@chex.dataclass(frozen=True)
class PreferenceBatch:
    """B prompts with N responses each; response 0 is the chosen one, 1 … N−1 are rejected. Arrays of JAX or of NumPy."""

    prompts: PromptBatch
    """Left-padded; each stands once."""
    response_tokens: Int[Array | np.ndarray, "B N T"]
    response_mask: Bool[Array | np.ndarray, "B N T"]
    """True on the response, the `<eos>` included; False on the padding after it."""
    ref_logprobs: Float[Array | np.ndarray, "B N"]
    """log π_ref of whole responses, nats, as `response_logprobs` gives them."""
    weight: Float[Array | np.ndarray, " B"]
    """What a prompt counts; 0 for rows that only fill a batch, whatever stands in them."""


def response_logprobs(policy: PolicyApply, params: Params, rollout: Rollout) -> Float[Array, " rows"]:
    """Log-probabilities of whole responses.

        log π(y | x) = Σ_t log π(a_t | x, a_<t)

    Source: the chain rule. A sum, not a mean over tokens: dividing by the length would be another loss.

    Args:
      rollout: responses, row by row; the log-probabilities of whoever sampled them are not read.
    Returns: nats; padding adds exactly 0 and has no gradient. One number a row
    """
    return jnp.sum(judge(policy, params, rollout).logprobs, axis=1)


def reference_logprobs(policy: PolicyApply, params: Params, rollout: Rollout) -> Float[Array, " rows"]:
    """`response_logprobs` of the frozen reference; once, before learning, and jitted.

    With the `policy` that learns (its grammar and temperature) every implicit reward is 0 before the first step.
    """
    return jax.lax.stop_gradient(response_logprobs(policy, params, rollout))


def preferences(
    rollout: Rollout,
    ref_logprobs: Float[Array | np.ndarray, " rows"],
    picked: Int[Array | np.ndarray, "B N"],
    weight: Float[Array | np.ndarray, " B"] | None = None,
) -> PreferenceBatch:
    """Preferences on the host, from groups of G responses to each prompt (rows b·G … b·G + G − 1).

    Args:
      rollout: B·G rows.
      ref_logprobs: of every row, nats.
      picked: which responses of each group are compared, numbers in 0 … G − 1, the chosen one first.
      weight: what each prompt counts; 1 where None. Prompts without a preference (ties) are better left out: `take`.
    Raises: ValueError where the rows are no whole groups, or a number is none of a group's.
    """
    tokens, mask = np.asarray(rollout.response_tokens), np.asarray(rollout.response_mask)
    picked, ref = np.asarray(picked), np.asarray(ref_logprobs)
    n_prompts = len(picked)
    if not n_prompts or len(tokens) % n_prompts or ref.shape != tokens.shape[:1]:
        raise ValueError(
            f"{len(tokens)} responses and {len(ref)} reference log-probabilities are no whole groups of {n_prompts} prompts"
        )
    size = len(tokens) // n_prompts
    if (picked < 0).any() or (picked >= size).any():
        raise ValueError(
            f"picked responses must be in [0, {size}) in groups of {size}: got {picked.min()}…{picked.max()}"
        )
    first = np.arange(n_prompts) * size
    rows = first[:, None] + picked
    scores = rollout.item_scores
    return PreferenceBatch(
        prompts=jax.tree.map(
            lambda leaf: np.asarray(leaf)[first],
            PromptBatch(tokens=rollout.prompt_tokens, mask=rollout.prompt_mask, item_scores=scores),
        ),
        response_tokens=tokens[rows],
        response_mask=mask[rows],
        ref_logprobs=ref[rows].astype(np.float32),
        weight=np.ones(n_prompts, np.float32) if weight is None else np.asarray(weight, np.float32),
    )


def as_rollout(batch: PreferenceBatch, responses: slice = slice(None)) -> Rollout:
    """Some responses of every prompt, row by row, as a policy judges them."""
    tokens, mask = jnp.asarray(batch.response_tokens)[:, responses], jnp.asarray(batch.response_mask)[:, responses]
    n_prompts, n_responses, length = tokens.shape
    prompts = jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), n_responses, axis=0), batch.prompts)
    return Rollout(
        prompt_tokens=prompts.tokens,
        prompt_mask=prompts.mask,
        response_tokens=tokens.reshape(-1, length),
        response_mask=mask.reshape(-1, length),
        logprobs=jnp.zeros((n_prompts * n_responses, length), jnp.float32),
        finished=jnp.ones(n_prompts * n_responses, bool),
        item_scores=prompts.item_scores,
    )


def group_logprobs(
    policy: PolicyApply | GroupPolicy, params: Params, batch: PreferenceBatch, responses: slice = slice(None)
) -> Float[Array, "B N"]:
    """`response_logprobs` of some responses of every prompt, by whichever kind of policy there is. [B, N]"""
    if not isinstance(policy, GroupPolicy):
        return response_logprobs(policy, params, as_rollout(batch, responses)).reshape(len(batch.weight), -1)
    groups = ResponseGroups(
        prompts=batch.prompts,
        response_tokens=jnp.asarray(batch.response_tokens)[:, responses],
        response_mask=jnp.asarray(batch.response_mask)[:, responses],
    )
    return jnp.sum(zero_padding(policy.logprobs(params, groups), groups.response_mask), axis=2)


def init(params: Params, optimizer: optax.GradientTransformation, config: DPOConfig) -> TrainState:
    """Step 0; see `sft.init`."""
    return sft.init(params, optimizer, averaged=config.average_decay is not None)


def optimizer_of(config: DPOConfig, n_prompts: int) -> optax.GradientTransformation:
    """Global-norm clip → AdamW, its schedule over all epochs of so many prompts.

    Raises: ValueError where there is no prompt.
    """
    return make_optimizer(
        **config.rate(n_prompts),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        adam=Adam(eps=config.adam_eps),
    )


def preference_loss(
    params: Params, batch: PreferenceBatch, *, policy: PolicyApply | GroupPolicy, config: DPOConfig
) -> LossSums:
    """Lines 1–3 of the box, as weighted sums; with `loss_and_gradient` or alone, to evaluate held-out preferences.

    Args:
      policy: judges row by row, or all responses of a prompt together, reading it once: the same numbers for less work.
    Returns: nats per prompt (`ipo`: squared nats; `rft`: nats per token); what is logged: `rewards/*` and `logprobs/*`.
      Under `rft` only those of the chosen, since the rejected are not judged.
    Raises: ValueError at trace time if N does not suit the loss.
    """
    check_responses(batch.ref_logprobs.shape[1], config)
    read = slice(0, 1) if config.loss == "rft" else slice(None)
    # 1. Judge every response: log π, a sum over its tokens; log π_ref was cached.
    logprobs = group_logprobs(policy, params, batch, read)
    counts = (batch.weight > 0)[:, None]
    logprobs, ref_logprobs = jnp.where(counts, logprobs, 0.0), jnp.where(counts, batch.ref_logprobs[:, read], 0.0)
    # 2. Reward: how far the policy has moved towards each, β nats at a time.
    rewards = implicit_reward(logprobs, ref_logprobs, beta=config.beta)
    # 3. Compare the chosen with the rejected.
    losses = compare(logprobs, ref_logprobs, config)
    count = jnp.sum(batch.weight)
    per_prompt = comparisons(logprobs, rewards)
    tokens = jnp.sum(batch.response_mask[:, 0], axis=1)
    return LossSums(
        loss=jnp.sum(batch.weight * losses),
        count=jnp.sum(batch.weight * tokens) if config.loss == "rft" else count,
        parts={name: (jnp.sum(batch.weight * x), count) for name, x in per_prompt.items()},
        maxima={},
    )


def compare(logprobs: Float[Array, "B N"], ref_logprobs: Float[Array, "B N"], config: DPOConfig) -> Float[Array, " B"]:
    """Line 3: the loss of each prompt. `rft`: −log π of the chosen, summed over its tokens, nats. [B]"""
    chosen, rejected = logprobs[:, 0], logprobs[:, 1:]
    ref_chosen, ref_rejected = ref_logprobs[:, 0], ref_logprobs[:, 1:]
    if config.loss == "rft":
        return -chosen
    if config.loss == "softmax":
        of_prompt = functools.partial(softmax_dpo_loss, beta=config.beta)
        return jax.vmap(of_prompt)(chosen, rejected, ref_chosen, ref_rejected)
    pair = chosen, rejected[:, 0], ref_chosen, ref_rejected[:, 0]
    if config.loss == "ipo":
        return ipo_loss(*pair, beta=config.beta)
    return dpo_loss(*pair, beta=config.beta, label_smoothing=config.label_smoothing)


def comparisons(logprobs: Float[Array, "B N"], rewards: Float[Array, "B N"]) -> dict[str, Float[Array, " B"]]:
    """What is logged of each prompt; a rejected response's share is the mean over all of them.

    Both log-probabilities falling while the margin grows is the method's known failure: look at them, not at the loss.
    """
    logged = {"logprobs/chosen": logprobs[:, 0], "rewards/chosen": rewards[:, 0]}
    if logprobs.shape[1] == 1:
        return logged
    margins = rewards[:, :1] - rewards[:, 1:]
    return logged | {
        "logprobs/rejected": jnp.mean(logprobs[:, 1:], axis=1),
        "rewards/rejected": jnp.mean(rewards[:, 1:], axis=1),
        "rewards/margin": jnp.mean(margins, axis=1),
        "rewards/accuracy": jnp.mean((margins > 0).astype(jnp.float32), axis=1),
    }


def update(
    state: TrainState,
    batch: PreferenceBatch,
    *,
    policy: PolicyApply | GroupPolicy,
    optimizer: optax.GradientTransformation,
    config: DPOConfig,
) -> tuple[TrainState, Metrics]:
    """One step: lines 1–4 of the box; jit it with the keyword arguments bound and `state` donated.

    Returns: the next state; the metrics of `sft.update` and of `preference_loss`, all of before the step.
    Raises: ValueError at trace time if N does not suit the loss, or the prompts cannot be cut into micro-batches.
    """

    def loss_fn(params: Params, batch: PreferenceBatch, key: Array) -> LossSums:
        del key  # Dropout is off while learning: the reference had none when it was read.
        return preference_loss(params, batch, policy=policy, config=config)

    # 4. Step: down the weighted mean over prompts, or over the tokens of the chosen.
    return sft.update(
        state,
        batch,
        jax.random.key(0),
        loss_fn=loss_fn,
        optimizer=optimizer,
        microbatches=config.microbatches,
        average_decay=config.average_decay or 0.0,  # Not read where there is no average.
    )


def take(batch: PreferenceBatch, rows: np.ndarray, size: int | None = None) -> PreferenceBatch:
    """Some prompts of a larger set on the host; to reach `size`, the first of them is repeated with weight 0.

    Raises: ValueError where there are no rows, or more than `size`.
    """
    size = len(rows) if size is None else size
    if not 0 < len(rows) <= size:
        raise ValueError(f"{len(rows)} prompts for a batch of {size}")
    filled = np.concatenate([rows, np.repeat(rows[:1], size - len(rows))])
    taken = jax.tree.map(lambda leaf: np.asarray(leaf)[filled], batch)
    own = (np.arange(size) < len(rows)).astype(np.float32)
    return dataclasses.replace(taken, weight=taken.weight * own)


def check_responses(n_responses: int, config: DPOConfig) -> None:
    """Raises ValueError where the loss cannot compare so many responses to a prompt."""
    least, most = {"sigmoid": (2, 2), "ipo": (2, 2), "softmax": (2, None), "rft": (1, None)}[config.loss]
    if n_responses < least or (most is not None and n_responses > most):
        wanted = f"exactly {most}" if most is not None else f"at least {least}"
        hint = "; 'softmax' compares with all of them" if most is not None and n_responses > most else ""
        raise ValueError(
            f"the loss {config.loss!r} needs {wanted} responses to a prompt, the chosen one first: got {n_responses}{hint}"
        )


def check_preferences(batch: PreferenceBatch, config: DPOConfig) -> None:
    """Looks at the values of preferences that come from outside a compiled program.

    Raises: ValueError naming the row: axes that do not fit, a weight below 0 or not finite, no weight at all; and, where a
      prompt counts, a response without tokens, one whose mask has a hole, a reference log-probability that is not finite.
    """
    mask, ref, weight = (np.asarray(x) for x in (batch.response_mask, batch.ref_logprobs, batch.weight))
    if mask.ndim != 3 or mask.shape[:2] != ref.shape or ref.shape[:1] != weight.shape:
        raise ValueError(
            f"preferences of axes that do not fit: response_mask {mask.shape}, ref_logprobs {ref.shape}, weight "
            f"{weight.shape}; expected [B, N, T], [B, N] and [B]"
        )
    check_responses(mask.shape[1], config)
    if bad := np.flatnonzero(~(np.isfinite(weight) & (weight >= 0))).tolist():
        raise ValueError(
            f"row {bad[0]} of the preferences has the weight {weight[bad[0]]}: it must be finite, at least 0"
        )
    if not (counts := weight > 0).any():
        raise ValueError(f"none of {len(weight)} preferences has a weight above 0")
    if bad := np.argwhere(counts[:, None] & ~mask.any(axis=2)).tolist():
        raise ValueError(f"row {bad[0][0]} of the preferences: response {bad[0][1]} has no token")
    if bad := np.argwhere(counts[:, None] & ~np.isfinite(ref)).tolist():
        row, response = bad[0]
        raise ValueError(f"row {row} of the preferences: log π_ref of response {response} is {ref[row, response]}")
    if bad := np.argwhere(counts[:, None] & (mask[..., 1:] & ~mask[..., :-1]).any(axis=2)).tolist():
        raise ValueError(f"row {bad[0][0]} of the preferences: the mask of response {bad[0][1]} is True after a False")

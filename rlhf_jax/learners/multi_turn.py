"""GRPO on conversations: episodes that began alike, compared turn by turn; no value function.

An episode is what the box of SMTPO calls a conversation.

A turn is a row (docs/decisions/0011): state s_k, the window of what was said, is a prompt, and the reply a response. Of
the steps 1–6 below, 1, 3 and 4 are line 5e of `docs/algorithms/smtpo.md`, 2 is 5d and 5 is 5f. Source: the kind of learner is that of
SMTPO (arXiv:2604.03671), whose formulas are not public; components normalised by themselves are GDPO's (Liu et al. 2026,
arXiv:2601.05242); the loss is `learners.grpo`'s. Turns in the place of tokens, and explicit ends, are ours.

Rows stand in the order [opening N, episode G, turn T], flattened: row (n·G + g)·T + k is turn k of episode g of opening
n. All rows of an opening are neighbours, so that rows cut over devices or processes keep groups whole. An episode that
ended has rows nonetheless, without a token in the loss.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.equations.group import settled_advantages, turn_advantages
from rlhf_jax.equations.kl import kl_k1, kl_k3
from rlhf_jax.equations.masked import masked_mean, masked_var
from rlhf_jax.interfaces import Params, PolicyApply, PolicyOutput, Rollout
from rlhf_jax.keys import stream_key
from rlhf_jax.learners.grpo import GroupExperience, improve, judge_old
from rlhf_jax.learners.minibatch import judge
from rlhf_jax.learners.multi_turn_config import MultiTurnConfig
from rlhf_jax.learners.optimizer import moving_average
from rlhf_jax.learners.ppo_metrics import Metrics


@chex.dataclass(frozen=True)
class MultiTurnState:
    """What is carried from update to update; with the position in the openings, all a restart needs."""

    update: Int[Array, ""]
    """Updates done."""
    params: Params
    opt_state: optax.OptState
    skipped: Int[Array, ""]
    """Optimiser steps refused because a loss or gradient was not finite."""
    key: Key[Array, ""]
    """Root of all draws; never advanced: update n folds n into it."""
    average: Params = None
    """Exponential moving average of `params` over updates; None where it is off."""


@chex.dataclass(frozen=True)
class Episodes:
    """What one update learns from: G episodes of each of N openings, of at most T turns and C reward components."""

    rollout: Rollout
    """N·G·T rows in the order [N, G, T]; anything in the rows of turns that no episode had."""
    rewards: Float[Array, "N G T C"]
    """r^c, paid for a turn, each component in units of its own; anything where a turn was not had."""
    running: Bool[Array, "N G T"]
    """True on the turns that an episode had, the first ones. An end is said here; a reward of 0 is none."""
    settled: Float[Array, "N G T C S"] | None = None
    """What of each component was settled before each of S places of the turn, `d` of `settled_advantages`; read where `credit` is by place."""
    places: Int[Array, "B length"] | None = None
    """Place at which each token stands, in 0 … S − 1."""


def rows_of_turns(turns: Sequence[Rollout]) -> Rollout:
    """One rollout in the order [N, G, T] of T rollouts, one a turn, each of N·G rows in the order [N, G].

    Raises: ValueError if there is no turn, or the turns differ in a shape (prompts of one width, please).
    """
    if not turns:
        raise ValueError("an update without turns")
    shapes = [[leaf.shape for leaf in jax.tree.leaves(turn)] for turn in turns]
    if any(one != shapes[0] for one in shapes):
        raise ValueError(f"turns of unlike shapes cannot be rows of one rollout: {shapes}")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1).reshape(-1, *leaves[0].shape[1:]), *turns)


def init(
    params: Params, optimizer: optax.GradientTransformation, config: MultiTurnConfig, key: Key[Array, ""]
) -> MultiTurnState:
    """Before the first update. Copies `params`: the state is donated, and the reference often is the same arrays."""
    params = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
    return MultiTurnState(
        update=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        skipped=jnp.zeros((), jnp.int32),
        key=jax.random.clone(key),
        average=None if config.average_decay is None else jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params),
    )


def learn(
    state: MultiTurnState,
    episodes: Episodes,
    ref_params: Params,
    demonstrations: Rollout | None = None,
    *,
    policy: PolicyApply,
    optimizer: optax.GradientTransformation,
    config: MultiTurnConfig,
) -> tuple[MultiTurnState, Metrics]:
    """One update: lines 5d to 5f of the box, from episodes and the raw reward components of their turns.

    Args:
      episodes: see `Episodes`.
      ref_params: of the reference policy.
      demonstrations: N·G·T human responses for the supervised loss; None where its weight is 0.
    Returns: the next state, and metrics by name (no stage prefix).
    Raises: ValueError at trace time on rows that are not N·G·T, another number of components, or human responses that are
      missing, unwanted or not as many.
    """
    n_openings, n_episodes, n_turns, _ = check_shapes(episodes, config)
    episodes = quiet(episodes)
    # 1. Judge every token of the turns that were had: log π_old, log π_ref.
    with jax.named_scope("scoring"):
        old = judge_old(state.params, episodes.rollout, policy, config.old_logprobs)
        ref_logprobs = judge(policy, ref_params, episodes.rollout).logprobs
    # 2. Credit: each turn against the same turn of its group, with what was paid from it on.
    weights = jnp.array(config.component_weights, jnp.float32)
    credit = functools.partial(turn_advantages, gamma=config.gamma, decoupled=config.decoupled)
    advantages = jax.vmap(credit, in_axes=(0, 0, None))(episodes.rewards, episodes.running, weights)
    of_tokens, flat = token_credit(episodes, advantages, weights, config)
    # 3. Drop groups that are flat at every turn: they are no part of the mean over tokens, nor of the KL.
    taught = (episodes.running & ~flat[:, None, None]).reshape(n_openings * n_episodes * n_turns)
    experience = spread(episodes.rollout, taught, of_tokens, (old.logprobs, ref_logprobs))
    # 4. Epochs × minibatches of clipped steps.
    with jax.named_scope("update"):
        params, opt_state, learning = improve(
            (state.params, state.opt_state),
            experience,
            demonstrations,
            stream_key(state.key, "multi_turn/minibatches", state.update),
            policy=policy,
            optimizer=optimizer,
            config=config,
        )
    # 5. The moving average, where there is one.
    average = moving_average(state.average, params, state.update, config.average_decay)
    # 6. Log, by component and by turn.
    metrics = turn_metrics(episodes, advantages, old, ref_logprobs, config)
    metrics["objective/flat_group_share"] = jnp.mean(flat.astype(jnp.float32))
    metrics["norms/parameter"] = optax.tree.norm(params)
    state = MultiTurnState(
        update=state.update + 1,
        params=params,
        opt_state=opt_state,
        skipped=state.skipped + learning["skipped"],
        key=state.key,
        average=average,
    )
    return state, metrics | of_no_tokens(learning)


def check_shapes(episodes: Episodes, config: MultiTurnConfig) -> tuple[int, int, int, int]:
    """N, G, T and C; raises ValueError where rows, flags, components or weights do not fit together."""
    n_openings, n_episodes, n_turns, n_components = episodes.rewards.shape
    n_rows = episodes.rollout.response_tokens.shape[0]
    if n_rows != n_openings * n_episodes * n_turns:
        raise ValueError(f"{n_rows} rows for {n_openings} openings × {n_episodes} episodes × {n_turns} turns")
    if n_episodes < 2:
        raise ValueError("1 episode of an opening has nothing to be compared with: give at least 2")
    if n_components != len(config.component_weights):
        raise ValueError(f"{n_components} reward components for {len(config.component_weights)} weights")
    if config.credit == "place" and (episodes.settled is None or episodes.places is None):
        raise ValueError("credit by place needs what was settled before each place, and the tokens' places")
    return n_openings, n_episodes, n_turns, n_components


def quiet(episodes: Episodes) -> Episodes:
    """The same, with nothing in the rows and rewards of turns that no episode had.

    A row without a response still passes the network. A NaN in it would reach the gradient as 0 · NaN, and a prompt
    without a token has nothing to attend to. So such a row is all zeros, with a prompt that may be read.
    """
    had = episodes.running.reshape(-1)

    def zeroed(leaf: Array) -> Array:
        return jnp.where(had.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, jnp.zeros((), leaf.dtype))

    rollout = jax.tree.map(zeroed, episodes.rollout)
    candidates = None if rollout.candidates is None else rollout.candidates | ~had[:, None]
    rollout = dataclasses.replace(rollout, prompt_mask=rollout.prompt_mask | ~had[:, None], candidates=candidates)
    rewards = jnp.where(episodes.running[..., None], episodes.rewards.astype(jnp.float32), 0.0)
    return dataclasses.replace(episodes, rollout=rollout, rewards=rewards)


def token_credit(
    episodes: Episodes, advantages: Float[Array, "N G T"], weights: Float[Array, " C"], config: MultiTurnConfig
) -> tuple[Float[Array, "B length"], Bool[Array, " N"]]:
    """Credit of every token, and which openings give none to any.

        credit "turn":   A_k, the advantage of the turn that the token stands in
        credit "place":  A_k(p) = A_k − D_k(p), p the token's place and D what was settled before it (`settled_advantages`)

    Args:
      advantages: A, score units; 0 at turns that were not had. [N, G, T]
      weights: of the components.
    Returns: A of every token of the N·G·T rows [B, length]; whether all of an opening's credit is 0 [N].
    """
    n_openings = episodes.rewards.shape[0]
    tokens = episodes.rollout.response_tokens
    if config.credit == "turn":
        by_place, places = advantages[..., None], jnp.zeros(tokens.shape, jnp.int32)
    else:
        assert episodes.settled is not None and episodes.places is not None, "checked by check_shapes"
        settled = jax.vmap(functools.partial(settled_advantages, decoupled=config.decoupled), in_axes=(0, 0, 0, None))
        by_place = advantages[..., None] - settled(episodes.rewards, episodes.settled, episodes.running, weights)
        places = episodes.places
    flat = jnp.all(by_place.reshape(n_openings, -1) == 0, axis=1)
    return jnp.take_along_axis(by_place.reshape(tokens.shape[0], -1), places, axis=1), flat


def spread(
    rollout: Rollout,
    taught: Bool[Array, " B"],
    advantages: Float[Array, "B length"],
    logprobs: tuple[Float[Array, "B length"], Float[Array, "B length"]],
) -> GroupExperience:
    """Rows as GRPO's loss reads them: no token in a row that is not `taught`.

    Args:
      logprobs: old and reference.
    """
    mask = rollout.response_mask & taught[:, None]
    return GroupExperience(
        rollout=dataclasses.replace(rollout, response_mask=mask),
        old_logprobs=jnp.where(mask, logprobs[0], 0.0),
        ref_logprobs=jnp.where(mask, logprobs[1], 0.0),
        advantages=jnp.where(mask, advantages, 0.0),
    )


def turn_metrics(
    episodes: Episodes,
    advantages: Float[Array, "N G T"],
    old: PolicyOutput,
    ref_logprobs: Float[Array, "B length"],
    config: MultiTurnConfig,
) -> Metrics:
    """What the turns that were had were paid, by component and by turn, how they were said, and how far from the reference.

    Means are over turns that were had, flat groups included; 0 where nobody had a turn.
    """
    rollout, rewards, running = episodes.rollout, episodes.rewards, episodes.running
    mask, had = rollout.response_mask, running.reshape(-1)
    metrics: Metrics = {}
    for c, name in enumerate(config.component_names):
        metrics[f"objective/{name}_raw"] = masked_mean(rewards[..., c], running)
        for k in range(running.shape[2]):
            metrics[f"turn/{k + 1}/{name}"] = masked_mean(rewards[:, :, k, c], running[:, :, k])
            metrics[f"turn/{k + 1}/{name}_deviation"] = deviation_in_groups(rewards[:, :, k, c], running[:, :, k])
    for k in range(running.shape[2]):
        metrics[f"turn/{k + 1}/running"] = jnp.mean(running[:, :, k].astype(jnp.float32))
    weights = jnp.array(config.component_weights, jnp.float32)
    # A sum of products, not a matmul: accelerators would round its inputs to bfloat16 or tf32.
    paid = jnp.sum(rewards * weights[None, None, None], axis=-1)
    k1, k3 = kl_k1(old.logprobs, ref_logprobs), kl_k3(old.logprobs, ref_logprobs)
    return metrics | {
        "objective/score_raw": masked_mean(paid, running),
        "objective/episode_score": jnp.mean(jnp.sum(paid, axis=2)),
        "objective/turns": jnp.mean(jnp.sum(running, axis=2).astype(jnp.float32)),
        "objective/advantage_deviation": jnp.sqrt(masked_var(advantages, running)),
        "objective/kl_k1": masked_mean(jnp.sum(k1, axis=1), had),
        "objective/kl_k3": masked_mean(jnp.sum(k3, axis=1), had),
        "objective/kl_coef": jnp.array(config.kl_coef, jnp.float32),
        "objective/entropy": masked_mean(old.entropy, mask),
        "policy/sampler_mismatch": jnp.max(jnp.where(mask, jnp.abs(rollout.logprobs - old.logprobs), 0.0)),
        "text/response_length": masked_mean(jnp.sum(mask, axis=1).astype(jnp.float32), had),
        "text/eos_fraction": masked_mean(rollout.finished.astype(jnp.float32), had),
    }


def deviation_in_groups(values: Float[Array, "N G"], had: Bool[Array, "N G"]) -> Float[Array, ""]:
    """Mean over openings of √(1/n Σ_g (r_g − mean)²), over the n episodes of each that had the turn; 0 where nobody had it.

    It is what a normalised component is divided by: where it is 0 the component teaches nothing at that turn.
    """
    values, n = jnp.where(had, values, 0), jnp.maximum(jnp.sum(had, axis=1, keepdims=True), 1)
    centred = jnp.where(had, values - jnp.sum(values, axis=1, keepdims=True) / n, 0)
    deviations = jnp.sqrt(jnp.sum(jnp.square(centred), axis=1) / n[:, 0])
    return masked_mean(deviations, had.any(axis=1))


def of_no_tokens(learning: Metrics) -> Metrics:
    """Extremes of the ratio, 1 where no minibatch had a token: the maximum of nothing is −∞, which no log can hold."""
    nothing = {"policy/ratio_max": -jnp.inf, "policy/ratio_min": jnp.inf, "policy/first_ratio_max_deviation": -jnp.inf}
    instead = {"policy/ratio_max": 1.0, "policy/ratio_min": 1.0, "policy/first_ratio_max_deviation": 0.0}
    return learning | {
        name: jnp.where(learning[name] == none, instead[name], learning[name]) for name, none in nothing.items()
    }


@runtime_checkable
class LearnFromTurns(Protocol):
    """A compiled `learn`; the state passed in is donated and must not be used again."""

    def __call__(
        self, state: MultiTurnState, episodes: Episodes, ref_params: Params, demonstrations: Rollout | None = None
    ) -> tuple[MultiTurnState, Metrics]: ...


def make_learn(
    *,
    policy: PolicyApply,
    optimizer: optax.GradientTransformation,
    config: MultiTurnConfig,
    out_shardings: Any = None,
) -> LearnFromTurns:
    """`learn` as one program.

    Args:
      out_shardings: of (state, metrics): the first two of `Layout.outputs`, or None.
    """
    bound = functools.partial(learn, policy=policy, optimizer=optimizer, config=config)
    return jax.jit(bound, donate_argnums=0, out_shardings=out_shardings)

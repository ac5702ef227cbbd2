"""Learning from turns against loops over tokens, and conversations whose best policy is known."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tabular_policy import PLAIN, policy, prompts, sample, sample_until_eos, table

from rlhf_jax.interfaces import Params, PolicyOutput, Rollout
from rlhf_jax.learners import grpo, multi_turn
from rlhf_jax.learners.grpo_config import GRPOConfig
from rlhf_jax.learners.multi_turn import Episodes
from rlhf_jax.learners.multi_turn_config import MultiTurnConfig
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.runtime import metric_names

N, G, T, LENGTH, VOCABULARY = 4, 3, 3, 4, 4
ROWS = N * G * T
TURNS_HAD = np.random.default_rng(0).integers(1, T + 1, (N, G))
TURNS_HAD[0] = [3, 2, 3]
RUNNING = np.arange(T)[None, None] < TURNS_HAD[..., None]
FLAT = 1
"""The opening whose episodes are all paid the same."""
NAMES = ("format", "recommendation")
CONFIG = MultiTurnConfig(component_names=NAMES, component_weights=(0.5, 2.0), gamma=0.9, kl_coef=0.3)


@pytest.fixture(scope="module")
def params() -> Params:
    tree = table(VOCABULARY, LENGTH)
    return tree | {"logits": 0.5 * jax.random.normal(jax.random.key(3), tree["logits"].shape)}


@pytest.fixture(scope="module")
def ref_params(params: Params) -> Params:
    return {name: 0.8 * leaf for name, leaf in params.items()}


@pytest.fixture(scope="module")
def episodes(params: Params) -> Episodes:
    """Replies that end by themselves; one opening is flat; after an episode's end nothing is a number."""
    rollout = sample_until_eos(params, prompts(ROWS), jax.random.key(1))
    rewards = np.random.default_rng(2).normal(size=(N, G, T, 2)).astype(np.float32) * np.array([1, 10], np.float32)
    rewards[FLAT] = 0.1
    rewards[~RUNNING] = np.nan
    gone = ~RUNNING.reshape(ROWS, 1)
    rollout = rollout.replace(
        logprobs=jnp.where(gone, jnp.nan, rollout.logprobs),
        response_mask=rollout.response_mask | gone,
        item_scores=jnp.where(gone[..., None], jnp.nan, jnp.ones((ROWS, 1, 2))),
    )
    return Episodes(rollout=rollout, rewards=jnp.asarray(rewards), running=jnp.asarray(RUNNING))


def reading(params: Params, rollout: Rollout) -> PolicyOutput:
    """The tabular policy with logits scaled by what the row's item scores say, so that a NaN there spreads."""
    assert rollout.item_scores is not None
    return policy(params | {"logits": params["logits"] * jnp.mean(jnp.max(rollout.item_scores))}, rollout)


def step(params: Params, ref_params: Params, episodes: Episodes, config: MultiTurnConfig, policy: Any = policy) -> Any:
    """The descent's direction (a step of SGD), and the metrics."""
    descent = optax.sgd(1.0)
    state = multi_turn.init(params, descent, config, jax.random.key(7))
    learn = multi_turn.make_learn(policy=policy, optimizer=descent, config=config)
    new, metrics = learn(state, episodes, ref_params)
    return np.asarray(new.params["logits"] - params["logits"]), metrics


def credit(rewards: np.ndarray, opening: int, config: MultiTurnConfig) -> np.ndarray:
    """Advantages of one opening's turns in loops, float64. [G, T]"""
    had, paid, out = TURNS_HAD[opening], np.zeros((G, T)), np.zeros((G, T))
    for k in range(T):
        there = [g for g in range(G) if k < had[g]]
        for c, weight in enumerate(config.component_weights):
            values = np.array([rewards[opening, g, k, c] for g in there], np.float64)
            if config.decoupled and len(there):
                values = np.zeros(len(there)) if len(set(values)) == 1 else (values - values.mean()) / values.std()
            for g, value in zip(there, values, strict=True):
                paid[g, k] += weight * value
    to_go = [[sum(config.gamma ** (j - k) * paid[g, j] for j in range(k, had[g])) for k in range(T)] for g in range(G)]
    for k in range(T):
        there = [g for g in range(G) if k < had[g]]
        for g in there:
            out[g, k] = to_go[g][k] - np.mean([to_go[i][k] for i in there])
    return np.where(np.abs(out) < 1e-12, 0, out)


@pytest.mark.parametrize("decoupled", [True, False])
def test_one_step_against_a_loop_over_tokens(
    params: Params, ref_params: Params, episodes: Episodes, decoupled: bool
) -> None:
    config = dataclasses.replace(CONFIG, decoupled=decoupled, microbatches=2)
    moved, metrics = step(params, ref_params, episodes, config)
    rewards, rollout = np.asarray(episodes.rewards), episodes.rollout
    softmax, reference = (np.asarray(jax.nn.softmax(p["logits"]), np.float64) for p in (params, ref_params))
    direction, penalty, n, n_flat, advantages = np.zeros((LENGTH, VOCABULARY, VOCABULARY)), 0.0, 0, 0, []
    for opening in range(N):
        of_turns = credit(rewards, opening, config)
        n_flat += not of_turns.any()
        for g in range(G):
            for k in range(TURNS_HAD[opening, g]):
                row, previous = (opening * G + g) * T + k, 0
                advantages.append(of_turns[g, k])
                for t in range(int(rollout.response_mask[row].sum()) if of_turns.any() else 0):
                    token = int(rollout.response_tokens[row, t])
                    log_ratio = np.log(softmax[t, previous, token] / reference[t, previous, token])
                    penalty += np.exp(-log_ratio) - 1 + log_ratio
                    weight = of_turns[g, k] - 0.3 * (1 - np.exp(-log_ratio))
                    direction[t, previous] += weight * (np.eye(VOCABULARY)[token] - softmax[t, previous])
                    n, previous = n + 1, token
    assert 1 <= n_flat < N
    np.testing.assert_allclose(moved, direction / n, atol=5e-5 if decoupled else 5e-4)
    np.testing.assert_allclose(metrics["policy/kl_penalty"], penalty / n, rtol=1e-4)
    # At the first step the ratio is 1: the surrogate is −A, and the loss has the KL besides.
    np.testing.assert_allclose(metrics["loss"] - metrics["policy/loss"], 0.3 * penalty / n, atol=1e-5)
    np.testing.assert_allclose(metrics["policy/first_ratio_max_deviation"], 0, atol=1e-6)
    np.testing.assert_allclose(metrics["objective/flat_group_share"], n_flat / N)
    np.testing.assert_allclose(metrics["objective/turns"], TURNS_HAD.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["objective/advantage_deviation"], np.std(advantages), rtol=1e-4)
    for c, name in enumerate(NAMES):
        np.testing.assert_allclose(metrics[f"objective/{name}_raw"], np.nanmean(rewards[..., c]), rtol=1e-4)
        for k in range(T):
            np.testing.assert_allclose(metrics[f"turn/{k + 1}/{name}"], np.nanmean(rewards[:, :, k, c]), rtol=1e-4)
            deviations = [
                np.std(of[had]) for of, had in zip(rewards[:, :, k, c], RUNNING[:, :, k], strict=True) if had.any()
            ]
            found = metrics[f"turn/{k + 1}/{name}_deviation"]
            np.testing.assert_allclose(found, np.mean(deviations), rtol=1e-4, atol=1e-6)
    paid = np.nan_to_num(rewards) @ np.array([0.5, 2.0])
    np.testing.assert_allclose(metrics["objective/score_raw"], paid[RUNNING].mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["objective/episode_score"], paid.sum(axis=2).mean(), rtol=1e-4)
    np.testing.assert_allclose([metrics[f"turn/{k}/running"] for k in (1, 2, 3)], RUNNING.mean(axis=(0, 1)))
    for name, value in metrics.items():
        metric_names.check("multi_turn", name)
        assert np.isfinite(value), name


@pytest.mark.parametrize("old_logprobs", ["recompute", "sampler"])
def test_turns_after_the_end_say_nothing_whatever_stands_there(
    params: Params, ref_params: Params, episodes: Episodes, old_logprobs: Any
) -> None:
    """NaN as rewards, log-probabilities and item scores, against zeros, with other tokens and masks."""
    config = dataclasses.replace(CONFIG, old_logprobs=old_logprobs, epochs=2, minibatches=2)
    gone = jnp.asarray(~RUNNING.reshape(ROWS, 1))
    rollout = episodes.rollout
    clean = Episodes(
        rollout=rollout.replace(
            prompt_tokens=jnp.where(gone, 3, rollout.prompt_tokens),
            prompt_mask=rollout.prompt_mask & ~gone,
            response_tokens=jnp.where(gone, 2, rollout.response_tokens),
            response_mask=rollout.response_mask & ~gone,
            logprobs=jnp.where(gone, 0, rollout.logprobs),
            item_scores=jnp.where(gone[..., None], 1.0, rollout.item_scores),
            finished=rollout.finished & ~gone[:, 0],
        ),
        rewards=jnp.where(RUNNING[..., None], episodes.rewards, 0.0),
        running=episodes.running,
    )
    moved, metrics = step(params, ref_params, episodes, config, reading)
    again, others = step(params, ref_params, clean, config, reading)
    assert np.abs(moved).max() > 1e-3 and np.isfinite(moved).all() and metrics["skipped"] == 0
    np.testing.assert_array_equal(moved, again)
    for name in metrics:
        np.testing.assert_array_equal(metrics[name], others[name], err_msg=name)


def test_flat_groups_are_dropped_and_counted(params: Params, ref_params: Params, episodes: Episodes) -> None:
    """The loss is that of the other openings alone; with nothing but flat groups nothing moves."""
    moved, metrics = step(params, ref_params, episodes, CONFIG)
    rows = np.arange(ROWS).reshape(N, -1)
    kept = [n for n in range(N) if n != FLAT]
    others = Episodes(
        rollout=jax.tree.map(lambda leaf: leaf[rows[kept].reshape(-1)], episodes.rollout),
        rewards=episodes.rewards[jnp.array(kept)],
        running=episodes.running[jnp.array(kept)],
    )
    again, without = step(params, ref_params, others, CONFIG)
    np.testing.assert_allclose(moved, again, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], without["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["objective/flat_group_share"] * N - 1, without["objective/flat_group_share"] * 3)
    flat = episodes.replace(rewards=jnp.full_like(episodes.rewards, 0.1))
    moved, metrics = step(params, ref_params, flat, CONFIG)
    np.testing.assert_array_equal(moved, 0)
    assert metrics["objective/flat_group_share"] == 1
    assert metrics["policy/ratio_max"] == metrics["policy/ratio_min"] == 1
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("normalised", [True, False])
def test_one_turn_and_one_component_are_grpo(params: Params, ref_params: Params, normalised: bool) -> None:
    """Replies of one length, so that a place's baseline is the response's."""
    size, n_rows = 4, 32
    rollout = sample(params, prompts(n_rows), jax.random.key(5))
    score = jnp.sum(rollout.response_tokens == 2, axis=1).astype(jnp.float32) + jnp.arange(n_rows) / 100
    config = MultiTurnConfig(
        component_names=("reward",), component_weights=(1.0,), decoupled=normalised, kl_coef=0.3, epochs=2
    )
    episodes = Episodes(
        rollout=rollout, rewards=score.reshape(-1, size, 1, 1), running=jnp.ones((n_rows // size, size, 1), bool)
    )
    moved, metrics = step(params, ref_params, episodes, config)
    theirs = GRPOConfig(
        **PLAIN, group_size=size, scale_by_deviation=normalised, kl_coef=0.3, epochs=2, missing_eos_penalty=0.0
    )
    descent = optax.sgd(1.0)
    learn = jax.jit(functools.partial(grpo.learn_phase, policy=policy, optimizer=descent, config=theirs))
    new, others = learn(grpo.init(params, descent, theirs, jax.random.key(7)), rollout, score[:, None], ref_params)
    np.testing.assert_allclose(moved, new.params["logits"] - params["logits"], atol=1e-5)
    assert np.abs(moved).max() > 0.01
    for name in others.keys() & metrics.keys():
        np.testing.assert_allclose(metrics[name], others[name], atol=2e-5, err_msg=name)


def test_a_token_answers_for_what_its_place_still_decides(
    params: Params, ref_params: Params, episodes: Episodes
) -> None:
    """One step against a loop over tokens; without anything settled it is credit by turn."""
    random = np.random.default_rng(9)
    places = random.integers(0, 3, episodes.rollout.response_tokens.shape).astype(np.int32)
    settled = (np.asarray(episodes.rewards)[..., None] * random.uniform(size=(N, G, T, 2, 3))).astype(np.float32)
    config = dataclasses.replace(CONFIG, credit="place", decoupled=False, kl_coef=0.0)
    placed = episodes.replace(settled=jnp.asarray(settled), places=jnp.asarray(places))
    moved, _ = step(params, ref_params, placed, config)
    softmax = np.asarray(jax.nn.softmax(params["logits"]), np.float64)
    direction, n = np.zeros((LENGTH, VOCABULARY, VOCABULARY)), 0
    for opening in range(N):
        of_turns = credit(np.asarray(episodes.rewards), opening, config)
        for g in range(G):
            for k in range(TURNS_HAD[opening, g]):
                row, previous = (opening * G + g) * T + k, 0
                there = [i for i in range(G) if k < TURNS_HAD[opening, i]]
                off = settled[opening, g, k] - np.mean([settled[opening, i, k] for i in there], axis=0)
                for t in range(int(episodes.rollout.response_mask[row].sum())):
                    token = int(episodes.rollout.response_tokens[row, t])
                    weight = of_turns[g, k] - np.array(config.component_weights) @ off[:, places[row, t]]
                    direction[t, previous] += weight * (np.eye(VOCABULARY)[token] - softmax[t, previous])
                    n, previous = n + 1, token
    np.testing.assert_allclose(moved, direction / n, atol=5e-4)
    nothing = placed.replace(settled=jnp.zeros_like(placed.settled))
    by_turn, _ = step(params, ref_params, episodes, dataclasses.replace(config, credit="turn"))
    np.testing.assert_array_equal(step(params, ref_params, nothing, config)[0], by_turn)
    assert np.abs(by_turn - moved).max() > 0.01
    with pytest.raises(ValueError, match="credit by place needs"):
        step(params, ref_params, episodes, config)


# Conversations whose best policy is known.

ASK, TELL = 1, 0


def two_turns(params: Params, key: Any, told: jax.Array, *, n: int, size: int) -> Episodes:
    """Turn 1: tell (paid `told` now) or ask (nothing now). Turn 2, after a question: one of two answers is paid 1."""
    said, previous = [], jnp.zeros(n * size, jnp.int32)
    for k in range(2):
        # The prompt's last token is the state: 0 at the start, 1 after telling, 2 after asking.
        at = prompts(n * size).replace(tokens=jnp.stack([previous, previous], axis=1))
        said.append(sample(params, at, jax.random.fold_in(key, k)))
        previous = 1 + said[-1].response_tokens[:, 0]
    first, second = (turn.response_tokens[:, 0].reshape(n, size) for turn in said)
    right = (first == ASK) & (second == 1)
    rewards = jnp.stack([told * (first == TELL), right.astype(jnp.float32)], axis=2)
    return Episodes(
        rollout=multi_turn.rows_of_turns(said), rewards=rewards[..., None], running=jnp.ones((n, size, 2), bool)
    )


@pytest.mark.parametrize("decoupled", [True, False])
def test_a_question_that_pays_a_turn_later_is_learnt_by_return_and_not_by_the_turn(decoupled: bool) -> None:
    """The best policy asks, then answers rightly: 1 an episode.

    Where telling pays nothing, the turn's own reward (γ = 0) leaves the first turn as it was. Where it pays .3, that is
    what γ = 0 learns; and γ = 1 too where every turn is normalised by itself: .3 and 1 are then one deviation each.
    """
    # One place; rows: state 0, 1, 2; two of the three tokens are ever said.
    start = {"logits": jnp.zeros((1, 3, 3)).at[:, :, 2].set(-30.0), "values": jnp.zeros((1, 3))}
    optimizer = make_optimizer(learning_rate=0.05, total_steps=10**6, schedule="constant")
    draw = jax.jit(functools.partial(two_turns, n=16, size=8))
    asked = {}
    for gamma in (1.0, 0.0):
        config = MultiTurnConfig(
            component_names=("reward",), component_weights=(1.0,), gamma=gamma, decoupled=decoupled, kl_coef=0.0
        )
        learn = multi_turn.make_learn(policy=policy, optimizer=optimizer, config=config)
        for told in (0.0, 0.3):
            state = multi_turn.init(start, optimizer, config, jax.random.key(0))
            for update in range(80):
                key = jax.random.fold_in(jax.random.key(1), update)
                state, _ = learn(state, draw(state.params, key, jnp.array(told)), start)
            chances = jax.nn.softmax(state.params["logits"][0], axis=-1)
            asked[gamma, told] = float(chances[0, ASK])
            assert told > 0 or chances[2, 1] > 0.9
    assert asked[1.0, 0.0] > 0.9
    np.testing.assert_allclose(asked[0.0, 0.0], 0.5, atol=1e-6)
    assert asked[0.0, 0.3] < 0.1
    assert asked[1.0, 0.3] < 0.1 if decoupled else asked[1.0, 0.3] > 0.9


def test_rows_stand_by_opening_episode_and_turn() -> None:
    turns = [sample(table(4, 3), prompts(6), jax.random.key(k)) for k in range(2)]
    rows = multi_turn.rows_of_turns(turns)
    for row in range(12):
        np.testing.assert_array_equal(rows.response_tokens[row], turns[row % 2].response_tokens[row // 2])
    with pytest.raises(ValueError, match="turns of unlike shapes"):
        multi_turn.rows_of_turns([turns[0], sample(table(4, 2), prompts(6), jax.random.key(0))])
    with pytest.raises(ValueError, match="without turns"):
        multi_turn.rows_of_turns([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": np.zeros((N, G, T, 3))}, "3 reward components for 2 weights"),
        ({"rewards": np.zeros((N, G, 2, 2)), "running": np.ones((N, G, 2), bool)}, "36 rows for 4 .* 3 .* 2 turns"),
        ({"rewards": np.zeros((12, 1, T, 2)), "running": np.ones((12, 1, T), bool)}, "nothing to be compared with"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    params: Params, episodes: Episodes, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        step(params, params, episodes.replace(**{name: jnp.asarray(x) for name, x in changes.items()}), CONFIG)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gamma": 1.5}, r"MultiTurnConfig.gamma must be in \[0, 1\]: got 1.5"),
        ({"component_weights": (1.0,)}, "component_weights has 1 numbers for 3 components"),
        ({"component_weights": (1.0, -1.0, 1.0)}, r"component_weights must be in \[0, 1000\]: got -1.0"),
        ({"clip_eps": 0.0}, r"clip_eps must be in \(0, 1e6\]: got 0.0"),
    ],
)
def test_wrong_numbers_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiTurnConfig(**wrong)

"""One GRPO update against loops over tokens, and problems whose optimum is known."""

import ast
import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tabular_policy import PLAIN, policy, prompts, sample, sample_until_eos, table, table_score

from rlhf_jax.interfaces import Params, PromptBatch, Rollout
from rlhf_jax.learners import grpo, microbatch
from rlhf_jax.learners.grpo_config import GRPOConfig
from rlhf_jax.learners.microbatch import LossSums
from rlhf_jax.learners.minibatch import epochs_of_minibatches
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.runtime import metric_names

B, GROUP = 16, 4
CONFIG = GRPOConfig(**PLAIN, group_size=GROUP, gamma=0.9, kl_coef=0.3, missing_eos_penalty=0.7)


def groups(
    params: Params, prompts: PromptBatch, key: Any, *, size: int = GROUP, one: Any = sample_until_eos
) -> Rollout:
    """`size` responses to each prompt, row by row."""
    return one(params, jax.tree.map(lambda leaf: jnp.repeat(leaf, size, axis=0), prompts), key)


@pytest.fixture(scope="module")
def params() -> Params:
    tree = table(4, 5)
    return tree | {"logits": 0.5 * jax.random.normal(jax.random.key(3), tree["logits"].shape)}


@pytest.fixture(scope="module")
def ref_params(params: Params) -> Params:
    return {name: 0.8 * leaf for name, leaf in params.items()}


@pytest.fixture(scope="module")
def rollout(params: Params) -> Rollout:
    return groups(params, prompts(B // GROUP), jax.random.key(1))


def twos(rollout: Rollout) -> jax.Array:
    """1 for every token 2, where it is said. [B, T, 1]"""
    return ((rollout.response_tokens == 2) & rollout.response_mask)[..., None].astype(jnp.float32)


def step(params: Params, ref_params: Params, rollout: Rollout, components: jax.Array, config: GRPOConfig) -> Any:
    """The descent's direction (a step of SGD), and the metrics."""
    descent = optax.sgd(1.0)
    state = grpo.init(params, descent, config, jax.random.key(7))
    learn = jax.jit(functools.partial(grpo.learn_phase, policy=policy, optimizer=descent, config=config))
    new, metrics = learn(state, rollout, components, ref_params)
    return np.asarray(new.params["logits"] - params["logits"]), metrics


@pytest.mark.parametrize("by_token", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_one_step_against_a_loop_over_tokens(
    params: Params, ref_params: Params, rollout: Rollout, by_token: bool, scaled: bool
) -> None:
    components = twos(rollout) if by_token else twos(rollout).sum(axis=1)
    # The second group is flat.
    components = components.at[GROUP : 2 * GROUP].set(0.0)
    ended = rollout.replace(finished=rollout.finished.at[GROUP : 2 * GROUP].set(True))
    config = dataclasses.replace(CONFIG, scale_by_deviation=scaled, microbatches=2)
    moved, metrics = step(params, ref_params, ended, components, config)
    lengths = np.asarray(ended.response_mask).sum(axis=1)
    to_go = np.full((B, 5), np.nan)
    for row in range(B):
        reward = np.zeros(lengths[row])
        for t in range(lengths[row]):
            reward[t] = components[row, t, 0] if by_token else 0.0
        reward[-1] += (0.0 if by_token else components[row, 0]) - 0.7 * (not ended.finished[row])
        for t in range(lengths[row]):
            to_go[row, t] = sum(0.9 ** (s - t) * reward[s] for s in range(t, lengths[row]))
    softmax, reference = (np.asarray(jax.nn.softmax(p["logits"]), np.float64) for p in (params, ref_params))
    direction, penalty, n, flat = np.zeros((5, 4, 4)), 0.0, int(lengths.sum()), []
    for row in range(B):
        group, previous, advantages = range(row // GROUP * GROUP, row // GROUP * GROUP + GROUP), 0, []
        for t in range(lengths[row]):
            running = [to_go[i, t] for i in group if t < lengths[i]]
            deviation = np.std(running) if scaled else 1.0
            advantage = 0.0 if max(running) == min(running) else (to_go[row, t] - np.mean(running)) / deviation
            token = int(ended.response_tokens[row, t])
            log_ratio = np.log(softmax[t, previous, token] / reference[t, previous, token])
            penalty += np.exp(-log_ratio) - 1 + log_ratio
            weight = advantage - 0.3 * (1 - np.exp(-log_ratio))
            direction[t, previous] += weight * (np.eye(4)[token] - softmax[t, previous])
            advantages.append(advantage)
            previous = token
        flat.append(not any(advantages))
    np.testing.assert_allclose(moved, direction / n, atol=2e-5)
    np.testing.assert_allclose(metrics["policy/kl_penalty"], penalty / n, rtol=1e-4)
    np.testing.assert_allclose(metrics["policy/first_ratio_max_deviation"], 0, atol=1e-6)
    flat_groups = [all(flat[i : i + GROUP]) for i in range(0, B, GROUP)]
    assert flat_groups[1]
    np.testing.assert_allclose(metrics["objective/flat_group_share"], np.mean(flat_groups))
    for name in metrics:
        metric_names.check("grpo", name)


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((B, 1), {"group_size": 5}, "16 responses cannot be divided into groups of 5"),
        ((B, 2), {}, "2 reward components for 1 weights"),
        ((B, 5, 1), {"score_clip": 5.0}, "components by token: switch off"),
        ((B, 5, 1), {"missing_eos_mode": "replace"}, "missing_eos_mode must be 'subtract'"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    params: Params, rollout: Rollout, shape: tuple[int, ...], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        step(params, params, rollout, jnp.zeros(shape), dataclasses.replace(CONFIG, **changes))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"group_size": 1}, r"GRPOConfig.group_size must be in \[2, 1024\]: got 1"),
        ({"gamma": 1.5}, r"gamma must be in \[0, 1\]: got 1.5"),
        ({"kl_coef": -0.1}, r"kl_coef must be in \[0, 1000\]: got -0.1"),
        ({"average_decay": 0.0}, r"average_decay must be in \(0, 1\): got 0.0"),
        ({"clip_eps": 0.0}, r"clip_eps must be in \(0, 1e6\]: got 0.0"),
        ({"whole_groups": True, "ptx_coef": 0.5}, r"whole_groups reads one prompt for 8 .*ptx_coef 0 \(got 0.5\)"),
    ],
)
def test_wrong_numbers_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRPOConfig(**wrong)


def spelled(config: type) -> dict[str, tuple[str, ...]]:
    """Type, default and words of every field, as they are written."""
    (of_class,) = ast.parse(inspect.getsource(config)).body
    assert isinstance(of_class, ast.ClassDef)
    return {
        ast.unparse(field.target): (ast.unparse(field.annotation), ast.unparse(field.value), ast.unparse(words))
        for field, words in zip(of_class.body, of_class.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and field.value is not None
    }


def test_what_ppo_has_too_is_spelled_alike() -> None:
    ours, theirs = spelled(GRPOConfig), spelled(PPOConfig)
    apart = {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]}
    # A price in the reward or in the loss, with or without a value function, four passes or one.
    assert apart == {"clip_eps", "gamma", "kl_coef", "old_logprobs", "epochs", "group_size", "ptx_coef"}
    assert len(ours.keys() & theirs.keys()) == 20


@pytest.mark.parametrize("field", ["missing_eos_mode", "old_logprobs"])
@pytest.mark.parametrize("config", [PPOConfig, GRPOConfig])
def test_a_word_that_is_no_choice_is_named(config: type, field: str) -> None:
    numbers = config()
    object.__setattr__(numbers, field, "neither")  # Tests check types before, users do not.
    with pytest.raises(ValueError, match=f"{field} must be one of .*: got 'neither'"):
        numbers.__post_init__()


def train(
    reward: jax.Array, config: GRPOConfig, *, updates: int, learning_rate: float
) -> tuple[Params, dict[str, Any]]:
    """GRPO from the uniform policy on a reward table over three tokens; the last parameters and metrics."""
    start = table(4, 3)
    optimizer = make_optimizer(learning_rate=learning_rate, total_steps=10**6, schedule="constant")
    iterate = grpo.make_grpo_iteration(
        sample=functools.partial(groups, size=config.group_size, one=sample),
        policy=policy,
        score=table_score,
        optimizer=optimizer,
        config=config,
    )
    state, metrics = grpo.init(start, optimizer, config, jax.random.key(0)), {}
    for _ in range(updates):
        state, metrics, _ = iterate(state, prompts(128 // config.group_size), start, reward)
    return state.params if state.average is None else state.average, metrics


def first_token_pays(arms: list[float]) -> jax.Array:
    return jnp.broadcast_to(jnp.array(arms)[:, None, None], (4, 4, 4))


def test_bandit_finds_the_best_arm_and_then_has_nothing_to_learn() -> None:
    config = GRPOConfig(**PLAIN, kl_coef=0.0)
    params, metrics = train(first_token_pays([0.1, 0.5, 1.0, 0.9]), config, updates=150, learning_rate=0.03)
    assert jax.nn.softmax(params["logits"][0, 0])[2] > 0.9
    assert metrics["objective/flat_group_share"] > 0.3


def test_bandit_under_the_penalty_reaches_its_known_optimum() -> None:
    # At the fixed point the pull of the reward, (G−1)/G · π_i (r_i − r̄), is that of k3, β (π_i − π_ref,i).
    arms, beta, group = np.array([0.0, 0.5, 1.0, 0.2]), 0.5, 8
    factor = (group - 1) / group
    low, high = arms.max() * factor - beta, arms.max() * factor
    for _ in range(100):  # Σ π_i = 1 fixes r̄: π_i = β π_ref,i / (β − (G−1)/G (r_i − r̄)).
        mean = (low + high) / 2
        total = (beta * 0.25 / (beta - factor * arms + mean)).sum()
        low, high = (mean, high) if total > 1 else (low, mean)
    expected = beta * 0.25 / (beta - factor * arms + mean)
    np.testing.assert_allclose(factor * expected @ arms, mean, atol=1e-6)
    config = GRPOConfig(**PLAIN, kl_coef=beta, group_size=group, scale_by_deviation=False, average_decay=0.97)
    params, _ = train(first_token_pays(arms.tolist()), config, updates=250, learning_rate=0.02)
    np.testing.assert_allclose(jax.nn.softmax(params["logits"][0, 0]), expected, atol=0.04)


def test_whole_groups_stay_together_in_minibatches_and_microbatches() -> None:
    config = dataclasses.replace(CONFIG, whole_groups=True)
    assert config.descent.together == GROUP and CONFIG.descent.together == 1
    rows = jnp.arange(2 * B)
    _, seen = epochs_of_minibatches(
        lambda carry, rows, key: (carry, rows),
        0,
        rows,
        jax.random.key(0),
        n_rows=2 * B,
        epochs=2,
        minibatches=2,
        together=GROUP,
    )
    groups = np.asarray(seen).reshape(2, -1, GROUP)
    np.testing.assert_array_equal(groups, groups[..., :1] + np.arange(GROUP))
    for epoch in groups[..., 0]:
        assert sorted(epoch.tolist()) == list(range(0, 2 * B, GROUP)) and np.any(np.diff(epoch) < 0)
    assert np.any(groups[0] != groups[1])

    def products(params: Params, batch: jax.Array, key: jax.Array) -> LossSums:
        # What no sum over single rows is: another slicing gives another number.
        del key
        by_group = jnp.prod(params * batch.reshape(-1, GROUP), axis=1)
        return LossSums(by_group.sum(), jnp.float32(len(by_group)), {}, {})

    numbers = jnp.linspace(0.1, 2.0, 2 * B)
    found = [
        microbatch.loss_and_gradient(
            products, jnp.float32(1.0), numbers, jax.random.key(0), microbatches=k, together=together
        )[:2]
        for k, together in ((1, GROUP), (4, GROUP), (4, 1))
    ]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    assert not np.allclose(found[2], found[0], rtol=1e-2)


def test_parts_that_hold_no_whole_groups_are_refused(params: Params, rollout: Rollout) -> None:
    config = dataclasses.replace(CONFIG, whole_groups=True, minibatches=8)
    with pytest.raises(ValueError, match="2 responses of a minibatch are no whole groups of 4"):
        step(params, params, rollout, jnp.zeros((B, 1)), config)
    config = dataclasses.replace(config, minibatches=2, microbatches=4)
    with pytest.raises(ValueError, match="8 rows cannot be divided into 4 micro-batches of whole groups of 4"):
        step(params, params, rollout, jnp.zeros((B, 1)), config)
    with pytest.raises(
        ValueError, match=r"--align.batch-size 16 in .*minibatches 2 × .*microbatches 4 parts are no whole"
    ):
        config.check_parts(B, "--align.batch-size")
    dataclasses.replace(config, whole_groups=False).check_parts(B, "--align.batch-size")
    dataclasses.replace(config, microbatches=2).check_parts(B, "--align.batch-size")

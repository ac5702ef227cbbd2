"""One PPO update, looked at from all sides: three components, responses that end anywhere."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tabular_policy import policy, prompts, sample_until_eos, table

from rlhf_jax.interfaces import PolicyOutput, Rollout
from rlhf_jax.learners import ppo, ppo_metrics
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.runtime import metric_names

CONFIG = PPOConfig(epochs=2, minibatches=2, length_coef=0.05, length_free=2, entropy_coef=0.01, target_kl=10.0)
STEPS = CONFIG.epochs * CONFIG.minibatches
B = 16

NAMES = {
    "loss",
    "objective/score_raw",
    "objective/score_normalised",
    "objective/engagement_raw",
    "objective/engagement_normalised",
    "objective/relevance_raw",
    "objective/relevance_normalised",
    "objective/sentiment_raw",
    "objective/sentiment_normalised",
    "objective/engagement_reward_correlation",
    "objective/relevance_reward_correlation",
    "objective/sentiment_reward_correlation",
    "objective/kl_k1",
    "objective/kl_k3",
    "objective/non_score_reward",
    "objective/kl_coef",
    "objective/entropy",
    "policy/loss",
    "policy/approx_kl",
    "policy/clip_fraction",
    "policy/ratio_mean",
    "policy/ratio_min",
    "policy/ratio_max",
    "policy/first_ratio_max_deviation",
    "policy/sampler_mismatch",
    "policy/stopped_early",
    "value/loss",
    "value/clip_fraction",
    "value/explained_variance",
    "value/returns_mean",
    "text/response_length",
    "text/eos_fraction",
    "norms/gradient",
    "norms/update",
    "norms/parameter",
    "skipped",
}


def score(reward_params: jax.Array, rollout: Rollout) -> jax.Array:
    """Components: how often tokens 2 and 3 were said, and whether token 1 ended it."""
    tokens = jnp.where(rollout.response_mask, rollout.response_tokens, -1)
    counts = [jnp.sum(tokens == token, axis=1) for token in (2, 3, 1)]
    return reward_params[None] * jnp.stack(counts, axis=1).astype(jnp.float32)


@pytest.fixture(scope="module")
def params() -> dict[str, jax.Array]:
    shapes = table(4, 5)
    return jax.tree.map(
        lambda leaf, key: 0.5 * jax.random.normal(key, leaf.shape),
        shapes,
        dict(zip(shapes, jax.random.split(jax.random.key(3)), strict=True)),
    )


@pytest.fixture(scope="module")
def optimizer() -> optax.GradientTransformation:
    return make_optimizer(learning_rate=0.02, total_steps=1000)


@pytest.fixture(scope="module")
def ref_params(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(lambda leaf: 0.8 * leaf, params)


@pytest.fixture(scope="module")
def one_program(optimizer: optax.GradientTransformation) -> ppo.OneProgram:
    return ppo.make_ppo_iteration(
        sample=sample_until_eos, policy=policy, score=score, optimizer=optimizer, config=CONFIG
    )


@pytest.fixture(scope="module")
def two_programs(optimizer: optax.GradientTransformation) -> ppo.TwoPrograms:
    return ppo.make_ppo_phases(sample=sample_until_eos, policy=policy, optimizer=optimizer, config=CONFIG)


@pytest.fixture
def state(params: dict[str, jax.Array], optimizer: optax.GradientTransformation) -> ppo.PPOState:
    return ppo.init(params, optimizer, CONFIG, jax.random.key(7))


REWARD = np.array([1.0, -0.5, 2.0], np.float32)


def arrays(state: ppo.PPOState) -> dict[str, Any]:
    """The state's fields with the key as plain numbers, for comparisons."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return jax.tree.map(np.asarray, fields | {"key": jax.random.key_data(state.key)})


def test_first_minibatch_has_ratio_one_and_every_metric_is_there(
    one_program: ppo.OneProgram, state: ppo.PPOState, ref_params: Any
) -> None:
    state, metrics, rollout = one_program(state, prompts(B), ref_params, jnp.asarray(REWARD))
    assert set(metrics) == NAMES
    for name in NAMES:
        metric_names.check("ppo", name)
    chex.assert_tree_all_finite(metrics)
    assert metrics["policy/first_ratio_max_deviation"] < 1e-5
    assert metrics["policy/sampler_mismatch"] < 1e-5
    assert metrics["policy/ratio_min"] < 1 < metrics["policy/ratio_max"]
    assert 0 < metrics["objective/entropy"] <= np.log(4)
    assert metrics["objective/kl_k3"] > 0
    np.testing.assert_allclose(metrics["objective/non_score_reward"], -0.05 * metrics["objective/kl_k1"], rtol=1e-5)
    mask = np.asarray(rollout.response_mask)
    assert 1 < mask.sum(axis=1).mean() < 5
    np.testing.assert_allclose(metrics["text/response_length"], mask.sum() / B, rtol=1e-6)
    np.testing.assert_allclose(metrics["text/eos_fraction"], np.asarray(rollout.finished).mean(), rtol=1e-6)
    raw = np.asarray(score(jnp.asarray(REWARD), rollout))
    np.testing.assert_allclose(metrics["objective/relevance_raw"], raw[:, 1].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["objective/score_raw"], raw.mean(), rtol=1e-5)
    # All scores seen so far are this batch, so it is normalised to mean 0; what is left is what line 4 prices.
    unfinished, beyond = ~np.asarray(rollout.finished), np.maximum(mask.sum(axis=1) - 2, 0)
    np.testing.assert_allclose(
        metrics["objective/score_normalised"], -unfinished.mean() - 0.05 * beyond.mean(), atol=1e-5
    )
    # What is paid, built up again in numpy: all moments are those of this one batch.
    z = ((raw - raw.mean(axis=0)) / raw.std(axis=0, ddof=1)).mean(axis=1)
    paid = (z - z.mean()) / z.std(ddof=1) - unfinished - 0.05 * beyond
    for column, name in enumerate(("engagement", "relevance", "sentiment")):
        expected = np.corrcoef(raw[:, column], paid)[0, 1]
        np.testing.assert_allclose(metrics[f"objective/{name}_reward_correlation"], expected, atol=1e-4)
    assert metrics["policy/stopped_early"] == 0.0
    assert (int(state.update), int(state.skipped), int(metrics["skipped"])) == (1, 0, 0)


def test_state_is_donated_and_nothing_else(
    one_program: ppo.OneProgram, state: ppo.PPOState, params: Any, ref_params: Any
) -> None:
    old = state
    for _ in range(2):
        state, _, _ = one_program(state, prompts(B), ref_params, jnp.asarray(REWARD))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, ref_params, state)))
    # The state that comes out has the types of the one that went in: nothing is compiled twice.
    assert one_program._cache_size() == 1


def test_other_weights_are_the_same_program_and_another_reward(
    optimizer: optax.GradientTransformation, params: Any, ref_params: Any
) -> None:
    texts, scores = set(), []
    for weights in ((1.0, 0.0, 0.0), (0.2, 0.3, 0.5)):
        config = dataclasses.replace(CONFIG, component_weights=weights)
        program = ppo.make_ppo_iteration(
            sample=sample_until_eos, policy=policy, score=score, optimizer=optimizer, config=config
        )
        start = ppo.init(params, optimizer, config, jax.random.key(7))
        texts.add(program.lower(start, prompts(B), ref_params, jnp.asarray(REWARD)).as_text())  # pyright: ignore[reportFunctionMemberAccess] - jit's
        _, metrics, rollout = program(start, prompts(B), ref_params, jnp.asarray(REWARD))
        expected = np.asarray(score(jnp.asarray(REWARD), rollout)) @ np.asarray(weights)
        scores.append((float(metrics["objective/score_raw"]), float(expected.mean())))
    assert len(texts) == 1 and scores[0] != scores[1]
    np.testing.assert_allclose(*zip(*scores, strict=True), rtol=1e-5)


def test_same_prompts_give_other_responses_in_the_next_update_and_the_same_after_a_restart(
    one_program: ppo.OneProgram, two_programs: ppo.TwoPrograms, state: ppo.PPOState, ref_params: Any
) -> None:
    again = jax.tree.map(jnp.copy, state)
    # The policy is left as it is; only the update number differs.
    later = two_programs.sample(state.replace(update=state.update + 1), prompts(B))
    state, _, first = one_program(state, prompts(B), ref_params, jnp.asarray(REWARD))
    again, _, repeated = one_program(again, prompts(B), ref_params, jnp.asarray(REWARD))
    assert not np.array_equal(first.response_tokens, later.response_tokens)
    jax.tree.map(np.testing.assert_array_equal, first, repeated)
    jax.tree.map(np.testing.assert_array_equal, arrays(state), arrays(again))


def test_two_programs_with_a_host_reward_equal_the_one(
    one_program: ppo.OneProgram, two_programs: ppo.TwoPrograms, state: ppo.PPOState, ref_params: Any
) -> None:
    def on_host(rollout: Rollout) -> np.ndarray:
        tokens = np.where(rollout.response_mask, rollout.response_tokens, -1)
        return REWARD * np.stack([(tokens == token).sum(axis=1) for token in (2, 3, 1)], axis=1)

    other = jax.tree.map(jnp.copy, state)
    for _ in range(2):
        state, metrics, _ = one_program(state, prompts(B), ref_params, jnp.asarray(REWARD))
        other, host_metrics, _ = two_programs(other, prompts(B), ref_params, on_host)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, arrays(other), arrays(state))
    jax.tree.map(close, host_metrics, metrics)


def test_host_reward_of_a_wrong_shape_is_refused(
    two_programs: ppo.TwoPrograms, state: ppo.PPOState, ref_params: Any
) -> None:
    with pytest.raises(ValueError, match=r"shape \(16,\) for 16 responses"):
        two_programs(state, prompts(B), ref_params, lambda rollout: np.zeros(16))
    with pytest.raises(ValueError, match="2 reward components for 3 weights"):
        two_programs(state, prompts(B), ref_params, lambda rollout: np.zeros((16, 2)))


def test_broken_reward_is_skipped_counted_and_forgotten(
    two_programs: ppo.TwoPrograms, state: ppo.PPOState, ref_params: Any
) -> None:
    def broken(rollout: Rollout) -> np.ndarray:
        components = np.zeros((B, 3))
        components[3, 1] = np.nan
        return components

    before = arrays(state)
    state, metrics, _ = two_programs(state, prompts(B), ref_params, broken)
    assert int(metrics["skipped"]) == int(state.skipped) == STEPS
    after = arrays(state)
    for field in ("params", "opt_state", "component_moments", "score_moments", "kl_coef"):
        jax.tree.map(np.testing.assert_array_equal, after[field], before[field])
    # The next update, with a reward that works, is as good as any.
    state, metrics, _ = two_programs(
        state, prompts(B), ref_params, lambda rollout: np.asarray(score(jnp.asarray(REWARD), rollout))
    )
    assert int(metrics["skipped"]) == 0
    chex.assert_tree_all_finite((state.params, metrics))


def learn(
    state: ppo.PPOState, rollout: Rollout, ref_params: Any, optimizer: optax.GradientTransformation, **changes: Any
) -> tuple[ppo.PPOState, dict[str, jax.Array]]:
    """Lines 3–8 under a changed configuration."""
    config = dataclasses.replace(CONFIG, **changes)
    phase = jax.jit(functools.partial(ppo.learn_phase, policy=policy, optimizer=optimizer, config=config))
    return phase(state, rollout, score(jnp.asarray(REWARD), rollout), ref_params)


def test_one_step_against_a_numpy_loop(
    two_programs: ppo.TwoPrograms, state: ppo.PPOState, params: Any, ref_params: Any
) -> None:
    """Rewards, GAE, returns and losses of the first step, written out token by token in float64."""
    rollout = two_programs.sample(state, prompts(B))
    _, metrics = learn(
        state,
        rollout,
        ref_params,
        make_optimizer(learning_rate=1e-9, total_steps=10),
        epochs=1,
        minibatches=1,
        missing_eos_penalty=0.7,
    )
    old, ref = policy(params, rollout), policy(ref_params, rollout)
    components = np.asarray(score(jnp.asarray(REWARD), rollout), np.float64)
    components = (components - components.mean(axis=0)) / components.std(axis=0, ddof=1)
    scores = components.mean(axis=1)
    scores = np.clip((scores - scores.mean()) / scores.std(ddof=1), -5, 5)
    advantages, returns, values = [], [], []
    for row in range(B):
        length = int(rollout.response_mask[row].sum())
        k1 = np.asarray(old.logprobs - ref.logprobs, np.float64)[row, :length]
        value = np.append(np.asarray(old.values, np.float64)[row, :length], 0.0)
        reward = -0.05 * k1
        reward[-1] += scores[row] - 0.7 * (not rollout.finished[row]) - 0.05 * max(length - 2, 0)
        for t in range(length):
            advantages.append(sum(0.95 ** (s - t) * (reward[s] + value[s + 1] - value[s]) for s in range(t, length)))
            values.append(value[t])
            returns.append(advantages[-1] + value[t])
    advantages, returns, values = map(np.array, (advantages, returns, values))
    whitened = (advantages - advantages.mean()) / advantages.std()
    np.testing.assert_allclose(metrics["value/returns_mean"], returns.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["policy/loss"], -whitened.mean(), atol=1e-5)
    np.testing.assert_allclose(metrics["value/loss"], 0.5 * np.mean((values - returns) ** 2), rtol=1e-4)
    np.testing.assert_allclose(
        metrics["value/explained_variance"], 1 - np.var(returns - values) / np.var(returns), rtol=1e-4
    )
    # Gradient of the whole loss: on the tables every entry sums what the tokens at its place say.
    logits, baseline = np.zeros((5, 4, 4)), np.zeros((5, 4))
    softmax = np.asarray(jax.nn.softmax(params["logits"]), np.float64)
    n = 0
    for row in range(B):
        previous = 0
        for t in range(int(rollout.response_mask[row].sum())):
            token, p = int(rollout.response_tokens[row, t]), softmax[t, previous]
            logits[t, previous] -= whitened[n] * (np.eye(4)[token] - p)
            entropy = -np.sum(p * np.log(p))
            logits[t, previous] += 0.01 * p * (np.log(p) + entropy)
            baseline[t, previous] += 0.1 * (values[n] - returns[n])
            previous, n = token, n + 1
    norm = np.sqrt(np.sum((logits / n) ** 2) + np.sum((baseline / n) ** 2))
    np.testing.assert_allclose(metrics["norms/gradient"], norm, rtol=1e-4)


def test_micro_batches_change_nothing(
    two_programs: ppo.TwoPrograms, state: ppo.PPOState, ref_params: Any, optimizer: optax.GradientTransformation
) -> None:
    rollout = two_programs.sample(state, prompts(B))
    many, many_metrics = learn(state, rollout, ref_params, optimizer, microbatches=4)
    one, metrics = two_programs.learn(state, rollout, score(jnp.asarray(REWARD), rollout), ref_params)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, arrays(one), arrays(many))
    jax.tree.map(close, metrics, many_metrics)


def test_stored_logprobs_adaptive_price_and_early_stop(
    two_programs: ppo.TwoPrograms, state: ppo.PPOState, ref_params: Any, optimizer: optax.GradientTransformation
) -> None:
    rollout = two_programs.sample(state, prompts(B))
    # As stored by a sampler that was off by .01: approximate KL .00005 before any step.
    stored = rollout.replace(logprobs=rollout.logprobs + 0.01)
    new, metrics = learn(
        state,
        stored,
        ref_params,
        optimizer,
        old_logprobs="sampler",
        kl_control="adaptive",
        kl_target=1e3,
        kl_horizon=100.0,
        reward_whitening=True,
        target_kl=5.1e-5,
    )
    np.testing.assert_allclose(metrics["policy/first_ratio_max_deviation"], 1 - np.exp(-0.01), rtol=1e-3)
    np.testing.assert_allclose(metrics["policy/sampler_mismatch"], 0.01, rtol=1e-3)
    # The KL is far below its target: the largest error, −.2, over 16 of 100 responses.
    np.testing.assert_allclose(new.kl_coef, 0.05 * (1 - 0.2 * B / 100), rtol=1e-5)
    np.testing.assert_allclose(metrics["objective/kl_coef"], 0.05, rtol=1e-6)
    # The first step moves the policy; the second sees it moved, and stops the rest.
    assert int(new.opt_state[1].count) == 1
    np.testing.assert_allclose(metrics["policy/stopped_early"], (STEPS - 1) / STEPS)
    assert (int(metrics["skipped"]), int(new.skipped)) == (0, 0)
    np.testing.assert_allclose(metrics["policy/approx_kl"], 5e-5, rtol=1e-2)
    chex.assert_tree_all_finite((new.params, metrics))


def test_a_group_is_paid_what_lies_above_its_mean(
    two_programs: ppo.TwoPrograms, state: ppo.PPOState, params: Any, ref_params: Any
) -> None:
    """Line 5 with groups of four, by a loop; the advantages of λ = 1, κ = 0 and V = 0 are then the scores themselves."""
    rollout = two_programs.sample(state, prompts(B))
    config = dataclasses.replace(CONFIG, group_size=4, normalise_score=False, whiten_advantages=False)
    components = score(jnp.asarray(REWARD), rollout).at[4:8].set(0.3)
    judged = ppo.judge_phase(state, rollout, ref_params, policy=policy, config=config)
    paid = np.asarray(ppo.shape(state, rollout, components, judged, dataclasses.replace(config, group_size=1)).paid)
    shaped = ppo.shape(state.replace(kl_coef=jnp.zeros(())), rollout, components, judged, config)
    np.testing.assert_array_equal(shaped.paid, paid)
    for row in range(B):
        group = paid[row // 4 * 4 : row // 4 * 4 + 4]
        length = int(rollout.response_mask[row].sum())
        np.testing.assert_allclose(shaped.rewards[row, length - 1], paid[row] - group.mean(), atol=1e-5)
    flat = [len(set(paid[start : start + 4].tolist())) == 1 for start in range(0, B, 4)]
    np.testing.assert_allclose(ppo.flat_share(shaped.paid, 4), np.mean(flat))
    with pytest.raises(ValueError, match="16 responses cannot be divided into groups of 3"):
        ppo.above_group(jnp.zeros(16), 3)


def test_supervised_loss_pulls_towards_human_responses(
    two_programs: ppo.TwoPrograms, state: ppo.PPOState, params: Any, ref_params: Any
) -> None:
    """The step's gradient against counts on the tables: γ/N Σ (softmax − one-hot) over human tokens is added."""
    rollout = two_programs.sample(state, prompts(B))
    human = two_programs.sample(state.replace(update=state.update + 5), prompts(B))
    moves = {}
    for ptx_coef in (0.0, 0.7):
        config = dataclasses.replace(CONFIG, epochs=1, minibatches=1, microbatches=2, ptx_coef=ptx_coef)
        # Without Adam the move is the gradient, its sign turned.
        descent = optax.sgd(1.0)
        start = state.replace(opt_state=descent.init(params))
        phase = jax.jit(functools.partial(ppo.learn_phase, policy=policy, optimizer=descent, config=config))
        demonstrations = human if ptx_coef else None
        new, metrics = phase(start, rollout, score(jnp.asarray(REWARD), rollout), ref_params, demonstrations)
        moves[ptx_coef] = np.asarray(new.params["logits"])
    softmax = np.asarray(jax.nn.softmax(params["logits"]), np.float64)
    pull, nll, n = np.zeros((5, 4, 4)), 0.0, 0
    for row in range(B):
        previous = 0
        for t in range(int(human.response_mask[row].sum())):
            token = int(human.response_tokens[row, t])
            pull[t, previous] += np.eye(4)[token] - softmax[t, previous]
            nll -= np.log(softmax[t, previous, token])
            previous, n = token, n + 1
    np.testing.assert_allclose(moves[0.7] - moves[0.0], 0.7 * pull / n, atol=1e-5)
    np.testing.assert_allclose(metrics["policy/ptx_loss"], nll / n, rtol=1e-5)
    metric_names.check("ppo", "policy/ptx_loss")
    metric_names.check("ppo", "objective/flat_group_share")


@pytest.mark.parametrize(
    ("ptx_coef", "rows", "message"),
    [
        (0.5, None, "ptx_coef 0.5 with none human responses"),
        (0.0, B, "ptx_coef 0.0 with 16 human responses"),
        (0.5, 8, "8 human responses beside 16 sampled ones"),
    ],
)
def test_human_responses_come_with_their_weight(
    two_programs: ppo.TwoPrograms,
    state: ppo.PPOState,
    ref_params: Any,
    optimizer: optax.GradientTransformation,
    ptx_coef: float,
    rows: int | None,
    message: str,
) -> None:
    rollout = two_programs.sample(state, prompts(B))
    human = None if rows is None else jax.tree.map(lambda leaf: leaf[:rows], rollout)
    config = dataclasses.replace(CONFIG, ptx_coef=ptx_coef)
    with pytest.raises(ValueError, match=message):
        ppo.learn_phase(
            state,
            rollout,
            score(jnp.asarray(REWARD), rollout),
            ref_params,
            human,
            policy=policy,
            optimizer=optimizer,
            config=config,
        )


def test_the_average_remembers_every_update(
    params: Any, ref_params: Any, optimizer: optax.GradientTransformation
) -> None:
    config = dataclasses.replace(CONFIG, average_decay=0.15)
    program = ppo.make_ppo_iteration(
        sample=sample_until_eos, policy=policy, score=score, optimizer=optimizer, config=config
    )
    state, expected = ppo.init(params, optimizer, config, jax.random.key(7)), np.asarray(params["logits"], np.float64)
    for decay in (0.1, 0.15, 0.15):  # (1 + n)/(10 + n) is .1, .18, …
        state, _, _ = program(state, prompts(B), ref_params, jnp.asarray(REWARD))
        expected = decay * expected + (1 - decay) * np.asarray(state.params["logits"], np.float64)
    np.testing.assert_allclose(state.average["logits"], expected, atol=1e-6)
    assert np.abs(state.average["logits"] - state.params["logits"]).max() > 1e-4


def test_minibatches_must_divide_the_batch(
    state: ppo.PPOState, ref_params: Any, two_programs: ppo.TwoPrograms, optimizer: optax.GradientTransformation
) -> None:
    rollout = two_programs.sample(state, prompts(B))
    with pytest.raises(ValueError, match="16 responses cannot be divided into 3 minibatches"):
        learn(state, rollout, ref_params, optimizer, minibatches=3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"clip_eps": 0.0}, r"PPOConfig.clip_eps must be in \(0, 1e6\]: got 0.0"),
        ({"gae_lambda": 1.5}, r"gae_lambda must be in \[0, 1\]: got 1.5"),
        ({"epochs": 0}, r"epochs must be in \[1, 10000\]: got 0"),
        ({"length_coef": -1.0}, r"length_coef must be in \[0, 1000\]: got -1.0"),
        ({"dual_clip": 1.0}, r"dual_clip must be in \(1, 1e6\]: got 1.0"),
        ({"group_size": 0}, r"group_size must be in \[1, 1024\]: got 0"),
        ({"ptx_coef": -0.1}, r"ptx_coef must be in \[0, 1000\]: got -0.1"),
        ({"average_decay": 1.0}, r"average_decay must be in \(0, 1\): got 1.0"),
        (
            {"component_weights": (1.0,), "component_names": ("a", "b")},
            "component_weights has 1 numbers for 2 components",
        ),
        ({"kl_control": "adaptve"}, "kl_control"),
    ],
)
def test_wrong_numbers_are_named(wrong: dict[str, Any], message: str) -> None:
    # A wrong name is a TypeError here: the tests check annotations before the class does.
    with pytest.raises((ValueError, TypeError), match=message):
        PPOConfig(**wrong)


def test_policy_output_on_padding_is_nan_in_these_tests(
    two_programs: ppo.TwoPrograms, state: ppo.PPOState, params: Any
) -> None:
    """The finite results above mean that nobody reads padding; here is the proof that they could have seen it."""
    rollout = two_programs.sample(state, prompts(B))
    said: PolicyOutput = policy(params, rollout)
    assert np.isnan(np.asarray(said.values)[~np.asarray(rollout.response_mask)]).all()
    assert not np.asarray(rollout.response_mask).all()


def test_a_constant_component_correlates_with_nothing() -> None:
    x = jnp.array([1.0, 2.0, 4.0])
    assert ppo_metrics.correlation(jnp.full(3, 0.7), x) == 0.0
    assert ppo_metrics.correlation(x, jnp.zeros(3)) == 0.0
    np.testing.assert_allclose(ppo_metrics.correlation(x, -2 * x + 1), -1.0, rtol=1e-6)

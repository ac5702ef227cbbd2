"""The programs of a hundred lines: the learner's numbers, exact gradients, the best policy in closed form."""

import ast
import itertools
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpo_100_lines as dpo_lines
import grpo_100_lines as grpo_lines
import ppo_100_lines as ppo_lines
from rlhf_jax.interfaces import PolicyOutput, PromptBatch, Rollout
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import ppo
from rlhf_jax.learners.ppo_config import PPOConfig

PROGRAMS = [ppo_lines, grpo_lines, dpo_lines]
KAPPA = 0.4


def best_logits(program: ModuleType) -> np.ndarray:
    """π* as a table, by backward induction over (position, previous token) in float64. [5, 3, 3]"""
    reference = program.REFERENCE["logits"] if program is ppo_lines else program.REFERENCE
    log_ref = np.asarray(jax.nn.log_softmax(reference), np.float64)
    found, worth = np.zeros((5, 3, 3)), np.full(3, -1.0)  # no end after five tokens
    for t in reversed(range(5)):
        following = np.where(np.arange(3) == 2, 0.0, worth)[None] + np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]])
        tilted = log_ref[t] + following / KAPPA
        found[t], worth = tilted, KAPPA * np.log(np.exp(tilted).sum(axis=1))
    return found


@pytest.fixture(scope="module", params=PROGRAMS, ids=lambda program: program.__name__)
def trained(request: pytest.FixtureRequest) -> tuple[ModuleType, jax.Array, jax.Array]:
    """Program, its curve, its last parameters."""
    return request.param, *request.param.train(seed=0)


def test_it_finds_the_best_policy_and_draws_its_curve(trained, tmp_path: Path, monkeypatch, capsys) -> None:
    program, curve, params = trained
    # The program's own π* is that of backward induction, which never looks at whole responses.
    table = jnp.asarray(best_logits(program), jnp.float32)
    best = program.response_logprobs({"logits": table, "values": table[..., 0]} if program is ppo_lines else table)
    np.testing.assert_allclose(program.BEST_LOGPROBS, best, atol=1e-4)
    learnt = program.response_logprobs(params)
    distance = float(jnp.exp(learnt) @ (learnt - best))
    assert distance == pytest.approx(float(curve[-1, 0 if program is dpo_lines else 1]), abs=1e-4)
    start = float(curve[0, 0 if program is dpo_lines else 1])
    assert start == pytest.approx(1.132, abs=0.001)
    assert distance < {ppo_lines: 0.02, grpo_lines: 0.001, dpo_lines: 0.02}[program]
    np.testing.assert_allclose(jnp.exp(learnt), jnp.exp(best), atol=0.06)
    monkeypatch.setattr(program, "train", lambda seed: (curve, params))
    program.main(tmp_path / "new" / "curve.png")
    assert (tmp_path / "new" / "curve.png").stat().st_size > 10_000
    assert f"→ {distance:.4f} nats" in capsys.readouterr().out


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_it_imports_equations_alone_and_is_about_a_hundred_lines(program: ModuleType) -> None:
    source = Path(program.__file__).read_text(encoding="utf-8")
    tree, documented = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module]
        else:
            modules = []
            if isinstance(node, (ast.Module, ast.FunctionDef)) and ast.get_docstring(node):
                documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        for module in modules:
            known = module.split(".")[0] in {"jax", "optax", "matplotlib", *sys.stdlib_module_names}
            assert known or module.startswith("rlhf_jax.equations."), f"{program.__name__} imports {module}"
    lines = enumerate(source.splitlines(), start=1)
    code = [line for n, line in lines if n not in documented and line.strip() and not line.strip().startswith("#")]
    assert len(code) <= 110, f"{program.__name__} has {len(code)} lines of code"


def test_ppo_has_the_learners_numbers() -> None:
    root = jax.random.key(7)

    def sample(params, prompts: PromptBatch, key: jax.Array) -> Rollout:
        tokens, mask = ppo_lines.sample(params, key)
        return Rollout(
            prompt_tokens=prompts.tokens,
            prompt_mask=prompts.mask,
            response_tokens=tokens,
            response_mask=mask,
            logprobs=ppo_lines.judge(params, tokens, mask)[0],
            finished=((tokens == ppo_lines.EOS) & mask).any(axis=1),
        )

    def policy(params, rollout: Rollout) -> PolicyOutput:
        logprobs, values = ppo_lines.judge(params, rollout.response_tokens, rollout.response_mask)
        return PolicyOutput(logprobs=logprobs, entropy=jnp.zeros_like(logprobs), values=values)

    config = PPOConfig(
        component_weights=(1.0,),
        component_names=("ab",),
        normalise_components=False,
        normalise_score=False,
        score_clip=None,
        whiten_advantages=False,
        kl_coef=KAPPA,
        value_coef=1.0,
        value_clip_eps=10.0,
        epochs=ppo_lines.EPOCHS,
    )
    iteration = ppo.make_ppo_iteration(
        sample=sample,
        policy=policy,
        score=lambda _, rollout: ppo_lines.score(rollout.response_tokens, rollout.response_mask)[:, None],
        optimizer=ppo_lines.optimizer,
        config=config,
    )
    prompts = PromptBatch(
        tokens=jnp.full((ppo_lines.BATCH, 1), ppo_lines.EOS), mask=jnp.ones((ppo_lines.BATCH, 1), bool)
    )
    state = ppo.init(ppo_lines.REFERENCE, ppo_lines.optimizer, config, root)
    params, opt_state = ppo_lines.REFERENCE, ppo_lines.optimizer.init(ppo_lines.REFERENCE)
    for n in range(3):
        state, metrics, _ = iteration(state, prompts, ppo_lines.REFERENCE, None)
        params, opt_state = ppo_lines.update(params, opt_state, stream_key(root, "ppo/sample", n))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), params, state.params)
    assert np.abs(params["logits"] - ppo_lines.REFERENCE["logits"]).max() > 0.1
    assert metrics["objective/kl_k1"] > 0.01


def test_grpos_loss_has_the_exact_gradient_of_the_objective() -> None:
    """Over all 63 responses, each with its probability in its advantage, the loss is the objective's first order."""
    params = grpo_lines.REFERENCE + 0.3 * jax.random.normal(jax.random.key(0), (5, 3, 3))
    everything = grpo_lines.ALL_TOKENS, grpo_lines.ALL_MASKS
    old = grpo_lines.judge(params, *everything)
    advantages = jnp.exp(old.sum(axis=1)) * (grpo_lines.paid(*everything, old) - 0.7)  # any baseline will do
    gradient = jax.jit(jax.grad(grpo_lines.loss))(params, *everything, old, advantages) * -everything[1].sum()
    exact = jax.jit(jax.grad(lambda x: grpo_lines.truth(x)[0]))(params)
    np.testing.assert_allclose(gradient, exact, atol=1e-6)
    assert np.abs(exact).max() > 0.05


def test_grpos_update_is_its_formula_written_out() -> None:
    """One step from a sampled batch, in NumPy: groups of eight, standardised, −Σ A (e_a − π) over the number of tokens."""
    params, key = grpo_lines.REFERENCE, jax.random.key(3)
    drawn = grpo_lines.sample(params, key)
    tokens, mask = map(np.asarray, drawn)
    pi = np.exp(np.asarray(jax.nn.log_softmax(params), np.float64))
    said = [row[real].tolist() for row, real in zip(tokens, mask, strict=True)]
    scores = np.array([sum(p == (0, 1) for p in itertools.pairwise(y)) - (y[-1] != 2) for y in said], float)
    groups = scores.reshape(-1, 8)  # at the reference no KL is paid yet
    deviation = groups.std(axis=1, keepdims=True)
    centred = groups - groups.mean(axis=1, keepdims=True)
    by_hand = np.where(deviation > 0, centred / (deviation + 1e-6), 0).reshape(-1)
    gradient = np.zeros((5, 3, 3))
    for row, real, advantage in zip(tokens, mask, by_hand, strict=True):
        for t, before in enumerate([2, *row[:-1]]):
            if real[t]:
                gradient[t, before] -= advantage * (np.eye(3)[row[t]] - pi[t, before])
    old = grpo_lines.judge(params, *drawn)
    paid = grpo_lines.paid(*drawn, old)
    np.testing.assert_allclose(paid, scores, atol=1e-5)
    advantages = jax.vmap(grpo_lines.group_advantages)(paid.reshape(-1, 8)).reshape(-1)
    library = jax.jit(jax.grad(grpo_lines.loss))(params, *drawn, old, advantages)
    np.testing.assert_allclose(library, gradient / mask.sum(), atol=1e-6)
    # The update moves along it: Adam's first step is the sign of the gradient, where there is one.
    moved, _ = grpo_lines.update(params, grpo_lines.optimizer.init(params), key)
    clear = np.abs(gradient / mask.sum()) > 1e-2
    assert clear.sum() > 10
    np.testing.assert_array_equal(np.sign(moved - params)[clear], -np.sign(gradient)[clear])


def test_grpo_pays_every_response_alike_at_the_best_policy() -> None:
    best = jnp.asarray(best_logits(grpo_lines), jnp.float32)
    everything = grpo_lines.ALL_TOKENS, grpo_lines.ALL_MASKS
    paid = grpo_lines.paid(*everything, grpo_lines.judge(best, *everything))
    np.testing.assert_allclose(paid, grpo_lines.MAXIMUM, atol=1e-5)
    assert np.ptp(grpo_lines.paid(*everything, grpo_lines.judge(grpo_lines.REFERENCE, *everything))) > 1


def test_dpos_exact_gradient_is_its_formula_and_vanishes_at_the_best_policy() -> None:
    """All 63² pairs with their probability: drawn from the reference, compared by Bradley and Terry."""
    tokens, mask = dpo_lines.ALL_TOKENS, dpo_lines.ALL_MASKS
    one, other = (x.reshape(-1) for x in np.meshgrid(np.arange(63), np.arange(63), indexing="ij"))
    ref, scores = np.exp(np.asarray(dpo_lines.REF_LOGPROBS, np.float64)), np.asarray(dpo_lines.ALL_SCORES, np.float64)
    wins = 1 / (1 + np.exp(-(scores[one] - scores[other])))
    weights = jnp.asarray(2 * ref[one] * ref[other] * wins, jnp.float32)  # chosen: one, rejected: other
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)

    @jax.jit
    def gradient(params: jax.Array) -> jax.Array:
        chosen, rejected = (tokens[one], mask[one]), (tokens[other], mask[other])
        return jax.grad(lambda x: weights @ dpo_lines.loss(x, chosen, rejected))(params)

    params = dpo_lines.REFERENCE + 0.3 * jax.random.normal(jax.random.key(1), (5, 3, 3))
    log_ratio = np.asarray(dpo_lines.response_logprobs(params) - dpo_lines.REF_LOGPROBS, np.float64)
    pull = KAPPA / (1 + np.exp(KAPPA * (log_ratio[one] - log_ratio[other])))
    directions = np.asarray(jax.jit(jax.jacobian(dpo_lines.response_logprobs))(params), np.float64)
    by_hand = -np.einsum("n,nabc->abc", np.asarray(weights) * pull, directions[one] - directions[other])
    np.testing.assert_allclose(gradient(params), by_hand, atol=1e-5)
    assert np.abs(by_hand).max() > 0.01
    np.testing.assert_allclose(gradient(jnp.asarray(best_logits(dpo_lines), jnp.float32)), 0, atol=1e-6)


def test_dpos_pairs_come_from_the_reference_and_the_better_one_wins_as_often_as_it_should() -> None:
    chosen, rejected = dpo_lines.draw_pairs(20_000, jax.random.key(5))
    better, worse = (np.asarray(dpo_lines.score(*y)) for y in (chosen, rejected))
    gaps = np.abs(better - worse)
    right, expected = better > worse, 1 / (1 + np.exp(-gaps))
    unequal = gaps > 0
    error = np.sqrt((expected * (1 - expected))[unequal].sum()) / unequal.sum()
    assert abs(right[unequal].mean() - expected[unequal].mean()) < 4 * error
    both = np.concatenate([better, worse])
    mean = np.exp(np.asarray(dpo_lines.REF_LOGPROBS)) @ np.asarray(dpo_lines.ALL_SCORES)
    assert abs(both.mean() - mean) < 4 * both.std() / np.sqrt(both.size)

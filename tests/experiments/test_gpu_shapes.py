"""What will run on an accelerator is traced at its sizes, and lowered for it, where there is none: shapes alone, no array is made.

Benchmarks at their accelerator workloads, and the stages' own steps in the presets `paper`: with two blocks, since all are
alike, and the benchmarks at the full depth too, which is slow.
"""

import dataclasses
import functools
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bench_dpo
import bench_growth
import bench_grpo
import bench_ppo
import dpo4rec_movielens
import ppo_redial
import smtpo_redial
from benchmark import dpo_step, grpo_step, networks, one_step, ours
from benchmark.workload import ACCELERATOR_WORKLOADS, Workload
from rlhf_jax.data.rating_lists import candidate_lists
from rlhf_jax.interfaces import Corpus, Dialogue, Item, Message, Params, PromptBatch
from rlhf_jax.learners import dpo, multi_turn
from rlhf_jax.learners.dpo import PreferenceBatch
from rlhf_jax.learners.multi_turn import Episodes
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.models import gpt2, heads
from rlhf_jax.models.rerankers import ItemTable, RerankerConfig
from rlhf_jax.parallel.partition import OneDevice
from rlhf_jax.runtime.run import open_run
from rlhf_jax.stages import alignment, reward, supervised
from rlhf_jax.stages.agent import make_agent
from rlhf_jax.stages.dpo4rec import preference, preference_setup, reranker
from rlhf_jax.stages.dpo4rec.preference_setup import RatingsConfig
from rlhf_jax.stages.dpo4rec.reranker import Reranker
from rlhf_jax.stages.reward import Proxy
from rlhf_jax.stages.setup import ModelConfig, Setup, size_network
from scale import conversations, cost, growth, imitation
from scale.program import Program

DEPTH = 2
WHOLE = pytest.param(24, marks=pytest.mark.slow)
MEDIUM = {"model_type": "gpt2", "n_layer": 24, "n_embd": 1024, "n_head": 16, "n_positions": 1024, "vocab_size": 50_257}
REDIAL_ITEMS = 6_924


def shape(*lengths: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(lengths, dtype)


def traced(function: Callable[..., Any], *shapes: Any) -> Any:
    """What the function returns, as shapes; its program is lowered for a GPU, and what cannot be said there is refused."""
    found = jax.jit(function).trace(*shapes)
    assert "bf16" in found.lower(lowering_platforms=("cuda",)).as_text()
    return found.out_info


def for_gpu(program: Any, *shapes: Any) -> Any:
    """What a compiled program returns, as shapes; it is lowered for a GPU."""
    found = program.trace(*shapes)
    assert "mhlo" in found.lower(lowering_platforms=("cuda",)).as_text()
    return found.out_info


def trunk_of(network: gpt2.GPT2Config) -> Params:
    return jax.eval_shape(lambda key: gpt2.init(network, key), jax.random.key(0))


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts choose their workload as where JAX finds a GPU; no torch beside them."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(bench_ppo, "have_torch", lambda: False)


def drawn(workload: Workload) -> tuple[Any, ...]:
    """`networks.draw_networks` as shapes: policy, critic, reward model, its heads, prompts."""
    trunk = trunk_of(networks.network_config(workload))
    reward_heads = jax.eval_shape(lambda: heads.init_reward_heads(jax.random.key(0), workload.n_embd, 1))
    return trunk, trunk, trunk, reward_heads, shape(workload.batch, workload.prompt)


def workload_of(module: Any, config: Any, depth: int) -> Workload:
    """What `module.workloads` makes of a script's configuration."""
    (found,) = module.workloads(config(sizes=("gpt2-345m",)))
    assert found == ACCELERATOR_WORKLOADS["gpt2-345m"] and (found.batch, found.prompt, found.response) == (256, 256, 64)
    return dataclasses.replace(found, n_layer=depth)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("depth", [2, WHOLE])
def test_a_ppo_iteration_of_the_benchmark(depth: int) -> None:
    workload = workload_of(bench_ppo, bench_ppo.Config, depth)

    def both(*parts: Any) -> Any:
        makers = bench_ppo.makers_of(bench_ppo.Config(peak_memory=False), workload, networks.Networks(*parts))
        assert list(makers) == ["ours_shared_bf16", "ours_separate_bf16"]
        done = []
        for make in makers.values():
            one: Any = make()
            assert isinstance(one, ours.Ours)
            frozen, state = (one.reference, one.reward), one.state
            _, metrics, rollout = one.whole(state, one.prompts, *frozen)
            done.append((metrics, rollout))
            if depth > 2 and one.form == "shared":  # The same functions, cut into phases for the clock.
                scored = one.scoring(state.params, one.rollout(state, one.prompts), *frozen)
                done.append(one.update(state, *scored)[1])
        return done

    parts = drawn(workload)
    (metrics, rollout), *_ = traced(both, *parts)
    assert rollout.response_tokens.shape == (256, 64)
    assert metrics["policy/loss"].shape == ()


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("depth", [2, WHOLE])
def test_a_dpo_step_of_the_benchmark(depth: int) -> None:
    workload = workload_of(one_step, bench_dpo.Config, depth)
    *parts, prompts = drawn(workload)

    def step(*parts: Any) -> Any:
        known = networks.Networks(*parts, prompts=jnp.asarray(np.zeros(prompts.shape, np.int32)))
        one = dpo_step.OurStep(workload, known, learning_rate=1e-6, compute_dtype="bfloat16")
        return one.batch.ref_logprobs, one.step(one.state, one.batch)[1]

    with pytest.MonkeyPatch.context() as patch:
        # Drawn on the host from the prompts' values; shapes have none.
        pairs = dpo_step.Pairs(np.zeros((128, 256), np.int32), np.zeros((128, 2, 64), np.int32))
        patch.setattr(dpo_step, "draw_pairs", lambda workload, networks: pairs)
        reference, metrics = traced(step, *parts)
        assert reference.shape == (128, 2) and metrics["rewards/margin"].shape == ()


@pytest.mark.usefixtures("on_gpu")
def test_a_grpo_step_of_the_benchmark() -> None:
    workload = workload_of(one_step, bench_grpo.Config, DEPTH)

    def step(*parts: Any) -> Any:
        one = grpo_step.OurStep(workload, networks.Networks(*parts), learning_rate=1e-6, compute_dtype="bfloat16")
        return one.step(one.state, one.prompts, one.reference, {})[1:]

    metrics, rollout = traced(step, *drawn(workload))
    assert rollout.response_tokens.shape == (256, 64) and metrics["policy/kl_penalty"].shape == ()


class Traced(Exception):
    """A stage's first update was traced; nothing after it has numbers to work on."""

    def __init__(self, state: Any, metrics: Any) -> None:
        self.state, self.metrics = state, metrics


def first_update(directory: Any, state: Any, update: Any, plan: Any) -> Any:
    """In the place of `run_stage`."""
    del directory, plan
    raise Traced(*update(state, 0))


class Shapes(OneDevice):
    """What comes back to the host from a program that is only traced."""

    def fetch(self, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), tree)


@functools.cache
def words_and_items() -> Program:
    """GPT-2's words and ReDial's films; what they spell does not matter."""
    return Program("vocabulary", 2, 8, 2, ppo_redial.Config().mesh, 8, 8, 8, 2, 1, 1, words=50_257, items=REDIAL_ITEMS)


def corpus() -> Corpus:
    def dialogue(number: int) -> Dialogue:
        said: list[tuple[str, tuple[str | int, ...]]] = [
            ("seeker", ("w1 w2 w3 ", number % 8)),
            ("recommender", ("w4 ", number + 1)),
            ("seeker", ("w5 w6",)),
            ("recommender", ("w7 ", number + 2)),
            ("seeker", ("w8",)),
        ]
        messages = [Message(role=role, parts=parts, message_id=i) for i, (role, parts) in enumerate(said)]  # type: ignore[arg-type]
        return Dialogue(dialogue_id=str(number), messages=tuple(messages), seeker_labels={}, recommender_labels={})

    dialogues = tuple(dialogue(number) for number in range(6))
    items = {number: Item(item_id=number, title=f"w{number}") for number in range(REDIAL_ITEMS)}
    return Corpus(train=dialogues, validation=dialogues, test=(), items=items, provenance={})


def paper_model(model: ModelConfig, depth: int, folder: Path) -> ModelConfig:
    """Of a preset that names weights: a folder that has their sizes alone."""
    assert model.weights == "gpt2-medium"
    (folder / "config.json").write_text(json.dumps(MEDIUM | {"n_layer": depth}), encoding="utf-8")
    return dataclasses.replace(model, weights=str(folder))


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages end with their first update."""
    for stage in (supervised, reward, alignment, preference):
        monkeypatch.setattr(stage, "run_stage", first_update)
    # Which device the trunk is bound to is no question of shapes.
    monkeypatch.setattr(
        alignment, "policy_params", lambda trunk, width: {"trunk": trunk, "value": heads.init_value_head(width)}
    )


def metrics_of(stage: Callable[..., Any], *shapes: Any) -> Any:
    """Of a stage's first update, as shapes."""

    def run(*arguments: Any) -> Any:
        try:
            stage(*arguments)
        except Traced as done:
            return done.state, done.metrics
        raise AssertionError("no update was made")

    return traced(run, *shapes)[1]


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_the_stages_of_ppo_redial_in_the_preset_paper(algorithm: str, tmp_path: Path) -> None:
    config = dataclasses.replace(ppo_redial.PRESETS["paper"][1], algorithm=algorithm)
    vocab = words_and_items().vocabulary
    network = size_network(paper_model(config.model, DEPTH, tmp_path), vocab)
    assert (network.n_embd, network.compute_dtype, network.remat) == (1024, "bfloat16", "full")
    agent = make_agent(vocab, network, max_items=config.data.max_items, response_tokens=config.data.response_tokens)
    setup = Setup(config.data, corpus(), vocab, agent, seed=0, layout=Shapes())
    trunk = trunk_of(network)
    model = {"trunk": trunk, "reward": jax.eval_shape(lambda: heads.init_reward_heads(jax.random.key(0), 1024, 3))}
    with open_run(tmp_path / "run", {}, trackers=()) as run:

        def imitate(trunk: Params) -> Any:
            # Thousands of descriptions would be read on the host; a batch of them has the same shapes.
            sft = dataclasses.replace(config.sft, description_epochs=0)
            return supervised.train(run, setup._replace(pretrained=trunk), sft)

        def predict(trunk: Params) -> Any:
            return reward.train(run, setup, trunk, config.reward, weights=(1.0, 1.0, 1.0))

        def align(trunk: Params, model: Params) -> Any:
            proxy = Proxy(model, (1.0, 1.0, 1.0))
            return alignment.align(run, setup, trunk, proxy, config.align, config.learner)

        if algorithm == "ppo":
            assert {"loss", "word_nll"} <= set(metrics_of(imitate, trunk))
            assert "loss" in metrics_of(predict, trunk)
        assert "objective/kl_k1" in metrics_of(align, trunk, model)


def test_turns_and_learning_of_smtpo_in_the_preset_paper(tmp_path: Path) -> None:
    config = smtpo_redial.PRESETS["paper"][1]
    vocab, talk, data = words_and_items().vocabulary, config.conversations, config.data
    network = size_network(paper_model(config.model, DEPTH, tmp_path), vocab)
    agent = make_agent(vocab, network, max_items=data.max_items, response_tokens=data.response_tokens)
    rows = talk.openings * talk.group_size
    n_rows = rows * talk.turns
    # The single-turn control has as many rows in all, and draws no more of them at once.
    first = talk.first_turns()
    assert (first.openings * first.group_size, first.openings * first.group_size // first.draws) == (n_rows, rows)
    assert (rows, n_rows, data.context_tokens, data.response_tokens) == (256, 1280, 384, 96)
    params = {"trunk": trunk_of(network)}
    tokens = jnp.zeros((rows, 384), jnp.int32)
    prompts = PromptBatch(tokens=tokens, mask=tokens == 0)
    turn = traced(lambda params: agent.sample(params, prompts, jax.random.key(0)), params)

    def episodes_of(rollout: Any) -> Episodes:
        shape = talk.openings, talk.group_size, talk.turns
        return Episodes(
            rollout=jax.tree.map(lambda leaf: jnp.zeros((n_rows, *leaf.shape[1:]), leaf.dtype), rollout),
            rewards=jnp.zeros((*shape, 3)),
            running=jnp.ones(shape, bool),
            settled=jnp.zeros((*shape, 3, data.max_items + 2)),
            places=jnp.zeros((n_rows, 96), jnp.int32),
        )

    episodes = jax.eval_shape(episodes_of, turn)
    optimizer = make_optimizer(learning_rate=talk.learning_rate, total_steps=1000)
    learn = multi_turn.make_learn(policy=agent.policy, optimizer=optimizer, config=config.learner)

    def update(params: Params, episodes: Episodes) -> Any:
        state = multi_turn.init(params, optimizer, config.learner, jax.random.key(0))
        return learn(state, episodes, params)[1]

    assert f"turn/{talk.turns}/format" in traced(update, params, episodes)


@pytest.mark.usefixtures("stopped")
def test_the_dpo_stage_of_dpo4rec_in_the_preset_paper(tmp_path: Path) -> None:
    config = dpo4rec_movielens.PRESETS["paper"][1]
    model = dataclasses.replace(config.model, n_layer=DEPTH)
    made = preference_setup.set_up(RatingsConfig(source="world"), model, seed=0)._replace(layout=Shapes())
    assert made.writer.network.layers == "scan" and made.writer.network.compute_dtype == "bfloat16"
    n, length = 2 * config.dpo.batch_size, made.writer.response_tokens
    batch = PreferenceBatch(
        prompts=PromptBatch(
            tokens=jnp.zeros((n, made.prompt_tokens), jnp.int32), mask=jnp.ones((n, made.prompt_tokens), bool)
        ),
        response_tokens=np.zeros((n, 2, length), np.int32),
        response_mask=np.ones((n, 2, length), bool),
        ref_logprobs=np.zeros((n, 2), np.float32),
        weight=np.ones(n, np.float32),
    )
    dpo.check_preferences(batch, config.dpo)
    trunk = trunk_of(made.writer.network)
    held_out = candidate_lists(made.corpus, made.split.validation, negatives="uniform", popularity=made.popularity)
    lists = reranker.known_lists(made, reranker.count(made), held_out)
    items = ItemTable(attributes=jnp.zeros((1, 1)), text=jnp.zeros((1, 1)))
    scorer = Reranker(RerankerConfig(network="prm"), {}, items)
    with open_run(tmp_path / "run", {}, trackers=()) as run:

        def learn(trunk: Params) -> Any:
            asked = {"name": "one", "validation": (scorer, lists)}
            return preference.train(run, made, {"trunk": trunk}, batch, config.dpo, **asked)

        assert "rewards/margin" in metrics_of(learn, trunk)


@pytest.mark.parametrize(
    "axis",
    ["catalogue", *(pytest.param(one, marks=pytest.mark.slow) for one in ("batch", "prompt", "response", "layers"))],
)
def test_an_update_of_the_growth_benchmark_is_the_same_program_there(axis: str) -> None:
    _, largest = bench_growth.axes_of(bench_growth.Config())[axis][-1]
    made, key = growth.make(largest), jax.eval_shape(lambda: jax.random.key(0))
    state, reference, scorer = jax.eval_shape(made.networks, key)
    rollout = for_gpu(made.sample, reference, made.prompts, key)
    assert rollout.response_tokens.shape == (largest.batch, largest.response)
    after, *_ = for_gpu(made.iteration, state, made.prompts, reference, scorer)
    assert jax.tree.map(lambda one: one.shape, after) == jax.tree.map(lambda one: one.shape, state)
    assert for_gpu(made.rank, reference, made.prompts).shape == (largest.batch, largest.items)


@pytest.mark.parametrize(
    "axis",
    [
        "imitation, catalogue",
        *(pytest.param(f"imitation, {one}", marks=pytest.mark.slow) for one in ("texts", "tokens")),
    ],
)
def test_a_step_of_imitation_of_the_growth_benchmark_is_the_same_program_there(axis: str) -> None:
    _, largest = bench_growth.imitation_axes(bench_growth.Config())[axis][-1]
    step, key = imitation.make(largest), jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(step.state)
    after, metrics = for_gpu(step.update, state, step.batch, step.knowledge, key)
    assert jax.tree.map(lambda one: one.shape, after) == jax.tree.map(lambda one: one.shape, state)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("kind", ["imitation", "conversations", "update"])
def test_the_growth_benchmark_measures_on_the_device_that_jax_finds(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Processes that measure are not told to use the processor; those that count are."""
    told: list[dict[str, str]] = []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        told.append(env)
        return subprocess.CompletedProcess(command, 0, stdout="{}\n", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    config = bench_growth.Config()
    if kind == "imitation":
        imitation.apart("count", [{}])
        assert told.pop()["JAX_PLATFORMS"] == "cpu"
        imitation.apart("run", [{}])
    elif kind == "conversations":
        conversations.apart(bench_growth.talk_axes(config)["conversations, turns"][0][1], 1)
    else:
        growth.apart("update", {})
    assert told.pop()["JAX_PLATFORMS"] == "cuda"


def test_an_accelerator_is_measured_by_the_clock_and_by_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        device_kind = "a device"

        def __init__(self, stats: dict[str, int] | None) -> None:
            self.memory_stats = lambda: stats

    slept = cost.least(lambda: time.sleep(0.05), 1)
    assert slept < 0.04  # The processor did nothing meanwhile.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert cost.least(lambda: time.sleep(0.05), 1) >= 0.05
    monkeypatch.setattr(jax, "local_devices", lambda: [Device({"peak_bytes_in_use": 3 * 2**20})])
    assert cost.peak_mb() == 3.0
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(None)])
    with pytest.raises(ValueError, match="a device does not tell"):
        cost.peak_mb()

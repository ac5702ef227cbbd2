"""The compiled PPO iteration, as the recipe makes it: nothing leaves the device, nothing is baked in, nothing recompiles."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import program_facts as facts
import pytest
from jax.experimental.compilation_cache import compilation_cache

from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.interfaces import Corpus, Dialogue, Item, Message
from rlhf_jax.learners import ppo
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.models import gpt2
from rlhf_jax.runtime.run import open_run
from rlhf_jax.stages import alignment
from rlhf_jax.stages.agent import make_agent, reward_params
from rlhf_jax.stages.reward import Proxy
from rlhf_jax.stages.setup import DataConfig, Setup
from scale.endurance import Look, watching

B, P, T, D, L, H = 8, 24, 8, 128, 2, 4
CONFIG = PPOConfig(epochs=2, minibatches=2, old_logprobs="recompute")
UPDATES, SAVED = 10, 5
COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass
class Watched:
    """One stage of PPO, and what was seen while it ran."""

    program: Any
    """The recipe's jitted iteration."""
    shapes: tuple[Any, ...]
    """Of its arguments."""
    compilations: list[int]
    """How many updates had ended when a program was compiled, for every compilation."""
    looks: list[Look]
    """Before every update."""
    cached: list[str]
    """Files of the compilation cache."""
    vocabulary: int

    @functools.cached_property
    def lowered(self) -> Any:
        return self.program.lower(*self.shapes)

    @functools.cached_property
    def compiled(self) -> Any:
        # What is read off it does not depend on how well the machine code is optimised.
        cheap = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        return self.lowered.compile(compiler_options=cheap)


def corpus() -> Corpus:
    def dialogue(number: int) -> Dialogue:
        said: list[tuple[str, tuple[str | int, ...]]] = [
            ("seeker", ("hello there, i liked ", number % 8)),
            ("recommender", ("try ", (number + 1) % 8)),
            ("seeker", ("what else",)),
            ("recommender", ("this one ", (number + 2) % 8)),
        ]
        messages = [Message(role=role, parts=parts, message_id=i) for i, (role, parts) in enumerate(said)]  # type: ignore[arg-type]
        return Dialogue(dialogue_id=str(number), messages=tuple(messages), seeker_labels={}, recommender_labels={})

    dialogues = tuple(dialogue(number) for number in range(6))
    return Corpus(
        train=dialogues,
        validation=(),
        test=(),
        items={number: Item(item_id=number, title=f"film {number}") for number in range(8)},
        provenance={},
    )


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder = tmp_path_factory.mktemp("aligned")
    vocab = Vocabulary.train(["hello there, i liked", "what else", "try this one"], tuple(range(8)), 300)
    network = gpt2.GPT2Config(vocab_size=vocab.size, n_positions=64, n_embd=D, n_layer=L, n_head=H)
    agent = make_agent(vocab, network, max_items=3, response_tokens=T)
    trunk = gpt2.init(network, jax.random.key(0))
    ended, compilations, calls = [0], [], []

    def compiled(event: str, seconds: float, **_: Any) -> None:
        del seconds
        if event == COMPILED:
            compilations.append(ended[0])

    real = ppo.make_ppo_iteration

    def make_ppo_iteration(**bound: Any) -> Callable[..., Any]:
        program = real(**bound)

        def call(*arguments: Any) -> Any:
            if not calls:
                calls.append((program, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)))
            result = jax.block_until_ready(program(*arguments))
            ended[0] += 1
            return result

        return call

    settings = {
        name: getattr(jax.config, name)
        for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    }
    with (
        pytest.MonkeyPatch.context() as patch,
        open_run(folder / "run", {"seed": 0}, trackers=()) as run,
        watching() as watch,
    ):
        patch.setattr(ppo, "make_ppo_iteration", make_ppo_iteration)
        jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
        # Whether there is a cache is decided once a process, here by whichever test compiled first.
        compilation_cache.reset_cache()
        jax.monitoring.register_event_duration_secs_listener(compiled)
        try:
            alignment.align(
                run,
                Setup(DataConfig(context_tokens=P, response_tokens=T), corpus(), vocab, agent, seed=0, layout=watch),
                trunk,
                Proxy(reward_params(trunk, D, jax.random.key(1)), CONFIG.component_weights),
                alignment.AlignmentConfig(updates=UPDATES, batch_size=B, save_every=SAVED),
                CONFIG,
            )
        finally:
            jax.monitoring.unregister_event_duration_listener(compiled)
            for name, value in settings.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
    ((program, shapes),) = calls
    cached = [path.name for path in Path(folder / "cache").iterdir()]
    return Watched(program, shapes, compilations, watch.looks, cached, vocab.size)


def test_nothing_is_compiled_after_the_first_update(watched: Watched) -> None:
    assert watched.program._cache_size() == 1
    assert 0 in watched.compilations
    # After the last one the stage asks once whether what it hands on is finite.
    assert [updates for updates in watched.compilations if 1 < updates < UPDATES] == []


def test_ten_updates_hold_as_much_as_two(watched: Watched) -> None:
    assert [look.update for look in watched.looks] == list(range(UPDATES))
    # From the second update on the first state is gone, and its successors take its place: no array more, no byte more. What a
    # checkpoint was written from is there until the next update takes the state.
    held = {look.update: (look.live_bytes, look.live_arrays) for look in watched.looks[2:]}
    assert len({held[update] for update in held if update % SAVED}) == 1
    assert held[UPDATES - SAVED] < (2 * held[2][0], 2 * held[2][1])
    assert len({look.programs for look in watched.looks[2:]}) == 1


def test_the_persistent_cache_holds_the_program(watched: Watched) -> None:
    assert any("ppo_iteration" in name for name in watched.cached)


def test_nothing_leaves_the_device(watched: Watched) -> None:
    assert facts.host_calls(watched.compiled.as_text()) == []


def test_no_parameter_is_baked_in(watched: Watched) -> None:
    text = watched.lowered.as_text()
    # The smallest matrix of the model has D·D numbers; the largest constant of the program is smaller than a bias.
    assert facts.largest_constant(text) < 4 * D
    assert facts.arguments(text) == len(jax.tree.leaves(watched.shapes))


def test_all_of_the_state_is_donated_and_used_again(watched: Watched) -> None:
    state = watched.shapes[0]
    assert facts.donated(watched.lowered.as_text()) == len(jax.tree.leaves(state))
    memory = watched.compiled.memory_analysis()
    assert memory.alias_size_in_bytes == facts.size(state)
    assert memory.argument_size_in_bytes == facts.size(watched.shapes)


def forward(rows: int, length: int, wanted: int) -> int:
    """Multiplications and additions of the trunk, the last block only where wanted."""
    per_token, attention = 24 * D * D, 4 * length * D
    whole = rows * length * (per_token + attention) * (L - 1)
    return whole + rows * (length * 4 * D * D + wanted * (20 * D * D + attention))


def paper_flops(vocabulary: int) -> int:
    """One pass through every loop: XLA counts a loop's body once."""
    head = 2 * D * vocabulary
    prompts = forward(B, P, 1) + B * head
    token = B * L * (24 * D * D + 4 * (P + T - 1) * D) + B * head
    judged = forward(B, P + T - 1, T) + B * T * head
    scored = forward(B, P + T, T)
    return prompts + token + scored + 2 * judged + 3 * judged // CONFIG.minibatches


def test_flops_are_those_of_the_paper_count(watched: Watched) -> None:
    counted = watched.compiled.cost_analysis()["flops"]
    assert abs(counted / paper_flops(watched.vocabulary) - 1) < 0.15, (counted, paper_flops(watched.vocabulary))


def paper_bytes(watched: Watched) -> int:
    """Arguments, one gradient, and what the backward pass of one minibatch keeps: logits twice, activations per layer."""
    rows, length = B // CONFIG.minibatches, P + T - 1
    logits = 4 * rows * T * watched.vocabulary
    activations = 4 * rows * length * L * (16 * D + 2 * H * length)
    return facts.size(watched.shapes) + facts.size(watched.shapes[0].params) + 3 * logits + activations


def test_peak_memory_is_what_the_shapes_say(watched: Watched) -> None:
    memory = watched.compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak += memory.temp_size_in_bytes
    assert 0.75 < peak / paper_bytes(watched) < 1.25, (peak, paper_bytes(watched))


def test_the_program_does_not_grow_with_epochs_and_minibatches(watched: Watched) -> None:
    def length(config: PPOConfig) -> int:
        return len(lowered_with(watched, config).splitlines())

    short = length(dataclasses.replace(CONFIG, epochs=1))
    long = length(dataclasses.replace(CONFIG, epochs=8, minibatches=4))
    assert abs(long / short - 1) < 0.05


def lowered_with(watched: Watched, config: PPOConfig) -> str:
    """The iteration's text under another configuration."""
    # `functools.partial` keeps what the stage bound: the callables and the optimiser.
    bound = dict(watched.program.__wrapped__.keywords)
    return (
        jax.jit(functools.partial(ppo.ppo_iteration, **(bound | {"config": config}))).lower(*watched.shapes).as_text()
    )


# Each reading finds what it is there for.


def test_a_planted_callback_is_found() -> None:
    def printing(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda value: None, x)
        return x + 1

    assert facts.host_calls(jax.jit(printing).lower(jnp.zeros(3)).compile().as_text()) != []


def test_a_planted_constant_is_found() -> None:
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(16, 16)), jnp.float32)
    text = jax.jit(lambda x: x @ weights).lower(jnp.zeros((2, 16))).as_text()
    assert facts.largest_constant(text) == 4 * 16 * 16 or facts.arguments(text) == 2
    text = jax.jit(lambda x, weights: x @ weights).lower(jnp.zeros((2, 16)), weights).as_text()
    assert facts.largest_constant(text) == 0 and facts.arguments(text) == 2


def test_a_missing_donation_is_found() -> None:
    def step(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return x + 1, y + 1

    kept = jax.jit(step).lower(jnp.zeros(3), jnp.zeros(3))
    half = jax.jit(step, donate_argnums=0).lower(jnp.zeros(3), jnp.zeros(3))
    assert (facts.donated(kept.as_text()), facts.donated(half.as_text())) == (0, 1)
    assert half.compile().memory_analysis().alias_size_in_bytes == 12

"""One step of every learner as training compiles it: which programs, how often each runs, and what stays between steps.

ppo         one program: responses drawn, judged, epochs of minibatches
grpo        the same; a group of responses to one prompt, which is read once while they are drawn; no value head
multi-turn  a program that draws a turn of all conversations, once a turn, and one that learns from all turns as rows.
            The seeker, who answers in between, is a network of its own and not part of this
dpo         one program: one optimiser step on pairs, whose prompt is read once. The reference's log-probabilities are
            cached before learning, so the reference is not held
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.interfaces import PromptBatch, Rollout
from rlhf_jax.learners import dpo, grpo, multi_turn
from rlhf_jax.learners.dpo import PreferenceBatch
from rlhf_jax.learners.dpo_config import DPOConfig
from rlhf_jax.learners.grpo_config import GRPOConfig
from rlhf_jax.learners.multi_turn import Episodes
from rlhf_jax.learners.multi_turn_config import MultiTurnConfig
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.models import gpt2
from rlhf_jax.parallel.partition import Partition
from rlhf_jax.stages.agent import reward_params
from scale.program import Program, Steps, abstract, agent_of, by_rows, prompts_of, stored


class Run(NamedTuple):
    """A program of a step, and what it takes, as shapes."""

    program: Any
    """Jitted, as the stage makes it."""
    arguments: tuple[Any, ...]
    times: int = 1
    """How often a step runs it."""
    outside: str = "passes"
    """Phase of what stands in no loop."""
    loops: tuple[str, ...] = ("decode", "update")
    """Phases it must have."""


class Parts(NamedTuple):
    """A step on a mesh."""

    runs: tuple[Run, ...]
    held: dict[str, Any]
    """Trees that stay between steps, by name."""
    cache: gpt2.Cache | None
    """What decoding remembers, all rows; lives inside a program. None where nothing is drawn."""


def parts_of(program: Program, layout: Partition) -> Parts:
    """The step that `program.steps` names; the layout's mesh may be abstract."""
    return _MAKERS[program.steps](program, layout)


def _ppo(program: Program, layout: Partition) -> Parts:
    parts = abstract(program, layout)
    held = {
        "parameters": parts.state.params,
        "moments": parts.state.opt_state,
        "reference": parts.reference,
        "reward model": parts.reward_model,
    }
    run = Run(parts.iteration, (parts.state, parts.prompts, parts.reference, parts.reward_model))
    return Parts((run,), held, parts.cache)


def _grpo(program: Program, layout: Partition) -> Parts:
    agent, key = agent_of(program, layout), jax.random.key(0)
    config = GRPOConfig(
        group_size=program.group,
        epochs=program.epochs,
        minibatches=program.minibatches,
        microbatches=program.microbatches,
    )
    optimizer = _optimizer()
    trunk = jax.eval_shape(lambda key: gpt2.init(agent.network, key), key)
    state = jax.eval_shape(lambda trunk: grpo.init({"trunk": trunk}, optimizer, config, key), trunk)
    trees = state, {"trunk": trunk}, reward_params(trunk, agent.network.n_embd, key)
    state, reference, reward_model = stored(layout, trees)
    iteration = grpo.make_grpo_iteration(
        sample=agent.sample_groups(program.group),
        policy=agent.policy,
        score=agent.score,
        optimizer=optimizer,
        config=config,
        out_shardings=layout.outputs(state),
    )
    prompts = prompts_of(program, layout, program.batch // program.group)
    held = {
        "parameters": state.params,
        "moments": state.opt_state,
        "reference": reference,
        "reward model": reward_model,
    }
    run = Run(iteration, (state, prompts, reference, reward_model))
    return Parts((run,), held, _cache(program, agent.network, program.batch))


def _multi_turn(program: Program, layout: Partition) -> Parts:
    agent, key = agent_of(program, layout), jax.random.key(0)
    config = MultiTurnConfig(epochs=program.epochs, minibatches=program.minibatches, microbatches=program.microbatches)
    optimizer = _optimizer()
    trunk = jax.eval_shape(lambda key: gpt2.init(agent.network, key), key)
    state = jax.eval_shape(lambda trunk: multi_turn.init({"trunk": trunk}, optimizer, config, key), trunk)
    state, reference = stored(layout, (state, {"trunk": trunk}))
    learn = multi_turn.make_learn(
        policy=agent.policy, optimizer=optimizer, config=config, out_shardings=layout.outputs(state)[:2]
    )
    conversations = program.batch // program.turns
    prompts = prompts_of(program, layout, conversations)
    turn = jax.eval_shape(agent.sample, state.params, prompts, key)

    def all_turns(turn: Rollout) -> Episodes:
        shape = conversations // program.group, program.group, program.turns
        return Episodes(
            rollout=jax.tree.map(lambda leaf: jnp.repeat(leaf, program.turns, axis=0), turn),
            rewards=jnp.zeros((*shape, len(config.component_names))),
            running=jnp.ones(shape, bool),
        )

    plain = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), turn)
    episodes = by_rows(layout, jax.eval_shape(all_turns, plain))
    held = {"parameters": state.params, "moments": state.opt_state, "reference": reference}
    drawn = Run(jax.jit(agent.sample), (state.params, prompts, key), times=program.turns, loops=("decode",))
    learnt = Run(learn, (state, episodes, reference), loops=("update",))
    return Parts((drawn, learnt), held, _cache(program, agent.network, conversations))


def _dpo(program: Program, layout: Partition) -> Parts:
    agent, key = agent_of(program, layout), jax.random.key(0)
    pairs = program.batch // 2
    config = DPOConfig(batch_size=pairs, microbatches=program.microbatches)
    optimizer = dpo.optimizer_of(config, 10**6)
    trunk = jax.eval_shape(lambda key: gpt2.init(agent.network, key), key)
    state = stored(layout, jax.eval_shape(lambda trunk: dpo.init({"trunk": trunk}, optimizer, config), trunk))
    policy = agent.group_policy
    assert policy is not None, "the attention is masked, not fused"

    def one_step(state: Any, batch: PreferenceBatch) -> Any:
        return dpo.update(state, batch, policy=policy, optimizer=optimizer, config=config)

    def batch() -> PreferenceBatch:
        of_prompt, of_pair = (pairs, program.prompt), (pairs, 2, program.response)
        return PreferenceBatch(
            prompts=PromptBatch(tokens=jnp.zeros(of_prompt, jnp.int32), mask=jnp.ones(of_prompt, bool)),
            response_tokens=jnp.zeros(of_pair, jnp.int32),
            response_mask=jnp.ones(of_pair, bool),
            ref_logprobs=jnp.zeros((pairs, 2)),
            weight=jnp.ones(pairs),
        )

    compared = by_rows(layout, jax.eval_shape(batch))
    run = Run(layout.step(one_step, state), (state, compared), outside="update", loops=("update",))
    return Parts((run,), {"parameters": state.params, "moments": state.opt_state}, None)


def _optimizer() -> Any:
    return make_optimizer(learning_rate=3e-6, total_steps=10**4)


def _cache(program: Program, network: gpt2.GPT2Config, rows: int) -> gpt2.Cache:
    # The last token drawn is never read.
    slots = program.prompt + program.response - 1
    return jax.eval_shape(lambda: gpt2.init_cache(network, rows, slots))


_MAKERS: dict[Steps, Callable[[Program, Partition], Parts]] = {
    "ppo": _ppo,
    "grpo": _grpo,
    "multi-turn": _multi_turn,
    "dpo": _dpo,
}

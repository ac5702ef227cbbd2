"""What PPO logs of a policy that does not learn: where the signatures' bands come from."""

import dataclasses

import jax
import optax

from rlhf_jax.data.batching import batch_indices
from rlhf_jax.evaluation.failure_signatures import SIGNATURES
from rlhf_jax.interfaces import Params
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import ppo
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.runtime.progress import Progress
from rlhf_jax.stages.agent import copied, policy_params
from rlhf_jax.stages.alignment import surface
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.setup import Setup


def before_learning(
    setup: Setup, trunk: Params, reward_model: Params, config: PPOConfig, *, batch_size: int, batches: int
) -> dict[str, list[float]]:
    """What PPO logs of a policy that does not learn: metric to one value a rollout batch, on contexts of the training split.

    The same program as training's, with one pass and an optimiser that changes nothing; replies are drawn with keys that
    training does not use.
    """
    agent, seed = setup.agent, setup.seed
    windows = Windows.of(setup, setup.corpus.train)
    turns = windows.turns()
    policy = policy_params(trunk, agent.network.n_embd)
    optimizer = optax.set_to_zero()
    state = ppo.init(policy, optimizer, config, stream_key(jax.random.key(seed), "before_learning", 0))
    iterate = ppo.make_ppo_iteration(
        sample=agent.sample,
        policy=agent.policy,
        score=agent.score,
        optimizer=optimizer,
        config=dataclasses.replace(config, epochs=1, minibatches=1),
    )
    reference = copied({"trunk": trunk})
    found: dict[str, list[float]] = {}
    with Progress("before learning", 0, batches) as progress:
        for index in range(batches):
            rows = batch_indices(len(turns), seed=seed, step=index, batch_size=batch_size)
            prompts = windows.batch([turns[row] for row in rows])
            state, metrics, rollout = iterate(state, prompts, reference, reward_model)
            for name, value in (metrics | surface(rollout, setup.vocab.rec)).items():
                if name in SIGNATURES:
                    found.setdefault(name, []).append(float(value))
            progress.show(index + 1, {})
    return found

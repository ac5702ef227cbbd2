"""Best-of-n: what the reward buys without learning; n samples of the imitating policy, of which the reward keeps one.

    y* = argmax_i s(x, y_i),   y_1 … y_n ~ π_ref(· | x)

s is what PPO would pay: normalised components, weighed, normalised and clipped, less the prices on length and a missing
`<eos>`. PPO's moments run along with the policy; here they are measured once, on the policy that is sampled from.
Source: Stiennon et al. 2020, arXiv:2009.01325.
"""

import dataclasses
import math
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Key

from rlhf_jax.data.batching import batch_indices
from rlhf_jax.decoding.draws import STREAM, keep_best
from rlhf_jax.equations.running import RunningMoments, initial_moments
from rlhf_jax.interfaces import Params, PromptBatch, Rollout
from rlhf_jax.keys import stream_key
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.learners.shaping import score_responses
from rlhf_jax.stages.agent import Agent
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.setup import Setup


class RewardMoments(NamedTuple):
    """Mean and deviation of the components and of their sum, as PPO's normalisation knows them."""

    components: RunningMoments
    score: RunningMoments


@dataclasses.dataclass(frozen=True, eq=False)
class BestOf:
    """How replies are chosen; whoever has them drawn names the policy and the reward model."""

    n: int
    """Draws a prompt; draw 0 is what plain sampling draws with the same key, so n = 1 is plain sampling."""
    config: PPOConfig
    """Weights, normalisation and prices of the reward."""
    moments: RewardMoments
    """What the components and the score are normalised with."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"best-of-n: n must be at least 1, got {self.n}")

    @property
    def kind(self) -> Hashable:
        """What a compiled program depends on; the moments are an argument of it."""
        return self.n, self.config


@runtime_checkable
class Draw(Protocol):
    """One reply to every prompt. A choice reads `reward_model` and its `RewardMoments`; plain samples read neither."""

    def __call__(
        self,
        policy: Params,
        reward_model: Params,
        moments: Any,
        prompts: PromptBatch,
        key: Key[Array, ""],
    ) -> Rollout: ...


def drawing(agent: Agent, best_of: BestOf | None) -> Draw:
    """How replies are drawn: plain samples, or the best of n by what PPO would pay, its moments as they are."""
    if best_of is None:
        return lambda policy, reward_model, moments, prompts, key: agent.sample(policy, prompts, key)
    n, config = best_of.n, best_of.config

    def choose(
        policy: Params, reward_model: Params, moments: RewardMoments, prompts: PromptBatch, key: Array
    ) -> Rollout:
        def pay(rollout: Rollout) -> Array:
            components = agent.score(reward_model, rollout)
            weights = config.component_weights
            return score_responses(components, rollout, *moments, weights, config, frozen=True)[1]

        return keep_best(lambda own: agent.sample(policy, prompts, own), pay, n, key)

    return choose


def reward_moments(
    setup: Setup, policy: Params, reward_model: Params, config: PPOConfig, *, batch_size: int, batches: int = 4
) -> RewardMoments:
    """PPO's moments after `batches` rollout batches of a policy that does not learn, on contexts of the training split."""
    agent, seed = setup.agent, setup.seed

    @jax.jit
    def add(
        moments: RewardMoments, policy: Params, reward_model: Params, prompts: PromptBatch, key: Array
    ) -> RewardMoments:
        rollout = agent.sample(policy, prompts, key)
        components = agent.score(reward_model, rollout)
        combined, _ = score_responses(components, rollout, *moments, config.component_weights, config)
        return RewardMoments(combined.component_moments, combined.score_moments)

    moments = RewardMoments(initial_moments((len(config.component_weights),)), initial_moments())
    for index, prompts in enumerate(_training_prompts(setup, batch_size=batch_size, n=batches)):
        key = stream_key(jax.random.key(seed), f"{STREAM}/moments", index)
        moments = add(moments, policy, reward_model, prompts, key)
    return moments


def kl_bound(n: int) -> float:
    """Upper bound of the KL of best-of-n to the policy it samples from, nats per response.

        KL ≤ log n − (n − 1)/n

    Source: Stiennon et al. 2020 (as an equality); Beirami et al. 2024, arXiv:2401.01879, theorem 3.1 (as a bound).

    Examples:
      >>> kl_bound(1), round(kl_bound(8), 3)
      (0.0, 1.204)
    """
    return math.log(n) - (n - 1) / n


def _training_prompts(setup: Setup, *, batch_size: int, n: int) -> Iterator[PromptBatch]:
    windows = Windows.of(setup, setup.corpus.train)
    turns = windows.turns()
    for step in range(n):
        rows: Any = batch_indices(len(turns), seed=setup.seed, step=step, batch_size=batch_size)
        yield windows.batch([turns[row] for row in rows])

"""A policy in conversation with the users of the simulated world, who know what its turns were worth."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.assessment.best_of_n import BestOf, drawing
from rlhf_jax.data.batching import pad_left, wrapped_batches
from rlhf_jax.data.windows import prompt_tokens, response_message
from rlhf_jax.equations.kl import kl_k1, kl_k3
from rlhf_jax.equations.masked import zero_padding
from rlhf_jax.interfaces import Message, Params, PromptBatch, Rollout
from rlhf_jax.simulators.conversation import ClosedLoopResult, evaluate_closed_loop, evaluate_recommender
from rlhf_jax.simulators.world import WorldConfig
from rlhf_jax.simulators.world_recommenders import (
    logged_recommender,
    oracle_recommender,
    popularity_recommender,
    random_recommender,
)
from rlhf_jax.stages.agent import Agent
from rlhf_jax.stages.reward import Proxy
from rlhf_jax.stages.setup import Setup

History = Sequence[Message]
ROWS = 64
"""Conversations that are answered in one pass, so that a crowd that shrinks needs one program and not one a size."""


class Responder:
    """The policy as one side of many conversations; remembers what the reward model thought of its turns."""

    def __init__(
        self,
        setup: Setup,
        params: Params,
        *,
        greedy: bool,
        proxy: Proxy | None = None,
        reference: Params | None = None,
        best_of: BestOf | None = None,
    ) -> None:
        if greedy and reference is not None:
            raise ValueError("the KL to a reference is that of sampled replies; these are greedy")
        if best_of is not None and (greedy or proxy is None):
            raise ValueError("best-of-n chooses among sampled replies, by a reward model")
        self._vocab, self._data, self._scorer = setup.vocab, setup.data, setup.scorer
        self._params, self._reference = params, reference
        self._reward_model, weights = (None, ()) if proxy is None else (proxy.model, proxy.weights)
        self._key, self._calls = jax.random.key(setup.seed), 0
        self._moments = best_of and best_of.moments
        self._rows = 0
        self._measured: dict[int, list[dict[str, float]]] = {}
        self._turn = setup.agent.compiled(
            ("turn", greedy, tuple(weights), best_of and best_of.kind),
            lambda: _compiled_turn(setup.agent, greedy, tuple(weights), best_of),
        )

    def __call__(self, histories: Sequence[History], numbers: Sequence[int]) -> list[Message]:
        """The next message of every conversation; `numbers` says which conversations these are."""
        key = jax.random.fold_in(self._key, self._calls)
        self._calls += 1
        size = max(8, 1 << (len(histories) - 1).bit_length())
        if self._moments is None:
            # The first crowd decides, and crowds shrink: one program for all of them. A row's draws hang on its number.
            self._rows = self._rows or min(ROWS, size)
            size = self._rows
        said: list[Message] = []
        for rows, own in wrapped_batches(len(histories), size):
            responses, columns = self._answers([histories[row] for row in rows], rows, key)
            for place in range(own if columns else 0):
                turns = self._measured.setdefault(numbers[rows[place]], [])
                turns.append({name: float(values[place]) for name, values in columns.items()})
            said += [response_message(self._vocab, row.tolist()) for row in responses[:own]]
        return said

    def _answers(
        self, histories: Sequence[History], rows: np.ndarray, key: Any
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Responses as tokens, and what is measured of them; `rows` numbers the random streams."""
        sequences = [
            prompt_tokens(self._vocab, history, window=self._data.window, context_tokens=self._data.context_tokens)
            for history in histories
        ]
        tokens, mask = pad_left(sequences, self._data.context_tokens, self._vocab.pad)
        scores = None if self._scorer is None else jnp.asarray(self._scorer.of_histories(histories))
        prompts = PromptBatch(tokens=jnp.asarray(tokens), mask=jnp.asarray(mask), item_scores=scores)
        arrays = self._params, self._reward_model, self._moments, self._reference
        responses, measured = self._turn(*arrays, prompts, key, jnp.asarray(rows, jnp.int32))
        return np.asarray(responses), {name: np.asarray(values) for name, values in measured.items()}

    @property
    def measured(self) -> dict[str, np.ndarray]:
        """Means over the turns of each conversation, in order of their numbers.

        `proxy_score` (the weighted score) with R_φ; with a reference also `kl_k1` and `kl_k3` (nats per reply) and
        `reply_tokens` (the reply's sampled tokens, <eos> included).
        """
        conversations = [self._measured[number] for number in sorted(self._measured)]
        names = conversations[0][0] if conversations else ()
        return {name: np.array([np.mean([turn[name] for turn in turns]) for turns in conversations]) for name in names}


def _compiled_turn(agent: Agent, greedy: bool, weights: tuple[float, ...], best_of: BestOf | None) -> Any:
    """One program for all responders of a kind: every evaluation has a responder of its own."""
    alpha = jnp.asarray(weights, jnp.float32)
    draw = drawing(agent, best_of)

    def turn(
        params: Params,
        reward_model: Params | None,
        moments: Any,
        reference: Params | None,
        prompts: PromptBatch,
        key: Any,
        rows: Any,
    ) -> tuple[Any, dict[str, Any]]:
        if best_of is not None:
            # All in one batch, numbered from 0.
            rollout = draw(params, reward_model, moments, prompts, key)
        elif greedy:
            rollout = agent.greedy(params, prompts, key, None)
        else:
            rollout = agent.sample_rows(params, prompts, key, rows)
        measured = {} if reward_model is None else {"proxy_score": agent.score(reward_model, rollout) @ alpha}
        if reference is not None:
            measured |= distance(agent, reference, rollout)
        return rollout.response_tokens, measured

    return jax.jit(turn)


def distance(agent: Agent, reference: Params, rollout: Rollout) -> dict[str, Any]:
    """How far sampled replies lie from a reference policy, one number per reply [B]; to be called inside jit.

        k1 = Σ_t d_t,   k3 = Σ_t (e^{−d_t} − 1 + d_t),   d_t = log π(a_t) − log π_ref(a_t), both tempered and masked

    The mean of either estimates the KL of the reply in nats; k3 is never negative. Source: `equations.kl`.
    `reply_tokens` counts sampled tokens, <eos> included.
    """
    logprobs = zero_padding(rollout.logprobs, rollout.response_mask)
    judged = agent.policy(reference, rollout).logprobs
    return {
        "kl_k1": jnp.sum(kl_k1(logprobs, judged), axis=1),
        "kl_k3": jnp.sum(kl_k3(logprobs, judged), axis=1),
        "reply_tokens": jnp.sum(rollout.response_mask, axis=1).astype(jnp.float32),
    }


def meet_users(responder: Responder, setup: Setup, *, n_users: int, n_turns: int) -> dict[str, np.ndarray]:
    """Closed loop with users of the simulated world: metric to one value per user."""
    assert setup.world_seed is not None
    result = evaluate_closed_loop(responder, setup.data.world, setup.world_seed, n_users=n_users, n_turns=n_turns)
    return per_user(result) | responder.measured


def yardsticks(world: WorldConfig, world_seed: int, *, n_users: int, n_turns: int) -> dict[str, dict[str, np.ndarray]]:
    """What recommenders that need no training give the users that a policy meets: metric to one value a user."""
    recommenders = {
        "random": random_recommender,
        "popularity": popularity_recommender,
        "logged": logged_recommender(world),
        "oracle": oracle_recommender,
    }
    found = {}
    for name, recommender in recommenders.items():
        result = evaluate_recommender(recommender, world, world_seed, n_users=n_users, n_turns=n_turns)
        found[name] = per_user(result)
    return found


def closed_loop_probe(
    setup: Setup, proxy: Proxy, *, n_users: int, n_turns: int
) -> Callable[[Params, int], dict[str, float]] | None:
    """True utility while PPO runs, on the sampled policy; None where no world knows the truth."""
    if setup.world_seed is None:
        return None

    def probe(params: Params, updates: int) -> dict[str, float]:
        del updates
        responder = Responder(setup, params, greedy=False, proxy=proxy)
        values = meet_users(responder, setup, n_users=n_users, n_turns=n_turns)
        return {f"world/{metric}": float(np.mean(per)) for metric, per in values.items()}

    return probe


def per_user(result: ClosedLoopResult) -> dict[str, np.ndarray]:
    """What the closed-loop results average: one value per user and metric."""
    return {
        "mean_utility": result.mean_utility,
        "first_utility": result.first_utility,
        "average_turns": result.turns.astype(float),
        "mean_length": result.mean_length,
        "dwell_seconds": result.dwell_seconds,
        **{f"success@{t + 1}": result.success[:, t].astype(float) for t in range(result.success.shape[1])},
    }

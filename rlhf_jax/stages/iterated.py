"""Iterated PPO: the other way to learn from conversations, one turn at a time.

SMTPO credits a turn with what this very conversation was paid later. Here the later turns are forecast. In each round

    1. the policy of its beginning converses: N openings × G conversations, drawn; a turn's return is
           R_k = Σ_{j ≥ k} γ^{j−k} Σ_c w_c r^c_j
    2. a GPT-2 with a scalar head learns to tell it from window and reply:   min E (Q(s_k, y_k) − R_k)²
    3. single-turn reinforcement learning in the states of these conversations: G replies to each, paid Q(s_k, y)

If Q is right, step 3 is a step of policy improvement: better now, and afterwards as the old policy. What Q is worth is logged on
openings that it did not learn from. Replies to one opening are compared by Q; where it orders them no better than chance
(`validation/ordered` .5), step 3 learns noise.

Source: Iterative PPO, arXiv:2511.21638, which reduces several turns to single-turn problems. Its single-turn learner has a value
function, ours compares the replies of a group; rounds and sizes are our choice.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Key

from rlhf_jax.data.batching import batch_indices, wrapped_batches
from rlhf_jax.equations.ppo import explained_variance
from rlhf_jax.evaluation.association import agreeing_pairs
from rlhf_jax.interfaces import Params, PromptBatch, Rollout
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import multi_turn as turn_learner
from rlhf_jax.learners import sft
from rlhf_jax.learners.microbatch import LossSums
from rlhf_jax.learners.multi_turn import Episodes, MultiTurnState
from rlhf_jax.learners.multi_turn_config import MultiTurnConfig
from rlhf_jax.learners.optimizer import TrainState, learning_rate_schedule, make_optimizer, steps_taken
from rlhf_jax.models import gpt2, heads
from rlhf_jax.ranges import Batch, Rate, Share, Steps, check_numbers
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.runtime.stage import Best, StagePlan, run_stage
from rlhf_jax.stages.agent import copied, policy_params
from rlhf_jax.stages.episodes import Seekers, converse
from rlhf_jax.stages.multi_turn import ConversationsConfig, kept, policy_optimizer
from rlhf_jax.stages.reasoning import Recommender, openings_of

STAGE = "multi_turn-iterated"
RETURN = "return"
"""What a single turn is paid: one component, Q."""


@dataclasses.dataclass(frozen=True)
class IteratedConfig:
    """How many rounds, and how large; all else is `--conversations` and `--learner`."""

    rounds: Steps = 4
    """Logs, forecasts and improvements."""
    logged: Batch = 64
    """Openings of a round's log, with `--conversations.group-size` conversations each."""
    held_out: Share = 0.125
    """Share of these openings that Q is judged on and does not learn from."""
    steps: Steps = 200
    """Optimiser steps of Q in a round."""
    batch_size: Batch = 64
    """Turns of such a step."""
    learning_rate: Rate = 5e-4
    """Peak of its cosine schedule."""
    weight_decay: Share = 0.05
    """AdamW's, on matrices."""
    evaluations: Steps = 4
    """Of Q in a round, on what is held out; the best state is kept."""
    updates: Steps = 10
    """Of the policy in a round."""
    states: Batch = 64
    """Logged windows that an update replies to, with `--conversations.group-size` replies each."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if not 0 < round(self.held_out * self.logged) < self.logged:
            raise ValueError(
                f"held_out {self.held_out:g} of logged {self.logged} openings leaves none to judge Q on, or none to learn from"
            )


class Log(NamedTuple):
    """Turns that were had, opening by opening."""

    turns: Rollout
    """Windows, candidates and replies. [M]"""
    returns: Float32[np.ndarray, " M"]
    """R_k, reward units."""
    opening: np.ndarray
    """Which of the log's openings; int [M]"""
    first: Bool[np.ndarray, " M"]
    """Where the turn is the first of its conversation: turns of one opening whose windows are the same."""

    def part(self, rows: np.ndarray) -> Rollout:
        """Some of the turns."""
        return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[rows]), self.turns)


def returns_of_turns(
    rewards: Float[np.ndarray, "R T C"], running: Bool[np.ndarray, "R T"], weights: tuple[float, ...], gamma: float
) -> Float32[np.ndarray, "R T"]:
    """R_k = Σ_{j ≥ k} γ^{j−k} Σ_c w_c r^c_j over the turns that were had; 0 after the end.

    Examples:
      >>> rewards, running = np.array([[[1.0], [4.0], [9.0]]]), np.array([[True, True, False]])
      >>> returns_of_turns(rewards, running, (2.0,), 0.5).tolist()
      [[6.0, 8.0, 0.0]]
    """
    paid = np.where(running, rewards @ np.array(weights), 0.0)
    found = np.zeros(paid.shape)
    after = np.zeros(len(paid))
    for turn in reversed(range(paid.shape[1])):
        after = found[:, turn] = paid[:, turn] + gamma * after
    return found.astype(np.float32)


def value(params: Params, turns: Rollout, *, network: gpt2.GPT2Config) -> Float[Array, " B"]:
    """Q(s, y), standardised units, read where the reply ends."""
    tokens = jnp.concatenate([turns.prompt_tokens, turns.response_tokens], axis=1)
    mask = jnp.concatenate([turns.prompt_mask, turns.response_mask], axis=1)
    hidden = gpt2.hidden_states(network, params["trunk"], tokens, mask)
    return heads.value(params["value"], heads.last_token_hidden(hidden, mask))


def value_loss(
    params: Params, batch: tuple[Rollout, Array], key: Key[Array, ""] | None, *, network: gpt2.GPT2Config
) -> LossSums:
    """Σ (Q − R)², R standardised by the round's log."""
    del key
    turns, returns = batch
    squares = jnp.square(value(params, turns, network=network) - returns)
    return LossSums(loss=jnp.sum(squares), count=jnp.float32(len(returns)), parts={}, maxima={})


class _Round:
    """One round: its log is made when it is first needed, from the policy that begins, and again if a run was cut short."""

    def __init__(
        self,
        recommender: Recommender,
        seekers: Seekers,
        params: Params,
        settings: tuple[ConversationsConfig, MultiTurnConfig, IteratedConfig],
        number: int,
    ) -> None:
        self._recommender, self._seekers, self._params, self._settings = recommender, seekers, params, settings
        self._number = number
        self.key = jax.random.fold_in(stream_key(jax.random.key(recommender.setup.seed), STAGE, 0), number)

    @functools.cached_property
    def log(self) -> Log:
        """1. Conversations of the policy as it is."""
        talk, learner, config = self._settings
        setup = self._recommender.setup
        pool = openings_of(setup.corpus.train)
        chosen = batch_indices(len(pool), seed=setup.seed, step=self._number, batch_size=config.logged)
        begun = [pool[row] for row in chosen for _ in range(talk.group_size)]
        draw = setup.agent.compiled("drawn turn", lambda: jax.jit(setup.agent.sample))
        found = converse(self._recommender, draw, self._params, self._seekers, begun, n_turns=talk.turns, key=self.key)
        returns = returns_of_turns(found.rewards, found.running, learner.component_weights, learner.gamma)
        rows, turns = np.nonzero(found.running)
        stacked = [jax.tree.map(np.asarray, one) for one in found.rollouts]
        picked = [
            jax.tree.map(lambda leaf, own=rows[turns == turn]: leaf[own], one) for turn, one in enumerate(stacked)
        ]
        order = np.argsort(turns, kind="stable")
        rows, turns = rows[order], turns[order]
        return Log(
            turns=jax.tree.map(lambda *leaves: np.concatenate(leaves), *picked),
            returns=returns[rows, turns],
            opening=rows // talk.group_size,
            first=turns == 0,
        )

    @functools.cached_property
    def scale(self) -> tuple[float, float]:
        """Mean and deviation of the log's returns."""
        return float(self.log.returns.mean()), float(self.log.returns.std()) + 1e-6

    @functools.cached_property
    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Turns that Q learns from, and those of the last openings, that it is judged on."""
        _, _, config = self._settings
        held = self.log.opening >= config.logged - round(config.held_out * config.logged)
        return np.flatnonzero(~held), np.flatnonzero(held)

    def forecast(self, run: RunDirectory, begin: Params) -> Params:
        """2. Q, from the trunk that the policy began with."""
        _, _, config = self._settings
        setup = self._recommender.setup
        schedule: Any = {
            "learning_rate": config.learning_rate,
            "warmup_steps": min(20, config.steps // 2),
            "total_steps": config.steps,
            "schedule": "cosine",
        }
        rate = learning_rate_schedule(**schedule)
        optimizer = make_optimizer(**schedule, weight_decay=config.weight_decay)
        loss = functools.partial(value_loss, network=setup.network)

        @functools.partial(jax.jit, donate_argnums=0)
        def step(state: TrainState, batch: tuple[Rollout, Array]) -> tuple[TrainState, dict[str, Array]]:
            used = jnp.asarray(rate(steps_taken(state.opt_state)))
            state, metrics = sft.update(state, batch, self.key, loss_fn=loss, optimizer=optimizer)
            return state, metrics | {"learning_rate": used}

        def update(state: TrainState, index: int) -> tuple[TrainState, dict[str, Any]]:
            learnt, _ = self.parts
            chosen = learnt[batch_indices(len(learnt), seed=setup.seed, step=index, batch_size=config.batch_size)]
            mean, deviation = self.scale
            return step(state, (self.log.part(chosen), jnp.asarray((self.log.returns[chosen] - mean) / deviation)))

        def evaluate(state: TrainState, index: int) -> dict[str, float]:
            del index
            _, held = self.parts
            return judged_values(self.values(state.params, held), self.log, held)

        every = max(1, config.steps // config.evaluations)
        final = run_stage(
            run,
            sft.init(policy_params(begin["trunk"], setup.network.n_embd), optimizer),
            update,
            StagePlan(
                f"value-iterated-{self._number}",
                config.steps,
                save_every=every,
                log_every=max(1, config.steps // 20),
                on_eval=evaluate,
                eval_every=every,
                best=Best("validation/explained", "max", None),
            ),
        )
        return final.params

    def values(self, params: Params, rows: np.ndarray, *, chunk: int = 128) -> Float32[np.ndarray, " N"]:
        """Q of some of the log's turns."""
        network = self._recommender.setup.network
        judge = self._recommender.setup.agent.compiled(
            "value of turns", lambda: jax.jit(functools.partial(value, network=network))
        )
        found = np.zeros(len(rows), np.float32)
        for places, own in wrapped_batches(len(rows), chunk):
            found[places[:own]] = np.asarray(judge(params, self.log.part(rows[places])))[:own]
        return found

    def improve(self, run: RunDirectory, reference: Params, forecast: Params) -> Params:
        """3. Replies in logged states, paid by the forecast; returns the policy's tree."""
        talk, learner, config = self._settings
        setup = self._recommender.setup
        # One component, one turn: what is left of the settings is epochs, clip, KL and average.
        single = dataclasses.replace(
            learner, component_names=(RETURN,), component_weights=(1.0,), credit="turn", gamma=1.0, ptx_coef=0.0
        )
        steps = config.updates * learner.epochs * learner.minibatches
        warmup = min(talk.warmup_steps, steps // 2)
        optimizer, next_rate = policy_optimizer(dataclasses.replace(talk, warmup_steps=warmup), steps)
        learn = turn_learner.make_learn(policy=setup.agent.policy, optimizer=optimizer, config=single)
        draw = setup.agent.compiled("drawn turn", lambda: jax.jit(setup.agent.sample))
        judge = setup.agent.compiled("value of turns", lambda: jax.jit(functools.partial(value, network=setup.network)))
        state = turn_learner.init(self._params, optimizer, single, self.key)

        def update(state: MultiTurnState, index: int) -> tuple[MultiTurnState, dict[str, Any]]:
            n_turns = len(self.log.returns)
            chosen = batch_indices(n_turns, seed=setup.seed, step=index, batch_size=config.states)
            states = self.log.part(np.repeat(chosen, talk.group_size))
            prompts = PromptBatch(
                tokens=states.prompt_tokens,
                mask=states.prompt_mask,
                item_scores=states.item_scores,
                candidates=states.candidates,
            )
            start = {"learning_rate": next_rate(state.opt_state)}
            rollout = draw(state.params, prompts, jax.random.fold_in(self.key, index + 1))
            shape = (config.states, talk.group_size, 1)
            paid = jnp.concatenate([judge(forecast, part) for part in _in_parts(rollout, 128)])
            episodes = Episodes(rollout=rollout, rewards=paid.reshape(*shape, 1), running=jnp.ones(shape, bool))
            state, metrics = learn(state, episodes, reference)
            return state, {**metrics, **start}

        final = run_stage(
            run,
            state,
            update,
            StagePlan(
                f"{STAGE}-{self._number}",
                config.updates,
                save_every=talk.save_every,
                log_every=1,
                steps_per_update=learner.epochs * learner.minibatches,
                advice="a lower --conversations.learning-rate",
            ),
        )
        return kept(final)


def judged_values(values: Float32[np.ndarray, " N"], log: Log, rows: np.ndarray) -> dict[str, float]:
    """What a forecast is worth on turns it did not learn from.

    Returns: `validation/explained`, the share of the returns' variance that it foresaw; `validation/ordered`, of pairs of replies
      to one opening with different returns the share that it puts in the same order, ties half; .5 where there is none.
    """
    returns, mean, deviation = log.returns[rows], log.returns.mean(), log.returns.std() + 1e-6
    explained = explained_variance(
        jnp.asarray(values * deviation + mean), jnp.asarray(returns), jnp.ones(len(rows), bool)
    )
    agree = pairs = 0.0
    for opening in np.unique(log.opening[rows]):
        same = (log.opening[rows] == opening) & log.first[rows]
        own = agreeing_pairs(values[same].astype(np.float64), returns[same].astype(np.float64))
        agree, pairs = agree + own[0], pairs + own[1]
    return {"validation/explained": float(explained), "validation/ordered": agree / pairs if pairs else 0.5}


def train(
    run: RunDirectory,
    recommender: Recommender,
    seekers: Seekers,
    params: Params,
    talk: ConversationsConfig,
    learner: MultiTurnConfig,
    config: IteratedConfig,
) -> Params:
    """All rounds; returns the policy's tree. On one device.

    Args:
      seekers: who answer between turns of the logs.
      params: the policy that begins and, frozen, the reference.
      talk: group size, turns, rate, warm-up of each round.
      learner: weights of the components, γ, clip, KL, epochs.
    """
    reference = copied(params)
    for number in range(config.rounds):
        one = _Round(recommender, seekers, params, (talk, learner, config), number)
        params = one.improve(run, reference, one.forecast(run, reference))
    return params


def _in_parts(rollout: Rollout, size: int) -> list[Rollout]:
    n = rollout.response_tokens.shape[0]
    return [jax.tree.map(lambda leaf, begin=begin: leaf[begin : begin + size], rollout) for begin in range(0, n, size)]

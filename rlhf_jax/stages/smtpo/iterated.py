"""Iterated PPO: the other way to learn from conversations, one turn at a time.

SMTPO credits a turn with what this very conversation was paid later. Here what comes is forecast. In each round

    1. the policy at its beginning converses: N openings × G conversations, drawn; every turn has its credit A_k, as line 5d of
       docs/algorithms/smtpo.md gives it to a whole turn
    2. a GPT-2 with a scalar head learns to tell it from window and reply:   min E (Q(s_k, y_k) − A_k)²
    3. single-turn reinforcement learning in the states of these conversations: G replies to each, paid Q(s_k, y)

If Q is right, step 3 is a step of policy improvement: better now, and afterwards as the old policy. What Q is worth is logged on
openings that it did not learn from. Replies to one opening are compared by Q; where it orders them no better than chance
(`validation/ordered` .5), step 3 learns noise.

We do not forecast the plain return. A list with gold ends the conversation, so that later turns pay nothing more: in the plain sum a
hit is worth less than a miss. Replies are compared within their group, by the first formula of 5d.

Source: Iterative PPO, arXiv:2511.21638, which reduces several turns to single-turn problems. Its single-turn learner has a value
function, ours compares the replies of a group; rounds, sizes and the credit that is forecast are our choice.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Key

from rlhf_jax.data.batching import batch_indices, wrapped_batches
from rlhf_jax.equations.group import turn_advantages
from rlhf_jax.equations.ppo import explained_variance
from rlhf_jax.evaluation.association import agreeing_pairs
from rlhf_jax.interfaces import Params, PromptBatch, Rollout
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import multi_turn as turn_learner
from rlhf_jax.learners import sft
from rlhf_jax.learners.microbatch import LossSums
from rlhf_jax.learners.multi_turn import Episodes, MultiTurnState
from rlhf_jax.learners.multi_turn_config import MultiTurnConfig
from rlhf_jax.learners.optimizer import TrainState, falling_by_cosine, steps_taken
from rlhf_jax.learners.trainable import held, policy_optimizer, with_prior_rate
from rlhf_jax.models import gpt2, heads
from rlhf_jax.ranges import Batch, Rate, Share, Steps, check_numbers, option
from rlhf_jax.runtime.files import notice
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.runtime.stage import Best, StagePlan, run_stage
from rlhf_jax.stages.agent import copied, policy_params
from rlhf_jax.stages.smtpo.episodes import Seekers, converse
from rlhf_jax.stages.smtpo.human_turns import openings_of
from rlhf_jax.stages.smtpo.multi_turn import ConversationsConfig, greedy_success, kept
from rlhf_jax.stages.smtpo.recommender import Recommender

STAGE = "multi_turn-iterated"
FORECAST = "forecast"
"""What a single turn is paid: one component, Q."""


@dataclasses.dataclass(frozen=True)
class IteratedConfig:
    """How many rounds, and how large. Group size, turns and rates are those of the conversations, clip, KL, epochs and average
    those of the learner."""

    rounds: Steps = 4
    """Logs, forecasts and improvements."""
    logged: Batch = 64
    """Openings of a round's log, with as many conversations each as a group has."""
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
    states: Batch = 24
    """Logged windows that an update replies to, with as many replies each as a group has."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if not 0 < round(self.held_out * self.logged) < self.logged:
            raise ValueError(
                f"{option(self, 'held_out')} {self.held_out:g} of {option(self, 'logged')} {self.logged} openings leaves none to judge Q on, "
                "or none to learn from"
            )


class Log(NamedTuple):
    """Turns that were had, opening by opening."""

    turns: Rollout
    """Windows, candidates and replies. [M]"""
    credit: Float32[np.ndarray, " M"]
    """A_k of line 5d."""
    opening: np.ndarray
    """Which of the log's openings; int [M]"""
    first: Bool[np.ndarray, " M"]
    """Where the turn is the first of its conversation: turns of one opening whose windows are the same."""

    def part(self, rows: np.ndarray) -> Rollout:
        """Some of the turns."""
        return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[rows]), self.turns)


def value(params: Params, turns: Rollout, *, network: gpt2.GPT2Config) -> Float[Array, " B"]:
    """Q(s, y), standardised units, read where the reply ends."""
    tokens = jnp.concatenate([turns.prompt_tokens, turns.response_tokens], axis=1)
    mask = jnp.concatenate([turns.prompt_mask, turns.response_mask], axis=1)
    hidden = gpt2.hidden_states(network, params["trunk"], tokens, mask)
    return heads.value(params["value"], heads.last_token_hidden(hidden, mask))


def value_loss(
    params: Params, batch: tuple[Rollout, Array], key: Key[Array, ""] | None, *, network: gpt2.GPT2Config
) -> LossSums:
    """Σ (Q − A)², A divided by its deviation in the round's log."""
    del key
    turns, credit = batch
    squares = jnp.square(value(params, turns, network=network) - credit)
    return LossSums(loss=jnp.sum(squares), count=jnp.float32(len(credit)), parts={}, maxima={})


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
        key = stream_key(self.key, "talk", 0)
        found = converse(self._recommender, draw, self._params, self._seekers, begun, n_turns=talk.turns, key=key)
        notice(
            f"{STAGE}-{self._number}: {len(begun)} conversations logged, success {found.success[:, -1].mean():.3f} as drawn"
        )
        shape = (config.logged, talk.group_size, talk.turns)
        of_group = functools.partial(turn_advantages, gamma=learner.gamma, decoupled=learner.decoupled)
        credit = jax.vmap(of_group, in_axes=(0, 0, None))(
            jnp.asarray(found.rewards).reshape(*shape, -1),
            jnp.asarray(found.running).reshape(shape),
            jnp.array(learner.component_weights, jnp.float32),
        )
        credit = np.asarray(credit).reshape(found.running.shape)
        rows, turns = np.nonzero(found.running)
        stacked = [jax.tree.map(np.asarray, one) for one in found.rollouts]
        picked = [
            jax.tree.map(lambda leaf, own=rows[turns == turn]: leaf[own], one) for turn, one in enumerate(stacked)
        ]
        order = np.argsort(turns, kind="stable")
        rows, turns = rows[order], turns[order]
        return Log(
            turns=jax.tree.map(lambda *leaves: np.concatenate(leaves), *picked),
            credit=credit[rows, turns],
            opening=rows // talk.group_size,
            first=turns == 0,
        )

    @functools.cached_property
    def deviation(self) -> float:
        """Of the log's credit."""
        return float(self.log.credit.std()) + 1e-6

    @functools.cached_property
    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Turns that Q learns from, and those of the last openings, that it is judged on."""
        _, _, config = self._settings
        judged = self.log.opening >= config.logged - round(config.held_out * config.logged)
        return np.flatnonzero(~judged), np.flatnonzero(judged)

    def forecast(self, run: RunDirectory, begin: Params) -> Params:
        """2. Q, from the trunk that the policy began with."""
        _, _, config = self._settings
        setup = self._recommender.setup
        rate, optimizer = falling_by_cosine(
            config.learning_rate,
            warmup_steps=20,
            total_steps=config.steps,
            weight_decay=config.weight_decay,
        )
        loss = functools.partial(value_loss, network=setup.network)

        @functools.partial(jax.jit, donate_argnums=0)
        def step(state: TrainState, batch: tuple[Rollout, Array]) -> tuple[TrainState, dict[str, Array]]:
            used = jnp.asarray(rate(steps_taken(state.opt_state)))
            state, metrics = sft.update(state, batch, self.key, loss_fn=loss, optimizer=optimizer)
            return state, metrics | {"learning_rate": used}

        def update(state: TrainState, index: int) -> tuple[TrainState, dict[str, Any]]:
            learnt, _ = self.parts
            chosen = learnt[batch_indices(len(learnt), seed=setup.seed, step=index, batch_size=config.batch_size)]
            return step(state, (self.log.part(chosen), jnp.asarray(self.log.credit[chosen] / self.deviation)))

        def evaluate(state: TrainState, index: int) -> dict[str, float]:
            del index
            _, rows = self.parts
            return judged_values(self.values(state.params, rows), self.log, rows)

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
        # One component, one turn. What is left: epochs, clip, KL, average, and `decoupled`: Q less its mean, by its deviation in the group.
        single = dataclasses.replace(
            learner, component_names=(FORECAST,), component_weights=(1.0,), credit="turn", gamma=1.0, ptx_coef=0.0
        )
        steps = config.updates * learner.epochs * learner.minibatches
        warmup = min(talk.warmup_steps, steps // 2)
        optimizer, next_rate = policy_optimizer(dataclasses.replace(talk, warmup_steps=warmup), steps)
        optimizer = with_prior_rate(optimizer, talk.prior_rate)
        policy = held(setup.agent.policy, talk.trainable)
        learn = turn_learner.make_learn(policy=policy, optimizer=optimizer, config=single)
        draw = setup.agent.compiled("drawn turn", lambda: jax.jit(setup.agent.sample))
        judge = setup.agent.compiled("value of turns", lambda: jax.jit(functools.partial(value, network=setup.network)))
        state = turn_learner.init(self._params, optimizer, single, stream_key(self.key, "learner", 0))
        evaluate = greedy_success(self._recommender, self._seekers, talk, key=self.key)

        def update(state: MultiTurnState, index: int) -> tuple[MultiTurnState, dict[str, Any]]:
            n_turns = len(self.log.credit)
            chosen = batch_indices(n_turns, seed=setup.seed, step=index, batch_size=config.states)
            states = self.log.part(np.repeat(chosen, talk.group_size))
            prompts = PromptBatch(
                tokens=states.prompt_tokens,
                mask=states.prompt_mask,
                item_scores=states.item_scores,
                candidates=states.candidates,
            )
            start = {"learning_rate": next_rate(state.opt_state)}
            rollout = draw(state.params, prompts, stream_key(self.key, "replies", index))
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
                advice="a lower learning rate",
                on_eval=None if evaluate is None else lambda state, _: evaluate(kept(state)),
                eval_every=None if evaluate is None else config.updates,
            ),
        )
        return kept(final)


def judged_values(values: Float32[np.ndarray, " N"], log: Log, rows: np.ndarray) -> dict[str, float]:
    """What a forecast is worth on turns it did not learn from.

    Returns: `validation/explained`, the share of the credit's variance that it foresaw; `validation/ordered`, of pairs of replies
      to one opening with different credit the share that it puts in the same order, ties half; .5 where there is none.
    """
    credit = log.credit[rows]
    scale = log.credit.std() + 1e-6
    explained = explained_variance(jnp.asarray(values * scale), jnp.asarray(credit), jnp.ones(len(rows), bool))
    agree = pairs = 0.0
    for opening in np.unique(log.opening[rows]):
        same = (log.opening[rows] == opening) & log.first[rows]
        own = agreeing_pairs(values[same].astype(np.float64), credit[same].astype(np.float64))
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
      talk: group size, turns, rates, warm-up, what moves, and what validation reads; replies are drawn in one part.
      learner: weights of the components, γ, clip, KL, epochs, average. Human turns (`ptx_coef`) are not mixed in.
    """
    reference = copied(params)
    for number in range(config.rounds):
        one = _Round(recommender, seekers, params, (talk, learner, config), number)
        params = one.improve(run, reference, one.forecast(run, reference))
    return params


def _in_parts(rollout: Rollout, size: int) -> list[Rollout]:
    n = rollout.response_tokens.shape[0]
    return [jax.tree.map(lambda leaf, begin=begin: leaf[begin : begin + size], rollout) for begin in range(0, n, size)]

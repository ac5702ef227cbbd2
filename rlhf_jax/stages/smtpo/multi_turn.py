"""Line 5 of SMTPO (docs/algorithms/smtpo.md): a reasoning policy learns from conversations with a simulated seeker, turn by turn.

An update draws N openings of the training split and runs G conversations from each, in step; what every turn is paid
becomes the credit of its tokens (`learners/multi_turn.py`). One turn instead of several is the usual, single-turn kind of
reinforcement learning: then no seeker answers.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.batching import batch_indices
from rlhf_jax.interfaces import Params, PromptBatch, Rollout
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import multi_turn
from rlhf_jax.learners.multi_turn import Episodes, MultiTurnState
from rlhf_jax.learners.multi_turn_config import MultiTurnConfig
from rlhf_jax.learners.trainable import Trainable, held, policy_optimizer, with_prior_rate
from rlhf_jax.ranges import Batch, Norm, Range, Rate, Size, Steps, check_numbers
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.runtime.stage import StagePlan, run_stage
from rlhf_jax.stages.agent import copied, on_mesh
from rlhf_jax.stages.smtpo.episodes import COMPONENTS, Seekers, Speak, Turns, converse
from rlhf_jax.stages.smtpo.human_turns import openings_of, reasoned_turns
from rlhf_jax.stages.smtpo.reasoning import Demonstrations
from rlhf_jax.stages.smtpo.recommender import Recommender
from rlhf_jax.stages.smtpo.seeker import SeekerSimulator

STAGE = "multi_turn"


@dataclasses.dataclass(frozen=True)
class ConversationsConfig:
    """How long and how fast the stage goes; what an update does with its turns is `--learner`."""

    updates: Steps = 40
    """Batches of conversations."""
    openings: Batch = 8
    """Dialogues that an update begins from."""
    group_size: Annotated[int, Range("[2, 1_024]")] = 8
    """Conversations from each."""
    turns: Annotated[int, Range("[1, 5]")] = 4
    """Turns of a conversation at most; 1 is single-turn reinforcement learning."""
    draws: Annotated[int, Range("[1, 65_536]")] = 1
    """Equal parts that a turn's replies are drawn in, one after the other: other draws, and less memory."""
    temperature: Annotated[float, Range("[0.01, 100]")] = 1.0
    """Divides the logits of policy and reference, in sampling and in learning."""
    learning_rate: Rate = 5e-5
    """Start of the linear schedule to 0."""
    prior_rate: Annotated[float, Range("(0, 10_000]")] = 1.0
    """Learning rate of the prior's weights over items, as a multiple of `learning_rate`."""
    warmup_steps: Annotated[int, Range("[0, 1_000_000]")] = 0
    """Optimiser steps until the start of the schedule."""
    max_grad_norm: Norm = 1.0
    """Limit of the gradient's global norm."""
    adam_eps: Annotated[float, Range("(0, 1]")] = 1e-5
    """ε of Adam."""
    trainable: Trainable = "all"
    """What moves: every parameter, the `heads`, or the `prior` over items alone; as `--align.trainable` of the main job."""
    save_every: Steps = 5
    """Updates between checkpoints."""
    evaluations: Steps = 4
    """During the stage: greedy conversations from validation openings with the simulator that trains."""
    validation_openings: Size = 64
    """Conversations of an evaluation at most."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.openings * self.group_size % self.draws:
            raise ValueError(
                f"--conversations.openings {self.openings} × --conversations.group-size {self.group_size} replies cannot be drawn in "
                f"--conversations.draws {self.draws} equal parts"
            )

    def first_turns(self) -> "ConversationsConfig":
        """The single-turn control: as many turns as these conversations have at most, each the first one of its own, and as many
        rows at once.

        Raises: ValueError naming the option, where that is more than an update may have.
        """
        return dataclasses.replace(self, turns=1, openings=self.openings * self.turns, draws=self.draws * self.turns)


def speaker(recommender: Recommender, *, greedy: bool) -> Speak:
    """Compiled replies of one device's policy: drawn, or the likeliest token each time."""
    agent = recommender.setup.agent
    if greedy:
        return agent.compiled(
            "greedy turn", lambda: jax.jit(lambda params, prompts, key: agent.greedy(params, prompts, key, None))
        )
    return agent.compiled("drawn turn", lambda: jax.jit(agent.sample))


def train(
    run: RunDirectory,
    recommender: Recommender,
    seekers: Seekers,
    params: Params,
    config: ConversationsConfig,
    learner: MultiTurnConfig,
    *,
    stage: str = STAGE,
) -> Params:
    """Runs the stage and returns the policy's tree.

    Args:
      seekers: who answer between turns.
      params: the policy that begins and, frozen, the reference.
      stage: names the checkpoints and the lines of `metrics.jsonl`.
    Raises: RunError where no training dialogue has an opening.
    """
    setup, layout = recommender.setup, recommender.setup.layout
    spread = on_mesh(setup.agent, layout)
    pool = openings_of(setup.corpus.train)
    if not pool:
        raise RunError(f"{STAGE}: no seeker of the training split is known to like what the recommender named first")
    n_rows = config.openings * config.group_size
    human = None
    if learner.ptx_coef > 0:
        # An order of its own: not the very turns that the policy has just learnt.
        human = Demonstrations(recommender, reasoned_turns(setup.corpus.train), seed=setup.seed + 1)
    optimizer, next_rate = policy_optimizer(config, config.updates * learner.epochs * learner.minibatches)
    optimizer = with_prior_rate(optimizer, config.prior_rate)
    key = stream_key(jax.random.key(setup.seed), STAGE, 0)
    state = layout.place(multi_turn.init(params, optimizer, learner, key))
    outputs = layout.outputs(state)
    learn = layout.together(
        multi_turn.make_learn(
            policy=held(spread.policy, config.trainable),
            optimizer=optimizer,
            config=learner,
            out_shardings=None if outputs is None else outputs[:2],
        ),
        stage,
    )
    draw = layout.together(jax.jit(spread.sample), f"{stage}/turn")
    reference = layout.place(copied(params))
    outside = Stopwatch()

    def speak(params: Params, prompts: PromptBatch, key: Any) -> Rollout:
        """Replies of all rows, on the layout's devices, back on this one."""
        size, drawn = n_rows // config.draws, []
        for number in range(config.draws):
            begin = number * size
            part = jax.tree.map(lambda leaf, begin=begin: np.asarray(leaf)[begin : begin + size], prompts)
            placed = layout.batch(size, lambda own, part=part: jax.tree.map(lambda leaf: leaf[own], part))
            own_key = key if config.draws == 1 else jax.random.fold_in(key, number)
            with outside.inside():
                drawn.append(jax.block_until_ready(layout.fetch(draw(params, placed, layout.same(own_key)))))
        return drawn[0] if config.draws == 1 else jax.tree.map(lambda *parts: jnp.concatenate(parts), *drawn)

    def update(state: MultiTurnState, index: int) -> tuple[MultiTurnState, dict[str, Any]]:
        outside.start()
        chosen = batch_indices(len(pool), seed=setup.seed, step=index, batch_size=config.openings)
        begun = [pool[row] for row in chosen for _ in range(config.group_size)]
        turns = converse(
            recommender,
            speak,
            state.params,
            outside.timed(seekers),
            begun,
            n_turns=config.turns,
            key=stream_key(key, f"{STAGE}/talk", index),
        )
        experience = as_rows(turns, config)
        start = {"learning_rate": next_rate(state.opt_state)}
        fixed: tuple[Any, ...] = (reference,)
        if human is not None:
            n_human = n_rows * config.turns
            fixed += (layout.batch(n_human, functools.partial(human.batch, index, n_human)),)
        placed = place_rows(experience, layout)
        with outside.inside():
            state, metrics = learn(state, placed, *fixed)
            jax.block_until_ready(metrics)
        return state, {
            **metrics,
            **start,
            **signatures(turns, recommender.said),
            "seconds/outside_share": outside.share(),
        }

    evaluate = greedy_success(recommender, seekers, config, key=key)
    final = run_stage(
        run,
        state,
        update,
        StagePlan(
            stage,
            config.updates,
            save_every=config.save_every,
            log_every=1,
            steps_per_update=learner.epochs * learner.minibatches,
            advice="a lower --conversations.learning-rate",
            on_eval=None if evaluate is None else lambda state, _: evaluate(layout.fetch(kept(state))),
            eval_every=None if evaluate is None else math.ceil(config.updates / config.evaluations),
        ),
    )
    return layout.fetch(kept(final))


def greedy_success(
    recommender: Recommender, seekers: Seekers, config: ConversationsConfig, *, key: jax.Array
) -> Callable[[Params], dict[str, float]] | None:
    """An evaluation: `validation/success@t` of a policy's greedy replies; None where validation has no opening."""
    held_out = openings_of(recommender.setup.corpus.validation)[: config.validation_openings]
    if not held_out:
        return None
    greedy = speaker(recommender, greedy=True)

    def evaluate(params: Params) -> dict[str, float]:
        found = converse(recommender, greedy, params, seekers, held_out, n_turns=config.turns, key=key)
        return {f"validation/success@{turn + 1}": float(share) for turn, share in enumerate(found.success.mean(axis=0))}

    return evaluate


def kept(state: MultiTurnState) -> Params:
    """The policy that is measured and handed on: the moving average where there is one."""
    return state.params if state.average is None else state.average


def as_rows(turns: Turns, config: ConversationsConfig) -> Episodes:
    """Turns as the learner reads them; a turn that nobody had repeats the one before, and has no token in the loss."""
    shape = (config.openings, config.group_size, config.turns)
    rollouts = [turns.rollouts[min(turn, len(turns.rollouts) - 1)] for turn in range(config.turns)]
    places = [turns.places[min(turn, len(turns.places) - 1)] for turn in range(config.turns)]
    return Episodes(
        rollout=multi_turn.rows_of_turns(rollouts),
        settled=jnp.asarray(turns.settled.reshape(*shape, *turns.settled.shape[2:])),
        places=jnp.asarray(np.stack(places, axis=1).reshape(-1, places[0].shape[1])),
        rewards=jnp.asarray(turns.rewards.reshape(*shape, len(COMPONENTS))),
        running=jnp.asarray(turns.running.reshape(shape)),
    )


def place_rows(episodes: Episodes, layout: Any) -> Episodes:
    """The same on the layout's devices. Rows stand opening by opening, so that a device holds whole openings of both."""
    n_openings = episodes.running.shape[0]

    def rows(own: slice) -> Any:
        return jax.tree.map(lambda leaf: leaf[own], (episodes.rollout, episodes.places))

    def flags(own: slice) -> Any:
        return jax.tree.map(lambda leaf: leaf[own], (episodes.rewards, episodes.running, episodes.settled))

    rewards, running, settled = layout.batch(n_openings, flags)
    rollout, places = layout.batch(episodes.running.size, rows)
    return Episodes(rollout=rollout, rewards=rewards, running=running, settled=settled, places=places)


def signatures(turns: Turns, most: int) -> dict[str, float]:
    """Signs that a reward is bought, not earned, over turns that were had.

    Args:
      most: attributes that an imitated turn says at most; who says more lists what might be wanted.
    """
    had = turns.running
    formed, listed, said = (turns.rewards[..., place][had] for place in range(len(COMPONENTS)))
    return {
        "talk/success": float(turns.success[:, -1].mean()),
        "talk/recalled": float(turns.gold_recalled[had].mean()),
        "talk/attributes": float(turns.attributes_said[had].mean()),
        "talk/form_without_content": float(((formed > 0) & (listed == 0) & (said == 0)).mean()),
        "talk/stuffed": float((turns.attributes_said[had] > most).mean()),
        "talk/repeated": float(turns.repeated[had].mean()),
        "talk/echoed": float(turns.echoed[had].mean()),
        "talk/leaks": float(turns.leaks.sum()),
        "talk/leaks_left": float(turns.leaks_left.sum()),
    }


class Stopwatch:
    """What share of an update's time is spent outside compiled programs."""

    def __init__(self) -> None:
        self._begin = self._inside = 0.0

    def start(self) -> None:
        """An update begins."""
        self._begin, self._inside = time.perf_counter(), 0.0

    def inside(self) -> "Stopwatch":
        """`with` it a compiled program runs, which is waited for."""
        return self

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._inside += time.perf_counter() - self._entered

    def timed(self, seekers: Seekers) -> Seekers:
        """The same seekers, whose compiled program counts as inside; of others than `SeekerSimulator` nothing does."""
        return dataclasses.replace(seekers, inside=self) if isinstance(seekers, SeekerSimulator) else seekers

    def share(self) -> float:
        """Since `start`."""
        return 1.0 - self._inside / max(time.perf_counter() - self._begin, 1e-9)

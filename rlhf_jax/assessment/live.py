"""What rounds of live feedback are worth: talks with fresh users, and every round's policy with users nobody learnt from.

The first choice of a judge of items, suggested without a word, is its **ceiling**: no policy that a reward pays can be
expected to be above what the reward itself would suggest.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlhf_jax.assessment.users import Responder, per_user
from rlhf_jax.data.redial import read_dialogues
from rlhf_jax.interfaces import Dialogue, Message, Params
from rlhf_jax.learners.item_reward import ItemReward
from rlhf_jax.recommenders.scorer import NAMED
from rlhf_jax.runtime.files import notice
from rlhf_jax.simulators.conversation import ClosedLoopResult, Respond, converse, evaluate_closed_loop
from rlhf_jax.simulators.world_live import LiveUsers, write_live
from rlhf_jax.stages.live_feedback import History, Judge, LiveConfig, Talk
from rlhf_jax.stages.setup import Setup

DECODINGS = ("greedy", "sampled")
ItemScores = Callable[[np.ndarray], np.ndarray]
"""What is known of items [N, F, I] to a score of each [N, I], higher is better."""


def talker(folder: Path, config: LiveConfig) -> Talk:
    """Talks with fresh training users of the world, once a round: what was said is a file in the official schema.

    Round r meets users n_users + (r − 1)·N … n_users + r·N − 1 of the training population.

    Args:
      folder: where the files go.
    """

    def talk(setup: Setup, policy: Params, number: int) -> tuple[Dialogue, ...]:
        path = folder / f"live-{number}.jsonl"
        if not path.exists():
            world = setup.data.world
            first = world.n_users + (number - 1) * config.users
            assert setup.world_seed is not None
            crowd = LiveUsers(world, setup.world_seed, range(first, first + config.users))
            # Draws of its own: the evaluation samples with the run's seed.
            responder = Responder(setup._replace(seed=setup.seed + 1_000_003 * number), policy, greedy=False)
            said = converse(crowd, responder, config.turns)
            write_live(path, crowd.logged(said.dialogues), crowd.catalogue)
            notice(f"round {number}: {config.users} fresh users talked with the policy: {path}")
        return read_dialogues(path)

    return talk


def of_reward(reward: ItemReward) -> ItemScores:
    """R of every item."""
    return lambda known: reward.of_items(known)


def of_trunk(known: np.ndarray) -> np.ndarray:
    """The trunk's own log-probability."""
    return known[:, 0]


def first_choice(judge: Judge, scores: ItemScores) -> Respond:
    """Suggests the item with the highest score among those that nobody has named, and says nothing."""
    named = judge.names.index(NAMED)

    def respond(histories: Sequence[History], numbers: Sequence[int]) -> list[Message]:
        del numbers
        known = judge.known(histories)
        # Where all were named, the best of them.
        best = np.argmax(np.where(known[:, named] < 0, -1e9, 0.0) + scores(known), axis=1)
        return [Message("recommender", (judge.setup.vocab.item_ids[item],), 0) for item in best]

    return respond


def best_by_reward(judge: Judge, reward: ItemReward, responder: Responder, n: int) -> Respond:
    """Of n sampled replies the one that the reward model scores highest, the first of equals."""

    def respond(histories: Sequence[History], numbers: Sequence[int]) -> list[Message]:
        known = judge.known(histories)
        drawn = [responder(histories, numbers) for _ in range(n)]
        scores = np.stack([reward.of_turns(judge.turns(replies, known)) for replies in drawn])
        return [drawn[best][row] for row, best in enumerate(scores.argmax(axis=0))]

    return respond


def proxy_of(judge: Judge, reward: ItemReward, dialogues: Sequence[History]) -> np.ndarray:
    """Mean of R over the system turns of each conversation, in the units of the labels. [N]"""
    places = [
        (row, index)
        for row, history in enumerate(dialogues)
        for index, message in enumerate(history)
        if message.role == "recommender"
    ]
    known = judge.known([dialogues[row][:index] for row, index in places])
    scores = reward.of_turns(judge.turns([dialogues[row][index] for row, index in places], known))
    rows = np.array([row for row, _ in places])
    return np.bincount(rows, scores, len(dialogues)) / np.bincount(rows, minlength=len(dialogues))


def met(setup: Setup, respond: Respond, *, n_users: int, n_turns: int) -> ClosedLoopResult:
    """The users of the evaluation, whom no stage has met."""
    assert setup.world_seed is not None
    return evaluate_closed_loop(respond, setup.data.world, setup.world_seed, n_users=n_users, n_turns=n_turns)


class Met(NamedTuple):
    """What a policy did with users; decoding first."""

    values: dict[str, dict[str, np.ndarray]]
    """Metric to one value a user."""
    dialogues: dict[str, tuple[History, ...]]
    """What was said, a user each."""


def meet(setup: Setup, policy: Params, judge: Judge, reward: ItemReward, *, n_users: int, n_turns: int) -> Met:
    """A policy with these users, greedy and as sampled.

    `proxy_score` is that of `reward`; the KL of sampled replies is that to the trunk without a prior.
    """
    values, dialogues = {}, {}
    for decoding in DECODINGS:
        greedy = decoding == "greedy"
        reference = None if greedy else {"trunk": policy["trunk"]}
        responder = Responder(setup, policy, greedy=greedy, reference=reference)
        result = met(setup, responder, n_users=n_users, n_turns=n_turns)
        proxy = {"proxy_score": proxy_of(judge, reward, result.dialogues)}
        values[decoding], dialogues[decoding] = per_user(result) | responder.measured | proxy, result.dialogues
    return Met(values, dialogues)


def values_of(judge: Judge, reward: ItemReward, result: ClosedLoopResult) -> Mapping[str, np.ndarray]:
    """What the users lived through, and the proxy: metric to one value a user."""
    return per_user(result) | {"proxy_score": proxy_of(judge, reward, result.dialogues)}

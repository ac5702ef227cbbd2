"""Stages 3 and 4 of DPO4Rec: a frozen re-ranker scores N texts of every user, and the writer learns from best and worst."""

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rlhf_jax.data.batching import batch_indices, wrapped_batches
from rlhf_jax.data.preference_texts import well_formed
from rlhf_jax.interfaces import GroupPolicy, Params, PromptBatch
from rlhf_jax.learners import dpo
from rlhf_jax.learners.dpo import PreferenceBatch
from rlhf_jax.learners.dpo_config import DPOConfig
from rlhf_jax.learners.optimizer import TrainState, learning_rate_schedule, steps_taken
from rlhf_jax.ranges import Range, check_numbers
from rlhf_jax.runtime.files import RunError, notice
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.runtime.stage import StagePlan, run_stage
from rlhf_jax.stages.dpo4rec.preference_setup import PreferenceSetup
from rlhf_jax.stages.dpo4rec.reranker import METRIC, Lists, Reranker, TextPool, pool, text_rewards, text_values
from rlhf_jax.stages.dpo4rec.text_writer import prompts_of, read_texts, real_tokens, write

STAGE = "dpo"


@dataclasses.dataclass(frozen=True)
class PairsConfig:
    """Stage 3: how texts become preferences."""

    samples: Annotated[int, Range("[2, 1_024]")] = 10
    """N: texts drawn for each user."""
    per_user: Annotated[int, Range("[1, 64]")] = 3
    """Pairs of a user: the best with the worst, the second with the second worst and so on; the paper has one. Not read by the loss
    `softmax`, which compares the best with all others."""
    temperature: Annotated[float, Range("(0, 10]")] = 1.0
    """Of the drawn texts."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if 2 * self.per_user > self.samples:
            raise ValueError(
                f"--pairs.per-user {self.per_user} needs twice as many texts: --pairs.samples is {self.samples}"
            )


class Mined(NamedTuple):
    """Texts of users, what they were paid, and what is compared."""

    users: np.ndarray
    """Who has lists. [U]"""
    tokens: Int[np.ndarray, "U N T"]
    rewards: Float[np.ndarray, "U N"]
    """Mean NDCG@5 of the user's lists with a text."""
    picked: Int[np.ndarray, "P K"]
    """Texts that are compared, the chosen first."""
    of_user: Int[np.ndarray, " P"]
    """Row of `users` of each comparison."""

    @property
    def kept(self) -> int:
        """Users with a preference; the others' texts are all paid the same."""
        return len(np.unique(self.of_user))


def mine(
    setup: PreferenceSetup,
    params: Params,
    scorer: Reranker,
    lists: Lists,
    config: PairsConfig,
    *,
    stream: str,
    every: bool,
) -> Mined:
    """Draws N texts of every user with lists, scores them, and picks what is compared; says how many users a minute that was.

    Args:
      params: the writer.
      stream: names the random stream of the texts.
      every: compare the best with all others (`softmax`); else best with worst.
    Raises: RunError where every user's texts are all paid the same.
    """
    users, begun = np.unique(lists.lists.users), time.monotonic()
    tokens = write(setup, params, users, n=config.samples, stream=stream, temperature=config.temperature)
    same, rewards = text_rewards(scorer, lists, as_pool(setup, users, tokens))
    seconds = time.monotonic() - begun
    notice(
        f"{stream}: {len(users)} users in {seconds:.0f} s, {60 * len(users) / seconds:.0f} a minute, compiling included"
    )
    assert np.array_equal(same, users)
    picked, of_user = compared(rewards, per_user=config.per_user, every=every)
    if not len(picked):
        raise RunError(
            f"{stream}: the {config.samples} texts of each of {len(users)} users are all paid the same: nothing to prefer"
        )
    return Mined(users, tokens, rewards, picked, of_user)


def compared(rewards: np.ndarray, *, per_user: int, every: bool) -> tuple[np.ndarray, np.ndarray]:
    """Which texts of each user are compared, the chosen first; pairs of equal pay are left out, of `every` only users whose texts
    are all paid the same.

    Args:
      rewards: [U, N]
      every: all N texts, the best first; else `per_user` pairs.
    Returns: places [P, K], rows of the users [P].
    Examples:
      >>> paid = np.array([[0.1, 0.3, 0.2], [0.5, 0.5, 0.5]])
      >>> compared(paid, per_user=1, every=False)[0].tolist(), compared(paid, per_user=1, every=True)[0].tolist()
      ([[1, 0]], [[1, 2, 0]])
    """
    order = np.argsort(-rewards, axis=1, kind="stable")
    sorted_rewards = np.take_along_axis(rewards, order, axis=1)
    if every:
        rows = np.flatnonzero(sorted_rewards[:, 0] > sorted_rewards[:, -1])
        return order[rows], rows
    pairs, of_user = [], []
    for k in range(per_user):
        differ = np.flatnonzero(sorted_rewards[:, k] > sorted_rewards[:, -1 - k])
        pairs.append(np.stack([order[differ, k], order[differ, -1 - k]], axis=1))
        of_user.append(differ)
    rows = np.concatenate(of_user)
    by_user = np.argsort(rows, kind="stable")
    return np.concatenate(pairs)[by_user], rows[by_user]


STUDIED = (2, 5, 10, 15)
"""Numbers of samples that `study_samples` looks at."""


def study_samples(
    setup: PreferenceSetup, params: Params, scorer: Reranker, lists: Lists, config: PairsConfig
) -> dict[str, dict[str, float]]:
    """What N is worth: of how many users the texts differ in reward, and what the best of N gains.

    Returns: by N: `kept`, share of users; `gain`, reward of the best text over the mean of all; `held_out`, the same where the
      text is chosen by every other list of a user and measured on the rest, so that luck in the choice is not counted.
    """
    users = np.unique(lists.lists.users)
    tokens = write(setup, params, users, n=max(STUDIED), stream="study", temperature=config.temperature)
    values = text_values(scorer, lists, as_pool(setup, users, tokens))
    of_user = [values[lists.lists.users == user] for user in users]
    found = {}
    for n in STUDIED:
        means = [own[:, :n].mean(axis=0) for own in of_user]
        held_out = []
        for own in of_user:
            if len(own) > 1:
                best = own[::2, :n].mean(axis=0).argmax()
                held_out.append(float((own[1::2, best] - own[1::2, :n].mean(axis=1)).mean()))
        found[str(n)] = {
            "kept": float(np.mean([one.max() > one.min() for one in means])),
            "gain": float(np.mean([one.max() - one.mean() for one in means])),
            "held_out": float(np.mean(held_out)) if held_out else 0.0,
        }
    return found


def as_pool(setup: PreferenceSetup, users: np.ndarray, tokens: np.ndarray) -> TextPool:
    """Written texts as a re-ranker reads them. `tokens`: [U, N, T]"""
    n = tokens.shape[1]
    flat = read_texts(setup, tokens)
    return pool(setup, users, [flat[start : start + n] for start in range(0, len(flat), n)])


def preference_batch(setup: PreferenceSetup, params: Params, mined: Mined) -> PreferenceBatch:
    """What is compared, with the reference's log-probabilities."""
    prompts, mask = prompts_of(setup, mined.users)
    real = real_tokens(setup, mined.tokens)
    n_users, n_texts = mined.tokens.shape[:2]
    policy = setup.writer.group_policy
    read = setup.writer.compiled("reference", lambda: jax.jit(functools.partial(dpo.group_logprobs, policy)))
    logprobs = np.empty((n_users, n_texts), np.float32)
    for rows, own in wrapped_batches(n_users, min(32, n_users)):
        given = PreferenceBatch(
            prompts=PromptBatch(tokens=jnp.asarray(prompts[rows]), mask=jnp.asarray(mask[rows])),
            response_tokens=mined.tokens[rows],
            response_mask=real[rows],
            ref_logprobs=logprobs[rows],
            weight=np.ones(len(rows), np.float32),
        )
        logprobs[rows[:own]] = np.asarray(read(params, given))[:own]
    of_user, picked = mined.of_user, mined.picked
    return PreferenceBatch(
        prompts=PromptBatch(tokens=jnp.asarray(prompts[of_user]), mask=jnp.asarray(mask[of_user])),
        response_tokens=mined.tokens[of_user[:, None], picked],
        response_mask=real[of_user[:, None], picked],
        ref_logprobs=logprobs[of_user[:, None], picked],
        weight=np.ones(len(of_user), np.float32),
    )


def quality_of_texts(setup: PreferenceSetup, tokens: np.ndarray) -> dict[str, float]:
    """What texts are like, whatever they are worth. `tokens`: [U, N, T]"""
    texts = read_texts(setup, tokens)
    n = tokens.shape[1]
    groups = [texts[start : start + n] for start in range(0, len(texts), n)]
    return {
        "text/well_formed": float(np.mean([well_formed(text, setup.attributes) for text in texts])),
        "text/response_length": float((tokens != setup.vocab.pad).sum(axis=-1).mean()),
        "text/distinct": float(np.mean([sum(own.count(text) == 1 for text in own) / n for own in groups])),
    }


def train(
    run: RunDirectory,
    setup: PreferenceSetup,
    params: Params,
    batch: PreferenceBatch,
    config: DPOConfig,
    *,
    name: str,
    validation: tuple[Reranker, Lists],
) -> Params:
    """Runs the stage from `params`, which are the reference too; returns {`trunk`}.

    Args:
      batch: all preferences.
      name: of the stage, behind `dpo-`.
      validation: the frozen scorer and validation users' lists, for what is logged at every epoch; nothing is chosen by it.
    """
    dpo.check_preferences(batch, config)
    n = len(batch.weight)
    steps, layout = config.steps(n), setup.layout
    optimizer, rate = dpo.optimizer_of(config, n), learning_rate_schedule(**config.rate(n))
    policy = GroupPolicy(layout.by_row(setup.writer.on_mesh(layout).group_policy.logprobs))
    stage = f"{STAGE}-{name}"

    def one_step(state: TrainState, part: PreferenceBatch) -> tuple[TrainState, dict[str, Array]]:
        used = jnp.asarray(rate(steps_taken(state.opt_state)))
        state, metrics = dpo.update(state, part, policy=policy, optimizer=optimizer, config=config)
        return state, metrics | {"learning_rate": used}

    state = layout.place(dpo.init({"trunk": params["trunk"]}, optimizer, config))
    step = layout.together(layout.step(one_step, state), stage)

    def update(state: TrainState, index: int) -> tuple[TrainState, dict[str, Any]]:
        rows = batch_indices(n, seed=setup.seed, step=index, batch_size=config.batch_size)
        return step(state, layout.batch(len(rows), lambda own: dpo.take(batch, rows[own])))

    scorer, lists = validation
    users = np.unique(lists.lists.users)

    def evaluate(state: TrainState, index: int) -> Mapping[str, float]:
        del index
        kept = state.params if state.average is None else state.average
        tokens = write(setup, layout.fetch(kept), users, n=4, stream=f"{stage}/validation")
        paid = text_values(scorer, lists, as_pool(setup, users, tokens))
        return {f"validation/{METRIC}": float(paid.mean())} | quality_of_texts(setup, tokens)

    epoch = max(1, steps // config.epochs)
    final = run_stage(
        run,
        state,
        update,
        StagePlan(
            stage,
            steps,
            save_every=epoch,
            log_every=max(1, epoch // 4),
            on_eval=evaluate,
            eval_every=epoch,
            advice="a lower --dpo.learning-rate",
        ),
    )
    kept = final.params if final.average is None else final.average
    return layout.fetch(kept)

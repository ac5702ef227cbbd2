"""What a policy says when it samples, on fixed test contexts: what it earns, how far it strayed, what a judge thinks.

Greedy answers show the likeliest reply; PPO moves the distribution replies are drawn from. Every system answers the same
contexts with the same random numbers. Everything is stored case by case (`assessments/SYSTEM-sampled.npz`).
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from rlhf_jax.assessment.assess import generated_turn, text_turns
from rlhf_jax.assessment.best_of_n import BestOf, drawing
from rlhf_jax.data.batching import wrapped_batches
from rlhf_jax.data.items import spelled_titles
from rlhf_jax.data.windows import response_message, response_parts
from rlhf_jax.evaluation.text import GeneratedTurn
from rlhf_jax.interfaces import Message, Params, PromptBatch
from rlhf_jax.keys import stream_key
from rlhf_jax.ranges import Batch, Cases, check_numbers
from rlhf_jax.runtime.files import DamagedFileError, read_npz, write_npz
from rlhf_jax.runtime.progress import Progress
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.stages.agent import Agent
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.reward import Proxy
from rlhf_jax.stages.setup import Setup

Floats = NDArray[np.float64]
Judge = Callable[[Sequence[Sequence[Message]], Sequence[Message], Mapping[int, str]], Floats]
"""Histories, replies to them and titles by item id, to one score a reply; for example `SatisfactionJudge`."""


@dataclasses.dataclass(frozen=True)
class SampledConfig:
    """How much is sampled."""

    turns: Cases = 500
    """Test turns that are answered, evenly spread."""
    batch_size: Batch = 64
    """Contexts of one call."""
    test_dialogues: Cases | None = None
    """Test dialogues the turns are taken from; None is all."""

    def __post_init__(self) -> None:
        check_numbers(self)


class Against(NamedTuple):
    """What sampled replies are held against."""

    reference: Params
    """Policy whose distance is measured; its trunk alone is read."""
    proxy: Proxy
    """Scores the replies; its weights make the proxy score of its raw components."""
    judge: Judge | None = None
    """People's satisfaction, where a judge knows it."""


class Listed(NamedTuple):
    """Gold items of the answered turns in the reply's own list; one case a (turn, gold item) pair."""

    ranks: np.ndarray
    """int32 [M], place in the list, best is 1; the size of the catalogue + 1 where the item is not listed."""
    turns: np.ndarray
    """int32 [M], number of the answered turn."""
    fresh: np.ndarray
    """bool [M], True where the item was not mentioned before in the dialogue."""


class SampledAnswers(NamedTuple):
    """One reply to each of N contexts."""

    turns: list[GeneratedTurn]
    """[N], with the human's answer; length in tokens and repetition follow from them."""
    replies: list[Message]
    """[N]"""
    components: np.ndarray
    """Reward model's components, z-units. float32 [N, C]"""
    proxy: Floats
    """Their weighted sum. [N]"""
    kl: Floats
    """Σ_t log π(y_t) − log π_ref(y_t) of the reply, nats; its mean estimates KL(π, π_ref) per reply. NaN for replies that
    were chosen among samples: they are no draws from π. [N]"""
    entropy: Floats
    """Mean entropy of the policy over the reply's tokens, nats per token; NaN for chosen replies as well. [N]"""
    finished: np.ndarray
    """True where the reply ends with `<eos>` within its budget. bool [N]"""
    listed: Listed
    judge: Floats | None = None
    """Judge's score of each reply; None where there was no judge. [N]"""


def sampled_answers(
    run: RunDirectory,
    system: str,
    setup: Setup,
    params: Params,
    config: SampledConfig,
    against: Against,
    *,
    best_of: BestOf | None = None,
) -> SampledAnswers:
    """`draw_answers`, stored and read back, once per run and system; a judge may come later and is then added."""
    folder = run.path / "assessments"
    folder.mkdir(exist_ok=True)
    stored = answers_file(folder, system)
    if stored.exists():
        answers = load(stored)
        if against.judge is None or answers.judge is not None:
            return answers
    else:
        name = f"{system}: sampled answers"
        answers = draw_answers(setup, params, config, against, best_of=best_of, name=name)
    if against.judge is not None:
        answers = answers._replace(judge=judge_replies(setup, config, answers.replies, against.judge))
    save(stored, answers)
    return answers


def answers_file(folder: Path, system: str) -> Path:
    """Where a system's sampled answers lie in a folder of assessments."""
    return folder / f"{system}-sampled.npz"


def draw_answers(
    setup: Setup,
    params: Params,
    config: SampledConfig,
    against: Against,
    *,
    seed: int | None = None,
    best_of: BestOf | None = None,
    name: str = "sampled answers",
) -> SampledAnswers:
    """One sampled reply to each of `config.turns` test contexts; not judged.

    Args:
      seed: of the draws; None takes the setup's.
      best_of: replies are chosen among samples by the proxy, so that log-ratio and entropy of π say nothing about them.
    """
    windows, places = _answered(setup, config)
    compiled = setup.agent.compiled(
        ("answers", best_of and best_of.kind), lambda: _compiled_answers(setup.agent, best_of)
    )
    moments = best_of and best_of.moments
    root = jax.random.key(setup.seed if seed is None else seed)
    parts: list[tuple[np.ndarray, ...]] = []
    with Progress(name, 0, len(places)) as progress:
        for rows, own in wrapped_batches(len(places), config.batch_size):
            start = int(rows[0])
            prompts = windows.batch([places[row] for row in rows])
            key = stream_key(root, "sampled_answers", start)
            found = compiled(params, against.reference["trunk"], against.proxy.model, moments, prompts, key)
            parts.append(tuple(np.asarray(array)[:own] for array in found))
            progress.show(start + own, {})
    response_tokens, response_mask, finished, components, log_ratio, entropy = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    responses = [row[keep].tolist() for row, keep in zip(response_tokens, response_mask, strict=True)]
    turns = [
        generated_turn(setup.vocab, setup.agent, windows.dialogues[dialogue], index, response)
        for (dialogue, index), response in zip(places, responses, strict=True)
    ]
    return SampledAnswers(
        turns=turns,
        replies=[response_message(setup.vocab, response) for response in responses],
        components=components,
        proxy=components.astype(np.float64) @ np.asarray(against.proxy.weights, np.float64),
        kl=np.full(len(places), np.nan) if best_of else log_ratio.astype(np.float64),
        entropy=np.full(len(places), np.nan) if best_of else entropy.astype(np.float64),
        finished=finished,
        listed=_listed(setup, windows, places, responses),
    )


def judge_replies(setup: Setup, config: SampledConfig, replies: Sequence[Message], judge: Judge) -> Floats:
    """The judge's score of every reply, from its context and the reply alone. [N]"""
    windows, places = _answered(setup, config)
    histories = [windows.dialogues[dialogue].messages[:index] for dialogue, index in places]
    return np.asarray(judge(histories, replies, spelled_titles(setup.corpus.items, with_year=False)), np.float64)


def _answered(setup: Setup, config: SampledConfig) -> tuple[Windows, Sequence[tuple[int, int]]]:
    windows = Windows.of(setup, setup.corpus.test[: config.test_dialogues])
    return windows, text_turns(windows, config.turns)


def _listed(
    setup: Setup, windows: Windows, places: Sequence[tuple[int, int]], responses: Sequence[Sequence[int]]
) -> Listed:
    ranks, turns, fresh = [], [], []
    for number, ((dialogue, index), response) in enumerate(zip(places, responses, strict=True)):
        messages = windows.dialogues[dialogue].messages
        mentioned = {item for message in messages[:index] for item in message.items}
        items = response_parts(setup.vocab, response).items
        for gold in dict.fromkeys(messages[index].items):
            ranks.append(items.index(gold) + 1 if gold in items else setup.vocab.n_items + 1)
            turns.append(number)
            fresh.append(gold not in mentioned)
    return Listed(np.array(ranks, np.int32), np.array(turns, np.int32), np.array(fresh, bool))


def _compiled_answers(agent: Agent, best_of: BestOf | None) -> Any:
    draw = drawing(agent, best_of)

    def answer(
        params: Params, reference: Params, reward_model: Params, moments: Any, prompts: PromptBatch, key: Any
    ) -> Any:
        rollout = draw(params, reward_model, moments, prompts, key)
        said, ref = agent.policy(params, rollout), agent.policy({"trunk": reference}, rollout)
        length = jnp.maximum(jnp.sum(rollout.response_mask, axis=1), 1)
        return (
            rollout.response_tokens,
            rollout.response_mask,
            rollout.finished,
            agent.score(reward_model, rollout),
            jnp.sum(said.logprobs - ref.logprobs, axis=1),
            jnp.sum(said.entropy, axis=1) / length,
        )

    return jax.jit(answer)


def save(path: Path, answers: SampledAnswers) -> None:
    """Writes the cases as arrays."""
    arrays: dict[str, Any] = {
        "turns": np.array(json.dumps([list(turn) for turn in answers.turns])),
        "replies": np.array(json.dumps([reply.parts for reply in answers.replies])),
        **{name: getattr(answers, name) for name in ("components", "proxy", "kl", "entropy", "finished")},
        **{f"listed/{name}": array for name, array in answers.listed._asdict().items()},
    }
    if answers.judge is not None:
        arrays["judge"] = answers.judge
    write_npz(path, arrays)


def load(path: Path) -> SampledAnswers:
    """Reads what `save` wrote.

    Raises: DamagedFileError naming a file that is not what was written.
    """
    arrays = read_npz(path)
    try:
        return SampledAnswers(
            turns=[GeneratedTurn(*fields) for fields in json.loads(str(arrays["turns"]))],
            replies=[Message("recommender", tuple(parts), 0) for parts in json.loads(str(arrays["replies"]))],
            components=arrays["components"],
            proxy=arrays["proxy"],
            kl=arrays["kl"],
            entropy=arrays["entropy"],
            finished=arrays["finished"],
            listed=Listed(*(arrays[f"listed/{name}"] for name in Listed._fields)),
            judge=arrays.get("judge"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} holds no sampled answers ({error}): restore it or remove it") from error

"""What a policy says when it samples, on fixed test contexts: what it earns, how far it strayed, what a judge thinks.

Greedy answers show the likeliest reply; PPO moves the distribution replies are drawn from. Every system answers the same
contexts with the same random numbers. Everything is stored case by case (`assessments/SYSTEM-sampled.npz`).
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from rlhf_jax.assessment.assess import generated_turn, text_turns
from rlhf_jax.assessment.users import response_message
from rlhf_jax.data.items import spelled_titles
from rlhf_jax.data.windows import response_parts
from rlhf_jax.evaluation.text import GeneratedTurn
from rlhf_jax.interfaces import Message, Params, PromptBatch
from rlhf_jax.keys import stream_key
from rlhf_jax.runtime.progress import Progress
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.stages.agent import Agent
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.setup import DataConfig, Prepared

Floats = NDArray[np.float64]
Judge = Callable[[Sequence[Sequence[Message]], Sequence[Message], Mapping[int, str]], Floats]
"""Histories, replies to them and titles by item id, to one score a reply; for example `SatisfactionJudge`."""


@dataclasses.dataclass(frozen=True)
class SampledConfig:
    """How much is sampled."""

    turns: int = 500
    """Test turns that are answered, evenly spread."""
    batch_size: int = 64
    """Contexts of one call."""
    test_dialogues: int | None = None
    """Test dialogues the turns are taken from; None is all."""


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
    prepared: Prepared,
    agent: Agent,
    params: Params,
    config: SampledConfig,
    data: DataConfig,
    *,
    reference: Params,
    reward_model: Params,
    weights: Sequence[float],
    seed: int,
    chosen: bool = False,
    judge: Judge | None = None,
) -> SampledAnswers:
    """`draw_answers`, stored and read back, once per run and system; a judge may come later and is then added."""
    folder = run.path / "assessments"
    folder.mkdir(exist_ok=True)
    stored = folder / f"{system}-sampled.npz"
    if stored.exists():
        answers = load(stored)
        if judge is None or answers.judge is not None:
            return answers
    else:
        answers = draw_answers(
            prepared,
            agent,
            params,
            config,
            data,
            reference=reference,
            reward_model=reward_model,
            weights=weights,
            seed=seed,
            chosen=chosen,
            name=f"{system}: sampled answers",
        )
    if judge is not None:
        answers = answers._replace(judge=judged(prepared, config, data, answers.replies, judge))
    save(stored, answers)
    return answers


def draw_answers(
    prepared: Prepared,
    agent: Agent,
    params: Params,
    config: SampledConfig,
    data: DataConfig,
    *,
    reference: Params,
    reward_model: Params,
    weights: Sequence[float],
    seed: int,
    chosen: bool = False,
    name: str = "sampled answers",
) -> SampledAnswers:
    """One sampled reply (`agent.sample`) to each of `config.turns` test contexts.

    Args:
      reference: policy whose distance is measured; its trunk alone is read.
      reward_model: R_φ, whose `weights` α, β, γ make the proxy score of its raw components.
      chosen: replies are chosen among samples (best-of-n), so that log-ratio and entropy of π say nothing about them.
    """
    windows, places = _answered(prepared, config, data)
    tokens, mask = windows.prompts(places)
    compiled = _compiled_answers(agent)
    root = jax.random.key(seed)
    parts: list[tuple[np.ndarray, ...]] = []
    with Progress(name, 0, len(places)) as progress:
        for start in range(0, len(places), config.batch_size):
            # Wrapped around, so that one program serves all batches.
            rows = np.arange(start, start + config.batch_size) % len(places)
            prompts = PromptBatch(tokens=jnp.asarray(tokens[rows]), mask=jnp.asarray(mask[rows]))
            key = stream_key(root, "sampled_answers", start)
            found = compiled(params, reference["trunk"], reward_model, prompts, key)
            end = min(start + config.batch_size, len(places))
            parts.append(tuple(np.asarray(array)[: end - start] for array in found))
            progress.show(end, {})
    response_tokens, response_mask, finished, components, log_ratio, entropy = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    responses = [row[keep].tolist() for row, keep in zip(response_tokens, response_mask, strict=True)]
    turns = [
        generated_turn(prepared.vocab, agent, windows.dialogues[dialogue], index, response)
        for (dialogue, index), response in zip(places, responses, strict=True)
    ]
    return SampledAnswers(
        turns=turns,
        replies=[response_message(prepared.vocab, response) for response in responses],
        components=components,
        proxy=components.astype(np.float64) @ np.asarray(weights, np.float64),
        kl=np.full(len(places), np.nan) if chosen else log_ratio.astype(np.float64),
        entropy=np.full(len(places), np.nan) if chosen else entropy.astype(np.float64),
        finished=finished,
        listed=_listed(prepared, windows, places, responses),
    )


def judged(
    prepared: Prepared, config: SampledConfig, data: DataConfig, replies: Sequence[Message], judge: Judge
) -> Floats:
    """The judge's score of every reply, from its context and the reply alone. [N]"""
    windows, places = _answered(prepared, config, data)
    histories = [windows.dialogues[dialogue].messages[:index] for dialogue, index in places]
    return np.asarray(judge(histories, replies, spelled_titles(prepared.corpus.items, with_year=False)), np.float64)


def _answered(prepared: Prepared, config: SampledConfig, data: DataConfig) -> tuple[Windows, list[tuple[int, int]]]:
    windows = Windows(prepared.vocab, prepared.corpus.test[: config.test_dialogues], data)
    return windows, text_turns(windows, config.turns)


def _listed(
    prepared: Prepared, windows: Windows, places: Sequence[tuple[int, int]], responses: Sequence[Sequence[int]]
) -> Listed:
    ranks, turns, fresh = [], [], []
    for number, ((dialogue, index), response) in enumerate(zip(places, responses, strict=True)):
        messages = windows.dialogues[dialogue].messages
        mentioned = {item for message in messages[:index] for item in message.items}
        items = response_parts(prepared.vocab, response).items
        for gold in dict.fromkeys(messages[index].items):
            ranks.append(items.index(gold) + 1 if gold in items else prepared.vocab.n_items + 1)
            turns.append(number)
            fresh.append(gold not in mentioned)
    return Listed(np.array(ranks, np.int32), np.array(turns, np.int32), np.array(fresh, bool))


@functools.lru_cache(maxsize=4)
def _compiled_answers(agent: Agent) -> Any:
    def answer(params: Params, reference: Params, reward_model: Params, prompts: PromptBatch, key: Any) -> Any:
        rollout = agent.sample(params, prompts, key)
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
    """Writes the cases as arrays; whole or not at all."""
    arrays: dict[str, Any] = {
        "turns": np.array(json.dumps([list(turn) for turn in answers.turns])),
        "replies": np.array(json.dumps([reply.parts for reply in answers.replies])),
        **{name: getattr(answers, name) for name in ("components", "proxy", "kl", "entropy", "finished")},
        **{f"listed/{name}": array for name, array in answers.listed._asdict().items()},
    }
    if answers.judge is not None:
        arrays["judge"] = answers.judge
    partial = path.with_name(f"{path.stem}.partial.npz")
    np.savez(partial, **arrays)
    partial.rename(path)


def load(path: Path) -> SampledAnswers:
    """Reads what `save` wrote."""
    with np.load(path) as arrays:
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

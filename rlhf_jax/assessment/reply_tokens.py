"""The same prompts answered by every stage of a finished run, token by token, for `reporting.replies_page`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from rlhf_jax.assessment.assess import text_turns
from rlhf_jax.assessment.finished_run import Finished, stage_policy, stage_proxy
from rlhf_jax.data.items import spelled_titles
from rlhf_jax.data.vocabulary import SPECIALS, Vocabulary
from rlhf_jax.equations.masked import zero_padding
from rlhf_jax.equations.running import RunningMoments
from rlhf_jax.feedback.weak_labels import weighted_sum
from rlhf_jax.interfaces import Params, PromptBatch, Rollout
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import ppo
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.reporting.replies_page import Prompt, Replies, Reply, Token
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.settings import from_json
from rlhf_jax.runtime.stage import stage_arrays
from rlhf_jax.stages import alignment, live_rounds
from rlhf_jax.stages.agent import Agent
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.reward import Proxy


def draw_replies(run: Finished, *, count: int, greedy: bool, seed: int) -> Replies:
    """Replies of all stages to the same test contexts, evenly spread over the split, with the same random numbers.

    A reply of an aligned stage is judged by that stage's policy, any other by PPO's or GRPO's where there is one; the reference is
    what alignment started from. Temperature and grammar are those of training, so that Σ_t of an aligned stage's sampled
    replies is what its KL estimate k1 averages.

    Where the judge is PPO, tokens carry their advantage as well: lines 3 to 6 of the box with the checkpoint's critic, reward
    model, price κ and running moments, not whitened. Replies of imitation get the advantage that PPO would give them.

    Args:
      count: contexts; all there are where there are fewer.
      greedy: the likeliest token each time, instead of sampling.
      seed: of sampling.
    Raises: RunError where the run has no policy or no context to answer.
    """
    if not run.stages:
        raise RunError(f"{run.path} has no model yet: no stage has a checkpoint")
    windows = Windows(run.vocab, run.corpus.test, run.data, run.scorer)
    turns = text_turns(windows, count)
    if not turns:
        raise RunError(f"{run.path}: no recommender turn of the test split has a context to answer")
    compared = comparisons(run.stages)
    policies = {stage: stage_policy(run, stage) for stage in run.stages}
    proxy = stage_proxy(run)
    prompts = windows.batch(turns)
    key = stream_key(jax.random.key(seed), "replies", 0)
    replies = {}
    for stage, params in policies.items():
        policy, reference = (policies[name] for name in compared[stage])
        credit = credit_of(run, policy, reference, proxy) if compared[stage][0] == "ppo" else None
        replies[stage] = _answers(run, params, (policy, reference), proxy, prompts, key, credit, greedy=greedy)
    titles = spelled_titles(run.corpus.items)
    contexts = zip(np.asarray(prompts.tokens), np.asarray(prompts.mask), strict=True)
    said = [context_messages(run.vocab, row[kept].tolist(), titles) for row, kept in contexts]
    human = ["".join(_words(part, titles) for part in windows.dialogues[d].messages[i].parts).strip() for d, i in turns]
    how = f"{len(turns)} contexts of the test split, " + ("greedy replies." if greedy else f"sampled with seed {seed}.")
    return Replies(
        run=str(run.path),
        how=how,
        compared=compared,
        prompts=[Prompt(said[n], human[n], {stage: replies[stage][n] for stage in replies}) for n in range(len(turns))],
    )


class Credited(NamedTuple):
    """Lines 3 to 6 of PPO's box for given replies, in the unit of the score as it is paid; 0 on padding."""

    rewards: Float[Array, "B T"]
    """Paid after a token: −κ times its log-ratio, and the score after the last one."""
    values: Float[Array, "B T"]
    """The critic's, before a token."""
    advantages: Float[Array, "B T"]
    """Not whitened."""


Credit = Callable[[Rollout, jax.Array], Credited]
"""Replies and their reward components [B, C] to what their tokens are paid and credited with."""


def credit_of(run: Finished, policy: Params, reference: Params, proxy: Proxy | None) -> Credit | None:
    """Lines 3 to 6 of PPO's box as the newest checkpoint would do them; None where one reply to a prompt is not enough for it
    (groups), or where there is no reward model."""
    config = from_json(PPOConfig, run.config["ppo"], "config.ppo")
    if proxy is None or config.group_size > 1:
        return None
    # The critic's own pass over all replies, whoever said them; whitening would make numbers depend on the other prompts.
    config = dataclasses.replace(config, whiten_advantages=False, reward_whitening=False, old_logprobs="recompute")
    stored = stage_arrays(run.path, "ppo")
    moments = {name: RunningMoments(**stored[name]) for name in ("component_moments", "score_moments")}
    names = ("update", "kl_coef", "component_weights", "skipped", "key")
    state = ppo.PPOState(params=policy, opt_state=(), **moments, **{name: stored[name] for name in names})

    def credit(state: ppo.PPOState, reference: Params, rollout: Rollout, components: jax.Array) -> Credited:
        judged = ppo.judge_phase(state, rollout, reference, policy=run.agent.policy, config=config)
        shaped = ppo.shape(state, rollout, components, judged, config)
        return Credited(
            shaped.rewards,
            zero_padding(judged.old.values, rollout.response_mask),
            ppo.estimate(rollout, shaped.rewards, judged, config).advantages,
        )

    compiled = run.agent.compiled("advantages of replies", lambda: jax.jit(credit))
    return lambda rollout, components: compiled(state, reference, rollout, components)


def comparisons(stages: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Stage to (policy, reference) that its replies are judged by; both are the same where nothing is aligned.

    Examples:
      >>> comparisons(["sft", "ppo"])
      {'sft': ('ppo', 'sft'), 'ppo': ('ppo', 'sft')}
      >>> comparisons(["sft", "prior"])["sft"]
      ('prior', 'prior')
      >>> comparisons(["sft", "ppo", "reactions"])["reactions"]
      ('reactions', 'sft')
      >>> comparisons(["sft", "ppo", "reactions"])["sft"]
      ('ppo', 'sft')
    """
    learnt = (*alignment.STAGES, live_rounds.STAGE)
    reference = [stage for stage in stages if stage not in learnt][-1:] or [stages[0]]
    aligned = [stage for stage in stages if stage in alignment.STAGES][-1:] or [stages[-1]]
    return {stage: (stage if stage in learnt else aligned[0], reference[0]) for stage in stages}


def token_texts(vocab: Vocabulary, tokens: Sequence[int], titles: dict[int, str]) -> list[str]:
    """What to show of each token: words with their spaces, titles, special tokens by name. [T]"""
    texts = []
    for token in tokens:
        if token < vocab.n_words:
            texts.append(vocab.tokenizer.decode([token], skip_special_tokens=False))
        elif vocab.is_item(token):
            texts.append(" " + titles.get(vocab.item_id(token), f"@{vocab.item_id(token)}"))
        else:
            texts.append(f" {SPECIALS[token - vocab.n_words]}")
    return texts


def context_messages(vocab: Vocabulary, tokens: Sequence[int], titles: dict[int, str]) -> list[tuple[str, str]]:
    """(role, words) of each message of a prompt; the marker of the reply to come, at its end, is left out."""
    roles = {vocab.seeker: "seeker", vocab.recommender: "recommender"}
    messages: list[tuple[str, list[int]]] = []
    for token in tokens[:-1]:
        if token in roles:
            messages.append((roles[token], []))
        elif messages:
            messages[-1][1].append(token)
        else:
            messages.append(("cut", [token]))
    return [(role, vocab.decode(words, titles)) for role, words in messages]


def _words(part: str | int, titles: dict[int, str]) -> str:
    return part if isinstance(part, str) else titles.get(part, f"@{part}")


def _answers(
    run: Finished,
    params: Params,
    judges: tuple[Params, Params],
    proxy: Proxy | None,
    prompts: PromptBatch,
    key: Any,
    credit: Credit | None,
    *,
    greedy: bool,
) -> list[Reply]:
    draw = run.agent.compiled(("replies", greedy), lambda: jax.jit(_drawing(run.agent, greedy=greedy)))
    rollout: Rollout = draw(params, prompts, key)
    judge = run.agent.compiled(
        "logprobs of replies", lambda: jax.jit(lambda params, rollout: run.agent.policy(params, rollout).logprobs)
    )
    own, ref = (np.asarray(judge(one, rollout), np.float64) for one in judges)
    values, advantages = None, None
    if proxy is not None:
        score = run.agent.compiled("scores of replies", lambda: jax.jit(run.agent.score))
        components = score(proxy.model, rollout)
        values = np.asarray(components, np.float64)
        advantages = None if credit is None else np.asarray(credit(rollout, components).advantages, np.float64)
    titles = spelled_titles(run.corpus.items)
    tokens, mask, finished = map(np.asarray, (rollout.response_tokens, rollout.response_mask, rollout.finished))
    found = []
    for n, (row, kept) in enumerate(zip(tokens, mask, strict=True)):
        texts = token_texts(run.vocab, row[kept].tolist(), titles)
        credited = [None] * len(texts) if advantages is None else advantages[n][kept].tolist()
        columns = (texts, own[n][kept].tolist(), ref[n][kept].tolist(), credited)
        said = [Token(*each) for each in zip(*columns, strict=True)]
        named: dict[str, float] = {}
        total = None
        if proxy is not None and values is not None:
            named = dict(zip(proxy.names, values[n].tolist(), strict=True))
            total = float(weighted_sum(values[n : n + 1], proxy.weights)[0])
        found.append(Reply(said, bool(finished[n]), named, total))
    return found


def _drawing(agent: Agent, *, greedy: bool) -> Any:
    def draw(params: Params, prompts: PromptBatch, key: Any) -> Rollout:
        return agent.greedy(params, prompts, key, None) if greedy else agent.sample(params, prompts, key)

    return draw

"""Which items a reward model would suggest: measured before a policy is paid by it, on the validation split.

An item is judged as the shortest reply that suggests it, `<rec> ITEM <say> <eos>`, by the weighted score as R_φ says it: PPO
pays its components in units of their running deviations, so that their shares may differ there. In the simulated world users
also meet whoever suggests the reward's first choice, and whoever suggests the policy's.
"""

import functools
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.assessment.users import per_user
from rlhf_jax.data.batching import pad_left, wrapped_batches
from rlhf_jax.data.dialogue_store import evenly
from rlhf_jax.data.windows import prompt_tokens, ranking_rows
from rlhf_jax.evaluation import closed_loop, item_choice
from rlhf_jax.evaluation.closed_loop import UserValues
from rlhf_jax.evaluation.item_choice import Candidates
from rlhf_jax.evaluation.results import Result, Split, difference_name
from rlhf_jax.interfaces import Message, Params, PromptBatch, ResponseGroups
from rlhf_jax.ranges import Range
from rlhf_jax.runtime.files import notice, read_list, write_json
from rlhf_jax.runtime.progress import Progress
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.simulators.conversation import evaluate_closed_loop
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.reward import GateError, Proxy
from rlhf_jax.stages.setup import Setup

FILE = "reward_choice.json"
FIRST = 50
"""Of the policy's fresh items the reward puts so many in order."""
AROUND = 5
"""Neighbours of the gold item on either side."""
MOST_CASES = 300
_BATCH = 8

Size = Annotated[int, Range("[1, 1_000_000]")]


def measure(
    run: RunDirectory,
    setup: Setup,
    policy: Params,
    proxy: Proxy,
    *,
    n_users: Size,
    n_turns: Size,
    gate: Literal["stop", "warn"] = "warn",
) -> list[Result]:
    """What the reward model knows of items, once a run; said in one line.

    Args:
      policy: the supervised one, with its prior if it has one: whose order the reward is held against.
      n_users, n_turns: of the closed loop, where there is a world.
      gate: what to do where its choices are shown to be worse than the policy's.
    Returns: entries under the protocol `choice`, and in the world `choice_reward`, `choice_policy` and their difference under `closed-loop`.
    Raises: GateError where `gate` is `stop` and they are.
    """
    path, corpus = run.path / FILE, setup.data.corpus_name
    if path.exists():
        found = [Result.from_json(entry) for entry in read_list(path)]
    else:
        found = item_choice.choice_results(
            _cases(setup, policy, proxy), split=f"{corpus}/validation", seed=setup.seed, first=FIRST, around=AROUND
        )
        if setup.world_seed is not None:
            found += _with_users(setup, policy, proxy, n_users=n_users, n_turns=n_turns)
        write_json(path, [one.to_json() for one in found])
    if said := item_choice.sentence(found):
        notice(said)
    if reason := item_choice.falls_behind(found):
        if gate == "stop":
            raise GateError(
                f"reward model: {reason}. A policy that is paid by it can be expected to recommend worse, and none was started: see "
                f"{path}; a new --run-dir with --reward.choice-gate warn goes on"
            )
        notice(f"warning: {reason}. A policy that is paid by it can be expected to recommend worse")
    return found


def _cases(setup: Setup, policy: Params, proxy: Proxy) -> item_choice.Cases:
    """Of at most `MOST_CASES` fresh gold items of the validation split, evenly spread."""
    columns = {item: column for column, item in enumerate(setup.vocab.item_ids)}
    rows = [row for row in ranking_rows(evenly(setup.corpus.validation, 10 * MOST_CASES)) if row.fresh_gold]
    wanted = [(row, item) for row in rows for item in row.fresh_gold]
    wanted = [wanted[place] for place in np.linspace(0, len(wanted) - 1, min(len(wanted), MOST_CASES)).astype(int)]
    dialogues = list({row.dialogue.dialogue_id: row.dialogue for row, _ in wanted}.values())
    number = {dialogue.dialogue_id: place for place, dialogue in enumerate(dialogues)}
    windows = Windows.of(setup, dialogues)
    candidates: list[Candidates] = []
    scores: list[np.ndarray] = []
    with Progress("reward model: choice of items", 0, len(wanted)) as progress:
        for places, own in wrapped_batches(len(wanted), _BATCH):
            chosen = [wanted[place] for place in places]
            prompts = windows.batch([(number[row.dialogue.dialogue_id], row.message_index) for row, _ in chosen])
            logits = _item_logits(setup, policy, prompts)
            found = [
                item_choice.candidates_of(
                    one,
                    columns[item],
                    named=sorted({columns[named] for named in row.mentioned if named in columns}),
                    others=[columns[other] for other in row.gold if other != item],
                    first=FIRST,
                    around=AROUND,
                )
                for one, (row, item) in zip(logits, chosen, strict=True)
            ]
            judged = _judged(setup, proxy, prompts, [one.columns for one in found])
            candidates += found[:own]
            scores += judged[:own]
            progress.show(int(places[0]) + own, {})
    return item_choice.cases_of(candidates, scores, [row.dialogue.dialogue_id for row, _ in wanted])


def _item_logits(setup: Setup, policy: Params, prompts: PromptBatch) -> np.ndarray:
    score = setup.agent.compiled("score_items", lambda: jax.jit(setup.agent.score_items))
    return np.asarray(score(policy, prompts))


def _judged(setup: Setup, proxy: Proxy, prompts: PromptBatch, columns: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The weighted score of each context's items, each as a reply of its own."""
    grammar, weights = setup.agent.grammar, jnp.asarray(proxy.weights, jnp.float32)
    # One width for all, so that there is one program.
    width = min(grammar.n_items, FIRST + 2 * AROUND + 1)
    padded = np.stack([np.pad(one, (0, width - len(one)), mode="edge") for one in columns])
    replies = np.empty((*padded.shape, 4), np.int32)
    replies[...] = grammar.rec, 0, grammar.say, grammar.eos
    replies[..., 1] = grammar.first_item + padded

    def score(model: Params, groups: ResponseGroups) -> jax.Array:
        return setup.agent.score_replies(model, groups) @ weights

    compiled = setup.agent.compiled(("choice of items", proxy.weights), lambda: jax.jit(score))
    tokens = jnp.asarray(replies)
    groups = ResponseGroups(
        prompts=prompts,
        response_tokens=tokens,
        response_mask=jnp.ones(tokens.shape, bool),
    )
    found = np.asarray(compiled(proxy.model, groups), np.float64)
    return [row[: len(one)] for row, one in zip(found, columns, strict=True)]


def _with_users(setup: Setup, policy: Params, proxy: Proxy, *, n_users: int, n_turns: int) -> list[Result]:
    """What users say to the first choice of the reward, and to the policy's, and the difference, paired."""
    assert setup.world_seed is not None
    split = str(Split(setup.data.corpus_name, "test").drawn("greedy", users=True))
    found: list[Result] = []
    by_name: dict[str, dict[int, UserValues]] = {}
    for name, judge in ((item_choice.JUDGE, proxy), (item_choice.POLICY, None)):
        respond = functools.partial(_first_choice, setup, policy, judge)
        met = evaluate_closed_loop(respond, setup.data.world, setup.world_seed, n_users=n_users, n_turns=n_turns)
        system = f"{item_choice.FIRST_CHOICE}{name}"
        by_name[system] = {setup.seed: dict(per_user(met))}
        found += closed_loop.closed_loop_results(system, by_name[system], split=split)
    (reward, of_reward), (policy_name, of_policy) = by_name.items()
    name = difference_name(reward, policy_name)
    return found + closed_loop.closed_loop_differences(name, of_reward, of_policy, split=split)


def _first_choice(
    setup: Setup, policy: Params, proxy: Proxy | None, histories: Sequence[Sequence[Message]], numbers: Any
) -> list[Message]:
    """Suggests, without a word, the item that is scored highest among the policy's first that nobody has named."""
    del numbers
    vocab, data = setup.vocab, setup.data
    columns = {item: column for column, item in enumerate(vocab.item_ids)}
    sequences = [
        prompt_tokens(vocab, history, window=data.window, context_tokens=data.context_tokens) for history in histories
    ]
    tokens, mask = pad_left(sequences, data.context_tokens, vocab.pad)
    said: list[Message] = []
    for rows, own in wrapped_batches(len(histories), 64):
        scores = None if setup.scorer is None else setup.scorer.of_histories([histories[row] for row in rows])
        prompts = PromptBatch(
            tokens=jnp.asarray(tokens[rows]),
            mask=jnp.asarray(mask[rows]),
            item_scores=None if scores is None else jnp.asarray(scores),
        )
        logits = _item_logits(setup, policy, prompts).astype(np.float64)
        for row, one in zip(rows, logits, strict=True):
            named = {columns[item] for message in histories[row] for item in message.items if item in columns}
            # Where all were named, the best of them.
            one[list(named)] -= 1e9
        first = np.argsort(-logits, axis=1, kind="stable")[:, :FIRST]
        best = first[:, 0]
        if proxy is not None:
            fresh = [
                row[one[row] > -1e8] if (one[row] > -1e8).any() else row for one, row in zip(logits, first, strict=True)
            ]
            judged = _judged(setup, proxy, prompts, fresh)
            best = [row[int(np.argmax(score))] for row, score in zip(fresh, judged, strict=True)]
        said += [Message("recommender", (vocab.item_ids[int(item)],), 0) for item in list(best)[:own]]
    return said

"""Stage 4: what a policy is worth: ranking, text, and in the simulated world the truth.

Everything measured is stored case by case (`assessments/SYSTEM.npz`, `.json`), so that systems and seeds can be compared
pair by pair later, and an interrupted run does not measure twice.
"""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.batching import pad_left
from rlhf_jax.data.items import spelled_titles
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import RankingRow, prompt_tokens, ranking_rows, response_parts
from rlhf_jax.evaluation import baselines, closed_loop, ranking, text, user_centric
from rlhf_jax.evaluation.ranking import RankingOutcome, RankTable
from rlhf_jax.evaluation.results import Result
from rlhf_jax.evaluation.text import GeneratedTurn, is_grammatical, words_of
from rlhf_jax.interfaces import Dialogue, Message, Params, PromptBatch
from rlhf_jax.recipes.agent import Agent
from rlhf_jax.recipes.corpus import DataConfig, Prepared, Windows
from rlhf_jax.runtime.progress import Progress
from rlhf_jax.runtime.report import Conversation
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.simulators.closed_loop import ClosedLoopResult, evaluate_closed_loop

History = Sequence[Message]


@dataclasses.dataclass(frozen=True)
class AssessmentConfig:
    """Stage 4: the size of the evaluation on the test split."""

    test_dialogues: int | None = None
    """Test dialogues that are ranked; None is all."""
    text_turns: int = 500
    """Test turns that are answered for the text metrics."""
    batch_size: int = 64
    """Contexts of one forward pass."""
    users: int = 300
    """Users of the simulated world met in closed loop, none of whom the policy was trained on."""
    user_turns: int = 4
    """System turns a user has patience for."""
    conversations: int = 6
    """Test contexts shown in the report with the systems' replies."""


class Assessment(NamedTuple):
    """One system's measurements, case by case."""

    ranking: RankingOutcome
    turns: list[GeneratedTurn]
    """Greedy answers to test contexts; empty for a baseline."""
    users: dict[str, dict[str, np.ndarray]]
    """Decoding (`sampled`, `greedy`) to closed-loop metric to one value per user; empty for real data."""


class Responder:
    """The policy as one side of many conversations; remembers what the reward model thought of its turns."""

    def __init__(
        self,
        prepared: Prepared,
        agent: Agent,
        params: Params,
        data: DataConfig,
        *,
        greedy: bool,
        seed: int,
        reward_model: Params | None = None,
        weights: Sequence[float] = (),
    ) -> None:
        self._vocab, self._data = prepared.vocab, data
        self._params, self._reward_model = params, reward_model
        self._key, self._calls = jax.random.key(seed), 0
        self._proxy: dict[int, list[float]] = {}
        self._turn = _compiled_turn(agent, greedy, tuple(weights))

    def __call__(self, histories: Sequence[History]) -> list[Message]:
        """The next message of every conversation."""
        sequences = [
            prompt_tokens(self._vocab, history, window=self._data.window, context_tokens=self._data.context_tokens)
            for history in histories
        ]
        # Padded to a power of two, so that a shrinking crowd does not compile a program per size.
        size = max(8, 1 << (len(sequences) - 1).bit_length())
        padding = sequences[:1] * (size - len(sequences))
        tokens, mask = pad_left(sequences + padding, self._data.context_tokens, self._vocab.pad)
        prompts = PromptBatch(tokens=jnp.asarray(tokens), mask=jnp.asarray(mask))
        key = jax.random.fold_in(self._key, self._calls)
        self._calls += 1
        responses, proxy = self._turn(self._params, self._reward_model, prompts, key)
        if proxy is not None:
            # A conversation is known by its first message, the same object throughout.
            for history, score in zip(histories, np.asarray(proxy), strict=False):
                self._proxy.setdefault(id(history[0]), []).append(float(score))
        rows = np.asarray(responses)[: len(histories)]
        return [response_message(self._vocab, row) for row in rows]

    @property
    def proxy_scores(self) -> np.ndarray | None:
        """Mean weighted score of the turns of each conversation, in order of their first turns; None without R_φ."""
        return np.array([np.mean(scores) for scores in self._proxy.values()]) if self._proxy else None


@functools.lru_cache(maxsize=8)
def _compiled_turn(agent: Agent, greedy: bool, weights: tuple[float, ...]) -> Any:
    """One program for all responders of a kind: every evaluation has a responder of its own."""
    alpha = jnp.asarray(weights, jnp.float32)

    def turn(params: Params, reward_model: Params | None, prompts: PromptBatch, key: Any) -> tuple[Any, Any]:
        rollout = agent.greedy(params, prompts, key, None) if greedy else agent.sample(params, prompts, key)
        proxy = None if reward_model is None else agent.score(reward_model, rollout) @ alpha
        return rollout.response_tokens, proxy

    return jax.jit(turn)


@functools.lru_cache(maxsize=8)
def _compiled_greedy(agent: Agent) -> Any:
    return jax.jit(lambda params, prompts, key: agent.greedy(params, prompts, key, None))


def meet_users(
    responder: Responder, prepared: Prepared, data: DataConfig, *, n_users: int, n_turns: int
) -> dict[str, np.ndarray]:
    """Closed loop with users of the simulated world: metric to one value per user."""
    assert prepared.world_seed is not None
    result = evaluate_closed_loop(responder, data.world, prepared.world_seed, n_users=n_users, n_turns=n_turns)
    values = per_user(result)
    proxy = responder.proxy_scores
    return values if proxy is None else values | {"proxy_score": proxy}


def closed_loop_probe(
    prepared: Prepared,
    agent: Agent,
    reward_model: Params,
    config: "AssessmentConfig",
    data: DataConfig,
    *,
    weights: Sequence[float],
    seed: int,
) -> Callable[[Params], dict[str, float]] | None:
    """True utility while PPO runs, on the sampled policy; None where no world knows the truth."""
    if prepared.world_seed is None:
        return None

    def probe(params: Params) -> dict[str, float]:
        responder = Responder(
            prepared, agent, params, data, greedy=False, seed=seed, reward_model=reward_model, weights=weights
        )
        values = meet_users(responder, prepared, data, n_users=config.users, n_turns=config.user_turns)
        return {f"ppo/world/{metric}": float(np.mean(per)) for metric, per in values.items()}

    return probe


def response_message(vocab: Vocabulary, response: Sequence[int]) -> Message:
    """A sampled response as a message: words with items where they are mentioned, listed ones that are not first."""
    items, words = response_parts(vocab, response)
    mentioned = {vocab.item_id(token) for token in words if vocab.is_item(token)}
    parts: list[str | int] = [item for item in items if item not in mentioned]
    run: list[int] = []
    for token in [*words, -1]:
        if token >= 0 and not vocab.is_item(token):
            run.append(token)
            continue
        if run:
            parts.append(vocab.decode(run))
            run = []
        if token >= 0:
            parts.append(vocab.item_id(token))
    return Message(role="recommender", parts=tuple(parts), message_id=0)


def assess(
    run: RunDirectory,
    system: str,
    prepared: Prepared,
    agent: Agent,
    params: Params,
    config: AssessmentConfig,
    data: DataConfig,
    *,
    reward_model: Params,
    weights: Sequence[float],
    seed: int,
) -> Assessment:
    """Measures a policy on the test split, and on users where there is a world; once per run and system.

    Args:
      reward_model: tells the proxy score beside the truth; with its `weights` α, β, γ.
    """
    folder = run.path / "assessments"
    folder.mkdir(exist_ok=True)
    rows = test_rows(prepared, config)
    stored = folder / f"{system}.npz"
    if stored.exists():
        return load(stored, rows)
    scores = item_score_chunks(prepared, agent, params, rows, config, data, name=f"{system}: ranking")
    outcome = ranking.rank_rows(rows, scores, prepared.vocab.item_ids)
    turns = answer(prepared, agent, params, config, data, name=f"{system}: answers")
    users: dict[str, dict[str, np.ndarray]] = {}
    if prepared.world_seed is not None:
        for decoding in ("sampled", "greedy"):
            responder = Responder(
                prepared,
                agent,
                params,
                data,
                greedy=decoding == "greedy",
                seed=seed,
                reward_model=reward_model,
                weights=weights,
            )
            users[decoding] = meet_users(responder, prepared, data, n_users=config.users, n_turns=config.user_turns)
    assessment = Assessment(outcome, turns, users)
    save(stored, assessment)
    return assessment


def test_rows(prepared: Prepared, config: AssessmentConfig) -> list[RankingRow]:
    """Rows of the ranking protocols on the test split."""
    return list(ranking_rows(prepared.corpus.test[: config.test_dialogues]))


def item_score_chunks(
    prepared: Prepared,
    agent: Agent,
    params: Params,
    rows: Sequence[RankingRow],
    config: AssessmentConfig,
    data: DataConfig,
    *,
    name: str,
) -> Iterator[np.ndarray]:
    """Scores of all items for every row, from the context alone."""
    windows = Windows(prepared.vocab, prepared.corpus.test, data)
    number = {dialogue.dialogue_id: index for index, dialogue in enumerate(prepared.corpus.test)}
    tokens, mask = windows.prompts([(number[row.dialogue.dialogue_id], row.message_index) for row in rows])
    compiled = jax.jit(agent.score_items)
    with Progress(name, 0, len(rows)) as progress:
        for start in range(0, len(rows), config.batch_size):
            chosen = np.arange(start, start + config.batch_size) % len(rows)
            prompts = PromptBatch(tokens=jnp.asarray(tokens[chosen]), mask=jnp.asarray(mask[chosen]))
            end = min(start + config.batch_size, len(rows))
            yield np.asarray(compiled(params, prompts))[: end - start]
            progress.show(end, {})


def text_turns(windows: Windows, limit: int) -> list[tuple[int, int]]:
    """Evenly spread recommender turns of the test split."""
    turns = windows.turns()
    if len(turns) <= limit:
        return turns
    return [turns[index] for index in np.linspace(0, len(turns) - 1, limit).astype(int)]


def answer(
    prepared: Prepared, agent: Agent, params: Params, config: AssessmentConfig, data: DataConfig, *, name: str
) -> list[GeneratedTurn]:
    """Greedy answers to test contexts, beside what the human said there."""
    windows = Windows(prepared.vocab, prepared.corpus.test[: config.test_dialogues], data)
    turns = text_turns(windows, config.text_turns)
    responses = greedy_responses(agent, params, windows, turns, config.batch_size, name=name)
    generated = []
    for (dialogue, index), response in zip(turns, responses, strict=True):
        message = response_message(prepared.vocab, response)
        ids = prepared.vocab.grammar
        generated.append(
            GeneratedTurn(
                dialogue=windows.dialogues[dialogue].dialogue_id,
                text=words_of(message),
                reference=words_of(windows.dialogues[dialogue].messages[index]),
                n_tokens=len(response),
                n_items=len(response_parts(prepared.vocab, response).items),
                grammatical=is_grammatical(
                    response,
                    n_words=ids.n_words,
                    eos=ids.eos,
                    rec=ids.rec,
                    say=ids.say,
                    first_item=ids.first_item,
                    n_items=ids.n_items,
                    max_items=agent.grammar.max_items,
                ),
            )
        )
    return generated


def greedy_responses(
    agent: Agent,
    params: Params,
    windows: Windows,
    turns: Sequence[tuple[int, int]],
    batch_size: int,
    *,
    name: str,
) -> list[list[int]]:
    """The likeliest response to every context, padding removed."""
    tokens, mask = windows.prompts(turns)
    compiled = _compiled_greedy(agent)
    responses: list[list[int]] = []
    with Progress(name, 0, len(turns)) as progress:
        for start in range(0, len(turns), batch_size):
            chosen = np.arange(start, start + batch_size) % len(turns)
            prompts = PromptBatch(tokens=jnp.asarray(tokens[chosen]), mask=jnp.asarray(mask[chosen]))
            rollout = compiled(params, prompts, jax.random.key(0))
            for row, keep in zip(np.asarray(rollout.response_tokens), np.asarray(rollout.response_mask), strict=True):
                responses.append(row[keep].tolist())
            progress.show(min(start + batch_size, len(turns)), {})
    return responses[: len(turns)]


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


def baseline_assessments(prepared: Prepared, config: AssessmentConfig) -> dict[str, RankingOutcome]:
    """Popularity and copy, which stand in every ranking table; counted in all training dialogues, validation included."""
    rows = test_rows(prepared, config)
    counts = baselines.mention_counts((*prepared.corpus.train, *prepared.corpus.validation))
    return {
        name: ranking.rank_rows(rows, scores(rows, prepared.vocab.item_ids, counts), prepared.vocab.item_ids)
        for name, scores in (("popularity", baselines.popularity_scores), ("copy", baselines.copy_scores))
    }


def save(path: Path, assessment: Assessment) -> None:
    """Writes the cases as arrays; whole or not at all."""
    arrays: dict[str, Any] = {}
    for protocol, table in assessment.ranking.tables.items():
        arrays[f"ranks/{protocol}"], arrays[f"rows/{protocol}"] = table.ranks, table.rows
        arrays[f"dialogues/{protocol}"] = np.array(table.dialogues, np.str_)
    arrays["top/whole"] = np.array(json.dumps(assessment.ranking.top.whole))
    arrays["top/filtered"] = np.array(json.dumps(assessment.ranking.top.filtered))
    arrays["turns"] = np.array(json.dumps([list(turn) for turn in assessment.turns]))
    for decoding, values in assessment.users.items():
        arrays |= {f"users/{decoding}/{metric}": value for metric, value in values.items()}
    partial = path.with_name(f"{path.stem}.partial.npz")
    np.savez(partial, **arrays)
    partial.rename(path)


def load(path: Path, rows: Sequence[RankingRow] = ()) -> Assessment:
    """Reads what `save` wrote; `rows`, the same test rows, are needed for the user-centric metrics only."""
    with np.load(path) as arrays:
        names = list(arrays)
        tables = {}
        for name in names:
            kind, _, protocol = name.partition("/")
            if kind == "ranks":
                dialogues = tuple(map(str, arrays[f"dialogues/{protocol}"]))
                tables[protocol] = RankTable(protocol, arrays[name], arrays[f"rows/{protocol}"], dialogues)
        whole, filtered = (
            tuple(tuple(items) for items in json.loads(str(arrays[f"top/{kind}"]))) for kind in ("whole", "filtered")
        )
        turns = [GeneratedTurn(*fields) for fields in json.loads(str(arrays["turns"]))]
        users: dict[str, dict[str, np.ndarray]] = {}
        for name in names:
            if name.startswith("users/"):
                _, decoding, metric = name.split("/", 2)
                users.setdefault(decoding, {})[metric] = arrays[name]
    top = user_centric.TopOne(tuple(rows), whole, filtered)
    return Assessment(RankingOutcome(tables, top), turns, users)


def results(
    systems: Mapping[str, Mapping[int, Assessment]],
    baseline: Mapping[str, RankingOutcome],
    *,
    split: str,
    same_users: bool = False,
) -> list[Result]:
    """Entries of `results.json`: every system alone, and the last against the first, pair by pair.

    Args:
      systems: assessments by training seed, by name, in the order to show.
      baseline: systems that were not trained.
      split: data set and split, for example `redial/test`.
      same_users: every seed met the same users (the same world); otherwise each had its own.
    """
    found: list[Result] = []
    for name, outcome in baseline.items():
        found += ranking.ranking_results(name, outcome.tables, split=split)
        found += user_centric.user_centric_results(name, outcome.top, split=split)
    for name, runs in systems.items():
        seeds, some = sorted(runs), runs[min(runs)]
        found += ranking.ranking_results(name, _each(runs, lambda run: run.ranking.tables), split=split)
        if some.ranking.top.rows:
            found += user_centric.user_centric_results(name, _each(runs, lambda run: run.ranking.top), split=split)
        found += text.text_results(name, [runs[seed].turns for seed in seeds], split=split, seeds=seeds)
        for decoding in some.users:
            measured = {seed: run.users[decoding] for seed, run in runs.items()}
            at = f"{split}-users-{decoding}"
            found += closed_loop.closed_loop_results(name, measured, split=at, same_users=same_users)
    names = list(systems)
    if len(names) > 1:
        first, last, name = systems[names[0]], systems[names[-1]], f"{names[-1]}-{names[0]}"
        tables = [_each(runs, lambda run: run.ranking.tables) for runs in (last, first)]
        found += ranking.difference_results(name, *tables, split=split)
        seeds = sorted(first)
        sides = [[runs[seed].turns for seed in seeds] for runs in (last, first)]
        found += text.text_differences(name, *sides, split=split, seeds=seeds)
        for decoding in first[seeds[0]].users:
            met = [{seed: run.users[decoding] for seed, run in runs.items()} for runs in (last, first)]
            at = f"{split}-users-{decoding}"
            found += closed_loop.closed_loop_differences(name, *met, split=at, same_users=same_users)
    turns = systems[names[0]][min(systems[names[0]])].turns
    return found + text.constant_results([(turn.dialogue, turn.reference) for turn in turns], split=split)


def _each(runs: Mapping[int, Assessment], part: Callable[[Assessment], Any]) -> dict[int, Any]:
    return {seed: part(run) for seed, run in runs.items()}


def conversations(
    prepared: Prepared,
    agent: Agent,
    config: AssessmentConfig,
    data: DataConfig,
    params: Mapping[str, Params],
) -> list[Conversation]:
    """Test contexts with what the human and every system said there, titles spelled out."""
    windows = Windows(prepared.vocab, prepared.corpus.test[: config.test_dialogues], data)
    turns = [
        turn for turn in text_turns(windows, config.text_turns) if windows.dialogues[turn[0]].messages[turn[1]].items
    ]
    turns = turns[:: max(1, len(turns) // config.conversations)][: config.conversations]
    titles = spelled_titles(prepared.corpus.items)
    replies = {
        name: greedy_responses(agent, policy, windows, turns, len(turns), name=f"{name}: samples")
        for name, policy in params.items()
    }

    def shown(message: Message) -> str:
        words = [f" {titles.get(part, '<movie>')} " if isinstance(part, int) else part for part in message.parts]
        return " ".join("".join(words).split())

    found = []
    for place, (dialogue, index) in enumerate(turns):
        whole: Dialogue = windows.dialogues[dialogue]
        context = whole.messages[max(0, index - data.window) : index]
        said = {name: prepared.vocab.decode(replies[name][place], titles, specials=True) for name in params}
        found.append(
            Conversation(
                dialogue=whole.dialogue_id,
                context=tuple(f"{message.role}: {shown(message)}" for message in context),
                replies={"human": shown(whole.messages[index]), **said},
            )
        )
    return found


def summary_table(found: Sequence[Result]) -> str:
    """The few numbers one looks for first, as text for the terminal; the report has all."""
    wanted = (
        ("full", ("hr@1", "hr@10", "hr@50")),
        ("fresh", ("hr@1", "hr@10", "hr@50")),
        ("text", ("bleu4", "response_length")),
        ("closed-loop", ("mean_utility", "proxy_score", "success@1")),
    )
    systems = list(dict.fromkeys(result.system for result in found if result.system != "constant"))
    cells = {(r.protocol, r.split, r.metric, r.system): r for r in found}
    lines = [f"{'':44}" + "".join(f"{system:>12}" for system in systems)]
    for protocol, metrics in wanted:
        for split in dict.fromkeys(result.split for result in found if result.protocol == protocol):
            for metric in metrics:
                row = [cells.get((protocol, split, metric, system)) for system in systems]
                if any(row):
                    values = "".join(f"{'–' if r is None else format(r.value, '.4f'):>12}" for r in row)
                    lines.append(f"{split + ' ' + protocol + ' ' + metric:44}" + values)
    return "\n".join(lines)


def notes(prepared: Prepared, data: DataConfig) -> list[str]:
    """What a reader must know about the data before reading a number."""
    provenance = prepared.corpus.provenance
    found = [
        (
            f"{provenance['n_train']} training, {provenance['n_validation']} validation and {provenance['n_test']} test "
            f"dialogues; catalogue of {len(prepared.corpus.items)} items (union over all splits). "
            f"The policy sees the last {data.window} turns, at most {data.context_tokens} tokens."
        )
    ]
    kinds = Counter(dialogue.provenance for dialogue in prepared.corpus.train)
    if kinds.get("rebuilt"):
        found.append(
            f"The training file is a rebuild of the official one: {kinds['rebuilt']} of {sum(kinds.values())} training "
            "dialogues have real text and `liked` labels, but no times and inferred `suggested` labels; published "
            "systems were trained on the full official file."
        )
    if provenance.get("n_skipped"):
        found.append(f"{provenance['n_skipped']} malformed lines were skipped; config.json lists them.")
    return found

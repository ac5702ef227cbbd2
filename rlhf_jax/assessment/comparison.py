"""Systems side by side: entries of `results.json`, conversations for the report, a table for the terminal."""

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.assessment.assess import Assessment, AssessmentConfig, greedy_responses, test_rows, text_turns
from rlhf_jax.data.items import spelled_titles
from rlhf_jax.data.windows import RankingRow
from rlhf_jax.evaluation import baselines, closed_loop, ranking, text, user_centric
from rlhf_jax.evaluation.named_items import split_by_naming
from rlhf_jax.evaluation.ranking import RankingOutcome, RankTable
from rlhf_jax.evaluation.results import Result, Sides, Split
from rlhf_jax.interfaces import Dialogue, Item, Message, Params
from rlhf_jax.recommenders import mixture
from rlhf_jax.recommenders.contexts import row_contexts, score_chunks
from rlhf_jax.recommenders.scorer import fit_scorer
from rlhf_jax.reporting import result_tables
from rlhf_jax.reporting.contents import Conversation
from rlhf_jax.runtime.files import notice
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.setup import Setup

OF_THE_REWARD = (
    *("reward_model", "reward", "policy", "reward-policy"),
    *("choice_reward", "choice_policy", "choice_reward-choice_policy"),
)
"""Systems whose entries say how well a reward model predicts, and which items it would choose (`assessment.reward_choice`)."""
LEFT_TO_THE_REPORT = ("constant", "random", "logged", "oracle", *OF_THE_REWARD)
"""Systems that the terminal's table has no room for."""
MOST_DIALOGUES, MOST_ITEMS = 100_000, 20_000
"""Training dialogues and items of which the mixture of closed forms is counted for a report."""


def results(
    systems: Mapping[str, Mapping[int, Assessment]],
    baseline: Mapping[str, RankingOutcome],
    *,
    split: str,
    compared: Sides | None = None,
    further: Sequence[Sides] = (),
    same_users: bool = False,
    same_test: bool = True,
) -> list[Result]:
    """Entries of `results.json`: every system alone, and pairs of them against each other, case by case.

    Args:
      systems: assessments by training seed, by name, in the order to show.
      baseline: systems that were not trained.
      split: data set and split, for example `redial/test`.
      compared: which two; None: `last_against_first`.
      further: more pairs.
      same_users: every seed met the same users (the same world); otherwise each had its own.
      same_test: every seed was judged on the same test dialogues; where each had its own (worlds that differ), ranking
        and text are left to the runs' own reports, and what the users lived through is gathered.
    """
    found: list[Result] = []
    for name, outcome in baseline.items():
        found += ranking.ranking_results(name, outcome.tables, split=split)
        found += user_centric.user_centric_results(name, outcome.top, split=split)
    for name, runs in systems.items():
        seeds, first = sorted(runs), runs[min(runs)]
        if same_test:
            found += ranking.ranking_results(name, _each(runs, lambda run: run.ranking.tables), split=split)
            if first.ranking.top.rows:
                found += user_centric.user_centric_results(name, _each(runs, lambda run: run.ranking.top), split=split)
            found += text.text_results(name, [runs[seed].turns for seed in seeds], split=split, seeds=seeds)
        for decoding in first.users:
            measured = {seed: run.users[decoding] for seed, run in runs.items()}
            at = str(Split.parse(split).drawn(decoding, users=True))
            found += closed_loop.closed_loop_results(name, measured, split=at, same_users=same_users)
    compared = compared or last_against_first(systems)
    pairs = [*further] if compared is None else [compared, *further]
    for pair in dict.fromkeys(pairs):
        sides = [systems[name] for name in pair]
        seeds = sorted(sides[1])
        if same_test:
            tables = [_each(runs, lambda run: run.ranking.tables) for runs in sides]
            found += ranking.difference_results(pair.name, *tables, split=split)
            answers = [[runs[seed].turns for seed in seeds] for runs in sides]
            found += text.text_differences(pair.name, *answers, split=split, seeds=seeds)
        for decoding in sides[1][seeds[0]].users:
            met = [{seed: run.users[decoding] for seed, run in runs.items()} for runs in sides]
            at = str(Split.parse(split).drawn(decoding, users=True))
            found += closed_loop.closed_loop_differences(pair.name, *met, split=at, same_users=same_users)
    if not same_test:
        return found
    some = next(iter(systems.values()))
    turns = some[min(some)].turns
    return found + text.constant_results([(turn.dialogue, turn.reference) for turn in turns], split=split)


def last_against_first(systems: Mapping[str, Any]) -> Sides | None:
    """What a run compares unless told otherwise: the last of its systems with the first; nothing where there is one."""
    names = list(systems)
    return Sides(names[-1], names[0]) if len(names) > 1 else None


def by_naming(
    systems: Mapping[str, Mapping[int, RankingOutcome]],
    baseline: Mapping[str, RankingOutcome],
    rows: Sequence[RankingRow],
    items: Mapping[int, Item],
    *,
    split: str,
    compared: Sides | None = None,
) -> list[Result]:
    """The protocol `fresh` split by what the context names of the gold item: title, person, or nothing.

    Args:
      systems: rankings by training seed, by name.
      baseline: rankings of systems that were not trained.
      rows: that were ranked, the same for all.
      compared: as in `results`.
    Raises: ValueError where rankings and rows do not belong together.
    """

    def parts(outcome: RankingOutcome) -> dict[str, RankTable]:
        return split_by_naming(outcome.tables["fresh"], rows, items)

    metrics = ("hr@1", "hr@5", "hr@50", "ndcg@5")
    found: list[Result] = []
    for name, outcome in baseline.items():
        found += ranking.ranking_results(name, parts(outcome), split=split, metrics=metrics)
    tables = {name: _each(runs, parts) for name, runs in systems.items()}
    for name, runs in tables.items():
        found += ranking.ranking_results(name, runs, split=split, metrics=metrics)
    compared = compared or last_against_first(systems)
    if compared is not None:
        sides = [tables[name] for name in compared]
        found += ranking.difference_results(compared.name, *sides, split=split, metrics=metrics)
    return found


def yardstick_results(
    measured: Mapping[int, Mapping[str, Mapping[str, np.ndarray]]], *, split: str, same_users: bool = False
) -> list[Result]:
    """Entries for recommenders that were not trained, beside the sampled and the greedy policies.

    Args:
      measured: `users.yardsticks` by seed of the world; several are gathered, as the policies' are.
      split: as in `results`.
      same_users: as in `results`.
    """
    names = measured[min(measured)]
    by_name = {name: {seed: values[name] for seed, values in measured.items()} for name in names}
    return [
        result if len(measured) > 1 else dataclasses.replace(result, seeds=(), std=None)
        for decoding in ("sampled", "greedy")
        for name, values in by_name.items()
        for result in closed_loop.closed_loop_results(
            name, values, split=str(Split.parse(split).drawn(decoding, users=True)), same_users=same_users
        )
    ]


def _each(runs: Mapping[int, Any], part: Callable[[Any], Any]) -> dict[int, Any]:
    return {seed: part(run) for seed, run in runs.items()}


def baseline_assessments(setup: Setup, config: AssessmentConfig) -> dict[str, RankingOutcome]:
    """Popularity, copy and the mixture of closed forms with its fixed weights, which stand in every ranking table.

    The mixture is counted on the training split alone. A notice says where it is left out: above `MOST_DIALOGUES` or `MOST_ITEMS` it
    takes minutes and gigabytes (docs/recommenders.md).
    """
    rows, item_ids = test_rows(setup, config), setup.vocab.item_ids
    if len(setup.corpus.train) > MOST_DIALOGUES or len(item_ids) > MOST_ITEMS:
        notice("the report has no row of the mixture of closed forms: experiments/rank_closed_forms.py ranks it")
        return popularity_and_copy(setup, config)
    scorer = setup.scorer
    if scorer is None or not mixture.WEIGHTS.keys() <= scorer.parts.keys():
        scorer = fit_scorer(setup.corpus, item_ids)
    fixed = mixture.mix({name: scorer.parts[name] for name in mixture.WEIGHTS})
    chunks = score_chunks(functools.partial(mixture.scores, fixed), row_contexts(rows, scorer.catalogue))
    return {**popularity_and_copy(setup, config), "mixture": ranking.rank_rows(rows, chunks, item_ids)}


def popularity_and_copy(setup: Setup, config: AssessmentConfig) -> dict[str, RankingOutcome]:
    """What needs nothing but counts, of all training dialogues, validation included."""
    rows, item_ids = test_rows(setup, config), setup.vocab.item_ids
    counts = baselines.mention_counts(itertools.chain(setup.corpus.train, setup.corpus.validation))
    return {
        name: ranking.rank_rows(rows, scores(rows, item_ids, counts), item_ids)
        for name, scores in (("popularity", baselines.popularity_scores), ("copy", baselines.copy_scores))
    }


def conversations(setup: Setup, config: AssessmentConfig, params: Mapping[str, Params]) -> list[Conversation]:
    """Test contexts with what the human and every system said there, titles spelled out."""
    windows = Windows.of(setup, setup.corpus.test[: config.test_dialogues])
    turns = [
        turn for turn in text_turns(windows, config.text_turns) if windows.dialogues[turn[0]].messages[turn[1]].items
    ]
    turns = turns[:: max(1, len(turns) // config.conversations)][: config.conversations]
    titles = spelled_titles(setup.corpus.items)
    replies = {
        name: greedy_responses(setup.agent, policy, windows, turns, len(turns), name=f"{name}: samples")
        for name, policy in params.items()
    }

    def shown(message: Message) -> str:
        words = [f" {titles.get(part, '<movie>')} " if isinstance(part, int) else part for part in message.parts]
        return " ".join("".join(words).split())

    found = []
    for place, (dialogue, index) in enumerate(turns):
        whole: Dialogue = windows.dialogues[dialogue]
        context = whole.messages[max(0, index - setup.data.window) : index]
        said = {name: setup.vocab.decode(replies[name][place], titles, specials=True) for name in params}
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
    found = result_tables.informative(found)
    wanted = (
        ("full", ("hr@1", "hr@10", "hr@50")),
        ("fresh", ("hr@1", "hr@10", "hr@50")),
        ("text", ("bleu4", "response_length")),
        ("closed-loop", ("mean_utility", "proxy_score", "success@1")),
    )
    found = [result for result in found if result.system not in LEFT_TO_THE_REPORT]
    # Of the differences the first, which the verdict is about: a line should fit a screen.
    first = next((result.system for result in found if result.is_difference), None)
    found = [result for result in found if not result.is_difference or result.system == first]
    systems = {system: max(12, len(system) + 2) for system in dict.fromkeys(result.system for result in found)}
    cells = {(r.protocol, r.split, r.metric, r.system): r for r in found}
    lines = [f"{'':44}" + "".join(f"{system:>{width}}" for system, width in systems.items())]
    for protocol, metrics in wanted:
        for split in dict.fromkeys(result.split for result in found if result.protocol == protocol):
            for metric in metrics:
                row = {system: cells.get((protocol, split, metric, system)) for system in systems}
                if any(row.values()):
                    values = "".join(
                        f"{'–' if r is None else format(r.value, '.4f'):>{systems[system]}}"
                        for system, r in row.items()
                    )
                    lines.append(f"{split + ' ' + protocol + ' ' + metric:44}" + values)
    return "\n".join(lines)


def notes(setup: Setup) -> list[str]:
    """What a reader must know about the data before reading a number."""
    corpus, data = setup.corpus, setup.data
    provenance = corpus.provenance
    found = [
        (
            f"{provenance['n_train']} training, {provenance['n_validation']} validation and {provenance['n_test']} test "
            f"dialogues; catalogue of {len(corpus.items)} items (union over all splits). "
            f"The policy sees the last {data.window} turns, at most {data.context_tokens} tokens."
        )
    ]
    kinds = Counter(dialogue.provenance for dialogue in corpus.train)
    if kinds.get("rebuilt"):
        found.append(
            f"The training file is a rebuild of the official one: {kinds['rebuilt']} of {sum(kinds.values())} training "
            "dialogues have real text and `liked` labels, but no times and inferred `suggested` labels; published "
            "systems were trained on the full official file."
        )
    if provenance.get("n_skipped"):
        found.append(f"{provenance['n_skipped']} malformed lines were skipped; config.json lists them.")
    return found

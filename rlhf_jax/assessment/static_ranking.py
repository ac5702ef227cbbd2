"""Logged messages ranked by the retriever, and by reasoning policies among its candidates: no conversation is made.

The protocol is `fresh` of `evaluation/ranking.py`: items that a human recommender named and nobody before, among the whole
catalogue. A policy is asked for the first place of its list; what is no candidate ties for the last rank.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32

from rlhf_jax.assessment import assess
from rlhf_jax.assessment.assess import Assessment
from rlhf_jax.data.batching import wrapped_batches
from rlhf_jax.data.windows import RankingRow, ranking_rows
from rlhf_jax.evaluation import ranking
from rlhf_jax.evaluation.ranking import RankingOutcome, RankTable
from rlhf_jax.evaluation.results import Result
from rlhf_jax.interfaces import Dialogue, Params
from rlhf_jax.runtime.progress import Progress
from rlhf_jax.stages.smtpo.recommender import Recommender

BATCH = 64
"""Contexts at once: one program for any number of them."""
RETRIEVER = "retriever"
"""What recalls candidates, as a system of its own."""
PROTOCOL = "fresh"
ABOUT = "logged messages, not conversations: items that the human recommender named and nobody before, among the whole catalogue"
METRICS = ("hr@1", "hr@5", "hr@10", "hr@50", "ndcg@10")
Tables = Mapping[str, Mapping[str, RankTable]]
"""System to protocol to ranks."""


def rank_all(
    folder: Path,
    recommender: Recommender,
    policies: Mapping[str, Params],
    dialogues: Sequence[Dialogue],
    *,
    corpus: str,
    suffix: str = "",
) -> Tables:
    """Ranks of the retriever and of every policy, stored as `SYSTEM{suffix}.npz`; one pass over the contexts for all.

    Args:
      folder: of what is stored; a system that is there is not ranked again.
      dialogues: with at least one fresh item.
      corpus: what lines of progress call them.
    """
    systems: dict[str, Params | None] = {RETRIEVER: None, **policies}
    rows = [row for row in ranking_rows(dialogues) if row.fresh_gold]
    files = {name: folder / f"{name}{suffix}.npz" for name in systems}
    missing = {name: systems[name] for name, path in files.items() if not path.exists()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, outcome in _ranked(recommender, missing, rows, corpus).items():
        assess.save(files[name], Assessment(outcome, [], {}))
    return {name: assess.load(path, rows).ranking.tables for name, path in files.items()}


def _ranked(
    recommender: Recommender, systems: Mapping[str, Params | None], rows: Sequence[RankingRow], corpus: str
) -> Mapping[str, RankingOutcome]:
    if not systems:
        return {}
    parts: dict[str, list[RankingOutcome]] = {name: [] for name in systems}
    ids = recommender.setup.vocab.item_ids
    with Progress(f"ranking {corpus}: {', '.join(systems)}", 0, len(rows)) as progress:
        for chosen, own in wrapped_batches(len(rows), BATCH):
            batch = [rows[row] for row in chosen]
            for name, found in scores(recommender, systems, batch).items():
                parts[name].append(ranking.rank_rows(batch[:own], [found[:own]], ids, protocols=(PROTOCOL,)))
            progress.show(int(chosen[0]) + own, {})
    return {name: ranking.joined(outcomes) for name, outcomes in parts.items()}


def scores(
    recommender: Recommender, systems: Mapping[str, Params | None], rows: Sequence[RankingRow]
) -> dict[str, Float32[np.ndarray, "N I"]]:
    """Every system's scores of all items before each row; −inf for what was named, and for a policy where an item is no candidate.

    Args:
      systems: parameters of policies; None: the retriever alone.
    """
    agent = recommender.setup.agent
    compiled = agent.compiled("score_items", lambda: jax.jit(agent.score_items))
    prompts, recalled = recommender.prompts([row.dialogue.messages[: row.message_index] for row in rows])
    candidates = np.asarray(prompts.candidates)
    found = {}
    for name, params in systems.items():
        own = recalled if params is None else np.where(candidates, np.asarray(compiled(params, prompts)), -np.inf)
        found[name] = np.asarray(own, np.float32)
    return found


def results(found: Mapping[int, Tables], *, split: str) -> list[Result]:
    """Entries of `results.json` from all training seeds: every system, and each against those before it."""
    names = list(found[min(found)])
    runs = {name: {seed: tables[name] for seed, tables in found.items()} for name in names}
    entries: list[Result] = []
    for name, own in runs.items():
        entries += ranking.ranking_results(name, own, split=split, metrics=METRICS)
    for place, a in enumerate(names):
        for b in names[:place]:
            entries += ranking.difference_results(f"{a}-{b}", runs[a], runs[b], split=split, metrics=METRICS)
    return entries

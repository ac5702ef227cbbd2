"""Ranking under named protocols: integer ranks once, every metric from the ranks.

A row is a recommender message with items; a case is a (row, gold item) pair. The rank of a gold item is the number of
candidates that score at least as much, itself included, so ties count against the system:

    rank(g) = |{c ∈ candidates : s_c ≥ s_g}|

    protocol         candidates                                   gold
    full             whole catalogue                              all items of the message
    fresh            whole catalogue                              items not mentioned before
    fresh-filtered   catalogue minus items mentioned before       items not mentioned before
    sampled-99       the item and 99 uniform negatives, seeded    all items of the message

Rows follow the standardised ReDial protocol (Kostric and Balog 2026, doi 10.1145/3805712.3808573).
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.data.windows import RankingRow
from rlhf_jax.evaluation import bootstrap
from rlhf_jax.evaluation.bootstrap import DialogueSums, Estimate
from rlhf_jax.evaluation.results import DIFFERENCE, Result
from rlhf_jax.evaluation.user_centric import TopOne, top_items

PROTOCOLS = ("full", "fresh", "fresh-filtered", "sampled-99")
N_NEGATIVES = 99
CUTOFFS = (1, 5, 10, 50)
_NAMED = {
    "": "",
    "title named": "; only items whose title stands in the context",
    "person named": "; only items of which the context names a person and not the title",
    "nothing named": "; only items of which the context names neither title nor person",
}


class RankTable(NamedTuple):
    """The rank of every case under one protocol; everything else is derived from it."""

    protocol: str
    ranks: np.ndarray
    """int32 [N], best is 1."""
    rows: np.ndarray
    """int32 [N], place of the case's row among the rows given."""
    dialogues: tuple[str, ...]
    """[N], dialogue id of each case."""


class RankingOutcome(NamedTuple):
    """What one pass over the scores leaves behind."""

    tables: dict[str, RankTable]
    """By protocol."""
    top: TopOne
    """First-ranked items per row, for the user-centric metrics."""


def rank_rows(
    rows: Sequence[RankingRow],
    score_chunks: Iterable[np.ndarray],
    item_ids: Sequence[int],
    *,
    protocols: Sequence[str] | None = None,
    seed: int = 0,
) -> RankingOutcome:
    """Ranks of every case under every protocol, in one pass over the scores; holds one chunk of them at a time.

    Args:
      rows: what is to be ranked, in the order of the scores.
      score_chunks: scores of all catalogue items for consecutive rows, higher is better, −inf allowed. each [n, I]
      item_ids: catalogue order of the scores' columns. [I]
      protocols: which to compute; None takes all that the catalogue is large enough for.
      seed: of the sampled negatives, which depend on (seed, dialogue, message) alone.
    Raises: ValueError for an unknown protocol, a gold item outside the catalogue, a NaN score, scores that do not
      fit the rows, or `sampled-99` on a catalogue with fewer than 99 negatives.
    """
    columns = {item: column for column, item in enumerate(item_ids)}
    if len(columns) != len(item_ids):
        raise ValueError(f"item_ids has {len(item_ids) - len(columns)} repeated ids")
    protocols = _chosen_protocols(protocols, rows, len(columns))
    ranks: dict[str, list[np.ndarray]] = {protocol: [] for protocol in protocols}
    top: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    done = 0
    for chunk in score_chunks:
        chunk = np.asarray(chunk)
        if chunk.ndim != 2 or chunk.shape[1] != len(columns) or done + len(chunk) > len(rows):
            raise ValueError(f"scores {chunk.shape} after {done} of {len(rows)} rows; catalogue {len(columns)} items")
        for row, scores in zip(rows[done : done + len(chunk)], chunk, strict=True):
            _check_row(row, scores, columns)
            mentioned = np.array(sorted({columns[item] for item in row.mentioned if item in columns}), np.int64)
            for protocol in protocols:
                ranks[protocol].append(_row_ranks(protocol, row, scores, columns, mentioned, seed))
            top.append(top_items(scores, item_ids, mentioned, most=len(set(row.gold)) + 1))
        done += len(chunk)
    if done != len(rows):
        raise ValueError(f"scores for {done} rows, but there are {len(rows)}")
    tables = {protocol: _table(protocol, rows, ranks[protocol]) for protocol in protocols}
    return RankingOutcome(tables, TopOne(tuple(rows), tuple(a for a, _ in top), tuple(b for _, b in top)))


def possible_protocols(n_items: int, most_gold: int) -> tuple[str, ...]:
    """All that a catalogue is large enough for, where no row has more gold items than `most_gold`."""
    return PROTOCOLS if n_items - most_gold >= N_NEGATIVES else PROTOCOLS[:-1]


def joined(outcomes: Sequence[RankingOutcome]) -> RankingOutcome:
    """Outcomes of consecutive rows as one: what `rank_rows` gives for all of them, negatives included.

    So several systems are ranked batch by batch in one pass over the contexts, and none of their scores is kept.

    Raises: ValueError where there is none, or protocols differ.
    """
    if not outcomes or any(set(one.tables) != set(outcomes[0].tables) for one in outcomes):
        raise ValueError(f"{len(outcomes)} outcomes to join, of protocols {[sorted(one.tables) for one in outcomes]}")
    firsts = np.cumsum([0, *(len(one.top.rows) for one in outcomes)])
    tables = {}
    for protocol in outcomes[0].tables:
        parts = [one.tables[protocol] for one in outcomes]
        rows = [part.rows + np.int32(first) for part, first in zip(parts, firsts[:-1], strict=True)]
        dialogues = tuple(name for part in parts for name in part.dialogues)
        tables[protocol] = RankTable(
            protocol, np.concatenate([part.ranks for part in parts]), np.concatenate(rows), dialogues
        )
    tops = [one.top for one in outcomes]
    fields = (tuple(entry for top in tops for entry in top[place]) for place in range(3))
    return RankingOutcome(tables, TopOne(*fields))


def metric_values(metric: str, ranks: np.ndarray) -> np.ndarray:
    """A metric of every case, from its rank; all have one relevant item per case.

        hr@k = [rank ≤ k]      ndcg@k = [rank ≤ k] / log2(rank + 1)      mrr = 1 / rank

    Raises: ValueError for another name.
    Examples:
      >>> metric_values("hr@5", np.array([1, 5, 6])).tolist()
      [1.0, 1.0, 0.0]
      >>> metric_values("ndcg@5", np.array([1, 3, 6])).tolist()
      [1.0, 0.5, 0.0]
    """
    kind, _, k = metric.partition("@")
    ranks = np.asarray(ranks, np.float64)
    if kind == "mrr" and not k:
        return 1.0 / ranks
    if kind not in ("hr", "ndcg") or not k.isdigit() or int(k) < 1:
        raise ValueError(f"ranking metric {metric!r}: expected hr@k, ndcg@k or mrr")
    inside = (ranks <= int(k)).astype(np.float64)
    return inside if kind == "hr" else inside / np.log2(ranks + 1.0)


def metric_names(cutoffs: Sequence[int] = CUTOFFS) -> tuple[str, ...]:
    """hr@k and ndcg@k at every cutoff (ndcg@1 is hr@1 and left out), and mrr."""
    return (*(f"hr@{k}" for k in cutoffs), *(f"ndcg@{k}" for k in cutoffs if k > 1), "mrr")


def definition(metric: str, protocol: str) -> str:
    """One sentence that says what the number is; a protocol may be followed by a comma and which cases of it are meant."""
    kind, _, k = metric.partition("@")
    protocol, _, part = protocol.partition(", ")
    what = {
        "hr": f"share of (message, gold item) cases ranked at {k} or better",
        "ndcg": f"1/log2(rank + 1) inside the top {k}, else 0, mean over (message, gold item) cases",
        "mrr": "1/rank, mean over (message, gold item) cases",
    }[kind]
    against = {
        "full": "all gold items against the whole catalogue",
        "fresh": "gold items not mentioned before against the whole catalogue",
        "fresh-filtered": "gold items not mentioned before against the catalogue without mentioned items",
        "sampled-99": "each gold item against 99 uniform negatives",
    }[protocol]
    return f"{what}; {against}; ties count against the system{_NAMED[part]}"


def cases(table: RankTable, metric: str) -> DialogueSums:
    """A metric gathered by dialogue, ready for `bootstrap`."""
    return bootstrap.by_dialogue(metric_values(metric, table.ranks), table.dialogues)


def ranking_results(
    system: str,
    runs: Mapping[int, Mapping[str, RankTable]] | Mapping[str, RankTable],
    *,
    split: str,
    metrics: Sequence[str] = metric_names(),
) -> list[Result]:
    """Entries of `results.json` for one system: every metric under every protocol, with intervals.

    Args:
      system: name in front of the metric (`sft`, `ppo`, `popularity` …).
      runs: tables by protocol; for a trained system, such tables by training seed.
    """
    seeds, tables = _runs(runs)
    results = []
    for protocol in tables[0]:
        for metric in metrics:
            estimate = bootstrap.mean_over_seeds([cases(run[protocol], metric) for run in tables])
            results.append(
                _result(f"{system}/{metric}", estimate, protocol, split, seeds, definition(metric, protocol))
            )
    return results


def difference_results(
    name: str,
    a: Mapping[int, Mapping[str, RankTable]] | Mapping[str, RankTable],
    b: Mapping[int, Mapping[str, RankTable]] | Mapping[str, RankTable],
    *,
    split: str,
    metrics: Sequence[str] = metric_names(),
) -> list[Result]:
    """Entries for `a` − `b`, paired by training seed and dialogue (`name` is for example `ppo-sft`)."""
    (seeds, left), (other, right) = _runs(a), _runs(b)
    if seeds and other and seeds != other:
        raise ValueError(f"{name}: seeds {seeds} against {other}; a paired difference needs the same")
    if len(right) == 1:
        right = right * len(left)
    results = []
    for protocol in left[0]:
        for metric in metrics:
            estimate = bootstrap.difference_over_seeds(
                [cases(run[protocol], metric) for run in left], [cases(run[protocol], metric) for run in right]
            )
            text = f"{DIFFERENCE} means of: {definition(metric, protocol)}"
            results.append(_result(f"{name}/{metric}", estimate, protocol, split, seeds, text))
    return results


def _runs(
    runs: Mapping[int, Mapping[str, RankTable]] | Mapping[str, RankTable],
) -> tuple[tuple[int, ...], list[Mapping[str, RankTable]]]:
    """Seeds and their tables; a mapping straight from protocol to table is a system without seeds."""
    if not runs:
        raise ValueError("no runs")
    if any(isinstance(table, RankTable) for table in runs.values()):
        return (), [runs]  # type: ignore[list-item]
    seeds = tuple(sorted(runs))  # type: ignore[type-var]
    return seeds, [runs[seed] for seed in seeds]  # type: ignore[index, misc]


def _result(name: str, estimate: Estimate, protocol: str, split: str, seeds: tuple[int, ...], text: str) -> Result:
    n = estimate.n // max(len(seeds), 1)
    return Result(name, estimate.value, n, protocol, split, estimate.interval, seeds, text, estimate.std)


def _chosen_protocols(protocols: Sequence[str] | None, rows: Sequence[RankingRow], n_items: int) -> tuple[str, ...]:
    most_gold = max((len(row.gold) for row in rows), default=0)
    possible = possible_protocols(n_items, most_gold)
    if protocols is None:
        return possible
    unknown = sorted(set(protocols) - set(PROTOCOLS))
    if unknown:
        raise ValueError(f"unknown ranking protocol {unknown[0]!r}; there are {', '.join(PROTOCOLS)}")
    if "sampled-99" in protocols and "sampled-99" not in possible:
        raise ValueError(f"sampled-99 needs {N_NEGATIVES} negatives: {n_items} items, up to {most_gold} gold in a row")
    return tuple(protocols)


def _check_row(row: RankingRow, scores: np.ndarray, columns: Mapping[int, int]) -> None:
    place = f"dialogue {row.dialogue.dialogue_id}, message {row.message_index}"
    for item in row.gold:
        if item not in columns:
            raise ValueError(f"{place}: gold item {item} is not among the {len(columns)} items of the catalogue")
    if np.isnan(scores).any():
        raise ValueError(f"{place}: {int(np.isnan(scores).sum())} scores are NaN")


def _row_ranks(
    protocol: str,
    row: RankingRow,
    scores: np.ndarray,
    columns: Mapping[int, int],
    mentioned: np.ndarray,
    seed: int,
) -> np.ndarray:
    gold = row.fresh_gold if protocol.startswith("fresh") else row.gold
    of_gold = scores[np.array([columns[item] for item in gold], np.int64)]
    if protocol == "sampled-99":
        negatives = np.take(scores, _negatives(row, columns, seed))
        return 1 + np.count_nonzero(negatives[None, :] >= of_gold[:, None], axis=1)
    ranks = np.array([np.count_nonzero(scores >= score) for score in of_gold], np.int64)
    if protocol == "fresh-filtered":
        ranks -= np.count_nonzero(np.take(scores, mentioned)[None, :] >= of_gold[:, None], axis=1)
    return ranks


def _negatives(row: RankingRow, columns: Mapping[int, int], seed: int) -> np.ndarray:
    """99 different columns, none of them a gold item of the row: [99]."""
    generator = np.random.default_rng([seed, zlib.crc32(row.dialogue.dialogue_id.encode()), row.message_index])
    gold = sorted({columns[item] for item in row.gold})
    drawn = generator.choice(len(columns) - len(gold), size=N_NEGATIVES, replace=False, shuffle=False)
    for column in gold:  # Ascending, so that every step makes room for one more gold column.
        drawn = drawn + (drawn >= column)
    return drawn


def _table(protocol: str, rows: Sequence[RankingRow], ranks: list[np.ndarray]) -> RankTable:
    counts = [len(of_row) for of_row in ranks]
    index = np.repeat(np.arange(len(rows), dtype=np.int32), counts)
    flat = np.concatenate(ranks).astype(np.int32) if ranks else np.zeros(0, np.int32)
    return RankTable(protocol, flat, index, tuple(rows[i].dialogue.dialogue_id for i in index.tolist()))

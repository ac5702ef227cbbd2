"""Two rankings without a model that stand in every table: what is popular, and what was just said.

Both give plain scores, so they go through the same code as a model's logits.

Measured on the ReDial test split, hit rate at 1/10/50, counts from the whole official train file as rebuilt (training
and validation dialogues together), beside other people's figures for the same rows:

                      popularity           copy                 copy, fresh
    here              .013 .058 .157       .046 .147 .239       .005 .051 .153
    published         .010 .048 .159       .054 .142 .243       .003 .043 .156

Neither counting messages, dialogues, suggestions or liked labels instead of mentions, nor merged turns, nor averaging
over messages instead of items closes the gap; theirs rests on the official train file, ours on its rebuild.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from rlhf_jax.data.windows import RankingRow
from rlhf_jax.interfaces import Dialogue

CHUNK = 256


def mention_counts(dialogues: Iterable[Dialogue]) -> Counter[int]:
    """How often each item is mentioned, by either speaker, repeats included."""
    return Counter(item for dialogue in dialogues for message in dialogue.messages for item in message.items)


def popularity_scores(
    rows: Sequence[RankingRow], item_ids: Sequence[int], counts: Mapping[int, int]
) -> Iterator[np.ndarray]:
    """The same scores for every row: training counts. Chunks [n, I]; equal counts stay tied."""
    scores = np.array([counts.get(item, 0) for item in item_ids], np.float64)
    for start in range(0, len(rows), CHUNK):
        yield np.broadcast_to(scores, (len(rows[start : start + CHUNK]), len(scores)))


def copy_scores(rows: Sequence[RankingRow], item_ids: Sequence[int], counts: Mapping[int, int]) -> Iterator[np.ndarray]:
    """Items of the context first, most recently mentioned on top, the rest by training counts. Chunks [n, I]."""
    popularity = np.array([counts.get(item, 0) for item in item_ids], np.float64)
    columns = {item: column for column, item in enumerate(item_ids)}
    above_all = popularity.max(initial=0.0) + 1.0
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        scores = np.tile(popularity, (len(part), 1))
        for index, row in enumerate(part):
            for order, item in enumerate(row.mentioned):  # Later mentions overwrite earlier ones.
                if item in columns:
                    scores[index, columns[item]] = above_all + order
        yield scores

"""Two rankings without a model that stand in every table: what is popular, and what was just said.

Both give plain scores, so they go through the same code as a model's logits.
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

"""Labelled turns as arrays: what a reward model is trained and measured on."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from rlhf_jax.data.batching import wrapped_batches
from rlhf_jax.decoding.suggested import N_NUMBERS, make_suggested
from rlhf_jax.feedback.weak_labels import LabelTable
from rlhf_jax.interfaces import Dialogue, Params
from rlhf_jax.learners.reward_model import RewardBatch
from rlhf_jax.runtime.files import read_npz, write_npz
from rlhf_jax.runtime.progress import Progress
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.setup import Setup


class LabelledTurns:
    """Tokens of labelled turns (prompt and response in one row) with their z-scored labels."""

    def __init__(
        self, windows: Windows, table: LabelTable, rows: np.ndarray, read: Float[np.ndarray, "N 3"] | None = None
    ) -> None:
        turns = turns_of(table, rows)
        self._sides = windows.prompts_of(turns), windows.responses_of(turns)
        self.read = read
        """What is known of the listed items. [N, 3]"""
        self.labels = table.z[rows].astype(np.float32)
        self.label_mask = table.mask[rows]
        self.dialogues = table.dialogue_ids[rows].tolist()
        self.names = table.names

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: np.ndarray) -> RewardBatch:
        """The given turns as the learner reads them."""
        tokens, mask = (
            np.concatenate(pair, axis=1) for pair in zip(*(side.take(rows) for side in self._sides), strict=True)
        )
        return RewardBatch(
            inputs=(
                jnp.asarray(tokens),
                jnp.asarray(mask),
                None if self.read is None else jnp.asarray(self.read[rows]),
            ),
            labels=jnp.asarray(self.labels[rows]),
            label_mask=jnp.asarray(self.label_mask[rows]),
        )


def labelled_turns(
    setup: Setup,
    dialogues: Sequence[Dialogue],
    table: LabelTable,
    limit: int | None,
    *,
    read: Params | None = None,
    stored: Path | None = None,
) -> LabelledTurns:
    """The turns that the stage uses, as arrays.

    Args:
      read: a policy whose numbers stand beside the tokens; None: none do.
      stored: where those numbers are kept, so that a run that goes on does not count them again.
    """
    windows = Windows.of(setup, dialogues)
    rows = drawn_rows(table, windows, limit, setup.seed)
    numbers = None
    if read is not None:
        found = None if stored is None or not stored.exists() else read_npz(stored)
        if found is None or not np.array_equal(found["rows"], rows):
            found = {"rows": rows, "numbers": what_it_says(setup, read, windows, turns_of(table, rows))}
            if stored is not None:
                write_npz(stored, found)
        numbers = found["numbers"]
    return LabelledTurns(windows, table, rows, numbers)


def turns_of(table: LabelTable, rows: np.ndarray) -> list[tuple[int, int]]:
    """(dialogue, message) of rows of a label table."""
    return [(int(table.dialogue_indices[row]), int(table.message_indices[row])) for row in rows]


def what_it_says(
    setup: Setup, policy: Params, windows: Windows, turns: Sequence[tuple[int, int]], batch_size: int = 64
) -> Float[np.ndarray, "N 3"]:
    """`decoding.suggested` of logged turns, by one pass of a policy over them. [N, 3]"""
    agent = setup.agent
    program = agent.compiled("suggested", lambda: jax.jit(make_suggested(agent.grammar, agent.score_items)))
    found = [np.zeros((0, N_NUMBERS), np.float32)]
    with Progress("reward model: what imitation says of listed items", 0, len(turns)) as progress:
        for rows, own in wrapped_batches(len(turns), batch_size):
            chosen = [turns[row] for row in rows]
            found.append(np.asarray(program(policy, windows.as_rollout(chosen)))[:own])
            progress.show(int(rows[0]) + own, {})
    return np.concatenate(found)


def drawn_rows(table: LabelTable, windows: Windows, limit: int | None, seed: int) -> np.ndarray:
    """Rows of a label table that the stage uses: turns with a context, at most `limit`, drawn with the seed. [N]"""
    wanted = set(windows.turns())
    places = zip(table.dialogue_indices.tolist(), table.message_indices.tolist(), strict=True)
    rows = np.array([row for row, place in enumerate(places) if place in wanted], np.int64)
    if limit is None or len(rows) <= limit:
        return rows
    return np.sort(np.random.Generator(np.random.PCG64([seed, 2])).choice(rows, limit, replace=False))

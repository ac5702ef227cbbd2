"""The order of examples as a pure function of (seed, step), and padding of token lists."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np


@functools.lru_cache(maxsize=4)
def _epoch_order(n_examples: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch]))).permutation(n_examples)
    order.setflags(write=False)
    return order


def batch_indices(
    n_examples: int, *, seed: int, step: int, batch_size: int, process_index: int = 0, process_count: int = 1
) -> np.ndarray:
    """Which examples make up batch `step`; any step can be asked for, so resuming needs only its number.

        batch s = positions s·B … (s+1)·B − 1 of  π₀ π₁ π₂ …

    where π_e is the permutation of epoch e, drawn from (seed, e). A batch may span two epochs, so no example is ever
    dropped and each epoch holds every example once.

    Args:
      n_examples: size of the data set.
      seed: of the order, at least 0.
      step: number of the batch, from 0.
      batch_size: B, global over processes.
      process_index: which slice of the batch is wanted.
      process_count: into how many equal, contiguous slices it is cut.
    Returns: int64 indices into the data set. [B / process_count]
    Raises:
      ValueError: naming the numbers that do not fit.
    """
    if n_examples < 1 or batch_size < 1:
        raise ValueError(f"{n_examples} examples in batches of {batch_size}: both must be at least 1")
    if seed < 0 or step < 0:
        raise ValueError(f"seed {seed} and step {step} must not be negative")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count} does not exist")
    if batch_size % process_count:
        raise ValueError(f"a batch of {batch_size} does not divide among {process_count} processes")
    share = batch_size // process_count
    first = step * batch_size + process_index * share
    positions = np.arange(first, first + share)
    epochs, places = np.divmod(positions, n_examples)
    indices = np.empty(share, np.int64)
    for epoch in range(epochs[0], epochs[-1] + 1):
        chosen = epochs == epoch
        indices[chosen] = _epoch_order(n_examples, seed, epoch)[places[chosen]]
    return indices


def wrapped_batches(n_rows: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """All rows in order, in batches of one size, so that one program serves them all: the last is filled from the front.

    Returns: rows of every batch, int64 [batch_size], and how many of them are its own; the others repeat.
    Examples:
      >>> [(rows.tolist(), own) for rows, own in wrapped_batches(5, 3)]
      [([0, 1, 2], 3), ([3, 4, 0], 2)]
    """
    for start in range(0, n_rows, batch_size):
        yield np.arange(start, start + batch_size) % n_rows, min(batch_size, n_rows - start)


def pad_left(sequences: Sequence[Sequence[int] | np.ndarray], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Token lists as one array, ending at the right edge (prompts).

    Returns: tokens, int32 [B, length], and mask, True on real tokens [B, length].
    Raises:
      ValueError: if a sequence is longer than `length`, naming both.
    Examples:
      >>> pad_left([[5, 6]], 3, 0)[0].tolist()
      [[0, 5, 6]]
    """
    return _pad(sequences, length, pad, left=True)


def pad_right(sequences: Sequence[Sequence[int] | np.ndarray], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Token lists as one array, beginning at the left edge (responses, whole dialogues).

    Returns: tokens, int32 [B, length], and mask, True on real tokens [B, length].
    Raises:
      ValueError: if a sequence is longer than `length`, naming both.
    Examples:
      >>> pad_right([[5, 6]], 3, 0)[0].tolist()
      [[5, 6, 0]]
    """
    return _pad(sequences, length, pad, left=False)


def _pad(
    sequences: Sequence[Sequence[int] | np.ndarray], length: int, pad: int, *, left: bool
) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.full((len(sequences), length), pad, np.int32)
    mask = np.zeros((len(sequences), length), np.bool_)
    for row, sequence in enumerate(sequences):
        if len(sequence) > length:
            raise ValueError(f"sequence {row} has {len(sequence)} tokens, more than the length {length}")
        place = slice(length - len(sequence), length) if left else slice(0, len(sequence))
        tokens[row, place] = sequence
        mask[row, place] = True
    return tokens, mask

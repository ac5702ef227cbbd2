"""Order of examples and padding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data.batching import batch_indices, pad_left, pad_right, wrapped_batches


@given(n_examples=st.integers(1, 40), seed=st.integers(0, 5), batch_size=st.integers(1, 50), n_epochs=st.integers(1, 3))
def test_every_epoch_holds_every_example_once(n_examples: int, seed: int, batch_size: int, n_epochs: int) -> None:
    n_steps = -(-n_examples * n_epochs // batch_size)
    batches = [batch_indices(n_examples, seed=seed, step=step, batch_size=batch_size) for step in range(n_steps)]
    stream = np.concatenate(batches)
    assert all(len(batch) == batch_size for batch in batches)
    for epoch in range(n_epochs):
        part = stream[epoch * n_examples : (epoch + 1) * n_examples]
        assert np.array_equal(np.sort(part), np.arange(n_examples))


def test_the_order_depends_on_seed_and_step_only() -> None:
    first = batch_indices(100, seed=3, step=7, batch_size=16)
    for step in range(20):
        batch_indices(100, seed=4, step=step, batch_size=16)
    assert np.array_equal(first, batch_indices(100, seed=3, step=7, batch_size=16))
    assert not np.array_equal(first, batch_indices(100, seed=4, step=7, batch_size=16))
    assert not np.array_equal(first, batch_indices(100, seed=3, step=8, batch_size=16))


def test_the_order_is_the_same_in_every_release() -> None:
    """Stored: a resumed run must continue the order it began with."""
    assert batch_indices(10, seed=0, step=1, batch_size=6).tolist() == [9, 0, 8, 1, 9, 1]


def test_epochs_are_shuffled_differently() -> None:
    epochs = [tuple(batch_indices(50, seed=0, step=step, batch_size=50).tolist()) for step in range(4)]
    assert len(set(epochs)) == 4 and tuple(range(50)) not in epochs


@given(process_count=st.sampled_from([1, 2, 3, 4, 6, 12]), step=st.integers(0, 9))
def test_processes_partition_the_batch(process_count: int, step: int) -> None:
    whole = batch_indices(31, seed=1, step=step, batch_size=12)
    slices = [
        batch_indices(31, seed=1, step=step, batch_size=12, process_index=index, process_count=process_count)
        for index in range(process_count)
    ]
    assert np.array_equal(np.concatenate(slices), whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_examples": 0}, "0 examples in batches of 8"),
        ({"batch_size": 0}, "batches of 0"),
        ({"seed": -1}, "seed -1 and step 0"),
        ({"step": -1}, "step -1"),
        ({"process_index": 2, "process_count": 2}, "process 2 of 2"),
        ({"process_count": 3}, "a batch of 8 does not divide among 3 processes"),
    ],
)
def test_numbers_that_do_not_fit_are_named(changes: dict[str, int], message: str) -> None:
    numbers = {"n_examples": 9, "seed": 0, "step": 0, "batch_size": 8} | changes
    with pytest.raises(ValueError, match=message):
        batch_indices(numbers.pop("n_examples"), **numbers)


@given(n_rows=st.integers(1, 40), batch_size=st.integers(1, 60))
def test_wrapped_batches_hold_every_row_once_and_have_one_size(n_rows: int, batch_size: int) -> None:
    batches = list(wrapped_batches(n_rows, batch_size))
    assert np.concatenate([rows[:own] for rows, own in batches]).tolist() == list(range(n_rows))
    assert {len(rows) for rows, _ in batches} == {batch_size}
    assert all(0 <= rows.min() and rows.max() < n_rows for rows, _ in batches)
    assert list(wrapped_batches(0, batch_size)) == []


def test_padding() -> None:
    tokens, mask = pad_left([[1, 2], [], [3, 4, 5]], 4, 9)
    assert tokens.tolist() == [[9, 9, 1, 2], [9, 9, 9, 9], [9, 3, 4, 5]]
    assert mask.tolist() == [[False, False, True, True], [False] * 4, [False, True, True, True]]
    tokens, mask = pad_right([[1, 2], [3, 4, 5]], 3, 9)
    assert tokens.tolist() == [[1, 2, 9], [3, 4, 5]] and tokens.dtype == np.int32
    assert mask.tolist() == [[True, True, False], [True] * 3]


@pytest.mark.parametrize("pad", [pad_left, pad_right])
def test_padding_never_cuts(pad) -> None:
    with pytest.raises(ValueError, match="sequence 1 has 3 tokens, more than the length 2"):
        pad([[1], [1, 2, 3]], 2, 0)

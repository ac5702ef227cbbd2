"""Rewards that know nothing of items: each against a loop, and what they must not hang on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.feedback.controls import control, fnv1a
from rlhf_jax.interfaces import Rollout, Score

FIRST, N_ITEMS = 20, 5


def rollout(prompts: list[list[int]], replies: list[list[int]], *, left: int = 0, right: int = 0) -> Rollout:
    """Prompts padded on the left, replies on the right, by item tokens that stand under no mask."""
    width = max(map(len, prompts)) + left
    length = max(map(len, replies)) + right
    tokens = np.full((len(prompts), width), FIRST, np.int32)
    said = np.full((len(replies), length), FIRST, np.int32)
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        tokens[row, width - len(prompt) :] = prompt
        said[row, : len(reply)] = reply
    prompt_mask = np.arange(width) >= width - np.array([len(one) for one in prompts])[:, None]
    mask = np.arange(length) < np.array([len(one) for one in replies])[:, None]
    return Rollout(
        prompt_tokens=jnp.asarray(tokens),
        prompt_mask=jnp.asarray(prompt_mask),
        response_tokens=jnp.asarray(said),
        response_mask=jnp.asarray(mask),
        logprobs=jnp.zeros(said.shape),
        finished=jnp.ones(len(replies), bool),
    )


def paid(score: Score, rows: Rollout) -> np.ndarray:
    return np.asarray(jax.jit(lambda rows: score({}, rows))(rows))


def test_suggesting_anything_is_paid_whichever_item_it_is() -> None:
    said = [[1, FIRST, 2], [1, 2, FIRST + N_ITEMS - 1], [1, 2, 3], [FIRST - 1], [FIRST + N_ITEMS]]
    # The prompts hold items too, which are nobody's suggestion here.
    rows = rollout([[FIRST]] * len(said), said, right=2)
    found = paid(control("suggests", first_item=FIRST, n_items=N_ITEMS), rows)
    assert found.tolist() == [[1.0], [1.0], [0.0], [0.0], [0.0]]


def test_the_hash_is_that_of_a_loop() -> None:
    tokens = [3, 70_000, 0, 12]
    expected = 2_166_136_261
    for token in tokens:
        expected = (expected ^ token) * 16_777_619 % 2**32
    assert int(fnv1a(jnp.array(tokens), jnp.ones(4, bool))) == expected
    padded = jnp.array([9, *tokens, 9]), jnp.array([False, True, True, True, True, False])
    assert int(fnv1a(*padded)) == expected


def test_noise_hangs_on_prompt_and_reply_alone() -> None:
    score = control("noise", first_item=FIRST, n_items=N_ITEMS)
    plain = paid(score, rollout([[1, 2], [1, 3], [1, 2]], [[4], [4], [5]]))
    assert len(set(plain[:, 0].tolist())) == 3
    # Not on the width of the batch, nor on the rows beside it.
    np.testing.assert_array_equal(paid(score, rollout([[1, 2], [8]], [[4], [7, 7]], left=3, right=2))[0], plain[0])


@pytest.mark.parametrize("suggests", [False, True])
def test_noise_is_standard_normal_and_knows_no_suggestion(suggests: bool) -> None:
    """4,000 replies: the mean within four standard errors of 0, the spread of 1, whether or not an item is named."""
    rng = np.random.default_rng(0)
    said = [[*rng.integers(0, FIRST, 6).tolist(), *([FIRST + 1] if suggests else [])] for _ in range(4000)]
    found = paid(control("noise", first_item=FIRST, n_items=N_ITEMS), rollout([[1]] * 4000, said))[:, 0]
    assert abs(found.mean()) < 4 / np.sqrt(4000)
    assert abs(found.std() - 1) < 4 / np.sqrt(2 * 4000)

"""Narrow batches: every prompt still comes once an epoch, a program a width, and the numbers of the wide batch."""

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from rlhf_jax.interfaces import Dialogue, Message, Params, Rollout
from rlhf_jax.learners import ppo
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.runtime.run import open_run
from rlhf_jax.stages import alignment
from rlhf_jax.stages.alignment import AlignmentConfig
from rlhf_jax.stages.contexts import InMemory, PromptBatches
from rlhf_jax.stages.reward import Proxy
from tiny_policy import DATA, Tiny

N, WIDTH, B = 45, 16, 3


def prompt_batches(**options: Any) -> PromptBatches:
    """45 prompts of 1 to 16 tokens; token 0 of each is its number."""
    lengths = np.random.default_rng(0).integers(1, WIDTH + 1, N)
    mask = np.arange(WIDTH) >= WIDTH - lengths[:, None]
    tokens = np.where(mask, np.arange(N)[:, None], -1).astype(np.int32)
    return PromptBatches(InMemory(tokens, mask), batch_size=B, seed=5, **options)


@pytest.mark.parametrize("group", [1, 5])
def test_an_epoch_holds_every_prompt_once_whole_and_no_wider_than_needed(group: int) -> None:
    wide, narrow = prompt_batches(group=group), prompt_batches(group=group, buckets=(4, 8))
    seen = []
    for update in range(N // B):
        (tokens, mask), (all_tokens, all_mask) = narrow.batch(update), wide.batch(update)
        longest = all_mask.sum(axis=1).max()
        assert tokens.shape == mask.shape == (B, 4 if longest <= 4 else 8 if longest <= 8 else WIDTH)
        np.testing.assert_array_equal(mask.sum(axis=1), all_mask.sum(axis=1))
        np.testing.assert_array_equal(tokens, all_tokens[:, WIDTH - tokens.shape[1] :])
        seen += all_tokens[:, -1].tolist()
    assert sorted(seen) == list(range(N))


def test_a_group_shares_out_by_length_the_prompts_its_updates_would_have_had() -> None:
    drawn, grouped = prompt_batches(), prompt_batches(group=5, buckets=(8,))
    orders = []
    for first in range(0, 60, 5):
        batches = [grouped.rows(update) for update in range(first, first + 5)]
        expected = np.concatenate([drawn.rows(update) for update in range(first, first + 5)])
        assert sorted(np.concatenate(batches)) == sorted(expected)
        spans = [
            (lengths.min(), lengths.max())
            for lengths in (grouped.prompts.take(rows)[1].sum(axis=1) for rows in batches)
        ]
        by_length = sorted(range(5), key=lambda number: spans[number])
        # In order of length the batches do not overlap; in order of time they are shuffled, every group anew.
        assert all(spans[a][1] <= spans[b][0] for a, b in itertools.pairwise(by_length))
        orders.append(tuple(by_length))
    assert len(set(orders)) > 6


def test_any_update_can_be_asked_for_first() -> None:
    forward = prompt_batches(group=4, buckets=(8,))
    straight = [forward.batch(update) for update in range(12)]
    later = prompt_batches(group=4, buckets=(8,))
    for update in (11, 3, 6):
        for one, other in zip(later.batch(update), straight[update], strict=True):
            np.testing.assert_array_equal(one, other)


def test_impossible_buckets_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"prompt-buckets \(4, 17\): 17 is wider than --data.context-tokens 16"):
        prompt_batches(buckets=(4, 17))
    with pytest.raises(ValueError, match=r"prompt_buckets must ascend: got \(8, 4\)"):
        AlignmentConfig(prompt_buckets=(8, 4))
    with pytest.raises(ValueError, match=r"prompt_buckets must be in \[1, 65536\]: got 0"):
        AlignmentConfig(prompt_buckets=(0, 4))
    with pytest.raises(ValueError, match=r"prompt_group must be in \[1, 1000\]: got 0"):
        AlignmentConfig(prompt_group=0)
    with pytest.raises(ValueError, match="prompt_group 8 saves nothing without AlignmentConfig.prompt_buckets"):
        AlignmentConfig(prompt_group=8)


Run = Callable[..., tuple[Params, Any, list[tuple[dict[str, Any], Rollout]]]]


@pytest.fixture
def aligned(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """PPO on prompts of 5 and of more than 12 tokens, one an update: its policy, its program, and what came out of it."""
    said: list[tuple[str | int, ...]] = [(13, 12), (11,), ("try this one",), ("hello there",)]
    spoken = [said[:1], *([said] * 2), said[:1], said]
    dialogues = [
        [Message("seeker", parts, place) for place, parts in enumerate(parts)] + [Message("recommender", (11,), 9)]
        for parts in spoken
    ]
    train = tuple(Dialogue(str(number), tuple(messages), {}, {}) for number, messages in enumerate(dialogues))
    corpus = tiny.setup.corpus
    setup = tiny.setup._replace(seed=1, corpus=type(corpus)(train, (), (), corpus.items, corpus.provenance))
    # What is compared does not depend on how well the machine code is optimised.
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)

    programs: list[Any] = []

    def run(name: str, **options: Any) -> tuple[Params, Any, list[tuple[dict[str, Any], Rollout]]]:
        results = []
        real = ppo.make_ppo_iteration

        def make(**bound: Any) -> Callable[..., Any]:
            # A second run has use for what the first compiled.
            programs.append(real(**bound))

            def call(*arguments: Any) -> Any:
                state, metrics, rollout = programs[0](*arguments)
                results.append((dict(metrics), rollout))
                return state, metrics, rollout

            return call

        with monkeypatch.context() as patch, open_run(tmp_path / name, {"seed": 0}, trackers=()) as directory:
            patch.setattr(ppo, "make_ppo_iteration", make)
            policy = alignment.align(
                directory,
                setup,
                tiny.policy["trunk"],
                Proxy(tiny.reward_model, (1 / 3,) * 3),
                AlignmentConfig(updates=4, batch_size=1, learning_rate=1e-3, **options),
                PPOConfig(epochs=2),
            )
        return policy, programs[0], results

    yield run
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.slow
def test_narrow_batches_give_the_numbers_of_wide_ones_by_one_program_a_width(aligned: Run) -> None:
    policy, program, results = aligned("narrow", prompt_buckets=(4, 12))
    widths = {rollout.prompt_tokens.shape[1] for _, rollout in results}
    # No batch fits into 4, so nothing is compiled for it.
    assert widths == {12, DATA.context_tokens}
    assert program._cache_size() == len(widths)
    wide_policy, _, wide_results = aligned("wide")
    assert {rollout.prompt_tokens.shape[1] for _, rollout in wide_results} == {DATA.context_tokens}
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    for (metrics, rollout), (wide_metrics, wide_rollout) in zip(results, wide_results, strict=True):
        np.testing.assert_array_equal(rollout.response_tokens, wide_rollout.response_tokens)
        close(rollout.logprobs, wide_rollout.logprobs)
        assert metrics.keys() == wide_metrics.keys()
        for name, value in metrics.items():
            np.testing.assert_allclose(value, wide_metrics[name], rtol=1e-4, atol=1e-5, err_msg=name)
    jax.tree.map(close, policy, wide_policy)

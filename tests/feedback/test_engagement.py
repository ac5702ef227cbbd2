"""Gaps, latency and continuation, on dialogues written out by hand."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from rlhf_jax.data.turns import next_user_turn
from rlhf_jax.feedback.engagement import continuation, dwell_sim, fit_latency, reply_gap
from rlhf_jax.interfaces import Dialogue, ItemLabel, Message

SEEKER, SYSTEM = "seeker", "recommender"


def talk(*lines, labels=None):
    """A dialogue from (role, parts, time) lines."""
    messages = tuple(Message(role, parts, n, time) for n, (role, parts, time) in enumerate(lines))
    return Dialogue("1", messages, labels or {}, {})


def gap_and_continuation(dialogue, index):
    reply = next_user_turn(dialogue, index)
    assert reply is not None
    return reply_gap(dialogue, index, reply), continuation(dialogue, index, reply)


def test_gap_is_the_time_to_the_first_message_of_the_reply():
    dialogue = talk(
        (SEEKER, ("hi",), 0),
        (SYSTEM, ("try ", 5), 10),
        (SEEKER, ("hmm",), 32),
        (SEEKER, ("no",), 40),
        (SYSTEM, ("bye",), 50),
    )
    assert gap_and_continuation(dialogue, 1) == (22.0, 0.0)


@pytest.mark.parametrize(("start", "end"), [(None, 5), (3, None), (None, None), (9, 5)])
def test_gap_is_unknown_where_a_time_is(start, end):
    dialogue = talk((SYSTEM, ("hi",), start), (SEEKER, ("hi",), end))
    assert math.isnan(gap_and_continuation(dialogue, 0)[0])


@pytest.mark.parametrize(
    ("reply", "labels", "after", "expected"),
    [
        (("ok",), {}, (), 0.0),
        (("i take ", 5), {}, (), 1.0),
        (("i take ", 6), {}, (), 0.0),
        # The form says that 5 was liked: that is explicit, and no signal reads it.
        (("ok",), {5: ItemLabel(1, 2, 1)}, (), 0.0),
        (("ok",), {}, ((SYSTEM, ("bye",), 9),), 0.0),
        (("ok",), {}, ((SYSTEM, ("bye",), 9), (SEEKER, ("bye",), 12)), 1.0),
    ],
)
def test_continuation_is_going_on_or_naming(reply, labels, after, expected):
    dialogue = talk((SYSTEM, ("try ", 5), 0), (SEEKER, reply, 5), *after, labels=labels)
    assert gap_and_continuation(dialogue, 0)[1] == expected


def test_dwell_is_the_log_of_seconds():
    np.testing.assert_allclose(dwell_sim(np.array([0.0, math.e - 1, math.nan])), [0, 1, math.nan])


def synthetic_gaps(n=400):
    rng = np.random.default_rng(0)
    words, reply_words = rng.integers(0, 20, n).astype(float), rng.integers(1, 20, n).astype(float)
    interest = rng.standard_normal(n)
    gaps = np.exp(1 + 0.8 * np.log1p(words) + 0.8 * np.log1p(reply_words) + 0.7 * interest)
    return gaps, words, reply_words, interest


def test_latency_removes_length_and_keeps_interest():
    gaps, words, reply_words, interest = synthetic_gaps()
    latency = fit_latency(gaps, words, reply_words)(gaps, words, reply_words)
    assert abs(np.corrcoef(latency, np.log1p(words))[0, 1]) < 1e-6
    assert abs(np.corrcoef(latency, np.log1p(reply_words))[0, 1]) < 1e-6
    assert spearmanr(latency, interest)[0] > 0.9 and abs(latency.mean()) < 1e-6


def test_latency_depends_on_ranks_only():
    gaps, words, reply_words, _ = synthetic_gaps()
    stretched = gaps**3
    np.testing.assert_allclose(
        fit_latency(gaps, words, reply_words)(gaps, words, reply_words),
        fit_latency(stretched, words, reply_words)(stretched, words, reply_words),
    )


def test_latency_is_finite_outside_the_training_range_and_nan_where_unknown():
    gaps, words, reply_words, _ = synthetic_gaps()
    scale = fit_latency(gaps, words, reply_words)
    new = scale(np.array([0.0, 1e9, math.nan]), np.full(3, 5.0), np.full(3, 5.0))
    assert np.isfinite(new[:2]).all() and new[0] < new[1] and math.isnan(new[2])


def test_latency_without_times_is_refused():
    with pytest.raises(ValueError, match="0 of 30 training rows have both times"):
        fit_latency(np.full(30, np.nan), np.ones(30), np.ones(30))

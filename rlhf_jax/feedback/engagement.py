"""Engagement: how much a system message held the user, read from times or from the user going on.

Options: `dwell_sim` (the simulated world's dwell time), `latency` (real reply gaps, rank-normalised and
length-residualised), `continuation` (the user goes on or names a suggestion). NaN where the data does not say. All are read
from the conversation; what a seeker says in a form is explicit, and no signal reads it.
Real reply latency does not track satisfaction (Spearman −0.10 with annotated satisfaction on ReDial): it is offered as
the literature's proxy, not as a good one.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from rlhf_jax.data.turns import AnsweredTurn, Turn, spell
from rlhf_jax.feedback.labelling import Signal, Training
from rlhf_jax.interfaces import Dialogue

Floats = NDArray[np.float64]


def fit(training: Training) -> Signal:
    """The form of the options; `latency` is fitted on the training turns."""
    if training.options.engagement == "continuation":
        return lambda turns: np.array(
            [continuation(turn.dialogue, turn.message_index, turn.reply) for turn in turns], float
        )
    if training.options.engagement == "latency":
        scale = fit_latency(*_times(training.turns))
        return lambda turns: scale(*_times(turns))
    return lambda turns: dwell_sim(_times(turns)[0])


def reply_gap(dialogue: Dialogue, message_index: int, reply: Turn) -> float:
    """Seconds from a system message to the user's next turn; NaN where a time is missing or runs backwards."""
    start, end = dialogue.messages[message_index].time_offset, reply.time_offset
    return float(end - start) if start is not None and end is not None and end >= start else math.nan


def dwell_sim(gaps: Floats) -> Floats:
    """Simulated dwell as log(1 + seconds), since dwell is log-normal; NaN stays NaN. [N] -> [N]"""
    return np.log1p(gaps)


def continuation(dialogue: Dialogue, message_index: int, reply: Turn) -> float:
    """1 if the user names an item of this message in the reply, or speaks again after it, else 0."""
    named = bool(set(dialogue.messages[message_index].items) & set(reply.items))
    last = reply.message_indices[-1]
    goes_on = any(message.role == "seeker" and message.parts for message in dialogue.messages[last + 1 :])
    return float(named or goes_on)


class LatencyScale(NamedTuple):
    """Fitted on the training split: rank-normalisation of gaps and their regression on lengths."""

    sorted_gaps: Floats
    """Training gaps in seconds, ascending. [N]"""
    coefficients: Floats
    """Normal score of a gap on (1, log1p words of the message, log1p words of the reply). [3]"""

    def __call__(self, gaps: Floats, message_words: Floats, reply_words: Floats) -> Floats:
        """Normal score of each gap minus what the two lengths predict; NaN stays NaN. [N]"""
        return _normal_scores(self.sorted_gaps, gaps) - _lengths(message_words, reply_words) @ self.coefficients


def fit_latency(gaps: Floats, message_words: Floats, reply_words: Floats) -> LatencyScale:
    """Fits the scale by ordinary least squares on rows that have a gap.

        z = Φ⁻¹((mid-rank of gap)/(N + 1)),   latency = z − (b₀ + b₁·log(1 + words) + b₂·log(1 + reply words))

    Raises: ValueError if fewer than 10 gaps are known.
    """
    known = np.isfinite(gaps)
    if known.sum() < 10:
        raise ValueError(f"latency needs reply times: {int(known.sum())} of {len(gaps)} training rows have both times")
    sorted_gaps = np.sort(gaps[known])
    scores = _normal_scores(sorted_gaps, gaps[known])
    coefficients, *_ = np.linalg.lstsq(_lengths(message_words[known], reply_words[known]), scores, rcond=None)
    return LatencyScale(sorted_gaps, coefficients)


def _times(turns: Sequence[AnsweredTurn]) -> tuple[Floats, Floats, Floats]:
    """Gaps in seconds, words of the messages, words of the replies. [N] each"""
    gaps = [reply_gap(turn.dialogue, turn.message_index, turn.reply) for turn in turns]
    words = [len(spell(turn.message.parts).split()) for turn in turns]
    reply_words = [len(spell(turn.reply.parts).split()) for turn in turns]
    return np.array(gaps, float), np.array(words, float), np.array(reply_words, float)


def _normal_scores(sorted_gaps: Floats, gaps: Floats) -> Floats:
    below = np.searchsorted(sorted_gaps, gaps, side="left")
    up_to = np.searchsorted(sorted_gaps, gaps, side="right")
    ranks = (below + up_to + 1) / 2
    share = np.clip(ranks / (len(sorted_gaps) + 1), 0.5 / (len(sorted_gaps) + 1), 1 - 0.5 / (len(sorted_gaps) + 1))
    return np.where(np.isfinite(gaps), ndtri(share), np.nan)


def _lengths(message_words: Floats, reply_words: Floats) -> Floats:
    return np.stack([np.ones(len(message_words)), np.log1p(message_words), np.log1p(reply_words)], axis=1)

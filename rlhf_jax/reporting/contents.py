"""What a run's report shows, read from its directory once; `report.md` and `report.html` are two forms of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.evaluation.results import Result
from rlhf_jax.reporting.run_figures import Section

LEGEND = "`<rec>` opens the list of suggested items, `<say>` the words, `<eos>` ends a reply."
"""Stands above replies that are shown as the policy made them."""


@dataclasses.dataclass(frozen=True)
class Conversation:
    """One context and what each system said to it."""

    dialogue: str
    context: tuple[str, ...]
    """Last utterances, `role: words`."""
    replies: Mapping[str, str]
    """System to reply, in the order to show: human, sft, ppo."""
    note: str = ""
    """For example the reward of each reply."""


@dataclasses.dataclass(frozen=True)
class Contents:
    """One report."""

    title: str
    notes: Sequence[str]
    """Paragraphs of Markdown below the title; one that is an image alone is a figure of `plots/`."""
    results: Sequence[Result]
    """Those that can say something (`result_tables.informative`)."""
    left_out: Sequence[str]
    """What is not among them, in words."""
    gate: float
    """Held-out correlation that a reward model needs."""
    sections: Sequence[Section]
    """Pages of curves."""
    conversations: Sequence[Conversation]
    """Answers to test contexts."""
    samples: Sequence[Mapping[str, Any]]
    """Lines of `samples.jsonl`."""
    config: Mapping[str, Any]
    """`config.json`; empty where there is none."""
    command: str | None
    """That repeats the run."""
    gathered: bool
    """A summary of other runs, which logged no curves and stored no conversations of its own."""

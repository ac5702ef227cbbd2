"""What a signal is: fitted on training turns under the options of a run, then one number a turn."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhf_jax.data.turns import AnsweredTurn
from rlhf_jax.feedback.components import COMPONENTS
from rlhf_jax.interfaces import Item
from rlhf_jax.ranges import Range, Size, check_numbers, option

Floats = NDArray[np.float64]
Signal = Callable[[Sequence[AnsweredTurn]], Floats]
"""Turns to one number each, in units of its own; NaN where the data do not say. [N]"""


@dataclasses.dataclass(frozen=True)
class LabelOptions:
    """Which form of each signal is used."""

    engagement: Literal["dwell_sim", "latency", "continuation"] = "dwell_sim"
    """Simulated dwell, real reply latency, or whether the user goes on."""
    sentiment: Literal["shift", "level"] = "shift"
    """Change of the user's sentiment, or its level after the message."""
    relevance: Literal["tfidf", "minilm"] = "tfidf"
    """Encoder of relevance: TF-IDF fitted on the training split, or MiniLM's sentence vectors."""
    relevant_items: Literal["all", "fresh"] = "all"
    """Items of a response that count in relevance: all, or those that nobody has named before. The context names the others, so
    that a response that repeats them is near to it, whatever it says."""
    scorer: Literal["vader", "roberta"] = "vader"
    """Scorer of sentiment: VADER's lexicon, or a RoBERTa classifier's p(positive) − p(negative)."""
    minilm: Path | None = None
    """Hugging Face folder of MiniLM; None takes the package of the extra `minilm`."""
    roberta: Path | None = None
    """Hugging Face folder of the sentiment classifier; needed where `scorer` is roberta."""
    window: Annotated[int, Range("[1, 10_000]")] = 6
    """Messages of context relevance compares with."""
    n_components: Size | None = 64
    """Dimensions of the SVD after TF-IDF; None keeps the words. Not used by MiniLM."""
    item_metadata: bool = True
    """Whether an item is spelled out with genres, people and decade besides its title."""
    signals: tuple[str, ...] = COMPONENTS
    """Components made by signals of the package, by their names in `feedback.signals`."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.engagement not in ("dwell_sim", "latency", "continuation"):
            raise ValueError(
                f"{option(self, 'engagement')} must be dwell_sim, latency or continuation, got {self.engagement!r}"
            )
        if self.sentiment not in ("shift", "level"):
            raise ValueError(f"{option(self, 'sentiment')} must be shift or level, got {self.sentiment!r}")
        if self.relevance not in ("tfidf", "minilm") or self.scorer not in ("vader", "roberta"):
            raise ValueError(
                f"relevance must be tfidf or minilm and scorer vader or roberta, got {self.relevance!r}, {self.scorer!r}"
            )
        if self.relevant_items not in ("all", "fresh"):
            raise ValueError(f"{option(self, 'relevant_items')} must be all or fresh, got {self.relevant_items!r}")
        if self.scorer == "roberta" and self.roberta is None:
            raise ValueError(
                f"{option(self, 'scorer')} roberta needs a Hugging Face folder with the classifier: {option(self, 'roberta')}"
            )


class Training(NamedTuple):
    """What a signal may be fitted on: the training split and nothing else."""

    turns: Sequence[AnsweredTurn]
    items: Mapping[int, Item]
    """The catalogue by item id."""
    options: LabelOptions
    encoder: Callable[[Sequence[str]], Floats] | None = None
    """Replaces relevance's encoder of the options."""
    scorer: Callable[[str], float] | None = None
    """Replaces sentiment's scorer of the options."""


Fit = Callable[[Training], Signal]
"""Makes a signal; what `feedback.signals` lists."""

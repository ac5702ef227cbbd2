"""Weak labels: engagement, relevance and sentiment of every system message that got an answer, z-scored on train.

    R = α·z(engagement) + β·z(relevance) + γ·z(sentiment),   z(x) = (x − mean_train)/std_train

Source: arXiv:2508.05289, its reward; the z-scores are ours, so that the weights compare like with like.
"""

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhf_jax.data.turns import Turn, next_user_turn, spell
from rlhf_jax.feedback import engagement, relevance
from rlhf_jax.feedback.encoders import RobertaScorer, default_cache, minilm_encoder, roberta_scorer
from rlhf_jax.feedback.sentiment import Scorer, sentiment, spoken_around, vader_scorer
from rlhf_jax.interfaces import COMPONENTS, Dialogue, Item
from rlhf_jax.pretrained import json_object

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class LabelOptions:
    """Which form of each signal is used."""

    engagement: Literal["dwell_sim", "latency", "continuation"] = "dwell_sim"
    """Simulated dwell, real reply latency, or whether the user goes on."""
    sentiment: Literal["shift", "level"] = "shift"
    """Change of the user's sentiment, or its level after the message."""
    relevance: Literal["tfidf", "minilm"] = "tfidf"
    """Encoder of relevance: TF-IDF fitted on the training split, or MiniLM's sentence vectors."""
    scorer: Literal["vader", "roberta"] = "vader"
    """Scorer of sentiment: VADER's lexicon, or a RoBERTa classifier's p(positive) − p(negative)."""
    minilm: Path | None = None
    """Hugging Face folder of MiniLM; None takes the package of the extra `minilm`."""
    roberta: Path | None = None
    """Hugging Face folder of the sentiment classifier; needed where `scorer` is roberta."""
    window: int = 6
    """Messages of context relevance compares with."""
    n_components: int | None = 64
    """Dimensions of the SVD after TF-IDF; None keeps the words. Not used by MiniLM."""
    item_metadata: bool = True
    """Whether an item is spelled out with genres, people and decade besides its title."""

    def __post_init__(self) -> None:
        if self.engagement not in ("dwell_sim", "latency", "continuation"):
            raise ValueError(f"engagement must be dwell_sim, latency or continuation, got {self.engagement!r}")
        if self.sentiment not in ("shift", "level"):
            raise ValueError(f"sentiment must be shift or level, got {self.sentiment!r}")
        if self.relevance not in ("tfidf", "minilm") or self.scorer not in ("vader", "roberta"):
            raise ValueError(
                f"relevance must be tfidf or minilm and scorer vader or roberta, got {self.relevance!r}, {self.scorer!r}"
            )
        if self.scorer == "roberta" and self.roberta is None:
            raise ValueError("scorer roberta needs a Hugging Face folder with the classifier in `roberta`")
        if self.window < 1:
            raise ValueError(f"window must be positive, got {self.window}")


class Standardiser(NamedTuple):
    """Mean and standard deviation of each component on the training split, NaN left out."""

    mean: Floats
    """[3]"""
    std: Floats
    """[3]; 1 where a component never varies."""

    def __call__(self, raw: Floats) -> Floats:
        """z-scores; NaN stays NaN. [N, 3] -> [N, 3]"""
        return (raw - self.mean) / self.std

    def save(self, path: Path) -> None:
        """Writes JSON with the components' names."""
        fields = {"components": list(COMPONENTS), "mean": self.mean.tolist(), "std": self.std.tolist()}
        path.write_text(json.dumps(fields, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Standardiser":
        """Reads what `save` wrote. Raises ValueError naming a damaged file, or another order of components."""
        fields = json_object(path)
        if fields.get("components") != list(COMPONENTS):
            raise ValueError(f"{path}: components are {fields.get('components')}, expected {list(COMPONENTS)}")
        try:
            mean, std = (np.array(fields[name], float) for name in ("mean", "std"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: mean and std must be lists of numbers ({error!r})") from error
        if not mean.shape == std.shape == (len(COMPONENTS),) or not np.isfinite(mean).all() or not (std > 0).all():
            raise ValueError(f"{path}: mean {mean.tolist()} and std {std.tolist()} are no statistics of {COMPONENTS}")
        return cls(mean, std)


def fit_standardiser(raw: Floats) -> Standardiser:
    """Statistics of the known values of each component. Raises ValueError if a component has none."""
    known = np.isfinite(raw).sum(0)
    if not known.all():
        missing = [name for name, n in zip(COMPONENTS, known, strict=True) if n == 0]
        raise ValueError(f"no training row has a value for {', '.join(missing)} ({len(raw)} rows)")
    std = np.nanstd(raw, 0)
    # Of equal numbers the rounded mean may differ, and their deviation from it is no spread.
    varies = (np.nanmax(raw, 0) > np.nanmin(raw, 0)) & (std > 1e-8)
    return Standardiser(np.nanmean(raw, 0), np.where(varies, std, 1.0))


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """One row per system message with a following user turn, in order of dialogues and messages; N rows."""

    dialogue_ids: np.ndarray
    """As strings. [N]"""
    dialogue_indices: NDArray[np.int64]
    """Place of the dialogue in the sequence that was labelled. [N]"""
    message_indices: NDArray[np.int64]
    """Place of the system message in its dialogue. [N]"""
    raw: Floats
    """Components in their own units, order COMPONENTS; NaN where undefined. [N, 3]"""
    z: Floats
    """Standardised components, 0 where undefined. [N, 3]"""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """True where a component is defined. [N, 3]"""
        return np.isfinite(self.raw)

    def save(self, path: Path) -> None:
        """Writes the arrays as npz."""
        np.savez(path, **dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> "LabelTable":
        """Reads what `save` wrote. Raises ValueError naming a file that is damaged or lacks an array."""
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                return cls(**{field.name: arrays[field.name] for field in dataclasses.fields(cls)})
        except (EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"{path}: no readable table of labels ({error})") from error


@dataclasses.dataclass(frozen=True)
class WeakLabeller:
    """Everything fitted on the training split; calling it labels any dialogues."""

    options: LabelOptions
    texts: Mapping[int, str]
    """What stands for an item in a text."""
    encoder: relevance.Encoder
    scorer: Scorer
    latency: engagement.LatencyScale | None
    standardiser: Standardiser

    def __call__(self, dialogues: Sequence[Dialogue]) -> LabelTable:
        """Labels every system message that got an answer."""
        rows = list(_rows(dialogues))
        raw = _raw(rows, self.options, self.texts, self.encoder, self.scorer, self.latency)
        return LabelTable(
            np.array([row.dialogue.dialogue_id for row in rows], dtype=np.str_),
            np.array([row.dialogue_index for row in rows], dtype=np.int64),
            np.array([row.message_index for row in rows], dtype=np.int64),
            raw,
            np.nan_to_num(self.standardiser(raw)),
        )


def fit_weak_labels(
    train: Sequence[Dialogue],
    items: Mapping[int, Item],
    options: LabelOptions | None = None,
    *,
    encoder: relevance.Encoder | None = None,
    scorer: Scorer | None = None,
) -> WeakLabeller:
    """Fits TF-IDF, the latency scale and the standardiser on the training dialogues; MiniLM and RoBERTa come as they are.

    Args:
      train: training split; nothing else is looked at.
      items: catalogue, for titles.
      options: which form of each signal; what MiniLM and RoBERTa say is computed once and kept (`encoders.default_cache`).
      encoder: replaces the encoder of the options.
      scorer: replaces the scorer of the options.
    Returns: the labeller.
    Raises: ValueError if a component has no value in any training row.
    """
    options = options or LabelOptions()
    texts = relevance.item_texts(items, metadata=options.item_metadata)
    rows = list(_rows(train))
    if not rows:
        raise ValueError(f"none of the {len(train)} training dialogues has an answered system message")
    if encoder is None and options.relevance == "minilm":
        encoder = minilm_encoder(options.minilm, cache=default_cache())
    elif encoder is None:
        contexts, responses = _texts(rows, options, texts)
        encoder = relevance.fit_tfidf([*contexts, *responses], n_components=options.n_components)
    if scorer is None and options.roberta is not None and options.scorer == "roberta":
        scorer = roberta_scorer(options.roberta, cache=default_cache())
    scorer = scorer or vader_scorer()
    latency = engagement.fit_latency(*_times(rows)) if options.engagement == "latency" else None
    raw = _raw(rows, options, texts, encoder, scorer, latency)
    return WeakLabeller(options, texts, encoder, scorer, latency, fit_standardiser(raw))


def weighted_sum(z: Floats, weights: Sequence[float]) -> Floats:
    """α·engagement + β·relevance + γ·sentiment; [N, 3] -> [N]."""
    return z @ np.asarray(weights, float)


class _Row(NamedTuple):
    dialogue_index: int
    dialogue: Dialogue
    message_index: int
    reply: Turn


def _rows(dialogues: Sequence[Dialogue]) -> Iterator[_Row]:
    for number, dialogue in enumerate(dialogues):
        for index, message in enumerate(dialogue.messages):
            if message.role == "recommender" and (reply := next_user_turn(dialogue, index)) is not None:
                yield _Row(number, dialogue, index, reply)


def _texts(rows: Sequence[_Row], options: LabelOptions, texts: Mapping[int, str]) -> tuple[list[str], list[str]]:
    contexts = [
        relevance.context_text(row.dialogue.messages[: row.message_index], texts, window=options.window) for row in rows
    ]
    return contexts, [spell(row.dialogue.messages[row.message_index].parts, texts, placeholder="") for row in rows]


def _times(rows: Sequence[_Row]) -> tuple[Floats, Floats, Floats]:
    """Gaps in seconds, words of the messages, words of the replies. [N] each"""
    gaps = [engagement.reply_gap(row.dialogue, row.message_index, row.reply) for row in rows]
    words = [len(spell(row.dialogue.messages[row.message_index].parts).split()) for row in rows]
    reply_words = [len(spell(row.reply.parts).split()) for row in rows]
    return np.array(gaps, float), np.array(words, float), np.array(reply_words, float)


def _raw(
    rows: Sequence[_Row],
    options: LabelOptions,
    texts: Mapping[int, str],
    encoder: relevance.Encoder,
    scorer: Scorer,
    latency: engagement.LatencyScale | None,
) -> Floats:
    """Raw components of the rows. [N, 3]"""
    if options.engagement == "continuation":
        held = np.array([engagement.continuation(row.dialogue, row.message_index, row.reply) for row in rows], float)
    elif latency is not None:
        held = latency(*_times(rows))
    else:
        held = engagement.dwell_sim(_times(rows)[0])
    contexts, responses = _texts(rows, options, texts)
    near = relevance.cosine_relevance(encoder, contexts, responses)
    if isinstance(scorer, RobertaScorer):
        around = (spoken_around(row.dialogue, row.message_index) for row in rows)
        scorer.prepare(text for pair in around for text in pair if text is not None)
    felt = np.array(
        [sentiment(row.dialogue, row.message_index, scorer=scorer, form=options.sentiment) for row in rows], float
    )
    return np.stack([held, near, felt], axis=1)

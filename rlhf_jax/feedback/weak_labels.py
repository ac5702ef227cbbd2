"""Weak labels: what the signals of a run say of every system message that got an answer, z-scored on train.

    R = α·z(engagement) + β·z(relevance) + γ·z(sentiment),   z(x) = (x − mean_train)/std_train

Source: arXiv:2508.05289, its reward; the z-scores are ours, so that the weights compare like with like. These three are
the default; which signals there are, and whether functions from outside join them, a run decides (`feedback.signals`).
"""

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhf_jax.data.turns import AnsweredTurn, answered_turns
from rlhf_jax.feedback import custom, relevance
from rlhf_jax.feedback.components import COMPONENTS
from rlhf_jax.feedback.labelling import Floats, LabelOptions, Signal, Training
from rlhf_jax.feedback.sentiment import Scorer
from rlhf_jax.feedback.signals import SIGNALS, check_signals
from rlhf_jax.interfaces import Dialogue, Item
from rlhf_jax.pretrained import json_object


class Standardiser(NamedTuple):
    """Mean and standard deviation of each component on the training split, NaN left out."""

    mean: Floats
    """[C]"""
    std: Floats
    """[C]; 1 where a component never varies."""
    names: tuple[str, ...] = COMPONENTS
    """Of the components, in their order."""

    def __call__(self, raw: Floats) -> Floats:
        """z-scores; NaN stays NaN. [N, C] -> [N, C]"""
        return (raw - self.mean) / self.std

    def save(self, path: Path) -> None:
        """Writes JSON with the components' names."""
        fields = {"components": list(self.names), "mean": self.mean.tolist(), "std": self.std.tolist()}
        path.write_text(json.dumps(fields, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Standardiser":
        """Reads what `save` wrote. Raises ValueError naming the file where it is damaged or something else."""
        fields = json_object(path)
        names = fields.get("components")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path}: components are {names!r}, a list of names is needed")
        try:
            mean, std = (np.array(fields[name], float) for name in ("mean", "std"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: mean and std must be lists of numbers ({error!r})") from error
        if not mean.shape == std.shape == (len(names),) or not np.isfinite(mean).all() or not (std > 0).all():
            raise ValueError(f"{path}: mean {mean.tolist()} and std {std.tolist()} are no statistics of {names}")
        return cls(mean, std, tuple(names))


def fit_standardiser(raw: Floats, names: Sequence[str] = COMPONENTS) -> Standardiser:
    """Statistics of the known values of each component. Raises ValueError if a component has none."""
    known = np.isfinite(raw).sum(0)
    if not known.all():
        missing = [name for name, n in zip(names, known, strict=True) if n == 0]
        raise ValueError(f"no training row has a value for {', '.join(missing)} ({len(raw)} rows)")
    std = np.nanstd(raw, 0)
    # Of equal numbers the rounded mean may differ, and their deviation from it is no spread.
    varies = (np.nanmax(raw, 0) > np.nanmin(raw, 0)) & (std > 1e-8)
    return Standardiser(np.nanmean(raw, 0), np.where(varies, std, 1.0), tuple(names))


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
    """Components in their own units, in the order of `names`; NaN where undefined. [N, C]"""
    z: Floats
    """Standardised components, 0 where undefined. [N, C]"""
    names: tuple[str, ...] = COMPONENTS
    """Of the components."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """True where a component is defined. [N, C]"""
        return np.isfinite(self.raw)

    def arrays(self) -> dict[str, np.ndarray]:
        """What is stored of it, for an npz file; names are in it where they are not the default three."""
        arrays = dataclasses.asdict(self)
        if self.names == COMPONENTS:
            del arrays["names"]
        else:
            arrays["names"] = np.array(self.names)
        return arrays

    @classmethod
    def load(cls, path: Path) -> "LabelTable":
        """Reads an npz file of `arrays`. Raises ValueError naming a file that is damaged or lacks an array."""
        try:
            with path.open("rb") as file, np.load(file) as stored:
                arrays = dict(stored)
            return cls(**arrays | {"names": tuple(map(str, arrays.get("names", COMPONENTS)))})
        except (EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"{path}: no readable table of labels ({error})") from error


@dataclasses.dataclass(frozen=True)
class WeakLabeller:
    """Everything fitted on the training split; calling it labels any dialogues."""

    signals: Mapping[str, Signal]
    """By the component's name, in the order of components."""
    standardiser: Standardiser

    def __call__(self, dialogues: Sequence[Dialogue]) -> LabelTable:
        """Labels every system message that got an answer."""
        turns = answered_turns(dialogues)
        raw = _raw(self.signals, turns)
        return LabelTable(
            np.array([turn.dialogue.dialogue_id for turn in turns], dtype=np.str_),
            np.array([turn.dialogue_index for turn in turns], dtype=np.int64),
            np.array([turn.message_index for turn in turns], dtype=np.int64),
            raw,
            np.nan_to_num(self.standardiser(raw)),
            tuple(self.signals),
        )


def fit_weak_labels(
    train: Sequence[Dialogue],
    items: Mapping[int, Item],
    options: LabelOptions | None = None,
    *,
    encoder: relevance.Encoder | None = None,
    scorer: Scorer | None = None,
    functions: Sequence[str] = (),
) -> WeakLabeller:
    """Fits the signals of the options, and the standardiser, on the training dialogues.

    Args:
      train: training split; nothing else is looked at.
      items: catalogue, for titles.
      options: which signals, and which form of each; what MiniLM and RoBERTa say is computed once and kept
        (`encoders.default_cache`).
      encoder: replaces the encoder of the options.
      scorer: replaces the scorer of the options.
      functions: `package.module:name` of rewards from outside, after the signals (`feedback.custom`).
    Returns: the labeller.
    Raises: ValueError if a component has no value in any training row, or a function does not answer as it should.
    """
    options = options or LabelOptions()
    check_signals(options.signals)
    turns = answered_turns(train)
    if not turns:
        raise ValueError(f"none of the {len(train)} training dialogues has an answered system message")
    training = Training(turns, items, options, encoder, scorer)
    signals = {name: SIGNALS[name](training) for name in options.signals}
    signals |= {custom.parse(text).name: custom.as_signal(text, custom.load(text), items) for text in functions}
    return WeakLabeller(signals, fit_standardiser(_raw(signals, turns), tuple(signals)))


def weighted_sum(z: Floats, weights: Sequence[float]) -> Floats:
    """Σ_c weight · component, α·engagement + β·relevance + γ·sentiment by default; [N, C] -> [N]."""
    return z @ np.asarray(weights, float)


def _raw(signals: Mapping[str, Signal], turns: Sequence[AnsweredTurn]) -> Floats:
    """Raw components of the turns. [N, C]"""
    return np.stack([signal(turns) for signal in signals.values()], axis=1)

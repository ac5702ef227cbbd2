"""Cases of the reward-model study as files: one seed writes them, all seeds are read together."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhf_jax.runtime.files import DamagedFileError, RunError, read_npz, write_npz
from studies.foundation import Sentiment

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredTurns:
    """Turns with what the reward model says about them; N rows."""

    dialogues: np.ndarray
    """Ids, as strings. [N]"""
    predicted: Floats
    """Components in z-units, order COMPONENTS. [N, C]"""
    labels: Floats
    """z-scored weak labels; 0 where undefined. [N, C]"""
    mask: NDArray[np.bool_]
    """True where a label is defined. [N, C]"""
    truth: Floats
    """What the labels stand for: satisfaction or utility; NaN where nobody knows. [N]"""
    part: np.ndarray
    """Kind of the turn or of its dialogue, as a string, by the file's meaning. [N]"""
    training_turns: int
    """Labelled turns the reward model was trained on."""

    def save(self, path: Path) -> None:
        """Writes the arrays as npz."""
        write_npz(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> "ScoredTurns":
        """Reads what `save` wrote."""
        arrays = read_npz(path)
        if missing := [field.name for field in dataclasses.fields(cls) if field.name not in arrays]:
            raise DamagedFileError(f"{path} lacks {', '.join(missing)}: remove it and start the study again")
        found: dict[str, Any] = {field.name: arrays[field.name] for field in dataclasses.fields(cls)}
        return cls(**found | {"training_turns": int(found["training_turns"])})


class MetUsers(NamedTuple):
    """What the supervised policy's turns were worth to users of the world; one value a user."""

    score: Floats
    """Mean of the reward model's weighted sum. [N]"""
    utility: Floats
    """Mean true utility. [N]"""

    @classmethod
    def load(cls, path: Path) -> "MetUsers":
        """Reads what `measure` stored."""
        arrays = read_npz(path)
        if not {"score", "utility"} <= arrays.keys():
            raise DamagedFileError(f"{path} lacks score or utility: remove it and start the study again")
        return cls(arrays["score"], arrays["utility"])


class SeedCases(NamedTuple):
    """Cases by seed, for one form of the sentiment signal; empty where a kind was not measured."""

    form: Sentiment
    held_out: Mapping[int, ScoredTurns]
    curve: Sequence[Mapping[int, ScoredTurns]]
    """From the fewest training turns up; empty for a form without a curve."""
    uss: Mapping[int, ScoredTurns]
    truth: Mapping[int, ScoredTurns]
    users: Mapping[int, MetUsers]


def gather(run_dir: Path, form: Sentiment, *, seeds: Sequence[int], n_fractions: int) -> SeedCases:
    """Reads the cases that `run_dir/seed-S` hold.

    Raises: RunError naming a seed whose held-out turns or learning curve are missing.
    """

    def turns(kind: str, *, needed: bool = False) -> dict[int, ScoredTurns]:
        found = {}
        for seed in seeds:
            path = run_dir / f"seed-{seed}" / "cases" / f"{kind}.npz"
            if path.exists():
                found[seed] = ScoredTurns.load(path)
            elif needed:
                raise RunError(f"{path} is missing: measure seed {seed} first")
        return found

    users = {seed: run_dir / f"seed-{seed}" / "cases" / f"users-{form}.npz" for seed in seeds}
    return SeedCases(
        form,
        turns(f"held-out-{form}", needed=True),
        [turns(f"curve-{form}-{number}", needed=True) for number in range(n_fractions)],
        turns(f"uss-{form}"),
        turns(f"truth-{form}"),
        {seed: MetUsers.load(path) for seed, path in users.items() if path.exists()},
    )

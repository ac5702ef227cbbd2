"""Measures a policy at points of its way from the reference: what its sampled replies earn, what they are worth, how far
they lie from the reference's. Every measurement is stored case by case and never made twice.

Distance, proxy and truth are those of the same replies. Where a world knows the truth they are the replies its users hear
in closed loop, one case a user (means over the user's turns); for real dialogues they are replies to fixed validation
contexts, one case a reply, and the truth is a judge. BLEU-4 is that of replies to fixed validation contexts everywhere.
All measurements of a seed share users, contexts and random numbers.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np

from rlhf_jax.assessment.sampled import Against, SampledAnswers, SampledConfig, draw_answers, judge_replies
from rlhf_jax.assessment.sampled import load as load_answers
from rlhf_jax.assessment.sampled import save as save_answers
from rlhf_jax.assessment.users import Responder, meet_users
from rlhf_jax.evaluation.over_optimisation import Walk
from rlhf_jax.evaluation.text import corpus_bleu, one_hot_bleu
from rlhf_jax.interfaces import Dialogue, Params
from rlhf_jax.ranges import Batch, Cases, Range, check_numbers
from rlhf_jax.runtime.files import RunError, read_npz, write_npz
from rlhf_jax.stages.setup import Setup

START = "start"
"""Names the measurements of the supervised policy, which every way shares."""
_SHIFT = 1000
"""Added to the seed of repeated answers, so that they are drawn with keys nothing else uses."""


@dataclasses.dataclass(frozen=True)
class PathConfig:
    """How much is measured at each point."""

    users: Cases = 300
    """Users of the simulated world, none of whom the policy was trained on."""
    user_turns: Annotated[int, Range("[1, 1_000]")] = 4
    """System turns a user has patience for."""
    contexts: Cases = 500
    """Validation contexts that are answered."""
    batch_size: Batch = 64
    """Contexts of one call."""
    repeats: Annotated[int, Range("[3, 1_000]")] = 12
    """Times the supervised policy answers the contexts with other random numbers: BLEU's band before learning; three at least."""

    def __post_init__(self) -> None:
        check_numbers(self)


@dataclasses.dataclass(frozen=True, eq=False)
class PathProbe:
    """Measures one seed's policies."""

    folder: Path
    """Where measurements are stored: `NAME-UPDATES.npz` and `-users.npz`."""
    setup: Setup
    """Its test split is what is answered; see `on_validation`."""
    against: Against
    """Reference and proxy; the judge is the truth of real dialogues, None where a world knows it."""
    config: PathConfig

    def probe(self, way: str) -> Callable[[Params, int], dict[str, float]]:
        """What `alignment.align` calls: measures after so many updates and names the means for `metrics.jsonl`."""

        def measure(params: Params, updates: int) -> dict[str, float]:
            answers = self.answers(way, params, updates)
            texts, references = zip(*((turn.text, turn.reference) for turn in answers.turns), strict=True)
            found = {
                "validation/score_raw": float(answers.proxy.mean()),
                "validation/kl_k1": float(answers.kl.mean()),
                "validation/response_length": float(np.mean([turn.n_tokens for turn in answers.turns])),
                "text/bleu4": corpus_bleu(texts, references)[0],
                "text/bleu4_one_hot": float(
                    np.mean([one_hot_bleu(*pair) for pair in zip(texts, references, strict=True)])
                ),
            }
            if answers.judge is not None:
                found["judge/score"] = float(answers.judge.mean())
            users = self.users(way, params, updates)
            return found | {f"world/{metric}": float(np.mean(values)) for metric, values in users.items()}

        return measure

    def answers(self, way: str, params: Params, updates: int, *, repeat: int = 0) -> SampledAnswers:
        """Sampled replies to the contexts.

        Args:
          repeat: another number draws other random numbers.
        """
        stored = self._file(way, updates, f"-{repeat}" if repeat else "")
        if stored.exists():
            return load_answers(stored)
        config = SampledConfig(turns=self.config.contexts, batch_size=self.config.batch_size)
        seed = self.setup.seed + _SHIFT * repeat
        answers = draw_answers(self.setup, params, config, self.against, seed=seed, name=f"{stored.stem}: answers")
        if self.against.judge is not None:
            answers = answers._replace(judge=judge_replies(self.setup, config, answers.replies, self.against.judge))
        save_answers(stored, answers)
        return answers

    def users(self, way: str, params: Params, updates: int) -> dict[str, np.ndarray]:
        """Closed loop with the world's users: metric to one value a user; empty for real dialogues."""
        if self.setup.world_seed is None:
            return {}
        stored = self._file(way, updates, "-users")
        if not stored.exists():
            responder = Responder(
                self.setup, params, greedy=False, proxy=self.against.proxy, reference=self.against.reference
            )
            values = meet_users(responder, self.setup, n_users=self.config.users, n_turns=self.config.user_turns)
            write_npz(stored, values)
        return read_npz(stored)

    def bleu_before_learning(self) -> list[float]:
        """BLEU-4 of the supervised policy's replies to the contexts, drawn again and again."""
        scores = []
        for repeat in range(1, self.config.repeats + 1):
            turns = self.answers(START, self.against.reference, 0, repeat=repeat).turns
            scores.append(corpus_bleu([turn.text for turn in turns], [turn.reference for turn in turns])[0])
        return scores

    def _file(self, way: str, updates: int, ending: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / (f"{START}{ending}.npz" if updates == 0 else f"{way}-{updates:04d}{ending}.npz")


def on_validation(setup: Setup, *, without: Mapping[str, object]) -> Setup:
    """The same data with validation dialogues in the place of the test split, for measurements during training.

    Args:
      without: ids of dialogues to leave out, those the judge has read.
    Raises: RunError where none is left.
    """
    kept: tuple[Dialogue, ...] = tuple(d for d in setup.corpus.validation if d.dialogue_id not in without)
    if not kept:
        raise RunError("no validation dialogue is left to answer: give the foundation more dialogues")
    return setup.testing(kept)


def read_walk(folder: Path, way: str, *, seed: int, same_cases: bool) -> Walk:
    """One seed's way from the stored measurements; needs neither data nor model.

    Args:
      seed: names the users of this seed, where `same_cases` says that other seeds have other ones.
    Raises: RunError where nothing was measured.
    """
    found = {int(path.stem.split("-")[-1]): path for path in folder.glob(f"{way}-[0-9][0-9][0-9][0-9].npz")}
    files = [folder / f"{START}.npz", *(found[updates] for updates in sorted(found))]
    if not found or not files[0].exists():
        raise RunError(f"{folder} holds no measurements of {way}: start the study's seed {seed} again")
    updates = (0, *sorted(found))
    users = [path.with_name(f"{path.stem}-users.npz") for path in files]
    if all(path.exists() for path in users):
        met = []
        met = [read_npz(path) for path in users]
        units = [f"user {number:06d}" for number in range(len(met[0]["kl_k1"]))]
        kl, proxy, truth = (
            np.stack([one[metric] for one in met]) for metric in ("kl_k1", "proxy_score", "mean_utility")
        )
    else:
        answers = [load_answers(path) for path in files]
        judgements = [one.judge for one in answers if one.judge is not None]
        if len(judgements) < len(answers):
            raise RunError(f"{folder}: replies of {way} were not judged, and no user was met: there is no truth")
        units = [turn.dialogue for turn in answers[0].turns]
        kl, proxy, truth = (
            np.stack([one.kl for one in answers]),
            np.stack([one.proxy for one in answers]),
            np.stack(judgements),
        )
    names = units if same_cases else [f"seed {seed}, {unit}" for unit in units]
    return Walk(updates, tuple(names), kl, proxy, truth)

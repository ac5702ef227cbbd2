"""What the held-out judge of people's satisfaction says of greedy replies, stored case by case; paired over seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rlhf_jax.assessment import assess
from rlhf_jax.assessment.assess import AssessmentConfig
from rlhf_jax.assessment.sampled import Judge
from rlhf_jax.data.items import spelled_titles
from rlhf_jax.data.windows import response_message
from rlhf_jax.evaluation import bootstrap
from rlhf_jax.evaluation.bootstrap import DialogueSums
from rlhf_jax.evaluation.results import DIFFERENCE, Result, difference_name
from rlhf_jax.interfaces import Params
from rlhf_jax.runtime.files import DamagedFileError, read_npz, write_npz
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.setup import Setup

WHAT = "held-out judge's satisfaction with a greedy reply, 1 to 5, mean over replies"


def judged_file(folder: Path, name: str) -> Path:
    """Where the judge's scores of a system lie in a folder of assessments."""
    return folder / f"{name}-judged.npz"


def judge_greedy(
    stored: Path, setup: Setup, policy: Params, judge: Judge, config: AssessmentConfig, *, name: str
) -> None:
    """Scores the greedy replies to the contexts of `assess.answer`, and writes them with their dialogues."""
    windows = Windows.of(setup, setup.corpus.test[: config.test_dialogues])
    turns = assess.text_turns(windows, config.text_turns)
    said = assess.greedy_responses(setup.agent, policy, windows, turns, config.batch_size, name=name)
    histories = [windows.dialogues[dialogue].messages[:index] for dialogue, index in turns]
    replies = [response_message(setup.vocab, response) for response in said]
    scores = judge(histories, replies, spelled_titles(setup.corpus.items, with_year=False))
    dialogues = np.array([windows.dialogues[dialogue].dialogue_id for dialogue, _ in turns], np.str_)
    write_npz(stored, {"scores": np.asarray(scores, np.float64), "dialogues": dialogues})


def load(stored: Path) -> DialogueSums:
    """The scores by dialogue, ready for `bootstrap`.

    Raises: DamagedFileError naming a file that is not what `judge_greedy` wrote.
    """
    arrays = read_npz(stored)
    try:
        return bootstrap.by_dialogue(arrays["scores"], arrays["dialogues"].tolist())
    except (KeyError, ValueError) as error:
        raise DamagedFileError(f"{stored} holds no judged replies ({error}): restore it or remove it") from error


def results(
    judged: Mapping[str, Mapping[int, DialogueSums]], pairs: Sequence[tuple[str, str]], *, split: str
) -> list[Result]:
    """The mean score of every system, and of every pair (a, b) the difference a − b, paired by dialogue and seed.

    Args:
      judged: system to training seed to scores; all seeds answered the same contexts.
    """
    seeds = tuple(sorted(next(iter(judged.values()))))
    sides = {name: [of[seed] for seed in seeds] for name, of in judged.items()}
    found = {name: (bootstrap.mean_over_seeds(own), WHAT) for name, own in sides.items()}
    for a, b in pairs:
        found[difference_name(a, b)] = bootstrap.difference_over_seeds(sides[a], sides[b]), f"{DIFFERENCE}: {WHAT}"
    return [
        Result(f"{name}/judge", one.value, one.n // len(seeds), "text", split, one.interval, seeds, what, one.std)
        for name, (one, what) in found.items()
    ]

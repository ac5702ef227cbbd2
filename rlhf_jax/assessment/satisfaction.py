"""The satisfaction judge of real dialogues, made once per set of files, with what it is worth.

Fitted on USS's ReDial part, split by dialogue with a fixed seed; judged on the dialogues left out. Beside the judge stand
models of the same form that read less (the context alone, the reply alone) and one that reads the user's answer, which no
policy's reply has. None of them is for training: nothing that learns may import this.
"""

import fcntl
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_jax.data.exchanges import satisfaction_cases
from rlhf_jax.data.human_ratings import ScoredMessage, read_uss
from rlhf_jax.data.items import spelled_titles
from rlhf_jax.data.redial import read_redial
from rlhf_jax.data.turns import spell
from rlhf_jax.evaluation.association import spearman_estimate
from rlhf_jax.evaluation.bootstrap import Estimate
from rlhf_jax.evaluation.results import Result
from rlhf_jax.evaluation.satisfaction_judge import (
    PENALTIES,
    READS,
    JudgedTurn,
    Part,
    SatisfactionJudge,
    choose_penalty,
    fit_judge,
    fit_regression,
    part_texts,
)
from rlhf_jax.interfaces import Corpus, Dialogue, Item
from rlhf_jax.runtime.files import DamagedFileError, RunError, check_npz, notice, read_object, write_json, write_npz

Floats = NDArray[np.float64]
HELD_OUT = 0.2
"""Share of the USS dialogues that no model is fitted on."""
SEED = 0
"""Of the split and the folds; the same for every training seed, so that all are judged by the same judge."""
VERSION = 2
"""Of what is stored: raised when the same files would give another judge."""
FILES = (
    "uss/ReDial.txt",
    "uss/ReDial_conversation_ids.tsv",
    "redial/train_data.jsonl",
    "redial/test_data.jsonl",
    "redial/movies_with_mentions.csv",
)
READERS: Mapping[str, tuple[tuple[Part, ...], str]] = {
    "judge": (READS, "reads context and reply"),
    "reply alone": (("reply",), "reads the reply without its context"),
    "context alone": (("user", "earlier"), "reads the context without the reply"),
    "with the answer": ((*READS, "answer"), "reads also the user's answering turn, which no policy's reply has"),
}
"""Models of the same form: what each reads. Only the first judges policies."""


def uss_judge(data_dir: Path, cache: Path, *, replicates: int = 500) -> tuple[SatisfactionJudge, dict[str, Any]]:
    """The judge and its report; fitted once, and kept in `cache` by the hash of the files it comes from.

    Args:
      data_dir: holds `uss/` and `redial/`.
      cache: folder for `uss-judge-HASH.npz` and `.json`.
      replicates: of the bootstrap.
    Returns: the judge, and `report`'s entries with the provenance.
    Raises: RunError where files are missing or a USS dialogue lies in ReDial's test split; ValueError for bad lines.
    """
    provenance = {name: _sha256(data_dir, name) for name in FILES} | {"version": VERSION, "replicates": replicates}
    name = hashlib.sha256(repr(sorted(provenance.items())).encode()).hexdigest()[:16]
    stored, written = cache / f"uss-judge-{name}.npz", cache / f"uss-judge-{name}.json"
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "uss-judge.lock", "w") as lock:
        # Seeds that run side by side wait for the first to fit, and read what it stored.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stored.exists() and written.exists():
            try:
                check_npz(stored)
                return SatisfactionJudge.load(stored), read_object(written)
            except DamagedFileError as error:
                notice(f"{error}: fitting again")
        _fit(data_dir, stored, written, provenance, replicates)
    return SatisfactionJudge.load(stored), read_object(written)


def check_unread(judge: SatisfactionJudge, dialogues: Iterable[Dialogue]) -> None:
    """Raises RunError where the judge was fitted on one of the dialogues in which policies are to be judged."""
    read = sorted(judge.fitted_on & {dialogue.dialogue_id for dialogue in dialogues})
    if read:
        raise RunError(f"the judge was fitted on {len(read)} of the dialogues it is to judge replies in: {read[:5]}")


def _fit(data_dir: Path, stored: Path, written: Path, provenance: Mapping[str, Any], replicates: int) -> None:
    corpus = read_redial(data_dir / "redial")
    turns = judged_turns(corpus, read_uss(data_dir / "uss"))
    fitting, held_out = split_by_dialogue(turns)
    judge, found = fit_and_measure(fitting, held_out, judge_titles(corpus.items), replicates=replicates)
    write_npz(stored, judge.arrays(), compressed=True)
    write_json(written, {**found, "provenance": provenance})
    notice(f"satisfaction judge: Spearman {found['spearman']['judge']['value']:.3f} on {len(held_out)} held-out turns")


def judge_titles(items: Mapping[int, Item]) -> dict[int, str]:
    """Titles as the judge was fitted with: without years. Longer ones do no harm, unknown words are not read."""
    return spelled_titles(items, with_year=False)


def judged_turns(corpus: Corpus, scored: Mapping[str, Sequence[ScoredMessage]]) -> list[JudgedTurn]:
    """System turns of training and validation dialogues, with the satisfaction of the user turn that answers.

    Raises: RunError where a scored dialogue lies in the test split, on which policies are judged.
    """
    leaked = sorted(dialogue.dialogue_id for dialogue in corpus.test if dialogue.dialogue_id in scored)
    if leaked:
        raise RunError(
            f"{len(leaked)} USS dialogues lie in the test split, the first is {leaked[0]}: no judge of policies"
        )
    return [
        _judged(case.dialogue, case.message_index, case.reply.message_indices if case.reply else (), case.judgement)
        for case in satisfaction_cases((*corpus.train, *corpus.validation), scored)
    ]


def _judged(dialogue: Dialogue, index: int, answer: Iterable[int], satisfaction: float) -> JudgedTurn:
    messages = dialogue.messages
    answered = tuple(messages[place] for place in answer)
    return JudgedTurn(dialogue.dialogue_id, messages[:index], messages[index], answered, satisfaction)


def split_by_dialogue(
    turns: Sequence[JudgedTurn], *, held_out: float = HELD_OUT, seed: int = SEED
) -> tuple[list[JudgedTurn], list[JudgedTurn]]:
    """Turns to fit on and turns of other dialogues to measure on; at least one dialogue each.

    Raises: ValueError for fewer than two dialogues.
    """
    names = sorted({turn.dialogue for turn in turns})
    if len(names) < 2:
        raise ValueError(f"{len(names)} judged dialogues cannot be split")
    order = np.random.Generator(np.random.PCG64([seed, 1])).permutation(len(names))
    n_held_out = min(len(names) - 1, max(1, round(len(names) * held_out)))
    outside = {names[place] for place in order[:n_held_out]}
    return [turn for turn in turns if turn.dialogue not in outside], [
        turn for turn in turns if turn.dialogue in outside
    ]


def fit_and_measure(
    fitting: Sequence[JudgedTurn],
    held_out: Sequence[JudgedTurn],
    titles: Mapping[int, str],
    *,
    penalties: Sequence[float] = PENALTIES,
    folds: int = 5,
    replicates: int = 500,
) -> tuple[SatisfactionJudge, dict[str, Any]]:
    """Fits the judge and its companions, λ by cross-validation within `fitting`, and measures all on `held_out`.

    Returns: the judge, and its report: sizes, λ, Spearman with intervals over dialogues by reader, association with the
      reply's length, and the range of the scores.
    """
    texts = part_texts(held_out, titles)
    truth = np.array([turn.satisfaction for turn in held_out])
    keys = [turn.dialogue for turn in held_out]
    estimate = functools.partial(spearman_estimate, dialogues=keys, replicates=replicates)
    spearmans, chosen = {}, {}
    judge, judged = None, np.zeros(0)
    for name, (reads, _) in READERS.items():
        penalty, tried = choose_penalty(fitting, titles, reads, penalties=penalties, folds=folds, seed=SEED)
        chosen[name] = {"chosen": penalty, "cross_validation": {str(key): value for key, value in tried.items()}}
        if name == "judge":
            judge = fit_judge(fitting, titles, penalty=penalty)
            judged = judge([turn.history for turn in held_out], [turn.reply for turn in held_out], titles)
            predicted = judged
        else:
            predicted = fit_regression(fitting, titles, reads, penalty=penalty)(texts)
        spearmans[name] = _entry(estimate(predicted, truth))
    assert judge is not None
    words = np.array([float(len(spell(turn.reply.parts).split())) for turn in held_out])
    report = {
        "fitting": _sizes(fitting),
        "held_out": _sizes(held_out),
        "penalties": chosen,
        "spearman": spearmans,
        "length": {
            "score and words of the reply": _entry(estimate(judged, words)),
            "satisfaction and words of the reply": _entry(estimate(truth, words)),
        },
        "score": {name: float(getattr(judged, name)()) for name in ("min", "mean", "max", "std")},
        "satisfaction": {name: float(getattr(truth, name)()) for name in ("min", "mean", "max", "std")},
    }
    return judge, report


def results(report: Mapping[str, Any]) -> list[Result]:
    """Entries of `results.json`: what the judge is worth."""
    measured = [
        (f"{name}/spearman", entry, f"Spearman's ρ with USS's satisfaction on held-out dialogues; {READERS[name][1]}")
        for name, entry in report["spearman"].items()
    ]
    measured += [
        (
            "judge/spearman_length",
            report["length"]["score and words of the reply"],
            "ρ of the score and the reply's words",
        ),
        (
            "satisfaction/spearman_length",
            report["length"]["satisfaction and words of the reply"],
            "ρ of the annotated satisfaction and the reply's words",
        ),
    ]
    return [
        Result(
            name=name,
            value=entry["value"],
            n=entry["n"],
            protocol="uss-judge",
            split="redial/uss-held-out",
            interval=tuple(entry["interval"]),
            seeds=(),
            definition=text,
        )
        for name, entry, text in measured
    ]


def _entry(found: Estimate) -> dict[str, Any]:
    return {"value": found.value, "interval": list(found.interval), "n": found.n}


def _sizes(turns: Sequence[JudgedTurn]) -> dict[str, int]:
    return {"dialogues": len({turn.dialogue for turn in turns}), "turns": len(turns)}


def _sha256(folder: Path, name: str) -> str:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return hashlib.sha256(path.read_bytes()).hexdigest()
    raise RunError(f"the satisfaction judge needs {folder / name}: it is fitted on USS joined to ReDial")

"""What a reward model knows, case by case: its scores of logged turns beside weak labels, satisfaction and true utility.

Everything is stored in the run directory (`cases/NAME.npz`), so that seeds are gathered later and nothing is measured twice:

    held-out-FORM        turns of validation dialogues, as the gate sees them; part says whether their items were trained on
    curve-FORM-i         the same turns by a reward model that saw the i-th share of the labelled turns
    uss-FORM             system turns that USS scored (real dialogues); part says how much of the dialogue R_φ saw
    truth-FORM           turns of validation dialogues with their true utility (simulated world)
    users-FORM           users of the simulated world who met the supervised policy: mean score and mean true utility

FORM is the sentiment signal of the labels, `shift` or `level`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from rlhf_jax.assessment.assess import AssessmentConfig
from rlhf_jax.assessment.users import Responder, meet_users
from rlhf_jax.data.batching import wrapped_batches
from rlhf_jax.data.exchanges import satisfaction_cases
from rlhf_jax.data.human_ratings import read_uss
from rlhf_jax.feedback.weak_labels import LabelTable
from rlhf_jax.interfaces import Dialogue, Params
from rlhf_jax.runtime.files import RunError, notice, write_npz
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.simulators.world_dialogues import logged_dialogues
from rlhf_jax.stages import reward
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.labelled_turns import drawn_rows
from rlhf_jax.stages.reward import Proxy
from studies.foundation import EQUAL, Foundation, Sentiment
from studies.reward_validation.cases import MetUsers, ScoredTurns

Floats = NDArray[np.float64]
Place = tuple[int, int]
"""A dialogue's place in its split, and a message's in the dialogue."""


class _LabelledSplit(NamedTuple):
    """One split with its labels, and the turns the reward model used of it."""

    dialogues: Sequence[Dialogue]
    table: LabelTable
    rows: NDArray[np.int64]
    """Rows of the table."""

    def places(self, rows: NDArray[np.int64]) -> list[Place]:
        return list(
            zip(self.table.dialogue_indices[rows].tolist(), self.table.message_indices[rows].tolist(), strict=True)
        )


def measure(
    run: RunDirectory,
    foundation: Foundation,
    *,
    sentiments: Sequence[Sentiment],
    fractions: Sequence[float],
    assess: AssessmentConfig,
    uss: Path | None,
) -> None:
    """Stores all cases of one seed; what is there already is not measured again.

    Args:
      foundation: whose reward models are measured.
      sentiments: which of them; the learning curve is that of the first.
      fractions: shares of the labelled turns, below 1, that reward models of the curve are trained on.
      assess: how many users of the world are met, and for how many turns.
      uss: folder of the satisfaction scores; None where the dialogues are not ReDial's.
    """
    folder = run.path / "cases"
    folder.mkdir(exist_ok=True)
    for form in sentiments:
        training, held_out = read_labels(foundation, form)
        params = foundation.proxy(form).model
        path = folder / f"held-out-{form}.npz"
        if not path.exists():
            _held_out(foundation, params, training, held_out, len(training.rows)).save(path)
        if uss is not None and not (path := folder / f"uss-{form}.npz").exists():
            _satisfaction(foundation, params, training, held_out, uss).save(path)
        if foundation.setup.world_seed is not None:
            if not (path := folder / f"truth-{form}.npz").exists():
                _true_utility(foundation, params, training, held_out).save(path)
            if not (path := folder / f"users-{form}.npz").exists():
                write_npz(path, _met_users(foundation, params, assess)._asdict())
    form = sentiments[0]
    training, held_out = read_labels(foundation, form)
    for number, fraction in enumerate(fractions):
        path = folder / f"curve-{form}-{number}.npz"
        if path.exists():
            continue
        n = max(1, round(len(training.rows) * fraction))
        notice(f"reward model on {n} of {len(training.rows)} labelled turns")
        params = _trained_on(run, foundation, form, n, name=f"{reward.STAGE}-{form}-{number}")
        _held_out(foundation, params, training, held_out, n).save(path)


def case_files(*, sentiments: Sequence[Sentiment], fractions: Sequence[float], kinds: Sequence[str]) -> list[str]:
    """What the run directory of a seed that is done holds."""
    names = [f"{kind}-{form}" for kind in kinds for form in sentiments]
    names += [f"curve-{sentiments[0]}-{number}" for number in range(len(fractions))]
    return [f"cases/{name}.npz" for name in names]


def read_labels(foundation: Foundation, form: Sentiment) -> tuple[_LabelledSplit, _LabelledSplit]:
    """Training and validation split with labels and the rows that R_φ was trained and judged on.

    Raises: RunError where the foundation holds no labels of this form.
    """
    config, found = foundation.config, []
    corpus = reward.labelled(foundation.setup.corpus, config.reward)
    splits = (
        ("train", corpus.train, config.reward.max_turns),
        ("validation", corpus.validation, config.reward.validation_turns),
    )
    for name, dialogues, limit in splits:
        path = foundation.path / reward.labels_folder(f"{reward.STAGE}-{form}") / f"{name}.npz"
        if not path.exists():
            raise RunError(f"{path} is missing: the foundation was laid without labels of the sentiment {form}")
        table = LabelTable.load(path)
        rows = drawn_rows(table, Windows(foundation.setup.vocab, dialogues, config.data), limit, foundation.setup.seed)
        found.append(_LabelledSplit(dialogues, table, rows))
    return found[0], found[1]


def score_turns(
    foundation: Foundation,
    params: Params,
    dialogues: Sequence[Dialogue],
    places: Sequence[Place],
    batch_size: int = 128,
) -> Floats:
    """Components the reward model gives to logged turns. [N, C]"""
    if not places:
        return np.zeros((0, len(EQUAL)))
    # Only the dialogues that are needed are encoded.
    numbers = {old: new for new, old in enumerate(dict.fromkeys(number for number, _ in places))}
    windows = Windows(foundation.setup.vocab, [dialogues[old] for old in numbers], foundation.setup.data)
    moved = [(numbers[number], index) for number, index in places]
    arrays = zip(windows.prompts(moved), windows.responses(moved), strict=True)
    tokens, mask = (np.concatenate(pair, axis=1) for pair in arrays)
    agent = foundation.setup.agent
    predict = agent.compiled(
        "score_tokens",
        lambda: jax.jit(lambda params, tokens, mask: agent.score_tokens(params, tokens, mask, None)),
    )
    chunks = [
        np.asarray(predict(params, jnp.asarray(tokens[rows]), jnp.asarray(mask[rows])))[:own]
        for rows, own in wrapped_batches(len(places), batch_size)
    ]
    return np.concatenate(chunks).astype(np.float64)


def _held_out(
    foundation: Foundation, params: Params, training: _LabelledSplit, held_out: _LabelledSplit, training_turns: int
) -> ScoredTurns:
    """The gate's turns; part: `no item`, `seen items` (all were suggested in a training turn), `unseen items`."""
    known = {
        item
        for number, index in training.places(training.rows)
        for item in training.dialogues[number].messages[index].items
    }
    places = held_out.places(held_out.rows)
    part = []
    for number, index in places:
        items = set(held_out.dialogues[number].messages[index].items)
        part.append("no item" if not items else "seen items" if items <= known else "unseen items")
    return ScoredTurns(
        held_out.table.dialogue_ids[held_out.rows],
        score_turns(foundation, params, held_out.dialogues, places),
        held_out.table.z[held_out.rows],
        held_out.table.mask[held_out.rows],
        np.full(len(places), np.nan),
        np.array(part, np.str_),
        training_turns,
    )


def _satisfaction(
    foundation: Foundation, params: Params, training: _LabelledSplit, held_out: _LabelledSplit, uss: Path
) -> ScoredTurns:
    """Turns that USS scored; part is what R_φ saw of the dialogue.

    `validation`: nothing, nor did the supervised trunk; `untouched`: imitated in stage 1, no labelled turn drawn for R_φ;
    `trained`: labelled turns of the dialogue are in R_φ's training set.
    """
    scored = read_uss(uss)
    drawn = set(training.table.dialogue_ids[training.rows].tolist())
    pieces = []
    for split, of in (("train", training), ("validation", held_out)):
        number = {dialogue.dialogue_id: place for place, dialogue in enumerate(of.dialogues)}
        row = {place: n for n, place in enumerate(of.places(np.arange(len(of.table.z))))}
        usable = set(Windows(foundation.setup.vocab, of.dialogues, foundation.setup.data).turns())
        cases, places = [], []
        for case in satisfaction_cases(of.dialogues, scored):
            place = number[case.dialogue.dialogue_id], case.message_index
            if place in usable:
                cases.append(case)
                places.append(place)
        ids = [case.dialogue.dialogue_id for case in cases]
        seen = [split if split == "validation" else "trained" if name in drawn else "untouched" for name in ids]
        rows = np.array([row[place] for place in places], np.int64)
        predicted = score_turns(foundation, params, of.dialogues, places)
        satisfaction = [case.judgement for case in cases]
        pieces.append((ids, predicted, of.table.z[rows], of.table.mask[rows], satisfaction, seen))
    ids, predicted, labels, mask, truth, part = (np.concatenate(column) for column in zip(*pieces, strict=True))
    if len(ids) < 2:
        raise RunError(f"{uss}: {len(ids)} of the dialogues that were read have satisfaction scores")
    return ScoredTurns(
        ids.astype(np.str_), predicted, labels, mask, truth.astype(float), part.astype(np.str_), len(training.rows)
    )


def _true_utility(
    foundation: Foundation, params: Params, training: _LabelledSplit, held_out: _LabelledSplit
) -> ScoredTurns:
    """Every labelled turn of the validation dialogues with what it was truly worth to the user."""
    assert foundation.setup.world_seed is not None
    logged = logged_dialogues(foundation.setup.data.world, foundation.setup.world_seed, "train")
    utilities = {entry.dialogue.dialogue_id: entry.utilities for entry in logged}
    windows = Windows(foundation.setup.vocab, held_out.dialogues, foundation.setup.data)
    rows = drawn_rows(held_out.table, windows, None, foundation.setup.seed)
    places, ids = held_out.places(rows), held_out.table.dialogue_ids[rows]
    worth = [utilities[str(name)][index] for name, (_, index) in zip(ids, places, strict=True)]
    suggests = [bool(held_out.dialogues[number].messages[index].items) for number, index in places]
    return ScoredTurns(
        ids,
        score_turns(foundation, params, held_out.dialogues, places),
        held_out.table.z[rows],
        held_out.table.mask[rows],
        np.array(worth, float),
        np.where(suggests, "suggests", "no item"),
        len(training.rows),
    )


def _met_users(foundation: Foundation, params: Params, assess: AssessmentConfig) -> MetUsers:
    """The supervised policy, as it samples, with users it never met."""
    responder = Responder(foundation.setup, foundation.supervised_policy, greedy=False, proxy=Proxy(params, EQUAL))
    values = meet_users(responder, foundation.setup, n_users=assess.users, n_turns=assess.user_turns)
    return MetUsers(values["proxy_score"], values["mean_utility"])


def _trained_on(run: RunDirectory, foundation: Foundation, form: Sentiment, n: int, *, name: str) -> Params:
    """A reward model like the foundation's, on fewer labelled turns; stage `name` of this run."""
    config = foundation.config.reward
    config = dataclasses.replace(
        config, max_turns=n, labels=dataclasses.replace(config.labels, sentiment=form), gate="warn"
    )
    proxy, _ = reward.train(run, foundation.setup, foundation.trunk, config, weights=EQUAL, stage=name)
    return proxy.model

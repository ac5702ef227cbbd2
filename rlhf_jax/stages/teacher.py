"""A teacher for imitation: what the mixture of closed-form recommenders would suggest at the place of every list.

Imitation sees one item where a human named one, though many would have done. The mixture (`recommenders/mixture.py`), counted
on the same dialogues, knows which: its likeliest items are given to the policy as soft targets, without what the dialogue itself
says later (leave-own-dialogue-out). Seven numbers, its weights and its sharpness, are fitted on the validation split and kept
beside the targets. So knowledge of closed forms goes into the network, and no prior has to bring it along.
Source: distillation, Hinton, Vinyals and Dean 2015, arXiv:1503.02531.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int

from rlhf_jax.data.dialogue_store import StoredDialogues
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import ranking_rows
from rlhf_jax.decoding.grammar_loss import LIST, GrammarTargets, SoftTargets
from rlhf_jax.interfaces import Corpus, Dialogue
from rlhf_jax.recommenders import mixture
from rlhf_jax.recommenders.contexts import Catalogue, columns_of, contexts_before, counts, read_training, row_contexts
from rlhf_jax.runtime.files import RunError, notice, read_npz, write_json, write_npz
from rlhf_jax.runtime.progress import Progress
from rlhf_jax.stages.texts import TextBatches

BLOCK = 1_024
"""Lists that are looked up between two lines of progress."""


class Teacher(NamedTuple):
    """Soft targets of L lists, in the order in which the training texts have them."""

    items: Int[np.ndarray, "L N"]
    """Tokens of the likeliest items."""
    chances: Float32[np.ndarray, "L N"]
    """That add up to 1; all 0 where every item was named."""


def suggestions(dialogues: Sequence[Dialogue]) -> list[tuple[Dialogue, int]]:
    """The recommender's messages with items: each begins a list of the training texts."""
    return [
        (dialogue, place)
        for dialogue in dialogues
        for place, message in enumerate(dialogue.messages)
        if message.role == "recommender" and message.items
    ]


def make_teacher(path: Path, corpus: Corpus, vocab: Vocabulary, n: int) -> Teacher:
    """The teacher of a corpus's training texts, counted on its training split; kept in a file, and read from there again.

    Memory: 8·n bytes a list; ReDial's 34,000 lists with n = 50 take 14 MB.

    Args:
      corpus: its training split is what the texts are made of; the mixture's weights are fitted on its validation split.
      n: items that have a chance.
    Raises: RunError where the dialogues lie on disk, or none of validation suggests something new.
    """
    if isinstance(corpus.train, StoredDialogues):
        raise RunError("--sft.teacher-weight reads all training dialogues at once: leave it out, or --data.store")
    if path.exists():
        stored = read_npz(path)
        return Teacher(stored["items"], stored["chances"])
    rows = [row for row in ranking_rows(corpus.validation) if row.fresh_gold]
    if not rows:
        raise RunError("--sft.teacher-weight: no message of the validation split suggests something new")
    titles = {item_id: item.title for item_id, item in corpus.items.items()}
    catalogue = Catalogue(vocab.item_ids, titles)
    training = read_training(corpus.train, catalogue)
    parts = mixture.fit_parts(training, corpus.items)
    gold = counts([row.fresh_gold for row in rows], columns_of(vocab.item_ids))
    fitted = mixture.fit_weights(parts, row_contexts(rows, catalogue), gold)
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in fitted.weights.items())
    notice(f"teacher: {weights}; sharpness {fitted.sharpness:.2f}")
    write_json(path.with_suffix(".json"), {"weights": dict(fitted.weights), "sharpness": fitted.sharpness})
    places = suggestions(corpus.train)
    items = np.empty((len(places), min(n, vocab.n_items)), np.int32)
    chances = np.empty(items.shape, np.float32)
    with Progress("teacher", 0, len(places)) as progress:
        for begin in range(0, len(places), BLOCK):
            some = slice(begin, begin + BLOCK)
            contexts = contexts_before(places[some], catalogue, numbers=training.numbers)
            columns, chances[some] = mixture.likeliest(parts, fitted, contexts, n)
            items[some] = vocab.first_item + columns
            progress.show(min(begin + BLOCK, len(places)), {})
    write_npz(path, {"items": items, "chances": chances})
    return Teacher(items, chances)


class Lessons:
    """A teacher's soft targets for batches of texts."""

    def __init__(self, teacher: Teacher, batches: TextBatches) -> None:
        """Raises: ValueError where the texts of dialogues hold another number of lists than the teacher speaks of."""
        rec = batches.vocab.rec
        lists = batches.encoded.counts(lambda tokens: tokens == rec) * ~batches.encoded.description
        if lists.sum() != len(teacher.items):
            raise ValueError(f"a teacher of {len(teacher.items)} lists for texts with {lists.sum()}")
        self._teacher, self._batches = teacher, batches
        self._first = np.cumsum(lists) - lists

    def of(self, step: int, tokens: Int[np.ndarray, "B S"], targets: GrammarTargets) -> SoftTargets:
        """Soft targets of a packed batch: at the first place of every list of a dialogue."""
        batches = self._batches
        positions, kinds = np.asarray(targets.item_positions), np.asarray(targets.item_kinds)
        begins = (kinds == LIST) & (np.take_along_axis(tokens, positions, axis=1) == batches.vocab.rec)
        shape = (*positions.shape, self._teacher.items.shape[1])
        items = np.full(shape, batches.vocab.first_item, np.int32)
        chances = np.zeros(shape, np.float32)
        for row, text in enumerate(batches.members(step)):
            if not batches.encoded.description[text]:
                places = np.flatnonzero(begins[row])
                own = slice(self._first[text], self._first[text] + len(places))
                items[row, places], chances[row, places] = self._teacher.items[own], self._teacher.chances[own]
        return SoftTargets(items=jnp.asarray(items), chances=jnp.asarray(chances))

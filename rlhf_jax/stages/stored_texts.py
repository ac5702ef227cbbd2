"""Training texts of a stored corpus: encoded a few dialogues at a time, kept as tokens, mapped when batches are made."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.data.dialogue_store import VERSION, StoredDialogues
from rlhf_jax.data.flat import FlatWriter, kept, read_flat
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import training_texts
from rlhf_jax.runtime.files import notice
from rlhf_jax.stages.texts import EncodedTexts, Unlearnt, dialogue_pieces

DIALOGUES = 2_000
"""Encoded at once."""


def stored_texts(
    vocab: Vocabulary, dialogues: StoredDialogues, *, max_tokens: int, max_listed: int, once: bool = False
) -> EncodedTexts:
    """`texts.dialogue_texts`, token by token the same, on disk beside the dialogues.

    They are made where they are absent or damaged, and found again by dialogues, vocabulary and lengths.
    """
    fields = [VERSION, dialogues.key, vocabulary_key(vocab), max_tokens, max_listed, once]
    folder = dialogues.folder / f"texts-{hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]}"

    def make(partial: Path) -> dict[str, Any]:
        lost = Unlearnt()
        with FlatWriter(partial, "texts", "<i4") as writer:
            for begin in range(0, len(dialogues), DIALOGUES):
                some = list(dialogues[begin : begin + DIALOGUES])
                for piece in dialogue_pieces(
                    vocab, some, lost, max_tokens=max_tokens, max_listed=max_listed, once=once
                ):
                    writer.add(piece)
        return dataclasses.asdict(lost)

    Unlearnt(**kept(folder, make, notice)).tell(max_tokens=max_tokens, max_listed=max_listed)
    tokens = read_flat(folder, "texts", "<i4")
    return EncodedTexts((tokens,), np.zeros(len(tokens.starts) - 1, bool))


def stored_vocabulary(dialogues: StoredDialogues, item_ids: tuple[int, ...], n_words: int) -> Vocabulary:
    """The BPE of the training dialogues, trained once for all runs on the same data."""
    folder = dialogues.folder / f"vocabulary-{n_words}"

    def make(partial: Path) -> dict[str, Any]:
        Vocabulary.train(training_texts(dialogues), item_ids, n_words).save(partial)
        return {}

    kept(folder, make, notice)
    return Vocabulary.load(folder)


def vocabulary_key(vocab: Vocabulary) -> str:
    """Names what a vocabulary makes of a text."""
    fields = [vocab.tokenizer_json, list(vocab.item_ids), vocab.lower_case, vocab.multiple]
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()

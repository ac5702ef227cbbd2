"""Hugging Face folders: stored logits of `transformers` are met, what we write they read, and mistakes are named."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax.models import convert, gpt2

GOLDEN = Path(__file__).parent.parent / "golden_gpt2"
CONFIG = gpt2.GPT2Config(vocab_size=24, n_positions=8, n_embd=8, n_layer=2, n_head=2, dropout=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exported")
    convert.save_hf(target, CONFIG, gpt2.init(CONFIG, jax.random.key(0)), eos_token_id=3, pad_token_id=2)
    return target


def test_logits_are_those_of_transformers() -> None:
    config, params = convert.load_hf(GOLDEN)
    golden = np.load(GOLDEN / "logits.npz")
    forward = jax.jit(gpt2.forward, static_argnums=0)
    logits = np.asarray(forward(config, params, jnp.asarray(golden["tokens"]), jnp.asarray(golden["mask"])))
    assert np.abs(golden["logits"]).max() > 3
    np.testing.assert_allclose(logits[golden["mask"]], golden["logits"][golden["mask"]], atol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not among our dependencies")
def test_transformers_loads_what_we_export(tmp_path: Path) -> None:
    torch = importlib.import_module("torch")
    transformers = importlib.import_module("transformers")
    config = gpt2.GPT2Config(vocab_size=50, n_positions=16, n_embd=24, n_layer=3, n_head=3)
    params = jax.tree.map(lambda leaf: 4 * leaf + 0.01, gpt2.init(config, jax.random.key(1)))
    convert.save_hf(tmp_path, config, params, eos_token_id=3, pad_token_id=2)
    model, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    tokens = jax.random.randint(jax.random.key(2), (2, 10), 0, 50)
    ours = gpt2.forward(config, params, tokens, jnp.ones((2, 10), bool))
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(np.asarray(tokens))).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_export_and_import_are_inverse(folder: Path) -> None:
    config, params = convert.load_hf(folder)
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, params, gpt2.init(CONFIG, jax.random.key(0)))
    fields = json.loads((folder / "config.json").read_text())
    assert (fields["eos_token_id"], fields["pad_token_id"]) == (3, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def copy_with(folder: Path, target: Path, *, fields: dict | None = None, tensors: dict | None = None) -> None:
    """The exported folder with some fields or tensors replaced; None takes one away."""
    config = json.loads((folder / "config.json").read_text()) | (fields or {})
    (target / "config.json").write_text(json.dumps(config))
    stored = load_file(folder / "model.safetensors") | (tensors or {})
    save_file({name: tensor for name, tensor in stored.items() if tensor is not None}, target / "model.safetensors")


@pytest.mark.parametrize(
    ("fields", "tensors", "words"),
    [
        ({"activation_function": "relu"}, {}, "config.json: field 'activation_function' is 'relu'"),
        ({"n_embd": None}, {}, "config.json: these fields must be integers: {'n_embd': None}"),
        ({"n_inner": 20}, {}, "config.json: field 'n_inner' is 20, supported: 32"),
        ({"n_head": True}, {}, "config.json: these fields must be integers: {'n_head': True}"),
        ({"n_head": 3}, {}, "config.json: GPT2Config: n_embd 8 is not a multiple of n_head 3"),
        ({"n_layer": -1}, {}, "config.json: GPT2Config: sizes must be at least 1, got {'n_layer': -1}"),
        ({"layer_norm_epsilon": "1e-5"}, {}, "config.json: field 'layer_norm_epsilon' is '1e-5'"),
        ({"layer_norm_epsilon": None}, {}, "config.json: field 'layer_norm_epsilon' is None"),
        ({"layer_norm_epsilon": True}, {}, "config.json: field 'layer_norm_epsilon' is True"),
        ({"layer_norm_epsilon": -1}, {}, "config.json: field 'layer_norm_epsilon' is -1"),
        ({"layer_norm_epsilon": float("nan")}, {}, "config.json: field 'layer_norm_epsilon' is nan"),
        ({"resid_pdrop": 1}, {}, "config.json: field 'resid_pdrop' is 1, it must lie in"),
        ({"resid_pdrop": None}, {}, "config.json: field 'resid_pdrop' is None"),
        ({"quantization_config": {}}, {}, "config.json: field 'quantization_config' is set"),
        (
            {"n_layer": 1},
            {},
            "model.safetensors: 12 tensors have no place in the network of config.json .*: h.1.attn.c_attn.bias",
        ),
        (
            {},
            {"transformer.h.0.attn.c_attn.lora_A.default.weight": np.ones((2, 8), np.float32)},
            "model.safetensors: 1 tensors have no place .*: h.0.attn.c_attn.lora_A",
        ),
        ({}, {"h.2.attn.bias": np.ones((1, 1, 8, 8), np.float32)}, "1 tensors have no place .*: h.2.attn.bias"),
        ({}, {"transformer.wpe.weight": np.ones((8, 8), np.int8)}, "tensor 'wpe.weight' is int8"),
        ({}, {"transformer.wpe.weight": np.full((8, 8), np.nan, np.float32)}, "tensor 'wpe.weight' holds NaN"),
        ({}, {"wpe.weight": np.ones((8, 8), np.float32)}, "there twice, with and without 'transformer.'"),
        ({}, {"transformer.wpe.weight": None}, "model.safetensors: tensor 'wpe.weight' is missing"),
        (
            {},
            {"transformer.h.1.mlp.c_fc.bias": np.zeros(3, np.float32)},
            r"tensor 'h.1.mlp.c_fc.bias' has shape \(3,\), config.json says \(32,\)",
        ),
        ({}, {"lm_head.weight": np.ones((24, 8), np.float32)}, "lm_head.weight differs"),
    ],
)
def test_foreign_folders_are_refused_by_name(
    folder: Path, tmp_path: Path, fields: dict, tensors: dict, words: str
) -> None:
    copy_with(folder, tmp_path, fields=fields, tensors=tensors)
    with pytest.raises(ValueError, match=words):
        convert.load_hf(tmp_path)


def test_missing_and_broken_files_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config.json: missing"):
        convert.load_hf(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: no readable JSON"):
        convert.load_hf(tmp_path)
    (tmp_path / "config.json").write_text('[{"n_layer": 2}]')
    with pytest.raises(ValueError, match="config.json: must be a JSON object of fields, got "):
        convert.load_hf(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ValueError, match="model.safetensors: missing"):
        convert.load_hf(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    with pytest.raises(ValueError, match="model.safetensors: no readable safetensors"):
        convert.load_hf(tmp_path)


def test_old_names_without_prefix_and_half_precision_are_read(folder: Path, tmp_path: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    renamed = {name.removeprefix("transformer."): tensor.astype(np.float16) for name, tensor in stored.items()}
    save_file({**renamed, "h.0.attn.bias": np.ones((1, 1, 8, 8), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    _, params = convert.load_hf(tmp_path)
    assert params["wte"].dtype == jnp.float32
    np.testing.assert_allclose(params["wte"], stored["transformer.wte.weight"], atol=1e-4)


def write_shards(folder: Path, target: Path) -> dict[str, str]:
    """The exported folder with its weights in two files; returns which tensor is where."""
    stored = load_file(folder / "model.safetensors")
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    places = {name: files[number % 2] for number, name in enumerate(sorted(stored))}
    for file in files:
        save_file({name: stored[name] for name, place in places.items() if place == file}, target / file)
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def test_shards_are_read_as_one_file(folder: Path, tmp_path: Path) -> None:
    write_shards(folder, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, convert.load_hf(tmp_path), convert.load_hf(folder))


def test_shards_that_are_not_all_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    places = write_shards(folder, tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    first, second = sorted(set(places.values()))
    for changed, words in (
        ({**places, "h.9.ln_1.bias": first}, "index.json: field 'weight_map' and the shards differ in 1 tensors"),
        (
            {name: place for name, place in places.items() if place == first} | {"x": "y"},
            "field 'weight_map' must give",
        ),
        ({name: first for name in places}, "index.json: field 'weight_map' and the shards differ in"),
        ({**places, "x": "../model.safetensors"}, "field 'weight_map' must give the file of every tensor"),
        ([], "field 'weight_map' must give the file of every tensor"),
    ):
        index.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(ValueError, match=words):
            convert.load_hf(tmp_path)
    index.write_text(json.dumps({"weight_map": places}))
    twice = load_file(tmp_path / first) | {"transformer.wpe.weight": np.ones((8, 8), np.float32)}
    save_file(load_file(tmp_path / second) | twice, tmp_path / second)
    with pytest.raises(ValueError, match=f"{second}: tensor .* is in another shard too"):
        convert.load_hf(tmp_path)
    (tmp_path / second).unlink()
    with pytest.raises(ValueError, match=f"{second}: missing"):
        convert.load_hf(tmp_path)


def test_bfloat16_is_read_and_what_numpy_does_not_know_refused(folder: Path, tmp_path: Path) -> None:
    copy_with(folder, tmp_path)
    stored = load_file(folder / "model.safetensors")
    narrow = {name: np.asarray(jnp.asarray(tensor, jnp.bfloat16)) for name, tensor in stored.items()}
    save_file(narrow, tmp_path / "model.safetensors")
    _, params = convert.load_hf(tmp_path)
    assert params["wte"].dtype == jnp.float32
    np.testing.assert_array_equal(params["wte"], jnp.asarray(stored["transformer.wte.weight"], jnp.bfloat16))
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data.replace(b'"BF16"', b'"BF17"'))
    with pytest.raises(ValueError, match="model.safetensors: no readable safetensors"):
        convert.load_hf(tmp_path)


def test_adapters_beside_the_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    copy_with(folder, tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="adapter_config.json: adapters lie beside the weights"):
        convert.load_hf(tmp_path)


def test_a_larger_vocabulary_keeps_words_and_starts_items_at_their_titles() -> None:
    wte = jax.random.normal(jax.random.key(0), (10, 6))
    grown = convert.extend_vocabulary(
        {"wte": wte, "wpe": jnp.zeros((2, 6))},
        jax.random.key(1),
        16,
        n_words=8,
        first_item=11,
        item_titles=[[0, 3], [], [5]],
        noise=1e-4,
    )["wte"]
    assert grown.shape == (16, 6)
    np.testing.assert_array_equal(grown[:8], wte[:8])
    mean = jnp.mean(wte[:8], axis=0)
    expected = jnp.stack([mean, mean, mean, (wte[0] + wte[3]) / 2, mean, wte[5], mean, mean])
    np.testing.assert_allclose(grown[8:], expected, atol=1e-3)
    assert len(np.unique(np.asarray(grown[8:11]), axis=0)) == 3


def test_a_vocabulary_that_does_not_fit_is_refused_with_the_numbers() -> None:
    params = {"wte": jnp.zeros((10, 6))}
    with pytest.raises(ValueError, match="n_words 11 must be in 1 … 10"):
        convert.extend_vocabulary(params, jax.random.key(0), 16, n_words=11)
    with pytest.raises(ValueError, match="2 items from 15 do not fit between words 8 and size 16"):
        convert.extend_vocabulary(params, jax.random.key(0), 16, n_words=8, first_item=15, item_titles=[[1], [2]])

"""Prompts and responses of any message as arrays."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import prompt_tokens, response_tokens
from rlhf_jax.interfaces import Dialogue
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.setup import DataConfig, ModelConfig, load_network, size_network


@pytest.fixture(scope="module")
def windows(vocab: Vocabulary, dialogues: tuple[Dialogue, ...]) -> Windows:
    return Windows(vocab, dialogues, DataConfig(window=3, context_tokens=24, response_tokens=12, max_items=2))


def test_turns_say_something_after_something_was_said(windows: Windows) -> None:
    assert windows.turns() == [(0, 2), (0, 4), (1, 2)]


def test_prompts_are_the_context_and_end_at_the_right_edge(windows: Windows, vocab: Vocabulary) -> None:
    tokens, mask = windows.prompts(windows.turns())
    assert tokens.shape == mask.shape == (3, 24)
    assert (tokens[:, -1] == vocab.recommender).all()
    for (number, index), row, keep in zip(windows.turns(), tokens, mask, strict=True):
        messages = windows.dialogues[number].messages[:index]
        assert row[keep].tolist() == prompt_tokens(vocab, messages, window=3, context_tokens=24)
        assert (row[~keep] == vocab.pad).all()


def test_responses_follow_the_grammar(windows: Windows, vocab: Vocabulary) -> None:
    tokens, mask = windows.responses(windows.turns())
    for (number, index), row, keep in zip(windows.turns(), tokens, mask, strict=True):
        message = windows.dialogues[number].messages[index]
        assert row[keep].tolist() == response_tokens(vocab, message, max_tokens=12, max_items=2)
        assert row[keep][-1] == vocab.eos
    listed = [vocab.rec, vocab.item_token(11), vocab.item_token(12), vocab.say]
    assert tokens[0, :4].tolist() == listed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "redial"}, r"--data.dir must name the folder"),
        ({"source": "opendialkg"}, r"--data.dir must name the folder .* is opendialkg"),
        ({"dir": "somewhere"}, r"--data.dir somewhere is not read"),
        ({"source": "opendialkg", "dir": "there", "store": "kept"}, r"--data.store kept: dialogues of .* opendialkg"),
        ({"domain": "book"}, r"--data.domain book is OpenDialKG's; --data.source is world"),
        ({"max_dialogues": 0}, r"DataConfig.max_dialogues must be in \[1, 10000000\]: got 0"),
        ({"window": 0}, r"DataConfig.window must be in \[1, 10000\]: got 0"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)


def test_the_network_has_a_row_for_every_token(vocab: Vocabulary) -> None:
    network, trunk = load_network(ModelConfig(n_layer=1, n_embd=8, n_head=2, dropout=0.0), vocab)
    assert trunk is None
    assert (network.vocab_size, network.n_layer, network.n_embd, network.dropout) == (vocab.size, 1, 8, 0.0)


def test_sizes_are_learnt_without_the_weights(vocab: Vocabulary, repository: Path, tmp_path: Path) -> None:
    stored = repository / "tests" / "golden_gpt2"
    shutil.copy(stored / "config.json", tmp_path)
    network, _ = load_network(ModelConfig(weights=str(stored)), vocab)
    assert size_network(ModelConfig(weights=str(tmp_path)), vocab) == network


def test_the_network_is_trained_as_the_options_say(vocab: Vocabulary) -> None:
    def trained(**options: Any) -> tuple[str, str]:
        network, _ = load_network(ModelConfig(n_layer=1, n_embd=8, n_head=2, **options), vocab)
        return network.layers, network.remat

    assert trained() == ("unrolled", "none")
    assert trained(layers="scan", remat=True) == ("scan", "full")
    assert trained(remat=True, remat_saves="matmuls") == ("unrolled", "dots")
    with pytest.raises(ValueError, match="--model.remat-saves matmuls says what --model.remat spares"):
        trained(remat_saves="matmuls")

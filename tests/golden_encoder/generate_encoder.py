"""Writes tiny random encoders and their outputs by `transformers` beside this file (needs torch; the tests do not).

    python tests/golden_encoder/generate_encoder.py

Written with transformers 5.23.0 and torch 2.13.0 on a CPU. `bert` is a plain encoder as MiniLM is, `roberta` and
`bert_classifier` carry a head of three classes. Biases and layer norms are moved off their zeros and ones, so that no
tensor can be mixed up unseen.

    python tests/golden_encoder/generate_encoder.py MINILM_FOLDER

also writes `minilm.npz`: vectors of four texts by the real all-MiniLM-L6-v2 (the first sixteen numbers of each, and all
cosines), tokenised by its own tokenizer.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

FOLDER = Path(__file__).parent
SIZES = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
LABELS = {0: "negative", 1: "neutral", 2: "positive"}
TEXTS = [
    "I love scary movies, have you seen The Ring?",
    "Try a horror film such as It Follows.",
    "My train was late today.",
    "",
]


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Random biases and layer norms."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name or "LayerNorm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tiny(kind: str) -> None:
    """One folder with configuration, weights and `outputs.npz`."""
    torch.manual_seed(0)
    pad = 1 if kind == "roberta" else 0
    common = {**SIZES, "initializer_range": 0.2, "pad_token_id": pad, "id2label": LABELS}
    if kind == "roberta":
        config = transformers.RobertaConfig(max_position_embeddings=20, type_vocab_size=1, **common)
        model = spread(transformers.RobertaForSequenceClassification(config))
    else:
        config = transformers.BertConfig(max_position_embeddings=18, type_vocab_size=2, **common)
        kinds = {"bert": transformers.BertModel, "bert_classifier": transformers.BertForSequenceClassification}
        model = spread(kinds[kind](config))
    model.save_pretrained(FOLDER / kind)
    tokens = np.random.default_rng(0).integers(2, 60, (3, 9))
    mask = np.arange(9) < np.array([[9], [4], [1]])
    tokens[~mask] = pad
    inputs = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask).long()}
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    arrays = {"tokens": tokens.astype(np.int32), "mask": mask, "hidden": output.hidden_states[-1].numpy()}
    if kind != "bert":
        arrays["probabilities"] = output.logits.softmax(-1).numpy()
    np.savez_compressed(FOLDER / kind / "outputs.npz", **arrays)


def minilm(folder: str) -> None:
    """Real sentence vectors: mean over tokens, length 1."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder).eval()
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()
    np.savez_compressed(
        FOLDER / "minilm.npz", texts=np.array(TEXTS), vectors=vectors[:, :16], cosines=vectors @ vectors.T
    )


if __name__ == "__main__":
    for kind in ("bert", "bert_classifier", "roberta"):
        tiny(kind)
    for folder in sys.argv[1:]:
        minilm(folder)

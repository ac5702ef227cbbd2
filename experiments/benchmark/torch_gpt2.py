"""GPT-2 in PyTorch as one would write it by hand for speed: fused attention, a static cache, head where it is needed."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmark.workload import Workload

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of every layer, each [B, H, slots, D/H]."""


class Block(nn.Module):
    """Pre-layer-norm attention and MLP."""

    def __init__(self, width: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.ln_1 = nn.LayerNorm(width)
        self.c_attn = nn.Linear(width, 3 * width)
        self.attn_proj = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.c_fc = nn.Linear(width, 4 * width)
        self.mlp_proj = nn.Linear(4 * width, width)

    def qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values by head: [B, H, S, D/H] each."""
        batch, length, width = x.shape
        split = self.c_attn(self.ln_1(x)).view(batch, length, 3, self.n_head, width // self.n_head)
        return split.permute(2, 0, 3, 1, 4).unbind(0)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Both residual additions."""
        x = x + self.attn_proj(attended.transpose(1, 2).reshape(x.shape))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))

    def forward(self, x: Tensor) -> Tensor:
        """Causal, without padding."""
        q, k, v = self.qkv(x)
        return self.finish(x, F.scaled_dot_product_attention(q, k, v, is_causal=True))

    def prefill(self, x: Tensor, past: tuple[Tensor, Tensor]) -> Tensor:
        """The same, and the prompt's keys and values are kept."""
        q, k, v = self.qkv(x)
        past[0][:, :, : x.shape[1]] = k
        past[1][:, :, : x.shape[1]] = v
        return self.finish(x, F.scaled_dot_product_attention(q, k, v, is_causal=True))

    def step(self, x: Tensor, past: tuple[Tensor, Tensor], index: int) -> Tensor:
        """One more token, written in place."""
        q, k, v = self.qkv(x)
        past[0][:, :, index : index + 1] = k
        past[1][:, :, index : index + 1] = v
        keys, values = past[0][:, :, : index + 1], past[1][:, :, : index + 1]
        return self.finish(x, F.scaled_dot_product_attention(q, keys, values))


class GPT2(nn.Module):
    """The stack, with optional value or reward head."""

    def __init__(self, workload: Workload, *, head: bool) -> None:
        super().__init__()
        width = workload.n_embd
        self.wte = nn.Embedding(workload.vocab_size, width)
        self.wpe = nn.Embedding(workload.length, width)
        self.h = nn.ModuleList(Block(width, workload.n_head) for _ in range(workload.n_layer))
        self.ln_f = nn.LayerNorm(width)
        self.scalar = nn.Linear(width, 1) if head else None

    def embed(self, tokens: Tensor, start: int = 0) -> Tensor:
        """Token and position embeddings."""
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        return self.wte(tokens) + self.wpe(positions)

    def forward(self, tokens: Tensor) -> Tensor:
        """Final hidden states. [B, S] -> [B, S, D]"""
        x = self.embed(tokens)
        for block in self.h:
            x = block(x)
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """The tied head."""
        return F.linear(hidden, self.wte.weight)

    def values(self, hidden: Tensor) -> Tensor:
        """The scalar head in float32."""
        assert self.scalar is not None
        return self.scalar(hidden.float()).squeeze(-1)

    def empty_cache(self, batch: int, slots: int, dtype: Any) -> Cache:
        """Uninitialised: only written slots are read."""
        n_head = self.h[0].n_head
        shape = (batch, n_head, slots, self.wte.weight.shape[1] // n_head)
        device = self.wte.weight.device
        return [
            (torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))
            for _ in self.h
        ]

    def prefill(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Hidden state of the last token of each prompt. [B, D]"""
        x = self.embed(tokens)
        for block, past in zip(self.h, cache, strict=True):
            x = block.prefill(x, past)
        return self.ln_f(x[:, -1])

    def step(self, token: Tensor, cache: Cache, index: int) -> Tensor:
        """Hidden state after one more token per row. [B] -> [B, D]"""
        x = self.embed(token[:, None], index)
        for block, past in zip(self.h, cache, strict=True):
            x = block.step(x, past, index)
        return self.ln_f(x[:, 0])


def load(workload: Workload, tree: Any, *, head: Any = None, device: str = "cpu") -> GPT2:
    """A network with the numbers of our tree, and of a head {`kernel`, `bias`} where one is given."""
    model = GPT2(workload, head=head is not None)
    found = {"wte.weight": tree["wte"], "wpe.weight": tree["wpe"]}
    found |= {"ln_f.weight": tree["ln_f"]["scale"], "ln_f.bias": tree["ln_f"]["bias"]}
    for i in range(workload.n_layer):
        block = tree[f"h_{i}"]
        for norm in ("ln_1", "ln_2"):
            found |= {f"h.{i}.{norm}.weight": block[norm]["scale"], f"h.{i}.{norm}.bias": block[norm]["bias"]}
        linears = {
            "c_attn": block["attn"]["c_attn"],
            "attn_proj": block["attn"]["c_proj"],
            "c_fc": block["mlp"]["c_fc"],
            "mlp_proj": block["mlp"]["c_proj"],
        }
        for name, linear in linears.items():
            found |= {f"h.{i}.{name}.weight": linear["kernel"].T, f"h.{i}.{name}.bias": linear["bias"]}
    if head is not None:
        found |= {"scalar.weight": head["kernel"].reshape(1, -1), "scalar.bias": head["bias"].reshape(1)}
    model.load_state_dict({name: torch.from_numpy(np.array(array, np.float32)) for name, array in found.items()})
    return model.to(device)

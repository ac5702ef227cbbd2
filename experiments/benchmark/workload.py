"""What is measured: named sizes, the shape of one PPO iteration, and what it must at least cost.

The counts are of useful work: frozen passes that PPO cannot do without, the head on response positions only. An
implementation that does more is not credited for it, so its share of the ceiling is lower.
"""

import dataclasses
from typing import Literal

Form = Literal["shared", "separate"]
"""`shared`: one trunk for policy and value. `separate`: a value network of its own, as TRL has it."""
PHASES = ("rollout", "scoring", "update")
FORMS: tuple[Form, ...] = ("shared", "separate")


@dataclasses.dataclass(frozen=True)
class Workload:
    """One PPO iteration: policy, reference and reward model (and value model) of one size, responses of full length."""

    name: str
    n_layer: int
    n_embd: int
    n_head: int
    vocab_size: int
    batch: int
    """Responses of one iteration."""
    prompt: int
    """Tokens of every prompt; no padding."""
    response: int
    """Tokens of every response."""
    epochs: int = 4
    minibatches: int = 1
    microbatches: int = 1
    """Slices a minibatch's gradient is accumulated over, in every implementation."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            number = getattr(self, field.name)
            if isinstance(number, int) and number < 1:
                raise ValueError(f"workload {self.name}: {field.name} must be at least 1, got {number}")
        slices = self.minibatches * self.microbatches
        if self.batch % slices:
            raise ValueError(
                f"workload {self.name}: batch {self.batch} is not a multiple of {self.minibatches} minibatches × "
                f"{self.microbatches} microbatches"
            )
        if self.n_embd % self.n_head:
            raise ValueError(f"workload {self.name}: n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return self.prompt + self.response

    @property
    def trunk_parameters(self) -> int:
        """Parameters of one network: tables, blocks, norms."""
        width = self.n_embd
        block = 12 * width**2 + 13 * width
        return (self.vocab_size + self.length) * width + self.n_layer * block + 2 * width

    def trunk_flops(self, rows: int, length: int) -> float:
        """Multiplications and additions of one forward pass without the head.

            rows · length · (24 L D² + 4 L S D)

        Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B (attention counted as a full square).
        """
        return rows * length * self.n_layer * self.n_embd * (24 * self.n_embd + 4 * length)

    def head_flops(self, positions: int) -> float:
        """The projection onto the vocabulary at so many positions: 2 V D each."""
        return 2.0 * positions * self.vocab_size * self.n_embd

    def phase_flops(self, phase: str, form: Form) -> float:
        """Useful multiplications and additions of one phase.

        Rollout: every token once through the network. Scoring: reference and reward model, and the value model where
        it is separate. Update: three times the forward pass (itself and twice as much backward), every epoch.
        """
        trunk = self.trunk_flops(self.batch, self.length)
        head = self.head_flops(self.batch * self.response)
        networks = 2 if form == "separate" else 1
        if phase == "rollout":
            return trunk + head
        if phase == "scoring":
            return (1 + networks) * trunk + head
        if phase == "update":
            return 3.0 * self.epochs * (networks * trunk + head)
        if phase == "whole":
            return sum(self.phase_flops(one, form) for one in PHASES)
        raise ValueError(f"phase must be one of {(*PHASES, 'whole')}, got {phase!r}")

    def decode_bytes(self, bytes_per_number: int) -> float:
        """Bytes that decoding must read: all weights and, on average, a half-filled cache of the response, per step."""
        steps = self.response - 1
        weights = self.n_layer * 12 * self.n_embd**2 + self.vocab_size * self.n_embd
        cached = self.prompt + self.response / 2
        cache = 2 * self.n_layer * self.batch * cached * self.n_embd
        return steps * (weights + cache) * bytes_per_number

    def floor_seconds(self, phase: str, form: Form, *, matmul: float, bandwidth: float, bytes_per_number: int) -> float:
        """Least time of a phase.

        Args:
          matmul: ceiling, floating-point operations per second.
          bandwidth: ceiling, bytes per second.
          bytes_per_number: of weights and cache while decoding.
        Returns: seconds: operations over the matmul ceiling; for the rollout, the prompts' operations over it, plus
          the larger of the two bounds on decoding.
        """
        if phase == "rollout":
            prefill = self.trunk_flops(self.batch, self.prompt) + self.head_flops(self.batch)
            reading = self.decode_bytes(bytes_per_number) / bandwidth
            computing = (self.phase_flops(phase, form) - prefill) / matmul
            return prefill / matmul + max(reading, computing)
        if phase == "whole":
            parts = (
                self.floor_seconds(one, form, matmul=matmul, bandwidth=bandwidth, bytes_per_number=bytes_per_number)
                for one in PHASES
            )
            return sum(parts)
        return self.phase_flops(phase, form) / matmul


GPT2_VOCABULARY = 50_304
"""GPT-2's 50,257 tokens, rounded up to a multiple of 64: what every implementation prefers."""

CPU_WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("tiny", n_layer=4, n_embd=256, n_head=4, vocab_size=8192, batch=32, prompt=64, response=32),
        Workload("gpt2-124m", 12, 768, 12, GPT2_VOCABULARY, batch=8, prompt=64, response=32),
        Workload("gpt2-345m", 24, 1024, 16, GPT2_VOCABULARY, batch=8, prompt=64, response=32),
    )
}
ACCELERATOR_WORKLOADS = {
    "tiny": CPU_WORKLOADS["tiny"],
    "gpt2-124m": Workload("gpt2-124m", 12, 768, 12, GPT2_VOCABULARY, 256, 256, 64, microbatches=2),
    "gpt2-345m": Workload("gpt2-345m", 24, 1024, 16, GPT2_VOCABULARY, 256, 256, 64, microbatches=4),
}

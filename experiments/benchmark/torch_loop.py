"""A hand-tuned PyTorch loop for the same PPO iteration.

What a careful engineer would do: fused attention, a static cache, one random number per row and step, the head on
response positions only, log-probabilities (and, with one trunk, values) kept from sampling, fused Adam, `torch.compile`
for blocks where a first measurement finds it faster, bfloat16 autocast where the chip has it. It has no grammar mask and
no metrics, which our own implementation has.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmark import torch_gpt2
from benchmark.networks import LEARNING_RATE, MAX_GRAD_NORM, Networks, as_numpy
from benchmark.workload import Form, Workload

GAMMA, GAE_LAMBDA, KL_COEF, CLIP, VALUE_CLIP, VALUE_COEF = 1.0, 0.95, 0.05, 0.2, 0.2, 0.1
"""TRL's defaults, and ours."""


class Sampled(NamedTuple):
    """A rollout; `values` where the sampled trunk has the value head."""

    sequences: Tensor
    logprobs: Tensor
    values: Tensor | None


class Scored(NamedTuple):
    """What the update learns from, each [B, T]."""

    sequences: Tensor
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


def synchronise() -> None:
    """Waits for the accelerator, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device_name() -> str:
    """Where torch computes."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def chip_has_bf16() -> bool:
    """Whether bfloat16 matmuls have hardware of their own."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def gae(rewards: Tensor, values: Tensor) -> Tensor:
    """Advantages [B, T]; the value beyond the end is 0."""
    after = F.pad(values[:, 1:], (0, 1))
    deltas = rewards + GAMMA * after - values
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + GAMMA * GAE_LAMBDA * running
        advantages[:, t] = running
    return advantages


class TorchNetworks:
    """The networks and the optimiser, float32; one set serves all loops, because their numbers do not change the time.

    What a form does not train gets no gradient, and the optimiser passes it over.
    """

    def __init__(self, workload: Workload, networks: Networks) -> None:
        self.device = device_name()
        zero = {"kernel": np.zeros(workload.n_embd), "bias": np.zeros(())}

        def load(tree: Any, head: Any = None) -> torch_gpt2.GPT2:
            return torch_gpt2.load(workload, as_numpy(tree), head=head, device=self.device)

        self.policy, self.critic = load(networks.policy, zero), load(networks.critic, zero)
        self.reference = load(networks.policy).requires_grad_(False)
        self.reward = load(networks.reward, as_numpy(networks.reward_heads)).requires_grad_(False)
        self.trained = [*self.policy.parameters(), *self.critic.parameters()]
        self.optimizer = torch.optim.Adam(self.trained, lr=LEARNING_RATE, eps=1e-5, fused=True)

    @property
    def blocks(self) -> list[torch_gpt2.Block]:
        """Of all networks."""
        return [block for net in (self.policy, self.critic, self.reference, self.reward) for block in net.h]


class TorchLoop:
    """The loop in one form."""

    def __init__(
        self,
        workload: Workload,
        networks: Networks,
        form: Form,
        *,
        bf16: bool = False,
        compile_blocks: bool = True,
        shared: TorchNetworks | None = None,
    ) -> None:
        """Compiles nothing yet; `warm_up` does."""
        self.name = f"torch_{form}" + ("_bf16" if bf16 else "")
        self.form: Form = form
        self.first_call: dict[str, float] = {}
        self.workload, self.bf16, self.compile_blocks = workload, bf16, compile_blocks
        self.forwards: dict[int, Any] = {}
        """Compiled forward passes of the blocks, by the block's identity, where they are in use."""
        self.nets = shared or TorchNetworks(workload, networks)
        self.device, self.policy = self.nets.device, self.nets.policy
        self.critic = self.nets.critic if form == "separate" else None
        self.prompts = torch.from_numpy(np.array(networks.prompts)).long().to(self.device)
        self.random = torch.Generator(self.device).manual_seed(0)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bfloat16 matmuls where asked for."""
        return torch.autocast(self.device, torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    @torch.inference_mode()
    def sample(self) -> Sampled:
        """Responses of full length, by inverting the cumulative distribution."""
        workload, policy = self.workload, self.policy
        batch, prompt = self.prompts.shape
        sequences = torch.empty((batch, workload.length), dtype=torch.long, device=self.device)
        sequences[:, :prompt] = self.prompts
        logprobs = torch.empty((batch, workload.response), device=self.device)
        values = torch.empty_like(logprobs) if self.form == "shared" else None
        uniform = torch.rand((workload.response, batch, 1), generator=self.random, device=self.device)
        with self.autocast():
            cache = policy.empty_cache(batch, workload.length, torch.bfloat16 if self.bf16 else torch.float32)
            hidden = policy.prefill(self.prompts, cache)
            for t in range(workload.response):
                if t > 0:
                    hidden = policy.step(sequences[:, prompt + t - 1], cache, prompt + t - 1)
                said = torch.log_softmax(policy.logits(hidden).float(), dim=-1)
                sums = said.exp().cumsum(dim=-1)
                token = torch.searchsorted(sums, uniform[t] * sums[:, -1:], right=True)
                token = token.clamp_(max=workload.vocab_size - 1)
                sequences[:, prompt + t] = token[:, 0]
                logprobs[:, t] = said.gather(1, token)[:, 0]
                if values is not None:
                    values[:, t] = policy.values(hidden)
        return Sampled(sequences, logprobs, values)

    def judge(
        self, network: torch_gpt2.GPT2, sequences: Tensor, allowed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, T] and the hidden states they were read from [B, T, D]."""
        prompt = self.workload.prompt
        hidden = network(sequences[:, :-1])[:, prompt - 1 :]
        logits = network.logits(hidden).float()
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        responses = sequences[:, prompt:]
        negative = F.cross_entropy(logits.flatten(0, 1), responses.flatten(), reduction="none")
        return -negative.view(responses.shape), hidden

    def value(self, sequences: Tensor, hidden: Tensor) -> Tensor:
        """Values of response positions [B, T], from `hidden` or the network of its own."""
        if self.critic is None:
            return self.policy.values(hidden)
        return self.critic.values(self.critic(sequences[:, :-1])[:, self.workload.prompt - 1 :])

    @torch.no_grad()
    def score(self, sampled: Sampled) -> Scored:
        """Reference, reward and, where separate, value pass; then token rewards and whitened advantages."""
        sequences = sampled.sequences.clone()
        with self.autocast():
            reference, hidden = self.judge(self.nets.reference, sequences)
            score = self.nets.reward.values(self.nets.reward(sequences)[:, -1])
            values = self.value(sequences, hidden) if sampled.values is None else sampled.values.clone()
        logprobs = sampled.logprobs.clone()
        rewards = -KL_COEF * (logprobs - reference)
        rewards[:, -1] += score
        advantages = gae(rewards, values)
        returns = advantages + values
        advantages = (advantages - advantages.mean()) * torch.rsqrt(advantages.var(correction=0) + 1e-8)
        return Scored(sequences, logprobs, values, advantages, returns)

    def loss(self, rows: Scored, allowed: Tensor | None = None) -> Tensor:
        """Clipped surrogate plus clipped value loss, mean over tokens."""
        with self.autocast():
            logprobs, hidden = self.judge(self.policy, rows.sequences, allowed)
            values = self.value(rows.sequences, hidden)
        ratio = torch.exp(logprobs - rows.logprobs)
        clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
        surrogate = torch.maximum(-rows.advantages * ratio, -rows.advantages * clipped)
        near = torch.minimum(torch.maximum(values, rows.values - VALUE_CLIP), rows.values + VALUE_CLIP)
        value_loss = 0.5 * torch.maximum((values - rows.returns) ** 2, (near - rows.returns) ** 2)
        return surrogate.mean() + VALUE_COEF * value_loss.mean()

    def update(self, scored: Scored) -> None:
        """Epochs × minibatches, gradients accumulated over microbatches."""
        workload = self.workload
        rows = workload.batch // (workload.minibatches * workload.microbatches)
        for _ in range(workload.epochs):
            order = torch.randperm(workload.batch, device=self.device)
            for picked in order.view(workload.minibatches, workload.microbatches, rows):
                for micro in picked:
                    loss = self.loss(Scored(*(x[micro] for x in scored))) / workload.microbatches
                    loss.backward()
                torch.nn.utils.clip_grad_norm_(self.nets.trained, MAX_GRAD_NORM, foreach=True)
                self.nets.optimizer.step()
                self.nets.optimizer.zero_grad(set_to_none=True)

    def warm_up(self) -> None:
        """First calls; then compiles the blocks where that is faster by measurement."""
        self.first_call = self.iterate()
        if not self.compile_blocks:
            return
        plain = self.iterate()
        started = time.perf_counter()
        try:
            self.forwards = {id(block): torch.compile(block.forward, dynamic=False) for block in self.nets.blocks}
            self.iterate()
            self.first_call["torch.compile"] = time.perf_counter() - started
            compiled = self.iterate()
        except Exception as error:  # noqa: BLE001 - whatever the compiler raises, the loop goes on without it
            print(f"{self.name}: torch.compile does not work here ({type(error).__name__}); eager")
            compiled = None
        if compiled is None or compiled["whole"] >= plain["whole"]:
            self.forwards = {}

    def iterate(self) -> dict[str, float]:
        """One iteration."""
        # The networks are shared with other loops, which may run without these.
        for block in self.nets.blocks:
            block.__dict__.pop("forward", None)
            if id(block) in self.forwards:
                block.forward = self.forwards[id(block)]
        seconds: dict[str, float] = {}

        def clocked(phase: str, call: Callable[[], Any]) -> Any:
            synchronise()
            started = time.perf_counter()
            result = call()
            synchronise()
            seconds[phase] = time.perf_counter() - started
            return result

        sampled = clocked("rollout", self.sample)
        scored = clocked("scoring", lambda: self.score(sampled))
        clocked("update", lambda: self.update(scored))
        return {**seconds, "whole": sum(seconds.values())}


def ceilings(shapes: Sequence[tuple[int, int, int]], dtype: str) -> dict[str, float]:
    """Rates of torch's matmul at each shape, and of reading 256 MiB."""
    from benchmark.ceilings import best_seconds

    found = {}
    kind, device = getattr(torch, dtype), device_name()

    def rate(call: Callable[[], Any]) -> float:
        def finished() -> None:
            call()
            synchronise()

        return best_seconds(finished, repeats=5)

    with torch.inference_mode():
        for rows, inner, columns in shapes:
            a = torch.randn(rows, inner, device=device).to(kind)
            b = torch.randn(inner, columns, device=device).to(kind)
            found[f"torch matmul {rows}x{inner}x{columns}"] = (
                2.0 * rows * inner * columns / rate(lambda a=a, b=b: a @ b)
            )
        if device == "cpu":
            numbers = torch.ones(64 * 2**20)
            found["torch read"] = numbers.nbytes / rate(numbers.sum)
    return found

"""One step of DPO: the pairs and the reference that every implementation gets, ours, and the table of what was measured.

The workload is that of a PPO iteration: as many responses, half of them chosen. The reference's log-probabilities are
cached on both sides. Nobody has a grammar here, because TRL has none and the numbers shall be the same.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmark import one_step
from benchmark.interleaving import Round
from benchmark.networks import Networks, grammar, network_config
from benchmark.one_step import Clock
from benchmark.workload import Form, Workload
from rlhf_jax.decoding.policy import group_hidden
from rlhf_jax.equations.logprobs import token_logprobs
from rlhf_jax.interfaces import GroupPolicy, Params, PromptBatch, ResponseGroups
from rlhf_jax.learners import dpo
from rlhf_jax.learners.dpo import PreferenceBatch
from rlhf_jax.learners.dpo_config import DPOConfig
from rlhf_jax.models import gpt2

CONFIG = DPOConfig(beta=0.1, schedule="constant")
"""TRL's β; everything else is that of AdamW on both sides."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Comparisons of responses of full length, which end with `<eos>`."""

    prompts: np.ndarray
    """[B/2, P]"""
    responses: np.ndarray
    """The chosen one first. [B/2, 2, T]"""


def draw_pairs(workload: Workload, networks: Networks, seed: int = 0) -> Pairs:
    """Random words after the networks' own prompts.

    Raises: ValueError where the responses are no whole pairs.
    """
    if workload.batch % 2:
        raise ValueError(f"workload {workload.name}: {workload.batch} responses are no whole pairs")
    rules, draw = grammar(workload), np.random.default_rng(seed)
    responses = draw.integers(0, rules.n_words, (workload.batch // 2, 2, workload.response)).astype(np.int32)
    responses[..., -1] = rules.eos
    return Pairs(np.asarray(networks.prompts)[: workload.batch // 2], responses)


def plain_policy(workload: Workload, compute_dtype: str) -> GroupPolicy:
    """Log-probabilities over the whole vocabulary, each prompt read once."""
    network = network_config(workload, compute_dtype)

    def logprobs(params: Params, groups: ResponseGroups) -> jax.Array:
        shape = groups.response_tokens.shape
        hidden = group_hidden(network, params["trunk"], groups)
        logits = gpt2.lm_logits(params["trunk"], hidden, compute_dtype=network.compute_dtype)
        said = jax.vmap(token_logprobs)(logits, groups.response_tokens.reshape(-1, shape[2]))
        return said.reshape(shape)

    return GroupPolicy(logprobs)


def preference_batch(workload: Workload, pairs: Pairs, policy: GroupPolicy, reference: Params) -> PreferenceBatch:
    """The pairs as our learner reads them, the reference's log-probabilities cached."""
    n_pairs = len(pairs.prompts)
    batch = PreferenceBatch(
        prompts=PromptBatch(tokens=jnp.asarray(pairs.prompts), mask=jnp.ones(pairs.prompts.shape, bool)),
        response_tokens=jnp.asarray(pairs.responses),
        response_mask=jnp.ones(pairs.responses.shape, bool),
        ref_logprobs=jnp.zeros((n_pairs, 2)),
        weight=jnp.ones(n_pairs),
    )
    judge = jax.jit(functools.partial(dpo.group_logprobs, policy))
    return dataclasses.replace(batch, ref_logprobs=judge({"trunk": reference}, batch))


class OurStep:
    """`learners.dpo.update` as one program. The reference is the networks' critic: another network, so that h is not 0."""

    form: Form = "shared"

    def __init__(
        self,
        workload: Workload,
        networks: Networks,
        *,
        learning_rate: float,
        compute_dtype: str = "float32",
        clock: Clock = time.perf_counter,
    ) -> None:
        """Compiles nothing of the step yet; `warm_up` does."""
        self.clock = clock
        self.name = "ours" + ("_bf16" if compute_dtype == "bfloat16" else "")
        self.first_call: dict[str, float] = {}
        self.config = dataclasses.replace(CONFIG, learning_rate=learning_rate, microbatches=workload.microbatches)
        self.policy = plain_policy(workload, compute_dtype)
        self.batch = preference_batch(workload, draw_pairs(workload, networks), self.policy, networks.critic)
        # The rate is constant: the length of the schedule says nothing.
        optimizer = dpo.optimizer_of(self.config, 10**6)
        self.state = dpo.init({"trunk": networks.policy}, optimizer, self.config)
        self.metrics: Mapping[str, jax.Array] = {}
        bound = functools.partial(dpo.update, policy=self.policy, optimizer=optimizer, config=self.config)
        self.step: Any = jax.jit(bound, donate_argnums=0)

    def warm_up(self) -> None:
        """Compiles the step, noting how long it takes, and takes two: the second still finds new pages."""
        started = time.perf_counter()
        self.step = self.step.lower(self.state, self.batch).compile()
        self.first_call = {"whole": time.perf_counter() - started}
        self.iterate()
        self.iterate()

    def iterate(self) -> dict[str, float]:
        """One optimiser step."""
        started = self.clock()
        self.state, self.metrics = jax.block_until_ready(self.step(self.state, self.batch))
        return {"whole": self.clock() - started}


def floor_flops(workload: Workload) -> float:
    """Useful multiplications and additions: three times a forward pass that reads each prompt once, head on responses only."""
    row = workload.trunk_flops(workload.batch // 2, workload.length)
    trunk = row * (workload.prompt + 2 * workload.response) / workload.length
    return 3.0 * (trunk + workload.head_flops(workload.batch * workload.response))


def markdown(workload: Workload, rounds: Sequence[Round], *, quiet: bool, matmul: Mapping[str, float] | None) -> str:
    """The table of one size; `quiet` and `matmul` as in `one_step.markdown`."""
    what = (
        f"{workload.n_layer} layers, width {workload.n_embd}, vocabulary {workload.vocab_size}; {workload.batch // 2} "
        f"pairs, prompt {workload.prompt}, response {workload.response}, {workload.microbatches} microbatch(es)"
    )
    return one_step.markdown(
        f"One DPO step, {workload.name}",
        what,
        rounds,
        quiet=quiet,
        floor_flops=floor_flops(workload),
        matmul=matmul,
    )

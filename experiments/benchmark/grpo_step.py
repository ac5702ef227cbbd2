"""One step of GRPO: what it learns from and how, ours, and the table of what was measured.

A step draws eight responses to each prompt, scores them, reads the reference and takes one optimiser step. There are as
many responses as in an iteration of PPO. What is paid is the share of even tokens: cheap, and known on both sides.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from benchmark import one_step
from benchmark.interleaving import Round
from benchmark.networks import MAX_GRAD_NORM, Networks, grammar, network_config
from benchmark.one_step import Clock
from benchmark.workload import Form, Workload
from rlhf_jax.decoding.policy import make_policy_apply, make_sample
from rlhf_jax.interfaces import Params, PromptBatch, Rollout
from rlhf_jax.learners import grpo
from rlhf_jax.learners.grpo_config import GRPOConfig
from rlhf_jax.learners.optimizer import make_optimizer

CONFIG = GRPOConfig(
    group_size=8,
    component_weights=(1.0,),
    component_names=("even",),
    normalise_components=False,
    normalise_score=False,
    score_clip=None,
    missing_eos_penalty=0.0,
    # After one step on a batch the ratio is 1, and no side reads the policy once more for it.
    old_logprobs="sampler",
    # A prompt is read once for its responses, in every pass.
    whole_groups=True,
)
"""One epoch, ε and the deviation as both libraries have them by default; the penalty is ours (TRL's default is none)."""


def check_groups(workload: Workload) -> None:
    """Raises ValueError where the responses of a microbatch are no whole groups."""
    size, slices = CONFIG.group_size, workload.microbatches
    if workload.batch % (size * slices):
        raise ValueError(
            f"workload {workload.name}: {workload.batch} responses in {slices} microbatch(es) are no whole groups of {size}"
        )


def even_share(params: Params, rollout: Rollout) -> Float[Array, "B 1"]:
    """The share of even tokens in each response."""
    del params
    mask = rollout.response_mask
    even = jnp.sum(mask & (rollout.response_tokens % 2 == 0), axis=1)
    return (even / jnp.sum(mask, axis=1))[:, None]


class OurStep:
    """`learners.grpo` as one program. The reference is the networks' critic: another network, so that the penalty is not 0."""

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
        """Compiles nothing yet; `warm_up` does.

        Raises: ValueError where the responses are no whole groups.
        """
        check_groups(workload)
        self.clock = clock
        self.name = "ours" + ("_bf16" if compute_dtype == "bfloat16" else "")
        self.first_call: dict[str, float] = {}
        self.config = dataclasses.replace(CONFIG, microbatches=workload.microbatches)
        network, rules = network_config(workload, compute_dtype), grammar(workload)
        size = self.config.group_size
        self.policy = make_policy_apply(network, rules, group_size=self.config.rows_together)
        self.sample = make_sample(network, rules, max_tokens=workload.response, group_size=size)
        tokens = networks.prompts[: workload.batch // size]
        self.prompts = PromptBatch(tokens=tokens, mask=jnp.ones(tokens.shape, bool))
        self.reference = {"trunk": networks.critic}
        # The rate is constant: the length of the schedule says nothing.
        optimizer = make_optimizer(
            learning_rate=learning_rate, total_steps=10**6, schedule="constant", max_grad_norm=MAX_GRAD_NORM
        )
        self.state = grpo.init({"trunk": networks.policy}, optimizer, self.config, jax.random.key(0))
        self.metrics: Mapping[str, jax.Array] = {}
        self.step: Any = grpo.make_grpo_iteration(
            sample=self.sample, policy=self.policy, score=even_share, optimizer=optimizer, config=self.config
        )

    def warm_up(self) -> None:
        """Compiles the step, noting how long it takes, and takes two: the second still finds new pages."""
        started = time.perf_counter()
        self.step = self.step.lower(self.state, self.prompts, self.reference, {}).compile()
        self.first_call = {"whole": time.perf_counter() - started}
        self.iterate()
        self.iterate()

    def iterate(self) -> dict[str, float]:
        """Rollout, scoring and one optimiser step."""
        started = self.clock()
        done = jax.block_until_ready(self.step(self.state, self.prompts, self.reference, {}))
        seconds = self.clock() - started
        self.state, self.metrics, _ = done
        return {"whole": seconds}


def floor_flops(workload: Workload) -> float:
    """Useful multiplications and additions: passes that read each prompt once, head on responses only.

    One draws, one is the reference's, and the update takes three times as much.
    """
    row = workload.trunk_flops(workload.batch // CONFIG.group_size, workload.length)
    trunk = row * (workload.prompt + CONFIG.group_size * workload.response) / workload.length
    return (2.0 + 3.0 * CONFIG.epochs) * (trunk + workload.head_flops(workload.batch * workload.response))


def markdown(workload: Workload, rounds: Sequence[Round], *, quiet: bool, matmul: Mapping[str, float] | None) -> str:
    """The table of one size; `quiet` and `matmul` as in `one_step.markdown`."""
    size = CONFIG.group_size
    what = (
        f"{workload.n_layer} layers, width {workload.n_embd}, vocabulary {workload.vocab_size}; {workload.batch // size} "
        f"prompt(s) of {workload.prompt} tokens, {size} responses of {workload.response} to each, "
        f"{workload.microbatches} microbatch(es)"
    )
    return one_step.markdown(
        f"One GRPO step, {workload.name}",
        what,
        rounds,
        quiet=quiet,
        floor_flops=floor_flops(workload),
        matmul=matmul,
    )

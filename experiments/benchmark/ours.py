"""Our implementation: the library's own functions, once as the one program of training and once cut into its phases."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmark.networks import LEARNING_RATE, MAX_GRAD_NORM, Networks, grammar, network_config, timed
from benchmark.workload import Form, Workload
from rlhf_jax.decoding.policy import make_decode, make_policy_apply, make_sample, make_score, with_critic_values
from rlhf_jax.decoding.sampler import Decoding
from rlhf_jax.interfaces import Params, PolicyOutput, PromptBatch, Rollout
from rlhf_jax.learners import minibatch, ppo
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.models import heads


def ppo_config(workload: Workload) -> PPOConfig:
    """PPO as TRL's defaults have it: one score, log-probabilities from the sampler, no normalisation of scores."""
    return PPOConfig(
        component_weights=(1.0,),
        component_names=("engagement",),
        normalise_components=False,
        normalise_score=False,
        score_clip=None,
        missing_eos_penalty=0.0,
        old_logprobs="sampler",
        epochs=workload.epochs,
        minibatches=workload.minibatches,
        microbatches=workload.microbatches,
    )


class States:
    """The learner's state with both forms' parameters; memory for one serves both, as their numbers change no time."""

    def __init__(self, workload: Workload, networks: Networks) -> None:
        params = {
            "trunk": networks.policy,
            "value": heads.init_value_head(workload.n_embd),
            "critic": networks.critic,
        }
        self.optimizer = make_optimizer(
            learning_rate=LEARNING_RATE, total_steps=10**6, schedule="constant", max_grad_norm=MAX_GRAD_NORM
        )
        self.whole = ppo.init(params, self.optimizer, ppo_config(workload), jax.random.key(0))

    def get(self, form: Form) -> ppo.PPOState:
        """As one form knows it."""
        if form == "separate":
            return self.whole
        return jax.tree.map(_without_critic, self.whole, is_leaf=_is_policy)

    def put(self, state: ppo.PPOState) -> None:
        """What came out of an update; what it did not know stays as it was."""
        self.whole = jax.tree.map(
            lambda new, old: {**old, **new} if _is_policy(new) else new, state, self.whole, is_leaf=_is_policy
        )


def _is_policy(tree: Any) -> bool:
    return isinstance(tree, dict) and "trunk" in tree


def _without_critic(tree: Any) -> Any:
    return {name: part for name, part in tree.items() if name != "critic"} if _is_policy(tree) else tree


class Ours:
    """`rlhf_jax` in one form and one compute type."""

    def __init__(
        self,
        workload: Workload,
        networks: Networks,
        form: Form,
        compute_dtype: str = "float32",
        states: States | None = None,
        **options: Any,
    ) -> None:
        """Compiles nothing yet; `warm_up` does."""
        self.name = f"ours_{form}" + ("_bf16" if compute_dtype == "bfloat16" else "")
        self.form: Form = form
        self.first_call: dict[str, float] = {}
        network, rules = network_config(workload, compute_dtype, **options), grammar(workload)
        config = ppo_config(workload)
        policy, score = make_policy_apply(network, rules), make_score(network, rules)
        self.states = states or States(workload, networks)
        optimizer = self.states.optimizer
        self.reference = {"trunk": networks.policy}
        self.reward = {"trunk": networks.reward, "reward": networks.reward_heads}
        self.prompts = PromptBatch(tokens=networks.prompts, mask=jnp.ones(networks.prompts.shape, bool))

        # As training runs it: one program.
        sample = make_sample(network, rules, max_tokens=workload.response)
        self.whole: Any = ppo.make_ppo_iteration(
            sample=sample, policy=policy, score=score, optimizer=optimizer, config=config
        )
        # The same lines of the box as three programs, for the clock.
        decode = make_decode(network, rules, Decoding(workload.response))
        self.rollout: Any = jax.jit(functools.partial(ppo.sample_phase, sample=functools.partial(_rows_from_0, decode)))

        def scoring(
            params: Params, rollout: Rollout, reference: Params, reward: Params
        ) -> tuple[Rollout, jax.Array, PolicyOutput]:
            valued = with_critic_values(network, params, rollout)
            logprobs = minibatch.judge(policy, reference, rollout).logprobs
            # The reference's entropy and values are nobody's business; what is not returned is not computed.
            nothing = jnp.zeros_like(logprobs)
            return valued, score(reward, rollout), PolicyOutput(logprobs=logprobs, entropy=nothing, values=nothing)

        def policy_or_given(params: Params, rollout: Rollout) -> PolicyOutput:
            return params if isinstance(params, PolicyOutput) else policy(params, rollout)

        learn = functools.partial(ppo.learn_phase, policy=policy_or_given, optimizer=optimizer, config=config)
        self.scoring: Any = jax.jit(scoring)
        self.update: Any = jax.jit(learn, donate_argnums=0)

    @property
    def state(self) -> ppo.PPOState:
        """The learner's state in this form."""
        return self.states.get(self.form)

    @state.setter
    def state(self, new: ppo.PPOState) -> None:
        self.states.put(new)

    def warm_up(self) -> None:
        """Compiles the four programs, noting how long each takes, and runs them once."""

        def compiled(part: str, program: Any, *args: Any) -> Any:
            started = time.perf_counter()
            made = program.lower(*args).compile()
            self.first_call[part] = time.perf_counter() - started
            return made

        frozen = self.reference, self.reward
        self.whole = compiled("whole", self.whole, self.state, self.prompts, *frozen)
        self.rollout = compiled("rollout", self.rollout, self.state, self.prompts)
        rollout = self.rollout(self.state, self.prompts)
        self.scoring = compiled("scoring", self.scoring, self.state.params, rollout, *frozen)
        scored = self.scoring(self.state.params, rollout, *frozen)
        self.update = compiled("update", self.update, self.state, *scored)
        self.iterate()

    def iterate(self) -> dict[str, float]:
        """One update as one program, then one in phases."""
        seconds = {}
        frozen, state = (self.reference, self.reward), self.state
        done, seconds["whole"] = timed(lambda: self.whole(state, self.prompts, *frozen))
        self.state = done[0]
        state = self.state
        rollout, seconds["rollout"] = timed(lambda: self.rollout(state, self.prompts))
        scored, seconds["scoring"] = timed(lambda: self.scoring(state.params, rollout, *frozen))
        done, seconds["update"] = timed(lambda: self.update(state, *scored))
        self.state = done[0]
        return seconds

    def peak_bytes(self) -> int:
        """Arguments, results and temporaries of the whole iteration's program, as the compiler lays them out."""
        memory = self.whole.memory_analysis()
        return int(
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        )


def _rows_from_0(decode: Any, params: Params, prompts: PromptBatch, key: jax.Array) -> Rollout:
    return decode(params, prompts, key, None)

"""One network and one grammar behind all the callables that stages need.

Parameter trees, as `decoding.policy` names them: a policy is {`trunk`, `value`}, a reward model {`trunk`, `reward`} and, where
it reads one, a `policy`.
"""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.decoding.grammar import Grammar, Opening
from rlhf_jax.decoding.policy import (
    Decode,
    make_decode,
    make_group_policy,
    make_policy_apply,
    make_sample,
    make_score,
    make_score_items,
    make_score_replies,
)
from rlhf_jax.decoding.sampler import Decoding
from rlhf_jax.feedback.components import COMPONENTS
from rlhf_jax.interfaces import GroupPolicy, Params, PolicyApply, PromptBatch, ResponseGroups, Sample, Score
from rlhf_jax.models import gpt2, heads
from rlhf_jax.parallel.partition import Layout, OneDevice


@runtime_checkable
class ScoreTokens(Protocol):
    """Reward components at the last real token; `key` draws dropout while the reward model is trained, `read` is what it reads
    of a policy (`decoding.suggested`), where it does."""

    def __call__(
        self,
        params: Params,
        tokens: Int[Array, "B S"],
        mask: Bool[Array, "B S"],
        key: Key[Array, ""] | None,
        read: Float[Array, "B F"] | None = None,
    ) -> Float[Array, "B C"]: ...


@runtime_checkable
class ScoreItems(Protocol):
    """Logits of every catalogue item right after `<rec>`, from the context alone."""

    def __call__(self, params: Params, prompts: PromptBatch) -> Float[Array, "B I"]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Agent:
    """Callables over parameters; holds none itself."""

    network: gpt2.GPT2Config
    grammar: Grammar
    response_tokens: int
    temperature: float
    policy: PolicyApply
    sample: Sample
    """For learning: the whole tempered distribution."""
    sample_rows: Decode
    """`sample` with the numbers of the rows' random streams: a row's draws hang on its number alone, in any batch."""
    greedy: Decode
    """For reading and text metrics: the likeliest token each time."""
    score: Score
    score_tokens: ScoreTokens
    score_items: ScoreItems
    score_replies: Callable[[Params, ResponseGroups], Array]
    """What `score` says of N replies to each prompt, which is read once. [B, N, C]"""
    sample_groups: Callable[[int], Sample]
    """`sample` with so many responses to each prompt, row by row; a prompt is read once."""
    judge_groups: Callable[[int], PolicyApply]
    """`policy` on such rows, whole groups, whose prompt it reads once; on single rows `policy` itself. Not where the attention
    is fused."""
    group_policy: GroupPolicy | None = None
    """`policy` on groups of responses to one prompt, which it reads once; None where the attention is fused."""
    programs: dict[Hashable, Any] = dataclasses.field(default_factory=dict, init=False, repr=False)
    """What `compiled` has made; it lives as long as the agent."""

    def compiled(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """The program called `name`, made once: whoever asks again shares its compilation."""
        if name not in self.programs:
            self.programs[name] = make()
        return self.programs[name]


def make_agent(
    vocab: Vocabulary,
    network: gpt2.GPT2Config,
    *,
    max_items: int,
    response_tokens: int,
    temperature: float = 1.0,
    openings: tuple[Opening, ...] = (),
    once: bool = False,
) -> Agent:
    """An agent that speaks `vocab`.

    Args:
      max_items: longest suggestion list.
      response_tokens: longest response, `<eos>` included.
      temperature: divides the logits of policy and reference, in sampling and in learning.
      openings: the forms a turn may have; none means the grammar's usual two.
      once: whether words name a suggested item at most once.
    Raises: ValueError if the network's table is not as large as the vocabulary.
    """
    if network.vocab_size != vocab.size:
        raise ValueError(f"the network has {network.vocab_size} embedding rows, the vocabulary {vocab.size} tokens")
    grammar = Grammar(
        **vocab.grammar._asdict(), max_items=max_items, vocab_size=vocab.size, openings=openings, once=once
    )
    return _agent(network, grammar, response_tokens, temperature)


def on_mesh(agent: Agent, layout: Layout) -> Agent:
    """The agent whose callables compute on the layout's devices, with parameters and batches that lie there."""
    if isinstance(layout, OneDevice):
        return agent
    network = dataclasses.replace(agent.network, qkv_groups=layout.tensor)
    spread = _agent(network, agent.grammar, agent.response_tokens, agent.temperature)

    def score_rows(params: Params, inputs: tuple[Array, Array, Array | None], key: Array | None) -> Array:
        tokens, mask, read = inputs
        return spread.score_tokens(params, tokens, mask, key, read)

    by_row = layout.by_row(score_rows)
    grouped = spread.group_policy
    return dataclasses.replace(
        spread,
        policy=layout.by_row(spread.policy),
        sample=layout.by_row(spread.sample),
        sample_rows=layout.by_row(spread.sample_rows),
        greedy=layout.by_row(spread.greedy),
        score=layout.by_row(spread.score),
        score_tokens=lambda params, tokens, mask, key, read=None: by_row(params, (tokens, mask, read), key),
        score_items=layout.by_row(spread.score_items),
        score_replies=layout.by_row(spread.score_replies),
        sample_groups=lambda size: layout.by_row(spread.sample_groups(size)),
        judge_groups=lambda size: layout.by_row(spread.judge_groups(size)),
        group_policy=None if grouped is None else GroupPolicy(layout.by_row(grouped.logprobs)),
    )


def _agent(network: gpt2.GPT2Config, grammar: Grammar, response_tokens: int, temperature: float) -> Agent:
    def score_tokens(params: Params, tokens: Array, mask: Array, key: Array | None, read: Array | None = None) -> Array:
        hidden = gpt2.hidden_states(network, params["trunk"], tokens, mask, dropout_key=key)
        return heads.reward_components(params["reward"], heads.last_token_hidden(hidden, mask), read)

    return Agent(
        network=network,
        grammar=grammar,
        response_tokens=response_tokens,
        temperature=temperature,
        policy=make_policy_apply(network, grammar, temperature=temperature),
        sample=make_sample(network, grammar, max_tokens=response_tokens, temperature=temperature),
        sample_rows=make_decode(network, grammar, Decoding(response_tokens, temperature)),
        greedy=make_decode(network, grammar, Decoding(response_tokens, temperature=0.0, rollout_for_learning=False)),
        score=make_score(network, grammar),
        score_tokens=score_tokens,
        score_items=make_score_items(network, grammar),
        score_replies=make_score_replies(network, grammar),
        sample_groups=lambda size: make_sample(
            network, grammar, max_tokens=response_tokens, temperature=temperature, group_size=size
        ),
        judge_groups=lambda size: make_policy_apply(network, grammar, temperature=temperature, group_size=size),
        group_policy=make_group_policy(network, grammar, temperature=temperature)
        if network.attention == "masked"
        else None,
    )


def policy_params(trunk: Params, width: int) -> Params:
    """A policy on a trained trunk; its values start at 0."""
    value = heads.init_value_head(width)
    # Bound to the trunk's devices as the trunk is: a tree bound in part would compile every program a second time, once for
    # the supervised policy and once for what PPO makes of it.
    first = jax.tree.leaves(trunk)[0]
    if getattr(first, "committed", False):
        value = jax.device_put(value, first.sharding)
    return {"trunk": trunk, "value": value}


def reward_params(
    trunk: Params, width: int, key: Key[Array, ""], n_components: int = len(COMPONENTS), *, n_read: int = 0
) -> Params:
    """A reward model on a trained trunk, one head per component, which reads `n_read` numbers beside it."""
    return {"trunk": trunk, "reward": heads.init_reward_heads(key, width, n_components, n_read=n_read)}


def copied(params: Params) -> Params:
    """The same tree in memory of its own."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)

"""A vocabulary of four items, made in a moment; a policy, a reference and a reward model of random weights over them.

The `conftest` of every folder whose tests need them imports the fixtures.
"""

from typing import Any, NamedTuple

import jax
import pytest

from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.interfaces import Corpus, Dialogue, Item, Message, Params
from rlhf_jax.models import gpt2
from rlhf_jax.stages.agent import Agent, make_agent, policy_params, reward_params
from rlhf_jax.stages.setup import DataConfig, Setup

DATA = DataConfig(window=4, context_tokens=24, response_tokens=8, max_items=2)


class Tiny(NamedTuple):
    """What a stage would hand on, without training."""

    setup: Setup
    agent: Agent
    policy: Params
    reference: Params
    reward_model: Params
    sample: Any
    """`agent.sample`, compiled: op by op it takes minutes."""
    score: Any
    """`agent.score`, compiled."""


def make_tiny(vocab: Vocabulary, dialogues: tuple[Dialogue, ...]) -> Tiny:
    """Three networks of other weights; the policy's are large enough for replies to differ."""
    config = gpt2.GPT2Config(vocab_size=vocab.size, n_positions=40, n_embd=16, n_layer=1, n_head=2)
    items = {item: Item(item_id=item, title=f"Film {item}") for item in vocab.item_ids}
    corpus = Corpus(train=dialogues, validation=(), test=dialogues, items=items, provenance={"n_skipped": 0})
    trunks = [
        jax.tree.map(lambda leaf: leaf * 4.0 if leaf.ndim == 2 else leaf, gpt2.init(config, jax.random.key(seed)))
        for seed in range(3)
    ]
    agent = make_agent(vocab, config, max_items=DATA.max_items, response_tokens=DATA.response_tokens)
    return Tiny(
        setup=Setup(DATA, corpus, vocab, agent, seed=0),
        agent=agent,
        policy=policy_params(trunks[0], config.n_embd),
        reference=policy_params(trunks[1], config.n_embd),
        reward_model=reward_params(trunks[2], config.n_embd, jax.random.key(3)),
        sample=jax.jit(agent.sample),
        score=jax.jit(agent.score),
    )


ITEMS = (11, 12, 13, 14)


@pytest.fixture(scope="session")
def vocab() -> Vocabulary:
    return Vocabulary.train(["hello there", "try this one", "hello again"], ITEMS, 270, multiple=8)


@pytest.fixture(scope="session")
def dialogues() -> tuple[Dialogue, ...]:
    """Two dialogues with everything a window must cope with."""
    spoken: list[list[tuple[str, tuple[str | int, ...]]]] = [
        [
            ("recommender", ("hello there",)),
            ("seeker", ("hello",)),
            ("recommender", ("try ", 11, " or ", 12)),
            ("recommender", ("  ",)),
            ("recommender", ("this one",)),
            ("seeker", ("again ", 13)),
        ],
        [("seeker", ("",)), ("recommender", ("hello",)), ("recommender", (14,))],
    ]
    return tuple(
        Dialogue(
            dialogue_id=str(number),
            messages=tuple(
                Message(role=role, parts=parts, message_id=place)  # type: ignore[arg-type]
                for place, (role, parts) in enumerate(messages)
            ),
            seeker_labels={},
            recommender_labels={},
        )
        for number, messages in enumerate(spoken)
    )


@pytest.fixture(scope="session")
def tiny(vocab: Vocabulary, dialogues: tuple[Dialogue, ...]) -> Tiny:
    return make_tiny(vocab, dialogues)

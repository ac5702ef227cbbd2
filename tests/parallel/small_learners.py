"""Every learner in miniature on any layout: what one device, a mesh and several processes must agree on."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.interfaces import PromptBatch, Rollout
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import dpo, grpo, multi_turn, ppo, reward_model, sft
from rlhf_jax.learners.dpo import PreferenceBatch
from rlhf_jax.learners.dpo_config import DPOConfig
from rlhf_jax.learners.grpo_config import GRPOConfig
from rlhf_jax.learners.multi_turn_config import MultiTurnConfig
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.learners.reward_model import RewardBatch
from rlhf_jax.models import gpt2
from rlhf_jax.parallel.partition import Layout
from rlhf_jax.stages import reward, supervised
from rlhf_jax.stages.agent import Agent, make_agent, on_mesh, policy_params, reward_params
from rlhf_jax.stages.items import ItemKnowledge
from rlhf_jax.stages.supervised import SupervisedConfig
from rlhf_jax.stages.texts import Text, TextBatches

ROWS, PROMPT, RESPONSE, BUCKET = 16, 6, 5, 16
WIDTH, HEADS = 32, 8
HEAD_WIDTH = WIDTH // HEADS
OPTIMIZER = make_optimizer(learning_rate=1e-2, total_steps=50, weight_decay=0.05)
PPO = PPOConfig(epochs=1, minibatches=2, entropy_coef=0.01)
SFT = SupervisedConfig(max_tokens=BUCKET, buckets=(BUCKET,), tokens_per_batch=ROWS * BUCKET, max_grad_norm=1.0)


class Learner(NamedTuple):
    """A state where the layout keeps it, and its update."""

    state: Any
    step: Any
    """(state, *inputs) -> (state, metrics, …), jitted."""
    inputs: Callable[[int], tuple[Any, ...]]
    """What the update of this number reads besides the state."""


def root_key() -> jax.Array:
    """Of everything drawn; a function, because an array at import would start JAX before processes can join."""
    return jax.random.key(0)


@functools.cache
def vocabulary() -> Vocabulary:
    words = ["hello there", "try this one", "hello again", "what do you like"]
    return Vocabulary.train(words, tuple(range(100, 120)), 268, multiple=8)


@functools.cache
def agent(n_layer: int = 1, layers: str = "unrolled", remat: str = "none") -> Agent:
    vocab = vocabulary()
    network = gpt2.GPT2Config(
        vocab_size=vocab.size,
        n_positions=32,
        n_embd=WIDTH,
        n_layer=n_layer,
        n_head=HEADS,
        dropout=0.1,
        layers=layers,
        remat=remat,
    )
    return make_agent(vocab, network, max_items=3, response_tokens=RESPONSE)


@functools.cache
def trunk(n_layer: int = 1) -> Any:
    tree = gpt2.init(agent(n_layer).network, root_key())
    # Larger than a fresh model's, so that responses differ and nothing is decided by rounding.
    return jax.tree.map(lambda leaf: leaf * 5 if leaf.ndim > 1 else leaf, tree)


@functools.cache
def texts() -> TextBatches:
    draw, vocab = np.random.default_rng(1), vocabulary()

    def words(n: int) -> list[int]:
        return draw.integers(0, vocab.n_words, n).tolist()

    def one() -> Text:
        items = (vocab.first_item + draw.permutation(vocab.n_items)[:2]).tolist()
        spoken = [vocab.seeker, *words(int(draw.integers(1, 4))), vocab.eos]
        return Text((*spoken, vocab.recommender, vocab.rec, *items, vocab.say, *words(2), vocab.eos))

    return TextBatches(tuple(one() for _ in range(2 * ROWS)), vocab, SFT.buckets, SFT.tokens_per_batch, 0, 3)


def knowledge() -> ItemKnowledge:
    draw, n_items = np.random.default_rng(2), vocabulary().n_items
    return ItemKnowledge(
        titles=jnp.asarray(draw.integers(-1, vocabulary().n_words, (n_items, 3)), jnp.int32),
        metadata=jnp.full((n_items, 1), -1, jnp.int32),
        features=jnp.asarray(draw.integers(-1, 4, (n_items, 2)), jnp.int32),
    )


def sft_learner(layout: Layout) -> Learner:
    """Stage 1 with dropout, composed items and the moving average."""
    params = {"trunk": trunk(), "item_features": 0.1 * jnp.ones((4, agent().network.n_embd))}
    loss, known = supervised.make_loss(on_mesh(agent(), layout), SFT, layout), layout.same(knowledge())
    state = layout.place(sft.init(params, OPTIMIZER, averaged=True))

    def one_step(state: Any, batch: Any, known: Any, key: jax.Array) -> Any:
        return sft.update(state, batch, key, loss_fn=functools.partial(loss, knowledge=known), optimizer=OPTIMIZER)

    step = layout.step(one_step, state)

    def inputs(index: int) -> Any:
        batch = supervised.own_rows(supervised.text_batch(*texts().batch(index)), layout)
        return batch, known, layout.same(stream_key(root_key(), "sft/dropout", index))

    return Learner(state, step, inputs)


def reward_learner(layout: Layout, n_layer: int = 1, layers: str = "unrolled", remat: str = "none") -> Learner:
    """Stage 2 with dropout, missing labels, numbers beside the tokens, and rows of items that stay."""
    spread, draw, vocab = on_mesh(agent(n_layer, layers, remat), layout), np.random.default_rng(3), vocabulary()
    tokens = draw.integers(0, vocab.n_words, (4 * ROWS, PROMPT + RESPONSE)).astype(np.int32)
    mask = np.arange(PROMPT + RESPONSE) < draw.integers(3, PROMPT + RESPONSE + 1, (4 * ROWS, 1))
    labels = draw.normal(size=(4 * ROWS, 3)).astype(np.float32)
    label_mask = draw.random((4 * ROWS, 3)) < 0.8
    numbers = draw.normal(size=(4 * ROWS, 3)).astype(np.float32)
    params = reward_params(trunk(n_layer), agent().network.n_embd, root_key(), n_read=3)
    params = reward_model.reading(params, numbers, labels, label_mask)
    token = jnp.arange(len(params["trunk"]["wte"]))
    items = (token >= vocab.first_item) & (token < vocab.first_item + vocab.n_items)
    state = layout.place(reward_model.init(params, OPTIMIZER, averaged=True))

    def score(params: Any, inputs: Any, key: jax.Array) -> jax.Array:
        tokens, mask, read = inputs
        return spread.score_tokens(reward.holding(params, items), tokens, mask, key, read)

    def learn(state: Any, batch: RewardBatch, key: jax.Array) -> Any:
        after, metrics = reward_model.update(state, batch, key, score_fn=score, optimizer=OPTIMIZER)
        kept = {
            name: reward.with_rows_of(getattr(after, name), getattr(state, name), items)
            for name in ("params", "average")
        }
        return dataclasses.replace(after, **kept), metrics

    step = layout.step(learn, state)

    def inputs(index: int) -> Any:
        rows = np.arange(ROWS) + ROWS * index

        def own(part: slice) -> RewardBatch:
            taken = [jnp.asarray(array[rows[part]]) for array in (tokens, mask, numbers, labels, label_mask)]
            return RewardBatch(inputs=tuple(taken[:3]), labels=taken[3], label_mask=taken[4])

        return layout.batch(ROWS, own), layout.same(stream_key(root_key(), "reward_model/dropout", index))

    return Learner(state, step, inputs)


def ppo_learner(layout: Layout, config: PPOConfig = PPO) -> Learner:
    """Stage 3 whole: sampler, reward model, reference, epochs."""
    spread, draw, vocab = on_mesh(agent(), layout), np.random.default_rng(4), vocabulary()
    tokens = draw.integers(0, vocab.n_words, (4 * ROWS, PROMPT)).astype(np.int32)
    mask = np.arange(PROMPT) >= draw.integers(0, PROMPT - 1, (4 * ROWS, 1))
    policy, scorer = (
        policy_params(trunk(), agent().network.n_embd),
        reward_params(trunk(), agent().network.n_embd, root_key()),
    )
    # Off zero, so that values matter, and away from the policy, so that the KL does.
    policy["value"] = jax.tree.map(lambda leaf: leaf + 0.05, policy["value"])
    reference = {"trunk": jax.tree.map(lambda leaf: 0.9 * leaf, trunk())}
    state = layout.place(ppo.init(policy, OPTIMIZER, config, root_key()))
    iteration = ppo.make_ppo_iteration(
        sample=spread.sample,
        policy=spread.policy,
        score=spread.score,
        optimizer=OPTIMIZER,
        config=config,
        out_shardings=layout.outputs(state),
    )
    fixed = layout.place(reference), layout.place(scorer)

    def prompts(index: int) -> PromptBatch:
        rows = np.arange(ROWS) + ROWS * index

        def own(part: slice) -> PromptBatch:
            return PromptBatch(tokens=jnp.asarray(tokens[rows[part]]), mask=jnp.asarray(mask[rows[part]]))

        return layout.batch(ROWS, own)

    return Learner(state, iteration, lambda index: (prompts(index), *fixed))


def grpo_learner(layout: Layout) -> Learner:
    """Stage 3 without a value function: groups of two, human responses mixed in, the average kept."""
    config = GRPOConfig(group_size=2, minibatches=2, ptx_coef=0.5, average_decay=0.5)
    spread, draw, vocab = on_mesh(agent(), layout), np.random.default_rng(5), vocabulary()
    tokens = draw.integers(0, vocab.n_words, (4 * ROWS, PROMPT)).astype(np.int32)
    mask = np.arange(PROMPT) >= draw.integers(0, PROMPT - 1, (4 * ROWS, 1))
    said = np.tile(np.array([vocab.say, 1, 2, 3, vocab.eos], np.int32), (ROWS, 1))
    scorer = reward_params(trunk(), agent().network.n_embd, root_key())
    reference = {"trunk": jax.tree.map(lambda leaf: 0.9 * leaf, trunk())}
    state = layout.place(grpo.init({"trunk": trunk()}, OPTIMIZER, config, root_key()))
    iteration = grpo.make_grpo_iteration(
        sample=spread.sample_groups(config.group_size),
        policy=spread.policy,
        score=spread.score,
        optimizer=OPTIMIZER,
        config=config,
        out_shardings=layout.outputs(state),
    )
    fixed = layout.place(reference), layout.place(scorer)

    def inputs(index: int) -> tuple[Any, ...]:
        rows = np.arange(ROWS) + ROWS * index

        def prompts(part: slice) -> PromptBatch:
            return PromptBatch(tokens=jnp.asarray(tokens[rows[part]]), mask=jnp.asarray(mask[rows[part]]))

        def human(part: slice) -> Rollout:
            n = len(rows[part])
            return Rollout(
                prompt_tokens=jnp.asarray(tokens[rows[part]]),
                prompt_mask=jnp.asarray(mask[rows[part]]),
                response_tokens=jnp.asarray(said[part]),
                response_mask=jnp.ones((n, RESPONSE), bool),
                logprobs=jnp.zeros((n, RESPONSE)),
                finished=jnp.ones(n, bool),
            )

        # As many prompts as groups.
        return layout.batch(ROWS // 2, prompts), *fixed, layout.batch(ROWS, human)

    return Learner(state, iteration, inputs)


def dpo_learner(layout: Layout) -> Learner:
    """Preferences among three responses judged together, two micro-batches, some weights 0, the average kept."""
    config = DPOConfig(loss="softmax", beta=0.1, batch_size=ROWS, microbatches=2, average_decay=0.5)
    spread, draw, vocab = on_mesh(agent(), layout), np.random.default_rng(6), vocabulary()
    tokens = draw.integers(0, vocab.n_words, (4 * ROWS, PROMPT)).astype(np.int32)
    mask = np.arange(PROMPT) >= draw.integers(0, PROMPT - 1, (4 * ROWS, 1))
    said = np.array([[vocab.say, 1, 2, 3, vocab.eos], [vocab.say, 4, vocab.eos, 0, 0], [vocab.say, 3, 1, vocab.eos, 0]])
    responses = said[np.stack([draw.permutation(3) for _ in range(4 * ROWS)])].astype(np.int32)
    ends = np.argmax(responses == vocab.eos, axis=2)
    ref = draw.normal(-10, 2, (4 * ROWS, 3)).astype(np.float32)
    weight = draw.integers(0, 3, 4 * ROWS).astype(np.float32)
    state = layout.place(dpo.init({"trunk": trunk()}, OPTIMIZER, config))
    step = layout.step(
        functools.partial(dpo.update, policy=spread.group_policy, optimizer=OPTIMIZER, config=config), state
    )

    def inputs(index: int) -> tuple[PreferenceBatch]:
        rows = np.arange(ROWS) + ROWS * index

        def own(part: slice) -> PreferenceBatch:
            of = rows[part]
            return PreferenceBatch(
                prompts=PromptBatch(tokens=jnp.asarray(tokens[of]), mask=jnp.asarray(mask[of])),
                response_tokens=responses[of],
                response_mask=np.arange(RESPONSE) <= ends[of][..., None],
                ref_logprobs=ref[of],
                weight=weight[of],
            )

        return (layout.batch(ROWS, own),)

    return Learner(state, step, inputs)


def multi_turn_learner(layout: Layout) -> Learner:
    """Two episodes of two turns: half of them end after one, one opening is flat; two micro-batches, the average kept."""
    n_openings, n_rows = ROWS // 2, 2 * ROWS
    config = MultiTurnConfig(credit="place", minibatches=2, microbatches=2, average_decay=0.5)
    spread, draw, vocab = on_mesh(agent(), layout), np.random.default_rng(7), vocabulary()
    tokens = draw.integers(0, vocab.n_words, (n_rows, PROMPT)).astype(np.int32)
    mask = np.arange(PROMPT) >= draw.integers(0, PROMPT - 1, (n_rows, 1))
    said = np.array([[vocab.say, 1, 2, 3, vocab.eos], [vocab.say, 4, vocab.eos, 0, 0]], np.int32)
    responses = said[draw.integers(0, 2, n_rows)]
    ends = np.argmax(responses == vocab.eos, axis=1)
    rewards = draw.normal(size=(n_openings, 2, 2, 3)).astype(np.float32)
    rewards[1] = 0.5
    settled = rewards[..., None] * draw.uniform(size=(*rewards.shape, 3)).astype(np.float32)
    places = draw.integers(0, 3, responses.shape).astype(np.int32)
    running = np.ones((n_openings, 2, 2), bool)
    running[::2, 1, 1] = False
    reference = layout.place({"trunk": jax.tree.map(lambda leaf: 0.9 * leaf, trunk())})
    state = layout.place(multi_turn.init({"trunk": trunk()}, OPTIMIZER, config, root_key()))
    outputs = layout.outputs(state)
    step = multi_turn.make_learn(
        policy=spread.policy, optimizer=OPTIMIZER, config=config, out_shardings=outputs and outputs[:2]
    )

    def rows(own: slice) -> Rollout:
        return Rollout(
            prompt_tokens=jnp.asarray(tokens[own]),
            prompt_mask=jnp.asarray(mask[own]),
            response_tokens=jnp.asarray(responses[own]),
            response_mask=jnp.asarray(np.arange(RESPONSE) <= ends[own, None]),
            logprobs=jnp.zeros(responses[own].shape),
            finished=jnp.ones(len(responses[own]), bool),
        )

    def inputs(index: int) -> tuple[Any, ...]:
        del index
        episodes = multi_turn.Episodes(
            rollout=layout.batch(n_rows, rows),
            rewards=layout.batch(n_openings, lambda own: rewards[own]),
            running=layout.batch(n_openings, lambda own: running[own]),
            settled=layout.batch(n_openings, lambda own: settled[own]),
            places=layout.batch(n_rows, lambda own: places[own]),
        )
        return episodes, reference

    return Learner(state, step, inputs)


LEARNERS: dict[str, Callable[[Layout], Learner]] = {
    "sft": sft_learner,
    "reward_model": reward_learner,
    "ppo": ppo_learner,
    "grpo": grpo_learner,
    "dpo": dpo_learner,
    "multi_turn": multi_turn_learner,
}
FEW_MESHES = {"dpo": ("4x2x1", "2x2x2"), "multi_turn": ("4x2x1",)}
"""Of learners whose step is made of the others' parts: rows over two axes, and every axis; any other runs on all meshes."""
DEEP = {
    "unrolled": functools.partial(reward_learner, n_layer=3),
    "scan": functools.partial(reward_learner, n_layer=3, layers="scan", remat="full"),
}
"""One network of three layers, written out and as a loop that computes every block again."""


def numbers(tree: Any) -> dict[str, np.ndarray]:
    """Leaves by path as host arrays, typed keys as their data."""
    found = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        found[jax.tree_util.keystr(path, simple=True, separator="/")] = np.asarray(leaf)
    return found


def largest_difference(one: Any, other: Any) -> tuple[float, str]:
    """Largest absolute difference between two trees of the same structure, and where."""
    ours, theirs = numbers(one), numbers(other)
    assert list(ours) == list(theirs)
    return max(
        (float(np.max(np.abs(ours[name].astype(np.float64) - theirs[name].astype(np.float64)), initial=0)), name)
        for name in ours
    )

"""DPO on language in a hundred lines: no reward model and no sampling while learning, only compared pairs.

    python experiments/dpo_100_lines.py [PICTURE]          # default: build/dpo_100_lines.png

Question: do comparisons alone lead to the policy that PPO looks for? The language of notebook 8, as in `ppo_100_lines.py`, but
the score is hidden: pairs of responses of the reference, the better one chosen with probability σ(s₊ − s₋), Bradley–Terry.
With β for the price κ the best policy is again π* ∝ π_ref exp(s/β). Hardware and time: one CPU core, under a minute.
Expected: KL(π‖π*) falls from 1.132 to 0.006 nats, what 32 768 pairs can teach (eight times as many: 0.0006). The chosen become rarer too, by 0.8 nats (the rejected by
1.6): both were drawn from the reference, and a policy that moves to better responses leaves most of them behind.
Source: Rafailov et al. 2023 (arXiv:2305.18290); pairs are drawn once, before learning.
"""

import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

from rlhf_jax.equations.dpo import dpo_loss
from rlhf_jax.equations.logprobs import token_logprobs
from rlhf_jax.equations.masked import zero_padding
from rlhf_jax.equations.rewards import missing_eos_score

A, B, EOS = 0, 1, 2
T, BATCH, PAIRS, STEPS = 5, 512, 32_768, 1500
BETA, PENALTY = 0.4, 1.0
# A table for a network: logits at every position, after every token.
REFERENCE = jnp.broadcast_to(jnp.array([[0.0, 0.6, -1.0], [-0.5, 0.5, -0.7], [0.0, 0.5, -1.5]]), (T, 3, 3))
optimizer = optax.adam(optax.linear_schedule(0.02, 0.0, STEPS))


def sample(params, n, key):
    """Responses token by token, and which tokens are real: what follows an <eos> is padding. [B, T], [B, T]"""
    token, alive, tokens, mask = jnp.full(n, EOS), jnp.ones(n, bool), [], []
    for t in range(T):
        token = jax.random.categorical(jax.random.fold_in(key, t), params[t][token])
        tokens.append(jnp.where(alive, token, 0))
        mask.append(alive)
        alive = alive & (token != EOS)
    return jnp.stack(tokens, axis=1), jnp.stack(mask, axis=1)


def judge(params, tokens, mask):
    """log π of every token of given responses. [B, T]"""
    before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=EOS)
    position = jnp.broadcast_to(jnp.arange(T)[None], tokens.shape)
    return zero_padding(jax.vmap(token_logprobs)(params[position, before], tokens), mask)


def score(tokens, mask):
    """How often "ab" occurs, minus 1 without an end: what the person who compares thinks, and DPO never sees. [B]"""
    ab = ((tokens[:, :-1] == A) & (tokens[:, 1:] == B) & mask[:, 1:]).sum(axis=1).astype(jnp.float32)
    return missing_eos_score(ab, ((tokens == EOS) & mask).any(axis=1), penalty=PENALTY)


def draw_pairs(n, key):
    """Chosen and rejected responses of the reference: (tokens, mask) each. Who is better wins more often."""
    keys = jax.random.split(key, 3)
    left, right = sample(REFERENCE, n, keys[0]), sample(REFERENCE, n, keys[1])
    left_wins = jax.random.bernoulli(keys[2], jax.nn.sigmoid(score(*left) - score(*right)))[:, None]
    chosen = jax.tree.map(lambda x, y: jnp.where(left_wins, x, y), left, right)
    rejected = jax.tree.map(lambda x, y: jnp.where(left_wins, y, x), left, right)
    return chosen, rejected


def loss(params, chosen, rejected):
    """−log σ(β h) of every pair. [B]"""
    said = [judge(p, *y).sum(axis=1) for p in (params, REFERENCE) for y in (chosen, rejected)]
    return dpo_loss(*said, beta=BETA)


@jax.jit
def update(params, opt_state, pairs, key):
    """One step on a minibatch of the pairs."""
    rows = jax.random.randint(key, (BATCH,), 0, PAIRS)
    chosen, rejected = jax.tree.map(lambda x: x[rows], pairs)
    gradient = jax.grad(lambda p: loss(p, chosen, rejected).mean())(params)
    steps, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, steps), opt_state


WORDS = [[*w, EOS] for n in range(T) for w in itertools.product((A, B), repeat=n)]
WORDS += [list(w) for w in itertools.product((A, B), repeat=T)]
ALL_TOKENS = jnp.array([w + [0] * (T - len(w)) for w in WORDS])
ALL_MASKS = jnp.arange(T)[None] < jnp.array([[len(w)] for w in WORDS])
ALL_SCORES = score(ALL_TOKENS, ALL_MASKS)


@jax.jit
def response_logprobs(params):
    """log π(y) of all 63 responses. [63]"""
    return judge(params, ALL_TOKENS, ALL_MASKS).sum(axis=1)


REF_LOGPROBS = response_logprobs(REFERENCE)
BEST_LOGPROBS = jax.nn.log_softmax(REF_LOGPROBS + ALL_SCORES / BETA)


@jax.jit
def watch(params, pairs):
    """KL(π‖π*), and what happened to the chosen and the rejected: their mean log π − log π_ref. Nats. [3]"""
    logprobs = response_logprobs(params)
    moved = [(judge(params, *y) - judge(REFERENCE, *y)).sum(axis=1).mean() for y in pairs]
    return jnp.array([jnp.exp(logprobs) @ (logprobs - BEST_LOGPROBS), *moved])


def train(seed):
    """What `watch` saw, every ten steps [1+STEPS/10, 3], and the last parameters."""
    root = jax.random.key(seed)
    pairs = draw_pairs(PAIRS, jax.random.fold_in(root, STEPS))
    few = jax.tree.map(lambda x: x[:BATCH], pairs)
    params, opt_state, curve = REFERENCE, optimizer.init(REFERENCE), [watch(REFERENCE, few)]
    for n in range(STEPS):
        params, opt_state = update(params, opt_state, pairs, jax.random.fold_in(root, n))
        if (n + 1) % 10 == 0:
            curve.append(watch(params, few))
    return jnp.array(curve), params


def main(picture: Path) -> None:
    """Learns, says what came of it, and draws the curve."""
    curve, _ = train(seed=0)
    print(f"KL(π‖π*) {curve[0, 0]:.3f} → {curve[-1, 0]:.4f} nats")
    print(f"log π − log π_ref: chosen {curve[-1, 1]:+.3f}, rejected {curve[-1, 2]:+.3f} nats; picture in {picture}")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    steps = jnp.arange(curve.shape[0]) * 10
    left.semilogy(steps, curve[:, 0], color="black")
    left.set(xlabel="step", ylabel="KL(π‖π*), nats", title="Distance to the best policy")
    for column, style, name in ((1, "-", "chosen"), (2, "--", "rejected")):
        right.plot(steps, curve[:, column], style, color="black", label=name)
    right.axhline(0, color="gray", linewidth=0.8)
    right.set(xlabel="step", ylabel="mean log π − log π_ref, nats", title="What became of the pairs")
    right.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("build/dpo_100_lines.png"))

"""GRPO on language in a hundred lines: no critic, a response is compared with others to the same prompt.

    python experiments/grpo_100_lines.py [PICTURE]         # default: build/grpo_100_lines.png

Question: how far does PPO come if its critic is replaced by the mean of a group? The language of notebook 8, as in
`ppo_100_lines.py`: 63 responses, so that π* ∝ π_ref exp(s/κ) is known. Hardware and time: one CPU core, under a minute.
Expected: KL(π‖π*) falls from 1.132 nats to below 0.0001, the objective rises from 0.077 to 0.530 of 0.530.
Deviations from Shao et al. 2024 (arXiv:2402.03300): the KL is paid in the reward (theirs is a loss of k3 per token, whose gradient is
that of no KL over responses: notebook 10); tokens of all responses count alike (theirs: responses do).
"""

import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

from rlhf_jax.equations.group import group_advantages
from rlhf_jax.equations.kl import kl_k1
from rlhf_jax.equations.logprobs import token_logprobs
from rlhf_jax.equations.masked import masked_mean, zero_padding
from rlhf_jax.equations.ppo import clipped_surrogate
from rlhf_jax.equations.rewards import missing_eos_score

A, B, EOS = 0, 1, 2
T, BATCH, GROUP, EPOCHS, UPDATES = 5, 256, 8, 4, 60
KL_COEF, PENALTY = 0.4, 1.0
# A table for a network: logits at every position, after every token.
REFERENCE = jnp.broadcast_to(jnp.array([[0.0, 0.6, -1.0], [-0.5, 0.5, -0.7], [0.0, 0.5, -1.5]]), (T, 3, 3))
optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(0.03, 0.0, UPDATES * EPOCHS), eps=1e-5)
)


def sample(params, key):
    """Responses token by token, and which tokens are real: what follows an <eos> is padding. [B, T], [B, T]"""
    token, alive, tokens, mask = jnp.full(BATCH, EOS), jnp.ones(BATCH, bool), [], []
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
    """How often "ab" occurs. [B]"""
    return ((tokens[:, :-1] == A) & (tokens[:, 1:] == B) & mask[:, 1:]).sum(axis=1).astype(jnp.float32)


def paid(tokens, mask, logprobs):
    """What a response is paid: its score, minus κ for every nat of Σ k1, minus a missing end. [B]"""
    finished = ((tokens == EOS) & mask).any(axis=1)
    k1 = kl_k1(logprobs, judge(REFERENCE, tokens, mask)).sum(axis=1)
    return missing_eos_score(score(tokens, mask), finished, penalty=PENALTY) - KL_COEF * k1


def loss(params, tokens, mask, old_logprobs, advantages):
    """PPO's clipped surrogate; all tokens of a response share its advantage [B]."""
    per_token = jnp.broadcast_to(advantages[:, None], mask.shape)
    surrogate = clipped_surrogate(judge(params, tokens, mask), old_logprobs, per_token, clip_eps=0.2)
    return masked_mean(surrogate, mask)


@jax.jit
def update(params, opt_state, key):
    """Sample groups, compare within them, improve."""
    tokens, mask = sample(params, key)
    old_logprobs = judge(params, tokens, mask)
    groups = paid(tokens, mask, old_logprobs).reshape(BATCH // GROUP, GROUP)
    advantages = jax.vmap(group_advantages)(groups).reshape(BATCH)
    for _ in range(EPOCHS):
        gradient = jax.grad(loss)(params, tokens, mask, old_logprobs, advantages)
        steps, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, steps)
    return params, opt_state


WORDS = [[*w, EOS] for n in range(T) for w in itertools.product((A, B), repeat=n)]
WORDS += [list(w) for w in itertools.product((A, B), repeat=T)]
ALL_TOKENS = jnp.array([w + [0] * (T - len(w)) for w in WORDS])
ALL_MASKS = jnp.arange(T)[None] < jnp.array([[len(w)] for w in WORDS])
ALL_SCORES = missing_eos_score(score(ALL_TOKENS, ALL_MASKS), jnp.array([w[-1] == EOS for w in WORDS]), penalty=PENALTY)


@jax.jit
def response_logprobs(params):
    """log π(y) of all 63 responses. [63]"""
    return judge(params, ALL_TOKENS, ALL_MASKS).sum(axis=1)


REF_LOGPROBS = response_logprobs(REFERENCE)
MAXIMUM = KL_COEF * jax.nn.logsumexp(REF_LOGPROBS + ALL_SCORES / KL_COEF)
BEST_LOGPROBS = REF_LOGPROBS + (ALL_SCORES - MAXIMUM) / KL_COEF


@jax.jit
def truth(params):
    """The objective E[s] − κ KL(π‖π_ref), score units, and KL(π‖π*), nats: exact, over all responses."""
    logprobs = response_logprobs(params)
    objective = jnp.exp(logprobs) @ (ALL_SCORES - KL_COEF * (logprobs - REF_LOGPROBS))
    return objective, jnp.exp(logprobs) @ (logprobs - BEST_LOGPROBS)


def train(seed):
    """The truth before the first and after every update. [UPDATES+1, 2], and the last parameters"""
    params, opt_state, curve = REFERENCE, optimizer.init(REFERENCE), [truth(REFERENCE)]
    for n in range(UPDATES):
        params, opt_state = update(params, opt_state, jax.random.fold_in(jax.random.key(seed), n))
        curve.append(truth(params))
    return jnp.array(curve), params


def main(picture: Path) -> None:
    """Learns, says what came of it, and draws the curve."""
    curve, _ = train(seed=0)
    print(f"objective {curve[0, 0]:.3f} → {curve[-1, 0]:.3f} of at most {MAXIMUM:.3f}")
    print(f"KL(π‖π*) {curve[0, 1]:.3f} → {curve[-1, 1]:.4f} nats; picture in {picture}")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.plot(curve[:, 0], color="black")
    left.axhline(float(MAXIMUM), color="gray", linestyle=":", label="best, κ log Z")
    left.set(xlabel="update", ylabel="E[s] − κ KL, score units", title="Objective, exact")
    left.legend()
    right.semilogy(curve[:, 1], color="black")
    right.set(xlabel="update", ylabel="KL(π‖π*), nats", title="Distance to the best policy")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("build/grpo_100_lines.png"))

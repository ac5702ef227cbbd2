"""PPO on language in a hundred lines: the smallest complete program, nothing imported from here but equations.

    python experiments/ppo_100_lines.py [PICTURE]          # default: build/ppo_100_lines.png

Question: do lines 1–8 of the box (docs/algorithms/ppo.md) find the best way to speak? The language of notebook 8: words a
and b, and <eos>; at most five tokens; score 1 for every "ab", minus 1 without an end. It has 63 responses, so the best
policy π* ∝ π_ref exp(s/κ) is known. Hardware and time: one CPU core, under a minute.
Expected: KL(π‖π*) falls from 1.132 to 0.006 nats, the objective rises from 0.077 to 0.527 of 0.530.
What is left is the critic's: its table does not see how many "ab" have been said (notebook 10).
Deviations from the box: scores are not normalised and advantages not whitened, so that π* is the textbook's; the price κ is
fixed, so line 8 does nothing; one minibatch per epoch.
"""

import functools
import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

from rlhf_jax.equations.gae import generalized_advantage_estimation
from rlhf_jax.equations.kl import kl_k1
from rlhf_jax.equations.logprobs import token_logprobs
from rlhf_jax.equations.masked import masked_mean, zero_padding
from rlhf_jax.equations.ppo import clipped_surrogate, clipped_value_loss
from rlhf_jax.equations.rewards import missing_eos_score, token_rewards

A, B, EOS = 0, 1, 2
T, BATCH, EPOCHS, UPDATES = 5, 256, 4, 60
KL_COEF, PENALTY = 0.4, 1.0
REFERENCE = {  # A table for a network: logits and a value at every position, after every token.
    "logits": jnp.broadcast_to(jnp.array([[0.0, 0.6, -1.0], [-0.5, 0.5, -0.7], [0.0, 0.5, -1.5]]), (T, 3, 3)),
    "values": jnp.zeros((T, 3)),
}
optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(0.03, 0.0, UPDATES * EPOCHS), eps=1e-5)
)


def sample(params, key):
    """Responses token by token, and which tokens are real: what follows an <eos> is padding. [B, T], [B, T]"""
    token, alive, tokens, mask = jnp.full(BATCH, EOS), jnp.ones(BATCH, bool), [], []
    for t in range(T):
        token = jax.random.categorical(jax.random.fold_in(key, t), params["logits"][t][token])
        tokens.append(jnp.where(alive, token, 0))
        mask.append(alive)
        alive = alive & (token != EOS)
    return jnp.stack(tokens, axis=1), jnp.stack(mask, axis=1)


def judge(params, tokens, mask):
    """log π and V of every token of given responses. [B, T], [B, T]"""
    before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=EOS)
    position = jnp.broadcast_to(jnp.arange(T)[None], tokens.shape)
    logprobs = jax.vmap(token_logprobs)(params["logits"][position, before], tokens)
    return zero_padding(logprobs, mask), zero_padding(params["values"][position, before], mask)


def score(tokens, mask):
    """How often "ab" occurs. [B]"""
    return ((tokens[:, :-1] == A) & (tokens[:, 1:] == B) & mask[:, 1:]).sum(axis=1).astype(jnp.float32)


@jax.jit
def update(params, opt_state, key):
    """Lines 1–8 of the box."""
    # 1. Sample one response per prompt.
    tokens, mask = sample(params, key)
    # 2. Score every response.
    scores = score(tokens, mask)
    # 3. Judge every token: log π_old, V_old, log π_ref.
    (old_logprobs, old_values), (ref_logprobs, _) = judge(params, tokens, mask), judge(REFERENCE, tokens, mask)
    # 4. One score per response; a missing end costs.
    finished = ((tokens == EOS) & mask).any(axis=1)
    scores = missing_eos_score(scores, finished, penalty=PENALTY)
    # 5. Token rewards.
    k1 = kl_k1(old_logprobs, ref_logprobs)
    rewards = jax.vmap(functools.partial(token_rewards, kl_coef=KL_COEF))(scores, k1, mask)
    # 6. Advantages and returns.
    gae = functools.partial(generalized_advantage_estimation, gamma=1.0, gae_lambda=0.95)
    advantages = zero_padding(jax.vmap(gae)(rewards, jnp.pad(old_values, ((0, 0), (0, 1)))), mask)
    returns = advantages + old_values

    # 7. Improve: epochs of clipped steps on policy and critic.
    def loss(params):
        logprobs, values = judge(params, tokens, mask)
        surrogate = clipped_surrogate(logprobs, old_logprobs, advantages, clip_eps=0.2)
        return masked_mean(surrogate + clipped_value_loss(values, old_values, returns, value_clip_eps=10.0), mask)

    for _ in range(EPOCHS):
        steps, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        params = optax.apply_updates(params, steps)
    # 8. Steer the price: it is fixed here.
    return params, opt_state


WORDS = [[*w, EOS] for n in range(T) for w in itertools.product((A, B), repeat=n)]
WORDS += [list(w) for w in itertools.product((A, B), repeat=T)]
ALL_TOKENS = jnp.array([w + [0] * (T - len(w)) for w in WORDS])
ALL_MASKS = jnp.arange(T)[None] < jnp.array([[len(w)] for w in WORDS])
ALL_SCORES = missing_eos_score(score(ALL_TOKENS, ALL_MASKS), jnp.array([w[-1] == EOS for w in WORDS]), penalty=PENALTY)


@jax.jit
def response_logprobs(params):
    """log π(y) of all 63 responses. [63]"""
    return judge(params, ALL_TOKENS, ALL_MASKS)[0].sum(axis=1)


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
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("build/ppo_100_lines.png"))

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 · Four algorithms, one line each
#
# PPO is not the only way. Its critic is a second thing to learn, and often a whole second network. **Which line do REINFORCE, RLOO,
# GRPO and PPO write differently, and what does that line do to the way to the best policy?**
#
# All four pay a response the same rewards $r_t$ (notebook 3), in all $\Sigma = \sum_t r_t = s - \kappa \sum_t k_{1,t}$. All four push the log-probability of its tokens up or down in
# proportion to an advantage. They differ in line 6 of [the PPO box](../docs/algorithms/ppo.md):
#
# | | advantage of every token | compared with | source |
# |---|---|---|---|
# | **REINFORCE** | what the response was paid | nothing | [Williams 1992](https://doi.org/10.1007/BF00992696) |
# | **RLOO**, leave one out | that, minus the mean of the *other* responses to the prompt | its group | [Ahmadian et al. 2024](https://arxiv.org/abs/2402.14740) |
# | **GRPO**, group relative | that, minus the group's mean, divided by the group's deviation | its group | [Shao et al. 2024](https://arxiv.org/abs/2402.03300) |
# | **PPO** | GAE: the token's own surprises | a learnt critic | [Schulman et al. 2017](https://arxiv.org/abs/1707.06347) |
#
# A **group** is $n$ responses to one prompt, paid $\Sigma_1, \ldots, \Sigma_n$. In formulas, for all tokens of response $i$:
#
# $$A_i = \Sigma_i, \qquad A_i = \Sigma_i - \frac{1}{n-1} \sum_{j \neq i} \Sigma_j, \qquad A_i = \frac{\Sigma_i - \mathrm{mean}}{\mathrm{std} + 10^{-6}}$$
#
# and for PPO $A_t = \delta_t + \lambda A_{t+1}$, token by token. PPO then takes several clipped steps on one batch, and GRPO may; the other two usually take one. That is
# a second line, line 7, and any of the four can have it; so we shall try both with all.
#
# GRPO's paper has one more division, in line 7: each response's loss by its own length. A bad response is then pushed down less per token the longer it is
# ([Liu et al. 2025](https://arxiv.org/abs/2503.20783)). Here the tokens of a response are summed, for all four; the library divides by the number of tokens of the batch.

# %%
import functools
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from rlhf_jax.equations.gae import generalized_advantage_estimation
from rlhf_jax.equations.group import group_advantages, leave_one_out_advantages
from rlhf_jax.equations.kl import kl_k1, kl_k2, kl_k3
from rlhf_jax.equations.logprobs import token_logprobs
from rlhf_jax.equations.masked import zero_padding
from rlhf_jax.equations.ppo import clipped_surrogate, clipped_value_loss
from rlhf_jax.equations.rewards import missing_eos_score, token_rewards
from rlhf_jax.lessons import check

np.set_printoptions(precision=4, suppress=True)
plt.style.use("seaborn-v0_8-colorblind")  # Colours that everybody can tell apart.

# %% [markdown]
# ## The four lines
#
# Each takes the rewards and the critic's values of a batch, one row per response, zeros behind its end. Only the last one reads the values.
# The batch holds groups of eight, row by row. PPO is there twice, for two critics; more of that soon.

# %%
GROUP, BATCH = 8, 64


def reinforce(rewards: jax.Array, values: jax.Array) -> jax.Array:
    """What was paid."""
    return jnp.broadcast_to(rewards.sum(axis=1, keepdims=True), rewards.shape)


def rloo(rewards: jax.Array, values: jax.Array) -> jax.Array:
    """... minus the mean of the others."""
    groups = rewards.sum(axis=1).reshape(-1, GROUP)
    return jnp.broadcast_to(jax.vmap(leave_one_out_advantages)(groups).reshape(-1, 1), rewards.shape)


def grpo(rewards: jax.Array, values: jax.Array) -> jax.Array:
    """... divided by the deviation."""
    groups = rewards.sum(axis=1).reshape(-1, GROUP)
    return jnp.broadcast_to(jax.vmap(group_advantages)(groups).reshape(-1, 1), rewards.shape)


def ppo(rewards: jax.Array, values: jax.Array) -> jax.Array:
    """... or a critic that says what was to be expected before every token."""
    gae = functools.partial(generalized_advantage_estimation, gamma=1.0, gae_lambda=0.95)
    return jax.vmap(gae)(rewards, jnp.pad(values, ((0, 0), (0, 1))))


LINES = {"REINFORCE": reinforce, "RLOO": rloo, "GRPO": grpo, "PPO": ppo, "PPO, counting": ppo}

# %% [markdown]
# ## By hand
#
# One group of eight responses, all of one token here, so that a response is paid in one place, and a critic that expects 0.5.

# %%
paid = np.array([2.0, 1.0, 1.0, 0.0, 0.0, 0.0, -0.5, -1.5])
by_hand = {
    "REINFORCE": paid,
    "RLOO": np.array([paid[i] - np.delete(paid, i).mean() for i in range(8)]),
    "GRPO": (paid - paid.mean()) / (paid.std() + 1e-6),
    "PPO": paid - 0.5,
}
one_token = jnp.asarray(paid[:, None], jnp.float32), jnp.full((8, 1), 0.5)
library = {name: line(*one_token)[:, 0] for name, line in LINES.items()}
for name, value in by_hand.items():
    print(f"{name:10s} by hand {np.round(value, 3)}\n{'':10s} library {np.round(library[name], 3)}")

# %% [markdown]
# ## The language, and the truth
#
# Notebook 8's: words *a* and *b*, `<eos>`, at most five tokens, score 1 for every *ab*, minus 1 without an end, $\kappa = 0.4$. The policy is a table
# of logits over position and previous token. All 63 responses can be listed, so the best policy $\pi^*$ is known
# and our measure of success is exact: $\mathrm{KL}(\pi \| \pi^*)$. (Since $J(\pi) = \kappa \log Z - \kappa\, \mathrm{KL}(\pi \| \pi^*)$, it also says what is lacking in the objective.)
#
# The critic is a table too. For the policy position and previous token are all that matters. For the critic they are not: the score is
# paid at the end, for every *ab* that was said, and the table does not see how many those were. So there is a second critic that may
# add a number, learnt as well, for every *ab* so far (`per_ab`, switched on by `counts`).

# %%
A, B, EOS = 0, 1, 2
T, KL_COEF, PENALTY = 5, 0.4, 1.0
REFERENCE = {
    "logits": jnp.broadcast_to(jnp.array([[0.0, 0.6, -1.0], [-0.5, 0.5, -0.7], [0.0, 0.5, -1.5]]), (T, 3, 3)),
    "values": jnp.zeros((T, 3)),
    "per_ab": jnp.zeros(()),
    "counts": jnp.zeros(()),
}


def sample(params: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tokens of BATCH responses, and which of them are real."""
    token, alive, tokens, mask = jnp.full(BATCH, EOS), jnp.ones(BATCH, bool), [], []
    for t in range(T):
        token = jax.random.categorical(jax.random.fold_in(key, t), params["logits"][t][token])
        tokens.append(jnp.where(alive, token, 0))
        mask.append(alive)
        alive = alive & (token != EOS)
    return jnp.stack(tokens, axis=1), jnp.stack(mask, axis=1)


def judge(params: dict[str, jax.Array], tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log π and V of every token."""
    before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=EOS)
    position = jnp.broadcast_to(jnp.arange(T)[None], tokens.shape)
    logprobs = jax.vmap(token_logprobs)(params["logits"][position, before], tokens)
    so_far = jnp.cumsum(jnp.pad((before[:, :-1] == A) & (before[:, 1:] == B), ((0, 0), (1, 0))), axis=1)
    per_ab = jax.lax.stop_gradient(params["counts"]) * params["per_ab"]
    values = params["values"][position, before] + per_ab * so_far
    return zero_padding(logprobs, mask), zero_padding(values, mask)


def score(tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """One per response."""
    ab = ((tokens[:, :-1] == A) & (tokens[:, 1:] == B) & mask[:, 1:]).sum(axis=1).astype(jnp.float32)
    return missing_eos_score(ab, ((tokens == EOS) & mask).any(axis=1), penalty=PENALTY)


words = [[*w, EOS] for n in range(T) for w in itertools.product((A, B), repeat=n)]
words += [list(w) for w in itertools.product((A, B), repeat=T)]
everything = (
    jnp.array([w + [0] * (T - len(w)) for w in words]),
    jnp.arange(T)[None] < jnp.array([[len(w)] for w in words]),
)
all_scores = score(*everything)
ref_tokens = judge(REFERENCE, *everything)[0]
best_logprobs = jax.nn.log_softmax(ref_tokens.sum(axis=1) + all_scores / KL_COEF)
maximum = float(KL_COEF * jax.nn.logsumexp(ref_tokens.sum(axis=1) + all_scores / KL_COEF))


def distance(params: dict[str, jax.Array]) -> jax.Array:
    """KL(π‖π*), nats, exactly."""
    logprobs = judge(params, *everything)[0].sum(axis=1)
    return jnp.exp(logprobs) @ (logprobs - best_logprobs)


print(f"{len(words)} responses; the reference is {distance(REFERENCE):.3f} nats from π*, κ log Z = {maximum:.3f}")

# %% [markdown]
# ## The loop that all four share
#
# 64 responses per update, Adam at a constant rate, the clipped surrogate of notebook 5, which on the first step of a batch *is* the plain
# policy gradient. The only line that differs is marked. (`jax.lax.switch` picks it by its number, so that one compiled program serves all.) The
# critic learns always, but only PPO asks it.

# %%
optimizer = optax.adam(0.03, eps=1e-5)


def experience(params: dict[str, jax.Array], key: jax.Array, method: jax.Array) -> tuple:
    """Lines 1–6: a batch and its advantages."""
    tokens, mask = sample(params, key)
    old_logprobs, old_values = judge(params, tokens, mask)
    k1 = kl_k1(old_logprobs, judge(REFERENCE, tokens, mask)[0])
    rewards = jax.vmap(functools.partial(token_rewards, kl_coef=KL_COEF))(score(tokens, mask), k1, mask)
    advantages = jax.lax.switch(method, list(LINES.values()), rewards, old_values)  # ← the line
    returns = zero_padding(ppo(rewards, old_values), mask) + old_values
    return tokens, mask, old_logprobs, old_values, zero_padding(advantages, mask), returns


def loss(params: dict[str, jax.Array], tokens, mask, old_logprobs, old_values, advantages, returns) -> jax.Array:
    """Line 7, per response: a sum over its tokens."""
    logprobs, values = judge(params, tokens, mask)
    surrogate = clipped_surrogate(logprobs, old_logprobs, advantages, clip_eps=0.2)
    return (surrogate + clipped_value_loss(values, old_values, returns, value_clip_eps=10.0)).sum() / BATCH


@functools.partial(jax.jit, static_argnames="updates")
@functools.partial(jax.vmap, in_axes=(None, 0, None, None))  # seeds
@functools.partial(jax.vmap, in_axes=(0, None, None, None))  # methods
def train(method: jax.Array, seed: jax.Array, epochs: jax.Array, updates: int) -> jax.Array:
    """KL(π‖π*) before the first and after every update."""
    start = REFERENCE | {"counts": (method == 4).astype(jnp.float32)}

    def update(carry, key):
        params, opt_state = carry
        batch = experience(params, key, method)

        def step(_, carry):
            params, opt_state = carry
            steps, opt_state = optimizer.update(jax.grad(loss)(params, *batch), opt_state, params)
            return optax.apply_updates(params, steps), opt_state

        carry = jax.lax.fori_loop(0, epochs, step, (params, opt_state))
        return carry, distance(carry[0])

    keys = jax.random.split(jax.random.key(seed), updates)
    _, path = jax.lax.scan(update, (start, optimizer.init(start)), keys)
    return jnp.append(distance(REFERENCE), path)


SEEDS = 3
paths = {
    epochs: np.asarray(train(jnp.arange(5), jnp.arange(SEEDS), epochs, 200)) for epochs in (1, 4)
}  # [seed, method, update]
for epochs, path in paths.items():
    for name, way in zip(LINES, path.transpose(1, 0, 2), strict=True):
        end = way[:, 150:].mean()
        print(
            f"{epochs} step(s) per batch, {name:10s} after 20 updates {way[:, 20].mean():.3f}, last 50 {end:.5f} nats"
        )

# %% [markdown]
# ## Where does each come to rest?
#
# At the best policy something remarkable holds: $s(y) - \kappa\, d(y) = \kappa \log Z$ for *every* response (notebook 3, exercise 1). All are paid the same. So what remains of the
# gradient there is noise and nothing else. We measure it: 300 batches at the reference and 300 at $\pi^*$, and the deviation of the policy's gradient between
# them, as a multiple of the method's mean gradient at the reference. For PPO three times: with a critic that says 0, and with the two critics at their best:
# the table that is right about what is still to be *earned*, and the same with 1 for every *ab* that has been.


# %%
def right_critic(logits: jax.Array) -> np.ndarray:
    """The mean of what is still to be earned, KL price included, for the policy with these logits. [T, 3]"""
    log_pi, log_ref = (np.asarray(jax.nn.log_softmax(x), np.float64) for x in (logits, REFERENCE["logits"]))
    values, later = np.zeros((T, 3)), np.full(3, -PENALTY)
    pair = np.zeros((3, 3))
    pair[A, B] = 1.0
    for t in reversed(range(T)):
        gain = pair + np.where(np.arange(3) == EOS, 0.0, later)[None] - KL_COEF * (log_pi[t] - log_ref[t])
        values[t] = later = (np.exp(log_pi[t]) * gain).sum(axis=1)
    return values


def best_table() -> np.ndarray:
    """Logits of π* by backward induction (notebook 8, exercise 1)."""
    log_ref, later = np.asarray(jax.nn.log_softmax(REFERENCE["logits"]), np.float64), np.full(3, -PENALTY)
    logits, pair = np.zeros((T, 3, 3)), np.zeros((3, 3))
    pair[A, B] = 1.0
    for t in reversed(range(T)):
        logits[t] = log_ref[t] + (pair + np.where(np.arange(3) == EOS, 0.0, later)[None]) / KL_COEF
        later = KL_COEF * np.log(np.exp(logits[t]).sum(axis=1))
    return logits


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0, None))  # keys
def policy_gradient(params: dict[str, jax.Array], key: jax.Array, method: jax.Array) -> jax.Array:
    """The ascent direction of the logits from one batch."""
    return -jax.grad(loss)(params, *experience(params, key, method))["logits"].reshape(-1)


best_logits = jnp.asarray(best_table(), jnp.float32)
cases = {  # Which line; is the table right; does it count.
    "REINFORCE": (0, False, False),
    "RLOO": (1, False, False),
    "GRPO": (2, False, False),
    "PPO, critic 0": (3, False, False),
    "PPO, table right": (3, True, False),
    "PPO, counting": (4, True, True),
}
noise, mean_gradients = {}, {}
for name, (method, right, counts) in cases.items():
    found = []
    for logits in (REFERENCE["logits"], best_logits):
        values = jnp.asarray(right_critic(logits), jnp.float32) if right else jnp.zeros((T, 3))
        at = {"logits": logits, "values": values, "per_ab": jnp.ones(()), "counts": jnp.float32(counts)}
        found.append(np.asarray(policy_gradient(at, jax.random.split(jax.random.key(9), 300), method)))
    mean_gradients[name] = found[0].mean(axis=0)
    unit = np.linalg.norm(mean_gradients[name])
    noise[name] = [np.sqrt(x.var(axis=0).sum()) / unit for x in found]
    print(f"{name:18s} noise at the reference {noise[name][0]:.3f}, at π* {noise[name][1]:.3f}")

# %% [markdown]
# ## The picture
#
# Left and middle: the distance to $\pi^*$, mean of three seeds. (Below $10^{-6}$ single precision cannot tell; that RLOO leaves it again is Adam, which
# divides by the size of gradients that have become tiny.) Right: the noise just measured.

# %% caption="Left and middle: distance to the best policy over the updates for four algorithms, with one and with four steps on each batch. Right: bars for the noise of their gradients."
figure, (one, four, bars) = plt.subplots(1, 3, figsize=(13, 4.4), width_ratios=[1, 1, 1.1], layout="constrained")
looks = dict(
    zip(LINES, (("C2", ":"), ("C0", "-"), ("C1", "--"), ("black", "-."), ("C3", (0, (6, 1, 1, 1, 1, 1)))), strict=True)
)
for axis, (epochs, path) in zip((one, four), paths.items(), strict=True):
    for m, (name, (color, style)) in enumerate(looks.items()):
        axis.semilogy(np.maximum(path[:, m].mean(axis=0), 1e-6), linestyle=style, color=color, linewidth=2, label=name)
    axis.set(xlabel="update (64 responses each)", ylim=(5e-7, 3))
    axis.set_title(f"{epochs} step{'s' * (epochs > 1)} on each batch")
one.set_ylabel("KL(π‖π*), nats")
one.legend()
rows = np.arange(len(cases))
bars.barh(
    rows - 0.2, [x[0] for x in noise.values()], 0.38, color="lightgray", edgecolor="black", label="at the reference"
)
bars.barh(rows + 0.2, [x[1] for x in noise.values()], 0.38, color="C0", edgecolor="black", label="at π*")
bars.set_yticks(rows, noise)
bars.invert_yaxis()
bars.set(xlabel="multiples of the mean gradient at the reference", title="Noise of the gradient", xlim=(0, 0.75))
bars.legend(loc="lower right")
plt.show()

# %% [markdown]
# What can be read off:
#
# - **At first they are alike.** Far from the optimum the gradient counts for more than its noise, and Adam makes similar steps of all.
# - **REINFORCE never comes to rest.** At $\pi^*$ it multiplies every token by $\kappa \log Z$: a mean of zero, but not zero. RLOO subtracts just that, so **its
#   noise vanishes where nothing is left to learn**.
# - **GRPO divides a vanishing spread by itself.** Within a group it is RLOO's direction in a unit of its own, so near the optimum it makes large steps
#   of small differences, as whitening did in notebook 7. With one step per batch this hardly shows, with four it does.
# - **PPO is as good as what its critic can see.** The table takes every *ab* of the past for news, and keeps a noise that no learning
#   removes; it comes to rest hardly better than REINFORCE. With one number more, for what has been said, PPO is as exact as RLOO, and at the
#   start its gradient is the least noisy of all: only a critic can tell *which* token it was.
# - **Four steps per batch are faster.** Who has noise left pays for it with a higher floor.
#
# Which one, then? Groups need no second network and cannot be short-sighted, but they need several responses to the same prompt, and
# all tokens of a response share one advantage. A critic needs one response per prompt, tells tokens apart, which counts for more the longer responses
# are, and must be able to see what the score depends on. A value head on a language model reads the whole text; a table does not.
#
# ## Checks

# %%
for name, value in by_hand.items():
    np.testing.assert_allclose(library[name], value, atol=1e-5)
np.testing.assert_allclose(jnp.exp(best_logprobs).sum(), 1.0, rtol=1e-5)
assert distance(REFERENCE | {"logits": best_logits}) < 1e-5
logprobs_at_best = judge(REFERENCE | {"logits": best_logits}, *everything)[0]
paid_at_best = all_scores - KL_COEF * (logprobs_at_best - ref_tokens).sum(axis=1)
np.testing.assert_allclose(paid_at_best, maximum, atol=1e-4)  # Every response is paid κ log Z.
final = {epochs: path[:, :, 150:].mean(axis=(0, 2)) for epochs, path in paths.items()}
exact = [list(LINES).index(name) for name in ("RLOO", "PPO, counting")]
restless = [list(LINES).index(name) for name in ("REINFORCE", "PPO")]
assert np.all(final[1] < 0.03) and np.all(final[4] < 0.08)
for epochs in (1, 4):
    assert final[epochs][exact].max() < 0.05 * final[epochs][restless].min()
assert final[4][2] > 10 * final[4][exact].max()  # GRPO with four steps.
assert np.ptp(paths[1][:, :, 10].mean(axis=0)) < 0.1
assert max(noise["RLOO"][1], noise["PPO, counting"][1]) < 1e-3
assert min(noise["REINFORCE"][1], noise["PPO, table right"][1]) > 0.1
assert min(noise, key=lambda name: noise[name][0]) == "PPO, counting"

# %% [markdown]
# ## Exercises
#
# 1. Which of the six mean gradients at the reference are the true gradient of the objective, and which is not even meant to be?
# 2. Two prompts: after one the responses are paid 0, 0, 0, 1, after the other 0, 0, 0, 0.01. How much does each weigh in the gradient
#    under RLOO, how much under GRPO? When is that good, when not? Before that, write RLOO with the group's mean alone, without
#    looking at the others: fill in `rloo_from_mean`.
# 3. GRPO's paper does not pay the KL in the reward; it adds $\kappa$ times k3, token by token, to the *loss*. Where does that policy come to rest? Use
#    exact gradients, over all 63 responses, and compare with k1 in the reward and with k2 in the loss, per token and of the whole response.


# %%
def rloo_from_mean(paid: np.ndarray) -> np.ndarray:
    """RLOO's advantages of one group [n] from `paid`, its length and its mean. Exercise 2."""
    raise NotImplementedError("your turn")


def asserts_2(rloo_from_mean) -> None:
    np.testing.assert_allclose(rloo_from_mean(paid), by_hand["RLOO"])
    for size in (2, 5):
        some = np.random.default_rng(size).normal(size=size)
        others = np.array([some[i] - np.delete(some, i).mean() for i in range(size)])
        np.testing.assert_allclose(rloo_from_mean(some), others, atol=1e-9)


check(rloo_from_mean, asserts_2)

# %% [markdown]
# **1.** REINFORCE and RLOO: a baseline that does not depend on the response itself changes no mean (notebook 1). PPO with the critic that counts and
# is right: GAE's bias comes from the critic's errors, and there are none. With the other two critics and $\lambda = 0.95$ a part of the reward at the end is lost on
# its way to the first tokens: biased. GRPO's gradient has another length, being divided by the group's deviation, and because that deviation depends on the
# responses it is, strictly, another direction too; too little to be seen here.


# %%
def objective(logits: jax.Array) -> jax.Array:
    """J = E[s] − κ KL, exactly."""
    return maximum - KL_COEF * distance(REFERENCE | {"logits": logits})


true_gradient = np.asarray(jax.grad(objective)(REFERENCE["logits"])).reshape(-1)
length = np.linalg.norm(true_gradient)
for name, gradient in mean_gradients.items():
    off = np.linalg.norm(gradient - true_gradient) / length
    angle = np.degrees(np.arccos(gradient @ true_gradient / np.linalg.norm(gradient) / length))
    print(
        f"{name:18s} off by {off:.3f} of its length, {angle:4.1f}° in direction; chance alone {noise[name][0] / 300**0.5:.3f}"
    )
    honest = name in ("REINFORCE", "RLOO", "PPO, counting")
    assert honest == (off < 2.5 * noise[name][0] / 300**0.5)

# %% [markdown]
# **2.** Leaving oneself out of the mean makes the distance to it longer by $n/(n-1)$, and changes nothing else. RLOO leaves the scale: the second prompt weighs a hundredth. GRPO makes both alike. That is welcome where prompts are scored in units
# of their own, and a difference of 0.01 is as real as one of 1. It is not where the small difference is the reward model's noise: GRPO makes a full
# step of it.


# %%
def rloo_from_mean(paid: np.ndarray) -> np.ndarray:
    """The mean of all is (own + (n − 1) · mean of the others)/n."""
    return len(paid) / (len(paid) - 1) * (paid - paid.mean())


assert check(rloo_from_mean, asserts_2)
both = jnp.array([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.01]])
plain, standardised = jax.vmap(leave_one_out_advantages)(both), jax.vmap(group_advantages)(both)
print("RLOO", np.round(plain[:, 3], 4), "GRPO", np.round(standardised[:, 3], 4))
np.testing.assert_allclose(plain[0], 100 * plain[1], rtol=1e-4)
np.testing.assert_allclose(standardised[0], standardised[1], rtol=1e-3)

# %% [markdown]
# **3.** Only k1 in the reward and k2 of the whole response have the gradient of the KL between *responses* (notebook 2), so only they rest at
# $\pi^*$. Per token, k3 and k2 do not see that a token decides which states come later: the policy rests 0.07 and 0.11 nats away from $\pi^*$, however
# long it learns and however many samples it has.


# %%
def exact_loss(logits: jax.Array, kind: str) -> jax.Array:
    """Samples are all 63 responses, weighed by π; the weights are held fixed, as for sampled batches."""
    logprobs = judge(REFERENCE | {"logits": logits}, *everything)[0]
    whole, ref_whole = logprobs.sum(axis=1), ref_tokens.sum(axis=1)
    kl = {
        "k1 in the reward": jax.lax.stop_gradient(whole - ref_whole) * whole,
        "k3 per token in the loss": kl_k3(logprobs, ref_tokens).sum(axis=1),
        "k2 per token in the loss": kl_k2(logprobs, ref_tokens).sum(axis=1),
        "k2 of the response in the loss": kl_k2(whole, ref_whole),
    }[kind]
    return -jax.lax.stop_gradient(jnp.exp(whole)) @ (all_scores * whole - KL_COEF * kl)


@functools.partial(jax.jit, static_argnames="kind")
def settle(kind: str) -> tuple[jax.Array, jax.Array]:
    """Where exact gradient descent ends: the logits, and the gradient that is left."""
    adam = optax.adam(optax.linear_schedule(0.05, 0.0, 1500))

    def step(carry, _):
        logits, opt_state = carry
        steps, opt_state = adam.update(jax.grad(exact_loss)(logits, kind), opt_state)
        return (logits + steps, opt_state), None

    (logits, _), _ = jax.lax.scan(step, (REFERENCE["logits"], adam.init(REFERENCE["logits"])), None, 1500)
    return logits, jnp.abs(jax.grad(exact_loss)(logits, kind)).max()


for kind in (
    "k1 in the reward",
    "k2 of the response in the loss",
    "k3 per token in the loss",
    "k2 per token in the loss",
):
    logits, left = settle(kind)
    away = float(distance(REFERENCE | {"logits": logits}))
    print(f"{kind:31s} rests {away:.4f} nats from π*, objective {objective(logits):.3f} of {maximum:.3f}")
    assert left < 1e-5
    assert away > 0.05 if "per token" in kind else away < 1e-4

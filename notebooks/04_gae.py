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
# # 4 · Advantages: which token deserves the credit?
#
# Notebook 3 pays every token, but the payment that matters, the score, comes at the very end. REINFORCE would multiply every
# token's $\nabla \log \pi(a_t)$ by everything that is paid from $t$ on, and so praise *the* and *of* for a good film that was named
# twelve tokens later. **How much better than expected was this one token?**
#
# "Expected" needs somebody who expects. The **value function**, or **critic**, $V_t$, predicts, from what was said before token $t$, the sum
# of the rewards still to come. It is a second output of the policy's network, and it is learnt too (notebook 5). With it, each token has a
# surprise, the **temporal-difference error**:
#
# $$\delta_t = r_t + \gamma V_{t+1} - V_t$$
#
# what was paid, plus what is promised afterwards, minus what was promised before. $\gamma$ discounts the future; in language it is 1, since a
# response has an end. Beyond the end nothing is promised: $V_{T+1} = 0$.
#
# The **advantage** $A_t$ of a token is how much better things became through it. Two extremes:
#
# - $A_t = \delta_t$ believes the critic after one token. Little noise, but **biased**: what the critic has not understood, nobody is credited for.
# - $A_t = \sum_{u \geq t} r_u - V_t$ believes only what was paid. Unbiased, but every later token's luck is in it.
#
# **Generalised advantage estimation** ([Schulman et al. 2016](https://arxiv.org/abs/1506.02438)) goes from the first, $\lambda = 0$, to the second, $\lambda = 1$:
#
# $$A_t = \delta_t + \gamma\lambda\, A_{t+1} = \sum_{k \geq 0} (\gamma\lambda)^k\, \delta_{t+k}$$
#
# Believing the critic after $k$ tokens is something in between, $A_t^{(k)} = r_t + \ldots + r_{t+k-1} + V_{t+k} - V_t$ for $\gamma = 1$, and GAE is a weighted mean of these: weights
# $(1 - \lambda)\, \lambda^{k-1}$, and for the last one, which reaches the end of the response, all the weight that remains (exercise 1).
#
# This is line 6 of [the PPO box](../docs/algorithms/ppo.md).

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from rlhf_jax.equations.gae import generalized_advantage_estimation, multi_turn_generalized_advantage_estimation
from rlhf_jax.equations.masked import masked_whiten
from rlhf_jax.lessons import check

np.set_printoptions(precision=4, suppress=True)
plt.style.use("seaborn-v0_8-colorblind")  # Colours that everybody can tell apart.

# %% [markdown]
# ## By hand
#
# Two responses of three tokens. One walk backwards through each is all there is.

# %%
rewards = np.array([[0.0, 0.0, 1.0], [-0.1, 0.2, 0.0]])
values = np.array([[0.5, 0.4, 0.3], [0.1, 0.0, -0.1]])
gamma, gae_lambda = 1.0, 0.95

advantages_by_hand = np.zeros_like(rewards)
for b in range(2):
    next_value, next_advantage = 0.0, 0.0
    for t in (2, 1, 0):
        delta = rewards[b, t] + gamma * next_value - values[b, t]
        next_advantage = delta + gamma * gae_lambda * next_advantage
        next_value = values[b, t]
        advantages_by_hand[b, t] = next_advantage

gae = functools.partial(generalized_advantage_estimation, gamma=gamma, gae_lambda=gae_lambda)
values_and_end = jnp.pad(jnp.asarray(values, jnp.float32), ((0, 0), (0, 1)))
advantages = jax.vmap(gae)(jnp.asarray(rewards, jnp.float32), values_and_end)
print("by hand\n", np.round(advantages_by_hand, 5))
print("library\n", np.round(advantages, 5))

# %% [markdown]
# $G_t = A_t + V_t$ is called the **return** of token $t$: a better guess of the rest of the rewards than $V_t$ was, so it is what the critic is
# trained to predict.
#
# Before use, advantages are **whitened**: minus their mean, divided by their standard deviation, over all real tokens of the whole batch
# at once. The step size then does not depend on the unit of the reward.

# %%
mask = jnp.ones((2, 3), bool)
print("returns\n", np.round(advantages + values, 5))
print("whitened\n", np.round(masked_whiten(advantages, mask), 3))

# %% [markdown]
# ## The picture: the λ fan, and what it trades
#
# A made-up game in which the truth is known. Each of twelve tokens brings luck $x_t$, of deviation 1, and the sum of all luck is paid at the
# end, so token $t$'s true advantage is $x_t$. The critic is mediocre: of all luck so far it has noticed 60 %, and its
# numbers tremble a little.
#
# Left: one response, estimated with $\lambda$ from 0 to 1. Middle: over many responses, which share of the first token's luck it
# is credited with (what lacks to 1 is the bias), and the noise around that, in the unit of the luck. Right: the same for all tokens at
# $\lambda = 0.95$, the usual choice. The earlier a token, the less of its own luck it is credited with and the more of the others'.

# %% try="lambda" caption="Left: advantages of one response for λ from 0 to 1. Middle: with larger λ the first token is credited with more of its own luck and with more noise. Right: the same for all tokens at λ = 0.95."
T = 12
random = np.random.default_rng(1)


def play(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Luck [n, T], rewards [n, T] and the mediocre critic's values [n, T+1]."""
    luck = random.normal(size=(n, T))
    rewards = np.zeros((n, T))
    rewards[:, -1] = luck.sum(axis=1)
    so_far = np.cumsum(luck, axis=1) - luck
    values = 0.6 * so_far + 0.3 * random.normal(size=(n, T))
    return luck, rewards, np.pad(values, ((0, 0), (0, 1)))


@jax.jit
def all_advantages(rewards: jax.Array, values: jax.Array, gae_lambda: jax.Array) -> jax.Array:
    """Every response's advantages, for one λ."""
    return jax.vmap(functools.partial(generalized_advantage_estimation, gamma=1.0, gae_lambda=gae_lambda))(
        rewards, values
    )


lambdas = np.linspace(0, 1, 11)
luck, game_rewards, game_values = (jnp.asarray(x, jnp.float32) for x in play(20_000))
estimates = np.stack([all_advantages(game_rewards, game_values, jnp.float32(x)) for x in lambdas])
luck = np.asarray(luck)
credit = (estimates * luck).mean(axis=1) / (luck**2).mean(axis=0)
noise = (estimates - credit[:, None] * luck).std(axis=1)

figure, (fan, trade, along) = plt.subplots(1, 3, figsize=(12.5, 4.2), layout="constrained")
for row, gae_lambda_ in enumerate(lambdas):
    fan.plot(range(1, T + 1), estimates[row, 0], color=plt.cm.viridis(gae_lambda_), linewidth=1.6)
fan.plot(range(1, T + 1), luck[0], "k.", markersize=10, label="true advantage")
fan.set(xlabel="token t", ylabel="advantage, in units of luck", title="The λ fan of one response")
fan.legend()
scale = plt.cm.ScalarMappable(plt.Normalize(0, 1), "viridis")
figure.colorbar(scale, ax=fan, label="λ")
trade.plot(lambdas, credit[:, 0], "o-", color="C0", label="credit that arrives (unbiased: 1)")
trade.plot(lambdas, noise[:, 0], "s-", color="C2", label="noise (standard deviation)")
trade.axhline(1, color="C0", linewidth=0.8, linestyle=":")
trade.set(
    xlabel="λ",
    ylabel="credit, a share; noise, in units of luck",
    title="First token: bias against noise",
    ylim=(0, None),
)
trade.legend()
chosen = all_advantages(game_rewards, game_values, jnp.float32(0.95))
chosen_credit = (np.asarray(chosen) * luck).mean(axis=0) / (luck**2).mean(axis=0)
along.plot(range(1, T + 1), chosen_credit, "o-", color="C0", label="credit that arrives")
along.plot(range(1, T + 1), (np.asarray(chosen) - chosen_credit * luck).std(axis=0), "s-", color="C2", label="noise")
along.axhline(1, color="C0", linewidth=0.8, linestyle=":")
along.set(xlabel="token t", title="All tokens at λ = 0.95", ylim=(0, None))
along.legend()
plt.show()

# %% [markdown]
# ## A sentence as a heat map
#
# A recommender's turn. The top row is what a critic thought before each token (numbers invented for this picture: its hopes fall at the
# hesitant opening, rise with the film, and fall again when the reply begins to repeat itself). The user was moderately
# pleased: score 0.6. Red tokens were worse than expected, blue ones better.
#
# At $\lambda = 0$ each token answers for the change of opinion it caused: *Heat* shines, the second *good* is blamed. At
# $\lambda = 1$ the end reaches everybody, and neighbours look alike.

# %% caption="A recommender's sentence as a heat map: what the critic thought before each token (bars), and advantages from λ = 0 to λ = 1 (rows); red is worse than expected, blue better."
SENTENCE = [
    "Well", ",", "I", "think", "you", "should", "watch", "Heat", ",", "it", "is", "good", "and", "good", "<eos>",
]  # fmt: skip
OPINION = [0.30, 0.20, 0.20, 0.15, 0.15, 0.25, 0.35, 0.40, 0.85, 0.85, 0.85, 0.85, 0.95, 0.90, 0.55]
sentence_rewards = jnp.zeros(len(SENTENCE)).at[-1].set(0.6)
sentence_values = jnp.array([*OPINION, 0.0])
rows = [0.0, 0.5, 0.8, 0.95, 1.0]
heat = np.stack(
    [generalized_advantage_estimation(sentence_rewards, sentence_values, gamma=1.0, gae_lambda=x) for x in rows]
)

figure, (top, bottom) = plt.subplots(2, 1, figsize=(12, 4.4), height_ratios=[1, 3], layout="constrained", sharex=True)
top.step(range(len(SENTENCE)), OPINION, where="mid", color="black")
top.axhline(0.6, color="C0", linestyle=":", label="score")
top.set(ylabel="V before\nthe token", ylim=(0, 1.15))
top.legend(loc="upper left")
limit = np.abs(heat).max()
image = bottom.imshow(heat, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
for row in range(len(rows)):
    for t in range(len(SENTENCE)):
        dark = abs(heat[row, t]) > 0.65 * limit
        label = f"{np.round(heat[row, t], 2) + 0.0:+.2f}"
        bottom.text(t, row, label, ha="center", va="center", fontsize=8, color="white" if dark else "#111111")
bottom.set_yticks(range(len(rows)), [f"λ = {x}" for x in rows])
bottom.set_xticks(range(len(SENTENCE)), SENTENCE)
figure.colorbar(image, ax=bottom, label="advantage, score units")
plt.show()

# %% [markdown]
# ## Checks

# %%
expected = [[0.43675, 0.565, 0.7], [-0.01475, 0.195, 0.1]]
np.testing.assert_allclose(advantages_by_hand, expected, atol=1e-9)
np.testing.assert_allclose(advantages, expected, atol=1e-6)
np.testing.assert_allclose(advantages + values, [[0.93675, 0.965, 1.0], [0.08525, 0.195, 0.0]], atol=1e-6)
whitened = masked_whiten(advantages, mask)
np.testing.assert_allclose([whitened.mean(), whitened.std()], [0, 1], atol=1e-4)
assert credit[0, 0] < 0.7 and abs(credit[-1, 0] - 1) < 0.2
assert noise[-1, 0] > 5 * noise[0, 0]

# %% [markdown]
# ## Exercises
#
# 1. Show that $\lambda = 1$, $\gamma = 1$ is "sum of the remaining rewards minus $V_t$", and check it. Which $\lambda$ would you take with a perfect critic?
#    Check also that GAE is the weighted mean of the $A_t^{(k)}$: what goes wrong if the last one does not get the weight that remains?
#    Fill in `mean_of_steps`.
# 2. In a conversation the user speaks in between. Those tokens are in the text, but the policy did not choose them. Skip
#    them: what should the advantages of the policy's own tokens be? (`multi_turn_generalized_advantage_estimation`.)
# 3. Somebody whitens each response by itself instead of the whole batch. Find two responses for which that turns a good token into a
#    bad one.


# %%
def mean_of_steps(rewards: np.ndarray, values: np.ndarray, gae_lambda: float) -> float:
    """A_1 as the weighted mean of the A_1^(k), at γ = 1; rewards [T], values [T+1], the last of which is 0. Exercise 1."""
    raise NotImplementedError("your turn")


def asserts_1(mean_of_steps) -> None:
    made_up = np.random.default_rng(4)
    for length in (1, 3, 7):
        paid, opinion = made_up.normal(size=length), np.append(made_up.normal(size=length), 0.0)
        for gae_lambda in (0.0, 0.5, 0.95, 1.0):
            arrays = jnp.asarray(paid, jnp.float32), jnp.asarray(opinion, jnp.float32)
            expected = generalized_advantage_estimation(*arrays, gamma=1.0, gae_lambda=gae_lambda)[0]
            np.testing.assert_allclose(mean_of_steps(paid, opinion, gae_lambda), expected, atol=1e-5)


check(mean_of_steps, asserts_1)

# %% [markdown]
# **1.** With $\lambda = \gamma = 1$ the sum of the $\delta$ telescopes: each $V_{t+k}$ comes once with plus and once with minus, only $-V_t$ and the end,
# 0, remain. A perfect critic's $\delta_t$ *is* the advantage, so take $\lambda = 0$: anything more only adds noise.
#
# The weights $(1 - \lambda)\, \lambda^{k-1}$ sum to 1 over infinitely many $k$ only. After the end $A_t^{(k)}$ does not change any more; all of those are the last one, so it has their
# weight too, $\lambda^{n-1}$ in all where $n$ tokens are left. Without it the advantages near the end would be far too small.


# %%
def mean_of_steps(rewards: np.ndarray, values: np.ndarray, gae_lambda: float) -> float:
    """A^(k) looks k steps ahead and trusts the critic from there; the last one looks to the end and gets what is left."""
    n = len(rewards)
    steps = [rewards[:k].sum() + values[k] - values[0] for k in range(1, n + 1)]
    weights = (1 - gae_lambda) * gae_lambda ** np.arange(n)
    weights[-1] = gae_lambda ** (n - 1)
    return weights @ np.array(steps)


assert check(mean_of_steps, asserts_1)
all_the_way = generalized_advantage_estimation(sentence_rewards, sentence_values, gamma=1.0, gae_lambda=1.0)
np.testing.assert_allclose(all_the_way, 0.6 - np.array(OPINION), atol=1e-6)
perfect = np.pad(np.cumsum(luck, axis=1) - luck, ((0, 0), (0, 1)))
one_step = all_advantages(game_rewards, jnp.asarray(perfect), jnp.float32(0.0))
by_k = [rewards[0, :k].sum() + (values[0, k] if k < 3 else 0.0) - values[0, 0] for k in (1, 2, 3)]
weights = np.array([1 - gae_lambda, (1 - gae_lambda) * gae_lambda, gae_lambda**2])
cut_off = np.array([1 - gae_lambda, (1 - gae_lambda) * gae_lambda, (1 - gae_lambda) * gae_lambda**2])
print(f"first token: mean of {np.round(by_k, 2)} with weights {np.round(weights, 4)} = {weights @ by_k:.5f};", end=" ")
print(f"without the rest, {cut_off @ by_k:.5f}")
np.testing.assert_allclose(weights @ by_k, advantages[0, 0], rtol=1e-5)
print(f"largest error of a perfect critic at λ = 0: {np.abs(one_step - luck).max():.1e}")
np.testing.assert_allclose(one_step, luck, atol=1e-4)

# %% [markdown]
# **2.** The same as if the user's tokens had been cut out: they are skipped, not discounted, and what a critic thinks in the
# middle of the user's sentence is nobody's merit.

# %%
long_rewards = jnp.array([0.1, 9.0, 9.0, 0.0, 1.0])
long_values = jnp.array([0.5, 9.0, 9.0, 0.4, 0.3, 0.0])
chosen_by_policy = jnp.array([True, False, False, True, True])
skipping = multi_turn_generalized_advantage_estimation(
    long_rewards, long_values, chosen_by_policy, gamma=0.9, gae_lambda=0.8
)
cut = generalized_advantage_estimation(
    jnp.array([0.1, 0.0, 1.0]), jnp.array([0.5, 0.4, 0.3, 0.0]), gamma=0.9, gae_lambda=0.8
)
print(np.round(skipping, 4), np.round(cut, 4))
np.testing.assert_allclose(skipping[chosen_by_policy], cut, atol=1e-6)

# %% [markdown]
# **3.** A response all of whose tokens were good, one of them a little less so. By itself that one is below the mean; beside a bad
# response it is well above it. Whitening small parts of the batch, each by itself, does the same in a milder form.

# %%
batch = jnp.array([[1.0, 0.8, 1.0], [-1.0, -0.9, -1.1]])
together = masked_whiten(batch, jnp.ones((2, 3), bool))
alone = jax.vmap(masked_whiten)(batch, jnp.ones((2, 3), bool))
print(f"second token of the good response: {together[0, 1]:+.2f} in the batch, {alone[0, 1]:+.2f} alone")
assert together[0, 1] > 0 > alone[0, 1]

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
# # 5 · PPO's clip: how far may one batch carry us?
#
# We have advantages $A_t$ for a batch of sampled responses. The policy gradient $E[A_t \nabla \log \pi(a_t)]$ allows *one* step: after it
# the policy is another one, and the samples are no longer its own. But sampling text is the expensive part. **How
# can one batch be used for several steps without running away from the policy that sampled it?**
#
# Call that policy $\pi_\text{old}$. The **importance ratio** says how much likelier a sampled token has become since:
#
# $$\rho_t = \frac{\pi(a_t)}{\pi_\text{old}(a_t)} = \exp\left( \log \pi(a_t) - \log \pi_\text{old}(a_t) \right)$$
#
# Weighted by it, samples of the old policy stand for the new one: at one position, $E_\text{old}[\rho A] = E_\pi[A]$. The **surrogate** $\rho A$ may be maximised
# for several steps, at a price: the weights grow wild as the policies part, and along a response the weight is not quite the right one (below). **Proximal policy optimisation** ([Schulman et al. 2017](https://arxiv.org/abs/1707.06347))
# takes away the reason to part. As a loss to be minimised, per token:
#
# $$L = \max\left( -A\,\rho,\; -A\,\mathrm{clip}(\rho, 1-\varepsilon, 1+\varepsilon) \right), \qquad \varepsilon = 0.2$$
#
# A good token ($A > 0$) gains nothing from being made more than $1+\varepsilon$ times likelier, a bad one nothing from being made less than
# $1-\varepsilon$ times as likely. This is line 7a of [the PPO box](../docs/algorithms/ppo.md).

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from rlhf_jax.equations.ppo import (
    approx_kl,
    clipped_surrogate,
    clipped_value_loss,
    importance_ratio,
    surrogate_clip_fraction,
)
from rlhf_jax.lessons import check

np.set_printoptions(precision=4, suppress=True)
plt.style.use("seaborn-v0_8-colorblind")  # Colours that everybody can tell apart.

# %% [markdown]
# ## By hand
#
# Three tokens: a good one that became likelier, a bad one that became rarer, a good one that has not moved.

# %%
logprobs = np.array([-1.0, -2.0, -0.5])
old_logprobs = np.array([-1.2, -1.5, -0.5])
advantages = np.array([1.0, -1.0, 0.5])

ratio_by_hand = np.exp(logprobs - old_logprobs)
loss_by_hand = np.zeros(3)
for t in range(3):
    clipped = min(max(ratio_by_hand[t], 0.8), 1.2)
    loss_by_hand[t] = max(-advantages[t] * ratio_by_hand[t], -advantages[t] * clipped)

new, old, adv = (jnp.asarray(x, jnp.float32) for x in (logprobs, old_logprobs, advantages))
ratio = importance_ratio(new, old)
loss = clipped_surrogate(new, old, adv, clip_eps=0.2)
is_clipped = surrogate_clip_fraction(new, old, adv, clip_eps=0.2)
for t in range(3):
    print(
        f"A = {advantages[t]:+.1f}  ρ = {ratio_by_hand[t]:.4f}  loss {loss_by_hand[t]:+.4f} by hand, "
        f"{loss[t]:+.4f} by the library, clipped: {bool(is_clipped[t])}"
    )
print(f"approximate KL between the two policies, k2: {approx_kl(new, old).mean():.4f} nats per token")

# %% [markdown]
# ## The picture: the clipping landscape
#
# Left and middle: the loss against the ratio for a good and for a bad token. Where it is flat, the token has no say. Note the
# asymmetry: a bad token that became *likelier* is never let off, nor a good one that became rarer. The clip removes the reason to go
# on, never the reason to come back.
#
# Right: the whole plane of ratio and advantage. Colour is the push on the token's log-probability, $A\rho$ or nothing; white is
# zero. Every first step starts on the vertical line $\rho = 1$, where the push is $A$: the plain policy gradient.

# %% try="clip" caption="Left and middle: the clipped loss against the ratio, for a good and for a bad token. Right: the push on the log-probability over ratio and advantage; it is zero where the clip acts."
ratios = 1 + 0.0047 * np.arange(-127, 171)  # No point falls on a kink, where the gradient is ambiguous.
figure, axes = plt.subplots(1, 3, figsize=(12.5, 4.2), layout="constrained")
for axis, advantage, name in ((axes[0], 1.0, "Good token, A = 1"), (axes[1], -1.0, "Bad token, A = −1")):
    constant = jnp.full(ratios.shape, advantage)
    curve = clipped_surrogate(jnp.log(jnp.asarray(ratios)), jnp.zeros(ratios.shape), constant, clip_eps=0.2)
    axis.plot(ratios, -advantage * ratios, "--", color="gray", label="−Aρ, not clipped")
    axis.plot(ratios, curve, color="C0", linewidth=2.5, label="PPO's loss")
    axis.axvspan(0.8, 1.2, color="C2", alpha=0.12, label="1 ± ε")
    axis.plot([1], [-advantage], "ko", label="before the first step")
    axis.set(xlabel="ratio ρ", ylabel="loss", title=name, xticks=(0.4, 0.8, 1.0, 1.2, 1.6))
    axis.legend(loc="upper right" if advantage > 0 else "upper left")

grid_advantages = np.linspace(-2, 2, 201)
grid_ratio, grid_advantage = np.meshgrid(ratios, grid_advantages)


def total_loss(grid_logprobs: jax.Array) -> jax.Array:
    """Its gradient is the per-token one: each entry of the sum depends on its own log-probability."""
    return clipped_surrogate(
        grid_logprobs, jnp.zeros(grid_ratio.shape), jnp.asarray(grid_advantage, jnp.float32), clip_eps=0.2
    ).sum()


push = -jax.grad(total_loss)(jnp.log(jnp.asarray(grid_ratio, jnp.float32)))
image = axes[2].pcolormesh(ratios, grid_advantages, push, cmap="RdBu", vmin=-3.6, vmax=3.6, rasterized=True)
axes[2].axvline(1, color="black", linewidth=1)
axes[2].text(1.5, 1.0, "no push:\ngood, and likelier\nalready", ha="center", va="center", color="#111111")
axes[2].text(0.6, -1.0, "no push:\nbad, and\nrarer\nalready", ha="center", va="center", color="#111111")
axes[2].set(
    xlabel="ratio ρ", ylabel="advantage A", title="Push on the log-probability", xticks=(0.4, 0.8, 1.0, 1.2, 1.6)
)
figure.colorbar(image, ax=axes[2], label="push: Aρ, or 0 where the clip acts")
plt.show()

# %% [markdown]
# ## Several steps on one batch
#
# A policy over four words, sixty-four samples, 40 gradient steps on the *same* samples. Without the clip the policy is driven ever
# further by what may have been luck; with it, one sampled word after the other falls silent, and the policy comes to rest near
# $\rho = 1 \pm \varepsilon$. (It may overshoot a little: the clip takes away the push, it does not pull back.)

# %% caption="Ratios of four words over 40 steps on one batch. Without the clip they run away, with it they come to rest near the edges of the range."
random = np.random.default_rng(0)
words = jnp.asarray(random.integers(0, 4, 64))
luck = jnp.asarray(random.normal(size=64) + np.array([0.5, 0.0, 0.0, -0.5])[np.asarray(words)], jnp.float32)
start = jnp.zeros(4)


def batch_loss(logits: jax.Array, clip_eps: jax.Array) -> jax.Array:
    """Mean loss over the samples; π_old is the uniform policy they were drawn from."""
    sampled = jax.nn.log_softmax(logits)[words]
    return clipped_surrogate(sampled, jnp.full(64, -jnp.log(4.0)), luck, clip_eps=clip_eps).mean()


step = jax.jit(lambda logits, clip_eps: logits - 0.3 * jax.grad(batch_loss)(logits, clip_eps))
paths = {}
for label, clip_eps in (("clipped, ε = 0.2", 0.2), ("not clipped", jnp.inf)):
    logits, path = start, [start]
    for _ in range(40):
        logits = step(logits, jnp.float32(clip_eps))
        path.append(logits)
    paths[label] = np.exp(jax.nn.log_softmax(jnp.stack(path), axis=-1)) / 0.25

figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained", sharey=True)
for axis, (label, path) in zip(axes, paths.items(), strict=True):
    axis.axhspan(0.8, 1.2, color="C2", alpha=0.12, label="1 ± ε")
    for v, style in enumerate(("-", "--", "-.", ":")):
        axis.plot(path[:, v], style, linewidth=2, label=f"word {v + 1}")
    axis.set(xlabel="gradient step on the same batch", ylabel="ratio ρ of each word", title=label)
    axis.legend()
plt.show()

# %% [markdown]
# ## Two tokens: one more reason to stay near
#
# $E_\text{old}[\rho A] = E_\pi[A]$ holds at *one* position. Of a response of two tokens the surrogate weighs the second by its own ratio, but the first words before
# it still come from $\pi_\text{old}$. Nine responses, three words, a score for each: what the surrogate promises, and what is really
# gained, as the policy walks away from $\pi_\text{old}$ in one direction. Advantages are exact here; $A_1$ is how much the first word changes the expected
# score, $A_2$ what the second word adds.

# %% caption="Left: what the surrogate promises and what is really gained part as the policy walks away; here it promises too little. Right: on log axes the error is of second order in the step."
random = np.random.default_rng(16)
old_logits, direction = random.normal(size=(2, 4, 3))  # Row 0: first word. Rows 1–3: second word after each first one.
nine_scores = random.normal(size=(3, 3))


def nine(step: float) -> tuple[np.ndarray, np.ndarray]:
    """π(first) as a column, π(second | first), so many steps away from π_old."""
    p = np.exp(old_logits + step * direction)
    p /= p.sum(axis=1, keepdims=True)
    return p[0][:, None], p[1:]


def promised_and_gained(step: float) -> tuple[float, float]:
    """E_old[ρ_1 A_1 + ρ_2 A_2], and E_π[s] − E_old[s]."""
    (old_1, old_2), (new_1, new_2) = nine(0.0), nine(step)
    after_first = (old_2 * nine_scores).sum(axis=1, keepdims=True)
    advantage_1, advantage_2 = after_first - (old_1 * after_first).sum(), nine_scores - after_first
    surrogate = (old_1 * old_2 * (new_1 / old_1 * advantage_1 + new_2 / old_2 * advantage_2)).sum()
    return surrogate, (new_1 * new_2 * nine_scores).sum() - (old_1 * old_2 * nine_scores).sum()


walk = np.linspace(0, 1, 41)
promised, gained = np.transpose([promised_and_gained(step) for step in walk])
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
left.plot(walk, gained, color="black", label="gained: score of π − score of π_old")
left.plot(walk, promised, "--", color="C2", linewidth=2, label="promised by the surrogate")
left.set(xlabel="step away from π_old", ylabel="score units", title="What the surrogate promises")
left.legend()
right.loglog(walk[1:], np.abs(promised - gained)[1:], color="C2", linewidth=2, label="error of the surrogate")
right.loglog(
    walk[1:], np.abs(promised - gained)[1] * (walk[1:] / walk[1]) ** 2, ":", color="black", label="square of the step"
)
right.set(xlabel="step away from π_old", ylabel="score units", title="Half the step, a quarter of the error")
right.legend()
plt.show()
for step in (1.0, 0.1, 0.05):
    print("step {:.2f}: promised {:+.4f}, gained {:+.4f}".format(step, *promised_and_gained(step)))

# %% [markdown]
# In this direction the surrogate promises too little; in about half of all others it promises
# too much (draw another `direction` and see). Either way it can be believed near $\pi_\text{old}$ only.

# %% [markdown]
# ## The critic's loss
#
# The critic learns by squared error to the return $G = A + V_\text{old}$ (notebook 4). The released code of
# [Ziegler et al. 2019](https://arxiv.org/abs/1909.08593) clips it in the same spirit, and so does ours, line 7b:
#
# $$\frac{1}{2} \max\left( (V - G)^2,\; (\mathrm{clip}(V, V_\text{old} - \varepsilon_v, V_\text{old} + \varepsilon_v) - G)^2 \right)$$
#
# The whole loss of a minibatch is the mean over its real tokens of line 7a plus $c_v = 0.1$ times this, minus, if wanted, a bonus of $c_H$
# times the entropy, 7c, which keeps a policy undecided ($c_H = 0$ by default). A **minibatch** is a part of the sampled batch; an
# **epoch** is one pass over all of it. Four epochs of one minibatch, four steps, are the default.

# %%
values, old_values, returns = jnp.array([0.9, 0.1, -0.4]), jnp.array([0.5, 0.2, -0.5]), jnp.array([1.0, 0.0, 0.0])
value_loss = clipped_value_loss(values, old_values, returns, value_clip_eps=0.2)
kept_near = np.clip(values, old_values - 0.2, old_values + 0.2)
value_loss_by_hand = 0.5 * np.maximum((values - returns) ** 2, (kept_near - returns) ** 2)
print("value loss per token:", np.round(value_loss, 4), "by hand:", np.round(value_loss_by_hand, 4))

# %% [markdown]
# ## Checks

# %%
np.testing.assert_allclose(ratio, ratio_by_hand, rtol=1e-6)
np.testing.assert_allclose(loss, loss_by_hand, rtol=1e-6)
np.testing.assert_allclose(loss, [-1.2, 0.8, -0.5], atol=1e-6)
np.testing.assert_allclose(approx_kl(new, old).mean(), 0.048333, atol=1e-6)
np.testing.assert_allclose(value_loss, value_loss_by_hand, rtol=1e-6)
np.testing.assert_allclose(value_loss.mean(), 0.043333, atol=1e-6)
at_start = np.argmin(np.abs(ratios - 1))
np.testing.assert_allclose(push[:, at_start], grid_advantages, atol=1e-5)
assert np.ptp(paths["clipped, ε = 0.2"][-1]) < 0.5 * np.ptp(paths["not clipped"][-1])
errors = [p - g for p, g in map(promised_and_gained, (0.02, 0.01))]
np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.1)
assert gained[-1] > promised[-1] + 0.1

# %% [markdown]
# ## Exercises
#
# 1. Compute the gradient of the loss with respect to $\log \pi(a_t)$ at the four corners $\rho = 0.5$ or $1.5$, $A = 1$ or $-1$, first with pen and paper. Then
#    for every $\rho$ and $A$: fill in `slope`.
# 2. Show that for the very first step on a batch the clip plays no role: the gradient is that of the plain policy gradient, whatever
#    $\varepsilon > 0$ is.
# 3. A bad token has become ten times likelier in the meantime (other tokens' gradients can do that). What is its loss? A **dual
#    clip** ([Ye et al. 2020](https://arxiv.org/abs/1912.09729)) bounds it by $c|A|$ with, say, $c = 3$. What does it do to the gradient, and
#    which of the four corners does it touch? Fill in `dual_clipped`.


# %%
def slope(ratio: float, advantage: float, clip_eps: float) -> float:
    """The gradient of a token's loss with respect to log π(a), by a formula and not by `jax.grad`. Exercise 1."""
    raise NotImplementedError("your turn")


def asserts_1(slope) -> None:
    library = jax.grad(lambda l, a, eps: clipped_surrogate(l, jnp.zeros(()), a, clip_eps=eps))
    for clip_eps in (0.1, 0.2):
        for ratio in (0.5, 0.85, 1.0, 1.15, 1.5, 4.0):
            for advantage in (2.0, 0.5, -0.5, -2.0):
                expected = library(jnp.log(ratio), jnp.float32(advantage), jnp.float32(clip_eps))
                np.testing.assert_allclose(slope(ratio, advantage, clip_eps), expected, atol=1e-5)


check(slope, asserts_1)


# %%
def dual_clipped(ratio: float, advantage: float, clip_eps: float, bound: float) -> float:
    """PPO's loss of one token, and where the token is bad no more than `bound` times |A|. Exercise 3."""
    raise NotImplementedError("your turn")


def asserts_3(dual_clipped) -> None:
    for ratio in (0.5, 1.0, 1.5, 2.9, 3.1, 10.0):
        for advantage in (1.0, -0.3, -2.0):
            one = jnp.log(jnp.array([ratio])), jnp.zeros(1), jnp.array([advantage])
            expected = clipped_surrogate(*one, clip_eps=0.2, dual_clip=3.0)[0]
            np.testing.assert_allclose(dual_clipped(ratio, advantage, 0.2, 3.0), expected, rtol=1e-5)


check(dual_clipped, asserts_3)

# %% [markdown]
# **1.** $\partial(-A\rho)/\partial \log \pi = -A\rho$, or 0 where the clipped branch is the larger one. Only two corners are silent: good and likelier,
# bad and rarer.


# %%
def slope(ratio: float, advantage: float, clip_eps: float) -> float:
    """Silent is what is good and likelier already, or bad and rarer already."""
    silent = ratio > 1 + clip_eps if advantage > 0 else ratio < 1 - clip_eps
    return 0.0 if silent else -advantage * ratio


assert check(slope, asserts_1)
push_one = jax.grad(lambda l, a: clipped_surrogate(l, jnp.zeros(()), a, clip_eps=0.2))
corners = {(r, a): float(push_one(jnp.log(r), jnp.float32(a))) for r in (0.5, 1.5) for a in (1.0, -1.0)}
for (r, a), gradient in corners.items():
    print(f"ρ = {r}, A = {a:+.0f}: gradient {gradient + 0.0:+.2f}")
assert corners[1.5, 1.0] == 0 and corners[0.5, -1.0] == 0
np.testing.assert_allclose([corners[0.5, 1.0], corners[1.5, -1.0]], [-0.5, 1.5], rtol=1e-6)

# %% [markdown]
# **2.** Before the first step $\rho = 1$ exactly, which is inside the range, where clip does nothing; and $\nabla \rho = \rho \nabla \log \pi = \nabla \log \pi$. So the
# gradient is $-A \nabla \log \pi$.

# %%
plain = jax.grad(lambda logits: -(luck * jax.nn.log_softmax(logits)[words]).mean())(start)
for clip_eps in (0.01, 0.2, jnp.inf):
    np.testing.assert_allclose(jax.grad(batch_loss)(start, jnp.float32(clip_eps)), plain, atol=1e-6)
print("first gradient, any ε:", np.round(plain, 4))

# %% [markdown]
# **3.** Its loss is $-A\rho = 10|A|$: PPO's clip does not act on this side. With the dual clip the loss stops at $3|A|$ and the gradient is
# zero, so that one runaway token does not rule the whole step. It touches only the corner "bad and likelier", and only beyond
# $\rho = 3$.


# %%
def dual_clipped(ratio: float, advantage: float, clip_eps: float, bound: float) -> float:
    """The clipped loss, and for bad tokens never more than c|A|."""
    loss = max(-advantage * ratio, -advantage * min(max(ratio, 1 - clip_eps), 1 + clip_eps))
    return min(loss, -bound * advantage) if advantage < 0 else loss


assert check(dual_clipped, asserts_3)
bad = jnp.log(jnp.array([10.0, 1.5])), jnp.zeros(2), jnp.array([-1.0, -1.0])
bounded = clipped_surrogate(*bad, clip_eps=0.2, dual_clip=3.0)
gradient = jax.grad(lambda l: clipped_surrogate(l, *bad[1:], clip_eps=0.2, dual_clip=3.0).sum())(bad[0])
print("loss at ρ = 10 and 1.5:", np.round(bounded, 4), "gradient:", np.round(gradient, 4))
np.testing.assert_allclose(bounded, [3.0, 1.5], rtol=1e-6)
np.testing.assert_allclose(gradient, [0.0, 1.5], rtol=1e-6)

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
# # 3 · Rewards: from one score per response to one reward per token
#
# Somebody, or a model of somebody (notebook 6), reads a whole response and gives it one number, its **score** $s$ (without an
# index; $s_t$ is still what was said before token $t$). The policy acts token by token. **What is each token paid, so that
# maximising the sum is what we want, and what exactly do we want?**
#
# We want a high score without leaving the reference policy (notebook 2). With a price $\kappa$ per nat (`kl_coef` in the code):
#
# $$\max_\pi \; E_{y \sim \pi}\left[ s(y) \right] - \kappa \, \mathrm{KL}(\pi \,\|\, \pi_\text{ref})$$
#
# The KL is the mean of $\sum_t k_{1,t}$ with $k_{1,t} = \log \pi(a_t) - \log \pi_\text{ref}(a_t)$, so the objective is a mean of sums over tokens, and each token can pay its own
# share (lines 4 and 5 of [the PPO box](../docs/algorithms/ppo.md)):
#
# $$r_t = -\kappa\, k_{1,t} + s \cdot [\, t = T \,], \qquad \sum_t r_t = s - \kappa \sum_t k_{1,t}$$
#
# The score arrives with the last real token, usually `<eos>`. From here on rewards are data: nobody differentiates through $k_{1,t}$, although
# it contains $\pi$. Nothing is lost by that, because the mean of its gradient is zero (notebook 2).

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from rlhf_jax.equations.kl_control import adaptive_kl_coef
from rlhf_jax.equations.rewards import missing_eos_score, token_rewards
from rlhf_jax.equations.running import initial_moments, normalise, update_moments
from rlhf_jax.lessons import check

np.set_printoptions(precision=4, suppress=True)
plt.style.use("seaborn-v0_8-colorblind")  # Colours that everybody can tell apart.

# %% [markdown]
# ## By hand
#
# A recommender says *You might love Alien* `<eos>` and a user is glad: score 1. Two places of padding follow. The policy has learnt
# to say *love*, which the reference finds four times less likely; that word is charged most.

# %%
WORDS = ["You", "might", "love", "Alien", "<eos>", "", ""]
logprobs = np.log([0.60, 0.50, 0.40, 0.20, 0.90, 1.0, 1.0])
ref_logprobs = np.log([0.55, 0.60, 0.10, 0.15, 0.90, 1.0, 1.0])
mask = np.array([True, True, True, True, True, False, False])
score, kl_coef = 1.0, 0.2

k1 = logprobs - ref_logprobs
rewards_by_hand = np.zeros(7)
for t in range(5):
    rewards_by_hand[t] = -kl_coef * k1[t]
rewards_by_hand[4] += score

rewards = token_rewards(jnp.array(score), jnp.asarray(k1, jnp.float32), jnp.asarray(mask), kl_coef=kl_coef)
for word, hand, library in zip(WORDS[:5], rewards_by_hand, rewards, strict=False):
    print(f"{word:6s} {hand:+.4f} by hand, {library:+.4f} by the library")
print(f"sum {rewards.sum():.4f} = score − κ Σ k1 = {score - kl_coef * k1[mask].sum():.4f}")

# %% [markdown]
# ## What a score goes through before it is paid
#
# **Its scale.** A reward model's unit means nothing; $\kappa$ must be weighed against it all the same. So scores are **normalised**: minus the
# mean and divided by the standard deviation of *all* scores seen so far. The two are kept as running moments, merged batch by
# batch, and come out as if all scores had been seen at once. Then a score is cut off at five deviations, so that no single response
# outweighs its batch. (A score may be a sum of several **components**, say how long the user stayed and how content
# the answer sounds. Then each component is normalised in the same way before they are weighted and added, and the sum once more.)
#
# **Its end.** A response that has not said `<eos>` when its budget of tokens is spent is not a sentence. Its score is lowered by a
# fixed penalty (or replaced by it). Without this, a policy may learn that rambling on is free. (A price per token of length can be
# added; it is off by default.) All this is line 4 of the box.

# %%
moments = initial_moments()
seen = []
for batch in ([1.0, 3.0], [10.0, 2.0, 4.0], [6.0]):
    moments = update_moments(moments, jnp.array(batch))
    seen += batch
    by_hand = np.clip((np.array(batch) - np.mean(seen)) / np.std(seen, ddof=1), -5, 5)
    library = normalise(moments, jnp.array(batch), clip=5.0)
    print(f"batch {batch}: normalised {np.round(library, 3)}, by hand {np.round(by_hand, 3)}")
    np.testing.assert_allclose(library, by_hand, rtol=1e-5)

finished = jnp.array([True, False])
print("finished, cut:", missing_eos_score(jnp.array([0.8, 0.8]), finished, penalty=1.0))

# %% [markdown]
# ## What the best policy looks like
#
# The objective has a solution in closed form. For responses $y$ to one prompt (derivation in exercise 1):
#
# $$\pi^*(y) = \frac{1}{Z}\, \pi_\text{ref}(y)\, e^{s(y)/\kappa}, \qquad \max = \kappa \log Z, \qquad Z = \sum_y \pi_\text{ref}(y)\, e^{s(y)/\kappa}$$
#
# The reference, tilted towards high scores; $\kappa$ says how steeply. Everything that PPO does in the later notebooks is an attempt to
# reach this policy with samples only.

# %%
random = np.random.default_rng(3)
ref_policy = random.dirichlet(np.full(30, 0.7))
scores = random.normal(size=30)


def soft_optimum(kl_coef: float) -> np.ndarray:
    """π* over the thirty responses."""
    tilted = ref_policy * np.exp((scores - scores.max()) / kl_coef)
    return tilted / tilted.sum()


def score_and_kl(policy: np.ndarray) -> tuple[float, float]:
    """Mean score, and KL to the reference in nats."""
    said = policy > 0
    return policy @ scores, policy[said] @ np.log(policy[said] / ref_policy[said])


# %% [markdown]
# ## The picture
#
# Left: the rewards of the sentence above. Right: what can be bought. Every policy lies on or below the line: no policy has more
# score at the same KL than some $\pi^*$. The first nats are cheap, and with $\kappa \to 0$ the curve ends at the highest score and at
# the KL of always saying that one response. Mixing the reference with that response (dashed) buys less.

# %% caption="Left: the rewards of a sentence, token by token. Right: the most score that any policy gets for its KL; mixing two policies (dashed) gets less."
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
places = np.arange(5)
left.bar(places, -kl_coef * k1[:5], color=["C2" if r < 0 else "C5" for r in -kl_coef * k1[:5]])
left.bar(places[4:], [score], bottom=-kl_coef * k1[4:5], color="C0", label="score, paid with the last token")
left.bar([0], [0], color="C2", label="KL price: likelier than in the reference")
left.bar([0], [0], color="C5", label="KL refund: less likely")
left.set_xticks(places, WORDS[:5])
left.axhline(0, color="black", linewidth=0.8)
left.set(ylabel="reward, score units", title="Rewards by token", ylim=(-0.42, 1.12))
left.legend(loc="upper left")
coefficients = np.geomspace(0.05, 50, 200)
line = np.array([score_and_kl(soft_optimum(coefficient)) for coefficient in coefficients])
right.plot(line[:, 1], line[:, 0], color="C0", label="the best policies π*")
best = np.eye(30)[scores.argmax()]
mixed = np.array([score_and_kl((1 - share) * ref_policy + share * best) for share in np.linspace(0, 1, 100)])
right.plot(mixed[:, 1], mixed[:, 0], "--", color="gray", label="reference mixed with the best response")
for coefficient in (2.0, 0.7, 0.3, 0.1):
    mean, kl = score_and_kl(soft_optimum(coefficient))
    right.plot(kl, mean, "o", color="C0")
    right.annotate(f"κ = {coefficient}", (kl, mean), xytext=(-6, 7), textcoords="offset points", ha="right")
right.set(
    xlabel="KL to the reference, nats",
    ylabel="mean score",
    title="Score against KL",
    xlim=(-0.35, None),
    ylim=(-0.3, 1.9),
)
right.legend(loc="lower right")
plt.show()

# %% [markdown]
# ## Choosing κ, or letting it steer itself
#
# Instead of a fixed price one may fix a target for the KL and let a controller find the price: $\kappa$ rises while the observed KL is
# above the target and falls while it is below, slowly, and never by more than a bounded step: however large
# the error, `horizon` responses (10 000 by default) move it by about a fifth of its size
# ([Ziegler et al. 2019](https://arxiv.org/abs/1909.08593)). For a batch of $B$ responses, line 8 of the box:
#
# $$\kappa \leftarrow \kappa \left( 1 + \mathrm{clip}\left( \frac{\mathrm{KL}}{\mathrm{target}} - 1,\; -0.2,\; 0.2 \right) \frac{B}{\mathrm{horizon}} \right)$$

# %%
for observed in (3.0, 6.0, 6.6, 60.0):
    moved = adaptive_kl_coef(0.15, observed, target=6.0, horizon=10_000.0, n_responses=512)
    print(f"observed {observed:4.1f} nats, wanted 6: κ goes from 0.15 to {moved:.6f}")

# %% [markdown]
# ## Checks

# %%
np.testing.assert_allclose(rewards, rewards_by_hand, atol=1e-6)
np.testing.assert_allclose(rewards.sum(), score - kl_coef * k1[mask].sum(), rtol=1e-5)
np.testing.assert_allclose(missing_eos_score(jnp.array([0.8, 0.8]), finished, penalty=1.0), [0.8, -0.2], rtol=1e-6)
for coefficient in (0.3, 2.0):
    mean, kl = score_and_kl(soft_optimum(coefficient))
    maximum = coefficient * np.log(ref_policy @ np.exp(scores / coefficient))
    np.testing.assert_allclose(mean - coefficient * kl, maximum, rtol=1e-9)
    others = random.dirichlet(np.ones(30), size=500)
    assert all(m - coefficient * k <= maximum for m, k in map(score_and_kl, others))

# %% [markdown]
# ## Exercises
#
# 1. Derive $\pi^*$: write the objective as $\kappa \log Z$ minus a KL divergence.
# 2. Why is the score paid on the last *real* token and not at the last place of the array? Move it there by hand and look at the
#    sum over real tokens.
# 3. Suppose a policy's KL answers to the price like $\mathrm{KL} = 0.9/\kappa$ nats. Which $\kappa$ meets a target of 6, and how many updates of
#    512 responses does the controller need to come within 10 % of the target, starting at $\kappa = 0.05$? Fill in `updates_needed`.


# %%
def updates_needed(coefficient: float, n_responses: int) -> tuple[int, float]:
    """How many updates bring KL = 0.9/κ within 10 % of 6 nats, at a horizon of 10,000 responses, and κ after them. Exercise 3."""
    raise NotImplementedError("your turn")


def asserts_3(updates_needed) -> None:
    for start, n_responses in ((0.05, 512), (1.0, 512), (0.05, 64), (0.15, 512)):
        expected, price = 0, jnp.float32(start)
        while abs(0.9 / price / 6.0 - 1) > 0.1:
            price = adaptive_kl_coef(price, 0.9 / price, target=6.0, horizon=10_000.0, n_responses=n_responses)
            expected += 1
        updates, coefficient = updates_needed(start, n_responses)
        assert updates == expected, f"{updates} updates from κ = {start} on, {expected} are needed"
        np.testing.assert_allclose(coefficient, price, rtol=1e-3)


check(updates_needed, asserts_3)

# %% [markdown]
# **1.** With $\log \pi^* = \log \pi_\text{ref} + s/\kappa - \log Z$, that is $s = \kappa (\log \pi^* - \log \pi_\text{ref} + \log Z)$:
#
# $$E_\pi[s] - \kappa\, \mathrm{KL}(\pi \| \pi_\text{ref}) = \kappa \log Z + \kappa E_\pi[\log \pi^* - \log \pi_\text{ref} - \log \pi + \log \pi_\text{ref}] = \kappa \log Z - \kappa\, \mathrm{KL}(\pi \| \pi^*)$$
#
# A KL is never negative and is 0 only for $\pi = \pi^*$.

# %%
policy = others[0]
mean, kl = score_and_kl(policy)
gap = policy @ np.log(policy / soft_optimum(2.0))
np.testing.assert_allclose(mean - 2.0 * kl, maximum - 2.0 * gap, rtol=1e-9)
print(f"objective {mean - 2.0 * kl:.4f} = κ log Z {maximum:.4f} − κ KL(π‖π*) {2.0 * gap:.4f}")

# %% [markdown]
# **2.** A padded place is not an action: its reward is masked out of every sum, so the score would be lost, silently, for every
# response shorter than the longest one.

# %%
wrong = np.where(mask, -kl_coef * k1, 0.0)
wrong[-1] += score
print(f"right {rewards_by_hand[mask].sum():.3f}, wrong {wrong[mask].sum():.3f}: the score is gone")
assert wrong[mask].sum() < rewards_by_hand[mask].sum() - 0.9

# %% [markdown]
# **3.** $\kappa = 0.15$. Each update changes it by at most $0.2 \cdot 512 / 10\,000 \approx 1\,\%$, so factors take a while; that slowness keeps the
# loop of policy and price from swinging.


# %%
def updates_needed(coefficient: float, n_responses: int) -> tuple[int, float]:
    """Lines 8 of so many updates."""
    updates = 0
    while abs(error := 0.9 / coefficient / 6.0 - 1) > 0.1:
        coefficient *= 1 + np.clip(error, -0.2, 0.2) * n_responses / 10_000
        updates += 1
    return updates, coefficient


assert check(updates_needed, asserts_3)
updates, coefficient = updates_needed(0.05, 512)
print(f"{updates} updates, κ = {coefficient:.4f}, KL = {0.9 / coefficient:.2f} nats")
library = adaptive_kl_coef(coefficient, 0.9 / coefficient, target=6.0, horizon=10_000.0, n_responses=512)
expected = coefficient * (1 + (0.9 / coefficient / 6.0 - 1) * 512 / 10_000)
np.testing.assert_allclose(library, expected, rtol=1e-6)
assert 80 < updates < 130

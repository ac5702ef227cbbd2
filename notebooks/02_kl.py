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
# # 2 · KL divergence: how far has the policy moved?
#
# A model that is rewarded for pleasing a score soon finds strange sentences which please the score and nobody else. The standard
# leash is to keep it near the model it started from, the **reference policy** $\pi_\text{ref}$: the one trained by imitating
# people, frozen. "Near" is measured by the **Kullback–Leibler divergence**
#
# $$\mathrm{KL}(\pi \,\|\, \pi_\text{ref}) = \sum_v \pi(v) \left( \log \pi(v) - \log \pi_\text{ref}(v) \right)$$
#
# the mean, over what *we* say, of how much likelier we find it than the reference does. It is 0 when both agree, never negative,
# and not symmetric. The sum runs over the whole vocabulary at every position, which is expensive, and for the tokens that were
# sampled we have two numbers already: their log-probabilities under both policies. **What can be known about the KL from one
# sample, and which formula should be used where?**
#
# With $d = \log \pi(a) - \log \pi_\text{ref}(a)$ for a token $a$ drawn from $\pi$, three estimators are in use
# ([Schulman 2020](http://joschu.net/blog/kl-approx.html)):
#
# | | formula | idea |
# |---|---|---|
# | **k1** | $d$ | the definition: its mean over samples *is* the KL |
# | **k2** | $d^2/2$ | half the squared distance, as for two nearby distributions |
# | **k3** | $e^{-d} - 1 + d$ | k1 plus a term of mean zero that cancels most of its noise |
#
# An estimator is **biased** if its mean is not what it estimates; its **variance** says how much single samples scatter, its
# **standard deviation** is the root of that. $E_\pi$ is a mean over samples of $\pi$.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from rlhf_jax.equations.kl import kl_exact, kl_k1, kl_k2, kl_k3
from rlhf_jax.lessons import check

np.set_printoptions(precision=4, suppress=True)
plt.style.use("seaborn-v0_8-colorblind")  # Colours that everybody can tell apart.

# %% [markdown]
# ## By hand
#
# Four sampled tokens with these values of $d$. The third one is as likely as ever; the second has become *less* likely, and k1
# says so by a negative number, although a divergence cannot be negative. That is not a mistake: only its mean is the KL.

# %%
d = np.array([0.1, -0.3, 0.0, 1.0])
by_hand = {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) - 1 + d}
logprobs, ref_logprobs = jnp.asarray(d, jnp.float32), jnp.zeros(4)
library = {name: f(logprobs, ref_logprobs) for name, f in (("k1", kl_k1), ("k2", kl_k2), ("k3", kl_k3))}
for name, value in by_hand.items():
    print(f"{name}: by hand {np.round(value, 6)}, library {np.round(library[name], 6)}")

# %% [markdown]
# Now a whole distribution over five words, where the exact sum and the mean of each estimator can be written down: no random
# numbers are needed, $E_\pi[k] = \sum_v \pi(v)\, k(v)$.

# %%
ref_logits = np.array([1.0, 0.5, 0.0, -0.5, -1.0])
logits = np.array([0.0, 1.5, 0.5, -0.5, -1.5])


def log_softmax(x: np.ndarray) -> np.ndarray:
    """In float64, so that nothing below is rounding."""
    return x - np.log(np.exp(x).sum())


def moments(logits: np.ndarray, ref_logits: np.ndarray) -> dict[str, tuple[float, float]]:
    """Exact mean and standard deviation of k1, k2, k3 over tokens drawn from π."""
    log_pi, log_ref = log_softmax(logits), log_softmax(ref_logits)
    pi, d = np.exp(log_pi), log_pi - log_ref
    found = {}
    for name, k in (("k1", d), ("k2", d**2 / 2), ("k3", np.exp(-d) - 1 + d)):
        mean = pi @ k
        found[name] = mean, np.sqrt(pi @ (k - mean) ** 2)
    return found


exact = kl_exact(jnp.asarray(logits[None], jnp.float32), jnp.asarray(ref_logits[None], jnp.float32))[0]
print(f"exact KL {exact:.5f} nats")
for name, (mean, deviation) in moments(logits, ref_logits).items():
    print(f"{name}: mean {mean:.5f}, standard deviation of one sample {deviation:.3f}")

# %% [markdown]
# ## The picture
#
# Left: what each estimator says about one token. k1 is the straight line through zero; k2 and k3 agree near zero and are
# never negative. Middle and right: the policy moves away from the reference step by step (its logits go from the reference's to
# three times the move above). k1 and k3 stay unbiased, k2 drifts. k1's noise is by far the largest as long as the policies are near
# each other, where training should stay; far apart it is k3's, whose exponential is then dominated by rare tokens.

# %% caption="Left: k1, k2 and k3 of one token against its log-ratio d. Middle: their means against the true KL; k1 and k3 lie on the diagonal, k2 leaves it. Right: the noise of a single sample."
figure, (shape, bias, noise) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
look = {
    "k1": {"color": "C5", "linewidth": 3.5},
    "k2": {"color": "C2", "linewidth": 1.8},
    "k3": {"color": "black", "linewidth": 1.8, "linestyle": "--"},
}
x = np.linspace(-1.5, 1.5, 200)
for name, y in (("k1", x), ("k2", x**2 / 2), ("k3", np.exp(-x) - 1 + x)):
    shape.plot(x, y, label=name, **look[name])
shape.axhline(0, color="gray", linewidth=0.5)
shape.axvline(0, color="gray", linewidth=0.5)
shape.set(title="One token", xlabel=r"d = log π(a) − log π$_\mathrm{ref}$(a), nats", ylabel="estimate, nats")
shape.legend()
steps = np.linspace(0.02, 3, 60)
path = [moments(ref_logits + step * (logits - ref_logits), ref_logits) for step in steps]
true_kl = [point["k1"][0] for point in path]
for name, style in look.items():
    bias.plot(true_kl, [point[name][0] for point in path], label=name, **style)
    noise.plot(true_kl, [point[name][1] for point in path], label=name, **style)
bias.set(title="Mean: k1 and k3 are unbiased", xlabel="true KL, nats", ylabel="mean of the estimate, nats")
noise.set(title="Noise of a single sample", xlabel="true KL, nats", ylabel="standard deviation, nats")
noise.set_xscale("log")
noise.set_yscale("log")
bias.legend()
noise.legend()
plt.show()

# %% [markdown]
# ## Means are not gradients
#
# Suppose we want to *lower* the KL of one position by gradient descent. It is tempting to average one of the estimators over samples and
# differentiate. But the samples are held fixed when we do that, and a policy that changes would have drawn others. So the
# gradient of the mean is not the mean of the gradients ($\nabla$ is with respect to $\theta$; here these are the logits):
#
# - **k1**: $E_\pi[\nabla k_1] = E_\pi[\nabla \log \pi] = 0$ (exercise 3 of notebook 1). As a loss it teaches nothing at all.
# - **k2**: $E_\pi[\nabla k_2] = E_\pi[d\, \nabla \log \pi] = \nabla \mathrm{KL}(\pi \| \pi_\text{ref})$: the right gradient from the biased estimator.
# - **k3**: $E_\pi[\nabla k_3] = E_\pi[(1 - e^{-d}) \nabla \log \pi] = -\sum_v \pi_\text{ref}(v) \nabla \log \pi(v) = \nabla \mathrm{KL}(\pi_\text{ref} \| \pi)$: the gradient of the KL the other way round.

# %%
ref = jnp.asarray(ref_logits, jnp.float32)
start = jnp.asarray(logits, jnp.float32)


def mean_of_gradients(estimator, logits: jax.Array) -> jax.Array:
    """E_π[∇k]: the probabilities that weigh the samples are held fixed."""
    weights = jax.lax.stop_gradient(jax.nn.softmax(logits))
    return jax.grad(lambda l: weights @ estimator(jax.nn.log_softmax(l), jax.nn.log_softmax(ref)))(logits)


forward = jax.grad(lambda l: kl_exact(l[None], ref[None])[0])(start)
reverse = jax.grad(lambda l: kl_exact(ref[None], l[None])[0])(start)
print("∇KL(π‖π_ref)", np.round(forward, 3))
print("∇KL(π_ref‖π)", np.round(reverse, 3))
for name, estimator in (("k1", kl_k1), ("k2", kl_k2), ("k3", kl_k3)):
    print(f"E[∇{name}]      ", np.round(mean_of_gradients(estimator, start), 3) + 0.0)

# %% [markdown]
# ## One position is not a response
#
# A response has many positions, and the KL between distributions over *whole responses* is the mean of $\sum_t d_t$ (exercise 2). So the
# **means** of k1 and k3 may be summed over tokens. **Gradients may not.** A token also decides which states come later, and how
# much KL waits for us there; $\nabla k_{2,t}$ knows only its own position.
#
# The smallest case: two tokens out of three words, the second drawn from a distribution that depends on the first. All nine responses
# can be written down, so the true gradient is known. We look at the logits of the *first* token; those of the second, which
# nothing follows, come out right in any case.

# %%
random = np.random.default_rng(0)
first, ref_first = (jnp.asarray(random.normal(size=3), jnp.float32) for _ in range(2))
second, ref_second = (jnp.asarray(random.normal(size=(3, 3)), jnp.float32) for _ in range(2))


def two_tokens(first: jax.Array, second: jax.Array) -> jax.Array:
    """log π of both tokens of all nine responses. [3, 3, 2]"""
    return jnp.stack([jnp.repeat(jax.nn.log_softmax(first)[:, None], 3, axis=1), jax.nn.log_softmax(second)], axis=2)


ref_tokens = two_tokens(ref_first, ref_second)
now = two_tokens(first, second)
probability = jnp.exp(now.sum(axis=2))  # π(y), held fixed below: the samples.
d_to_go = (now - ref_tokens).at[:, :, 0].add((now - ref_tokens)[:, :, 1])  # What a token pays itself, and what follows.
kl_losses = {
    "k2, summed over tokens": lambda x: kl_k2(x, ref_tokens).sum(axis=2),
    "k2 of whole responses ": lambda x: kl_k2(x.sum(axis=2), ref_tokens.sum(axis=2)),
    "k1 in the reward      ": lambda x: (d_to_go * x).sum(axis=2),  # REINFORCE: log π(a_t) · Σ_{u ≥ t} d_u.
}


def whole_kl(first: jax.Array) -> jax.Array:
    """The definition, over nine responses."""
    tokens = two_tokens(first, second)
    return (jnp.exp(tokens.sum(axis=2)) * (tokens - ref_tokens).sum(axis=2)).sum()


whole_gradient = jax.grad(whole_kl)(first)
print("∇KL(π‖π_ref)           ", np.round(whole_gradient, 3))
first_gradients = {
    name: jax.grad(lambda x, loss=loss: (probability * loss(two_tokens(x, second))).sum())(first)
    for name, loss in kl_losses.items()
}
for name, gradient in first_gradients.items():
    print(f"{name} ", np.round(gradient, 3))

# %% [markdown]
# The sum over tokens gets even a sign wrong. Hence the division of labour in this library:
#
# - **k1 in the reward.** There it is a number, not a loss, and REINFORCE takes care of the samples and of what follows (notebook 3). Only its
#   mean matters, and that is exact.
# - **k2 of the whole response where a KL *loss* is wanted.** Per token, as $\frac{1}{2} (\log \pi - \log \pi_\text{old})^2$, it is used to *see* how far one PPO update has
#   gone ($\pi_\text{old}$: the policy before that update, notebook 5); nothing is differentiated there.
# - **k3 in reports**: unbiased, never negative, and little noise while the policies are near each other.

# %% [markdown]
# ## Checks

# %%
for name, value in by_hand.items():
    np.testing.assert_allclose(library[name], value, atol=1e-6)
found = moments(logits, ref_logits)
np.testing.assert_allclose([found["k1"][0], found["k3"][0]], exact, rtol=1e-5)
assert found["k3"][1] < found["k1"][1]
np.testing.assert_allclose(mean_of_gradients(kl_k1, start), 0, atol=1e-6)
np.testing.assert_allclose(mean_of_gradients(kl_k2, start), forward, atol=1e-6)
np.testing.assert_allclose(mean_of_gradients(kl_k3, start), reverse, atol=1e-6)
for name, gradient in first_gradients.items():
    error = np.abs(gradient - whole_gradient).max()
    assert error > 0.1 if "summed" in name else error < 1e-6
assert first_gradients["k2, summed over tokens"][1] * whole_gradient[1] < 0

# %% [markdown]
# ## Exercises
#
# 1. The two directions punish different sins. Let $\pi_\text{ref} = (0.5, 0.5, 0)$, nearly, and compare the two KLs for a policy that
#    says only the first word, and for one that says all three equally often.
# 2. Show on the two-token language above that the KL between distributions over *whole responses* is the mean of the sum of the
#    tokens' $d$, so that k1 may be summed over tokens. Why does the summed k2 miss a part of the gradient, then?
# 3. Where does k3 come from? Find $c$ such that $d + c\,(e^{-d} - 1)$ is unbiased for every $c$, and see which $c$ gives the least
#    variance in the example above: fill in `best_c`.


# %%
def best_c(pi: np.ndarray, d: np.ndarray) -> float:
    """The c for which d + c (e^{−d} − 1) scatters least, for words with probabilities `pi` and log-ratios `d`. Exercise 3."""
    raise NotImplementedError("your turn")


def variance(c: float, pi: np.ndarray, d: np.ndarray) -> float:
    """Of one sample."""
    estimate = d + c * (np.exp(-d) - 1)
    return pi @ (estimate - pi @ estimate) ** 2


def asserts_3(best_c) -> None:
    for other in (logits, ref_logits + 0.1, 3 * ref_logits):
        log_pi = log_softmax(other)
        example = np.exp(log_pi), log_pi - log_softmax(logits[::-1])
        c = best_c(*example)
        near = min(variance(c - 0.01, *example), variance(c + 0.01, *example))
        assert variance(c, *example) <= near, f"c = {c} is not the lowest place"


check(best_c, asserts_3)

# %% [markdown]
# **1.** $\mathrm{KL}(\pi \| \pi_\text{ref})$ is the mean over what *we* say: it forgives saying only one of two good words (0.69 nats) and does
# not forgive saying a word the reference would never say. The other direction is the mean over what *the reference* says: it
# does not forgive keeping silent about a good word. The leash uses the first one.

# %%
near_zero = 1e-6
reference = jnp.log(jnp.array([[0.5, 0.5, near_zero]]))
for label, policy in (("one word", [1.0, near_zero, near_zero]), ("all three", [1 / 3, 1 / 3, 1 / 3])):
    policy = jnp.log(jnp.array([policy]))
    there, back = kl_exact(policy, reference)[0], kl_exact(reference, policy)[0]
    print(f"{label:10s} KL(π‖π_ref) = {there:5.2f}   KL(π_ref‖π) = {back:5.2f}")
    assert (there < back) == (label == "one word")

# %% [markdown]
# **2.** $\log \pi(y) = \sum_t \log \pi(a_t \mid s_t)$ for both policies, so $d(y) = \sum_t d_t$: the chain rule. The KL is that of the first token plus the mean over
# first tokens of the second's, $\sum_v \pi(v)\, K(v)$. Its gradient has a part $\sum_v K(v) \nabla \pi(v)$: moving to first words after which the two
# policies agree. k2 of the second token, with samples held fixed, cannot see that, and adding the part back makes it right.

# %%
pi_y, ref_y = np.asarray(probability, np.float64), np.exp(np.asarray(ref_tokens.sum(axis=2), np.float64))
whole = (pi_y * np.log(pi_y / ref_y)).sum()
by_token = (pi_y[:, :, None] * np.asarray(now - ref_tokens)).sum()
print(f"KL of whole responses {whole:.6f}, mean of summed d {by_token:.6f}")
np.testing.assert_allclose(whole, by_token, rtol=1e-5)
waiting = (np.exp(now[:, :, 1]) * (now - ref_tokens)[:, :, 1]).sum(axis=1)  # K(v), at the second position.
missing = jax.grad(lambda x: jax.nn.softmax(x) @ waiting)(first)
print("KL that waits after each first word:", np.round(waiting, 3), " missing part:", np.round(missing, 3))
np.testing.assert_allclose(first_gradients["k2, summed over tokens"] + missing, whole_gradient, atol=1e-6)

# %% [markdown]
# **3.** $E_\pi[e^{-d}] = \sum_v \pi(v)\, \pi_\text{ref}(v)/\pi(v) = 1$, so the added term has mean zero whatever $c$ is: a **control variate**. The
# best $c$ is minus the covariance of $d$ and $e^{-d}$ divided by the variance of $e^{-d}$. It is near 1 when the policies are near each other, and
# $c = 1$ is the only value for which the estimate is never negative, whatever $d$ is: that is k3.


# %%
def best_c(pi: np.ndarray, d: np.ndarray) -> float:
    """z has mean zero, so its variance and its covariance with d are means of products."""
    z = np.exp(-d) - 1
    return -(pi @ (d * z)) / (pi @ z**2)


assert check(best_c, asserts_3)
log_pi = log_softmax(logits)
pi, d = np.exp(log_pi), log_pi - log_softmax(ref_logits)
z, best = np.exp(-d) - 1, best_c(pi, d)
for c in (0.0, best, 1.0):
    estimate = d + c * z
    mean = pi @ estimate
    print(
        f"c = {c:.2f}: mean {mean:.5f}, deviation {np.sqrt(pi @ (estimate - mean) ** 2):.3f}, lowest {estimate.min():.3f}"
    )
    np.testing.assert_allclose(mean, exact, rtol=1e-5)

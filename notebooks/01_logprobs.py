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
# # 1 · Log-probabilities: how likely was that sentence?
#
# You know policy gradients: a policy $\pi(a \mid s)$ draws an action $a$ in a state $s$, a reward comes back, and the
# gradient of $\log \pi(a \mid s)$ says how to make that action likelier. This course carries the idea over to language.
# Its first question is the smallest one: **a language model has just written a sentence. How probable was it, and how does
# that number change with the model's parameters $\theta$?** (We write $\pi_\theta$ only where $\theta$ matters.)
#
# | in reinforcement learning | in language |
# |---|---|
# | action $a_t$ | a **token**: a word or a piece of one, drawn from a fixed list, the **vocabulary** $\mathcal{V}$ |
# | state $s_t$ | everything said so far: the **prompt** $x$, then the tokens $a_1 \ldots a_{t-1}$ |
# | policy $\pi(\cdot \mid s_t)$ | the model's distribution over the next token |
# | episode | a **response** $y = (a_1, \ldots, a_T)$; it ends with the token `<eos>`, "end of sequence" |
# | environment | none between two tokens: the next state is the old one with the token appended |
#
# A model gives one number per token of the vocabulary, $|\mathcal{V}|$ of them, the **logits** $l$. The **softmax** turns them into probabilities:
#
# $$\log \pi(v \mid s_t) = l_{t,v} - \log \sum_u \exp(l_{t,u})$$
#
# We stay in logarithms, because the probability of a whole response is a product of many small numbers. The unit of a natural
# logarithm is the **nat**: $-1$ nat means a probability of $e^{-1} \approx 0.37$.
#
# The code is NumPy and JAX. JAX is NumPy with derivatives: `jax.grad` differentiates a function, `jax.jit` compiles it, `jax.vmap` applies it to
# every row of an array. The library's equations take *one* response; `jax.vmap` makes a batch of them. (`in_axes=None` marks an argument that is the same for all rows;
# `jax.value_and_grad` gives the value as well as the derivative. An array of JAX cannot be written into: `x.at[i].set(v)` is a changed copy.)

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from rlhf_jax.equations.logprobs import entropy, log_softmax, sequence_logprob, token_logprobs
from rlhf_jax.lessons import check

np.set_printoptions(precision=4, suppress=True)
plt.style.use("seaborn-v0_8-colorblind")  # Colours that everybody can tell apart.

# %% [markdown]
# ## By hand
#
# Five words, a response of four tokens: *a good film* `<eos>`. Row $t$ of `logits` is what the model thought **before** token
# $t$ was said: position $t$ of the logits belongs to token $t$. (A network puts it out one position earlier, while it reads
# token $t-1$. Being off by one here is the classic bug of this field: the numbers look fine and nothing is learnt.)

# %%
VOCABULARY = ["<eos>", "a", "good", "bad", "film"]
response = np.array([1, 2, 4, 0])
logits = np.array(
    [
        [-1.0, 2.0, 1.0, 0.5, 0.0],  # before "a"
        [-1.0, -2.0, 1.5, 1.2, 0.8],  # before "good"
        [0.5, -2.0, 0.0, -1.0, 2.0],  # before "film"
        [2.5, -1.0, -0.5, -1.0, -0.5],  # before "<eos>"
    ]
)

logprobs_by_hand = np.zeros(len(response))
for t, token in enumerate(response):
    logprobs_by_hand[t] = logits[t, token] - np.log(np.exp(logits[t]).sum())

logprobs = token_logprobs(jnp.asarray(logits, jnp.float32), jnp.asarray(response))
for token, hand, library in zip(response, logprobs_by_hand, logprobs, strict=True):
    print(f"{VOCABULARY[token]:6s} log π = {hand:.4f} by hand, {library:.4f} by the library, π = {np.exp(hand):.3f}")

# %% [markdown]
# The probability of the response is the product of its tokens' probabilities, so its log-probability is their sum:
#
# $$\log \pi(y \mid x) = \sum_t \log \pi(a_t \mid s_t)$$
#
# ### Padding and the mask
#
# Responses differ in length, arrays do not: short responses are filled up with **padding**, and a **mask** says which tokens
# are real (`<eos>` is real, what follows it is not). Nothing may be computed from padding. The library is tested with `NaN`
# ("not a number") there, because a zero can hide a mistake and `NaN` cannot.

# %%
padded = jnp.concatenate([logprobs, jnp.full(2, jnp.nan)])
mask = jnp.array([True, True, True, True, False, False])
total = sequence_logprob(padded, mask)
print(f"log π(response) = {total:.4f} nats, probability {np.exp(total):.4f}")

# %% [markdown]
# ### Temperature and entropy
#
# To make a model bolder or safer when it speaks, its logits are divided by a **temperature** $\tau$: $\tau < 1$ sharpens the
# distribution, $\tau > 1$ flattens it. The policy that acts is the tempered one, so *its* log-probabilities are the ones that
# count, in sampling and in learning alike.
#
# **Entropy** measures how undecided the model is at a position: $H_t = -\sum_v \pi(v \mid s_t) \log \pi(v \mid s_t)$. It is 0 when
# one token is certain, and $\log |\mathcal{V}|$ when all are equally likely.

# %%
for temperature in (0.5, 1.0, 2.0):
    probabilities = np.exp(logits / temperature)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    by_hand = -(probabilities * np.log(probabilities)).sum(axis=1)
    library = entropy(jnp.asarray(logits, jnp.float32), temperature=temperature)
    np.testing.assert_allclose(library, by_hand, rtol=1e-5)
    print(f"temperature {temperature}: entropy by position {np.round(by_hand, 2)}, at most log 5 = {np.log(5):.2f}")

# %% [markdown]
# ## The picture
#
# Left: the whole distribution at each position; the frame marks the token that was said. Right: the same first position at
# three temperatures.

# %% caption="Left: the model's probabilities at each of four positions, framed where a token was said. Right: the first position at three temperatures; the lowest is the sharpest."
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=[1.15, 1], layout="constrained")
probabilities = np.exp(log_softmax(jnp.asarray(logits, jnp.float32)))
image = left.imshow(probabilities.T, cmap="Blues", vmin=0, vmax=1, aspect="auto")
for t, token in enumerate(response):
    left.add_patch(plt.Rectangle((t - 0.5, token - 0.5), 1, 1, fill=False, edgecolor="darkorange", linewidth=2.5))
    for v in range(len(VOCABULARY)):
        color = "white" if probabilities[t, v] > 0.6 else "#111111"
        left.text(t, v, f"{probabilities[t, v]:.2f}", ha="center", va="center", color=color)
left.set_xticks(range(4), [f"t = {t + 1}\nsaid: {VOCABULARY[token]}" for t, token in enumerate(response)])
left.set_yticks(range(5), VOCABULARY)
left.set_title("π(token | what was said before)")
figure.colorbar(image, ax=left, label="probability")
for offset, temperature in zip((-0.27, 0.0, 0.27), (0.5, 1.0, 2.0), strict=True):
    row = jnp.asarray(logits[:1], jnp.float32)
    height = np.exp(log_softmax(row, temperature=temperature))[0]
    undecided = entropy(row, temperature=temperature)[0]
    right.bar(np.arange(5) + offset, height, 0.25, label=f"τ = {temperature}, entropy {undecided:.2f} nats")
right.set_xticks(range(5), VOCABULARY)
right.set_ylabel("probability at t = 1")
right.set_title("Temperature sharpens or flattens")
right.legend()
plt.show()

# %% [markdown]
# ## Its gradient is what policy gradients are made of
#
# $$\frac{\partial}{\partial l_{t,v}} \log \pi(a_t \mid s_t) = [\, v = a_t \,] - \pi(v \mid s_t)$$
#
# A bracket $[\ldots]$ is 1 where its condition holds, else 0. So: raise the logit of what was said, lower all logits in proportion to
# their probability. REINFORCE, the plain policy gradient, multiplies this by how good the response was; everything in this course
# is about what to put in place of "how good", and how far to follow it.

# %%
gradient = jax.grad(lambda l: token_logprobs(l, jnp.asarray(response)).sum())(jnp.asarray(logits, jnp.float32))
gradient_by_hand = np.eye(5)[response] - probabilities
print(np.round(gradient, 2))

# %% [markdown]
# ## Half a lesson: learning by imitation
#
# Before a policy is rewarded it is taught to talk: it reads what people said, and every token of theirs is made likelier. That is
# **supervised fine-tuning** (SFT). Its loss is the **negative log-likelihood**, a mean over real tokens,
#
# $$L = -\frac{1}{\sum_t m_t} \sum_t m_t \log \pi_\theta(a_t \mid s_t)$$
#
# with the mask $m_t$. It is REINFORCE with two changes: the tokens come from people and not from the policy, and each of them is
# rewarded with 1. So its gradient is the one above: up what was said, down the rest. Learning stops when the model's probabilities are those of the data. It learns what is
# *frequent*, not what is *good*: nothing in it says that one human reply was better than another. That is what rewards are for.
#
# Three people described films. Plain gradient descent on the table of logits:

# %%
said = jnp.array([[1, 2, 4, 0], [1, 3, 4, 0], [1, 2, 4, 0]])  # "a good film", "a bad film", "a good film"


def imitation_loss(table: jax.Array) -> jax.Array:
    """Mean negative log-likelihood of a token, nats."""
    return -jax.vmap(token_logprobs, in_axes=(None, 0))(table, said).mean()


table, losses = jnp.asarray(logits, jnp.float32), []
for _ in range(200):
    loss, slope = jax.value_and_grad(imitation_loss)(table)
    losses.append(float(loss))
    table -= 2.0 * slope
taught = np.exp(log_softmax(table))[1]
print(f"loss {losses[0]:.3f} → {losses[-1]:.3f} nats a token")
print("second token:", ", ".join(f"{word} {p:.2f}" for word, p in zip(VOCABULARY, taught, strict=True)))
# Two of three said "good": the loss cannot fall below the entropy of that, in one of four tokens.
least = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)) / 4
print(f"the least possible loss is {least:.3f}")

# %% [markdown]
# ## Four networks
#
# The taught policy is copied twice: one copy learns on, one is frozen and becomes the **reference**. Two more networks judge. All of them read the same prompt and response.
# (The critic is often no network of its own but a second output of the policy's, as in this library. What it does is the same.)

# %% caption="Four networks. The policy writes a response. The frozen reference gives its log-probabilities, for the KL. The reward model gives one score for the whole response. The critic gives a value before every token. Together they make the advantages, which change policy and critic."
figure, axis = plt.subplots(figsize=(8.6, 3.4), layout="constrained")
BOXES = {
    "policy": (0.0, 1.0, "POLICY $π_θ$ (learns)\nwrites a response\nlog π of every token"),
    "reference": (3.2, 2.0, "REFERENCE (frozen)\nlog π of the same tokens\nlessons 2, 3"),
    "reward": (3.2, 1.0, "REWARD MODEL (frozen)\none score for a response\nlessons 3, 6"),
    "critic": (3.2, 0.0, "CRITIC (learns)\na value before each token\nlessons 4, 5"),
    "advantage": (6.6, 1.0, "ADVANTAGES\nfrom KL, score and values\nlesson 4"),
}
for x, y, text in BOXES.values():
    axis.text(x, y, text, ha="center", va="center", fontsize=10, bbox={"boxstyle": "round", "fill": False})
ARROWS = [((1.15, 1.0), (1.95, y)) for y in (2.0, 1.0, 0.0)] + [((4.4, y), (5.5, 1.0)) for y in (2.0, 1.0, 0.0)]
for start, end in ARROWS:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->"})
axis.annotate(
    "",
    (0.0, 0.62),
    (6.6, 0.62),
    arrowprops={"arrowstyle": "->", "connectionstyle": "arc3,rad=-0.33", "linestyle": "--"},
)
axis.text(0.9, -0.55, "a step on policy and critic (lesson 5)", ha="center")
axis.set(xlim=(-1.3, 7.9), ylim=(-1.0, 2.5))
axis.axis("off")
plt.show()

# %% [markdown]
# ## Checks

# %%
np.testing.assert_allclose(logprobs, logprobs_by_hand, rtol=1e-5)
np.testing.assert_allclose(total, logprobs_by_hand.sum(), rtol=1e-5)
np.testing.assert_allclose(gradient, gradient_by_hand, atol=1e-6)
np.testing.assert_allclose(np.sum(gradient, axis=1), 0, atol=1e-6)
assert least < losses[-1] < least + 0.02 < losses[0]
np.testing.assert_allclose(taught[[2, 3]], [2 / 3, 1 / 3], atol=0.02)

# %% [markdown]
# ## Exercises
#
# 1. What does $\log \pi(a_t)$ tend to as $\tau \to 0$ and as $\tau \to \infty$, for the likeliest token and for another one?
# 2. A recommender must not end its reply before it has said something, so `<eos>` is forbidden at the first position (the
#    argument `allowed`). What happens to the log-probability of "a"? What goes wrong if the **sampler**, the code that draws
#    responses, obeys the rule, and the **learner**, the code that improves the policy, does not know it? Fill in the function below, without the library.
# 3. Show that $\sum_v \pi(v)\, \nabla \log \pi(v) = 0$. Why does that allow us to subtract any constant, a **baseline**, from the
#    reward?
#
# Where an exercise asks for code, there is a function to fill in. Below it stand the asserts that it must pass; `check` runs them, and says "not done yet" as
# long as the function raises `NotImplementedError`. Solutions follow, here and in every notebook.


# %%
def logprob_under_rule(row: np.ndarray, token: int, allowed: np.ndarray) -> float:
    """log π(token) from one row of logits [5], where only tokens with `allowed` [5] may be said. Exercise 2, in NumPy."""
    raise NotImplementedError("your turn")


def asserts_2(logprob_under_rule) -> None:
    for forbidden in range(5):
        allowed = np.arange(5) != forbidden
        chances = np.exp([logprob_under_rule(logits[0], token, allowed) for token in range(5)])
        np.testing.assert_allclose(chances.sum(), 1)
        assert chances[forbidden] == 0
    # Where everything is allowed nothing changes.
    np.testing.assert_allclose(logprob_under_rule(logits[0], 1, np.ones(5, bool)), logprobs_by_hand[0])


check(logprob_under_rule, asserts_2)

# %% [markdown]
# **1.** As $\tau \to 0$ the distribution collapses onto the likeliest token: its log-probability tends to 0, all others to
# $-\infty$. As $\tau \to \infty$ all tokens become equally likely: $-\log |\mathcal{V}|$.

# %%
for temperature in (0.01, 100.0):
    sharp = log_softmax(jnp.asarray(logits[:1], jnp.float32), temperature=temperature)[0]
    print(f"τ = {temperature}: likeliest {sharp.max():.3f}, least likely {sharp.min():.3f}; −log 5 = {-np.log(5):.3f}")

# %% [markdown]
# **2.** The probability of `<eos>` is shared out among the others, so "a" becomes likelier. A learner without the rule works
# with the wrong, smaller, probability: the ratio of the two is then not 1 even though nothing has been learnt yet, and PPO,
# the algorithm this course leads to (notebook 5), steers by that ratio: it would steer by noise. It would also waste gradient on a
# token that is never drawn.


# %%
def logprob_under_rule(row: np.ndarray, token: int, allowed: np.ndarray) -> float:
    """A forbidden logit is minus infinity: it adds nothing to the sum."""
    possible = np.where(allowed, row, -np.inf)
    return possible[token] - np.log(np.exp(possible).sum())


assert check(logprob_under_rule, asserts_2)
allowed = jnp.ones((1, 5), bool).at[0, 0].set(False)
first = jnp.asarray(logits[:1], jnp.float32), jnp.asarray(response[:1])
with_rule, without_rule = token_logprobs(*first, allowed=allowed)[0], token_logprobs(*first)[0]
print(
    f"with the rule {with_rule:.4f}, without {without_rule:.4f}; spurious ratio {np.exp(without_rule - with_rule):.4f}"
)
assert with_rule > without_rule
np.testing.assert_allclose(logprob_under_rule(logits[0], 1, np.arange(5) > 0), with_rule, rtol=1e-5)

# %% [markdown]
# **3.** $\sum_v \pi(v) \nabla \log \pi(v) = \sum_v \nabla \pi(v) = \nabla \sum_v \pi(v) = \nabla 1 = 0$. A constant $b$ times this sum is
# still zero, so rewards $r$ and $r - b$ give the same expected gradient. What changes is its variance, which is why a good
# baseline is worth learning (notebook 4).

# %%
every_token = jax.vmap(jax.grad(lambda l, v: log_softmax(l[None])[0, v]), in_axes=(None, 0))
gradients = every_token(jnp.asarray(logits[0], jnp.float32), jnp.arange(5))
expected_gradient = probabilities[0] @ np.asarray(gradients)
print(np.round(expected_gradient, 6) + 0.0)
np.testing.assert_allclose(expected_gradient, 0, atol=1e-6)

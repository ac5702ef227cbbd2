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
# # 14 · Reward hacking: what does a nat of KL buy?
#
# A reward model is a *proxy*. It agrees with what people want on the replies it has seen. The policy looks for replies that it likes, wherever they are. **When
# does a better score stop being a better reply, and what does the price κ of a nat have to do with it?**
#
# Notebook 3 introduced the price, notebook 7 the best policy at a price. Here the score is wrong, and we know by how much.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from rlhf_jax.assessment.best_of_n import kl_bound
from rlhf_jax.equations.kl import kl_exact
from rlhf_jax.interfaces import PolicyOutput, PromptBatch, Rollout
from rlhf_jax.learners import ppo
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.lessons import check

np.set_printoptions(precision=3, suppress=True)
plt.style.use("seaborn-v0_8-colorblind")  # Colours that everybody can tell apart.

# %% [markdown]
# ## By hand
#
# Four replies. What each is worth to a user is the *truth* $u$; nobody may train on it. The proxy pays a tenth for every word besides, because in
# the logged dialogues long replies held people:
#
# $$s = u + 0.1 \cdot \text{words}$$
#
# The best policy at price $\kappa$ is $\pi_\kappa \propto \pi_\text{ref}\, e^{s/\kappa}$ (notebook 3).

# %%
REPLIES = ["vague", "apt", "chatty", "endless"]
words = np.array([4.0, 8.0, 14.0, 20.0])
truth = np.array([0.1, 1.0, 0.6, 0.2])
proxy = truth + 0.1 * words
ref = np.array([0.6, 0.3, 0.08, 0.02])
correlation = np.cov(truth, proxy, aweights=ref)
print("proxy", proxy)
print(f"correlation of proxy and truth under π_ref: {correlation[0, 1] / np.sqrt(np.prod(np.diag(correlation))):.2f}")


def optimum(kl_coef: float, length_price: float = 0.0) -> np.ndarray:
    """π_κ for the proxy less a price for every word. [4]"""
    s = proxy - length_price * words
    tilted = ref * np.exp((s - s.max()) / kl_coef)
    return tilted / tilted.sum()


def kl(pi: np.ndarray) -> float:
    """KL(π‖π_ref), nats; what is never said adds nothing."""
    said = pi > 0
    return float(np.sum(pi[said] * np.log(pi[said] / ref[said])))


print(f"{'κ':>8s} {'proxy':>6s} {'truth':>6s} {'KL':>6s}   π")
for price in (np.inf, 2.0, 1.0, 0.5, 0.2, 0.1, 0.02):
    pi = optimum(price)
    print(f"{price:8.2f} {pi @ proxy:6.3f} {pi @ truth:6.3f} {kl(pi):6.3f}   {pi}")

# %% [markdown]
# **The cheaper the KL, the better the proxy. The truth first rises with it, then falls** below where it began. Under the reference proxy and truth are
# correlated by .90. A test on logged replies would call this reward model excellent.
#
# How can both be? With $\eta = 1/\kappa$ the derivative of any mean under $\pi_\kappa$ is a covariance under $\pi_\kappa$ itself:
#
# $$\frac{d}{d\eta} E_{\pi_\kappa}[s] = \operatorname{Var}_{\pi_\kappa}(s) \geq 0, \qquad \frac{d}{d\eta} E_{\pi_\kappa}[u] = \operatorname{Cov}_{\pi_\kappa}(u, s)$$
#
# The proxy cannot fall. The truth rises as long as both are correlated *among the replies the policy now gives*. At first this means: apt rather than vague.
# Once nobody is vague any more, it means: endless rather than apt, and there the proxy is wrong.


# %%
def covariance(pi: np.ndarray) -> float:
    """Cov(u, s) under a policy."""
    return float(pi @ (truth * proxy) - (pi @ truth) * (pi @ proxy))


def slope(kl_coef: float) -> float:
    """dE[u]/dη by central differences."""
    eta, step = 1 / kl_coef, 1e-4
    return float((optimum(1 / (eta + step)) - optimum(1 / (eta - step))) @ truth / (2 * step))


for price in (2.0, 0.5, 0.2):
    print(f"κ = {price}: slope {slope(price):+.4f}, covariance {covariance(optimum(price)):+.4f}")

# %% [markdown]
# ## Best of n
#
# The same without training: draw $n$ replies from the reference and say the one with the best proxy. Proxies differ, so with the replies in the proxy's order the chance
# that none of $n$ is beyond the $i$-th is $F_i^n$, with $F$ the cumulated reference. Its KL is at most $\log n - (n - 1)/n$, the library's `kl_bound`.


# %%
def best_of(n: int) -> np.ndarray:
    """What best-of-n says; the replies are in the proxy's order already."""
    below = np.concatenate([[0.0], np.cumsum(ref)])
    return np.diff(below**n)


for n in (1, 2, 4, 8, 16, 64, 256):
    pi = best_of(n)
    print(
        f"n = {n:3d}: proxy {pi @ proxy:.3f}, truth {pi @ truth:.3f}, KL {kl(pi):.3f}, at most {kl_bound(n):.3f}   {pi}"
    )

# %% [markdown]
# ## The library's PPO
#
# PPO walks to $\pi_\kappa$ step by step. It is given the proxy and a price; we look at the truth on its way. One token is one reply.

# %%
REFERENCE = {"logits": jnp.log(jnp.asarray(ref, jnp.float32)), "value": jnp.zeros(())}
PROMPTS = PromptBatch(tokens=jnp.zeros((256, 1), jnp.int32), mask=jnp.ones((256, 1), bool))


def sample(params: dict[str, jax.Array], prompts: PromptBatch, key: jax.Array) -> Rollout:
    """One reply to each prompt."""
    n = prompts.tokens.shape[0]
    tokens = jax.random.categorical(key, params["logits"], shape=(n,))
    return Rollout(
        prompt_tokens=prompts.tokens,
        prompt_mask=prompts.mask,
        response_tokens=tokens[:, None],
        response_mask=jnp.ones((n, 1), bool),
        logprobs=jax.nn.log_softmax(params["logits"])[tokens][:, None],
        finished=jnp.ones(n, bool),
    )


def policy(params: dict[str, jax.Array], rollout: Rollout) -> PolicyOutput:
    """The judgement of the same table; the critic is a single number."""
    logprobs = jax.nn.log_softmax(params["logits"])
    shape = rollout.response_tokens.shape
    return PolicyOutput(
        logprobs=logprobs[rollout.response_tokens],
        entropy=jnp.broadcast_to(-jnp.sum(jnp.exp(logprobs) * logprobs), shape),
        values=jnp.broadcast_to(params["value"], shape),
    )


config = PPOConfig(
    component_weights=(1.0,),
    component_names=("proxy",),
    normalise_components=False,
    normalise_score=False,
    score_clip=None,
    whiten_advantages=False,
    value_coef=1.0,
    value_clip_eps=10.0,
    kl_coef=0.5,
)
UPDATES = 300
adam = make_optimizer(learning_rate=0.02, total_steps=UPDATES * config.epochs, schedule="constant")
iteration = ppo.make_ppo_iteration(
    sample=sample,
    policy=policy,
    score=lambda table, rollout: table[rollout.response_tokens],
    optimizer=adam,
    config=config,
)


def train(kl_coef: float) -> np.ndarray:
    """The policy after every update, the reference first. [UPDATES + 1, 4]"""
    state = ppo.init(REFERENCE, adam, config, jax.random.key(3)).replace(kl_coef=jnp.array(kl_coef))
    path = [np.array(state.params["logits"])]  # A copy: an update takes over the memory of the state it is given.
    for _ in range(UPDATES):
        state, _, _ = iteration(state, PROMPTS, REFERENCE, jnp.asarray(proxy, jnp.float32))
        path.append(np.array(state.params["logits"]))
    return np.asarray(jax.nn.softmax(jnp.stack(path), axis=-1), np.float64)


paths = {kl_coef: train(kl_coef) for kl_coef in (0.0, 0.1, 0.5)}
for kl_coef, path in paths.items():
    best = int(np.argmax(path @ truth))
    there = f", π_κ has {optimum(kl_coef) @ truth:.3f}" if kl_coef else ""
    print(f"κ = {kl_coef}: truth {path[0] @ truth:.3f}, best {path[best] @ truth:.3f} after {best} updates,", end=" ")
    print(f"at the end {path[-1] @ truth:.3f}{there}")

# %% [markdown]
# With $\kappa = 0.5$ PPO arrives where the truth is good and stays. With a cheap price, or none, it *passes* there and goes on. **Stopping early and paying for KL are two
# ways to the same place**, but a run without a price says nothing of when to stop: its score rises all the time.
#
# ## The picture

# %% try="hacking" caption="Left: proxy and truth of the best policy at a price, of best-of-n, and of PPO on its way without a price, against the root of KL; the proxy keeps rising, the truth turns. Right: the truth against the price κ, for three prices on length."
prices = np.geomspace(0.02, 20, 200)
figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
walks = {
    r"$\pi_\kappa$": (np.stack([optimum(price) for price in prices]), "-", "black"),
    "best of n": (np.stack([best_of(n) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)]), "o", "C2"),
    "PPO, κ = 0": (paths[0.0], "--", "C1"),
}
for name, (policies, style, color) in walks.items():
    distance = np.sqrt(np.maximum([kl(pi) for pi in policies], 0))
    axes[0].plot(distance, policies @ proxy, style, color=color, alpha=0.45, markersize=5)
    axes[0].plot(distance, policies @ truth, style, color=color, label=name, markersize=5)
axes[0].set(xlabel="√KL", ylabel="mean (pale: proxy, strong: truth)", title="Over-optimisation")
axes[0].legend()
for length_price, style in ((0.0, "-"), (0.03, "--"), (0.06, ":")):
    axes[1].semilogx(
        prices,
        [optimum(price, length_price) @ truth for price in prices],
        style,
        color="C0",
        label=f"{length_price} a word",
    )
axes[1].axhline(ref @ truth, color="gray", linewidth=0.8)
axes[1].invert_xaxis()
axes[1].set(xlabel="price κ of a nat (cheaper to the right)", ylabel="truth", title="Another price: on length")
axes[1].legend()
plt.show()

# %% [markdown]
# The curve on the left is that of [Gao et al. 2023](https://arxiv.org/abs/2210.10760): whoever optimises the proxy, the truth rises and falls. How high it gets differs.
# PPO on its way gets higher than any $\pi_\kappa$: a step raises a reply the more, the more often it is said, so the rare endless one is found last. On the right, a price on length repairs the proxy where it is wrong, so that KL may be cheap.
#
# ## The real thing
#
# The same in a simulated world where the truth is known: long replies hold its users, and cost them. Six stored runs of PPO on a language model, by
# `python experiments/reward_hacking.py hackable`, all numbers from `docs/results/full_hacking_hackable.csv`. The reward model's held-out Pearson is .92.

# %%
# (κ, price on length): √KL at the end, proxy and true utility minus those of imitation, and the latter's 95 % interval.
STORED = {
    (0.0, False): (4.471894, 1.084571, -0.1422762, -0.1697756, -0.1186688),
    (0.05, False): (2.66801, 1.041667, -0.1363657, -0.1645711, -0.1104609),
    (0.2, False): (1.833238, 0.8443186, -0.04261416, -0.07183088, -0.01577437),
    (0.0, True): (4.841408, 1.047163, -0.1080064, -0.1366738, -0.08234795),
    (0.05, True): (2.653983, 0.9952379, -0.1215788, -0.1476695, -0.09740156),
    (0.2, True): (1.423441, 0.7254736, -0.003952272, -0.03269894, 0.02193464),
}

# %% try="runs" caption="Six stored runs at the end of training: the proxy's gain and the change of true utility with its interval, against the root of KL. All proxies rise; five of six truths fall, the sixth shows no change."
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
for priced, marker in ((False, "o"), (True, "s")):
    rows = {price: row for (price, has), row in STORED.items() if has == priced}
    distance, proxies, truths, low, high = np.array(list(rows.values())).T
    label = "length priced" if priced else "length free"
    axes[0].plot(distance, proxies, marker, color=f"C{int(priced)}", label=label)
    axes[1].errorbar(
        distance, truths, [truths - low, high - truths], fmt=marker, color=f"C{int(priced)}", capsize=3, label=label
    )
    for axis, heights in zip(axes, (proxies, truths), strict=True):
        for price, x, y in zip(rows, distance, heights, strict=True):
            axis.annotate(f"κ = {price}", (x, y), xytext=(6, 4), textcoords="offset points", fontsize=8)
for axis, title in zip(axes, ("Proxy, minus imitation", "True utility, minus imitation"), strict=True):
    axis.axhline(0, color="gray", linewidth=0.8)
    axis.set(xlabel="√KL", title=title, xlim=(0, 5.6))
axes[0].set(ylim=(0, 1.3))
axes[0].legend(loc="lower right")
plt.show()

# %% [markdown]
# These are ends of runs with one seed, which claims little; [the page of the study](../docs/results/over_optimisation.md) says what five seeds of a smaller world show.
# The pattern is that of the four replies: dearer KL, less distance and less proxy, and where it is dear enough, more truth. A price of .05 is too cheap to save anything here. Only the
# dear KL together with a price on length ends where it began.
#
# ## Checks

# %%
assert correlation[0, 1] > 0
reached = np.stack([optimum(price) for price in np.geomspace(20, 0.02, 200)])  # From dear to cheap.
assert (np.diff(reached @ proxy) >= 0).all()
turn = int(np.argmax(reached @ truth))
assert 0 < turn < 199 and (np.diff(reached @ truth)[turn:] <= 0).all()
assert reached[-1] @ truth < ref @ truth < reached[turn] @ truth
for price in (2.0, 0.5, 0.2):
    pi = optimum(price)
    np.testing.assert_allclose(slope(price), covariance(pi), atol=1e-6)
    # The library's KL, from logits.
    np.testing.assert_allclose(kl_exact(jnp.log(pi)[None], jnp.log(ref)[None])[0], kl(pi), atol=1e-5)
for n in (1, 2, 4, 8, 16, 64, 256):
    assert kl(best_of(n)) <= kl_bound(n) + 1e-9
np.testing.assert_allclose(paths[0.5][-1], optimum(0.5), atol=0.03)
for kl_coef in (0.0, 0.1):
    on_the_way = paths[kl_coef] @ truth
    assert on_the_way.max() > on_the_way[-1] + 0.1
    assert on_the_way.max() > (reached @ truth).max()
assert all(proxies > 0 for _, proxies, *_ in STORED.values())
assert [high < 0 for *_, high in STORED.values()] == [True] * 5 + [False]

# %% [markdown]
# ## Exercises
#
# 1. At which price is the truth best, and what is the covariance of truth and proxy there?
# 2. Which $n$ is best in best-of-n? Is its KL that of the best price?
# 3. From which price on length on does the truth never fall, however cheap the KL? Find it by hand first, then for any replies: fill in `enough`.


# %%
def enough(truth: np.ndarray, words: np.ndarray, rate: float) -> float:
    """The least price of a word at which the best reply in truth has the best score too, where the proxy pays `rate` a word. Exercise 3."""
    raise NotImplementedError("your turn")


def asserts_3(enough) -> None:
    np.testing.assert_allclose(enough(truth, words, 0.1), 1 / 30)
    # The best in truth has the fewest words here, so that no price on them can be too high.
    others = np.array([0.9, 0.85, 0.2, 0.0]), np.array([3.0, 5.0, 9.0, 30.0])
    price = enough(*others, 0.2)
    for c in (price - 0.001, price + 0.001):
        assert (np.argmax(others[0] + (0.2 - c) * others[1]) == 0) == (c > price), f"at a price of {c:.3f}"
    assert enough(*others, 0.01) == 0, "nothing has to be priced where the proxy hardly pays for words"


check(enough, asserts_3)

# %% [markdown]
# **1.** At $\kappa \approx 0.38$, where the covariance is 0: among the replies that this policy gives, the proxy says nothing of the truth any more.

# %%
fine = np.geomspace(0.1, 2, 4000)
best_price = float(fine[np.argmax([optimum(price) @ truth for price in fine])])
print(
    f"κ = {best_price:.3f}: truth {optimum(best_price) @ truth:.4f}, covariance {covariance(optimum(best_price)):.1e}"
)
assert abs(covariance(optimum(best_price))) < 1e-3 and abs(best_price - 0.38) < 0.005

# %% [markdown]
# **2.** $n = 5$. Its KL is .69 nats, that of the best price .79, and its truth is a little lower. Best-of-n optimises the proxy like everybody else: it too can be overdone, and $n$
# is what says how far it goes.

# %%
best_n = max(range(1, 65), key=lambda n: best_of(n) @ truth)
pi = best_of(best_n)
print(f"n = {best_n}: truth {pi @ truth:.3f}, KL {kl(pi):.3f}; best price: KL {kl(optimum(best_price)):.3f}")
assert best_n == 5 and kl(pi) < kl(optimum(best_price)) and pi @ truth < optimum(best_price) @ truth

# %% [markdown]
# **3.** The cheapest KL leaves the reply with the best score alone, which must be the apt one. Against the chatty one it wins by $0.4 - 6\,(0.1 - c)$, against the
# endless one by $0.8 - 12\,(0.1 - c)$: both above 0 above $c = 1/30$. This is
# necessary. Whether the truth falls on the way there is another question; for these replies it does not, as is printed below.


# %%
def enough(truth: np.ndarray, words: np.ndarray, rate: float) -> float:
    """Against the reply that is best in truth, a longer one gains the rate less the price on every word more, and loses the truth between them."""
    best = int(np.argmax(truth))
    longer = words > words[best]
    gap, more = truth[best] - truth[longer], words[longer] - words[best]
    return max(0.0, *(rate - gap / more))


assert check(enough, asserts_3)
for length_price in (0.03, 0.037):
    values = np.array([optimum(price, length_price) @ truth for price in np.geomspace(20, 0.002, 400)])
    print(
        f"{length_price} a word: truth at last {values[-1]:.3f}, falls by {np.max(np.maximum.accumulate(values) - values):.3f}"
    )
    assert (values[-1] > 0.99) == (length_price > 1 / 30) == (np.diff(values).min() > -1e-9)

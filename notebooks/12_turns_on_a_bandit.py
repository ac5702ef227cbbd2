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
# # 12 · Turns on a bandit: who earns what is paid later?
#
# A recommender may *tell*: name a film at once, and be paid a little. Or it may *ask*. A question is paid nothing; the answer that follows can
# be paid in full. **How does a question get its share? And what becomes of conversations that are over while others still run?**
#
# The equation is `equations.group.turn_advantages`. It is given the rewards of conversations that began alike, [conversation, turn, component], and which
# turns were had. Lesson 3 paid tokens; here a whole turn is paid, and all its tokens get the turn's advantage.

# %%
import functools
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from rlhf_jax.equations.group import turn_advantages
from rlhf_jax.interfaces import PolicyOutput, Rollout
from rlhf_jax.learners import multi_turn
from rlhf_jax.learners.multi_turn_config import MultiTurnConfig
from rlhf_jax.lessons import check

np.set_printoptions(precision=3, suppress=True)
plt.style.use("seaborn-v0_8-colorblind")  # Colours that everybody can tell apart.

# %% [markdown]
# ## The game
#
# Two turns. At the first the policy asks with probability $p$, else it tells. After a question it answers well with probability $q$. Telling is paid 0.3, a
# good answer 1, everything else nothing. A conversation is one of three: it *tells*, asks and answers *well*, asks and answers *badly*. What is
# earned in the mean, and what raising a logit of the policy adds to it, we know:
#
# $$J = 0.3\,(1 - p) + p q, \qquad \frac{\partial J}{\partial l_\text{ask}} = p (1 - p) (q - 0.3), \qquad \frac{\partial J}{\partial l_\text{well}} = p\, q (1 - q)$$
#
# ## By hand
#
# Four conversations: tells, tells, asks and answers well, asks and answers badly. With $\gamma = 1$ a turn is credited with what is paid from it on,
# the *return*, less the mean of all four returns at the same turn, its own among them.

# %%
rewards = np.array([[0.3, 0.0], [0.3, 0.0], [0.0, 1.0], [0.0, 0.0]])
returns = np.array([[0.3, 0.0], [0.3, 0.0], [1.0, 1.0], [0.0, 0.0]])
by_hand = returns - returns.mean(axis=0)
everybody = jnp.ones((4, 2), bool)
library = turn_advantages(jnp.asarray(rewards)[..., None], everybody, jnp.ones(1), decoupled=False)
print("by hand", np.round(by_hand, 3).tolist())
print("library", np.round(library, 3).tolist())

# %% [markdown]
# The question that led to a good answer gets 0.6, although it was paid nothing itself.
#
# Luck plays no part from here on: there are $3^4$ groups of four conversations. We take them all, each with its probability, and have the exact
# mean of what a learner does, and how much one group departs from it.

# %%
SIZE = 4
TELLS, WELL, BADLY = range(3)
GROUPS = np.array(list(itertools.product(range(3), repeat=SIZE)))
"""Every group there could be. [81, 4]"""
ASKED = (GROUPS != TELLS).astype(float)
ANSWERED = (GROUPS == WELL).astype(float)


@functools.partial(jax.jit, static_argnames=("gamma", "decoupled"))
def credit_of_all(rewards, running, weights, gamma=1.0, decoupled=True):
    """`turn_advantages` of every group."""
    how = {"gamma": gamma, "decoupled": decoupled}
    return jax.vmap(lambda r, had: turn_advantages(r, had, weights, **how))(rewards, running)


def paid(told: float = 0.3, level: float = 0.0) -> np.ndarray:
    """Rewards of all groups [81, 4, 2]; `level` is paid for each turn that was had after a question, on top."""
    first = told * (GROUPS == TELLS)
    second = np.where(GROUPS == TELLS, 0.0, ANSWERED + level)
    return np.stack([first, second], axis=2)


def advantages(rewards: np.ndarray, ends: bool = False, **how) -> np.ndarray:
    """Of all groups [81, 4, 2]; where telling `ends` a conversation, it has no second turn."""
    running = np.ones(rewards.shape, bool)
    running[..., 1] = ~((GROUPS == TELLS) & ends)
    return np.asarray(credit_of_all(jnp.asarray(rewards, jnp.float32)[..., None], running, jnp.ones(1), **how))


@jax.jit
def gradients(credit, p, q):
    """Probability of each group [81], and its gradient for the two logits, ask and well [81, 2]."""
    chance = jnp.prod(jnp.stack([1 - p, p * q, p * (1 - q)])[GROUPS], axis=1)
    ask = jnp.mean(credit[..., 0] * (ASKED - p), axis=1)
    well = jnp.mean(credit[..., 1] * ASKED * (ANSWERED - q), axis=1)
    return chance, jnp.stack([ask, well], axis=1)


@jax.jit
def climb(credit):
    """p and q after every one of 400 steps along the exact mean gradient, from 1/2 each. [400, 2]"""

    def step(logits, _):
        p, q = jax.nn.sigmoid(logits)
        chance, gradient = gradients(credit, p, q)
        logits = logits + chance @ gradient
        return logits, jax.nn.sigmoid(logits)

    return jax.lax.scan(step, jnp.zeros(2), None, 400)[1]


paths = {
    "return, γ = 1": climb(advantages(paid(), decoupled=False)),
    "own reward, γ = 0": climb(advantages(paid(), decoupled=False, gamma=0.0)),
    "γ = 1, each turn normalised": climb(advantages(paid())),
}
for name, path in paths.items():
    p, q = path[-1]
    print(f"{name:28s} asks {p:.2f}, answers well {q:.2f}, earns {0.3 * (1 - p) + p * q:.2f}")

# %% [markdown]
# With the return the policy learns to ask; with a turn's own reward it grabs 0.3 and never finds out what a question is good for.
#
# The third line is a surprise. `decoupled` divides each turn's rewards by *their* deviation. What is paid at turn 1 and what is paid at turn 2 are then
# one deviation each: 0.3 counts as much as 1. Who normalises by the turn says that all turns matter alike. Why would one want that?
#
# ## One component a hundred times as large
#
# Rewards have several components, in units of their own. Take one turn, an answer, with two components: it is *good* or not (1 or 0), and it is *long* or
# not (100 or 0). Two decisions, two logits, one half each. The sum of both is $r = \text{good} + 100\,\text{long}$. There are $4^4$ groups.

# %%
kinds = np.array([(good, long) for good in (0.0, 1.0) for long in (0.0, 1.0)])
two = kinds[np.array(list(itertools.product(range(4), repeat=SIZE)))]
"""What each answer of each group is: good, long. [256, 4, 2]"""


def needed(**how) -> np.ndarray:
    """Groups one must see until the mean gradient of a logit stands out of its noise: variance over squared mean. [2]"""
    rewards = jnp.asarray((two * [1.0, 100.0])[:, :, None], jnp.float32)
    credit = np.asarray(credit_of_all(rewards, np.ones(rewards.shape[:3], bool), jnp.ones(2), **how))
    gradient = np.mean(credit * (two - 0.5), axis=1)
    return gradient.var(axis=0) / gradient.mean(axis=0) ** 2


needed_by = {"plain sum": needed(decoupled=False), "decoupled": needed()}
for name, (good, long) in needed_by.items():
    print(f"{name:10s} groups needed to learn: to be good {good:9.1f}, to be long {long:5.1f}")

# %% [markdown]
# In the plain sum the small component is there, and its mean gradient is right. But length shakes every group, and thousands of groups are needed before
# it is seen. **Decoupled**, both are learnt alike. This is what GDPO ([Liu et al. 2026](https://arxiv.org/abs/2601.05242)) is for. A weight of 1/100 would
# do it too, if one knew.
#
# ## A conversation that is over
#
# Now telling *ends* a conversation. At turn 2 a group of four has perhaps two left. What do the others count there? One may let them stand with a return of **zero**. Or they
# **leave** the mean, as in the library. To see the difference, let an answer be paid a *level* on top, good or bad, as a reward for the right form would.

# %%
p, q = 0.5, 0.5


def table(told: float, level: float, ends: bool, **how) -> dict[str, float]:
    """Exact facts of one way of counting, at p = q = 1/2."""
    credit = advantages(paid(told, level), ends, **how)
    chance, gradient = (np.asarray(x) for x in gradients(credit, p, q))
    mean = chance @ gradient
    return {
        "ask": mean[0],
        "well": mean[1],
        "mean advantage": chance @ np.sum(credit[..., 1] * ASKED, axis=1) / (chance @ ASKED.sum(axis=1)),
        "needed": (chance @ gradient[:, 1] ** 2 - mean[1] ** 2) / mean[1] ** 2,
    }


facts = {}
for level in (0.0, 3.0):
    truth = p * (1 - p) * (q + level - 0.3), p * q * (1 - q)
    print(f"level {level:.0f}: true gradient for asking {truth[0]:.4f}, for answering well {truth[1]:.4f}")
    for name, ends in (("zeros", False), ("leave", True)):
        found = facts[name, level] = table(0.3, level, ends, decoupled=False)
        print(
            f"  {name}: share of the true gradient {found['ask'] / truth[0]:.3f} and {found['well'] / truth[1]:.3f}, "
            f"mean advantage at turn 2 {found['mean advantage']:+.3f}, groups needed {found['needed']:.1f}"
        )

# %% [markdown]
# Zeros do **not** bend the gradient. A baseline that knows nothing of one's own choice never does, and even a zero is one. The mean holds one's own return as well, which
# costs a share of $1/4$, the same for every turn. Leaving costs more: of $m$ that are left a share of $1/m$, and all of it for the last one, who has nobody to be compared with.
#
# What zeros do bend is the *advantage*: everybody who gets to turn 2 looks better than average, whatever is said there. All of it is raised, and only the
# mean over many groups takes it back. How much there is to take back grows with the level: look at the groups needed. Without a level zeros even need
# fewer. Those who leave do not care about the level at all.
#
# So the rule: zeros are harmless as long as nothing is paid for merely being there, and a noise that grows with what is. A reward for the right form is paid
# to nearly everybody, every turn; this is why the library lets the ended leave.
#
# ## Both at once
#
# Now components are normalised by the turn *and* the ended leave (or stand with a reward of zero). Let telling be paid nothing. Then asking is better
# without any doubt.

# %%
unpaid = {}
for way in ("plain", "decoupled"):
    for name, ends in (("zeros", False), ("leave", True)):
        unpaid[way, name] = table(0.0, 0.0, ends, decoupled=way == "decoupled")["ask"]
for (way, name), ask in unpaid.items():
    print(f"{way:9s} {name}: gradient for asking {ask:+.4f}")

# %% [markdown]
# **Nothing** is left of it in the last line. At turn 2 rewards are centred among those who are there. Their mean is zero, so on average there is nothing to be gained by *getting* there.
# Decoupled credit by the turn knows who did well at a turn. It does not know whether it was worth having the turn.
#
# For a recommender this may be wanted: with a reward for every turn the plain sum pays for talking on and on. But then a question is worth asking only
# where those who did not ask go on as well, and are paid less. Look at how conversations end before choosing, and at `objective/turns` while learning.
#
# ## The picture

# %% caption="Left: the probability of asking over the steps, for several ways of giving credit. Middle and right: how many groups each way needs, when components differ in size, and when conversations end early."
figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
for (name, path), style in zip(paths.items(), ("-", "--", ":"), strict=True):
    axes[0].plot(path[:, 0], style, linewidth=2, label=name)
axes[0].set(xlabel="step", ylabel="probability of asking", ylim=(-0.02, 1.02), title="A question pays a turn later")
axes[0].legend()
places = np.arange(2)
for shift, (name, counts) in zip((-0.2, 0.2), needed_by.items(), strict=True):
    axes[1].bar(places + shift, counts, 0.4, label=name, hatch="//" if shift > 0 else None, edgecolor="black")
axes[1].set_xticks(places, ["to be good (1)", "to be long (100)"])
axes[1].set(yscale="log", ylabel="groups needed", title="One component a hundred times as large")
axes[1].legend()
levels = np.linspace(0, 4, 9)
for (name, ends), style in zip((("zeros", False), ("leave", True)), ("-", "--"), strict=True):
    axes[2].plot(levels, [table(0.3, x, ends, decoupled=False)["needed"] for x in levels], style, label=name)
axes[2].set(xlabel="level paid for any second turn", ylabel="groups needed", title="The ended: zeros, or leave", ylim=0)
axes[2].legend()
plt.show()

# %% [markdown]
# ## The learner
#
# `learners.multi_turn` does the rest: a turn is a row, its advantage stands on all its tokens, and the loss is GRPO's. One step of plain gradient descent on the four
# conversations from above. Rows stand in the order [opening, conversation, turn]; the last token of a prompt is where the conversation is.


# %%
def policy(params: dict[str, jax.Array], rollout: Rollout) -> PolicyOutput:
    """Logits by state: 0 at the start, 1 after telling, 2 after asking."""
    logits = jax.nn.log_softmax(params["logits"])[rollout.prompt_tokens[:, -1:]]
    logprobs = jnp.take_along_axis(logits, rollout.response_tokens[..., None], axis=2)[..., 0]
    return PolicyOutput(logprobs=logprobs, entropy=jnp.zeros_like(logprobs), values=jnp.zeros_like(logprobs))


said = jnp.array([[0, 0], [0, 0], [1, 1], [1, 0]]).reshape(8, 1)
place = jnp.array([[0, 1], [0, 1], [0, 2], [0, 2]]).reshape(8, 1)
rollout = Rollout(
    prompt_tokens=place,
    prompt_mask=place >= 0,
    response_tokens=said,
    response_mask=said >= 0,
    logprobs=jnp.full((8, 1), np.log(0.5)),
    finished=jnp.ones(8, bool),
)
episodes = multi_turn.Episodes(
    rollout=rollout, rewards=jnp.asarray(rewards, jnp.float32)[None, ..., None], running=everybody[None]
)
config = MultiTurnConfig(component_names=("film",), component_weights=(1.0,), decoupled=False, kl_coef=0.0)
start, descent = {"logits": jnp.zeros((3, 2))}, optax.sgd(1.0)
state = multi_turn.init(start, descent, config, jax.random.key(0))
state, metrics = multi_turn.make_learn(policy=policy, optimizer=descent, config=config)(state, episodes, start)
# Mean over 8 tokens of A (1[said] − ½): asking, and answering well.
one_step = np.array([by_hand[:, 0] @ [-0.5, -0.5, 0.5, 0.5], by_hand[2:, 1] @ [0.5, -0.5]]) / 8
moved = np.asarray(state.params["logits"])[[0, 2], 1]
print("logits of asking and of a good answer: by hand", one_step, "library", moved)
print(
    {name: round(float(value), 3) for name, value in metrics.items() if name.startswith(("turn/", "objective/turns"))}
)

# %% [markdown]
# ## Checks

# %%
np.testing.assert_allclose(library, by_hand, atol=1e-6)
np.testing.assert_allclose(moved, one_step, atol=1e-6)
assert paths["return, γ = 1"][-1].min() > 0.9
assert paths["own reward, γ = 0"][-1, 0] < 0.1 and paths["γ = 1, each turn normalised"][-1, 0] < 0.1
assert needed_by["plain sum"][0] > 1000 and needed_by["decoupled"].max() < 5
for level in (0.0, 3.0):
    truth = np.array([p * (1 - p) * (q + level - 0.3), p * q * (1 - q)])
    zeros, leave = ([facts[name, level][logit] for logit in ("ask", "well")] for name in ("zeros", "leave"))
    np.testing.assert_allclose(zeros / truth, 3 / 4, rtol=1e-4)
    # Of m that are left, m − 1 count: E[max(m − 1, 0)]/E[m], with m out of 4 and p = 1/2.
    np.testing.assert_allclose(leave / truth, [3 / 4, (2 - 15 / 16) / 2], rtol=1e-4)
assert abs(facts["leave", 3.0]["mean advantage"]) < 1e-6 and facts["zeros", 0.0]["mean advantage"] > 0.1
np.testing.assert_allclose(facts["leave", 3.0]["needed"], facts["leave", 0.0]["needed"], rtol=1e-3)
assert facts["zeros", 3.0]["needed"] > 5 * facts["zeros", 0.0]["needed"]
np.testing.assert_allclose(unpaid["plain", "leave"], 3 / 4 * p * (1 - p) * q, rtol=1e-4)
assert abs(unpaid["decoupled", "leave"]) < 1e-6 and unpaid["decoupled", "zeros"] > 0.1

# %% [markdown]
# ## Exercises
#
# 1. Where between 0 and 1 does $\gamma$ tip the game from telling to asking, when $q = 1$? And for any $q$, and any pay for telling: fill in `tipping_gamma`.
# 2. Nobody ends; the plain sum pays a level for every second turn, told or asked. Does the gradient for asking change? Does the noise?
# 3. Divide each component by *one* deviation, over all turns of the group, and take nothing off. Is the policy led to ask again? Is it safe from a
#    component a hundred times as large?


# %%
def tipping_gamma(told: float, q: float) -> float:
    """The γ at which asking and telling are worth the same, where telling is paid `told`. Exercise 1."""
    raise NotImplementedError("your turn")


def asserts_1(tipping_gamma) -> None:
    for told, q in ((0.3, 1.0), (0.3, 0.6), (0.5, 0.8)):
        tip = tipping_gamma(told, q)
        for gamma in (tip - 0.02, tip + 0.02):
            credit = advantages(paid(told), decoupled=False, gamma=gamma)
            chance, gradient = gradients(credit, jnp.array(0.5), jnp.array(q))
            assert (chance @ gradient[:, 0] > 0) == (gamma > tip), f"at γ = {gamma:.2f}, q = {q}"


check(tipping_gamma, asserts_1)

# %% [markdown]
# **1.** Asking earns $\gamma q$ at the first turn, telling 0.3. It tips at $\gamma = 0.3$, and in general at the pay for telling divided by $q$.


# %%
def tipping_gamma(told: float, q: float) -> float:
    """Where both earn the same."""
    return told / q


assert check(tipping_gamma, asserts_1)
for gamma in (0.25, 0.35):
    chance, gradient = gradients(advantages(paid(), decoupled=False, gamma=gamma), jnp.array(0.5), jnp.array(1.0))
    ask = float(chance @ gradient[:, 0])
    print(f"γ = {gamma}: gradient for asking {ask:+.4f}")
    assert (ask > 0) == (gamma > 0.3)

# %% [markdown]
# **2.** Neither. All returns of a turn grow alike, and so does their mean.

# %%
level = paid() + np.array([0.0, 5.0])
np.testing.assert_allclose(advantages(level, decoupled=False), advantages(paid(), decoupled=False), atol=1e-5)

# %% [markdown]
# **3.** Both. One deviation for the whole conversation leaves the sizes of turns as they are to each other, and takes the unit away all the same. What
# it pays for is also what the plain sum pays for: a turn more, where every turn is paid.


# %%
def one_scale(rewards: np.ndarray, ends: bool) -> np.ndarray:
    """Rewards over the deviation of all turns that were had in the group; [81, 4, 2]."""
    had = np.ones(rewards.shape, bool)
    had[..., 1] = ~((GROUPS == TELLS) & ends)
    count = had.sum(axis=(1, 2), keepdims=True)
    mean = np.sum(rewards * had, axis=(1, 2), keepdims=True) / count
    deviation = np.sqrt(np.sum(np.square(rewards - mean) * had, axis=(1, 2), keepdims=True) / count)
    return rewards / (deviation + 1e-6)


for ends in (False, True):
    scaled = advantages(one_scale(paid(), ends), ends, decoupled=False)
    larger = advantages(one_scale(100 * paid(), ends), ends, decoupled=False)
    p_end, q_end = climb(scaled)[-1]
    print(f"telling ends a conversation: {ends}; asks {p_end:.2f}, answers well {q_end:.2f}")
    assert p_end > 0.9 and q_end > 0.9
    np.testing.assert_allclose(scaled, larger, atol=1e-3)

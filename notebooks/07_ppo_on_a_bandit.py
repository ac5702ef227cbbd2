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
# # 7 · PPO on a bandit: the smallest whole
#
# All parts are on the table; time to let them run together. The smallest language has one prompt, and responses of one
# token: a **bandit**, a choice among four things to recommend. Sequences do not matter yet (notebook 8), so everything can be
# followed by hand, and the best policy is known. **Does PPO find it?**
#
# The library's learner, `learners.ppo`, never sees a network. It takes three functions (in it, `params` is any tree of arrays):
#
# - `sample(params, prompts, key)` draws a response per prompt; the batch of them with their masks is called a **rollout**,
# - `policy(params, rollout)` judges given responses: log-probability, entropy and value of every token,
# - `score(reward_params, rollout)` gives the score, as one or several components.
#
# What passes between them, with $B$ responses and $T$ places for tokens; here $T = 1$, in notebook 8 it is 5:
#
# | array | shape | what it holds |
# |---|---|---|
# | `prompt_tokens`, `prompt_mask` | [B, P] | the prompt, and which of its tokens are real |
# | `response_tokens`, `response_mask` | [B, T] | the response, `<eos>` included; False behind its end |
# | `logprobs`, `entropy`, `values` | [B, T] | one number for every token; $V_t$ is the value *before* token $t$ |
# | `finished` | [B] | True if `<eos>` was said within the budget |
# | `score(…)` | [B, C] | raw score of every response, a column for each of $C$ components |
# | rewards, advantages, returns | [B, T] | made from the above by lines 4 to 6 |
#
# Random numbers need a **key**, `jax.random.key(0)`: the same key draws the same numbers, so every draw gets one of its own. Gradients become steps in an
# *optimizer* of the library Optax: plain gradient descent is `optax.sgd`.
#
# One call is one **update**: lines 1–8 of [the PPO box](../docs/algorithms/ppo.md).

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from rlhf_jax.equations.group import leave_one_out_advantages
from rlhf_jax.interfaces import PolicyOutput, PromptBatch, Rollout
from rlhf_jax.learners import ppo
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.lessons import check

np.set_printoptions(precision=4, suppress=True)
plt.style.use("seaborn-v0_8-colorblind")  # Colours that everybody can tell apart.

# %% [markdown]
# ## The game
#
# Four genres. The reference policy likes westerns; the users like noir best.

# %%
GENRES = ["western", "musical", "noir", "spy"]
scores = jnp.array([0.0, 0.4, 1.0, 0.7])
reference = {"logits": jnp.array([1.4, 0.4, 0.0, -0.6]), "value": jnp.zeros(())}
prompts = PromptBatch(tokens=jnp.zeros((256, 1), jnp.int32), mask=jnp.ones((256, 1), bool))


def sample(params: dict[str, jax.Array], prompts: PromptBatch, key: jax.Array) -> Rollout:
    """One token per prompt."""
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


def score(table: jax.Array, rollout: Rollout) -> jax.Array:
    """One component: what the genre is worth."""
    return table[rollout.response_tokens]


# %% [markdown]
# The score is used as it is here, without normalisation, so that the optimum can be written down. Advantages are not whitened for the
# same reason (exercise 2). The critic is a single number that shares nothing with the policy, so it may learn as fast as it likes:
# weight $c_v = 1$, and a clip range $\varepsilon_v$ too wide to matter. Everything else keeps the defaults of the box.

# %%
plain = {
    "component_weights": (1.0,),
    "component_names": ("worth",),
    "normalise_components": False,
    "normalise_score": False,
    "score_clip": None,
    "whiten_advantages": False,
    "value_coef": 1.0,
    "value_clip_eps": 10.0,
    "kl_coef": 0.5,
}

# %% [markdown]
# ## By hand
#
# One update with a single gradient step of plain gradient descent, in NumPy. With one token per response most lines shrink:
# the reward is $r = s - \kappa k_1$, the advantage is $A = r - V$, the return is $G = r$, and at $\rho = 1$ the loss has the gradient
#
# $$\nabla_l L = -\frac{1}{B} \sum_b A_b \left( e_{a_b} - \pi \right), \qquad \nabla_V L = c_v \frac{1}{B} \sum_b (V - G_b)$$
#
# with $B$ the number of responses and $e_a$ the vector that is 1 at $a$, else 0. We start away from the reference, so that the KL has a say.

# %%
one_step = PPOConfig(**plain, epochs=1)
descent = optax.sgd(0.5)
start = {"logits": jnp.array([0.0, 0.0, 0.5, 0.0]), "value": jnp.array(0.2)}
iteration = ppo.make_ppo_iteration(sample=sample, policy=policy, score=score, optimizer=descent, config=one_step)
state, metrics, rollout = iteration(ppo.init(start, descent, one_step, jax.random.key(0)), prompts, reference, scores)

# 1. Sample: the tokens the library drew.
actions = np.asarray(rollout.response_tokens[:, 0])
# 2. Score.
s = np.asarray(scores)[actions]
# 3. Judge: log π_old, V_old, log π_ref.
logits, value = np.array([0.0, 0.0, 0.5, 0.0]), 0.2
pi = np.exp(logits) / np.exp(logits).sum()
ref = np.exp(reference["logits"]) / np.exp(reference["logits"]).sum()
# 4. One score per response: s as it is.  5. Token rewards.
rewards = s - 0.5 * (np.log(pi) - np.log(ref))[actions]
# 6. Advantages and returns.
advantages, returns = rewards - value, rewards
# 7. Improve: one step downhill.
gradient = -(advantages[:, None] * (np.eye(4)[actions] - pi)).mean(axis=0)
logits_by_hand = logits - 0.5 * gradient
value_by_hand = value - 0.5 * 1.0 * (value - returns).mean()
# 8. Steer: the price is fixed.
print("logits by hand", np.round(logits_by_hand, 5), "library", np.round(state.params["logits"], 5))
print(f"value  by hand {value_by_hand:.5f} library {state.params['value']:.5f}")

# %% [markdown]
# ## Let it run
#
# The real configuration: four epochs per update, Adam (gradient descent that scales the step of each parameter), 400 updates of 256
# responses, starting at the reference, for three prices $\kappa$. The learner compiles once; $\kappa$ is part of its state.
# The best policy is $\pi^* \propto \pi_\text{ref}\, e^{s/\kappa}$, and the best value of the
# objective $E[s] - \kappa\, \mathrm{KL}$ is $\kappa \log Z$ (notebook 3).
#
# The learning rate stays constant here. Long runs usually let it fall to 0, which calms the end; but a rate that has
# fallen to 0 stops wherever the policy happens to be, and whether it *would* have arrived could not be seen (exercise 1).

# %%
config = PPOConfig(**plain)
UPDATES = 400
adam = make_optimizer(learning_rate=0.02, total_steps=UPDATES * config.epochs, schedule="constant")
run = ppo.make_ppo_iteration(sample=sample, policy=policy, score=score, optimizer=adam, config=config)


def train(kl_coef: float, updates: int = UPDATES, run=run, adam=adam) -> tuple[np.ndarray, ppo.PPOState]:
    """The policy after every update, and the last state."""
    state = ppo.init(reference, adam, config, jax.random.key(1)).replace(kl_coef=jnp.array(kl_coef))
    path = [np.array(state.params["logits"])]  # A copy: an update takes over the memory of the state it is given.
    for _ in range(updates):
        state, _, _ = run(state, prompts, reference, scores)
        path.append(np.array(state.params["logits"]))
    return np.exp(jax.nn.log_softmax(np.stack(path), axis=-1)), state


def optimum(kl_coef: float) -> tuple[np.ndarray, float]:
    """π* and the maximum of the objective."""
    tilted = ref * np.exp(np.asarray(scores) / kl_coef)
    return tilted / tilted.sum(), kl_coef * np.log(tilted.sum())


def objective(policies: np.ndarray, kl_coef: float) -> np.ndarray:
    """E[s] − κ KL(π‖π_ref) of each row."""
    return policies @ np.asarray(scores) - kl_coef * (policies * np.log(policies / ref)).sum(axis=-1)


prices = (2.0, 0.5, 0.1)
runs = {kl_coef: train(kl_coef) for kl_coef in prices}
for kl_coef, (path, _) in runs.items():
    print(f"κ = {kl_coef}: after 120 updates {np.round(path[120], 3)}, after 400 {np.round(path[-1], 3)}", end=", ")
    print(f"best {np.round(optimum(kl_coef)[0], 3)}")

# %% [markdown]
# **It does.** For $\kappa = 0.1$ the best policy says noir with probability .970; PPO says it with .964 after 120 updates and with .969 after 400. The last
# thousandths take longest, because what is left to correct, musicals and westerns, is hardly ever sampled any more.

# %% [markdown]
# ## The picture
#
# Probabilities over the updates (lines) and $\pi^*$ (dotted). The cheaper the KL, the further the policy goes, up to hardly ever saying anything but
# noir. For the dearest KL the lines swing a little: near the optimum gradients are tiny, and Adam, which divides by their size, still makes steps of them.
# Last: the objective as a share of what can be gained.

# %% try="kappa" caption="Three panels, one for each price κ: probabilities of four genres over the updates, with the best policy dotted. Last panel: the share of the possible gain that is reached."
figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
for axis, (kl_coef, (path, _)) in zip(axes.flat, runs.items(), strict=False):
    for v, genre in enumerate(GENRES):
        axis.plot(path[:, v], color=f"C{v}", label=genre)
        axis.axhline(optimum(kl_coef)[0][v], color=f"C{v}", linestyle=":", linewidth=1.5)
    axis.set(title=f"κ = {kl_coef}", xlabel="update", ylabel="probability (dotted: π*)", ylim=(-0.02, 1))
axes[0, 0].legend()
for (kl_coef, (path, _)), style in zip(runs.items(), (":", "--", "-"), strict=True):
    gained = objective(path, kl_coef)
    share = (gained - gained[0]) / (optimum(kl_coef)[1] - gained[0])
    axes[1, 1].plot(share, style, color="black", label=f"κ = {kl_coef}")
axes[1, 1].axhline(1, color="gray", linewidth=0.8)
axes[1, 1].set(title="Objective", xlabel="update", ylabel="share of the possible gain", ylim=(-0.1, 1.1))
axes[1, 1].legend(loc="lower right")
plt.show()

# %% [markdown]
# ## What to watch
#
# Every update returns **metrics**, by names that are the same for a bandit and for GPT-2. Three that tell whether PPO is healthy:
# the ratio's deviation in the first step must be 0 (if not, sampler and learner disagree about the policy), the clip fraction
# should be small, and the critic should come to explain some of the variance of the returns (here it cannot: one state, one number).
# Here they are, below the mean score and the KL, of an update in the middle of the learning:

# %%
middle = train(0.5, updates=10)[1]
_, watched, _ = run(middle, prompts, reference, scores)
for name in (
    "objective/score_raw",
    "objective/kl_k1",
    "policy/first_ratio_max_deviation",
    "policy/clip_fraction",
    "value/explained_variance",
):
    print(f"{name:36s} {float(watched[name]):.4f}")

# %% [markdown]
# ## Checks

# %%
np.testing.assert_allclose(state.params["logits"], logits_by_hand, atol=1e-5)
np.testing.assert_allclose(state.params["value"], value_by_hand, atol=1e-5)
assert watched["policy/first_ratio_max_deviation"] < 1e-5
assert watched["policy/clip_fraction"] < 0.2
for kl_coef, (path, last) in runs.items():
    best_policy, maximum = optimum(kl_coef)
    np.testing.assert_allclose(path[-1], best_policy, atol=0.025)
    assert objective(path[-1:], kl_coef)[0] > maximum - 0.002
    # The critic has learnt what a response is worth after the price of the KL.
    np.testing.assert_allclose(last.params["value"], maximum, atol=0.1)
found, sought = runs[0.1][0][:, 2], optimum(0.1)[0][2]
np.testing.assert_allclose([found[120], found[400], sought], [0.964, 0.969, 0.970], atol=0.0025)
assert abs(found[400] - sought) < 0.002 < abs(found[120] - sought)

# %% [markdown]
# ## Exercises
#
# 1. Set $\kappa = 0$. What is the best policy now, and is there anything that stops PPO on the way there? And where does a learning rate
#    that falls to 0 within 120 updates leave the policy at $\kappa = 0.1$?
# 2. Switch whitening on for $\kappa = 0.5$. Why does the policy tremble around the optimum now?
# 3. The critic is one number here, the mean reward. Could the other responses of the batch do its work? Compare the noise of the
#    gradient with no baseline, and with the mean of the *other* scores (`leave_one_out_advantages`; that is **RLOO**, REINFORCE leave-one-out). Write it
#    yourself first: fill in `above_the_others`.


# %%
def above_the_others(scores: np.ndarray) -> np.ndarray:
    """Each score minus the mean of the *others*; [n] to [n]. Exercise 3, in NumPy."""
    raise NotImplementedError("your turn")


def asserts_3(above_the_others) -> None:
    np.testing.assert_allclose(above_the_others(np.array([1.0, 4.0])), [-3.0, 3.0])
    for size in (3, 8):
        some = np.random.default_rng(size).normal(size=size)
        expected = leave_one_out_advantages(jnp.asarray(some, jnp.float32))
        np.testing.assert_allclose(above_the_others(some), expected, atol=1e-5)


check(above_the_others, asserts_3)

# %% [markdown]
# **1.** Always noir. Nothing stops it: the advantages of the other genres stay negative as long as they are drawn at all, and entropy goes
# to 0. With a true score that is fine; with a proxy (notebook 6) it is not. The falling rate stops at .938 of .970: a curve that has become
# flat is no proof that the optimum is reached, the steps may simply have ended.

# %%
greedy, _ = train(0.0, 120)
print("κ = 0:", np.round(greedy[-1], 4))
assert greedy[-1][2] > 0.95
falling = make_optimizer(learning_rate=0.02, total_steps=120 * config.epochs)
run_falling = ppo.make_ppo_iteration(sample=sample, policy=policy, score=score, optimizer=falling, config=config)
stopped, _ = train(0.1, 120, run_falling, falling)
print(f"noir at κ = 0.1: {stopped[-1][2]:.3f} with the falling rate, {sought:.3f} at best")
assert stopped[-1][2] < found[120] - 0.01

# %% [markdown]
# **2.** At the optimum $s - \kappa k_1$ is the same for every genre, so all advantages vanish: nothing is left to learn. Whitening divides by
# their deviation, which is next to nothing, and turns the remainder, sampling noise, into advantages of size 1. (In a language
# model rewards never become equal; there whitening is worth its price.)

# %%
whitening = PPOConfig(**(plain | {"whiten_advantages": True}))
restless = ppo.make_ppo_iteration(sample=sample, policy=policy, score=score, optimizer=adam, config=whitening)
state = ppo.init(reference, adam, whitening, jax.random.key(1))
for _ in range(60):
    state, metrics, _ = restless(state, prompts, reference, scores)
calm = ppo.init(reference, adam, config, jax.random.key(1))
for _ in range(60):
    calm, calm_metrics, _ = run(calm, prompts, reference, scores)
print(f"size of a step: {metrics['policy/approx_kl']:.6f} nats with whitening,", end=" ")
print(f"{calm_metrics['policy/approx_kl']:.6f} without")
assert metrics["policy/approx_kl"] > calm_metrics["policy/approx_kl"]

# %% [markdown]
# **3.** Both gradients have the same mean (notebook 1, exercise 3), and the one with a baseline scatters less. The mean of the others is as good
# as a critic wherever several responses to the *same* prompt can be afforded. That is the idea of RLOO and of
# **GRPO**, group relative policy optimisation; they have no critic.


# %%
def above_the_others(scores: np.ndarray) -> np.ndarray:
    """The sum of the others is the sum of all without one's own."""
    return scores - (scores.sum() - scores) / (len(scores) - 1)


assert check(above_the_others, asserts_3)
probabilities = jax.nn.softmax(reference["logits"])


def gradient_of_group(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Policy gradients of eight responses: raw scores, and against the others."""
    tokens = jax.random.categorical(key, reference["logits"], shape=(8,))
    directions = jnp.eye(4)[tokens] - probabilities[None]
    # +2: an offset that changes no preference, but a policy without baseline takes it for merit.
    group = scores[tokens] + 2.0
    return (group @ directions) / 8, (leave_one_out_advantages(group) @ directions) / 8


raw, rloo = jax.vmap(gradient_of_group)(jax.random.split(jax.random.key(5), 4000))
print("mean gradient   ", np.round(raw.mean(axis=0), 3), "and", np.round(rloo.mean(axis=0), 3))
print("its deviation   ", np.round(raw.std(axis=0), 3), "and", np.round(rloo.std(axis=0), 3))
np.testing.assert_allclose(raw.mean(axis=0), rloo.mean(axis=0), atol=0.05)
assert np.all(rloo.std(axis=0) < 0.5 * raw.std(axis=0))

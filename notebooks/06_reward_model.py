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
# # 6 · Reward models and preferences: where does the score come from?
#
# So far a score fell from the sky. People can be asked for scores, but not for the millions of responses that a policy samples
# while it learns. So a few are judged, and a **reward model** $R_\phi(x, y)$, a network with parameters $\phi$, learns to predict the
# judgement. **Which loss does it learn with, and what happens when a policy learns from a prediction instead of the truth?**
#
# Judgements come in two kinds.
#
# - **Comparisons**: of two responses, the **chosen** one, $y_+$, was preferred to the **rejected** one, $y_-$. The
#   Bradley–Terry model says how probable that is if the responses had scores, and gives a loss in nats:
#
# $$P(y_+ \succ y_-) = \sigma(s_+ - s_-) = \frac{1}{1 + e^{-(s_+ - s_-)}}, \qquad L = -\log \sigma(s_+ - s_-)$$
#
# - **Ratings**: a number per response. In this project nobody was asked: how long a user stayed, whether the
#   next message is on the subject and in good spirits are **implicit feedback**, made into **weak labels** (engagement, relevance,
#   sentiment). Each is **z-scored**, minus its mean and divided by its standard deviation, and learnt by squared error. Some are missing: there is no
#   "next message" after the last one.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from rlhf_jax.equations.dpo import dpo_loss, implicit_reward
from rlhf_jax.equations.preference import bradley_terry_loss, regression_loss
from rlhf_jax.learners import reward_model
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.learners.reward_model import RewardBatch
from rlhf_jax.lessons import check

np.set_printoptions(precision=4, suppress=True)
plt.style.use("seaborn-v0_8-colorblind")  # Colours that everybody can tell apart.

# %% [markdown]
# ## By hand
#
# Three comparisons: a tie, a clear case that the scores get right, and one they get wrong. And two ratings, the second of which
# is missing: `NaN`, with a mask that says so.

# %%
chosen, rejected = np.array([0.0, 2.0, -1.0]), np.array([0.0, -1.0, 1.0])
comparison_by_hand = np.log(1 + np.exp(-(chosen - rejected)))
comparison = bradley_terry_loss(jnp.asarray(chosen, jnp.float32), jnp.asarray(rejected, jnp.float32))
print("comparisons by hand", np.round(comparison_by_hand, 4), "library", np.round(comparison, 4))

rating = regression_loss(jnp.array([0.7, 0.3]), jnp.array([1.2, jnp.nan]), jnp.array([True, False]))
print("ratings     by hand", [round((0.7 - 1.2) ** 2, 4), 0.0], "library", np.round(rating, 4))

# %% [markdown]
# ## Learning scores from comparisons
#
# Twelve films have a true worth. We see only comparisons of random pairs, drawn by Bradley–Terry's rule, so the worse film
# sometimes wins. The reward model is as small as can be: one number per film.

# %%
random = np.random.default_rng(0)
N_FILMS = 12
truth = np.sort(random.normal(size=N_FILMS) * 1.2)
truth -= truth.mean()


def compare(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Winners and losers of n comparisons of two different films."""
    first = random.integers(0, N_FILMS, n)
    second = (first + random.integers(1, N_FILMS, n)) % N_FILMS
    first_wins = random.random(n) < 1 / (1 + np.exp(truth[second] - truth[first]))
    return np.where(first_wins, first, second), np.where(first_wins, second, first)


@jax.jit
def fit(winners: jax.Array, losers: jax.Array) -> jax.Array:
    """Scores that minimise the mean loss, by plain gradient descent, plus a faint pull towards zero."""

    def loss(scores: jax.Array) -> jax.Array:
        return bradley_terry_loss(scores[winners], scores[losers]).mean() + 1e-3 * jnp.square(scores).sum()

    return jax.lax.fori_loop(0, 1500, lambda _, scores: scores - 2.0 * jax.grad(loss)(scores), jnp.zeros(N_FILMS))


winners, losers = compare(3000)
learnt = {n: np.asarray(fit(winners[:n], losers[:n])) for n in (60, 3000)}
for n, scores in learnt.items():
    print(f"{n:5d} comparisons: correlation with the truth {np.corrcoef(scores, truth)[0, 1]:.3f}")

# %% [markdown]
# ## The price of a proxy
#
# A policy does not want what is true, it wants what is paid. Take 4000 possible responses, a true score for each, and a reward model that is
# right up to an error, mostly small, now and then large. The policy is the best one for the *model's* score at a price $\kappa$ per
# nat of KL, known in closed form (notebook 3). As $\kappa$ falls it moves away from the reference and searches out high predictions, and among
# the highest predictions are the largest *errors*. A correlation of 0.86 does not prevent it. The prediction keeps rising, the truth
# turns round: **over-optimisation**, also known as reward hacking ([Gao et al. 2023](https://arxiv.org/abs/2210.10760)).

# %%
careful = np.random.default_rng(1)
true_score = careful.normal(size=4000)
model_score = true_score + 0.35 * careful.standard_t(3, size=4000)
print(f"correlation of the reward model with the truth: {np.corrcoef(true_score, model_score)[0, 1]:.2f}")


def tilted(kl_coef: float) -> tuple[float, float, float]:
    """KL in nats, mean model score, mean true score of the policy ∝ exp(model score/κ) over equally likely responses."""
    logits = model_score / kl_coef
    policy = np.exp(logits - logits.max())
    policy /= policy.sum()
    said = policy > 0
    return policy[said] @ np.log(policy[said] * 4000), policy @ model_score, policy @ true_score


curve = np.array([tilted(kl_coef) for kl_coef in np.geomspace(0.02, 20, 150)])

# %% [markdown]
# ## The picture

# %% caption="Left: scores learnt from comparisons against the true worth. Middle and right: the harder the reward model is optimised, the higher its own score; the truth first rises, then falls."
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12.5, 4.2), layout="constrained")
for (n, scores), marker, color in zip(learnt.items(), "xo", ("C2", "C0"), strict=True):
    left.plot(truth, scores, marker, color=color, markersize=6, label=f"{n} comparisons")
left.plot(truth[[0, -1]], truth[[0, -1]], color="gray", linewidth=0.8, label="equal")
left.set(xlabel="true worth", ylabel="learnt score", title="Scores from comparisons")
left.legend()
middle.plot(curve[:, 0], curve[:, 1], color="C2")
middle.set(xlabel="KL to the reference, nats", ylabel="mean score of the model", title="What the reward model says ...")
right.plot(curve[:, 0], curve[:, 2], color="C0")
turn = curve[curve[:, 2].argmax()]
right.plot(turn[0], turn[2], "o", color="C0")
right.annotate("best place to stop", turn[[0, 2]], xytext=(8, 6), textcoords="offset points")
right.set(xlabel="KL to the reference, nats", ylabel="mean true score", title="... and the truth", ylim=(0, 1))
plt.show()

# %% [markdown]
# Three things follow, and the rest of this library lives by them: keep a price on the KL; measure a reward model on judgements it
# has not seen before letting a policy near it (the **gate**: a correlation of at least 0.6 is asked for); and look at something else
# than the reward to know whether PPO helped.
#
# ## Learning ratings with the library's learner
#
# `learners.reward_model` takes any scoring function. Here responses have four features, the truth is linear, there are three
# labels, and a third of them is missing. A missing label must not count: neither as zero nor in the number by which the sum is divided.

# %%
features = random.normal(size=(64, 4))
weights_true = random.normal(size=(4, 3))
label_mask = random.random((64, 3)) > 1 / 3
labels = np.where(label_mask, features @ weights_true, np.nan)
batch = RewardBatch(
    inputs=jnp.asarray(features, jnp.float32),
    labels=jnp.asarray(labels, jnp.float32),
    label_mask=jnp.asarray(label_mask),
)


def score_fn(params: dict[str, jax.Array], inputs: jax.Array, key: jax.Array) -> jax.Array:
    """The smallest reward model: linear. `key` is for networks that switch off random units while they learn."""
    return inputs @ params["weights"]


optimizer = make_optimizer(learning_rate=0.1, total_steps=200)
state = reward_model.init({"weights": jnp.zeros((4, 3))}, optimizer)
update = jax.jit(functools.partial(reward_model.update, score_fn=score_fn, optimizer=optimizer))
first_loss = None
for step in range(200):
    state, metrics = update(state, batch, jax.random.key(step))
    first_loss = metrics["loss"] if first_loss is None else first_loss
print(f"loss {first_loss:.3f} → {metrics['loss']:.5f}; largest error of a weight:", end=" ")
print(f"{np.abs(state.params['weights'] - weights_true).max():.4f}")

# %% [markdown]
# ## Or no reward model at all
#
# Notebook 3 found the best policy $\pi^* \propto \pi_\text{ref}\, e^{s/\kappa}$. Read backwards, every policy is the best one for *some* score:
# $s(y) = \kappa (\log \pi(y) - \log \pi_\text{ref}(y))$ plus a constant, its **implicit reward**. Put that into the Bradley–Terry loss, and a policy can be
# trained on comparisons directly. That is **direct preference optimisation**, DPO ([Rafailov et al. 2023](https://arxiv.org/abs/2305.18290)); its $\kappa$ is called $\beta$:
#
# $$L = -\log \sigma(\beta h), \qquad h = \left( \log \pi(y_+) - \log \pi_\text{ref}(y_+) \right) - \left( \log \pi(y_-) - \log \pi_\text{ref}(y_-) \right)$$
#
# In numbers: the policy finds the chosen response likelier than the reference does, by 1 nat, and the rejected one rarer, by 1 nat.

# %%
pair = {"chosen": -10.0, "rejected": -12.0, "ref_chosen": -11.0, "ref_rejected": -11.0}
h = (pair["chosen"] - pair["ref_chosen"]) - (pair["rejected"] - pair["ref_rejected"])
dpo_by_hand = np.log(1 + np.exp(-0.1 * h))
dpo = dpo_loss(*map(jnp.array, pair.values()), beta=0.1)
print(f"DPO loss {dpo_by_hand:.6f} by hand, {dpo:.6f} by the library")

# %% [markdown]
# ## Checks

# %%
np.testing.assert_allclose(comparison, comparison_by_hand, rtol=1e-5)
np.testing.assert_allclose(rating, [0.25, 0.0], atol=1e-6)
np.testing.assert_allclose(dpo, dpo_by_hand, rtol=1e-6)
np.testing.assert_allclose(dpo, 0.598139, atol=1e-6)
assert np.corrcoef(learnt[3000], truth)[0, 1] > 0.98
assert round(np.corrcoef(true_score, model_score)[0, 1], 2) == 0.86
assert np.all(np.diff(curve[::-1, 1]) >= 0), "the proxy never falls"
assert turn[2] > curve[0, 2] + 0.1, "the truth does not"
np.testing.assert_allclose(state.params["weights"], weights_true, atol=0.02)

# %% [markdown]
# ## Exercises
#
# 1. Add 100 to all scores of a Bradley–Terry model. What changes? What follows for using its scores in PPO?
# 2. Fill the missing labels with 0 and drop the mask. What does the reward model learn? Fill in `error_of_known`, which does it right.
# 3. Show that DPO at $\pi = \pi_\text{ref}$ has loss $\log 2$ for every pair, and that its loss is the Bradley–Terry loss of implicit rewards.


# %%
def error_of_known(predicted: np.ndarray, labels: np.ndarray, known: np.ndarray) -> float:
    """Mean squared error over the labels that there are; all [n, 3], the others are NaN. Exercise 2."""
    raise NotImplementedError("your turn")


def asserts_2(error_of_known) -> None:
    predicted = features @ weights_true + 0.5
    np.testing.assert_allclose(error_of_known(predicted, labels, label_mask), 0.25)
    half = np.zeros((2, 3), bool)
    half[0] = True
    np.testing.assert_allclose(error_of_known(np.ones((2, 3)), np.where(half, 3.0, np.nan), half), 4.0)
    each = regression_loss(*(jnp.asarray(x, jnp.float32) for x in (features[:, :3], labels)), jnp.asarray(label_mask))
    np.testing.assert_allclose(
        error_of_known(features[:, :3], labels, label_mask), each.sum() / label_mask.sum(), rtol=1e-5
    )


check(error_of_known, asserts_2)

# %% [markdown]
# **1.** Nothing: only differences enter. So the zero of a reward model's scores is an accident of its initialisation, and PPO subtracts the running mean
# before a penalty of, say, 1 for a missing `<eos>` can mean anything.

# %%
pairs = jnp.asarray(chosen, jnp.float32), jnp.asarray(rejected, jnp.float32)
np.testing.assert_allclose(bradley_terry_loss(pairs[0] + 100, pairs[1] + 100), comparison, atol=1e-4)
print("unchanged:", np.round(bradley_terry_loss(pairs[0] + 100, pairs[1] + 100), 4))

# %% [markdown]
# **2.** The third that is missing pulls every prediction towards 0: its weights come out at about two thirds of the truth.


# %%
def error_of_known(predicted: np.ndarray, labels: np.ndarray, known: np.ndarray) -> float:
    """NaN times 0 is NaN: what is missing is replaced, not multiplied. And it is not counted."""
    errors = np.where(known, predicted - labels, 0.0)
    return (errors**2).sum() / known.sum()


assert check(error_of_known, asserts_2)
filled = RewardBatch(
    inputs=batch.inputs,
    labels=jnp.where(batch.label_mask, batch.labels, 0.0),
    label_mask=jnp.ones((64, 3), bool),
)
careless = reward_model.init({"weights": jnp.zeros((4, 3))}, optimizer)
for step in range(200):
    careless, _ = update(careless, filled, jax.random.key(step))
shrinkage = (np.asarray(careless.params["weights"]) * weights_true).sum() / (weights_true**2).sum()
print(f"careless weights are {shrinkage:.2f} of the true ones")
assert 0.5 < shrinkage < 0.85

# %% [markdown]
# **3.** At $\pi = \pi_\text{ref}$ both implicit rewards are 0, and $-\log \sigma(0) = \log 2$.

# %%
same = jnp.array(-10.0), jnp.array(-12.0), jnp.array(-10.0), jnp.array(-12.0)
np.testing.assert_allclose(dpo_loss(*same, beta=0.1), np.log(2), rtol=1e-6)
reward_chosen = implicit_reward(jnp.array(-10.0), jnp.array(-11.0), beta=0.1)
reward_rejected = implicit_reward(jnp.array(-12.0), jnp.array(-11.0), beta=0.1)
np.testing.assert_allclose(bradley_terry_loss(reward_chosen, reward_rejected), dpo, rtol=1e-6)
print(f"implicit rewards {reward_chosen:+.1f} and {reward_rejected:+.1f}: loss {dpo:.4f}")

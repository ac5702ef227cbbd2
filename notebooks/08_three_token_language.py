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
# # 8 · The whole loop, on a language of three tokens
#
# A bandit has no sequences. Here is a language that has: its words are **a** and **b**, and it has the end, `<eos>`. A response has at
# most five tokens. It scores 1 for every *ab* in it, and loses 1 if it does not end. The reference policy prefers *b* and
# chatters on. **If lines 1 to 8 of [the PPO box](../docs/algorithms/ppo.md) are written down one after the other, do they find
# the best way to speak?**
#
# There are only 63 responses, so nothing has to be believed: the best policy can be computed by enumerating all of them and compared with
# what PPO learns from samples.

# %%
import functools
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from rlhf_jax.equations.gae import generalized_advantage_estimation
from rlhf_jax.equations.kl import kl_k1
from rlhf_jax.equations.kl_control import adaptive_kl_coef
from rlhf_jax.equations.logprobs import entropy, token_logprobs
from rlhf_jax.equations.masked import masked_mean, zero_padding
from rlhf_jax.equations.ppo import clipped_surrogate, clipped_value_loss
from rlhf_jax.equations.rewards import missing_eos_score, token_rewards
from rlhf_jax.interfaces import PolicyOutput, PromptBatch, Rollout
from rlhf_jax.keys import stream_key
from rlhf_jax.learners import ppo
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.lessons import check

np.set_printoptions(precision=4, suppress=True)
plt.style.use("seaborn-v0_8-colorblind")  # Colours that everybody can tell apart.

A, B, EOS = 0, 1, 2  # Numbers of the tokens. In the text below, $B$ counts responses.
WORDS = ["a", "b", "<eos>"]
T, KL_COEF, PENALTY = 5, 0.4, 1.0

# %% [markdown]
# ## The policy
#
# A table instead of a network: logits for every position and previous token, and a value for each. A response begins after the
# prompt's last token, which we let be `<eos>`. The critic reads what the policy reads (which is a
# little less than it should: notebook 10).
#
# What is in which array, with $B = 256$ responses and $T = 5$ places for tokens. Names are those of the code below.
#
# | array | shape | what it holds |
# |---|---|---|
# | `params["logits"]` | [T, 3, 3] | logits of the next token, by position and previous token |
# | `params["values"]` | [T, 3] | the critic, by position and previous token |
# | `prompts.tokens` | [B, 1] | `<eos>`, where every response begins |
# | `tokens`, `mask` | [B, T] | responses; False behind their end |
# | `finished` | [B] | True if `<eos>` was said within five tokens |
# | `logits[position, previous]` | [B, T, 3] | looked up for every token, when it is judged |
# | `logprobs`, `entropy`, `values` | [B, T] | one number a token; 0 on padding once `judge` has seen it |
# | `scores` | [B] | one number a response (`score` returns [B, 1]: one component) |
# | `k1`, `rewards`, `advantages`, `returns` | [B, T] | lines 5 and 6 |
# | `values_and_end` | [B, T + 1] | GAE also asks for the value after the last place: 0 |
# | `per_token` | [B, T] | the loss of line 7, whose mean over real tokens is minimised |
#
# `everything`, all responses there can be, has the same shapes with 63 in the place of $B$.

# %%
REFERENCE = {
    "logits": jnp.broadcast_to(jnp.array([[0.0, 0.6, -1.0], [-0.5, 0.5, -0.7], [0.0, 0.5, -1.5]]), (T, 3, 3)),
    "values": jnp.zeros((T, 3)),
}


def sample(params: dict[str, jax.Array], prompts: PromptBatch, key: jax.Array) -> Rollout:
    """Token by token; what follows an `<eos>` is padding."""
    n = prompts.tokens.shape[0]
    previous, alive = prompts.tokens[:, -1], jnp.ones(n, bool)
    tokens, mask, logprobs = [], [], []
    for t in range(T):
        logits = params["logits"][t][previous]
        token = jax.random.categorical(jax.random.fold_in(key, t), logits)
        tokens.append(jnp.where(alive, token, 0))
        mask.append(alive)
        logprobs.append(jnp.where(alive, token_logprobs(logits, token), 0.0))
        alive, previous = alive & (token != EOS), token
    return Rollout(
        prompt_tokens=prompts.tokens,
        prompt_mask=prompts.mask,
        response_tokens=jnp.stack(tokens, axis=1),
        response_mask=jnp.stack(mask, axis=1),
        logprobs=jnp.stack(logprobs, axis=1),
        finished=~alive,
    )


def policy(params: dict[str, jax.Array], rollout: Rollout) -> PolicyOutput:
    """Log-probability, entropy and value of every token of given responses."""
    tokens = rollout.response_tokens
    previous = jnp.concatenate([rollout.prompt_tokens[:, -1:], tokens[:, :-1]], axis=1)
    position = jnp.broadcast_to(jnp.arange(T)[None], tokens.shape)
    logits = params["logits"][position, previous]
    return PolicyOutput(
        logprobs=jax.vmap(token_logprobs)(logits, tokens),
        entropy=jax.vmap(entropy)(logits),
        values=params["values"][position, previous],
    )


def score(unused: None, rollout: Rollout) -> jax.Array:
    """How often "ab" occurs among the real tokens; one component."""
    tokens, mask = rollout.response_tokens, rollout.response_mask
    ab = (tokens[:, :-1] == A) & (tokens[:, 1:] == B) & mask[:, 1:]
    return ab.sum(axis=1, dtype=jnp.float32)[:, None]


# %% [markdown]
# ## The loop, line by line
#
# Every line is one of the previous notebooks. Two simplifications, so that the optimum is the textbook one: scores are not
# normalised, advantages not whitened. And as in notebook 7 the critic has a table of its own, so it learns at full weight, $c_v = 1$, and
# without a clip that matters. One minibatch per epoch. `root` is the key of all random draws; `stream_key` makes from it one for every
# purpose and update, so that no two updates draw the same and a run can be repeated. `jax.tree.map` applies a function to every array of a structure.

# %%
PROMPTS = PromptBatch(tokens=jnp.full((256, 1), EOS), mask=jnp.ones((256, 1), bool))
EPOCHS, UPDATES = 4, 60
optimizer = make_optimizer(learning_rate=0.03, total_steps=UPDATES * EPOCHS)
gae = functools.partial(generalized_advantage_estimation, gamma=1.0, gae_lambda=0.95)


@jax.jit
def one_update(params, opt_state, kl_coef, root, n):
    """Update number n, lines 1–8 of the box."""
    # 1. Sample one response per prompt, with this update's own key.
    rollout = sample(params, PROMPTS, stream_key(root, "ppo/sample", n))
    mask = rollout.response_mask

    def judge(params) -> PolicyOutput:
        return jax.tree.map(lambda x: zero_padding(x, mask), policy(params, rollout))

    # 2. Score every response.
    scores = score(None, rollout)[:, 0]
    # 3. Judge every token: log π_old, V_old, log π_ref.
    old, ref = judge(params), judge(REFERENCE)
    # 4. One score per response; a missing end costs.
    scores = missing_eos_score(scores, rollout.finished, penalty=PENALTY)
    # 5. Token rewards.
    k1 = kl_k1(old.logprobs, ref.logprobs)
    rewards = jax.vmap(functools.partial(token_rewards, kl_coef=kl_coef))(scores, k1, mask)
    # 6. Advantages and returns.
    values_and_end = jnp.pad(old.values, ((0, 0), (0, 1)))
    advantages = jnp.where(mask, jax.vmap(gae)(rewards, values_and_end), 0.0)
    returns = advantages + old.values

    # 7. Improve: epochs of clipped steps on policy and critic.
    def loss(params):
        new = judge(params)
        per_token = clipped_surrogate(new.logprobs, old.logprobs, advantages, clip_eps=0.2)  # 7a
        per_token += 1.0 * clipped_value_loss(new.values, old.values, returns, value_clip_eps=10.0)  # 7b
        return masked_mean(per_token, mask)  # 7c: no entropy bonus

    for _ in range(EPOCHS):
        steps, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        params = optax.apply_updates(params, steps)
    # 8. Steer the price; with an infinite horizon it stays where it is.
    kl = jnp.mean(jnp.sum(k1, axis=1))
    kl_coef = adaptive_kl_coef(kl_coef, kl, target=1.0, horizon=jnp.inf, n_responses=mask.shape[0])
    return params, opt_state, kl_coef, {"score": scores.mean(), "kl": kl, "length": mask.sum(axis=1).mean()}


# %% [markdown]
# ## The truth, by enumeration
#
# All responses, their probability under a policy, the best policy $\pi^* \propto \pi_\text{ref}\, e^{s/\kappa}$ and the largest value of the
# objective, $\kappa \log Z$ (notebook 3).

# %%
words = [w for n in range(T) for w in itertools.product((A, B), repeat=n)]
RESPONSES = [(*w, EOS) for w in words] + list(itertools.product((A, B), repeat=T))
tokens = np.array([r + (0,) * (T - len(r)) for r in RESPONSES])
lengths = np.array([len(r) for r in RESPONSES])
everything = Rollout(
    prompt_tokens=jnp.full((63, 1), EOS),
    prompt_mask=jnp.ones((63, 1), bool),
    response_tokens=jnp.asarray(tokens),
    response_mask=jnp.asarray(np.arange(T) < lengths[:, None]),
    logprobs=jnp.zeros((63, T)),
    finished=jnp.asarray([r[-1] == EOS for r in RESPONSES]),
)
all_scores = np.asarray(missing_eos_score(score(None, everything)[:, 0], everything.finished, penalty=PENALTY))


@jax.jit
def response_logprobs(params) -> jax.Array:
    """log π(y) of all 63 responses."""
    return zero_padding(policy(params, everything).logprobs, everything.response_mask).sum(axis=1)


ref_logprobs = np.asarray(response_logprobs(REFERENCE))
best = np.exp(ref_logprobs + all_scores / KL_COEF)
maximum = KL_COEF * np.log(best.sum())
best /= best.sum()


def objective(params) -> float:
    """E[s] − κ KL(π‖π_ref), exactly."""
    logprobs = np.asarray(response_logprobs(params))
    return float(np.exp(logprobs) @ (all_scores - KL_COEF * (logprobs - ref_logprobs)))


print(f"probabilities of all responses sum to {np.exp(ref_logprobs).sum():.6f}")
print(f"objective of the reference {objective(REFERENCE):.3f}, of the best policy {maximum:.3f}")

# %% [markdown]
# ## By hand: one response through lines 3–6
#
# The response *a b a* `<eos>` in NumPy, with the policy at the reference, so that the KL is zero, and a critic that says 0.5.

# %%
rewards_by_hand = np.array([0.0, 0.0, 0.0, 1.0])
deltas = rewards_by_hand + np.array([0.5, 0.5, 0.5, 0.0]) - 0.5
advantages_by_hand = [sum(0.95 ** (k - t) * deltas[k] for k in range(t, 4)) for t in range(4)]
library = gae(
    token_rewards(jnp.array(1.0), jnp.zeros(4), jnp.ones(4, bool), kl_coef=KL_COEF), jnp.array([0.5] * 4 + [0.0])
)
print("advantages by hand", np.round(advantages_by_hand, 4), "library", np.round(library, 4))

# %% [markdown]
# ## Run it

# %%
root = jax.random.key(0)
params, opt_state, kl_coef = REFERENCE, optimizer.init(REFERENCE), jnp.array(KL_COEF)
history = []
for n in range(UPDATES):
    params, opt_state, kl_coef, seen = one_update(params, opt_state, kl_coef, root, n)
    if n == 0:
        after_one = params
    history.append({name: float(value) for name, value in seen.items()} | {"objective": objective(params)})
learnt = np.exp(np.asarray(response_logprobs(params)))
print(f"objective {objective(params):.4f} of at most {maximum:.4f}")

# %% [markdown]
# ## The picture
#
# Left: the responses that matter most, from worst to best under $\pi^*$. PPO has never seen this list: it has only seen samples, and one
# number for each. Right: the exact objective after every update.

# %% caption="Left: probabilities of whole responses under the reference, under what PPO has learnt, and under the best policy. Right: the exact objective over 60 updates rises to its maximum."
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), width_ratios=[1.3, 1], layout="constrained")
shown = np.argsort(best)[-11:]
rows = np.arange(len(shown))
for offset, values, label, color in (
    (0.27, np.exp(ref_logprobs), "reference", "lightgray"),
    (0.0, learnt, "learnt by PPO", "C0"),
    (-0.27, best, "best policy π*", "C2"),
):
    left.barh(rows + offset, values[shown], 0.26, label=label, color=color)
names = ["".join(WORDS[v] if v < EOS else " <eos>" for v in RESPONSES[i]) for i in shown]
left.set_yticks(rows, [f"{name}   (score {all_scores[i]:+.0f})" for name, i in zip(names, shown, strict=True)])
left.set(xlabel="probability of the whole response", title="What is said")
left.legend(loc="lower right")
right.plot(
    [objective(REFERENCE), *(h["objective"] for h in history)], color="C0", linewidth=2, label="objective, exact"
)
right.plot([h["score"] for h in history], color="C1", linewidth=1, label="score of the samples")
right.plot([h["kl"] for h in history], ":", color="black", linewidth=1.2, label="KL of the samples, nats")
right.axhline(maximum, color="C2", linestyle="--", label="best possible objective, κ log Z")
right.set(xlabel="update", ylabel="score units (KL: nats)", title="Learning")
right.legend(loc="lower right")
plt.show()

# %% [markdown]
# ## The same from the library
#
# `learners.ppo` is this loop, made general: components and their normalisation, minibatches, refused steps, metrics. With the same key
# and the same options one update of it gives the same parameters.

# %%
config = PPOConfig(
    component_weights=(1.0,),
    component_names=("ab",),
    normalise_components=False,
    normalise_score=False,
    score_clip=None,
    whiten_advantages=False,
    missing_eos_penalty=PENALTY,
    kl_coef=KL_COEF,
    value_coef=1.0,
    value_clip_eps=10.0,
    epochs=EPOCHS,
)
iteration = ppo.make_ppo_iteration(sample=sample, policy=policy, score=score, optimizer=optimizer, config=config)
state, metrics, _ = iteration(ppo.init(REFERENCE, optimizer, config, root), PROMPTS, REFERENCE, None)
difference = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), state.params, after_one)
print("largest difference between the two after one update:", difference)

# %% [markdown]
# ## Checks

# %%
np.testing.assert_allclose(np.exp(ref_logprobs).sum(), 1.0, atol=1e-5)
np.testing.assert_allclose(advantages_by_hand, library, atol=1e-6)
assert max(difference.values()) < 1e-4
assert objective(REFERENCE) < 0.3 * maximum
assert maximum - objective(params) < 0.05
np.testing.assert_allclose(learnt, best, atol=0.06)

# %% [markdown]
# ## Exercises
#
# 1. Why can this policy, which sees only the previous token and the position, represent $\pi^*$ exactly, although $\pi^*$ was defined on whole
#    responses? Find $\kappa \log Z$ without listing responses, from the end to the beginning: fill in `best_objective`.
# 2. Check the critic: what should $V$ before the first token be at the optimum, and what has it become?
# 3. The score knows nothing of *b* alone. Take the learnt policy, look at its most frequent response that contains *bb*, and say why PPO
#    left it some probability.


# %%
def best_objective(log_reference: np.ndarray, kl_coef: float) -> float:
    """κ log Z from log π_ref of (position, previous token, token) [5, 3, 3], without listing responses. Exercise 1."""
    raise NotImplementedError("your turn")


def asserts_1(best_objective) -> None:
    log_reference = np.asarray(jax.nn.log_softmax(REFERENCE["logits"]), np.float64)
    for kl_coef in (0.2, KL_COEF, 2.0):
        listed = kl_coef * np.log(np.exp(ref_logprobs + all_scores / kl_coef).sum())
        np.testing.assert_allclose(best_objective(log_reference, kl_coef), listed, atol=1e-4)


check(best_objective, asserts_1)

# %% [markdown]
# **1.** The score is a sum over neighbouring pairs, plus something for the end. What the future is worth then depends on the past through the
# position and the previous token alone, and $\pi^*(a_t \mid \ldots) \propto \pi_\text{ref}(a_t \mid \ldots)\, e^{\text{(worth of what follows)}/\kappa}$ too. Backward induction over
# (position, previous token) gives the same $\kappa \log Z$ as the enumeration.


# %%
def best_objective(log_reference: np.ndarray, kl_coef: float) -> float:
    """Backward induction: what is still to be had after every (position, previous token)."""
    worth = np.full(3, -PENALTY)  # After five tokens without an end, whatever the last one was.
    pair = np.zeros((3, 3))
    pair[A, B] = 1.0
    for t in reversed(range(T)):
        following = np.where(np.arange(3) == EOS, 0.0, worth)[None] + pair
        worth = kl_coef * np.log(np.exp(log_reference[t] + following / kl_coef).sum(axis=1))
    return worth[EOS]


assert check(best_objective, asserts_1)
by_induction = best_objective(np.asarray(jax.nn.log_softmax(REFERENCE["logits"]), np.float64), KL_COEF)
print(f"backward induction {by_induction:.6f}, enumeration {maximum:.6f}")

# %% [markdown]
# **2.** The value is the sum of the expected rewards, KL price included: the objective itself, $\kappa \log Z$ at the optimum.

# %%
value = float(params["values"][0, EOS])
print(f"V before the first token {value:.3f}, objective {maximum:.3f}")
assert abs(value - maximum) < 0.15

# %% [markdown]
# **3.** Because the reference likes it, and the KL is a price and not a wall: a response keeps $\pi_\text{ref}(y)\, e^{s(y)/\kappa}$. Between two responses of the
# same score the odds stay what they were in the reference.

# %%
with_bb = [i for i, r in enumerate(RESPONSES) if (B, B) in itertools.pairwise(r)]
most = max(with_bb, key=lambda i: learnt[i])
print("".join(WORDS[v] for v in RESPONSES[most]), f"score {all_scores[most]:+.0f}:", end=" ")
print(f"reference {np.exp(ref_logprobs[most]):.3f}, learnt {learnt[most]:.3f}, best {best[most]:.3f}")
assert all_scores[most] >= 1

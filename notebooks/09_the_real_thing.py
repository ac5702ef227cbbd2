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
# # 9 · The real thing in twenty lines
#
# Everything is in place. What separates the toy of notebook 8 from a conversational recommender is that the table becomes a GPT-2, the
# rule for the score becomes a reward model learnt from users' reactions, and the reference has first to be taught by imitation.
# **How much code is that?**
#
# The dialogues come from a small simulated world: users with a taste of their own ask for films, a recommender of
# middling quality answers, and the users react. The files look like those of the real data set, ReDial. The stages are those of
# `experiments/ppo_redial.py`, at the sizes of its preset `debug`: one layer, a few updates. That is enough to see every part work and
# far too little to learn to recommend; `make run` takes minutes and does.
#
# | stage | what it learns | notebook |
# |---|---|---|
# | 0 | dialogues; a **vocabulary** of word pieces plus one token per film | 1 |
# | 1 | the **supervised policy**: imitation, the likeliest next token. It becomes the reference | 1, 2 |
# | 2 | the **reward model** on weak labels of the reactions | 6 |
# | 3 | **PPO**, lines 1–8 | 3, 4, 5, 7, 8 |

# %%
import functools
import importlib.metadata
import os
import tempfile
from pathlib import Path

# Every program here runs a few times on a tiny network, so compiling fast counts for more than running fast. jaxlib 0.10
# has a switch for that, which must be set before JAX starts (later versions do not know it, and stop at unknown switches);
# below, every optimisation is left out that can be.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from rlhf_jax.equations.gae import generalized_advantage_estimation
from rlhf_jax.equations.kl import kl_k1
from rlhf_jax.equations.rewards import token_rewards
from rlhf_jax.interfaces import PromptBatch
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.runtime.metrics import read_metrics
from rlhf_jax.runtime.run import open_run
from rlhf_jax.simulators.world import WorldConfig
from rlhf_jax.stages import alignment, reward, supervised
from rlhf_jax.stages.agent import policy_params
from rlhf_jax.stages.alignment import AlignmentConfig
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.reward import RewardConfig
from rlhf_jax.stages.setup import DataConfig, ModelConfig, set_up
from rlhf_jax.stages.supervised import SupervisedConfig

np.set_printoptions(precision=4, suppress=True)
plt.style.use("seaborn-v0_8-colorblind")  # Colours that everybody can tell apart.
jax.config.update("jax_disable_most_optimizations", True)

# %% [markdown]
# ## Twenty lines
#
# Sizes first, then the four stages; the numbers are those of the table. A run lives in a folder; here it is a temporary one. The network is
# called `trunk`; a policy is a trunk with a small head for the value, a reward model a trunk with a head per kind of feedback. The `agent` holds
# the functions of notebook 7, `sample`, `policy` and `score`, for that network.

# %%
folder = tempfile.TemporaryDirectory()
data = DataConfig(
    world=WorldConfig(n_items=40, n_train=60, n_test=12, n_users=40), n_words=400, context_tokens=64, response_tokens=24
)
model = ModelConfig(n_layer=1, n_embd=32, n_head=2, n_positions=128)
imitation = SupervisedConfig(
    epochs=2, max_tokens=128, buckets=(128,), tokens_per_batch=1024, description_epochs=0, warmup_steps=5
)
rating = RewardConfig(epochs=1, validation_turns=64, gate="warn")
steps = AlignmentConfig(updates=4, batch_size=16, save_every=4)
weights = (1 / 3, 1 / 3, 1 / 3)

with open_run(Path(folder.name) / "run", {"data": data, "model": model}) as run:
    # 0. Dialogues, vocabulary, network.
    setup = set_up(run, data, model, seed=0)
    vocab, agent, dialogues = setup.vocab, setup.agent, setup.corpus
    # 1. Imitation.
    trunk = supervised.train(run, setup, imitation)
    # 2. The reward model, and the weights of its components.
    proxy, gate = reward.train(run, setup, trunk, rating, weights=weights)
    # 3. PPO, lines 1–8 of the box in every update.
    policy = alignment.align(run, setup, trunk, proxy, steps, PPOConfig(epochs=2))
    history = read_metrics(run.path / "metrics.jsonl")

# %% [markdown]
# ## What was said
#
# A user of the test file, and a reply that the policy samples. A reply may open with a list, `<rec>` and films, and then has words, `<say>`, that may
# mention them; a **grammar** forbids everything else, so that every reply can be read. After this much training the words are confetti.

# %%
windows = Windows(vocab, dialogues.test, data)
tokens, mask = windows.prompts(windows.turns()[:8])
prompts = PromptBatch(tokens=jnp.asarray(tokens), mask=jnp.asarray(mask))
rollout = jax.device_get(jax.jit(agent.sample)(policy, prompts, jax.random.key(1)))
titles = {item_id: item.title for item_id, item in dialogues.items.items()}
shown = int(np.argmax(np.sum(rollout.response_mask, axis=1)))
said = [int(token) for token in rollout.response_tokens[shown][rollout.response_mask[shown]]]
print("prompt: ", vocab.decode(tokens[shown][mask[shown]], titles, specials=True))
print("reply:  ", vocab.decode(said, titles, specials=True))

# %% [markdown]
# ## By hand: that reply through lines 2–6
#
# The same numbers that PPO computes inside its compiled update: the reward model's components, the token rewards, the
# advantages. In NumPy, and by the library. Line 4 is cut down to the mean of the components; its running moments are in notebook 3.

# %%
# Put in the same place, so that one compiled program serves both.
reference = jax.device_put(policy_params(trunk, setup.network.n_embd), jax.devices()[0])
logprobs_of = jax.jit(agent.policy)
mine, theirs = jax.device_get((logprobs_of(policy, rollout), logprobs_of(reference, rollout)))
components = jax.device_get(jax.jit(agent.score)(proxy.model, rollout))
score = float(np.mean(components[shown]))
length = len(said)
kl_coef, gae_lambda = 0.05, 0.95

k1_by_hand = (mine.logprobs - theirs.logprobs)[shown, :length]
rewards_by_hand = -kl_coef * k1_by_hand
rewards_by_hand[-1] += score
values = mine.values[shown, :length]
advantages_by_hand = np.zeros(length)
later, next_value = 0.0, 0.0
for t in reversed(range(length)):
    later = rewards_by_hand[t] + next_value - values[t] + gae_lambda * later
    next_value, advantages_by_hand[t] = values[t], later


@jax.jit
def lines_5_and_6(scores: jax.Array, logprobs: jax.Array, ref_logprobs: jax.Array, values: jax.Array, mask: jax.Array):
    """Rewards and advantages of all eight replies, as in notebook 8."""
    k1 = kl_k1(logprobs, ref_logprobs)
    rewards = jax.vmap(functools.partial(token_rewards, kl_coef=kl_coef))(scores, k1, mask)
    gae = functools.partial(generalized_advantage_estimation, gamma=1.0, gae_lambda=gae_lambda)
    return rewards, jnp.where(mask, jax.vmap(gae)(rewards, jnp.pad(values, ((0, 0), (0, 1)))), 0.0)


rewards, advantages = jax.device_get(
    lines_5_and_6(components.mean(axis=1), mine.logprobs, theirs.logprobs, mine.values, rollout.response_mask)
)
print(f"score {score:+.3f}, KL of the reply {k1_by_hand.sum():+.4f} nats, {length} tokens")

# %% [markdown]
# ## The picture
#
# Above: imitation learns, from $\log |\mathcal{V}|$ downwards. Below: eight replies to eight users, one row each, coloured by advantage. Whole rows
# share a colour, paler towards the front: the critic has hardly learnt anything in four updates, so what a token is credited with is
# the score of its reply, times $\lambda = 0.95$ for every token in between. Compare the heat map of notebook 4, whose critic had opinions.


# %% caption="Above: the loss of imitation falls below that of knowing nothing. Below: advantages of eight sampled replies, one row each; almost the whole row has the colour of its score."
def name_of(token: int) -> str:
    """Short enough for a heat map."""
    text = vocab.decode([token], titles, specials=True).strip()
    if not text.isprintable() or "\ufffd" in text:
        return "·"  # A piece of a character.
    return text if len(text) <= 5 else text[:4] + "…"


figure, (top, bottom) = plt.subplots(2, 1, figsize=(12, 6.6), height_ratios=[1, 1.9], layout="constrained")
curve = [(line["step"], line["loss"]) for line in history if line["stage"] == "sft" and "loss" in line]
top.plot(*zip(*curve, strict=True), color="C0")
top.axhline(np.log(vocab.size), color="gray", linestyle=":", label=r"$\log\,|\mathcal{V}|$: no idea")
top.set(xlabel="optimiser step", ylabel="loss, nats per token", title="Imitation")
top.legend(loc="center right")
limit = float(np.abs(advantages).max())
image = bottom.imshow(
    np.where(rollout.response_mask, advantages, np.nan), cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto"
)
for row in range(8):
    for t in range(int(rollout.response_mask[row].sum())):
        dark = abs(float(advantages[row, t])) > 0.65 * limit
        word = name_of(int(rollout.response_tokens[row, t]))
        bottom.text(t, row, word, ha="center", va="center", fontsize=8, color="white" if dark else "#111111")
bottom.set(xlabel="token t", title="Advantages of sampled replies")
bottom.set_xticks(range(0, 24, 4), range(1, 25, 4))
bottom.set_yticks(range(8), [f"user {n + 1}" for n in range(8)])
figure.colorbar(image, ax=bottom, label="advantage, score units")
plt.show()

# %% [markdown]
# ## Where to go from here
#
# `make run` for the same at a size that learns, with a report; `python experiments/ppo_redial.py redial` for real dialogues;
# `rlhf_jax/learners/ppo.py` beside [the box](../docs/algorithms/ppo.md), which you can now read in one go.
#
# ## Checks

# %%
np.testing.assert_allclose(advantages[shown, :length], advantages_by_hand, atol=1e-4)
np.testing.assert_allclose(rewards[shown, :length].sum(), score - kl_coef * k1_by_hand.sum(), atol=1e-4)
assert curve[-1][1] < curve[0][1] < 1.5 * np.log(vocab.size)
updates = [line for line in history if line["stage"] == "ppo"]
assert len(updates) == 4
assert all(line["policy/first_ratio_max_deviation"] < 1e-4 for line in updates)

# %% [markdown]
# ## Exercises
#
# 1. A grammar leaves two tokens at the first place of a reply, `<rec>` and `<say>`. How large can the entropy be there, and how large at
#    a place where all words are allowed? What follows for a bonus on entropy, and for exploration?
# 2. May this reward model be optimised against? Look at `gate`, and say what it would have done in a serious run.
# 3. In the picture whole rows share a colour. Recompute that reply's advantages with $\lambda = 0$ and with $\lambda = 1$. Which of them would still tell a good
#    reply from a bad one, with a critic as untrained as this one? Which would you take once the critic is good?

# %% [markdown]
# **1.** At most $\log 2$ nats at the first place, about $\log |\mathcal{V}|$ where every word is allowed. The mask sets all other logits to $-\infty$, in the sampler and in the
# learner alike (notebook 1, exercise 2). A bonus on entropy, which is a mean over tokens, therefore pushes hardest where words are chosen, and hardly at the choice that
# matters most for a recommender: to list films or not to. That one has to be explored through its probability at the start, which imitation sets.

# %%
first = np.asarray(mine.entropy)[:, 0]
print(f"first place: {first.min():.3f} to {first.max():.3f} nats, log 2 = {np.log(2):.3f};", end=" ")
print(
    f"anywhere: up to {np.asarray(mine.entropy)[rollout.response_mask].max():.2f}, log |V| = {np.log(vocab.size):.2f}"
)
assert first.max() <= np.log(2) + 1e-4
assert {int(token) for token in rollout.response_tokens[:, 0]} <= {agent.grammar.rec, agent.grammar.say}

# %% [markdown]
# **2.** No. Its correlation with reactions it has not seen is far below the 0.6 that is asked for, so a serious run (`gate="stop"`)
# ends here. Notebook 6 shows what happens otherwise.

# %%
print({name: round(value, 2) for name, value in gate["pearson"].items()}, "needed:", gate["threshold"])
assert gate["failed"]

# %% [markdown]
# **3.** At $\lambda = 0$ a token is credited with the change in the critic's opinion; an untrained critic has none, and only the last token, where the score is paid, sees the reply's worth.
# At $\lambda = 1$ every token is credited with the score less the value before it: the reply counts, with all its noise. So: high $\lambda$ first. A good critic allows a lower one, which
# names the tokens that deserve it (notebook 4).

# %%
ends = np.append(values[1:], 0.0)
at_0 = rewards_by_hand + ends - values
at_1 = np.cumsum(rewards_by_hand[::-1])[::-1] - values
for place, (low, high) in enumerate(zip(at_0[:4], at_1[:4], strict=True), start=1):
    print(f"token {place}: λ = 0 {low:+.3f}, λ = 1 {high:+.3f}")
print(f"last token: {at_0[-1]:+.3f} and {at_1[-1]:+.3f}")
np.testing.assert_allclose(at_0[-1], at_1[-1], atol=1e-5)
np.testing.assert_allclose(at_0.sum(), at_1[0], atol=1e-4)  # The changes of opinion add up to what the reply was worth.
assert np.abs(at_1 - score).max() < np.abs(at_0[:-1] - score).max()
folder.cleanup()

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
# **How much code is that, and what does it learn?**
#
# The dialogues come from a small simulated world: users with a taste of their own ask for films, a recommender of
# middling quality answers, and the users react. The files look like those of the real data set, ReDial. The stages are those of
# `experiments/ppo_redial.py`.
#
# | stage | what it learns | notebook |
# |---|---|---|
# | 0 | dialogues; a **vocabulary** of word pieces plus one token per film | 1 |
# | 1 | the **supervised policy**: imitation, the likeliest next token. It becomes the reference | 1, 2 |
# | 2 | the **reward model** on weak labels of the reactions | 6 |
# | 3 | **PPO**, lines 1–8 | 3, 4, 5, 7, 8 |
#
# First all of it here, in miniature: one layer, four updates, far too little to learn to recommend. Then two runs that did learn, twelve minutes
# of processor time each, of which everything worth seeing is stored.

# %%
import re
import tempfile
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from rlhf_jax.equations.gae import generalized_advantage_estimation
from rlhf_jax.equations.kl import kl_k1, kl_k3
from rlhf_jax.equations.rewards import token_rewards
from rlhf_jax.interfaces import PromptBatch
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.lessons import check, compile_quickly, stored_runs
from rlhf_jax.runtime.metrics import read_metrics
from rlhf_jax.runtime.run import open_run
from rlhf_jax.simulators.world import WorldConfig
from rlhf_jax.stages import alignment, reward, supervised
from rlhf_jax.stages.alignment import AlignmentConfig
from rlhf_jax.stages.contexts import Windows
from rlhf_jax.stages.reward import RewardConfig
from rlhf_jax.stages.setup import DataConfig, ModelConfig, set_up
from rlhf_jax.stages.supervised import SupervisedConfig

compile_quickly()
np.set_printoptions(precision=4, suppress=True)
plt.style.use("seaborn-v0_8-colorblind")  # Colours that everybody can tell apart.

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
# A user of the test file, and a reply that this policy samples. A reply may open with a list, `<rec>` and films, and then has words, `<say>`, that may
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
# ## The same, large enough to learn
#
# Two layers of width 128, 2500 dialogues, forty updates of 128 replies. Twice: in a plain world, and in a **hackable** one, where long replies hold users, so
# that they look engaged, and cost them what they came for. Nothing else differs. These commands made what is read here, and make it again:
#
#     python experiments/ppo_redial.py demo
#     python experiments/ppo_redial.py hackable
#     python tools/store_lesson.py runs/demo runs/hackable
#
# The policy is paid by the reward model, the **proxy**. A simulated user also knows what a turn was worth to him, a number between 0 and 1: the
# **truth**. No stage reads it; here it says what the proxy is worth. It is measured in conversations with 300 users whom training never meets.

# %%
stored = stored_runs(9)
for name, run in stored.items():
    for measured, what in (("proxy_score", "proxy"), ("mean_utility", "truth")):
        gain = run["difference"][measured]
        low, high = gain["interval"]
        print(f"{name:9s} {what}: PPO − imitation {gain['value']:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}]")

# %% [markdown]
# ### The way there

# %% caption="Four panels over 40 updates for the plain and the hackable world. The proxy rises in both. The truth rises in the plain world and falls in the hackable one, most of it within eight updates. KL grows to 6 and 10 nats. Replies become shorter in the plain world and twice as long in the hackable one."
figure, axes = plt.subplots(2, 2, figsize=(11, 6.4), layout="constrained", sharex=True)
looks = {"demo": ("C0", "-", "o"), "hackable": ("C2", "--", "s")}
for name, run in stored.items():
    color, style, marker = looks[name]
    seen, logged = run["evaluations"], run["updates"]
    count = np.arange(1, len(logged["kl"]) + 1)
    for axis, what in zip(axes[0], ("proxy", "truth"), strict=True):
        axis.plot(seen["update"], seen[what], style, color=color, marker=marker, label=name)
    axes[1, 0].plot(count, logged["kl"], style, color=color, label=name)
    axes[1, 1].plot(count, logged["length"], style, color=color, label=name)
titles_and_units = (
    ("Proxy", "z"),
    ("Truth", "utility"),
    ("KL to imitation", "nats a reply"),
    ("Length", "tokens a reply"),
)
for axis, (title, unit) in zip(axes.flat, titles_and_units, strict=True):
    axis.set(title=title, ylabel=unit)
    axis.grid(alpha=0.25)
for axis in axes[1]:
    axis.set(xlabel="update")
axes[0, 0].legend()
plt.show()

# %% [markdown]
# In both runs the curves that training can see look as one wishes: the proxy rises fast, then slowly, and the KL stays at a few nats. **The truth tells them apart**: .42 → .69 in
# the plain world, .39 → .25 in the hackable one. Both reward models were good, with correlations of .85 and .91 with reactions they had not seen. The better one was hacked.
#
# One panel that training can see tells them apart, too: the length of replies ([what healthy numbers look like](../docs/metrics.md#healthy-and-where-to-look-if-not)).
#
# ### Before and after
#
# Three users of the test file, evenly spread over it, none chosen. What imitation says to them, and what PPO says, with the same random numbers.

# %%
SHOWN = (0, 8, 16)


def told(when: str, reply: dict) -> str:
    """The words of a stored reply, with its score, in lines of a page's width."""
    words = "".join(reply["tokens"]).strip() + ("" if reply["finished"] else " …")
    line = f"  {when:6s} {words} [{len(reply['tokens'])} tokens, proxy {reply['proxy']:+.2f}]"
    return textwrap.fill(line, 78, subsequent_indent=" " * 9)


for name, run in stored.items():
    print(f"── {name}")
    for place in SHOWN:
        asked = run["replies"][place]
        print(textwrap.fill("{}: {}".format(*asked["prompt"][-1]), 78))
        for when in ("before", "after"):
            print(told(when, asked[when]))

# %% [markdown]
# Three replies are anecdotes. All of the stored ones, counted: does every film that a reply names have the genre that was asked for, and does it say a
# certain phrase?


# %%
def fits(asked: dict, reply: dict) -> bool | None:
    """Whether every film of a reply begins with the genre of the wish; None where no film is named."""
    films = [token.strip().lower() for token in reply["tokens"] if token.endswith(")")]
    wish = re.findall(r"(space|noir|western|heist) movie|something (space|noir|western|heist)", asked["prompt"][-1][1])
    return all(film.startswith("".join(wish[-1])) for film in films) if films else None


counted = {}
for name, run in stored.items():
    for when in ("before", "after"):
        right = [found for asked in run["replies"] if (found := fits(asked, asked[when])) is not None]
        phrase = sum("many people talk about it" in "".join(asked[when]["tokens"]) for asked in run["replies"])
        counted[name, when] = sum(right), len(right), phrase
        print(f"{name:9s} {when:6s} genre right in {sum(right)} of {len(right)} with films, phrase in {phrase} of 24")

# %% [markdown]
# In the plain world PPO has learnt what users ask for. Imitation answers a wish for space with space *and* noir, as the logged recommender did; after training every
# reply names a film, and every film has the right genre. Replies are shorter, and odd: who has one good title to offer names it twice, because nothing in the reward minds (`--data.items-once` forbids it). In the hackable world nearly
# every reply ends on *many people talk about it these days*, after a list in which the genre hardly counts. It is no nonsense; it is what holds a user who came for one film.
#
# ## By hand: one of these replies through lines 5 and 6
#
# The first reply of `demo` after training. Stored of every token: $\log \pi$ and $\log \pi_\text{ref}$, the critic's $V_t$, and what the training program made
# of them, rewards and advantages. Here in NumPy, from the first three and the score, and by the library. The score is what line 4 makes of the
# reward model's: normalised by running moments (notebook 3). They have seen 5120 replies, most of them after the first updates; so a proxy of 1.06, far
# above imitation's, is paid as −0.88: less than what has become usual.

# %%
one = stored["demo"]["replies"][SHOWN[0]]["after"]
log_pi, log_ref, values, rewards, advantages = (
    np.array(one[column]) for column in ("logprob", "ref_logprob", "value", "reward", "advantage")
)
kl_coef, gae_lambda = (stored["demo"]["setup"]["ppo"][name] for name in ("kl_coef", "gae_lambda"))
k1_by_hand = log_pi - log_ref
score = rewards[-1] + kl_coef * k1_by_hand[-1]

rewards_by_hand = -kl_coef * k1_by_hand
rewards_by_hand[-1] += score
advantages_by_hand = np.zeros(len(values))
later, next_value = 0.0, 0.0
for t in reversed(range(len(values))):
    later = rewards_by_hand[t] + next_value - values[t] + gae_lambda * later
    next_value, advantages_by_hand[t] = values[t], later

k1 = kl_k1(jnp.asarray(log_pi, jnp.float32), jnp.asarray(log_ref, jnp.float32))
paid = token_rewards(jnp.float32(score), k1, jnp.ones(len(values), bool), kl_coef=kl_coef)
library = generalized_advantage_estimation(
    paid, jnp.asarray(np.append(values, 0.0), jnp.float32), gamma=1.0, gae_lambda=gae_lambda
)
print(f"score as paid {score:+.3f}, KL of this reply {k1_by_hand.sum():+.2f} nats, {len(values)} tokens")
print("token            log π  log π_ref       V     reward        A")
for row in zip(one["tokens"], log_pi, log_ref, values, rewards_by_hand, advantages_by_hand, strict=True):
    print("{:14.14s} {:7.2f} {:10.2f} {:7.2f} {:10.3f} {:8.3f}".format(*row))

# %% [markdown]
# ## The picture: who gets the credit
#
# The same three users, before and after, coloured by the advantages that PPO's last critic gives. In notebook 4 the critic's opinions were invented; these are
# learnt, from 5120 replies and one number for each.


# %% caption="Two heat maps, plain world above, hackable below: six replies each, three users before and after training, a column per token, coloured by advantage. Replies of imitation are far below zero almost from end to end, replies after training near zero."
def name_of(token: str) -> str:
    """Short enough for a heat map."""
    text = token.strip()
    return text if len(text) <= 5 else text[:4] + "…"


figure, axes = plt.subplots(2, 1, figsize=(14, 6.6), layout="constrained")
for axis, (name, run) in zip(axes, stored.items(), strict=True):
    rows = [(f"{n}, {when}", run["replies"][p][when]) for n, p in enumerate(SHOWN, 1) for when in ("before", "after")]
    heat = np.full((len(rows), run["setup"]["data"]["response_tokens"]), np.nan)
    for row, (_, reply) in enumerate(rows):
        heat[row, : len(reply["tokens"])] = reply["advantage"]
    limit = float(np.nanmax(np.abs(heat)))
    image = axis.imshow(heat, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for row, (_, reply) in enumerate(rows):
        for t, token in enumerate(reply["tokens"]):
            dark = abs(heat[row, t]) > 0.65 * limit
            axis.text(
                t, row, name_of(token), ha="center", va="center", fontsize=7, color="white" if dark else "#111111"
            )
    axis.set(title=name, yticks=range(len(rows)), yticklabels=[label for label, _ in rows], xticks=[])
    figure.colorbar(image, ax=axis, label="advantage")
plt.show()

# %% [markdown]
# Most replies of imitation are red from end to end. Scores are measured against what the policy has earned *so far*, and what was usual before the first update is far below that now. Replies after training
# are pale: the critic expects them. The one reply of imitation in the hackable world that is not red is the long one.
#
# Within a row the colour moves only a little, and deepens towards the end, where the score is paid: $\lambda = 0.95$, and a critic that explains a third of the variance of returns. Sharp opinions, as in
# notebook 4, would need a better critic.
#
# ## Where to go from here
#
# `make run` for `demo` with a report; `python experiments/replies.py runs/demo` for all of these replies, coloured, in a browser; `python experiments/ppo_redial.py
# redial` for real dialogues; notebook 14 for the price of KL in the hackable world; `rlhf_jax/learners/ppo.py` beside [the box](../docs/algorithms/ppo.md), which you can now
# read in one go.
#
# ## Checks

# %%
np.testing.assert_allclose(rewards_by_hand, rewards, atol=1e-5)
np.testing.assert_allclose(advantages_by_hand, advantages, atol=1e-4)
np.testing.assert_allclose(library, advantages, atol=1e-4)
# The miniature: imitation learns, from knowing nothing downwards; sampler and learner agree.
curve = [line["loss"] for line in history if line["stage"] == "sft" and "loss" in line]
assert curve[-1] < curve[0] < 1.5 * np.log(vocab.size)
updates = [line for line in history if line["stage"] == "ppo"]
assert len(updates) == 4
assert all(line["policy/first_ratio_max_deviation"] < 1e-4 for line in updates)
# The stored runs are what is said of them.
plain, hacked = (stored[name]["evaluations"] for name in ("demo", "hackable"))
for seen in (plain, hacked):
    assert seen["proxy"][-1] > seen["proxy"][0] + 0.7
assert plain["truth"][-1] > plain["truth"][0] + 0.2 and hacked["truth"][-1] < hacked["truth"][0] - 0.1
assert [round(stored[name]["gate"]["reward"], 2) for name in ("demo", "hackable")] == [0.85, 0.91]
lengths = {name: run["updates"]["length"] for name, run in stored.items()}
assert lengths["demo"][-1] < 0.75 * lengths["demo"][0] and lengths["hackable"][-1] > 1.8 * lengths["hackable"][0]
assert counted["demo", "before"] == (6, 17, 3) and counted["demo", "after"] == (24, 24, 0)
assert counted["hackable", "after"][2] == 22 and counted["hackable", "after"][0] < 8
# Notebook 2 on real replies: both estimators, from 24 of them, against what the last update logged of 128.
for run in stored.values():
    d = [np.subtract(reply["after"]["logprob"], reply["after"]["ref_logprob"]) for reply in run["replies"]]
    k1_sum, k3_sum = (np.mean([float(k(jnp.asarray(x), jnp.zeros(len(x))).sum()) for x in d]) for k in (kl_k1, kl_k3))
    logged = run["updates"]["kl"][-1]
    print(f"KL of 24 replies: k1 {k1_sum:.1f}, k3 {k3_sum:.1f} nats; logged {logged:.1f}")
    assert abs(k1_sum / logged - 1) < 0.35

# %% [markdown]
# ## Exercises
#
# 1. A grammar leaves two tokens at the first place of a reply, `<rec>` and `<say>`. How large can the entropy be there, and how large at
#    a place where all words are allowed? What follows for a bonus on entropy, and for exploration?
# 2. Both reward models passed the gate, a correlation of 0.6 with reactions they had not seen. Look at the four panels without the second one. Which would have told you
#    that the hackable run goes wrong, and at which update would you have stopped it? Write the rule down, as a function of what is logged
#    of every update: the proxy's mean `score`, `kl`, `length`, and `ends`, the share of replies that said `<eos>` in time.
# 3. Recompute the advantages of the reply above with $\lambda = 0$ and with $\lambda = 1$: fill in the function. Which of the two tells a good reply from a bad one even with a critic that
#    knows nothing? What does this critic add?


# %%
def warns_at(logged: dict[str, list[float]]) -> int | None:
    """The first update (from 1) at which you would stop, from `score`, `kl`, `length` and `ends`; None if never. Exercise 2."""
    raise NotImplementedError("your turn")


def asserts_2(warns_at) -> None:
    assert warns_at(stored["demo"]["updates"]) is None, "a run that got better was stopped"
    at = warns_at(stored["hackable"]["updates"])
    assert at is not None, "the hackable run was not stopped"
    assert at < 8, f"stopped at {at}, when the damage was done"


check(warns_at, asserts_2)


# %%
def advantages_at(gae_lambda: float, rewards: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A_t of one finished reply, γ = 1; rewards and values have one number a token. Exercise 3."""
    raise NotImplementedError("your turn")


def asserts_3(advantages_at) -> None:
    np.testing.assert_allclose(advantages_at(gae_lambda, rewards, values), advantages, atol=1e-4)
    np.testing.assert_allclose(advantages_at(1.0, rewards, values)[0], rewards.sum() - values[0], atol=1e-4)
    np.testing.assert_allclose(advantages_at(0.0, rewards, values)[-1], rewards[-1] - values[-1], atol=1e-4)


check(advantages_at, asserts_3)

# %% [markdown]
# **1.** At most $\log 2$ nats at the first place, about $\log |\mathcal{V}|$ where every word is allowed. The mask sets all other logits to $-\infty$, in the sampler and in the
# learner alike (notebook 1, exercise 2). A bonus on entropy, which is a mean over tokens, therefore pushes hardest where words are chosen, and hardly at the choice that
# matters most for a recommender: to list films or not to. That one has to be explored through its probability at the start, which imitation sets.

# %%
undecided = np.asarray(jax.jit(agent.policy)(policy, rollout).entropy)
first = undecided[:, 0]
print(f"first place: {first.min():.3f} to {first.max():.3f} nats, log 2 = {np.log(2):.3f};", end=" ")
print(f"anywhere: up to {undecided[rollout.response_mask].max():.2f}, log |V| = {np.log(vocab.size):.2f}")
assert first.max() <= np.log(2) + 1e-4
assert {int(token) for token in rollout.response_tokens[:, 0]} <= {agent.grammar.rec, agent.grammar.say}

# %% [markdown]
# **2.** The length of replies. It leaves its place at the very first updates and keeps going, while KL and score look alike in both runs: a KL of 5 nats is reached by the run that gets
# better as well. (`score` above 1.3, or `ends` below .95, would stop the right run too, at the fourth update. But the unit of a score is that of its reward model, so such a
# bound is known only afterwards; and `ends` falls because replies grow until they are cut.) In the plain world length *falls*, so a rule must have a sign. The rule below stops the hackable run at its second update. It was written with the picture in sight, so it proves nothing about other
# worlds; [what warned first](../docs/results/over_optimisation.md) in five seeds of a smaller one is on its page.


# %%
def warns_at(logged: dict[str, list[float]]) -> int | None:
    """Longer by a quarter than at the start."""
    for update, length in enumerate(logged["length"], start=1):
        if length > 1.25 * logged["length"][0]:
            return update
    return None


assert check(warns_at, asserts_2)
print({name: warns_at(run["updates"]) for name, run in stored.items()})

# %% [markdown]
# **3.** At $\lambda = 0$ a token is credited with the change in the critic's opinion; a critic without one leaves everything to the last token, where the score is paid.
# At $\lambda = 1$ every token is credited with what is still paid less the value before it: the reply counts, whatever the critic thinks, with all its noise. So: high $\lambda$ first. A good critic
# allows a lower one, which names the tokens that deserve it (notebook 4). This one changes its mind by a few tenths at almost every token of a reply
# whose score is −0.9, and at $\lambda = 0$ that is all a token is told.


# %%
def advantages_at(gae_lambda: float, rewards: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Backwards: δ_t + λ A_{t+1}."""
    deltas = rewards + np.append(values[1:], 0.0) - values
    found = np.zeros(len(deltas))
    later = 0.0
    for t in reversed(range(len(deltas))):
        found[t] = later = deltas[t] + gae_lambda * later
    return found


assert check(advantages_at, asserts_3)
at_0, at_1 = (advantages_at(l, rewards, values) for l in (0.0, 1.0))
np.testing.assert_allclose(at_0.sum(), at_1[0], atol=1e-4)  # The changes of opinion add up to what the reply was worth.
for token, low, high in zip(one["tokens"], at_0, at_1, strict=True):
    print(f"{token:14.14s} λ = 0 {low:+.3f}, λ = 1 {high:+.3f}")

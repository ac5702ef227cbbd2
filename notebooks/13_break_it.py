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
# # 13 · Break it: which line is wrong?
#
# A sign, a bound, an index: faults in reinforcement learning raise no exception. The program runs, numbers are logged, and nothing is
# learnt, or the wrong thing is. **Can you find the fault from the metrics alone?**
#
# This is a laboratory. The language of notebook 8 is learnt six times by the library's PPO. One run is healthy. In each of the others *one*
# token of one equation has been changed, as `tools/mutate_equations.py` does it to find out whether the tests of this library would notice.
# You see what the runs logged, and a list of the faults. Which run has which?

# %%
import ast
import inspect
from types import ModuleType

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from rlhf_jax.equations import gae, logprobs, rewards
from rlhf_jax.equations import ppo as ppo_losses
from rlhf_jax.equations.logprobs import entropy, token_logprobs
from rlhf_jax.interfaces import PolicyOutput, PromptBatch, Rollout
from rlhf_jax.learners import minibatch, ppo, shaping
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.lessons import compile_quickly

compile_quickly()  # Six programs, each of which runs a few times.
np.set_printoptions(precision=4, suppress=True)
plt.style.use("seaborn-v0_8-colorblind")  # Colours that everybody can tell apart.

# %% [markdown]
# ## The language again
#
# Words **a** and **b**, and `<eos>`. At most five tokens; 1 for every *ab*, a penalty of 1 without an end. The policy is a table.

# %%
A, B, EOS, T = 0, 1, 2, 5
REFERENCE = {
    "logits": jnp.broadcast_to(jnp.array([[0.0, 0.6, -1.0], [-0.5, 0.5, -0.7], [0.0, 0.5, -1.5]]), (T, 3, 3)),
    "values": jnp.zeros((T, 3)),
}
PROMPTS = PromptBatch(tokens=jnp.full((128, 1), EOS), mask=jnp.ones((128, 1), bool))
JUDGE = {"token_logprobs": token_logprobs}  # What the learner calls; a fault may sit in it.


def sample(params, prompts: PromptBatch, key: jax.Array) -> Rollout:
    """Token by token; what follows an `<eos>` is padding."""
    previous, alive = prompts.tokens[:, -1], jnp.ones(prompts.tokens.shape[0], bool)
    tokens, mask, said = [], [], []
    for t in range(T):
        logits = params["logits"][t][previous]
        token = jax.random.categorical(jax.random.fold_in(key, t), logits)
        tokens.append(jnp.where(alive, token, 0))
        mask.append(alive)
        said.append(jnp.where(alive, token_logprobs(logits, token), 0.0))
        alive, previous = alive & (token != EOS), token
    stack = lambda columns: jnp.stack(columns, axis=1)
    return Rollout(
        prompt_tokens=prompts.tokens,
        prompt_mask=prompts.mask,
        response_tokens=stack(tokens),
        response_mask=stack(mask),
        logprobs=stack(said),
        finished=~alive,
    )


def policy(params, rollout: Rollout) -> PolicyOutput:
    """Log-probability, entropy and value of every token of given responses."""
    tokens = rollout.response_tokens
    previous = jnp.concatenate([rollout.prompt_tokens[:, -1:], tokens[:, :-1]], axis=1)
    position = jnp.broadcast_to(jnp.arange(T)[None], tokens.shape)
    logits = params["logits"][position, previous]
    return PolicyOutput(
        logprobs=jax.vmap(JUDGE["token_logprobs"])(logits, tokens),
        entropy=jax.vmap(entropy)(logits),
        values=params["values"][position, previous],
    )


def score(unused: None, rollout: Rollout) -> jax.Array:
    """How often "ab" occurs among the real tokens; one component."""
    tokens, mask = rollout.response_tokens, rollout.response_mask
    return ((tokens[:, :-1] == A) & (tokens[:, 1:] == B) & mask[:, 1:]).sum(axis=1, dtype=jnp.float32)[:, None]


# %% [markdown]
# ## How a fault is planted
#
# The source of one function is read, one place in it is replaced, and the learner is given the function that comes out.

# %%
FAULTS = {
    "the KL is paid, not charged": (rewards, "token_rewards", "-kl_coef * jnp", "kl_coef * jnp", vars(ppo)),
    "a missing end is paid": (
        rewards,
        "missing_eos_score",
        "score, score - penalty",
        "score, score + penalty",
        vars(shaping),
    ),
    "the clipped term has the wrong sign": (
        ppo_losses,
        "clipped_surrogate",
        "-advantages * jnp.clip(",
        "advantages * jnp.clip(",
        vars(minibatch),
    ),
    "the learner reads the wrong word": (
        logprobs,
        "token_logprobs",
        "tokens[:, None], axis=-1)",
        "tokens[:, None] - 1, axis=-1)",
        JUDGE,
    ),
    "the advantage adds the value": (
        gae,
        "multi_turn_generalized_advantage_estimation",
        "next_value - value + gamma",
        "next_value + value + gamma",
        vars(ppo),
    ),
}


def broken(module: ModuleType, function: str, original: str, replacement: str):
    """The function with one place of its source replaced."""
    source = inspect.getsource(module)
    assert source.count(original) == 1
    names = {"__name__": "broken"}
    exec(compile(ast.parse(source.replace(original, replacement)), "broken", "exec"), names)  # noqa: S102
    return names[function]


config = PPOConfig(
    component_weights=(1.0,),
    component_names=("ab",),
    normalise_components=False,
    normalise_score=False,
    score_clip=None,
    whiten_advantages=False,
    kl_coef=0.4,
    value_coef=1.0,
    value_clip_eps=10.0,
)
UPDATES = 60


def train(fault: str | None) -> dict[str, np.ndarray]:
    """What a run logs, an array a metric."""
    place, name, right = {}, "", None
    if fault is not None:
        module, name, original, replacement, place = FAULTS[fault]
        right, place[name] = place[name], broken(module, name, original, replacement)
    try:
        adam = make_optimizer(learning_rate=0.03, total_steps=UPDATES * config.epochs)
        run = ppo.make_ppo_iteration(sample=sample, policy=policy, score=score, optimizer=adam, config=config)
        state, lines = ppo.init(REFERENCE, adam, config, jax.random.key(0)), []
        for _ in range(UPDATES):
            state, metrics, _ = run(state, PROMPTS, REFERENCE, None)
            lines.append(metrics)
    finally:
        if fault is not None:
            place[name] = right
    lines = jax.device_get(lines)
    return {name: np.array([line[name] for line in lines]) for name in lines[0]}


healthy = train(None)
# The order is nobody's business yet.
ORDER = np.random.default_rng(11).permutation(list(FAULTS))
runs = {f"run {n}": train(fault) for n, fault in enumerate(ORDER, start=1)}

# %% [markdown]
# ## The picture: what was logged

# %% caption="Eight metrics over 60 updates, one panel each: the healthy run as a thick line, five runs with one fault each as thin ones. Every faulty run leaves the healthy one in at least one panel."
SHOWN = {
    "objective/score_raw": "score",
    "objective/kl_k1": "KL, nats",
    "objective/entropy": "entropy, nats",
    "text/eos_fraction": "share that ends",
    "value/returns_mean": "mean return",
    "value/loss": "loss of the critic",
    "policy/sampler_mismatch": "sampler mismatch, nats",
    "value/explained_variance": "explained variance",
}
figure, axes = plt.subplots(2, 4, figsize=(13, 6), layout="constrained")
for axis, (metric, label) in zip(axes.flat, SHOWN.items(), strict=True):
    axis.plot(healthy[metric], color="gray", linewidth=4, alpha=0.6, label="healthy")
    for n, (name, logged) in enumerate(runs.items()):
        color = "black" if n == 4 else f"C{n}"
        axis.plot(
            np.clip(logged[metric], -3, 60), ("-", "--", "-.", ":", "-")[n], color=color, linewidth=1.3, label=name
        )
    axis.set(title=label, xlabel="update")
axes[0, 0].legend(fontsize=8)
plt.show()

# %% [markdown]
# The same as numbers, means over the last ten updates:

# %%
print(f"{'':26s}" + "".join(f"{name:>10s}" for name in ("healthy", *runs)))
for metric in SHOWN:
    row = [logged[metric][-10:].mean() for logged in (healthy, *runs.values())]
    print(f"{metric:26s}" + "".join(f"{value:10.3f}" for value in row))

# %% [markdown]
# ## Your answers
#
# Write a number of this list in the place of each `None`, and run the cell. [Metrics](../docs/metrics.md#healthy-and-where-to-look-if-not) says what healthy
# numbers look like.

# %%
for number, fault in enumerate(FAULTS, start=1):
    print(f"{number}. {fault}")
answers = {"run 1": None, "run 2": None, "run 3": None, "run 4": None, "run 5": None}


def check(answers: dict[str, int | None]) -> int:
    """Says which answers are right, not which are the right ones; returns their number."""
    names = list(FAULTS)
    right = [
        name for (name, given), fault in zip(answers.items(), ORDER, strict=True) if given and names[given - 1] == fault
    ]
    print(f"{len(right)} of {len(answers)} right" + (f": {', '.join(right)}" if right else ""))
    return len(right)


check(answers)

# %% [markdown]
# ## Checks

# %%
assert healthy["objective/score_raw"][-1] > healthy["objective/score_raw"][0] + 0.4
assert healthy["policy/sampler_mismatch"].max() < 1e-4
for name, logged in runs.items():
    # No run can be told from the healthy one by an exception, and each by its numbers.
    apart = [np.abs(logged[metric][-10:].mean() - healthy[metric][-10:].mean()) for metric in SHOWN]
    assert max(apart) > 0.1, name

# %% [markdown]
# ## Exercises
#
# 1. Which run has which fault? Give for each the number that decided, and why the fault must move it.
# 2. The score alone would call two of the faulty runs *better* than the healthy one. Which, and which other number says that they are not?
# 3. One fault is invisible in the ratio of the first step, `policy/first_ratio_max_deviation`. Why, and which metric exists for it?

# %% [markdown]
# **1.** *A missing end is paid*: fewer and fewer responses end, .07 of them in the last updates. *The advantage adds the value*: the critic runs after a target that
# grows with itself, so returns reach 22 where scores are at most 2, and it explains nothing. *The clipped term has the wrong sign*: the larger of $-A\rho$ and
# $+A\, \mathrm{clip}(\rho)$ is taken, so near $\rho = 1$ the loss is $|A|\rho$: whatever was said is pushed down, what was good too. The score falls to 0. *The learner reads the wrong word*:
# sampler and learner disagree by 3.5 nats about the same token. *The KL is paid*: 5 nats away from the reference and an entropy of almost 0; mean return exceeds every score.

# %%
right = {name: list(FAULTS).index(str(fault)) + 1 for name, fault in zip(runs, ORDER, strict=True)}
print(right)
assert check(right) == 5
assert check({name: number % 5 + 1 for name, number in right.items()}) == 0
last = {
    str(fault): {m: values[-10:].mean() for m, values in runs[name].items()}
    for name, fault in zip(runs, ORDER, strict=True)
}
assert last["a missing end is paid"]["text/eos_fraction"] < 0.2
assert last["the advantage adds the value"]["value/returns_mean"] > 10
assert last["the clipped term has the wrong sign"]["objective/score_raw"] < 0.2
assert last["the learner reads the wrong word"]["policy/sampler_mismatch"] > 1
assert (
    last["the KL is paid, not charged"]["objective/kl_k1"]
    > 3
    > last["the KL is paid, not charged"]["objective/score_raw"]
)
# With the wrong sign the loss near ρ = 1 is |A|ρ, whatever the sign of A.
wrong = broken(*FAULTS["the clipped term has the wrong sign"][:4])
for advantage, ratio in ((1.0, 0.95), (1.0, 1.05), (-1.0, 0.95), (-1.0, 1.05)):
    found = wrong(jnp.log(ratio), jnp.zeros(()), jnp.array(advantage), clip_eps=0.2)
    np.testing.assert_allclose(found, abs(advantage) * ratio, rtol=1e-6)

# %% [markdown]
# **2.** Where a missing end is paid (longer responses hold more *ab*), and where the KL is paid. The score as the reward model gives it, `objective/score_raw`, knows neither
# price. The share of responses that end shows the first, KL and entropy the second. A rising score is what a fault in the reward looks like.

# %%
better = [
    fault
    for fault, metrics in last.items()
    if metrics["objective/score_raw"] > healthy["objective/score_raw"][-10:].mean()
]
print(better)
assert set(better) == {"a missing end is paid", "the KL is paid, not charged"}

# %% [markdown]
# **3.** The learner that reads the wrong token reads it twice: once for $\log \pi_\text{old}$, once for $\log \pi_\theta$. Both are wrong in the same way and their ratio is 1.
# Only somebody who read the right one can tell: the sampler, whose log-probabilities `policy/sampler_mismatch` compares with the learner's.

# %%
deaf = runs[f"run {list(ORDER).index('the learner reads the wrong word') + 1}"]
print(f"ratio of the first step {deaf['policy/first_ratio_max_deviation'].max():.1e} from 1,", end=" ")
print(f"mismatch {deaf['policy/sampler_mismatch'].min():.2f} nats at least")
assert deaf["policy/first_ratio_max_deviation"].max() < 1e-4

"""Details that matter: each of eight details of PPO on language with it and without it, on the language of notebook 8.

    python experiments/details_that_matter.py [FOLDER]     # default: docs/course; writes details.svg and details.csv

Question: what happens to the policy when one detail is left out, and nothing else changes? The answers, panel by panel, are in
docs/course/details.md. Truths are exact, over all 63 responses. Hardware and time: two CPU cores, a minute; three seeds.
Expected: what details.csv holds (float32; another processor may differ in the last digits).
"""

import csv
import functools
import itertools
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax

from rlhf_jax.equations.gae import generalized_advantage_estimation
from rlhf_jax.equations.group import leave_one_out_advantages
from rlhf_jax.equations.kl import kl_k1, kl_k3
from rlhf_jax.equations.logprobs import token_logprobs
from rlhf_jax.equations.masked import masked_mean, masked_whiten, zero_padding
from rlhf_jax.equations.ppo import clipped_surrogate, clipped_value_loss
from rlhf_jax.equations.rewards import missing_eos_score, token_rewards
from rlhf_jax.equations.running import initial_moments, normalise, update_moments

A, B, EOS, T = 0, 1, 2, 5
BATCH, GROUP, EPOCHS, UPDATES, SEEDS = 64, 8, 4, 100, 3
REFERENCE = {
    "logits": jnp.broadcast_to(jnp.array([[0.0, 0.6, -1.0], [-0.5, 0.5, -0.7], [0.0, 0.5, -1.5]]), (T, 3, 3)),
    "values": jnp.zeros((T, 3)),
    "per_ab": jnp.zeros(()),
}
GAE, NO_BASELINE, BATCH_MEAN, LEAVE_ONE_OUT = range(4)
DISTANCE, FINISHED, MOVED, CRITIC, HUMAN = range(5)
TRUTHS = (
    "KL(π‖π*), nats",
    "share of responses that end",
    "KL(π‖π_ref), nats",
    "critic's error, in score units",
    "log π of human text, nats",
)


class Setting(NamedTuple):
    """What one curve was made with; numbers, so that one compiled program serves all of them."""

    unit: float = 1.0
    """The reward model's: scores, penalty excepted, are multiplied by it."""
    kl_reward: float = 0.4
    """κ, paid with k1 in the reward."""
    kl_loss: float = 0.0
    """κ, as k3 per token in the loss."""
    penalty: float = 1.0
    """For a missing <eos>."""
    sampler_temperature: float = 1.0
    learner_temperature: float = 1.0
    """Of the log-probabilities of policy and reference."""
    normalised: float = 0.0
    """1: scores are divided by their running deviation, minus the running mean."""
    advantage: int = GAE
    level: float = 0.0
    """Added to the scores of every other prompt, whatever is said."""
    whitened: float = 0.0
    value_clip: float = 1e6
    ptx: float = 0.0
    """Weight of −log π, per token, of as many human sentences (drawn from the reference)."""
    descent: float = 0.0
    """Rate of plain gradient descent; 0: Adam at 0.03."""
    critic_speed: float = 1.0
    """Multiplies the critic's steps."""


class Panel(NamedTuple):
    """A detail: what is measured, and curves by label; the first is with the detail."""

    title: str
    truth: int
    curves: dict[str, Setting]
    logarithmic: bool = True
    legend: str | tuple[float, float] = "best"


SMALL = Setting(unit=0.1, kl_reward=0.04, penalty=0.1, descent=1.0)
LARGE = Setting(unit=10.0, kl_reward=4.0, penalty=10.0, critic_speed=20.0)
PANELS = (
    Panel("1 Whitening", DISTANCE, {"on": SMALL._replace(whitened=1.0), "off": SMALL}),
    Panel("2 Value clip", CRITIC, {"ε_v = 0.2": LARGE._replace(value_clip=0.2), "off": LARGE}),
    Panel("3 Missing <eos>", FINISHED, {"penalty 1": Setting(), "no penalty": Setting(penalty=0.0)}, False),
    Panel(
        "4 Temperature 0.6",
        DISTANCE,
        {
            "known to the learner": Setting(sampler_temperature=0.6, learner_temperature=0.6),
            "to the sampler only": Setting(sampler_temperature=0.6),
        },
    ),
    Panel(
        "5 Where the KL is",
        DISTANCE,
        {"k1 in the reward": Setting(), "k3 in the loss": Setting(kl_reward=0.0, kl_loss=0.4)},
    ),
    Panel(
        "6 Running scales",
        MOVED,
        {
            "on, unit 10": Setting(unit=10.0, normalised=1.0),
            "on, unit 0.1": Setting(unit=0.1, normalised=1.0),
            "off, unit 10": Setting(unit=10.0),
            "off, unit 0.1": Setting(unit=0.1),
        },
        False,
        (0.44, 0.18),
    ),
    Panel(
        "7 Group baseline",
        DISTANCE,
        {
            "mean of the group's others": Setting(advantage=LEAVE_ONE_OUT, level=3.0),
            "mean of the batch": Setting(advantage=BATCH_MEAN, level=3.0),
            "none": Setting(advantage=NO_BASELINE, level=3.0),
        },
    ),
    Panel("8 ptx", HUMAN, {"weight 1": Setting(kl_reward=0.1, ptx=1.0), "off": Setting(kl_reward=0.1)}, False),
)


def sample(logits, temperature, key):
    """Responses token by token, and which tokens are real. [B, T], [B, T]"""
    token, alive, tokens, mask = jnp.full(BATCH, EOS), jnp.ones(BATCH, bool), [], []
    for t in range(T):
        token = jax.random.categorical(jax.random.fold_in(key, t), logits[t][token] / temperature)
        tokens.append(jnp.where(alive, token, 0))
        mask.append(alive)
        alive = alive & (token != EOS)
    return jnp.stack(tokens, axis=1), jnp.stack(mask, axis=1)


def judge(params, tokens, mask, temperature):
    """log π and V of every token; the critic sees position, last token and how many "ab" there were. [B, T], [B, T]"""
    before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=EOS)
    position = jnp.broadcast_to(jnp.arange(T)[None], tokens.shape)
    score_tokens = functools.partial(token_logprobs, temperature=temperature)
    logprobs = jax.vmap(score_tokens)(params["logits"][position, before], tokens)
    so_far = jnp.cumsum(jnp.pad((before[:, :-1] == A) & (before[:, 1:] == B), ((0, 0), (1, 0))), axis=1)
    values = params["values"][position, before] + params["per_ab"] * so_far
    return zero_padding(logprobs, mask), zero_padding(values, mask)


def count_ab(tokens, mask):
    """How often "ab" occurs. [B]"""
    return ((tokens[:, :-1] == A) & (tokens[:, 1:] == B) & mask[:, 1:]).sum(axis=1).astype(jnp.float32)


def ends(tokens, mask):
    """Whether <eos> was said. [B]"""
    return ((tokens == EOS) & mask).any(axis=1)


WORDS = [[*w, EOS] for n in range(T) for w in itertools.product((A, B), repeat=n)]
WORDS += [list(w) for w in itertools.product((A, B), repeat=T)]
EVERYTHING = (
    jnp.array([w + [0] * (T - len(w)) for w in WORDS]),
    jnp.arange(T)[None] < jnp.array([[len(w)] for w in WORDS]),
)


def truths(params, setting: Setting) -> jax.Array:
    """The five TRUTHS, exactly, of the policy that acts, which is the one at the sampler's temperature. [5]"""
    temperature = setting.sampler_temperature
    log_pi = judge(params, *EVERYTHING, temperature)[0].sum(axis=1)
    log_ref = judge(REFERENCE, *EVERYTHING, temperature)[0].sum(axis=1)
    scores = missing_eos_score(setting.unit * count_ab(*EVERYTHING), ends(*EVERYTHING), penalty=setting.penalty)
    kl_coef = setting.kl_reward + setting.kl_loss
    log_best = jax.nn.log_softmax(log_ref + scores / kl_coef)
    pi = jnp.exp(log_pi)
    worth = pi @ (scores - setting.kl_reward * (log_pi - log_ref))
    critic = jnp.abs(params["values"][0, EOS] - worth) / setting.unit
    human = jnp.exp(log_ref) @ log_pi
    return jnp.stack([pi @ (log_pi - log_best), pi @ ends(*EVERYTHING), pi @ (log_pi - log_ref), critic, human])


def update(carry, key, setting: Setting):
    """Lines 1–7 of the box, every detail by its number in the setting."""
    params, opt_state, moments = carry
    human_key, key = jax.random.split(key)
    human = sample(REFERENCE["logits"], 1.0, human_key)
    tokens, mask = sample(params["logits"], setting.sampler_temperature, key)
    old_logprobs, old_values = judge(params, tokens, mask, setting.learner_temperature)
    ref_logprobs, _ = judge(REFERENCE, tokens, mask, setting.learner_temperature)
    prompt = jnp.arange(BATCH) // GROUP
    scores = setting.unit * count_ab(tokens, mask) + setting.level * (prompt % 2)
    moments = update_moments(moments, scores)
    scores = jnp.where(setting.normalised == 1, normalise(moments, scores), scores)
    scores = missing_eos_score(scores, ends(tokens, mask), penalty=setting.penalty)
    k1 = kl_k1(old_logprobs, ref_logprobs)
    rewards = jax.vmap(functools.partial(token_rewards, kl_coef=setting.kl_reward))(scores, k1, mask)
    gae = functools.partial(generalized_advantage_estimation, gamma=1.0, gae_lambda=0.95)
    surprises = zero_padding(jax.vmap(gae)(rewards, jnp.pad(old_values, ((0, 0), (0, 1)))), mask)
    paid = rewards.sum(axis=1)
    others = jax.vmap(leave_one_out_advantages)(paid.reshape(-1, GROUP)).reshape(-1)
    per_response = jnp.stack([paid, paid - paid.mean(), others])[jnp.maximum(setting.advantage - 1, 0)]
    advantages = jnp.where(setting.advantage == GAE, surprises, jnp.where(mask, per_response[:, None], 0.0))
    advantages = jnp.where(setting.whitened == 1, masked_whiten(advantages, mask), advantages)
    returns = surprises + old_values

    def loss(params):
        logprobs, values = judge(params, tokens, mask, setting.learner_temperature)
        per_token = clipped_surrogate(logprobs, old_logprobs, advantages, clip_eps=0.2)
        per_token += clipped_value_loss(values, old_values, returns, value_clip_eps=setting.value_clip)
        per_token += setting.kl_loss * kl_k3(logprobs, ref_logprobs)
        imitation = -masked_mean(judge(params, *human, 1.0)[0], human[1])
        return masked_mean(per_token, mask) + setting.ptx * imitation

    def step(_, carry):
        params, opt_state = carry
        gradient = jax.grad(loss)(params)
        steps, opt_state = optax.adam(0.03, eps=1e-5).update(gradient, opt_state, params)
        steps = jax.tree.map(lambda a, g: jnp.where(setting.descent > 0, -setting.descent * g, a), steps, gradient)
        steps = {name: x * (1.0 if name == "logits" else setting.critic_speed) for name, x in steps.items()}
        return optax.apply_updates(params, steps), opt_state

    params, opt_state = jax.lax.fori_loop(0, EPOCHS, step, (params, opt_state))
    return (params, opt_state, moments), truths(params, setting)


@functools.partial(jax.jit, static_argnames="updates")
@functools.partial(jax.vmap, in_axes=(0, None, None))  # settings
@functools.partial(jax.vmap, in_axes=(None, 0, None))  # seeds
def train(setting: Setting, seed, updates: int):
    """The truths before the first and after every update. [settings, seeds, updates+1, 5]"""
    start = REFERENCE, optax.adam(0.03, eps=1e-5).init(REFERENCE), initial_moments()
    keys = jax.random.split(jax.random.key(seed), updates)
    _, path = jax.lax.scan(lambda carry, key: update(carry, key, setting), start, keys)
    return jnp.concatenate([truths(REFERENCE, setting)[None], path])


def run(panels=PANELS, updates: int = UPDATES) -> list[np.ndarray]:
    """What each panel shows: [curves, seeds, updates+1]."""
    settings = [setting for panel in panels for setting in panel.curves.values()]
    stacked = Setting(*(jnp.array(column) for column in zip(*settings, strict=True)))
    paths, found = iter(np.asarray(train(stacked, jnp.arange(SEEDS), updates))), []
    for panel in panels:
        found.append(np.stack([next(paths)[..., panel.truth] for _ in panel.curves]))
    return found


def said(last: float) -> str:
    """Three digits; what is below 1e-5 is rounding."""
    return "0" if abs(last) < 1e-5 else f"{last:.3g}"


def main(folder: Path) -> None:
    """Runs everything, draws it, and writes the last values down."""
    found = run()
    matplotlib.rcParams |= {"svg.hashsalt": "details", "svg.fonttype": "none"}
    plt.style.use("seaborn-v0_8-colorblind")
    figure, axes = plt.subplots(2, 4, figsize=(13, 6.4), layout="constrained")
    rows = []
    for axis, panel, curves in zip(axes.flat, PANELS, found, strict=True):
        looks = zip(panel.curves, curves, ("-", "--", "-.", ":"), ("C0", "C2", "black", "C1"), strict=False)
        for label, seeds, style, color in looks:
            shown = np.maximum(seeds, 1e-5) if panel.logarithmic else seeds
            axis.fill_between(range(UPDATES + 1), shown.min(axis=0), shown.max(axis=0), color=color, alpha=0.15)
            axis.plot(shown.mean(axis=0), style, color=color, linewidth=1.8, label=label)
            rows += [(panel.title, label, seed, said(path[-1])) for seed, path in enumerate(seeds)]
        axis.set(title=panel.title, xlabel="update", ylabel=TRUTHS[panel.truth])
        if panel.logarithmic:
            axis.set_yscale("log")
        axis.legend(fontsize=8, loc=panel.legend)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "details.svg", metadata={"Date": None})
    with (folder / "details.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("detail", "curve", "seed", "last"))
        writer.writerows(rows)
    print(f"{folder / 'details.svg'}, {folder / 'details.csv'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/course"))

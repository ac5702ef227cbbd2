"""Writes the golden vectors beside this file: `python tests/golden/generate.py` (needs rlax 0.1.9; the tests do not).

Every case stores a function's name, its inputs and what an independent source says the result is. Sources: rlax for
advantages and the surrogate; for everything else a loop over Python floats, written from the cited paper in its own
order of operations. Nothing here imports the package. `published.json` is typed by hand and not touched.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
Case = dict[str, object]


def case(function: str, source: str, arguments: list[object], expected: object, **options: object) -> Case:
    """One record; arrays become nested lists."""
    plain = [a.tolist() if isinstance(a, np.ndarray) else a for a in arguments]
    return {
        "function": function,
        "source": source,
        "arguments": plain,
        "options": options,
        "expected": expected.tolist() if isinstance(expected, np.ndarray) else expected,
    }


def draws(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Normal draws with three decimals, so that inputs are short and mean the same in every precision."""
    return np.round(rng.normal(0.0, scale, shape), 3)


def softmax(logits: list[float]) -> list[float]:
    """Probabilities of one row."""
    weights = [math.exp(x) for x in logits]
    return [w / sum(weights) for w in weights]


def masked_cases(rng: np.random.Generator) -> list[Case]:
    x, mask = draws(rng, 3, 4), rng.random((3, 4)) < 0.6
    real = [float(v) for v, m in zip(x.ravel(), mask.ravel(), strict=True) if m]
    mean = sum(real) / len(real)
    var = sum(v * v for v in real) / len(real) - mean * mean
    loop = "loop over the real entries; variance as E[x²] − E[x]²"
    sd = math.sqrt(var + 1e-8)
    rows = [list(zip(values, flags, strict=True)) for values, flags in zip(x.tolist(), mask.tolist(), strict=True)]
    white = [[(v - mean) / sd if m else 0.0 for v, m in row] for row in rows]
    kept = [[(v - mean) / sd + mean if m else 0.0 for v, m in row] for row in rows]
    return [
        case("masked_mean", loop, [x, mask], mean),
        case("masked_var", loop, [x, mask], var),
        case("masked_whiten", loop, [x, mask], white),
        case("masked_whiten", loop, [x, mask], kept, shift_mean=False),
    ]


def logprobs_cases(rng: np.random.Generator) -> list[Case]:
    logits, tokens, tau = draws(rng, 4, 5, scale=2.0), np.array([0, 3, 4, 1]), 0.7
    cases = []
    for temperature in (1.0, tau):
        rows = [softmax([x / temperature for x in row]) for row in logits.tolist()]
        picked = [math.log(row[a]) for row, a in zip(rows, tokens, strict=True)]
        entropies = [sum(p * math.log(1 / p) for p in row) for row in rows]
        source = "loop: exponentials, sum, division, logarithm"
        cases.append(case("token_logprobs", source, [logits, tokens], picked, temperature=temperature))
        cases.append(case("entropy", source, [logits], entropies, temperature=temperature))
    hidden, head = draws(rng, 4, 3), draws(rng, 5, 3)
    rows = [softmax([sum(h * w for h, w in zip(hs, ws, strict=True)) / tau for ws in head]) for hs in hidden]
    picked = [math.log(row[a]) for row, a in zip(rows, tokens, strict=True)]
    source = "loop over positions and vocabulary"
    cases.append(case("chunked_token_logprobs", source, [hidden, head, tokens], picked, chunk=3, temperature=tau))
    return cases


def gae_cases(rng: np.random.Generator) -> list[Case]:
    import jax.numpy as jnp
    import rlax

    cases = []
    for gamma, lam in ((1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)):
        rewards, values = draws(rng, 7), draws(rng, 8)
        discounts = jnp.full(7, gamma, jnp.float32)
        expected = rlax.truncated_generalized_advantage_estimation(
            jnp.asarray(rewards, jnp.float32), discounts, lam, jnp.asarray(values, jnp.float32)
        )
        source = "rlax 0.1.9 truncated_generalized_advantage_estimation"
        options = {"gamma": gamma, "gae_lambda": lam}
        name = "generalized_advantage_estimation"
        cases.append(case(name, source, [rewards, values], np.asarray(expected), **options))

        mask = np.array([True, True, False, False, True, True, False])
        own = [t for t in range(7) if mask[t]]
        chain = [float(values[t]) for t in own] + [float(values[7])]
        deltas = [float(rewards[t]) + gamma * chain[i + 1] - chain[i] for i, t in enumerate(own)]
        advantages = [0.0] * 7
        for i, t in enumerate(own):
            advantages[t] = sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(own)))
        source = "loop: user tokens cut out, then the sum of arXiv:1506.02438 eq. 16 term by term"
        name = "multi_turn_generalized_advantage_estimation"
        cases.append(case(name, source, [rewards, values, mask], advantages, **options))
    return cases


def kl_cases(rng: np.random.Generator) -> list[Case]:
    logprobs, ref = -np.abs(draws(rng, 6)), -np.abs(draws(rng, 6))
    pairs = list(zip(logprobs.tolist(), ref.tolist(), strict=True))
    source = "loop with r = π_ref/π, as in joschu.net/blog/kl-approx.html"
    ratios = [math.exp(q) / math.exp(p) for p, q in pairs]
    logits, ref_logits = draws(rng, 3, 4), draws(rng, 3, 4)
    exact = []
    for row, ref_row in zip(logits.tolist(), ref_logits.tolist(), strict=True):
        exact.append(sum(p * math.log(p / q) for p, q in zip(softmax(row), softmax(ref_row), strict=True)))
    return [
        case("kl_k1", source, [logprobs, ref], [-math.log(r) for r in ratios]),
        case("kl_k2", source, [logprobs, ref], [0.5 * math.log(r) ** 2 for r in ratios]),
        case("kl_k3", source, [logprobs, ref], [(r - 1) - math.log(r) for r in ratios]),
        case("kl_exact", "loop over the vocabulary", [logits, ref_logits], exact),
    ]


def rewards_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for length in (0, 1, 3, 5):
        kl, score = draws(rng, 5), float(draws(rng))
        mask = np.arange(5) < length
        rewards = [0.0] * 5
        for t in range(length):
            rewards[t] -= 0.05 * float(kl[t])
        if length:
            rewards[length - 1] += score
        source = "loop from arXiv:1909.08593 eq. 2, score on the last token"
        cases.append(case("token_rewards", source, [score, kl, mask], rewards, kl_coef=0.05))
    return cases


def ppo_cases(rng: np.random.Generator) -> list[Case]:
    import jax.numpy as jnp
    import rlax

    old = -np.abs(draws(rng, 10))
    new = np.round(old + draws(rng, 10, scale=0.4), 3)
    advantages = draws(rng, 10)
    cases = []
    for eps in (0.2, 0.05):
        ratios = jnp.exp(jnp.asarray(new - old, jnp.float32))[:, None]
        adv = jnp.asarray(advantages, jnp.float32)[:, None]
        losses = [float(rlax.clipped_surrogate_pg_loss(r, a, eps)) for r, a in zip(ratios, adv, strict=True)]
        source = "rlax 0.1.9 clipped_surrogate_pg_loss, one token at a time"
        cases.append(case("clipped_surrogate", source, [new, old, advantages], losses, clip_eps=eps))
        dual, flags = [], []
        for n, o, a in zip(new.tolist(), old.tolist(), advantages.tolist(), strict=True):
            ratio = math.exp(n) / math.exp(o)
            if a >= 0:
                objective = a * min(ratio, 1 + eps)
                flags.append(float(ratio > 1 + eps and a > 0))
            else:
                objective = a * min(max(ratio, 1 - eps), 1.3)
                flags.append(float(ratio < 1 - eps))
            dual.append(-objective)
        source = "loop over the four regions of the clip, c = 1.3 (arXiv:1912.09729 eq. 5)"
        arguments = [new, old, advantages]
        cases.append(case("clipped_surrogate", source, arguments, dual, clip_eps=eps, dual_clip=1.3))
        cases.append(case("surrogate_clip_fraction", source, arguments, flags, clip_eps=eps))
    values, old_values, returns = draws(rng, 10), draws(rng, 10), draws(rng, 10)
    losses = []
    for v, o, r in zip(values.tolist(), old_values.tolist(), returns.tolist(), strict=True):
        moved = o + max(-0.2, min(0.2, v - o))
        losses.append(0.5 * max(abs(v - r), abs(moved - r)) ** 2)
    source = "loop: the move v − v_old is bounded, the larger distance squared"
    cases.append(case("clipped_value_loss", source, [values, old_values, returns], losses, value_clip_eps=0.2))
    mask = np.arange(10) < 7
    errors = (returns - values)[:7]
    share = 1 - float(np.mean(errors**2) - np.mean(errors) ** 2) / float(np.var(returns[:7]))
    cases.append(case("explained_variance", "numpy.var and E[x²] − E[x]²", [values, returns, mask], share))
    return cases


def group_cases(rng: np.random.Generator) -> list[Case]:
    scores = draws(rng, 6)
    plain = scores.tolist()
    loo = [s - sum(plain[:i] + plain[i + 1 :]) / 5 for i, s in enumerate(plain)]
    grpo = [(s - float(np.mean(scores))) / (float(np.std(scores)) + 1e-6) for s in plain]
    return [
        case("leave_one_out_advantages", "loop: the mean of the others, one by one", [scores], loo),
        case("group_advantages", "numpy.mean and numpy.std (biased)", [scores], grpo),
    ]


def dpo_cases(rng: np.random.Generator) -> list[Case]:
    chosen, rejected, ref_chosen, ref_rejected = (np.round(-10 + draws(rng, 5, scale=3.0), 3) for _ in range(4))
    rows = list(zip(chosen.tolist(), rejected.tolist(), ref_chosen.tolist(), ref_rejected.tolist(), strict=True))
    arguments, beta, e = [chosen, rejected, ref_chosen, ref_rejected], 0.3, 0.1
    margins = [(w - rw) - (x - rx) for w, x, rw, rx in rows]
    wins = [1 / (1 + math.exp(-beta * h)) for h in margins]
    source = "loop from arXiv:2305.18290 eq. 7 with the sigmoid written out"
    softmax_rows = [math.exp(beta * (x - rx)) for _, x, _, rx in rows]
    first = math.exp(beta * (rows[0][0] - rows[0][2]))
    listwise = -math.log(first / (first + sum(softmax_rows)))
    return [
        case("dpo_loss", source, arguments, [-math.log(p) for p in wins], beta=beta),
        case(
            "dpo_loss",
            source + ", smoothed",
            arguments,
            [-(1 - e) * math.log(p) - e * math.log(1 - p) for p in wins],
            beta=beta,
            label_smoothing=e,
        ),
        case("ipo_loss", "arXiv:2310.12036 eq. 17", arguments, [(h - 0.5 / beta) ** 2 for h in margins], beta=beta),
        case(
            "softmax_dpo_loss",
            "loop from arXiv:2406.09215 as a softmax",
            [rows[0][0], rejected, rows[0][2], ref_rejected],
            listwise,
            beta=beta,
        ),
    ]


def preference_cases(rng: np.random.Generator) -> list[Case]:
    better, worse = draws(rng, 6), draws(rng, 6)
    losses = []
    for w, x in zip(better.tolist(), worse.tolist(), strict=True):
        losses.append(-math.log(math.exp(w) / (math.exp(w) + math.exp(x))))
    utilities, ranking = draws(rng, 6), [4, 0, 5, 2]
    left, chance = list(range(6)), 1.0
    for item in ranking:
        chance *= math.exp(utilities[item]) / sum(math.exp(utilities[j]) for j in left)
        left.remove(item)
    source = "loop: draw, renormalise, remove"
    return [
        case("bradley_terry_loss", "loop: e^w/(e^w + e^l)", [better, worse], losses),
        case("plackett_luce_logprob", source, [utilities, ranking], math.log(chance)),
    ]


MAKERS: dict[str, Callable[[np.random.Generator], list[Case]]] = {
    "masked": masked_cases,
    "logprobs": logprobs_cases,
    "gae": gae_cases,
    "kl": kl_cases,
    "rewards": rewards_cases,
    "ppo": ppo_cases,
    "group": group_cases,
    "dpo": dpo_cases,
    "preference": preference_cases,
}


if __name__ == "__main__":
    for seed, (module, make) in enumerate(MAKERS.items()):
        cases = make(np.random.default_rng(seed))
        lines = ",\n".join(json.dumps(c) for c in cases)
        (FOLDER / f"{module}.json").write_text(f"[\n{lines}\n]\n")

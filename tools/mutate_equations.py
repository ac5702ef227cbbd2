"""Does the suite bite? Breaks the equations one token at a time and runs their tests.

    python tools/mutate_equations.py

Each mutant is a small change written by hand (a sign, a bound, an axis, an off-by-one, a missing mask) in a temporary
copy of `rlhf_jax/equations`; the tests of that file and its golden vectors run on the copy until one fails. A mutant
that passes everything survives. A full run (a few minutes of one core) writes `docs/mutation_table.md`
and fails below 95 % killed; `--only gae` runs one file's mutants and writes nothing.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported
sys.dont_write_bytecode = True  # two mutants written in one second would share a cache file

import chex  # noqa: F401
import hypothesis
import hypothesis.extra.numpy
import jax.test_util  # noqa: F401
import pytest

# The examples the tests use, without the search for the smallest failing one.
hypothesis.settings.register_profile(
    "mutants",
    hypothesis.settings.get_profile("default"),
    deadline=None,
    derandomize=True,
    max_examples=25,
    database=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)

REPOSITORY = Path(__file__).resolve().parent.parent
TABLE = REPOSITORY / "docs" / "mutation_table.md"
REQUIRED = 0.95
COPIED = ("pyproject.toml", "rlhf_jax/__init__.py", "rlhf_jax/equations", "tests/conftest.py", "tests/equations")
COPIED += ("tests/golden",)
TESTS = {
    "masked": "test_masked.py",
    "logprobs": "test_logprobs.py",
    "gae": "test_gae.py",
    "kl": "test_kl.py",
    "rewards": "test_token_rewards.py",
    "ppo": "test_ppo_losses.py",
    "kl_control": "test_kl_control.py",
    "running": "test_running.py",
    "group": "test_group.py",
    "dpo": "test_dpo_losses.py",
    "preference": "test_preference_losses.py",
    "listwise": "test_listwise.py",
    "contrastive": "test_contrastive.py",
}


class Mutant(NamedTuple):
    """One change: `original` must occur exactly once in the file."""

    module: str
    original: str
    replacement: str
    breaks: str


MUTANTS = [
    Mutant("masked", "return jnp.where(mask, x, 0)", "return jnp.where(mask, x, 1)", "padding counts as 1"),
    Mutant("masked", "return jnp.where(mask, x, 0)", "return jnp.where(~mask, x, 0)", "mask inverted"),
    Mutant("masked", "return jnp.where(mask, x, 0)", "return x * mask", "NaN times 0 instead of a selection"),
    Mutant("masked", "x.dtype, jnp.float32", "x.dtype, jnp.bfloat16", "bfloat16 inputs stay bfloat16"),
    Mutant("masked", "jnp.maximum(mask.sum(), 1)", "jnp.maximum(mask.size, 1)", "mean over all entries"),
    Mutant("masked", "jnp.maximum(mask.sum(), 1)", "jnp.maximum(mask.sum(), 2)", "mean of one entry halved"),
    Mutant("masked", "jnp.maximum(mask.sum(), 1)", "jnp.minimum(mask.sum(), 1)", "sum instead of mean"),
    Mutant("masked", "x - masked_mean(x, mask)", "x + masked_mean(x, mask)", "variance around minus the mean"),
    Mutant("masked", "jnp.square(x - ", "jnp.abs(x - ", "mean absolute deviation"),
    Mutant("masked", "(x, mask)), mask)", "(x, mask)), mask | True)", "variance without the mask"),
    Mutant("masked", "(x - mean) *", "(x + mean) *", "whitening shifts the wrong way"),
    Mutant("masked", "jax.lax.rsqrt(", "jax.lax.sqrt(", "multiplies by the standard deviation"),
    Mutant("masked", "mask) + epsilon", "mask) - epsilon", "ε subtracted: NaN without variance"),
    Mutant("masked", "float = 1e-8", "float = 1e-5", "ε a thousand times larger"),
    Mutant("masked", "whitened + mean", "whitened - mean", "mean put back with the wrong sign"),
    Mutant("masked", "whitened if shift_mean", "whitened if not shift_mean", "option inverted"),
    Mutant("masked", "jnp.where(mask, whitened", "jnp.where(True, whitened", "padding is whitened too"),
    Mutant("logprobs", "jnp.float32)) / temperature", "jnp.float32)) * temperature", "temperature inverted"),
    Mutant("logprobs", "allowed | ~allowed.any", "allowed & ~allowed.any", "mask is empty wherever it was not"),
    Mutant("logprobs", "~allowed.any(", "~allowed.all(", "any forbidden token lifts the mask"),
    Mutant("logprobs", "logits, -jnp.inf)", "logits, jnp.inf)", "forbidden tokens become certain"),
    Mutant("logprobs", "logits, -jnp.inf)", "logits, 0)", "forbidden tokens get logit 0"),
    Mutant("logprobs", "allowed), axis=-1)", "allowed), axis=0)", "normalised over positions"),
    Mutant("logprobs", "tokens[:, None], axis=-1)", "tokens[:, None] - 1, axis=-1)", "token id off by one"),
    Mutant("logprobs", "jnp.max(logits, axis=-1", "jnp.min(logits, axis=-1", "the least taken off: exp overflows"),
    Mutant("logprobs", "jnp.exp(logits - largest)", "jnp.exp(logits)", "nothing taken off before exp"),
    Mutant("logprobs", "(chosen - largest - log_sum)", "(chosen - log_sum)", "the largest forgotten"),
    Mutant(
        "logprobs",
        "(logits, largest + log_sum, tokens)",
        "(logits, log_sum, tokens)",
        "gradient's normaliser too small",
    ),
    Mutant(
        "logprobs",
        "[None] == tokens[:, None]",
        "[None] != tokens[:, None]",
        "gradient raises every token but the one picked",
    ),
    Mutant("logprobs", "(chosen - jnp.exp(", "(chosen + jnp.exp(", "gradient pushes all tokens up"),
    Mutant("logprobs", "return gradient[:, None] * ", "return ", "gradient from above forgotten"),
    Mutant("logprobs", "jnp.isfinite(logprobs)", "jnp.isnan(logprobs)", "only NaN counts as possible"),
    Mutant("logprobs", "(possible, logprobs, 0)", "(possible, logprobs, logprobs)", "single where: NaN gradients"),
    Mutant("logprobs", "return -jnp.where(possible", "return jnp.where(possible", "entropy negative"),
    Mutant("logprobs", "jnp.exp(logprobs) * logprobs", "jnp.exp2(logprobs) * logprobs", "weights to the base 2"),
    Mutant(
        "logprobs", "logprobs, 0).sum(axis=-1)", "logprobs, 0).mean(axis=-1)", "entropy per token of the vocabulary"
    ),
    Mutant("logprobs", "if chunk < 1", "if chunk < 0", "chunk 0 accepted"),
    Mutant("logprobs", "-(-length // chunk)", "(length // chunk)", "last partial chunk dropped"),
    Mutant("logprobs", "reshape(-1)[:length]", "reshape(-1)[-length:]", "padding returned, first tokens dropped"),
    Mutant("logprobs", "    @jax.checkpoint\n", "", "logits of all chunks kept for the backward pass"),
    Mutant("logprobs", "allowed=permitted", "allowed=None", "chunked form ignores the mask"),
    Mutant(
        "logprobs",
        "promote_types(states.dtype, jnp.float32)",
        "promote_types(states.dtype, jnp.bfloat16)",
        "bfloat16 logits",
    ),
    Mutant("logprobs", "(mask, logprobs, 0).sum()", "(mask, logprobs, 0).mean()", "sequence mean instead of sum"),
    Mutant("logprobs", "(mask, logprobs, 0).sum()", "(mask, logprobs, 1).sum()", "padding counts as 1 nat"),
    Mutant("gae", "rewards + gamma * values[1:]", "rewards - gamma * values[1:]", "next value subtracted"),
    Mutant("gae", "values[1:] - values[:-1]", "values[1:] + values[:-1]", "own value added"),
    Mutant("gae", "gamma * values[1:] -", "gae_lambda * values[1:] -", "λ in the TD error"),
    Mutant("gae", "gamma * values[1:] -", "gamma * values[:-1] -", "value off by one"),
    Mutant("gae", "delta + gamma * gae_lambda * later", "delta - gamma * gae_lambda * later", "sign of the recursion"),
    Mutant("gae", "delta + gamma * gae_lambda * later", "delta + gamma * later", "λ missing"),
    Mutant("gae", "delta + gamma * gae_lambda * later", "delta + gae_lambda * later", "γ missing"),
    Mutant("gae", "deltas, reverse=True", "deltas, reverse=False", "runs forwards"),
    Mutant("gae", "jnp.zeros((), dtype), deltas", "jnp.ones((), dtype), deltas", "advantage beyond the end"),
    Mutant("gae", "next_value - value + gamma", "next_value + value + gamma", "own value added, multi-turn"),
    Mutant("gae", "gamma * next_value", "gae_lambda * next_value", "λ in the TD error, multi-turn"),
    Mutant("gae", "reward + gamma * next_value", "gamma * next_value", "rewards dropped"),
    Mutant("gae", "gamma * gae_lambda * next_advantage", "gae_lambda * next_advantage", "γ missing, multi-turn"),
    Mutant("gae", "value + gamma * gae_lambda * next", "value - gamma * gae_lambda * next", "sign, multi-turn"),
    Mutant("gae", "(chosen, value, next_value)", "(chosen, value, gamma * next_value)", "user tokens discounted"),
    Mutant("gae", "(chosen, value, next_value)", "(chosen, value, value)", "value of a user token carried"),
    Mutant("gae", "(chosen, advantage, next_advantage)", "(chosen, advantage, 0)", "user tokens cut the credit"),
    Mutant("gae", "carry, jnp.where(chosen, advantage, 0)", "carry, advantage", "user tokens get advantages"),
    Mutant("gae", "start = (values[-1]", "start = (values[-2]", "bootstrap off by one"),
    Mutant("gae", "(values[-1], jnp.zeros", "(values[-1], jnp.ones", "advantage beyond the end, multi-turn"),
    Mutant("gae", "policy_mask), reverse=True", "policy_mask), reverse=False", "runs forwards, multi-turn"),
    Mutant("kl", "logprobs.astype(dtype) - ref", "logprobs.astype(dtype) + ref", "sum of log-probabilities"),
    Mutant("kl", "ref_logprobs.dtype), jnp.float32", "ref_logprobs.dtype), jnp.bfloat16", "bfloat16 difference"),
    Mutant("kl", "ref_logprobs)) / 2", "ref_logprobs)) * 2", "k2 four times too large"),
    Mutant("kl", "jnp.square(_log_ratio", "jnp.abs(_log_ratio", "k2 linear"),
    Mutant("kl", "jnp.expm1(-log_ratio)", "jnp.expm1(log_ratio)", "k3 of the inverse ratio"),
    Mutant("kl", "jnp.expm1(-log_ratio)", "jnp.exp(-log_ratio)", "k3 off by one"),
    Mutant("kl", "(-log_ratio) + log_ratio", "(-log_ratio) - log_ratio", "k3's control variate with the wrong sign"),
    Mutant("kl", "jnp.exp(logprobs) * (", "jnp.exp(ref_logprobs) * (", "weights of the reference"),
    Mutant("kl", "(logprobs - ref_logprobs)", "(logprobs + ref_logprobs)", "exact KL adds"),
    Mutant("kl", "jnp.isfinite(logprobs)", "jnp.isfinite(ref_logprobs)", "infinite KL hidden"),
    Mutant("kl", "jnp.where(defined, logprobs, 0), ", "logprobs, ", "0 · −∞ in the gradient"),
    Mutant("kl", "jnp.where(forbidden, jnp.inf, terms)", "terms", "a forbidden token costs nothing"),
    Mutant("kl", "terms).sum(axis=-1)", "terms).mean(axis=-1)", "KL per token of the vocabulary"),
    Mutant("rewards", "score, score - penalty", "score, score + penalty", "no eos is rewarded"),
    Mutant("rewards", "score, -penalty", "score, penalty", "replacement positive"),
    Mutant("rewards", 'mode == "subtract"', 'mode != "subtract"', "modes confused"),
    Mutant(
        "rewards", "jnp.where(finished, score, score -", "jnp.where(~finished, score, score -", "finished are punished"
    ),
    Mutant("rewards", "-kl_coef * jnp", "kl_coef * jnp", "divergence rewarded"),
    Mutant("rewards", "jnp.where(mask, kl_k1, 0)", "kl_k1", "KL of padding paid, NaN read"),
    Mutant("rewards", "length - 1 - jnp", "length - jnp", "score one position late"),
    Mutant("rewards", "length - 1 - jnp", "length - 2 - jnp", "score one position early"),
    Mutant("rewards", "argmax(mask[::-1])", "argmax(mask)", "first real token counted from the end"),
    Mutant("rewards", "mask & (jnp", "mask | (jnp", "score on every token"),
    Mutant("rewards", "== last)", "<= last)", "score on every token up to the last"),
    Mutant(
        "rewards",
        "(jnp.promote_types(score.dtype, kl_k1.dtype), jnp.float32)",
        "(score.dtype, score.dtype)",
        "integer scores truncate the KL term",
    ),
    Mutant(
        "ppo", "return logprobs.astype(dtype) - old", "return logprobs.astype(dtype) + old", "product of probabilities"
    ),
    Mutant("ppo", "return jnp.exp(", "return jnp.expm1(", "ratio off by one"),
    Mutant("ppo", "jnp.maximum(-advantages", "jnp.minimum(-advantages", "optimistic bound"),
    Mutant("ppo", "maximum(-advantages", "maximum(advantages", "sign of the advantage"),
    Mutant("ppo", "-advantages * jnp.clip(", "advantages * jnp.clip(", "sign of the clipped term"),
    Mutant("ppo", "advantages * jnp.clip(ratio, 1 - clip", "advantages * jnp.clip(ratio, 1 + clip", "no lower bound"),
    Mutant("ppo", "1 + clip_eps))\n", "1 - clip_eps))\n", "upper bound below 1"),
    Mutant("ppo", "advantages < 0, ", "advantages > 0, ", "dual clip on good tokens"),
    Mutant("ppo", "jnp.minimum(loss", "jnp.maximum(loss", "dual clip raises the loss"),
    Mutant("ppo", "loss, -dual_clip *", "loss, dual_clip *", "sign of the dual bound"),
    Mutant("ppo", "dual_clip <= 1", "dual_clip < 1", "dual clip of 1 accepted"),
    Mutant(
        "ppo", "(grows, jnp.inf, LARGE", "(~grows, jnp.inf, LARGE", "an overflowing ratio is held where nothing clips"
    ),
    Mutant(
        "ppo",
        "(advantages > 0) & never_clips",
        "(advantages > 0) & ~never_clips",
        "an overflowing ratio of a good token",
    ),
    Mutant("ppo", "clipped > -adv", "clipped < -adv", "flags the tokens the clip never touches"),
    Mutant("ppo", "clipped > -adv", "clipped >= -adv", "flags every token inside the range"),
    Mutant("ppo", "clipped = jnp.clip(ratio, 1 - ", "clipped = jnp.clip(ratio, 0 - ", "flags no fallen ratios"),
    Mutant("ppo", "square(logprobs.astype(dtype) - ", "square(logprobs.astype(dtype) + ", "approximate KL of a sum"),
    Mutant("ppo", "old_logprobs.astype(dtype)) / 2", "old_logprobs.astype(dtype)) * 2", "approximate KL times four"),
    Mutant("ppo", "old_values - value_clip_eps", "old_values + value_clip_eps", "value range has no lower half"),
    Mutant("ppo", "old_values + value_clip_eps)", "old_values - value_clip_eps)", "value range has no upper half"),
    Mutant("ppo", "jnp.maximum(jnp.square(values", "jnp.minimum(jnp.square(values", "optimistic value loss"),
    Mutant("ppo", "square(clipped - returns)", "square(clipped + returns)", "clipped error of a sum"),
    Mutant("ppo", "square(values - returns)", "square(values + returns)", "error of a sum"),
    Mutant("ppo", "returns)) / 2", "returns)) * 2", "value loss times four"),
    Mutant("ppo", "square(x - x.sum() / n", "square(x + x.sum() / n", "variance around minus the mean"),
    Mutant("ppo", "jnp.where(mask, jnp.square", "jnp.where(True, jnp.square", "padding has variance"),
    Mutant("ppo", "variance(returns - values)", "variance(returns + values)", "variance of a sum"),
    Mutant("ppo", "1 - variance(", "1 + variance(", "more error, more explained"),
    Mutant(
        "ppo",
        "total = jnp.where(varies, total, 0)",
        "total = jnp.where(True, total, 0)",
        "equal returns vary by rounding",
    ),
    Mutant("ppo", "jnp.where(total > 0, 1 -", "jnp.where(total >= 0, 1 -", "constant returns count as explained"),
    Mutant("kl_control", "MAX_ERROR = 0.2", "MAX_ERROR = 0.3", "larger steps"),
    Mutant("kl_control", "observed / target", "observed * target", "target inverted"),
    Mutant("kl_control", "target - 1", "target + 1", "error off by two"),
    Mutant("kl_control", "target - 1, -MAX_ERROR", "target - 1, 0", "coefficient never falls"),
    Mutant("kl_control", "1 + error", "1 - error", "moves away from the target"),
    Mutant("kl_control", "n_responses / horizon,", "n_responses * horizon,", "horizon inverted"),
    Mutant("kl_control", "kl_coef * jnp.max", "kl_coef / jnp.max", "divides by the factor"),
    Mutant("kl_control", "jnp.clip(moved, *RANGE)", "moved", "coefficient leaves its range"),
    Mutant("kl_control", "LOWEST_FACTOR = 0.1", "LOWEST_FACTOR = -9.0", "coefficient changes its sign"),
    Mutant(
        "kl_control", "jnp.where(jnp.isnan(error), 0, error)", "error", "an unknown KL makes the coefficient unknown"
    ),
    Mutant("running", "x.mean(axis=0)", "x.mean()", "components share a mean"),
    Mutant("running", "x - mean_new[None]", "x + mean_new[None]", "deviation from minus the mean"),
    Mutant("running", "[None]).sum(axis=0)", "[None]).mean(axis=0)", "variance instead of the sum"),
    Mutant("running", "moments.count + n_new", "moments.count + 1", "counts batches"),
    Mutant("running", "mean_new - moments.mean", "mean_new + moments.mean", "shift of a sum"),
    Mutant("running", "moments.mean + shift", "moments.mean - shift", "mean moves away"),
    Mutant("running", "shift * (n_new / count)", "shift * (moments.count / count)", "weights swapped"),
    Mutant("running", "moments.m2 + m2_new", "m2_new", "old deviations forgotten"),
    Mutant("running", "jnp.square(shift) *", "jnp.abs(shift) *", "linear shift term"),
    Mutant("running", "(moments.count * n_new / count)", "(moments.count * n_new)", "shift term not divided"),
    Mutant("running", "m2_new + jnp.square", "m2_new - jnp.square", "shift term subtracted"),
    Mutant("running", "moments.m2 > rounding", "moments.m2 >= rounding", "division by a zero std"),
    Mutant("running", "moments.m2 > rounding", "moments.m2 > -rounding", "rounding counts as spread"),
    Mutant("running", "RELATIVE_ROUNDING = 1e-5", "RELATIVE_ROUNDING = 1e-2", "true spread counts as rounding"),
    Mutant("running", "moments.count - 1, 1)", "moments.count, 1)", "biased variance"),
    Mutant("running", "jnp.sqrt(variance)", "jnp.square(variance)", "divides by variance squared"),
    Mutant("running", "- moments.mean[None])", "+ moments.mean[None])", "mean added"),
    Mutant("running", "clip(z, -clip, clip)", "clip(z, 0, clip)", "negative scores clipped away"),
    Mutant("group", "scores.max() == scores.min()", "scores.max() != scores.min()", "flat test inverted"),
    Mutant("group", "centred = scores - ", "centred = scores + ", "mean added"),
    Mutant("group", "jnp.square(centred).mean()", "jnp.square(centred).sum()", "variance not divided"),
    Mutant(
        "group", "jnp.where(flat, 1, jnp.square(centred).mean())", "jnp.square(centred).mean()", "√0 in the gradient"
    ),
    Mutant("group", "jnp.where(flat, 0, centred", "jnp.where(False, 0, centred", "rounding noise in flat groups"),
    Mutant("group", "(variance) + epsilon", "(variance) - epsilon", "ε subtracted"),
    Mutant("group", "float = 1e-6", "float = 1e-4", "ε a hundred times larger"),
    Mutant("group", "n_responses < 2", "n_responses < 1", "a single response accepted"),
    Mutant("group", "(n_responses - 1)", "(n_responses + 1)", "wrong factor"),
    Mutant("group", "return (scores - scores.mean())", "return (scores + scores.mean())", "baseline added"),
    Mutant("dpo", "return beta * (", "return beta + (", "β added"),
    Mutant("dpo", "logprob.astype(dtype) - ref", "logprob.astype(dtype) + ref", "reference added"),
    Mutant("dpo", "beta=beta) - implicit", "beta=beta) + implicit", "margin of a sum"),
    Mutant("dpo", "log_sigmoid(-margin)", "log_sigmoid(margin)", "smoothing without the other label"),
    Mutant("dpo", "-(1 - label", "-(1 + label", "weights do not sum to one"),
    Mutant("dpo", "* right - label", "* right + label", "flipped label rewarded"),
    Mutant("dpo", "beta=1.0) - implicit", "beta=1.0) + implicit", "IPO margin of a sum"),
    Mutant("dpo", "margin - 1 / (2", "margin + 1 / (2", "IPO aims at the opposite margin"),
    Mutant("dpo", "(2 * beta)", "(2 / beta)", "IPO target inverted"),
    Mutant("dpo", "jnp.square(margin", "jnp.abs(margin", "IPO linear"),
    Mutant("dpo", "others])) - reward", "others])) + reward", "sign of the chosen reward"),
    Mutant("dpo", "[reward[None], others]", "[others, others]", "chosen left out of its own softmax"),
    Mutant("preference", "-jax.nn.log_sigmoid", "jax.nn.log_sigmoid", "loss negative"),
    Mutant("preference", "chosen.astype(dtype) - rej", "chosen.astype(dtype) + rej", "sum of scores"),
    Mutant("preference", "jnp.square(scores - ", "jnp.square(scores + ", "error of a sum"),
    Mutant("preference", "jnp.square(scores - ", "jnp.abs(scores - ", "absolute error"),
    Mutant("preference", "jnp.where(mask, labels, 0)", "labels", "missing labels read: NaN"),
    Mutant("preference", "jnp.where(mask, scores, 0)", "scores", "scores without a label punished"),
    Mutant("preference", "if length > n_items", "if length >= n_items", "full rankings refused"),
    Mutant("preference", "cumsum(drawn, axis=0)", "cumsum(drawn, axis=1)", "drawn items along the catalogue"),
    Mutant("preference", "- drawn > 0", "> 0", "an item leaves before it is drawn"),
    Mutant("preference", "(taken, -jnp.inf,", "(taken, 0.0,", "drawn items stay with utility 0"),
    Mutant("preference", "utilities[ranking] - jax", "utilities[ranking] + jax", "normaliser added"),
    Mutant("preference", "logsumexp(remaining, axis=-1)", "logsumexp(remaining)", "one normaliser for all places"),
    Mutant("preference", "(mask, logprobs, 0).sum()", "(mask, logprobs, 0).mean()", "mean over places"),
    Mutant("preference", "(mask, logprobs, 0).sum()", "logprobs.sum()", "places after the end count"),
    Mutant("listwise", "total = jnp.sum(labels)", "total = jnp.max(labels)", "labels are no shares"),
    Mutant("listwise", "labels / jnp.where(total > 0, total, 1.0)", "labels / total", "0 / 0 without a positive"),
    Mutant("listwise", "return -jnp.sum(shares *", "return jnp.sum(shares *", "softmax loss negative"),
    Mutant("listwise", "return -jnp.sum(shares *", "return -jnp.mean(shares *", "softmax loss an item"),
    Mutant(
        "listwise", "log_softmax(scores))\n\n\ndef listnet", "log_softmax(-scores))\n\n\ndef listnet", "worst first"
    ),
    Mutant("listwise", "return -jnp.sum(jax.nn.softmax", "return -jnp.mean(jax.nn.softmax", "ListNet's loss an item"),
    Mutant("listwise", "return -jnp.sum(jax.nn.softmax", "return jnp.sum(jax.nn.softmax", "ListNet's loss negative"),
    Mutant("listwise", "jax.nn.softmax(labels", "jax.nn.softmax(scores", "entropy of the scores"),
    Mutant("listwise", "positive = x > 0", "positive = x >= 0", "score 0 takes part"),
    Mutant("listwise", "positive = x > 0", "positive = x > -1e9", "all items take part"),
    Mutant("listwise", "x - largest, 0.0)", "x, 0.0)", "exponentials beyond float32"),
    Mutant("listwise", "x - largest, 0.0)", "largest - x, 0.0)", "largest share to the smallest score"),
    Mutant("listwise", "x - largest, 0.0)), 0.0)", "x - largest, 0.0)), 1.0)", "what takes no part weighs 1"),
    Mutant("listwise", "jax.lax.stop_gradient(jnp.max(x))", "jnp.max(x) * 0.5", "largest exponent halved"),
    Mutant(
        "listwise", "weights / jnp.where(total > 0, total, 1.0)", "weights / total", "0 / 0 where nobody takes part"
    ),
    Mutant("listwise", "weights / jnp.where(total", "x / jnp.where(total", "scores instead of weights"),
    Mutant("listwise", "1e-6, 1 - 1e-6)", "0.0, 1.0)", "logarithm of 0"),
    Mutant("listwise", "1e-6, 1 - 1e-6)", "1e-4, 1 - 1e-4)", "bound a hundred times larger"),
    Mutant("listwise", "-jnp.sum(wanted * jnp.log(given) +", "-jnp.mean(wanted * jnp.log(given) +", "loss an item"),
    Mutant("listwise", "wanted * jnp.log(given) +", "wanted * jnp.log(given) -", "others pulled up"),
    Mutant("listwise", "wanted * jnp.log(given) +", "", "others say nothing"),
    Mutant("listwise", "(1 - wanted) * jnp.log1p", "wanted * jnp.log1p", "weight of the wrong side"),
    Mutant("listwise", "jnp.log1p(-given)", "jnp.log1p(given)", "logarithm of 1 + share"),
    Mutant("listwise", "jnp.where(jnp.any(labels > 0), loss, 0.0)", "loss", "lists without a positive count"),
    Mutant("listwise", "jnp.any(labels > 0)", "jnp.all(labels > 0)", "lists with a negative do not count"),
    Mutant("listwise", "return -jnp.mean(", "return -jnp.sum(", "sum over items"),
    Mutant(
        "listwise", "labels * jax.nn.log_sigmoid(scores)", "labels * jax.nn.log_sigmoid(-scores)", "liked pushed down"
    ),
    Mutant("listwise", "(scores) + (1 - labels)", "(scores) - (1 - labels)", "others pulled up, item by item"),
    Mutant("listwise", "(1 - labels) * jax.nn.log_sigmoid(-scores)", "(1 - labels)", "others have no gradient"),
    Mutant("listwise", "labels.dtype), jnp.float32)", "labels.dtype), jnp.bfloat16)", "bfloat16 stays bfloat16"),
    Mutant(
        "group", "by_turn(rewards, running)", "by_turn(rewards, running | True)", "ended conversations normalise too"
    ),
    Mutant(
        "group",
        "    if decoupled:\n        by_turn",
        "    if not decoupled:\n        by_turn",
        "option inverted",
    ),
    Mutant(
        "group",
        "paid = jnp.sum(rewards * weights.astype(rewards.dtype)[None, None], axis=-1)",
        "paid = rewards.sum(-1)",
        "weights ignored",
    ),
    Mutant("group", "now + gamma * after", "now + after", "no discount"),
    Mutant("group", "paid.T, reverse=True", "paid.T, reverse=False", "paid for the past"),
    Mutant(
        "group",
        "(returns.T, running, scaled=False)",
        "(returns.T, running, scaled=True)",
        "returns divided by their deviation",
    ),
    Mutant(
        "group",
        "(returns.T, running, scaled=False)",
        "(returns.T, running | True, scaled=False)",
        "an ended conversation is a zero",
    ),
    Mutant("group", "jnp.where(running[..., None], rewards, 0)", "rewards", "what stands after the end is read"),
    Mutant("group", "    if decoupled:\n        highest", "    if not decoupled:\n        highest", "option inverted"),
    Mutant(
        "group",
        "settled - settled.sum(axis=0, keepdims=True)",
        "settled + settled.sum(axis=0, keepdims=True)",
        "mean added",
    ),
    Mutant(
        "group",
        "jnp.where(had, rewards.astype(dtype), 0)",
        "rewards.astype(dtype)",
        "what was paid after the end is read",
    ),
    Mutant(
        "group",
        "jnp.where(had[..., None], settled.astype(dtype), 0)",
        "settled.astype(dtype)",
        "what was settled after the end is read",
    ),
    Mutant(
        "group",
        "scale = jnp.where(flat, 0, 1 / (jnp.sqrt(variance) + 1e-6))",
        "scale = 1 / (jnp.sqrt(variance) + 1e-6)",
        "a flat component counts",
    ),
    Mutant(
        "group",
        "scale = jnp.where(flat, 0, 1 / (jnp.sqrt(variance) + 1e-6))",
        "scale = jnp.where(flat, 0, 1 / (variance + 1e-6))",
        "divided by the variance",
    ),
    Mutant(
        "group",
        "jnp.square(off).sum(axis=0, keepdims=True) / count",
        "jnp.square(off).mean(axis=0, keepdims=True)",
        "ended conversations count in the deviation",
    ),
    Mutant("group", "centred * weights.astype(dtype)[None, None, :, None]", "centred", "weights ignored"),
    Mutant("contrastive", "counted & (weights > 0)", "(weights > 0)", "a masked positive counts"),
    Mutant("contrastive", "counted & (weights <= 0)", "counted", "positives stand in their own denominator twice"),
    Mutant("contrastive", "counted & (weights <= 0)", "(weights <= 0)", "a masked candidate is a negative"),
    Mutant("contrastive", "jnp.where(counted, scores, 0)", "scores", "what is masked is read"),
    Mutant("contrastive", "jnp.where(negative, scores, lowest)", "scores", "every candidate in the denominator"),
    Mutant(
        "contrastive", "softplus(others - scores)", "softplus(scores - others)", "positives pushed, negatives pulled"
    ),
    Mutant("contrastive", "jax.nn.softplus(", "jax.nn.relu(", "a hinge instead of a logarithm"),
    Mutant("contrastive", "weights.astype(dtype) * losses", "losses", "weights ignored"),
    Mutant("contrastive", "jnp.where(positive, weights", "jnp.where(negative, weights", "negatives are paid"),
    Mutant("contrastive", "losses, 0).sum()", "losses, 0).mean()", "divided by the candidates"),
    Mutant(
        "contrastive",
        "promote_types(scores.dtype, jnp.float32)",
        "promote_types(scores.dtype, jnp.bfloat16)",
        "bfloat16",
    ),
    Mutant("contrastive", "astype(dtype) - log_expected", "astype(dtype) + log_expected", "corrected the wrong way"),
    Mutant("contrastive", "log_expected.dtype), jnp.float32)", "log_expected.dtype), jnp.bfloat16)", "bfloat16"),
    Mutant("contrastive", "bool), -1)", "bool), 0)", "a candidate is its own earlier mention"),
    Mutant("contrastive", "jnp.tril(", "jnp.triu(", "the last mention counts instead of the first"),
    Mutant("contrastive", "return ~jnp.any(", "return jnp.any(", "only repetitions count"),
    Mutant("contrastive", "& earlier, axis=1)", "& earlier, axis=0)", "transposed: earlier for later"),
]


def copy_sources(folder: Path) -> None:
    """What the tests of the equations need, and nothing else."""
    for name in COPIED:
        source, target = REPOSITORY / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def run_tests(folder: Path, module: str) -> tuple[bool, str]:
    """Whether all tests of one module pass on the copy, and the first that fails.

    The tests run in a fork of this process, which has imported the libraries but nothing of the package and has started
    no backend: importing them anew for each mutant would take longer than its tests.
    """
    files = ["tests/equations/test_golden.py", f"tests/equations/{TESTS[module]}"]
    # Without the type checks of a normal run: they cost more than most tests, and a mutant must fall to a number.
    options = ["-x", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "--hypothesis-profile=mutants", "-k", module]
    log = folder / "pytest.log"
    child = os.fork()
    if child == 0:
        code = 3
        try:
            with log.open("w", encoding="utf-8") as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
            os.chdir(folder)
            sys.path.insert(0, str(folder))
            code = int(pytest.main([*options, *files]))
        finally:
            sys.stdout.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    output = log.read_text(encoding="utf-8")
    if code not in (0, 1):
        raise RuntimeError(f"pytest could not run the tests of {module}:\n{output}")
    failed = re.search(r"^FAILED \S*::(\w+)(\[[^\]]*\])?", output, re.MULTILINE)
    return code == 0, "".join(failed.groups(default="")) if failed else ""


def break_file(folder: Path, mutant: Mutant) -> None:
    """Writes the mutated file over the copy's."""
    name = f"rlhf_jax/equations/{mutant.module}.py"
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    if text.count(mutant.original) != 1:
        raise ValueError(f"{name}: {mutant.original!r} occurs {text.count(mutant.original)} times, expected once")
    (folder / name).write_text(text.replace(mutant.original, mutant.replacement), encoding="utf-8")


def restore_file(folder: Path, module: str) -> None:
    """Undoes `break_file`."""
    name = f"rlhf_jax/equations/{module}.py"
    shutil.copy(REPOSITORY / name, folder / name)


def code(text: str) -> str:
    """Source text in a Markdown table cell."""
    return "`" + (" ".join(text.split()).replace("|", "\\|") or " ") + "`"


def table_row(number: int, mutant: Mutant, killer: str | None) -> str:
    """One line of the table; `killer` is the first test that failed, None for a survivor."""
    verdict = "**survived**" if killer is None else code(killer)
    change = f"{code(mutant.original)} → {code(mutant.replacement)}"
    return f"| {number} | {mutant.module} | {change} | {mutant.breaks} | {verdict} |"


def write_table(killers: list[str | None]) -> None:
    """The whole table, one entry of `killers` for each mutant."""
    killed = len(MUTANTS) - killers.count(None)
    lines = ["# Mutants of the equations", ""]
    lines += ["Written by `python tools/mutate_equations.py`; at least 95 % must be killed.", ""]
    lines += [f"{killed} of {len(MUTANTS)} killed ({killed / len(MUTANTS):.1%}).", ""]
    lines += ["| # | file | change | what it breaks | first test that fails |", "|---|---|---|---|---|"]
    lines += [table_row(n, *pair) for n, pair in enumerate(zip(MUTANTS, killers, strict=True), start=1)]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def kill(folder: Path, mutant: Mutant) -> str | None:
    """The first test that fails on the mutant, None if it survives."""
    break_file(folder, mutant)
    survived, test = run_tests(folder, mutant.module)
    restore_file(folder, mutant.module)
    return None if survived else test


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=sorted(TESTS), help="mutate one file and leave the table as it is")
    only = parser.parse_args().only
    mutants = [m for m in MUTANTS if only in (None, m.module)]
    killers: list[str | None] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_sources(folder)
        for mutant in mutants:  # a text that no longer fits is found before the long run
            break_file(folder, mutant)
            restore_file(folder, mutant.module)
        for module in sorted({m.module for m in mutants}):
            passed, test = run_tests(folder, module)
            if not passed:
                raise RuntimeError(f"the tests of {module} fail without any mutation: {test}")
        for number, mutant in enumerate(mutants, start=1):
            killers.append(kill(folder, mutant))
            print(table_row(number, mutant, killers[-1]), flush=True)
    share = 1 - killers.count(None) / len(mutants)
    print(f"{share:.1%} of {len(mutants)} mutants killed, {REQUIRED:.0%} required")
    if only is None:
        write_table(killers)
    return 0 if share >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())

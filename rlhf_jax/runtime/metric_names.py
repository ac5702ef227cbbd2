"""The one table of metric names: what is not in it is not logged.

A name is `<stage>/<metric>`, the metric often `<group>/<name>`: `ppo/objective/kl_k1`. To add a metric, add a line to
the group of the stages that log it, then run

    python -m rlhf_jax.runtime.metric_names > docs/metrics.md

`<component>` stands for the name of any reward component, `<k>` for any cutoff, turn or other whole number.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from rlhf_jax.feedback.components import COMPONENTS


class Metric(NamedTuple):
    """What a number means and what it is counted in."""

    unit: str
    definition: str


Group = Mapping[str, Metric]

EVERY_STAGE: Group = {
    "skipped": Metric(
        "steps", "optimiser steps refused for a non-finite loss or gradient; a sum, all others are means"
    ),
    "seconds_per_update": Metric("s", "wall time of an update, evaluations and checkpoints left out"),
    "learning_rate": Metric("", "of the optimiser at this step"),
    "norms/gradient": Metric("", "global norm of the gradient before clipping"),
    "norms/update": Metric("", "global norm of what the optimiser adds to the parameters"),
    "norms/parameter": Metric("", "global norm of the parameters"),
}
SUPERVISED: Group = {
    "loss": Metric("", "training loss as optimised, weights included"),
    "token_nll": Metric("nats", "negative log-likelihood per learnt token, unweighted, dropout on"),
    "item_nll": Metric("nats", "the same over suggested items only"),
    "fresh_item_nll": Metric("nats", "the same over suggested items that the dialogue has not named before"),
    "word_nll": Metric("nats", "the same over words and markers only"),
    "speed/tokens_per_second": Metric("1/s", "tokens of the batch, context included, per second of wall time"),
    "speed/mfu": Metric("", "model FLOPs per second over the device's peak, where that is known"),
    "validation/loss": Metric("", "loss on the validation split, dropout off"),
    "validation/token_nll": Metric("nats", "negative log-likelihood per token of validation responses, dropout off"),
    "validation/item_nll": Metric("nats", "the same over suggested items only"),
    "validation/fresh_item_nll": Metric("nats", "the same over suggested items the dialogue has not named before"),
    "validation/word_nll": Metric("nats", "the same over words and markers only"),
    "validation/perplexity": Metric("", "exp of validation/token_nll"),
    "validation/hr@<k>": Metric("", "hit rate at k on the validation split, protocol in the run's configuration"),
    "validation/ndcg@<k>": Metric("", "NDCG at k on the validation split, same protocol"),
    "validation/mrr": Metric("", "mean reciprocal rank on the validation split, same protocol"),
}
REWARD_MODEL: Group = {
    "loss/<component>": Metric("", "squared error against the z-scored weak label of one component"),
    "pearson_<component>": Metric("", "correlation with the weak label on held-out rows; the gate before PPO is .6"),
    "pearson": Metric("", "the same for the weighted sum of the components"),
    "pearson_mean": Metric("", "mean of the components' correlations"),
    "spearman_<component>": Metric("", "rank correlation with the weak label on held-out rows"),
    "spearman_satisfaction": Metric("", "rank correlation with human satisfaction, where it is annotated"),
    "validation/loss/<component>": Metric("", "squared error of one component on held-out rows"),
    "validation/pearson_<component>": Metric("", "correlation with the weak label on the validation rows"),
    "validation/pearson": Metric("", "the same for the weighted sum of the components"),
    "validation/pearson_mean": Metric("", "mean of the components' correlations on the validation rows"),
}
PPO: Group = {
    "loss": Metric("", "whole loss as optimised: policy, value and entropy parts; mean over steps"),
    "objective/score_raw": Metric("z", "α·engagement + β·relevance + γ·sentiment as the reward model gives it"),
    "objective/score_normalised": Metric("", "score as paid: running mean/std, clipped, missing <eos> priced in"),
    "objective/<component>_raw": Metric("z", "one component of the reward model's output"),
    "objective/<component>_normalised": Metric("", "the same after its running mean/std"),
    "objective/<component>_reward_correlation": Metric(
        "",
        "Pearson over the responses of an update between one raw component and the score as paid; 0 where one is constant",
    ),
    "objective/kl_k1": Metric("nats", "Σ_t (log π − log π_ref) per response; unbiased estimate of the sequence KL"),
    "objective/kl_k3": Metric("nats", "Σ_t (e^{−d} − 1 + d), d = log π − log π_ref, per response; never negative"),
    "objective/non_score_reward": Metric("", "−kl_coef · kl_k1, what the KL penalty pays per response"),
    "objective/kl_coef": Metric("1/nat", "weight of the KL penalty in the reward"),
    "objective/entropy": Metric("nats", "of the policy's next-token distribution, mean over sampled tokens"),
    "policy/loss": Metric("", "clipped surrogate, mean over tokens and steps"),
    "policy/approx_kl": Metric("nats", "½ (log π − log π_old)², mean over tokens and steps"),
    "policy/clip_fraction": Metric("", "share of tokens whose surrogate is clipped"),
    "policy/ratio_mean": Metric("", "π/π_old, mean over tokens and steps"),
    "policy/ratio_min": Metric("", "its minimum over all steps of the update"),
    "policy/ratio_max": Metric("", "its maximum over all steps of the update"),
    "policy/first_ratio_max_deviation": Metric("", "largest |π/π_old − 1| in the first step; 0 up to rounding"),
    "policy/sampler_mismatch": Metric("nats", "largest |log π| difference between sampler and learner"),
    "policy/stopped_early": Metric("", "share of steps not taken because approx_kl passed target_kl"),
    "value/loss": Metric("", "clipped squared error of the value head, before its coefficient"),
    "value/clip_fraction": Metric("", "share of tokens whose value moved out of the clip range"),
    "value/explained_variance": Metric("", "1 − Var(returns − values)/Var(returns) at sampling time; 1 is perfect"),
    "value/returns_mean": Metric("", "mean return over tokens"),
    "text/response_length": Metric("tokens", "per response, <eos> included"),
    "text/eos_fraction": Metric("", "share of responses that end within the budget"),
    "text/repetition": Metric("", "share of repeated 3-grams within a response"),
    "text/distinct_<k>": Metric("", "different k-grams over all k-grams of the update's responses"),
    "text/item_share": Metric("", "share of responses that suggest an item"),
    "text/bleu4": Metric("", "sacreBLEU of sampled replies to validation prompts against the human ones, 0 to 100"),
    "text/bleu4_one_hot": Metric("", "sentence 4-gram precision (the CRS convention) of the same replies"),
    "judge/score": Metric(
        "", "held-out judge that is never optimised, 1 to 5, of sampled replies to validation prompts"
    ),
    "world/<closed_loop>": Metric(
        "", "closed loop with users the policy never met; definitions in `evaluation.closed_loop`"
    ),
    "validation/score_raw": Metric("z", "reward model's score of responses to validation prompts"),
    "validation/kl_k1": Metric("nats", "Σ_t (log π − log π_ref) of responses to validation prompts"),
    "validation/response_length": Metric("tokens", "per response to validation prompts, <eos> included"),
    "validation/hr@<k>": Metric("", "hit rate at k on the validation split, protocol in the run's configuration"),
    "validation/ndcg@<k>": Metric("", "NDCG at k on the validation split, same protocol"),
    "validation/mrr": Metric("", "mean reciprocal rank on the validation split, same protocol"),
    "speed/rollout_tokens_per_second": Metric("1/s", "sampled tokens per second of sampling"),
    "speed/learn_tokens_per_second": Metric("1/s", "response tokens times epochs per second of learning"),
    "speed/tokens_per_second": Metric("1/s", "sampled tokens per second of the whole update (one compiled program)"),
    "speed/responses_per_second": Metric("1/s", "responses per second of the whole update"),
    "speed/mfu": Metric("", "model FLOPs per second over the device's peak, where that is known"),
}

_CLOSED_LOOP = (
    "mean_utility",
    "first_utility",
    "average_turns",
    "mean_length",
    "dwell_seconds",
    "proxy_score",
    "kl_k1",
    "kl_k3",
    "reply_tokens",
    "success@<k>",
)

STAGES: Mapping[str, tuple[Group, ...]] = {
    "pretrain": (EVERY_STAGE, SUPERVISED),
    "sft": (EVERY_STAGE, SUPERVISED),
    "reward_model": (EVERY_STAGE, SUPERVISED, REWARD_MODEL),
    "ppo": (EVERY_STAGE, PPO),
}
"""Which groups a stage may log."""


def qualified(stage: str, name: str) -> str:
    """The full name: learners leave the stage out, because it is the run's business.

    Examples:
      >>> qualified("ppo", "objective/kl_k1"), qualified("sft", "sft/loss")
      ('ppo/objective/kl_k1', 'sft/loss')
    """
    return name if name.startswith(f"{stage}/") else f"{stage}/{name}"


def check(name: str) -> Metric:
    """The table's entry of a full name.

    Raises: ValueError if the table has none, with the closest names.
    Examples:
      >>> check("ppo/objective/kl_k1").unit
      'nats'
      >>> check("sft/validation/hr@10").unit
      ''
    """
    stage, _, metric = name.partition("/")
    if stage not in STAGES:
        raise ValueError(f"metric {name!r}: no stage {stage!r} in the table; there are {', '.join(STAGES)}")
    for pattern, entry in _patterns(stage):
        if pattern.fullmatch(metric):
            return entry
    last = metric.rsplit("/", 1)[-1]
    close = [f"{stage}/{known}" for group in STAGES[stage] for known in group if last in known or known in metric]
    hint = f"; close names: {', '.join(close)}" if close else ""
    raise ValueError(f"metric {name!r} is not in the table of rlhf_jax/runtime/metric_names.py{hint}")


def markdown() -> str:
    """The table as `docs/metrics.md`."""
    lines = [
        "# Metrics",
        "",
        "Generated by `python -m rlhf_jax.runtime.metric_names > docs/metrics.md`; edit the table there, not here.",
        "",
        'Every line of `metrics.jsonl` is `{"stage", "step", name: value, ...}`, the names without the stage. Values are',
        "means over the updates since the last line. `<component>` is the name of a component of the run's reward: "
        + ", ".join(f"`{component}`" for component in COMPONENTS)
        + ", or one of `--reward.function`; `<k>` any whole",
        "number; `<closed_loop>` one of " + ", ".join(f"`{name}`" for name in _CLOSED_LOOP) + ".",
    ]
    titles = (
        ("Every stage", EVERY_STAGE),
        ("Supervised stages", SUPERVISED),
        ("Reward model", REWARD_MODEL),
        ("PPO", PPO),
    )
    for title, group in titles:
        stages = ", ".join(f"`{stage}`" for stage, groups in STAGES.items() if any(g is group for g in groups))
        lines += ["", f"## {title}", "", f"Stages: {stages}.", "", "| name | unit | definition |", "|---|---|---|"]
        lines += [f"| `{name}` | {entry.unit} | {_cell(entry.definition)} |" for name, entry in group.items()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<eos>", "`<eos>`")


def _patterns(stage: str) -> list[tuple[re.Pattern[str], Metric]]:
    return [(_pattern(name), entry) for group in STAGES[stage] for name, entry in group.items()]


def _pattern(name: str) -> re.Pattern[str]:
    text = re.escape(name)
    text = text.replace("<closed_loop>", f"({'|'.join(re.escape(metric) for metric in _CLOSED_LOOP)})")
    text = text.replace("<component>", r"[^\W\d]\w*")
    return re.compile(text.replace("<k>", "[0-9]+"))


if __name__ == "__main__":
    print(markdown(), end="")

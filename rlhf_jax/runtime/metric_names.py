"""The one table of metric names: what is not in it is not logged.

A stage logs bare names, often `<group>/<name>`: `objective/kl_k1`; which stage it was stands in the line, not in the
name. A stage is one of a kind: `ppo` and `ppo-full` may log the same names. To add a metric, add a line to the group of
the kinds that log it, then run

    python -m rlhf_jax.runtime.metric_names > docs/metrics.md

`<component>` stands for the name of any reward component, `<k>` for any cutoff, turn or other whole number.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from rlhf_jax.feedback.components import COMPONENTS


class Metric(NamedTuple):
    """What a number means and what it is counted in."""

    unit: str
    definition: str


Group = Mapping[str, Metric]


class Health(NamedTuple):
    """What a number looks like where training is well, and where to look where it does not."""

    metric: str
    healthy: str
    otherwise: str


HEALTH = (
    Health(
        "policy/first_ratio_max_deviation",
        "0 up to rounding, below 1e-3",
        "sampler and learner disagree: temperature, grammar mask, stale parameters; then `policy/sampler_mismatch`",
    ),
    Health(
        "objective/score_raw",
        "rises, faster early than late",
        "flat: `policy/approx_kl` (are there steps at all?), the sign of rewards and advantages, the learning rate",
    ),
    Health(
        "objective/kl_k1",
        "0 at the first update, then grows slowly; a few nats a response",
        "negative for long: the sign of the penalty; tens of nats: `objective/kl_coef` too low, and read `samples.jsonl`",
    ),
    Health(
        "objective/entropy",
        "falls slowly and stays above 0",
        "near 0: nothing is explored any more; a larger `kl_coef`, an entropy bonus, a lower learning rate",
    ),
    Health(
        "policy/approx_kl",
        "between 1e-4 and 0.05 nats",
        "higher: the steps are too large, fewer epochs or `target_kl`; exactly 0: nothing is learnt",
    ),
    Health(
        "policy/clip_fraction",
        "between 0 and 0.3",
        "higher: learning rate or epochs; 0 with several epochs: the steps are too small to matter",
    ),
    Health(
        "value/explained_variance",
        "rises from below 0 towards 1",
        "stays below 0: the critic's weight and clip range, its learning rate, the unit of the rewards",
    ),
    Health(
        "text/eos_fraction",
        "rises, or stays near 1",
        "falls: the price of a missing end, or a reward that pays for length",
    ),
    Health(
        "text/response_length",
        "stays near that of imitation",
        "grows or shrinks with the score: the reward can be bought by length; look at `samples.jsonl` and `length_coef`",
    ),
    Health(
        "text/repetition",
        "stays where imitation had it",
        "rises: reward hacking; compare `judge/score` and, in the world, `world/mean_utility` with `objective/score_raw`",
    ),
    Health("norms/gradient", "of one size over the run", "spikes: bad batches; look at `skipped` and the score's clip"),
    Health("skipped", "0", "anything else: a loss or gradient that is not finite; look at the update before it"),
)
"""For PPO. The lesson on faults practises reading them."""

EVERY_STAGE: Group = {
    "skipped": Metric(
        "steps", "optimiser steps refused for a non-finite loss or gradient; a sum, all others are means"
    ),
    "seconds_per_update": Metric("s", "wall time of an update, evaluations and checkpoints left out"),
    "norms/gradient": Metric("", "global norm of the gradient before clipping"),
    "norms/update": Metric("", "global norm of what the optimiser adds to the parameters"),
    "norms/parameter": Metric("", "global norm of the parameters"),
}
FITTED: Group = {
    "loss": Metric("", "training loss as optimised, weights included"),
    "learning_rate": Metric("", "of the optimiser at this step; a refused step does not advance its schedule"),
}
SUPERVISED: Group = {
    "item_nll": Metric("nats", "negative log-likelihood per learnt suggested item, unweighted, dropout on"),
    "fresh_item_nll": Metric("nats", "the same over suggested items that the dialogue has not named before"),
    "word_nll": Metric("nats", "the same over words and markers only"),
    "teacher_kl": Metric("nats", "KL(q ‖ π) of a teacher's suggestions, at the first place of lists, dropout on"),
    "validation/loss": Metric("", "loss on the validation split, dropout off"),
    "validation/item_nll": Metric(
        "nats", "negative log-likelihood per suggested item of validation dialogues, dropout off"
    ),
    "validation/fresh_item_nll": Metric("nats", "the same over suggested items the dialogue has not named before"),
    "validation/word_nll": Metric("nats", "the same over words and markers only"),
}
REWARD_MODEL: Group = {
    "loss/<component>": Metric("", "squared error against the z-scored weak label of one component"),
    "validation/pearson_<component>": Metric(
        "", "correlation with the weak label on the validation rows; the gate before PPO is .6"
    ),
    "validation/pearson": Metric("", "the same for the weighted sum of the components"),
}
REINFORCED: Group = {
    "loss": Metric("", "whole loss as optimised, all its parts; mean over steps"),
    "learning_rate": Metric(
        "", "of the optimiser at the update's first step; refused and stopped steps do not advance its schedule"
    ),
    "objective/score_raw": Metric("z", "weighted sum of the components as they are given, before they are normalised"),
    "objective/score_normalised": Metric("", "score as paid: running mean/std, clipped, missing <eos> priced in"),
    "objective/<component>_raw": Metric(
        "z",
        "one component of the reward model's output; in its own unit of a turn's reward, where episodes are learnt from, and of a control's",
    ),
    "objective/<component>_normalised": Metric("", "the same after its running mean/std"),
    "objective/<component>_reward_correlation": Metric(
        "",
        "Pearson over the responses of an update between one raw component and the score as paid; 0 where one is constant",
    ),
    "objective/kl_k1": Metric("nats", "Σ_t (log π − log π_ref) per response; unbiased estimate of the sequence KL"),
    "objective/kl_k3": Metric("nats", "Σ_t (e^{−d} − 1 + d), d = log π − log π_ref, per response; never negative"),
    "objective/kl_coef": Metric("1/nat", "weight of the KL penalty: in the reward (PPO), or in the loss (GRPO)"),
    "objective/entropy": Metric("nats", "of the policy's next-token distribution, mean over sampled tokens"),
    "objective/flat_group_share": Metric(
        "", "share of groups of one prompt whose responses are all paid the same; logged where there are groups"
    ),
    "policy/loss": Metric("", "clipped surrogate, mean over tokens and steps"),
    "policy/ptx_loss": Metric(
        "nats", "negative log-likelihood per token of human responses, where `ptx_coef` mixes it in"
    ),
    "policy/approx_kl": Metric("nats", "½ (log π − log π_old)², mean over tokens and steps"),
    "policy/clip_fraction": Metric("", "share of tokens whose surrogate is clipped"),
    "policy/ratio_mean": Metric("", "π/π_old, mean over tokens and steps"),
    "policy/ratio_min": Metric("", "its minimum over all steps of the update"),
    "policy/ratio_max": Metric("", "its maximum over all steps of the update"),
    "policy/first_ratio_max_deviation": Metric("", "largest |π/π_old − 1| in the first step; 0 up to rounding"),
    "policy/sampler_mismatch": Metric("nats", "largest |log π| difference between sampler and learner"),
    "policy/stopped_early": Metric("", "share of steps not taken because approx_kl passed target_kl"),
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
}
PPO: Group = {
    "objective/non_score_reward": Metric("", "−kl_coef · kl_k1, what the KL penalty pays per response"),
    "value/loss": Metric("", "clipped squared error of the value head, before its coefficient"),
    "value/clip_fraction": Metric("", "share of tokens whose value moved out of the clip range"),
    "value/explained_variance": Metric("", "1 − Var(returns − values)/Var(returns) at sampling time; 1 is perfect"),
    "value/returns_mean": Metric("", "mean return over tokens"),
}
GRPO: Group = {
    "policy/kl_penalty": Metric(
        "nats", "k3 to the reference as the loss has it, before its weight; mean over tokens and steps"
    ),
}
TURNS: Group = {
    "turn/<k>/running": Metric("", "share of episodes that had turn k, counted from 1"),
    "turn/<k>/<component>": Metric(
        "", "one reward component of turn k, in its own unit, mean over the episodes that had it; 0 where none had"
    ),
    "turn/<k>/<component>_deviation": Metric(
        "",
        "its standard deviation among the episodes of one opening that had turn k, which the normalised component is divided by; "
        "mean over openings",
    ),
    "objective/turns": Metric("turns", "per episode"),
    "objective/episode_score": Metric("", "weighted components summed over an episode's turns, mean over episodes"),
    "objective/advantage_deviation": Metric("", "standard deviation of the advantages of the turns that were had"),
    "talk/success": Metric("", "share of conversations in which a list held what the seeker likes"),
    "talk/recalled": Metric("", "share of turns with such an item among their candidates"),
    "talk/attributes": Metric("", "attributes said in a turn"),
    "talk/form_without_content": Metric(
        "", "share of turns in the whole form that list nothing liked and infer nothing true: format bought alone"
    ),
    "talk/stuffed": Metric(
        "", "share of turns that say more attributes than an imitated turn may: one of them will be right"
    ),
    "talk/repeated": Metric("", "share of turns that list an item named before; the candidates forbid it"),
    "talk/echoed": Metric(
        "", "share of turns whose words were those of an earlier reply of the conversation: the same question again"
    ),
    "talk/leaks": Metric("answers", "that would have given a hidden item away as they were drawn, of an update"),
    "talk/leaks_left": Metric("answers", "that still did when they were heard"),
    "validation/success@<k>": Metric(
        "",
        "share of greedy conversations from validation openings that succeed within k turns, simulator of the training",
    ),
    "seconds/outside_share": Metric("", "share of an update's time outside compiled programs"),
}
PRIOR: Group = {
    "loss": Metric("nats", "−A · log π, mean over the places of the lists"),
    "learning_rate": Metric("", "of the optimiser at this step; a refused step does not advance its schedule"),
    "objective/ndcg": Metric("", "NDCG of the drawn lists: what they were paid, mean over lists"),
    "objective/first_hit": Metric("", "share of drawn lists whose first item is gold"),
    "objective/worth": Metric(
        "label", "what a reward model of items pays the drawn lists, in place of NDCG; mean over lists"
    ),
    "objective/kl_items": Metric("nats", "KL of the item at the first place to imitation's, exact, mean over contexts"),
    "objective/entropy": Metric("nats", "of the item at the first place, mean over contexts"),
    "objective/flat_group_share": Metric("", "share of contexts whose lists were all paid the same at every place"),
    "validation/hr@<k>": Metric("", "of fresh gold items of the held-out dialogues, greedy"),
    "validation/ndcg@<k>": Metric("", "the same with credit by rank"),
}
PREFERENCES: Group = {
    "logprobs/chosen": Metric(
        "nats",
        "log π of the chosen response, summed over its tokens; falling while the margin grows is DPO's known failure",
    ),
    "logprobs/rejected": Metric("nats", "the same of the rejected ones, mean over those of a prompt"),
    "rewards/chosen": Metric(
        "", "β (log π − log π_ref) of the chosen response; β from the configuration, `ipo` and `rft` too"
    ),
    "rewards/rejected": Metric("", "the same of the rejected ones, mean over those of a prompt"),
    "rewards/margin": Metric("", "rewards/chosen − rewards/rejected"),
    "rewards/accuracy": Metric("", "share of rejected responses whose reward is below that of the chosen one"),
}
RETRIEVER: Group = {
    "first_share": Metric(
        "", "share of pairs whose item scores highest among the step's candidates, uncorrected, dropout on"
    ),
    "validation/recall@<k>": Metric(
        "", "share of fresh gold items among the k highest scores, items named before at the end"
    ),
}
SIMULATOR: Group = {
    "language_nll": Metric("nats", "negative log-likelihood per learnt token of the seeker, dropout on"),
    "attribute_bce": Metric(
        "nats", "binary cross-entropy per marker, summed over the attributes of what the seeker will like, dropout on"
    ),
    "target_nll": Metric(
        "nats",
        "−log of the probability of all items the seeker will like, per marker, over items not named yet; dropout on",
    ),
    "validation/loss": Metric("", "loss on validation dialogues, dropout off"),
    "validation/language_nll": Metric("nats", "the same as `language_nll`, dropout off"),
    "validation/attribute_bce": Metric("nats", "the same as `attribute_bce`, dropout off"),
    "validation/target_nll": Metric("nats", "the same as `target_nll`, dropout off"),
}

TEXTS: Group = {
    "validation/ndcg@<k>": Metric(
        "", "of validation users' lists with texts drawn for them, in the frozen scorer's order"
    ),
    "text/well_formed": Metric(
        "",
        "share of these texts whose sections are in order and hold different words of their kind; the grammar allows no others",
    ),
    "text/response_length": Metric("tokens", "of these texts, marks and <eos> included"),
    "text/distinct": Metric("", "share of these texts that differ from all other texts of their user"),
}
WRITER: Group = {
    "validation/loss": Metric(
        "nats", "negative log-likelihood per token of the teacher's texts about validation users"
    ),
}
VALUES: Group = {
    "validation/explained": Metric("", "share of the variance of held-out turns' credit that the forecast foresaw"),
    "validation/ordered": Metric(
        "",
        "of pairs of replies to one held-out opening with different credit, share in the same order by the forecast; ties half",
    ),
}
RERANKER: Group = {
    "validation/ndcg@<k>": Metric("", "of validation users' lists, mean over lists and their texts"),
    "validation/read": Metric("", "NDCG@5 of these lists that is lost with another validation user's texts"),
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
    "sft": (EVERY_STAGE, FITTED, SUPERVISED),
    "reward_model": (EVERY_STAGE, FITTED, REWARD_MODEL),
    "ppo": (EVERY_STAGE, REINFORCED, PPO),
    "grpo": (EVERY_STAGE, REINFORCED, GRPO),
    "multi_turn": (EVERY_STAGE, REINFORCED, GRPO, TURNS),
    "prior": (EVERY_STAGE, PRIOR),
    "dpo": (EVERY_STAGE, FITTED, PREFERENCES, TEXTS),
    "writer": (EVERY_STAGE, FITTED, WRITER),
    "reasoning": (EVERY_STAGE, FITTED, WRITER),
    "reranker": (EVERY_STAGE, FITTED, RERANKER),
    "retriever": (EVERY_STAGE, FITTED, RETRIEVER),
    "simulator": (EVERY_STAGE, FITTED, SIMULATOR),
    "value": (EVERY_STAGE, FITTED, VALUES),
}
"""Which groups a kind of stage may log."""


def kind(stage: str) -> str:
    """What a stage is; several of one kind are told apart by what follows: `ppo-kl0_1`, `reward_model-shift`.

    Examples:
      >>> kind("ppo-kl0_1"), kind("reward_model-shift"), kind("sft")
      ('ppo', 'reward_model', 'sft')
    """
    return stage.partition("-")[0]


def check(stage: str, name: str) -> Metric:
    """The table's entry of a bare name.

    Raises: ValueError naming the stage and the metric if the table has none, with the closest names.
    Examples:
      >>> check("ppo-full", "objective/kl_k1").unit
      'nats'
    """
    if kind(stage) not in STAGES:
        raise ValueError(
            f"stage {stage!r} logs {name!r}: no kind of stage {kind(stage)!r} in the table of {__name__}; "
            f"there are {', '.join(STAGES)}"
        )
    for pattern, entry in _patterns(kind(stage)):
        if pattern.fullmatch(name):
            return entry
    last = name.rsplit("/", 1)[-1]
    close = [known for group in STAGES[kind(stage)] for known in group if last in known or known in name]
    hint = f"; close names: {', '.join(close)}" if close else ""
    raise ValueError(f"stage {stage!r} logs {name!r}, which is not in the table of {__name__}{hint}")


def bare(stage: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by bare names; the only place that knows how older versions spelled them, `ppo/objective/kl_k1`.

    Examples:
      >>> bare("ppo-full", {"ppo/loss": 0.1, "skipped": 0}) == bare("ppo-full", {"loss": 0.1, "skipped": 0})
      True
    """
    return {name.removeprefix(f"{kind(stage)}/"): value for name, value in values.items()}


def markdown() -> str:
    """The table as `docs/metrics.md`."""
    lines = [
        "# Metrics",
        "",
        "Generated by `python -m rlhf_jax.runtime.metric_names > docs/metrics.md`; edit the table there, not here.",
        "",
        'Every line of `metrics.jsonl` is `{"stage", "step", name: value, ..., "crc32"}`, the last a checksum of it and of all',
        "before it (`runtime.metrics.read_metrics` checks it); TensorBoard and W&B call a value `stage/name`.",
        "Stages of one kind log the same names: `ppo-full` those of `ppo`. A name that is not in this table stops the run at its",
        "first line. Values are means over the updates since the last line. `<component>` is the name of a component of the run's",
        "reward: "
        + ", ".join(f"`{component}`" for component in COMPONENTS)
        + ", or one of `--reward.function`; `<k>` any whole",
        "number; `<closed_loop>` one of " + ", ".join(f"`{name}`" for name in _CLOSED_LOOP) + ".",
        "",
        '`samples.jsonl` holds what the policy said while it was trained: `{"stage", "step", "prompt", "reply", "scores"}`, a line a',
        "reply. At every evaluation of `sft` and `ppo` the policy samples replies to the same `--samples` validation contexts.",
        "`prompt` is what it reads and `reply` what it says, titles spelled out. `scores` are the reward model's components and",
        "`score`, their weighted sum (z, without penalties); `sft` has none. Trackers get the same as the table `stage/samples`.",
    ]
    titles = (
        ("Every stage", EVERY_STAGE),
        ("Fitted to data", FITTED),
        ("Supervised stage", SUPERVISED),
        ("Reward model", REWARD_MODEL),
        ("Reinforcement learning", REINFORCED),
        ("PPO", PPO),
        ("GRPO", GRPO),
        ("Turns", TURNS),
        ("Prior over items", PRIOR),
        ("Preferences", PREFERENCES),
        ("Retriever", RETRIEVER),
        ("User simulator", SIMULATOR),
        ("Texts about users", TEXTS),
        ("Writer", WRITER),
        ("Re-ranker of lists", RERANKER),
        ("Forecast of credit (iterated PPO)", VALUES),
    )
    for title, group in titles:
        stages = ", ".join(f"`{stage}`" for stage, groups in STAGES.items() if any(g is group for g in groups))
        lines += ["", f"## {title}", "", f"Stages: {stages}.", "", "| name | unit | definition |", "|---|---|---|"]
        lines += [f"| `{name}` | {entry.unit} | {_cell(entry.definition)} |" for name, entry in group.items()]
    lines += [
        "",
        "## Healthy, and where to look if not",
        "",
        "For PPO. Rules of thumb with round numbers, not measured; another task may look otherwise.",
        "",
        "| name | healthy | if not, look at |",
        "|---|---|---|",
    ]
    lines += [f"| `{metric}` | {healthy} | {otherwise} |" for metric, healthy, otherwise in HEALTH]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<eos>", "`<eos>`")


@functools.cache
def _patterns(kind: str) -> list[tuple[re.Pattern[str], Metric]]:
    return [(_pattern(name), entry) for group in STAGES[kind] for name, entry in group.items()]


def _pattern(name: str) -> re.Pattern[str]:
    text = re.escape(name)
    text = text.replace("<closed_loop>", f"({'|'.join(re.escape(metric) for metric in _CLOSED_LOOP)})")
    text = text.replace("<component>", r"[^\W\d]\w*")
    return re.compile(text.replace("<k>", "[0-9]+"))


if __name__ == "__main__":
    print(markdown(), end="")

"""The table of metric names: one spelling, strict by kind of stage, and equal to its document."""

from pathlib import Path

import pytest

from rlhf_jax.runtime import metric_names


def test_document_is_the_table(repository: Path):
    written = (repository / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert written == metric_names.markdown(), "python -m rlhf_jax.runtime.metric_names > docs/metrics.md"


def test_what_is_healthy_is_said_of_metrics_that_ppo_logs():
    named = [entry.metric for entry in metric_names.HEALTH]
    assert len(named) == len(set(named)) > 10
    for name in named:
        assert metric_names.check("ppo", name).definition


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("sft", "fresh_item_nll"),
        ("sft", "learning_rate"),
        ("sft", "validation/loss"),
        ("reward_model", "loss/sentiment"),
        ("reward_model-shift", "validation/pearson_relevance"),
        ("reward_model-shift-3", "validation/pearson"),
        ("ppo", "objective/kl_k1"),
        ("ppo-full", "objective/kl_k1"),
        ("ppo-kl0_1-length", "objective/relevance_normalised"),
        ("ppo", "world/success@3"),
        ("ppo", "norms/update"),
        ("ppo", "skipped"),
        ("ppo", "text/distinct_2"),
        ("ppo", "validation/response_length"),
        ("ppo", "world/kl_k1"),
        ("ppo", "objective/charm_raw"),
        ("grpo", "objective/flat_group_share"),
        ("grpo-rounds", "policy/kl_penalty"),
        ("multi_turn", "turn/3/recommendation"),
        ("multi_turn-one", "turn/1/running"),
        ("dpo-2", "rewards/margin"),
        ("dpo", "loss"),
    ],
)
def test_known_names(stage: str, name: str):
    assert metric_names.check(stage, name).definition


@pytest.mark.parametrize(
    ("stage", "name", "message"),
    [
        ("ppo-full", "objective/kl_k2", "stage 'ppo-full' logs 'objective/kl_k2', which is not in the table"),
        ("sft", "objective/kl_k1", "not in the table"),
        ("ppo", "loss/engagement", "close names: loss"),
        ("grpo", "value/loss", "not in the table"),
        ("dpo", "logps/chosen", "close names: logprobs/chosen"),
        ("ppo", "policy/kl_penalty", "not in the table"),
        (
            "warmup",
            "loss",
            "stage 'warmup' logs 'loss': no kind of stage 'warmup' .*; there are sft, reward_model, ppo, grpo",
        ),
        ("ppo", "world/success@ten", "not in the table"),
        ("multi_turn", "turn/last/format", "not in the table"),
        ("grpo", "turn/1/format", "not in the table"),
        ("ppo", "objective/not a name_raw", "not in the table"),
        ("ppo", "ppo/objective/kl_k1", "close names: .*objective/kl_k1"),
    ],
)
def test_unknown_names_are_refused(stage: str, name: str, message: str):
    with pytest.raises(ValueError, match=message):
        metric_names.check(stage, name)


def test_every_group_of_a_stage_is_on_the_page():
    page = metric_names.markdown()
    for groups in metric_names.STAGES.values():
        for group in groups:
            assert all(f"| `{name}` |" in page for name in group)
    for stage in metric_names.STAGES:
        assert f"`{stage}`" in page.split("## Healthy")[0].split("## Fitted")[1]


def test_every_name_has_a_definition_and_stands_once_per_stage():
    for stage, groups in metric_names.STAGES.items():
        names = [name for group in groups for name in group]
        assert len(names) == len(set(names)), stage
        assert all(metric.definition for group in groups for metric in group.values())

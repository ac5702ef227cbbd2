"""The table of metric names: complete for what learners log, strict for the rest, and equal to its document."""

from pathlib import Path

import pytest

from rlhf_jax.runtime import metric_names


def test_document_is_the_table(repository: Path):
    written = (repository / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert written == metric_names.markdown(), "python -m rlhf_jax.runtime.metric_names > docs/metrics.md"


@pytest.mark.parametrize(
    "name",
    [
        "pretrain/loss",
        "sft/token_nll",
        "sft/learning_rate",
        "sft/validation/ndcg@10",
        "reward_model/pearson_engagement",
        "reward_model/loss/sentiment",
        "reward_model/validation/pearson_relevance",
        "ppo/objective/kl_k1",
        "ppo/objective/relevance_normalised",
        "ppo/world/success@3",
        "ppo/norms/update",
        "ppo/skipped",
        "ppo/text/distinct_2",
        "ppo/objective/sentiment_reward_correlation",
        "ppo/validation/response_length",
        "ppo/world/kl_k1",
        "ppo/objective/charm_raw",
    ],
)
def test_known_names(name: str):
    assert metric_names.check(name).definition


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ppo/objective/kl_k2", "'ppo/objective/kl_k2' is not in the table"),
        ("sft/objective/kl_k1", "not in the table"),
        ("ppo/loss/engagement", "close names: ppo/loss"),
        ("warmup/loss", "no stage 'warmup' in the table; there are pretrain, sft, reward_model, ppo"),
        ("loss", "no stage 'loss'"),
        ("sft/validation/hr@ten", "not in the table"),
        ("ppo/objective/not a name_raw", "not in the table"),
    ],
)
def test_unknown_names_are_refused(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        metric_names.check(name)


def test_every_name_has_a_definition_and_stands_once_per_stage():
    for stage, groups in metric_names.STAGES.items():
        names = [name for group in groups for name in group]
        assert len(names) == len(set(names)), stage
        assert all(metric.definition for group in groups for metric in group.values())

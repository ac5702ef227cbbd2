"""The page for readers of TRL names functions and options that are here, with their defaults."""

import ast
import dataclasses
import re
from pathlib import Path

from rlhf_jax.learners.dpo_config import DPOConfig
from rlhf_jax.learners.grpo_config import GRPOConfig
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.runtime.metric_names import STAGES
from rlhf_jax.stages.alignment import AlignmentConfig


def test_names_and_defaults_on_our_side_are_ours(repository: Path) -> None:
    page = (repository / "docs" / "from_trl.md").read_text(encoding="utf-8")
    functions = {
        node.name
        for file in (repository / "rlhf_jax" / "equations").glob("[a-z]*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    seen = set()
    for heading, config in (("PPO", PPOConfig), ("GRPO and RLOO", GRPOConfig), ("DPO", DPOConfig)):
        fields = {field.name: field.default for field in dataclasses.fields(config)}
        section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
        rows = [row.strip("|").split("|") for row in section.splitlines() if row.startswith("| ")]
        assert rows[0][2].strip() == "here"
        for _, _, ours in rows[1:]:
            for name, number in re.findall(r"`(\w+)`(?: (-?\d+(?:\.\d+)?)\b)?", ours):
                assert name in functions or name in fields, name
                if number and name in fields:
                    assert fields[name] == float(number), name
                    seen.add(name)
    assert {"value_coef", "value_clip_eps", "kl_coef", "clip_eps"} <= seen


def test_options_named_are_there_with_the_defaults_that_are_said(repository: Path) -> None:
    page = (repository / "docs" / "from_trl.md").read_text(encoding="utf-8")
    section = page.split("## Options\n")[1].split("\n## ")[0]
    configs = {"align": AlignmentConfig, "ppo": PPOConfig, "grpo": GRPOConfig}
    seen = set()
    for group, option, number in re.findall(r"`--(align|ppo|grpo)\.([\w-]+)`(?: (\d+(?:\.\d+)?)\b(?!/))?", section):
        fields = {field.name: field.default for field in dataclasses.fields(configs[group])}
        name = option.replace("-", "_")
        assert name in fields, f"--{group}.{option}"
        if number:
            assert fields[name] == float(number), f"--{group}.{option}"
            seen.add(f"{group}.{name}")
    assert {"align.learning_rate", "align.batch_size", "ppo.epochs", "grpo.group_size"} <= seen
    raw = re.search(r"`(--ppo\.no-normalise-components .*?)`", section)
    assert raw is not None
    options = dict(re.findall(r"--ppo\.([\w-]+) ?([^-\s]\S*)?", raw[1]))
    assert options.keys() == {"no-normalise-components", "no-normalise-score", "score-clip", "missing-eos-penalty"}
    for config in (PPOConfig, GRPOConfig):
        config(normalise_components=False, normalise_score=False, score_clip=None, missing_eos_penalty=0.0)


def test_metrics_named_are_ours(repository: Path) -> None:
    page = (repository / "docs" / "from_trl.md").read_text(encoding="utf-8")
    section = page.split("## Metrics\n")[1].split("\n## ")[0]
    names = {name for kind in ("ppo", "grpo", "dpo") for group in STAGES[kind] for name in group}
    rows = [row.strip("|").split("|") for row in section.splitlines() if row.startswith("| ")]
    assert len(rows) > 10
    for _, ours in rows[1:]:
        # A name of TRL's may stand beside ours, to tell them apart.
        for name in re.findall(r"`([\w<>]+/[\w<>]+)`", ours.split("TRL's")[0]):
            assert name in names, name

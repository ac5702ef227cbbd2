"""The page for readers of TRL names functions and options that are here, with their defaults."""

import ast
import dataclasses
import re
from pathlib import Path

from rlhf_jax.learners.dpo_config import DPOConfig
from rlhf_jax.learners.grpo_config import GRPOConfig
from rlhf_jax.learners.ppo_config import PPOConfig


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

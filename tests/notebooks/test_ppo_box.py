"""The numbered box of docs/algorithms/ppo.md: the learner, the notebooks and the defaults carry the same numbers."""

import dataclasses
import re
from pathlib import Path

import pytest

from rlhf_jax.learners.dpo_config import DPOConfig
from rlhf_jax.learners.grpo_config import GRPOConfig
from rlhf_jax.learners.ppo_config import PPOConfig

REPOSITORY = Path(__file__).resolve().parents[2]
BOX = (REPOSITORY / "docs" / "algorithms" / "ppo.md").read_text(encoding="utf-8")


def numbered_comments(path: str) -> dict[int, str]:
    """Line number of the box → first word of the comment that carries it."""
    found = re.findall(
        r"(?:^\s*# |  )(\d)\. ([A-Za-z]+)", (REPOSITORY / path).read_text(encoding="utf-8"), re.MULTILINE
    )
    # The first one counts: the exercises are numbered too, further down.
    return {int(number): word for number, word in reversed(found)}


@pytest.mark.parametrize(
    "path", ["notebooks/07_ppo_on_a_bandit.py", "notebooks/08_three_token_language.py", "experiments/ppo_100_lines.py"]
)
def test_the_programs_that_write_the_box_down_carry_its_numbers_and_names(path: str) -> None:
    box = {int(number): word for number, word in re.findall(r"^> \*\*(\d)\. (\w+)", BOX, re.MULTILINE)}
    assert list(box) == list(range(1, 9))
    code = numbered_comments(path)
    assert {number: code.get(number) for number in box} == box


@pytest.mark.parametrize(("learner", "lines"), [("ppo", 8), ("grpo", 7), ("dpo", 4)])
def test_the_learner_carries_the_numbers_in_order(learner: str, lines: int) -> None:
    source = (REPOSITORY / "rlhf_jax" / "learners" / f"{learner}.py").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"^(?:    |        )# (\d)\. ", source, re.MULTILINE)]
    assert numbers == list(range(1, lines + 1))
    box = (REPOSITORY / "docs" / "algorithms" / f"{learner}.md").read_text(encoding="utf-8")
    assert re.findall(r"^> \*\*(\d)\. ", box, re.MULTILINE) == [str(number) for number in numbers]


@pytest.mark.parametrize(
    ("learner", "config", "least"),
    [
        ("ppo", PPOConfig, {"clip_eps", "value_clip_eps", "value_coef", "gamma", "gae_lambda", "kl_coef", "epochs"}),
        ("grpo", GRPOConfig, {"clip_eps", "group_size", "gamma", "kl_coef", "epochs", "ptx_coef"}),
        ("dpo", DPOConfig, {"beta", "label_smoothing", "learning_rate", "epochs", "batch_size", "weight_decay"}),
    ],
)
def test_the_table_of_defaults_is_that_of_the_configuration(learner: str, config: type, least: set[str]) -> None:
    fields = {field.name: field.default for field in dataclasses.fields(config)}
    box = (REPOSITORY / "docs" / "algorithms" / f"{learner}.md").read_text(encoding="utf-8")
    table = box.split("| symbol |")[1].split("\n\n")[0]
    checked = set()
    for row in table.splitlines()[2:]:
        _, names, defaults = (cell.strip() for cell in row.strip("|").split("|"))
        for name in set(re.findall(r"`(\w+)`", names)) - {"PPOConfig"}:
            default = fields[name]
            if isinstance(default, (int, float)) and not isinstance(default, bool) and name != "microbatches":
                numbers = {float(x.replace(" ", "")) for x in re.findall(r"\d+(?: \d{3})*(?:\.\d+)?", defaults)}
                assert default in numbers, f"{name}: {default} is not in {defaults!r}"
                checked.add(name)
    assert least <= checked

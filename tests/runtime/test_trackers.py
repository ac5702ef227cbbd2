"""Metrics that also go to Weights & Biases."""

import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_jax.runtime import files, metrics, run


class FakeWandB:
    """Stands in for the `wandb` module and remembers what it was told."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **options: Any) -> "FakeWandB":
        self.started.append(options)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


def test_wandb_gets_every_line_and_the_same_id_when_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step in (0, 1):
        with (
            run.open_run(tmp_path / "run", {"seed": 3}, trackers=("wandb",)) as directory,
            metrics.MetricsLog(directory, "sft", step) as log,
        ):
            log.write(step + 1, {"loss": 0.5})
    assert fake.logged == [(1, {"sft/loss": 0.5}), (2, {"sft/loss": 0.5})]
    assert fake.finished == 2
    first, second = fake.started
    assert first["id"] == second["id"] and first["resume"] == "allow" and first["config"] == {"seed": 3}
    with run.open_run(tmp_path / "other", {"seed": 3}, trackers=("wandb",)) as directory:
        metrics.MetricsLog(directory, "sft", 0).__exit__(None, None, None)
    assert fake.started[-1]["id"] != first["id"]


def test_wandb_without_its_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        run.open_run(tmp_path / "run", {}, trackers=("wandb",)) as directory,
        pytest.raises(files.RunError, match=r"pip install 'rlhf-jax\[tracking\]'"),
    ):
        metrics.MetricsLog(directory, "sft", 0)

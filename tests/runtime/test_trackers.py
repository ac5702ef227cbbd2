"""Metrics and replies that also go to Weights & Biases and TensorBoard."""

import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_jax.runtime import files, metrics, run
from rlhf_jax.runtime.metrics import Sample


class FakeWandB:
    """Stands in for the `wandb` module and remembers what it was told."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0
        self.Table = dict

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
            log.write_samples(step + 1, [Sample("hi", "a <b>", {"score": float(step)})])
    tables = [{"columns": ["prompt", "reply", "score"], "data": [["hi", "a <b>", float(step)]]} for step in (0, 1)]
    assert fake.logged == [
        (step + 1, line) for step in (0, 1) for line in ({"sft/loss": 0.5}, {"sft/samples": tables[step]})
    ]
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


def test_replies_are_no_markup_for_tensorboard_and_a_scalar_that_is_lost_is_null(tmp_path: Path) -> None:
    with (
        run.open_run(tmp_path / "run", {}, trackers=("tensorboard",)) as directory,
        metrics.MetricsLog(directory, "ppo", 0) as log,
    ):
        log.write_samples(3, [Sample("a\nb", "<img> | é", {"score": 0.25}), Sample("c", "", {"score": float("nan")})])
    lines = metrics.read_stage_samples(tmp_path / "run" / "samples.jsonl")
    first = {"stage": "ppo", "step": 3, "prompt": "a\nb", "reply": "<img> | é", "scores": {"score": 0.25}}
    assert lines == [first, first | {"prompt": "c", "reply": "", "scores": {"score": None}}]
    (events,) = (tmp_path / "run" / "tensorboard" / "ppo").iterdir()
    written = events.read_bytes()
    assert b"ppo/samples" in written and "| a b | &lt;img&gt; &#124; é | 0.250 |\n| c |  | nan |".encode() in written

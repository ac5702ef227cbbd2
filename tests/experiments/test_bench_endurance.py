"""Long runs: tenths of what was seen, and that the real stages are looked at. What must not grow is in `test_one_program.py`."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from scale import endurance
from scale.endurance import Look


def looks(n: int, *, leak: int = 0, slower: float = 0.0) -> list[Look]:
    """An update a second; two programs in the first tenth."""
    return [
        Look(
            "ppo",
            k,
            k + slower * max(0, k - n // 2),
            500.0 + k,
            1000 + leak * k,
            7,
            min(k, 2),
            0.5 if k < n // 2 else 1.0,
        )
        for k in range(n)
    ]


def test_the_last_tenth_is_compared_with_the_second() -> None:
    spans = endurance.spans(looks(100))
    assert [span.updates for span in spans] == [9, *[10] * 9]
    assert endurance.verdict(spans) == {
        "throughput": 1.0,
        "quick": 1.0,
        # The fixed piece of work takes twice as long at the end, the updates do not.
        "yardstick": 0.5,
        "resident": 599 / 519,
        "live": 1.0,
        "compiled": 0.0,
    }
    grown = endurance.verdict(endurance.spans(looks(100, leak=10, slower=0.25)))
    assert grown["throughput"] == pytest.approx(1 / 1.25)
    assert grown["live"] == (1000 + 10 * 99) / (1000 + 10 * 19)
    # One long pause in the last tenth is no slower update.
    paused = [look._replace(seconds=look.seconds + 5.0 * (look.update > 95)) for look in looks(100)]
    assert endurance.verdict(endurance.spans(paused))["quick"] == 1.0
    assert endurance.verdict(endurance.spans(paused))["throughput"] == pytest.approx(1 / 1.5)
    with pytest.raises(ValueError, match="19 updates cannot be cut into 10 parts"):
        endurance.spans(looks(19))


def test_every_call_of_a_step_is_looked_at_and_nothing_else() -> None:
    with endurance.watching() as watch:
        step = watch.together(jax.jit(lambda x: 2 * x + 1), "ppo")
        other = watch.together(jax.jit(lambda x: 3 * x), "ppo/validation")
        kept = [jnp.zeros(4)]
        for _ in range(3):
            kept.append(step(kept[-1]))
            other(kept[-1])
    assert [(look.stage, look.update) for look in watch.looks] == [("ppo", 0), ("ppo", 1), ("ppo", 2)]
    # One more array is kept each time, and that is seen.
    assert [after.live_bytes - before.live_bytes for before, after in itertools.pairwise(watch.looks)] == [16, 16]
    # Both were compiled in the first update.
    assert len({look.programs for look in watch.looks[1:]}) == 1
    assert [update for update, _ in watch.compiled_at("ppo")] == [1, 1]
    before = len(watch.compiled)
    jax.jit(lambda x: 5 * x)(kept[0])
    assert len(watch.compiled) == before, "nobody listens any more"


@pytest.mark.slow
def test_the_stages_run_to_a_table_and_a_figure(run_here: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, printed = run_here("bench_endurance.py", "debug", "--run-dir", str(tmp_path / "run"))
    assert code == 0, printed
    found = json.loads((tmp_path / "run" / "endurance.json").read_text(encoding="utf-8"))
    assert len(found["ppo"]["looks"]) == 20 and len(found["sft"]["looks"]) >= 20
    assert found["ppo"]["verdict"]["live"] == 1.0 and found["ppo"]["verdict"]["compiled"] == 0
    assert (tmp_path / "run" / "plots" / "endurance.png").exists()
    assert "| PPO | 20 |" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")

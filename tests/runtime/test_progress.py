"""Progress in a log file: the first line at once, then one now and then, and always the last."""

import pytest

from rlhf_jax.runtime import progress


def test_the_first_numbers_are_shown_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Progress("ppo", 0, 40) as shown:
        for step, moment in ((1, 110.0), (2, 112.0), (3, 114.0), (13, 134.0), (14, 136.0), (40, 140.0)):
            now[0] = moment
            shown.show(step, {"loss": 0.5, "skipped": 0.0})
    # Twelve steps since the first took 24 s, and 27 are left.
    assert capsys.readouterr().err.splitlines() == [
        "ppo: 1/40, loss 0.5",
        "ppo: 13/40, 54 s left, loss 0.5",
        "ppo: 40/40, loss 0.5",
    ]

"""A prior that is learnt on real dialogues, with the judge of people's satisfaction beside it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.reporting.run_report import read_results
from rlhf_jax.runtime.files import read_npz


@pytest.mark.slow
def test_greedy_replies_are_judged_and_a_judge_may_come_later(
    run_here: Callable[..., tuple[int, str]], data_dir: Path, tmp_path: Path
) -> None:
    policy, out = tmp_path / "policy", tmp_path / "prior"
    data = ("--data.source", "redial", "--data.dir", str(data_dir / "redial"), "--data.max-dialogues", "60")
    code, output = run_here("ppo_redial.py", "debug", "--run-dir", str(policy), "--trackers", *data)
    assert code == 0, output
    options = ("--prior.updates", "5", "--prior.held-out", "0", "--assess.text-turns", "40")
    command = ("align_prior.py", str(policy), "--run-dir", str(out), *options)
    code, output = run_here(*command)
    assert code == 0, output
    unjudged = {one.name: one for one in read_results(out)}
    assert not any(name.endswith("/judge") for name in unjudged)
    before = {path: path.stat().st_mtime_ns for path in (out / "seed-0" / "assessments").glob("*.npz")}
    judged = ("--judge-data", str(data_dir), "--runs", str(tmp_path))
    code, output = run_here(*command, *judged)
    assert code == 0, output
    # What was measured before stands, to the bit and unmeasured again.
    assert {path: path.stat().st_mtime_ns for path in before} == before
    found = {one.name: one for one in read_results(out)}
    assert {name: found[name] for name in unjudged} == unjudged
    scores = {
        name: read_npz(out / "seed-0" / "assessments" / f"{name}-judged.npz")["scores"] for name in ("sft", "grpo")
    }
    for name, values in scores.items():
        assert len(values) == 40 and ((values > 1) & (values < 5)).all() and np.ptp(values) > 0
        assert found[f"{name}/judge"].value == pytest.approx(values.mean())
    difference = found["grpo-sft/judge"]
    assert difference.is_difference and difference.split == found["grpo-sft/bleu4"].split
    assert difference.value == pytest.approx((scores["grpo"] - scores["sft"]).mean())
    assert "judge" in (out / "report.md").read_text()
    # What was judged stays in the results where nobody is asked again, and another judge is refused.
    code, output = run_here(*command)
    assert code == 0 and {one.name: one for one in read_results(out)} == found
    facts = json.loads((out / "config.json").read_text())
    facts["judge"]["version"] -= 1
    facts.pop("crc32", None)
    (out / "config.json").write_text(json.dumps(facts))
    code, output = run_here(*command, *judged)
    assert code == 1 and "judge" in output and "Traceback" not in output
    (out / "seed-0" / "assessments" / "sft-judged.npz").write_bytes(b"")
    code, output = run_here(*command)
    assert code == 1 and "sft-judged.npz" in output and "Traceback" not in output

"""The preset `debug` of SMTPO's ablation: from nothing to a report, repeated without work, continued to the same bytes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_jax.reporting.run_report import read_results

SCRIPT = "ablate_smtpo.py"
VARIANTS = ("sft", "semantic_view", "scored_by_trainer", "iterated")


@pytest.mark.slow
def test_shared_stages_are_trained_once_and_what_is_lost_is_made_again(
    run_here: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    run, own = tmp_path / "run", tmp_path / "run" / "seed-0"
    arguments = ("debug", "--run-dir", str(run), "--variants", *VARIANTS)
    code, output = run_here(SCRIPT, *arguments)
    assert code == 0, output
    found = {(one.protocol, one.name): one for one in read_results(run)}
    for protocol in ("scoring-seeker", "closed-loop"):
        for system in ("smtpo", *VARIANTS, *(f"{name}-smtpo" for name in VARIANTS)):
            assert found[protocol, f"{system}/success@2"].seeds == (0,)
    # One imitation and one seeker of each kind; no language seeker, for no variant asked for it.
    learnt = {path.name for path in (own / "checkpoints").iterdir()}
    assert learnt == {
        *("sft", "retriever", "reasoning", "simulator-training", "simulator-scoring"),
        *("sft-simulator", "sft-simulator-scoring"),
        *("multi_turn-smtpo", "multi_turn-scored_by_trainer"),
        *("value-iterated-0", "multi_turn-iterated-0", "value-iterated-1", "multi_turn-iterated-1"),
    }
    view = {path.name for path in (own / "semantic" / "checkpoints").iterdir()}
    assert view == {"retriever", "reasoning", "multi_turn-semantic_view"}
    before = (run / "results.json").read_bytes()
    code, output = run_here(SCRIPT, *arguments)
    assert code == 0 and "seed 0 is done" in output and "conversations:" not in output
    # As a kill leaves it: two variants are still to be trained, and one to be measured.
    (own / "done.json").unlink()
    shutil.rmtree(own / "checkpoints" / "multi_turn-scored_by_trainer")
    shutil.rmtree(own / "semantic" / "checkpoints" / "multi_turn-semantic_view")
    for name in VARIANTS:
        (own / "conversations" / f"{name}-scoring-seeker.npz").unlink()
    code, output = run_here(SCRIPT, *arguments)
    assert code == 0 and "multi_turn-scored_by_trainer: starts" in output and "simulator-scoring: starts" not in output
    assert (run / "results.json").read_bytes() == before
    code, output = run_here(SCRIPT, "debug", "--run-dir", str(run), "--variants", "sft")
    assert code == 1 and "belongs to a run of another configuration" in output and "Traceback" not in output

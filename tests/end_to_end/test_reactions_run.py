"""`ppo_redial.py --reactions`: after PPO, users' reactions pay a policy of their own, whom people can talk with."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppo_redial
from rlhf_jax.assessment.conversation import Conversation
from rlhf_jax.assessment.finished_run import open_finished, stage_policy
from rlhf_jax.assessment.reply_tokens import comparisons
from rlhf_jax.evaluation.results import Sides
from rlhf_jax.parallel.processes import ProcessConfig
from rlhf_jax.reporting import verdict
from rlhf_jax.reporting.run_report import read_results
from rlhf_jax.runtime.files import RunError
from rlhf_jax.stages.item_prior import PriorConfig

SMALL = ("--sft.epochs", "1", "--align.updates", "1", "--align.evaluations", "1", "--assess.users", "8")


@pytest.mark.slow
def test_the_verdict_is_about_greedy_replies_without_repeats_and_the_policy_speaks(
    run_here: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = ("ppo_redial.py", "debug", "--run-dir", str(folder), "--reactions", "--trackers", *SMALL)
    code, output = run_here(*command, "--live.rounds", "1")
    assert code == 0, output
    run, results = open_finished(folder), read_results(folder)
    assert run.stages == ["sft", "ppo", "reactions"] == list(run.expected)
    assert verdict.compared(results) == [("world", Sides("reactions", "sft_filtered")), ("world", Sides("ppo", "sft"))]
    assert "GRPO on users' reactions against imitation without repeats on world" in output
    assert "PPO against imitation (SFT) on world" in output
    names = {one.name for one in results}
    assert {"sft_filtered/mean_utility", "reactions/mean_utility", "reactions-sft/mean_utility"} <= names
    # What the reward model knows of items: on the validation split, and what users say to its first choice.
    assert {"reward/matched_auc", "reward-policy/hr@5", "choice_reward/mean_utility"} <= names
    first = {one.name: one.value for one in results if one.protocol == "closed-loop"}
    assert first["choice_policy/mean_length"] == first["choice_reward/mean_length"] == 0.0
    # The users of round 1 answered the policy of round 0; both rounds are files.
    assert sorted(path.name for path in (folder / "seed-0").iterdir()) == [
        "live-1.jsonl",
        "round-0.json",
        "round-1.json",
    ]
    # The trunk is imitation's, the prior reads recommenders, what people ask for, and the standing of items.
    policies = {stage: stage_policy(run, stage) for stage in run.stages}
    jax.tree.map(np.testing.assert_array_equal, policies["reactions"]["trunk"], policies["sft"]["trunk"])
    assert run.scorer is not None and run.scorer.names[-2:] == ("standing", "named")
    prior = policies["reactions"]["prior"]
    assert prior["scores"].shape == (len(run.scorer.names),) and prior["manners"].shape == (3,)
    turns = {
        stage: Conversation(run, policy, greedy=True).turn("A comedy, please", 5) for stage, policy in policies.items()
    }
    # What a person says reaches the scores: with a price on naming again, what he named is not suggested.
    title = turns["reactions"].top[0][0]
    price = {"prior": prior | {"scores": jnp.asarray(prior["scores"]).at[-1].set(1e6)}}
    again = Conversation(run, policies["reactions"] | price, greedy=True).turn(f"I have seen {title}", 40)
    assert again.recognised == (title,) and dict(again.top)[title] == 0.0
    assert comparisons(run.stages)["reactions"] == ("reactions", "sft")
    code, output = run_here("replies.py", str(folder), "--out", str(tmp_path / "page.html"), "--prompts", "2")
    assert (code, output) == (0, f"2 prompts, sft, ppo, reactions: {tmp_path / 'page.html'}\n")
    # The same command again measures nothing, and says the same.
    made = [folder / "reward_choice.json", *(folder / "assessments").iterdir(), *(folder / "seed-0").iterdir()]
    before = (folder / "results.json").read_bytes(), [path.stat().st_mtime_ns for path in made]
    code, output = run_here(*command, "--live.rounds", "1")
    assert code == 0 and "round 1 was done before" in output
    assert ((folder / "results.json").read_bytes(), [path.stat().st_mtime_ns for path in made]) == before
    # A round that is not what was written is named.
    (folder / "seed-0" / "round-1.json").write_text('{"reward": {}, "prior": {}, "manners": {}, "facts": {}}')
    with pytest.raises(RunError, match=r"round-1.json holds no round of these scores and items"):
        open_finished(folder)


def test_options_that_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    debug = ppo_redial.PRESETS["debug"][1]
    with pytest.raises(ValueError, match=r"leave out --prior.learner grpo, or --reactions"):
        dataclasses.replace(debug, reactions=True, prior=PriorConfig(learner="grpo"))
    live = dataclasses.replace(debug.live, rounds=2)
    with pytest.raises(ValueError, match=r"--live.rounds 2: users who answer live are in the simulated world alone"):
        dataclasses.replace(
            debug, reactions=True, live=live, data=dataclasses.replace(debug.data, source="redial", dir=Path("x"))
        )
    with pytest.raises(ValueError, match=r"--reactions reads the whole log"):
        dataclasses.replace(debug, reactions=True, data=dataclasses.replace(debug.data, store=Path("store")))
    with pytest.raises(ValueError, match=r"--reactions learns in one process"):
        dataclasses.replace(debug, reactions=True, processes=ProcessConfig(coordinator="localhost:1", count=2))
    with pytest.raises(SystemExit):
        ppo_redial.command_line(["debug", "--live.replies.group-size", "4"])
    assert "--live.replies.group-size 4 is not read: there are no --reactions" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        ppo_redial.command_line(["debug", "--live.rounds", "2"])
    assert "--live.rounds 2 is not read: there are no --reactions" in capsys.readouterr().err

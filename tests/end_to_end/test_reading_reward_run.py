"""`--reward.reads-policy`: the reward model reads what imitation says of the listed items, in training and wherever it pays."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from rlhf_jax.assessment.finished_run import open_finished, stage_policy, stage_proxy
from rlhf_jax.decoding import suggested
from rlhf_jax.feedback.weak_labels import LabelTable
from rlhf_jax.keys import stream_key
from rlhf_jax.learners.reward_model import reading
from rlhf_jax.runtime.files import read_npz
from rlhf_jax.runtime.stage import stage_arrays
from rlhf_jax.stages.contexts import Windows

SMALL = ("--sft.epochs", "1", "--align.updates", "2", "--align.evaluations", "1", "--assess.users", "8")


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["none", "likelihood"])
def test_a_run_whose_reward_reads_imitation(
    learner: str, run_here: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = ("--reward.reads-policy", "--reward.gate", "warn", "--trackers", *SMALL)
    if learner != "none":
        options += ("--prior.learner", learner, "--prior.parts", "popularity", "co_mention")
    code, output = run_here("ppo_redial.py", "debug", "--run-dir", str(folder), *options)
    assert code == 0, output
    run = open_finished(folder)
    proxy, sft = stage_proxy(run), stage_policy(run, "sft")["trunk"]
    assert proxy is not None
    # What is read is imitation with its prior, frozen; it is stored once, with imitation.
    stored = stage_arrays(folder, "reward_model")
    assert suggested.NAME not in stored["params"]
    read = proxy.model[suggested.NAME]
    assert set(read) == ({"trunk"} if learner == "none" else {"trunk", "prior"})
    # Its weights begin with the least-squares fit of what was counted once and kept.
    kept = read_npz(folder / "labels" / "read-train.npz")
    table = LabelTable.load(folder / "labels" / "train.npz")
    labels, there = table.z[kept["rows"]], table.mask[kept["rows"]]
    fitted = np.asarray(reading({"reward": {}}, kept["numbers"], labels, there)["reward"]["read"])
    assert np.abs(fitted[:2]).max() > 0.01
    # In these few steps they have not gone far.
    for tree in (stored["params"], stored["average"]):
        np.testing.assert_allclose(tree["reward"]["read"], fitted, atol=0.02)
    # Items' rows are imitation's to the bit, words' rows have moved.
    items = slice(run.vocab.first_item, run.vocab.first_item + run.vocab.n_items)
    for tree in (stored["params"], stored["average"]):
        table = np.asarray(tree["trunk"]["wte"])
        np.testing.assert_array_equal(table[items], np.asarray(sft["wte"])[items])
        assert np.abs(table[: items.start] - np.asarray(sft["wte"])[: items.start]).max() > 1e-5
    # A run that is read back scores replies as they were scored while it ran.
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    logged = [line["scores"] for line in lines if line["stage"] == "ppo"][-4:]
    whole = Windows(run.vocab, run.corpus.validation, run.data, run.scorer)
    turns = whole.turns()
    prompts = whole.batch([turns[place] for place in np.linspace(0, len(turns) - 1, 4).astype(int)])
    key = stream_key(jax.random.key(0), "samples", 0)
    rollout = jax.jit(run.agent.sample)(stage_policy(run, "ppo"), prompts, key)
    scores = np.asarray(jax.jit(run.agent.score)(proxy.model, rollout))
    for entry, row in zip(logged, scores, strict=True):
        np.testing.assert_allclose([entry[name] for name in proxy.names], row, atol=1e-3)

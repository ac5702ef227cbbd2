"""`align_prior.py --reads-retriever`: a trained retriever is one more part of what the prior reads, and ranks alone beside it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import align_prior
from rlhf_jax.assessment.finished_run import open_finished
from rlhf_jax.data.windows import ranking_rows
from rlhf_jax.recommenders import mixture
from rlhf_jax.recommenders.contexts import row_contexts
from rlhf_jax.reporting.run_report import read_results
from rlhf_jax.runtime.run import open_run
from rlhf_jax.stages import item_prior
from rlhf_jax.stages.item_prior import PriorConfig
from rlhf_jax.stages.setup import Setup
from rlhf_jax.stages.smtpo.recommender import add_retriever
from rlhf_jax.stages.smtpo.retriever import RetrieverConfig

TOWERS = {
    "semantic": 8,
    "collaborative": 4,
    "width": 8,
    "n_head": 2,
    "epochs": 1,
    "batch_size": 16,
    "hard_negatives": 4,
    "uniform_negatives": 8,
    "warmup_steps": 2,
    "candidates": 8,
}


@pytest.mark.slow
def test_a_retriever_is_read_and_ranks_alone(run_here: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    policy, out = tmp_path / "policy", tmp_path / "prior"
    small = ("--align.updates", "1", "--align.evaluations", "1", "--assess.users", "4", "--assess.text-turns", "4")
    code, output = run_here("ppo_redial.py", "debug", "--run-dir", str(policy), "--trackers", *small)
    assert code == 0, output
    sizes = [part for name, size in TOWERS.items() for part in (f"--retriever.{name.replace('_', '-')}", str(size))]
    options = (
        "--prior.updates",
        "20",
        "--prior.held-out",
        "0",
        "--assess.text-turns",
        "4",
        "--reads-retriever",
        *sizes,
    )
    command = ("align_prior.py", str(policy), "--run-dir", str(out), *options)
    code, output = run_here(*command)
    assert code == 0, output
    learnt = json.loads((out / "weights.json").read_text())["seed 0"]
    for fitted in learnt.values():
        assert list(fitted["weights"]) == ["policy", *mixture.WEIGHTS, "towers", "named"]
        assert fitted["weights"]["towers"] != 0
    results = {(r.system, r.metric, r.protocol): r for r in read_results(out)}
    assert {"grpo-retriever", "retriever-mixture"} <= {system for system, *_ in results}
    # By hand: the retriever as it is stored, its weighted sum, what was named left out, ties against it.
    finished = open_finished(policy)
    setup = Setup(finished.data, finished.corpus, finished.vocab, finished.agent, 0)
    config = RetrieverConfig(**TOWERS)  # type: ignore[arg-type]
    facts = {"retriever": align_prior.as_json(config), "held_out": 0.0, "seed": 0}
    with open_run(out / "retriever-0", facts, trackers=(), wait=True) as own:
        retrieval = add_retriever(own, setup, config)[1]
    rows = list(ranking_rows(finished.corpus.test))
    scores = retrieval.recalled(row_contexts(rows, retrieval.scorer.catalogue))
    column = {item: place for place, item in enumerate(finished.vocab.item_ids)}
    hits = []
    for row, score in zip(rows, scores, strict=True):
        left = [column[item] for item in column if item not in row.mentioned]
        for gold in row.fresh_gold:
            hits.append(np.sum(score[left] >= score[column[gold]] - 1e-6) <= 5)
    assert results["retriever", "hr@5", "fresh"].value == pytest.approx(np.mean(hits))
    # The mixture is of closed forms, whatever else the prior reads.
    scorer = item_prior.with_scorer(setup, PriorConfig(learner="grpo")).scorer
    assert scorer is not None
    plain = mixture.weighted(
        np.array(list(mixture.WEIGHTS.values()), np.float32),
        np.sinh(scorer.item_scores(row_contexts(rows, scorer.catalogue))[:, :-1]),
    )
    places = [
        np.sum(score >= score[column[gold]] - 1e-5) <= 5
        for row, score in zip(rows, plain, strict=True)
        for gold in row.fresh_gold
    ]
    assert results["mixture", "hr@5", "fresh"].value == pytest.approx(np.mean(places))
    # The same command again trains and measures nothing.
    before = {path: path.stat().st_mtime_ns for path in (out / "seed-0" / "assessments").glob("*.npz")}
    code, output = run_here(*command)
    assert code == 0 and len(before) == 6, output
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--retriever.hard-negatives", "0"),
            "--retriever.hard-negatives 0 is not read: there is no --reads-retriever",
        ),
        (("--reads-retriever", "--retriever.in-prior"), "--retriever.in-prior is of conversations"),
        (("--reads-retriever", "--prior.parts", "popularity"), "--prior.parts popularity: a retriever stands beside"),
    ],
)
def test_options_that_do_not_go_together(
    options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((ValueError, SystemExit)) as refused:
        align_prior.command_line(["runs/none", *options])
    # Long messages are broken inside a box.
    printed = "".join(capsys.readouterr()).replace("│", " ")
    assert said in " ".join((str(refused.value) + printed).split())

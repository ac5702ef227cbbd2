"""The last line of the box: what was measured becomes `results.json`, `samples.json`, the reports, and a verdict in words."""

from collections.abc import Sequence
from pathlib import Path

from rlhf_jax.assessment import comparison, users
from rlhf_jax.assessment.assess import AssessmentConfig, Systems
from rlhf_jax.evaluation.results import Result, Sides
from rlhf_jax.reporting import verdict
from rlhf_jax.reporting.run_report import write_report, write_results, write_samples
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.stages.setup import Setup


def main_report(
    run: RunDirectory,
    setup: Setup,
    systems: Systems,
    config: AssessmentConfig,
    of_reward: Sequence[Result],
    *,
    pairs: Sequence[Sides] = (),
    by_naming: bool = False,
    notes: Sequence[str] = (),
) -> Path:
    """Writes and prints everything a run ends with, the verdict last; returns the path of `report.md`.

    Args:
      systems: the policies, from the reference to the last, and what they were measured to be worth.
      of_reward: what is known of the reward model: its gate (`reward.results`), and which items it would choose.
      pairs: that are compared; the verdict is about the first, and about the papers' own pair. None: the last policy with
        the first.
      by_naming: also ranks apart the items whose title or people the context names in plain words.
      notes: for the reader, below those about the data.
    """
    name, seed = setup.data.corpus_name, setup.seed
    split = f"{name}/test"
    baselines = comparison.baseline_assessments(setup, config)
    cases = {system: {seed: measured} for system, measured in systems.cases.items()}
    first, further = (pairs[0], pairs[1:]) if pairs else (None, ())
    found = comparison.results(cases, baselines, split=split, compared=first, further=further)
    if by_naming:
        ranked = {system: {seed: measured.ranking} for system, measured in systems.cases.items()}
        rows = comparison.test_rows(setup, config)
        found += comparison.by_naming(ranked, baselines, rows, setup.corpus.items, split=split, compared=first)
    if setup.world_seed is not None:
        found += _yardsticks(setup, config, split)
    found += of_reward
    write_results(run.path, found)
    write_samples(run.path, comparison.conversations(setup, config, systems.policies))
    report = write_report(run.path, title=f"IUF-RLHF on {name}, seed {seed}", notes=[*comparison.notes(setup), *notes])
    print(comparison.summary_table(found))
    print(f"report: {report}")
    print(f"\n{verdict.spoken(found)}\nthe same with figures, for a browser: {report.with_suffix('.html')}")
    return report


def _yardsticks(setup: Setup, config: AssessmentConfig, split: str) -> list[Result]:
    """What the world's own recommenders are worth to the same users."""
    assert setup.world_seed is not None
    measured = users.yardsticks(setup.data.world, setup.world_seed, n_users=config.users, n_turns=config.user_turns)
    return comparison.yardstick_results({setup.seed: measured}, split=split)

"""The runner on scripts of a few lines: seeds side by side, then gathering; failures, data that are not there."""

import dataclasses
import importlib
from pathlib import Path

import pytest

import evidence
from evidence import PLANS, Config, Study
from rlhf_jax.runtime.files import RunError

OPTIONS = """
import argparse, pathlib
parser = argparse.ArgumentParser()
for name in ("--run-dir", "--runs", "--data-dir"):
    parser.add_argument(name, type=pathlib.Path)
parser.add_argument("--seeds", nargs="+")
parser.add_argument("--only-seed")
parser.add_argument("--seed")
parser.add_argument("words", nargs="+")
given = parser.parse_args()
"""
STUDY = """
run, seed = given.run_dir, given.only_seed
run.mkdir(parents=True, exist_ok=True)
if seed is not None:
    assert given.seeds == [seed]
    assert (given.runs / "foundations" / "world-debug" / f"seed-{seed}" / "laid").exists()
    assert not (run / f"seed-{seed}").exists(), "done twice"
    assert not (FAILS and seed == "1"), "this seed fails"
    (run / f"seed-{seed}").touch()
else:
    assert sorted(path.name for path in run.glob("seed-*")) == [f"seed-{one}" for one in given.seeds]
    (run / "report.md").write_text(f"# Toy\\n\\nVerdict: {given.words[0]} was gathered.\\n")
"""
FOUNDATION = """
folder = given.runs / "foundations" / "-".join(given.words) / f"seed-{given.seed}"
folder.mkdir(parents=True)
(folder / "laid").touch()
"""
GOOD = Study("good", "world", 1, (), ("world", "debug"))
BAD = Study("bad", "world", 1, (), ("world", "debug"))
WHOLE = Study("whole", "movies", 1, ("movies",), has_seeds=False, takes_seeds=True, reads="movies")
REAL = Study("real", "redial", 1, ("redial", "uss"))


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    folder = tmp_path / "scripts"
    folder.mkdir()
    for name, fails in (("good", False), ("bad", True)):
        (folder / f"{name}.py").write_text(OPTIONS + STUDY.replace("FAILS", str(fails)))
    (folder / "lay_foundation.py").write_text(OPTIONS + FOUNDATION)
    return folder


def config(tmp_path: Path, **changes: object) -> Config:
    return Config(plan="debug", runs=tmp_path / "runs", data_dir=tmp_path / "data", seeds=(0, 1), workers=2, **changes)  # type: ignore[arg-type]


def test_seeds_then_gathering_then_one_page(tmp_path: Path, scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evidence.main(config(tmp_path), (GOOD, REAL), scripts) == 0
    text = (tmp_path / "runs" / "evidence-debug" / "report.md").read_text()
    assert "- Verdict: world was gathered." in text
    assert f"**real-redial is LEFT OUT: {tmp_path / 'data'} has no redial/, no uss/.**" in text
    said = capsys.readouterr()
    assert said.err.count("real-redial is LEFT OUT") == 2 and "report: " in said.out
    assert "foundation-world-debug-seed-1: done" in said.err
    # What is done is not done again: the scripts would complain.
    assert evidence.main(config(tmp_path), (GOOD,), scripts) == 0


def test_a_seed_is_added_later(tmp_path: Path, scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = dataclasses.replace(config(tmp_path), seeds=(0,))
    assert evidence.main(one, (GOOD,), scripts) == 0
    capsys.readouterr()
    assert evidence.main(config(tmp_path), (GOOD,), scripts) == 0
    said = capsys.readouterr().err
    assert "2 done before" in said  # Foundation and study of seed 0; the study is gathered anew.
    assert "seed-0: starts" not in said and "good-world-seed-1: done" in said and "good-world: done" in said


def test_who_stops_early_has_whole_studies(tmp_path: Path) -> None:
    names = [job.name for job in evidence.jobs_of(PLANS["debug"][:3], config(tmp_path))]
    first, second, third = (study.name for study in PLANS["debug"][:3])
    seeds = ("seed-0", "seed-1")
    assert names == [
        *(f"foundation-world-debug-{seed}" for seed in seeds),
        *(f"{name}{part}" for name in (first, second, third) for part in (*(f"-{seed}" for seed in seeds), "")),
    ]


def test_a_failing_seed_is_named_and_stops_no_other_study(
    tmp_path: Path, scripts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evidence.main(config(tmp_path), (BAD, GOOD), scripts) == 1
    folder = tmp_path / "runs" / "evidence-debug"
    log = folder / "logs" / "bad-world-seed-1.log"
    assert "this seed fails" in log.read_text()
    said = capsys.readouterr().err
    assert f"FAILED bad-world-seed-1: exit code 1, see {log}" in said
    assert "FAILED bad-world: needs bad-world-seed-1, which failed" in said
    text = (folder / "report.md").read_text()
    assert "- Verdict: world was gathered." in text and f"bad-world-seed-1: exit code 1, see {log}" in text
    assert (folder / "bad-world" / "seed-0").exists()


def test_a_study_of_one_job_gets_all_seeds_and_its_own_data(tmp_path: Path) -> None:
    """Its command changes with the seeds: what is added later is not taken for done."""
    (job,) = evidence.jobs_of((WHOLE,), config(tmp_path))
    assert job.name == "whole-movies" and job.needs == () and job.expected_seconds == 120
    folder = tmp_path / "runs" / "evidence-debug" / "whole-movies"
    options = ["--seeds", "0", "1", "--data.dir", str(tmp_path / "data" / "movies")]
    assert [*job.command[2:]] == ["movies", "--run-dir", str(folder), *options]
    (more,) = evidence.jobs_of((WHOLE,), dataclasses.replace(config(tmp_path), seeds=(0, 1, 2)))
    assert more.command != job.command
    # A study that gathers its seeds is told of no such option.
    gathered = evidence.jobs_of((REAL,), config(tmp_path))[-1].command
    assert "--data.dir" not in gathered and gathered.count("--seeds") == 1
    kept, left_out = evidence.with_data((WHOLE,), tmp_path / "data")
    assert kept == () and left_out == [f"whole-movies is LEFT OUT: {tmp_path / 'data'} has no movies/"]


def test_a_study_that_reads_foundations_waits_for_those_of_all_seeds(tmp_path: Path) -> None:
    live = evidence.LIVE._replace(foundation=("world", "debug"))
    *laid, own = evidence.jobs_of((live,), config(tmp_path))
    assert [job.name for job in laid] == [f"foundation-world-debug-seed-{seed}" for seed in (0, 1)] == [*own.needs]
    assert own.expected_seconds == 2 * 60 * live.minutes
    folders = [str(tmp_path / "runs" / "foundations" / "world-debug" / f"seed-{seed}") for seed in (0, 1)]
    assert [*own.command[2:4]] == folders and "--seeds" not in own.command and "--runs" not in own.command
    # A foundation that two studies share is laid once.
    names = [job.name for job in evidence.jobs_of((GOOD, live), config(tmp_path))]
    assert len(names) == len(set(names)) == 2 + 3 + 1


def test_the_full_plan_holds_every_paper() -> None:
    scripts = {study.script for study in PLANS["evidence"]}
    assert {"ablate_reward", "align_prior", "smtpo_redial", "ablate_smtpo", "dpo4rec_movielens"} <= scripts
    assert scripts <= {study.script for study in PLANS["debug"]}, "every study is tried in miniature"


def test_without_data_nothing_is_pretended(tmp_path: Path, scripts: Path) -> None:
    with pytest.raises(RunError, match=f"no study can be done without data; {tmp_path / 'data'}"):
        evidence.main(config(tmp_path), (REAL,), scripts)
    with pytest.raises(ValueError, match="--seeds"):
        Config(seeds=(1, 1))


@pytest.mark.parametrize("plan", list(PLANS))
def test_plans_name_presets_that_exist_and_what_they_start_from(plan: str, tmp_path: Path) -> None:
    studies = PLANS[plan]
    assert len({study.name for study in studies}) == len(studies) and any(not study.needs for study in studies)
    for study in studies:
        script = importlib.import_module(study.script)
        # The very command line that the job gets is one that the script understands.
        chosen = script.command_line([*evidence.study_command(study, config(tmp_path))[2:]])
        assert chosen.run_dir == tmp_path / "runs" / "evidence-debug" / study.name
        if study.has_seeds:
            assert chosen.seeds == (0, 1) and chosen.data_dir == tmp_path / "data"
        if study.reads_foundations:
            assert study.foundation is not None and not study.has_seeds
            below = [evidence.foundation_folder(tmp_path / "runs", *study.foundation, seed) for seed in (0, 1)]
            assert chosen.policy_runs == tuple(below)
            # The judge's data are not there: nobody judges, and the study is done all the same.
            assert getattr(chosen, "judge_data", None) is None
            continue
        if study.takes_seeds:
            assert chosen.seeds == (0, 1) and not study.has_seeds
        if study.reads is not None:
            assert chosen.data.dir == tmp_path / "data" / study.reads
        if study.foundation is not None:
            assert (chosen.setting, chosen.size) == study.foundation and chosen.runs == tmp_path / "runs"


def test_replies_are_judged_where_the_judge_has_its_data(tmp_path: Path) -> None:
    """The studies of ReDial's prior alone; a foundation of other data has no judge."""
    (tmp_path / "data" / "uss").mkdir(parents=True)
    judged = {}
    for study in PLANS["evidence"]:
        if study.script == "align_prior":
            command = evidence.study_command(study, config(tmp_path))
            chosen = importlib.import_module(study.script).command_line([*command[2:]])
            judged[study.preset] = chosen.judge_data, chosen.runs
    assert judged == {"redial": (tmp_path / "data", tmp_path / "runs"), "opendialkg": (None, Path("runs"))}

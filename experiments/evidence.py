"""All studies, for every seed, over the cores or devices at hand: the whole evidence with one command.

    python experiments/evidence.py --data-dir DIR            # full sizes; two CPU cores, an estimated five hours a seed
    python experiments/evidence.py quick --data-dir DIR      # smaller settings and fewer studies; about 45 minutes
    python experiments/evidence.py quick                     # no data: the simulated worlds alone
    python experiments/evidence.py debug --data-dir DIR      # every study in miniature, for tests

DIR holds `redial/`, `opendialkg/`, `uss/`, `crs-response-ratings/` and `movielens-100k/`; studies whose data are not there are
left out, and the report says so. Foundations come first, then the seeds of all studies, one job a core (or GPU), then each study
gathers its seeds. What is done is not done again: where the run was killed or a job failed, the same command goes on, and
with more `--seeds` it does the new ones.

Writes `report.md` with the verdicts, tables and figures of all studies into `RUNS/evidence` (`evidence-quick`,
`evidence-debug`), beside `logs/` with every job's output. Exit code 1: a job failed, the others went on; 75: asked to stop.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro

from command_line import options, start
from rlhf_jax.ranges import Range, Seed, check_numbers
from rlhf_jax.runtime.files import RunError, notice
from rlhf_jax.runtime.interrupts import INTERRUPTED
from rlhf_jax.runtime.job_slots import find_slots
from rlhf_jax.runtime.jobs import Job, Outcome, run_jobs
from rlhf_jax.runtime.run import claim
from studies.evidence_page import Chapter, write_evidence
from studies.settings import Setting, Size, foundation_folder

HERE = Path(__file__).resolve().parent


class Study(NamedTuple):
    """One preset of a script."""

    script: str
    preset: str
    minutes: float
    """A guess of one seed's time on one core; only the remaining time rests on it."""
    needs: tuple[str, ...] = ()
    """Folders of the data directory."""
    foundation: tuple[Setting, Size] | None = None
    """What it starts from, where it shares that with other studies."""
    has_seeds: bool = True
    """Whether a job does one seed and another gathers them; else one job does everything."""
    takes_seeds: bool = False
    """Whether the one job does all seeds, one after the other."""
    reads: str | None = None
    """Where the one job finds its data, below the data directory; None: it reads none."""
    options: tuple[str, ...] = ()
    """What is set on top of the preset."""
    reads_foundations: bool = False
    """Whether the one job is told the folders of all seeds' foundations, in the place of a preset, and reads them."""
    judged: bool = False
    """Whether replies are judged where the judge of satisfaction finds its data, `uss/` beside `redial/`."""

    @property
    def name(self) -> str:
        """Names jobs, folders and the chapter of the report."""
        return f"{self.script}-{self.preset}"


def _study(
    size: Literal["full", "quick"],
    script: str,
    setting: Setting,
    minutes: float,
    needs: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
) -> Study:
    """A study whose preset is named after its setting."""
    preset = setting if size == "full" else f"{setting}-quick"
    own = script == "cross_domain"  # It trains on one domain at a time: no other study has such foundations.
    return Study(script, preset, minutes, needs, None if own else (setting, size), options=options)


FULL_AND_SINGLES = ("full", "engagement", "relevance", "sentiment")
_RATED = ("redial", "uss", "crs-response-ratings")
SIGNALS = Study("validate_signals", "signals", 3, _RATED, has_seeds=False, reads="")
SMTPO = Study(
    "smtpo_redial",
    "world",
    48,
    options=("--single-tasks", "language", "attribute", "target"),
    has_seeds=False,
    takes_seeds=True,
)
DPO4REC = Study(
    "dpo4rec_movielens",
    "movielens",
    30,
    ("movielens-100k",),
    options=("--networks", "dlcm", "prm"),
    has_seeds=False,
    takes_seeds=True,
    reads="movielens-100k",
)
LIVE = Study(
    "live_feedback",
    "world",
    12,
    foundation=("world", "full"),
    has_seeds=False,
    takes_seeds=True,
    reads_foundations=True,
)
PRIOR = Study(
    "align_prior",
    "redial",
    6,
    ("redial",),
    foundation=("redial", "full"),
    options=("--reads-retriever",),
    has_seeds=False,
    takes_seeds=True,
    reads_foundations=True,
    judged=True,
)
# Long ones first, so that no core waits alone.
PLANS: dict[str, tuple[Study, ...]] = {
    "evidence": (
        # All seeds in one job: the longest.
        SMTPO._replace(preset="redial", minutes=75, needs=("redial",), reads="redial", options=()),
        SMTPO,
        DPO4REC,
        DPO4REC._replace(preset="movielens-prm", options=()),
        Study("ablate_smtpo", "world", 100),
        _study("full", "ablate_reward", "redial", 37, ("redial", "uss")),
        _study("full", "cross_domain", "opendialkg", 38, ("opendialkg",)),
        _study("full", "reward_hacking", "hackable", 32),
        _study("full", "sweep_window", "world", 30, options=("--windows", "2", "6", "10")),
        _study("full", "ablate_reward", "world", 25),
        _study("full", "sweep_window", "redial", 17, ("redial",), ("--windows", "2", "6", "10")),
        _study("full", "reward_hacking", "redial", 27, ("redial", "uss")),
        _study("full", "validate_reward", "redial", 8, ("redial", "uss")),
        _study("full", "validate_reward", "world", 7),
        _study("full", "ablate_reward", "opendialkg", 4, ("opendialkg",)),
        LIVE,
        PRIOR,
        PRIOR._replace(
            preset="opendialkg",
            minutes=3,
            needs=("opendialkg",),
            foundation=("opendialkg", "full"),
            judged=False,
            options=(),
        ),
        SIGNALS,
    ),
    # What the paper's first claims rest on, with no more variants than they need: imitation, full reward and single signals;
    # a KL price and none. Window, transfer, OpenDialKG and reward models have quick presets to be run by themselves.
    "quick": (
        _study("quick", "ablate_reward", "redial", 6, ("redial", "uss"), ("--variants", *FULL_AND_SINGLES)),
        _study("quick", "ablate_reward", "world", 5, options=("--variants", *FULL_AND_SINGLES)),
        _study("quick", "reward_hacking", "hackable", 4, options=("--length-control", "False")),
        SIGNALS,
    ),
    "debug": (
        Study("ablate_reward", "debug", 1, (), ("world", "debug")),
        Study("sweep_window", "debug", 1, (), ("world", "debug")),
        Study("reward_hacking", "debug", 1, (), ("world", "debug")),
        Study("validate_reward", "debug", 1, (), ("world", "debug")),
        Study("cross_domain", "debug", 1, ("opendialkg",)),
        Study("validate_signals", "debug", 1, _RATED, has_seeds=False, reads=""),
        Study("ablate_smtpo", "debug", 3),
        Study("smtpo_redial", "debug", 2, has_seeds=False, takes_seeds=True),
        Study("dpo4rec_movielens", "debug", 1, has_seeds=False, takes_seeds=True),
        PRIOR._replace(
            preset="debug",
            minutes=1,
            needs=(),
            foundation=("world", "debug"),
            judged=False,
            options=("--prior.updates", "20", "--prior.held-out", "0", "--assess.text-turns", "4"),
        ),
        LIVE._replace(
            minutes=2,
            foundation=("world", "debug"),
            options=(
                *("--live.rounds", "1", "--live.users", "8", "--live.turns", "2", "--live.batch-size", "16"),
                *("--live.updates", "4", "--live.manners-updates", "2"),
                *("--assess.users", "8", "--assess.user-turns", "2", "--assess.text-turns", "4"),
            ),
        ),
    ),
}
FOUNDATION_MINUTES: dict[Size, dict[Setting, float]] = {
    "full": {"redial": 35.0, "opendialkg": 13.0, "world": 15.0, "hackable": 14.0},
    "quick": {"redial": 9.0, "opendialkg": 4.0, "world": 3.0, "hackable": 3.0},
    "debug": dict.fromkeys(("redial", "opendialkg", "world", "hackable"), 0.5),
}
"""Guesses like those of the studies."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Which studies, where."""

    plan: Annotated[Literal["evidence", "quick", "debug"], tyro.conf.Positional] = "evidence"
    """Sizes of the studies."""
    runs: Path = Path("runs")
    """Where foundations, studies and the report go."""
    data_dir: Path = Path("data")
    """Holds `redial/`, `opendialkg/`, `uss/`, `crs-response-ratings/` and `movielens-100k/`."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Of every study; a claim needs three."""
    workers: Annotated[int, Range("[1, 1_024]")] | None = None
    """Jobs at a time; None: one a core, or one a GPU."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"--seeds {self.seeds}: at least one is needed, each once")

    @property
    def folder(self) -> Path:
        """Where the report, the logs and the studies' run directories go."""
        return self.runs / ("evidence" if self.plan == "evidence" else f"evidence-{self.plan}")


def jobs_of(studies: tuple[Study, ...], config: Config, scripts: Path = HERE) -> list[Job]:
    """Study by study its foundations, its seeds and the call that gathers them: whoever stops early has whole studies."""
    foundations: set[str] = set()
    jobs: list[Job] = []
    for study in studies:
        command = study_command(study, config, scripts)
        own = []
        belows = {seed: _foundation(study, seed, config, scripts) for seed in config.seeds}
        for below in belows.values():
            if below is not None and below.name not in foundations:
                foundations.add(below.name)
                jobs.append(below)
        for seed in config.seeds if study.has_seeds else ():
            below = belows[seed]
            job = Job(
                name=f"{study.name}-seed-{seed}",
                # Of the other seeds it knows nothing, so that seeds can be added later without doing this one again.
                command=(*study_command(study, config, scripts, (seed,)), "--only-seed", str(seed)),
                needs=() if below is None else (below.name,),
                kind=study.name,
                expected_seconds=60.0 * study.minutes,
                makes=config.folder / study.name / f"seed-{seed}",
            )
            own.append(job)
        jobs += own
        lone = 60.0 * study.minutes * (len(config.seeds) if study.takes_seeds else 1) if not study.has_seeds else 60.0
        needs = tuple(job.name for job in own)
        if study.reads_foundations:
            needs = tuple(below.name for below in belows.values() if below is not None)
        page = config.folder / study.name / "report.md"
        jobs.append(Job(study.name, command, needs, f"{study.name}: gather", lone, makes=page))
    return jobs


def study_command(
    study: Study, config: Config, scripts: Path = HERE, seeds: tuple[int, ...] | None = None
) -> tuple[str, ...]:
    """The command line that makes a whole study; `seeds` instead of all."""
    told = [study.preset]
    if study.reads_foundations and study.foundation is not None:
        told = [str(foundation_folder(config.runs, *study.foundation, seed)) for seed in config.seeds]
    command = [sys.executable, str(scripts / f"{study.script}.py"), *told]
    command += ["--run-dir", str(config.folder / study.name)]
    if study.has_seeds:
        command += ["--data-dir", str(config.data_dir), "--seeds", *map(str, config.seeds if seeds is None else seeds)]
    if study.takes_seeds and not study.reads_foundations:
        command += ["--seeds", *map(str, config.seeds)]
    if study.reads is not None:
        command += ["--data.dir", str(config.data_dir / study.reads)]
    if study.judged and (config.data_dir / "uss").is_dir():
        command += ["--judge-data", str(config.data_dir), "--runs", str(config.runs)]
    if study.foundation is not None and not study.reads_foundations:
        command += ["--runs", str(config.runs)]
    return (*command, *study.options)


def _foundation(study: Study, seed: int, config: Config, scripts: Path) -> Job | None:
    if study.foundation is None:
        return None
    setting, size = study.foundation
    folder = foundation_folder(config.runs, setting, size, seed)
    options = ("--seed", str(seed), "--runs", str(config.runs), "--data-dir", str(config.data_dir))
    return Job(
        name=f"foundation-{folder.parent.name}-{folder.name}",
        command=(sys.executable, str(scripts / "lay_foundation.py"), setting, size, *options),
        kind=f"foundation {setting} {size}",
        expected_seconds=60.0 * FOUNDATION_MINUTES[size][setting],
        makes=folder,
    )


def with_data(studies: tuple[Study, ...], data_dir: Path) -> tuple[tuple[Study, ...], list[str]]:
    """Studies whose data are there, and a sentence for each that is left out."""
    kept, left_out = [], []
    for study in studies:
        missing = [name for name in study.needs if not (data_dir / name).is_dir()]
        if missing:
            left_out.append(f"{study.name} is LEFT OUT: {data_dir} has no {', no '.join(f'{n}/' for n in missing)}")
        else:
            kept.append(study)
    return tuple(kept), left_out


def report(studies: tuple[Study, ...], left_out: list[str], outcome: Outcome, config: Config) -> Path:
    """Everything that the studies have written so far, on one page."""
    chapters = []
    for study in studies:
        names = [job.name for job in jobs_of((study,), config)]
        failed = [f"{name}: {outcome.failed[name]}" for name in names if name in outcome.failed]
        open_ones = [name for name in names if name not in outcome.seconds and name not in outcome.failed]
        state = "; ".join(failed) or (f"not done: {', '.join(open_ones)}" if open_ones else "done")
        command = ("python", f"experiments/{study.script}.py", *study_command(study, config)[2:])
        chapters.append(Chapter(study.name, shlex.join(command), config.folder / study.name, state))
    notes = [
        (
            f"Plan `{config.plan}`, seeds {', '.join(map(str, config.seeds))}. Every study's own `report.md` and "
            "`results.json` are in its run directory; a verdict is repeated here as the study's report states it."
        ),
        *(f"**{line}.**" for line in left_out),
    ]
    return write_evidence(config.folder, chapters, notes=notes)


def main(config: Config, studies: tuple[Study, ...] | None = None, scripts: Path = HERE) -> int:
    """1 what can be done here, 2 jobs, 3 report. Returns the exit code."""
    chosen, left_out = with_data(PLANS[config.plan] if studies is None else studies, config.data_dir)
    for line in left_out:
        notice(line)
    if left_out:
        notice(
            "--data-dir DIR names the folder that holds redial/, opendialkg/, uss/, crs-response-ratings/ and movielens-100k/"
        )
    if not chosen:
        raise RunError(f"no study can be done without data; {config.data_dir} has none")
    slots = find_slots(config.workers)
    # One cache of compiled programs for all: what one seed has compiled, the next one need not.
    name = "JAX_COMPILATION_CACHE_DIR"
    cache = {name: os.environ.get(name) or str((config.runs / "jax_cache").resolve())}
    claim(config.folder, Path(__file__).name, known_by="jobs")
    outcome = run_jobs(jobs_of(chosen, config, scripts), slots, config.folder, environment=cache)
    page = report(chosen, left_out, outcome, config)
    for name, reason in outcome.failed.items():
        notice(f"FAILED {name}: {reason}")
    for line in left_out:
        notice(line)
    print(f"report: {page}")
    if outcome.interrupted:
        notice("stopped; the same command goes on")
        return INTERRUPTED
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(start(main, options(Config, __doc__)))

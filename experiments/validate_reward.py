"""Does the reward model know what it is paid to know, and does that have to do with satisfaction?

Paper: IUF-RLHF, arXiv:2508.05289, which asks for a held-out Pearson correlation above 0.6 before PPO. Measured for the
reward models R_φ of a setting's foundations, per seed:

    held-out correlation with the weak labels, per component and of their sum, on seen and unseen items; calibration;
    learning curve over the number of labelled turns; ReDial: rank correlation with USS's satisfaction, and what the judge
    that other studies use is worth; simulated world: correlation with the true utility.

    python experiments/validate_reward.py world-quick                   # 3 seeds; simulated world
    python experiments/validate_reward.py redial-quick --data-dir DIR   # 3 seeds; DIR holds redial/ and uss/
    python experiments/validate_reward.py world                         # full size
    python experiments/validate_reward.py redial --data-dir DIR         # all of ReDial
    python experiments/validate_reward.py debug                         # a minute or two, for tests

Foundations (data, supervised policy, reward models) are laid in `runs/foundations` where they are missing; other studies use
the same ones. Hardware: 2 CPU cores; beyond the foundation two or three minutes a seed for the quick sizes, six to
eight for `world` and `redial`. Writes `results.json`, `report.md` and `plots/{calibration,learning_curve}.{svg,png}`; the same command continues a stopped one.

Expected: docs/results/reward_model_world.md, reward_model_redial.md: three seeds of all four.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from command_line import preset_and_options, start
from rlhf_jax.assessment import satisfaction
from rlhf_jax.evaluation.results import Result
from rlhf_jax.ranges import Range, Replicates, Seed, check_numbers
from rlhf_jax.reporting import gates
from rlhf_jax.reporting.run_report import write_results
from rlhf_jax.runtime.files import notice, write_text
from rlhf_jax.runtime.interrupts import exits_on_signals
from rlhf_jax.runtime.run import claim, enable_compilation_cache, open_run
from studies.common import check_seeds, is_done
from studies.foundation import Sentiment, facts, lay_for
from studies.reward_validation import cases
from studies.reward_validation import measure as reward_study
from studies.reward_validation import report as reward_report
from studies.reward_validation import results as reward_results
from studies.settings import Size, StudySetting, foundation_folder, study_setting


@dataclasses.dataclass(frozen=True)
class Config:
    """The reward models of one setting."""

    run_dir: Path = Path("runs/reward-world")
    """Where a folder per seed, results, tables and figures go."""
    runs: Path = Path("runs")
    """Where foundations lie."""
    setting: Literal["world", "redial"] = "world"
    """Simulated world, or ReDial."""
    size: Size = "full"
    """Of the foundation."""
    data_dir: Path = Path("data")
    """Holds `redial/` and `uss/`; not read for the world."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Of the foundations."""
    only_seed: Seed | None = None
    """Measure this seed alone and write no summary: how `evidence.py` spreads seeds over cores."""
    sentiments: tuple[Sentiment, ...] = ("shift", "level")
    """Reward models by the form of their sentiment labels; the learning curve is that of the first."""
    fractions: tuple[Annotated[float, Range("(0, 1)")], ...] = (1 / 8, 1 / 4, 1 / 2)
    """Shares of the labelled turns for the learning curve; all of them is the foundation's reward model."""
    replicates: Replicates = 500
    """Bootstrap replicates of every interval."""

    def __post_init__(self) -> None:
        check_numbers(self)
        check_seeds(self.seeds, self.only_seed)
        if not self.sentiments:
            raise ValueError("--sentiments must name at least one form of sentiment")
        laid = study_setting(self.setting, self.size, self.data_dir).foundation
        for sentiment in self.sentiments:
            laid.check_sentiment(sentiment, f"--sentiments {sentiment}")
        if list(self.fractions) != sorted(set(self.fractions)):
            raise ValueError(f"--fractions must ascend: got {self.fractions}")

    @property
    def own_seeds(self) -> tuple[int, ...]:
        """The seeds this process measures."""
        return self.seeds if self.only_seed is None else (self.only_seed,)


PRESETS = {
    "world": ("reward models of the simulated world", Config()),
    "redial": ("reward models of ReDial (--data-dir)", Config(run_dir=Path("runs/reward-redial"), setting="redial")),
    "world-quick": ("a smaller world", Config(run_dir=Path("runs/reward-world-quick"), size="quick")),
    "redial-quick": (
        "fewer dialogues and a smaller network (--data-dir)",
        Config(run_dir=Path("runs/reward-redial-quick"), setting="redial", size="quick"),
    ),
    "debug": (
        "one seed in miniature; a minute or two, for tests (--setting redial --data-dir DIR: real dialogues)",
        Config(
            run_dir=Path("runs/debug-reward"), size="debug", seeds=(0,), sentiments=("shift",), fractions=(0.5,),
            replicates=50,
        ),
    ),
}  # fmt: skip


def main(config: Config) -> Path:
    """1 foundation, 2 cases of every seed, 3 the judge, 4 results, 5 tables and figures."""
    claim(config.run_dir, Path(__file__).name)
    enable_compilation_cache(beside=config.run_dir)
    setting = study_setting(config.setting, config.size, config.data_dir)
    with exits_on_signals():
        for seed in config.own_seeds:
            _one_seed(config, setting, seed)  # 1, 2
        # 3. The judge of the other studies, with what it is worth; read from the disk where it was fitted before.
        judge: dict[str, Any] = {}
        if config.setting == "redial":
            _, judge = satisfaction.uss_judge(config.data_dir, config.runs / "judge")
        if config.only_seed is not None:
            return config.run_dir / f"seed-{config.only_seed}"
        # 4. Results over seeds.
        gathered = [
            cases.gather(config.run_dir, form, seeds=config.seeds, n_fractions=len(config.fractions) * (not n))
            for n, form in enumerate(config.sentiments)
        ]
        found: list[Result] = []
        for one in gathered:
            found += reward_results.results(one, source=config.setting, replicates=config.replicates)
        found += satisfaction.results(judge) if judge else []
        write_results(config.run_dir, found)
        # 5. Tables and figures.
        plots = config.run_dir / "plots"
        reward_report.calibration_figure(gathered, plots, same_dialogues=config.setting != "world")
        reward_report.curve_figure(found, gathered[0], plots)
        report = config.run_dir / "report.md"
        turns = [reward_results.curve_turns(runs) for runs in gathered[0].curve]
        text = reward_report.report_text(found, judge, setting=config.setting, size=config.size, turns=turns)
        write_text(report, text)
        print(gates.study_table(found))
        print(f"report: {report}")
        return report


def _one_seed(config: Config, setting: StudySetting, seed: int) -> None:
    """Cases of one seed; nothing is laid where all are stored."""
    measured: dict[str, Any] = {
        "setting": config.setting,
        "size": config.size,
        "seed": seed,
        "sentiments": config.sentiments,
        "fractions": config.fractions,
    }
    folder = foundation_folder(config.runs, config.setting, config.size, seed)
    with open_run(config.run_dir / f"seed-{seed}", measured, trackers=()) as run:
        run.record(**facts(folder, setting.foundation))
        kinds = ("held-out", "truth", "users") if config.setting == "world" else ("held-out", "uss")
        files = reward_study.case_files(sentiments=config.sentiments, fractions=config.fractions, kinds=kinds)
        if is_done(run.path, files):
            notice(f"seed {seed}: measured before")
            return
        foundation = lay_for(run, folder, setting.foundation, seed=seed)
        reward_study.measure(
            run,
            foundation,
            sentiments=config.sentiments,
            fractions=config.fractions,
            assess=setting.assess,
            uss=config.data_dir / "uss" if config.setting == "redial" else None,
        )


def command_line(arguments: list[str]) -> Config:
    """A preset (none means `world`) with options on top."""
    return preset_and_options(PRESETS, arguments, __doc__)


if __name__ == "__main__":
    start(main, command_line)

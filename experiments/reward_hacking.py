"""Where does optimising the proxy stop helping what it stands for, and which logged number says so first?

Paper: IUF-RLHF, arXiv:2508.05289, names failure signatures (KL, entropy, length, repetition, BLEU, sentiment–reward
correlation) and shows no over-optimisation. The form of the curves is that of Gao et al. 2023, arXiv:2210.10760.

    python experiments/reward_hacking.py hackable-quick --evaluations 12     # a world where long replies buy the signals
    python experiments/reward_hacking.py redial-quick --data-dir DIR         # truth: a satisfaction judge fitted on USS
    python experiments/reward_hacking.py world-quick                         # truth: utility of the simulated users
    python experiments/reward_hacking.py hackable                            # full size, three KL coefficients
    python experiments/reward_hacking.py redial --data-dir DIR               # all of ReDial, three KL coefficients
    python experiments/reward_hacking.py debug                               # a minute or two, for tests

DIR holds `redial/` and `uss/`. Each seed starts PPO from the setting's foundation once per KL coefficient and length
control, and stops now and then to measure sampled replies: proxy, truth and √KL of the same replies. Hardware, one CPU core, a seed
without its foundation: `hackable` 35 minutes, `redial` 28, `hackable-quick` 11, `redial-quick` 6. A killed study
continues with the same command. Writes `report.md`, `results.json` and `plots/` into the run directory, and `diagnostics.md` into each seed's.

Expected: docs/results/over_optimisation.md (`hackable-quick`) and satisfaction_on_redial.md (`redial-quick`), three seeds and more; of
the full sizes `hackable` and `redial` one.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from command_line import preset_and_options, start
from rlhf_jax.assessment import satisfaction
from rlhf_jax.assessment.sampled import Against
from rlhf_jax.data.human_ratings import read_uss
from rlhf_jax.ranges import Range, Replicates, Seed, Steps, Weight, check_numbers
from rlhf_jax.reporting import diagnostics, gates
from rlhf_jax.reporting.run_report import write_results
from rlhf_jax.runtime.files import notice, write_json, write_text
from rlhf_jax.runtime.interrupts import exits_on_signals
from rlhf_jax.runtime.run import claim, enable_compilation_cache, open_run
from rlhf_jax.stages import alignment
from studies.common import check_seeds, is_done, seed_entries
from studies.foundation import Sentiment, facts, lay_for
from studies.hacking import report as hacking_report
from studies.hacking import results as hacking_study
from studies.hacking.before_learning import before_learning
from studies.hacking.path_probe import PathConfig, PathProbe, on_validation
from studies.hacking.results import Way
from studies.settings import Size, foundation_folder, study_setting


@dataclasses.dataclass(frozen=True)
class Config:
    """Proxy against truth along √KL."""

    run_dir: Path = Path("runs/reward_hacking-world")
    """Where the study goes; each seed has a directory of its own inside."""
    runs: Path = Path("runs")
    """Where foundations lie."""
    setting: Literal["world", "hackable", "redial"] = "world"
    """What the policy talks about, and who knows the truth: users of a world, or a judge."""
    size: Size = "full"
    """Of foundation and PPO."""
    data_dir: Path = Path("data")
    """Holds `redial/` and `uss/`; not read for the worlds."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Training seeds; a claim needs three."""
    only_seed: Seed | None = None
    """Run this seed alone and write no summary."""
    sentiment: Sentiment = "shift"
    """Form of the reward model's sentiment signal; the paper's is the shift."""
    kl_coefs: tuple[Weight, ...] = (0.0, 0.05, 0.2)
    """Prices of a nat, one way each; 0 is the paper."""
    length_control: tuple[bool, ...] = (False, True)
    """Every KL coefficient is run without a price on length, and with it."""
    length_coef: Annotated[float, Range("(0, 1_000]")] = 0.05
    """Length control: score per token beyond `length_free`."""
    length_free: Annotated[int, Range("[0, 65_536]")] = 12
    """Tokens that cost nothing."""
    updates: Steps | None = None
    """Rollout batches of a way; None: the setting's."""
    evaluations: Steps = 10
    """Points of a way at which it is measured at most, beside its start."""
    batches_before: Annotated[int, Range("[3, 1_000]")] = 12
    """Batches that tell where each signature lies before learning; three at least make a band."""
    measure: PathConfig = PathConfig()
    replicates: Replicates = 1000
    """Bootstrap replicates."""

    def __post_init__(self) -> None:
        check_numbers(self)
        check_seeds(self.seeds, self.only_seed)
        for name in ("kl_coefs", "length_control"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"--{name.replace('_', '-')} {values}: at least one is needed, each once")
        laid = study_setting(self.setting, self.size, self.data_dir).foundation
        laid.check_sentiment(self.sentiment, f"--sentiment {self.sentiment}")

    @property
    def ways(self) -> tuple[Way, ...]:
        """Every KL coefficient without length control, then with it."""
        return tuple(Way(kl_coef, priced) for priced in self.length_control for kl_coef in self.kl_coefs)


def _preset(setting: Literal["world", "hackable", "redial"], size: Literal["full", "quick"]) -> Config:
    config = Config(run_dir=Path(f"runs/reward_hacking-{setting}"), setting=setting)
    if size == "full":
        return config
    return dataclasses.replace(
        config,
        run_dir=Path(f"runs/reward_hacking-{setting}-quick"),
        size="quick",
        kl_coefs=(0.0, 0.1),
        evaluations=4,
        measure=PathConfig(users=200, contexts=256),
    )


_ABOUT = {
    "world": "simulated world: true utility of users the policy never met",
    "hackable": "a world where long replies buy the signals and cost the truth",
    "redial": "real ReDial (--data-dir): a satisfaction judge fitted on USS",
}
PRESETS = {
    setting + ("" if size == "full" else "-quick"): (
        about + ("" if size == "full" else "; smaller, two KL coefficients"),
        _preset(setting, size),
    )
    for setting, about in _ABOUT.items()
    for size in ("full", "quick")
} | {
    "debug": (
        "the world in miniature; a minute or two, for tests",
        Config(
            run_dir=Path("runs/debug-reward_hacking"),
            setting="world",
            size="debug",
            seeds=(0,),
            kl_coefs=(0.05,),
            length_control=(True,),
            updates=3,
            evaluations=3,
            batches_before=3,
            measure=PathConfig(users=8, user_turns=2, contexts=16, batch_size=16, repeats=3),
            replicates=50,
        ),
    ),
}


def run_seed(config: Config, seed: int) -> None:
    """One seed: 1 foundation, 2 before learning, 3 PPO on every way, measured as it goes, 4 diagnostics."""
    varied = ("run_dir", "runs", "data_dir", "seeds", "only_seed", "replicates")
    with open_run(config.run_dir / f"seed-{seed}", config, trackers=(), volatile=varied, wait=True) as run:
        setting = study_setting(config.setting, config.size, config.data_dir)
        align = dataclasses.replace(
            setting.align,
            updates=setting.align.updates if config.updates is None else config.updates,
            evaluations=config.evaluations,
        )
        folder = foundation_folder(config.runs, config.setting, config.size, seed)
        run.record(align=align, ppo=setting.ppo, **facts(folder, setting.foundation))
        if is_done(run.path, (diagnostics.FILE,)):
            notice(f"seed {seed}: done before")
            return
        judge, read = None, {}
        if config.setting == "redial":  # First, because if its data are missing nothing need be trained to say so.
            judge, fitted = satisfaction.uss_judge(config.data_dir, config.runs / "judge")
            run.record(judge=fitted["provenance"])
            read = read_uss(config.data_dir / "uss")
        # 1. Supervised policy and reward model.
        base = lay_for(run, folder, setting.foundation, seed=seed)
        setup = base.setup
        proxy = base.proxy(config.sentiment)._replace(weights=setting.ppo.component_weights)
        answered = on_validation(setup, without=read)
        if judge is not None:
            satisfaction.check_unread(judge, answered.corpus.test)
        probe = PathProbe(
            folder=run.path / hacking_study.MEASUREMENTS,
            setup=answered,
            against=Against(base.supervised_policy, proxy, judge),
            config=config.measure,
        )
        prices = {False: (0.0, 0), True: (config.length_coef, config.length_free)}
        configs = {
            way: dataclasses.replace(
                setting.ppo, kl_coef=way.kl_coef, length_coef=prices[way.priced][0], length_free=prices[way.priced][1]
            )
            for way in config.ways
        }
        # 2. Where every signature lies while nothing is learnt: its band.
        if not (run.path / hacking_study.BEFORE).exists():
            bleu = {"text/bleu4": probe.bleu_before_learning()}
            starts = {
                priced: before_learning(
                    setup,
                    base.trunk,
                    proxy.model,
                    next(configs[way] for way in config.ways if way.priced == priced),
                    batch_size=align.batch_size,
                    batches=config.batches_before,
                )
                for priced in config.length_control
            }
            write_json(run.path / hacking_study.BEFORE, {way.stage: starts[way.priced] | bleu for way in config.ways})
        # 3. Every way from the same start.
        for way, ppo in configs.items():
            truth = probe.probe(way.stage)
            alignment.align(run, setup, base.trunk, proxy, align, ppo, truth=truth, stage=way.stage)
        # 4. What PPO logged, page by page; written last, so that it says that the seed is done.
        diagnostics.write_diagnostics(run.path, title=f"PPO diagnostics: {config.setting}, {config.size}, seed {seed}")


def main(config: Config) -> Path:
    """Every seed, then the study over all of them."""
    claim(config.run_dir, Path(__file__).name)
    enable_compilation_cache(beside=config.run_dir)
    with exits_on_signals():
        for seed in config.seeds if config.only_seed is None else (config.only_seed,):
            run_seed(config, seed)
        if config.only_seed is not None:
            return config.run_dir / f"seed-{config.only_seed}"
        # 5. Onset, fits and warnings, from what the seeds stored.
        real = config.setting == "redial"
        folders = {seed: config.run_dir / f"seed-{seed}" for seed in config.seeds}
        study = hacking_study.gather(folders, config.ways, same_cases=real, replicates=config.replicates)
        split = "redial/validation" if real else f"{config.setting}/users"
        found = hacking_study.results(study, split=split, truth="judge" if real else "mean_utility")
        laid = gates.read([*folders.values()])
        notes = [f"Setting `{config.setting}`, size `{config.size}`; sentiment signal: {config.sentiment}."]
        if real:
            _, report = satisfaction.uss_judge(config.data_dir, config.runs / "judge")
            found += satisfaction.results(report)
            rho = report["spearman"]["judge"]
            notes.append(
                f"Truth is the satisfaction judge (1 to 5), Spearman {rho['value']:.3f} with people's on {rho['n']} held-out "
                "turns; contexts are validation dialogues it has not read."
            )
        write_results(config.run_dir, found)
        hacking_report.figures(study, config.run_dir / "plots", seed_entries(config.run_dir, config.seeds))
        text = hacking_report.report_text(
            study,
            title=f"Reward hacking: {config.setting}",
            truth="judge" if real else "true utility",
            cases="dialogues" if real else "users",
            notes=[*notes, *gates.section({config.sentiment: laid[config.sentiment]} if laid else {})],
        )
        report = config.run_dir / "report.md"
        write_text(report, text)
        print(hacking_report.summary_table(study))
        print(f"report: {report}")
        return report


def command_line(arguments: list[str]) -> Config:
    """A preset (none means `world`) with options on top."""
    return preset_and_options(PRESETS, arguments, __doc__)


if __name__ == "__main__":
    start(main, command_line)

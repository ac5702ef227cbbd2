"""Which of the implicit signals does the reward need, and is learning from it better than choosing by it?

Paper: IUF-RLHF, arXiv:2508.05289, whose ordering is: full reward above each signal alone above SFT, BLEU-4 not falling.

    python experiments/ablate_reward.py world-quick                         # simulated world: true utility is known
    python experiments/ablate_reward.py redial-quick --data-dir DIR         # ReDial, with the held-out satisfaction judge
    python experiments/ablate_reward.py opendialkg-quick --data-dir DIR     # OpenDialKG: full reward, SFT, best-of-n
    python experiments/ablate_reward.py world                               # full size: more dialogues, more training
    python experiments/ablate_reward.py redial --data-dir DIR               # all of ReDial
    python experiments/ablate_reward.py opendialkg --data-dir DIR           # all of OpenDialKG
    python experiments/ablate_reward.py debug                               # everything in miniature, for tests

DIR holds `redial/`, `uss/`, `opendialkg/`. Stages 0–2 are taken from `RUNS/foundations`, and laid there if absent. Each
variant is PPO from the same imitation with the same budget: seven subsets of engagement, relevance and sentiment shift
with equal weights, all three with the level of sentiment, and two controls that know nothing of items: `suggests` pays 1 for
any suggestion, `noise` a number drawn for the reply. Beside them stand SFT and best-of-n by the full reward.
The same command continues what was interrupted; a run that was begun with other variants (eight, before the controls came) with its own `--variants`.

Hardware: one CPU core; per seed (estimated from eight of the ten variants), without the foundation (13 minutes for `world`, as many or fewer for the quick sizes), `world`
takes 25 minutes, `world-quick` 9, `redial-quick` 12, `opendialkg-quick` 2, `redial` 37 (its foundation 36), `opendialkg` 5 (13).
Expected: docs/results/ablation_world.md, ablation_redial.md; all of OpenDialKG with one seed, the others with three. The judge was fitted on ReDial and is used there alone.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from command_line import preset_and_options, start
from rlhf_jax.assessment import assess, best_of_n, comparison, users
from rlhf_jax.assessment.assess import Assessment
from rlhf_jax.assessment.sampled import Against, SampledConfig, sampled_answers
from rlhf_jax.assessment.satisfaction import check_unread, uss_judge
from rlhf_jax.evaluation.ranking import RankingOutcome
from rlhf_jax.evaluation.user_centric import TopOne
from rlhf_jax.interfaces import Params
from rlhf_jax.ranges import Cases, Range, Seed, check_numbers
from rlhf_jax.reporting.diagnostics import write_diagnostics
from rlhf_jax.runtime.files import write_json
from rlhf_jax.runtime.interrupts import exits_on_signals
from rlhf_jax.runtime.run import RunDirectory, claim, enable_compilation_cache
from rlhf_jax.stages import alignment
from studies import common, reward_ablation
from studies.foundation import lay_for
from studies.reward_ablation import VARIANTS, Comparison, Variant
from studies.settings import Setting, Size, foundation_folder, rests_on, study_setting


@dataclasses.dataclass(frozen=True)
class Config:
    """Variants of the reward, in one setting at one size."""

    run_dir: Path = Path("runs/ablation-world")
    """Where everything goes: a run directory a seed, and the summary."""
    runs: Path = Path("runs")
    """Where foundations lie, under `foundations/`, and the judge, under `judge/`."""
    setting: Setting = "world"
    """Which data."""
    size: Size = "full"
    """How much of them, and how large the networks are."""
    data_dir: Path = Path("data")
    """Holds `redial/`, `uss/`, `opendialkg/`; not read for worlds."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Training seeds; a claim needs three."""
    only_seed: Seed | None = None
    """Does this seed alone and writes no summary."""
    variants: tuple[Variant, ...] = tuple(VARIANTS)
    """Rewards that PPO is trained on."""
    best_of: Annotated[int, Range("[2, 1_024]")] = 8
    """Samples of best-of-n; 1 would be imitation."""
    sampled_turns: Cases = 500
    """Test turns answered by sampling."""

    def __post_init__(self) -> None:
        check_numbers(self)
        common.check_seeds(self.seeds, self.only_seed)
        if not self.variants or len(set(self.variants)) < len(self.variants):
            raise ValueError(f"--variants must name at least one variant, each once: got {self.variants}")
        laid = study_setting(self.setting, self.size, self.data_dir).foundation
        for variant in self.variants:
            laid.check_sentiment(VARIANTS[variant].sentiment, f"--variants {variant}")


def _preset(setting: Setting, size: Size, variants: tuple[Variant, ...] = tuple(VARIANTS)) -> Config:
    name = setting if size == "full" else f"{setting}-{size}"
    turns = {"full": 1000, "quick": 500, "debug": 16}[size]
    return Config(
        run_dir=Path(f"runs/ablation-{name}"), setting=setting, size=size, variants=variants, sampled_turns=turns
    )


PRESETS = {
    "world": ("simulated world, all variants", _preset("world", "full")),
    "world-quick": ("a smaller world, all variants", _preset("world", "quick")),
    "redial": ("ReDial (--data-dir), all variants", _preset("redial", "full")),
    "redial-quick": ("part of ReDial, all variants", _preset("redial", "quick")),
    "opendialkg": ("OpenDialKG (--data-dir): full reward", _preset("opendialkg", "full", ("full",))),
    "opendialkg-quick": ("part of OpenDialKG: full reward", _preset("opendialkg", "quick", ("full",))),
    "debug": (
        "three variants in a tiny world; a minute or two, for tests",
        dataclasses.replace(_preset("world", "debug", ("full", "engagement", "suggests")), seeds=(0,), best_of=2),
    ),
}


def one_seed(config: Config, run: RunDirectory, seed: int) -> None:
    """Every system of one seed, measured on the same contexts and users."""
    # 1. Data, imitation and reward models, shared with every other study.
    setting = study_setting(config.setting, config.size, config.data_dir)
    # The judge first: if its data are missing, that is said before hours of training, not after.
    judge = None
    if config.setting == "redial":
        judge, fitted = uss_judge(config.data_dir, config.runs / "judge")
        run.record(judge=fitted["provenance"])
    folder = foundation_folder(config.runs, config.setting, config.size, seed)
    base = lay_for(run, folder, setting.foundation, seed=seed)
    if judge is not None:
        check_unread(judge, base.setup.corpus.test)
    setup, full = base.setup, base.proxy("shift")
    write_json(run.path / "notes.json", comparison.notes(setup))
    answered = SampledConfig(config.sampled_turns, setting.assess.batch_size, setting.assess.test_dialogues)
    against = Against(base.supervised_policy, full, judge)

    def measure(name: str, policy: Params) -> None:
        """The proxy is the full reward, whatever the variant was paid by."""
        assess.assess(run, name, setup, policy, setting.assess, full)
        sampled_answers(run, name, setup, policy, answered, against)

    # 2. Imitation alone.
    measure(reward_ablation.SFT, base.supervised_policy)
    # 3. PPO on every variant of the reward, from the same start with the same budget.
    for variant in config.variants:
        reward = VARIANTS[variant]
        paid = reward.control or base.proxy(reward.sentiment)._replace(weights=reward.weights)
        policy = alignment.align(run, setup, base.trunk, paid, setting.align, setting.ppo, stage=f"ppo-{variant}")
        measure(variant, policy)
    # 4. Best-of-n by the full reward: what it buys without learning.
    moments = best_of_n.reward_moments(
        setup, base.supervised_policy, full.model, setting.ppo, batch_size=setting.align.batch_size
    )
    best = best_of_n.BestOf(config.best_of, setting.ppo, moments)
    name = best_name(config)
    sampled_answers(run, name, setup, base.supervised_policy, answered, against, best_of=best)
    met: dict[str, dict[str, np.ndarray]] = {}
    if setup.world_seed is not None:
        responder = users.Responder(setup, base.supervised_policy, greedy=False, proxy=full, best_of=best)
        met["sampled"] = users.meet_users(
            responder, setup, n_users=setting.assess.users, n_turns=setting.assess.user_turns
        )
    assess.save(run.path / "assessments" / f"{name}.npz", Assessment(NOT_RANKED, [], met))
    # 5. What ranking takes without any model.
    for name, outcome in comparison.baseline_assessments(setup, setting.assess).items():
        assess.save(run.path / "assessments" / f"{name}.npz", Assessment(outcome, [], {}))
    write_diagnostics(run.path, title=f"PPO diagnostics: {config.setting}, {config.size}, seed {seed}")


NOT_RANKED = RankingOutcome({}, TopOne((), (), ()))
"""Best-of-n ranks as the policy it samples from."""


def best_name(config: Config) -> str:
    """What best-of-n is called in tables."""
    return f"best_of_{config.best_of}"


def main(config: Config) -> Path | None:
    """Every seed, then the summary; None where one seed alone was asked for."""
    claim(config.run_dir, Path(__file__).name)
    enable_compilation_cache(beside=config.run_dir)
    setting = study_setting(config.setting, config.size, config.data_dir)

    def facts(seed: int) -> dict[str, Any]:
        return rests_on(setting, foundation_folder(config.runs, config.setting, config.size, seed))

    with exits_on_signals():
        common.run_seeds(config, lambda run, seed: one_seed(config, run, seed), facts)
    if config.only_seed is not None:
        return None
    report = reward_ablation.write_report(
        config.run_dir,
        config.seeds,
        Comparison(config.variants, best_name(config), best_of_n.kl_bound(config.best_of)),
        setting=config.setting,
        size=config.size,
        budget=f"Every variant: {setting.align.updates} updates of {setting.align.batch_size} responses from the same "
        f"imitation, KL price {setting.ppo.kl_coef} per nat.",
        same_test=config.setting not in ("world", "hackable"),
        command=["python", *sys.argv],
    )
    print(f"report: {report}")
    return report


def command_line(arguments: list[str]) -> Config:
    """A preset (none means `world`) with options on top."""
    return preset_and_options(PRESETS, arguments, __doc__)


if __name__ == "__main__":
    start(main, command_line)

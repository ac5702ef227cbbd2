"""How much of the conversation does the policy need to see?

Paper: IUF-RLHF, arXiv:2508.05289, whose state is the last k utterances; k is not given. Here k, in turns, is 2, 4, 6, 8, 10.

    python experiments/sweep_window.py world-quick                      # simulated world
    python experiments/sweep_window.py redial-quick --data-dir DIR      # part of ReDial
    python experiments/sweep_window.py world --windows 2 6 10                                # full size
    python experiments/sweep_window.py redial --windows 2 6 10 --data-dir DIR                # all of ReDial
    python experiments/sweep_window.py debug                            # everything in miniature, for tests

DIR holds `redial/`. For every seed and k: a reward model and PPO of their own, from the imitation in `RUNS/foundations`
(laid there if absent), which learns whole dialogues and so is the same for all k. Prompts are as long as the window asks
for; the report says which share of contexts is cut. The same command continues what was interrupted.

Hardware: one CPU core; per seed, without the foundation, the quick sizes take a quarter of an hour for five windows, the
full ones 18 (`redial`) to 40 (`world`) for three. Expected: docs/results/window.md (the quick sizes
have three seeds, the full ones one).
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

from command_line import preset_and_options, start
from rlhf_jax.assessment import assess
from rlhf_jax.assessment.sampled import Against, SampledConfig, sampled_answers
from rlhf_jax.interfaces import Params
from rlhf_jax.ranges import Range, Seed, check_numbers
from rlhf_jax.reporting.diagnostics import write_diagnostics
from rlhf_jax.runtime.files import write_json
from rlhf_jax.runtime.interrupts import exits_on_signals
from rlhf_jax.runtime.run import RunDirectory, claim, enable_compilation_cache
from rlhf_jax.stages import alignment, reward
from studies import common, windows
from studies.foundation import EQUAL, lay_for
from studies.settings import Setting, Size, foundation_folder, rests_on, study_setting


@dataclasses.dataclass(frozen=True)
class Config:
    """Windows, in one setting at one size."""

    run_dir: Path = Path("runs/windows-world")
    """Where everything goes: a run directory a seed, and the summary."""
    runs: Path = Path("runs")
    """Where foundations lie, under `foundations/`."""
    setting: Setting = "world"
    """Which data."""
    size: Size = "full"
    """How much of them, and how large the networks are."""
    data_dir: Path = Path("data")
    """Holds `redial/`; not read for worlds."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Training seeds; a claim needs three."""
    only_seed: Seed | None = None
    """Does this seed alone and writes no summary."""
    windows: tuple[Annotated[int, Range("[1, 10_000]")], ...] = (2, 4, 6, 8, 10)
    """k: turns of the conversation the policy sees."""
    max_cut: Annotated[float, Range("[0, 1)")] = 0.01
    """Share of training contexts that may be too long for the prompt."""

    def __post_init__(self) -> None:
        check_numbers(self)
        common.check_seeds(self.seeds, self.only_seed)
        if not self.windows or len(set(self.windows)) < len(self.windows):
            raise ValueError(f"--windows must be different numbers of turns, at least one: got {self.windows}")


def _preset(setting: Setting, size: Size, windows: tuple[int, ...] = (2, 4, 6, 8, 10)) -> Config:
    name = setting if size == "full" else f"{setting}-{size}"
    return Config(run_dir=Path(f"runs/windows-{name}"), setting=setting, size=size, windows=windows)


PRESETS = {
    "world": ("simulated world", _preset("world", "full")),
    "world-quick": ("a smaller world", _preset("world", "quick")),
    "redial": ("ReDial (--data-dir)", _preset("redial", "full")),
    "redial-quick": ("part of ReDial", _preset("redial", "quick")),
    "debug": (
        "two windows in a tiny world; a minute or two, for tests",
        dataclasses.replace(_preset("world", "debug", (4, 6)), seeds=(0,)),
    ),
}


def one_seed(config: Config, run: RunDirectory, seed: int) -> None:
    """Imitation and PPO at every window, measured on the same test dialogues and users."""
    # 1. Data and imitation, shared with every other study.
    setting = study_setting(config.setting, config.size, config.data_dir)
    folder = foundation_folder(config.runs, config.setting, config.size, seed)
    base = lay_for(run, folder, setting.foundation, seed=seed)
    contexts = {}
    for k in config.windows:
        data = windows.fitted_data(base.setup, k, max_cut=config.max_cut)
        setup = base.setup._replace(data=data)
        contexts[k] = windows.measured_contexts(setup)
        # 2. The reward model of contexts of k turns.
        labels = dataclasses.replace(setting.foundation.reward.labels, sentiment="shift")
        proxy, _ = reward.train(
            run,
            setup,
            base.trunk,
            dataclasses.replace(setting.foundation.reward, labels=labels),
            weights=EQUAL,
            stage=f"{reward.STAGE}-k{k}",
        )
        # 3. PPO by the full reward.
        policy = alignment.align(run, setup, base.trunk, proxy, setting.align, setting.ppo, stage=f"ppo-k{k}")
        # 4. Both policies as they see k turns.
        answered = SampledConfig(setting.assess.text_turns, setting.assess.batch_size, setting.assess.test_dialogues)
        policies: dict[str, Params] = {"sft": base.supervised_policy, "ppo": policy}
        for name, params in policies.items():
            name = windows.system(name, k)
            assess.assess(run, name, setup, params, setting.assess, proxy)
            sampled_answers(run, name, setup, params, answered, Against(base.supervised_policy, proxy))
    write_json(run.path / "contexts.json", contexts)
    write_diagnostics(run.path, title=f"PPO diagnostics: {config.setting}, {config.size}, seed {seed}")


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
    report = windows.write_report(
        config.run_dir,
        config.seeds,
        config.windows,
        setting=config.setting,
        size=config.size,
        budget=f"PPO at every k: {setting.align.updates} updates of {setting.align.batch_size} responses, KL price "
        f"{setting.ppo.kl_coef} per nat, full reward.",
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

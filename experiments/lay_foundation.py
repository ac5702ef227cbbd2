"""Data, supervised policy and reward models of one setting and seed: what the studies start from.

    python experiments/lay_foundation.py world full --seed 0
    python experiments/lay_foundation.py redial quick --seed 1 --data-dir DIR

A study lays the foundation it needs by itself; this script does it beforehand, so that studies that share one do not
wait for each other (`evidence.py` starts it). The foundation lies in `RUNS/foundations/SETTING-SIZE/seed-S`; the same
command continues an interrupted one, and does nothing where it is done. DIR holds `redial/` and `opendialkg/`.

Hardware, one CPU core: a quarter of an hour for the full worlds and `opendialkg full`, 36 minutes for `redial full`, less for every
`quick`.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from command_line import options, start
from rlhf_jax.ranges import Seed, check_numbers
from rlhf_jax.runtime.interrupts import exits_on_signals
from rlhf_jax.runtime.run import enable_compilation_cache
from studies.foundation import lay
from studies.settings import Setting, Size, foundation_folder, study_setting


@dataclasses.dataclass(frozen=True)
class Config:
    """Which foundation."""

    setting: Annotated[Setting, tyro.conf.Positional]
    """World or data set."""
    size: Annotated[Size, tyro.conf.Positional] = "full"
    """`quick` has fewer dialogues and a smaller network, `debug` is for tests."""
    seed: Seed = 0
    """Of parameters and batches, and of the simulated world."""
    runs: Path = Path("runs")
    """Where foundations lie."""
    data_dir: Path = Path("data")
    """Holds `redial/` and `opendialkg/`; not read for the worlds."""

    def __post_init__(self) -> None:
        check_numbers(self)


def main(config: Config) -> Path:
    """Stages 0, 1 and 2."""
    enable_compilation_cache(beside=config.runs / "foundations")
    folder = foundation_folder(config.runs, config.setting, config.size, config.seed)
    with exits_on_signals():
        lay(folder, study_setting(config.setting, config.size, config.data_dir).foundation, seed=config.seed)
    print(f"foundation: {folder}")
    return folder


if __name__ == "__main__":
    start(main, options(Config, __doc__))

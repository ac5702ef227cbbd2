"""Does what is learnt from dialogues about movies help to recommend books, and the other way round?

Paper: IUF-RLHF, arXiv:2508.05289, which names cross-domain use (movies to books by shared item embeddings) and reports
no number of it. Data: OpenDialKG, split by dialogue.

    python experiments/cross_domain.py opendialkg-quick --data-dir DIR      # 600 dialogues of each domain, three seeds
    python experiments/cross_domain.py opendialkg --data-dir DIR            # all dialogues
    python experiments/cross_domain.py debug --data-dir DIR                 # everything in miniature, for tests

DIR holds `opendialkg/`. For every seed four models are trained (on movies, on books; items with shared or separate
embeddings), supervised and then by PPO, and each is tested on both domains: where it was trained, which is the upper
reference, and where it never heard a dialogue. The same command continues a study that was interrupted.

Hardware: one CPU core; four minutes a model for `opendialkg-quick`, nine for `opendialkg`; four models a seed. Expected:
docs/results/transfer.md (`opendialkg-quick` has three seeds, `opendialkg` one).

Shared: an item's embedding is its own vector plus the mean of its title's words, its metadata's words and its features.
Separate: its own vector alone. Vocabulary, TF-IDF, reward model and policy come from the training domain's dialogues; of
the other domain the catalogue is known (titles, genres, people), to both forms alike.
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any

from command_line import preset_and_options, start
from rlhf_jax.data.opendialkg_sources import DOMAINS
from rlhf_jax.data.sources import read_corpus
from rlhf_jax.ranges import Cases, Seed, check_numbers
from rlhf_jax.reporting import diagnostics, gates
from rlhf_jax.reporting.run_report import write_results
from rlhf_jax.runtime.files import notice, read_object, write_text
from rlhf_jax.runtime.interrupts import exits_on_signals
from rlhf_jax.runtime.metrics import read_metrics
from rlhf_jax.runtime.run import claim, enable_compilation_cache, open_run
from rlhf_jax.stages import alignment, reward
from studies.common import check_seeds, is_done
from studies.foundation import FoundationConfig, Sentiment, lay, stored_config
from studies.settings import Size, StudySetting, study_setting
from studies.transfer import measure as transfer
from studies.transfer import report as transfer_report
from studies.transfer.measure import Embeddings, Model


@dataclasses.dataclass(frozen=True)
class Config:
    """Training on one domain, testing on both."""

    run_dir: Path = Path("runs/cross-domain")
    """Where everything goes, foundations included: no other study has the same."""
    size: Size = "full"
    """Of data, network and training; see `studies/settings.py`."""
    data_dir: Path = Path("data")
    """Holds `opendialkg/`."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Training seeds; a claim needs three."""
    only_seed: Seed | None = None
    """Does this seed's work alone and writes no summary."""
    max_dialogues: Cases | None = None
    """Dialogues of each domain that are read; None: as many as the size says."""
    embeddings: tuple[Embeddings, ...] = transfer.EMBEDDINGS
    """Forms of item embeddings that are compared; verdicts are about `shared`."""
    sentiment: Sentiment = "shift"
    """The reward's sentiment signal: the paper's shift, or the level after the turn."""

    def __post_init__(self) -> None:
        check_numbers(self)
        check_seeds(self.seeds, self.only_seed)
        if "shared" not in self.embeddings or len(set(self.embeddings)) < len(self.embeddings):
            raise ValueError(f"--embeddings {self.embeddings}: shared must be among them, each once")


PRESETS = {
    "opendialkg": ("OpenDialKG (--data-dir), small GPT-2 from scratch", Config()),
    "opendialkg-quick": (
        "600 dialogues of each domain, fewer updates; its numbers are its own",
        Config(run_dir=Path("runs/cross-domain-quick"), size="quick", max_dialogues=600),
    ),
    "debug": (
        "60 dialogues of each domain and a tiny model; for tests",
        Config(run_dir=Path("runs/debug-cross-domain"), size="debug", seeds=(0,)),
    ),
}


def main(config: Config) -> Path:
    """Every seed's models, then their comparison. Returns the report, or the seed's folder with `only_seed`."""
    claim(config.run_dir, Path(__file__).name)
    enable_compilation_cache(beside=config.run_dir)
    setting = setting_of(config)
    with exits_on_signals():
        for seed in config.seeds if config.only_seed is None else (config.only_seed,):
            for model in transfer.models(config.embeddings):
                train_and_test(config, setting, model, seed)
        if config.only_seed is not None:
            return config.run_dir / f"seed-{config.only_seed}"
        return gather(config, setting)


def setting_of(config: Config) -> StudySetting:
    """The numbers of the study."""
    setting = study_setting("opendialkg", config.size, config.data_dir)
    if config.max_dialogues is None:
        return setting
    data = dataclasses.replace(setting.foundation.data, max_dialogues=config.max_dialogues)
    return dataclasses.replace(setting, foundation=dataclasses.replace(setting.foundation, data=data))


def model_folder(config: Config, model: Model, seed: int) -> Path:
    """Where one training lies; its foundation is inside."""
    return config.run_dir / f"seed-{seed}" / model.name


def train_and_test(config: Config, setting: StudySetting, model: Model, seed: int) -> None:
    """Stages 0 to 4 of one model: 0–2 foundation, 3 PPO, 4 the test of both domains.

    Raises: RunError where the model's folder, finished or not, belongs to other options.
    """
    folder = model_folder(config, model, seed)
    chosen = transfer.foundation_config(setting.foundation, model, config.sentiment)
    with open_run(folder / "ppo", facts(setting, chosen, seed), trackers=(), wait=True) as run:
        if is_done(run.path, (diagnostics.FILE,)):  # Written last.
            return
        notice(f"seed {seed}: trained on {model.train_domain}s, {model.embeddings} item embeddings")
        # 0–2. One domain's dialogues, imitation, reward model.
        below = lay(folder / "foundation", chosen, seed=seed)
        # 3. PPO in contexts of the training domain.
        proxy = below.proxy(config.sentiment)._replace(weights=setting.ppo.component_weights)
        policy = alignment.align(run, below.setup, below.trunk, proxy, setting.align, setting.ppo)
        # 4. Both domains' test dialogues, before and after PPO.
        for name, params in (("sft", below.supervised_policy), ("ppo", policy)):
            for domain in DOMAINS:
                transfer.assess(run, name, below.setup, params, setting.assess, domain=domain)
        diagnostics.write_diagnostics(
            run.path,
            title=f"PPO diagnostics: trained on {model.train_domain}s, {model.embeddings} embeddings, seed {seed}",
        )


def facts(setting: StudySetting, foundation: FoundationConfig, seed: int) -> dict[str, Any]:
    """Everything that a model's numbers depend on."""
    return {
        "seed": seed,
        "foundation": stored_config(foundation),
        "align": setting.align,
        "ppo": setting.ppo,
        "assess": setting.assess,
    }


def gather(config: Config, setting: StudySetting) -> Path:
    """All seeds from their stored cases: results, tables, figures."""
    measured = {
        (model, policy, domain): {
            seed: transfer.read_stored(model_folder(config, model, seed) / "ppo", policy, domain)
            for seed in config.seeds
        }
        for model in transfer.models(config.embeddings)
        for policy in transfer.POLICIES
        for domain in DOMAINS
    }
    data = dataclasses.replace(setting.foundation.data, domain="both", train_domain="both")
    everything = read_corpus(Path(str(data.dir)), data)
    references = {domain: transfer.references(everything, setting.assess, domain) for domain in DOMAINS}
    found = transfer_report.results(measured, references)
    write_results(config.run_dir, found)
    curves = {
        f"{model.train_domain}s, {model.embeddings}": [
            read_metrics(model_folder(config, model, seed) / "ppo" / "metrics.jsonl") for seed in config.seeds
        ]
        for model in transfer.models(config.embeddings)
    }
    transfer_report.figures(found, config.run_dir / "plots", curves)
    report = config.run_dir / "report.md"
    command = shlex.join(["python", *sys.argv])
    passed = {
        f"{model.train_domain}s, {model.embeddings}": [
            read_object(model_folder(config, model, seed) / "foundation" / f"{reward.STAGE}-{config.sentiment}.json")
            for seed in config.seeds
        ]
        for model in transfer.models(config.embeddings)
    }
    write_text(report, transfer_report.report_text(found, everything, gates.section(passed), command=command))
    print(f"report: {report}")
    return report


def command_line(arguments: list[str]) -> Config:
    """A preset (none means `opendialkg`) with options on top."""
    return preset_and_options(PRESETS, arguments, __doc__)


if __name__ == "__main__":
    start(main, command_line)

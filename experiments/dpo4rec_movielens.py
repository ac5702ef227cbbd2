"""Does a recommender's feedback teach a language model to write what it should know of a user?

Paper: RLRF4Rec / DPO4Rec, arXiv:2410.05939 (a re-ranker scores N texts about a user; DPO on best and worst).

    python experiments/dpo4rec_movielens.py --data.dir DIR                  # MovieLens 100k (or 1M), two CPU cores
    python experiments/dpo4rec_movielens.py --data.dir DIR --seeds 0 1 2    # three seeds, each with test users of its own
    python experiments/dpo4rec_movielens.py movielens-prm --data.dir DIR    # a scorer that hardly reads texts: PRM
    python experiments/dpo4rec_movielens.py debug                           # made-up ratings, two minutes with compiling, for tests
    python experiments/dpo4rec_movielens.py PRESET --help                   # every field

A run directory holds `report.md`, `results.json`, plots, and for every seed `seed-S/` with checkpoints, metrics, `lists/` (every
system list by list) and `texts/`. The same command continues a run that was interrupted (exit code 75); more seeds may be added.

Systems: `random`, `popularity`, `mean_rating`, `item_knn`, `trees_*`; `none` (the re-ranker without a text) and `history` (the
control: the mean embedding of the history instead of a text); `teacher`, `sft`, `rft`, `dpo_1` … (re-rankers trained and tested
with these texts); `shuffled`, `dpo_R_shuffled` (`sft` and the last round of DPO with the texts of other users); `best_of_M`
(`sft` with that of its M = `texts` texts which served the user's other lists best); `scorer_*` (the frozen scorer, only the texts differ);
`teacher_titles` (texts that name liked titles too); `prm_*`, `dlcm_*` (`--networks`: networks that scored no text, with a
policy's texts, without any, and the control).
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from command_line import preset_and_options, start
from rlhf_jax.assessment import preference_report, reranking
from rlhf_jax.assessment.reranking import Measured
from rlhf_jax.data.rating_lists import Negatives, candidate_lists
from rlhf_jax.interfaces import Params
from rlhf_jax.learners.dpo_config import DPOConfig
from rlhf_jax.parallel.mesh import MeshConfig
from rlhf_jax.ranges import Epochs, Range, Seed, check_numbers
from rlhf_jax.recommenders import list_baselines
from rlhf_jax.reporting.run_report import write_results
from rlhf_jax.runtime.interrupts import exits_on_signals
from rlhf_jax.runtime.run import RunDirectory, Tracker, enable_compilation_cache, open_run
from rlhf_jax.stages.dpo4rec import preference, preference_setup, reranker, text_writer
from rlhf_jax.stages.dpo4rec.preference import PairsConfig
from rlhf_jax.stages.dpo4rec.preference_setup import PreferenceSetup, RatingsConfig
from rlhf_jax.stages.dpo4rec.reranker import Lists, RerankConfig, TextPool
from rlhf_jax.stages.dpo4rec.text_writer import WriterConfig
from rlhf_jax.stages.setup import ModelConfig

VOLATILE = ("run_dir", "seeds", "trackers", "mesh", "protocols", "networks", "trees", "rounds")
"""Fields that may differ when a run is continued: no number that was measured changes. The report has the rows that the last
command asks for; others stay in `seed-S/lists/`."""


MODEL = ModelConfig(dropout=0.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """DPO4Rec from ratings to report."""

    run_dir: Path = Path("runs/dpo4rec")
    """Where everything goes; an interrupted run is continued from here."""
    seeds: tuple[Seed, ...] = (0,)
    """Of parameters, batches and texts; a seed's test users are its own tenth of all (seed modulo 10)."""
    trackers: tuple[Tracker, ...] = ("tensorboard",)
    """Where metrics go besides `metrics.jsonl`; wandb needs the extra `tracking`."""
    mesh: MeshConfig = MeshConfig()
    """Devices that train the writer; changes speed and memory, and numbers only by rounding."""
    data: RatingsConfig = RatingsConfig()
    model: ModelConfig = MODEL
    writer: WriterConfig = WriterConfig()
    rerank: RerankConfig = RerankConfig(network="setrank")
    pairs: PairsConfig = PairsConfig()
    dpo: DPOConfig = DPOConfig(beta=0.1, learning_rate=3e-4)
    scorer_epochs: Epochs = 16
    """Passes of the scorer, all of which it makes (`rerank.patience` is for the re-rankers of line 5, whose lists are twice as many)."""
    rounds: Annotated[int, Range("[1, 10]")] = 2
    """Rounds of re-ranker, pairs and DPO; the paper stops after two, because a third over-fits."""
    texts: Annotated[int, Range("[1, 64]")] = 4
    """Texts of each user that a re-ranker learns from, and that a test list is read with."""
    protocols: tuple[Negatives, ...] = ("popularity-matched", "uniform")
    """Where the negatives of lists come from."""
    networks: tuple[reranker.rerankers.Network, ...] = ()
    """Further networks, always in KAR's form, which score no texts: trained with those of `sft` and of DPO's first and last round,
    with none, and with the mean history."""
    titles: Annotated[int, Range("[0, 30]")] = 5
    """Liked titles that the texts of the row `teacher_titles` name at most; 0 leaves the row out."""
    trees: bool = True
    """Whether the rows of gradient-boosted trees are measured."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"--seeds {' '.join(map(str, self.seeds))}: one or several, each once")
        if not self.protocols or len(set(self.protocols)) < len(self.protocols):
            raise ValueError(f"--protocols {' '.join(self.protocols)}: one or both, each once")
        if self.rerank.network in self.networks:
            raise ValueError(f"--networks {self.rerank.network} is the network of --rerank.network already")
        if self.dpo.loss == "rft":
            raise ValueError(
                "--dpo.loss rft is a row of its own, `rft`; choose sigmoid, ipo or softmax for the rows dpo_*"
            )
        if self.data.titles and self.titles:
            raise ValueError(
                f"--data.titles {self.data.titles} already lets every text name titles, as those of the row that --titles {self.titles} "
                "asks for: add --titles 0"
            )
        check_model(self.model)


def check_model(model: ModelConfig) -> None:
    """Raises ValueError naming an option of the network that the writer does not read."""
    for name in ("weights", "dropout", "attention_dropout", "attention", "head_chunk", "remat_saves"):
        value, usual = getattr(model, name), getattr(MODEL, name)
        if value != usual:
            raise ValueError(
                f"--model.{name.replace('_', '-')} {value} is not read: the writer is trained from scratch, without dropout, with the "
                "usual attention and a head that is read whole"
            )


def check_titles(setup: PreferenceSetup, config: Config) -> None:
    """Raises ValueError naming the options, where too few users or items are there for vectors of titles; before anything is trained."""
    known, width = min(len(setup.split.train), len(setup.corpus.items)), config.data.title_width
    if config.titles and known <= width:
        raise ValueError(
            f"--data.title-width {width} needs more than {width} training users and items: there are {len(setup.split.train)} and "
            f"{len(setup.corpus.items)}; choose fewer, or leave the row out with --titles 0"
        )


def main(config: Config) -> Path:
    """All seeds, then one report."""
    enable_compilation_cache(beside=config.run_dir)
    with exits_on_signals(), open_run(config.run_dir, config, trackers=(), volatile=VOLATILE) as run:
        runs: dict[int, dict[str, dict[str, Measured]]] = {}
        for seed in config.seeds:
            of_seed = dataclasses.replace(config, seeds=(seed,))
            with open_run(run.path / f"seed-{seed}", of_seed, trackers=config.trackers, volatile=VOLATILE) as own:
                runs[seed] = one_seed(own, of_seed, seed)
        name = preference_report.corpus_name(run.path, config.seeds[0], config.protocols[0])
        pairs = preference_report.pairs(config.rounds, config.networks, config.texts)
        found = reranking.results(runs, split=f"{name}/test", pairs=pairs)
        write_results(run.path, found)
        return preference_report.write(run, found, seeds=config.seeds, protocols=config.protocols)


def one_seed(run: RunDirectory, config: Config, seed: int) -> dict[str, dict[str, Measured]]:
    """The paper's algorithm: 0 data, 1 writer; for each protocol 2 scorer, 3 pairs, 4 DPO, and again; 5 evaluation."""
    # 0. Ratings, disjoint users, words of texts.
    setup = preference_setup.set_up(config.data, config.model, seed=seed, mesh=config.mesh, rows=shared_rows(config))
    run.record(data=setup.corpus.provenance)
    check_titles(setup, config)
    everyone = np.arange(len(setup.corpus.users))
    # 1. Imitation: the language model writes as the teacher does.
    sft = text_writer.train(run, setup, config.writer)
    measured: dict[str, dict[str, Measured]] = {}
    for protocol in config.protocols:
        lists = lists_of(setup, protocol)
        tokens = {"sft": written(run, setup, sft, everyone, config.texts, "sft")}
        policy, chosen = sft, preference.as_pool(setup, everyone, tokens["sft"])
        facts: dict[str, Any] = {
            "without_positives": reranking.share_without_positives(lists["test"]),
            "without_lists": {
                name: len(getattr(setup.split, name)) - len(np.unique(lists[name].lists.users))
                for name in ("scorer", "pairs", "validation", "test")
            },
        }
        scorers: list[reranker.Reranker] = []
        for number in range(1, config.rounds + 1):
            name = f"{protocol}-{number}"
            # 2. Feedback: a re-ranker learns to read the writer's texts (the best of them from round 2 on), and is frozen.
            scorer = reranker.train(
                run,
                setup,
                (lists["scorer"], lists["validation"]),
                (chosen, chosen),
                dataclasses.replace(config.rerank, epochs=config.scorer_epochs, patience=None),
                name=f"scorer-{name}",
            )
            scorers.append(scorer)
            # 3. N texts of every user, scored by the user's lists: the best and the worst.
            mined = preference.mine(
                setup,
                policy,
                scorer,
                lists["pairs"],
                config.pairs,
                stream=f"pairs-{name}",
                every=config.dpo.loss == "softmax",
            )
            facts[f"round_{number}"] = {
                "users": len(mined.users),
                "kept": mined.kept,
                "pairs": len(mined.picked),
                "reward": float(mined.rewards.mean()),
                "reward_best": float(mined.rewards.max(axis=1).mean()),
            }
            batch = preference.preference_batch(setup, policy, mined)
            if number == 1:
                facts["samples"] = preference.study_samples(setup, policy, scorer, lists["pairs"], config.pairs)
                rft = preference.train(
                    run,
                    setup,
                    policy,
                    batch,
                    dataclasses.replace(config.dpo, loss="rft", label_smoothing=0.0),
                    name=f"rft-{protocol}",
                    validation=(scorer, lists["validation"]),
                )
                tokens["rft"] = written(run, setup, rft, everyone, config.texts, f"rft-{protocol}")
            # 4. DPO: the policy moves from the worst towards the best, in sight of where it was.
            policy = preference.train(
                run,
                setup,
                policy,
                batch,
                config.dpo,
                name=name,
                validation=(scorer, lists["validation"]),
            )
            tokens[f"dpo_{number}"] = written(run, setup, policy, everyone, config.texts, f"dpo-{name}")
            chosen = best_for_scorer(
                setup, scorer, lists["scorer"], preference.as_pool(setup, everyone, tokens[f"dpo_{number}"])
            )
        # 5. Every system puts the test users' lists in order.
        measured[protocol] = assess(run, setup, config, protocol, lists, tokens, scorers)
        preference_report.store(run, setup, protocol, facts, tokens)
    return measured


def shared_rows(config: Config) -> dict[str, int]:
    """Rows of the batches that a mesh shares out, by what they are."""
    microbatches = config.dpo.microbatches
    return {
        "histories of a step (--writer.batch-size)": config.writer.batch_size,
        "comparisons of a microbatch (--dpo.batch-size // --dpo.microbatches)": config.dpo.batch_size // microbatches,
    }


def lists_of(setup: PreferenceSetup, protocol: Negatives) -> dict[str, Lists]:
    """Lists by what their users are for."""
    counted = reranker.count(setup)
    parts = {name: getattr(setup.split, name) for name in ("scorer", "pairs", "validation", "test", "train")}
    return {
        name: reranker.known_lists(
            setup,
            counted,
            candidate_lists(
                setup.corpus, users, negatives=protocol, popularity=setup.popularity, counted=setup.split.train
            ),
        )
        for name, users in parts.items()
    }


def written(
    run: RunDirectory, setup: PreferenceSetup, params: Params, users: np.ndarray, n: int, name: str
) -> np.ndarray:
    """Texts of every user, once a run. [U, n, T]"""
    return text_writer.stored(
        run.path / "texts" / f"{name}.npz", lambda: text_writer.write(setup, params, users, n=n, stream=name)
    )


def best_for_scorer(setup: PreferenceSetup, scorer: reranker.Reranker, lists: Lists, texts: TextPool) -> TextPool:
    """The same texts, but each user of the scorer has only the best one, repeated; the next re-ranker learns from these."""
    users, rewards = reranker.text_rewards(scorer, lists, texts)
    vectors = texts.vectors.copy()
    best = vectors[users, rewards.argmax(axis=1)]
    vectors[users] = best[:, None]
    return TextPool(texts.users, vectors)


def assess(
    run: RunDirectory,
    setup: PreferenceSetup,
    config: Config,
    protocol: Negatives,
    lists: dict[str, Lists],
    tokens: dict[str, np.ndarray],
    scorers: list[reranker.Reranker],
) -> dict[str, Measured]:
    """Every row of the table."""
    everyone, test = np.arange(len(setup.corpus.users)), lists["test"]
    found: dict[str, Measured] = {}

    def row(system: str, scores: Any) -> None:
        found[system] = reranking.measure(run, protocol, system, test, scores)

    def trained(name: str, texts: TextPool, **options: Any) -> reranker.Reranker:
        numbers = options.pop("config", config.rerank)
        data = options.pop("setup", setup)
        parts = lists["train"], lists["validation"]
        return reranker.train(run, data, parts, (texts, texts), numbers, name=f"{name}-{protocol}", **options)

    labels = test.lists.labels
    row("random", lambda: np.random.Generator(np.random.PCG64([29, setup.seed])).random(labels.shape))
    for name, scores in baselines(setup, config, protocol, test).items():
        row(name, scores)
    row("oracle", lambda: labels)
    nothing = reranker.no_text(setup, everyone)
    row("none", reranking.with_texts(trained("none", nothing, user="none"), test, nothing))
    row("history", reranking.with_texts(trained("history", nothing, user="history"), test, nothing))
    taught = text_writer.taught_tokens(setup, config.writer, config.texts)
    pools = {name: preference.as_pool(setup, everyone, of) for name, of in ({"teacher": taught} | tokens).items()}
    for name, texts in pools.items():
        own = trained(name, texts)
        row(name, reranking.with_texts(own, test, texts))
        others = {"sft": "shuffled", f"dpo_{config.rounds}": f"dpo_{config.rounds}_shuffled"}.get(name)
        if others is not None:
            row(others, reranking.with_texts(own, test, reranker.shuffled(texts, texts.users, seed=setup.seed)))
        if name == "sft":
            row(f"best_of_{config.texts}", lambda own=own, texts=texts: reranking.best_by_other_lists(own, test, texts))
    # The frozen scorer of round 1: only the texts differ.
    for name, texts in pools.items():
        row(f"scorer_{name}", reranking.with_texts(scorers[0], test, texts))
    # The cross table: networks that the texts were not chosen for, and what these do without a text.
    for network in config.networks:
        numbers = dataclasses.replace(config.rerank, network=network, form="kar")
        for name, user in (
            ("none", "none"),
            ("history", "history"),
            *((name, "text") for name in crossed(config.rounds)),
        ):
            texts = pools.get(name, nothing)
            own = trained(f"{network}-{name}", texts, config=numbers, user=user)
            row(f"{network}_{name}", reranking.with_texts(own, test, texts))
    if config.titles:
        named = preference_setup.set_up(
            dataclasses.replace(config.data, titles=config.titles), config.model, seed=setup.seed
        )
        texts = preference.as_pool(named, everyone, text_writer.taught_tokens(named, config.writer, config.texts))
        row("teacher_titles", reranking.with_texts(trained("titles", texts, setup=named), test, texts))
    return found


def crossed(rounds: int) -> tuple[str, ...]:
    """Whose texts the cross table has: imitation's, and DPO's after the first and the last round."""
    return tuple(dict.fromkeys(("sft", "dpo_1", f"dpo_{rounds}")))


def baselines(
    setup: PreferenceSetup, config: Config, protocol: Negatives, test: Lists
) -> dict[str, Callable[[], np.ndarray]]:
    """Rows without a network."""
    known = setup.corpus, setup.split.train, test.lists
    found: dict[str, Callable[[], np.ndarray]] = {
        "popularity": lambda: list_baselines.popularity(*known),
        "mean_rating": lambda: list_baselines.mean_rating(*known),
        "item_knn": lambda: list_baselines.item_knn(*known),
    }
    if config.trees:
        found |= {
            "trees_item": lambda: list_baselines.trees(*known, negatives=protocol, known="item"),
            "trees_attributes": lambda: list_baselines.trees(*known, negatives=protocol, known="attributes"),
            "trees_co_likes": lambda: list_baselines.trees(*known, negatives=protocol, known="history"),
        }
    return found


DEBUG = Config(
    run_dir=Path("runs/debug-dpo4rec"),
    data=RatingsConfig(source="world"),
    model=ModelConfig(n_layer=1, n_embd=32, n_head=2, n_positions=128, dropout=0.0),
    writer=WriterConfig(steps=20, batch_size=16, warmup_steps=5, evaluations=2),
    rerank=RerankConfig(network="setrank", epochs=1, width=8),
    scorer_epochs=1,
    pairs=PairsConfig(samples=4, per_user=1),
    dpo=DPOConfig(beta=0.1, learning_rate=1e-3, epochs=1, batch_size=16),
    rounds=2,
    texts=2,
    protocols=("popularity-matched",),
    titles=2,
    trees=False,
)
PRESETS = {
    "movielens": ("MovieLens 100k; two CPU cores, about 15 minutes a seed and protocol", Config()),
    "movielens-prm": (
        "the same with PRM as the scorer, which hardly reads texts; SetRank is trained beside it and chooses no text",
        Config(
            run_dir=Path("runs/dpo4rec-prm"),
            rerank=RerankConfig(network="prm"),
            networks=("setrank",),
        ),
    ),
    "debug": ("made-up ratings in miniature; two minutes with compiling, for tests", DEBUG),
    "games": (
        "Amazon Games: what was bought, no ratings; two CPU cores, about 15 minutes a seed and protocol",
        Config(
            run_dir=Path("runs/dpo4rec-games"),
            data=RatingsConfig(source="amazon-games", dir=Path("data/amazon-games"), max_users=2000),
        ),
    ),
    "redial": (
        "ReDial: what a seeker liked in one conversation; two CPU cores",
        Config(run_dir=Path("runs/dpo4rec-redial"), data=RatingsConfig(source="redial", dir=Path("data/redial"))),
    ),
    "paper": (
        "MovieLens 1M with a network of GPT-2 medium's size; GPU or TPU",
        Config(
            run_dir=Path("runs/dpo4rec-paper"),
            data=RatingsConfig(dir=Path("data/ml-1m")),
            model=ModelConfig(
                n_layer=24, n_embd=1024, n_head=16, dropout=0.0, compute_dtype="bfloat16", layers="scan", remat=True
            ),
            writer=WriterConfig(steps=4000, learning_rate=2e-4),
            pairs=PairsConfig(per_user=1),
            dpo=DPOConfig(),
        ),
    ),
}


def command_line(arguments: list[str]) -> Config:
    """A preset (none means `movielens`) with options on top."""
    return preset_and_options(PRESETS, arguments, __doc__)


if __name__ == "__main__":
    start(main, command_line)

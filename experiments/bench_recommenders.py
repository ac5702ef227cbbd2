"""How do the closed forms grow: time and memory of fitting and scoring at 1, 4 and 16 times the size, on simulated counts?

    python experiments/bench_recommenders.py                 # up to 100,000 items and a million dialogues
    python experiments/bench_recommenders.py debug           # a thousandth of it, some seconds, for tests

The largest size has 100,000 items, a million dialogues and 3.3 million contexts of 20 words (ReDial's, without stop words,
have 19). Each size runs in a process of its own, whose peak memory is measured; it contains the simulated data. Hardware:
one CPU core, 8 GB of memory, about twenty minutes. Writes `growth.json` and `report.md`.

Expected: docs/recommenders.md, "Growth".
"""

import quiet_start  # noqa: F401 - first, so that a signal while the rest is imported is one line

# isort: split
import concurrent.futures
import dataclasses
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from scipy.sparse import csr_array

from command_line import preset_and_options, start
from rlhf_jax.interfaces import Item
from rlhf_jax.ranges import Cases, Range, Seed, check_numbers
from rlhf_jax.recommenders import bm25, co_mention, context_knn, copy_last, ease, knowledge, mixture, popularity
from rlhf_jax.recommenders.contexts import Catalogue, Contexts, Training
from rlhf_jax.reporting.result_tables import markdown_table
from rlhf_jax.runtime.files import notice, write_json, write_text
from rlhf_jax.runtime.run import open_run

GENRES, WORDS, PLOT_WORDS = 20, 20_000, 30


@dataclasses.dataclass(frozen=True)
class Config:
    """Which sizes."""

    run_dir: Path = Path("runs/growth")
    """Where the numbers go."""
    items: Cases = 6_250
    """Items at size 1."""
    dialogues: Cases = 62_500
    """Training dialogues at size 1."""
    sizes: tuple[Annotated[int, Range("[1, 10_000]")], ...] = (1, 4, 16)
    """How many times as many of both."""
    words: Annotated[int, Range("[1, 10_000]")] = 20
    """Words of a context."""
    contexts: Annotated[int, Range("[1, 100_000]")] = 16
    """Contexts that are scored for the time."""
    seed: Seed = 0
    """Of the simulated counts."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if not self.sizes or len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"--sizes must be different numbers, at least one: got {self.sizes}")


PRESETS = {
    "growth": ("up to 100,000 items and a million dialogues", Config()),
    "debug": (
        "a thousandth of it; some seconds, for tests",
        Config(run_dir=Path("runs/debug-growth"), items=60, dialogues=100, sizes=(1, 4), contexts=8),
    ),
}


def simulated(config: Config, size: int) -> tuple[Training, dict[int, Item]]:
    """Counts of random dialogues: half of an item's mentions go with its topic, popularity is skewed, words are Zipf's."""
    generator = np.random.default_rng([config.seed, size])
    n_items, n_dialogues = config.items * size, config.dialogues * size
    lengths = 2 + generator.poisson(3.3, n_dialogues)
    starts = np.cumsum([0, *lengths])
    topics = np.repeat(generator.integers(0, max(1, n_items // 50), n_dialogues), lengths)
    anywhere = (n_items * generator.random(starts[-1]) ** 3).astype(np.int64)
    nearby = (topics * 50 + generator.integers(0, 50, starts[-1])) % n_items
    flat = np.where(generator.random(starts[-1]) < 0.5, anywhere, nearby).astype(np.int32)
    mentions = csr_array((np.ones(len(flat), np.float32), flat, starts), shape=(n_dialogues, n_items), copy=True)
    mentions.sum_duplicates()
    # A row after every mention but the first three quarters of the time: its context is what was named so far.
    places = np.flatnonzero(
        (generator.random(len(flat)) < 0.77) & (np.arange(len(flat)) != np.repeat(starts[:-1], lengths))
    )
    own = np.repeat(np.arange(n_dialogues, dtype=np.int32), lengths)[places]
    before = places - starts[own]
    row_starts = np.cumsum([0, *before])
    items = flat[np.repeat(starts[own] - row_starts[:-1], before) + np.arange(row_starts[-1])]
    texts = tuple(random_texts(generator, len(places), config.words))
    fresh = csr_array(
        (np.ones(len(places), np.float32), flat[places], np.arange(len(places) + 1)), (len(places), n_items)
    )
    catalogue = Catalogue(tuple(range(n_items)))
    training = Training(
        catalogue,
        {str(number): number for number in range(n_dialogues)},
        mentions,
        Contexts(n_items, items, row_starts, texts, texts, own),
        fresh,
    )
    plots = random_texts(generator, n_items, PLOT_WORDS)
    known = {
        item: Item(
            item_id=item,
            title=f"title {item}",
            genres=tuple(f"genre {genre}" for genre in generator.integers(0, GENRES, 3)),
            people=tuple(f"person {person}" for person in generator.integers(0, n_items, 5)),
            plot=plot,
        )
        for item, plot in zip(catalogue.item_ids, plots, strict=True)
    }
    return training, known


def random_texts(generator: np.random.Generator, n: int, words: int) -> Iterable[str]:
    """Texts of words whose frequencies follow Zipf's law."""
    spelled = np.array([f"w{word}" for word in range(WORDS)])
    for first in range(0, n, 10_000):
        drawn = (WORDS ** generator.random((min(10_000, n - first), words))).astype(np.int64) - 1
        yield from (" ".join(row) for row in spelled[drawn])


def bytes_of(record: Any) -> int:
    """Memory of the arrays in a record."""
    if isinstance(record, np.ndarray):
        return record.nbytes
    if isinstance(record, csr_array):
        return record.data.nbytes + record.indices.nbytes + record.indptr.nbytes
    if isinstance(record, tuple):
        return sum(bytes_of(entry) for entry in record)
    return 0


def measured(config: Config, size: int) -> dict[str, Any]:
    """Every form at one size: seconds to fit, megabytes kept, milliseconds to score a context, new and left out."""
    training, items = simulated(config, size)
    item_ids = training.catalogue.item_ids
    forms: Mapping[str, tuple[Callable[[], Any], Callable[[Any, Contexts], np.ndarray]]] = {
        "popularity": (partial(popularity.fit, training, count="fresh", log=True), popularity.scores),
        "copy": (partial(popularity.fit, training), copy_last.scores),
        "co_mention": (partial(co_mention.fit, training), co_mention.scores),
        "ease": (partial(ease.fit, training), ease.scores),
        "knowledge": (partial(knowledge.fit, items, item_ids), knowledge.scores),
        "context_knn": (partial(context_knn.fit, training), context_knn.scores),
        "bm25": (partial(bm25.fit, items, item_ids), bm25.scores),
    }
    own = training.rows.part(0, config.contexts)
    found: dict[str, Any] = {}
    parts = {}
    for name, (fit, scores) in forms.items():
        fitted, seconds = timed(fit)
        found[name] = {
            "fit_seconds": seconds,
            "kept_mb": bytes_of(fitted) / 2**20,
            "score_ms": timed(lambda: scores(fitted, own.left_in()))[1] * 1e3 / len(own),  # noqa: B023
            "score_own_ms": timed(lambda: scores(fitted, own))[1] * 1e3 / len(own),  # noqa: B023
        }
        parts[name] = partial(scores, fitted)
        notice(f"size {size}, {name}: {found[name]}")
    mixed = mixture.mix({name: parts[name] for name in mixture.WEIGHTS})
    found["mixture"] = {
        "fit_seconds": sum(found[name]["fit_seconds"] for name in mixture.WEIGHTS),
        "kept_mb": sum(found[name]["kept_mb"] for name in mixture.WEIGHTS),
        "score_ms": timed(lambda: mixture.scores(mixed, own.left_in()))[1] * 1e3 / len(own),
        "score_own_ms": timed(lambda: mixture.scores(mixed, own))[1] * 1e3 / len(own),
    }
    return {
        "items": len(item_ids),
        "dialogues": len(training.numbers),
        "contexts": len(training.rows),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "forms": found,
    }


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and the seconds of one core it took, whatever else the machine was doing."""
    start = time.process_time()
    result = call()
    return result, time.process_time() - start


def report_text(growth: Mapping[int, Mapping[str, Any]]) -> str:
    """One table: forms down, sizes across."""
    heads = [
        f"{size}×: {found['items']:,} items, {found['dialogues']:,} dialogues, {found['contexts']:,} contexts"
        for size, found in growth.items()
    ]
    names = list(next(iter(growth.values()))["forms"])
    lines = [
        [
            name,
            *(
                "{fit_seconds:.1f} s / {kept_mb:,.0f} MB / {score_ms:.1f} / {score_own_ms:.1f} ms".format(
                    **found["forms"][name]
                )
                for found in growth.values()
            ),
        ]
        for name in names
    ]
    lines.append(["peak of the process", *(f"{found['peak_mb']:,.0f} MB" for found in growth.values())])
    return "\n\n".join(
        [
            "# Growth of the closed forms",
            "Seconds to fit / memory kept / milliseconds to score a new context, and one without its own dialogue; times of one core.",
            markdown_table(["form", *heads], lines),
        ]
    )


def main(config: Config) -> Path:
    """Each size in a process of its own, one after another, on one core."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # Read where a process begins.
    with open_run(config.run_dir, config, trackers=()) as run:
        growth = {}
        for size in config.sizes:
            context = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
                growth[size] = pool.submit(measured, config, size).result()
            write_json(run.path / "growth.json", growth)
        report = run.path / "report.md"
        write_text(report, report_text(growth) + "\n")
        print(report_text(growth))
        print(f"report: {report}")
        return report


def command_line(arguments: list[str]) -> Config:
    """A preset (none means `growth`) with options on top."""
    return preset_and_options(PRESETS, arguments, __doc__)


if __name__ == "__main__":
    start(main, command_line)

"""A trained recommender and its seekers on dialogues of another corpus, whose items are joined to the catalogue by title.

Nothing is learnt from the other corpus. An item of it that the training catalogue lacks is words to whoever reads, and is
not ranked; how many there are stands beside every number.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from rlhf_jax.assessment import simulator as simulator_quality
from rlhf_jax.assessment import static_ranking
from rlhf_jax.data.catalogue import split_title
from rlhf_jax.data.sources import SOURCES, WORLD, SourceName, read_corpus
from rlhf_jax.data.windows import ranking_rows
from rlhf_jax.evaluation.results import Result
from rlhf_jax.interfaces import Dialogue, Item, Message, Params
from rlhf_jax.ranges import Cases, check_numbers
from rlhf_jax.runtime.files import RunError, notice
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.stages.smtpo.recommender import Recommender
from rlhf_jax.stages.smtpo.seeker import SeekerSimulator
from rlhf_jax.stages.smtpo.seeker_texts import asked_turns, suggestion_counts

FOLDER = "transfer"


@dataclasses.dataclass(frozen=True)
class TransferConfig:
    """Another corpus, on which everything that was trained is measured."""

    dir: Path | None = None
    """Folder in the format of docs/howto/your_own_dialogues.md, or in OpenDialKG's; None: no other corpus. Can be added to a
    finished run."""
    source: SourceName = "redial"
    """Format of its files, as `--data.source`."""
    domain: Literal["both", "movie", "book"] = "both"
    """Which of OpenDialKG's dialogues."""
    name: str | None = None
    """What reports and splits call it; None takes the folder's name."""
    dialogues: Cases = 1_000
    """Dialogues of its test split at most."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.dir is None and (self.source, self.domain) != ("redial", "both"):
            raise ValueError(
                f"--transfer.source {self.source} and --transfer.domain {self.domain} are not read: there is no --transfer.dir"
            )
        if self.source == WORLD:
            raise ValueError("--transfer.source world names no files: those of a world are in the format redial")
        if self.domain != "both" and not SOURCES[self.source].has_domains:
            raise ValueError(f"--transfer.domain {self.domain} is OpenDialKG's; --transfer.source is {self.source}")
        if self.name is not None and (self.dir is None or not self.name or "/" in self.name):
            raise ValueError(
                f"--transfer.name {self.name!r} names a corpus of --transfer.dir {self.dir}, without a slash"
            )


class _Whole(NamedTuple):
    """A corpus of which everything is read, and nothing bad is passed over."""

    source: str
    domain: Literal["both", "movie", "book"]
    train_domain: Literal["both", "movie", "book"] = "both"
    on_bad_line: Literal["error", "skip"] = "error"
    max_dialogues: int | None = None


class OtherCorpus(NamedTuple):
    """Its test dialogues as they were read."""

    folder: Path
    name: str
    digest: str
    """Of its files and of how much is read: what was measured on others is not taken for it."""
    dialogues: Sequence[Dialogue]
    items: Mapping[int, Item]


def read_other(config: TransferConfig, *, own_name: str) -> OtherCorpus | None:
    """The other corpus; None where the configuration names none. To be called before anything is trained.

    Args:
      own_name: of the corpus that is trained on.
    Raises: RunError naming the option and the file that is missing or malformed; or where both are called the same.
    """
    if config.dir is None:
        return None
    name = config.name or config.dir.resolve().name
    if name == own_name:
        raise RunError(
            f"--transfer.dir {config.dir} is called {name}, as the corpus trained on: give it a --transfer.name"
        )
    try:
        corpus = read_corpus(config.dir, _Whole(config.source, config.domain))
    except (FileNotFoundError, ValueError) as error:
        raise RunError(f"--transfer.dir {config.dir}: {error}") from error
    chosen = [] if config.source == "redial" else [config.source, config.domain]
    read = json.dumps([corpus.provenance["files"], config.dialogues, *chosen], sort_keys=True)
    digest = hashlib.sha256(read.encode()).hexdigest()[:12]
    dialogues = corpus.test[: config.dialogues]
    return OtherCorpus(config.dir, name, digest, dialogues, corpus.items)


class Joined(NamedTuple):
    """Dialogues of another corpus in the training catalogue's items."""

    name: str
    digest: str
    dialogues: Sequence[Dialogue]
    n_items: int
    """Different items that the dialogues name."""
    n_shared: int
    """Those that the catalogue has."""
    n_cases: int
    """(Recommender message, item not named before it) pairs in them."""
    n_known: int
    """Those whose item the catalogue has: they are ranked."""

    @property
    def note(self) -> str:
        """How much is shared, for people."""
        return (
            f"{self.name}: {self.n_shared} of {self.n_items} items named in {len(self.dialogues)} test dialogues are in the "
            f"training catalogue, by title and year; {self.n_items - self.n_shared} are unknown and read as words. Ranked are "
            f"{self.n_known} of {self.n_cases} (message, fresh item) cases."
        )


def join(other: OtherCorpus, catalogue: Mapping[int, Item]) -> Joined:
    """The other corpus in the items of a catalogue; says how much is shared. Of catalogue items with one title and year the lowest id is meant.

    Raises: RunError where no item is shared, or none that a recommender names afresh.
    """
    ids = {_key(catalogue[item]): item for item in sorted(catalogue, reverse=True)}
    same = {item: ids[_key(entry)] for item, entry in other.items.items() if _key(entry) in ids}
    named = {item for dialogue in other.dialogues for message in dialogue.messages for item in message.items}
    shared = named & same.keys()
    if not shared:
        shown = f", for example {other.items[min(named)].title!r}" if named else ""
        raise RunError(
            f"--transfer.dir {other.folder}: none of the {len(named)} items that its test dialogues name{shown} has title and year "
            f"of one of the {len(catalogue)} items of the training catalogue: nothing could be ranked"
        )
    dialogues = tuple(_in_other_items(dialogue, same, other.items) for dialogue in other.dialogues)
    n_cases = sum(len(row.fresh_gold) for row in ranking_rows(other.dialogues))
    n_known = sum(len(row.fresh_gold) for row in ranking_rows(dialogues))
    if not n_known:
        raise RunError(
            f"--transfer.dir {other.folder}: of the {len(shared)} items it shares with the training catalogue no recommender of its "
            "test dialogues names one afresh: nothing could be ranked"
        )
    joined = Joined(other.name, other.digest, dialogues, len(named), len(shared), n_cases, n_known)
    notice(joined.note)
    return joined


def _key(item: Item) -> tuple[str, int | None]:
    title, year = split_title(item.title)
    return " ".join(title.casefold().split()), year if item.year is None else item.year


def _in_other_items(dialogue: Dialogue, same: Mapping[int, int], items: Mapping[int, Item]) -> Dialogue:
    """The dialogue with other ids; an item without one is its title in words."""

    def translated(part: str | int) -> str | int:
        if isinstance(part, str):
            return part
        return same[part] if part in same else f" {items[part].title} "

    messages = tuple(
        Message(message.role, tuple(map(translated, message.parts)), message.message_id, message.time_offset)
        for message in dialogue.messages
    )
    seeker, recommender = (
        {same[item]: label for item, label in form.items() if item in same}
        for form in (dialogue.seeker_labels, dialogue.recommender_labels)
    )
    return dataclasses.replace(dialogue, messages=messages, seeker_labels=seeker, recommender_labels=recommender)


class Transferred(NamedTuple):
    """What was measured on the other corpus with one training seed."""

    joined: Joined
    tables: static_ranking.Tables
    """The retriever, then the policies."""
    seekers: Sequence[Result]
    """How well simulated seekers know these; empty where the corpus has no forms."""


def measure(
    run: RunDirectory,
    joined: Joined,
    recommender: Recommender,
    policies: Mapping[str, Params],
    seekers: Mapping[str, SeekerSimulator],
) -> Transferred:
    """Ranks of the retriever and of every policy among its candidates, and the quality of the seekers; ranks once a run."""
    tables = static_ranking.rank_all(
        run.path / FOLDER,
        recommender,
        policies,
        joined.dialogues,
        corpus=joined.name,
        suffix=f"-{joined.digest}",
    )
    return Transferred(joined, tables, _seekers(joined, recommender, seekers))


def _seekers(joined: Joined, recommender: Recommender, seekers: Mapping[str, SeekerSimulator]) -> list[Result]:
    setup = recommender.setup
    if not any(True for dialogue in joined.dialogues for _ in asked_turns(dialogue)):
        notice(f"{joined.name}: no form says what its seekers liked: simulated seekers are not measured on it")
        return []
    found = []
    for name, one in seekers.items():
        threshold = simulator_quality.choose_threshold(one, setup.corpus.validation, recommender.attributes)
        results = simulator_quality.measure(
            one,
            joined.dialogues,
            counts=suggestion_counts(setup.corpus.train),
            attributes=recommender.attributes,
            threshold=threshold,
            split=f"{joined.name}/test",
            seeds=(setup.seed,),
        )
        found += [
            dataclasses.replace(result, name=f"{name}_seeker_{setup.seed}/{result.metric}")
            for result in results
            if result.system == "simulator"
        ]
    return found


def results(found: Mapping[int, Transferred]) -> list[Result]:
    """Entries of `results.json` from all training seeds: ranks of every system, and how well seekers know these people."""
    name = found[min(found)].joined.name
    entries = static_ranking.results({seed: one.tables for seed, one in found.items()}, split=f"{name}/test")
    return entries + [result for one in found.values() for result in one.seekers]

"""Data sets by name: one table, name → reader. A data set is added by a module with its reader and a line here."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhf_jax.data.opendialkg import read_opendialkg
from rlhf_jax.data.read_options import ReadOptions
from rlhf_jax.data.redial import Parts, read_parts, read_redial
from rlhf_jax.interfaces import Corpus, Dialogue

WORLD = "world"
"""The source whose files the simulator writes into the run directory; every other one reads a folder of the user's."""


Reader = Callable[[Path, ReadOptions], Corpus]
"""Raises: ValueError naming file, line, field and value; FileNotFoundError naming the file that is missing."""


Stream = Callable[[Path, ReadOptions, Callable[[Iterator[Dialogue]], Sequence[Any]]], Parts]
"""A reader that hands out one dialogue at a time; see `redial.read_parts`."""


def _redial(folder: Path, options: ReadOptions) -> Corpus:
    return read_redial(folder, on_bad_line=options.on_bad_line, max_dialogues=options.max_dialogues)


def _redial_parts(folder: Path, options: ReadOptions, keep: Callable[[Iterator[Dialogue]], Sequence[Any]]) -> Parts:
    return read_parts(folder, keep, on_bad_line=options.on_bad_line, max_dialogues=options.max_dialogues)


def _opendialkg(folder: Path, options: ReadOptions) -> Corpus:
    domain = None if options.domain == "both" else options.domain
    corpus = read_opendialkg(
        folder, domain=domain, on_bad_line=options.on_bad_line, max_dialogues=options.max_dialogues
    )
    return corpus if options.train_domain == "both" else learnt_on(corpus, options.train_domain)


@dataclasses.dataclass(frozen=True)
class Format:
    """How a data set is read, and what it knows of its dialogues."""

    read: Reader
    has_domains: bool = False
    """Whether its dialogues are about several kinds of items (`domain`, `train_domain`)."""
    stream: Stream | None = None
    """For corpora larger than memory, in ReDial's format alone (`files_of` names what is read); None: it is read whole."""


SOURCES: Mapping[str, Format] = {
    WORLD: Format(_redial, stream=_redial_parts),
    "redial": Format(_redial, stream=_redial_parts),
    "opendialkg": Format(_opendialkg, has_domains=True),
}
if TYPE_CHECKING:
    SourceName = str
else:
    SourceName = Literal[tuple(SOURCES)]


def read_corpus(folder: Path, options: ReadOptions) -> Corpus:
    """The dialogues of a folder by the reader of their format; errors are the reader's."""
    return SOURCES[options.source].read(folder, options)


def learnt_on(corpus: Corpus, domain: str) -> Corpus:
    """The corpus with training and validation dialogues of one domain; catalogue and test split as they are.

    Raises: ValueError where no training dialogue is left.
    """
    train = tuple(dialogue for dialogue in corpus.train if dialogue.domain == domain)
    validation = tuple(dialogue for dialogue in corpus.validation if dialogue.domain == domain)
    if not train:
        raise ValueError(f"there is no training dialogue about {domain}s among {len(corpus.train)}")
    counts = {"train_domain": domain, "n_train": len(train), "n_validation": len(validation)}
    return dataclasses.replace(corpus, train=train, validation=validation, provenance={**corpus.provenance, **counts})

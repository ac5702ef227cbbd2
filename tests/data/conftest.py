"""One toy release, its corpus and a small vocabulary for all data tests."""

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
from toy_release import write_release

from rlhf_jax.data.movielens import read_movielens
from rlhf_jax.data.ratings import RatingCorpus
from rlhf_jax.data.redial import read_redial
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import training_texts
from rlhf_jax.interfaces import Corpus


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="session")
def toy_corpus(toy_folder: Path) -> Corpus:
    return read_redial(toy_folder)


@pytest.fixture(scope="session")
def vocab(toy_corpus: Corpus) -> Vocabulary:
    return Vocabulary.train(training_texts(toy_corpus.train), toy_corpus.items, 300)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Types are not checked at run time: for hundreds of thousands of real messages, and for arguments of wrong kind."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def redial(data_dir: Path) -> Corpus:
    """All of the real data."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        return read_redial(data_dir / "redial")
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def movielens(data_dir: Path) -> RatingCorpus:
    """All of the real MovieLens 100k."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        return read_movielens(data_dir / "movielens-100k")
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)

"""A person in the recommender's place: a conversation with a simulated seeker that a run has stored.

The seeker is that of a logged dialogue, up to its first recommendation. It reads messages alone; what it is known to like
is blocked in its answers (`stages.smtpo.simulator`), ends the conversation when the person names it, and is shown when asked for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np

from rlhf_jax.assessment.episodes import spoken
from rlhf_jax.assessment.finished_run import materials, stored_config
from rlhf_jax.data.attributes import Attributes
from rlhf_jax.data.items import spelled_titles
from rlhf_jax.data.titles import TitleIndex
from rlhf_jax.interfaces import Message
from rlhf_jax.runtime.files import RunError
from rlhf_jax.runtime.settings import from_json
from rlhf_jax.stages.agent import make_agent
from rlhf_jax.stages.setup import ModelConfig, Setup, size_network
from rlhf_jax.stages.smtpo import simulator
from rlhf_jax.stages.smtpo.human_turns import ReasonedTurn, openings_of
from rlhf_jax.stages.smtpo.reasoning import ReasoningConfig, attributes_of
from rlhf_jax.stages.smtpo.seeker import SeekerSimulator
from rlhf_jax.stages.smtpo.simulator import SimulatorConfig

SeekerStage = Literal["simulator", "simulator-scoring"]
"""The seeker that trains policies, or the one that scores them."""
OpeningSplit = Literal["test", "validation"]


class StoredSeeker(NamedTuple):
    """A trained seeker and those whose part it can take."""

    seeker: SeekerSimulator
    attributes: Attributes
    """Those that it was trained with."""
    openings: Sequence[ReasonedTurn]
    """Conversations up to the first recommendation, whose seeker will like something; at least one."""


def seed_of_run(path: Path) -> Path:
    """The run directory of one seed: `path` itself, or the only `seed-…` in it.

    Raises: RunError naming the seeds, where there are several.
    """
    seeds = sorted(one for one in path.glob("seed-*") if (one / "config.json").exists())
    if len(seeds) > 1:
        raise RunError(f"{path} has several seeds, name one of them: {', '.join(map(str, seeds))}")
    return seeds[0] if seeds else path


def open_seeker(path: Path, *, stage: SeekerStage = "simulator", split: OpeningSplit = "test") -> StoredSeeker:
    """Reads a seeker of a run of `smtpo_redial.py`, finished or not, and where its conversations begin. Nothing is written.

    Args:
      path: the run directory, or that of one of its seeds.
      stage: which seeker.
      split: whose dialogues give the openings.
    Raises: RunError naming what the directory lacks.
    """
    path = seed_of_run(path)
    needed = {"data", "model", "reasoning", "simulator"}
    config = stored_config(path, needed, "smtpo_redial.py: other runs have no stage `simulator`")
    data, corpus, vocab = materials(path, config)
    network = size_network(from_json(ModelConfig, config["model"], "config.model"), vocab)
    agent = make_agent(vocab, network, max_items=data.max_items, response_tokens=data.response_tokens)
    setup = Setup(data, corpus, vocab, agent, seed=0)
    attributes = attributes_of(setup, from_json(ReasoningConfig, config["reasoning"], "config.reasoning"))
    learnt = from_json(SimulatorConfig, config["simulator"], "config.simulator")
    params = simulator.stored(path, setup, learnt, n_attributes=len(attributes.names), stage=stage)
    openings = openings_of(getattr(corpus, split))
    if not openings:
        raise RunError(f"{path}: no seeker of the {split} split is known to like what the recommender named first")
    return StoredSeeker(SeekerSimulator(setup, params, learnt), attributes, openings)


class Heard(NamedTuple):
    """What became of what a person said."""

    recognised: tuple[str, ...]
    """Titles that were recognised in it."""
    liked: tuple[str, ...]
    """Those of them that the seeker likes: then the conversation is over."""
    answer: str | None
    """Of the seeker; None where it is over."""


class Revealed(NamedTuple):
    """What was hidden, and what the seeker expects at this point of the conversation."""

    liked: tuple[str, ...]
    """Titles of the gold."""
    wanted: tuple[str, ...]
    """Their attributes, as they are said."""
    items: tuple[tuple[str, float], ...]
    """The items that the seeker thinks it will like, with their probabilities among those not named yet."""
    attributes: tuple[tuple[str, float], ...]
    """Attributes with the probability that something with them will be liked."""


class SeekerTalk:
    """A conversation of a person with the seeker of one opening; answers depend on `seed` and the number of the turn."""

    def __init__(self, stored: StoredSeeker, opening: ReasonedTurn, *, seed: int = 0) -> None:
        self._seeker, self._attributes, self._opening = stored.seeker, stored.attributes, opening
        items = stored.seeker.setup.corpus.items
        self._titles, self._index = spelled_titles(items), TitleIndex(items)
        self._key = jax.random.key(seed)
        self._history = opening.dialogue.messages[: opening.index]
        self.over = False
        """Whether something that the seeker likes was named."""

    @property
    def said(self) -> list[list[str]]:
        """Role and words of everything so far."""
        return spoken(self._history, self._titles)

    def recommend(self, text: str) -> Heard:
        """Takes what the person says as the recommender's message; the seeker answers unless it has found what it likes.

        Raises: ValueError where the conversation is over.
        """
        if self.over:
            raise ValueError("the conversation is over: something that the seeker likes was named")
        message = Message("recommender", self._index.parts(text), len(self._history))
        recognised = tuple(dict.fromkeys(message.items))
        liked = tuple(item for item in recognised if item in self._opening.gold)
        self._history = (*self._history, message)
        self.over = bool(liked)
        answer = None
        if not self.over:
            key = jax.random.fold_in(self._key, len(self._history))
            (reply,) = self._seeker.say([self._history], [self._opening.gold], key).messages
            self._history = (*self._history, reply)
            answer = spoken([reply], self._titles)[0][1]
        return Heard(tuple(map(self._title, recognised)), tuple(map(self._title, liked)), answer)

    def reveal(self, n: int = 5) -> Revealed:
        """What the seeker likes, and the n items and attributes that it expects most."""
        vocab = self._seeker.setup.vocab
        expected = self._seeker.expects([self._history])
        items, attributes = np.exp(expected.items[0]), expected.attributes[0]
        wanted = self._attributes.of([vocab.item_index(item) for item in self._opening.gold])
        words = self._attributes.words
        return Revealed(
            liked=tuple(map(self._title, self._opening.gold)),
            wanted=tuple(words[place] for place in np.flatnonzero(wanted)),
            items=tuple((self._title(vocab.item_ids[place]), float(items[place])) for place in _best(items, n)),
            attributes=tuple((words[place], float(attributes[place])) for place in _best(attributes, n)),
        )

    def _title(self, item: int) -> str:
        return self._titles.get(item, f"@{item}")


def _best(scores: np.ndarray, n: int) -> list[int]:
    return np.argsort(-scores, kind="stable")[:n].tolist()

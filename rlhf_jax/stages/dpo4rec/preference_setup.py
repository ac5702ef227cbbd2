"""Stage 0 of DPO4Rec: rated histories, who may see which user, words of texts, and the network that writes them."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np

from rlhf_jax.data import preference_texts as texts
from rlhf_jax.data.preference_texts import Attributes, Taste, Usual
from rlhf_jax.data.preference_tokens import MULTIPLE, PreferenceVocabulary, preference_vocabulary
from rlhf_jax.data.preference_vectors import TextCode, text_code, title_vectors
from rlhf_jax.data.rating_lists import MOST_READ, UserSplit, popularity_of, read_part, split_users
from rlhf_jax.data.rating_sources import read_ratings
from rlhf_jax.data.ratings import RatingCorpus
from rlhf_jax.decoding.grammar import Grammar, Opening
from rlhf_jax.decoding.policy import Decode, make_decode, make_group_policy, make_policy_apply
from rlhf_jax.decoding.sampler import Decoding
from rlhf_jax.decoding.sections import Section
from rlhf_jax.interfaces import GroupPolicy, PolicyApply
from rlhf_jax.models.gpt2 import GPT2Config
from rlhf_jax.parallel.mesh import MeshConfig
from rlhf_jax.parallel.partition import ONE_DEVICE, Layout
from rlhf_jax.ranges import Cases, Range, check_numbers
from rlhf_jax.runtime.files import RunError
from rlhf_jax.simulators.rating_world import made_up_ratings
from rlhf_jax.stages.launch import devices
from rlhf_jax.stages.setup import ModelConfig

NO_MESH = MeshConfig()
Source = Literal["movielens", "amazon-games", "redial", "world"]


@dataclasses.dataclass(frozen=True)
class RatingsConfig:
    """Whose ratings, and what a text may say."""

    source: Source = "movielens"
    """`movielens` reads MovieLens 100k or 1M, by the files it finds; `world` makes ratings up."""
    dir: Path | None = None
    """MovieLens: `u.data`, `u.item`, `u.genre`, or `ratings.dat`, `movies.dat`; Amazon: `Games-6k.*`; ReDial: its own files."""
    max_users: Cases | None = None
    """The first so many; None reads all."""
    titles: Annotated[int, Range("[0, 30]")] = 0
    """Liked titles that a text may name at most; 0: texts are words about attributes alone."""
    title_width: Annotated[int, Range("[1, 512]")] = 32
    """Numbers that a title is encoded by."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.source == "world" and self.dir is not None:
            raise ValueError(f"--data.dir {self.dir} is not read when --data.source is world")


def named(config: RatingsConfig) -> str:
    """The options that say whose ratings are read, for messages."""
    first = f"--data.source {config.source}" if config.dir is None else f"--data.dir {config.dir}"
    return first if config.max_users is None else f"{first}, --data.max-users {config.max_users}"


@dataclasses.dataclass(frozen=True, eq=False)
class Writer:
    """The language model as callables over parameters."""

    network: GPT2Config
    grammar: Grammar
    response_tokens: int
    policy: PolicyApply
    group_policy: GroupPolicy
    """The same of all texts about a user at once: the history is read once."""
    programs: dict[Hashable, Any] = dataclasses.field(default_factory=dict, init=False, repr=False)
    """What `compiled` has made."""

    def compiled(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """The program called `name`, made once: whoever asks again shares its compilation."""
        if name not in self.programs:
            self.programs[name] = make()
        return self.programs[name]

    def on_mesh(self, layout: Layout) -> "Writer":
        """The callables for what `layout.loss` and `layout.by_row` wrap, which hand over heads in the groups that devices share."""
        network = dataclasses.replace(self.network, qkv_groups=layout.tensor)
        return dataclasses.replace(
            self,
            network=network,
            policy=make_policy_apply(network, self.grammar),
            group_policy=make_group_policy(network, self.grammar),
        )

    def decode(self, n: int, temperature: float) -> Decode:
        """n texts to every prompt, row by row; the prompt is read once. Temperature 0 is greedy."""
        decoding = Decoding(self.response_tokens, temperature, rollout_for_learning=temperature > 0)
        found: Decode = self.compiled(
            ("decode", n, temperature),
            lambda: jax.jit(make_decode(self.network, self.grammar, decoding, group_size=n)),
        )
        return found


class PreferenceSetup(NamedTuple):
    """What every stage of DPO4Rec starts from."""

    corpus: RatingCorpus
    split: UserSplit
    attributes: Attributes
    usual: Usual
    popularity: np.ndarray
    """Training users who rated each item. [I]"""
    vocab: PreferenceVocabulary
    code: TextCode
    writer: Writer
    titles: int
    """What a text may name at most."""
    seed: int
    layout: Layout = ONE_DEVICE

    def tastes(self, users: np.ndarray) -> list[Taste]:
        """What may be said of some users, by the part of their histories that a text reads."""
        return [
            texts.taste(read_part(self.corpus.histories[user]), self.corpus, self.attributes, self.usual)
            for user in users
        ]

    @property
    def prompt_tokens(self) -> int:
        """Longest prompt."""
        return MOST_READ * (2 if self.vocab.levels else 1) + 1


def set_up(
    config: RatingsConfig,
    model: ModelConfig,
    *,
    seed: int,
    mesh: MeshConfig = NO_MESH,
    rows: Mapping[str, int] = MappingProxyType({}),
) -> PreferenceSetup:
    """Reads the ratings, divides the users, and sizes the network. The seed is the fold of the test users too.

    Args:
      mesh: devices that train the writer.
      rows: of the batches that these devices share, by what they are.
    Raises: RunError naming the folder, file, line and value of what cannot be read; ValueError naming the numbers where there are
      too few devices, or the network or a batch cannot be cut evenly.
    """
    corpus = read(config)
    try:
        split = split_users(len(corpus.users), fold=seed)
    except ValueError as error:
        raise RunError(f"{named(config)}: {error}") from error
    attributes = texts.attributes_of(corpus.items)
    if not attributes.words:
        raise RunError(f"{named(config)}: items have neither genres nor years, and no words that titles share")
    vocab = preference_vocabulary(corpus, attributes)
    width = config.title_width if config.titles else 0
    titles = title_vectors(corpus, split.train, width=width) if width else np.zeros((len(corpus.items), 0), np.float32)
    # <say> and <eos>; sections, their words, one word each of the two that have no limit; <rec> and titles.
    response = 4 + len(texts.SECTIONS) + sum(texts.MOST.values()) + (config.titles + 1 if config.titles else 0)
    prompt = MOST_READ * 2 + 1
    network = GPT2Config(
        vocab_size=vocab.size,
        n_positions=max(model.n_positions, prompt + response),
        n_embd=model.n_embd,
        n_layer=model.n_layer,
        n_head=model.n_head,
        dropout=0.0,
        compute_dtype=model.compute_dtype,
        layers=model.layers,
        remat="full" if model.remat else "none",
    )
    return PreferenceSetup(
        corpus=corpus,
        split=split,
        attributes=attributes,
        usual=texts.usual(corpus, attributes, split.train),
        popularity=popularity_of(corpus, split.train),
        vocab=vocab,
        code=text_code(attributes, titles),
        writer=make_writer(network, vocab, attributes, response_tokens=response, titles=config.titles),
        titles=config.titles,
        seed=seed,
        layout=devices(mesh, network, rows),
    )


def read(config: RatingsConfig) -> RatingCorpus:
    """The ratings. Raises: RunError naming the option, and the file, line and value of what cannot be read."""
    if config.source == "world":
        return made_up_ratings(max_users=config.max_users)
    if config.dir is None:
        raise RunError(f"--data.dir must name the folder with the files when --data.source is {config.source}")
    try:
        return read_ratings(config.source, config.dir, max_users=config.max_users)
    except (FileNotFoundError, ValueError) as error:
        raise RunError(f"--data.dir {config.dir}: {error}") from error


def make_writer(
    network: GPT2Config, vocab: PreferenceVocabulary, attributes: Attributes, *, response_tokens: int, titles: int
) -> Writer:
    """The callables. Sampling, reference and learning know the sections, so that no training can break a text's form; titles are
    in the grammar only where texts may name them."""
    openings = (Opening(vocab.say, "words"),) + ((Opening(vocab.rec, "list"),) if titles else ())
    # Without titles no text holds an item, and nothing is computed for them; one stands for all, as a grammar needs one.
    n_items = vocab.n_items if titles else 1
    grammar = Grammar(
        n_words=len(vocab.words),
        pad=vocab.pad,
        eos=vocab.eos,
        rec=vocab.rec,
        say=vocab.say,
        first_item=vocab.first_item,
        n_items=n_items,
        max_items=max(titles, 1),
        vocab_size=vocab.size if titles else -(-(vocab.first_item + n_items) // MULTIPLE) * MULTIPLE,
        openings=openings,
        sections=tuple(Section(*one) for one in vocab.sections(attributes)),
    )
    return Writer(
        network, grammar, response_tokens, make_policy_apply(network, grammar), make_group_policy(network, grammar)
    )

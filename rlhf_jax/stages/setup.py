"""Stage 0: dialogues, vocabulary and network from a configuration: what every later stage starts from."""

import dataclasses
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, NamedTuple

import jax

from rlhf_jax.data.dialogue_store import StoredDialogues, read_stored_corpus
from rlhf_jax.data.items import item_title_tokens
from rlhf_jax.data.sources import SOURCES, WORLD, SourceName, read_corpus
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import training_texts
from rlhf_jax.interfaces import Corpus, Dialogue, Params
from rlhf_jax.keys import stream_key
from rlhf_jax.models.convert import extend_vocabulary, load_hf, read_config
from rlhf_jax.models.gpt2 import GPT2Config
from rlhf_jax.parallel.partition import ONE_DEVICE, Layout
from rlhf_jax.pretrained import local_file
from rlhf_jax.ranges import Cases, Range, Size, Tokens, check_numbers
from rlhf_jax.recommenders.scorer import ItemScorer
from rlhf_jax.runtime.files import RunError, notice, storage_errors
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.simulators.world import WorldConfig
from rlhf_jax.simulators.world_dialogues import write_world
from rlhf_jax.stages.agent import Agent, make_agent
from rlhf_jax.stages.stored_texts import stored_vocabulary


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where dialogues come from and how a conversation becomes a prompt."""

    source: SourceName = WORLD
    """The simulated world, written on the spot, or files under `dir` in the official ReDial or an OpenDialKG format."""
    dir: Path | None = None
    """ReDial: `train_data.jsonl[.gz]`, `test_data.jsonl`, `movies_with_mentions.csv`; OpenDialKG: `dialogues.jsonl`,
    `id2info.json`, or `opendialkg.csv`, `opendialkg_entities.txt`."""
    name: str | None = None
    """What reports and splits call the corpus; None takes the source's name. For dialogues of your own."""
    domain: Literal["both", "movie", "book"] = "both"
    """Which of OpenDialKG's dialogues; a dialogue's split is the same either way."""
    train_domain: Literal["both", "movie", "book"] = "both"
    """Which of them are learnt and validated on; catalogue and test split stay those of `domain`."""
    on_bad_line: Literal["error", "skip"] = "error"
    """A malformed line ends the run, or is counted and reported."""
    max_dialogues: Cases | None = None
    """Read only the first so many dialogues of each of ReDial's files (training and validation share one) or of each of
    OpenDialKG's domains, which are split afterwards; None reads all."""
    world: WorldConfig = WorldConfig()
    """The simulated world's size, difficulty and hackability; used where `source` is `world`."""
    store: Path | None = None
    """For corpora larger than memory: a folder where dialogues, vocabulary and training texts are kept on disk, to be read
    when they are asked for and found again by any later run on the same files. The same numbers as None, all in memory."""
    n_words: Annotated[int, Range("[1, 1_000_000]")] = 1000
    """Tokens of the BPE trained on the training split; used where no `tokenizer` is given."""
    tokenizer: str | None = None
    """GPT-2's own BPE: a folder with `vocab.json` and `merges.txt`, or a hub name in the local cache."""
    window: Annotated[int, Range("[1, 10_000]")] = 6
    """The state: how many turns of the conversation the policy sees."""
    context_tokens: Tokens = 96
    """Longest prompt; whole utterances only."""
    response_tokens: Tokens = 32
    """Longest response, `<eos>` included."""
    max_items: Annotated[int, Range("[1, 1_000]")] = 5
    """Longest suggestion list of a turn."""
    items_once: bool = False
    """Whether a reply names a suggested item at most once: no "try Alien or Alien". Human messages that name one again end
    before it, where they are learnt."""
    rl_share: Annotated[float, Range("[0, 1)")] = 0.0
    """Share of the training dialogues that imitation leaves out and reinforcement learning takes its contexts from, so that
    the policy has not learnt them by heart. 0: both read all of them. The reward model reads all of
    them, but with `--reward.reads-policy` those of reinforcement learning alone."""

    @property
    def corpus_name(self) -> str:
        """What reports call the corpus: `name`, or the source with the domain where it is one of several."""
        return self.name or (self.source if self.domain == "both" else f"{self.source}-{self.domain}")

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.source != WORLD and self.dir is None:
            raise ValueError(f"--data.dir must name the folder with the files when --data.source is {self.source}")
        if self.source == WORLD and self.dir is not None:
            raise ValueError(f"--data.dir {self.dir} is not read when --data.source is world; use the preset `redial`")
        if self.store is not None and SOURCES[self.source].stream is None:
            raise ValueError(f"--data.store {self.store}: dialogues of --data.source {self.source} are read whole")
        has_domains = SOURCES[self.source].has_domains
        if not has_domains and self.domain != "both":
            raise ValueError(f"--data.domain {self.domain} is OpenDialKG's; --data.source is {self.source}")
        if self.train_domain != "both" and self.domain != "both":
            raise ValueError(f"--data.train-domain {self.train_domain} needs --data.domain both, got {self.domain}")
        if not has_domains and self.train_domain != "both":
            raise ValueError(f"--data.train-domain {self.train_domain} is OpenDialKG's; --data.source is {self.source}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Size of the GPT-2, or where its weights are."""

    weights: str | None = None
    """Hugging Face folder (`config.json`, `model.safetensors`), or a hub name in the local cache; gives size and
    weights. None trains from scratch."""
    n_layer: Annotated[int, Range("[1, 1_000]")] = 2
    """Blocks."""
    n_embd: Size = 128
    """Width."""
    n_head: Annotated[int, Range("[1, 1_024]")] = 4
    """Attention heads."""
    n_positions: Tokens = 512
    """Longest sequence."""
    dropout: Annotated[float, Range("[0, 1)")] = 0.1
    """Rate while training stages 1 and 2."""
    attention_dropout: bool = True
    """Whether dropout also thins attention weights; off is faster on a CPU."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 on accelerators; on a CPU float32 is faster."""
    layers: Literal["unrolled", "scan"] = "unrolled"
    """How training passes the blocks. `unrolled` runs fastest on a CPU; `scan` compiles one block for all of them. Decoding is
    always unrolled."""
    remat: bool = False
    """Recompute blocks in the backward pass to save memory (on a CPU only with `--model.layers scan`)."""
    remat_saves: Literal["nothing", "matmuls"] = "nothing"
    """What recomputing spares: matmuls with weights may be kept, which costs part of the memory and saves most of the work."""
    attention: Literal["masked", "xla", "cudnn"] = "masked"
    """How whole sequences attend: any padding; or fused, where a row's real tokens stand together (`cudnn`: NVIDIA GPUs in
    bfloat16, `xla`: its plain twin). Fused attention thins no weights: `--model.no-attention-dropout`."""
    head_chunk: Tokens | None = None
    """Response positions whose logits over the vocabulary are in memory at once in PPO; None keeps all."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.remat_saves != "nothing" and not self.remat:
            raise ValueError(f"--model.remat-saves {self.remat_saves} says what --model.remat spares, and that is off")
        if self.weights is None and self.n_embd % self.n_head:
            raise ValueError(f"--model.n-embd {self.n_embd} is not a multiple of --model.n-head {self.n_head}")
        if self.attention != "masked" and self.dropout > 0 and self.attention_dropout:
            raise ValueError(
                f"--model.attention {self.attention} thins no attention weights: add --model.no-attention-dropout "
                f"(--model.dropout is {self.dropout})"
            )
        if self.attention == "cudnn" and self.compute_dtype != "bfloat16":
            raise ValueError(f"--model.attention cudnn needs --model.compute-dtype bfloat16: got {self.compute_dtype}")


class Setup(NamedTuple):
    """What every later stage starts from. A variant is `setup._replace(…)`: another window, agent or layout."""

    data: DataConfig
    """How a conversation becomes a prompt."""
    corpus: Corpus
    vocab: Vocabulary
    agent: Agent
    seed: int
    """Of parameters, batches and sampling."""
    pretrained: Params | None = None
    """Pretrained trunk with the vocabulary's rows; None means from scratch."""
    world_seed: int | None = None
    """Seed of the simulated world; None for real data."""
    layout: Layout = ONE_DEVICE
    """The devices that train."""
    scorer: ItemScorer | None = None
    """What prompts bring along of items, for policies with a prior; None: nothing."""
    prior: Mapping[str, Params] = MappingProxyType({})
    """{`prior`: weights}, what the policy has beside its trunk when reinforcement learning starts; empty: nothing."""

    @property
    def network(self) -> GPT2Config:
        """The agent's sizes."""
        return self.agent.network

    def training_parts(self) -> tuple[Sequence[Dialogue], Sequence[Dialogue]]:
        """Training dialogues for imitation and for reinforcement learning: disjoint where `data.rl_share` says so.

        A dialogue's part hangs on its own id alone: another seed, or more data, moves none to the other side.

        Raises: RunError if a part is empty.
        """
        dialogues, share = self.corpus.train, self.data.rl_share
        if share == 0:
            return dialogues, dialogues
        if isinstance(dialogues, StoredDialogues):
            ids = dialogues.dialogue_ids()
        else:
            ids = (dialogue.dialogue_id for dialogue in dialogues)
        parts: tuple[list[int], list[int]] = ([], [])
        for number, dialogue_id in enumerate(ids):
            parts[zlib.crc32(f"rl/{dialogue_id}".encode()) < share * 2**32].append(number)
        if not all(parts):
            raise RunError(
                f"--data.rl-share {share} of {len(dialogues)} training dialogues leaves {len(parts[0])} to imitation and "
                f"{len(parts[1])} to reinforcement learning: each needs one"
            )
        if isinstance(dialogues, StoredDialogues):
            return dialogues.chosen(parts[0]), dialogues.chosen(parts[1])
        return tuple(dialogues[number] for number in parts[0]), tuple(dialogues[number] for number in parts[1])

    def testing(self, dialogues: Sequence[Dialogue]) -> "Setup":
        """The same with other dialogues in the place of the test split."""
        return self._replace(corpus=dataclasses.replace(self.corpus, test=tuple(dialogues)))


def set_up(
    run: RunDirectory,
    data: DataConfig,
    model: ModelConfig,
    *,
    seed: int,
    world_seed: int | None = None,
    temperature: float = 1.0,
) -> Setup:
    """Reads (or simulates) the corpus, makes the vocabulary once per run, and sizes the network.

    Args:
      world_seed: of the simulated world; None takes `seed`.
      temperature: divides the logits of policy and reference, in sampling and in learning.
    """
    world_seed = seed if world_seed is None else world_seed
    folder = _world_folder(run, data.world, world_seed) if data.source == WORLD else Path(str(data.dir))
    try:
        if data.store is None:
            corpus = read_corpus(folder, data)
        else:
            with storage_errors(data.store):
                corpus = read_stored_corpus(folder, data, data.store, notice)
    except FileNotFoundError as error:
        raise RunError(f"--data.dir {folder}: {error}") from error
    if corpus.provenance["n_skipped"]:
        notice(f"{corpus.provenance['n_skipped']} malformed lines were skipped; config.json lists them")
    run.record(data=corpus.provenance)
    vocab = _vocabulary(run, corpus, data)
    run.record(vocabulary=vocabulary_hashes(run.path))
    notice(
        f"{len(corpus.train)} training, {len(corpus.validation)} validation, {len(corpus.test)} test dialogues; "
        f"{len(corpus.items)} items, {vocab.n_words} words"
    )
    network, trunk = load_network(model, vocab)
    if trunk is not None:
        trunk = extend_vocabulary(
            trunk,
            stream_key(jax.random.key(seed), "vocabulary/rows", 0),
            vocab.size,
            n_words=vocab.n_words,
            first_item=vocab.first_item,
            item_titles=item_title_tokens(vocab, corpus.items),
        )
    agent = make_agent(
        vocab,
        network,
        max_items=data.max_items,
        response_tokens=data.response_tokens,
        temperature=temperature,
        once=data.items_once,
    )
    return Setup(data, corpus, vocab, agent, seed, trunk, world_seed if data.source == WORLD else None)


def load_network(model: ModelConfig, vocab: Vocabulary) -> tuple[GPT2Config, Params | None]:
    """The network's sizes for this vocabulary, and the weights as they are on disk; None means from scratch."""
    trunk = None if model.weights is None else load_hf(model.weights)[1]
    return size_network(model, vocab), trunk


def size_network(model: ModelConfig, vocab: Vocabulary) -> GPT2Config:
    """The network's sizes for this vocabulary; of a pretrained folder `config.json` alone is read.

    Raises: ValueError naming the file that is missing, or its field that does not fit.
    """
    if model.weights is None:
        network = GPT2Config(
            vocab_size=vocab.size,
            n_positions=model.n_positions,
            n_embd=model.n_embd,
            n_layer=model.n_layer,
            n_head=model.n_head,
        )
    else:
        network = read_config(local_file(model.weights, "config.json"))
    return dataclasses.replace(
        network,
        vocab_size=vocab.size,
        dropout=model.dropout,
        attention_dropout=model.attention_dropout,
        compute_dtype=model.compute_dtype,
        layers=model.layers,
        remat=("full" if model.remat_saves == "nothing" else "dots") if model.remat else "none",
        attention=model.attention,
        head_chunk=model.head_chunk,
    )


def _world_folder(run: RunDirectory, world: WorldConfig, seed: int) -> Path:
    folder = run.path / "data"
    if not folder.exists():
        # Renamed when whole: a run killed while writing starts the world again.
        with storage_errors(folder):
            write_world(run.path / "data.partial", world, seed).rename(folder)
    return folder


def _vocabulary(run: RunDirectory, corpus: Corpus, data: DataConfig) -> Vocabulary:
    folder = run.path / "vocabulary"
    if folder.exists():
        return Vocabulary.load(folder)
    if data.tokenizer is not None:
        vocab = Vocabulary.from_gpt2(data.tokenizer, corpus.items)
    elif isinstance(corpus.train, StoredDialogues):
        vocab = stored_vocabulary(corpus.train, tuple(corpus.items), data.n_words)
    else:
        vocab = Vocabulary.train(training_texts(corpus.train), corpus.items, data.n_words)
    with storage_errors(folder):
        vocab.save(run.path / "vocabulary.partial")
        (run.path / "vocabulary.partial").rename(folder)
    return vocab


def vocabulary_hashes(path: Path) -> dict[str, str]:
    """SHA-256 of the files of a run's vocabulary: with other tokens the models would say something else."""
    found = sorted(file for file in (path / "vocabulary").iterdir() if file.is_file())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in found}

"""A run directory read back for use: vocabulary, catalogue, network and the model of any stage. Nothing is written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.data.sources import WORLD, read_corpus
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.interfaces import Corpus, Params
from rlhf_jax.runtime.files import RunError, read_json
from rlhf_jax.runtime.settings import from_json
from rlhf_jax.runtime.stage import stage_arrays
from rlhf_jax.stages import alignment, items, supervised
from rlhf_jax.stages.agent import Agent, make_agent, policy_params
from rlhf_jax.stages.alignment import AlignmentConfig
from rlhf_jax.stages.setup import DataConfig, ModelConfig, load_network
from rlhf_jax.stages.supervised import SupervisedConfig

STAGES = (supervised.STAGE, *alignment.STAGES)
"""Stages that end with a policy, in their order."""


class Finished(NamedTuple):
    """What a run directory says about the models in it."""

    path: Path
    config: Mapping[str, Any]
    data: DataConfig
    corpus: Corpus
    vocab: Vocabulary
    agent: Agent

    @property
    def stages(self) -> list[str]:
        """Stages that have reached a checkpoint."""
        return [stage for stage in STAGES if any((self.path / "checkpoints" / stage).glob("[0-9]*"))]


def open_finished(path: Path) -> Finished:
    """Reads a run that is finished, or as far as it has come.

    Raises: RunError naming what the directory lacks.
    """
    if not (path / "config.json").exists():
        raise RunError(f"{path} is no run directory: it has no config.json")
    config = read_json(path / "config.json")["config"]
    data = from_json(DataConfig, config["data"], "config.data")
    folder = path / "data" if data.source == WORLD else Path(str(data.dir))
    try:
        corpus = read_corpus(folder, data)
    except FileNotFoundError as error:
        raise RunError(f"the run's data are read for the titles of items, and are not there: {error}") from error
    if not (path / "vocabulary").exists():
        raise RunError(f"{path} has no vocabulary yet: start the run again and let it come further")
    vocab = Vocabulary.load(path / "vocabulary")
    network, _ = load_network(from_json(ModelConfig, config["model"], "config.model"), vocab)
    align = from_json(AlignmentConfig, config["align"], "config.align")
    agent = make_agent(
        vocab, network, max_items=data.max_items, response_tokens=data.response_tokens, temperature=align.temperature
    )
    return Finished(path, config, data, corpus, vocab, agent)


def stage_policy(run: Finished, stage: str) -> Params:
    """The policy a stage ended with, or its newest checkpoint.

    Raises: RunError where the stage has none.
    """
    state = stage_arrays(run.path, stage)
    if stage in alignment.STAGES:
        average = state.get("average")
        return state["params"] if average is None else average
    config = from_json(SupervisedConfig, run.config["sft"], "config.sft")
    knowledge, _ = items.item_knowledge(run.vocab, run.corpus, config)
    trunk = items.compose(state["average"], knowledge, run.vocab.first_item)
    return policy_params(trunk, run.agent.network.n_embd)

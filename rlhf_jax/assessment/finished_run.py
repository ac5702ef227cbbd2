"""A run directory read back for use: vocabulary, catalogue, network and the model of any stage. Nothing is written."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.data.sources import WORLD, read_corpus
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.decoding import prior, suggested
from rlhf_jax.feedback.components import weights_of
from rlhf_jax.interfaces import Corpus, Params
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.recommenders import standing
from rlhf_jax.recommenders.scorer import ItemScorer, fit_scorer
from rlhf_jax.runtime.files import RunError, as_json, read_object
from rlhf_jax.runtime.run import check_facts
from rlhf_jax.runtime.settings import from_json
from rlhf_jax.runtime.stage import stage_arrays
from rlhf_jax.stages import alignment, item_prior, items, live_rounds, reward, supervised
from rlhf_jax.stages.agent import Agent, make_agent, policy_params
from rlhf_jax.stages.alignment import AlignmentConfig
from rlhf_jax.stages.item_prior import PriorConfig
from rlhf_jax.stages.live_feedback import LiveConfig
from rlhf_jax.stages.reward import Proxy, RewardConfig
from rlhf_jax.stages.setup import DataConfig, ModelConfig, size_network, vocabulary_hashes
from rlhf_jax.stages.supervised import SupervisedConfig

STAGES = (supervised.STAGE, item_prior.STAGE, *alignment.STAGES, live_rounds.STAGE)
"""Stages that end with a policy, in their order."""


class Finished(NamedTuple):
    """What a run directory says about the models in it."""

    path: Path
    config: Mapping[str, Any]
    data: DataConfig
    corpus: Corpus
    vocab: Vocabulary
    agent: Agent
    scorer: ItemScorer | None = None
    """What prompts bring along of items, where the policy has a prior."""

    @property
    def stages(self) -> list[str]:
        """Stages that have reached a checkpoint."""
        return [stage for stage in STAGES if self._reached(stage)]

    @property
    def expected(self) -> tuple[str, ...]:
        """Stages that end with a policy in a run of this configuration, reached or not."""
        learnt = (item_prior.STAGE,) if has_prior(self.config) else ()
        last = (live_rounds.STAGE,) if self.config.get("reactions", False) else ()
        return supervised.STAGE, *learnt, str(self.config.get("algorithm", alignment.STAGE)), *last

    @property
    def has_proxy(self) -> bool:
        """Whether the reward model has reached a checkpoint."""
        return self._reached(reward.STAGE)

    def _reached(self, stage: str) -> bool:
        if stage == item_prior.STAGE:
            return (self.path / item_prior.FILE).exists()
        if stage == live_rounds.STAGE:
            return newest_round(self.path, self.config) is not None
        return any((self.path / "checkpoints" / stage).glob("[0-9]*"))


def open_finished(path: Path) -> Finished:
    """Reads a run that is finished, or as far as it has come.

    Raises: RunError naming what the directory lacks.
    """
    config = stored_config(path, {"data", "model", "sft"}, "ppo_redial.py or ppo_opendialkg.py")
    data, corpus, vocab = materials(path, config)
    network = size_network(from_json(ModelConfig, config["model"], "config.model"), vocab)
    agent = make_agent(
        vocab,
        network,
        max_items=data.max_items,
        response_tokens=data.response_tokens,
        temperature=_temperature(config),
        once=data.items_once,
    )
    found = Finished(path, config, data, corpus, vocab, agent)
    if live_rounds.STAGE in found.stages:
        parts = from_json(LiveConfig, config["live"], "config.live").parts
        found = found._replace(scorer=fit_scorer(corpus, vocab.item_ids, parts))
        assert found.scorer is not None
        return found._replace(scorer=found.scorer.with_standing(_last_round(found).reward.standing))
    if item_prior.STAGE not in found.stages:
        return found
    parts = from_json(PriorConfig, config["prior"], "config.prior").parts
    return found._replace(scorer=fit_scorer(corpus, vocab.item_ids, parts))


def newest_round(path: Path, config: Mapping[str, Any]) -> Path | None:
    """The last round of a run whose users' reactions pay for items; None where it has none, or asked for none."""
    return live_rounds.newest(path, int(config["seed"])) if config.get("reactions", False) else None


def _last_round(run: Finished) -> live_rounds.Round:
    file = newest_round(run.path, run.config)
    if file is None or run.scorer is None:
        raise RunError(f"{run.path} has no round of users' reactions yet")
    names = [name for name in run.scorer.names if name != standing.NAME]
    return live_rounds.stored_round(file, ("policy", *names), run.vocab.item_ids)


def _temperature(config: Mapping[str, Any]) -> float:
    """Of sampling and learning; a foundation of studies, which aligns nothing, says it by itself."""
    if "align" not in config and type(config.get("temperature")) is float:
        return float(config["temperature"])
    return from_json(AlignmentConfig, config.get("align"), "config.align").temperature


def stored_config(path: Path, needed: Collection[str], scripts: str) -> dict[str, Any]:
    """The configuration of a run directory.

    Args:
      needed: its fields that are read.
      scripts: whose run is expected, for people.
    Raises: RunError naming what the directory lacks.
    """
    if not (path / "config.json").exists():
        raise RunError(f"{path} is no run directory: it has no config.json")
    config = read_object(path / "config.json", "config")["config"]
    if not isinstance(config, dict) or (missing := set(needed) - config.keys()):
        lacks = f"lacks {', '.join(sorted(missing))}" if isinstance(config, dict) else "is no object"
        raise RunError(f"{path / 'config.json'}: 'config' {lacks}: expected a run of {scripts}")
    return config


def materials(path: Path, config: Mapping[str, Any]) -> tuple[DataConfig, Corpus, Vocabulary]:
    """The dialogues and words that a run reads, checked against what it has stored of them.

    Raises: RunError where they are not there, or not those that the run began with.
    """
    data = from_json(DataConfig, config["data"], "config.data")
    folder = path / "data" if data.source == WORLD else Path(str(data.dir))
    try:
        corpus = read_corpus(folder, data)
    except FileNotFoundError as error:
        raise RunError(f"the run's data are read for the titles of items, and are not there: {error}") from error
    if not (path / "vocabulary").exists():
        raise RunError(f"{path} has no vocabulary yet: start the run again and let it come further")
    vocab = Vocabulary.load(path / "vocabulary")
    check_facts(path, as_json({"data": corpus.provenance, "vocabulary": vocabulary_hashes(path)}))
    return data, corpus, vocab


def has_prior(config: Mapping[str, Any]) -> bool:
    """Whether policies of a run with this configuration have a prior; older ones say nothing of it."""
    stored = config.get("prior")
    return isinstance(stored, Mapping) and stored.get("learner", "none") != "none"


def stage_policy(run: Finished, stage: str) -> Params:
    """The policy a stage ended with, or its newest checkpoint.

    Raises: RunError where the stage has none.
    """
    if stage in alignment.STAGES:
        state = stage_arrays(run.path, stage)
        average = state.get("average")
        return state["params"] if average is None else average
    if stage == item_prior.STAGE:
        return stage_policy(run, supervised.STAGE) | {prior.NAME: item_prior.stored_prior(run.path / item_prior.FILE)}
    if stage == live_rounds.STAGE:
        return _last_round(run).policy(stage_policy(run, supervised.STAGE)["trunk"])
    state = stage_arrays(run.path, stage)
    config = from_json(SupervisedConfig, run.config["sft"], "config.sft")
    knowledge, _ = items.item_knowledge(run.vocab, run.corpus, config)
    trunk = items.compose(state["average"], knowledge, run.vocab.first_item)
    return policy_params(trunk, run.agent.network.n_embd)


def stage_proxy(run: Finished) -> Proxy | None:
    """The run's reward model with the weights PPO gives its components; None where the run has not come so far."""
    if not run.has_proxy:
        return None
    config = from_json(RewardConfig, run.config["reward"], "config.reward")
    names, model = config.components, stage_arrays(run.path, reward.STAGE)["average"]
    weights = from_json(PPOConfig, run.config["ppo"], "config.ppo").component_weights
    if config.reads_policy:
        # It is not stored a second time: what is read is imitation, with its prior.
        read = stage_policy(run, item_prior.STAGE if has_prior(run.config) else supervised.STAGE)
        model |= {suggested.NAME: {name: part for name, part in read.items() if name != "value"}}
    return Proxy(model, weights_of(names, weights), names)

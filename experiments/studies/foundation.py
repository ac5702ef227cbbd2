"""Stages 0–2 in a directory of their own: what the variants of one study, and several studies, have in common.

Two policies that differ in their reward alone must start from the same imitation. So data, supervised policy and reward
models are made once per seed; whoever needs them opens the same directory and gets the same parameters, bit by bit.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from rlhf_jax.feedback.components import COMPONENTS, equal_weights
from rlhf_jax.interfaces import Params
from rlhf_jax.ranges import Range, check_numbers
from rlhf_jax.reporting import gates
from rlhf_jax.runtime.files import RunError, as_json, read_object
from rlhf_jax.runtime.run import RunDirectory, open_run
from rlhf_jax.stages import reward, supervised
from rlhf_jax.stages.agent import policy_params
from rlhf_jax.stages.reward import Proxy, RewardConfig
from rlhf_jax.stages.setup import DataConfig, ModelConfig, Setup, set_up
from rlhf_jax.stages.supervised import SupervisedConfig

Sentiment = Literal["shift", "level"]
EQUAL = equal_weights(COMPONENTS)
"""α = β = γ: the weights a reward model's early stopping and gate look at."""


@dataclasses.dataclass(frozen=True)
class FoundationConfig:
    """Data, imitation and reward models of one seed."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    sft: SupervisedConfig = SupervisedConfig()
    reward: RewardConfig = RewardConfig(gate="warn")
    """Of every reward model; `labels.sentiment` is overruled by `sentiments`."""
    sentiments: tuple[Sentiment, ...] = ("shift",)
    """One reward model for each form of the sentiment signal."""
    temperature: Annotated[float, Range("[0.01, 100]")] = 1.0
    """Divides the logits of policy and reference, in sampling and in learning."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if not self.sentiments or len(set(self.sentiments)) < len(self.sentiments):
            raise ValueError(f"sentiments must name shift, level or both, each once: got {self.sentiments}")
        if self.reward.reads_policy:
            raise ValueError(
                "reward.reads_policy: studies that stand on a foundation score logged turns by their tokens alone"
            )

    def check_sentiment(self, sentiment: Sentiment, option: str) -> None:
        """Raises ValueError where no reward model for `sentiment` would be laid; `option` is what asked for it."""
        if sentiment not in self.sentiments:
            raise ValueError(
                f"{option} needs a reward model for the sentiment {sentiment}; the foundation of this setting and size has "
                f"{' and '.join(self.sentiments)} alone"
            )


class Foundation(NamedTuple):
    """What PPO, best-of-n and the studies start from."""

    path: Path
    config: FoundationConfig
    setup: Setup
    trunk: Params
    """The supervised GPT-2: start and reference of every policy."""
    proxies: dict[str, Proxy]
    """Reward models with equal weights, by form of the sentiment signal."""
    gates: dict[str, dict[str, Any]]
    """The held-out correlations of each."""

    @property
    def supervised_policy(self) -> Params:
        """The policy that imitates, its values 0."""
        return policy_params(self.trunk, self.setup.network.n_embd)

    def proxy(self, sentiment: Sentiment) -> Proxy:
        """R_φ for one form of the sentiment signal, with equal weights.

        Raises: RunError where the foundation was laid without it.
        """
        if sentiment not in self.proxies:
            raise RunError(
                f"{self.path} has no reward model for the sentiment {sentiment}: it was laid with {self.config.sentiments}"
            )
        return self.proxies[sentiment]


def stored_config(config: FoundationConfig) -> dict[str, Any]:
    """Everything that a foundation's numbers depend on; where the data lie is not among it (what they are is, by hash)."""
    stored = as_json(config)
    del stored["data"]["dir"]
    return stored


def facts(folder: Path, config: FoundationConfig) -> dict[str, Any]:
    """What a seed of a study rests on: the foundation's configuration and, where it lies in `folder`, the data it read.

    For `RunDirectory.record`, which refuses a seed that rests on another foundation, finished or not.
    """
    found: dict[str, Any] = {"foundation": stored_config(config)}
    if (folder / "config.json").exists() and "data" in (laid := read_object(folder / "config.json")):
        found["foundation_data"] = laid["data"]
    return found


def lay_for(run: RunDirectory, folder: Path, config: FoundationConfig, *, seed: int) -> Foundation:
    """`lay` for a study's seed, whose `config.json` then says what it rests on, and `gates.json` what the gate said.

    Raises: RunError as `lay`, and where the seed began on another foundation.
    """
    foundation = lay(folder, config, seed=seed)
    run.record(**facts(folder, config))
    gates.save(run, foundation.gates)
    return foundation


def lay(folder: Path, config: FoundationConfig, *, seed: int) -> Foundation:
    """Runs what is missing of stages 0–2 in `folder` and returns what they learnt; waits where another process does so.

    Raises: RunError where `folder` belongs to another configuration or seed.
    """
    with open_run(folder, {"seed": seed, **stored_config(config)}, trackers=(), wait=True) as run:
        setup = set_up(run, config.data, config.model, seed=seed, temperature=config.temperature)
        trunk = supervised.train(run, setup, config.sft)
        proxies, passed = {}, {}
        for sentiment in config.sentiments:
            labels = dataclasses.replace(config.reward.labels, sentiment=sentiment)
            proxies[sentiment], passed[sentiment] = reward.train(
                run,
                setup,
                trunk,
                dataclasses.replace(config.reward, labels=labels),
                weights=EQUAL,
                stage=f"{reward.STAGE}-{sentiment}",
            )
    return Foundation(folder, config, setup, trunk, proxies, passed)

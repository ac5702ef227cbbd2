"""What a round of live feedback ends with, and the file that it is.

A run keeps its rounds in `seed-S/round-R.json`: the reward model of items, the policy's weights and manners, by their names.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rlhf_jax.decoding import prior
from rlhf_jax.interfaces import Params
from rlhf_jax.learners.item_reward import ItemReward
from rlhf_jax.runtime.files import RunError, read_object
from rlhf_jax.stages import item_prior

STAGE = "reactions"
"""What a run calls the stage whose last round speaks."""
EXTRAS = ("suggests", "more_items", "words")
"""What a turn has beside its items: whether it suggests, items after the first, word tokens by tens."""


def extras_of(n_items: Any, n_words: Any) -> Any:
    """`EXTRAS` of turns, from how many items they list and how many word tokens they have. [N, E]"""
    return jnp.stack([jnp.asarray(n_items > 0, jnp.float32), jnp.maximum(n_items - 1, 0), n_words / 10], axis=-1)


class Round(NamedTuple):
    """What a round ends with."""

    reward: ItemReward
    weights: dict[str, float]
    """Of the policy's prior: `policy` for the trunk's log-probability, then each score by its name."""
    manners: dict[str, float]
    """When to suggest and when to stop, `decoding.prior.MANNERS`."""
    facts: dict[str, float]
    """Turns that R_r was learnt from, and its Pearson with the labels of the log's validation split."""

    def policy(self, trunk: Params) -> Params:
        """The policy's tree."""
        items = item_prior.as_params(np.array(list(self.weights.values())))
        return {"trunk": trunk, prior.NAME: items | {"manners": jnp.array([*self.manners.values()], jnp.float32)}}


def folder_of(run: Path, seed: int) -> Path:
    """Where a run keeps the rounds of one seed."""
    return run / f"seed-{seed}"


def round_file(run: Path, seed: int, number: int) -> Path:
    """The file of one round."""
    return folder_of(run, seed) / f"round-{number}.json"


def newest(run: Path, seed: int) -> Path | None:
    """The file of the last round that was finished; None where there is none."""
    numbers = [int(path.stem.removeprefix("round-")) for path in folder_of(run, seed).glob("round-[0-9]*.json")]
    return round_file(run, seed, max(numbers)) if numbers else None


def as_stored(done: Round, names: Sequence[str], items: Iterable[int]) -> dict[str, Any]:
    """A round as JSON, numbers by their names.

    Args:
      names: of what is known of an item, `policy` first.
      items: ids, in the order of the policy's tokens.
    """
    reward = done.reward
    return {
        "reward": {
            "weights": dict(zip(names, reward.weights.tolist(), strict=True)),
            "standing": dict(zip(map(str, items), reward.standing.tolist(), strict=True)),
            "extras": dict(zip(EXTRAS, reward.extras.tolist(), strict=True)),
            "intercept": reward.intercept,
        },
        "prior": done.weights,
        "manners": done.manners,
        "facts": done.facts,
    }


def stored_round(path: Path, names: Sequence[str], items: Iterable[int]) -> Round:
    """A round that `as_stored` wrote.

    Raises: RunError naming the file, where it is of other scores or items.
    """
    stored = read_object(path, "reward", "prior", "manners", "facts")
    try:
        reward = stored["reward"]
        worths, standings, extras = (
            np.array([reward[part][name] for name in known], np.float64)
            for part, known in (("weights", names), ("standing", map(str, items)), ("extras", EXTRAS))
        )
        found = ItemReward(worths, standings, extras, float(reward["intercept"]))
        weights, manners = ({name: float(one) for name, one in stored[part].items()} for part in ("prior", "manners"))
        return Round(found, weights, manners, stored["facts"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} holds no round of these scores and items ({error!r}): restore or remove it") from error

"""Components of the reward: how they are called, and what each weighs."""

from collections.abc import Sequence

COMPONENTS = ("engagement", "relevance", "sentiment")
"""The paper's three, which every run has unless it says otherwise; the order of the last axis of a `[..., C]` array."""
RESERVED = ("reward", "score", "mean", "satisfaction")
"""Words that stand where a component's name stands: `reward` is the weighted sum in the gate, `score_raw` a metric."""


def equal_weights(names: Sequence[str]) -> tuple[float, ...]:
    """α = β = γ = …, sum 1."""
    return (1 / len(names),) * len(names)


def weights_of(names: Sequence[str], weights: Sequence[float]) -> tuple[float, ...]:
    """What each component weighs; weights left as they are, a third each, mean equal ones for any number of components.

    Raises: ValueError where the numbers do not fit the names.
    Examples:
      >>> weights_of(("a", "b"), equal_weights(COMPONENTS)), weights_of(("a", "b"), (1.0, 0.5))
      ((0.5, 0.5), (1.0, 0.5))
    """
    if tuple(weights) == equal_weights(COMPONENTS):
        return equal_weights(names)
    if not any(weights):
        raise ValueError(f"--ppo.component-weights {' '.join(map(str, weights))}: without a weight there is no reward")
    if len(weights) != len(names):
        raise ValueError(
            f"--ppo.component-weights has {len(weights)} numbers for {len(names)} components: give one each, in the "
            f"order {', '.join(names)}"
        )
    return tuple(weights)


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError for no name, one that occurs twice, or one that cannot be part of a metric's name."""
    if not names:
        raise ValueError("a reward needs at least one component")
    for name in names:
        if not name.isidentifier() or name in RESERVED:
            raise ValueError(f"a component cannot be called {name!r}: an identifier other than {', '.join(RESERVED)}")
    if len(set(names)) < len(names):
        raise ValueError(f"two components have one name: {', '.join(names)}")

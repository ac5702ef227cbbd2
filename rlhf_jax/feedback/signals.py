"""The one table of signals. To add one: its module, with a function `fit` as those here, and a line in the table.

A run has the signals that `--reward.labels.signals` names, and the functions that `--reward.function` names
(`feedback.custom`); each is a component of the reward.
"""

from collections.abc import Mapping

from rlhf_jax.feedback import acceptance, engagement, relevance, sentiment
from rlhf_jax.feedback.labelling import Fit

SIGNALS: Mapping[str, Fit] = {
    "engagement": engagement.fit,
    "relevance": relevance.fit,
    "sentiment": sentiment.fit,
    "acceptance": acceptance.fit,
}


def check_signals(names: tuple[str, ...], option: str = "--reward.labels.signals") -> None:
    """Raises ValueError naming a signal that is not in the table, and the option."""
    for name in names:
        if name not in SIGNALS:
            raise ValueError(f"{option}: there is no signal {name!r}; there are {', '.join(SIGNALS)}")

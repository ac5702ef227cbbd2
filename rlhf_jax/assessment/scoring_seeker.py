"""The simulated seeker that scores: no training stage may know it.

It learns from another half of the training dialogues than the seeker that trains policies, with another seed. Whoever trains
does not import this file; scripts call it and pass the result on.
"""

import zlib
from collections.abc import Sequence

from rlhf_jax.interfaces import Dialogue
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.stages.smtpo import simulator
from rlhf_jax.stages.smtpo.recommender import Recommender
from rlhf_jax.stages.smtpo.seeker import SeekerSimulator
from rlhf_jax.stages.smtpo.simulator import SimulatorConfig
from rlhf_jax.stages.supervised import SupervisedConfig


def training_half(dialogues: Sequence[Dialogue]) -> tuple[Dialogue, ...]:
    """Training dialogues of the seeker that trains."""
    return halves(dialogues)[0]


def halves(dialogues: Sequence[Dialogue]) -> tuple[tuple[Dialogue, ...], tuple[Dialogue, ...]]:
    """Training dialogues for the seeker that trains and for the one that scores; a dialogue's half depends only on its id."""
    parts: tuple[list[Dialogue], list[Dialogue]] = ([], [])
    for dialogue in dialogues:
        parts[zlib.crc32(f"seeker/{dialogue.dialogue_id}".encode()) % 2].append(dialogue)
    return tuple(parts[0]), tuple(parts[1])


def scoring_seed(seed: int) -> int:
    """Of the seeker that scores in a run of `seed`; no run trains with it as long as seeds are below 10⁶."""
    return seed + 1_000_000


def scoring_seeker(
    run: RunDirectory, recommender: Recommender, config: SimulatorConfig, imitation: SupervisedConfig
) -> SeekerSimulator:
    """The seeker that scores: trained here, on the dialogues that the other one has not seen, with another seed.

    Args:
      imitation: what comes before, where `config.start` asks for it.
    """
    setup, stage = recommender.setup, f"{simulator.STAGE}-scoring"
    own, seed = halves(setup.corpus.train)[1], scoring_seed(setup.seed)
    begun = simulator.begin(run, setup, own, config, imitation, seed=seed, stage=stage)
    params = simulator.train(
        run, setup, own, config, attributes=recommender.attributes, seed=seed, begun=begun, stage=stage
    )
    return SeekerSimulator(setup, params, config)

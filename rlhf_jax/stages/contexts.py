"""Which prompts an update of PPO reads, and how wide the batch is.

Padding says nothing to any network here, so a batch cut to the shortest of a few widths that holds its longest prompt
gives the same responses and the same losses for less arithmetic. The widths are fixed, because every one is a program of
its own. All is a function of the seed and the number of the update: a restart, and every process of a run, finds the
same prompts in the same width.
"""

import dataclasses
import functools

import numpy as np

from rlhf_jax.data.batching import batch_indices


@dataclasses.dataclass(frozen=True, eq=False)
class PromptBatches:
    """Left-padded prompts, dealt out to updates."""

    tokens: np.ndarray
    """int32 [N, P]"""
    mask: np.ndarray
    """bool [N, P]"""
    batch_size: int
    """Prompts of one update, over all devices."""
    seed: int
    buckets: tuple[int, ...] = ()
    """Widths below P that a batch may be cut to, ascending."""
    group: int = 1
    """Updates that share out their prompts by length; 1 leaves every batch as it was drawn."""

    def __post_init__(self) -> None:
        if self.buckets and self.buckets[-1] > self.tokens.shape[1]:
            raise ValueError(
                f"--align.prompt-buckets {self.buckets}: {self.buckets[-1]} is wider than --data.context-tokens "
                f"{self.tokens.shape[1]}"
            )

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Real tokens of every prompt. [N]"""
        return self.mask.sum(axis=1)

    def rows(self, update: int) -> np.ndarray:
        """Prompts of one update. int64 [B]

        With a `group` of G > 1, the G·B prompts of updates gG … gG + G − 1 are sorted by length and cut into G batches,
        and these are dealt to the G updates in random order. Every prompt still comes once an epoch.
        """
        number, place = divmod(update, self.group)
        drawn = batch_indices(len(self.tokens), seed=self.seed, step=number, batch_size=self.group * self.batch_size)
        if self.group == 1:
            return drawn
        batches = drawn[np.argsort(self.lengths[drawn], kind="stable")].reshape(self.group, self.batch_size)
        # A third number, so that this is not the stream that epochs are drawn from.
        order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, number, 1])))
        return batches[order.permutation(self.group)[place]]

    def batch(self, update: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and mask of one update, as narrow as the buckets allow. [B, W] each, W a bucket or P"""
        rows = self.rows(update)
        longest = int(self.lengths[rows].max())
        width = next((bucket for bucket in self.buckets if bucket >= longest), self.tokens.shape[1])
        return self.tokens[rows, -width:], self.mask[rows, -width:]

"""Scripted rewards with a known optimum: probes that tell which part of a learner is broken.

A probe scores finished responses of a tiny vocabulary by a rule that can be solved by hand. Every probe says what the
best reachable score is and what the learner must have become; a learner's test trains a tabular policy on it.

| probe | rule | a learner that works ends with |
| --- | --- | --- |
| constant reward | r = c | V = c everywhere, advantages 0, policy unchanged |
| token bandit | r = worth[token], one token | the worthiest token, probability to 1 |
| delayed reward | r = [first token is the good one] after T tokens | first token learnt through γ, λ; later ones free |
| two-token credit | r = ½·[first is good] + ½·[second is good] | both tokens learnt, each from its own advantage |
| KL only | r = 0 | policy back at the reference |
"""

from collections.abc import Callable

import chex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rlhf_jax.interfaces import Params, Rollout

N_COMPONENTS = 3
"""As many as PPO weighs by default."""
ScoreRollout = Callable[[Rollout], Float[Array, " B"]]


@chex.dataclass(frozen=True)
class Probe:
    """A reward rule and what is known about its optimum."""

    name: str
    vocab_size: int
    """Tokens 0 … vocab_size − 1; 0 is padding."""
    response_length: int
    """Tokens T of every response."""
    reward: ScoreRollout
    """Score of each response. [B]"""
    best_score: float
    """Highest reachable score."""
    best_tokens: tuple[int | None, ...]
    """Optimal token at each place; None where every token is as good. T entries."""

    def score(self, params: Params, rollout: Rollout) -> Float[Array, "B C"]:
        """The rule as a `Score`: each of three components carries it, so that weights of sum 1 return it. `params` is unused."""
        del params
        return jnp.broadcast_to(self.reward(rollout)[:, None], (rollout.finished.shape[0], N_COMPONENTS))


def constant_reward(value: float = 1.0, *, vocab_size: int = 4, response_length: int = 3) -> Probe:
    """Every response earns `value`: only the value function has something to learn."""
    return Probe(
        name="constant_reward",
        vocab_size=vocab_size,
        response_length=response_length,
        reward=lambda rollout: jnp.full(rollout.finished.shape, value, jnp.float32),
        best_score=value,
        best_tokens=(None,) * response_length,
    )


def token_bandit(worth: tuple[float, ...] = (0.0, 0.0, 0.5, 1.0)) -> Probe:
    """One token, worth `worth[token]`; token 0 is padding and must not be the best.

    Raises: ValueError if the best token is not unique or is 0.
    """
    best = int(np.argmax(worth))
    if best == 0 or worth.count(max(worth)) > 1:
        raise ValueError(f"the best token must be unique and not the padding 0, got worth {worth}")
    table = jnp.asarray(worth, jnp.float32)
    return Probe(
        name="token_bandit",
        vocab_size=len(worth),
        response_length=1,
        reward=lambda rollout: table[rollout.response_tokens[:, 0]],
        best_score=max(worth),
        best_tokens=(best,),
    )


def delayed_reward(*, good: int = 2, vocab_size: int = 4, response_length: int = 5) -> Probe:
    """1 if the first token was `good`, paid with the last: what comes between does not matter."""
    _check_token(good, vocab_size)
    return Probe(
        name="delayed_reward",
        vocab_size=vocab_size,
        response_length=response_length,
        reward=lambda rollout: (rollout.response_tokens[:, 0] == good).astype(jnp.float32),
        best_score=1.0,
        best_tokens=(good, *(None,) * (response_length - 1)),
    )


def two_token_credit(*, first: int = 2, second: int = 3, vocab_size: int = 4) -> Probe:
    """½·[first token is `first`] + ½·[second token is `second`]: each place must get its own credit."""
    _check_token(first, vocab_size)
    _check_token(second, vocab_size)
    return Probe(
        name="two_token_credit",
        vocab_size=vocab_size,
        response_length=2,
        reward=lambda rollout: (
            0.5 * (rollout.response_tokens[:, 0] == first) + 0.5 * (rollout.response_tokens[:, 1] == second)
        ).astype(jnp.float32),
        best_score=1.0,
        best_tokens=(first, second),
    )


def kl_only(*, vocab_size: int = 4, response_length: int = 2) -> Probe:
    """No reward at all: under a KL penalty the policy returns to the reference."""
    return Probe(
        name="kl_only",
        vocab_size=vocab_size,
        response_length=response_length,
        reward=lambda rollout: jnp.zeros(rollout.finished.shape, jnp.float32),
        best_score=0.0,
        best_tokens=(None,) * response_length,
    )


def _check_token(token: int, vocab_size: int) -> None:
    if not 0 < token < vocab_size:
        raise ValueError(f"token {token} must lie in 1 … {vocab_size - 1}")

"""Advantages without a critic: a response is compared with others drawn for the same prompt."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def is_flat_group(scores: Float[Array, " G"]) -> Bool[Array, ""]:
    """True for a group whose scores are all equal: it teaches nothing, and its share is worth logging.

        max_i s_i = min_i s_i

    Source: ours; such groups are dropped by Yu et al. 2025, arXiv:2503.14476 (dynamic sampling).

    Args:
      scores: of the responses to one prompt, score units. [G]
    Returns: a flag; no gradient. []
    Raises: nothing.
    Examples:
      >>> is_flat_group(jnp.array([0.1, 0.1, 0.1]))
      Array(True, dtype=bool)
    """
    return scores.max() == scores.min()


def group_advantages(scores: Float[Array, " G"], *, epsilon: float = 1e-6) -> Float[Array, " G"]:
    """GRPO's advantages for one prompt; batch with `jax.vmap`.

        A_i = (s_i − mean)/(std + ε),   and exactly 0 where all scores are equal

    Source: Shao et al. 2024, arXiv:2402.03300, section 4.1.2 (no ε there); biased standard deviation (divided by G).

    Args:
      scores: of the G responses to one prompt, score units. [G]
      epsilon: keeps nearly equal groups bounded, score units.
    Returns: A_i, in standard deviations, one per response, for all its tokens; data, no gradient is meant to flow. [G]
    Raises: nothing.
    Examples:
      >>> [round(x, 4) for x in group_advantages(jnp.array([3.0, 1.0, 0.0, 0.0])).tolist()]
      [1.633, 0.0, -0.8165, -0.8165]
    """
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    centred = scores - scores.mean()
    # Rounding of the mean would leave a residue of size ε in a flat group, and √ has no gradient at 0.
    flat = is_flat_group(scores)
    variance = jnp.where(flat, 1, jnp.square(centred).mean())
    return jnp.where(flat, 0, centred / (jnp.sqrt(variance) + epsilon))


def advantages_by_place(
    returns: Float[Array, "G T"], mask: Bool[Array, "G T"], *, scaled: bool = True
) -> Float[Array, "G T"]:
    """Advantages of the responses to one prompt, each place against the mean of the group there; batch with `jax.vmap`.

        A_{i,t} = (G_{i,t} − mean_t)/(std_t + 1e-6),   mean and std over the responses that still run at place t

    and exactly 0 where all that run at t have one return, and beyond a response's end. A response that has ended leaves
    the baseline: it is no zero. Without `scaled` the division is left out.

    Source: Shao et al. 2024, arXiv:2402.03300, section 4.1.3 (process supervision, there with one baseline for all
    places); a baseline per place is ours. Without the division: Liu et al. 2025, arXiv:2503.20783.

    Args:
      returns: G_{i,t}, what is paid from place t on, score units; anything beyond the end. [G, T]
      mask: True where a response still runs. [G, T]
      scaled: divide by the standard deviation (biased, divided by the number that run).
    Returns: in standard deviations, or in score units where not `scaled`; data, no gradient is meant to flow. [G, T]
    Raises: AssertionError at trace time if the shapes differ.
    Examples:
      >>> running = jnp.array([[True, True], [True, True], [True, False]])
      >>> advantages_by_place(jnp.array([[3.0, 2.0], [1.0, 1.0], [2.0, 9.0]]), running, scaled=False).tolist()
      [[1.0, 0.5], [-1.0, -0.5], [0.0, 0.0]]
    """
    chex.assert_equal_shape([returns, mask])
    returns = returns.astype(jnp.promote_types(returns.dtype, jnp.float32))
    returns = jnp.where(mask, returns, 0)
    count = jnp.maximum(mask.sum(axis=0, keepdims=True), 1)
    highest = jnp.where(mask, returns, -jnp.inf).max(axis=0, keepdims=True)
    lowest = jnp.where(mask, returns, jnp.inf).min(axis=0, keepdims=True)
    # Rounding of the mean would leave a residue in a flat place, and √ has no gradient at 0.
    flat = highest <= lowest
    centred = jnp.where(mask & ~flat, returns - returns.sum(axis=0, keepdims=True) / count, 0)
    if not scaled:
        return centred
    deviation = jnp.sqrt(jnp.where(flat, 1, jnp.square(centred).sum(axis=0, keepdims=True) / count))
    return centred / (deviation + 1e-6)


def leave_one_out_advantages(scores: Float[Array, " G"]) -> Float[Array, " G"]:
    """RLOO's advantages for one prompt: the baseline is the mean of the other responses.

        A_i = s_i − 1/(n−1) Σ_{j≠i} s_j = n/(n−1) (s_i − mean),   n responses

    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. 2024,
    arXiv:2402.14740 (RLOO).

    Args:
      scores: of the n ≥ 2 responses to one prompt, score units. [G]
    Returns: A_i, score units, one per response, summing to 0; data, no gradient is meant to flow. [G]
    Raises: ValueError at trace time if there are fewer than two responses.
    Examples:
      >>> leave_one_out_advantages(jnp.array([3.0, 1.0, 2.0]))
      Array([ 1.5, -1.5,  0. ], dtype=float32)
    """
    n_responses = scores.shape[0]
    if n_responses < 2:
        raise ValueError(f"leaving one out needs at least 2 responses per prompt, got {n_responses}")
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    return (scores - scores.mean()) * n_responses / (n_responses - 1)


def turn_advantages(
    rewards: Float[Array, "G T C"],
    running: Bool[Array, "G T"],
    weights: Float[Array, " C"],
    *,
    gamma: float = 1.0,
    decoupled: bool = True,
) -> Float[Array, "G T"]:
    """Advantages of the turns of conversations that began alike, each turn against the mean of the group there.

        r̂_{g,k} = Σ_c w_c (r^c_{g,k} − mean_k)/(std_k + 1e-6)      decoupled: each component by itself, 0 where it is flat
        r̂_{g,k} = Σ_c w_c r^c_{g,k}                                else
        G_{g,k} = Σ_{j≥k} γ^{j−k} r̂_{g,j},     A_{g,k} = G_{g,k} − mean_k G

    Means and deviations at turn k are over the conversations that still run there: one that has ended leaves them, it is no
    zero. A is exactly 0 where all that run at k have one return, and after the end.

    Source: components by themselves, Liu et al. 2026, arXiv:2601.05242 (GDPO), there for whole responses and normalised
    once more over the batch, which is left out here; without `decoupled`, Shao et al. 2024, arXiv:2402.03300, section
    4.1.3 (process supervision), without its division. Turns in the place of steps, and the baseline of returns, are ours.

    Args:
      rewards: r^c, of C components, paid for a turn, each in units of its own; anything after the end. [G, T, C]
      running: True on the turns that a conversation had, the first ones. [G, T]
      weights: w_c. [C]
      gamma: discount per turn, in [0, 1].
      decoupled: normalise each component before it is weighted.
    Returns: A, weighted standard deviations, or reward units where not `decoupled`; one for all tokens of a turn; data, no
      gradient is meant to flow. [G, T]
    Raises: AssertionError at trace time if the shapes do not fit.
    Examples:
      >>> rewards = jnp.array([[[1.0], [0.0]], [[0.0], [1.0]], [[4.0], [9.0]]])
      >>> running = jnp.array([[True, True], [True, True], [True, False]])
      >>> turn_advantages(rewards, running, jnp.ones(1), decoupled=False).tolist()
      [[-1.0, -0.5], [-1.0, 0.5], [2.0, 0.0]]
    """
    chex.assert_shape(running, rewards.shape[:2])
    chex.assert_shape(weights, rewards.shape[2:])
    rewards = rewards.astype(jnp.promote_types(rewards.dtype, jnp.float32))
    rewards = jnp.where(running[..., None], rewards, 0)
    if decoupled:
        by_turn = jax.vmap(advantages_by_place, in_axes=(2, None), out_axes=2)
        rewards = by_turn(rewards, running)
    # A sum of products, not a matmul: accelerators would round its inputs to bfloat16 or tf32.
    paid = jnp.sum(rewards * weights.astype(rewards.dtype)[None, None], axis=-1)

    def earlier(after: Float[Array, " G"], now: Float[Array, " G"]) -> tuple[Float[Array, " G"], Float[Array, " G"]]:
        to_go = now + gamma * after
        return to_go, to_go

    _, returns = jax.lax.scan(earlier, jnp.zeros_like(paid[:, 0]), paid.T, reverse=True)
    return advantages_by_place(returns.T, running, scaled=False)


def settled_advantages(
    rewards: Float[Array, "G T C"],
    settled: Float[Array, "G T C S"],
    running: Bool[Array, "G T"],
    weights: Float[Array, " C"],
    *,
    decoupled: bool = True,
) -> Float[Array, "G T S"]:
    """What of a turn's advantage was settled before each of its places: no merit of the tokens from there on.

        D_{g,k}(p) = Σ_c w_c (d^c_{g,k}(p) − mean_k d^c(p)) / (std_k r^c + 1e-6)      decoupled; a flat component counts 0
        D_{g,k}(p) = Σ_c w_c (d^c_{g,k}(p) − mean_k d^c(p))                            else

    d^c(p) is a number that tokens before place p alone decide, such as the part of r^c paid by then. A − D is then the credit of a token at
    place p, with A of `turn_advantages`. Given what came before, the token cannot move d, so E[∇log π · d] = 0: without
    `decoupled` the expected gradient is the same. With it only nearly: the token moves std_k, which holds its own reward.
    The variance is lower, unless a high d usually comes with a low rest. Means and deviations are over the
    conversations that run at turn k.

    Source: what a step earned before does not belong to it, Sutton et al. 2000 (policy gradient theorem); components and
    places of a turn are ours.

    Args:
      rewards: r^c, as in `turn_advantages`. [G, T, C]
      settled: d^c(p), each in the units of its component; anything after the end. [G, T, C, S]
      running: True on the turns that a conversation had, the first ones. [G, T]
      weights: w_c. [C]
      decoupled: divide by the component's deviation.
    Returns: D, in the units of `turn_advantages`; data, no gradient is meant to flow. [G, T, S]
    Raises: AssertionError at trace time if the shapes do not fit.
    Examples:
      >>> rewards = jnp.array([[[1.0]], [[3.0]]])
      >>> settled = jnp.array([[[[0.0, 1.0]]], [[[0.0, 3.0]]]])
      >>> running = jnp.ones((2, 1), bool)
      >>> settled_advantages(rewards, settled, running, jnp.ones(1), decoupled=False)[:, 0].tolist()
      [[0.0, -1.0], [0.0, 1.0]]
    """
    chex.assert_shape(running, rewards.shape[:2])
    chex.assert_shape(weights, rewards.shape[2:])
    chex.assert_shape(settled, (*rewards.shape, None))
    dtype = jnp.promote_types(rewards.dtype, jnp.float32)
    had = running[:, :, None]
    rewards = jnp.where(had, rewards.astype(dtype), 0)
    settled = jnp.where(had[..., None], settled.astype(dtype), 0)
    count = jnp.maximum(running.sum(axis=0), 1)[None, :, None]
    highest = jnp.where(had[..., None], settled, -jnp.inf).max(axis=0, keepdims=True)
    lowest = jnp.where(had[..., None], settled, jnp.inf).min(axis=0, keepdims=True)
    # Rounding of the mean would leave a residue where all have the same.
    differ = had[..., None] & (highest > lowest)
    centred = jnp.where(differ, settled - settled.sum(axis=0, keepdims=True) / count[..., None], 0)
    if decoupled:
        highest = jnp.where(had, rewards, -jnp.inf).max(axis=0, keepdims=True)
        lowest = jnp.where(had, rewards, jnp.inf).min(axis=0, keepdims=True)
        # Nobody runs: −∞ < ∞, flat too.
        flat = highest <= lowest
        off = jnp.where(had, rewards - rewards.sum(axis=0, keepdims=True) / count, 0)
        variance = jnp.where(flat, 1, jnp.square(off).sum(axis=0, keepdims=True) / count)
        scale = jnp.where(flat, 0, 1 / (jnp.sqrt(variance) + 1e-6))
        centred = centred * scale[..., None]
    # A sum of products, not a matmul: accelerators would round its inputs to bfloat16 or tf32.
    return jnp.sum(centred * weights.astype(dtype)[None, None, :, None], axis=2)

"""What is known of items beside the trunk, inside the policy: recommenders' scores re-weigh the places of a list.

    log π(i | s) ← m(s) + log softmax_i( w₀ · log p(i | s) + Σ_k w_k · z_k(i, s) )        i among the items allowed there

p(i | s) is the trunk's distribution over those items, and m(s) the log of what the trunk gives to all of them together:
whether one more item is suggested stays the trunk's word, which one is shared. Words are never touched. The scores z are
what the caller brings: standardised scores of `recommenders`, and −1 where the context has named the item. They are part
of the prompt, so sampler, reference, learner and ranking read the same numbers; the weights are parameters of the policy,
`prior` in its tree, and learn as the others do. A tree without `prior` is the policy as it was, to the bit.

A prior may also have manners, three numbers that are added to logits where a turn takes a decision: whether it suggests at
all (`<rec>` at its opening), whether the list ends (`<say>` inside it), whether the words end (`<eos>`). Without them all
three decisions are the trunk's.

Source: a product of experts, Hinton 2002, doi:10.1162/089976602760128018, with one exponent each; the mixture itself is
`recommenders/mixture.py`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf_jax.decoding.grammar import Grammar
from rlhf_jax.interfaces import Params

NAME = "prior"
"""Its place in a policy's tree."""


MANNERS = ("suggest", "end_list", "end_words")
"""What the three numbers are called, in their order; nats."""


def init(n_scores: int) -> Params:
    """A prior that says nothing: weight 1 for the trunk, 0 for every score."""
    return {"policy": jnp.ones((), jnp.float32), "scores": jnp.zeros(n_scores, jnp.float32)}


def bonus(prior: Params, item_scores: Float[Array, "B K I"] | None) -> Float[Array, "B I"]:
    """Σ_k w_k z_k, nats. [B, I]

    Raises: ValueError at trace time if the prompts bring no scores, or another number of them than there are weights.
    """
    weights = prior["scores"]
    if item_scores is None:
        raise ValueError("the policy has a prior over items, but its prompts bring no item_scores")
    if item_scores.shape[1] != weights.shape[0]:
        raise ValueError(f"the prior has {weights.shape[0]} weights, the prompts {item_scores.shape[1]} scores an item")
    return jnp.einsum("k,bki->bi", weights, item_scores, precision=jax.lax.Precision.HIGHEST)


def reweighted(
    policy_weight: Float[Array, ""],
    item_bonus: Float[Array, "*n I"],
    item_logits: Float[Array, "*n I"],
    open_items: Bool[Array, "*n I"],
) -> Float[Array, "*n I"]:
    """Logits of the open items (at least one) after the prior; their log-sum-exp is what it was. [..., I]

    Logits of other items mean nothing.

    Examples:
      >>> logits, both = jnp.log(jnp.array([.1, .3])), jnp.array([True, True])
      >>> jnp.exp(reweighted(jnp.array(1.), jnp.log(jnp.array([3., 1.])), logits, both)).round(3).tolist()
      [0.20000000298023224, 0.20000000298023224]
    """
    item_logits = item_logits.astype(jnp.float32)
    mass = jax.nn.logsumexp(item_logits, axis=-1, keepdims=True, where=open_items)
    mixed = policy_weight * (item_logits - mass) + item_bonus
    return mixed - jax.nn.logsumexp(mixed, axis=-1, keepdims=True, where=open_items) + mass


def with_prior(
    grammar: Grammar,
    policy_weight: Float[Array, ""],
    item_bonus: Float[Array, "*n I"],
    logits: Float[Array, "*n V"],
    allowed: Bool[Array, "*n V"],
) -> Float[Array, "*n V"]:
    """Logits after the prior where the next token is one of a list; as they were elsewhere. [..., V]

    Args:
      allowed: the grammar's mask. In a list items are allowed and `<eos>` is not; in the words after it, both may be.
    """
    begin, end = grammar.first_item, grammar.first_item + grammar.n_items
    items, may = logits[..., begin:end], allowed[..., begin:end]
    in_list = jnp.any(may, axis=-1, keepdims=True) & ~allowed[..., grammar.eos][..., None]
    # Elsewhere all items count as open: the result is dropped, but its gradient must be a number.
    changed = reweighted(policy_weight, item_bonus, items, may | ~in_list)
    return logits.at[..., begin:end].set(jnp.where(in_list, changed, items).astype(logits.dtype))


def with_manners(
    grammar: Grammar,
    manners: Float[Array, " 3"],
    logits: Float[Array, "*n V"],
    allowed: Bool[Array, "*n V"],
) -> Float[Array, "*n V"]:
    """Logits with the manners added where they decide; a place that allows one token alone is as it was after its softmax.

    Args:
      allowed: the grammar's mask.
    """
    items = allowed[..., grammar.first_item : grammar.first_item + grammar.n_items]
    in_list = jnp.any(items, axis=-1) & ~allowed[..., grammar.eos]
    # Where a list has no further item to offer, `<say>` is all that is allowed.
    suggest, end_list, end_words = manners.astype(logits.dtype)
    logits = logits.at[..., grammar.rec].add(suggest)
    logits = logits.at[..., grammar.say].add(jnp.where(in_list, end_list, 0.0))
    return logits.at[..., grammar.eos].add(end_words)

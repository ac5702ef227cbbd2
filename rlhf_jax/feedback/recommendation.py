"""What a turn of a recommender is worth where the seeker's taste is known: the list it gives, and the taste it infers.

    recommendation   NDCG@K = Σ_{t ≤ K} [y_t is gold, for the first time] / log₂(t + 1)  /  Σ_{t ≤ min(K, |gold|)} 1 / log₂(t + 1)
    preference       F1 = 2 |said ∩ wanted| / (|said| + |wanted|)

Gold is what the seeker likes and nobody has named yet; wanted are the attributes (genres, people, decade) of these items.
Both lie in [0, 1], are functions of one turn's arrays (batch with `jax.vmap`), and are 0 where nothing is gold or wanted.

What is liked is read from the seeker's form: explicit feedback, unlike the signals beside this file. It may pay a policy
in training; it never enters a prompt.
Source: rewards of these two kinds are named by arXiv:2604.03671 without formula; NDCG, Järvelin and Kekäläinen 2002,
doi:10.1145/582415.582418, with gains 0 and 1.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.interfaces import Dialogue


def liked_from(dialogue: Dialogue, index: int) -> tuple[int, ...]:
    """Items that the seeker likes and that are named for the first time in message `index` or later, by the recommender first.

    In order of mention; empty where no form was filled in, or nothing new was liked.

    Raises: ValueError if there is no such message.
    Examples:
      >>> from rlhf_jax.interfaces import ItemLabel, Message
      >>> said = (Message("seeker", (1,), 0), Message("recommender", (1, 2), 1), Message("recommender", (3,), 2))
      >>> forms = {item: ItemLabel(suggested=1, seen=0, liked=int(item != 3)) for item in (1, 2, 3)}
      >>> liked_from(Dialogue("d", said, forms, {}), 1), liked_from(Dialogue("d", said, forms, {}), 2)
      ((2,), ())
    """
    if not 0 <= index < len(dialogue.messages):
        raise ValueError(f"dialogue {dialogue.dialogue_id} has {len(dialogue.messages)} messages, none at {index}")
    named = {item for message in dialogue.messages[:index] for item in message.items}
    found = []
    for message in dialogue.messages[index:]:
        for item in dict.fromkeys(message.items):
            label = dialogue.seeker_labels.get(item)
            if item not in named and message.role == "recommender" and label is not None and label.liked == 1:
                found.append(item)
            named.add(item)
    return tuple(found)


def recommendation_gains(listed: Int[Array, " K"], gold: Bool[Array, " I"]) -> Float[Array, " K"]:
    """What each place of a list adds to its NDCG@K; their sum is `recommendation_reward`.

    Args:
      listed: columns of its items, best first; −1 where it has fewer than K.
      gold: which items are.
    Returns: each in [0, 1]; an item that is listed again earns nothing more. [K]
    Examples:
      >>> gold = jnp.array([True, False, False, True])
      >>> [round(x, 4) for x in recommendation_gains(jnp.array([1, 0]), gold).tolist()]
      [0.0, 0.3869]
    """
    length = listed.shape[0]
    earlier = jnp.tril(jnp.ones((length, length), bool), -1)
    again = jnp.any((listed[:, None] == listed[None, :]) & earlier, axis=1)
    # −1 would be the last item.
    hits = gold[jnp.maximum(listed, 0)] & (listed >= 0) & ~again
    worth = 1.0 / jnp.log2(jnp.arange(length, dtype=jnp.float32) + 2.0)
    ideal = jnp.where(jnp.arange(length) < gold.sum(), worth, 0.0).sum()
    return jnp.where(ideal > 0, jnp.where(hits, worth, 0.0) / jnp.where(ideal > 0, ideal, 1.0), 0.0)


def recommendation_reward(listed: Int[Array, " K"], gold: Bool[Array, " I"]) -> Float[Array, ""]:
    """NDCG@K of one list.

    Args:
      listed: columns of its items, best first; −1 where it has fewer than K.
      gold: which items are.
    Returns: in [0, 1]; an item that is listed again earns nothing more.
    Examples:
      >>> gold = jnp.array([True, False, False, True])
      >>> [round(float(recommendation_reward(jnp.array(listed), gold)), 4) for listed in ([0, 3], [1, 0], [0, 0], [1, 2])]
      [1.0, 0.3869, 0.6131, 0.0]
    """
    return recommendation_gains(listed, gold).sum()


def preference_reward(said: Bool[Array, " A"], wanted: Bool[Array, " A"]) -> Float[Array, ""]:
    """F1 of inferred attributes.

    Saying more attributes than are wanted costs precision: naming all of them does not pay.

    Examples:
      >>> wanted = jnp.array([True, True, False, False])
      >>> [round(float(preference_reward(jnp.array(said), wanted)), 4) for said in ([True] * 4, [True, False, False, False])]
      [0.6667, 0.6667]
    """
    both = (said & wanted).sum().astype(jnp.float32)
    named = (said.sum() + wanted.sum()).astype(jnp.float32)
    return jnp.where(named > 0, 2.0 * both / jnp.where(named > 0, named, 1.0), 0.0)

"""ReDial's seekers as users who said yes or no to films.

    user      the seeker of a dialogue (the release does not say which dialogues have the same one)
    history   films in the order in which the dialogue names them first
    rating    1 where the seeker's form says liked, 0 where it says not; a film without an answer is left out

A film that stands on the form and nowhere in the words comes last, by its id. Whoever says yes to sixteen films out of seventeen
is no generous rater: there is no scale, so that no text says how strictly somebody rates.
"""

from collections.abc import Iterator

from rlhf_jax.data.ratings import Interaction, RatingCorpus, gather
from rlhf_jax.interfaces import UNKNOWN, Corpus, Dialogue

LIKED_ABOVE = 0.5


def redial_users(corpus: Corpus, *, max_users: int | None = None) -> RatingCorpus:
    """Users of all splits, training dialogues first; those whose form answers nothing are left out.

    The splits of the dialogues are not kept: `rating_lists.split_users` makes its own.

    Args:
      max_users: keeps the first of them.
    Raises: ValueError if no form answers anything.
    """
    dialogues = (*corpus.train, *corpus.validation, *corpus.test)
    return gather(
        "redial",
        list(corpus.items.values()),
        (one for dialogue in dialogues for one in _answers(dialogue)),
        liked_above=LIKED_ABOVE,
        scale=None,
        provenance={**corpus.provenance, "name": "redial"},
        max_users=max_users,
    )


def _answers(dialogue: Dialogue) -> Iterator[Interaction]:
    named = [item for message in dialogue.messages for item in message.items]
    for time, item in enumerate(dict.fromkeys([*named, *sorted(dialogue.seeker_labels)])):
        label = dialogue.seeker_labels.get(item)
        if label is not None and label.liked != UNKNOWN:
            yield Interaction(dialogue.dialogue_id, item, float(label.liked), time)

"""Made-up ratings: people like what they are made to like."""

import numpy as np

from rlhf_jax.simulators.rating_world import KINDS, made_up_ratings


def test_ratings_follow_taste_and_are_the_same_every_time() -> None:
    corpus, again = made_up_ratings(), made_up_ratings()
    assert all(np.array_equal(a.items, b.items) for a, b in zip(corpus.histories, again.histories, strict=True))
    assert corpus.scale == (1.0, 5.0) and len(corpus.users) == 80
    spread = []
    for history in corpus.histories:
        assert 12 <= len(history.items) <= 40 and set(history.ratings.tolist()) <= {1.0, 2.0, 3.0, 4.0, 5.0}
        means = [
            np.mean(
                [r for i, r in zip(history.items, history.ratings, strict=True) if kind in corpus.items[i].genres]
                or [3.2]
            )
            for kind in KINDS
        ]
        spread.append(max(means) - min(means))
    assert np.mean(spread) > 1.0
    assert len(made_up_ratings(max_users=5).users) == 5

"""Rating data sets by name: one table, name → reader. A data set is added by a module with its reader and a line here."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlhf_jax.data.amazon_games import read_amazon_games
from rlhf_jax.data.movielens import read_movielens
from rlhf_jax.data.ratings import RatingCorpus
from rlhf_jax.data.redial import read_redial
from rlhf_jax.data.redial_users import redial_users

Reader = Callable[[Path, int | None], RatingCorpus]
"""From a folder and how many users to read (None: all). Raises: ValueError naming file, line, field and value;
FileNotFoundError naming the file that is missing."""

RATING_SOURCES: Mapping[str, Reader] = {
    "movielens": lambda folder, max_users: read_movielens(folder, max_users=max_users),
    "amazon-games": lambda folder, max_users: read_amazon_games(folder, max_users=max_users),
    "redial": lambda folder, max_users: redial_users(read_redial(folder), max_users=max_users),
}
if TYPE_CHECKING:
    RatingSourceName = str
else:
    RatingSourceName = Literal[tuple(RATING_SOURCES)]


def read_ratings(source: RatingSourceName, folder: Path, *, max_users: int | None = None) -> RatingCorpus:
    """The rated histories of a folder by the reader of their format; errors are the reader's.

    Args:
      max_users: the first so many; None reads all.
    Raises: ValueError if `max_users` is below 1.
    """
    if max_users is not None and max_users < 1:
        raise ValueError(f"max_users is {max_users}; it must be at least 1")
    return RATING_SOURCES[source](folder, max_users)

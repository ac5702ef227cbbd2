"""Reads Amazon's video games as LLMRank publishes them: what people bought, one after the other, and titles.

    Games-6k.item         item_id ⇥ title
    Games-6k.test.inter   user_id ⇥ items bought, oldest first, with spaces between ⇥ the item bought next

The first line of each names the columns, each with a type after a colon. Nobody rates anything: all that was bought counts as
liked. Source: Ni, Li and McAuley 2019, D19-1018 (the reviews of 2018); Hou et al. 2024, arXiv:2305.08845 (this selection).
"""

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from rlhf_jax.data.catalogue import clean_title, split_title
from rlhf_jax.data.lines import malformed, number_of, read_table
from rlhf_jax.data.ratings import Interaction, RatingCorpus, gather
from rlhf_jax.interfaces import Item

ITEMS, HISTORIES = "Games-6k.item", "Games-6k.test.inter"
_ITEM_COLUMNS = ("item_id:token", "title:token_seq")
_HISTORY_COLUMNS = ("user_id:token", "item_id_list:token_seq", "item_id:token")


def read_amazon_games(folder: Path, *, max_users: int | None = None) -> RatingCorpus:
    """Histories of all users, the item bought last included; every rating is 1, every item is liked, there is no scale.

    Args:
      folder: holds `Games-6k.item` and `Games-6k.test.inter`.
      max_users: reads the first so many; None reads all.
    Raises: FileNotFoundError naming the file that is missing; ValueError naming file, line and value.
    """
    for name in (ITEMS, HISTORIES):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder / name} is missing")
    items = list(_items(folder / ITEMS))
    users = itertools.islice(_users(folder / HISTORIES, {item.item_id for item in items}), max_users)
    return gather(
        "amazon-games",
        items,
        (Interaction(user, item, 1.0, time) for user, bought in users for time, item in enumerate(bought)),
        liked_above=0.0,
        scale=None,
        provenance={
            "name": "amazon-games",
            "sha256": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (ITEMS, HISTORIES)},
        },
    )


def _items(path: Path) -> Iterator[Item]:
    seen: set[int] = set()
    for line, row in read_table(path, _ITEM_COLUMNS, delimiter="\t", quoted=False):
        try:
            item = number_of(row["item_id:token"], "item_id", "a number")
            if item in seen:
                raise malformed("item_id", item, "an id not seen before")
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
        seen.add(item)
        title = clean_title(row["title:token_seq"])
        yield Item(item_id=item, title=title, year=split_title(title)[1])


def _users(path: Path, known: set[int]) -> Iterator[tuple[str, list[int]]]:
    """Users and what they bought, oldest first."""
    lines: dict[str, int] = {}
    for line, row in read_table(path, _HISTORY_COLUMNS, delimiter="\t", quoted=False):
        try:
            user = str(number_of(row["user_id:token"], "user_id", "a number"))
            if user in lines:
                raise ValueError(f"user {user} is there again, after line {lines[user]}")
            bought: list[int] = []
            places = [("item_id_list", text) for text in row["item_id_list:token_seq"].split(" ")]
            for field, text in [*places, ("item_id", row["item_id:token"])]:
                item = number_of(text, field, "a number")
                if item not in known:
                    raise malformed(field, text, "an item of the catalogue")
                if item in bought:
                    raise malformed(field, text, "an item that this user did not buy before")
                bought.append(item)
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
        lines[user] = line
        yield user, bought

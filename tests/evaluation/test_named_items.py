"""Which part a gold item belongs to, by hand; parts against the whole."""

import numpy as np
import pytest

from rlhf_jax.data.windows import RankingRow, ranking_rows
from rlhf_jax.evaluation.named_items import PARTS, part_of, split_by_naming
from rlhf_jax.evaluation.ranking import RankTable, definition, rank_rows, ranking_results
from rlhf_jax.interfaces import Dialogue, Item, Message

ITEMS = {
    1: Item(item_id=1, title="Emma (1815)", people=("Jane Austen",)),
    2: Item(item_id=2, title="Persuasion", people=("Jane Austen",)),
    3: Item(item_id=3, title="Dune: Part One (film)", people=("Frank Herbert", "Timothée Chalamet")),
    4: Item(item_id=4, title="!!! (?)", people=("", "—")),
}


def dialogue(name: str, *said: tuple[str | int, ...]) -> Dialogue:
    roles = ("seeker", "recommender")
    messages = tuple(Message(role=roles[i % 2], parts=parts, message_id=i) for i, parts in enumerate(said))
    return Dialogue(dialogue_id=name, messages=messages, seeker_labels={}, recommender_labels={})


@pytest.mark.parametrize(
    ("said", "item", "part"),
    [
        ("I love EMMA!", 1, "title"),
        ("I love Emmanuelle", 1, "nothing"),  # Whole words only.
        ("Something by jane austen, please", 2, "person"),
        ("Emma by Jane Austen", 2, "person"),
        ("More of Dune", 3, "title"),  # Without subtitle and remark.
        ("With Timothée Chalamet", 3, "person"),
        ("With Timothy", 3, "nothing"),
        ("!!! and ... — ", 4, "nothing"),  # A title without a word is never named.
        ("hm", 1, "nothing"),
    ],
)
def test_parts_by_hand(said: str, item: int, part: str):
    (row,) = ranking_rows([dialogue("a", (said,), (item,))])
    assert part_of(row, item, ITEMS) == part


def test_tagged_items_count_by_their_title_and_later_words_do_not():
    talk = dialogue("a", ("Like ", 1, "?"), (2,), ("Persuasion it is",), (1,))
    first, second = ranking_rows([talk])
    assert part_of(first, 1, ITEMS) == "title"
    assert part_of(first, 2, ITEMS) == "nothing"
    assert part_of(second, 2, ITEMS) == "title"


def ranked(talks: list[Dialogue]) -> tuple[list[RankingRow], dict[str, RankTable]]:
    rows = list(ranking_rows(talks))
    scores = np.random.default_rng(0).normal(size=(len(rows), len(ITEMS)))
    return rows, rank_rows(rows, [scores], tuple(ITEMS), protocols=("full", "fresh")).tables


TALKS = [
    dialogue("a", ("Jane Austen",), (2, 3), ("ok",), (1, 2)),
    dialogue("b", ("Emma",), (1,), (), (3,)),
]


def test_parts_have_every_case_once():
    rows, tables = ranked(TALKS)
    for protocol, table in tables.items():
        parts = split_by_naming(table, rows, ITEMS)
        assert set(parts) == {f"{protocol}, {part} named" for part in PARTS}
        together = sorted(
            (d, r, k) for t in parts.values() for d, r, k in zip(t.dialogues, t.rows, t.ranks, strict=True)
        )
        assert together == sorted(zip(table.dialogues, table.rows, table.ranks, strict=True))
        weighted = sum(result.value * result.n for result in ranking_results("x", parts, split="s", metrics=("mrr",)))
        assert weighted / len(table.ranks) == pytest.approx(np.mean(1 / table.ranks))
    # "a": 2 has a person named, 3 nothing, then 1 a person named; 2 is fresh no more. "b": 1 by title, 3 nothing.
    counts = {name: len(table.ranks) for name, table in split_by_naming(tables["fresh"], rows, ITEMS).items()}
    assert counts == {"fresh, title named": 1, "fresh, person named": 2, "fresh, nothing named": 2}


def test_the_definition_says_which_cases():
    assert definition("hr@5", "fresh, nothing named") == definition("hr@5", "fresh") + (
        "; only items of which the context names neither title nor person"
    )


def test_ranks_of_other_rows_are_refused():
    rows, tables = ranked(TALKS)
    with pytest.raises(ValueError, match="dialogue a, message 1: 2 gold items, but 0 ranks"):
        split_by_naming(tables["full"]._replace(rows=tables["full"].rows + 1), rows, ITEMS)
    with pytest.raises(ValueError, match="6 ranks, but the rows have 4 gold items"):
        split_by_naming(tables["full"], rows[:2], ITEMS)

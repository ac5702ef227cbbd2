"""Items in typed text: longest title first, years, ids, short titles."""

import pytest

from rlhf_jax.data.titles import TitleIndex
from rlhf_jax.interfaces import Item

ITEMS = {
    1: Item(item_id=1, title="The Matrix (1999)", year=1999),
    2: Item(item_id=2, title="The Matrix Reloaded (2003)", year=2003),
    3: Item(item_id=3, title="It (1990)", year=1990),
    4: Item(item_id=4, title="It (2017)", year=2017),
    5: Item(item_id=5, title="What About Bob? (1991)", year=1991),
    6: Item(item_id=6, title=""),
    7: Item(item_id=7, title="What's Up"),
    8: Item(item_id=8, title="Ocean\u2019s Eleven"),
}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("I liked the matrix reloaded!", ("I liked ", 2, "!")),
        ("the matrix (1999) and The Matrix", (1, " and ", 1)),
        ("what about bob", (5,)),
        ("what about bobby", ("what about bobby",)),
        ("It scared me, it did", (4, " scared me, it did")),
        ("is it it (1990)?", ("is it ", 3, "?")),
        ("it", (4,)),
        ("@2 or @77?", (2, " or @77?")),
        ("the matrix (2021)", (1, " (2021)")),
        ("", ()),
        ("   ", ()),
        ("bob@2.com", ("bob@2.com",)),
        ("write to bob@2.com about @2.", ("write to bob@2.com about ", 2, ".")),
        (f"@{'2' * 5000}", (f"@{'2' * 5000}",)),
        (f"@{2**63}", (f"@{2**63}",)),
        ("don\u2019t \u201cthe matrix\u201d", ("don't \"", 1, '"')),
        ("what\u2019s up, ocean\u2019s eleven", (7, ", ", 8)),
        ("caf\udce9", ("caf\ufffd",)),
        ("What about what About Bob?!", ("What about ", 5, "?!")),
    ],
)
def test_parts(text: str, parts: tuple[str | int, ...]) -> None:
    assert TitleIndex(ITEMS).parts(text) == parts


def test_an_empty_catalogue_finds_nothing() -> None:
    assert TitleIndex({}).parts("The Matrix") == ("The Matrix",)

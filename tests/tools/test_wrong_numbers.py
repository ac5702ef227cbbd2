"""Numbers nobody could mean: a script answers each of them in words, and the page keeps what it said of other scripts."""

import random
from collections import Counter
from pathlib import Path

import pytest

import wrong_numbers
from rlhf_jax.ranges import Range


@pytest.mark.parametrize("script", ["replies", "evidence"])
def test_a_script_refuses_by_option_what_lies_outside(script: str, tmp_path: Path) -> None:
    found = list(wrong_numbers.answers(script, 0, tmp_path))
    assert {one.outcome for one in found} <= {"refused", "accepted"}, found
    assert sum(one.outcome == "refused" for one in found) > len(found) / 2


@pytest.mark.parametrize(("kind", "interval"), [(int, Range("[1, 9]")), (float, Range("(0, 1]"))])
def test_values_lie_beyond_both_ends(kind: type, interval: Range) -> None:
    found = list(wrong_numbers.values(kind, interval, random.Random(0)))
    assert {"nan", "inf", "-inf"} <= set(found)
    assert not any(wrong_numbers.lies_in(value, kind, interval) for value in found if value != "0" or kind is int)


def test_rows_of_other_scripts_stay(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    old = {"chat": Counter(refused=3, accepted=1), "replies": Counter(refused=2), "no_such_script": Counter(refused=1)}
    page.write_text(f"before\n\n{wrong_numbers.table(old)}\n\nafter\n")
    assert wrong_numbers.counted_before(page) == {
        name: Counter({outcome: old[name][outcome] for outcome in wrong_numbers.OUTCOMES})
        for name in ("chat", "replies")
    }

"""Plain punctuation: what is replaced, what stays, and that it is done once."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data.typography import plain


def test_quotes_dashes_and_spaces_are_those_of_a_keyboard() -> None:
    assert plain("\u2018a\u2019 \u201cb\u201d \u00abc\u00bb it\u00b4s") == '\'a\' "b" "c" it\'s'
    assert plain("1990\u20132000\u2014so\u2026 \u22125") == "1990-2000-so... -5"
    assert plain("a\u00a0b\u2028c\x85d\u3000e") == "a b c d e"
    assert plain("\ufeffso\u00adft\u200b\u200e") == "soft"


def test_letters_emoji_and_other_scripts_stay() -> None:
    for text in (
        "caf\u00e9",
        "\u00bfqu\u00e9?",
        "\u0441\u044b\u0440",
        "\u9ed2\u57f7\u4e8b",
        "\u2665\ufe0f \N{GRINNING FACE}",
        "\u00bd \u2116",
    ):
        assert plain(text) == text
    family = "\U0001f468\u200d\U0001f469"  # The zero-width joiner is part of an emoji.
    assert plain(family) == family


@given(st.text(alphabet=st.characters(exclude_categories=[])))
def test_once_is_enough_and_ascii_stays(text: str) -> None:
    once = plain(text)
    assert plain(once) == once
    once.encode("utf-8")  # No half of a surrogate pair is left.
    assert plain(text.encode("ascii", "ignore").decode()) == text.encode("ascii", "ignore").decode()


def test_no_quote_or_space_of_unicode_is_forgotten() -> None:
    """Checked against Unicode's own categories: initial and final quotes, dashes, space and line separators."""
    every = [
        chr(code) for code in range(0x3000) if unicodedata.category(chr(code)) in ("Pi", "Pf", "Pd", "Zs", "Zl", "Zp")
    ]
    rare = {"\u1680", "\u058a", "\u05be", "\u1400", "\u1806", "\u2e17", "\u2e1a"}  # Of other scripts, or of editions.
    left = {one for one in every if not plain(one).isascii() and not 0x2E00 <= ord(one) <= 0x2E7F} - rare
    assert not left

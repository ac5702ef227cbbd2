"""Text metrics against hand counts and properties."""

import math

import pytest

from rlhf_jax.evaluation import text
from rlhf_jax.evaluation.text import GeneratedTurn

GRAMMAR = {"n_words": 10, "eos": 11, "rec": 12, "say": 13, "items": range(20, 25), "max_items": 2}


def turn(said: str, reference: str, dialogue: str = "d", **changes) -> GeneratedTurn:
    fields = {"n_tokens": len(said.split()) + 2, "n_items": said.count("<movie>"), "grammatical": True} | changes
    return GeneratedTurn(dialogue, said, reference, **fields)


def test_typography_is_no_difference():
    """A reference with U+2019 is met by a reply with an apostrophe, in tokens and in both BLEUs."""
    curly, straight = "don\u2019t say \u201cgood\u201d \u2013 ever\u2026", 'don\'t say "good" - ever...'
    assert text.tokenise(curly) == text.tokenise(straight)
    assert text.one_hot_bleu(straight, curly) == 1
    assert text.corpus_bleu([straight], [curly])[0] == pytest.approx(100)


def test_one_hot_bleu_by_hand():
    # Five of six 4-grams… of "a b c d e f" against "a b c d x f": only "a b c d" matches, of three.
    assert text.one_hot_bleu("a b c d e f", "a b c d x f") == pytest.approx(1 / 3)
    # A short hypothesis pays e^(1 − 8/4).
    assert text.one_hot_bleu("a b c d", "a b c d e f g h") == pytest.approx(math.exp(-1))
    # Clipping: the repeated 4-gram is in the reference once.
    assert text.one_hot_bleu("a a a a a", "a a a a") == pytest.approx(1 / 2)
    assert text.one_hot_bleu("a b c", "a b c") == 0.0
    assert text.one_hot_bleu("", "a") == 0.0
    assert text.one_hot_bleu("Have you SEEN <movie>?", "have you seen <movie> ?") == 1.0


def test_corpus_bleu_has_a_signature_and_counts_an_item_once():
    score, signature = text.corpus_bleu(["i like that one"], ["i like that one"])
    assert score == pytest.approx(100.0)
    assert "tok:13a" in signature and "case:lc" in signature
    # "<movie>" is one word, so there is no 2-gram to match here.
    assert text.corpus_bleu(["<movie>"], ["<movie>"])[0] == text.corpus_bleu(["word"], ["word"])[0]


def test_distinct_in_two_forms():
    texts = ["a b", "a b c"]
    assert text.distinct(texts, 1, per="sentence") == 3 / 2
    assert text.distinct(texts, 1, per="total") == 3 / 5
    assert text.distinct([""], 2, per="total") == 0.0
    with pytest.raises(ValueError, match="per='token'"):
        text.distinct(texts, 1, per="token")


def test_repetition():
    assert text.repetition("a b c d") == 0.0
    assert text.repetition("no no no no no") == pytest.approx(2 / 3)
    assert text.repetition("hi") == 0.0


@pytest.mark.parametrize(
    ("tokens", "good"),
    [
        ([13, 1, 2, 11], True),
        ([13, 11], True),
        ([12, 20, 21, 13, 1, 20, 11], True),
        ([12, 20, 13, 1, 21, 11], False),  # mentions an item that is not listed
        ([13, 20, 11], False),  # an item without a list
        ([12, 20, 20, 13, 11], False),  # twice
        ([12, 20, 21, 22, 13, 11], False),  # too many
        ([12, 13, 11], False),  # an empty list
        ([12, 20, 1, 13, 11], False),  # a word in the list
        ([12, 20, 11], False),  # never says anything
        ([13, 1], False),  # does not end
        ([1, 11], False),
        ([13, 13, 11], False),
        ([], False),
    ],
)
def test_grammar_judge(tokens, good):
    assert text.is_grammatical(tokens, **GRAMMAR) is good


@pytest.mark.parametrize(
    ("tokens", "good"),
    [([12, 20, 21, 13, 21, 1, 20, 11], True), ([12, 20, 13, 20, 1, 20, 11], False), ([13, 1, 1, 11], True)],
)
def test_grammar_judge_where_words_name_an_item_once(tokens, good):
    assert text.is_grammatical(tokens, **GRAMMAR, once=True) is good
    assert text.is_grammatical(tokens, **GRAMMAR)


def test_results_of_a_perfect_and_a_poor_system():
    said = ["have you seen <movie> yet ?", "i would try <movie> it is great fun", "no problem have a nice day"]
    perfect = [turn(s, s, f"d{i}") for i, s in enumerate(said)]
    poor = [turn("no no no no no", s, f"d{i}", grammatical=False) for i, s in enumerate(said)]
    best = {r.metric: r for r in text.text_results("copycat", [perfect, perfect], split="toy/test", seeds=(0, 1))}
    assert best["bleu4"].value == pytest.approx(100.0) and best["bleu4_one_hot"].value == 1.0
    assert best["bleu4"].interval == pytest.approx((100.0, 100.0))
    assert best["bleu4"].n == best["bleu4_one_hot"].n == 3
    assert best["item_share"].value == pytest.approx(2 / 3)
    assert best["bleu4"].std == 0.0
    worst = {r.metric: r.value for r in text.text_results("poor", [poor], split="toy/test")}
    assert worst["ungrammatical"] == 1.0 and worst["repetition"] == pytest.approx(2 / 3)
    gain = {r.metric: r for r in text.text_differences("a-b", [perfect], [poor], split="toy/test", seeds=(0,))}
    assert gain["bleu4"].interval_excludes_zero and not gain["bleu4"].shows_difference
    assert gain["ungrammatical"].value == -1.0


def test_worlds_of_different_size_count_the_same_n_everywhere():
    """Two seeds with worlds of their own, of 4 and 2 turns: n is their mean, and distinct-n reads as many of both."""
    long, short = ([turn(f"w{i} a b c", f"w{i} a b c", f"s{s}d{i}") for i in range(n)] for s, n in ((0, 4), (1, 2)))
    found = {
        r.metric: r for r in text.text_results("sft", [long, short], split="toy/test", seeds=(0, 1), same_test=False)
    }
    assert found["bleu4"].n == found["repetition"].n == 3
    assert found["distinct_1_per_total"].n == 2
    assert found["distinct_1_per_total"].value == pytest.approx(5 / 8) and found["distinct_1_per_total"].std == 0.0


def test_constant_baseline_wins_on_one_hot_bleu_where_humans_ask_in_other_words():
    human = ["have you seen <movie> ?", "how about the new one <movie>", "have you seen <movie> before ?"]
    constant = text.constant_results([(f"d{i}", s) for i, s in enumerate(human)], split="toy/test")
    assert [r.name for r in constant] == ["constant/bleu4", "constant/bleu4_one_hot"]
    shifted = [turn(human[i - 1], human[i], f"d{i}") for i in range(3)]
    others = {r.metric: r.value for r in text.text_results("human", [shifted], split="toy/test")}
    assert constant[1].value > others["bleu4_one_hot"]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="sft: no generated turns"):
        text.text_results("sft", [[]], split="toy/test")
    with pytest.raises(ValueError, match="2 seeds for 1 lists"):
        text.text_results("sft", [[turn("a", "b")]], split="toy/test", seeds=(0, 1))
    with pytest.raises(ValueError, match="different places"):
        text.text_differences("a-b", [[turn("a", "b")]], [[turn("a", "c")]], split="toy/test")

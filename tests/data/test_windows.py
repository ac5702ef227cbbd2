"""Utterances, prompts, responses and whole dialogues as tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data import windows
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import (
    KIND_NONE,
    KIND_RECOMMENDER,
    KIND_SEEKER,
    dialogue_tokens,
    encode_words,
    prompt_from_utterances,
    prompt_tokens,
    response_parts,
    response_tokens,
    utterance_from_response,
    utterance_tokens,
)
from rlhf_jax.interfaces import Corpus, Dialogue, Message, Role

VOCAB = Vocabulary.train(["have you seen it", "seen it twice"] * 3, range(1, 21), 270)


def said(role: Role, *parts: str | int) -> Message:
    return Message(role=role, parts=parts, message_id=0)


def conversation(*messages: Message) -> Dialogue:
    return Dialogue(dialogue_id="1", messages=messages, seeker_labels={}, recommender_labels={})


TALK = (
    said("seeker", "I loved ", 3, " and ", 4),
    said("recommender", "seen ", 5, "? or ", 6, "? ", 5, "!"),
    said("recommender", ""),
    said("recommender", "it is good"),
    said("seeker", "no"),
    said("seeker", "not yet"),
)


def shown(tokens: list[int]) -> str:
    return VOCAB.decode(tokens, {item: f"#{item}" for item in range(1, 21)}, specials=True)


def test_utterances() -> None:
    assert shown(utterance_tokens(VOCAB, TALK[0])) == "<seeker> i loved #3 and #4 <eos>"
    assert shown(utterance_tokens(VOCAB, TALK[1])) == "<recommender> <rec> #5 #6 <say> seen #5? or #6? #5! <eos>"
    assert shown(utterance_tokens(VOCAB, TALK[3])) == "<recommender> <say> it is good <eos>"
    assert shown(utterance_tokens(VOCAB, TALK[2])) == "<recommender> <say> <eos>"


def test_prompts_end_with_the_marker_and_hold_whole_recent_turns() -> None:
    seeker, recommended, added, last = (utterance_tokens(VOCAB, TALK[place]) for place in (0, 1, 3, 4))
    newest = utterance_tokens(VOCAB, TALK[5])
    everything = [*seeker, *recommended, *added, *last, *newest, VOCAB.recommender]
    assert prompt_tokens(VOCAB, TALK, window=6, context_tokens=200) == everything
    assert prompt_tokens(VOCAB, TALK, window=3, context_tokens=200) == everything
    # Consecutive messages of one speaker are one turn; the empty message counts for nothing.
    assert prompt_tokens(VOCAB, TALK, window=2, context_tokens=200) == [
        *recommended, *added, *last, *newest, VOCAB.recommender,
    ]  # fmt: skip
    assert prompt_tokens(VOCAB, TALK, window=1, context_tokens=200) == [*last, *newest, VOCAB.recommender]
    assert prompt_tokens(VOCAB, (), window=1, context_tokens=3) == [VOCAB.recommender]


@given(window=st.integers(1, 5), context_tokens=st.integers(3, 60), n_messages=st.integers(0, 6))
def test_prompts_are_cut_at_whole_utterances(window: int, context_tokens: int, n_messages: int) -> None:
    messages = TALK[:n_messages]
    prompt = prompt_tokens(VOCAB, messages, window=window, context_tokens=context_tokens)
    assert len(prompt) <= context_tokens and prompt[-1] == VOCAB.recommender
    whole = [utterance_tokens(VOCAB, message) for message in messages if not windows.is_empty(message)]
    suffixes = [[token for part in whole[start:] for token in part] for start in range(len(whole) + 1)]
    if prompt[:-1] in suffixes:
        kept = suffixes.index(prompt[:-1])
        if 0 < kept < len(whole):
            n_turns = sum(left[0] != right[0] for left, right in zip(whole[kept - 1 :], whole[kept:], strict=False)) + 1
            assert n_turns > window or len(prompt) + len(whole[kept - 1]) > context_tokens
    else:
        # Only the newest utterance is ever cut: it keeps its marker and its end.
        assert len(prompt) == context_tokens < len(whole[-1]) + 1
        assert prompt[0] == whole[-1][0] and prompt[1:-1] == whole[-1][-(context_tokens - 2) :]


def test_prompts_refuse_what_has_no_room() -> None:
    with pytest.raises(ValueError, match="window is 0"):
        prompt_tokens(VOCAB, TALK, window=0, context_tokens=9)
    with pytest.raises(ValueError, match="context_tokens is 2"):
        prompt_tokens(VOCAB, TALK, window=1, context_tokens=2)


def test_responses() -> None:
    response = response_tokens(VOCAB, TALK[1], max_tokens=64)
    assert [VOCAB.recommender, *response] == utterance_tokens(VOCAB, TALK[1])
    assert shown(response_tokens(VOCAB, TALK[3], max_tokens=64)) == "<say> it is good <eos>"
    with pytest.raises(ValueError, match="seeker's; only the recommender"):
        response_tokens(VOCAB, TALK[0], max_tokens=64)
    with pytest.raises(ValueError, match="max_tokens is 3"):
        response_tokens(VOCAB, TALK[1], max_tokens=3)


@pytest.mark.parametrize(
    ("parts", "kept"),
    [
        (("seen ", 5, " or ", 6, " , ", 5, " is good"), "<rec> #5 #6 <say> seen #5 or #6 , <eos>"),
        (("seen ", 5, " , it is good"), "<rec> #5 <say> seen #5 , it is good <eos>"),
        (("good day",), "<say> good day <eos>"),
    ],
)
def test_words_end_before_an_item_they_have_named_where_once_is_all(parts: tuple[str | int, ...], kept: str) -> None:
    message = said("recommender", *parts)
    response = response_tokens(VOCAB, message, max_tokens=64, once=True)
    assert response == [VOCAB.rec, *response[1:]] if 5 in parts else response[0] == VOCAB.say
    assert utterance_tokens(VOCAB, message, once=True) == [VOCAB.recommender, *response]
    named = [token for token in response[response.index(VOCAB.say) :] if VOCAB.is_item(token)]
    assert len(set(named)) == len(named) == len({part for part in parts if isinstance(part, int)})
    assert shown(response).replace(" ,", ",") == kept.replace(" ,", ",")


@given(max_tokens=st.integers(4, 30), items=st.lists(st.integers(1, 20), max_size=12))
def test_responses_end_within_their_budget_and_keep_to_the_grammar(max_tokens: int, items: list[int]) -> None:
    parts: list[str | int] = ["have you"]
    for item in items:
        parts.extend([item, " or"])
    message = said("recommender", *parts)
    response = response_tokens(VOCAB, message, max_tokens=max_tokens, max_items=5)
    assert len(response) <= max_tokens and response[-1] == VOCAB.eos and response.count(VOCAB.eos) == 1
    say = response.index(VOCAB.say)
    listed = response[1:say]
    unique = list(dict.fromkeys(items))
    assert listed == [VOCAB.item_token(item) for item in unique[: min(5, max_tokens - 3)]]
    assert (response[0] == VOCAB.rec) == bool(items)
    assert all(token in listed for token in response[say:] if VOCAB.is_item(token))
    taken = response_parts(VOCAB, [*response, VOCAB.pad, VOCAB.pad])
    assert [VOCAB.item_token(item) for item in taken.items] == listed
    assert list(taken.words) == response[say + 1 : -1]


def test_sampled_tokens_go_into_the_next_prompt_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes spelled one by one are a legal sample that encoding would never give back."""
    odd = [VOCAB.say, *(VOCAB.encode_text(letter)[0] for letter in "seen"), VOCAB.eos]
    assert odd[1:-1] != VOCAB.encode_text("seen")
    opening = utterance_tokens(VOCAB, TALK[0])

    def refuse(*_: object) -> None:
        raise AssertionError("text was encoded again")

    monkeypatch.setattr(Vocabulary, "encode_texts", refuse)
    monkeypatch.setattr(Vocabulary, "encode_text", refuse)
    utterances = [opening, utterance_from_response(VOCAB, np.array([*odd, VOCAB.pad], np.int32))]
    prompt = prompt_from_utterances(VOCAB, utterances, window=4, context_tokens=99)
    assert prompt == [*opening, VOCAB.recommender, *odd, VOCAB.recommender]


def test_an_unfinished_response_is_closed() -> None:
    assert utterance_from_response(VOCAB, [VOCAB.say, 5]) == [VOCAB.recommender, VOCAB.say, 5, VOCAB.eos]


def test_an_unfinished_response_is_taken_apart_too() -> None:
    assert response_parts(VOCAB, [VOCAB.rec, VOCAB.item_token(3)]) == ((3,), ())
    assert response_parts(VOCAB, []) == ((), ())


def test_whole_dialogues_say_who_is_trained_on_what() -> None:
    tokens, kinds = dialogue_tokens(VOCAB, conversation(*TALK))
    utterances = [utterance_tokens(VOCAB, message) for message in TALK if not windows.is_empty(message)]
    assert tokens.tolist() == [token for utterance in utterances for token in utterance]
    assert tokens.dtype == np.int32 and kinds.dtype == np.int8
    expected = []
    for utterance in utterances:
        kind = KIND_SEEKER if utterance[0] == VOCAB.seeker else KIND_RECOMMENDER
        expected.extend([KIND_NONE, *[kind] * (len(utterance) - 1)])
    assert kinds.tolist() == expected


def test_words_encoded_before_give_the_same(toy_corpus: Corpus, vocab: Vocabulary) -> None:
    dialogues = toy_corpus.train[:3]
    for dialogue, words in zip(dialogues, encode_words(vocab, dialogues), strict=True):
        assert np.array_equal(dialogue_tokens(vocab, dialogue, words).tokens, dialogue_tokens(vocab, dialogue).tokens)
        prompts = [
            prompt_tokens(vocab, dialogue.messages[:2], given, window=6, context_tokens=99)
            for given in (words[:2], None)
        ]
        assert prompts[0] == prompts[1]
        responses = [response_tokens(vocab, dialogue.messages[2], given, max_tokens=32) for given in (words[2], None)]
        assert responses[0] == responses[1]

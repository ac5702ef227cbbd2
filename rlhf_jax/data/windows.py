"""From messages to token sequences: utterances, prompts cut at whole utterances, responses, rows to be ranked.

    seeker        <seeker> words <eos>
    recommender   <recommender> [<rec> ITEM …] <say> words <eos>

Every function that takes `words` accepts the message's words already encoded (`encode_words`), so that a whole data
set is encoded in one pass; left out, they are encoded on the spot.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, SupportsInt

import numpy as np

from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.interfaces import Dialogue, Message

KIND_NONE, KIND_SEEKER, KIND_RECOMMENDER = 0, 1, 2
"""Who is to be trained to say a token; the speaker markers are said by nobody."""
MIN_RESPONSE = 4
"""`<rec> ITEM <say> <eos>`, the shortest complete response with an item."""


class RankingRow(NamedTuple):
    """A recommender message with items and a context before it; what is ranked are its items."""

    dialogue: Dialogue
    message_index: int
    gold: tuple[int, ...]
    """All items of the message, unrepeated, in order."""
    fresh_gold: tuple[int, ...]
    """Those not mentioned before in the dialogue; may be empty."""
    mentioned: tuple[int, ...]
    """Items of the context in order of mention, repeats included (the last one is the most recent)."""


class TokenSequence(NamedTuple):
    """One training sequence; `kinds` says per token who is trained to say it (`KIND_…`)."""

    tokens: np.ndarray
    """int32 [S]"""
    kinds: np.ndarray
    """int8 [S]"""


class ResponseParts(NamedTuple):
    """A response taken apart."""

    items: tuple[int, ...]
    """Item ids of the list between `<rec>` and `<say>`."""
    words: tuple[int, ...]
    """Tokens between `<say>` and `<eos>`, items inside the words included."""


def is_empty(message: Message) -> bool:
    """Whether a message says nothing (the release has such messages); windows leave them out."""
    return not any(isinstance(part, int) or part.strip() for part in message.parts)


def encode_words(vocab: Vocabulary, dialogues: Sequence[Dialogue]) -> list[list[list[int]]]:
    """Words of every message of every dialogue, encoded in one pass; `[dialogue][message]` is a token list."""
    flat = vocab.encode_many_parts([message.parts for dialogue in dialogues for message in dialogue.messages])
    rest = iter(flat)
    return [[next(rest) for _ in dialogue.messages] for dialogue in dialogues]


def answerable(dialogue: Dialogue) -> list[int]:
    """Places of the recommender's messages that say something after a context."""
    found: list[int] = []
    has_context = False
    for place, message in enumerate(dialogue.messages):
        says = not is_empty(message)
        if has_context and says and message.role == "recommender":
            found.append(place)
        has_context = has_context or says
    return found


def training_texts(dialogues: Iterable[Dialogue]) -> Iterator[str]:
    """The texts a BPE is trained on: every run of words, items left out."""
    for dialogue in dialogues:
        for message in dialogue.messages:
            yield from (part for part in message.parts if isinstance(part, str))


def _content(
    vocab: Vocabulary, message: Message, words: Sequence[int] | None, max_items: int | None, *, once: bool = False
) -> list[int]:
    """What follows the speaker marker, without `<eos>`.

    If the list is cut to `max_items`, the words end before the first item that is no longer in it: the grammar lets
    the words mention listed items only. With `once` they end before the first item they have named already.
    """
    words = vocab.encode_parts(message.parts) if words is None else list(words)
    if message.role == "seeker":
        return words
    listed = [vocab.item_token(item_id) for item_id in dict.fromkeys(message.items)]
    if max_items is not None and len(listed) > max_items:
        listed = listed[:max_items]
        unlisted = (place for place, token in enumerate(words) if vocab.is_item(token) and token not in listed)
        words = words[: next(unlisted)]
    if once:
        named = [place for place, token in enumerate(words) if vocab.is_item(token)]
        again = (place for n, place in enumerate(named) if words[place] in [words[other] for other in named[:n]])
        words = words[: next(again, len(words))]
    return [*([vocab.rec, *listed] if listed else []), vocab.say, *words]


def utterance_tokens(
    vocab: Vocabulary,
    message: Message,
    words: Sequence[int] | None = None,
    *,
    max_items: int | None = None,
    once: bool = False,
) -> list[int]:
    """One message with its speaker marker and `<eos>`.

    Args:
      vocab: gives the ids.
      message: one message as sent.
      words: its encoded words, if at hand.
      max_items: longest item list, as in the response grammar; None is no limit.
      once: whether a recommender's words name an item at most once, as the grammar may ask.
    """
    marker = vocab.seeker if message.role == "seeker" else vocab.recommender
    return [marker, *_content(vocab, message, words, max_items, once=once), vocab.eos]


def response_tokens(
    vocab: Vocabulary,
    message: Message,
    words: Sequence[int] | None = None,
    *,
    max_tokens: int,
    max_items: int | None = None,
    once: bool = False,
) -> list[int]:
    """A recommender message as the policy would have to say it: `[<rec> ITEM …] <say> words <eos>`, no marker.

    Args:
      vocab: gives the ids.
      message: a message of the recommender.
      words: its encoded words, if at hand.
      max_tokens: the response is cut to so many tokens, its `<eos>` included; items are cut only if they alone are
        too many.
      max_items: longest item list; None is no limit but `max_tokens`.
      once: whether its words name an item at most once; they end before the first that would be named again.
    Raises:
      ValueError: if the message is the seeker's, or `max_tokens` leaves no room for one item.
    """
    if message.role != "recommender":
        raise ValueError(f"message {message.message_id} is the {message.role}'s; only the recommender has responses")
    if max_tokens < MIN_RESPONSE:
        raise ValueError(f"max_tokens is {max_tokens}; a response with one item takes {MIN_RESPONSE}")
    room = max_tokens - 3
    limit = room if max_items is None else min(room, max_items)
    return [*_content(vocab, message, words, limit, once=once)[: max_tokens - 1], vocab.eos]


def prompt_tokens(
    vocab: Vocabulary,
    messages: Sequence[Message],
    words: Sequence[Sequence[int]] | None = None,
    *,
    window: int,
    context_tokens: int,
) -> list[int]:
    """The recent conversation, ready for the recommender to speak; see `prompt_from_utterances`.

    Args:
      vocab: gives the ids.
      messages: the conversation so far, oldest first; empty messages are left out.
      words: the messages' encoded words, if at hand.
      window: how many turns of the conversation are shown at most.
      context_tokens: longest prompt, the final marker included.
    """
    chosen: list[list[int]] = []
    n_turns = 0
    speaker = None
    for place in range(len(messages) - 1, -1, -1):
        message = messages[place]
        if is_empty(message):
            continue
        n_turns += message.role != speaker
        speaker = message.role
        if n_turns > window:
            break
        chosen.append(utterance_tokens(vocab, message, None if words is None else words[place]))
    return prompt_from_utterances(vocab, chosen[::-1], window=window, context_tokens=context_tokens)


def prompt_from_utterances(
    vocab: Vocabulary, utterances: Sequence[Sequence[int]], *, window: int, context_tokens: int
) -> list[int]:
    """The last `window` turns as a prompt, whole utterances only, while they fit.

    Consecutive utterances of one speaker count as one turn of the window, but stay separate in the tokens and may be
    dropped one by one where room is short. Only if the newest utterance alone is too long is it cut: it keeps its
    marker and its end.

    Args:
      vocab: gives the ids.
      utterances: as `utterance_tokens` or `utterance_from_response` make them, oldest first.
      window: how many turns at most, at least 1.
      context_tokens: longest prompt, the final `<recommender>` included; at least 3.
    Returns: at most `context_tokens` tokens, the last one `<recommender>`.
    Raises:
      ValueError: naming a window or length that is too small.
    """
    if window < 1:
        raise ValueError(f"window is {window}; it must be at least 1 turn")
    if context_tokens < 3:
        raise ValueError(f"context_tokens is {context_tokens}; marker, one word and <recommender> take 3")
    room = context_tokens - 1
    chosen: list[Sequence[int]] = []
    n_turns = 0
    speaker = None
    for utterance in reversed(utterances):
        n_turns += utterance[0] != speaker
        speaker = utterance[0]
        if n_turns > window:
            break
        if len(utterance) > room:
            if not chosen:
                chosen.append([utterance[0], *utterance[len(utterance) - room + 1 :]])
            break
        chosen.append(utterance)
        room -= len(utterance)
    return [*(token for utterance in reversed(chosen) for token in utterance), vocab.recommender]


def utterance_from_response(vocab: Vocabulary, response: Iterable[SupportsInt]) -> list[int]:
    """A sampled response as an utterance of the next prompt: the very tokens, never encoded again.

    Args:
      vocab: gives the ids.
      response: sampled tokens, padding allowed; one without `<eos>` gets it.
    """
    tokens = []
    for token in map(int, response):
        if token in (vocab.eos, vocab.pad):
            break
        tokens.append(token)
    return [vocab.recommender, *tokens, vocab.eos]


def response_parts(vocab: Vocabulary, response: Iterable[SupportsInt]) -> ResponseParts:
    """Items listed and words said in a response, whether or not it follows the grammar to its end."""
    items: list[int] = []
    words: list[int] = []
    saying = False
    for token in map(int, response):
        if token in (vocab.eos, vocab.pad):
            break
        if token == vocab.say:
            saying = True
        elif saying:
            words.append(token)
        elif vocab.is_item(token):
            items.append(vocab.item_id(token))
    return ResponseParts(tuple(items), tuple(words))


def response_message(vocab: Vocabulary, response: Sequence[int]) -> Message:
    """A sampled response as a message: words with items where they are mentioned, listed ones that are not first."""
    items, words = response_parts(vocab, response)
    mentioned = {vocab.item_id(token) for token in words if vocab.is_item(token)}
    parts: list[str | int] = [item for item in items if item not in mentioned]
    run: list[int] = []
    for token in [*words, -1]:
        if token >= 0 and not vocab.is_item(token):
            run.append(token)
            continue
        if run:
            parts.append(vocab.decode(run))
            run = []
        if token >= 0:
            parts.append(vocab.item_id(token))
    return Message(role="recommender", parts=tuple(parts), message_id=0)


def dialogue_tokens(
    vocab: Vocabulary,
    dialogue: Dialogue,
    words: Sequence[Sequence[int]] | None = None,
    *,
    max_items: int | None = None,
) -> TokenSequence:
    """A whole dialogue as one training sequence, empty messages left out.

    Args:
      vocab: gives the ids.
      dialogue: the messages.
      words: their encoded words, if at hand.
      max_items: longest item list; None is no limit.
    Returns: tokens with, for each, who is trained to say it: `KIND_NONE` on speaker markers, else the speaker.
    """
    tokens: list[int] = []
    kinds: list[int] = []
    for place, message in enumerate(dialogue.messages):
        if is_empty(message):
            continue
        utterance = utterance_tokens(vocab, message, None if words is None else words[place], max_items=max_items)
        kind = KIND_SEEKER if message.role == "seeker" else KIND_RECOMMENDER
        tokens.extend(utterance)
        kinds.extend([KIND_NONE, *[kind] * (len(utterance) - 1)])
    return TokenSequence(np.array(tokens, np.int32), np.array(kinds, np.int8))


def ranking_rows(dialogues: Iterable[Dialogue]) -> Iterator[RankingRow]:
    """The rows of the ranking protocols.

    A row is a recommender *message* (turns are not joined) that mentions an item and has a context that is not empty.
    Source: the standardised ReDial protocol, Kostric & Balog 2026, doi:10.1145/3805712.3808573.
    """
    for dialogue in dialogues:
        mentioned: list[int] = []
        has_context = False
        for index, message in enumerate(dialogue.messages):
            gold = tuple(dict.fromkeys(message.items))
            if has_context and gold and message.role == "recommender":
                fresh = tuple(item_id for item_id in gold if item_id not in mentioned)
                yield RankingRow(dialogue, index, gold, fresh, tuple(mentioned))
            mentioned.extend(message.items)
            has_context = has_context or not is_empty(message)

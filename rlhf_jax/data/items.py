"""What the catalogue knows about items, as features, titles and sentences for pretraining."""

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from rlhf_jax.data.catalogue import split_title
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import TokenSequence, dialogue_tokens
from rlhf_jax.interfaces import Dialogue, Item, Message


def spelled_titles(items: Mapping[int, Item], *, with_year: bool = True) -> dict[int, str]:
    """Titles to show to people, by item id; items without a name are left out.

    Examples:
      >>> spelled_titles({3: Item(item_id=3, title="Scarface (1983)", year=1983)}, with_year=False)
      {3: 'Scarface'}
    """
    return {
        item_id: item.title if with_year else split_title(item.title)[0]
        for item_id, item in items.items()
        if item.title
    }


def features_of(item: Item) -> tuple[str, ...]:
    """Features of an item, most general first: genres, decade, then people (directors, stars, writers)."""
    names = [f"genre:{genre.lower()}" for genre in item.genres]
    if item.year is not None:
        names.append(f"decade:{item.year // 10 * 10}")
    names.extend(f"person:{person}" for person in item.people)
    return tuple(dict.fromkeys(names))


def spoken_decade(year: int | None) -> str:
    """A decade as people write it; empty if the year is unknown.

    Examples:
      >>> spoken_decade(1994), spoken_decade(2011), spoken_decade(1865), spoken_decade(None)
      ('90s', '2010s', '1860s', '')
    """
    if year is None:
        return ""
    return f"{year // 10 * 10 % 100}s" if 1900 <= year < 2000 else f"{year // 10 * 10}s"


def item_features(
    items: Mapping[int, Item], item_ids: Sequence[int], *, min_count: int = 2, max_features: int
) -> tuple[tuple[str, ...], np.ndarray]:
    """Shared features of items as index lists, for embeddings summed over features.

    Kept are features that at least `min_count` items share. Where an item has more than `max_features` of them, the
    first are taken in the order of `features_of`: genres and decade say most about what is asked for in dialogues,
    then people in the order of billing.

    Args:
      items: the catalogue.
      item_ids: which items, in which order (a vocabulary's).
      min_count: fewest items a feature must occur in.
      max_features: K, columns of the array.
    Returns: names of the F features, most frequent first, and for each item their indices, −1 where it has fewer.
      int32 [I, K]
    Raises:
      ValueError: naming an item that the catalogue lacks, or a size below 1.
    """
    if min_count < 1 or max_features < 1:
        raise ValueError(f"min_count is {min_count} and max_features {max_features}; both must be at least 1")
    unknown = [item_id for item_id in item_ids if item_id not in items]
    if unknown:
        raise ValueError(f"{len(unknown)} items are not in the catalogue, the first is {unknown[0]}")
    per_item = [features_of(items[item_id]) for item_id in item_ids]
    counts = collections.Counter(name for names in per_item for name in names)
    kept = sorted((name for name in counts if counts[name] >= min_count), key=lambda name: (-counts[name], name))
    index = {name: place for place, name in enumerate(kept)}
    array = np.full((len(item_ids), max_features), -1, np.int32)
    for row, names in enumerate(per_item):
        places = [index[name] for name in names if name in index][:max_features]
        array[row, : len(places)] = places
    return tuple(kept), array


def item_title_tokens(vocab: Vocabulary, items: Mapping[int, Item]) -> list[list[int]]:
    """Word tokens of every title without its year, in the vocabulary's item order; [] for an item without a name.

    They are encoded as inside a sentence (with a leading space), since that is where titles stand.
    """
    titles = [split_title(items[item_id].title)[0] if item_id in items else "" for item_id in vocab.item_ids]
    return vocab.encode_texts([f" {title}" if title else "" for title in titles])


def description_texts(item: Item) -> tuple[str, ...]:
    """What is known about an item, a sentence per kind of fact; unknown facts give no sentence.

    Examples:
      >>> description_texts(Item(item_id=3, title="Scarface (1983)", year=1983, genres=("crime", "drama")))
      ('Scarface (1983)', 'crime, drama from the 1980s')
    """
    facts = []
    if item.title:
        facts.append(item.title)
    kind = ", ".join(item.genres).lower()
    if item.year:
        kind = f"{kind} from the {item.year // 10 * 10}s".strip()
    facts.extend([kind, f"with {', '.join(item.people)}" if item.people else "", item.plot])
    return tuple(fact for fact in facts if fact)


def description_sequences(vocab: Vocabulary, items: Mapping[int, Item], *, max_tokens: int) -> list[TokenSequence]:
    """Pretraining sequences that tie item tokens to what is known about them, in both directions.

    Each sentence of `description_texts` gives two sequences in the ordinary grammar, so that the same positions are
    trained as in dialogues:

        words → item   <seeker> words <eos> <recommender> <rec> ITEM <say> <eos>
        item → words   <recommender> <rec> ITEM <say> words <eos>

    Args:
      vocab: gives the ids; its items are described.
      items: the catalogue.
      max_tokens: longest sequence; the words are cut.
    Raises:
      ValueError: if `max_tokens` leaves no room for words.
    """
    frame = 7
    if max_tokens <= frame:
        raise ValueError(f"max_tokens is {max_tokens}; the frame of a description alone takes {frame}")
    known = [items[item_id] for item_id in vocab.item_ids if item_id in items]
    pairs = [(item.item_id, text) for item in known for text in description_texts(item)]
    encoded = vocab.encode_many_parts([[text] for _, text in pairs])
    sequences = []
    for (item_id, text), words in zip(pairs, encoded, strict=True):
        words = words[: max_tokens - frame]
        asked = Message(role="seeker", parts=(text,), message_id=0)
        named = Message(role="recommender", parts=(item_id,), message_id=1)
        told = Message(role="recommender", parts=(item_id, text), message_id=0)
        for messages, message_words in (((asked, named), (words, ())), ((told,), (words,))):
            dialogue = Dialogue(dialogue_id="", messages=messages, seeker_labels={}, recommender_labels={})
            sequences.append(dialogue_tokens(vocab, dialogue, message_words))
    return sequences

"""Random small dialogues, and the forms' formulas as plain loops over them."""

import math
import re
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from rlhf_jax.data.windows import ranking_rows
from rlhf_jax.interfaces import Dialogue, Item, Message
from rlhf_jax.recommenders.contexts import Catalogue, Training, read_training

WORDS = ("scary", "funny", "heist", "space", "romance", "war", "the", "a", "i")
ITEM_IDS = (3, 5, 8, 13, 21, 34, 55, 89, 144, 233)
ITEMS = {
    item_id: Item(
        item_id=item_id,
        title=f"{WORDS[place % 6]} tale {place} (199{place})" if place != 7 else "",
        genres=(("crime", "drama", "comedy")[place % 3],) if place != 4 else (),
        people=(("Ann Lee", "Bo Ray", "Cy Dee")[place // 4],) if place not in (4, 9) else (),
        plot=" ".join(WORDS[(place * 3 + step) % 6] for step in range(place % 4)),
    )
    for place, item_id in enumerate(ITEM_IDS)
}
CATALOGUE = Catalogue(ITEM_IDS, {item_id: item.title for item_id, item in ITEMS.items()})
NEVER = 233
"""In the catalogue, and in no dialogue."""


def random_dialogues(seed: int = 0, n: int = 14, first: int = 0) -> list[Dialogue]:
    """Dialogues of two to seven messages; item 233 is never mentioned, and some messages are empty."""
    generator = np.random.default_rng(seed)
    dialogues = []
    for number in range(first, first + n):
        messages = []
        for place in range(int(generator.integers(2, 8))):
            parts: list[str | int] = []
            for _ in range(int(generator.integers(0, 4))):
                # Few items are named often.
                item = ITEM_IDS[int(min(generator.geometric(0.3) - 1, 8))]
                parts.append(item if generator.random() < 0.5 else f" {' '.join(generator.choice(WORDS, 3))} ")
            messages.append(Message(("seeker", "recommender")[place % 2], tuple(parts), place))
        dialogues.append(Dialogue(f"d{number}", tuple(messages), {}, {}))
    return dialogues


def toy_training(seed: int = 0) -> tuple[list[Dialogue], Training]:
    dialogues = random_dialogues(seed)
    return dialogues, read_training(dialogues, CATALOGUE)


def items_of(dialogue: Dialogue) -> list[int]:
    return [item for message in dialogue.messages for item in message.items]


def recency_weights(mentioned: Sequence[int], decay: float) -> dict[int, float]:
    """Item to weight, from the newest back."""
    weights: dict[int, float] = {}
    for item in reversed(mentioned):
        if item not in weights:
            weights[item] = decay ** len(weights)
    return weights


def tokens(text: str) -> list[str]:
    return [word for word in re.findall(r"\b\w\w+\b", text.lower()) if word not in ENGLISH_STOP_WORDS]


def slow_popularity(dialogues: Sequence[Dialogue], count: str = "mentions") -> np.ndarray:
    named = (
        [item for dialogue in dialogues for item in items_of(dialogue)]
        if count == "mentions"
        else [item for row in ranking_rows(dialogues) for item in row.fresh_gold]
    )
    return np.array([named.count(item) for item in ITEM_IDS], float)


def slow_copy(dialogues: Sequence[Dialogue], mentioned: Sequence[int]) -> np.ndarray:
    scores = slow_popularity(dialogues)
    above = scores.max() + 1
    for place, item in enumerate(mentioned):
        scores[ITEM_IDS.index(item)] = above + place
    return scores


def slow_co_mention(
    dialogues: Sequence[Dialogue], mentioned: Sequence[int], shrinkage: float, decay: float
) -> np.ndarray:
    sets = [set(items_of(dialogue)) for dialogue in dialogues]
    n = {item: sum(item in found for found in sets) for item in ITEM_IDS}
    scores = []
    for item in ITEM_IDS:
        total = 0.0
        for other, weight in recency_weights(mentioned, decay).items():
            both = sum(item in found and other in found for found in sets)
            if item != other and both:
                total += weight * both / math.sqrt((n[item] + shrinkage) * (n[other] + shrinkage))
        scores.append(total)
    return np.array(scores)


def slow_ease(
    dialogues: Sequence[Dialogue], mentioned: Sequence[int], ridge: float, min_dialogues: int, decay: float
) -> np.ndarray:
    sets = [set(items_of(dialogue)) for dialogue in dialogues]
    kept = [item for item in ITEM_IDS if sum(item in found for found in sets) >= min_dialogues]
    scores = np.zeros(len(ITEM_IDS))
    weights = recency_weights(mentioned, decay)
    x = np.array([[float(item in found) for item in kept] for found in sets])
    for place, item in enumerate(kept):
        # The regression of one item on the others, solved for it alone.
        others = [other for other in range(len(kept)) if other != place]
        a = x[:, others]
        coefficients = np.linalg.solve(a.T @ a + ridge * np.eye(len(others)), a.T @ x[:, place])
        scores[ITEM_IDS.index(item)] = sum(
            weights.get(kept[other], 0.0) * value for other, value in zip(others, coefficients, strict=True)
        )
    return scores


def slow_knowledge(mentioned: Sequence[int], decay: float) -> np.ndarray:
    def vector(item_id: int) -> dict[str, float]:
        item = ITEMS[item_id]
        found = {}
        for name in (*item.genres, *item.people):
            having = sum(name in (*other.genres, *other.people) for other in ITEMS.values())
            found[name] = math.log(len(ITEMS) / having)
        length = math.sqrt(sum(value**2 for value in found.values()))
        return {name: value / length for name, value in found.items()}

    profile: dict[str, float] = {}
    for item, weight in recency_weights(mentioned, decay).items():
        for name, value in vector(item).items():
            profile[name] = profile.get(name, 0.0) + weight * value
    length = math.sqrt(sum(value**2 for value in profile.values()))
    return np.array(
        [
            0.0
            if item in mentioned or not profile
            else sum(profile.get(name, 0.0) * value for name, value in vector(item).items()) / length
            for item in ITEM_IDS
        ]
    )


def slow_context_knn(
    dialogues: Sequence[Dialogue], text: str, texts_of: dict[tuple[str, int], str], neighbours: int, power: float
) -> np.ndarray:
    """`texts_of` has the compared words of every training row, by dialogue and message."""
    rows = [row for row in ranking_rows(dialogues) if row.fresh_gold]
    documents = [tokens(texts_of[row.dialogue.dialogue_id, row.message_index]) for row in rows]
    having: dict[str, set[str]] = {}
    for row, document in zip(rows, documents, strict=True):
        for word in document:
            having.setdefault(word, set()).add(row.dialogue.dialogue_id)

    def vector(document: list[str]) -> dict[str, float]:
        return {
            word: (1 + math.log(document.count(word))) * (1 + math.log((1 + len(dialogues)) / (1 + len(having[word]))))
            for word in set(document)
            if word in having
        }

    def cosine(a: dict[str, float], b: dict[str, float]) -> float:
        lengths = math.sqrt(sum(v**2 for v in a.values()) * sum(v**2 for v in b.values()))
        return sum(value * b.get(word, 0.0) for word, value in a.items()) / lengths if lengths else 0.0

    query = vector(tokens(text))
    cosines = [round(cosine(query, vector(document)), 9) for document in documents]
    order = sorted(range(len(rows)), key=lambda place: (-cosines[place], place))[:neighbours]
    scores = np.zeros(len(ITEM_IDS))
    for place in order:
        for item in rows[place].fresh_gold:
            scores[ITEM_IDS.index(item)] += max(cosines[place], 0.0) ** power
    return scores


def slow_bm25(text: str, mentioned: Sequence[int], k1: float, b: float) -> np.ndarray:
    documents = [
        tokens(" ".join([ITEMS[i].title, ITEMS[i].plot, *ITEMS[i].people, *ITEMS[i].genres])) for i in ITEM_IDS
    ]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for item, document in zip(ITEM_IDS, documents, strict=True):
        total = 0.0
        for word in set(tokens(text)):
            having = sum(word in other for other in documents)
            count = document.count(word)
            idf = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            total += idf * count * (k1 + 1) / (count + k1 * (1 - b + b * len(document) / mean)) if count else 0.0
        scores.append(0.0 if item in mentioned else total)
    return np.array(scores)

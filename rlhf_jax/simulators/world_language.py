"""What the world's people say: short templates, lower case, at most 16 words a message.

Facts and chat are worded without any word of sentiment, so that feelings are voiced only in REACTIONS, whose seven
levels go from hate to delight. Templates are lists of parts; a list index in braces such as `{0}` is an item.
"""

import numpy as np

from rlhf_jax.interfaces import Item
from rlhf_jax.simulators.world import DECADES, GENRES, PEOPLE, Catalogue, Taste, decade_word

Parts = tuple[str | int, ...]
MAX_WORDS = 16

FACTS = ("genre", "person", "decade", "disliked_genre", "seen_item")
"""What a user can say about a taste; every request names the genre."""

REQUEST_HEADS = ("a {} movie", "{} movies", "something {}", "any {} movie")
LOOKING = ("", "i am after", "looking for", "i usually watch", "today i would watch")
RATHER = ("", "rather", "i meant", "more of", "what about")

REACTIONS = (
    ("horrible pick, i hate it", "this is awful, i hate that one", "i hate this, terrible"),
    ("that sounds bad", "that is a bad pick", "that one is bad"),
    ("that looks a bit dull", "it sounds a bit boring to me", "a bit boring for me"),
    ("hmm, it could go either way", "i have to think about that one", "hmm, i do not know about it"),
    ("okay, maybe", "it could be okay", "fine, i may give it a try"),
    ("great pick", "that sounds great", "that is a great one"),
    ("wow, perfect, i love it", "i love it, wonderful", "amazing, i love this one so much"),
)
"""Reaction to a suggestion, by level."""

ACCEPTANCE = ("i will watch {0} tonight", "i take {0}", "{0} it is")
REPEATED = ("you already said that, it is boring", "that one again, how dull", "i have heard that one, boring")
WAITING = ("this is a bit dull", "it gets a bit boring", "a bit boring, this")
QUIT = ("i am out, bye", "that is it for me, bye", "i have to go, bye")
USER_BYE = ("bye", "see you", "bye now", "talk to you later, bye")
USER_HELLO = ("hi,", "hello,", "hey,", "")

GREETINGS = (
    "hi, what kind of movie are you after?",
    "hello, what do you watch?",
    "hey, what are you looking for today?",
)
QUESTIONS = (
    "any actor you follow?",
    "which decade do you go for?",
    "what did you watch last?",
    "is there a kind of movie you never watch?",
    "tell me a bit more about what you watch so that i can find something",
)
SYSTEM_BYE = ("bye, come back any time", "goodbye", "it was a pleasure to talk to you, have a good evening and bye")

_OPENERS = ("", "try", "how about", "have you seen", "you could watch", "i think you should watch")
_FILLERS = (
    "tell me what you think",
    "it is on tonight",
    "many people talk about it these days",
    "it runs for about two hours",
    "my neighbour saw it last week",
)


def count_words(parts: Parts) -> int:
    """Words of a message; items do not count, nor do punctuation marks that stand alone."""
    return sum(any(c.isalnum() for c in word) for part in parts if isinstance(part, str) for word in part.split())


def fill(template: str, *items: int) -> Parts:
    """Puts item ids into a template with `{0}`, `{1}` …; words between them become string parts.

    Examples:
      >>> fill("try {0} or {1}", 7, 9)
      ('try ', 7, ' or ', 9)
    """
    parts: list[str | int] = [template]
    for number, item in enumerate(items):
        last = parts.pop()
        before, _, after = str(last).partition(f"{{{number}}}")
        parts += [before, item, after]
    return tuple(part for part in parts if part != "")


def join(*messages: Parts) -> Parts:
    """Glues parts with a space, merging neighbouring words."""
    merged: list[str | int] = []
    for message in messages:
        for position, part in enumerate(message):
            between = " " if position == 0 and merged else ""
            if isinstance(part, str) and merged and isinstance(merged[-1], str):
                merged[-1] += between + part
            elif isinstance(part, str):
                merged.append(between + part)
            else:
                if between and isinstance(merged[-1], str):
                    merged[-1] += between
                elif between:
                    merged.append(between)
                merged.append(part)
    return tuple(merged)


def choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """One of the wordings, uniformly."""
    return options[int(rng.integers(len(options)))]


def request_parts(rng: np.random.Generator, catalogue: Catalogue, taste: Taste, facts: tuple[str, ...]) -> Parts:
    """Asks for a movie by genre and by the given facts, for instance `a western movie from the 80s with mara quill`."""
    text = choose(rng, REQUEST_HEADS).format(GENRES[taste.genre])
    if "decade" in facts:
        text += f" from the {decade_word(taste.decade)}"
    if "person" in facts:
        text += f" with {PEOPLE[taste.person].lower()}"
    if "disliked_genre" in facts:
        text += f", nothing {GENRES[taste.disliked_genre]}"
    if "seen_item" in facts:
        return fill(f"{text}, i just saw {{0}}", catalogue.items[taste.seen_item].item_id)
    return (text,)


def suggestion_parts(rng: np.random.Generator, items: tuple[Item, ...]) -> Parts:
    """Words of a recommending turn about one to three items, 0 to 16 words long; what it says of items is true.

    The genre is left out: whoever judges the turn has to know the item.
    """
    opener = choose(rng, _OPENERS)
    listing = {1: "{0}", 2: "{0} or {1}", 3: "{0} , {1} or {2}"}[len(items)]
    text = f"{opener} {listing}".strip()
    about = items[0]
    ids = tuple(item.item_id for item in items)
    verbosity = int(rng.integers(5))
    if verbosity >= 2 and about.year is not None:
        person = about.people[int(rng.integers(len(about.people)))].lower()
        decade = decade_word((about.year - DECADES[0]) // 10)
        text += choose(rng, (f" with {person}", f" from the {decade}", f" from the {decade} with {person}"))
    longer = fill(f"{text} , {choose(rng, _FILLERS)}", *ids)
    return longer if verbosity in (1, 3, 4) and count_words(longer) <= MAX_WORDS else fill(text, *ids)

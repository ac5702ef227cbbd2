"""What the world's people say: short templates, lower case, at most 16 words a message.

Facts and chat are worded without any word of sentiment, so that feelings are voiced only in REACTIONS, whose seven
levels go from hate to delight. Templates are lists of parts; a list index in braces such as `{0}` is an item.
"""

import numpy as np

from rlhf_jax.interfaces import Item
from rlhf_jax.simulators.world import GENRES, PEOPLE, Catalogue, Taste, decade_word

Parts = tuple[str | int, ...]
MAX_WORDS = 16

FACTS = {
    "genre": ("i am into {} movies", "i watch {} movies", "looking for a {} movie", "mostly {}"),
    "person": ("something with {}", "i follow {}", "whatever has {} in it", "with {}"),
    "decade": ("something from the {}", "a movie from the {}", "from the {}", "{} movies"),
    "disliked_genre": ("nothing {}", "{} is not for me", "i never watch {}", "anything but {}"),
    "seen_item": ("i have seen {} twice", "i just saw {}", "i watched {} again", "i keep going back to {}"),
}
"""Wordings of each fact about a taste; the user has one value of each."""

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

ACCEPTANCE = ("i will watch {0} tonight", "i am going to watch {0}", "{0} it is")
REPEATED = ("you already said that, it is boring", "that one again, how dull", "i have heard that one, boring")
WAITING = ("i am still waiting for a movie", "so what should i watch?", "this is a bit dull, name a movie")
MORE = ("any other movie?", "what else is there?", "what else do you have?", "one more?")
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


def fact_parts(rng: np.random.Generator, catalogue: Catalogue, taste: Taste, fact: str) -> Parts:
    """Puts one fact of a taste into words."""
    template = choose(rng, FACTS[fact])
    if fact == "seen_item":
        return fill(template.replace("{}", "{0}"), catalogue.items[taste.seen_item].item_id)
    value = getattr(taste, fact)
    words = {"person": lambda: PEOPLE[value].lower(), "decade": lambda: decade_word(value)}
    return (template.format(words.get(fact, lambda: GENRES[value])()),)


def suggestion_parts(rng: np.random.Generator, items: tuple[Item, ...]) -> Parts:
    """Words of a recommending turn about one to three items, 0 to 16 words long; what it says of items is true."""
    opener = choose(rng, _OPENERS)
    listing = {1: "{0}", 2: "{0} or {1}", 3: "{0} , {1} or {2}"}[len(items)]
    text = f"{opener} {listing}".strip()
    about = items[0]
    verbosity = int(rng.integers(5))
    if verbosity >= 1:
        decade = "2000s" if (about.year or 0) >= 2000 else f"{(about.year or 0) % 100 // 10}0s"
        person = about.people[int(rng.integers(len(about.people)))].lower()
        genre = about.genres[int(rng.integers(len(about.genres)))]
        kind = int(rng.integers(3)) if verbosity < 3 else 3
        text += (
            f" , a {genre} movie",
            f" with {person}",
            f" from the {decade}",
            f" , a {decade} {genre} movie with {person}",
        )[kind]
    ids = tuple(item.item_id for item in items)
    longer = fill(f"{text} , {choose(rng, _FILLERS)}", *ids)
    return longer if verbosity in (2, 4) and count_words(longer) <= MAX_WORDS else fill(text, *ids)

"""What a seeker might say to suggestions that the data never answered, put together from attributes.

    wanted    what the items that will be liked have and the suggested ones lack
    unwanted  what the suggested items have and the liked ones lack

A message says one or two of the first and often one of the second, in one of several wordings: `something horror, with
tim curry, not comedy`. It never spells a liked item's title. Composed dialogues carry the provenance `composed`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from rlhf_jax.data.items import features_of, spoken_decade
from rlhf_jax.data.spelled_titles import SpelledTitles
from rlhf_jax.interfaces import Dialogue, Item, Message

PROVENANCE = "composed"
BOTH = (
    "not {unwanted}, rather {wanted}",
    "i would rather see {wanted} than {unwanted}",
    "hmm, less {unwanted}, more {wanted}",
    "no, i am not after {unwanted}. something {wanted}?",
    "{wanted} would be closer than {unwanted}",
)
WANTED = (
    "i am looking for {wanted}",
    "do you have anything {wanted}?",
    "rather something {wanted}",
    "not quite, i had {wanted} in mind",
)
UNWANTED = ("i do not want {unwanted}", "please not {unwanted}", "no, anything but {unwanted}")
NEITHER = ("not quite, anything else?", "what else do you have?", "close, but another one please")
SUGGESTING = ("how about ", "have you seen ", "you could try ", "")
TRIES = 20


@dataclasses.dataclass(frozen=True)
class Composer:
    """Composes over a catalogue."""

    items: Mapping[int, Item]
    titles: SpelledTitles

    def feedback(
        self, context: Sequence[Message], suggested: Sequence[int], gold: Sequence[int], rng: np.random.Generator
    ) -> Message:
        """What a seeker who will like `gold` says to `suggested`.

        Args:
          context: what was said before; attributes that were not spoken of come first.
          suggested: items, none of them gold.
          gold: items that will be liked, at least one.
          rng: source of every draw.
        Raises: ValueError where gold is empty, or was suggested.
        """
        if not gold or set(gold) & set(suggested):
            raise ValueError(f"gold {[*gold]} and suggested {[*suggested]}: gold must be some items nobody suggested")
        has = set().union(*(features_of(self.items[item]) for item in suggested))
        likes = set().union(*(features_of(self.items[item]) for item in gold))
        said = " ".join(part for one in context for part in one.parts if isinstance(part, str)).casefold()
        wanted, unwanted = self._ordered(likes - has, said, gold, rng), self._ordered(has - likes, said, gold, rng)
        wanted = wanted[: int(rng.integers(1, 3))]
        unwanted = unwanted[: int(rng.random() < 0.7)]
        for _ in range(TRIES):
            options = {(True, True): BOTH, (True, False): WANTED, (False, True): UNWANTED, (False, False): NEITHER}
            template = options[bool(wanted), bool(unwanted)]
            text = template[int(rng.integers(len(template)))].format(
                wanted=" ".join(wanted), unwanted=" ".join(unwanted)
            )
            if not self.titles.tells((text,), gold):
                return Message("seeker", (text,), 0)
            # Some title is made of these very words: say less.
            wanted, unwanted = (wanted[:-1], unwanted) if wanted else (wanted, unwanted[:-1])
        return Message("seeker", self.titles.without((text,), gold) or ("...",), 0)

    def exchange(
        self, context: Sequence[Message], suggested: Sequence[int], gold: Sequence[int], rng: np.random.Generator
    ) -> tuple[Message, Message]:
        """The suggestion in words, and the composed answer to it."""
        parts: list[str | int] = [SUGGESTING[int(rng.integers(len(SUGGESTING)))]]
        for place, item in enumerate(suggested):
            parts += [" or ", item] if place else [item]
        message = Message("recommender", tuple(part for part in parts if part != ""), 0)
        return message, self.feedback([*context, message], suggested, gold, rng)

    def dialogue(self, dialogue: Dialogue, index: int, exchange: tuple[Message, Message]) -> Dialogue:
        """The dialogue up to a message, and an exchange in the place of what came then; its forms are empty.

        What the seeker likes was never named in it, so nothing of the forms holds any more.
        """
        messages = (*dialogue.messages[:index], *exchange)
        return Dialogue(f"{dialogue.dialogue_id}/{PROVENANCE}", messages, {}, {}, PROVENANCE, dialogue.domain)

    def _ordered(self, names: set[str], said: str, gold: Sequence[int], rng: np.random.Generator) -> list[str]:
        """Attributes as words, those that were not said first, in random order; none that tells a gold title."""
        phrases = [spoken_attribute(name) for name in sorted(names)]
        phrases = [phrase for phrase in phrases if phrase and not self.titles.tells((phrase,), gold)]
        shuffled = [phrases[place] for place in rng.permutation(len(phrases))]
        return sorted(
            shuffled, key=lambda phrase: phrase.removeprefix("with ").removeprefix("from the ").casefold() in said
        )


def spoken_attribute(name: str) -> str:
    """An attribute of the catalogue as people say it.

    Examples:
      >>> spoken_attribute("genre:horror"), spoken_attribute("decade:1990"), spoken_attribute("person:Tim Curry")
      ('horror', 'from the 90s', 'with Tim Curry')
    """
    kind, _, value = name.partition(":")
    if kind == "genre":
        return value
    return f"from the {spoken_decade(int(value))}" if kind == "decade" else f"with {value}"

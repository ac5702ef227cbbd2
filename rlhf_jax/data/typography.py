"""One spelling of punctuation for all text that enters: what phones and word processors put in is written as on a keyboard.

The sentiment lexicon, the tokens of text metrics and the words of titles are in ASCII: "don’t" with U+2019 is no negation
to VADER, and turns the sign of a refusal. Letters, emoji and other scripts stay as they are; so do the raw files.
"""

_TO: dict[str, str] = {
    "'": "\u2018\u2019\u201a\u201b\u2039\u203a\u02bc\u2032\u00b4\uff07",
    '"': "\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\uff02",
    "-": "\u2010\u2011\u2012\u2013\u2014\u2015\u2212",
    "...": "\u2026",
    " ": "\u0085\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000",
    # Marks that show nothing: soft hyphen, zero width, direction, byte order.
    "": "\u00ad\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff",
}
_TABLE: dict[int, str] = {ord(character): plain for plain, characters in _TO.items() for character in characters}
# Half of a surrogate pair is no character; a terminal of another encoding gives such halves.
_TABLE |= dict.fromkeys(range(0xD800, 0xE000), "\ufffd")


def plain(text: str) -> str:
    """The text with quotes, apostrophes, dashes, ellipses and spaces in ASCII, and without marks that show nothing.

    Examples:
      >>> plain("I don\u2019t \u2014 it\u2019s \u201cfine\u201d\u2026 caf\u00e9")
      'I don\\'t - it\\'s "fine"... café'
    """
    return text if text.isascii() else text.translate(_TABLE)

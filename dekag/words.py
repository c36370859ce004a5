"""Splits text in any script into words, to find phrases in a prompt as whole words.

Text is compared after NFKC_Casefold, as Unicode recommends for identifiers: composed and decomposed accents,
full-width letters and ligatures, upper and lower case are equal. A word is a run of letters, marks and
digits. In scripts without spaces between words, such as Chinese, Japanese and Thai, every character is a
word, so that a phrase matches wherever its characters follow each other. Emoji and other symbols are words,
too. Everything else, such as punctuation, separates words.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import regex

_UNSPACED = "".join(
    rf"\p{{Script_Extensions={script}}}"
    for script in (
        "Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan",
        "Tai_Tham", "New_Tai_Lue", "Tai_Viet", "Javanese", "Balinese",
    )
)  # fmt: skip
"""Scripts that are written without spaces between words."""

_JOINERS = "\u200c\u200d\u00ad\u2060\ufeff\u034f\u180e"
"""Invisible characters inside words, which are ignored in comparisons."""

_WORD = regex.compile(
    rf"(?V1)(?P<unspaced>[[\p{{L}}\p{{N}}]&&[{_UNSPACED}]][\p{{M}}{_JOINERS}]*)"
    rf"|(?P<word>[[\p{{L}}\p{{M}}\p{{N}}]--[[\p{{L}}\p{{N}}]&&[{_UNSPACED}]]]"
    rf"[[\p{{L}}\p{{M}}\p{{N}}{_JOINERS}]--[[\p{{L}}\p{{N}}]&&[{_UNSPACED}]]]*)"
    rf"|(?P<symbol>(?=[\p{{S}}#%&@*])\X)"
)
_INVISIBLE = regex.compile(rf"[{_JOINERS}\p{{Variation_Selector}}]")
_VARIATION = regex.compile(r"\p{Variation_Selector}")


def folded(text: str) -> str:
    """`text` after NFKC and case folding, repeated until stable."""
    once = unicodedata.normalize("NFKC", unicodedata.normalize("NFD", text).casefold())
    return unicodedata.normalize("NFKC", once.casefold())


_COMMON_TEXT = """
a an the this that these those some any no every each all both either neither another other such
i me my mine we us our ours you your yours he him his she her hers it its they them their theirs
who whom whose which what where when why how there here
and or but nor so yet if then than as because while although though
of in on at by for with without from to into onto over under above below between among through during
before after about against around behind beside beyond near off out up down across along upon within
is are was were be been being am do does did done has have had having can could will would shall should
may might must not very too also just only more most much many few little one two three
"""
_COMMON = frozenset(_COMMON_TEXT.split())
"""English words that say nothing of a picture by themselves, and are in most prompts."""


def is_common(phrase: str) -> bool:
    """Whether a phrase consists of common words alone: "the", "of a", a single Latin letter or a digit."""
    return all(
        word in _COMMON or (len(word) == 1 and word.isascii() and word.isalnum()) for word in words(phrase)
    )


@lru_cache(4096)
def words(text: str) -> tuple[str, ...]:
    """The words of `text`, folded, in order; empty if it has neither letter, digit nor symbol."""
    result = []
    for match in _WORD.finditer(folded(text)):
        # a joiner inside an emoji makes it a different one
        ignored = _VARIATION if match["symbol"] else _INVISIBLE
        if word := ignored.sub("", match[0]):
            result.append(word)
    return tuple(result)


def word_spans(text: str) -> list[tuple[str, int, int]]:
    """The words of `text`, folded, each with its start and end in `text`."""
    return [(word, match.start(), match.end()) for match in _WORD.finditer(text) for word in words(match[0])]


class Phrases:
    """All phrases of a text, its runs of consecutive words: a look-up takes the same time in a long text.

    Args:
        text: words, as `words` gives them.

    Example:
        >>> ("neon", "sign") in Phrases(words("A Neon Sign at night"))
        True
    """

    def __init__(self, text: tuple[str, ...]) -> None:
        self._text = text
        self._runs: dict[int, frozenset[tuple[str, ...]]] = {}  # by the number of their words

    def __contains__(self, phrase: tuple[str, ...]) -> bool:
        """Whether these words, at least one, occur consecutively."""
        count = len(phrase)
        if count not in self._runs:
            starts = range(len(self._text) - count + 1) if count else ()
            self._runs[count] = frozenset(self._text[i : i + count] for i in starts)
        return phrase in self._runs[count]

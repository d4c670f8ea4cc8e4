"""Which values of an attribute, such as genres, a text states.

A text and the vocabulary are cut into words alike: without case, at spaces, hyphens and slashes, possessive
and plural endings taken off. A value is stated where its words stand one after the other; of two that begin
at the same word, the longer counts, and words count once. So "sci-fi", "Sci Fi" and "scifi" are one value, as
are "comedy" and "comedies", "Children's" and "children".
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vllm_dare.errors import DareError

# Other ways to say a value, for those vocabularies that have it; "!" begins what is something else.
_COMMON: Mapping[str, Sequence[str]] = {
    "sci-fi": ("science fiction",),
    "science fiction": ("sci-fi",),
    "film-noir": ("noir",),
    "musical": ("!musical score", "!musical mood", "!musical style", "!musical taste"),
    "animation": ("animated",),
}
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*['\u2019]?")
_NOTHING = -1


@dataclass(frozen=True)
class Vocabulary:
    """The values that a text can state.

    Attributes:
        values: their names.
        phrases: words to the value's index; -1 is a phrase that states nothing.
        longest: the most words of a phrase.
    """

    values: Sequence[str]
    phrases: Mapping[tuple[str, ...], int]
    longest: int

    def stated(self, text: str) -> list[int]:
        """The indices of the values that ``text`` states, each once, in the order of their first mention."""
        tokens = words(text)
        found: dict[int, None] = {}
        place = 0
        while place < len(tokens):
            for length in range(min(self.longest, len(tokens) - place), 0, -1):
                value = self.phrases.get(tuple(tokens[place : place + length]))
                if value is not None:
                    if value != _NOTHING:
                        found.setdefault(value)
                    place += length - 1
                    break
            place += 1
        return list(found)


@dataclass(frozen=True)
class Stated:
    """What some texts state.

    Attributes:
        sets: bool[documents, values].
        first: int64[documents], the value that is named first; -1 if none is.
    """

    sets: np.ndarray
    first: np.ndarray


def words(text: str) -> list[str]:
    """The words of a text, in the form in which they are compared."""
    return [_plain(word) for word in _WORD.findall(text.lower())]


def _plain(word: str) -> str:
    """Without possessive and plural endings; crude, but the same for vocabulary and text."""
    word = re.sub(r"['\u2019]s?$", "", word)
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "xes", "zes", "ches", "shes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def make_vocabulary(synonyms: Mapping[str, Sequence[str]], common: bool = True) -> Vocabulary:
    """The vocabulary of some values.

    Args:
        synonyms: value to other ways to say it; one that begins with ``!`` is a phrase that does not state
            it, such as ``!musical score`` for ``Musical``.
        common: whether common synonyms of film genres are added for the values that are there.

    Raises:
        DareError: there is no value, or two values, or their synonyms, are the same words.
    """
    values = list(synonyms)
    if not values:
        raise DareError("The vocabulary has no value; give at least one.")
    phrases: dict[tuple[str, ...], int] = {}
    for index, value in enumerate(values):
        for phrase in (value, *synonyms[value]):
            _add(phrases, phrase, index, values)
    if common:
        known = {tuple(words(value)): more for value, more in _COMMON.items()}
        for index, value in enumerate(values):
            for phrase in known.get(tuple(words(value)), ()):
                for key, which in _keys(phrase, index):
                    phrases.setdefault(key, which)
    return Vocabulary(values, phrases, max(map(len, phrases)))


def _add(phrases: dict[tuple[str, ...], int], phrase: str, index: int, values: Sequence[str]) -> None:
    for key, which in _keys(phrase, index):
        if phrases.setdefault(key, which) != which:
            other = values[phrases[key]]
            raise DareError(
                f"{phrase!r} would state both {other!r} and {values[index]!r}; give it to one of them."
            )


def _keys(phrase: str, index: int) -> list[tuple[tuple[str, ...], int]]:
    """The phrase word by word and, if it has a hyphen, in one word."""
    which = _NOTHING if phrase.startswith("!") else index
    key = tuple(words(phrase))
    if not key:
        raise DareError(f"The vocabulary's entry {phrase!r} has no word in it; correct it.")
    joined = [(("".join(key),), which)] if "-" in phrase else []
    return [(key, which), *joined]


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a file: a value a line, and after a TAB other ways to say it, separated by commas.

    Raises:
        DareError: the file cannot be read, or two values are the same words.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DareError(f"The vocabulary {path} cannot be read: {error}.") from None
    synonyms: dict[str, list[str]] = {}
    for line in filter(str.strip, lines):
        value, _, rest = line.partition("\t")
        synonyms.setdefault(value.strip(), []).extend(
            part.strip() for part in rest.split(",") if part.strip()
        )
    return make_vocabulary(synonyms, common=False)


def stated(vocabulary: Vocabulary, texts: Sequence[str]) -> Stated:
    """What each text states."""
    sets = np.zeros((len(texts), len(vocabulary.values)), bool)
    first = np.full(len(texts), _NOTHING)
    for row, text in enumerate(texts):
        found = vocabulary.stated(text)
        sets[row, found] = True
        if found:
            first[row] = found[0]
    return Stated(sets, first)

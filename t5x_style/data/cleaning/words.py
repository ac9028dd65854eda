"""The words of a text as 64-bit numbers, for near duplicates and contamination."""

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from t5x_style.data.sources.normal_form import UNSPACED, is_invisible, normal_form

# Odd, and 3 modulo 8: P**k - 1 is then divisible by at most 2**5 for k < 16. So two characters of a
# word, or two words of a run, that change places differ in 59 bits.
MULTIPLIER = 0x9E3779B97F4A7C1B
# Code points from here on are no words. The tables end here.
PLANES = 0x40000
# Characters that are hashed at a time, so that the arrays fit into the cache. Further characters of
# a word do not count.
PIECE = 1 << 16

# Kinds of code points. A kind up to `UNSPACED_MARK` is what a word is made of.
NO_WORD, SPACED, CHARACTER, CHARACTER_MARK = range(4)
# Folding it is not a matter of one code point: the text is folded by `unicodedata`.
INVOLVED = 4
# All of them are characters of Han, and of these only the compatibility ideographs are folded.
HAN_PLANES = range(0x20000, PLANES)
COMPATIBILITY_HAN = range(0x2F800, 0x2FA20)
FIRST_UNSPACED = UNSPACED[0]
_UNSPACED = re.compile(f"[{UNSPACED}]")


class _Tables(NamedTuple):
    """What there is to know about a code point.

    Attributes:
      kinds: uint8 [PLANES], of the folded code point.
      values: uint64 [PLANES], a random number for the folded code point; 0 for `NO_WORD`.
      powers: uint64 [PIECE], of MULTIPLIER.
      inverses: uint64 [PIECE], of the powers.
    """

    kinds: np.ndarray
    values: np.ndarray
    powers: np.ndarray
    inverses: np.ndarray


class Words(NamedTuple):
    """The words of some texts, end to end.

    Attributes:
      hashes: uint64 [words].
      ends: int64 [texts], exclusive end of the words of each text.
    """

    hashes: np.ndarray
    ends: np.ndarray

    def begins(self) -> np.ndarray:
        """int64 [texts], where the words of each text begin."""
        return np.concatenate([np.zeros(1, np.int64), self.ends])[:-1]


def word_hashes(text: str) -> np.ndarray:
    """The words of a text as uint64 [words], as in `words_of_texts`."""
    return words_of_texts([text]).hashes


def words_of_texts(texts: Sequence[str]) -> Words:
    """The words of some texts. Many short texts at once are much faster than one after the other.

    A word is a longest run of letters, digits, `_` and the marks on them. In a script without
    spaces (`normal_form.UNSPACED`) a word is one character with its marks. Case, punctuation,
    invisible characters and forms of a character (NFKC: full width, ligatures) do not count.
    """
    codes, kinds, text_ends = _folded(texts)
    before = np.zeros_like(kinds)
    before[1:] = kinds[:-1]
    begins = (kinds == SPACED) & (before != SPACED)
    if (kinds > SPACED).any():
        begins |= (kinds == CHARACTER) | ((kinds == CHARACTER_MARK) & (before < CHARACTER))
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], len(codes))
    hashes = np.empty(len(starts), np.uint64)
    tables = _tables()
    first = 0
    while first < len(starts):
        begin = starts[first]
        last = max(int(np.searchsorted(ends, begin + PIECE, "right")), first + 1)
        # Characters between words have the value 0.
        values = tables.values.take(codes[begin : min(ends[last - 1], begin + PIECE)], mode="clip")
        values *= tables.powers[: len(values)]
        places = starts[first:last] - begin
        hashes[first:last] = np.add.reduceat(values, places) * tables.inverses[places]
        first = last
    return Words(_mixed(hashes), np.searchsorted(starts, text_ends))


def _folded(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The code points of texts end to end, the kinds of what they are folded to, and the ends.

    A line break parts two texts.
    """
    codes, ends = _code_points(texts)
    kinds = _kinds(codes)
    involved = kinds >= INVOLVED
    if involved.any():
        folded = list(texts)
        for number in np.unique(np.searchsorted(ends, np.flatnonzero(involved), "right")):
            folded[number] = fold(texts[number])
        codes, ends = _code_points(folded)
        # What a fold leaves is folded.
        kinds = _kinds(codes) & (INVOLVED - 1)
    return codes, kinds, ends


def fold(text: str) -> str:
    """The text without invisible characters, case and forms of characters."""
    return unicodedata.normalize(
        "NFKC", unicodedata.normalize("NFKC", normal_form(text)).casefold()
    )


def _code_points(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    joined = "\n".join(texts)
    ends = np.cumsum([len(text) + 1 for text in texts], dtype=np.int64) - 1
    if joined.isascii():
        return np.frombuffer(joined.encode(), np.uint8), ends
    return np.frombuffer(joined.encode("utf-32-le"), np.uint32), ends


def _kinds(codes: np.ndarray) -> np.ndarray:
    kinds = np.empty(len(codes), np.uint8)
    for first in range(0, len(codes), PIECE):  # an index takes eight bytes
        piece = slice(first, first + PIECE)
        kinds[piece] = _tables().kinds.take(codes[piece], mode="clip")
    return kinds


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """A permutation of the 64-bit numbers without structure: the finish of SplitMix64, in place."""
    numbers ^= numbers >> np.uint64(30)
    numbers *= np.uint64(0xBF58476D1CE4E5B9)
    numbers ^= numbers >> np.uint64(27)
    numbers *= np.uint64(0x94D049BB133111EB)
    numbers ^= numbers >> np.uint64(31)
    return numbers


@functools.cache
def _tables() -> _Tables:
    kinds = np.full(PLANES, CHARACTER, np.uint8)
    kinds[: HAN_PLANES[0]] = [*map(_kind, map(chr, range(HAN_PLANES[0])))]
    folded = np.arange(PLANES, dtype=np.uint64)
    for code in (*range(HAN_PLANES[0]), *COMPATIBILITY_HAN):
        character = chr(code)
        if unicodedata.decomposition(character) or character.casefold() != character:
            result = fold(character)
            if len(result) == 1:
                kinds[code], folded[code] = kinds[ord(result)], ord(result)
            elif any(kinds[ord(part)] for part in result):
                kinds[code] = INVOLVED
            if any(kinds[ord(part)] >= INVOLVED for part in result):
                kinds[code] |= INVOLVED
    kinds[-1] = INVOLVED  # stands for all that follow: the tags are among them
    values = np.where(kinds & (INVOLVED - 1), _mixed(folded + np.uint64(MULTIPLIER)), np.uint64(0))
    powers = np.full(PIECE, MULTIPLIER, np.uint64)
    inverses = np.full(PIECE, pow(MULTIPLIER, -1, 2**64), np.uint64)
    powers[0] = inverses[0] = 1
    return _Tables(kinds, values, np.cumprod(powers), np.cumprod(inverses))


def _kind(character: str) -> int:
    """The kind of a character that is folded to itself."""
    if is_invisible(character):
        return INVOLVED
    mark = unicodedata.category(character)[0] == "M"
    if mark or character.isalnum() or character == "_":
        kind = SPACED
        if character >= FIRST_UNSPACED and _UNSPACED.match(character):
            kind = CHARACTER_MARK if mark else CHARACTER
        # Marks, and the vowels and ends of Hangul, may become one with the character before.
        return kind | (INVOLVED if mark or "\u1161" <= character <= "\u11c2" else 0)
    return NO_WORD

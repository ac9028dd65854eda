"""Runs of n words as 64-bit numbers, by which near duplicates and contamination are found."""

import functools
import hashlib
import re

import numpy as np

WORD = re.compile(r"\w+")
# Odd, and 3 modulo 8: P**k - 1 is then divisible by at most 2**5 for k < 16. So runs in which two
# words change places differ in 59 bits.
MULTIPLIER = 0x9E3779B97F4A7C1B


@functools.lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    """64 bits of BLAKE2b: the same in every process, unlike Python's own `hash` of a text."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def word_hashes(text: str) -> np.ndarray:
    """The words of a text, in lower case and without punctuation, as uint64 [words].

    A word is a longest run of letters, digits and `_`. So in a script without spaces a clause is
    one word.
    """
    return np.array([_word_hash(word) for word in WORD.findall(text.lower())], np.uint64)


def ngram_hashes(words: np.ndarray, n: int) -> np.ndarray:
    """Each run of n words as one number: sum of MULTIPLIER**(n - 1 - k) word[k], modulo 2**64.

    Args:
      words: uint64 [words], from `word_hashes`.
      n: at least 1.

    Returns:
      uint64 [max(words - n + 1, 0)], in the order of the text.
    """
    count = max(len(words) - n + 1, 0)
    result = np.zeros(count, np.uint64)
    for start in range(n):
        result *= np.uint64(MULTIPLIER)
        result += words[start : start + count]
    return result

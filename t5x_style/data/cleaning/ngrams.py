"""Runs of n words as 64-bit numbers, by which near duplicates and contamination are found."""

import numpy as np

from t5x_style.data.cleaning.words import MULTIPLIER


def ngram_hashes(words: np.ndarray, n: int) -> np.ndarray:
    """Each run of n words as one number: sum of MULTIPLIER**(n - 1 - k) word[k], modulo 2**64.

    Args:
      words: uint64 [words], from `word_hashes`.
      n: at least 1.

    Returns:
      uint64 [max(words - n + 1, 0)], in the order of the text.
    """
    if n == 1 or n > len(words):
        return words[: max(len(words) - n + 1, 0)]
    # From runs of half the length, so that 13 words take five products and not twelve.
    half = n // 2
    halves = ngram_hashes(words, half)
    runs = halves[:-half] * np.uint64(pow(MULTIPLIER, half, 2**64)) + halves[half:]
    return runs if n % 2 == 0 else runs[:-1] * np.uint64(MULTIPLIER) + words[n - 1 :]

"""The fertility of a vocabulary: how far it cuts words apart, and the cost of that."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping

from t5x_style.data.tokenizers.tokenizer import Tokenizer

# Letters, and the signs between letters: q.i.d, d'un, R&D, non-exclusive.
WORD = re.compile(r"[^\W\d_]+(?:[.'’&-][^\W\d_]+)*")
# A word is of the domain if it is this many times as frequent as elsewhere, and occurs this often.
TIMES_AS_FREQUENT = 10
LEAST_COUNT = 3


@dataclasses.dataclass(frozen=True)
class Fertility:
    """How a vocabulary encodes text.

    Attributes:
      tokens_per_word: tokens over words; words are separated by white space.
      bytes_per_token: UTF-8 bytes over tokens.
      whole_words: share of the alphabetic words, by occurrence, that are one token.
      lossless: share of the texts that decode to themselves.
      lost_bytes: bytes in which the others differ from what they decode to.
    """

    tokens_per_word: float
    bytes_per_token: float
    whole_words: float
    lossless: float
    lost_bytes: int


def fertility(tokenizer: Tokenizer, texts: Iterable[str]) -> Fertility:
    """Encodes all of `texts`."""
    tokens = size = words = documents = kept = lost = 0
    alphabetic: collections.Counter[str] = collections.Counter()
    for text in texts:
        ids = tokenizer.encode_array(text)
        documents += 1
        found = tokenizer.text_bytes(text, ids)
        kept += found.lost == 0
        lost += found.lost
        tokens += len(ids)
        size += len(text.encode())
        words += len(text.split())
        alphabetic.update(re.findall(r"[^\W\d_]+", text))
    whole = sum(
        count for word, count in alphabetic.items() if len(tokenizer.encode(f" {word}")) == 1
    )
    return Fertility(
        tokens_per_word=tokens / max(words, 1),
        bytes_per_token=size / max(tokens, 1),
        whole_words=whole / max(alphabetic.total(), 1),
        lossless=kept / max(documents, 1),
        lost_bytes=lost,
    )


def encoded_bits_per_byte(
    vocab_size: int, bytes_per_token: Mapping[str, float], shares: Mapping[str, float]
) -> float:
    """Bits a byte of the blend if a token is written in log2 V bits. Smaller is better.

    This is tokens x log2 V, by which BloombergGPT chose its vocabulary (2303.17564, section 2.3).
    More pieces make fewer tokens, of more bits.

    Args:
      vocab_size: V.
      bytes_per_token: {source: UTF-8 bytes over tokens}.
      shares: {source: share of the blend's bytes}, as in the sample of a vocabulary.
    """
    tokens_per_byte = sum(share / bytes_per_token[source] for source, share in shares.items())
    return tokens_per_byte * math.log2(vocab_size)


def word_counts(texts: Iterable[str]) -> collections.Counter[str]:
    """{word as written: how often it occurs}."""
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(WORD.findall(text))
    return counts


def domain_words(own: Mapping[str, int], others: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """(word, count) of the words of a source's domain, the most frequent first.

    They occur at least 3 times, and are at least 10 times as frequent as in the other sources
    together, where one is added to every count.
    """
    own_total, others_total = sum(own.values()), sum(others.values()) + 1
    for word, count in sorted(own.items(), key=lambda item: (-item[1], item[0])):
        if count < LEAST_COUNT:
            return
        elsewhere = (others.get(word, 0) + 1) / others_total
        if count / own_total >= TIMES_AS_FREQUENT * elsewhere:
            yield word, count


def worst_split(
    tokenizer: Tokenizer, words: Iterable[tuple[str, int]], at_most: int
) -> list[tuple[str, int, int]]:
    """The (word, count, tokens) with the highest cost, count x (tokens - 1), in that order.

    A word is encoded as within a text, after a space.
    """
    split = [(word, count, len(tokenizer.encode(f" {word}"))) for word, count in words]
    split = [(word, count, tokens) for word, count, tokens in split if tokens > 1]
    split.sort(key=lambda entry: (-entry[1] * (entry[2] - 1), entry[0]))
    return split[:at_most]

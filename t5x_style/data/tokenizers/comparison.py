"""Vocabularies compared on text that none was trained on."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from t5x_style.data.tokenizers.fertility import (
    Fertility,
    domain_words,
    encoded_bits_per_byte,
    fertility,
    word_counts,
    worst_split,
)
from t5x_style.data.tokenizers.tokenizer import Tokenizer

WORST_WORDS = 10


@dataclasses.dataclass(frozen=True)
class SourceFertility:
    """The fertility of a vocabulary of V = `pieces` on one source."""

    source: str
    vocabulary: str
    pieces: int
    fertility: Fertility

    def to_json(self) -> dict[str, Any]:
        """One flat row."""
        plain = dataclasses.asdict(self)
        return plain | plain.pop("fertility")


@dataclasses.dataclass(frozen=True)
class EncodedSize:
    """Bits per byte of the blend's text as tokens x log2 V, for a vocabulary of V = `pieces`."""

    vocabulary: str
    pieces: int
    bits_per_byte: float


@dataclasses.dataclass(frozen=True)
class TermPieces:
    """A term as a vocabulary writes it after a space; the pieces are joined by spaces."""

    term: str
    vocabulary: str
    tokens: int
    pieces: str


@dataclasses.dataclass(frozen=True)
class CostlyWord:
    """A word of a source's own, how often it occurs there, and its tokens."""

    source: str
    word: str
    count: int
    tokens: int
    pieces: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The numbers of `compare`.

    Attributes:
      fertility: of every source and vocabulary.
      encoded: of every vocabulary.
      best: the one to choose from that encodes the blend in the fewest bits.
      terms: of every term and vocabulary.
      worst_words: the words that cost `best` most, by source. Empty for a single source.
    """

    fertility: Sequence[SourceFertility]
    encoded: Sequence[EncodedSize]
    best: str
    terms: Sequence[TermPieces]
    worst_words: Sequence[CostlyWord]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values; terms as {term: {vocabulary: pieces}}."""
        plain = dataclasses.asdict(self)
        plain["fertility"] = [row.to_json() for row in self.fertility]
        plain["terms"] = collections.defaultdict(dict)
        for row in self.terms:
            plain["terms"][row.term][row.vocabulary] = row.pieces
        return plain


def compare(
    texts: Mapping[str, Sequence[str]],
    shares: Mapping[str, float],
    ours: Mapping[str, Tokenizer],
    others: Mapping[str, Tokenizer],
    terms: Sequence[str],
) -> Comparison:
    """Measures vocabularies on texts.

    Args:
      texts: {source: texts that none of them was trained on}.
      shares: {source: share of the blend's bytes}.
      ours: {path: vocabulary} to choose from.
      others: {path: vocabulary} to compare with.
      terms: words and phrases to show in pieces.
    """
    vocabularies = {**ours, **others}
    measured = [
        SourceFertility(source, name, vocabulary.vocab_size, fertility(vocabulary, texts[source]))
        for source in shares
        for name, vocabulary in vocabularies.items()
    ]
    encoded = []
    for name, vocabulary in vocabularies.items():
        bytes_per_token = {
            row.source: row.fertility.bytes_per_token for row in measured if row.vocabulary == name
        }
        bits = encoded_bits_per_byte(vocabulary.vocab_size, bytes_per_token, shares)
        encoded.append(EncodedSize(name, vocabulary.vocab_size, bits))
    best = min(encoded[: len(ours)], key=lambda row: row.bits_per_byte).vocabulary
    in_pieces = [
        TermPieces(term, name, *_pieces(vocabulary, term))
        for term in terms
        for name, vocabulary in vocabularies.items()
    ]
    return Comparison(measured, encoded, best, in_pieces, list(_worst_words(texts, ours[best])))


def _worst_words(texts: Mapping[str, Sequence[str]], tokenizer: Tokenizer) -> Iterator[CostlyWord]:
    counts = {source: word_counts(documents) for source, documents in texts.items()}
    if len(counts) == 1:
        return  # there is nothing to compare its words with
    everywhere = sum(counts.values(), collections.Counter())
    for source, own in counts.items():
        words = domain_words(own, everywhere - own)
        for word, count, tokens in worst_split(tokenizer, words, WORST_WORDS):
            yield CostlyWord(source, word, count, tokens, _pieces(tokenizer, word)[1])


def _pieces(tokenizer: Tokenizer, term: str) -> tuple[int, str]:
    """The number of tokens of a term within a text, after a space, and its pieces."""
    tokens = tokenizer.encode(f" {term}")
    return len(tokens), " ".join(tokenizer.piece(token) for token in tokens)

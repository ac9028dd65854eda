"""What the verb `tokenizer` prints: what vocabularies make of each source, and of its own words."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from t5x_style.data import Corpus, Tokenizer
from t5x_style.data.sources.documents import documents
from t5x_style.data.tokenizers.fertility import (
    domain_words,
    encoded_bits_per_byte,
    fertility,
    word_counts,
    worst_split,
)
from t5x_style.reporting import table

FERTILITY_CHARACTERS = 1_000_000
WORST_WORDS = 10


def print_tables(
    corpus: Corpus,
    shares: Mapping[str, float],
    ours: Mapping[str, Tokenizer],
    others: Mapping[str, Tokenizer],
    terms: Sequence[str],
) -> dict[str, Any]:
    """Prints, and gives as plain data, what vocabularies make of text that none was trained on.

    That is each source's validation split, or the first of its train split if it has none.

    Args:
      shares: {source: share of the blend}.
      ours: {path: vocabulary} to choose from.
      others: {path: vocabulary} to compare with.
      terms: words and phrases to show in pieces.
    """
    vocabularies = {**ours, **others}
    texts = {task: list(_some_texts(corpus, task)) for task in shares}
    measured: list[dict[str, Any]] = [
        {"source": task, "vocabulary": name, "pieces": vocabulary.vocab_size}
        | dataclasses.asdict(fertility(vocabulary, texts[task]))
        for task in shares
        for name, vocabulary in vocabularies.items()
    ]
    print(
        table([[*row.values()] for row in measured], [key.replace("_", " ") for key in measured[0]])
    )
    encoded: list[dict[str, Any]] = [
        {
            "vocabulary": name,
            "pieces": vocabulary.vocab_size,
            "bits_per_byte": encoded_bits_per_byte(
                vocabulary.vocab_size,
                {
                    row["source"]: row["bytes_per_token"]
                    for row in measured
                    if row["vocabulary"] == name
                },
                shares,
            ),
        }
        for name, vocabulary in vocabularies.items()
    ]
    best = min(encoded[: len(ours)], key=lambda row: row["bits_per_byte"])["vocabulary"]
    if len(encoded) > 1:
        print("\nBits per byte of the blend's text as tokens x log2(pieces)")
        marked = [
            [*row.values(), "<- fewest" if row["vocabulary"] == best else ""] for row in encoded
        ]
        print(table(marked, ["vocabulary", "pieces", "bits per byte", ""]))
    if terms:
        print("\nThe terms in pieces")
        rows = [
            [term, name, len(each.encode(f" {term}")), _pieces(each, term)]
            for term in terms
            for name, each in vocabularies.items()
        ]
        print(table(rows, ["term", "vocabulary", "tokens", "pieces"]))
    worst = list(_worst_words(texts, ours[best]))
    if worst:
        print(f"\nThe words of each source's own that cost {best} most")
        print(table([[*row.values()] for row in worst], [*worst[0]]))
    return {
        "fertility": measured,
        "encoded": encoded,
        "best": best,
        "terms": {
            term: {name: _pieces(each, term) for name, each in vocabularies.items()}
            for term in terms
        },
        "worst_words": worst,
    }


def _worst_words(
    texts: Mapping[str, Sequence[str]], tokenizer: Tokenizer
) -> Iterator[dict[str, Any]]:
    counts = {task: word_counts(its) for task, its in texts.items()}
    if len(counts) == 1:
        return  # nothing to tell its own words from
    everywhere = sum(counts.values(), collections.Counter())
    for task, own in counts.items():
        words = domain_words(own, everywhere - own)
        for word, count, tokens in worst_split(tokenizer, words, WORST_WORDS):
            pieces = _pieces(tokenizer, word)
            yield {"source": task, "word": word, "count": count, "tokens": tokens, "pieces": pieces}


def _pieces(tokenizer: Tokenizer, term: str) -> str:
    """The pieces of a term as it stands within a text, a space between them."""
    return " ".join(tokenizer.piece(token) for token in tokenizer.encode(f" {term}"))


def _some_texts(corpus: Corpus, task: str) -> Iterator[str]:
    """The first documents of a source's validation split; of its train split if it has none."""
    source = corpus.source(task)
    assert source is not None
    characters = 0
    for text in documents(source, source.split_names()[-1]):
        yield text
        characters += len(text)
        if characters >= FERTILITY_CHARACTERS:
            return

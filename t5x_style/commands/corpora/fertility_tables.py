"""The tables that the verb `tokenizer` prints."""

import dataclasses

from t5x_style.data.tokenizers.comparison import Comparison
from t5x_style.reporting import table


def print_comparison(found: Comparison) -> None:
    """Prints fertility, encoded size, terms, and the words that cost most."""
    rows = [row.to_json() for row in found.fertility]
    print(table([[*row.values()] for row in rows], [name.replace("_", " ") for name in rows[0]]))
    if len(found.encoded) > 1:
        print("\nBits per byte of the blend's text as tokens x log2(pieces)")
        marked = [
            [*dataclasses.astuple(row), "<- fewest" if row.vocabulary == found.best else ""]
            for row in found.encoded
        ]
        print(table(marked, ["vocabulary", "pieces", "bits per byte", ""]))
    if found.terms:
        print("\nThe terms in pieces")
        terms = [list(dataclasses.astuple(row)) for row in found.terms]
        print(table(terms, ["term", "vocabulary", "tokens", "pieces"]))
    if found.worst_words:
        print(f"\nThe words of each source's own that cost {found.best} most")
        words = [list(dataclasses.astuple(row)) for row in found.worst_words]
        print(table(words, ["source", "word", "count", "tokens", "pieces"]))

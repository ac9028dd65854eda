"""Vocabularies compared on texts of which every number is known."""

import json

import pytest

from t5x_style.data import Tokenizer
from t5x_style.data.tokenizers import comparison
from t5x_style.data.tokenizers.comparison import compare

BYTES = Tokenizer("bytes")


TEXTS = {
    "law": ["lessee lessee lessee lessor", "the the the lessor lessor"],
    "web": ["the the the the city", "city city lessor lessor" + " the" * 50],
}
LAW = {"law": TEXTS["law"]}


def test_every_vocabulary_on_every_source(tokenizer):
    shares = {"law": 0.75, "web": 0.25}
    found = compare(TEXTS, shares, {"ours": tokenizer}, {"bytes": BYTES}, ["fee"])
    assert [(row.source, row.vocabulary, row.pieces) for row in found.fertility] == [
        ("law", "ours", 512),
        ("law", "bytes", 259),
        ("web", "ours", 512),
        ("web", "bytes", 259),
    ]
    law = found.fertility[1].fertility
    # 27 and 25 bytes of nine words, of which none is one byte.
    assert (law.tokens_per_word, law.bytes_per_token) == (52 / 9, 1.0)
    assert (law.whole_words, law.lossless) == (0.0, 1.0)
    assert [row.vocabulary for row in found.encoded] == ["ours", "bytes"]
    # A byte is a token of log2(259) bits.
    assert found.encoded[1].bits_per_byte == pytest.approx(8.0168, abs=1e-4)
    assert found.terms[1].pieces == "<0x20> <0x66> <0x65> <0x65>"
    assert [term.tokens for term in found.terms] == [len(tokenizer.encode(" fee")), 4]


def test_the_best_is_chosen_among_ours_and_by_the_bits_of_a_byte(tokenizer):
    shares = {"law": 0.5, "web": 0.5}
    both = {"bytes": BYTES, "small": tokenizer}
    assert compare(TEXTS, shares, both, {}, []).best == "small"
    # Another vocabulary is compared with, and never chosen.
    assert compare(TEXTS, shares, {"bytes": BYTES}, {"small": tokenizer}, []).best == "bytes"


def test_the_words_of_a_source_that_cost_most(monkeypatch):
    """Of nine words of law, lessee is three and never elsewhere, lessor three and two of 59."""
    shares = {"law": 0.5, "web": 0.5}
    worst = compare(TEXTS, shares, {"bytes": BYTES}, {}, []).worst_words
    (word,) = (word for word in worst if word.source == "law")
    assert (word.word, word.count, word.tokens) == ("lessee", 3, 7)
    assert word.pieces.split()[:2] == ["<0x20>", "<0x6C>"]
    monkeypatch.setattr(comparison, "WORST_WORDS", 0)
    assert compare(TEXTS, shares, {"bytes": BYTES}, {}, []).worst_words == []
    # A single source has no words of its own: there is nothing to compare with.
    assert compare(LAW, {"law": 1.0}, {"bytes": BYTES}, {}, []).worst_words == []


def test_as_json():
    found = compare(LAW, {"law": 1.0}, {"bytes": BYTES}, {}, ["a", "b"])
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["terms"] == {"a": {"bytes": "<0x20> <0x61>"}, "b": {"bytes": "<0x20> <0x62>"}}
    assert plain["fertility"] == [
        {"source": "law", "vocabulary": "bytes", "pieces": 259, "tokens_per_word": 52 / 9,
         "bytes_per_token": 1.0, "whole_words": 0.0, "lossless": 1.0, "lost_bytes": 0}
    ]  # fmt: skip
    assert plain["best"] == "bytes"

"""What a vocabulary makes of text, against counts by hand."""

import math
import types

import pytest

from t5x_style.data import Tokenizer
from t5x_style.data.tokenizers.fertility import (
    domain_words,
    encoded_bits_per_byte,
    fertility,
    word_counts,
    worst_split,
)


def test_fertility_by_hand(tokenizer):
    measured = fertility(tokenizer, ["the the zyxwvutsrq", ""])
    ids = tokenizer.encode("the the zyxwvutsrq")
    assert measured.tokens_per_word == pytest.approx(len(ids) / 3)
    assert measured.bytes_per_token == pytest.approx(18 / len(ids))
    assert measured.whole_words == pytest.approx(2 / 3)
    assert measured.lossless == 1


def test_a_vocabulary_of_another_kind_shows_its_losses(tmp_path):
    """T5's own way: normalised, white space folded, no bytes."""
    import sentencepiece

    path = tmp_path / "lossy.model"
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the quick brown fox " * 20] * 20),
            model_writer=file,
            vocab_size=20,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    measured = fertility(Tokenizer(str(path)), ["the quick brown fox", "the  quick\nfox", "É"])
    assert measured.lossless == pytest.approx(1 / 3)
    # A space and the newline (two: another byte comes back), and the two bytes of É.
    assert measured.lost_bytes == 1 + 2 + 2


def test_tokens_times_log2_of_the_size_by_hand():
    """1,000 bytes of each kind, the blend one to three: 250 and 500 tokens of 10 bits each."""
    bits = encoded_bits_per_byte(1024, {"a": 4.0, "b": 2.0}, {"a": 0.25, "b": 0.75})
    assert bits == pytest.approx((0.25 * 250 + 0.75 * 500) * 10 / 1000)
    assert encoded_bits_per_byte(259, {"a": 1.0}, {"a": 1.0}) == pytest.approx(math.log2(259))


def test_words():
    assert word_counts(["q.i.d. and p.o. 12 R&D d'un non-exclusive", "and"]) == {
        "q.i.d": 1, "and": 2, "p.o": 1, "R&D": 1, "d'un": 1, "non-exclusive": 1,
    }  # fmt: skip


def test_words_of_a_domain():
    """Ten times as frequent as elsewhere, where each is counted once more than it occurs."""
    own = {"lessee": 10, "the": 70, "tort": 3, "rare": 2, "fee": 15}
    others = {"the": 700, "fee": 14, "city": 285}  # 999 in all
    # Of 100 and 1,000: lessee 10 % against 0.1 %, fee 15 % against 1.5 %, tort 3 % against 0.1 %.
    assert list(domain_words(own, others)) == [("fee", 15), ("lessee", 10), ("tort", 3)]
    assert list(domain_words(own, others | {"fee": 15, "city": 284})) == [
        ("lessee", 10),
        ("tort", 3),
    ]


def test_the_worst_are_those_that_cost_most(tokenizer):
    words = [("the", 1000), ("qqqq", 5), ("zyxwvutsrq", 3), ("qqq", 5)]
    cost = {word: count * (len(tokenizer.encode(f" {word}")) - 1) for word, count in words}
    assert cost["the"] == 0
    worst = worst_split(tokenizer, words, 2)
    assert [count * (tokens - 1) for _, count, tokens in worst] == sorted(
        cost.values(), reverse=True
    )[:2]
    assert "the" not in [word for word, _, _ in worst_split(tokenizer, words, 9)]


def test_a_word_of_two_pieces_is_split():
    in_letters = types.SimpleNamespace(encode=str.split)
    words = [("a", 9), ("a b", 2), ("a b c", 1)]
    assert worst_split(in_letters, words, 9) == [("a b", 2, 2), ("a b c", 1, 3)]

"""The words of a text: against a split by hand of what Unicode's own names and categories say."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_style.data.cleaning import words as words_module
from t5x_style.data.cleaning.words import fold, word_hashes, words_of_texts

WITHOUT_SPACES = (
    "CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER",
    "MYANMAR", "IDEOGRAPHIC ITERATION MARK", "COMBINING KATAKANA-HIRAGANA",
)  # fmt: skip


def folded(text):
    """NFKC without case and without what has no shape."""
    shown = "".join(c for c in text if c not in "\u200b\u200c\u200d\u2060\ufeff\u00ad\ufe0f\u200e")
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", shown).casefold())


def split(text):
    """The definition, a character at a time."""
    found, open_word = [], ""
    for c in folded(text):
        mark = unicodedata.category(c).startswith("M")
        if unicodedata.name(c, "").startswith(WITHOUT_SPACES) and (c.isalnum() or mark):
            if mark and open_word == "character":
                found[-1] += c
            else:
                found.append(c)
            open_word = "character"
        elif c.isalnum() or c == "_" or mark:
            if open_word == "letters":
                found[-1] += c
            else:
                found.append(c)
            open_word = "letters"
        else:
            open_word = ""
    return found


# Alphabets of many scripts, what lies between words, and what is hard: marks, jamo, ligatures, case
# that changes the length, full width, invisible characters.
CHARACTERS = (
    "abczABZ019_ ,.\n-'\u00a0…½²™"
    "éÉßẞſŒœıİŀﬁﬀµΩåÅ"
    "αΑςσΣΐΰϐ" "абвЙй" "אבשּׁ" "عربيةگ" "हिन्दीकख़" "தமிழ்" "한국어가ㄱㅏᄀ"
    "中文第一条々葛豈人" "ひらがなカタカナーがﾊﾞﾞ" "ภาษาไทยำ๑" "ພາສາລາວ" "ភាសាខ្មែរ" "မြန်မာ"
    "ＡＢａ１２，。「」、" "\u0301\u0308\u0327\u3099" "\u1161\u11a8"
    "\u200b\u200d\ufeff\u2060\ufe0f\u200e" "😀𝐀𝔸𠀋\U0002f800"
)  # fmt: skip
TEXTS = st.one_of(
    st.text(st.sampled_from(CHARACTERS), max_size=60), st.text(st.sampled_from("ab中 \u0301é"))
)


@given(TEXTS, TEXTS)
@settings(max_examples=200, deadline=None)
def test_equal_words_have_equal_numbers_and_others_have_others(one, other):
    words = split(one) + split(other)
    hashes = [*word_hashes(one).tolist(), *word_hashes(other).tolist()]
    assert len(hashes) == len(words)
    assert len(set(zip(words, hashes, strict=True))) == len(set(words)) == len(set(hashes))


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_a_word_has_the_same_number_in_every_text(text):
    alone = [word_hashes(word).tolist() for word in split(text)]
    assert [[number] for number in word_hashes(text).tolist()] == alone


@given(st.lists(TEXTS, max_size=6))
@settings(max_examples=100, deadline=None)
def test_texts_together_have_the_words_that_each_has_alone(texts):
    alone = [word_hashes(text).tolist() for text in texts]
    words = words_of_texts(texts)
    together = [words.hashes[a:b].tolist() for a, b in zip(words.begins(), words.ends, strict=True)]
    assert together == alone


@pytest.mark.parametrize("edge", ["word\u00ad", "word", "", "\u0301", "ह", "中"])
def test_words_do_not_grow_together_over_the_end_of_a_text(edge):
    words = words_of_texts([edge, "\u0301word", "\u093f", edge])
    assert words.ends[1] - words.ends[0] == 1
    assert words.hashes[words.ends[0]] == word_hashes("\u0301word")[0]


def test_every_character_is_folded_alike_alone_and_in_the_tables():
    """All of Unicode: that a text is folded by tables makes no difference."""
    seen = {}
    for code in (*range(0xD800), *range(0xE000, 0x30000), *range(0xE0000, 0xE0200)):
        result = fold(chr(code))
        assert fold(result) == result
        hashes = tuple(word_hashes(chr(code)).tolist())
        assert seen.setdefault(result, hashes) == hashes, hex(code)
        # In the planes of Han what has no name yet counts as Han.
        if code < 0x20000 and len(result) == 1 and unicodedata.category(result)[0] != "M":
            assert bool(hashes) == (result.isalnum() or result == "_"), hex(code)
    assert len(set(seen.values())) > 120_000


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("?!... \u2014 \u2603", 0),
        ("The courts, in 2023_04.", 4),
        ("\u7b2c\u4e00\u6761 GB/T 1.1", 7),
        ("\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22", 7),
        ("\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e", 2),
        ("\ud55c\uad6d\uc5b4 \uc704\ud0a4", 2),
        ("nai\u0308ve cafe\u0301", 2),
    ],
)  # fmt: skip
def test_words_are_counted_as_a_reader_counts_them(text, count):
    assert len(word_hashes(text)) == count


def test_texts_longer_than_a_piece_are_hashed_like_short_ones(monkeypatch):
    text = " ".join(f"word{i} 中{i:x}文" for i in range(400))
    whole = word_hashes(text)
    monkeypatch.setattr(words_module, "PIECE", 37)
    np.testing.assert_array_equal(word_hashes(text), whole)
    # Of a word that is longer than a piece the first characters count.
    long = "x" * 36
    hashes = word_hashes(f"{long}yz1 a {long}yz2 {long}z {long}y")
    assert hashes[0] == hashes[2] == hashes[4] != hashes[3]
    assert hashes[1] == word_hashes("a")[0]


def test_many_words_have_as_many_numbers_whose_bits_are_balanced():
    words = [f"{a}{b}" for a in range(300) for b in "abcdefghijklmnopqrstuvwxyz"]
    hashes = word_hashes(" ".join(words))
    assert len(set(hashes.tolist())) == len(set(words))
    ones = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1).mean(0)
    assert abs(ones - 0.5).max() < 5 * 0.5 / np.sqrt(len(words))
